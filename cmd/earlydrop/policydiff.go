// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/replay"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/term"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
	"github.com/earlydrop/earlydrop/policy/evidence"
)

func policyDiffCommand() *cli.Command {
	return &cli.Command{
		Name:      "diff",
		Usage:     "print the flows that another policy would do something else to",
		ArgsUsage: "OLD NEW --captures FILE... | --events FILE...",
		Description: `Asks both policies about the same flows, and prints each that they do not do the same to:
pass, log or drop, whatever their mode. Evidence and limits count, by the time of the
flows.

With --captures the flows are those of capture files, each a capture of its own, as
replay reads them. With --events they are those of verdicts that attach or replay have
written as JSON, in the order of the files: verdicts that --events-pass has left out are
missing, and the model is not asked again. A flow with several verdicts is dropped if one
of them says so.

Examples:
   earlydrop policy diff policy.yaml new.yaml --captures day.pcap evening.pcap
   earlydrop policy diff policy.yaml new.yaml --events /var/log/earlydrop.jsonl`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "captures", Usage: "compare by the flows of the capture `FILE`, and of those after NEW", TakesFile: true},
			&cli.StringFlag{Name: "events", Usage: "compare by the verdicts in `FILE`, and in those after NEW", TakesFile: true},
			&cli.StringFlag{Name: "model", Usage: "model `FILE`, or the shipped \"paper\" (default: the shipped compact one)", TakesFile: true},
			midStreamFlag(),
			oneWayFlag(),
			udpIdleFlag(),
		},
		Action: policyDiff,
	}
}

func policyDiff(c *cli.Context) (err error) {
	if err := requireArgs(c, 2, -1, "OLD and NEW"); err != nil {
		return err
	}
	names, captured := append([]string{c.String("captures")}, c.Args().Slice()[2:]...), c.IsSet("captures")
	switch {
	case captured == c.IsSet("events"):
		return badInput("policy diff needs --captures or --events, one of them (see policy diff --help)")
	case !captured:
		names[0] = c.String("events")
		for _, flag := range []string{"mid-stream", "one-way", "udp-idle"} {
			if c.IsSet(flag) {
				return badInput("--%s says what is captured, and with --events everything is: leave it out", flag)
			}
		}
	}
	midStream, err := parseMidStream(c.String("mid-stream"))
	if err != nil {
		return err
	}
	// The model is read once, with or without an engine.
	var engine *classifier.Engine
	var model *policy.Model
	if captured {
		if engine, err = openModel(c); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, engine.Close()) }()
		model = policyModel(engine.Manifest())
	} else if model, err = readPolicyModel(c.String("model")); err != nil {
		return err
	}
	var policies [2]*policy.Policy
	for i := range policies {
		path := c.Args().Get(i)
		if path == "" {
			return badInput("policy diff needs OLD and NEW, but the name of one is empty")
		}
		if policies[i], err = loadPolicy(path, model); err != nil {
			return err
		}
	}
	d := newPolicyDiff()
	if captured {
		options := assembly.Options{MidStream: midStream, UDPIdle: spanOf(c, "udp-idle"), OneWay: c.Bool("one-way")}
		err = d.captures(c, engine, policies, options, names)
	} else {
		err = d.events(policies, names)
	}
	if err != nil {
		return err
	}
	return d.print(c.App.Writer)
}

// fate is what a policy does to a flow.
type fate struct{ decision, rule, reason string }

// fateOf returns that of a verdict.
func fateOf(v *event.Verdict) fate { return fate{v.Decision, v.Rule, v.Reason} }

// decisions are those of a policy, the one that does least first.
var decisions = []string{flow.Pass.String(), flow.Log.String(), flow.Limit.String(), flow.Reset.String(), flow.Drop.String()}

// weight orders decisions: a flow that is dropped once is dropped.
func (f fate) weight() int { return slices.Index(decisions, f.decision) }

// String returns the fate for a table.
func (f fate) String() string {
	if f.rule == "" {
		return f.decision + ", " + f.reason
	}
	return f.decision + ", " + f.reason + " " + f.rule
}

// diffKey distinguishes flows.
type diffKey struct {
	file, iface string
	ends        event.Endpoints
	start       int64
}

// diffFlow is a flow that may change its fate.
type diffFlow struct {
	start time.Time
	ends  event.Endpoints
	class string
	fates [2]fate
}

// differ collects what two policies do to flows.
type differ struct {
	flows, leftOut uint64
	decisions      [2]map[string]uint64
	again          map[diffKey]*diffFlow // flows that had a verdict after which another may come
	changed        []*diffFlow
	changes        map[[2]string]int
}

func newPolicyDiff() *differ {
	d := &differ{again: map[diffKey]*diffFlow{}, changes: map[[2]string]int{}}
	for i := range d.decisions {
		d.decisions[i] = map[string]uint64{}
	}
	return d
}

// add takes a verdict, and what the two policies say of it.
func (d *differ) add(v *event.Verdict, fates [2]fate) {
	key := diffKey{v.File, v.Interface, v.Endpoints, v.Start.UnixNano()}
	if f := d.again[key]; f != nil {
		for i := range fates {
			if fates[i].weight() >= f.fates[i].weight() {
				f.fates[i] = fates[i]
			}
		}
		return
	}
	f := &diffFlow{v.Start, v.Endpoints, v.Class, fates}
	if v.Provisional || v.Revised > 0 || v.Variant {
		d.again[key] = f
		d.changed = append(d.changed, f) // it has its place there, and may have to go
		return
	}
	if d.done(f) {
		d.changed = append(d.changed, f)
	}
}

// done counts a flow of which no verdict is to come, and reports whether it changes its fate.
func (d *differ) done(f *diffFlow) bool {
	d.flows++
	for i := range f.fates {
		d.decisions[i][f.fates[i].decision]++
	}
	if f.fates[0].decision == f.fates[1].decision {
		return false
	}
	d.changes[[2]string{f.fates[0].decision, f.fates[1].decision}]++
	return true
}

// captures replays files, with one policy after the other: their flows come in the same order.
func (d *differ) captures(c *cli.Context, engine *classifier.Engine, policies [2]*policy.Policy, options assembly.Options, names []string) error {
	var old []fate
	words := map[string]string{} // one copy of each
	word := func(s string) string {
		if _, ok := words[s]; !ok {
			words[s] = strings.Clone(s)
		}
		return words[s]
	}
	for i, p := range policies {
		in, err := openCaptures(c, names, false)
		if err != nil {
			return err
		}
		for _, f := range in.Files {
			if !f.Regular() {
				in.Close()
				return badInput("%s can't be read twice: policy diff needs regular files", f.Name)
			}
		}
		bar := term.NewProgress(c.App.ErrWriter, []string{"asking OLD", "asking NEW"}[i], in.Size())
		n := 0
		r := replay.New(replay.Config{Engine: engine, Policy: p, Options: options, Progress: bar.At, Verdict: func(v *event.Verdict) error {
			f := fateOf(v)
			if i == 0 {
				old = append(old, fate{word(f.decision), word(f.rule), word(f.reason)})
				return nil
			}
			if n == len(old) {
				return errors.New("the captures have changed")
			}
			d.add(v, [2]fate{old[n], f})
			n++
			return nil
		}})
		var cut error // what could not be read whole
		for _, file := range in.Files {
			var part *assembly.FileError
			if err = r.Read([]*captures.File{file}); errors.As(err, &part) {
				cut, err = errors.Join(cut, err), nil
			}
			if err != nil {
				err = adviseTempDir(err)
				break
			}
		}
		r.Close()
		bar.Done()
		in.Close()
		if err != nil {
			return err
		}
		if err := errors.Join(skipped(in.Empty), cut); err != nil && i == 0 {
			fmt.Fprintf(c.App.ErrWriter, "warning: %v; compared is what can be read\n", err)
		}
	}
	return nil
}

// events asks both policies about the verdicts in files.
func (d *differ) events(policies [2]*policy.Policy, names []string) error {
	states := [2]*evidence.State{evidence.New(evidence.Options{}), evidence.New(evidence.Options{})}
	for _, name := range names {
		if err := d.eventsOf(policies, states, name); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) eventsOf(policies [2]*policy.Policy, states [2]*evidence.State, name string) error {
	file, err := os.Open(name)
	if err != nil {
		return asBadInput(fmt.Errorf("events: %w", err))
	}
	defer file.Close()
	decoder := event.NewDecoder(file)
	for n := 1; ; n++ {
		e, err := decoder.Next()
		switch {
		case err == io.EOF:
			return nil
		case errors.Is(err, event.ErrUnknown):
			continue // of a newer program
		case err != nil:
			return badInput("%s: event %d: %w", name, n, err)
		}
		switch e := e.(type) {
		case *event.LeftOut:
			d.leftOut += e.PassesLeftOut
		case *event.Verdict:
			m, r, err := e.Judged()
			if err != nil {
				return badInput("%s: event %d: %w", name, n, err)
			}
			var fates [2]fate
			for i := range policies {
				decision, _ := states[i].Decide(policies[i], m, r)
				fates[i] = fate{decision.Action.String(), decision.Rule, decision.Reason}
			}
			d.add(e, fates)
		}
	}
}

// print prints the flows that change, and counts.
func (d *differ) print(w io.Writer) error {
	again := map[*diffFlow]bool{}
	for _, f := range d.again {
		again[f] = true
	}
	columns := term.NewColumns(w)
	rows := 0
	for _, f := range d.changed {
		if again[f] && !d.done(f) {
			continue
		}
		if rows++; rows == 1 {
			if err := columns.Row("START", "PROTO", "SRC", "DST", "CLASS", "OLD", "NEW"); err != nil {
				return err
			}
		}
		if err := columns.Row(f.start.UTC().Format(event.StartFormat), f.ends.Proto, f.ends.Src.String(), f.ends.Dst.String(), f.class, f.fates[0].String(), f.fates[1].String()); err != nil {
			return err
		}
	}
	if err := columns.Flush(); err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %s", rows, count(d.flows, "flow"))
	b.WriteString(map[bool]string{true: " changes its fate", false: " change their fate"}[rows == 1])
	sep := ": "
	for _, from := range decisions {
		for _, to := range decisions {
			if n := d.changes[[2]string{from, to}]; n > 0 {
				fmt.Fprintf(&b, "%s%d from %s to %s", sep, n, from, to)
				sep = ", "
			}
		}
	}
	drops := func(of map[string]uint64) uint64 { return of[flow.Drop.String()] + of[flow.Reset.String()] }
	fmt.Fprintf(&b, "; OLD drops %d, NEW %d\n", drops(d.decisions[0]), drops(d.decisions[1]))
	if d.leftOut > 0 {
		fmt.Fprintf(&b, "%s passed undetected and are not among the events\n", count(d.leftOut, "verdict"))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
