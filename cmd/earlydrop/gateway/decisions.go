// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"slices"
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/why"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

const (
	// mostDecisions is how many decisions are remembered. TestDecisionsTakeLittleMemory says
	// how much they take.
	mostDecisions = 10_000
	// lookAtOnce is how many of them are looked at while none can be added: some microseconds.
	lookAtOnce = 256
	// mostPairs is how many pairs an answer has.
	mostPairs = 100
)

// outcome is what became of a decision.
type outcome struct {
	id       event.ID // of its event, whether or not that is written
	judge    *judge   // that made it
	mode     policy.Mode
	enforced bool
	failed   error // why a drop was not enforced, although it should have been
	at       time.Time
	earlier  int // flows of the pair that are blocked with it
}

// madeDecision is a decision that was made. What it was about is remembered and not its event:
// that of most is never written.
type madeDecision struct {
	outcome
	from     *attachment
	meta     flow.Meta
	result   flow.Result // its Scores are this place's memory
	decision policy.Decision
	captured int
	packets  int
	bytes    uint64
	indexed  bool // in decisions.blocks
	ended    *event.BlockEnded
}

// verdict returns the event of the decision.
func (m *madeDecision) verdict() *event.Verdict {
	v := newVerdict(&flow.Sample{Meta: m.meta}, &m.result, &m.decision, &m.outcome)
	v.Captured, v.Complete, v.Packets, v.Bytes = m.captured, m.captured == flow.CaptureBytes, m.packets, m.bytes
	return v
}

// blockID names what there is one block of at a time: a flow on an interface, or on those that
// share their blocks.
type blockID struct {
	key flow.Key
	at  any // *attachment, or *loader.Group
}

func (a *attachment) blockID(key flow.Key) blockID {
	if a.asked.Group != nil {
		return blockID{key, a.asked.Group}
	}
	return blockID{key, a}
}

// decisions remembers the latest decisions. Adding one takes no memory once all places were
// used. It is safe for concurrent use; the zero value remembers none.
type decisions struct {
	mu     sync.Mutex
	places []madeDecision
	n      uint64             // how many were made
	blocks map[blockID]uint64 // the number of the decision that a block was made by, or may be
}

// add remembers a decision.
func (d *decisions) add(a *attachment, s *flow.Sample, r *flow.Result, dec *policy.Decision, o *outcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.places == nil {
		d.places, d.blocks = make([]madeDecision, mostDecisions), map[blockID]uint64{}
	}
	m := &d.places[d.n%mostDecisions]
	if m.indexed {
		if id := m.from.blockID(m.meta.Key); d.blocks[id] == d.n-mostDecisions {
			delete(d.blocks, id)
		}
	}
	scores := append(m.result.Scores[:0], r.Scores...)
	m.outcome, m.from, m.meta, m.result, m.decision = *o, a, s.Meta, *r, *dec
	m.result.Scores = scores
	m.captured, m.packets, m.bytes, m.ended = len(s.Data), len(s.Packets), event.WireBytes(s), nil
	// One that is evidence may be blocked later, with its pair.
	if m.indexed = o.enforced || dec.Counts != 0; m.indexed {
		d.blocks[a.blockID(s.Key)] = d.n
	}
	d.n++
}

// ended notes how a block ended.
func (d *decisions) ended(id blockID, e *event.BlockEnded) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n, ok := d.blocks[id]; ok {
		d.places[n%mostDecisions].ended = e
	}
}

// find returns the latest decisions that are asked for, the latest first, how many there are,
// how many of others as well, and when the first of all was made.
func (d *decisions) find(q *why.Query) (found []madeDecision, matched, remembered int, since time.Time) {
	d.mu.Lock()
	end := d.n
	if remembered = int(min(end, mostDecisions)); remembered > 0 {
		since = d.places[(end-uint64(remembered))%mostDecisions].at
	}
	d.mu.Unlock()
	for n := end; n > 0; {
		d.mu.Lock()
		oldest := d.n - min(d.n, mostDecisions)
		for range lookAtOnce {
			if n <= oldest {
				d.mu.Unlock()
				return found, matched, remembered, since
			}
			n--
			m := &d.places[n%mostDecisions]
			if !q.Fits(m.meta.Initiator(), m.meta.Responder()) {
				continue
			}
			if matched++; len(found) < q.Most {
				found = append(found, *m)
				last := &found[len(found)-1]
				last.result.Scores = slices.Clone(last.result.Scores)
			}
		}
		d.mu.Unlock()
	}
	return found, matched, remembered, since
}

// Why says what is remembered of decisions, and what is known of pairs.
func (g *Gateway) Why(q *why.Query) *why.Answer {
	found, matched, remembered, since := g.decisions.find(q)
	now, j := time.Now(), g.judge.Load()
	if remembered == 0 {
		since = now
	}
	a := &why.Answer{
		Of: q.Of(), Policy: g.config.PolicyName, PolicySince: j.since, Remembered: remembered, Room: mostDecisions, Since: since,
		Matched: matched, Decisions: make([]why.Decision, len(found)), Pairs: []why.Pair{},
	}
	for i := range found {
		m := &found[i]
		a.Decisions[i] = why.Decision{Verdict: m.verdict(), BeforeReload: m.judge.since.Before(j.since), Ended: m.ended}
	}
	g.findBlocks(found, a.Decisions)
	for _, k := range g.config.Evidence.Known(now, mostPairs, q.FitsPair) {
		a.Pairs = append(a.Pairs, why.PairOf(&k))
	}
	kernel, _ := g.Pairs() // without what can't be read
	for i := range kernel {
		k := &kernel[i]
		at := slices.IndexFunc(a.Pairs, func(p why.Pair) bool {
			return p.Server == k.Server && p.Initiator == k.Initiator && p.VLAN == k.VLAN && p.InnerVLAN == k.InnerVLAN
		})
		if at >= 0 {
			a.Pairs[at].Kernel = append(a.Pairs[at].Kernel, *k)
		}
	}
	return a
}

// findBlocks adds the blocks that there are of the flows of decisions, the latest of which come
// first.
func (g *Gateway) findBlocks(made []madeDecision, told []why.Decision) {
	g.mu.Lock()
	defer g.mu.Unlock()
	has := map[blockID]bool{}
	for i := range made {
		a := made[i].from
		id := a.blockID(made[i].meta.Key)
		if has[id] || !slices.Contains(g.attached, a) {
			continue
		}
		has[id] = true
		if b, err := a.dp.FindBlock(id.key); err == nil {
			block := status.NewBlock(a.iface(), &b)
			enforces, err := a.dp.Enforces()
			block.Suspended = err == nil && !enforces
			told[i].Block = &block
		}
	}
}
