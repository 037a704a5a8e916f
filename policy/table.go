// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// table finds the first one in a list of networks, sets and ports that an address and a port
// fit, without looking at each. The zero table is empty.
type table struct {
	nets   bart.Table[*network]
	sets   []setRow
	others []row // without an address
}

// row is an entry of the list: its place there, and its ports.
type row struct {
	at    int
	ports []PortRange
}

type setRow struct {
	row
	set *Set
}

// network has the rows of one prefix, in their order, and the next shorter one that is listed
// and contains it.
type network struct {
	rows  []row
	wider *network
}

// fits reports whether the port is one of the row's.
func (r *row) fits(port uint16) bool {
	return len(r.ports) == 0 || slices.ContainsFunc(r.ports, func(p PortRange) bool { return p.First <= port && port <= p.Last })
}

// newTable returns a table of entries, each with its place in the list.
func newTable(entries []tableEntry) *table {
	t := &table{}
	nets := map[netip.Prefix]*network{}
	var prefixes []netip.Prefix
	for _, e := range entries {
		r := row{e.at, e.ports}
		switch {
		case e.set != nil:
			t.sets = append(t.sets, setRow{r, e.set})
		case !e.prefix.IsValid():
			t.others = append(t.others, r)
		default:
			n := nets[e.prefix]
			if n == nil {
				n = &network{}
				nets[e.prefix] = n
				prefixes = append(prefixes, e.prefix)
			}
			if len(n.rows) == 0 || len(n.rows[len(n.rows)-1].ports) > 0 { // else that row is always before
				n.rows = append(n.rows, r)
			}
		}
	}
	slices.SortStableFunc(prefixes, func(a, b netip.Prefix) int { return cmp.Compare(a.Bits(), b.Bits()) })
	for _, p := range prefixes {
		n := nets[p]
		n.wider, _ = t.nets.LookupPrefix(p)
		t.nets.Insert(p, n)
	}
	return t
}

// tableEntry is what newTable takes: a prefix, a set, or neither.
type tableEntry struct {
	at     int
	prefix netip.Prefix
	set    *Set
	ports  []PortRange
}

// first returns the place of the first entry that fits, or -1. The address is not v4-mapped.
func (t *table) first(addr netip.Addr, port uint16) int {
	best := -1
	note := func(r *row) bool {
		better := (best < 0 || r.at < best) && r.fits(port)
		if better {
			best = r.at
		}
		return better
	}
	n, _ := t.nets.Lookup(addr)
	for ; n != nil; n = n.wider {
		for i := range n.rows {
			if note(&n.rows[i]) {
				break
			}
		}
	}
	for i := range t.sets {
		if s := &t.sets[i]; (best < 0 || s.at < best) && s.set.Contains(addr) && note(&s.row) {
			break
		}
	}
	for i := range t.others {
		if note(&t.others[i]) {
			break
		}
	}
	return best
}

// matcher finds the first entry of an allow-list or of exceptions that fits a flow.
type matcher struct{ initiator, responder *table }

// newMatcher returns the matcher of a list, nil for an empty one.
func newMatcher(list []Match) *matcher {
	if len(list) == 0 {
		return nil
	}
	var initiator, responder []tableEntry
	for i := range list {
		m := &list[i]
		e := tableEntry{i, m.Prefix, m.Set, m.Ports}
		if m.Side != ResponderSide && (m.Prefix.IsValid() || m.Set != nil) {
			initiator = append(initiator, e)
		}
		if m.Side != InitiatorSide {
			responder = append(responder, e)
		}
	}
	return &matcher{newTable(initiator), newTable(responder)}
}

// first returns the index of the first entry that fits a flow between the two endpoints,
// whose addresses are not v4-mapped, or -1.
func (m *matcher) first(initiator netip.Addr, responder netip.AddrPort) int {
	if m == nil {
		return -1
	}
	port := responder.Port()
	a, b := m.initiator.first(initiator, port), m.responder.first(responder.Addr(), port)
	if a < 0 || b >= 0 && b < a {
		return b
	}
	return a
}

// newEndpoints returns the table of one side of a rule, nil where any will do.
func newEndpoints(list []Endpoint) *table {
	if len(list) == 0 {
		return nil
	}
	entries := make([]tableEntry, len(list))
	for i, e := range list {
		entries[i] = tableEntry{i, e.Prefix, e.Set, e.Ports}
	}
	return newTable(entries)
}

// has reports whether the side of a flow is one of the endpoints.
func (t *table) has(end netip.AddrPort) bool { return t == nil || t.first(end.Addr(), end.Port()) >= 0 }
