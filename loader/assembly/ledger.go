// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"hash/maphash"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// A ledger has one entry per flow, in order of their start: an entry's number is
// the flow's Seq. It finds the latest flow of a key by a hash of 64 bits, whose
// secret is drawn anew for each ledger: the chance that any two of ten million keys
// are taken for one another is 1 in 370 000.
//
// An entry takes 33 bytes and 5 to 9 in the index, none of which the garbage
// collector has to look at.
type ledger struct {
	seed   maphash.Seed
	base   time.Time // what entry.last counts from
	blocks []*block
	n      uint64
	shards [shards]shard
}

const (
	blockSize = 1 << 12 // entries
	// An index that grows is copied. So that this never takes much memory at
	// once, it comes in parts.
	shards = 256
)

type block struct {
	entries [blockSize]entry
	states  [blockSize]state
}

// entry is what is kept of a flow that is not in memory. Of one that is in pages,
// packets is where and bytes how long its page is.
type entry struct {
	hash           uint64
	last           time.Duration // of its latest packet, since ledger.base
	packets, bytes uint64
}

// state says where the flow of an entry is.
type state uint8

const (
	open   state = iota // in memory, or over without having been handed over
	passed              // decided without a capture
	judged              // handed over
	paged               // in pages

	stateBits           = 0x03
	initiatorIsLo state = 0x80
)

// shard is a hash table with linear probing of the numbers of entries, plus 1.
type shard struct {
	slots []uint32
	used  int
}

func newLedger() *ledger { return &ledger{seed: maphash.MakeSeed()} }

func (l *ledger) hash(key flow.Key) uint64 { return maphash.Comparable(l.seed, key) }

func (l *ledger) entry(seq uint64) *entry { return &l.blocks[seq/blockSize].entries[seq%blockSize] }

func (l *ledger) state(seq uint64) *state { return &l.blocks[seq/blockSize].states[seq%blockSize] }

// add makes an entry for a flow that begins at start and returns its number. Find
// returns it from now on.
func (l *ledger) add(hash uint64, start time.Time) uint64 {
	if l.n == 0 {
		l.base = start
	}
	seq := l.n
	if seq%blockSize == 0 {
		l.blocks = append(l.blocks, new(block))
	}
	l.n++
	l.entry(seq).hash = hash
	s := &l.shards[hash%shards]
	if (s.used+1)*4 > len(s.slots)*3 {
		l.grow(s)
	}
	slot := l.slot(s, hash)
	if *slot == 0 {
		s.used++
	}
	*slot = uint32(seq + 1)
	return seq
}

// slot returns where the hash is in s, or where it belongs.
func (l *ledger) slot(s *shard, hash uint64) *uint32 {
	mask := uint64(len(s.slots) - 1)
	for i := hash / shards & mask; ; i = (i + 1) & mask {
		if n := s.slots[i]; n == 0 || l.entry(uint64(n-1)).hash == hash {
			return &s.slots[i]
		}
	}
}

func (l *ledger) grow(s *shard) {
	old := s.slots
	s.slots = make([]uint32, max(64, 2*len(old)))
	for _, n := range old {
		if n != 0 {
			*l.slot(s, l.entry(uint64(n-1)).hash) = n
		}
	}
}

// find returns the number of the latest flow with this hash.
func (l *ledger) find(hash uint64) (seq uint64, ok bool) {
	s := &l.shards[hash%shards]
	if len(s.slots) == 0 {
		return 0, false
	}
	n := *l.slot(s, hash)
	return uint64(n - 1), n != 0
}

// totals calls f for each flow that was handed over, in order of their start.
func (l *ledger) totals(f func(Totals)) {
	for seq := range l.n {
		if *l.state(seq)&stateBits == judged {
			e := l.entry(seq)
			f(Totals{Seq: seq, Packets: e.packets, Bytes: e.bytes})
		}
	}
}

// find returns the flow that a packet belongs to, nil when its key is unknown. The
// flow is the Assembler's own until the next call when it is decided.
func (a *Assembler) find(key flow.Key) *Flow {
	seq, ok := a.ledger.find(a.ledger.hash(key))
	if !ok {
		return nil
	}
	switch s := *a.ledger.state(seq); s & stateBits {
	case open:
		if f := a.flows[seq]; f != nil && f.Key == key {
			return f
		}
	case paged:
		return a.unpage(seq, key)
	case passed, judged:
		e := a.ledger.entry(seq)
		a.recalled = Flow{Key: key, InitiatorIsLo: s&initiatorIsLo != 0, Last: a.ledger.base.Add(e.last),
			Packets: e.packets, Bytes: e.bytes, Seq: seq, stage: decided, handedOver: s&stateBits == judged}
		return &a.recalled
	}
	return nil
}

// enter makes a flow known that has just begun.
func (a *Assembler) enter(f *Flow) {
	f.Seq = a.ledger.add(a.ledger.hash(f.Key), f.Start)
	a.flows[f.Seq] = f
}

// used notes that a packet of the flow has come.
func (a *Assembler) used(f *Flow) {
	switch f.stage {
	case decided:
		a.settle(f)
	case handshake:
		a.waiting.push(f)
		a.shrink(&a.waiting)
	}
}

// settle leaves of a decided flow what the ledger keeps.
func (a *Assembler) settle(f *Flow) {
	e, s := a.ledger.entry(f.Seq), a.ledger.state(f.Seq)
	e.last, e.packets, e.bytes = f.Last.Sub(a.ledger.base), f.Packets, f.Bytes
	*s = passed
	if f.handedOver {
		*s = judged
	}
	if f.InitiatorIsLo {
		*s |= initiatorIsLo
	}
	if f != &a.recalled {
		f.leave()
		delete(a.flows, f.Seq)
	}
}

// drop takes a flow that is over out of memory.
func (a *Assembler) drop(f *Flow) {
	if f.stage != decided {
		f.leave()
		delete(a.flows, f.Seq)
	}
}

// clear makes the Assembler as empty as a new one.
func (a *Assembler) clear() {
	a.flows = map[uint64]*Flow{}
	a.waiting, a.list = ring{}, ring{}
	a.ledger, a.pages = newLedger(), newPages(a.opts.TempDir)
	a.recalled, a.free, a.now = Flow{}, nil, time.Time{}
}

// A ring holds flows in the order in which they were pushed.
type ring struct {
	head Flow // its next is the first, its prev the last
	n    int
}

// push puts f to the end.
func (r *ring) push(f *Flow) {
	f.leave()
	if r.head.next == nil {
		r.head.next, r.head.prev = &r.head, &r.head
	}
	r.insert(f, r.head.prev)
}

// pushFront puts f to the beginning.
func (r *ring) pushFront(f *Flow) {
	if r.n == 0 {
		r.push(f)
		return
	}
	f.leave()
	r.insert(f, &r.head)
}

func (r *ring) insert(f, after *Flow) {
	f.ring, f.prev, f.next = r, after, after.next
	f.prev.next, f.next.prev = f, f
	r.n++
}

// first returns the flow that was pushed first, nil when there is none.
func (r *ring) first() *Flow {
	if r.n == 0 {
		return nil
	}
	return r.head.next
}

// leave takes the flow off the ring that it is in, if any.
func (f *Flow) leave() {
	if f.ring != nil {
		f.prev.next, f.next.prev = f.next, f.prev
		f.ring.n--
		f.ring, f.prev, f.next = nil, nil, nil
	}
}
