// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

// datasetFormat is raised when a reader of the folder must change.
const datasetFormat = 2

// Files of a dataset folder.
const (
	captureFile = "capture.npy"
	maskFile    = "mask.npy"
	fieldsFile  = "fields.npy"
	packetsFile = "packets.npy"
	sessionFile = "session.npy"
	samplesFile = "samples.tsv"
	datasetFile = "dataset.json"
)

// datasetArrays are the files that the digest covers, in its order; behind them it
// covers samplesFile.
var datasetArrays = []string{captureFile, maskFile, fieldsFile, packetsFile, sessionFile}

// datasetColumns are the columns of samples.tsv before the manifest's own.
var datasetColumns = []string{"index", "label", "group", "file", "src", "dst", "proto", "captured", "reason"}

func datasetCommand() *cli.Command {
	return &cli.Command{
		Name:  "dataset",
		Usage: "turn captures into training samples",
		Description: `Reads captures with the same assembly as the live data path and writes a folder
for the training code, which reads no headers by itself. Arrays, a row per sample:
   capture.npy   uint8 [N,1024]    the captured bytes
   mask.npy      uint8 [N,1024]    of each: 0 kept, 2 replaced by the recipe strict,
                                   3 by paper and strict
   fields.npy    uint8 [N,1024]    of each: 0 payload, else the header field, a
                                   number of the list "fields" in dataset.json
   packets.npy   int32 [N,32,6]    offset in the capture or -1, wire length, from
                                   initiator, time in µs, offset of the payload in
                                   the capture, length of the payload on the wire
   session.npy   int32 [N,64,6]    the session's first packets, also behind the
                                   capture: wire length or -1, payload length, from
                                   initiator, time in µs, TCP flags, TCP window
and samples.tsv and dataset.json. The same captures give the same digest in any order.

A manifest is a table with tabs and a header line. It has the columns path (a file,
or a folder with captures at any depth, relative to the manifest), label and group;
further columns are copied into samples.tsv. Every file of it must be readable, but for
empty ones, or those too short for a file header: they are skipped and reported, and the
exit code is 1.

With --captures all files below a folder get one label; the group of each is the
first folder on its way. Files there that are no captures, are cut, or have packets
of which nothing can be read, are counted in a warning, and what could be read of them is used. A folder has to hold a flow.

Each file is a capture of its own. With --join the files of one folder that share a
label and a group are one capture that was cut into several, as replay --join reads
it; the file of a sample is where its flow begins.

With --one-way TCP connections are taken of which one direction alone is there, as replay
--help explains it, and samples.tsv has a column one_way: true or false.

Labels are made of a-z, 0-9, "-", "_" and "."; unknown can't be one.

A sample is left out when another of its label has the same bytes after masking
with the recipe strict: it would be the same image twice. So is an incomplete one, as
replay --help explains it: its payload is not in the file.

Examples:
   earlydrop dataset --manifest lab/manifest.tsv --out dataset
   earlydrop dataset --manifest lab/manifest.tsv --captures pcaps --label background --out dataset`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "manifest", Usage: "table of labelled captures (may be repeated)", TakesFile: true},
			&cli.StringSliceFlag{Name: "captures", Usage: "folder of captures that share one label (may be repeated)", TakesFile: true},
			&cli.StringSliceFlag{Name: "label", Usage: "label of the --captures folder in the same place"},
			&cli.BoolFlag{Name: "join", Usage: "read the files of a folder as one capture, in order of time"},
			&cli.BoolFlag{Name: "one-way", Usage: "also take TCP connections of which one direction alone is there (asymmetric routing)"},
			&cli.StringFlag{Name: "out", Usage: "folder to write; an earlier dataset there is replaced", TakesFile: true},
		},
		Action: runDataset,
	}
}

// datasetInput is one capture file and what is known about it.
type datasetInput struct {
	path   string // absolute
	file   string // as in samples.tsv
	label  string
	group  string
	extra  map[string]string // further columns of the manifest
	folder string            // the --captures folder that it is of; "" of a manifest
	copied *os.File          // of what can be read only once
	// incomplete: a flow that begins in it is.
	incomplete bool
}

func runDataset(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	if err := requireFlags(c, "out"); err != nil {
		return err
	}
	folders, labels := c.StringSlice("captures"), c.StringSlice("label")
	switch {
	case len(folders) != len(labels):
		return badInput("each --captures needs one --label: got %d and %d", len(folders), len(labels))
	case len(folders) == 0 && len(c.StringSlice("manifest")) == 0:
		return badInput("dataset needs --manifest or --captures (see %s --help)", fullName(c))
	}
	out := filepath.Clean(c.String("out"))
	if err := checkDatasetTarget(out); err != nil {
		return err
	}

	var inputs []datasetInput
	var columns []string
	for _, path := range c.StringSlice("manifest") {
		in, extra, err := readManifest(path)
		if err != nil {
			return asBadInput(err)
		}
		inputs = append(inputs, in...)
		for _, name := range extra {
			if !slices.Contains(columns, name) {
				columns = append(columns, name)
			}
		}
	}
	slices.Sort(columns)
	for i, dir := range folders {
		in, err := readCaptureFolder(dir, labels[i])
		if err != nil {
			return asBadInput(err)
		}
		inputs = append(inputs, in...)
	}
	if err := sortInputs(inputs); err != nil {
		return asBadInput(err)
	}

	// All is written beside the target, which is only touched at the end.
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(out), "."+filepath.Base(out)+"-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	d, empty, err := writeDataset(c, tmp, inputs, columns)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	if err := os.Rename(tmp, out); err != nil {
		return err
	}
	d.print(c.App.Writer, out)
	return skipped(empty)
}

// checkDatasetTarget refuses to replace what is no dataset.
func checkDatasetTarget(out string) error {
	entries, err := os.ReadDir(out)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return badInput("--out: %w", err)
	case len(entries) == 0:
		return nil
	}
	if _, err := os.Stat(filepath.Join(out, datasetFile)); err != nil {
		return badInput("--out %s holds other files and no %s: choose another folder", out, datasetFile)
	}
	return nil
}

// readManifest returns the captures that a manifest names and the names of
// its further columns.
func readManifest(path string) (inputs []datasetInput, extra []string, err error) {
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
		case slices.Contains(datasetColumns, name), name == oneWayColumn:
			return nil, fmt.Errorf("column %q is made by this command: name it differently", name)
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
func expandRow(dir string, row map[string]string) ([]datasetInput, error) {
	if err := checkLabel(row["label"]); err != nil {
		return nil, err
	}
	for _, name := range []string{"path", "group"} {
		if row[name] == "" {
			return nil, fmt.Errorf("column %q is empty", name)
		}
	}
	in := datasetInput{label: row["label"], group: row["group"], extra: row}
	root := row["path"]
	if !filepath.IsAbs(root) {
		root = filepath.Join(dir, root)
	}
	var inputs []datasetInput
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

// readCaptureFolder returns the captures below dir, all with one label.
func readCaptureFolder(dir, label string) ([]datasetInput, error) {
	if err := checkLabel(label); err != nil {
		return nil, err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("--captures: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("--captures %s is no folder", dir)
	}
	base, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	var inputs []datasetInput
	err = walkFiles(dir, func(path string) {
		in := datasetInput{path: path, label: label, group: filepath.Base(base), folder: dir}
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
		return nil, fmt.Errorf("--captures %s holds no file", dir)
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
func sortInputs(inputs []datasetInput) error {
	seen := make(map[string]datasetInput, len(inputs))
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
	slices.SortFunc(inputs, func(a, b datasetInput) int {
		return cmp.Or(cmp.Compare(a.label, b.label), cmp.Compare(a.group, b.group),
			cmp.Compare(a.file, b.file), cmp.Compare(a.path, b.path))
	})
	return nil
}

// dataset is what dataset.json says.
type dataset struct {
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

// print writes the figures for people.
func (d *dataset) print(w io.Writer, out string) {
	t := table.NewWriter()
	t.AppendHeader(table.Row{"label", "group", "samples"})
	for _, label := range slices.Sorted(maps.Keys(d.Groups)) {
		for _, group := range slices.Sorted(maps.Keys(d.Groups[label])) {
			t.AppendRow(table.Row{label, group, d.Groups[label][group]})
		}
		t.AppendRow(table.Row{label, "(all groups)", d.Labels[label]})
		t.AppendRow(table.Row{label, "(duplicates left out)", d.Duplicates[label]})
		if n := d.Incomplete[label]; n > 0 {
			t.AppendRow(table.Row{label, "(incomplete left out)", n})
		}
		t.AppendSeparator()
	}
	t.AppendFooter(table.Row{"", "all samples", d.Samples})
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header, t.Style().Format.Footer = 0, 0
	fmt.Fprintf(w, "%s\n%d samples of %d files in %s\ndigest %s\n", t.Render(), d.Samples, d.Files, out, d.Digest)
}

// datasetWriter writes samples to the files of a dataset folder.
type datasetWriter struct {
	capture, mask, fields, packets, session *npyFile

	options assembly.Options
	empty   []error // of files of manifests that are left out, as they have no packet yet

	table     *bufio.Writer
	tableFile *os.File
	columns   []string
	dataset   dataset
	seen      map[[sha256.Size]byte]struct{} // label and kept bytes
}

// writeDataset reads all inputs and writes the files of a dataset into dir. It returns
// the errors of files that it skipped as well, since they are empty.
func writeDataset(c *cli.Context, dir string, inputs []datasetInput, columns []string) (_ *dataset, empty []error, err error) {
	w := &datasetWriter{columns: columns, seen: map[[sha256.Size]byte]struct{}{}, options: assembly.Options{OneWay: c.Bool("one-way")}}
	w.dataset = dataset{Format: datasetFormat, Labels: map[string]int{}, Groups: map[string]map[string]int{},
		Duplicates: map[string]int{}, Incomplete: map[string]int{}, Files: len(inputs), Counters: map[string]uint64{}, Fields: []string{"payload"}}
	for f := headers.Field(1); f < headers.NumFields; f++ {
		w.dataset.Fields = append(w.dataset.Fields, f.String())
	}
	closers := []func() error{}
	defer func() { // what a failure left open
		for _, f := range closers {
			_ = f()
		}
	}()
	for _, f := range []struct {
		to    **npyFile
		name  string
		dtype string
		row   []int
	}{
		{&w.capture, captureFile, "|u1", []int{flow.CaptureBytes}},
		{&w.mask, maskFile, "|u1", []int{flow.CaptureBytes}},
		{&w.fields, fieldsFile, "|u1", []int{flow.CaptureBytes}},
		{&w.packets, packetsFile, "<i4", []int{flow.MaxPackets, 6}},
		{&w.session, sessionFile, "<i4", []int{sessionPackets, len(sessionPacket{})}},
	} {
		if *f.to, err = createNpy(filepath.Join(dir, f.name), f.dtype, f.row...); err != nil {
			return nil, nil, err
		}
		closers = append(closers, (*f.to).close)
	}
	if w.tableFile, err = os.Create(filepath.Join(dir, samplesFile)); err != nil {
		return nil, nil, err
	}
	closers = append(closers, w.tableFile.Close)
	w.table = bufio.NewWriter(w.tableFile)
	if _, err := fmt.Fprintln(w.table, strings.Join(slices.Concat(datasetColumns, w.marks(nil), columns), "\t")); err != nil {
		return nil, nil, err
	}

	if err := w.readAll(c, inputs); err != nil {
		return nil, nil, err
	}

	if err := w.table.Flush(); err != nil {
		return nil, nil, err
	}
	for _, f := range closers {
		if closeErr := f(); err == nil {
			err = closeErr
		}
	}
	closers = nil
	if err != nil {
		return nil, nil, err
	}
	return &w.dataset, w.empty, w.finish(dir)
}

// oneWayColumn is the column of samples.tsv that --one-way adds.
const oneWayColumn = "one_way"

// marks returns what the options of the assembly add to a line of samples.tsv: of the
// header line where there is no sample.
func (w *datasetWriter) marks(m *flow.Meta) []string {
	switch {
	case !w.options.OneWay:
		return nil
	case m == nil:
		return []string{oneWayColumn}
	}
	return []string{strconv.FormatBool(m.OneWay)}
}

// readAll adds the samples of all inputs.
func (w *datasetWriter) readAll(c *cli.Context, inputs []datasetInput) error {
	var total int64
	for _, in := range inputs {
		if info, err := os.Stat(in.path); err == nil {
			total += info.Size()
		}
	}
	bar := newProgress(c.App.ErrWriter, "reading captures", total)
	defer bar.done()

	var counters assembly.Counters
	var warnings fileWarnings
	folders := map[string]*captureFolder{}
	for _, files := range datasetCaptures(inputs, c.Bool("join")) {
		if err := c.Context.Err(); err != nil {
			return err
		}
		if w.dataset.Groups[files[0].label] == nil {
			w.dataset.Groups[files[0].label] = map[string]int{}
		}
		before := counters
		errs, err := w.readCapture(files, &counters, bar)
		if err != nil {
			return adviseTempDir(err)
		}
		// Of all its files.
		flows, incomplete := counters.Samples()-before.Samples(), counters[assembly.Incomplete]-before[assembly.Incomplete]
		for i, in := range files {
			var fileErr *assembly.FileError
			errors.As(errs[i], &fileErr)
			if in.folder != "" {
				if folders[in.folder] == nil {
					folders[in.folder] = &captureFolder{}
				}
				folders[in.folder].add(flows, incomplete, fileErr)
				flows, incomplete = 0, 0
			}
			if in.incomplete {
				warnings.addIncomplete(in.path)
			}
			switch {
			case fileErr != nil && in.folder != "":
				warnings.add(fileErr)
			case fileErr != nil && errors.Is(fileErr, assembly.ErrEmpty):
				w.empty = append(w.empty, fileErr)
			case fileErr != nil:
				return asBadInput(fileErr)
			case errs[i] != nil:
				return errs[i]
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(folders)) {
		if err := folders[name].check(name); err != nil {
			return asBadInput(err)
		}
	}
	for _, label := range slices.Sorted(maps.Keys(w.dataset.Groups)) {
		switch n := w.dataset.Incomplete[label]; {
		case w.dataset.Labels[label] > 0:
		case n > 0:
			return badInput("no capture of label %s holds a flow that is complete: %s left out, as of packets with payload the files hold fewer than %d bytes of it",
				label, count(uint64(n), "flow"), flow.IncompleteBytes)
		default:
			return badInput("no capture of label %s holds a flow with payload", label)
		}
	}
	for i, n := range counters {
		w.dataset.Counters[assembly.Counter(i).String()] = n
	}
	bar.done()
	warnings.print(c.App.ErrWriter, counters[assembly.Incomplete])
	return nil
}

// captureFolder counts what a --captures folder holds.
type captureFolder struct {
	files, notCaptures int
	flows, incomplete  uint64
	first              *assembly.FileError // of a file that is no capture
}

func (f *captureFolder) add(flows, incomplete uint64, err *assembly.FileError) {
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
func (f *captureFolder) check(name string) error {
	switch {
	case f.flows > f.incomplete:
		return nil
	case f.incomplete > 0:
		return fmt.Errorf("--captures %s: %s in it, all incomplete: of packets with payload the files hold fewer than %d bytes of it", name, count(f.flows, "flow"), flow.IncompleteBytes)
	case f.notCaptures == f.files:
		return fmt.Errorf("--captures %s: none of its %s is a capture, the first is %w", name, count(uint64(f.files), "file"), f.first)
	}
	return fmt.Errorf("--captures %s: no capture in it holds a flow with payload whose beginning is there", name)
}

// open opens the input's file, which is read more than once: what is no regular file is
// copied first.
func (in *datasetInput) open() (*assembly.File, error) {
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
func (in *datasetInput) forget() {
	if in.copied != nil {
		_ = in.copied.Close()
		in.copied = nil
	}
}

// datasetCaptures returns the files of each capture: each file for itself or, with
// join, those of one folder, label and group.
func datasetCaptures(inputs []datasetInput, join bool) (captures [][]*datasetInput) {
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

// readCapture adds the samples of a capture, whose files it puts in order of time,
// and returns the errors of reading each file.
func (w *datasetWriter) readCapture(files []*datasetInput, counters *assembly.Counters, bar *progress) (errs []error, err error) {
	defer func() {
		for _, in := range files {
			in.forget()
		}
	}()
	if len(files) > 1 {
		captures.SortByTime(files, (*datasetInput).open)
	}
	of := make(map[flow.Source]*datasetInput, len(files))
	for _, in := range files {
		of[flow.Source{File: in.path}] = in
	}
	var writeErr error
	var added sessions
	a := assembly.New(w.options, func(_ *assembly.Flow, s *flow.Sample) {
		in := of[s.Source]
		switch {
		case s.Incomplete:
			w.dataset.Incomplete[in.label]++
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
			defer func() { bar.fileDone(f.Size()) }()
			return f.Feed(a, bar.at)
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

// add writes one sample, and adds its session to added, unless its label has the
// same sample already.
func (w *datasetWriter) add(in *datasetInput, s *flow.Sample, added *sessions) error {
	var capture, mask, fields, kept [flow.CaptureBytes]byte
	copy(capture[:], s.Data)
	classifier.MaskMap(s, &mask)
	for i := range capture {
		if mask[i]&uint8(classifier.RecipeStrict) == 0 {
			kept[i] = capture[i]
		}
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%d\x00", in.label, len(s.Data))
	h.Write(kept[:])
	id := [sha256.Size]byte(h.Sum(nil))
	if _, twice := w.seen[id]; twice {
		w.dataset.Duplicates[in.label]++
		return nil
	}
	w.seen[id] = struct{}{}

	index := w.dataset.Samples
	w.dataset.Samples++
	w.dataset.Labels[in.label]++
	w.dataset.Groups[in.label][in.group]++

	added.add(&s.Meta)
	records := make([]byte, 0, flow.MaxPackets*6*4)
	for i := range flow.MaxPackets {
		record := [6]int32{-1}
		if i < len(s.Packets) {
			p, frame := &s.Packets[i], s.Frame(i)
			wireLen := asInt32(int(p.WireLen))
			var h headers.Headers
			h.Walk(frame, int(wireLen))
			h.Paint(fields[p.Offset:], &headers.Numbers, frame)
			record = [6]int32{int32(p.Offset), wireLen, 0, asInt32(int(p.Time / time.Microsecond)),
				int32(p.Offset) + int32(min(h.Payload, len(frame))), asInt32(h.PayloadLen)}
			if p.FromInitiator {
				record[2] = 1
			}
		}
		for _, v := range record {
			records = binary.LittleEndian.AppendUint32(records, uint32(v))
		}
	}
	columns := []string{strconv.Itoa(index), in.label, in.group, in.file, s.Initiator().String(), s.Responder().String(),
		s.Key.Proto.String(), strconv.Itoa(len(s.Data)), s.Reason.String()}
	columns = append(columns, w.marks(&s.Meta)...)
	for _, name := range w.columns {
		columns = append(columns, in.extra[name])
	}
	for i := range columns { // names of files may hold anything
		columns[i] = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return '?'
			}
			return r
		}, columns[i])
	}
	_, err := fmt.Fprintln(w.table, strings.Join(columns, "\t"))
	return cmp.Or(w.capture.write(capture[:]), w.mask.write(mask[:]), w.fields.write(fields[:]), w.packets.write(records), err)
}

// finish computes the digest and writes dataset.json.
func (w *datasetWriter) finish(dir string) error {
	h := sha256.New()
	for _, name := range append(slices.Clone(datasetArrays), samplesFile) {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	w.dataset.Digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	text, err := json.MarshalIndent(&w.dataset, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, datasetFile), append(text, '\n'), 0o644)
}

// fileWarnings collects capture files that could not be read whole, or that hold
// incomplete flows.
type fileWarnings struct {
	causes []string // in order of their first file
	first  map[string]*assembly.FileError
	count  map[string]int
	all    int

	incomplete      int // files with incomplete flows
	firstIncomplete string
}

func (w *fileWarnings) addIncomplete(path string) {
	if w.incomplete == 0 {
		w.firstIncomplete = path
	}
	w.incomplete++
}

func (w *fileWarnings) add(err *assembly.FileError) {
	cause := err.Err.Error()
	var skipped *assembly.SkippedError
	if errors.As(err.Err, &skipped) {
		cause = skipped.Causes()
		if err.Err != error(skipped) {
			cause += ", and cut off or damaged"
		}
	}
	if w.first == nil {
		w.first, w.count = map[string]*assembly.FileError{}, map[string]int{}
	}
	if w.first[cause] == nil {
		w.first[cause] = err
		w.causes = append(w.causes, cause)
	}
	w.count[cause]++
	w.all++
}

// print writes one line with the number of files and a line for each cause, and one
// about the incomplete flows.
func (w *fileWarnings) print(out io.Writer, incomplete uint64) {
	if incomplete > 0 {
		fmt.Fprintf(out, "warning: %s left out in %s, as of packets with payload fewer than %d bytes of it are there (was the snap length small?), first %s\n",
			count(incomplete, "incomplete flow"), count(uint64(w.incomplete), "file"), flow.IncompleteBytes, w.firstIncomplete)
	}
	if w.all == 0 {
		return
	}
	fmt.Fprintf(out, "warning: %d files could not be read, or not whole:\n", w.all)
	for _, cause := range w.causes {
		fmt.Fprintf(out, "  %d x %s, first %s\n", w.count[cause], oneLine(cause), w.first[cause].Path)
	}
}
