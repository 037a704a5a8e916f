// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// maxTallies bounds of how many rules, or kinds of verdicts, an attachment counts each: a
// policy may have many, and another one after each reload.
const maxTallies = 512

// tallies count by a key that the policy has a say in. The zero value is empty. It is safe for
// concurrent use.
type tallies[K comparable, V any] struct {
	mu sync.RWMutex
	of map[K]*V
}

// at returns the tally of a key, or that of another one where there are too many keys.
func (t *tallies[K, V]) at(key, other K) *V {
	t.mu.RLock()
	v := t.of[key]
	t.mu.RUnlock()
	if v != nil {
		return v
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.of[key]; !ok && len(t.of) >= maxTallies {
		key = other
	}
	if t.of == nil {
		t.of = map[K]*V{}
	}
	if t.of[key] == nil {
		t.of[key] = new(V)
	}
	return t.of[key]
}

// all returns what there is.
func (t *tallies[K, V]) all() map[K]*V {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return maps.Clone(t.of)
}

// ruleCounts are what came of a rule.
type ruleCounts struct{ detected, blocked atomic.Uint64 }

// verdictKind is what verdicts have in common that were decided alike.
type verdictKind struct {
	rule   string
	action flow.Action
	reason string
}

// countDecision counts a decision by what decided, and for those whom it is about.
func (a *attachment) countDecision(m *flow.Meta, d *policy.Decision, enforced bool, at time.Time) {
	kind := verdictKind{d.Rule, d.Action, d.Reason}
	if d.Reason == policy.ReasonAllowList {
		kind.rule = "" // an entry, of which there may be very many
	}
	a.kinds.at(kind, verdictKind{status.OtherRules, d.Action, d.Reason}).Add(1)
	if !d.Detected {
		return
	}
	a.gateway.tops.note(m, d, enforced, at)
	if d.Rule == "" {
		return
	}
	rule := a.rules.at(d.Rule, status.OtherRules)
	rule.detected.Add(1)
	if enforced {
		rule.blocked.Add(1)
	}
}

func (a *attachment) countsOfRules() map[string]status.Rule {
	rules := map[string]status.Rule{}
	for name, c := range a.rules.all() {
		rules[name] = status.Rule{Detected: c.detected.Load(), Blocked: c.blocked.Load()}
	}
	return rules
}

func (a *attachment) countsOfVerdicts() (list []status.Verdicts) {
	for kind, n := range a.kinds.all() {
		list = append(list, status.Verdicts{Rule: kind.rule, Decision: kind.action.String(), Reason: kind.reason, Flows: n.Load()})
	}
	slices.SortFunc(list, func(a, b status.Verdicts) int {
		return cmp.Or(cmp.Compare(b.Flows, a.Flows), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Decision, b.Decision), cmp.Compare(a.Reason, b.Reason))
	})
	return list
}
