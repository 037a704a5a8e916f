// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/gateway"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/policy"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show what is attached where, how it is, and what it has counted",
		Description: `Without -i it is about every interface that something is pinned for, whether or
not the process that attached it still runs. What is worrying comes first. A running
attach is asked over its control socket; without one, what is pinned says less.

Exit code 3: not all is well. The state is then one of
   degraded     a daemon works, but a table whose entries make no room is 90 % full or
                more, captures can't be read, a GPU failed and the CPU classifies, or in the
                last minute a counter grew that says that something passed unseen
                (worries and recent in --json)
   unattended   no daemon: blocked flows stay blocked, new flows pass
   gone         nothing is attached any more
   waiting      attach --wait waits for the interface; it has no more to tell

Examples:
   earlydrop status
   earlydrop status -i eth0 --json | jq .counters.ring_full`,
		Flags: []cli.Flag{
			interfaceFlag(),
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object per interface"},
			askFlag(),
		},
		Action: runStatus,
	}
}

func runStatus(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	found, openErr := findStatus(c)
	all, waiting := found.list, found.waiting
	if len(all) == 0 && len(waiting) == 0 && openErr == nil && !c.Bool("json") {
		fmt.Fprintln(c.App.Writer, "earlydrop is attached to no interface"+seenFromHere())
	}
	state := status.Well
	for _, s := range all {
		state = status.Worse(state, s.State)
	}
	for _, w := range waiting {
		state = status.Worse(state, w.State)
	}
	var err error
	if c.Bool("json") {
		err = printJSON(c.App.Writer, all, waiting)
	} else {
		err = errors.Join(printAll(c.App.Writer, all, waiting), printHistory(c.App.Writer, found.history))
	}
	if err != nil {
		return err
	}
	if openErr == nil && state != status.Well {
		return errNotWell
	}
	return openErr
}

// printJSON prints one object on a line for each interface.
func printJSON(out io.Writer, all []*status.Status, waiting []status.Waiting) (err error) {
	enc := json.NewEncoder(out)
	for _, s := range all {
		err = cmp.Or(err, enc.Encode(s))
	}
	for _, w := range waiting {
		err = cmp.Or(err, enc.Encode(w))
	}
	return err
}

// printAll prints for people: first what is waited for, then interfaces, the worst first.
func printAll(out io.Writer, all []*status.Status, waiting []status.Waiting) error {
	for _, w := range waiting {
		if _, err := fmt.Fprintf(out, "%s is waited for: %s\n", w.Interface, cmp.Or(w.Error, "it is not there")); err != nil {
			return err
		}
	}
	slices.SortStableFunc(all, func(a, b *status.Status) int {
		switch {
		case a.State == b.State:
			return 0
		case status.Worse(a.State, b.State) == a.State:
			return -1
		}
		return 1
	})
	for i, s := range all {
		if i > 0 || len(waiting) > 0 {
			fmt.Fprintln(out)
		}
		if err := printStatus(out, s); err != nil {
			return err
		}
	}
	return nil
}

// printHistory prints, for people, where events are kept.
func printHistory(out io.Writer, h *status.History) error {
	if h == nil {
		return nil
	}
	line := fmt.Sprintf("\nhistory  %s: %d events", h.File, h.Events)
	if !h.Oldest.IsZero() {
		line += " since " + h.Oldest.Local().Format(time.DateTime)
	}
	line += fmt.Sprintf(", %s of %s", event.ByteCount(uint64(h.Bytes)), event.ByteCount(uint64(h.Limit)))
	if h.Lost > 0 {
		line += fmt.Sprintf("; %d were lost", h.Lost)
	}
	if h.CapturesLost > 0 {
		line += fmt.Sprintf("; %d captures were lost", h.CapturesLost)
	}
	if h.Error != "" {
		line += "; it can't be written now: " + h.Error
	}
	_, err := fmt.Fprintln(out, line)
	return err
}

// foundStatus is what there is to tell.
type foundStatus struct {
	list    []*status.Status
	waiting []status.Waiting
	history *status.History // nil: none
}

// findStatus returns what there is to tell: what the daemon says, and of what it does not
// have what is pinned, in the order of the interfaces' names. With an error it returns what
// could be read. Interfaces that the daemon waits for are told of apart.
func findStatus(c *cli.Context) (f foundStatus, err error) {
	d, iface := preferDaemon(c), c.String("interface")
	if d != nil {
		report, err := d.Status(c.Context)
		if err != nil {
			slog.Warn("the daemon can't tell; this is from what is pinned", "error", err)
			report = new(status.Report)
		}
		f.history = report.History
		f.waiting = slices.DeleteFunc(report.Waiting, func(w status.Waiting) bool { return iface != "" && w.Interface != iface })
		f.list = slices.DeleteFunc(report.Interfaces, func(s *status.Status) bool { return iface != "" && s.Interface != iface })
		for _, s := range f.list {
			s.Rows = slices.Concat(gateway.KnownCounters().Ordered(s.Daemon), loader.KnownCounters().Ordered(s.Counters))
		}
		if iface != "" && len(f.list)+len(f.waiting) > 0 {
			return f, nil
		}
	}
	all, openErr := openChosen(c)
	defer closeAll(all)
	for _, t := range all {
		if slices.ContainsFunc(f.list, func(s *status.Status) bool { return s.Pins == t.PinDir() }) {
			continue
		}
		s, err := status.Read(t)
		if err != nil {
			return f, fromLoader(err)
		}
		f.list = append(f.list, s)
	}
	slices.SortFunc(f.list, func(a, b *status.Status) int { return strings.Compare(a.Interface, b.Interface) })
	return f, withoutAccess(d, openErr)
}

// openChosen opens the tables of the interface that -i names, else of all that something
// is pinned for. With an error it returns those that could be opened.
func openChosen(c *cli.Context) ([]*loader.Tables, error) {
	if !c.IsSet("interface") {
		all, err := loader.OpenAll()
		return all, fromLoader(err)
	}
	t, err := loader.Open(c.String("interface"))
	if err != nil {
		return nil, fromLoader(err)
	}
	return []*loader.Tables{t}, nil
}

func closeAll(all []*loader.Tables) {
	for _, t := range all {
		_ = t.Close()
	}
}

// printStatus prints it for people.
func printStatus(out io.Writer, s *status.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name string, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("interface", "%s", s.Interface)
	row("state", "%s", s.State)
	for _, worry := range s.Worries {
		row("worry", "%s", worry.Text)
	}
	for _, advice := range sidesAdvice(s.Interface, s.Counters, s.OneHook, s.OneWay) {
		row("warning", "%s", advice)
	}
	row("pins", "%s", s.Pins)
	if s.Running {
		row("daemon", "running, pid %d", s.PID)
	} else {
		row("daemon", "not running")
	}
	row("attached", "%s, ingress %s, xdp %s, egress %s", s.Since.Format(time.DateTime), s.Ingress, s.XDP, s.Egress)
	row("ingress", "%s: %s", s.Ingress, s.IngressWhy)
	row("mode", "%s", s.Mode)
	if s.OneHook {
		row("one hook", "%s", oneHookProof)
	}
	if s.OneWay {
		row("one way", "TCP connections of which one direction is seen are captured as well")
	}
	row("policy", "%s", s.Policy)
	row("model", "%s", s.Model)
	if s.Device != "" {
		row("device", "%s", s.Device)
	}
	row("version", "%s", s.Version)
	suspended := ""
	if s.Mode == policy.Monitor.String() && s.Flows.Blocked > 0 {
		suspended = " (suspended: mode monitor drops nothing)"
	}
	row("flows", "%d known, %d collecting, %d blocked%s", s.Flows.Flows, s.Flows.Collecting, s.Flows.Blocked, suspended)
	full := func(used, size int) string {
		return fmt.Sprintf("%d of %d (%.0f %%)", used, size, 100*float64(used)/float64(max(1, size)))
	}
	row("tables", "flows %s, collecting %s, blocked %s, pairs %s", full(s.Flows.Flows, s.Capacity.Flows),
		full(s.Flows.Collecting, s.Capacity.Collecting), full(s.Flows.Blocked, s.Capacity.Blocked), full(s.Flows.Pairs, s.Capacity.Pairs))
	if l := s.Latency; l != nil {
		row("latency", "half of %d verdicts within %.0f us, 90 %% within %.0f us, 99 %% within %.0f us, all within %.0f us", l.Verdicts, l.P50, l.P90, l.P99, l.Max)
	}
	for _, class := range slices.Sorted(maps.Keys(s.Classes)) {
		row("class "+class, "%d flows", s.Classes[class])
	}
	for _, rule := range slices.Sorted(maps.Keys(s.Rules)) {
		row("rule "+rule, "%d flows detected, %d blocked", s.Rules[rule].Detected, s.Rules[rule].Blocked)
	}
	for _, c := range s.Rows {
		row(c.Name, "%d", c.Value)
	}
	return w.Flush()
}
