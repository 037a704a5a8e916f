// SPDX-License-Identifier: Apache-2.0

// Package signals finds what a flow's first packets show that ordinary traffic rarely
// does: what clients do to their own bytes so that who reads along takes them for
// something else.
//
// It looks at what was captured, and nothing is captured that is out of place in its
// connection. So who does not know a connection's numbers can't put a signal on it.
// For UDP, where nothing proves a sender, anybody who knows the ports can.
package signals

import (
	"encoding/binary"
	"slices"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

const (
	// TinyBytes and TinySegments say when a side begins in tiny pieces: with so many
	// segments of payload, one behind the other, of fewer bytes each.
	TinyBytes    = 16
	TinySegments = 3

	// TTLSlack is how far times to live of one endpoint may be apart. Routes change.
	TTLSlack = 2
)

// Origin says what is known of the frames of a sample.
type Origin bool

// A host that captures what it sends sees frames whose checksum the network card is yet
// to fill in. What stands there until then is the sum of the pseudo-header (Linux, live)
// or, in files of other systems, nothing.
const (
	Live Origin = false
	File Origin = true
)

// Note sets s.Signals and takes the decoys out of s: frames with a wrong checksum, which
// no host took for a part of the connection. It looks only at frames that are in the
// sample whole. It does not allocate.
func Note(s *flow.Sample, from Origin) {
	var sides [2]side
	s.Signals = 0
	decoys := findDecoys(s, from)
	if decoys != 0 {
		s.Signals |= flow.SignalDecoy
	}
	packets, bytes := 0, 0 // that stay
	for i := range s.Packets {
		if decoys&(1<<i) != 0 {
			continue
		}
		frame, p := s.Frame(i), s.Packets[i]
		var h headers.Headers
		h.Walk(frame, int(p.WireLen))
		s.Signals |= sides[which(p)].note(&h)
		p.Offset = uint16(bytes)
		s.Packets[packets] = p
		packets++
		bytes += copy(s.Data[bytes:], frame)
	}
	s.Packets, s.Data = s.Packets[:packets], s.Data[:bytes]
	for i := range sides {
		if sides[i].hasGap() {
			s.Signals |= flow.SignalGap
		}
	}
}

// which is 0 for the initiator, 1 for the responder.
func which(p flow.Packet) int {
	if p.FromInitiator {
		return 0
	}
	return 1
}

// findDecoys returns a bit for each decoy. Of an endpoint whose SYN has a wrong checksum,
// or which sent nothing with a right one, none can be told: somebody changed the
// addresses in a file, or the device has its own way to leave checksums to the network
// card.
func findDecoys(s *flow.Sample, from Origin) (decoys uint32) {
	var wrong [2]uint32
	var right, void [2]bool
	for i, p := range s.Packets {
		frame := s.Frame(i)
		var h headers.Headers
		h.Walk(frame, int(p.WireLen))
		switch {
		case h.Proto == 0:
		case !isDecoy(&h, frame, from):
			right[which(p)] = true
		default:
			wrong[which(p)] |= 1 << i
			void[which(p)] = void[which(p)] || h.Proto == flow.TCP && h.Flags&headers.SYN != 0
		}
	}
	for side := range wrong {
		if right[side] && !void[side] {
			decoys |= wrong[side]
		}
	}
	return decoys
}

// side is what one endpoint has sent so far.
type side struct {
	seen   bool
	ttl    uint8
	pieces int  // tiny ones, one behind the other from the first
	bigger bool // one was not tiny
	// Ranges of sequence numbers, relative to base, which is the first byte's where a SYN
	// was seen.
	base   uint32
	syn    bool
	ranges [flow.MaxPackets][2]int32
	n      int
}

func (sd *side) note(h *headers.Headers) (found flow.Signals) {
	if h.IP == 0 {
		return 0
	}
	if sd.seen && max(h.TTL, sd.ttl)-min(h.TTL, sd.ttl) > TTLSlack {
		found |= flow.SignalTTL
	}
	if !sd.seen {
		sd.seen, sd.ttl = true, h.TTL
		sd.base = h.Seq
	}
	if h.MoreFragments {
		found |= flow.SignalFragmented
	}
	if h.Proto != flow.TCP {
		return found
	}
	seq, length := h.Seq, h.PayloadLen
	if h.Flags&headers.SYN != 0 {
		seq++
		if !sd.syn {
			sd.syn, sd.base = true, seq
		}
	}
	if length > 0 {
		first := int32(seq - sd.base)
		sd.ranges[sd.n] = [2]int32{first, first + int32(length)}
		sd.n++
	}
	switch {
	case length == 0 || sd.bigger:
	case length < TinyBytes:
		sd.pieces++
		if sd.pieces == TinySegments {
			found |= flow.SignalTiny
		}
	default:
		sd.bigger = true
	}
	return found
}

// hasGap reports whether bytes are missing between those that are there.
func (sd *side) hasGap() bool {
	ranges := sd.ranges[:sd.n]
	slices.SortFunc(ranges, func(a, b [2]int32) int { return int(a[0]) - int(b[0]) })
	covered := int32(0)
	if len(ranges) > 0 && !sd.syn {
		covered = ranges[0][0]
	}
	for _, r := range ranges {
		if r[0] > covered {
			return true
		}
		covered = max(covered, r[1])
	}
	return false
}

// Decoys are kept as bits.
const _ = uint(32 - flow.MaxPackets)

// isDecoy reports whether a frame that is there whole has a wrong TCP or UDP checksum.
func isDecoy(h *headers.Headers, frame []byte, from Origin) bool {
	if h.Proto != flow.TCP && h.Proto != flow.UDP || len(frame) < h.WireLen || h.WireLen < h.L4+8 || h.MoreFragments {
		return false
	}
	for _, e := range h.Ext[:h.Exts] {
		if e.Kind == headers.Routing {
			return false // the pseudo-header has the last address of it
		}
	}
	segment := frame[h.L4:h.WireLen]
	at := 16
	if h.Proto == flow.UDP {
		at = 6
		if n := int(binary.BigEndian.Uint16(segment[4:])); n >= 8 && n < len(segment) {
			segment = segment[:n]
		}
	}
	if len(segment) < at+2 {
		return false
	}
	stored := binary.BigEndian.Uint16(segment[at:])
	if stored == 0 && (h.Proto == flow.UDP || from == File) {
		return false // none
	}
	pseudo := uint32(h.Proto)
	if h.IP == 4 {
		pseudo += sum(frame[h.L3+12 : h.L3+20])
	} else {
		pseudo += sum(frame[h.L3+8 : h.L3+40])
	}
	if fold(pseudo+uint32(len(segment))+sum(segment)) == 0xffff {
		return false
	}
	// The network card is yet to do the rest; of segments that it is to divide as well,
	// the length.
	return stored != fold(pseudo+uint32(len(segment))) && (from == Live || stored != fold(pseudo))
}

func sum(b []byte) (s uint32) {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
