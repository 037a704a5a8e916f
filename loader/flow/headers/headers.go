// SPDX-License-Identifier: Apache-2.0

package headers

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// EtherTypes of the headers that are walked.
const (
	TypeIPv4    = 0x0800
	TypeIPv6    = 0x86dd
	TypeVLAN    = 0x8100 // 802.1Q
	TypeQinQ    = 0x88a8 // 802.1ad
	TypeOldQinQ = 0x9100 // what devices used before 802.1ad
)

// Bounds of what is walked, the same as in the kernel program.
const (
	// MaxTags is the number of VLAN tags.
	MaxTags = 2
	// MaxExtensions is the number of IPv6 extension headers.
	MaxExtensions = 6
)

// Kinds of IPv6 extension headers, as the next-header field numbers them.
const (
	HopByHop    = 0
	Routing     = 43
	Fragment    = 44
	Auth        = 51
	DestOptions = 60
)

// EthernetLen is the length in bytes of an Ethernet header without tags.
const EthernetLen = 14

// Lengths in bytes that the formats fix.
const (
	macsLen   = 12
	tagLen    = 4
	ipv4Len   = 20 // without options
	ipv6Len   = 40
	tcpLen    = 20 // without options
	udpLen    = 8
	extMinLen = 8 // the shortest IPv6 extension header
)

// Verdict says whether a frame is a packet of a flow, and if not, why.
type Verdict uint8

// Verdicts. Only OK makes a packet of a flow; all the others pass the frame
// and are counted by their name.
const (
	OK            Verdict = iota
	NotIP                 // neither IPv4 nor IPv6: ARP, LLDP, MPLS...
	OtherProto            // IP, but neither TCP nor UDP
	Malformed             // what no host accepts, or a header that the frame does not hold
	Unparsable            // a third VLAN tag or a seventh IPv6 extension header
	LaterFragment         // not the first fragment: it has no ports
	// BadFragment is a first fragment without all headers, as far as those of TCP and UDP
	// (RFC 1858, and RFC 7112 for IPv6), or a later one that begins within a TCP header
	// (RFC 3128): they keep what decides about a flow from whoever reads the first fragment.
	BadFragment

	// NumVerdicts is the number of verdicts.
	NumVerdicts
)

// The names are those of the kernel's counters.
var verdictNames = [NumVerdicts]string{
	OK:            "ok",
	NotIP:         "not_ip",
	OtherProto:    "other_proto",
	Malformed:     "malformed",
	Unparsable:    "unparsable",
	LaterFragment: "later_fragment",
	BadFragment:   "bad_fragment",
}

// String returns the verdict's name in counters.
func (v Verdict) String() string {
	if v < NumVerdicts {
		return verdictNames[v]
	}
	return fmt.Sprintf("verdict-%d", uint8(v))
}

// Flags are the flag bits of a TCP header (its 14th byte).
type Flags uint8

// The flags that decide about a flow's life.
const (
	FIN Flags = 0x01
	SYN Flags = 0x02
	RST Flags = 0x04
	ACK Flags = 0x10
	URG Flags = 0x20
)

// Opens reports whether the packet opens a connection: SYN without ACK.
func (f Flags) Opens() bool { return f&(SYN|ACK) == SYN }

// Closes reports whether the packet ends a connection: FIN or RST.
func (f Flags) Closes() bool { return f&(FIN|RST) != 0 }

// Extension is an IPv6 extension header. It may reach beyond the frame.
type Extension struct {
	Off  uint16 // of its first byte
	Len  uint16 // as it says itself
	Kind uint8  // HopByHop, Routing, ...
}

// Headers says where the headers of one frame lie and what they say. Offsets
// and lengths are in bytes; offsets count from the first byte of the Ethernet
// header. Where the frame is cut, an offset may lie behind its end.
//
// The offset of a header that was not recognised is 0, and so are its values.
type Headers struct {
	// Tags is the number of VLAN tags, 0 to 2; the last one may be cut. VLAN
	// and InnerVLAN are the 12 bits of their ids.
	Tags            uint8
	VLAN, InnerVLAN uint16

	// IP is 4 or 6, 0 where no IP header was recognised, and L3 where the
	// header behind Ethernet begins, whatever it is.
	IP uint8
	L3 int
	// TTL is the time to live of IPv4, the hop limit of IPv6.
	TTL uint8
	// BadChecksum says that an IPv4 header has a checksum that Parse refuses, after
	// WalkCaptured one that ParseCaptured refuses.
	BadChecksum bool
	// MoreFragments says that the packet is the first fragment of a greater one.
	MoreFragments bool
	// Fragment is where the packet is in a greater one.
	Fragment Fragmentation
	// Ext holds the IPv6 extension headers, as many as Exts says.
	Exts uint8
	Ext  [MaxExtensions]Extension

	// WireLen is the length of the L2 header and the IP packet on the wire;
	// what comes after it in the frame is Ethernet padding or a trailer. A
	// length that a header claims is believed only as far as the frame
	// reached on the wire.
	WireLen int

	// Proto is flow.TCP or flow.UDP, 0 where neither header was recognised,
	// and L4 where that header begins.
	Proto flow.Proto
	L4    int
	// Seq, Ack, Window and Flags are those of TCP, where the frame holds its
	// fixed header.
	Seq, Ack uint32
	Window   uint16
	Flags    Flags

	// Payload is where the transport payload begins and PayloadLen its length
	// on the wire, 0 for a packet of headers only. Where no payload can be told
	// from headers, Payload is the end of the frame and PayloadLen 0.
	Payload    int
	PayloadLen int

	verdict Verdict
	rest    Field // what comes after the headers where that is no payload
}

// Fragmentation is what a fragment says of the packet that it is a part of. It is zero where
// a packet is no fragment, or one that is the whole packet.
type Fragmentation struct {
	// ID is that of the packet, which all its fragments have: 16 bits of IPv4, 32 of IPv6.
	ID uint32
	// Start is where in the frame what was cut up begins, and Offset where that is in
	// the packet, both in bytes.
	Start, Offset int
	// Proto is what the IPv4 header says that was cut up, or the IPv6 fragment header.
	Proto uint8
}

// Captured returns how many bytes of the payload a frame of frameLen bytes
// holds. What pads a short frame is not payload.
func (h *Headers) Captured(frameLen int) int {
	return max(0, min(frameLen-h.Payload, h.PayloadLen))
}

// Walk fills h, whatever it held before, with what frame holds. frame begins
// with an Ethernet header and was wireLen bytes long on the wire; it may be cut
// anywhere.
//
// Walk returns what Parse says about the same frame, but goes on as long as
// there is something to recognise: in a cut frame, behind a length that can't
// be, behind a wrong checksum. Different Headers may be filled concurrently.
func (h *Headers) Walk(frame []byte, wireLen int) Verdict { return h.walk(frame, wireLen, false) }

// WalkCaptured is to ParseCaptured what Walk is to Parse.
func (h *Headers) WalkCaptured(frame []byte, wireLen int) Verdict {
	return h.walk(frame, wireLen, true)
}

// walk is Walk. With emptyOK an IPv4 checksum of 0 is right.
func (h *Headers) walk(frame []byte, wireLen int, emptyOK bool) Verdict {
	*h = Headers{WireLen: wireLen}
	if len(frame) < EthernetLen {
		return h.opaque(frame, Malformed, 0)
	}
	etherType, off := be16(frame, macsLen), EthernetLen
	for etherType == TypeVLAN || etherType == TypeQinQ || etherType == TypeOldQinQ {
		if h.Tags == MaxTags {
			return h.opaqueIP(frame, off, Unparsable, NotIPHeader)
		}
		h.Tags++
		if off+tagLen > len(frame) {
			return h.opaque(frame, Malformed, 0)
		}
		id := be16(frame, off) & 0x0fff
		if h.Tags == 1 {
			h.VLAN = id
		} else {
			h.InnerVLAN = id
		}
		etherType = be16(frame, off+2)
		off += tagLen
	}
	switch etherType {
	case TypeIPv4:
		return h.ipv4(frame, off, emptyOK)
	case TypeIPv6:
		return h.ipv6(frame, off)
	}
	return h.opaqueIP(frame, off, NotIP, NotIPHeader)
}

func be16(b []byte, off int) uint16 { return binary.BigEndian.Uint16(b[off:]) }

// fail notes why the frame is no packet of a flow. Of several causes the first
// one that the walk meets counts.
func (h *Headers) fail(v Verdict) {
	if h.verdict == OK {
		h.verdict = v
	}
}

// opaque ends a walk: in what is left, rest, no payload can be told.
func (h *Headers) opaque(frame []byte, v Verdict, rest Field) Verdict {
	h.fail(v)
	h.rest = rest
	h.Payload = len(frame)
	return h.verdict
}

// opaqueIP is opaque for what is in place of an IP header, at off.
func (h *Headers) opaqueIP(frame []byte, off int, v Verdict, rest Field) Verdict {
	h.L3 = off
	return h.opaque(frame, v, rest)
}

func (h *Headers) ipv4(frame []byte, off int, emptyOK bool) Verdict {
	if off >= len(frame) || frame[off]>>4 != 4 || frame[off]&0x0f < ipv4Len/4 {
		return h.opaqueIP(frame, off, Malformed, BadIPv4)
	}
	h.IP, h.L3 = 4, off
	ip := frame[off:]
	if len(ip) < ipv4Len {
		h.fail(Malformed)
		if len(ip) < 10 { // without the protocol
			return h.opaque(frame, Malformed, 0)
		}
	}
	headerLen, total := int(ip[0]&0x0f)*4, int(be16(ip, 2))
	h.TTL = ip[8]
	// Segmentation offload and BIG TCP leave the length empty: the packet is
	// as long as the frame says.
	if total == 0 && h.WireLen-off < headerLen || total != 0 && total < headerLen || headerLen > len(ip) {
		h.fail(Malformed)
	} else {
		// BIG TCP may leave the checksum empty as well.
		h.BadChecksum = !sumsUp(ip[:headerLen]) && !(be16(ip, 10) == 0 && (total == 0 || emptyOK))
		if h.BadChecksum || h.TTL == 0 {
			h.fail(Malformed)
		}
	}
	if total >= headerLen {
		h.WireLen = min(h.WireLen, off+total)
	}
	h.MoreFragments = ip[6]&0x20 != 0
	if offset := int(be16(ip, 6)&0x1fff) * 8; offset != 0 || h.MoreFragments {
		h.Fragment = Fragmentation{ID: uint32(be16(ip, 4)), Start: off + headerLen, Offset: offset, Proto: ip[9]}
		if offset != 0 {
			return h.laterFragment(frame)
		}
	}
	return h.transport(frame, off+headerLen, ip[9])
}

// laterFragment ends a walk: a later fragment is one whatever protocol it claims.
func (h *Headers) laterFragment(frame []byte) Verdict {
	h.MoreFragments = false
	if flow.Proto(h.Fragment.Proto) == flow.TCP && h.Fragment.Offset < tcpLen {
		return h.opaque(frame, BadFragment, FragmentBody)
	}
	return h.opaque(frame, LaterFragment, FragmentBody)
}

// short notes that the packet ends within its headers.
func (h *Headers) short() {
	if h.MoreFragments {
		h.fail(BadFragment)
	}
	h.fail(Malformed)
}

// sumsUp reports whether an IPv4 header, options included, sums up to 0xffff
// (RFC 791).
func sumsUp(header []byte) bool { return wordSum(header) == 0xffff }

// wordSum is the ones' complement sum of an IPv4 header's 16-bit words.
func wordSum(header []byte) uint16 {
	// The words of a ones' complement sum may be added two at a time (RFC 1071).
	var sum uint64
	for ; len(header) >= 4; header = header[4:] {
		sum += uint64(binary.BigEndian.Uint32(header))
	}
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum)
}

func (h *Headers) ipv6(frame []byte, off int) Verdict {
	if off >= len(frame) || frame[off]>>4 != 6 {
		return h.opaqueIP(frame, off, Malformed, BadIPv6)
	}
	h.IP, h.L3 = 6, off
	ip := frame[off:]
	if len(ip) < ipv6Len {
		h.fail(Malformed)
		if len(ip) < 7 { // without the next header
			return h.opaque(frame, Malformed, 0)
		}
	} else if ip[7] == 0 || v4Mapped(ip[8:24]) || v4Mapped(ip[24:40]) {
		h.fail(Malformed)
	}
	if len(ip) > 7 {
		h.TTL = ip[7]
	}
	if payload := int(be16(ip, 4)); payload != 0 {
		h.WireLen = min(h.WireLen, off+ipv6Len+payload)
	}
	next := ip[6]
	limit := min(h.WireLen, len(frame))
	off += ipv6Len
	for isExtension(next) {
		if h.Exts == MaxExtensions {
			return h.opaque(frame, Unparsable, OtherProtoHeader)
		}
		// A length that leads out of the packet is found by what must follow.
		switch {
		case off+extMinLen > h.WireLen:
			h.short()
		case off+extMinLen > limit:
			h.fail(Malformed)
		}
		kind, known := next, 2 // bytes that tell the header's length
		if kind == Fragment {
			known = 4
		}
		if off+known > len(frame) {
			if off < len(frame) {
				h.extension(kind, off, len(frame)-off)
			}
			return h.opaque(frame, Malformed, 0)
		}
		size := extMinLen
		switch kind {
		case Fragment:
			if h.MoreFragments { // the outer one should have all headers
				h.fail(BadFragment)
			}
			offset := int(be16(frame, off+2) & 0xfff8)
			more := frame[off+3]&1 != 0
			if !h.MoreFragments && (offset != 0 || more) {
				h.Fragment = Fragmentation{Start: off + size, Offset: offset, Proto: frame[off]}
				if off+size <= len(frame) {
					h.Fragment.ID = binary.BigEndian.Uint32(frame[off+4:])
				}
			}
			if offset != 0 {
				h.extension(kind, off, size)
				return h.laterFragment(frame)
			}
			h.MoreFragments = h.MoreFragments || more
		case Auth:
			size += 4 * int(frame[off+1])
		default:
			size += 8 * int(frame[off+1])
		}
		h.extension(kind, off, size)
		next = frame[off]
		off += size
	}
	return h.transport(frame, off, next)
}

// extension adds an extension header.
func (h *Headers) extension(kind uint8, off, size int) {
	h.Ext[h.Exts] = Extension{Off: uint16(off), Len: uint16(size), Kind: kind}
	h.Exts++
}

func isExtension(next uint8) bool {
	switch next {
	case HopByHop, Routing, Fragment, Auth, DestOptions:
		return true
	}
	return false
}

// v4Mapped reports whether an IPv6 address is one of ::ffff:0:0/96. Those stand
// for IPv4 in programs and are never on the wire; a flow's key has IPv4 so.
func v4Mapped(addr []byte) bool {
	return binary.BigEndian.Uint64(addr) == 0 && binary.BigEndian.Uint32(addr[8:]) == 0xffff
}

// transport ends a walk with the header at off.
func (h *Headers) transport(frame []byte, off int, proto uint8) Verdict {
	limit := min(h.WireLen, len(frame))
	end := h.WireLen // of the payload
	switch flow.Proto(proto) {
	case flow.TCP:
		h.Proto, h.L4 = flow.TCP, off
		switch {
		case off+tcpLen > end:
			h.short()
		case off+tcpLen > limit:
			h.fail(Malformed)
		}
		headerLen := tcpLen // where the capture ends before it
		if off+12 < len(frame) {
			headerLen = int(frame[off+12]>>4) * 4
		}
		if headerLen < tcpLen {
			return h.opaque(frame, Malformed, BadTCP)
		}
		// Options need only lie inside the packet, as a small snap length may
		// have cut them off.
		if off+headerLen > end {
			h.short()
		}
		if off+tcpLen <= len(frame) {
			tcp := frame[off : off+tcpLen]
			h.Seq, h.Ack = binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:])
			h.Flags, h.Window = Flags(tcp[13]), binary.BigEndian.Uint16(tcp[14:])
		}
		h.Payload = off + headerLen
	case flow.UDP:
		h.Proto, h.L4 = flow.UDP, off
		switch {
		case off+udpLen > end:
			h.short()
		case off+udpLen > limit:
			h.fail(Malformed)
		}
		// The length bounds the payload, not the captured frame: bytes between
		// it and the end of the IP packet are kept. 0 stands for the rest.
		if off+6 <= len(frame) {
			if length := int(be16(frame, off+4)); length >= udpLen {
				end = min(end, off+length)
			} else if length != 0 {
				h.fail(Malformed)
			}
		}
		h.Payload = off + udpLen
	default:
		return h.opaque(frame, OtherProto, OtherProtoHeader)
	}
	h.PayloadLen = max(0, end-h.Payload)
	return h.verdict
}

// Packet is a packet of a flow.
type Packet struct {
	Headers
	Key     flow.Key
	SrcIsLo bool // the sender is Key.Lo
}

// Parse reads one frame that begins with an Ethernet header. wireLen is the
// frame's length on the wire, which a capture file's snap length may make larger
// than len(frame); a wireLen below len(frame) counts as len(frame). Packet is
// filled only when the verdict is OK. Parse may be called concurrently.
//
// The kernel program implements the same steps in the same order. Where a
// frame breaks several rules at once, the first one that the steps meet names
// the verdict: Ethernet and its tags from the outer to the inner; the lengths
// of the IP header, then its checksum (IPv4), TTL or hop limit and addresses
// (IPv6), then whether it is a later fragment; extension headers one by one;
// the transport header. What a first fragment lacks makes it a BadFragment.
func Parse(frame []byte, wireLen int) (Packet, Verdict) { return parse(frame, wireLen, false) }

// ParseCaptured is Parse for frames of capture files. A host sees what it sends
// before its network card fills the IPv4 checksum in, so that an empty one is
// believed. Linux leaves none empty: live, such a packet is no host's.
func ParseCaptured(frame []byte, wireLen int) (Packet, Verdict) { return parse(frame, wireLen, true) }

func parse(frame []byte, wireLen int, emptyOK bool) (p Packet, v Verdict) {
	if v = p.walk(frame, max(wireLen, len(frame)), emptyOK); v != OK {
		return Packet{}, v
	}
	// Both protocols begin with source and destination port.
	src, dst := p.Addresses(frame)
	p.Key, p.SrcIsLo = flow.NewKey(
		netip.AddrPortFrom(src, be16(frame, p.L4)), netip.AddrPortFrom(dst, be16(frame, p.L4+2)),
		p.Proto, p.VLAN, p.InnerVLAN)
	return p, OK
}

// Addresses returns those of the frame that was walked. It needs a whole IP header, as frames
// have whose verdict is OK, OtherProto, LaterFragment or BadFragment.
func (h *Headers) Addresses(frame []byte) (src, dst netip.Addr) {
	ip := frame[h.L3:]
	if h.IP == 4 {
		return netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	}
	return netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
}
