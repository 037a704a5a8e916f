// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
)

// Masquerade says where the connections of many hosts look like those of one.
type Masquerade struct {
	// Table is the one of nftables, as "family name", that gives what leaves through the
	// interface another source address; or, where Legacy is set, the one of the older iptables
	// (iptables-legacy).
	Table  string
	Legacy bool
	// Inside are other interfaces that are up and have addresses, but for loopback: the hosts
	// are behind one of them.
	Inside []string
}

// FindMasquerade reports whether connections leave through an interface with a source
// address that is not their initiator's, as far as nftables and iptables say so. What can't be
// read counts as not there. What other programs do isn't seen: a BPF program that rewrites
// addresses, a proxy, or a gateway further in.
func FindMasquerade(iface string) (m Masquerade, found bool) {
	link, err := net.InterfaceByName(iface)
	if err != nil {
		return m, false
	}
	if m.Table, found = findInNFTables(link); !found {
		m.Table, found = findInLegacyTables(link.Name)
		m.Legacy = found
	}
	if found {
		m.Inside = others(iface)
	}
	return m, found
}

// findInNFTables returns the table of nftables that gives what leaves through the interface
// another source address.
func findInNFTables(link *net.Interface) (table string, found bool) {
	conn, err := nftables.New()
	if err != nil {
		return "", false
	}
	chains, err := conn.ListChains()
	if err != nil {
		return "", false // no nftables in this kernel
	}
	isNAT := func(c *nftables.Chain) bool {
		return c.Type == nftables.ChainTypeNAT && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookPostrouting
	}
	for _, chain := range chains {
		// A chain that is jumped to has no type; it is in the table of one that has.
		if !slices.ContainsFunc(chains, func(c *nftables.Chain) bool {
			return c.Table.Name == chain.Table.Name && c.Table.Family == chain.Table.Family && isNAT(c)
		}) {
			continue
		}
		rules, err := conn.GetRules(chain.Table, chain)
		if err != nil {
			continue
		}
		if slices.ContainsFunc(rules, func(r *nftables.Rule) bool { return changesSource(r.Exprs, link) }) {
			return fmt.Sprintf("%s %s", familyName(chain.Table.Family), chain.Table.Name), true
		}
	}
	return "", false
}

// changesSource reports whether a rule gives another source address to what leaves through
// the interface. A condition that is not about the interface may hold.
func changesSource(exprs []expr.Any, link *net.Interface) bool {
	key := expr.MetaKey(0)
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Meta:
			key = 0
			if !e.SourceRegister {
				key = e.Key
			}
		case *expr.Cmp:
			is := true
			switch name := strings.TrimRight(string(e.Data), "\x00"); {
			case key == expr.MetaKeyOIFNAME && e.Op == expr.CmpOpEq && len(e.Data) == 16:
				is = name == link.Name
			case key == expr.MetaKeyOIFNAME && e.Op == expr.CmpOpEq: // "eth*"
				is = strings.HasPrefix(link.Name, name)
			case key == expr.MetaKeyOIFNAME && e.Op == expr.CmpOpNeq:
				is = name != link.Name
			case key == expr.MetaKeyOIF && len(e.Data) == 4:
				is = (binary.NativeEndian.Uint32(e.Data) == uint32(link.Index)) == (e.Op == expr.CmpOpEq)
			}
			if !is {
				return false
			}
			key = 0
		case *expr.Masq:
			return true
		case *expr.NAT:
			return e.Type == expr.NATTypeSourceNAT
		case *expr.Target: // of iptables
			return e.Name == "MASQUERADE" || e.Name == "SNAT"
		default:
			key = 0
		}
	}
	return false
}

// others lists the interfaces that are up and have addresses, without one and loopback.
func others(iface string) (names []string) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil
	}
	for _, l := range links {
		attrs := l.Attrs()
		if attrs.Name == iface || attrs.Flags&net.FlagLoopback != 0 || attrs.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err == nil && slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsGlobalUnicast() }) {
			names = append(names, attrs.Name)
		}
	}
	slices.Sort(names)
	return names
}
