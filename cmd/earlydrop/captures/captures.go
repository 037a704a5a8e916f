// SPDX-License-Identifier: Apache-2.0

// Package captures opens the capture files of a command line: regular files, pipes and
// standard input.
package captures

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/earlydrop/earlydrop/loader/assembly"
)

// standardInput is how the command line names it.
const standardInput = "-"

// File is a capture file that a command line names.
type File struct {
	Name string // as on the command line
	Size int64  // in bytes; 0 of a pipe
	// Interrupted means that the pipe was not read to its end.
	Interrupted bool

	// pipe is what can be read only once, and first is the file read from it. Both
	// are nil of a regular file.
	pipe  *pipe
	first *assembly.File
	// copied holds what was read of the pipe, for captures that are read again.
	copied *os.File
	// memory is a file that is in memory; nil of all others.
	memory []byte
}

// InMemory returns a capture file that is in memory. It is called so in messages.
func InMemory(name string, data []byte) *File {
	return &File{Name: name, Size: int64(len(data)), memory: data}
}

// Set is the capture files of a command line.
type Set struct {
	Files []*File
	// Empty holds the errors of files that are left out, as they have no packet yet.
	Empty   []error
	closers []func() error
}

// InputError says that a name is not that of a capture which can be read.
type InputError struct{ err error }

func (e *InputError) Error() string { return e.err.Error() }

// Unwrap returns what is wrong with it.
func (e *InputError) Unwrap() error { return e.err }

func badInput(format string, args ...any) error { return &InputError{fmt.Errorf(format, args...)} }

// Open looks at the beginning of each file before any is read: bad input is to be found
// before anything is said of any, and is an *InputError. Files without even a whole file header
// (assembly.ErrEmpty), as tcpdump leaves the latest one, are no bad input where there
// are others. Regular files are opened again when
// they are read, pipes stay open. With again, a pipe may be opened several times
// as well; then a copy of it is kept in a temporary file. After an interrupt
// (SIGINT or SIGTERM) pipes end; without pipes it ends the program as ever.
func Open(ctx context.Context, names []string, again bool) (_ *Set, err error) {
	in := &Set{}
	defer func() {
		if err != nil {
			in.Close()
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
			return nil, badInput("%s can be read only once, but is named twice", title(name))
		}
		once = append(once, info)
		if files[i], err = in.openPipe(name); err != nil {
			return nil, err
		}
	}
	if len(once) > 0 {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		// A second interrupt ends the program.
		context.AfterFunc(ctx, stop)
		in.closers = append(in.closers, func() error { stop(); return nil })
	}
	for i, name := range names {
		file := &File{Name: name}
		var err error
		if files[i] == nil {
			err = file.look()
		} else {
			err = in.openFirst(ctx, file, files[i], again)
		}
		var fileErr *assembly.FileError
		switch {
		case errors.Is(err, assembly.ErrEmpty) && errors.As(err, &fileErr):
			in.Empty = append(in.Empty, fileErr)
		case err != nil:
			return nil, err
		default:
			in.Files = append(in.Files, file)
		}
	}
	if len(in.Files) == 0 {
		return nil, &InputError{errors.Join(in.Empty...)}
	}
	return in, nil
}

// look makes sure that a regular file can be read.
func (c *File) look() error {
	f, err := assembly.Open(c.Name)
	if err != nil {
		return &InputError{err}
	}
	c.Size = f.Size()
	return f.Close()
}

// openFirst begins to read a pipe.
func (in *Set) openFirst(ctx context.Context, c *File, file *os.File, again bool) (err error) {
	c.pipe = newPipe(ctx, file)
	var r io.Reader = c.pipe
	if again {
		if c.copied, err = unnamedFile(); err != nil {
			return err
		}
		in.closers = append(in.closers, c.copied.Close)
		r = io.TeeReader(r, copyWriter{c.copied})
	}
	c.first, err = assembly.Read(c.Title(), r)
	if err == nil || errors.Is(err, errInterrupted) {
		return err
	}
	return &InputError{err}
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
func (in *Set) openPipe(name string) (*os.File, error) {
	file := os.Stdin
	if name != standardInput {
		var err error
		if file, err = os.Open(name); err != nil {
			return nil, &InputError{err}
		}
		in.closers = append(in.closers, file.Close)
	}
	if info, err := file.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 && term.IsTerminal(int(file.Fd())) {
		return nil, badInput("%s is a terminal: send a capture into it, as with tcpdump -w - | ...", title(name))
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

// Copy returns a copy of a file that can be read only once, in a temporary file that goes
// when it is closed. It returns nil for a regular file.
func Copy(name string) (copied *os.File, err error) {
	if pipeInfo(name) == nil {
		return nil, nil
	}
	pipe, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer pipe.Close()
	if copied, err = unnamedFile(); err != nil {
		return nil, err
	}
	if _, err := io.Copy(copyWriter{copied}, pipe); err != nil {
		_ = copied.Close()
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return copied, nil
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

// Title is what the capture is called in messages.
func (c *File) Title() string { return title(c.Name) }

func title(name string) string {
	if name == standardInput {
		return "standard input"
	}
	return name
}

// Regular reports whether the capture is a regular file, and no pipe.
func (c *File) Regular() bool { return c.pipe == nil }

// CatchUp has f called, by whoever reads a pipe, when the pipe gives nothing for a
// moment, and at least once a second: it does what the reader has put off. An error of it
// ends the reading. A regular file is left alone.
func (c *File) CatchUp(f func() error) {
	if c.pipe != nil {
		c.pipe.catchUp, c.pipe.caughtUp = f, time.Now()
	}
}

// Open opens the capture for reading. That of a pipe works once, unless it was
// opened with a copy.
func (c *File) Open() (*assembly.File, error) {
	if c.memory != nil {
		return assembly.Read(c.Title(), bytes.NewReader(c.memory))
	}
	if c.pipe == nil {
		return assembly.Open(c.Name)
	}
	if f := c.first; f != nil {
		c.first = nil
		return f, nil
	}
	if c.copied == nil {
		return nil, fmt.Errorf("%s was read already", c.Title())
	}
	if _, err := c.copied.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return assembly.Read(c.Title(), c.copied)
}

// End returns the error with which reading the capture ended, nil where it was an
// interrupt.
func (c *File) End(err error) error {
	c.Interrupted = c.Interrupted || errors.Is(err, errInterrupted)
	// The copy of an interrupted pipe ends in the middle of a record.
	if !c.Interrupted || !errors.Is(err, errInterrupted) && !errors.Is(err, assembly.ErrTruncated) {
		return err
	}
	var skipped *assembly.SkippedError
	if errors.As(err, &skipped) {
		return &assembly.FileError{Path: c.Title(), Err: skipped}
	}
	return nil
}

// Size returns the sum of the sizes of the regular files.
func (in *Set) Size() (total int64) {
	for _, c := range in.Files {
		total += c.Size
	}
	return total
}

// SortByTime puts the captures in order of their first packets.
func (in *Set) SortByTime() {
	SortByTime(in.Files, func(c *File) (*assembly.File, error) {
		f, err := c.Open()
		if err == nil && c.pipe != nil {
			c.first = f // the packet is read again
		}
		return f, err
	})
}

// SortByTime puts the files of a capture in order of their first packets. Those
// without any come first, and files that can't be read: that is reported when it is
// their turn. Among equals the order stays.
func SortByTime[T comparable](files []T, open func(T) (*assembly.File, error)) {
	first := make(map[T]time.Time, len(files))
	for _, file := range files {
		if f, err := open(file); err == nil {
			first[file], _ = f.FirstTime()
			f.Close()
		}
	}
	slices.SortStableFunc(files, func(a, b T) int { return first[a].Compare(first[b]) })
}

// Close closes what is open.
func (in *Set) Close() {
	for _, f := range slices.Backward(in.closers) {
		_ = f()
	}
}
