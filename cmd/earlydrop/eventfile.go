// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// eventFile is the file that --events names. Its methods are for one goroutine.
type eventFile struct {
	*os.File
	path    string
	created bool // it was not there before
}

// openEventFile opens a file to append events to, or makes it. A FIFO is opened
// only if somebody reads it: the wait for a reader would have no end. Every error
// is bad input.
func openEventFile(path string) (*eventFile, error) {
	_, err := os.Lstat(path)
	created := errors.Is(err, os.ErrNotExist)
	// Without O_NONBLOCK the kernel waits for the reader of a FIFO.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0o640)
	if errors.Is(err, unix.ENXIO) {
		if info, statErr := os.Stat(path); statErr == nil {
			switch info.Mode().Type() {
			case fs.ModeNamedPipe:
				return nil, badInput("the event file %s is a FIFO that nobody reads: start its reader first", path)
			case fs.ModeSocket:
				return nil, badInput("the event file %s is a socket: name a file or a FIFO", path)
			}
		}
	}
	if err != nil {
		return nil, badInput("open the event file: %w", err)
	}
	return &eventFile{f, path, created}, nil
}

// reopen opens the file of the same name in place of the present one, which may
// have been renamed. Where that fails, the present one stays.
func (e *eventFile) reopen() error {
	next, err := openEventFile(e.path)
	if err != nil {
		return err
	}
	old := e.File
	e.File = next.File
	if err := old.Close(); err != nil {
		slog.Warn("the old event file was not closed properly", "file", e.path, "error", err)
	}
	return nil
}

// reopenOn has the event file opened again at each signal. What was queued before
// the signal is written to the old file. The returned function ends this; call it
// before close.
func (s *sinks) reopenOn(signals <-chan os.Signal) (stop func()) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-quit:
				return
			case sig := <-signals:
				if s.file == nil {
					slog.Info("there is no event file to open again; the work goes on", "signal", sig.String())
					continue
				}
				select {
				case s.queue <- event{reopen: true}:
				case <-quit:
					return
				}
			}
		}
	})
	return func() {
		close(quit)
		wg.Wait()
	}
}

// Bounds of the wait for an output that takes nothing: a pipe or FIFO whose reader
// has stopped, a file system that hangs.
var (
	stuckAfter = 5 * time.Second
	stuckCheck = 100 * time.Millisecond
)

// drained waits until what is queued is written, and reports whether it was. It
// gives up when the output has taken nothing for stuckAfter.
func (s *sinks) drained() bool {
	tick := time.NewTicker(stuckCheck)
	defer tick.Stop()
	waiting, since := len(s.queue), time.Now()
	for {
		select {
		case <-s.done:
			return true
		case now := <-tick.C:
			if n := len(s.queue); n != waiting {
				waiting, since = n, now
			}
			if now.Sub(since) >= stuckAfter {
				return false
			}
		}
	}
}

// put queues an event that must not be lost. It waits for room in the queue, but
// not for an output that takes nothing.
func (s *sinks) put(e event) {
	t := time.NewTimer(stuckAfter)
	defer t.Stop()
	select {
	case s.queue <- e:
	case <-t.C:
		s.lost.Add(1)
	}
}
