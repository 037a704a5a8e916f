// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/dataset"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/term"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
)

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

With --one-way TCP connections are included of which one direction alone is there, as replay
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
			&cli.BoolFlag{Name: "one-way", Usage: "also include TCP connections of which one direction alone is there (asymmetric routing)"},
			&cli.StringFlag{Name: "out", Usage: "folder to write; an earlier dataset there is replaced", TakesFile: true},
		},
		Action: runDataset,
	}
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
	bar := term.NewProgress(c.App.ErrWriter, "reading captures", 0)
	defer bar.Done()
	config := dataset.Config{Manifests: c.StringSlice("manifest"), Join: c.Bool("join"), OneWay: c.Bool("one-way"), Out: c.String("out"),
		Progress: bar.Of}
	for i, path := range folders {
		config.Folders = append(config.Folders, dataset.Folder{Path: path, Label: labels[i]})
	}
	d, err := dataset.Build(c.Context, config)
	bar.Done()
	var input *dataset.InputError
	switch {
	case errors.As(err, &input) && input.Part == dataset.OfFolder:
		return badInput("--captures %w", err)
	case errors.As(err, &input) && input.Part == dataset.OfTarget:
		return badInput("--out %w", err)
	case input != nil:
		return asBadInput(err)
	case err != nil:
		return adviseTempDir(err)
	}
	warnOfDataset(c.App.ErrWriter, d)
	printDataset(c.App.Writer, &d.Info, filepath.Clean(config.Out))
	return skipped(d.Empty)
}

// warnOfDataset says what was left out of a dataset.
func warnOfDataset(w io.Writer, d *dataset.Result) {
	if n := len(d.IncompleteFiles); n > 0 {
		fmt.Fprintf(w, "warning: %s left out in %s, as of packets with payload fewer than %d bytes of it are there (was the snap length small?), first %s\n",
			count(d.Counters[assembly.Incomplete.String()], "incomplete flow"), count(uint64(n), "file"), flow.IncompleteBytes, d.IncompleteFiles[0])
	}
	if len(d.Unread) == 0 {
		return
	}
	all := 0
	for _, u := range d.Unread {
		all += u.Files
	}
	fmt.Fprintf(w, "warning: %d files could not be read, or not whole:\n", all)
	for _, u := range d.Unread {
		fmt.Fprintf(w, "  %d x %s, first %s\n", u.Files, oneLine(u.Cause), u.First)
	}
}

// printDataset writes the figures of a dataset for people.
func printDataset(w io.Writer, d *dataset.Info, out string) {
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
