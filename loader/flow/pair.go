// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"fmt"
	"net/netip"
)

// Pair is an initiator and a server, as far as they are treated together. It is of TCP, and
// comparable.
type Pair struct {
	// Initiator is one IPv4 address, or an IPv6 network of 64 bits.
	Initiator netip.Prefix
	Server    netip.AddrPort
	// VLAN and InnerVLAN are those of the flows: in another VLAN the same address may be
	// somebody else's.
	VLAN, InnerVLAN uint16
}

// Pair returns the pair that a flow is of.
func (m *Meta) Pair() Pair {
	server := m.Responder()
	return Pair{Household(m.Initiator().Addr()), netip.AddrPortFrom(server.Addr().Unmap(), server.Port()), m.Key.VLAN, m.Key.InnerVLAN}
}

// Household is the address, or of IPv6 the network of 64 bits, that one host has for itself:
// whoever has one address of that mostly has them all.
func Household(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // the bits are right
	return p
}

// Check returns an error that says what is wrong with a pair, nil if there may be flows of it.
func (p Pair) Check() error {
	switch {
	case !p.Initiator.IsValid() || p.Initiator != Household(p.Initiator.Addr()):
		return fmt.Errorf("initiator %s is neither an IPv4 address nor an IPv6 network of 64 bits", p.Initiator)
	case !p.Server.IsValid() || p.Server.Port() == 0 || p.Server.Addr().Zone() != "" || p.Server.Addr().Is4In6():
		return fmt.Errorf("server %s is no address and port", p.Server)
	case p.VLAN > 4095 || p.InnerVLAN > 4095:
		return fmt.Errorf("vlan %d.%d: an ID is at most 4095", p.VLAN, p.InnerVLAN)
	}
	return nil
}

// Meta returns what a flow of the pair has for sure. Which port and, of IPv6, which address its
// initiator has, it does not say.
func (p Pair) Meta(s Source) Meta {
	m := Meta{Source: s, Full: true}
	m.Key, m.InitiatorIsLo = NewKey(netip.AddrPortFrom(p.Initiator.Addr(), 0), p.Server, TCP, p.VLAN, p.InnerVLAN)
	return m
}

// String prints initiator, server and the VLAN ids, if any.
func (p Pair) String() string {
	initiator := p.Initiator.String()
	if p.Initiator.IsSingleIP() {
		initiator = p.Initiator.Addr().String()
	}
	return fmt.Sprintf("tcp %s > %s", initiator, p.Server) + vlanText(p.VLAN, p.InnerVLAN)
}
