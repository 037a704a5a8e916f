// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// file is the file that events are appended to. Its methods are for one goroutine.
type file struct {
	*os.File
	path    string
	created bool // it was not there before
}

// openFile opens a file to append events to, or makes it. A FIFO is opened only if
// somebody reads it: the wait for a reader would have no end.
func openFile(path string) (*file, error) {
	_, err := os.Lstat(path)
	created := errors.Is(err, os.ErrNotExist)
	// Without O_NONBLOCK the kernel waits for the reader of a FIFO.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0o640)
	if errors.Is(err, unix.ENXIO) {
		if info, statErr := os.Stat(path); statErr == nil {
			switch info.Mode().Type() {
			case fs.ModeNamedPipe:
				return nil, fmt.Errorf("the event file %s is a FIFO that nobody reads: start its reader first", path)
			case fs.ModeSocket:
				return nil, fmt.Errorf("the event file %s is a socket: name a file or a FIFO", path)
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open the event file: %w", err)
	}
	return &file{f, path, created}, nil
}

// reopen opens the file of the same name in place of the present one, which may
// have been renamed. Where that fails, the present one stays.
func (f *file) reopen() error {
	next, err := openFile(f.path)
	if err != nil {
		return err
	}
	old := f.File
	f.File = next.File
	if err := old.Close(); err != nil {
		slog.Warn("the old event file was not closed properly", "file", f.path, "error", err)
	}
	return nil
}
