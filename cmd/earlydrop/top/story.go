// SPDX-License-Identifier: Apache-2.0

package top

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/why"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// story is what is known of a row.
type story struct {
	about any
	first int // line on the screen
	// why is what the daemon remembers of it, in words, or why it does not tell; nil until it
	// has answered.
	why []string
}

// remembered is the answer to what the daemon was asked of a story.
type remembered struct {
	of  *story
	why []string
}

// mostDecisions is how many the daemon is asked for.
const mostDecisions = 50

// askWhy returns what asks the daemon what it remembers of a story, nil where there is nothing
// to ask.
func (m *model) askWhy(of *story) tea.Cmd {
	var q why.Query
	var is func(*event.Verdict) bool
	single := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	switch about := of.about.(type) {
	case *event.Verdict:
		q.Network, q.Port = single(about.Src.Addr().Unmap()), about.Src.Port()
		is = func(e *event.Verdict) bool {
			return e.Src == about.Src && e.Dst == about.Dst && e.Proto == about.Proto && e.VLAN == about.VLAN && e.InnerVLAN == about.InnerVLAN
		}
	case *status.Block:
		q.Network, q.Port = single(about.Lo.Addr().Unmap()), about.Lo.Port()
		is = func(e *event.Verdict) bool { return blockOf(about, e) }
	case *status.Pair:
		q.Network, q.Port = single(about.Server.Addr()), about.Server.Port()
		is = func(e *event.Verdict) bool { return pairIs(pairOf(e), about) }
	case *status.Leader:
		q.Network = about.Initiator
		if about.Server.IsValid() {
			q.Network, q.Port = single(about.Server.Addr().Unmap()), about.Server.Port()
		}
		is = func(e *event.Verdict) bool { return isOf(about, e) }
	default:
		return nil
	}
	q.Most = mostDecisions
	now := m.top().Time
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(m.ctx, answerWithin)
		defer cancel()
		answer, err := m.Source.Why(ctx, &q)
		if err != nil {
			return remembered{of, []string{"the daemon does not tell: " + err.Error()}}
		}
		answer.Decisions = slices.DeleteFunc(answer.Decisions, func(d why.Decision) bool { return d.Verdict == nil || !is(d.Verdict) })
		answer.Matched = len(answer.Decisions)
		return remembered{of, strings.Split(strings.TrimRight(answer.Text(now), "\n"), "\n")}
	}
}

// fact is one line of a story.
type fact struct{ name, text string }

func factf(name, format string, args ...any) fact { return fact{name, fmt.Sprintf(format, args...)} }

// storyLines returns the story, as far as there is room.
func (v *view) storyLines(room int) []line {
	title, facts, events := v.tell(v.story.about)
	out := []line{say(strong, title)}
	const mostName = 24
	names := 0
	for _, f := range facts {
		names = min(max(names, len(f.name)), mostName)
	}
	for _, f := range facts {
		for i, l := range wrapped(f.text, max(20, v.width-names-len(gap))) {
			name := f.name
			if i > 0 {
				name = ""
			}
			out = append(out, append(line{{pad(name, names, false) + gap, plain}}, l...))
		}
	}
	if len(events) > 0 {
		out = append(out, nil, say(strong, "latest verdicts on it"))
		for _, e := range events {
			out = append(out, wrapped(e.Text(false), v.width)...)
		}
	}
	if v.story.why != nil {
		out = append(out, nil, say(strong, "what the daemon remembers (earlydrop why)"))
		for _, text := range v.story.why {
			words := strings.TrimLeft(text, " ")
			indent := text[:len(text)-len(words)]
			for _, l := range wrapped(words, max(20, v.width-len(indent))) {
				out = append(out, append(line{{indent, plain}}, l...))
			}
		}
	}
	v.story.first = min(v.story.first, max(0, len(out)-room))
	out = out[v.story.first:]
	return out[:min(max(0, room), len(out))]
}

// tell returns what is known of what a row is about, and, where the daemon is not asked what it
// remembers, the latest verdicts.
func (v *view) tell(about any) (title string, facts []fact, events []*event.Verdict) {
	latest := func(of func(*event.Verdict) bool) (events []*event.Verdict) {
		for _, e := range v.top().Latest {
			if of(e) {
				events = append(events, e)
			}
		}
		return events
	}
	switch about := about.(type) {
	case *event.Verdict:
		return tellVerdict(about)
	case *status.Leader:
		title, facts = tellLeader(about)
		return title, facts, nil
	case *status.Block:
		title, facts = tellBlock(about)
		return title, facts, nil
	case *status.Pair:
		title, facts = tellPair(about)
		return title, facts, nil
	case className:
		for _, s := range v.attached(v.top()) {
			facts = append(facts, factf(s.Interface, "%d flows", s.Classes[string(about)]))
		}
		return "class " + string(about), facts, latest(func(e *event.Verdict) bool {
			return e.Class == string(about) || slices.Contains(e.RuleClasses, string(about))
		})
	case status.Verdicts:
		for _, s := range v.attached(v.top()) {
			for _, k := range s.Verdicts {
				if k.Rule == about.Rule && k.Decision == about.Decision && k.Reason == about.Reason {
					facts = append(facts, factf(s.Interface, "%d flows", k.Flows))
				}
			}
			if r, ok := s.Rules[about.Rule]; ok {
				facts = append(facts, factf(s.Interface, "by the rule in all: %d flows detected, %d blocked", r.Detected, r.Blocked))
			}
		}
		return strings.TrimSpace(fmt.Sprintf("rule %s: %s, %s", cmp.Or(about.Rule, "(none)"), about.Decision, about.Reason)), facts,
			latest(func(e *event.Verdict) bool {
				return e.Rule == about.Rule && e.Decision == about.Decision && e.Reason == about.Reason
			})
	case *status.Status:
		title, facts = v.tellInterface(about)
		return title, facts, nil
	case status.Waiting:
		return about.Interface + " is waited for", []fact{{"why", cmp.Or(about.Error, "it is not there")}}, nil
	}
	return "", nil, nil
}

func vlans(vlan, inner uint16) string {
	switch {
	case inner != 0:
		return fmt.Sprintf(", vlan %d.%d", vlan, inner)
	case vlan != 0:
		return fmt.Sprintf(", vlan %d", vlan)
	}
	return ""
}

// tellVerdict tells of a verdict all that its event does.
func tellVerdict(e *event.Verdict) (title string, facts []fact, _ []*event.Verdict) {
	did, _ := what(e)
	add := func(name, format string, args ...any) { facts = append(facts, factf(name, format, args...)) }
	add("when", "%s on %s, mode %s; the flow began %s", e.Time.Local().Format(time.DateTime), e.Interface, e.Mode, e.Start.Local().Format(time.TimeOnly))
	add("decision", "%s; reason: %s", did, e.Reason)
	if e.Rule != "" {
		add("rule", "%s", e.Rule)
	}
	if e.RuleConfidence != nil {
		add("classes", "%s with a probability of %.4f together", strings.Join(e.RuleClasses, ", "), *e.RuleConfidence)
	}
	if e.EvidenceJudged > 0 {
		add("evidence", "%d of %d flows of the pair were detected", e.EvidenceFlows, e.EvidenceJudged)
	}
	if e.EarlierBlocked > 0 {
		add("with it", "%d flows of the pair that passed before were blocked", e.EarlierBlocked)
	}
	if e.TTL > 0 {
		add("lasts", "%s, of scope %s", time.Duration(e.TTL*float64(time.Second)).Round(time.Second), cmp.Or(e.Scope, "flow"))
	}
	if e.Error != "" {
		add("failed", "%s: it passes", e.Error)
	}
	add("model", "%s calls it %s; the likeliest label is %s with %.4f", e.Model, e.Class, e.Likeliest, e.Confidence)
	if len(e.Scores.Labels) > 0 {
		var scores []string
		for i, label := range e.Scores.Labels {
			scores = append(scores, fmt.Sprintf("%s %.4f", label, e.Scores.Values[i]))
		}
		add("scores", "%s", strings.Join(scores, ", "))
	}
	add("captured", "%d bytes of %d packets (%d on the wire), handed over: %s", e.Captured, e.Packets, e.Bytes, e.HandedOver)
	if note := e.Note(); note != "-" {
		add("notes", "%s", note)
	}
	add("took", "%.1f ms from its first packet, %s from the hand-over", e.VerdictMS, micros(e.LatencyUS))
	return fmt.Sprintf("%s %s > %s%s", e.Proto, e.Src, e.Dst, vlans(e.VLAN, e.InnerVLAN)), facts, nil
}

func tellLeader(l *status.Leader) (title string, facts []fact) {
	switch {
	case !l.Server.IsValid():
		title = "initiator " + initiatorText(l.Initiator)
	case !l.Initiator.IsValid():
		title = fmt.Sprintf("server %s %s", l.Proto, l.Server)
	default:
		title = fmt.Sprintf("pair %s %s > %s", l.Proto, initiatorText(l.Initiator), l.Server)
	}
	more := func(n uint64, text string) string {
		if n == 0 {
			return ""
		}
		return fmt.Sprintf(" (and at most "+text+" before it was counted)", n)
	}
	facts = []fact{
		factf("detected", "%d flows%s, of which %d were blocked", l.Detected, more(l.DetectedMissed, "%d"), l.Blocked),
		factf("dropped", "%d packets, %s%s", l.DroppedPackets, event.ByteCount(l.DroppedBytes), more(l.DroppedBytesMissed, "%d bytes")),
		factf("blocks", "%d are there", l.Blocks),
	}
	if l.Treated > 0 {
		facts = append(facts, fact{"treated", "the kernel treats connections as they begin: list treated; u ends it"})
	}
	if !l.Last.IsZero() {
		facts = append(facts, factf("the latest", "%s on %s: %s, rule %s", l.Last.Local().Format(time.DateTime), l.Interface, l.Class, cmp.Or(l.Rule, "-")))
	}
	return title + vlans(l.VLAN, l.InnerVLAN), facts
}

func tellBlock(b *status.Block) (title string, facts []fact) {
	facts = []fact{
		factf("interface", "%s", b.Interface),
		factf("blocked", "since %s, until %s", b.Since.Local().Format(time.DateTime), b.Expires.Local().Format(time.DateTime)),
		factf("by", "rule %s, class %s, action %s", cmp.Or(b.Rule, "-"), cmp.Or(b.Class, "-"), b.Action),
		factf("dropped", "%d packets, %s", b.Packets, event.ByteCount(b.Bytes)),
	}
	if b.Suspended {
		facts = append(facts, factf("suspended", "the mode is monitor: its packets pass"))
	}
	return "block of " + control.KeyOf(b).String(), facts
}

func tellPair(p *status.Pair) (title string, facts []fact) {
	facts = []fact{
		factf("interface", "%s", p.Interface),
		factf("treated", "since %s, until %s", p.Since.Local().Format(time.DateTime), p.Expires.Local().Format(time.DateTime)),
		factf("by", "rule %s, class %s, action %s", cmp.Or(p.Rule, "-"), cmp.Or(p.Class, "-"), p.Action),
		factf("connections", "%d began meanwhile", p.Connections),
		factf("dropped", "%d packets, %s", p.Packets, event.ByteCount(p.Bytes)),
	}
	if !p.Last.IsZero() {
		facts = append(facts, factf("the latest", "began %s", p.Last.Local().Format(time.DateTime)))
	}
	if p.Suspended {
		facts = append(facts, factf("suspended", "the mode is monitor: its connections pass"))
	}
	return "treated pair " + p.Pair().String(), facts
}

func (v *view) tellInterface(s *status.Status) (title string, facts []fact) {
	facts = []fact{
		factf("state", "%s, mode %s, ingress %s, xdp %s, egress %s, since %s", s.State, s.Mode, s.Ingress, s.XDP, s.Egress, s.Since.Local().Format(time.DateTime)),
		factf("tables", "flows %d of %d, collecting %d of %d, blocked %d of %d", s.Flows.Flows, s.Capacity.Flows, s.Flows.Collecting, s.Capacity.Collecting, s.Flows.Blocked, s.Capacity.Blocked),
	}
	for _, w := range s.Worries {
		facts = append(facts, fact{"worry", w.Text})
	}
	if l := s.Latency; l != nil {
		facts = append(facts, factf("verdicts", "half within %s, 90%% within %s, 99%% within %s, all within %s", micros(l.P50), micros(l.P90), micros(l.P99), micros(l.Max)))
	}
	for _, c := range v.counters.Ordered(both(s.Daemon, s.Counters)) {
		if c.Value > 0 {
			text := fmt.Sprintf("%d", c.Value)
			if c.Help != "" {
				text += "  " + c.Help
			}
			facts = append(facts, fact{c.Name, text})
		}
	}
	return s.Interface, facts
}

// both returns what the daemon and what the kernel has counted.
func both(daemon, kernel map[string]uint64) map[string]uint64 {
	all := maps.Clone(daemon)
	maps.Copy(all, kernel)
	return all
}

// isOf reports whether a verdict is on a flow of a pair, a server or an initiator.
func isOf(l *status.Leader, e *event.Verdict) bool {
	return (!l.Initiator.IsValid() || l.Initiator.Contains(e.Src.Addr().Unmap())) && e.VLAN == l.VLAN && e.InnerVLAN == l.InnerVLAN &&
		(!l.Server.IsValid() || e.Dst == l.Server && e.Proto == l.Proto)
}

// blockOf reports whether a verdict is on the flow of a block.
func blockOf(b *status.Block, e *event.Verdict) bool {
	return e.Interface == b.Interface && e.Proto == b.Proto && e.VLAN == b.VLAN && e.InnerVLAN == b.InnerVLAN &&
		(e.Src == b.Lo && e.Dst == b.Hi || e.Src == b.Hi && e.Dst == b.Lo)
}

// pairOf returns the pair of a verdict's flow, as far as there are pairs of its protocol.
func pairOf(e *event.Verdict) *status.Leader {
	return &status.Leader{
		Initiator: flow.Household(e.Src.Addr()), Server: netip.AddrPortFrom(e.Dst.Addr().Unmap(), e.Dst.Port()), Proto: e.Proto, VLAN: e.VLAN, InnerVLAN: e.InnerVLAN,
	}
}

// pairIs reports whether a treated pair is of a pair, a server or an initiator.
func pairIs(l *status.Leader, p *status.Pair) bool {
	return (!l.Initiator.IsValid() || l.Initiator == p.Initiator) && (!l.Server.IsValid() || l.Server == p.Server) &&
		(l.Proto == "" || l.Proto == p.Proto) && l.VLAN == p.VLAN && l.InnerVLAN == p.InnerVLAN
}

// blockIs reports whether a block is of a pair, a server or an initiator. A block does not tell
// which of its ends is the initiator, so either may be.
func blockIs(l *status.Leader, b *status.Block) bool {
	fits := func(initiator, server netip.AddrPort) bool {
		return (!l.Initiator.IsValid() || l.Initiator.Contains(initiator.Addr().Unmap())) && (!l.Server.IsValid() || server == l.Server)
	}
	return b.VLAN == l.VLAN && b.InnerVLAN == l.InnerVLAN && (l.Proto == "" || b.Proto == l.Proto) && (fits(b.Lo, b.Hi) || fits(b.Hi, b.Lo))
}
