// SPDX-License-Identifier: Apache-2.0

// Package explanation says, in words, what the verdict on a flow of a file is and what it
// depends on: the model's part is explain's, the policy's is added here.
package explanation

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/explain"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// strongestShown is how many single parts of a capture explain names.
const strongestShown = 15

// Flows returns the numbers that the assembler gave to the flows of a file that
// it handed over, in order. The capture of the flow of the number wanted goes to
// found, unless that is nil. With an *assembly.FileError comes what could be read.
func Flows(file *captures.File, options assembly.Options, progress func(bytes int64), found *flow.Sample, wanted uint64) (numbers []uint64, err error) {
	f, err := file.Open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	a := assembly.New(options, func(f *assembly.Flow, s *flow.Sample) {
		kept := s.Seed != 0 // it is all that there is of its flow
		if s.Variant && !kept {
			return
		}
		if s.Revision == 0 || kept { // what is explained is the last one
			numbers = append(numbers, f.Seq)
		}
		if found != nil && f.Seq == wanted {
			found.CopyFrom(s)
		}
	}, nil)
	err = f.Run(a, progress)
	slices.Sort(numbers)
	return numbers, file.End(err)
}

// Explanation is what is said about one flow of a file.
type Explanation struct {
	*explain.Explanation
	sample   *flow.Sample
	manifest *classifier.Manifest
	result   flow.Result
	decision policy.Decision
	rule     *policy.Rule // that was asked; nil if none was
	place    Place
}

// Place says which flow of a file it is.
type Place struct {
	File       string
	Number, Of int // from 1
}

// New explains the probability that the policy decides by.
func New(engine *classifier.Engine, p *policy.Policy, s *flow.Sample, place Place) (*Explanation, error) {
	e := &Explanation{place: place, sample: s, manifest: engine.Manifest()}
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

// Heading says which flow it is and what the model makes of it.
func (e *Explanation) Heading() []string {
	s, m := e.sample, e.manifest
	lines := []string{
		fmt.Sprintf("%s, flow %d of %d: %s %s > %s", e.place.File, e.place.Number, e.place.Of, s.Key.Proto, s.Initiator(), s.Responder()),
		fmt.Sprintf("started %s, %s with %d bytes captured, handed over: %s", s.Start.UTC().Format(event.StartFormat),
			packets(len(s.Packets)), len(s.Data), s.Reason),
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
		lines = append(lines, "mid-stream: captured from its middle, but models know beginnings; only rules with mid_stream: true treat the flow")
	}
	if s.OneWay {
		lines = append(lines, "one-way: one direction alone is in the file, so that whoever sends it could have forged the flow; only rules with one_way: true treat it")
	}
	if s.MissingStart {
		lines = append(lines, "the first bytes of a side are missing, but models know beginnings; only rules with mid_stream: true treat the flow")
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
func (e *Explanation) decided() string {
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
		policy.OrList(e.rule.Classes), event.RoundScore(d.Confidence), strconv.FormatFloat(e.rule.MinConfidence, 'g', 6, 64))
}

// Table says what has how much effect.
func (e *Explanation) Table() []string {
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

// WriteFile writes the explanation as a page or, unless the file's name ends as that of
// one, as a picture.
func (e *Explanation) WriteFile(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return &FileError{err}
	}
	switch strings.ToLower(filepath.Ext(path)) {
	case ".html", ".htm":
		err = e.WritePage(f, e.Heading())
	default:
		err = e.WritePNG(f)
	}
	return errors.Join(err, f.Close())
}

// FileError says that a file can't be written.
type FileError struct{ err error }

func (e *FileError) Error() string { return e.err.Error() }

// Unwrap returns why.
func (e *FileError) Unwrap() error { return e.err }

func packets(n int) string {
	if n == 1 {
		return "1 packet"
	}
	return fmt.Sprintf("%d packets", n)
}
