// SPDX-License-Identifier: Apache-2.0

package term

import (
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progressAfter is how long a command works before it shows a progress bar.
const progressAfter = time.Second

// Progress shows how many bytes of some files were read. It shows nothing
// unless its writer is a terminal and the work takes longer than
// progressAfter. Its zero value shows nothing.
type Progress struct {
	w     io.Writer
	total int64
	what  string
	start time.Time
	base  int64 // bytes of the files that are done
	bar   *progressbar.ProgressBar
	shown bool // the bar is on the screen
}

// NewProgress returns the progress of reading total bytes. Of nothing, as of a
// pipe, there is none to show.
func NewProgress(w io.Writer, what string, total int64) *Progress {
	p := &Progress{what: what, total: total, start: time.Now()}
	if terminal(w) != nil {
		p.w = w
	}
	return p
}

// Of says that read of total bytes were read of all files together.
func (p *Progress) Of(read, total int64) {
	p.total = total
	p.At(read)
}

// At says that pos bytes of the current file were read.
func (p *Progress) At(pos int64) {
	if p.w == nil || p.total == 0 {
		return
	}
	if p.bar == nil {
		if time.Since(p.start) < progressAfter {
			return
		}
		p.bar = progressbar.NewOptions64(p.total,
			progressbar.OptionSetWriter(p.w),
			progressbar.OptionSetDescription(p.what),
			progressbar.OptionSetPredictTime(true),
			progressbar.OptionFullWidth(),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish(),
		)
	}
	p.shown = true
	// A bar that can't be drawn is no reason to stop.
	_ = p.bar.Set64(min(p.base+pos, p.total))
}

// FileDone says that the current file, of size bytes, was read.
func (p *Progress) FileDone(size int64) {
	p.At(size)
	p.base += size
}

// Clear takes the bar off the screen until there is more to show.
func (p *Progress) Clear() {
	if p.shown {
		_ = p.bar.Clear()
		p.shown = false
	}
}

// Done removes the bar.
func (p *Progress) Done() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
