// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/explain"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/replay"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// strongestShown is how many single parts of a capture explain names.
const strongestShown = 15

func explainCommand() *cli.Command {
	return &cli.Command{
		Name:      "explain",
		Usage:     "show what the verdict on a flow hangs on",
		ArgsUsage: "FILE",
		Description: `Reads a capture file as replay does and explains the verdict on one of its flows:
the model's probabilities, and by how much the probability that decided falls when a
part of the capture is replaced by random values (the mean of 16 draws). Where a rule
of the policy was asked about the flow, that is the probability of all the rule's
classes together; otherwise it is that of the likeliest class. The parts are each header field, each 16 bytes of payload, and the length, direction and
time of each packet, as far as the model is told. A part above 0 speaks for the class,
one below against it. Parts that say the same thing stand in for one another: each
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
	bar := newProgress(c.App.ErrWriter, "reading", 2*file.Size)
	defer bar.done()
	flows, cut := flowsOf(file, options, bar, nil, 0)
	var fileErr *assembly.FileError
	switch {
	case cut != nil && !errors.As(cut, &fileErr):
		return adviseTempDir(cut)
	case len(flows) == 0 && cut != nil:
		return cut
	case len(flows) == 0:
		return badInput("%s has no flow with payload whose beginning is in it", path)
	case number > len(flows):
		return badInput("%s has %s, no number %d (without --flow they are listed)", path, count(uint64(len(flows)), "flow"), number)
	case number == 0 && len(flows) > 1:
		if c.IsSet("out") {
			return badInput("--out is about one flow, but %s has %d: choose one with --flow", path, len(flows))
		}
		return errors.Join(listFlows(c, engine, p, file, options, bar), cut)
	}
	number = max(number, 1)
	var s flow.Sample
	if _, err := flowsOf(file, options, bar, &s, flows[number-1]); err != nil && cut == nil {
		return err
	}
	bar.done()

	e, err := newExplanation(engine, p, &s)
	if err != nil {
		return err
	}
	e.file, e.number, e.flows = path, number, len(flows)
	if out := c.String("out"); out != "" {
		if err := e.writeFile(out); err != nil {
			return err
		}
	}
	_, err = io.WriteString(c.App.Writer, e.text(hasColors(c.App.Writer), columns(c.App.Writer)))
	return errors.Join(err, cut)
}

// flowsOf returns the numbers that the assembler gave to the flows of a file that
// it handed over, in order. The capture of the flow of the number wanted goes to
// found, unless that is nil. With an *assembly.FileError comes what could be read.
func flowsOf(file *captures.File, options assembly.Options, bar *progress, found *flow.Sample, wanted uint64) (numbers []uint64, err error) {
	f, err := file.Open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	a := assembly.New(options, func(f *assembly.Flow, s *flow.Sample) {
		if s.Revision == 0 { // what is explained is the last one
			numbers = append(numbers, f.Seq)
		}
		if found != nil && f.Seq == wanted {
			found.CopyFrom(s)
		}
	}, nil)
	err = f.Run(a, bar.at)
	bar.fileDone(f.Size())
	slices.Sort(numbers)
	return numbers, file.End(err)
}

// listFlows prints the flows of a file with their numbers.
func listFlows(c *cli.Context, engine *classifier.Engine, p *policy.Policy, file *captures.File, options assembly.Options, bar *progress) error {
	t := newColumns(c.App.Writer)
	if err := t.row("FLOW", "START", "PROTO", "SRC", "DST", "CAPTURED", "CLASS", "CONFIDENCE", "NOTE"); err != nil {
		return err
	}
	number := 0
	r := replay.New(replay.Config{Engine: engine, Policy: p, Options: options, Verdict: func(f *event.Verdict) error {
		bar.clear()
		number++
		class, confidence := f.Columns(f.Class, f.Confidence)
		return t.row(strconv.Itoa(number), f.Start.Format(startFormat), f.Proto, f.Src.String(), f.Dst.String(),
			strconv.Itoa(f.Captured), class, confidence, f.Note())
	}})
	defer r.Close()
	err := r.Read([]*captures.File{file})
	var fileErr *assembly.FileError
	if err != nil && !errors.As(err, &fileErr) { // the caller has that one already
		return adviseTempDir(err)
	}
	bar.done()
	if err := t.flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "choose one with --flow NUMBER\n")
	return err
}

// explanation is what is said about one flow of a file.
type explanation struct {
	*explain.Explanation
	sample   *flow.Sample
	manifest *classifier.Manifest
	result   flow.Result
	decision policy.Decision
	rule     *policy.Rule // that was asked; nil if none was
	file     string
	number   int // of the flow, from 1
	flows    int
}

// newExplanation explains the probability that the policy decides by.
func newExplanation(engine *classifier.Engine, p *policy.Policy, s *flow.Sample) (*explanation, error) {
	e := &explanation{sample: s, manifest: engine.Manifest()}
	results := make([]flow.Result, 1)
	if err := engine.Classify([]*flow.Sample{s}, results); err != nil {
		return nil, err
	}
	e.result = results[0]
	e.decision = p.Decide(&s.Meta, e.result)
	e.rule = p.RuleOf(&e.decision)
	labels, about := []string{e.decision.Likeliest}, e.decision.Likeliest
	if e.rule != nil && e.rule.Classes[0] != flow.Unknown {
		labels, about = e.rule.Classes, e.decision.RuleClasses
	}
	var err error
	e.Explanation, err = explain.New(engine, s, e.result, labels, about)
	return e, err
}

// heading says which flow it is and what the model makes of it.
func (e *explanation) heading() []string {
	s, m := e.sample, e.manifest
	lines := []string{
		fmt.Sprintf("%s, flow %d of %d: %s %s > %s", e.file, e.number, e.flows, s.Key.Proto, s.Initiator(), s.Responder()),
		fmt.Sprintf("started %s, %s with %d bytes captured, handed over: %s", s.Start.UTC().Format(startFormat),
			count(uint64(len(s.Packets)), "packet"), len(s.Data), s.Reason),
		fmt.Sprintf("model %s %s, mask %s", m.Name, m.Version, m.Mask),
	}
	switch {
	case s.Incomplete:
		lines = append(lines, fmt.Sprintf("incomplete: the file holds fewer than %d payload bytes of a packet, so the answer says little; no rule drops the flow",
			flow.IncompleteBytes))
	case s.Cut:
		lines = append(lines, "cut: the file lacks the end of some packets, which a live capture would have")
	}
	if s.MidStream {
		lines = append(lines, "mid-stream: captured from its middle, but models know beginnings; only rules with mid_stream: true take the flow")
	}
	if s.OneWay {
		lines = append(lines, "one-way: one direction alone is in the file, so that whoever sends it could have forged the flow; only rules with one_way: true take it")
	}
	if s.MissingStart {
		lines = append(lines, "the first bytes of a side are missing, but models know beginnings; only rules with mid_stream: true take the flow")
	}
	if s.Provisional {
		lines = append(lines, "provisional: it ended early or has little payload; when payload follows, more is captured, and it is judged again")
	}
	if names := s.Signals.Names(); names != nil {
		lines = append(lines, "signals: "+strings.Join(names, ", "))
	}
	n := event.NameFlow(&e.decision)
	class := "class " + n.Line(e.result.Class, e.result.Confidence)
	if e.result.Class == flow.Unknown {
		class += fmt.Sprintf(": no label reaches %s", strconv.FormatFloat(m.Unknown, 'g', 6, 64))
	}
	order := make([]int, len(m.Labels))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case e.result.Scores[a] > e.result.Scores[b]:
			return -1
		case e.result.Scores[a] < e.result.Scores[b]:
			return 1
		}
		return 0
	})
	var scores []string
	for _, i := range order {
		scores = append(scores, fmt.Sprintf("%s %.4f", m.Labels[i], event.RoundScore(e.result.Scores[i])))
	}
	return append(lines, class, "decision: "+e.decided(), "probabilities: "+strings.Join(scores, ", "))
}

// decided says what the policy decides, and by what.
func (e *explanation) decided() string {
	d := &e.decision
	switch {
	case d.Reason == policy.ReasonNoRule:
		return "pass, no rule is about it"
	case e.rule == nil: // the allow-list
		return fmt.Sprintf("%s, %s: %s", d.Action, d.Reason, d.Rule)
	case e.rule.Classes[0] == flow.Unknown:
		return fmt.Sprintf("%s, %s %s is about flows that are like no class", d.Action, d.Reason, d.Rule)
	}
	return fmt.Sprintf("%s, %s %s: the probability of %s is %.4f; the rule asks for %s", d.Action, d.Reason, d.Rule,
		orList(e.rule.Classes), event.RoundScore(d.Confidence), strconv.FormatFloat(e.rule.MinConfidence, 'g', 6, 64))
}

// table says what has how much effect.
func (e *explanation) table() []string {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "EFFECT\tWHAT\tVALUE\n")
	for _, p := range append(e.Groups(), e.Strongest(strongestShown)...) {
		fmt.Fprintf(t, "%+.4f\t%s\t%s\n", p.Rounded(), p.Name, p.Value)
	}
	t.Flush()
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return lines
}

// text is the explanation for a terminal of so many columns.
func (e *explanation) text(colors bool, columns int) string {
	draw := e.TextMap
	if colors {
		draw = e.ColorMap
	}
	maps, err := draw(columns)
	if err != nil {
		maps = fmt.Sprintf("%v: make it wider, or have them drawn (--out FILE)\n", err)
	}
	return strings.Join(e.heading(), "\n") + "\n\n" + maps + "\n" + strings.Join(e.table(), "\n") + "\n"
}

// writeFile writes the explanation as a page or, unless the file's name ends as that of
// one, as a picture.
func (e *explanation) writeFile(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return badInput("--out: %w", err)
	}
	switch strings.ToLower(filepath.Ext(path)) {
	case ".html", ".htm":
		err = e.WritePage(f, e.heading())
	default:
		err = e.WritePNG(f)
	}
	return errors.Join(err, f.Close())
}
