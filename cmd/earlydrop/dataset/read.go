// SPDX-License-Identifier: Apache-2.0

package dataset

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// readAll adds the samples of all inputs.
func (w *writer) readAll(ctx context.Context, inputs []input) error {
	for _, in := range inputs {
		if info, err := os.Stat(in.path); err == nil {
			w.total += info.Size()
		}
	}
	var counters assembly.Counters
	folders := map[string]*folderCount{}
	for _, files := range captureGroups(inputs, w.config.Join) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if w.Groups[files[0].label] == nil {
			w.Groups[files[0].label] = map[string]int{}
		}
		before := counters
		errs, err := w.readCapture(files, &counters)
		if err != nil {
			return err
		}
		// Of all its files.
		flows, incomplete := counters.Samples()-before.Samples(), counters[assembly.Incomplete]-before[assembly.Incomplete]
		for i, in := range files {
			var fileErr *assembly.FileError
			errors.As(errs[i], &fileErr)
			if in.folder != "" {
				if folders[in.folder] == nil {
					folders[in.folder] = &folderCount{}
				}
				folders[in.folder].add(flows, incomplete, fileErr)
				flows, incomplete = 0, 0
			}
			if in.incomplete {
				w.IncompleteFiles = append(w.IncompleteFiles, in.path)
			}
			if err := w.fileEnded(in, errs[i], fileErr); err != nil {
				return err
			}
		}
	}
	for i, n := range counters {
		w.Counters[assembly.Counter(i).String()] = n
	}
	return w.enough(folders)
}

// fileEnded notes with what error the reading of a file ended, and returns one that ends
// all. fileErr is err if that is about the file.
func (w *writer) fileEnded(in *input, err error, fileErr *assembly.FileError) error {
	switch {
	case fileErr == nil:
		return err
	case in.folder != "":
		w.unread(fileErr)
	case errors.Is(fileErr, assembly.ErrEmpty):
		w.Empty = append(w.Empty, fileErr)
	default:
		return asBadInput(fileErr)
	}
	return nil
}

// enough refuses folders and labels that nothing can be learned from.
func (w *writer) enough(folders map[string]*folderCount) error {
	for _, name := range slices.Sorted(maps.Keys(folders)) {
		if err := folders[name].check(name); err != nil {
			return &InputError{OfFolder, err}
		}
	}
	for _, label := range slices.Sorted(maps.Keys(w.Groups)) {
		switch n := w.Incomplete[label]; {
		case w.Labels[label] > 0:
		case n > 0:
			return badInput("no capture of label %s holds a flow that is complete: %s left out, as of packets with payload the files hold fewer than %d bytes of it",
				label, countFlows(uint64(n)), flow.IncompleteBytes)
		default:
			return badInput("no capture of label %s holds a flow with payload", label)
		}
	}
	return nil
}

// readCapture adds the samples of a capture, whose files it puts in order of time,
// and returns the errors of reading each file.
func (w *writer) readCapture(files []*input, counters *assembly.Counters) (errs []error, err error) {
	defer func() {
		for _, in := range files {
			in.forget()
		}
	}()
	if len(files) > 1 {
		captures.SortByTime(files, (*input).open)
	}
	of := make(map[flow.Source]*input, len(files))
	for _, in := range files {
		of[flow.Source{File: in.path}] = in
	}
	var writeErr error
	var added sessions
	a := assembly.New(assembly.Options{OneWay: w.config.OneWay}, func(_ *assembly.Flow, s *flow.Sample) {
		in := of[s.Source]
		switch {
		case s.Revision > 0 || s.Variant: // models are trained with a flow's first capture
		case s.Incomplete:
			w.Incomplete[in.label]++
			in.incomplete = true
		case writeErr == nil:
			writeErr = w.add(in, s, &added)
		}
	}, nil)
	for _, in := range files {
		errs = append(errs, func() error {
			f, err := in.open()
			if err != nil {
				return err
			}
			defer f.Close()
			defer func() { w.read += f.Size() }()
			return f.Feed(a, func(pos int64) { w.config.Progress(w.read+pos, w.total) })
		}())
	}
	if err := a.Flush(); err != nil {
		return errs, err
	}
	read := a.Counters()
	counters.Add(&read)
	if writeErr != nil {
		return errs, writeErr
	}
	if err := added.read(files); err != nil && errors.Join(errs...) == nil {
		return errs, err
	}
	var row []byte
	for _, one := range added.all {
		row = one.appendRow(row[:0])
		if err := w.session.write(row); err != nil {
			return errs, err
		}
	}
	return errs, nil
}

// folderCount counts what one of Config.Folders holds.
type folderCount struct {
	files, notCaptures int
	flows, incomplete  uint64
	first              *assembly.FileError // of a file that is no capture
}

func (f *folderCount) add(flows, incomplete uint64, err *assembly.FileError) {
	f.files++
	f.flows += flows
	f.incomplete += incomplete
	if err != nil && errors.Is(err, assembly.ErrNotCapture) {
		f.notCaptures++
		if f.first == nil {
			f.first = err
		}
	}
}

// check refuses a folder that nothing can be learned from.
func (f *folderCount) check(name string) error {
	switch {
	case f.flows > f.incomplete:
		return nil
	case f.incomplete > 0:
		return fmt.Errorf("%s: %s in it, all incomplete: of packets with payload the files hold fewer than %d bytes of it", name, countFlows(f.flows), flow.IncompleteBytes)
	case f.notCaptures == f.files:
		return fmt.Errorf("%s: none of its %s is a capture, the first is %w", name, countFiles(f.files), f.first)
	}
	return fmt.Errorf("%s: no capture in it holds a flow with payload whose beginning is there", name)
}

// unread counts a file that could not be read, or not whole.
func (w *writer) unread(err *assembly.FileError) {
	cause := err.Err.Error()
	var skipped *assembly.SkippedError
	if errors.As(err.Err, &skipped) {
		cause = skipped.Causes()
		if err.Err != error(skipped) {
			cause += ", and cut off or damaged"
		}
	}
	i := slices.IndexFunc(w.Unread, func(u Unread) bool { return u.Cause == cause })
	if i < 0 {
		i = len(w.Unread)
		w.Unread = append(w.Unread, Unread{Cause: cause, First: err.Path})
	}
	w.Unread[i].Files++
}

func countFlows(n uint64) string {
	if n == 1 {
		return "1 flow"
	}
	return fmt.Sprintf("%d flows", n)
}

func countFiles(n int) string {
	if n == 1 {
		return "1 file"
	}
	return fmt.Sprintf("%d files", n)
}
