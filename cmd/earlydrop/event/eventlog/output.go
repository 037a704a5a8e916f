// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"golang.org/x/time/rate"
)

// output warns where a write fails and takes what comes next: a disk may have
// room again. An output whose reader is gone is left alone.
type output struct {
	to   io.Writer
	tty  bool // a terminal
	gone bool
	cut  bool // a line may have been cut
	warn rate.Sometimes
}

func newOutput(w io.Writer) *output {
	o := &output{warn: rate.Sometimes{Interval: time.Second}}
	o.change(w)
	return o
}

// change has what comes next written to w.
func (o *output) change(w io.Writer) {
	f, ok := w.(*os.File)
	o.to, o.tty, o.gone, o.cut = w, ok && term.IsTerminal(int(f.Fd())), false, false
}

// Write implements io.Writer. It never fails.
func (o *output) Write(p []byte) (int, error) {
	if o.gone {
		return len(p), nil
	}
	var err error
	if o.cut {
		_, err = o.to.Write([]byte("\n"))
	}
	if err == nil {
		_, err = o.to.Write(p)
	}
	o.cut = err != nil
	switch {
	case err == nil:
	case errors.Is(err, unix.EPIPE), o.tty && errors.Is(err, unix.EIO): // a closed terminal stays closed
		o.gone = true
		slog.Warn("nobody reads the events any more; the work goes on", "error", err)
	default:
		o.warn.Do(func() { slog.Warn("events not written", "error", err) })
	}
	return len(p), nil
}
