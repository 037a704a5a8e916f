// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"encoding/binary"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

// A datagram proves nothing about its sender, so the capture of a UDP flow waits until
// both sides have spoken. What nobody answers within waitingAge is discarded, and what
// comes later is not the flow's beginning.
//
// The kernel program follows the same rules, datagram by datagram.

const waitingAge = 30 * time.Second

// maxWaiting bounds the captures that wait, as that of the live data path. The one that
// was added to least lately gives way.
const maxWaiting = 1 << 14

// spoken says who has spoken, and from which side.
type spoken struct {
	key    flow.Key
	fromLo bool
	side   Side
}

// waiting is the capture of a flow of which one side has spoken.
type waiting struct {
	spoken
	sample         *flow.Sample // nil: its time was over, and what is left says that the flow was seen
	start, last    time.Time
	packets, bytes uint64
	order          uint64
	resumed        bool // the flow may have been there before
	fragmented     bool // first fragments were captured
	lack           lack // of the packets captured so far

	prev, next *waiting
}

// waits are the waiting captures, in a ring in order of their latest datagram.
type waits struct {
	of   map[spoken]*waiting
	ring waiting // next is the one that was added to least lately
}

func (w *waits) init() {
	w.of = make(map[spoken]*waiting)
	w.ring.prev, w.ring.next = &w.ring, &w.ring
}

func (w *waits) touch(e *waiting) {
	if e.prev != nil {
		e.prev.next, e.next.prev = e.next, e.prev
	}
	last := w.ring.prev
	e.prev, e.next = last, &w.ring
	last.next, w.ring.prev = e, e
}

func (w *waits) drop(e *waiting) {
	e.prev.next, e.next.prev = e.next, e.prev
	delete(w.of, e.spoken)
}

// udp takes a datagram. f is the flow that has its key, or nil.
func (a *Assembler) udp(f *Flow, s *segment) {
	if f != nil && f.stage != collecting {
		if !f.asleep && s.ts.Sub(f.Last) <= a.opts.UDPIdle {
			f.count(&s.Packet, s.ts)
			a.settle(f)
			return
		}
		// Silent for long, which is no beginning. Nor does it end the flow that one
		// side speaks again.
		f.asleep = true
		a.settle(f)
	}
	// Routing sent it back, and nobody on the other side has sent it.
	if a.handshakes.sentBack(s, inbound{key: s.Key, fromLo: s.SrcIsLo, seq: uint32(s.PayloadLen), ack: uint32(s.checksum())}) {
		a.counters[Reflected]++
		return
	}
	if f != nil && f.stage == collecting {
		f.count(&s.Packet, s.ts)
		if s.side != SideUnknown && f.side != SideUnknown && (s.side == f.side) != (s.SrcIsLo == f.InitiatorIsLo) {
			a.counters[WrongSide]++
			return
		}
		a.capture(f, &s.Packet, s.frame, false)
		return
	}
	resumed := f != nil
	for _, side := range s.otherSides() {
		w := a.waits.of[spoken{s.Key, !s.SrcIsLo, side}]
		if w == nil {
			continue
		}
		if a.stillWaits(w, s.ts) {
			a.answered(f, w, s)
			return
		}
		resumed = resumed || s.ts.Sub(w.last) <= a.opts.UDPIdle
	}
	who := spoken{s.Key, s.SrcIsLo, s.side}
	w := a.waits.of[who]
	if w == nil || !a.stillWaits(w, s.ts) {
		if !s.hasPayload() {
			a.counters[HeaderOnly]++
			return
		}
		resumed = resumed || w != nil && s.ts.Sub(w.last) <= a.opts.UDPIdle
		w = a.wait(who, w)
		w.start, w.last, w.order, w.resumed = s.ts, s.ts, a.order(), resumed
	}
	w.packets++
	w.bytes += uint64(s.WireLen)
	w.last = later(w.last, s.ts)
	a.waits.touch(w)
	if !w.sample.Complete() {
		w.fragmented = w.fragmented || s.MoreFragments
		w.lack.add(lacks(&s.Packet, s.frame, flow.CaptureBytes-len(w.sample.Data)))
		appendPacket(w.sample, &s.Packet, s.frame, true, w.last.Sub(w.start))
	}
}

// checksum is that of a datagram, 0 if the file does not hold it.
func (s *segment) checksum() uint16 {
	if s.L4+8 > len(s.frame) {
		return 0
	}
	return binary.BigEndian.Uint16(s.frame[s.L4+6:])
}

// otherSides are those that the other end of the sender's flow may be on.
func (s *segment) otherSides() []Side {
	if s.side == SideUnknown {
		return []Side{SideUnknown, SideInbound, SideOutbound}
	}
	return []Side{s.side.other(), SideUnknown}
}

// wait begins to wait, in an entry that is there or in a new one.
func (a *Assembler) wait(who spoken, w *waiting) *waiting {
	a.counters[Waiting]++
	if w == nil {
		if len(a.waits.of) >= maxWaiting {
			oldest := a.waits.ring.next
			a.discard(oldest)
			a.waits.drop(oldest)
		}
		w = &waiting{spoken: who}
		a.waits.of[who] = w
	}
	w.sample = a.takeSample()
	w.packets, w.bytes, w.lack, w.fragmented = 0, 0, lack{}, false
	return w
}

// stillWaits reports whether a capture waits, and discards it if its time is over.
func (a *Assembler) stillWaits(w *waiting, now time.Time) bool {
	if now.Sub(w.start) >= waitingAge {
		a.discard(w)
	}
	return w.sample != nil
}

func (a *Assembler) discard(w *waiting) {
	if w.sample == nil {
		return
	}
	a.counters[Unanswered]++
	a.free = append(a.free, w.sample)
	w.sample = nil
}

// answered makes a waiting capture that of a flow, by a datagram of the other side. f is
// the flow that has the key, or nil.
func (a *Assembler) answered(f *Flow, w *waiting, s *segment) {
	if f != nil {
		a.restart(f)
	}
	a.waits.drop(w)
	f = a.start(w.key, w.fromLo, w.start, w.order)
	f.Last = w.last
	f.Packets, f.Bytes = w.packets, w.bytes
	f.sample, f.resumed, f.side, f.lack, f.fragmented = w.sample, w.resumed, w.side, w.lack, w.fragmented
	f.count(&s.Packet, s.ts)
	f.captured = f.Last
	if f.sample.Complete() {
		a.handOver(f, flow.ReasonFull)
		return
	}
	a.capture(f, &s.Packet, s.frame, false)
}

// unanswered ends the file for all that wait.
func (a *Assembler) unanswered() {
	for _, w := range a.waits.of {
		a.discard(w)
	}
	a.waits.init()
}

// appendPacket adds a packet to a capture that is not complete.
func appendPacket(s *flow.Sample, p *headers.Packet, frame []byte, fromInitiator bool, since time.Duration) {
	s.Packets = append(s.Packets, captured(len(s.Data), p.WireLen, fromInitiator, since))
	s.Data = append(s.Data, frame[:min(len(frame), flow.CaptureBytes-len(s.Data))]...)
}
