// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy/nearest"
)

// mapName is how many bytes of a class or a rule the kernel's table of blocks keeps.
const mapName = 15

// BlockFilter says which blocks are meant: those that all its fields fit. Its zero value
// fits all.
type BlockFilter struct {
	Interface string
	Class     string
	Rule      string
	Proto     string       // tcp or udp
	CIDR      netip.Prefix // one of the ends is in it
	// Flow is the one flow that is meant. As parameters it is proto, ends (two, with a
	// comma between), vlan and inner_vlan; a flow without tags if these are left out.
	Flow *flow.Key
}

// blockFilterKeys are the parameters that a BlockFilter is written in.
var blockFilterKeys = []string{"interface", "class", "rule", "proto", "cidr", "ends", "vlan", "inner_vlan"}

// ParseBlockFilter reads the parameters of a BlockFilter.
func ParseBlockFilter(v url.Values) (f BlockFilter, err error) {
	if err := onlyKeys(v, blockFilterKeys); err != nil {
		return f, err
	}
	f = BlockFilter{Interface: v.Get("interface"), Class: v.Get("class"), Rule: v.Get("rule"), Proto: v.Get("proto")}
	if f.Proto != "" {
		if _, err := parseProto(f.Proto); err != nil {
			return f, err
		}
	}
	if v.Has("cidr") {
		if f.CIDR, err = parseCIDR(v.Get("cidr")); err != nil {
			return f, err
		}
	}
	if !v.Has("ends") {
		if v.Has("vlan") || v.Has("inner_vlan") {
			return f, errors.New("vlan and inner_vlan belong to a flow: give its ends as well")
		}
		return f, nil
	}
	one := Flow{Proto: f.Proto}
	a, b, both := strings.Cut(v.Get("ends"), ",")
	if !both {
		return f, fmt.Errorf("ends %q: use two endpoints with a comma between, such as 10.0.0.2:40000,192.0.2.7:8388", v.Get("ends"))
	}
	for i, text := range []string{a, b} {
		if one.Ends[i], err = netip.ParseAddrPort(text); err != nil {
			return f, fmt.Errorf("ends: %q is no endpoint: write ADDRESS:PORT, IPv6 as [ADDRESS]:PORT", text)
		}
	}
	if one.VLAN, one.InnerVLAN, err = parseTags(v); err != nil {
		return f, err
	}
	key, err := one.Key()
	f.Flow = &key
	return f, err
}

// Values returns the filter as parameters.
func (f *BlockFilter) Values() url.Values {
	v := choice(f.Interface, f.Class, f.Rule, f.CIDR)
	if f.Proto != "" {
		v.Set("proto", f.Proto)
	}
	if k := f.Flow; k != nil {
		v.Set("proto", k.Proto.String())
		v.Set("ends", k.Lo.String()+","+k.Hi.String())
		setTags(v, k.VLAN, k.InnerVLAN)
	}
	return v
}

// choice returns the parameters that choose blocks and pairs alike; what is empty is left out.
func choice(iface, class, rule string, cidr netip.Prefix) url.Values {
	v := url.Values{}
	for key, value := range map[string]string{"interface": iface, "class": class, "rule": rule} {
		if value != "" {
			v.Set(key, value)
		}
	}
	if cidr.IsValid() {
		v.Set("cidr", cidr.String())
	}
	return v
}

// setTags sets the parameters of VLAN IDs, and parseTags reads them; 0 where there is none.
func setTags(v url.Values, outer, inner uint16) {
	for name, tag := range map[string]uint16{"vlan": outer, "inner_vlan": inner} {
		if tag != 0 {
			v.Set(name, strconv.Itoa(int(tag)))
		}
	}
}

// parseTags is explained at setTags.
func parseTags(v url.Values) (outer, inner uint16, err error) {
	var tags [2]uint16
	for i, name := range []string{"vlan", "inner_vlan"} {
		if !v.Has(name) {
			continue
		}
		n, err := strconv.ParseUint(v.Get(name), 10, 12)
		if err != nil {
			return 0, 0, fmt.Errorf("%s %q: use a whole number from 0 to 4095", name, v.Get(name))
		}
		tags[i] = uint16(n)
	}
	return tags[0], tags[1], nil
}

// String returns the filter in words.
func (f *BlockFilter) String() string { return inWords(f.Values()) }

// everything reports whether the filter leaves out nothing, or nothing but other
// interfaces.
func (f *BlockFilter) everything() bool {
	without := *f
	without.Interface = ""
	return without == BlockFilter{}
}

// Match reports whether a block is meant.
func (f *BlockFilter) Match(b *status.Block) bool {
	return (f.Interface == "" || b.Interface == f.Interface) &&
		(f.Class == "" || b.Class == cut(f.Class)) &&
		(f.Rule == "" || b.Rule == cut(f.Rule)) &&
		(f.Proto == "" || b.Proto == f.Proto) &&
		(!f.CIDR.IsValid() || f.CIDR.Contains(b.Lo.Addr()) || f.CIDR.Contains(b.Hi.Addr())) &&
		(f.Flow == nil || KeyOf(b) == *f.Flow)
}

func cut(name string) string { return name[:min(len(name), mapName)] }

// KeyOf returns the key of the flow that a block is of.
func KeyOf(b *status.Block) flow.Key {
	k := flow.Key{Lo: b.Lo, Hi: b.Hi, VLAN: b.VLAN, InnerVLAN: b.InnerVLAN}
	k.Proto, _ = parseProto(b.Proto)
	return k
}

// sortKey is what a list can be sorted by.
type sortKey[T any] struct {
	name    string
	compare func(a, b *T) int
}

// sortBy sorts a list by one of keys, turned round where there is a minus in front, and where
// that is the same by rest.
func sortBy[T any](list []T, by string, keys []sortKey[T], rest func(a, b *T) int) error {
	name, turned := strings.CutPrefix(by, "-")
	at := slices.IndexFunc(keys, func(k sortKey[T]) bool { return k.name == name })
	if at < 0 {
		return fmt.Errorf("can't sort by %q: use one of %s, with a minus in front for the other direction", by, strings.Join(sortNames(keys), ", "))
	}
	slices.SortFunc(list, func(a, b T) int {
		c := keys[at].compare(&a, &b)
		if turned {
			c = -c
		}
		return cmp.Or(c, rest(&a, &b))
	})
	return nil
}

func sortNames[T any](keys []sortKey[T]) (names []string) {
	for _, k := range keys {
		names = append(names, k.name)
	}
	return names
}

func byFlow(a, b *status.Block) int {
	return cmp.Or(a.Lo.Compare(b.Lo), a.Hi.Compare(b.Hi), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.VLAN, b.VLAN), cmp.Compare(a.InnerVLAN, b.InnerVLAN))
}

var blockSortKeys = []sortKey[status.Block]{
	{"since", func(a, b *status.Block) int { return a.Since.Compare(b.Since) }},
	{"expires", func(a, b *status.Block) int { return a.Expires.Compare(b.Expires) }},
	{"packets", func(a, b *status.Block) int { return cmp.Compare(a.Packets, b.Packets) }},
	{"bytes", func(a, b *status.Block) int { return cmp.Compare(a.Bytes, b.Bytes) }},
	{"class", func(a, b *status.Block) int { return cmp.Compare(a.Class, b.Class) }},
	{"rule", func(a, b *status.Block) int { return cmp.Compare(a.Rule, b.Rule) }},
	{"interface", func(a, b *status.Block) int { return cmp.Compare(a.Interface, b.Interface) }},
	{"flow", byFlow},
}

// SortKeys are what a list of blocks can be sorted by; a minus in front turns it round.
var SortKeys = sortNames(blockSortKeys)

// SortBlocks sorts blocks by a key of SortKeys, and where that is the same by interface
// and flow.
func SortBlocks(blocks []status.Block, by string) error {
	return sortBy(blocks, by, blockSortKeys, func(a, b *status.Block) int { return cmp.Or(cmp.Compare(a.Interface, b.Interface), byFlow(a, b)) })
}

// EventFilter says which events are meant: those that all its fields fit. A field with
// several values fits where one of them does; one with none fits always. An event that
// has no such property does not fit a field that asks for it.
type EventFilter struct {
	Event     []string       // kinds of events
	Interface []string       //
	Class     []string       // of a verdict: its class, or one of those that decided
	Rule      []string       //
	Decision  []string       // pass, drop, log, reset or limit
	Detected  []string       // true or false
	Proto     []string       // tcp or udp
	CIDR      []netip.Prefix // one of the ends is in it
	Src, Dst  []netip.Prefix // of a verdict: the initiator's address, the other one's
	// Server is where the flow goes to, address and port; where that is not known, either end.
	Server []netip.AddrPort
}

// EventFilterKeys are the parameters of an EventFilter. Values have commas between them.
var EventFilterKeys = []string{"event", "interface", "class", "rule", "decision", "detected", "proto", "cidr", "src", "dst", "server"}

// words returns the fields that are words, with what they may be; nil: anything.
func (f *EventFilter) words() map[string]struct {
	values  *[]string
	allowed []string
} {
	type field = struct {
		values  *[]string
		allowed []string
	}
	return map[string]field{
		"event":     {&f.Event, event.Kinds},
		"interface": {&f.Interface, nil}, "class": {&f.Class, nil}, "rule": {&f.Rule, nil},
		"decision": {&f.Decision, []string{"pass", "drop", "log", "reset", "limit"}}, "detected": {&f.Detected, []string{"true", "false"}},
		"proto": {&f.Proto, []string{"tcp", "udp"}},
	}
}

func (f *EventFilter) prefixes() map[string]*[]netip.Prefix {
	return map[string]*[]netip.Prefix{"cidr": &f.CIDR, "src": &f.Src, "dst": &f.Dst}
}

// ParseEventFilter reads the parameters of an EventFilter.
func ParseEventFilter(v url.Values) (*EventFilter, error) {
	if err := onlyKeys(v, EventFilterKeys); err != nil {
		return nil, err
	}
	f := &EventFilter{}
	for key, field := range f.words() {
		if !v.Has(key) {
			continue
		}
		for value := range strings.SplitSeq(v.Get(key), ",") {
			if value == "" || field.allowed != nil && !slices.Contains(field.allowed, value) {
				return nil, fmt.Errorf("%s can't be %q%s", key, value, oneOf(value, field.allowed))
			}
			*field.values = append(*field.values, value)
		}
	}
	for key, field := range f.prefixes() {
		if !v.Has(key) {
			continue
		}
		for value := range strings.SplitSeq(v.Get(key), ",") {
			p, err := parseCIDR(value)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", key, err)
			}
			*field = append(*field, p)
		}
	}
	if v.Has("server") {
		for value := range strings.SplitSeq(v.Get("server"), ",") {
			server, err := netip.ParseAddrPort(value)
			if err != nil || server.Addr().Zone() != "" {
				return nil, fmt.Errorf("server: %q is no endpoint: write ADDRESS:PORT, IPv6 as [ADDRESS]:PORT", value)
			}
			f.Server = append(f.Server, netip.AddrPortFrom(server.Addr().Unmap(), server.Port()))
		}
	}
	return f, nil
}

// Values returns the filter as parameters.
func (f *EventFilter) Values() url.Values {
	v := url.Values{}
	for key, field := range f.words() {
		if len(*field.values) > 0 {
			v.Set(key, strings.Join(*field.values, ","))
		}
	}
	for key, field := range f.prefixes() {
		if len(*field) > 0 {
			var texts []string
			for _, p := range *field {
				texts = append(texts, p.String())
			}
			v.Set(key, strings.Join(texts, ","))
		}
	}
	if len(f.Server) > 0 {
		var texts []string
		for _, server := range f.Server {
			texts = append(texts, server.String())
		}
		v.Set("server", strings.Join(texts, ","))
	}
	return v
}

// Match reports whether an event is meant.
func (f *EventFilter) Match(e event.Event) bool {
	p := event.PropertiesOf(e)
	return f.Fits(&p)
}

// Fits reports whether an event with such properties is meant.
func (f *EventFilter) Fits(p *event.Properties) bool {
	in := func(list []netip.Prefix, known bool, addrs ...netip.AddrPort) bool {
		return len(list) == 0 || known && slices.ContainsFunc(list, func(p netip.Prefix) bool {
			return slices.ContainsFunc(addrs, func(a netip.AddrPort) bool { return p.Contains(a.Addr()) })
		})
	}
	one := func(list []string, values ...string) bool {
		return len(list) == 0 || slices.ContainsFunc(values, func(v string) bool { return v != "" && slices.Contains(list, v) })
	}
	at := func(list []netip.AddrPort, ends ...netip.AddrPort) bool {
		return len(list) == 0 || slices.ContainsFunc(ends, func(end netip.AddrPort) bool { return slices.Contains(list, end) })
	}
	servers := []netip.AddrPort{p.Dst, p.Src}
	if p.Directed {
		servers = servers[:1]
	}
	return one(f.Event, p.Kind) && one(f.Interface, p.Interface) && one(f.Class, p.Classes...) && one(f.Rule, p.Rule) &&
		one(f.Decision, p.Decision) && one(f.Detected, p.Detected) && one(f.Proto, p.Proto) && at(f.Server, servers...) &&
		in(f.CIDR, true, p.Src, p.Dst) && in(f.Src, p.Directed, p.Src) && in(f.Dst, p.Directed, p.Dst)
}

// parseCIDR reads a prefix, or an address, which is the prefix of itself.
func parseCIDR(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		var addr netip.Addr
		if addr, err = netip.ParseAddr(text); err == nil && addr.Zone() == "" {
			p = netip.PrefixFrom(addr, addr.BitLen())
		} else {
			return netip.Prefix{}, fmt.Errorf("%q is no network: write it as 192.0.2.0/24 or 2001:db8::/32, or one address", text)
		}
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("%q mixes IPv4 and IPv6: write two networks", text)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has bits set beyond its length: is %s meant?", text, p.Masked())
	}
	return p, nil
}

// onlyKeys refuses parameters that nobody reads, that are repeated, or that say nothing.
func onlyKeys(v url.Values, known []string) error {
	for _, key := range slices.Sorted(maps.Keys(v)) {
		switch {
		case !slices.Contains(known, key):
			return fmt.Errorf("unknown parameter %q%s", key, oneOf(key, known))
		case len(v[key]) != 1:
			return fmt.Errorf("parameter %s is given %d times", key, len(v[key]))
		case v[key][0] == "":
			return fmt.Errorf("parameter %s says nothing", key)
		case strings.ContainsFunc(v[key][0], func(r rune) bool { return !unicode.IsPrint(r) }):
			return fmt.Errorf("parameter %s can't be %q", key, v[key][0])
		}
	}
	return nil
}

// oneOf says what could be meant.
func oneOf(word string, allowed []string) string {
	switch guess := nearest.Word(word, allowed); {
	case guess != "":
		return ", did you mean " + guess + "?"
	case len(allowed) > 0:
		return ": use one of " + strings.Join(allowed, ", ")
	}
	return ""
}

// inWords returns parameters as text for people.
func inWords(v url.Values) string {
	var words []string
	for _, key := range slices.Sorted(maps.Keys(v)) {
		words = append(words, key+" "+v.Get(key))
	}
	return strings.Join(words, ", ")
}
