// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"encoding/binary"
	"fmt"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Recipe says which bytes of a capture are replaced by random ones before the
// capture is classified. The numbers are bits of a mask map's values.
type Recipe uint8

const (
	// RecipePaper replaces what the paper's Table 1 names, and what stands for
	// it outside of IPv4 and TCP: MAC addresses, the IP identification (IPv4;
	// of an IPv6 fragment header), the IPv6 flow label (it is drawn per
	// connection, as an identification is), IP addresses (those inside an IPv6
	// routing header too) and ports (TCP and UDP).
	RecipePaper Recipe = 1

	// RecipeStrict replaces all that RecipePaper does, and whatever else names
	// one connection, one clock or one vantage point: VLAN tag control
	// information (the tag's EtherType stays), TTL and hop limit, TCP sequence
	// and acknowledgement numbers, the values of TCP timestamps, SACK edges,
	// TCP signatures and Fast Open cookies, AH's index, counter and check
	// value, and the IPv4, TCP and UDP checksums.
	RecipeStrict Recipe = 2
)

// Values of a mask map: the bits are the recipes that replace the byte.
const (
	MaskKept   = 0                                 // kept by both recipes
	MaskStrict = uint8(RecipeStrict)               // replaced by RecipeStrict only
	MaskBoth   = uint8(RecipePaper | RecipeStrict) // replaced by both
)

// recipes lists the names in the order in which messages give them.
var recipes = []struct {
	recipe Recipe
	name   string
}{{RecipePaper, "paper"}, {RecipeStrict, "strict"}}

// String returns the name under which a model's metadata knows r.
func (r Recipe) String() string {
	for _, k := range recipes {
		if k.recipe == r {
			return k.name
		}
	}
	return fmt.Sprintf("recipe-%d", uint8(r))
}

// ParseRecipe returns the recipe of that name; the error names those known.
func ParseRecipe(name string) (Recipe, error) {
	for _, k := range recipes {
		if k.name == name {
			return k.recipe, nil
		}
	}
	return 0, fmt.Errorf("unknown mask recipe %q (known: paper, strict)", name)
}

// MaskMap fills dst with one value per byte of s.Data (MaskKept, MaskStrict or
// MaskBoth) and zeros the rest. Every packet is parsed by itself, at its own
// offset. A frame that does not parse, or that the capture cut, has masked
// what was recognised before the parser had to stop; its MAC addresses always
// are. MaskMap does not allocate, and tolerates any bytes and any records.
func MaskMap(s *flow.Sample, dst *[flow.CaptureBytes]uint8) {
	var l layout
	l.build(s)
	*dst = l.mask
}

// layout is what masking and the derived channels need to know of a capture.
type layout struct {
	mask [flow.CaptureBytes]uint8
	// n is the number of bytes captured.
	n int
	// packets holds, for each record, where it lies and where its payload is.
	packets [flow.MaxPackets]span
	count   int
}

// span is one packet in the capture.
type span struct {
	start, end int // bytes [start, end) of the capture
	payload    int // the first byte of L4 payload; end if there is none
	payloadLen int // length of the L4 payload on the wire, in bytes
	udp        bool
}

// captured returns how many bytes of the L4 payload were captured. What pads a
// short frame is not payload.
func (p span) captured() int { return min(p.end-p.payload, p.payloadLen) }

// build parses every packet of s. Records that do not fit the capture (out of
// order, outside of it, more than MaxPackets) are cut to what does.
func (l *layout) build(s *flow.Sample) {
	l.mask = [flow.CaptureBytes]uint8{}
	l.count = 0
	data := s.Data[:min(len(s.Data), flow.CaptureBytes)]
	l.n = len(data)
	for i := range min(len(s.Packets), flow.MaxPackets) {
		start := min(int(s.Packets[i].Offset), len(data))
		end := len(data)
		if i+1 < min(len(s.Packets), flow.MaxPackets) {
			end = min(int(s.Packets[i+1].Offset), len(data))
		}
		p := span{start: start, end: max(start, end)}
		wire := int(min(s.Packets[i].WireLen, 1<<30))
		f := frame{data: data[start:p.end], mask: l.mask[start:p.end]}
		header, end := f.walk(wire)
		p.payload = min(start+header, p.end)
		p.payloadLen = max(0, end-header)
		p.udp = f.udp
		l.packets[l.count] = p
		l.count++
	}
}

// frame walks the headers of one frame and marks its mask on the way. The two
// slices have the same length.
type frame struct {
	data, mask []uint8
	udp        bool // set by walk
}

// mark raises n bytes from off, as many as were captured, to value.
func (f *frame) mark(off, n int, value uint8) {
	for i := max(off, 0); i < min(off+n, len(f.mask)); i++ {
		f.mask[i] |= value
	}
}

// has reports whether n bytes from off were captured.
func (f *frame) has(off, n int) bool { return off >= 0 && off+n <= len(f.data) }

func (f *frame) be16(off int) int { return int(binary.BigEndian.Uint16(f.data[off:])) }

// Header sizes and EtherTypes.
const (
	ethernetLen = 14
	vlanLen     = 4
	maxVLANs    = 2
	ipv4Len     = 20
	ipv6Len     = 40
	tcpLen      = 20
	udpLen      = 8
	// maxExtensions bounds the IPv6 extension headers walked, as the data
	// path does.
	maxExtensions = 6

	etherIPv4  = 0x0800
	etherIPv6  = 0x86dd
	etherVLAN  = 0x8100
	etherQinQ  = 0x88a8
	etherQinQ1 = 0x9100
)

// Protocol numbers that the walk knows.
const (
	protoHopByHop    = 0
	protoTCP         = 6
	protoUDP         = 17
	protoRouting     = 43
	protoFragment    = 44
	protoAH          = 51
	protoDestOptions = 60
)

// walk marks the frame, which is wire bytes long on the wire, and returns
// where its L4 payload begins and where it ends there: at the end of the
// packet, or earlier where an IP or UDP length says so, for short frames are
// padded. A frame without a known payload returns equal offsets.
func (f *frame) walk(wire int) (header, end int) {
	f.mark(0, 12, MaskBoth)
	if !f.has(12, 2) {
		return f.opaque()
	}
	ether, off := f.be16(12), ethernetLen
	for range maxVLANs {
		if ether != etherVLAN && ether != etherQinQ && ether != etherQinQ1 {
			break
		}
		f.mark(off, 2, MaskStrict)
		if !f.has(off+2, 2) {
			return f.opaque()
		}
		ether = f.be16(off + 2)
		off += vlanLen
	}
	switch ether {
	case etherIPv4:
		return f.walkIPv4(off, wire)
	case etherIPv6:
		return f.walkIPv6(off, wire)
	}
	return f.opaque()
}

func (f *frame) walkIPv4(ip, wire int) (header, end int) {
	if !f.has(ip, 1) {
		return f.opaque()
	}
	ihl := int(f.data[ip]&0x0f) * 4
	if f.data[ip]>>4 != 4 || ihl < ipv4Len {
		return f.opaque()
	}
	f.mark(ip+4, 2, MaskBoth)    // identification
	f.mark(ip+8, 1, MaskStrict)  // TTL
	f.mark(ip+10, 2, MaskStrict) // header checksum
	f.mark(ip+12, 8, MaskBoth)   // addresses
	if !f.has(ip, 10) {
		return f.opaque()
	}
	if f.be16(ip+6)&0x1fff != 0 {
		// A later fragment: what follows is the middle of a packet.
		return f.opaque()
	}
	// The length is 0 in a super-packet that is larger than it can say.
	if total := f.be16(ip + 2); total >= ihl {
		wire = min(wire, ip+total)
	}
	return f.walkTransport(ip+ihl, wire, int(f.data[ip+9]))
}

func (f *frame) walkIPv6(ip, wire int) (header, end int) {
	if !f.has(ip, 1) || f.data[ip]>>4 != 6 {
		return f.opaque()
	}
	// The flow label begins in the middle of byte 1; the low half of the
	// traffic class is replaced with it, for the mask knows whole bytes.
	f.mark(ip+1, 3, MaskBoth)
	f.mark(ip+7, 1, MaskStrict) // hop limit
	f.mark(ip+8, 32, MaskBoth)  // addresses
	if !f.has(ip, 7) {
		return f.opaque()
	}
	if payload := f.be16(ip + 4); payload > 0 {
		wire = min(wire, ip+ipv6Len+payload)
	}
	next, off := int(f.data[ip+6]), ip+ipv6Len
	for range maxExtensions {
		switch next {
		case protoHopByHop, protoDestOptions:
			if !f.has(off, 2) {
				return f.opaque()
			}
			next, off = int(f.data[off]), off+8+8*int(f.data[off+1])
		case protoRouting:
			if !f.has(off, 2) {
				return f.opaque()
			}
			size := 8 + 8*int(f.data[off+1])
			f.mark(off+8, size-8, MaskBoth) // addresses
			next, off = int(f.data[off]), off+size
		case protoAH:
			if !f.has(off, 2) {
				return f.opaque()
			}
			size := 8 + 4*int(f.data[off+1])
			// Parameters index, sequence number, check value.
			f.mark(off+4, size-4, MaskStrict)
			next, off = int(f.data[off]), off+size
		case protoFragment:
			f.mark(off+4, 4, MaskBoth) // identification
			if !f.has(off, 4) || f.be16(off+2)&0xfff8 != 0 {
				return f.opaque()
			}
			next, off = int(f.data[off]), off+8
		default:
			return f.walkTransport(off, wire, next)
		}
	}
	return f.walkTransport(off, wire, next)
}

// walkTransport marks the L4 header at off of a packet that ends at wire.
func (f *frame) walkTransport(off, wire, proto int) (header, end int) {
	switch proto {
	case protoTCP:
		f.mark(off, 4, MaskBoth)      // ports
		f.mark(off+4, 8, MaskStrict)  // sequence and acknowledgement number
		f.mark(off+16, 2, MaskStrict) // checksum
		size := tcpLen                // where the capture ends before its length
		if f.has(off+12, 1) {
			size = int(f.data[off+12]>>4) * 4
		}
		if size < tcpLen {
			return f.opaque()
		}
		f.walkTCPOptions(off+tcpLen, off+size)
		return off + size, wire
	case protoUDP:
		f.udp = true
		f.mark(off, 4, MaskBoth)     // ports
		f.mark(off+6, 2, MaskStrict) // checksum
		if f.has(off+4, 2) {
			if length := f.be16(off + 4); length >= udpLen {
				wire = min(wire, off+length)
			}
		}
		return off + udpLen, wire
	}
	return f.opaque()
}

// opaque is the answer of walk for a frame whose payload is unknown.
func (f *frame) opaque() (header, end int) { return len(f.data), len(f.data) }

// TCP options that carry values of one connection.
const (
	optionEnd         = 0
	optionNop         = 1
	optionSACK        = 5
	optionTimestamps  = 8
	optionMD5         = 19
	optionAO          = 29
	optionMultipath   = 30
	optionFastOpen    = 34
	timestampsLen     = 10
	multipathFixedLen = 3 // kind, length, subtype
)

// walkTCPOptions marks the options between off and end. It stops at the end
// of the list, at an option that is cut or at a length that can't be.
func (f *frame) walkTCPOptions(off, end int) {
	end = min(end, len(f.data))
	for off < end {
		kind := f.data[off]
		if kind == optionEnd {
			return
		}
		if kind == optionNop {
			off++
			continue
		}
		if off+1 >= end {
			return
		}
		size := int(f.data[off+1])
		if size < 2 {
			return
		}
		value := min(size, end-off)
		switch kind {
		case optionTimestamps:
			if size == timestampsLen {
				f.mark(off+2, value-2, MaskStrict)
			}
		case optionSACK, optionMD5, optionAO, optionFastOpen:
			f.mark(off+2, value-2, MaskStrict)
		case optionMultipath:
			f.mark(off+multipathFixedLen, value-multipathFixedLen, MaskStrict)
		}
		off += size
	}
}

// seed condenses a capture into the start value of its replacement bytes, so
// that the same capture is always masked by the same bytes, live and in
// replay. It is not meant to withstand someone who looks for collisions.
func seed(data []byte) uint64 {
	h := uint64(len(data)) ^ 0x243f6a8885a308d3
	for len(data) >= 8 {
		h = mix(h ^ binary.LittleEndian.Uint64(data))
		data = data[8:]
	}
	var tail [8]byte
	copy(tail[:], data)
	return mix(h ^ binary.LittleEndian.Uint64(tail[:]))
}

// mix is the finishing step of SplitMix64, a bijection that spreads every bit
// of its input over all of its output.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// replace copies src to dst, with every byte whose mask has the recipe's bit
// replaced by the next byte of a SplitMix64 sequence that starts at state.
func (r Recipe) replace(dst, src, mask []uint8, state uint64) {
	var word uint64
	left := 0
	for i, b := range src {
		if mask[i]&uint8(r) != 0 {
			if left == 0 {
				state += 0x9e3779b97f4a7c15
				word, left = mix(state), 8
			}
			b = uint8(word)
			word >>= 8
			left--
		}
		dst[i] = b
	}
}

// Mask writes the capture of s to dst with the bytes that r names replaced,
// and returns its length. The replacement depends on nothing but s.Data: the
// same capture is masked the same way at any time on any machine. Mask does
// not change s and does not allocate.
func (r Recipe) Mask(s *flow.Sample, dst *[flow.CaptureBytes]uint8) int {
	var l layout
	l.build(s)
	data := s.Data[:l.n]
	r.replace(dst[:l.n], data, l.mask[:l.n], seed(data))
	return l.n
}
