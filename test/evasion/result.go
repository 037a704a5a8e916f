// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// row is what became of one strategy.
type row struct {
	Strategy string `json:"strategy"`
	What     string `json:"what"`
	Takes    string `json:"takes"`
	Source   string `json:"source,omitempty"`

	Malformed bool `json:"malformed,omitempty"` // mode enforce drops it

	// What was tried, on what, when.
	Program string `json:"program"`
	Kernel  string `json:"kernel"`
	Date    string `json:"date"`

	// By protocol.
	Outcomes map[string]*outcome `json:"outcomes"`

	strategy *strategy
}

// outcome counts a strategy's connections in one protocol.
type outcome struct {
	N       int `json:"n"`
	Alone   int `json:"alone"`   // fetched their page with nothing attached
	Watched int `json:"watched"` // in mode monitor

	// Of those in mode monitor.
	Identified int            `json:"identified"` // a verdict names a tunnel
	Passed     int            `json:"passed"`     // there are others only
	Unjudged   int            `json:"unjudged"`   // there is none
	Signalled  int            `json:"signalled"`  // an event has signals
	Neither    int            `json:"neither"`    // neither identified nor signalled
	Signals    map[string]int `json:"signals,omitempty"`

	Enforce *enforced `json:"enforce,omitempty"` // HTTPS only

	odd []string // connections with signals, in words
}

// enforced counts connections in mode enforce.
type enforced struct {
	Worked  int `json:"worked"`  // fetched their page
	Dropped int `json:"dropped"` // a verdict said so

	broken error // why one did not
}

// try makes n connections of each strategy and protocol, without earlydrop and with it.
// It prints each connection to each. (optional)
func try(ctx context.Context, binary string, chosen []*strategy, n int, each io.Writer) (_ []*row, err error) {
	s, err := newScene(ctx, binary, slices.ContainsFunc(chosen, func(st *strategy) bool { return st.ipv6 }))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()

	program := commit(ctx)
	rows := make([]*row, len(chosen))
	byName := map[string]*row{}
	for i, st := range chosen {
		rows[i] = &row{Strategy: st.name, What: st.what, Takes: st.needs, Source: st.source, Malformed: st.malformed,
			Program: program, Kernel: kernel(), Date: time.Now().UTC().Format(time.DateOnly), Outcomes: map[string]*outcome{}, strategy: st}
		for _, p := range protocols {
			rows[i].Outcomes[p] = &outcome{N: n}
		}
		rows[i].Outcomes[https].Enforce = &enforced{}
		byName[st.name] = rows[i]
	}
	of := func(c *connection) *outcome { return byName[c.name].Outcomes[c.protocol] }
	say := func(c *connection, how string, found judged) {
		if each != nil {
			fmt.Fprintf(each, "%-24s %-12s %-9s port %d: %s; %s\n", c.name, c.protocol, how, c.client.Port(), came(c.err), found)
		}
	}

	alone, err := s.pass(ctx, chosen, protocols, n)
	if err != nil {
		return nil, err
	}
	for _, c := range alone {
		say(c, "alone", judged{})
		if c.err == nil {
			of(c).Alone++
		}
	}
	watched, events, err := s.watched(ctx, "monitor", chosen, protocols, n)
	if err != nil {
		return nil, err
	}
	for _, c := range watched {
		found := judge(c, events)
		say(c, "monitor", found)
		of(c).count(c, found)
	}
	cut, events, err := s.watched(ctx, "enforce", chosen, []string{https}, n)
	if err != nil {
		return nil, err
	}
	for _, c := range cut {
		found := judge(c, events)
		say(c, "enforce", found)
		o := of(c).Enforce
		if found.tunnel {
			o.Dropped++
		}
		if c.err == nil {
			o.Worked++
		} else {
			o.broken = fmt.Errorf("port %d: %w; %s", c.client.Port(), c.err, found)
		}
	}
	return rows, nil
}

// commit returns what the tree calls itself that the program was built of.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "?"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func came(err error) string {
	if err == nil {
		return "the page came"
	}
	return err.Error()
}

// judged is what the events say of one connection.
type judged struct {
	server   netip.AddrPort
	verdicts []*event.Verdict
	tunnel   bool
	signals  []string
}

func judge(c *connection, verdicts []*event.Verdict) (j judged) {
	j.server = c.server
	ends := []netip.AddrPort{c.client, c.server}
	for _, e := range verdicts {
		if !slices.Contains(ends, e.Src) || !slices.Contains(ends, e.Dst) {
			continue
		}
		j.signals = append(j.signals, e.Signals...)
		j.verdicts = append(j.verdicts, e)
		j.tunnel = j.tunnel || e.Drop()
	}
	slices.Sort(j.signals)
	j.signals = slices.Compact(j.signals)
	return j
}

func (j judged) String() string {
	var parts []string
	for _, e := range j.verdicts {
		begun := ""
		if e.Src == j.server {
			begun = ", begun by the server"
		}
		parts = append(parts, fmt.Sprintf("%s: likeliest %s %.2f, tunnels together %.2f, %d bytes in %d packets, %s%s",
			e.Decision, e.Likeliest, e.Confidence, e.Deciding(0), e.Captured, e.Packets, e.HandedOver, begun))
	}
	if len(parts) == 0 {
		parts = append(parts, "no verdict")
	}
	if len(j.signals) > 0 {
		parts = append(parts, "signals "+strings.Join(j.signals, ", "))
	}
	return strings.Join(parts, "; ")
}

func (o *outcome) count(c *connection, j judged) {
	if c.err == nil {
		o.Watched++
	}
	switch {
	case j.tunnel:
		o.Identified++
	case len(j.verdicts) > 0:
		o.Passed++
	default:
		o.Unjudged++
	}
	if len(j.signals) > 0 {
		o.Signalled++
		o.odd = append(o.odd, fmt.Sprintf("port %d: %s; %s", c.client.Port(), came(c.err), j))
	} else if !j.tunnel {
		o.Neither++
	}
	for _, s := range j.signals {
		if o.Signals == nil {
			o.Signals = map[string]int{}
		}
		o.Signals[s]++
	}
}

// tunnelCell is for a column of a tunnel.
func (o *outcome) tunnelCell() string {
	if o.Alone == 0 {
		return "does not work"
	}
	cell := fmt.Sprintf("%d / %d / %d", o.Identified, o.Signalled, o.Neither)
	if len(o.Signals) > 0 {
		cell += "  " + strings.Join(slices.Sorted(maps.Keys(o.Signals)), " ")
	}
	if o.Unjudged > 0 {
		cell += fmt.Sprintf("  (%d no verdict)", o.Unjudged)
	}
	if o.Alone < o.N || o.Watched < o.N {
		cell += fmt.Sprintf("  (%d and %d worked)", o.Alone, o.Watched)
	}
	return cell
}

func (o *outcome) webCell() string {
	cell := fmt.Sprintf("%d, %d, %d", o.Alone, o.Watched, o.Enforce.Worked)
	if o.Enforce.Dropped > 0 {
		cell += fmt.Sprintf("  (%d dropped)", o.Enforce.Dropped)
	}
	if o.Signalled > 0 {
		cell += fmt.Sprintf("  (%d signalled: %s)", o.Signalled, strings.Join(slices.Sorted(maps.Keys(o.Signals)), " "))
	}
	return cell
}

func printTable(out io.Writer, rows []*row) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "strategy\ttakes\tshadowsocks\tvmess\thttps")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Strategy, r.Takes,
			r.Outcomes[shadowsocks].tunnelCell(), r.Outcomes[vmess].tunnelCell(), r.Outcomes[https].webCell())
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, `
%d connections each. Tunnels: identified / signalled / neither, in mode monitor; no verdict: of those not identified, not
even judged. HTTPS: pages that came whole with nothing attached, in mode monitor, in mode enforce, which drops malformed
fragments. -list says what the strategies do.
`, rows[0].Outcomes[https].N)
	return err
}

// check fails for what must hold whatever a client does.
func check(rows []*row) error {
	var errs []error
	for _, r := range rows {
		web := r.Outcomes[https]
		switch {
		case r.strategy.malformed:
			if web.Enforce.Worked > 0 {
				errs = append(errs, fmt.Errorf("%s: %d of %d HTTPS connections in malformed fragments work in mode enforce", r.Strategy, web.Enforce.Worked, web.N))
			}
		case web.Alone == web.N && web.Enforce.Worked < web.N:
			errs = append(errs, fmt.Errorf("%s: %d of %d HTTPS connections survive it in mode enforce, all with nothing attached: %w", r.Strategy, web.Enforce.Worked, web.N, web.Enforce.broken))
		}
		for _, p := range protocols {
			o := r.Outcomes[p]
			if (r.strategy.untouched() || r.strategy.outside()) && o.Signalled > 0 {
				errs = append(errs, fmt.Errorf("%s: %d of %d %s connections have signals, although neither end has done anything: %s", r.Strategy, o.Signalled, o.N, p, strings.Join(o.odd, "; ")))
			}
			// The model misses some; of four or more it does not miss half.
			if (r.strategy.untouched() || r.strategy.outside()) && p != https && o.N >= 4 && 2*o.Identified < o.N {
				errs = append(errs, fmt.Errorf("%s: %d of %d %s connections are identified", r.Strategy, o.Identified, o.N, p))
			}
		}
	}
	return errors.Join(errs...)
}
