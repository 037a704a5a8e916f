// SPDX-License-Identifier: Apache-2.0

// Package evidence decides about flows with what other flows have shown: a rule may wait
// until several flows of a pair, an initiator and a server, were detected, and then treat the
// pair; and limits bound what rules do without evidence.
//
// A State goes by the time of the captures, not by the clock: the same flows in the same
// order always come to the same.
package evidence

import (
	"container/list"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// Options are those of a State. The zero value will do.
type Options struct {
	// Pairs bounds how many pairs are remembered, 0 for 65536: half of them without a
	// detected flow, a quarter with one, a quarter that are treated. Of each the least
	// recently seen makes room.
	Pairs int
	// Alert (optional) is told that a limit was reached. It is called by Decide, after the
	// decision was made, and may be called concurrently.
	Alert func(Alert)
}

// maxOpen is how many flows of a pair are treated with it at most though they passed before.
const maxOpen = 8

// defaultPairs take some 25 MB, and 170 MB at most.
const defaultPairs = 1 << 16

// State is what is known of pairs and of the limits. Its methods may be called concurrently.
type State struct {
	options Options

	mu     sync.Mutex
	pairs  map[flow.Pair]*list.Element // of *pair, in one of kinds
	kinds  [numKinds]*list.List        // the latest first
	slots  [64]string                  // names of rules, by bit of judged.rules
	limits [2]breaker                  // of flows that prove nothing about their initiator, and of others
	counts counts
	untold atomic.Uint64 // of counts.forgotten, what TakeForgotten has not told of
	saved  bool          // nothing has changed since

	changes atomic.Uint64 // of what Treated returns
}

// kind is how much is known about a pair; each kind has room of its own.
type kind int

const (
	clean   kind = iota // no flow was detected
	suspect             // one was
	treated

	numKinds
)

// room returns how many pairs of a kind are remembered.
func (s *State) room(k kind) int {
	if k == clean {
		return max(1, s.options.Pairs/2)
	}
	return max(1, s.options.Pairs/4)
}

// pair is what is known of a pair.
type pair struct {
	flow.Pair
	kind      kind
	flows     []judged // the latest, at most policy.MaxEvidenceFlows
	treatment treatment
}

// judged is a flow that got a verdict. There may be many.
type judged struct {
	flow  flowID
	at    int64  // of the verdict, in Unix nanoseconds
	rules uint64 // those with evidence that detected it, by slot
	// open is the flow as it was detected, if it passed; else nil.
	open *flow.Meta
}

// flowID distinguishes the flows of a pair. Of one flow there may be several verdicts.
type flowID struct {
	start int64  // Unix nanoseconds
	host  uint64 // the second half of an IPv6 address
	port  uint16
}

// idOf returns what distinguishes a flow.
func idOf(m *flow.Meta) flowID {
	initiator := m.Initiator()
	id := flowID{start: m.Start.UnixNano(), port: initiator.Port()}
	if addr := initiator.Addr().Unmap(); addr.Is6() {
		bytes := addr.As16()
		id.host = binary.BigEndian.Uint64(bytes[8:])
	}
	return id
}

// treatment says that a pair is treated.
type treatment struct {
	rule, class  string // rule is empty where the pair is not treated
	since, until time.Time
	seen, judged int
}

// counts are what a State has done so far.
type counts struct {
	pairsTreated  uint64 // pairs that there was enough evidence for
	forgotten     uint64 // pairs that others pushed out
	limitsReached uint64
	paused        uint64 // verdicts that pass since a limit was reached
}

// New returns a State that knows nothing.
func New(o Options) *State {
	if o.Pairs == 0 {
		o.Pairs = defaultPairs
	}
	if o.Alert == nil {
		o.Alert = func(Alert) {}
	}
	return &State{options: o, pairs: map[flow.Pair]*list.Element{}, kinds: [numKinds]*list.List{list.New(), list.New(), list.New()}, saved: true}
}

// TakeForgotten returns how many pairs others have pushed out since the last call.
func (s *State) TakeForgotten() uint64 {
	if s.untold.Load() == 0 {
		return 0
	}
	return s.untold.Swap(0)
}

// Decide returns what becomes of a flow, as p.Decide does, with what is known of others.
// It notes the flow. The policy may be another one from call to call: what is known of pairs
// counts for the rule of the same name.
//
// Earlier are flows of a pair that is treated from now on: they were detected and passed, and
// are to be treated as d says, if they are still open. There are none where d treats no pair.
func (s *State) Decide(p *policy.Policy, m *flow.Meta, r flow.Result) (d policy.Decision, earlier []flow.Meta) {
	d = p.Decide(m, r)
	if d.Reason == policy.ReasonAllowList {
		return d, nil
	}
	alert := Alert{}
	s.mu.Lock()
	if m.Proven() && p.TreatsPairs() && !p.Protects(m.Responder().Addr()) {
		d, earlier = s.withPair(p, m, &r, d)
	}
	if p.Limits != (policy.Limits{}) && !m.Incomplete {
		d, alert = s.withinLimits(p, m, d)
	}
	s.mu.Unlock()
	if alert.Limit != "" {
		s.options.Alert(alert)
	}
	return d, earlier
}

// verdictTime is when the flow was handed over, by the clock of its capture.
func verdictTime(m *flow.Meta) time.Time { return m.Start.Add(m.Elapsed) }

// withPair returns the decision with what is known of the flow's pair, and notes the flow.
func (s *State) withPair(p *policy.Policy, m *flow.Meta, r *flow.Result, d policy.Decision) (_ policy.Decision, earlier []flow.Meta) {
	now := verdictTime(m)
	key := m.Pair()
	e := s.pairs[key]
	if e != nil {
		if t := &e.Value.(*pair).treatment; t.rule != "" {
			rule := p.PairRule(t.rule, m)
			switch {
			case rule == nil || !now.Before(t.until):
				*t = treatment{}
				s.saved = false
				s.changes.Add(1)
				s.put(e, suspect)
			case !m.Start.Before(t.since) || d.Counts&s.bit(p, rule.Name) != 0:
				s.put(e, treated)
				d.Class, d.Confidence = t.class, r.Confidence
				d.Pair(rule, min(max(policy.MinTTL, t.until.Sub(now)), rule.TTL))
				d.Seen, d.Judged = t.seen, t.judged
				return d, nil
			}
		}
	}
	if m.Incomplete {
		return d, nil
	}
	if e == nil {
		e = s.kinds[clean].PushFront(&pair{Pair: key, kind: clean})
		s.pairs[key] = e
	}
	known := e.Value.(*pair)
	var rules uint64
	for i := 0; d.Counts>>i != 0; i++ {
		if d.Counts>>i&1 != 0 {
			rules |= 1 << s.slot(p, p.EvidenceRule(i).Name)
		}
	}
	this := known.note(judged{flow: idOf(m), at: now.UnixNano(), rules: rules}, m.Variant)
	s.saved = false
	if rules != 0 {
		s.put(e, max(known.kind, suspect))
	} else {
		s.put(e, known.kind)
	}
	for i := 0; d.Counts>>i != 0; i++ {
		if d.Counts>>i&1 == 0 {
			continue
		}
		rule := p.EvidenceRule(i)
		seen, all := known.count(1<<s.slot(p, rule.Name), now.Add(-rule.Evidence.Within).UnixNano())
		if known.treatment.rule == "" && seen >= rule.Evidence.Flows && float64(seen)/float64(all) >= rule.Evidence.Share {
			d = rule.OnPair(d, r)
			d.Seen, d.Judged = seen, all
			known.treatment = treatment{rule.Name, d.Class, now, now.Add(rule.TTL), seen, all}
			s.put(e, treated)
			s.changes.Add(1)
			s.counts.pairsTreated++
			return d, known.take(1<<s.slot(p, rule.Name), this)
		}
		if d.Rule == rule.Name {
			d.Seen, d.Judged = seen, all
		}
	}
	if rules != 0 && d.Action != flow.Drop && d.Action != flow.Reset {
		known.keepOpen(this, m)
	}
	return d, nil
}

// keepOpen notes that a flow was detected and passed. Of older ones that is forgotten.
func (p *pair) keepOpen(f *judged, m *flow.Meta) {
	open := *m
	f.open = &open
	n := 0
	for i := len(p.flows) - 1; i >= 0; i-- {
		if p.flows[i].open != nil {
			if n++; n > maxOpen {
				p.flows[i].open = nil
			}
		}
	}
}

// put moves a pair to the front of a kind, whose last one may have to make room.
func (s *State) put(e *list.Element, to kind) {
	known := e.Value.(*pair)
	if known.kind == to {
		s.kinds[to].MoveToFront(e)
	} else {
		s.kinds[known.kind].Remove(e)
		known.kind = to
		s.pairs[known.Pair] = s.kinds[to].PushFront(known)
	}
	for s.kinds[to].Len() > s.room(to) {
		last := s.kinds[to].Back()
		s.remove(last)
		s.counts.forgotten++
		s.untold.Add(1)
	}
}

// remove forgets a pair.
func (s *State) remove(e *list.Element) {
	known := e.Value.(*pair)
	delete(s.pairs, known.Pair)
	s.kinds[known.kind].Remove(e)
	if known.kind == treated {
		s.changes.Add(1)
	}
}

// note adds a flow, or another verdict on one that is there. The last one counts; of a variant
// both do, as only the receiver knows which one it took.
func (p *pair) note(f judged, variant bool) *judged {
	for i := range p.flows {
		if was := &p.flows[i]; was.flow == f.flow {
			if variant {
				f.rules |= was.rules
			}
			*was = f
			return was
		}
	}
	if len(p.flows) == policy.MaxEvidenceFlows {
		p.flows = p.flows[:copy(p.flows, p.flows[1:])]
	}
	p.flows = append(p.flows, f)
	return &p.flows[len(p.flows)-1]
}

// take returns the flows that the rule has detected and that passed, without one, and forgets
// that they did.
func (p *pair) take(rule uint64, without *judged) (open []flow.Meta) {
	for i := range p.flows {
		f := &p.flows[i]
		if f != without && f.rules&rule != 0 && f.open != nil {
			open = append(open, *f.open)
		}
		f.open = nil
	}
	return open
}

// count returns how many flows after a time a rule detected, and how many there were.
func (p *pair) count(rule uint64, after int64) (seen, all int) {
	for i := range p.flows {
		if f := &p.flows[i]; f.at > after {
			all++
			if f.rules&rule != 0 {
				seen++
			}
		}
	}
	return seen, all
}

// bit returns the bit of Decision.Counts for a rule with evidence.
func (s *State) bit(p *policy.Policy, name string) uint64 {
	for i := 0; ; i++ {
		switch rule := p.EvidenceRule(i); {
		case rule == nil:
			return 0
		case rule.Name == name:
			return 1 << i
		}
	}
}

// slot returns the number by which a rule of p is remembered. A rule that p does not have
// makes room if need be.
func (s *State) slot(p *policy.Policy, name string) int {
	free := -1
	for i, has := range s.slots {
		if has == name {
			return i
		}
		if free < 0 && (has == "" || s.slots[len(s.slots)-1] != "" && s.bit(p, has) == 0) {
			free = i
		}
	}
	if s.slots[free] != "" {
		for _, e := range s.pairs {
			flows := e.Value.(*pair).flows
			for i := range flows {
				flows[i].rules &^= 1 << free
			}
		}
	}
	s.slots[free] = name
	return free
}
