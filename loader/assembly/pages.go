// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"container/heap"
	"encoding/binary"
	"errors"
	"time"

	"github.com/earlydrop/earlydrop/loader/assembly/scratch"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// pages is a temporary file of captures in progress that do not fit into memory:
// those that have been silent longest. A flow is written whenever it has to leave
// memory, and taken back when a packet of it comes or it falls idle. Flows are
// written in the order of their latest captured packet, and fall idle in the same
// order, so that they are read one after another. Only those that were taken back for
// a packet that was not captured, and leave memory again, are out of order: late.
type pages struct {
	file    *scratch.File
	ordered uint64 // flows that are in the file, but for the late ones
	late    latePages
	err     error // the first one; from then on nothing leaves memory

	// cursor is where the page of the flow that was written first begins, but for
	// late ones, or one before it that was taken back. next is its head, if ready.
	cursor int64
	next   pageHead
	ready  bool
	// ahead holds the file's bytes from aheadAt on.
	ahead   []byte
	aheadAt int64
	page    []byte // being written or read
}

// pageHead is the beginning of a page.
type pageHead struct {
	seq      uint64
	size     uint32 // of what follows the head
	late     bool
	turn     uint64
	deadline time.Time
}

const (
	pageHeadSize = 33
	readAhead    = 256 << 10
)

func (h *pageHead) encode(b []byte) {
	binary.LittleEndian.PutUint64(b, h.seq)
	binary.LittleEndian.PutUint32(b[8:], h.size)
	b[12] = 0
	if h.late {
		b[12] = 1
	}
	binary.LittleEndian.PutUint64(b[13:], h.turn)
	binary.LittleEndian.PutUint64(b[21:], uint64(h.deadline.Unix()))
	binary.LittleEndian.PutUint32(b[29:], uint32(h.deadline.Nanosecond()))
}

func decodeHead(b []byte) pageHead {
	return pageHead{seq: binary.LittleEndian.Uint64(b), size: binary.LittleEndian.Uint32(b[8:]), late: b[12] != 0,
		turn:     binary.LittleEndian.Uint64(b[13:]),
		deadline: time.Unix(int64(binary.LittleEndian.Uint64(b[21:])), int64(binary.LittleEndian.Uint32(b[29:])))}
}

// latePages is a heap of late pages, the flow that has been silent longest first. Some
// may have been taken back since.
type latePages []latePage

type latePage struct {
	pageHead
	off int64
}

// Len, Less, Swap, Push and Pop are for container/heap.
func (h latePages) Len() int { return len(h) }

// Less is explained at Len.
func (h latePages) Less(i, j int) bool { return h[i].turn < h[j].turn }

// Swap is explained at Len.
func (h latePages) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push is explained at Len.
func (h *latePages) Push(x any) { *h = append(*h, x.(latePage)) }

// Pop is explained at Len.
func (h *latePages) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func newPages(dir string) *pages { return &pages{file: scratch.New(dir)} }

var errPage = errors.New("a page of the temporary file is damaged")

// Err returns what went wrong with the temporary file (Options.MaxOpen), and nil as
// long as all is well. What goes into the Assembler after an error may get lost: it
// has no use to go on.
func (a *Assembler) Err() error { return a.pages.err }

// shrink moves the flows that have been silent longest to the temporary file until no
// more than Options.MaxOpen are left.
func (a *Assembler) shrink() {
	if f := a.looked; f != nil {
		a.looked = nil
		if f.sample != nil && f.ring == nil { // it was not captured from
			a.leaveMemory(f, true)
		}
	}
	for a.list.n > max(a.opts.MaxOpen, 2) && a.pages.err == nil {
		a.leaveMemory(a.list.first(), false)
	}
}

// leaveMemory moves a flow to the temporary file.
func (a *Assembler) leaveMemory(f *Flow, late bool) {
	if a.pages.err != nil {
		return
	}
	if err := a.pages.write(a.ledger, f, late); err != nil {
		a.pages.err = err
		return
	}
	delete(a.flows, f.Seq)
	a.release(f)
}

// unpage takes a flow back into memory. It returns nil where this fails, or where
// the flow has another key.
func (a *Assembler) unpage(seq uint64, key flow.Key) *Flow {
	e := a.ledger.entry(seq)
	f := a.back(int64(e.packets), int(e.bytes))
	if f == nil || f.Key != key {
		return nil
	}
	return f
}

// back makes the flow whose page of size bytes is at off one of those in memory. It
// returns nil where this fails.
func (a *Assembler) back(off int64, size int) *Flow {
	p := a.pages
	if p.err != nil {
		return nil
	}
	f, late, err := p.read(a, off, size)
	if err != nil {
		p.err = err
		return nil
	}
	if !late {
		p.ordered--
	}
	*a.ledger.state(f.Seq) = open
	a.flows[f.Seq] = f
	a.looked = f
	return f
}

// oldest returns when the capture that has been silent longest falls idle; ok is
// false when there is none.
func (a *Assembler) oldest() (deadline time.Time, ok bool) {
	head, _, f := a.first()
	switch {
	case head != nil:
		return head.deadline, true
	case f != nil:
		return f.deadline, true
	}
	return time.Time{}, false
}

// takeOldest returns this capture, nil when there is none.
func (a *Assembler) takeOldest() *Flow {
	head, off, f := a.first()
	if head == nil {
		return f
	}
	if f = a.back(off, pageHeadSize+int(head.size)); f != nil {
		return f
	}
	return a.list.first()
}

// first finds the capture that has been silent longest: its page and where that is, or
// the flow itself. There may be none.
func (a *Assembler) first() (head *pageHead, off int64, f *Flow) {
	p := a.pages
	f = a.list.first()
	if p.err != nil {
		return nil, 0, f
	}
	if p.seek(a.ledger) {
		head, off = &p.next, p.cursor
	}
	if late := p.firstLate(a.ledger); late != nil && (head == nil || late.turn < head.turn) {
		head, off = &late.pageHead, late.off
	}
	if head != nil && f != nil && f.turn < head.turn {
		head = nil
	}
	return head, off, f
}

func (a *Assembler) takeSample() *flow.Sample {
	var s *flow.Sample
	if n := len(a.free); n > 0 {
		s, a.free = a.free[n-1], a.free[:n-1]
	} else {
		s = new(flow.Sample)
	}
	s.Reset()
	return s
}

// write appends the page of f and tells the ledger.
func (p *pages) write(l *ledger, f *Flow, late bool) error {
	b := append(p.page[:0], make([]byte, pageHeadSize)...)
	b = f.encode(b)
	head := pageHead{seq: f.Seq, size: uint32(len(b) - pageHeadSize), late: late, turn: f.turn, deadline: f.deadline}
	head.encode(b)
	p.page = b
	at := p.file.Size()
	if err := p.file.Append(b); err != nil {
		return err
	}
	e := l.entry(f.Seq)
	e.packets, e.bytes = uint64(at), uint64(len(b))
	*l.state(f.Seq) = paged
	if late {
		heap.Push(&p.late, latePage{head, at})
	} else {
		p.ordered++
	}
	return nil
}

// holds reports whether the page at off is that of a flow which is in the file.
func (p *pages) holds(l *ledger, seq uint64, off int64) bool {
	return *l.state(seq) == paged && l.entry(seq).packets == uint64(off)
}

// seek moves the cursor to the next flow that is still in the file, but for late ones,
// and reports whether there is one.
func (p *pages) seek(l *ledger) bool {
	if p.ordered == 0 || p.err != nil {
		return false
	}
	for {
		if !p.ready {
			b, err := p.sequential(p.cursor, pageHeadSize)
			if err != nil {
				p.err = err
				return false
			}
			p.next, p.ready = decodeHead(b), true
		}
		if !p.next.late && p.holds(l, p.next.seq, p.cursor) {
			return true
		}
		p.cursor += pageHeadSize + int64(p.next.size)
		p.ready = false
	}
}

// firstLate returns the first late page that is still one, nil where there is none.
func (p *pages) firstLate(l *ledger) *latePage {
	for len(p.late) > 0 {
		if first := &p.late[0]; p.holds(l, first.seq, first.off) {
			return first
		}
		heap.Pop(&p.late)
	}
	return nil
}

// sequential returns size bytes at off, for reading pages one after another.
func (p *pages) sequential(off int64, size int) ([]byte, error) {
	if off < p.aheadAt || off+int64(size) > p.aheadAt+int64(len(p.ahead)) {
		if p.ahead == nil {
			p.ahead = make([]byte, readAhead)
		}
		p.ahead = p.ahead[:cap(p.ahead)]
		n, err := p.file.ReadAt(p.ahead, off)
		p.ahead, p.aheadAt = p.ahead[:n], off
		if n < size {
			return nil, errors.Join(errPage, err)
		}
	}
	return p.ahead[off-p.aheadAt:][:size], nil
}

// read returns the flow whose page of size bytes is at off, and whether it is late.
func (p *pages) read(a *Assembler, off int64, size int) (f *Flow, late bool, err error) {
	var b []byte
	if off == p.cursor && p.ready {
		b, err = p.sequential(off, size)
	} else {
		if cap(p.page) < size {
			p.page = make([]byte, size)
		}
		b = p.page[:size]
		_, err = p.file.ReadAt(b, off)
	}
	if err != nil {
		return nil, false, err
	}
	head := decodeHead(b)
	f = &Flow{Seq: head.seq, turn: head.turn, deadline: head.deadline, sample: a.takeSample()}
	if !f.decode(b[pageHeadSize:]) {
		return nil, false, errPage
	}
	return f, head.late, nil
}

// close removes the file and returns the first error that there was.
func (p *pages) close() error { return errors.Join(p.err, p.file.Close()) }

// encode appends what decode needs to make the same flow again, but for what is in
// the page's head.
func (f *Flow) encode(b []byte) []byte {
	var s stream
	if f.stream != nil {
		s = *f.stream
	}
	b = scratch.AppendAddrPort(b, f.Key.Lo)
	b = scratch.AppendAddrPort(b, f.Key.Hi)
	b = append(b, byte(f.Key.Proto), byte(s.side), byte(f.side))
	b = scratch.AppendFlags(b, f.InitiatorIsLo, f.marked, f.silent, f.hasNumbers, f.lack.cut, f.lack.incomplete, f.stream != nil, s.oneWay)
	b = scratch.AppendFlags(b, s.right[0], s.right[1], s.decoy, s.synData, s.serverData, s.begun, s.outOfPlace)
	b = scratch.AppendFlags(b, f.resumed, f.asleep, f.fragmented, f.unsure, f.begun)
	b = append(b, byte(f.pieces[0]), byte(f.pieces[1]))
	for _, v := range [...]uint64{uint64(f.Key.VLAN), uint64(f.Key.InnerVLAN), f.Packets, f.Bytes, uint64(f.payload), uint64(f.bare), uint64(f.revision), uint64(f.before), uint64(s.stray[0]), uint64(s.stray[1]), uint64(f.shown), uint64(f.first), uint64(f.lastSide)} {
		b = binary.AppendUvarint(b, v)
	}
	b = scratch.AppendTime(b, f.Start)
	b = scratch.AppendTime(b, f.Last)
	b = scratch.AppendTime(b, f.captured)
	for _, v := range [...]uint32{f.numbers[0], f.numbers[1], s.next[0], s.next[1], s.hole[0].lo, s.hole[0].hi, s.hole[1].lo, s.hole[1].hi, s.first[0], s.first[1]} {
		b = binary.AppendUvarint(b, uint64(v))
	}
	r := &f.sample.Repeat
	b = scratch.AppendFlags(b, r.FromInitiator)
	b = binary.AppendUvarint(b, uint64(r.Seq))
	b = binary.AppendUvarint(b, uint64(len(r.Data)))
	b = append(b, r.Data...)
	return encodePackets(b, f.sample.Packets, f.sample.Data)
}

func encodePackets(b []byte, packets []flow.Packet, data []byte) []byte {
	b = append(b, byte(len(packets)))
	for _, p := range packets {
		b = binary.AppendUvarint(b, uint64(p.Offset))
		b = binary.AppendUvarint(b, uint64(p.WireLen))
		b = binary.AppendVarint(b, int64(p.Time))
		b = scratch.AppendFlags(b, p.FromInitiator)
	}
	b = binary.AppendUvarint(b, uint64(len(data)))
	return append(b, data...)
}

// decode is the inverse of encode. It reports whether b was what encode makes.
func (f *Flow) decode(b []byte) bool {
	d := scratch.NewDecoder(b)
	f.Key = flow.Key{Lo: d.AddrPort(), Hi: d.AddrPort(), Proto: flow.Proto(d.Byte())}
	var s stream
	s.side, f.side = Side(d.Byte()), Side(d.Byte())
	var hasStream bool
	d.Flags(&f.InitiatorIsLo, &f.marked, &f.silent, &f.hasNumbers, &f.lack.cut, &f.lack.incomplete, &hasStream, &s.oneWay)
	d.Flags(&s.right[0], &s.right[1], &s.decoy, &s.synData, &s.serverData, &s.begun, &s.outOfPlace)
	d.Flags(&f.resumed, &f.asleep, &f.fragmented, &f.unsure, &f.begun)
	f.pieces = [2]tinyRun{tinyRun(d.Byte()), tinyRun(d.Byte())}
	f.Key.VLAN, f.Key.InnerVLAN = uint16(d.Uvarint()), uint16(d.Uvarint())
	f.Packets, f.Bytes = d.Uvarint(), d.Uvarint()
	f.payload, f.bare, f.revision, f.before = int(d.Uvarint()), int(d.Uvarint()), int(d.Uvarint()), int(d.Uvarint())
	s.stray, f.shown, f.first = [2]int{int(d.Uvarint()), int(d.Uvarint())}, flow.Signals(d.Uvarint()), time.Duration(d.Uvarint())
	f.lastSide = int(d.Uvarint())
	f.Start, f.Last, f.captured = d.Time(), d.Time(), d.Time()
	for _, v := range [...]*uint32{&f.numbers[0], &f.numbers[1], &s.next[0], &s.next[1], &s.hole[0].lo, &s.hole[0].hi, &s.hole[1].lo, &s.hole[1].hi, &s.first[0], &s.first[1]} {
		*v = uint32(d.Uvarint())
	}
	if hasStream {
		f.stream = &s
	}
	var r flow.Repeat
	d.Flags(&r.FromInitiator)
	r.Seq, r.Data = uint32(d.Uvarint()), d.Bytes(d.Uvarint())
	f.sample.KeepRepeat(r.Seq, r.FromInitiator, r.Data)
	f.sample.Packets, f.sample.Data = decodePackets(d, f.sample.Packets, f.sample.Data)
	return d.OK()
}

// decodePackets appends what encodePackets wrote to packets and data.
func decodePackets(d *scratch.Decoder, packets []flow.Packet, data []byte) ([]flow.Packet, []byte) {
	for range d.Byte() {
		p := flow.Packet{Offset: uint16(d.Uvarint()), WireLen: uint32(d.Uvarint()), Time: time.Duration(d.Varint())}
		d.Flags(&p.FromInitiator)
		packets = append(packets, p)
	}
	return packets, append(data, d.Bytes(d.Uvarint())...)
}
