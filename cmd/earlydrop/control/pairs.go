// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// PairGateway is the part of Gateway that /v1/pairs asks.
type PairGateway interface {
	// Pairs returns the pairs that the kernels of all interfaces treat.
	Pairs() ([]status.Pair, error)
	// ForgetPair ends the treatment of a pair on all interfaces, and forgets its evidence. It
	// returns the pair as it was on each. The error wraps ebpf.ErrKeyNotExist where the pair is
	// not treated.
	ForgetPair(flow.Pair) ([]status.Pair, error)
}

// Pairs are those that a list was asked for.
type Pairs struct {
	Matched int           `json:"matched"` // how many the filter fits; a limit may list fewer
	Pairs   []status.Pair `json:"pairs"`
}

// Forgotten says what became of pairs whose treatment was ended.
type Forgotten struct {
	Pairs       int    `json:"pairs"`       // how many
	Connections uint64 `json:"connections"` // that began meanwhile
	Packets     uint64 `json:"packets"`     // dropped
	Bytes       uint64 `json:"bytes"`
}

// PairFilter says which pairs are meant: those that all its fields fit. Its zero value fits all.
type PairFilter struct {
	Interface string
	Class     string
	Rule      string
	CIDR      netip.Prefix // it has the server, or the initiator or a part of it
	// Pair is the one that is meant. As parameters it is initiator, server, vlan and inner_vlan.
	Pair *flow.Pair
}

var pairFilterKeys = []string{"interface", "class", "rule", "cidr", "initiator", "server", "vlan", "inner_vlan"}

// ParsePair reads an initiator, which may be an address, and a server.
func ParsePair(initiator, server string, vlan, innerVLAN uint16) (p flow.Pair, err error) {
	p.VLAN, p.InnerVLAN = vlan, innerVLAN
	network, err := parseCIDR(initiator)
	if err != nil {
		return p, fmt.Errorf("initiator %w", err)
	}
	if p.Initiator = network; network.IsSingleIP() {
		p.Initiator = flow.Household(network.Addr())
	}
	end, err := netip.ParseAddrPort(server)
	if err != nil {
		return p, fmt.Errorf("server %q is no endpoint: write ADDRESS:PORT, IPv6 as [ADDRESS]:PORT", server)
	}
	p.Server = netip.AddrPortFrom(end.Addr().Unmap(), end.Port())
	return p, p.Check()
}

// ParsePairFilter reads the parameters of a PairFilter.
func ParsePairFilter(v url.Values) (f PairFilter, err error) {
	if err := onlyKeys(v, pairFilterKeys); err != nil {
		return f, err
	}
	f = PairFilter{Interface: v.Get("interface"), Class: v.Get("class"), Rule: v.Get("rule")}
	if v.Has("cidr") {
		if f.CIDR, err = parseCIDR(v.Get("cidr")); err != nil {
			return f, err
		}
	}
	if v.Has("initiator") != v.Has("server") {
		return f, errors.New("a pair has an initiator and a server: give both")
	}
	outer, inner, err := parseTags(v)
	if err != nil {
		return f, err
	}
	if (v.Has("vlan") || v.Has("inner_vlan")) && !v.Has("server") {
		return f, errors.New("vlan and inner_vlan belong to a pair: give its initiator and server as well")
	}
	if v.Has("server") {
		p, err := ParsePair(v.Get("initiator"), v.Get("server"), outer, inner)
		f.Pair = &p
		return f, err
	}
	return f, nil
}

// Values returns the filter as parameters.
func (f *PairFilter) Values() url.Values {
	v := choice(f.Interface, f.Class, f.Rule, f.CIDR)
	if p := f.Pair; p != nil {
		v.Set("initiator", p.Initiator.String())
		v.Set("server", p.Server.String())
		setTags(v, p.VLAN, p.InnerVLAN)
	}
	return v
}

// Everything reports whether the filter leaves out nothing.
func (f *PairFilter) Everything() bool { return *f == PairFilter{} }

// Match reports whether a pair is meant.
func (f *PairFilter) Match(p *status.Pair) bool {
	return (f.Interface == "" || p.Interface == f.Interface) &&
		(f.Class == "" || p.Class == cut(f.Class)) &&
		(f.Rule == "" || p.Rule == cut(f.Rule)) &&
		(!f.CIDR.IsValid() || f.CIDR.Contains(p.Server.Addr()) || f.CIDR.Overlaps(p.Initiator)) &&
		(f.Pair == nil || p.Pair() == *f.Pair)
}

func byPair(a, b *status.Pair) int {
	return cmp.Or(a.Initiator.Addr().Compare(b.Initiator.Addr()), a.Server.Compare(b.Server), cmp.Compare(a.VLAN, b.VLAN),
		cmp.Compare(a.InnerVLAN, b.InnerVLAN), cmp.Compare(a.Interface, b.Interface))
}

var pairSortKeys = []sortKey[status.Pair]{
	{"pair", byPair},
	{"since", func(a, b *status.Pair) int { return a.Since.Compare(b.Since) }},
	{"expires", func(a, b *status.Pair) int { return a.Expires.Compare(b.Expires) }},
	{"connections", func(a, b *status.Pair) int { return cmp.Compare(a.Connections, b.Connections) }},
	{"packets", func(a, b *status.Pair) int { return cmp.Compare(a.Packets, b.Packets) }},
	{"bytes", func(a, b *status.Pair) int { return cmp.Compare(a.Bytes, b.Bytes) }},
	{"class", func(a, b *status.Pair) int { return cmp.Compare(a.Class, b.Class) }},
	{"rule", func(a, b *status.Pair) int { return cmp.Compare(a.Rule, b.Rule) }},
	{"interface", func(a, b *status.Pair) int { return cmp.Compare(a.Interface, b.Interface) }},
}

// PairSortKeys are what a list of pairs can be sorted by; a minus in front turns it round.
var PairSortKeys = sortNames(pairSortKeys)

// SortPairs sorts pairs by a key of PairSortKeys, and where that is the same by initiator, server
// and interface.
func SortPairs(pairs []status.Pair, by string) error { return sortBy(pairs, by, pairSortKeys, byPair) }

// chosenPairs returns the pairs that a filter fits.
func (s *Server) chosenPairs(f *PairFilter) ([]status.Pair, error) {
	s.walking.Lock()
	defer s.walking.Unlock()
	all, err := s.gateway.Pairs()
	return slices.DeleteFunc(all, func(p status.Pair) bool { return !f.Match(&p) }), err
}

func (s *Server) listPairs(r *request) error {
	v, shown, err := listed(r, SortPairs, "pair", pairFilterKeys)
	if err != nil {
		return err
	}
	filter, err := ParsePairFilter(v)
	if err != nil {
		return badRequest("%v", err)
	}
	pairs, err := s.chosenPairs(&filter)
	if err != nil {
		return err
	}
	matched, pairs := shown(pairs)
	r.reply(http.StatusOK, &Pairs{matched, append([]status.Pair{}, pairs...)})
	return nil
}

func (s *Server) forgetPairs(r *request) error {
	v, err := r.query(append([]string{"all"}, pairFilterKeys...)...)
	if err != nil {
		return err
	}
	all := v.Get("all")
	v.Del("all")
	filter, err := ParsePairFilter(v)
	switch {
	case err != nil:
		return badRequest("%v", err)
	case filter.Interface != "":
		return badRequest("a pair is treated on all interfaces: leave interface out")
	case all != "" && all != "true":
		return badRequest("all can't be %q: use true, or leave it out", all)
	case all == "" && filter.Everything():
		return badRequest("this would end the treatment of every pair: say which, or all=true")
	case all != "" && !filter.Everything():
		return badRequest("all=true and %s exclude each other", inWords(filter.Values()))
	}
	tell := event.Audit{Asked: inWords(v)}
	if all != "" {
		tell.Asked = "all"
	}
	sum, err := s.forget(&filter)
	if err == nil && sum.Pairs == 0 && filter.Pair != nil {
		err = &Error{http.StatusNotFound, fmt.Sprintf("not treated: %s", filter.Pair)}
	}
	if err != nil && sum.Pairs == 0 {
		tell.Outcome = event.Refused
	}
	tell.Pairs = sum.Pairs
	s.audit(r, tell, err)
	if err != nil {
		return err
	}
	r.reply(http.StatusOK, &sum)
	return nil
}

// forget ends the treatment of the pairs that a filter fits.
func (s *Server) forget(f *PairFilter) (sum Forgotten, err error) {
	var chosen []flow.Pair
	if f.Pair != nil { // the kernel may not have it, but evidence
		chosen = []flow.Pair{*f.Pair}
	} else {
		pairs, err := s.chosenPairs(f)
		if err != nil {
			return sum, err
		}
		slices.SortFunc(pairs, func(a, b status.Pair) int { return byPair(&a, &b) })
		for i := range pairs {
			chosen = append(chosen, pairs[i].Pair())
		}
		chosen = slices.Compact(chosen)
	}
	for _, p := range chosen {
		was, err := s.gateway.ForgetPair(p)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return sum, err
		}
		sum.Pairs++
		for i := range was {
			sum.Add(&was[i])
		}
	}
	return sum, nil
}

// Add adds what came of a pair on an interface.
func (f *Forgotten) Add(p *status.Pair) {
	f.Connections += p.Connections
	f.Packets += p.Packets
	f.Bytes += p.Bytes
}

// Pairs lists pairs. They are sorted by one of PairSortKeys, "" is pair; the limit is how many at
// most, 0 is all.
func (c *Client) Pairs(ctx context.Context, f PairFilter, sortBy string, limit int) (*Pairs, error) {
	p := new(Pairs)
	return p, c.call(ctx, "GET", "/v1/pairs", listing(f.Values(), sortBy, limit), nil, p)
}

// ForgetPairs ends the treatment of pairs, of all where the filter fits every one, and has their
// evidence forgotten. One with a Pair that is not treated is ErrNotFound.
func (c *Client) ForgetPairs(ctx context.Context, f PairFilter) (sum Forgotten, err error) {
	query := f.Values()
	if f.Everything() {
		query.Set("all", "true")
	}
	err = c.call(ctx, "DELETE", "/v1/pairs", query, nil, &sum)
	return sum, err
}
