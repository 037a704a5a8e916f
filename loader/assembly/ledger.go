// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"hash/maphash"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// A ledger has one entry per flow, in order of their start: an entry's number is
// the flow's Seq. Those of handshakes that became no flow stay empty. It finds the
// latest flow of a key by a hash of 64 bits, whose secret is drawn for each
// ledger: the chance that any two of ten million keys are mistaken for one another is 1
// in 370 000.
//
// An entry takes 41 bytes and 5 to 9 in the index, none of which the garbage
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
	numbers        [2]uint32 // as Flow.numbers
}

// state says where the flow of an entry is, and some of what is kept of it.
type state uint8

const (
	open   state = iota // in memory, or no flow, or over without having been handed over
	passed              // decided without a capture
	judged              // handed over
	paged               // in pages

	stateBits           = 0x03
	asleep        state = 0x08
	over          state = 0x10 // its key begins, or began, another flow
	marked        state = 0x20
	hasNumbers    state = 0x40
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

// reserve makes an entry for what may become a flow and returns its number. Now is
// about when it begins.
func (l *ledger) reserve(now time.Time) uint64 {
	if l.n == 0 {
		l.base = now
	}
	seq := l.n
	if seq%blockSize == 0 {
		l.blocks = append(l.blocks, new(block))
	}
	l.n++
	return seq
}

// start makes the entry that of the latest flow with this hash.
func (l *ledger) start(seq, hash uint64) {
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

// find returns the flow that has the key, nil where there is none. One that is decided
// is valid until the next call.
func (a *Assembler) find(key flow.Key) *Flow {
	seq, ok := a.ledger.find(a.ledger.hash(key))
	if !ok {
		return nil
	}
	s := *a.ledger.state(seq)
	switch s & stateBits {
	case open:
		if f := a.flows[seq]; f != nil && f.Key == key {
			return f
		}
	case paged:
		return a.unpage(seq, key)
	case passed, judged:
		if s&over != 0 {
			return nil
		}
		e := a.ledger.entry(seq)
		a.recalled = Flow{Key: key, InitiatorIsLo: s&initiatorIsLo != 0, Last: a.ledger.base.Add(e.last),
			Packets: e.packets, Bytes: e.bytes, Seq: seq, stage: decided, silent: s&stateBits == passed,
			marked: s&marked != 0, hasNumbers: s&hasNumbers != 0, asleep: s&asleep != 0, numbers: e.numbers}
		return &a.recalled
	}
	return nil
}

// Totals returns the figures so far of a flow that was handed over since the last
// Flush.
func (a *Assembler) Totals(seq uint64) Totals {
	e := a.ledger.entry(seq)
	return Totals{Seq: seq, Packets: e.packets, Bytes: e.bytes}
}

// settle leaves in the ledger what matters of a flow that is decided, whenever that
// changed. It does nothing to others.
func (a *Assembler) settle(f *Flow) {
	if f.stage != decided {
		return
	}
	e, s := a.ledger.entry(f.Seq), judged
	e.last, e.packets, e.bytes, e.numbers = f.Last.Sub(a.ledger.base), f.Packets, f.Bytes, f.numbers
	if f.silent {
		s = passed
	}
	for _, flag := range [...]struct {
		on  bool
		bit state
	}{{f.InitiatorIsLo, initiatorIsLo}, {f.marked, marked}, {f.hasNumbers, hasNumbers}, {f.asleep, asleep}} {
		if flag.on {
			s |= flag.bit
		}
	}
	*a.ledger.state(f.Seq) = s
	if f != &a.recalled {
		delete(a.flows, f.Seq)
	}
}

// clear makes the Assembler as empty as a new one.
func (a *Assembler) clear() {
	a.flows = map[uint64]*Flow{}
	a.handshakes.init()
	a.waits.init()
	a.ended = newEnded()
	a.list, a.turns, a.looked = ring{}, 0, nil
	a.ledger, a.pages = newLedger(), newPages(a.opts.TempDir)
	a.recalled, a.free, a.now, a.sources = Flow{}, nil, time.Time{}, nil
	a.fragments = recent[fragmentKey, firstFragment]{}
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
	f.ring, f.prev, f.next = r, r.head.prev, &r.head
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
