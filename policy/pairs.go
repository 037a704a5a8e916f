// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// RuleForPair returns the rule with evidence of that name if it drops packets of all flows that
// a pair may have there, now that the pair is treated; else nil. It does not where the
// policy has other words for some of the addresses of an IPv6 initiator, or for some of its ports.
func (p *Policy) RuleForPair(name string, pair flow.Pair, there flow.Source) *Rule {
	m := pair.Meta(there)
	rule := p.PairRule(name, &m)
	if rule == nil || !rule.Action.Blocks() || p.Allows(m.Initiator().Addr(), pair.Server) || p.Protects(pair.Server.Addr()) {
		return nil
	}
	if !pair.Initiator.IsSingleIP() && (rule.from.divides(pair.Initiator) || rule.except.divides(pair.Initiator) || p.allow.divides(pair.Initiator)) {
		return nil
	}
	return rule
}

// divides reports whether the table is about a part of a network.
func (t *table) divides(p netip.Prefix) bool {
	if t == nil {
		return false
	}
	for part := range t.nets.Subnets(p) {
		if part != p {
			return true
		}
	}
	for i := range t.sets {
		for part := range t.sets[i].set.tree.Subnets(p) {
			if part != p {
				return true
			}
		}
	}
	return false
}

// divides reports whether some initiators of a network are on the list, and others are not.
func (m *matcher) divides(p netip.Prefix) bool { return m != nil && m.initiator.divides(p) }
