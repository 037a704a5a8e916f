// SPDX-License-Identifier: Apache-2.0

// Package parts puts captures together that ended early. A flow that pauses, closes one
// direction or fills its capture with next to no payload is handed over as it is, and its
// verdict is provisional. When payload follows, a new capture goes on where that one
// ended, and both are one beginning.
package parts

import (
	"container/list"
	"net/netip"
	"slices"

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
	switch {
	case s.Revision == 0:
	case before == nil || before.meta.Revision+1 != s.Revision || !sameConnection(&before.meta, &s.Meta):
		s.MidStream, s.Provisional = true, false
	default:
		join(before, s)
	}
	if before != nil {
		st.free = append(st.free, before)
	}
	if s.Provisional {
		st.keep(s)
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

func (st *Store) keep(s *flow.Sample) {
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
	p.meta, p.initiator = s.Meta, initiator
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

// frame is a captured frame of one of the parts.
type frame struct {
	flow.Packet
	data []byte
	h    headers.Headers
	ok   bool // it is a TCP segment
}

func (f *frame) payload() int { return max(0, min(len(f.data), f.h.WireLen)-f.h.Payload) }

// join puts before in front of s.
func join(before *part, s *flow.Sample) {
	shift := max(0, s.Start.Sub(before.meta.Start))
	all := make([]frame, 0, len(before.packets)+len(s.Packets))
	for i, p := range before.packets {
		end := len(before.data)
		if i+1 < len(before.packets) {
			end = int(before.packets[i+1].Offset)
		}
		// The last one may reach beyond the capture, and does not come again. As much as there
		// is of it stays, so that nobody hides what follows behind a hole.
		all = append(all, frame{Packet: p, data: before.data[p.Offset:end]})
	}
	for i, p := range s.Packets {
		p.Time += shift
		all = append(all, frame{Packet: p, data: slices.Clone(s.Frame(i))})
	}
	for i := range all {
		f := &all[i]
		f.ok = f.h.Walk(f.data, int(f.WireLen)) == headers.OK && f.h.Proto == flow.TCP
	}
	meta := s.Meta
	if scant(all) {
		joined := 0
		if all, joined = condense(all); joined >= signals.TinySegments-1 {
			meta.Signals |= flow.SignalTiny
		}
	}
	meta.Start, meta.Elapsed = before.meta.Start, meta.Elapsed+shift
	meta.Signals |= before.meta.Signals
	meta.Cut, meta.Incomplete = meta.Cut || before.meta.Cut, meta.Incomplete || before.meta.Incomplete
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
}

// scant reports whether the frames do not all fit into a capture, and those that do have
// next to no payload.
func scant(all []frame) bool {
	bytes, payload := 0, 0
	for i := range all {
		f := &all[i]
		if f.ok {
			payload += min(f.payload(), max(0, flow.CaptureBytes-bytes-f.h.Payload))
		}
		bytes += len(f.data)
	}
	return payload < signals.ScantBytes && bytes > flow.CaptureBytes
}

// condense makes of frames of next to no payload what their sender would have sent
// without playing tricks: header-only packets behind the first payload are left out, and
// tiny segments become one with what follows them. joined is how often.
func condense(all []frame) (out []frame, joined int) {
	begun, last := false, 0 // last: the place of the last segment that was put out
	for _, f := range all {
		switch {
		case !f.ok || f.h.PayloadLen == 0 && !begun:
			out = append(out, f)
			continue
		case f.h.PayloadLen == 0:
			continue
		}
		if begun && out[last].appends(&f) {
			joined++
			continue
		}
		begun, last = true, len(out)
		out = append(out, f)
	}
	return out, joined
}

// appends makes the next segment a part of f, which is tiny, if it follows at once.
func (f *frame) appends(next *frame) bool {
	n := f.payload()
	if !f.ok || n == 0 || len(f.data) < f.h.WireLen || f.FromInitiator != next.FromInitiator ||
		f.h.Seq+uint32(n) != next.h.Seq || f.h.WireLen+next.h.PayloadLen > 0xffff ||
		n >= signals.TinyBytes && next.h.PayloadLen >= signals.TinyBytes {
		return false
	}
	f.data = append(slices.Clip(f.data[:f.h.WireLen]), next.data[min(next.h.Payload, len(next.data)):]...)
	f.WireLen = uint32(f.h.WireLen + next.h.PayloadLen)
	f.h.SetLength(f.data, int(f.WireLen))
	f.ok = f.h.Walk(f.data, int(f.WireLen)) == headers.OK
	return true
}
