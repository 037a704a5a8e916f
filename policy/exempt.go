// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"iter"
	"net/netip"
)

// MaxExempt is how many networks can be exempt.
const MaxExempt = 100_000

// exemptible reports whether whatever has an end in one of the entry's networks passes.
func (m *Match) exemptible() bool {
	return (m.Prefix.IsValid() || m.Set != nil) && m.Side == AnySide && len(m.Ports) == 0
}

// networks returns how many networks the entry has, and which.
func (m *Match) networks() (int, iter.Seq[netip.Prefix]) {
	if m.Set != nil {
		return m.Set.Len(), m.Set.tree.All()
	}
	return 1, func(yield func(netip.Prefix) bool) { yield(m.Prefix) }
}

// Exempt returns the networks whose flows a data path may let pass without looking into them: those of
// entries of the allow-list that have neither ports nor a side. There are at most MaxExempt; of the
// entries that say nothing of that, those that come first, each whole or not at all. The
// others stay with Decide, which lets their flows pass as well.
func (p *Policy) Exempt() []netip.Prefix {
	var all []netip.Prefix
	for _, asked := range []bool{true, false} {
		for i := range p.Allow {
			m := &p.Allow[i]
			if !m.exemptible() || (m.Exempt != nil) != asked || asked && !*m.Exempt {
				continue
			}
			n, networks := m.networks()
			if len(all)+n > MaxExempt {
				continue
			}
			for network := range networks {
				all = append(all, network)
			}
		}
	}
	return all
}

// exempt reads that key of an entry of the allow-list.
func (d *decoder) exempt(e entry, m *Match) error {
	is, err := d.boolean(e, "exempt")
	if err != nil {
		return err
	}
	m.Exempt = &is
	switch {
	case !is:
		return nil
	case !m.exemptible():
		return d.On(e.Key, "exempt: true has nothing captured of the flows of a network, whatever they are, and this entry is about some of them; write it without port and side, or remove exempt")
	}
	n, _ := m.networks()
	if d.exempted += n; d.exempted > MaxExempt {
		return d.On(e.Key, "entries with exempt: true have more than %d networks together, and the kernel holds no more; remove exempt, and flows of the rest are spared all the same", MaxExempt)
	}
	return nil
}
