// SPDX-License-Identifier: Apache-2.0

// Package parts puts captures together that ended early. A flow that pauses, closes one
// direction, fills its capture with next to no payload, or begins slowly or in tiny segments
// is handed over as it is, and its verdict is provisional. When payload follows, a new
// capture goes on where that one ended, and both are one beginning.
//
// Tiny segments become one with what follows them, as far as nothing is missing: then a
// model sees what the sender would have sent without them.
package parts

import (
	"bytes"
	"container/list"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
	"github.com/earlydrop/earlydrop/loader/flow/signals"
)

const (
	// DefaultKept bounds the captures that a Store keeps: 16384 of at most 2 KB are 32 MB.
	DefaultKept = 16384
	// initiatorShare is which part of them may be those of one initiator (an IPv4 address,
	// a /64 of IPv6).
	initiatorShare = 8

	// TinySegments is with how many tiny ones a side begins that are put together with what
	// follows them, where a capture that is full is full of headers. Two hide as much as the
	// three that are a signal.
	TinySegments = 2
)

// A Store keeps captures whose verdict is provisional. Those that were kept longest give
// way when there are too many. It is for one goroutine.
type Store struct {
	most       int
	kept       map[flow.Key]*list.Element
	order      *list.List // of *part, oldest first
	initiators map[netip.Prefix]int
	free       []*part
}

// part is a capture so far, before its signals were noted.
type part struct {
	meta      flow.Meta
	packets   []flow.Packet
	data      []byte
	repeat    flow.Repeat
	rest      []byte
	begin     begin
	initiator netip.Prefix
}

// NewStore returns a store of at most so many captures, at least 1.
func NewStore(most int) *Store {
	return &Store{most: max(most, 1), kept: map[flow.Key]*list.Element{}, order: list.New(), initiators: map[netip.Prefix]int{}}
}

// Len returns how many captures are kept.
func (st *Store) Len() int { return st.order.Len() }

// Join puts in front of s what was captured of its flow before, if it goes on with that,
// and keeps it where its verdict is provisional. A capture that goes on with one that is
// not kept any more is the middle of a stream, and s is marked so. s is as it was
// captured: its signals are noted after this.
func (st *Store) Join(s *flow.Sample) {
	before := st.take(s.Key)
	var b begin
	switch {
	case s.Revision == 0:
	case before == nil || before.meta.Revision+1 != s.Revision || !sameConnection(&before.meta, &s.Meta):
		s.MidStream, s.Provisional = true, false
	default:
		b = join(before, s)
	}
	if before != nil {
		st.free = append(st.free, before)
	}
	if s.Provisional {
		st.keep(s, b)
	}
}

func sameConnection(a, b *flow.Meta) bool {
	return a.InitiatorIsLo == b.InitiatorIsLo && a.Numbers.ISNKnown == b.Numbers.ISNKnown &&
		a.Numbers.InitiatorISN == b.Numbers.InitiatorISN && a.Numbers.ResponderISN == b.Numbers.ResponderISN
}

// take returns what is kept of a key and keeps it no more; nil for nothing.
func (st *Store) take(key flow.Key) *part {
	e := st.kept[key]
	if e == nil {
		return nil
	}
	p := st.order.Remove(e).(*part)
	delete(st.kept, key)
	if st.initiators[p.initiator]--; st.initiators[p.initiator] == 0 {
		delete(st.initiators, p.initiator)
	}
	return p
}

func (st *Store) keep(s *flow.Sample, b begin) {
	initiator := prefixOf(s.Initiator().Addr())
	if st.initiators[initiator] >= max(1, st.most/initiatorShare) {
		return
	}
	if st.order.Len() >= st.most {
		st.free = append(st.free, st.take(st.order.Front().Value.(*part).meta.Key))
	}
	p := new(part)
	if n := len(st.free); n > 0 {
		p, st.free = st.free[n-1], st.free[:n-1]
	}
	p.meta, p.begin, p.initiator = s.Meta, b, initiator
	p.rest = append(p.rest[:0], s.Rest...)
	p.packets = append(p.packets[:0], s.Packets...)
	p.data = append(p.data[:0], s.Data...)
	p.repeat.Seq, p.repeat.FromInitiator, p.repeat.Data = s.Repeat.Seq, s.Repeat.FromInitiator, append(p.repeat.Data[:0], s.Repeat.Data...)
	st.kept[s.Key] = st.order.PushBack(p)
	st.initiators[initiator]++
}

func prefixOf(addr netip.Addr) netip.Prefix {
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	p, err := addr.Prefix(bits)
	if err != nil { // never
		return netip.Prefix{}
	}
	return p
}

// begin is what condensed frames do not tell any more.
type begin struct {
	runs      [2]run // of the initiator and the responder
	condensed [2]bool
	pace      pace
	// urgent: a byte was left out that programs do not get.
	urgent bool
}

// frame is a captured frame of one of the parts.
type frame struct {
	flow.Packet
	data []byte
	h    headers.Headers
	ok   bool // it is a TCP segment

	before bool // it is of the capture before
	left   int  // bytes of it that were left out
}

// extend adds to the last frame what of it did not fit into the capture.
func extend(all []frame, rest []byte) {
	if len(all) == 0 || len(rest) == 0 {
		return
	}
	if f := &all[len(all)-1]; len(f.data) < int(f.WireLen) {
		f.data = flow.AddRest(f.data, rest)
		f.data = f.data[:min(len(f.data), int(f.WireLen))]
	}
}

func (f *frame) payload() int { return max(0, min(len(f.data), f.h.WireLen)-f.h.Payload) }

// join puts before in front of s, and returns how the two begin.
func join(before *part, s *flow.Sample) begin {
	shift := max(0, s.Start.Sub(before.meta.Start))
	all := make([]frame, 0, len(before.packets)+len(s.Packets))
	for i, p := range before.packets {
		end := len(before.data)
		if i+1 < len(before.packets) {
			end = int(before.packets[i+1].Offset)
		}
		all = append(all, frame{Packet: p, data: before.data[p.Offset:end], before: true})
	}
	// The last one may reach beyond the capture, and does not come again. As much as there
	// is of it stays, so that nobody hides what follows behind a hole.
	extend(all, before.rest)
	for i, p := range s.Packets {
		p.Time += shift
		all = append(all, frame{Packet: p, data: slices.Clone(s.Frame(i))})
	}
	extend(all, s.Rest)
	b := before.begin
	for i := range all {
		f := &all[i]
		f.ok = f.h.Walk(f.data, int(f.WireLen)) == headers.OK && f.h.Proto == flow.TCP
		if !f.before || before.meta.Revision == 0 {
			b.pace.add(f)
		}
	}
	meta := s.Meta
	meta.Start, meta.Elapsed = before.meta.Start, meta.Elapsed+shift
	meta.Signals |= before.meta.Signals
	meta.Cut, meta.Incomplete = meta.Cut || before.meta.Cut, meta.Incomplete || before.meta.Incomplete
	b.findRuns(all)
	tiny := max(b.runs[0].pieces, b.runs[1].pieces)
	if tiny >= signals.TinySegments || !fit(all) && (tiny >= TinySegments || scant(all) || b.pace.slow) {
		all = condense(all, &before.begin, &b)
	}
	if tiny >= signals.TinySegments {
		meta.Signals |= flow.SignalTiny
	}
	if b.urgent {
		meta.Signals |= flow.SignalUrgent
	}
	if b.pace.slow {
		meta.Signals |= flow.SignalSlow
	}
	repeat := s.Repeat
	s.Reset()
	if len(repeat.Data) == 0 {
		repeat = before.repeat
	}
	s.KeepRepeat(repeat.Seq, repeat.FromInitiator, repeat.Data)
	s.Meta = meta
	for _, f := range all {
		if len(s.Data) == flow.CaptureBytes || len(s.Packets) == flow.MaxPackets {
			break
		}
		f.Offset = uint16(len(s.Data))
		s.Packets = append(s.Packets, f.Packet)
		s.Data = append(s.Data, f.data[:min(len(f.data), flow.CaptureBytes-len(s.Data))]...)
	}
	return b
}

// fit reports whether the frames all fit into a capture.
func fit(all []frame) bool {
	bytes := 0
	for i := range all {
		bytes += len(all[i].data)
	}
	return bytes <= flow.CaptureBytes
}

// scant reports whether those frames that fit into a capture have next to no payload.
func scant(all []frame) bool {
	bytes, payload := 0, 0
	for i := range all {
		f := &all[i]
		if f.ok {
			payload += min(f.payload(), max(0, flow.CaptureBytes-bytes-f.h.Payload))
		}
		bytes += len(f.data)
	}
	return payload < signals.ScantBytes
}

// A pace says how the first payload of a connection came.
type pace struct {
	payload int // of both sides, at most signals.SlowBytes and what came with the last
	first   time.Duration
	slow    bool
}

func (pc *pace) add(f *frame) {
	if !f.ok || f.h.PayloadLen == 0 || pc.payload >= signals.SlowBytes {
		return
	}
	if pc.payload == 0 {
		pc.first = f.Time
	}
	if pc.payload += f.h.PayloadLen; pc.payload >= signals.SlowBytes {
		pc.slow = f.Time-pc.first > signals.SlowTime
	}
}

// run says how far the tiny segments go by which a side begins.
type run struct {
	pieces int
	over   bool // a greater one came
}

func (f *frame) side() int {
	if f.FromInitiator {
		return 0
	}
	return 1
}

// goOn takes another segment with payload.
func (r *run) goOn(f *frame) {
	r.over = r.over || f.h.PayloadLen >= signals.TinyBytes
	if !r.over {
		r.pieces++
	}
}

// findRuns goes on with the runs of b. Those of a side that was condensed are known; of
// others they are found anew.
func (b *begin) findRuns(all []frame) {
	for side := range b.runs {
		if !b.condensed[side] {
			b.runs[side] = run{}
		}
	}
	for i := range all {
		if f := &all[i]; f.ok && f.h.PayloadLen > 0 && !(f.before && b.condensed[f.side()]) {
			b.runs[f.side()].goOn(f)
		}
	}
}

// condense makes of frames of next to no payload what their sender would have sent
// without playing tricks: header-only packets behind the first payload that end nothing are left out, and
// the tiny segments by which a side begins become one with what follows them. Those of sides
// that were condensed before stay as they are.
func condense(all []frame, was, b *begin) (out []frame) {
	var over [2]bool
	for side := range over {
		b.condensed[side] = b.runs[side].pieces >= TinySegments
		over[side] = !b.condensed[side] || was.condensed[side] && was.runs[side].over
	}
	begun, last := false, -1 // last: the place of the last segment with payload in out
	for i := range all {
		f := &all[i]
		switch {
		case !f.ok || f.h.PayloadLen == 0 && !begun:
			out = append(out, *f)
			continue
		case f.h.PayloadLen == 0 && f.h.Flags.Closes():
			out, last = append(out, *f), -1
			continue
		case f.h.PayloadLen == 0:
			continue
		}
		begun = true
		side := f.side()
		open := !over[side]
		if !f.before || !was.condensed[side] {
			over[side] = over[side] || f.h.PayloadLen >= signals.TinyBytes
		}
		if open && last >= 0 && out[last].appends(f) {
			b.urgent = b.urgent || out[last].left > 0
			continue
		}
		last = len(out)
		out = append(out, *f)
	}
	return out
}

// appends makes the next segment a part of f if it follows at once, after what f ends with if
// that was sent again, and a host takes it just as it takes f. An urgent byte is left out:
// programs do not get it.
func (f *frame) appends(next *frame) bool {
	// What lies behind the packet in its frame is padding.
	h, rest := next.h, next.data[min(next.h.Payload, len(next.data)):min(next.h.WireLen, len(next.data))]
	if h.Flags&headers.URG != 0 {
		const pointer = 18 // in the TCP header: to behind the urgent byte
		if len(rest) < h.PayloadLen {
			return false
		}
		at := int(binary.BigEndian.Uint16(next.data[h.L4+pointer:])) - 1
		if at < 0 || at >= h.PayloadLen {
			return false
		}
		rest = slices.Concat(rest[:at], rest[at+1:h.PayloadLen])
		h.Flags &^= headers.URG
	}
	n := f.payload()
	if !f.ok || n == 0 || len(f.data) < f.h.WireLen || f.FromInitiator != next.FromInitiator || !signals.Continues(&f.h, f.data, &h, next.data) {
		return false
	}
	again, urgent := int(int32(f.h.Seq+uint32(n+f.left)-h.Seq)), next.h.Flags != h.Flags
	if again < 0 || again >= h.PayloadLen || again > min(n, len(rest)) || again > 0 && (urgent || f.left > 0) ||
		f.h.WireLen+h.PayloadLen > 0xffff || !bytes.Equal(f.data[f.h.WireLen-again:f.h.WireLen], rest[:again]) {
		return false
	}
	f.data = append(slices.Clip(f.data[:f.h.WireLen]), rest[again:]...)
	f.WireLen = uint32(f.h.WireLen + h.PayloadLen - again)
	if urgent {
		f.left++
		f.WireLen--
	}
	f.data[f.h.L4+13] |= byte(h.Flags)
	f.h.SetLength(f.data, int(f.WireLen))
	f.ok = f.h.Walk(f.data, int(f.WireLen)) == headers.OK
	return true
}
