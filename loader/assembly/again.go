// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"container/list"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
	"github.com/earlydrop/earlydrop/loader/flow/parts"
	"github.com/earlydrop/earlydrop/loader/flow/signals"
)

// Bounds of captures that go on, the same as in the kernel program.
const (
	// bareBytes is what a capture keeps of header-only packets behind the first payload.
	bareBytes = 384
	// againMost is how often a capture goes on.
	againMost = 4
)

// ended holds what is needed of flows whose capture ended early, for it to go on: those
// whose capture ended last.
type ended struct {
	of    map[uint64]*list.Element // by Flow.Seq
	order *list.List               // of *endedFlow, the earliest first
	parts *parts.Store             // their captures
}

type endedFlow struct {
	seq      uint64
	start    time.Time // of the flow
	stream   stream
	revision int // of the capture that ended
	before   int // as Flow.before, with that capture
	pieces   [2]tinyRun
	begun    bool // ScantBytes of payload have come
}

// tinyRun says how far the tiny segments go by which a side begins: up to
// signals.TinySegments, so many and no other. Those are so many or more.
type tinyRun uint8

// tinyOver: a greater one came.
const tinyOver tinyRun = signals.TinySegments + 1

// notePiece notes a segment with payload by which a side begins.
func (f *Flow) notePiece(p *headers.Packet) {
	if p.PayloadLen == 0 {
		return
	}
	dir := direction(p, f.InitiatorIsLo)
	mine, adjacent := &f.pieces[dir], f.lastSide == dir+1
	f.lastSide = dir + 1
	switch {
	case *mine == tinyOver:
		return
	case p.PayloadLen >= signals.TinyBytes:
		*mine = tinyOver
		return
	case *mine < signals.TinySegments:
		*mine++
	}
	f.unsure = f.unsure || *mine == signals.TinySegments || adjacent && *mine == parts.TinySegments
}

// addPayload adds to the payload that was captured, and notes a slow beginning.
func (f *Flow) addPayload(n int) {
	if n == 0 {
		return
	}
	was, since := f.payload, f.Last.Sub(f.Start).Truncate(time.Microsecond)
	if was == 0 {
		f.first = since
	}
	f.payload += n
	if f.stream != nil && was < signals.ScantBytes && f.payload >= signals.ScantBytes && !f.begun && since-f.first > signals.SlowTime {
		f.unsure = true
	}
}

func newEnded() *ended {
	return &ended{of: map[uint64]*list.Element{}, order: list.New(), parts: parts.NewStore(parts.DefaultKept)}
}

// goesOn reports whether the capture of a flow may go on after the hand-over.
func (f *Flow) goesOn(reason flow.Reason) bool {
	return f.stream != nil && f.hasNumbers && f.shown&^flow.SignalOutOfPlace == 0 && f.revision < againMost && reason != flow.ReasonEnd &&
		(reason != flow.ReasonFull || !f.hasPayload() || f.unsure)
}

// hasPayload reports whether there is more than next to no payload, with what was captured
// before.
func (f *Flow) hasPayload() bool { return f.before > 0 || f.payload >= signals.ScantBytes }

func (e *ended) add(f *Flow) {
	if e.order.Len() >= parts.DefaultKept {
		delete(e.of, e.order.Remove(e.order.Front()).(*endedFlow).seq)
	}
	st := *f.stream
	st.hole, st.stray = [2]hole{}, [2]int{}
	before := 0
	if f.hasPayload() && !f.unsure {
		before = f.before + len(f.sample.Data)
	}
	e.of[f.Seq] = e.order.PushBack(&endedFlow{f.Seq, f.Start, st, f.revision, before, f.pieces, f.begun || f.hasPayload()})
}

// forget holds a flow no more, if it is held.
func (e *ended) forget(seq uint64) {
	if at := e.of[seq]; at != nil {
		e.order.Remove(at)
		delete(e.of, seq)
	}
}

// again takes a segment with payload of a flow that is decided. It reports whether its
// capture, which ended early, goes on with it.
func (a *Assembler) again(f *Flow, s *segment) bool {
	at := a.ended.of[f.Seq]
	if at == nil || s.PayloadLen == 0 {
		return false
	}
	e := at.Value.(*endedFlow)
	dir := direction(&s.Packet, f.InitiatorIsLo)
	if e.stream.isDecoy(s, dir) {
		a.counters[Decoys]++
		return false
	}
	st := e.stream
	place, ends := st.take(&s.Packet, dir, s.side)
	if place != inPlace {
		a.counters[place]++
		return false
	}
	a.ended.forget(f.Seq)
	a.counters[Again]++
	on := *f // that of a decided flow is used again
	on.Start, on.captured, on.stage, on.revision = e.start, on.Last, collecting, e.revision+1
	on.stream, on.before, on.pieces, on.begun = &st, e.before, e.pieces, e.begun
	*a.ledger.state(f.Seq) = open
	a.flows[f.Seq] = &on
	a.collect(&on, nil, nil)
	a.capture(&on, &s.Packet, s.frame, ends)
	return true
}
