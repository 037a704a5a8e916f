// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"slices"
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// mostKnown bounds how many blocked flows an attachment knows: half a kilobyte each. What a
// policy would say to others is told from their blocks.
const mostKnown = 16384

// blockedFlow is what was known of a flow when it was blocked.
type blockedFlow struct {
	meta   flow.Meta
	result flow.Result
	rule   string // that blocked it
	pair   bool   // ... as one of a pair, on evidence
	since  time.Time
}

// knownFlows knows the flows of blocks, so that another policy can be asked about them. It is
// safe for concurrent use; the zero value knows none.
type knownFlows struct {
	mu    sync.Mutex
	flows map[flow.Key]*blockedFlow
}

// add notes a flow that is blocked.
func (k *knownFlows) add(m *flow.Meta, r *flow.Result, d *policy.Decision) {
	f := &blockedFlow{meta: *m, result: *r, rule: d.Rule, pair: d.Scope == flow.ScopePair, since: time.Now()}
	f.result.Scores = slices.Clone(r.Scores)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.flows == nil {
		k.flows = make(map[flow.Key]*blockedFlow)
	}
	if _, known := k.flows[m.Key]; known || len(k.flows) < mostKnown {
		k.flows[m.Key] = f
	}
}

// remove forgets a flow whose block is over.
func (k *knownFlows) remove(key flow.Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.flows, key)
}

// keep forgets the flows that had no block any more at a time, as others remove blocks, too.
func (k *knownFlows) keep(blocks []loader.Block, at time.Time) {
	blocked := make(map[flow.Key]bool, len(blocks))
	for i := range blocks {
		blocked[blocks[i].Key] = true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, f := range k.flows {
		if !blocked[key] && f.since.Before(at) {
			delete(k.flows, key)
		}
	}
}

// len returns how many there are.
func (k *knownFlows) len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.flows)
}

// of returns what is known of the flow of a block, nil if nothing is.
func (k *knownFlows) of(b *loader.Block) *blockedFlow {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f := k.flows[b.Key]; f != nil && cut(f.rule) == b.Rule {
		return f
	}
	return nil
}

// isDropped reports whether a policy would drop packets of the flow, by whatever action.
func (f *blockedFlow) isDropped(p *policy.Policy) bool {
	if f.pair && dropsPair(p, f.rule, &f.meta) {
		return true
	}
	d := p.Decide(&f.meta, f.result)
	return d.Action.Blocks()
}

// mayDrop reports whether a policy would drop the flow of a block of which no more is known
// than the block says, as an earlier daemon made it: if it is as sure as it can be, and was seen
// from its beginning, in both directions.
func mayDrop(p *policy.Policy, b *loader.Block, iface string) bool {
	// Complete, as most that is blocked at once.
	m := flow.Meta{Key: b.Key, InitiatorIsLo: b.InitiatorIsLo, Full: true, Source: flow.Source{Interface: iface}}
	for i := range p.Rules {
		if cut(p.Rules[i].Name) == b.Rule && dropsPair(p, p.Rules[i].Name, &m) {
			return true
		}
		for _, class := range p.Rules[i].Classes {
			if cut(class) != b.Class {
				continue
			}
			if d := p.Decide(&m, flow.Result{Class: class, Confidence: 1}); d.Action.Blocks() && cut(d.Rule) == b.Rule {
				return true
			}
		}
	}
	return false
}

// dropsPair reports whether a rule of that name still drops the flows of a pair that it treats
// on evidence.
func dropsPair(p *policy.Policy, rule string, m *flow.Meta) bool {
	r, server := p.PairRule(rule, m), m.Responder()
	return r != nil && r.Action.Blocks() && !p.Allows(m.Initiator().Addr(), server) && !p.Protects(server.Addr())
}

// cut cuts a name as blocks have it.
func cut(name string) string {
	const most = 15
	return name[:min(len(name), most)]
}
