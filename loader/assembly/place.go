// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"github.com/earlydrop/earlydrop/loader/flow/headers"
	"github.com/earlydrop/earlydrop/loader/flow/signals"
)

// Bounds of what is in place, in bytes, the same as in the kernel program.
const (
	// seqWindow is how far a segment may be ahead of or behind what its sender
	// is expected to send next.
	seqWindow = 16 << 10
	// ackWindow is how far an acknowledgement may be behind what the other side
	// is expected to send next. It may be seqWindow ahead of it.
	ackWindow = 1 << 20
	// strayBytes of payload out of place, of both sides, are no accident if there are more.
	strayBytes = 16 << 10
	// unreadBytes is by how much a connection may move on while no payload could be read.
	unreadBytes = 4096
)

// diff is the distance from b to a on the ring of sequence numbers.
func diff(a, b uint32) int { return int(int32(a - b)) }

// Side says from which side of the interface a packet came.
type Side uint8

// Sides. A packet of which the side is not known belongs to the side that its
// sender is on.
const (
	SideUnknown Side = iota
	SideInbound
	SideOutbound
)

// other returns the opposite side.
func (s Side) other() Side {
	switch s {
	case SideInbound:
		return SideOutbound
	case SideOutbound:
		return SideInbound
	}
	return SideUnknown
}

// stream follows the sequence numbers of a connection. Its arrays hold what the
// initiator sends first, then what the responder sends.
type stream struct {
	next [2]uint32 // expected next
	// first are the numbers of the first bytes, where begun is set: nobody acknowledges less.
	first [2]uint32
	begun bool
	hole  [2]hole
	side  Side // of the initiator
	// oneWay: of one direction nothing may be seen. What it sends is known from
	// the acknowledgements.
	oneWay bool
	// right: the SYN or SYN+ACK of the direction had a right checksum, or none.
	right [2]bool
	// decoy: a segment in place had a wrong one, and was left out.
	decoy bool
	// synData: the SYN had data that was not acknowledged. serverData: the responder sent
	// data before its SYN+ACK was answered, or seemed to.
	synData, serverData bool
	// stray is the payload that a side sent out of place, in bytes. outOfPlace: of both it is
	// more than strayBytes.
	stray      [2]int
	outOfPlace bool
}

// isDecoy reports whether no host accepts a segment of the direction. In files, whose
// addresses somebody may have changed, only if its first one was right.
func (s *stream) isDecoy(seg *segment, dir int) bool {
	return (seg.origin != signals.File || s.right[dir]) && seg.wrongChecksum()
}

// hole is what a sender has left out: from lo up to hi; the same: nothing.
type hole struct{ lo, hi uint32 }

// direction is the index of a packet's sender in the arrays of a stream.
func direction(p *headers.Packet, initiatorIsLo bool) int {
	if p.SrcIsLo == initiatorIsLo {
		return 0
	}
	return 1
}

// place says where in its connection a segment is. The numbers are those of the
// counters, with inPlace for a segment that is captured.
type place = Counter

const inPlace = place(headers.OK)

// take places a segment without SYN of a direction, and if it is in place, moves
// on with it. ends reports whether it ends the connection.
func (s *stream) take(p *headers.Packet, dir int, from Side) (at place, ends bool) {
	side := s.side
	if dir == 1 {
		side = side.other()
	}
	if from != SideUnknown && side != SideUnknown && from != side {
		return WrongSide, false
	}
	ack, fin, rst := p.Flags&headers.ACK != 0, p.Flags&headers.FIN != 0, p.Flags&headers.RST != 0
	acked := diff(p.Ack, s.next[1-dir])
	if !ack && !rst || ack && s.begun && diff(p.Ack, s.first[1-dir]) < 0 {
		return OutOfPlace, false // no host takes it
	}
	if ack && (acked < -ackWindow || acked > seqWindow && !s.oneWay) {
		return OutOfPlace, false
	}
	d := diff(p.Seq, s.next[dir])
	if rst && d != 0 && !(ack && d > 0 && d <= seqWindow) {
		return OutOfPlace, false
	}
	if p.PayloadLen == 0 {
		if d < -seqWindow || d > seqWindow {
			return OutOfPlace, false
		}
		ends = rst || fin && d == 0
	} else {
		at, ends = s.payload(p.Seq, p.PayloadLen, dir)
		if at != inPlace {
			return at, false
		}
		ends = rst || fin && ends
	}
	if ack && s.oneWay && acked > 0 {
		s.next[1-dir] = p.Ack
	}
	return inPlace, ends
}

// unread reports whether a header-only segment that is in place shows that payload was sent
// which was not read. What a side sends that is not seen is not read, either.
func (s *stream) unread(p *headers.Packet, dir int) bool {
	return diff(p.Seq, s.next[dir]) > unreadBytes ||
		p.Flags&headers.ACK != 0 && !s.oneWay && diff(p.Ack, s.next[1-dir]) > unreadBytes
}

// noteStray notes payload out of place. Who forges it sends from one side alone; where sides
// are not known there is no telling.
func (s *stream) noteStray(p *headers.Packet, dir int, from Side) {
	if from == SideUnknown || s.side == SideUnknown {
		return
	}
	s.stray[dir] += p.PayloadLen
	s.outOfPlace = s.outOfPlace || s.stray[0] > strayBytes && s.stray[1] > strayBytes
}

// payload places n bytes. A FIN behind them is in place as well where mayEnd is
// true.
func (s *stream) payload(seq uint32, n, dir int) (at place, mayEnd bool) {
	next, hole := &s.next[dir], &s.hole[dir]
	end := seq + uint32(n)
	d := diff(seq, *next)
	switch {
	case d > seqWindow:
		return OutOfPlace, false
	case d > 0:
		if hole.lo == hole.hi {
			hole.lo, hole.hi = *next, seq
		}
	case d == 0:
		mayEnd = true
	case hole.lo != hole.hi && diff(seq, hole.lo) >= 0 && diff(seq, hole.hi) < 0:
		// A late filler, captured once.
		if seq != hole.lo {
			hole.hi = seq
		} else if hole.lo = end; diff(hole.hi, hole.lo) <= 0 {
			hole.lo = hole.hi
		}
		mayEnd = true
	case d < -seqWindow:
		return OutOfPlace, false
	case diff(end, *next) > 0:
		mayEnd = true // new bytes behind old ones
	default:
		return Behind, false
	}
	if diff(end, *next) > 0 {
		*next = end
	}
	return inPlace, mayEnd
}
