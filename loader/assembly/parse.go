// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Sizes and numbers that the wire formats fix.
const (
	ethHeader  = 14
	vlanTag    = 4
	ipv4Header = 20 // without options
	ipv6Header = 40
	tcpHeader  = 20 // without options
	udpHeader  = 8
	extHeader  = 8 // the shortest IPv6 extension header

	etherIPv4  = 0x0800
	etherIPv6  = 0x86dd
	etherVLAN  = 0x8100
	etherQinQ  = 0x88a8
	etherQinQ1 = 0x9100 // what devices used before 802.1ad

	extHopByHop = 0
	extRouting  = 43
	extFragment = 44
	extAuth     = 51
	extDestOpts = 60

	maxTags       = 2
	maxExtHeaders = 6
)

// Verdict is what Parse says about a frame.
type Verdict uint8

// Verdicts. Only OK makes a packet of a flow; all the others pass the frame
// and are counted by their name.
const (
	OK            Verdict = iota
	NotIP                 // neither IPv4 nor IPv6: ARP, LLDP, MPLS...
	OtherProto            // IP, but neither TCP nor UDP
	Malformed             // a length or version that can't be, or a header that the frame does not hold
	Unparsable            // a third VLAN tag or a seventh IPv6 extension header
	LaterFragment         // not the first fragment: it has no ports

	verdicts
)

// The names are those of the kernel's counters.
var verdictNames = [verdicts]string{
	OK:            "ok",
	NotIP:         "not_ip",
	OtherProto:    "other_proto",
	Malformed:     "malformed",
	Unparsable:    "unparsable",
	LaterFragment: "later_fragment",
}

// String returns the verdict's name in counters.
func (v Verdict) String() string {
	if v < verdicts {
		return verdictNames[v]
	}
	return fmt.Sprintf("verdict-%d", uint8(v))
}

// TCPFlags are the flag bits of a TCP header (its 14th byte).
type TCPFlags uint8

// The flags that decide about a flow's life.
const (
	FIN TCPFlags = 0x01
	SYN TCPFlags = 0x02
	RST TCPFlags = 0x04
	ACK TCPFlags = 0x10
)

// Opens reports whether the packet opens a connection: SYN without ACK.
func (f TCPFlags) Opens() bool { return f&(SYN|ACK) == SYN }

// Closes reports whether the packet ends a connection: FIN or RST.
func (f TCPFlags) Closes() bool { return f&(FIN|RST) != 0 }

// Packet is what Parse found in one frame. Offsets and lengths are in bytes
// and count from the first byte of the Ethernet header.
type Packet struct {
	Key     flow.Key
	SrcIsLo bool     // the sender is Key.Lo
	Flags   TCPFlags // 0 for UDP

	// WireLen is the length of the L2 header and the IP packet on the wire;
	// what stands behind it in the frame is Ethernet padding or a trailer.
	WireLen int
	// L3 and L4 are where the IP header and the TCP or UDP header begin.
	L3, L4 int
	// PayloadLen is the length of the transport payload on the wire, 0 for a
	// header-only packet.
	PayloadLen int
}

// Parse reads one frame that begins with an Ethernet header. wireLen is the
// frame's length on the wire, which a capture file's snap length may exceed
// len(frame); a wireLen below len(frame) counts as len(frame). Packet is
// filled only when the verdict is OK. Parse keeps no reference to frame, does
// not allocate and never panics. It may be called concurrently.
//
// The kernel program implements the same steps in the same order. Where a
// frame breaks several rules at once, the first one that the steps meet names
// the verdict.
func Parse(frame []byte, wireLen int) (Packet, Verdict) {
	wireLen = max(wireLen, len(frame))
	var p Packet

	etherType, vlan, inner, verdict := p.parseEthernet(frame)
	if verdict != OK {
		return Packet{}, verdict
	}
	var proto uint8
	var src, dst netip.Addr
	switch etherType {
	case etherIPv4:
		proto, src, dst, verdict = p.parseIPv4(frame, wireLen)
	case etherIPv6:
		proto, src, dst, verdict = p.parseIPv6(frame, wireLen)
	default:
		verdict = NotIP
	}
	if verdict != OK {
		return Packet{}, verdict
	}

	switch flow.Proto(proto) {
	case flow.TCP:
		verdict = p.parseTCP(frame)
	case flow.UDP:
		verdict = p.parseUDP(frame)
	default:
		verdict = OtherProto
	}
	if verdict != OK {
		return Packet{}, verdict
	}
	// Both protocols begin with source and destination port.
	p.Key, p.SrcIsLo = flow.NewKey(
		netip.AddrPortFrom(src, binary.BigEndian.Uint16(frame[p.L4:])),
		netip.AddrPortFrom(dst, binary.BigEndian.Uint16(frame[p.L4+2:])),
		flow.Proto(proto), vlan, inner)
	return p, OK
}

// parseEthernet walks the Ethernet header and up to two VLAN tags, and sets
// L3. The ids are the 12 bits of each tag; a priority tag has id 0.
func (p *Packet) parseEthernet(frame []byte) (etherType, vlan, inner uint16, _ Verdict) {
	if len(frame) < ethHeader {
		return 0, 0, 0, Malformed
	}
	etherType = binary.BigEndian.Uint16(frame[12:])
	off := ethHeader
	var ids [maxTags]uint16
	for tags := 0; etherType == etherVLAN || etherType == etherQinQ || etherType == etherQinQ1; tags++ {
		if tags == maxTags {
			return 0, 0, 0, Unparsable
		}
		if off+vlanTag > len(frame) {
			return 0, 0, 0, Malformed
		}
		ids[tags] = binary.BigEndian.Uint16(frame[off:]) & 0x0fff
		etherType = binary.BigEndian.Uint16(frame[off+2:])
		off += vlanTag
	}
	p.L3 = off
	return etherType, ids[0], ids[1], OK
}

// parseIPv4 sets L4 and WireLen.
func (p *Packet) parseIPv4(frame []byte, wireLen int) (proto uint8, src, dst netip.Addr, _ Verdict) {
	if p.L3+ipv4Header > len(frame) {
		return 0, src, dst, Malformed
	}
	ip := frame[p.L3:]
	headerLen := int(ip[0]&0x0f) * 4
	if ip[0]>>4 != 4 || headerLen < ipv4Header {
		return 0, src, dst, Malformed
	}
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if total == 0 {
		// Segmentation offload and BIG TCP leave the field empty: the
		// packet is as long as the frame says.
		total = wireLen - p.L3
	}
	if total < headerLen || p.L3+headerLen > len(frame) {
		return 0, src, dst, Malformed
	}
	// A later fragment is one whatever protocol it claims.
	if binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 {
		return 0, src, dst, LaterFragment
	}
	p.WireLen = min(p.L3+total, wireLen)
	p.L4 = p.L3 + headerLen
	src = netip.AddrFrom4([4]byte(ip[12:16]))
	dst = netip.AddrFrom4([4]byte(ip[16:20]))
	return ip[9], src, dst, OK
}

// parseIPv6 walks the extension headers and sets L4 and WireLen.
func (p *Packet) parseIPv6(frame []byte, wireLen int) (proto uint8, src, dst netip.Addr, _ Verdict) {
	if p.L3+ipv6Header > len(frame) {
		return 0, src, dst, Malformed
	}
	ip := frame[p.L3:]
	if ip[0]>>4 != 6 {
		return 0, src, dst, Malformed
	}
	p.WireLen = wireLen
	if payload := int(binary.BigEndian.Uint16(ip[4:])); payload != 0 {
		p.WireLen = min(p.L3+ipv6Header+payload, wireLen)
	}
	proto = ip[6]
	off := p.L3 + ipv6Header
	limit := p.limit(frame)
	for headers := 0; ; headers++ {
		switch proto {
		case extHopByHop, extRouting, extFragment, extAuth, extDestOpts:
		default:
			p.L4 = off
			src = netip.AddrFrom16([16]byte(ip[8:24]))
			dst = netip.AddrFrom16([16]byte(ip[24:40]))
			return proto, src, dst, OK
		}
		if headers == maxExtHeaders {
			return 0, src, dst, Unparsable
		}
		// A length that leads out of the packet is found by what must follow.
		if off+extHeader > limit {
			return 0, src, dst, Malformed
		}
		length := (int(frame[off+1]) + 1) * 8
		switch proto {
		case extFragment:
			length = extHeader // its second byte is reserved
			if binary.BigEndian.Uint16(frame[off+2:])&0xfff8 != 0 {
				return 0, src, dst, LaterFragment
			}
		case extAuth:
			length = (int(frame[off+1]) + 2) * 4
		}
		proto = frame[off]
		off += length
	}
}

// limit is where reading must stop: the end of the packet or of the captured
// bytes, whichever comes first.
func (p *Packet) limit(frame []byte) int { return min(p.WireLen, len(frame)) }

// parseTCP sets Flags and PayloadLen. The fixed header must have been
// captured; options need only lie inside the packet, as a small snap length
// may have cut them off.
func (p *Packet) parseTCP(frame []byte) Verdict {
	if p.L4+tcpHeader > p.limit(frame) {
		return Malformed
	}
	headerLen := int(frame[p.L4+12]>>4) * 4
	if headerLen < tcpHeader || p.L4+headerLen > p.WireLen {
		return Malformed
	}
	p.Flags = TCPFlags(frame[p.L4+13])
	p.PayloadLen = p.WireLen - p.L4 - headerLen
	return OK
}

// parseUDP sets PayloadLen. The UDP length bounds the payload, not the
// captured frame: bytes between it and the end of the IP packet are kept.
func (p *Packet) parseUDP(frame []byte) Verdict {
	if p.L4+udpHeader > p.limit(frame) {
		return Malformed
	}
	length := int(binary.BigEndian.Uint16(frame[p.L4+4:]))
	rest := p.WireLen - p.L4
	switch {
	case length == 0 || length > rest:
		length = rest
	case length < udpHeader:
		return Malformed
	}
	p.PayloadLen = length - udpHeader
	return OK
}
