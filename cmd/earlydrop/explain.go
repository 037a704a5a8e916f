// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/explanation"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/replay"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/term"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

func explainCommand() *cli.Command {
	return &cli.Command{
		Name:      "explain",
		Usage:     "show what the verdict on a flow depends on",
		ArgsUsage: "FILE",
		Description: `Reads a capture file as replay does and explains the verdict on one of its flows:
the model's probabilities, and by how much the probability that decided falls when a
part of the capture is replaced by random values (the mean of 16 draws). Where a rule
of the policy was asked about the flow, that is the probability of all the rule's
classes together; otherwise it is that of the likeliest class. The parts are each header field, each 16 bytes of payload, and the length, direction and
time of each packet, as far as the model is told. A part above 0 speaks for the class,
one below against it. Parts that say the same thing replace one another: each
alone may have little effect. Fields that the model's mask replaces have none.

The 1024 bytes are shown as a grid of 32 by 32, in colour on a terminal unless the
variable NO_COLOR is set. --out writes the same to a page for browsers, in which each
byte tells which part it is of, or the maps alone to a PNG picture.

FILE may be a pipe; - is standard input. Meanwhile a copy of it is kept in the folder
for temporary files.

The flows are numbered in order of their start, as replay prints them. Without
--flow, a file with several flows is listed with their numbers.

Examples:
   earlydrop explain capture.pcapng
   earlydrop explain capture.pcapng --flow 3 --out why.html`,
		Flags: []cli.Flag{
			numberFlag("flow", "explain the flow of this `NUMBER`, from 1", "list them", 1, math.MaxInt32),
			&cli.StringFlag{Name: "policy", Usage: "policy `FILE` (default: the shipped policy)", TakesFile: true},
			&cli.StringFlag{Name: "model", Usage: "model `FILE`, or the shipped \"paper\" (default: the shipped compact one)", TakesFile: true},
			midStreamFlag(),
			oneWayFlag(),
			&cli.StringFlag{Name: "out", Usage: "write a page to `FILE`, if it ends in .html, or a PNG picture", TakesFile: true},
		},
		Action: runExplain,
	}
}

func runExplain(c *cli.Context) (err error) {
	if err := requireArgs(c, 1, 1, "FILE"); err != nil {
		return err
	}
	midStream, err := parseMidStream(c.String("mid-stream"))
	if err != nil {
		return err
	}
	options := assembly.Options{MidStream: midStream, OneWay: c.Bool("one-way")}
	path, number := c.Args().First(), int(numberOf(c, "flow"))
	if c.IsSet("out") && c.String("out") == "" {
		return badInput("--out needs the name of a file, but it is empty")
	}
	in, err := openCaptures(c, []string{path}, true)
	if err != nil {
		return err
	}
	defer in.Close()
	file := in.Files[0]
	path = file.Title()
	engine, err := openModel(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()

	p, err := loadPolicy(c.String("policy"), policyModel(engine.Manifest()))
	if err != nil && c.IsSet("policy") {
		return err
	}
	if err != nil {
		p = &policy.Policy{} // the shipped one does not suit the model: no rule is asked
	}

	// Twice through the file: flows are numbered by their start, but come in the
	// order of their hand-over, and there may be more than fit into memory.
	bar := term.NewProgress(c.App.ErrWriter, "reading", 2*file.Size)
	defer bar.Done()
	flows, cut := explanation.Flows(file, options, bar.At, nil, 0)
	bar.FileDone(file.Size)
	if number, err = chooseFlow(c, path, number, len(flows), cut); err != nil {
		return err
	}
	if number == 0 {
		return errors.Join(listFlows(c, engine, p, file, options, bar), cut)
	}
	var s flow.Sample
	if _, err := explanation.Flows(file, options, bar.At, &s, flows[number-1]); err != nil && cut == nil {
		return err
	}
	bar.Done()
	e, err := explanation.New(engine, p, &s, explanation.Place{File: path, Number: number, Of: len(flows)})
	if err != nil {
		return err
	}
	return errors.Join(printExplanation(c, e), cut)
}

// chooseFlow returns the number of the flow to explain, 0 where they are to be listed.
// cut is the error with which the reading of the file ended.
func chooseFlow(c *cli.Context, path string, number, flows int, cut error) (int, error) {
	var fileErr *assembly.FileError
	switch {
	case cut != nil && !errors.As(cut, &fileErr):
		return 0, adviseTempDir(cut)
	case flows == 0 && cut != nil:
		return 0, cut
	case flows == 0:
		return 0, badInput("%s has no flow with payload whose beginning is in it", path)
	case number > flows:
		return 0, badInput("%s has %s, no number %d (without --flow they are listed)", path, count(uint64(flows), "flow"), number)
	case number == 0 && flows == 1:
		return 1, nil
	case number == 0 && c.IsSet("out"):
		return 0, badInput("--out is about one flow, but %s has %d: choose one with --flow", path, flows)
	}
	return number, nil
}

// printExplanation prints an explanation and, with --out, writes it to a file before.
func printExplanation(c *cli.Context, e *explanation.Explanation) error {
	if out := c.String("out"); out != "" {
		err := e.WriteFile(out)
		var fileErr *explanation.FileError
		if errors.As(err, &fileErr) {
			return badInput("--out: %w", err)
		}
		if err != nil {
			return err
		}
	}
	_, err := io.WriteString(c.App.Writer, explanationText(e, term.HasColors(c.App.Writer), term.Width(c.App.Writer)))
	return err
}

// listFlows prints the flows of a file with their numbers.
func listFlows(c *cli.Context, engine *classifier.Engine, p *policy.Policy, file *captures.File, options assembly.Options, bar *term.Progress) error {
	t := term.NewColumns(c.App.Writer)
	if err := t.Row("FLOW", "START", "PROTO", "SRC", "DST", "CAPTURED", "CLASS", "CONFIDENCE", "NOTE"); err != nil {
		return err
	}
	number := 0
	r := replay.New(replay.Config{Engine: engine, Policy: p, Options: options, Progress: bar.At, Verdict: func(f *event.Verdict) error {
		bar.Clear()
		number++
		class, confidence := f.Columns(f.Class, f.Confidence)
		return t.Row(strconv.Itoa(number), f.Start.Format(event.StartFormat), f.Proto, f.Src.String(), f.Dst.String(),
			strconv.Itoa(f.Captured), class, confidence, f.Note())
	}})
	defer r.Close()
	err := r.Read([]*captures.File{file})
	var fileErr *assembly.FileError
	if err != nil && !errors.As(err, &fileErr) { // the caller has that one already
		return adviseTempDir(err)
	}
	bar.Done()
	if err := t.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "choose one with --flow NUMBER\n")
	return err
}

// explanationText is the explanation for a terminal of so many columns.
func explanationText(e *explanation.Explanation, colors bool, columns int) string {
	draw := e.TextMap
	if colors {
		draw = e.ColorMap
	}
	maps, err := draw(columns)
	if err != nil {
		maps = fmt.Sprintf("%v: make it wider, or have them drawn (--out FILE)\n", err)
	}
	return strings.Join(e.Heading(), "\n") + "\n\n" + maps + "\n" + strings.Join(e.Table(), "\n") + "\n"
}
