// SPDX-License-Identifier: Apache-2.0

// Package dataset turns captures into a folder of training samples: NumPy arrays of what
// the classifier sees of each flow, and a table of what is known about it. The same
// captures give the same bytes in any order.
package dataset

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Format is raised when a reader of the folder must change.
const Format = 2

// Files of a dataset's folder.
const (
	CaptureFile = "capture.npy"
	MaskFile    = "mask.npy"
	FieldsFile  = "fields.npy"
	PacketsFile = "packets.npy"
	SessionFile = "session.npy"
	SamplesFile = "samples.tsv"
	InfoFile    = "dataset.json"
)

// Config says what a dataset is made of.
type Config struct {
	// Manifests are the paths of tables of labelled captures, which must be readable.
	Manifests []string
	// Folders hold captures at any depth, among whatever else.
	Folders []Folder
	// Join reads the files of one folder that share a label and a group as one capture
	// that was cut into several. Without it each file is one.
	Join bool
	// OneWay includes TCP connections of which one direction alone is there, and
	// adds a column that says so.
	OneWay bool
	// Out is the folder to write. An earlier dataset there is replaced, at the end.
	Out string
	// Progress (optional) is told how many bytes of so many were read.
	Progress func(read, total int64)
}

// Folder is a folder of captures that share one label. The group of each is the first
// folder on its way there.
type Folder struct{ Path, Label string }

// Info is what InfoFile says: what is in a dataset.
type Info struct {
	Format     int                       `json:"format"`
	Samples    int                       `json:"samples"`
	Labels     map[string]int            `json:"labels"`
	Groups     map[string]map[string]int `json:"groups"` // label, group: samples
	Duplicates map[string]int            `json:"duplicates_left_out"`
	Incomplete map[string]int            `json:"incomplete_left_out"`
	Files      int                       `json:"files"`
	Counters   map[string]uint64         `json:"counters"`
	Fields     []string                  `json:"fields"` // what the numbers of fields.npy mean
	Digest     string                    `json:"digest"` // of the other files, one after another
}

// Result is a dataset that was written, and what was left out of it.
type Result struct {
	Info
	// Empty holds the errors of files of manifests that were skipped, as they have no
	// packet yet.
	Empty []error
	// IncompleteFiles are the paths of the files with flows of which too little is there.
	IncompleteFiles []string
	// Unread are files of folders that could not be read, or not whole.
	Unread []Unread
}

// Unread counts files that could not be read, or not whole, for one cause.
type Unread struct {
	Cause string
	Files int
	First string // path
}

// Part is what of a Config an error is about.
type Part int

// The parts.
const (
	OfCaptures Part = iota // what is in the captures, or a manifest
	OfFolder               // one of the Folders; its path begins the text
	OfTarget               // Out; its path begins the text
)

// InputError says what is wrong with what Build was given. Nothing was changed.
type InputError struct {
	Part Part
	err  error
}

func (e *InputError) Error() string { return e.err.Error() }

// Unwrap returns what is wrong.
func (e *InputError) Unwrap() error { return e.err }

func badInput(format string, args ...any) error {
	return &InputError{OfCaptures, fmt.Errorf(format, args...)}
}

// asBadInput returns err as an *InputError, nil for nil.
func asBadInput(err error) error {
	var input *InputError
	if err == nil || errors.As(err, &input) {
		return err
	}
	return &InputError{OfCaptures, err}
}

// Build reads the captures and writes the dataset. What is wrong with the input is an
// *InputError; a *scratch.Error is one of a temporary file. After any error, and when ctx
// ends, the folder is as it was.
func Build(ctx context.Context, c Config) (*Result, error) {
	if c.Progress == nil {
		c.Progress = func(int64, int64) {}
	}
	out := filepath.Clean(c.Out)
	if err := checkTarget(out); err != nil {
		return nil, err
	}
	inputs, columns, err := readInputs(c)
	if err != nil {
		return nil, asBadInput(err)
	}

	// All is written beside the target, which is only touched at the end.
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(out), "."+filepath.Base(out)+"-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return nil, err
	}
	result, err := write(ctx, c, tmp, inputs, columns)
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(out); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, out); err != nil {
		return nil, err
	}
	return result, nil
}

// readInputs returns the captures in the order of their samples, and the names of the
// manifests' further columns.
func readInputs(c Config) (inputs []input, columns []string, err error) {
	for _, path := range c.Manifests {
		in, extra, err := readManifest(path)
		if err != nil {
			return nil, nil, err
		}
		inputs = append(inputs, in...)
		for _, name := range extra {
			if !slices.Contains(columns, name) {
				columns = append(columns, name)
			}
		}
	}
	slices.Sort(columns)
	for _, folder := range c.Folders {
		in, err := readFolder(folder)
		if err != nil {
			return nil, nil, err
		}
		inputs = append(inputs, in...)
	}
	return inputs, columns, sortInputs(inputs)
}

// checkTarget refuses to replace what is no dataset.
func checkTarget(out string) error {
	entries, err := os.ReadDir(out)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return &InputError{OfTarget, err}
	case len(entries) == 0:
		return nil
	}
	if _, err := os.Stat(filepath.Join(out, InfoFile)); err != nil {
		return &InputError{OfTarget, fmt.Errorf("%s holds other files and no %s: choose another folder", out, InfoFile)}
	}
	return nil
}
