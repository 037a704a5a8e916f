// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"encoding/binary"
	"fmt"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
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

// fieldMasks says of each header field which recipes replace it. What is not named
// is kept by both, the payload as well.
var fieldMasks = headers.Table{
	headers.EthernetDestination: MaskBoth,
	headers.EthernetSource:      MaskBoth,
	headers.OuterTag:            MaskStrict,
	headers.InnerTag:            MaskStrict,

	headers.IPv4ID:          MaskBoth,
	headers.IPv4TTL:         MaskStrict,
	headers.IPv4Checksum:    MaskStrict,
	headers.IPv4Source:      MaskBoth,
	headers.IPv4Destination: MaskBoth,

	// The mask knows whole bytes only: the low half of the traffic class goes
	// with the flow label.
	headers.IPv6FlowLabel:   MaskBoth,
	headers.IPv6HopLimit:    MaskStrict,
	headers.IPv6Source:      MaskBoth,
	headers.IPv6Destination: MaskBoth,
	headers.IPv6RoutingData: MaskBoth,
	headers.IPv6FragmentID:  MaskBoth,
	headers.IPv6AuthValue:   MaskStrict,

	headers.TCPSource:                MaskBoth,
	headers.TCPDestination:           MaskBoth,
	headers.TCPSequence:              MaskStrict,
	headers.TCPAcknowledgement:       MaskStrict,
	headers.TCPChecksum:              MaskStrict,
	headers.TCPOptionSACKEdges:       MaskStrict,
	headers.TCPOptionTimestampsValue: MaskStrict,
	headers.TCPOptionMD5Value:        MaskStrict,
	headers.TCPOptionAOValue:         MaskStrict,
	headers.TCPOptionMultipathValue:  MaskStrict,
	headers.TCPOptionFastOpenCookie:  MaskStrict,

	headers.UDPSource:      MaskBoth,
	headers.UDPDestination: MaskBoth,
	headers.UDPChecksum:    MaskStrict,
}

// MaskMap fills dst with one value per byte of s.Data (MaskKept, MaskStrict or
// MaskBoth) and zeros the rest. Every packet is parsed by itself, at its own
// offset. A frame that does not parse, or that the capture cut, has masked
// what was recognised before the walk had to stop; its MAC addresses always
// are. MaskMap does not allocate, and tolerates any bytes and any records.
func MaskMap(s *flow.Sample, dst *[flow.CaptureBytes]uint8) {
	*dst = [flow.CaptureBytes]uint8{}
	var l layout
	l.build(s, dst)
}

// layout is where the payload of a capture lies.
type layout struct {
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

// build walks the headers of every packet of s, and fills mask (optional, all zero)
// with what MaskMap says. Records that do not fit the capture (out of order, outside of it,
// more than MaxPackets) are cut to what does.
func (l *layout) build(s *flow.Sample, mask *[flow.CaptureBytes]uint8) {
	l.count = 0
	data := s.Data[:min(len(s.Data), flow.CaptureBytes)]
	l.n = len(data)
	var h headers.Headers
	for i := range min(len(s.Packets), flow.MaxPackets) {
		start := min(int(s.Packets[i].Offset), len(data))
		end := len(data)
		if i+1 < min(len(s.Packets), flow.MaxPackets) {
			end = min(int(s.Packets[i+1].Offset), len(data))
		}
		end = max(start, end)
		frame := data[start:end]
		h.Walk(frame, int(min(s.Packets[i].WireLen, 1<<30)))
		l.packets[l.count] = span{start: start, end: end, payload: min(start+h.Payload, end), payloadLen: h.PayloadLen, udp: h.Proto == flow.UDP}
		l.count++
		if mask != nil {
			h.Paint(mask[start:end], &fieldMasks, frame)
		}
	}
}

// Seed returns the start value of a capture's replacement bytes: that of its data, or the one
// that was kept with it.
func Seed(s *flow.Sample) uint64 {
	if s.Seed != 0 {
		return s.Seed
	}
	return seed(s.Data[:min(len(s.Data), flow.CaptureBytes)])
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
	dst, mask = dst[:len(src)], mask[:len(src)] // so that the compiler need not check each byte
	every := uint64(r) * 0x0101010101010101
	for i := 0; i < len(src); i++ {
		// Most of a capture is payload, which stays: eight bytes at a time.
		for i+8 <= len(src) && binary.NativeEndian.Uint64(mask[i:])&every == 0 {
			binary.NativeEndian.PutUint64(dst[i:], binary.NativeEndian.Uint64(src[i:]))
			if i += 8; i == len(src) {
				return
			}
		}
		b := src[i]
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
// and returns its length. The replacement depends on nothing but s.Data, or s.Seed where that is set: the
// same capture is masked the same way at any time on any machine. Mask does
// not change s and does not allocate.
func (r Recipe) Mask(s *flow.Sample, dst *[flow.CaptureBytes]uint8) int {
	var l layout
	var mask [flow.CaptureBytes]uint8
	l.build(s, &mask)
	data := s.Data[:l.n]
	r.replace(dst[:l.n], data, mask[:l.n], Seed(s))
	return l.n
}
