// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"github.com/earlydrop/earlydrop/policy/yamlfile"
)

// matches reads the allow-list or the exceptions of a rule.
func (d *decoder) matches(e entry, what string) ([]Match, error) {
	nodes, err := d.list(e, what)
	if err != nil {
		return nil, err
	}
	var matches []Match
	for _, n := range nodes {
		m, err := d.match(n, what)
		if err != nil {
			return nil, err
		}
		matches = append(matches, m)
	}
	return matches, nil
}

// match reads an entry of the list.
func (d *decoder) match(n ast.Node, list string) (m Match, err error) {
	what := "an entry of " + list
	known := []string{"cidr", "set", "port", "side"}
	if list == "allow" {
		known = append(known, "exempt")
	}
	keys, err := d.mapping(n, what, known...)
	if err != nil {
		return m, err
	}
	if m.Prefix, m.Set, m.Ports, err = d.place(n, what, keys); err != nil {
		return m, err
	}
	if side, ok := keys["side"]; ok {
		if !m.Prefix.IsValid() && m.Set == nil {
			return m, d.On(side.Key, "side says which address the cidr is compared with, but there is no cidr; add one or remove side")
		}
		word, err := d.text(side.Place(), side.Value, "side", "responder")
		if err != nil {
			return m, err
		}
		switch word {
		case "any":
		case "initiator":
			m.Side = InitiatorSide
		case "responder":
			m.Side = ResponderSide
		default:
			known := []string{"initiator", "responder", "any"}
			return m, d.On(side.Place(), "unknown side %s%s; write initiator, responder or any", yamlfile.Quote(word), yamlfile.DidYouMean(word, known))
		}
	}
	if e, ok := keys["exempt"]; ok {
		if err := d.exempt(e, &m); err != nil {
			return m, err
		}
	}
	m.text, m.Line = m.String(), yamlfile.LineOf(n)
	return m, nil
}

// place reads the keys cidr, set and port of an entry.
func (d *decoder) place(n ast.Node, what string, keys map[string]entry) (prefix netip.Prefix, set *Set, ports []PortRange, err error) {
	cidr, hasCIDR := keys["cidr"]
	name, hasSet := keys["set"]
	port, hasPort := keys["port"]
	switch {
	case !hasCIDR && !hasSet && !hasPort:
		err = d.In(n, "%s needs a cidr, a set or a port", what)
	case hasCIDR && hasSet:
		err = d.On(name.Key, "%s has a cidr and a set; make two entries of it", what)
	case hasCIDR:
		prefix, err = d.cidr(cidr)
	case hasSet:
		var text string
		if text, err = d.text(name.Place(), name.Value, "set", "cloud"); err == nil {
			set, err = d.set(name, text)
		}
	}
	if err == nil && hasPort {
		ports, err = d.ports(port)
	}
	return prefix, set, ports, err
}

// endpoints reads where a rule's flows are from or go to, or which networks are protected:
// networks, addresses, sets, or mappings of these, which may have ports where withPorts is
// set.
func (d *decoder) endpoints(e entry, what string, withPorts bool) (ends []Endpoint, err error) {
	nodes, err := d.oneOrMore(e, what)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		var end Endpoint
		switch n.(type) {
		case *ast.StringNode:
			at := entry{Value: n, Key: e.Key}
			text, err := d.text(at.Place(), n, what, "192.0.2.0/24")
			if err != nil {
				return nil, err
			}
			if name, ok := strings.CutPrefix(text, "set:"); ok {
				end.Set, err = d.set(at, name)
			} else if withPort, portErr := netip.ParseAddrPort(text); portErr == nil {
				addr := withPort.Addr()
				err = d.On(at.Place(), "%s: %s has a port; write {cidr: %s/%d, port: %d}", what, yamlfile.Quote(text), addr, addr.BitLen(), withPort.Port())
			} else if end.Prefix, err = parseNetwork(text); err != nil {
				err = d.On(at.Place(), "%s: %v, or set:NAME", what, err)
			}
			if err != nil {
				return nil, err
			}
		case *ast.MappingNode, *ast.MappingValueNode:
			known := []string{"cidr", "set", "port"}
			if !withPorts {
				known = known[:2]
			}
			keys, err := d.mapping(n, "an entry of "+what, known...)
			if err != nil {
				return nil, err
			}
			if end.Prefix, end.Set, end.Ports, err = d.place(n, "an entry of "+what, keys); err != nil {
				return nil, err
			}
		default:
			return nil, d.On(placeOf(e, n), "%s has to be a network, an address, set:NAME or a mapping with cidr, set and port, but is %s", what, yamlfile.TypeName(n))
		}
		ends = append(ends, end)
	}
	return ends, nil
}

// cidr reads a network, which is unmapped and has no host bits.
func (d *decoder) cidr(e entry) (netip.Prefix, error) {
	s, err := d.text(e.Place(), e.Value, "cidr", "192.0.2.0/24")
	if err != nil {
		return netip.Prefix{}, err
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
			return p, d.On(e.Place(), "cidr %s has no prefix length; for this one address write %s/%d", yamlfile.Quote(s), s, addr.BitLen())
		}
		return p, d.On(e.Place(), "cidr %s is not a network; write one such as 192.0.2.0/24 or 2001:db8::/32", yamlfile.Quote(s))
	}
	if p != p.Masked() {
		return p, d.On(e.Place(), "cidr %s has host bits set; the network is %s", yamlfile.Quote(s), p.Masked())
	}
	if addr := p.Addr(); addr.Is4In6() {
		// Flows carry IPv4 addresses unmapped. A shorter prefix has host bits.
		return netip.PrefixFrom(addr.Unmap(), p.Bits()-96), nil
	}
	return p, nil
}

// numbers is what a list of numbers and ranges may have.
type numbers struct {
	what, article string // port, a port
	least, most   uint64
	example       string // of a range
}

var (
	portNumbers = numbers{"port", "a port", 1, 65535, "8000-8100"}
	vlanNumbers = numbers{"vlan", "a VLAN ID", 0, 4095, "100-199"}
)

// ports reads a port, a range, or a list of them.
func (d *decoder) ports(e entry) ([]PortRange, error) { return d.ranges(e, &portNumbers) }

// ranges reads a number, a range, or a list of them.
func (d *decoder) ranges(e entry, of *numbers) ([]PortRange, error) {
	nodes, err := d.oneOrMore(e, of.what)
	if err != nil {
		return nil, err
	}
	var list []PortRange
	for _, n := range nodes {
		at := placeOf(e, n)
		var r PortRange
		switch n.(type) {
		case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode:
			// The text as it was written: YAML would read 0700 as octal.
			text := at.Value
			first, last, isRange := strings.Cut(text, "-")
			if !isRange {
				last = first
			}
			var okFirst, okLast bool
			r.First, okFirst = of.parse(first)
			r.Last, okLast = of.parse(last)
			if !okFirst || !okLast {
				return nil, d.On(at, "%s %s is not %s; write %d to %d, or a range such as %s", of.what, yamlfile.Quote(text), of.article, of.least, of.most, of.example)
			}
			if r.First > r.Last {
				return nil, d.On(at, "%s range %s is backwards; write %d-%d", of.what, yamlfile.Quote(text), r.Last, r.First)
			}
		default:
			return nil, d.On(at, "%s has to be a number, a range such as %s or a list of them, but is %s", of.what, of.example, yamlfile.TypeName(n))
		}
		list = append(list, r)
	}
	return list, nil
}

// parse reads a decimal number without sign, underscores or leading zeros.
func (of *numbers) parse(s string) (uint16, bool) {
	s = strings.TrimSpace(s)
	if s == "" || s[0] < '0' || s[0] > '9' || s[0] == '0' && s != "0" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && of.least <= n && n <= of.most
}
