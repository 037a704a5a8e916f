// SPDX-License-Identifier: Apache-2.0

// Package scratch keeps what does not fit into memory in a temporary file that
// has no name: it is removed as soon as it is open, so that nothing is left of it
// however the program ends.
package scratch

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// bufferSize is how much is gathered before it is written.
const bufferSize = 256 << 10

// Error is what went wrong with a temporary file. After it nothing more is
// written to the file.
type Error struct {
	Dir string // the folder that the file is in
	Err error
}

// Error names the folder and the cause.
func (e *Error) Error() string { return fmt.Sprintf("temporary file in %s: %v", e.Dir, e.Err) }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// A File takes bytes at its end and gives them back from any place. It is made on
// the disk when its buffer is full for the first time. It is not safe for
// concurrent use. Its methods return *Error.
type File struct {
	dir     string
	file    *os.File // nil: everything is in the buffer
	written int64    // bytes in file
	buffer  []byte   // what follows them
	err     *Error
}

// New returns an empty File in the folder dir (optional, os.TempDir()).
func New(dir string) *File {
	if dir == "" {
		dir = os.TempDir()
	}
	return &File{dir: dir}
}

// Size returns how many bytes were appended.
func (f *File) Size() int64 { return f.written + int64(len(f.buffer)) }

// Append adds data at the end. Where it fails, what was appended since the last
// write is lost, too.
func (f *File) Append(data []byte) error {
	if f.err != nil {
		return f.err
	}
	if len(f.buffer) > 0 && len(f.buffer)+len(data) > bufferSize {
		if err := f.write(); err != nil {
			return err
		}
	}
	if f.buffer == nil {
		f.buffer = make([]byte, 0, bufferSize)
	}
	f.buffer = append(f.buffer, data...)
	return nil
}

func (f *File) write() error {
	if f.file == nil {
		file, err := os.CreateTemp(f.dir, "earlydrop-*")
		if err != nil {
			return f.fail(err)
		}
		if err := os.Remove(file.Name()); err != nil {
			return f.fail(errors.Join(err, file.Close()))
		}
		f.file = file
	}
	if _, err := f.file.WriteAt(f.buffer, f.written); err != nil {
		return f.fail(err)
	}
	f.written += int64(len(f.buffer))
	f.buffer = f.buffer[:0]
	return nil
}

func (f *File) fail(err error) error {
	var path *os.PathError // it names a file that nobody can find
	if errors.As(err, &path) {
		err = path.Err
	}
	f.err = &Error{f.dir, err}
	return f.err
}

// ReadAt fills data with the bytes at off, all of which were appended before. As
// that of os.File it returns io.EOF, and what there is, behind the end.
func (f *File) ReadAt(data []byte, off int64) (n int, err error) {
	if f.err != nil {
		return 0, f.err
	}
	if off < f.written {
		part := data[:min(int64(len(data)), f.written-off)]
		if n, err = f.file.ReadAt(part, off); err != nil {
			return n, f.fail(err)
		}
	}
	if n < len(data) {
		n += copy(data[n:], f.buffer[min(off+int64(n)-f.written, int64(len(f.buffer))):])
	}
	if n < len(data) {
		return n, io.EOF
	}
	return n, nil
}

// Close gives the space on the disk back.
func (f *File) Close() error {
	f.buffer = nil
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	f.file = nil
	if err != nil {
		return f.fail(err)
	}
	return nil
}
