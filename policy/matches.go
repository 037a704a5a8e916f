// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
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
	keys, err := d.mapping(n, what, "cidr", "port", "side")
	if err != nil {
		return m, err
	}
	cidr, hasCIDR := keys["cidr"]
	port, hasPort := keys["port"]
	side, hasSide := keys["side"]
	if !hasCIDR && !hasPort {
		return m, d.errorIn(n, "%s needs a cidr or a port", what)
	}
	if hasCIDR {
		if m.Prefix, err = d.cidr(cidr); err != nil {
			return m, err
		}
	}
	if hasPort {
		if m.Ports, err = d.ports(port); err != nil {
			return m, err
		}
	}
	if hasSide {
		if !hasCIDR {
			return m, d.errorOn(side.key, "side says which address the cidr is compared with, but there is no cidr; add one or remove side")
		}
		word, err := d.text(side.place(), side.value, "side", "responder")
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
			return m, d.errorOn(side.place(), "unknown side %s%s; write initiator, responder or any", quote(word), didYouMean(word, known))
		}
	}
	m.text = m.String()
	return m, nil
}

// cidr reads a network, which is unmapped and has no host bits.
func (d *decoder) cidr(e entry) (netip.Prefix, error) {
	s, err := d.text(e.place(), e.value, "cidr", "192.0.2.0/24")
	if err != nil {
		return netip.Prefix{}, err
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
			return p, d.errorOn(e.place(), "cidr %s has no prefix length; for this one address write %s/%d", quote(s), s, addr.BitLen())
		}
		return p, d.errorOn(e.place(), "cidr %s is not a network; write one such as 192.0.2.0/24 or 2001:db8::/32", quote(s))
	}
	if p != p.Masked() {
		return p, d.errorOn(e.place(), "cidr %s has host bits set; the network is %s", quote(s), p.Masked())
	}
	if addr := p.Addr(); addr.Is4In6() {
		// Flows carry IPv4 addresses unmapped. A shorter prefix has host bits.
		return netip.PrefixFrom(addr.Unmap(), p.Bits()-96), nil
	}
	return p, nil
}

// ports reads a port, a range, or a list of them.
func (d *decoder) ports(e entry) ([]PortRange, error) {
	nodes, err := d.oneOrMore(e, "port")
	if err != nil {
		return nil, err
	}
	var ports []PortRange
	for _, n := range nodes {
		at := e.placeOf(n)
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
			r.First, okFirst = parsePort(first)
			r.Last, okLast = parsePort(last)
			if !okFirst || !okLast {
				return nil, d.errorOn(at, "port %s is not a port; write 1 to 65535, or a range such as 8000-8100", quote(text))
			}
			if r.First > r.Last {
				return nil, d.errorOn(at, "port range %s is backwards; write %d-%d", quote(text), r.Last, r.First)
			}
		default:
			return nil, d.errorOn(at, "port has to be a number, a range such as 8000-8100 or a list of them, but is %s", typeName(n))
		}
		ports = append(ports, r)
	}
	return ports, nil
}

// parsePort reads a decimal port without sign, underscores or leading zeros.
func parsePort(s string) (uint16, bool) {
	s = strings.TrimSpace(s)
	if s == "" || s[0] < '1' || s[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil
}
