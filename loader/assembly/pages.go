// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/earlydrop/earlydrop/internal/scratch"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// pages is a temporary file of flows that are not decided and do not fit into
// memory: those that have been silent longest. A flow is written whenever it has to
// leave memory, and taken back when a packet of it comes or, if it is a capture,
// when it falls idle. Captures are written in the order of their latest packet, and
// fall idle in the same order, so that they are read one after another.
type pages struct {
	file       *scratch.File
	captures   uint64 // flows of the collecting stage that are in the file
	handshakes uint64 // those of the handshake stage
	err        error  // the first one; from then on nothing leaves memory

	// cursor is where the page of the capture that was written first begins, or
	// one before it that was taken back. next is its head, if ready.
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
	stage    stage
	deadline time.Time
}

const (
	pageHeadSize = 25
	readAhead    = 256 << 10
)

func newPages(dir string) *pages { return &pages{file: scratch.New(dir)} }

var errPage = errors.New("a page of the temporary file is damaged")

// Err returns what went wrong with the temporary file (Options.MaxOpen), and nil as
// long as all is well. What goes into the Assembler after an error may get lost: it
// has no use to go on.
func (a *Assembler) Err() error { return a.pages.err }

// shrink moves the flows of r that have been silent longest to the temporary file
// until no more than Options.MaxOpen are left.
func (a *Assembler) shrink(r *ring) {
	for r.n > max(a.opts.MaxOpen, 2) && a.pages.err == nil {
		f := r.first()
		if err := a.pages.write(a.ledger, f); err != nil {
			a.pages.err = err
			return
		}
		f.leave()
		delete(a.flows, f.Seq)
		if f.sample != nil {
			a.free = append(a.free, f.sample)
		}
	}
}

// unpage takes a flow back into memory. It returns nil where this fails, or where
// the flow has another key.
func (a *Assembler) unpage(seq uint64, key flow.Key) *Flow {
	p, e := a.pages, a.ledger.entry(seq)
	if p.err != nil {
		return nil
	}
	f, err := p.read(a, int64(e.packets), int(e.bytes))
	if err != nil {
		p.err = err
		return nil
	}
	a.back(f)
	if f.stage == collecting {
		// Whatever is in memory was written to later.
		a.list.pushFront(f)
	} else {
		a.waiting.push(f)
	}
	if f.Key != key {
		return nil
	}
	return f
}

// back makes a flow that was read one of those in memory.
func (a *Assembler) back(f *Flow) {
	*a.ledger.state(f.Seq) = open
	a.flows[f.Seq] = f
	if f.stage == collecting {
		a.pages.captures--
	} else {
		a.pages.handshakes--
	}
}

// oldest returns when the capture that has been silent longest falls idle; ok is
// false when there is none.
func (a *Assembler) oldest() (deadline time.Time, ok bool) {
	if a.pages.seek(a.ledger) {
		return a.pages.next.deadline, true
	}
	if f := a.list.first(); f != nil {
		return f.deadline, true
	}
	return time.Time{}, false
}

// takeOldest returns this capture, nil when there is none.
func (a *Assembler) takeOldest() *Flow {
	p := a.pages
	if !p.seek(a.ledger) {
		return a.list.first()
	}
	f, err := p.read(a, p.cursor, pageHeadSize+int(p.next.size))
	if err != nil {
		p.err = err
		return a.list.first()
	}
	a.back(f)
	return f
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
func (p *pages) write(l *ledger, f *Flow) error {
	b := append(p.page[:0], make([]byte, pageHeadSize)...)
	b = f.encode(b)
	binary.LittleEndian.PutUint64(b, f.Seq)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-pageHeadSize))
	b[12] = byte(f.stage)
	binary.LittleEndian.PutUint64(b[13:], uint64(f.deadline.Unix()))
	binary.LittleEndian.PutUint32(b[21:], uint32(f.deadline.Nanosecond()))
	p.page = b
	at := p.file.Size()
	if err := p.file.Append(b); err != nil {
		return err
	}
	e := l.entry(f.Seq)
	e.packets, e.bytes = uint64(at), uint64(len(b))
	*l.state(f.Seq) = paged
	if f.stage == collecting {
		p.captures++
	} else {
		p.handshakes++
	}
	return nil
}

// seek moves the cursor to the next capture that is still in the file and reports
// whether there is one.
func (p *pages) seek(l *ledger) bool {
	if p.captures == 0 || p.err != nil {
		return false
	}
	for {
		if !p.ready {
			b, err := p.sequential(p.cursor, pageHeadSize)
			if err != nil {
				p.err = err
				return false
			}
			p.next = pageHead{seq: binary.LittleEndian.Uint64(b), size: binary.LittleEndian.Uint32(b[8:]), stage: stage(b[12]),
				deadline: time.Unix(int64(binary.LittleEndian.Uint64(b[13:])), int64(binary.LittleEndian.Uint32(b[21:])))}
			p.ready = true
		}
		if p.next.stage == collecting && *l.state(p.next.seq) == paged && l.entry(p.next.seq).packets == uint64(p.cursor) {
			return true
		}
		p.cursor += pageHeadSize + int64(p.next.size)
		p.ready = false
	}
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

// read returns the flow whose page of size bytes is at off.
func (p *pages) read(a *Assembler, off int64, size int) (*Flow, error) {
	var b []byte
	var err error
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
		return nil, err
	}
	f := new(Flow)
	if stage(b[12]) == collecting {
		f.sample = a.takeSample()
	}
	f.Seq, f.stage = binary.LittleEndian.Uint64(b), stage(b[12])
	f.deadline = time.Unix(int64(binary.LittleEndian.Uint64(b[13:])), int64(binary.LittleEndian.Uint32(b[21:])))
	if !f.decode(b[pageHeadSize:]) {
		return nil, errPage
	}
	return f, nil
}

// close removes the file and returns the first error that there was.
func (p *pages) close() error { return errors.Join(p.err, p.file.Close()) }

// encode appends what decode needs to make the same flow again, but for its Seq,
// its stage and its deadline.
func (f *Flow) encode(b []byte) []byte {
	b = scratch.AppendAddrPort(b, f.Key.Lo)
	b = scratch.AppendAddrPort(b, f.Key.Hi)
	b = append(b, byte(f.Key.Proto))
	for _, v := range [...]uint64{uint64(f.Key.VLAN), uint64(f.Key.InnerVLAN), f.Packets, f.Bytes} {
		b = binary.AppendUvarint(b, v)
	}
	b = scratch.AppendFlags(b, f.InitiatorIsLo, f.handedOver, f.midStream, f.cut, f.incomplete)
	b = scratch.AppendTime(b, f.Start)
	b = scratch.AppendTime(b, f.Last)
	b = encodePackets(b, f.earlyRecs, f.early)
	if f.sample != nil {
		b = encodePackets(b, f.sample.Packets, f.sample.Data)
	}
	return b
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
	f.Key = flow.Key{Lo: d.AddrPort(), Hi: d.AddrPort(), Proto: flow.Proto(d.Byte()),
		VLAN: uint16(d.Uvarint()), InnerVLAN: uint16(d.Uvarint())}
	f.Packets, f.Bytes = d.Uvarint(), d.Uvarint()
	d.Flags(&f.InitiatorIsLo, &f.handedOver, &f.midStream, &f.cut, &f.incomplete)
	f.Start, f.Last = d.Time(), d.Time()
	f.earlyRecs, f.early = decodePackets(d, f.earlyRecs, f.early)
	if f.sample != nil {
		f.sample.Packets, f.sample.Data = decodePackets(d, f.sample.Packets, f.sample.Data)
	}
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
