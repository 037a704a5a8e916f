// SPDX-License-Identifier: Apache-2.0

package dataset

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// input is one capture file and what is known about it.
type input struct {
	path   string // absolute
	file   string // as in samples.tsv
	label  string
	group  string
	extra  map[string]string // further columns of the manifest
	folder string            // the one of Config.Folders that it is of; "" of a manifest
	copied *os.File          // of what can be read only once
	// incomplete: a flow that begins in it is.
	incomplete bool
}

// readManifest returns the captures that a manifest names and the names of
// its further columns.
func readManifest(path string) (inputs []input, extra []string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("manifest: %w", err)
	}
	defer file.Close()

	var header []string
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSuffix(lines.Text(), "\r")
		if strings.TrimSpace(text) == "" {
			continue
		}
		fields := strings.Split(text, "\t")
		if header == nil {
			header = fields
			if extra, err = checkHeader(header); err != nil {
				return nil, nil, fmt.Errorf("%s:%d: %w", path, n, err)
			}
			continue
		}
		if len(fields) != len(header) {
			return nil, nil, fmt.Errorf("%s:%d: %d fields, but the header has %d", path, n, len(fields), len(header))
		}
		row := make(map[string]string, len(fields))
		for i, name := range header {
			row[name] = fields[i]
		}
		in, err := expandRow(filepath.Dir(path), row)
		if err != nil {
			return nil, nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		inputs = append(inputs, in...)
	}
	if err := lines.Err(); err != nil {
		return nil, nil, fmt.Errorf("manifest %s: %w", path, err)
	}
	if len(inputs) == 0 {
		return nil, nil, fmt.Errorf("manifest %s names no capture", path)
	}
	return inputs, extra, nil
}

// checkHeader returns the further columns.
func checkHeader(header []string) (extra []string, err error) {
	for i, name := range header {
		switch {
		case name == "":
			return nil, fmt.Errorf("column %d has no name", i+1)
		case slices.Contains(header[:i], name):
			return nil, fmt.Errorf("column %q is there twice", name)
		case name == "path" || name == "label" || name == "group":
		case slices.Contains(ownColumns, name), name == oneWayColumn:
			return nil, fmt.Errorf("column %q is one that every dataset has: name it differently", name)
		default:
			extra = append(extra, name)
		}
	}
	for _, name := range []string{"path", "label", "group"} {
		if !slices.Contains(header, name) {
			return nil, fmt.Errorf("no column %q: the header line needs path, label and group, separated by tabs", name)
		}
	}
	return extra, nil
}

// expandRow returns the captures of one row of a manifest in dir.
func expandRow(dir string, row map[string]string) ([]input, error) {
	if err := checkLabel(row["label"]); err != nil {
		return nil, err
	}
	for _, name := range []string{"path", "group"} {
		if row[name] == "" {
			return nil, fmt.Errorf("column %q is empty", name)
		}
	}
	in := input{label: row["label"], group: row["group"], extra: row}
	root := row["path"]
	if !filepath.IsAbs(root) {
		root = filepath.Join(dir, root)
	}
	var inputs []input
	err := walkFiles(root, func(path string) {
		in.path, in.file = path, filepath.ToSlash(row["path"])
		if rel, err := filepath.Rel(root, path); err == nil && rel != "." {
			in.file = filepath.ToSlash(filepath.Join(row["path"], rel))
		}
		inputs = append(inputs, in)
	})
	if err != nil {
		return nil, err
	}
	if len(inputs) == 0 {
		return nil, fmt.Errorf("folder %s holds no file", root)
	}
	return inputs, nil
}

// readFolder returns the captures below a folder, all with one label.
func readFolder(folder Folder) ([]input, error) {
	dir := folder.Path
	if err := checkLabel(folder.Label); err != nil {
		return nil, err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, &InputError{OfFolder, fmt.Errorf("%s: %w", dir, errors.Unwrap(err))}
	}
	if !info.IsDir() {
		return nil, &InputError{OfFolder, fmt.Errorf("%s is no folder", dir)}
	}
	base, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	var inputs []input
	err = walkFiles(dir, func(path string) {
		in := input{path: path, label: folder.Label, group: filepath.Base(base), folder: dir}
		if rel, err := filepath.Rel(dir, path); err == nil {
			in.file = filepath.ToSlash(rel)
			if first, _, deeper := strings.Cut(in.file, "/"); deeper {
				in.group = first
			}
		}
		inputs = append(inputs, in)
	})
	if err != nil {
		return nil, err
	}
	if len(inputs) == 0 {
		return nil, &InputError{OfFolder, fmt.Errorf("%s holds no file", dir)}
	}
	return inputs, nil
}

// walkFiles calls f for root, or for each regular file below it whose name,
// and the names of whose folders, do not begin with a dot.
func walkFiles(root string, f func(path string)) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path != root && strings.HasPrefix(d.Name(), ".") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.Type().IsRegular() || path == root && !d.IsDir() {
			f(path)
		}
		return nil
	})
}

func checkLabel(label string) error {
	if label == "" {
		return errors.New("the label is empty")
	}
	ok := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.'
	}
	good := func(label string) bool {
		return label != "" && len(label) <= 64 && !strings.ContainsFunc(label, func(r rune) bool { return !ok(r) })
	}
	switch plain := strings.ToLower(strings.TrimSpace(label)); {
	case good(label) && label != flow.Unknown:
		return nil
	case plain == flow.Unknown:
		return fmt.Errorf("label %q is what a model answers about flows that are like none of its labels, so it can't be one", label)
	case good(plain):
		return fmt.Errorf("label %q: labels are lower-case and without spaces, did you mean %q?", label, plain)
	}
	return fmt.Errorf("label %q: use up to 64 of a-z, 0-9, '-', '_' and '.'", label)
}

// sortInputs makes the order of samples independent of the order in which
// captures were named, and refuses a file that was named twice.
func sortInputs(inputs []input) error {
	seen := make(map[string]input, len(inputs))
	for i := range inputs {
		in := &inputs[i]
		path, err := filepath.Abs(in.path)
		if err != nil {
			return err
		}
		in.path = path
		if other, ok := seen[path]; ok {
			return fmt.Errorf("%s is named twice, as %s of group %s and as %s of group %s",
				path, other.label, other.group, in.label, in.group)
		}
		seen[path] = *in
	}
	slices.SortFunc(inputs, func(a, b input) int {
		return cmp.Or(cmp.Compare(a.label, b.label), cmp.Compare(a.group, b.group),
			cmp.Compare(a.file, b.file), cmp.Compare(a.path, b.path))
	})
	return nil
}

// open opens the input's file, which is read more than once: what is no regular file is
// copied first.
func (in *input) open() (*assembly.File, error) {
	if in.copied == nil {
		var err error
		if in.copied, err = captures.Copy(in.path); err != nil {
			return nil, err
		}
		if in.copied == nil {
			return assembly.Open(in.path)
		}
	}
	if _, err := in.copied.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return assembly.Read(in.path, in.copied)
}

// forget removes the copy.
func (in *input) forget() {
	if in.copied != nil {
		_ = in.copied.Close()
		in.copied = nil
	}
}

// captureGroups returns the files of each capture: each file for itself or, with
// join, those of one folder, label and group.
func captureGroups(inputs []input, join bool) (captures [][]*input) {
	type place struct{ folder, label, group string }
	at := map[place]int{}
	for i := range inputs {
		in := &inputs[i]
		p := place{filepath.Dir(in.path), in.label, in.group}
		n, found := at[p]
		if !join || !found {
			n = len(captures)
			at[p] = n
			captures = append(captures, nil)
		}
		captures[n] = append(captures[n], in)
	}
	return captures
}
