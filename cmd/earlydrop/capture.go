// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/earlydrop/earlydrop/loader/assembly"
)

// standardInput is how the command line names it.
const standardInput = "-"

// A reader may put work off, until the pipe gives nothing for quietTime, or for
// busyTime at most.
const (
	quietTime = 250 * time.Millisecond
	busyTime  = time.Second
)

// errInterrupted is the error of a pipe whose reading was interrupted. What was
// read until then counts as all that there is.
var errInterrupted = errors.New("interrupted")

// capture is a capture file that a command line names.
type capture struct {
	name string // as on the command line
	size int64  // in bytes; 0 of a pipe
	// pipe is what can be read only once, and first is the file read from it. Both
	// are nil of a regular file.
	pipe  *pipe
	first *assembly.File
	// copied holds what was read of the pipe, for captures that are read again.
	copied *os.File
	// interrupted means that the pipe was not read to its end.
	interrupted bool
}

// captures are the capture files of a command line.
type captures struct {
	list []*capture
	// empty holds the errors of files that are left out, as they have no packet yet.
	empty   []error
	closers []func() error
}

// openCaptures looks at the beginning of each file before any is read: bad input
// is to be found before anything is printed. Files without even a whole file header
// (assembly.ErrEmpty), as tcpdump leaves the latest one, are no bad input where there
// are others. Regular files are opened again when
// they are read, pipes stay open. With again, a pipe may be opened several times
// as well; then a copy of it is kept in a temporary file. After an interrupt
// (SIGINT or SIGTERM) pipes end; without pipes it ends the program as ever.
func openCaptures(c *cli.Context, names []string, again bool) (_ *captures, err error) {
	in := &captures{}
	defer func() {
		if err != nil {
			in.close()
		}
	}()
	files := make([]*os.File, len(names))
	var once []os.FileInfo
	for i, name := range names {
		info := pipeInfo(name)
		if info == nil {
			continue
		}
		if slices.ContainsFunc(once, func(other os.FileInfo) bool { return os.SameFile(info, other) }) {
			return nil, badInput("%s can be read only once, but is named twice", (&capture{name: name}).title())
		}
		once = append(once, info)
		if files[i], err = in.openPipe(name); err != nil {
			return nil, err
		}
	}
	ctx := c.Context
	if len(once) > 0 {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		// A second interrupt ends the program.
		context.AfterFunc(ctx, stop)
		in.closers = append(in.closers, func() error { stop(); return nil })
	}
	for i, name := range names {
		file := &capture{name: name}
		var err error
		if files[i] == nil {
			err = file.look()
		} else {
			err = in.openFirst(ctx, file, files[i], again)
		}
		var fileErr *assembly.FileError
		switch {
		case errors.Is(err, assembly.ErrEmpty) && errors.As(err, &fileErr):
			in.empty = append(in.empty, fileErr)
		case err != nil:
			return nil, err
		default:
			in.list = append(in.list, file)
		}
	}
	if len(in.list) == 0 {
		return nil, asBadInput(errors.Join(in.empty...))
	}
	return in, nil
}

// skipped joins the errors of files that were left out while others were read.
func skipped(files []error) (err error) {
	for _, e := range files {
		err = errors.Join(err, fmt.Errorf("%w, skipped", e))
	}
	return err
}

// look makes sure that a regular file can be read.
func (c *capture) look() error {
	f, err := assembly.Open(c.name)
	if err != nil {
		return asBadInput(err)
	}
	c.size = f.Size()
	return f.Close()
}

// openFirst begins to read a pipe.
func (in *captures) openFirst(ctx context.Context, c *capture, file *os.File, again bool) (err error) {
	c.pipe = newPipe(ctx, file)
	var r io.Reader = c.pipe
	if again {
		if c.copied, err = unnamedFile(); err != nil {
			return err
		}
		in.closers = append(in.closers, c.copied.Close)
		r = io.TeeReader(r, copyWriter{c.copied})
	}
	c.first, err = assembly.Read(c.title(), r)
	if err == nil || errors.Is(err, errInterrupted) {
		return err
	}
	return asBadInput(err)
}

// pipeInfo returns what is known about a file that can be read only once: standard
// input, a FIFO, a socket or a device. It returns nil for regular files, and for what
// can't be opened: assembly.Open says why.
func pipeInfo(name string) os.FileInfo {
	if name == standardInput {
		info, err := os.Stdin.Stat()
		if err != nil {
			return nil
		}
		return info
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode().IsRegular() || info.IsDir() {
		return nil
	}
	return info
}

// openPipe opens a file that can be read only once. That of a FIFO waits for a
// writer.
func (in *captures) openPipe(name string) (*os.File, error) {
	file := os.Stdin
	if name != standardInput {
		var err error
		if file, err = os.Open(name); err != nil {
			return nil, asBadInput(err)
		}
		in.closers = append(in.closers, file.Close)
	}
	if info, err := file.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 && term.IsTerminal(int(file.Fd())) {
		return nil, badInput("%s is a terminal: send a capture into it, as with tcpdump -w - | ...", (&capture{name: name}).title())
	}
	return file, nil
}

// unnamedFile returns a temporary file that goes when it is closed.
func unnamedFile() (*os.File, error) {
	f, err := os.CreateTemp("", "earlydrop-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// copyWriter writes the copy of a pipe, and says so in its errors.
type copyWriter struct{ f *os.File }

func (w copyWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if err != nil {
		err = fmt.Errorf("can't keep a copy of it: %v", err) // not of the capture's path
	}
	return n, err
}

// title is the capture's name in messages.
func (c *capture) title() string {
	if c.name == standardInput {
		return "standard input"
	}
	return c.name
}

// open opens the capture for reading. That of a pipe works once, unless it was
// opened with a copy.
func (c *capture) open() (*assembly.File, error) {
	if c.pipe == nil {
		return assembly.Open(c.name)
	}
	if f := c.first; f != nil {
		c.first = nil
		return f, nil
	}
	if c.copied == nil {
		return nil, fmt.Errorf("%s was read already", c.title())
	}
	if _, err := c.copied.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return assembly.Read(c.title(), c.copied)
}

// end returns the error with which reading the capture ended, nil where it was an
// interrupt.
func (c *capture) end(err error) error {
	c.interrupted = c.interrupted || errors.Is(err, errInterrupted)
	// The copy of an interrupted pipe ends in the middle of a record.
	if !c.interrupted || !errors.Is(err, errInterrupted) && !errors.Is(err, assembly.ErrTruncated) {
		return err
	}
	var skipped *assembly.SkippedError
	if errors.As(err, &skipped) {
		return &assembly.FileError{Path: c.title(), Err: skipped}
	}
	return nil
}

// size returns the sum of the sizes of the regular files.
func (in *captures) size() (total int64) {
	for _, c := range in.list {
		total += c.size
	}
	return total
}

// sortByTime puts the captures in order of their first packets.
func (in *captures) sortByTime() {
	sortByTime(in.list, func(c *capture) (*assembly.File, error) {
		f, err := c.open()
		if err == nil && c.pipe != nil {
			c.first = f // the packet is read again
		}
		return f, err
	})
}

// sortByTime puts the files of a capture in order of their first packets. Those
// without any come first, and files that can't be read: that is reported when it is
// their turn. Among equals the order stays.
func sortByTime[T comparable](files []T, open func(T) (*assembly.File, error)) {
	first := make(map[T]time.Time, len(files))
	for _, file := range files {
		if f, err := open(file); err == nil {
			first[file], _ = f.FirstTime()
			f.Close()
		}
	}
	slices.SortStableFunc(files, func(a, b T) int { return first[a].Compare(first[b]) })
}

// close closes what is open.
func (in *captures) close() {
	for _, f := range slices.Backward(in.closers) {
		_ = f()
	}
}

// pipe reads a pipe in a goroutine of its own, so that waiting for it can end.
type pipe struct {
	done   <-chan struct{} // closed by an interrupt
	chunks chan chunk
	rest   []byte // of the chunk that came last
	err    error
	// catchUp (optional) does what the reader has put off; see quietTime. It is
	// called by Read. An error ends the reading.
	catchUp  func() error
	caughtUp time.Time
}

// chunk is what one read of a pipe gave.
type chunk struct {
	data []byte
	err  error
}

// newPipe starts to read r. The goroutine ends with r, or when ctx is done.
func newPipe(ctx context.Context, r io.Reader) *pipe {
	p := &pipe{done: ctx.Done(), chunks: make(chan chunk)}
	go func() {
		// While one buffer is being read, the other one is filled.
		var buffers [2][1 << 16]byte
		for i := 0; ; i ^= 1 {
			n, err := r.Read(buffers[i][:])
			select {
			case p.chunks <- chunk{buffers[i][:n], err}:
			case <-p.done:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return p
}

// Read implements io.Reader.
func (p *pipe) Read(b []byte) (int, error) {
	if len(p.rest) == 0 && p.err == nil {
		p.receive()
	}
	if len(p.rest) == 0 {
		return 0, p.err
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// receive waits for the next chunk that is not empty.
func (p *pipe) receive() {
	if p.catchUp != nil && time.Since(p.caughtUp) >= busyTime {
		p.err = p.doCatchUp()
	}
	quiet := time.NewTimer(quietTime)
	defer quiet.Stop()
	for len(p.rest) == 0 && p.err == nil {
		select {
		case c := <-p.chunks:
			p.rest, p.err = c.data, c.err
		case <-quiet.C:
			if p.catchUp != nil {
				p.err = p.doCatchUp()
			}
		case <-p.done:
			p.err = errInterrupted
		}
	}
}

func (p *pipe) doCatchUp() error {
	err := p.catchUp()
	p.caughtUp = time.Now()
	return err
}
