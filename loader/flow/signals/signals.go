// SPDX-License-Identifier: Apache-2.0

// Package signals finds what a flow's first packets show that ordinary traffic rarely
// does: what clients do to their own bytes so that whoever reads along mistakes them for
// something else.
//
// It also makes of a capture what is judged: what came late, by somebody's intent or the
// network's, goes to its place.
//
// It looks at what was captured, and nothing is captured that is out of place in its
// connection. So who does not know a connection's numbers can't put a signal on it.
// For UDP, where nothing proves a sender, anybody who knows the ports can.
package signals

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

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

	// A beginning is slow when so many bytes of payload, of both sides, take longer.
	SlowBytes = 64
	SlowTime  = 2 * time.Second

	// ScantBytes of captured payload, both sides together, are not scant any more.
	ScantBytes = 64
)

// Origin says what is known of the frames of a sample.
type Origin uint8

// A host that captures what it sends sees frames whose checksum the network card is yet
// to fill in. What is there until then is the sum of the pseudo-header (Linux, live)
// or, in files of other systems, nothing. Off a cable neither is right.
const (
	Live Origin = iota
	File
	Cable
)

// walked are the headers of a sample's packets.
type walked [flow.MaxPackets]struct {
	headers.Headers
	// ok: the frame is a packet of a flow. The last one may end within its headers: what is
	// behind its end reads as 0.
	ok bool
}

// Note adds to s.Signals what the packets of s show, and sets s.MissingStart, s.Scant and s.Full. Of
// UDP it takes the decoys out of s: datagrams with a wrong checksum, which no host accepts. (Of TCP
// the kernel programs and the assembly have left them out, and say so in s.Signals.) Of TCP
// it takes out segments that no host accepts for their options. It
// looks only at frames that are in the sample whole. What each side of a TCP connection
// sent is put in order. Note does not allocate.
func Note(s *flow.Sample, from Origin) {
	var all walked
	for i, p := range s.Packets {
		all[i].ok = all[i].Walk(s.Frame(i), int(p.WireLen)) == headers.OK
	}
	if decoys := findDecoys(s, &all, from) | findRefused(s, &all); decoys != 0 {
		s.Signals |= flow.SignalDecoy
		takeOut(s, &all, decoys)
	}
	var sides [2]side
	captured, payload, first := 0, 0, time.Duration(0)
	for i, p := range s.Packets {
		h := &all[i]
		if !h.ok {
			// An earlier part of the capture ended within its headers.
			sides[which(p)].lost = sides[which(p)].lost || i+1 < len(s.Packets) && len(s.Frame(i)) < int(p.WireLen)
			continue
		}
		captured += max(0, min(len(s.Frame(i)), h.WireLen)-h.Payload)
		mine, other := &sides[which(p)], &sides[1-which(p)]
		s.Signals |= mine.note(&h.Headers)
		if h.Proto == flow.TCP && h.Flags&headers.ACK != 0 {
			other.acknowledged(h.Ack, h.Flags&headers.SYN != 0)
		}
		if h.Proto != flow.TCP || h.PayloadLen == 0 || payload >= SlowBytes {
			continue
		}
		if payload == 0 {
			first = p.Time
		}
		if payload += h.PayloadLen; payload >= SlowBytes && p.Time-first > SlowTime {
			s.Signals |= flow.SignalSlow
		}
	}
	s.Scant, s.Full = captured < ScantBytes, s.Complete()
	for i := range sides {
		gap, atStart := sides[i].gaps()
		gap = gap || sides[i].unseen() && !s.OneWay && s.Signals&(flow.SignalFragmented|flow.SignalUnreadable) == 0
		// Of urgent data, what programs do not get may have been left out.
		if gap && s.Signals&flow.SignalUrgent == 0 {
			s.Signals |= flow.SignalGap
		}
		s.MissingStart = s.MissingStart || atStart
	}
	overlaps(s, &all, func(captured, again []byte) {
		if !bytes.Equal(captured, again) {
			s.Signals |= flow.SignalOverlap
		}
	})
	inOrder(s, &all)
}

// Variant fills v with s, but for the range that came again with different bytes: these are
// in v. It returns false where there is none. s has been noted.
func Variant(s, v *flow.Sample) bool {
	if s.Signals&flow.SignalOverlap == 0 || s.Variant {
		return false
	}
	v.CopyFrom(s)
	v.Variant = true
	var all walked
	for i, p := range v.Packets {
		all[i].ok = all[i].Walk(v.Frame(i), int(p.WireLen)) == headers.OK
	}
	overlaps(v, &all, func(captured, again []byte) { copy(captured, again) })
	cutFront(v, &all)
	return true
}

// cutFront takes away what is in front of a side's first byte: a host does.
func cutFront(s *flow.Sample, all *walked) {
	var begun [2]bool
	var first [2]uint32
	end := 0 // of what stays
	for i := range s.Packets {
		p, h, frame := &s.Packets[i], &all[i], s.Frame(i)
		side := which(*p)
		if h.ok && h.Proto == flow.TCP {
			cut := int(int32(first[side] - h.Seq))
			switch {
			case h.Flags&headers.SYN != 0:
				begun[side], first[side] = true, h.Seq+1
			case begun[side] && cut > 0 && cut <= h.PayloadLen && h.L3 < h.Payload && h.Payload <= len(frame):
				p.WireLen = uint32(h.WireLen - cut)
				binary.BigEndian.PutUint32(frame[h.L4+4:], first[side])
				h.SetLength(frame, int(p.WireLen))
				rest := frame[min(len(frame), h.Payload+cut):]
				frame = frame[:h.Payload+copy(frame[h.Payload:], rest)]
			}
		}
		// It never moves towards the end, so that the next frame is still there.
		p.Offset = uint16(end)
		end += copy(s.Data[end:], frame)
	}
	s.Data = s.Data[:end]
}

// overlaps calls f for what is in the repeated range and in a frame of s.
func overlaps(s *flow.Sample, all *walked, f func(captured, again []byte)) {
	r := &s.Repeat
	if len(r.Data) == 0 {
		return
	}
	for i, p := range s.Packets {
		h := &all[i]
		frame := s.Frame(i)
		end := min(len(frame), h.WireLen)
		if !h.ok || h.Proto != flow.TCP || h.PayloadLen == 0 || p.FromInitiator != r.FromInitiator || h.Payload >= end {
			continue
		}
		seq := h.Seq
		if h.Flags&headers.SYN != 0 {
			seq++
		}
		captured, again := frame[h.Payload:end], r.Data
		switch skip := int(int32(r.Seq - seq)); {
		case skip >= len(captured) || -skip >= len(again):
			continue
		case skip > 0:
			captured = captured[skip:]
		default:
			again = again[-skip:]
		}
		n := min(len(captured), len(again))
		f(captured[:n], again[:n])
	}
}

// takeOut takes the packets out of s and of all that have a bit in decoys.
func takeOut(s *flow.Sample, all *walked, decoys uint32) {
	packets, bytes := 0, 0 // that stay
	for i, p := range s.Packets {
		if decoys&(1<<i) != 0 {
			continue
		}
		frame := s.Frame(i)
		p.Offset = uint16(bytes)
		s.Packets[packets], all[packets] = p, all[i]
		packets++
		bytes += copy(s.Data[bytes:], frame)
	}
	s.Packets, s.Data = s.Packets[:packets], s.Data[:bytes]
}

// which is 0 for the initiator, 1 for the responder.
func which(p flow.Packet) int {
	if p.FromInitiator {
		return 0
	}
	return 1
}

// findDecoys returns a bit for each decoy of a UDP flow. Of an endpoint that sent nothing
// with a right checksum none can be told: somebody changed the addresses in a file, or
// the device has its own way to leave checksums to the network card.
func findDecoys(s *flow.Sample, all *walked, from Origin) (decoys uint32) {
	var wrong [2]uint32
	var right [2]bool
	for i, p := range s.Packets {
		h := &all[i].Headers
		switch {
		case h.Proto != flow.UDP:
		case !WrongChecksum(h, s.Frame(i), originOf(p, from)):
			right[which(p)] = true
		default:
			wrong[which(p)] |= 1 << i
		}
	}
	for side := range wrong {
		if right[side] {
			decoys |= wrong[side]
		}
	}
	return decoys
}

// originOf is what is known of a packet of a sample.
func originOf(p flow.Packet, from Origin) Origin {
	if p.OffCable {
		return Cable
	}
	return from
}

// side is what one endpoint has sent so far.
type side struct {
	seen   bool
	ttl    uint8
	pieces int  // tiny ones, one behind the other from the first
	bigger bool // one was not tiny
	reset  bool // it has sent a RST
	fin    bool // ... a FIN, which is in front of
	end    uint32
	// Ranges of sequence numbers, relative to base, which is the first byte's where a SYN
	// was seen.
	base   uint32
	syn    bool
	ranges [flow.MaxPackets][2]int32
	n      int
	lost   bool // a packet was seen whose numbers are not known
	// What the other side has acknowledged, relative to base: by any packet, and of the data
	// in a SYN.
	acked, ackedSYN int32
}

// acknowledged notes that the other side has received all in front of ack.
func (sd *side) acknowledged(ack uint32, ofSYN bool) {
	if !sd.syn {
		return
	}
	sd.acked = max(sd.acked, int32(ack-sd.base))
	if ofSYN {
		sd.ackedSYN = max(sd.ackedSYN, int32(ack-sd.base))
	}
}

// unseen reports whether more was acknowledged than was seen: packets are missing, or a host
// takes none of those that claim it. A packet whose numbers are not known may be what was.
func (sd *side) unseen() bool {
	end := sd.highest()
	if sd.fin {
		end = max(end, int32(sd.end-sd.base)) + 1
	}
	return sd.syn && !sd.lost && sd.acked > end
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
		if sd.reset {
			found |= flow.SignalResetThenData
		}
		if sd.fin && int32(seq-sd.end) >= 0 {
			found |= flow.SignalFINThenData
		}
		first := int32(seq - sd.base)
		if sd.syn && first < 0 { // a host cuts it off
			found |= flow.SignalOverlap
		}
		if h.Flags&headers.URG != 0 {
			found |= flow.SignalUrgent
		}
		if sd.lost {
			// What is missing in front of this one is that packet's.
			sd.lost = false
			sd.ranges[sd.n] = [2]int32{sd.highest(), first}
			sd.n++
		}
		sd.ranges[sd.n] = [2]int32{first, first + int32(length)}
		sd.n++
	}
	sd.reset = sd.reset || h.Flags&headers.RST != 0
	if h.Flags&headers.FIN != 0 && !sd.fin {
		sd.fin, sd.end = true, seq+uint32(length)
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

// highest returns where the ranges so far end.
func (sd *side) highest() (end int32) {
	for _, r := range sd.ranges[:sd.n] {
		end = max(end, r[1])
	}
	return end
}

// gaps reports whether bytes are missing between those that are there, or in front of
// them, where a SYN says what comes first.
func (sd *side) gaps() (gap, atStart bool) {
	ranges := sd.ranges[:sd.n]
	if sd.ackedSYN > 0 && !slices.ContainsFunc(ranges, func(r [2]int32) bool { return r[0] <= 0 && r[1] >= sd.ackedSYN }) {
		return true, true // data in the SYN was too long to be kept
	}
	slices.SortFunc(ranges, func(a, b [2]int32) int { return int(a[0]) - int(b[0]) })
	covered := int32(0)
	if len(ranges) > 0 && !sd.syn {
		covered = ranges[0][0]
	}
	for i, r := range ranges {
		if r[0] > covered {
			return true, i == 0
		}
		covered = max(covered, r[1])
	}
	return false, false
}

// Decoys are kept as bits.
const _ = uint(32 - flow.MaxPackets)

// ChecksumBytes is how long a segment or datagram may be whose checksum is looked at.
const ChecksumBytes = 2048

// WrongChecksum reports whether a frame whose headers are h has a wrong TCP or UDP
// checksum, so that no host accepts it. It is false where that can't be told: of a frame that
// is not there whole, as its IP header has it, or longer than ChecksumBytes, of a first
// fragment, and behind IPv6 extension headers, which may name another destination. The kernel programs have the
// same rules for TCP (bpf/checksum.h).
func WrongChecksum(h *headers.Headers, frame []byte, from Origin) bool {
	if h.Proto != flow.TCP && h.Proto != flow.UDP || len(frame) < h.WireLen || h.WireLen < h.L4+8 ||
		h.WireLen > h.L4+ChecksumBytes || h.MoreFragments || h.Exts > 0 {
		return false
	}
	claimed := h.L3 + int(binary.BigEndian.Uint16(frame[h.L3+2:]))
	if h.IP == 6 {
		claimed = h.L3 + 40 + int(binary.BigEndian.Uint16(frame[h.L3+4:]))
	}
	if claimed != h.WireLen {
		return false
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
	return from == Cable || stored != fold(pseudo+uint32(len(segment))) && (from == Live || stored != fold(pseudo))
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
