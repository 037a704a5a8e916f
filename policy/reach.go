// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// NeverActs says why the rule number i, from 0, can't act on any flow, or returns "" if it
// can. It goes by the policy alone, not by what is attached.
func (p *Policy) NeverActs(i int) string {
	r := &p.Rules[i]
	switch {
	case r.Proto == flow.UDP && !r.UDPUnproven:
		return "it is for UDP flows, and has no udp_unproven: true"
	case r.Proto == flow.UDP && r.Provisional != nil && *r.Provisional:
		return "it is for UDP flows, whose verdicts are never provisional"
	case nobody(r.From):
		return "it is for flows from sets that are empty"
	case nobody(r.To):
		return "it is for flows to sets that are empty"
	case len(r.From) > 0 && len(r.To) > 0 && !sameFamily(r.From, r.To):
		return "no flow is from an IPv4 address to an IPv6 one, or the other way round"
	case spares(p.Allow, r):
		return "the allow-list has all of its flows"
	case spares(r.Except, r):
		return "its exceptions have all of its flows"
	case len(r.Classes) > 0 && slices.ContainsFunc(p.Rules[:i], func(above Rule) bool { return above.shadows(r) }):
		return "a rule above it treats all of its flows"
	}
	return ""
}

// shadows reports whether a rule that comes before another treats all of its flows: it has
// all of its classes, so that its probabilities add up to no less, no exception, wants no
// more confidence, and is for all flows that the other is for.
func (r *Rule) shadows(rule *Rule) bool {
	least := rule.MinConfidence
	if rule.Evidence != nil {
		least = min(least, rule.Evidence.MinConfidence)
	}
	choice := func(above, below *bool) bool { return above == nil || below != nil && *above == *below }
	return len(r.Except) == 0 && r.MinConfidence <= least &&
		(r.MidStream || !rule.MidStream) && (r.UDPUnproven || !rule.UDPUnproven) && (r.OneWay || !rule.OneWay) &&
		choice(r.Provisional, rule.Provisional) && choice(r.Complete, rule.Complete) &&
		(r.Signals == 0 || rule.Signals != 0 && rule.Signals&^r.Signals == 0) &&
		(r.Proto == 0 || r.Proto == rule.Proto) && hasAll(r.From, rule.From) && hasAll(r.To, rule.To) &&
		(r.Interfaces == nil || rule.Interfaces != nil && subset(rule.Interfaces, r.Interfaces)) &&
		(r.VLANs == nil || rule.VLANs != nil && subset(rule.VLANs, r.VLANs)) &&
		subset(rule.Classes, r.Classes)
}

// subset reports whether all elements of a are in b.
func subset[E comparable](a, b []E) bool {
	return !slices.ContainsFunc(a, func(e E) bool { return !slices.Contains(b, e) })
}

// everybody is what a rule without from, or without to, is for.
var everybody = []Endpoint{{Prefix: netip.MustParsePrefix("0.0.0.0/0")}, {Prefix: netip.MustParsePrefix("::/0")}}

// hasAll reports whether each end of inner is one of outer, where none are all.
func hasAll(outer, inner []Endpoint) bool {
	if len(outer) == 0 {
		return true
	}
	if len(inner) == 0 {
		inner = everybody
	}
	return !slices.ContainsFunc(inner, func(in Endpoint) bool {
		return !slices.ContainsFunc(outer, func(out Endpoint) bool { return out.has(&in) })
	})
}

// has reports whether each end of in is one of out.
func (out *Endpoint) has(in *Endpoint) bool {
	if len(out.Ports) > 0 && !slices.Equal(in.Ports, out.Ports) {
		return false
	}
	switch {
	case out.Set != nil && in.Set != nil:
		return out.Set == in.Set
	case out.Set != nil:
		return in.Prefix.IsValid() && out.Set.tree.LookupPrefix(in.Prefix)
	case !out.Prefix.IsValid(): // ports alone
		return true
	case in.Set != nil || !in.Prefix.IsValid():
		return false
	}
	return out.Prefix.Bits() <= in.Prefix.Bits() && out.Prefix.Contains(in.Prefix.Addr())
}

// nobody reports whether no address is one of the ends.
func nobody(ends []Endpoint) bool {
	return len(ends) > 0 && !slices.ContainsFunc(ends, func(e Endpoint) bool { return e.Set == nil || e.Set.Len() > 0 })
}

// sameFamily reports whether a flow may go from one end of a to one of b, by the IP version.
func sameFamily(a, b []Endpoint) bool {
	v4, v6 := families(a)
	to4, to6 := families(b)
	return v4 && to4 || v6 && to6
}

func families(ends []Endpoint) (v4, v6 bool) {
	for _, e := range ends {
		switch {
		case e.Set != nil:
			v4, v6 = v4 || e.Set.tree.Size4() > 0, v6 || e.Set.tree.Size6() > 0
		case !e.Prefix.IsValid():
			return true, true
		default:
			v4, v6 = v4 || e.Prefix.Addr().Is4(), v6 || e.Prefix.Addr().Is6()
		}
	}
	return v4, v6
}

// spares reports whether the entries of a list have all flows that the rule is for, by one
// of their sides.
func spares(list []Match, r *Rule) bool {
	side := func(not Side) (ends []Endpoint) {
		for _, m := range list {
			if m.Side != not && (m.Prefix.IsValid() || m.Set != nil) && len(m.Ports) == 0 {
				ends = append(ends, Endpoint{Prefix: m.Prefix, Set: m.Set})
			}
		}
		return ends
	}
	initiators, responders := side(ResponderSide), side(InitiatorSide)
	for _, m := range list {
		if !m.Prefix.IsValid() && m.Set == nil {
			responders = append(responders, Endpoint{Ports: m.Ports})
		}
	}
	return len(initiators) > 0 && hasAll(initiators, r.From) || len(responders) > 0 && hasAll(responders, r.To)
}
