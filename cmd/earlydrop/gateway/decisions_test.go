// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net/netip"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/why"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// aDecision is one about a flow from 10.0.0.2 to a port of 192.0.2.1, as decide has it.
func aDecision(port int) (*flow.Sample, *flow.Result, *policy.Decision, *outcome) {
	s := &flow.Sample{}
	s.Reset()
	s.Key, s.InitiatorIsLo = flow.NewKey(netip.MustParseAddrPort("10.0.0.2:40000"), netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(port)), flow.TCP, 0, 0)
	s.Start, s.Elapsed, s.Source = time.Unix(1e9+int64(port), 0), time.Millisecond, flow.Source{Interface: "v0", Index: 7}
	s.Data, s.Packets = s.Data[:flow.CaptureBytes], append(s.Packets, flow.Packet{WireLen: 100}, flow.Packet{WireLen: 1500})
	return s, &flow.Result{Class: "a", Confidence: 0.5 + float64(port)/1e6, Labels: []string{"background", "a"}, Scores: []float64{0.25, 0.5}},
		&policy.Decision{Rule: "r", Line: port, Class: "a", Reason: policy.ReasonRule},
		&outcome{judge: &judge{model: "m 1"}, at: time.Unix(2e9+int64(port), 0)}
}

func ask(network string) *why.Query {
	return &why.Query{Network: netip.MustParsePrefix(network), Most: 3}
}

func TestDecisionsAreRemembered(t *testing.T) {
	var d decisions
	a := &attachment{}
	if found, matched, remembered, since := d.find(ask("10.0.0.0/8")); found != nil || matched != 0 || remembered != 0 || !since.IsZero() {
		t.Errorf("before the first: %v, %d of %d since %s", found, matched, remembered, since)
	}
	const more = 100 // than there is room for
	for port := range mostDecisions + more {
		s, r, dec, o := aDecision(port)
		if port == mostDecisions/2 {
			s.Key, s.InitiatorIsLo = flow.NewKey(netip.MustParseAddrPort("10.9.0.9:1"), netip.MustParseAddrPort("[2001:db8::1]:443"), flow.UDP, 5, 6)
		}
		d.add(a, s, r, dec, o)
		s.Reset() // they are used again after the call
		r.Scores[0], r.Scores[1] = -1, -1
	}
	found, matched, remembered, since := d.find(ask("192.0.2.1/32"))
	if matched != mostDecisions-1 || remembered != mostDecisions || !since.Equal(time.Unix(2e9+more, 0)) {
		t.Errorf("%d of %d since %s", matched, remembered, since)
	}
	var lines []int
	for i := range found {
		lines = append(lines, found[i].decision.Line)
	}
	if last := mostDecisions + more - 1; !slices.Equal(lines, []int{last, last - 1, last - 2}) {
		t.Errorf("found %v", lines)
	}
	s, r, dec, o := aDecision(found[0].decision.Line)
	want, got := newVerdict(s, r, dec, o), found[0].verdict()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("the event of a decision (-want +got):\n%s", diff)
	}
	for network, n := range map[string]int{"2001:db8::/32": 1, "10.9.0.0/16": 1, "10.0.0.0/15": mostDecisions - 1, "172.16.0.0/12": 0} {
		if found, matched, _, _ := d.find(ask(network)); matched != n || len(found) != min(n, 3) {
			t.Errorf("%s: %d, of which %d were found, want %d", network, matched, len(found), n)
		}
	}
}

// How a block ended is told with the decision that made it, as long as that is remembered, and
// where another interface of the group has told of it.
func TestDecisionsSayHowTheirBlocksEnded(t *testing.T) {
	var d decisions
	group := loader.NewGroup("w0", "w1")
	alone, w0, w1 := &attachment{}, &attachment{asked: loader.Options{Group: group}}, &attachment{asked: loader.Options{Group: group}}
	add := func(a *attachment, port int, enforced bool, counts uint64) flow.Key {
		s, r, dec, o := aDecision(port)
		o.enforced, dec.Counts = enforced, counts
		d.add(a, s, r, dec, o)
		return s.Key
	}
	end := func(a *attachment, key flow.Key, reason string) {
		d.ended(a.blockID(key), &event.BlockEnded{Reason: reason})
	}
	ends := func(port int) (reasons []string) {
		q := ask("192.0.2.1/32")
		q.Port = uint16(port)
		found, _, _, _ := d.find(q)
		for i := range found {
			reason := "-"
			if e := found[i].ended; e != nil {
				reason = e.Reason
			}
			reasons = append(reasons, reason)
		}
		return reasons
	}
	blocked := add(alone, 1, true, 0)
	end(w0, blocked, "elsewhere")
	end(alone, blocked, "time")
	passed := add(alone, 2, false, 0)
	end(alone, passed, "by_hand")
	first := add(alone, 3, true, 0)
	end(alone, first, "first")
	end(alone, add(alone, 3, true, 0), "second")
	end(w1, add(w0, 4, true, 0), "in the group")
	end(alone, add(alone, 5, false, 1), "with its pair")
	for port, want := range map[int][]string{1: {"time"}, 2: {"-"}, 3: {"second", "first"}, 4: {"in the group"}, 5: {"with its pair"}} {
		if got := ends(port); !slices.Equal(got, want) {
			t.Errorf("port %d: %v, want %v", port, got, want)
		}
	}
	for i := range mostDecisions {
		add(alone, 1000+i%60000, i%2 == 0, 0)
	}
	end(alone, blocked, "forgotten")
	if n := len(d.blocks); n != mostDecisions/2 {
		t.Errorf("%d blocks are known of %d", n, mostDecisions/2)
	}
}

func TestDecisionsTakeLittleMemory(t *testing.T) {
	var d decisions
	a := &attachment{}
	s, r, dec, o := aDecision(1)
	o.enforced = true
	for range mostDecisions {
		d.add(a, s, r, dec, o)
	}
	if n := testing.AllocsPerRun(1000, func() { d.add(a, s, r, dec, o) }); n != 0 {
		t.Errorf("%v allocations for a decision", n)
	}
	// With the scores of ten labels, and a block for each.
	size := unsafe.Sizeof(madeDecision{}) + 10*unsafe.Sizeof(float64(0)) + 2*(unsafe.Sizeof(blockID{})+8)
	if total := size * mostDecisions; total > 12<<20 {
		t.Errorf("%d bytes for a decision, %d MiB for all", size, total>>20)
	} else {
		t.Logf("%d bytes for a decision, %.1f MiB for all", size, float64(total)/(1<<20))
	}
}

func BenchmarkRememberDecision(b *testing.B) {
	var d decisions
	a := &attachment{}
	s, r, dec, o := aDecision(1)
	b.ReportAllocs()
	for b.Loop() {
		d.add(a, s, r, dec, o)
	}
}

func BenchmarkFindDecisions(b *testing.B) {
	var d decisions
	a := &attachment{}
	s, r, dec, o := aDecision(1)
	for range mostDecisions {
		d.add(a, s, r, dec, o)
	}
	q := ask("203.0.113.0/24")
	for b.Loop() {
		d.find(q)
	}
}

// What is told of a decision is what is known now: the block, who made it and how it ended, and
// that the policy was read again.
func TestWhyKnowsWhatBecameOfAFlow(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, _ := newConfig(t, 1)
	config.LoadPolicy = func(*classifier.Manifest) (*policy.Policy, error) { return config.Policy, nil }
	g, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if a := g.Why(ask("10.0.0.2/32")); a.Matched != 0 || a.Remembered != 0 || a.Since.IsZero() || a.PolicySince.IsZero() || a.Decisions == nil || a.Pairs == nil {
		t.Errorf("before the first: %+v", a)
	}
	a, iface := g.attached[0], config.Attach[0].Interface
	for port := 1; port <= 2; port++ {
		s, r, dec, o := aDecision(port)
		o.judge, o.enforced = g.judge.Load(), port == 1
		dec.Action, dec.TTL = flow.Drop, time.Hour
		g.decisions.add(a, s, r, dec, o)
	}
	s, _, _, _ := aDecision(1)
	if _, err := g.Block(iface, s.Key, time.Hour); err != nil {
		t.Fatal(err)
	}
	told := g.Why(ask("10.0.0.2/32"))
	if told.Matched != 2 || told.Decisions[0].Block != nil || told.Decisions[1].Block == nil {
		t.Fatalf("%+v", told)
	}
	if b := told.Decisions[1].Block; b.Rule != flow.ByHand || b.Interface != iface || b.Suspended || b.Lo != s.Key.Lo || time.Until(b.Expires) < time.Minute {
		t.Errorf("%+v", b)
	}
	if _, err := g.Unblock(iface, s.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	told = g.Why(ask("10.0.0.2/32"))
	if d := told.Decisions[1]; d.Block != nil || d.Ended == nil || d.Ended.Reason != string(EndByHand) || !d.BeforeReload || told.Decisions[0].Ended != nil {
		t.Errorf("unblocked, and reloaded: %+v, %+v", d, told.Decisions[0])
	}
	// An interface that is gone has no blocks, and its decisions are remembered.
	if err := g.letGo(a, false); err != nil {
		t.Fatal(err)
	}
	if told = g.Why(ask("10.0.0.2/32")); told.Matched != 2 {
		t.Errorf("at the end: %+v", told)
	}
}
