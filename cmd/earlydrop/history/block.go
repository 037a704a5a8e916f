// SPDX-License-Identifier: Apache-2.0

package history

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

const (
	// blockEvents is how many events a block has that is full.
	blockEvents = 128
	// chunkEvents is how many of them are compressed together: for one event, those beside it are
	// unpacked as well.
	chunkEvents = 32
	// heldEvents stay in the open block when a full one leaves it: workers name events and queue
	// them in slightly different order.
	heldEvents = 32
	// maxBlockBytes bounds what a block is unpacked to: a damaged one may say anything.
	maxBlockBytes = 16 << 20
)

// words are the properties of events that few values are seen of.
type words struct {
	kind, iface, rule, decision, detected, proto string
	classes                                      []string
	directed                                     bool
}

func wordsOf(p *event.Properties) words {
	return words{kind: p.Kind, iface: p.Interface, rule: p.Rule, decision: p.Decision, detected: p.Detected, proto: p.Proto,
		classes: p.Classes, directed: p.Directed}
}

func (w *words) properties() event.Properties {
	return event.Properties{Kind: w.kind, Interface: w.iface, Classes: w.classes, Rule: w.rule, Decision: w.decision, Detected: w.detected,
		Proto: w.proto, Directed: w.directed}
}

func (w *words) equal(o *words) bool {
	return w.kind == o.kind && w.iface == o.iface && w.rule == o.rule && w.decision == o.decision && w.detected == o.detected &&
		w.proto == o.proto && w.directed == o.directed && slices.Equal(w.classes, o.classes)
}

// append appends the words: a byte that says whether they are directed, and texts, each with its
// length before it.
func (w *words) append(b []byte) []byte {
	directed := byte(0)
	if w.directed {
		directed = 1
	}
	b = append(b, directed)
	for _, text := range []string{w.kind, w.iface, w.rule, w.decision, w.detected, w.proto} {
		b = append(binary.AppendUvarint(b, uint64(len(text))), text...)
	}
	b = binary.AppendUvarint(b, uint64(len(w.classes)))
	for _, text := range w.classes {
		b = append(binary.AppendUvarint(b, uint64(len(text))), text...)
	}
	return b
}

// readWords reads what append has written, and returns what follows.
func readWords(b []byte) (w words, rest []byte, err error) {
	number := func() uint64 {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) {
			b, err = nil, errBlock
			return 0
		}
		b = b[size:]
		return n
	}
	text := func() string {
		n := number()
		s := string(b[:n])
		b = b[n:]
		return s
	}
	if len(b) == 0 {
		return w, nil, errBlock
	}
	w.directed, b = b[0] != 0, b[1:]
	for _, field := range []*string{&w.kind, &w.iface, &w.rule, &w.decision, &w.detected, &w.proto} {
		*field = text()
	}
	for range number() {
		w.classes = append(w.classes, text())
	}
	return w, b, err
}

// entry is an event of a block.
type entry struct {
	id       event.ID
	at       int64 // time of the event, in microseconds since 1970
	src, dst netip.AddrPort
	words    words
	line     []byte // JSON
}

// newEntry returns the entry of an event.
func newEntry(e event.Event) (entry, error) {
	line, err := json.Marshal(e)
	if err != nil {
		return entry{}, err
	}
	p := event.PropertiesOf(e)
	return entry{event.IDOf(e), e.When().UnixMicro(), p.Src, p.Dst, wordsOf(&p), line}, nil
}

// open is the block that events are added to.
type open struct {
	entries []entry
	sorted  bool
}

func (o *open) add(e entry) {
	o.sorted = o.sorted && (len(o.entries) == 0 || o.entries[len(o.entries)-1].id < e.id)
	o.entries = append(o.entries, e)
}

func (o *open) sort() {
	if !o.sorted {
		slices.SortFunc(o.entries, func(a, b entry) int { return cmp.Compare(a.id, b.id) })
		o.sorted = true
	}
}

// full reports whether a block can be taken off.
func (o *open) full() bool { return len(o.entries) >= blockEvents+heldEvents }

// drop forgets the first n events.
func (o *open) drop(n int) {
	left := copy(o.entries, o.entries[n:])
	clear(o.entries[left:])
	o.entries = o.entries[:left]
}

// block is a block as it is in the file.
type block struct {
	first, last event.ID
	begin, end  int64
	events      int
	keys        filter
	rows        []byte // compressed: how many words there are, these, and a row for each event
	text        []byte // chunks of lines, compressed, each with its length before it
}

// endBytes is an end of a flow in a row; rowBytes is a row: ID, time, both ends, and the number
// of its words.
const (
	endBytes = 16 + 2
	rowBytes = 8 + 8 + 2*endBytes + 2
)

// packer makes blocks of entries. It is for one goroutine, and its blocks are valid until the
// next one.
type packer struct {
	zstd                *zstd.Encoder
	plain, rows, packed []byte
	block               block
	hashes              []uint64
}

func newPacker() (*packer, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(256<<10))
	return &packer{zstd: z}, err
}

// pack makes a block of entries that are sorted, at least one and at most 65535.
func (p *packer) pack(entries []entry) *block {
	b := &p.block
	b.first, b.last, b.events = entries[0].id, entries[len(entries)-1].id, len(entries)
	b.begin, b.end = entries[0].at, entries[0].at
	var dictionary []words
	p.rows, p.hashes = p.rows[:0], p.hashes[:0]
	for i := range entries {
		e := &entries[i]
		b.begin, b.end = min(b.begin, e.at), max(b.end, e.at)
		n := slices.IndexFunc(dictionary, func(w words) bool { return w.equal(&e.words) })
		if n < 0 {
			n = len(dictionary)
			dictionary = append(dictionary, e.words)
			p.hashes = e.words.appendKeys(p.hashes)
		}
		p.hashes = appendEndKeys(p.hashes, e.src, e.dst, e.words.directed)
		p.rows = binary.LittleEndian.AppendUint64(p.rows, uint64(e.id))
		p.rows = binary.LittleEndian.AppendUint64(p.rows, uint64(e.at))
		p.rows = appendEnd(appendEnd(p.rows, e.src), e.dst)
		p.rows = binary.LittleEndian.AppendUint16(p.rows, uint16(n))
	}
	p.plain = binary.AppendUvarint(p.plain[:0], uint64(len(dictionary)))
	for i := range dictionary {
		p.plain = dictionary[i].append(p.plain)
	}
	b.rows = p.zstd.EncodeAll(append(p.plain, p.rows...), b.rows[:0])
	b.text = b.text[:0]
	for chunk := range slices.Chunk(entries, chunkEvents) {
		p.plain, p.packed = p.plain[:0], p.packed[:0]
		for i := range chunk {
			p.plain = append(append(p.plain, chunk[i].line...), '\n')
		}
		p.packed = p.zstd.EncodeAll(p.plain, p.packed)
		b.text = append(binary.AppendUvarint(b.text, uint64(len(p.packed))), p.packed...)
	}
	b.keys = newFilter(b.keys, p.hashes)
	return b
}

func appendEnd(b []byte, end netip.AddrPort) []byte {
	addr := end.Addr().As16() // zeros of none
	return binary.LittleEndian.AppendUint16(append(b, addr[:]...), end.Port())
}

func readEnd(b []byte) netip.AddrPort {
	addr := netip.AddrFrom16([16]byte(b)).Unmap()
	return netip.AddrPortFrom(addr, binary.LittleEndian.Uint16(b[16:]))
}

// errBlock means that a block can't be unpacked.
var errBlock = errors.New("a block of the history is damaged")

// unpacker reads blocks; safe for concurrent use.
type unpacker struct{ zstd *zstd.Decoder }

func newUnpacker() (*unpacker, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBlockBytes), zstd.WithDecoderLowmem(true))
	return &unpacker{z}, err
}

// row is what an event is searched by.
type row struct {
	id event.ID
	at int64 // microseconds since 1970
	event.Properties
}

// rows returns those of a block, with their places, in the order in which they are in it.
func (u *unpacker) rows(packed []byte, yield func(i int, r *row) bool) error {
	plain, err := u.zstd.DecodeAll(packed, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", errBlock, err)
	}
	count, size := binary.Uvarint(plain)
	if size <= 0 || count > uint64(len(plain)) {
		return errBlock
	}
	rows, dictionary := plain[size:], make([]event.Properties, count)
	for i := range dictionary {
		var w words
		if w, rows, err = readWords(rows); err != nil {
			return err
		}
		dictionary[i] = w.properties()
	}
	if len(rows)%rowBytes != 0 {
		return errBlock
	}
	r := new(row)
	for i := 0; len(rows) > 0; i, rows = i+1, rows[rowBytes:] {
		n := int(binary.LittleEndian.Uint16(rows[rowBytes-2:]))
		if n >= len(dictionary) {
			return errBlock
		}
		r.id, r.at, r.Properties = event.ID(binary.LittleEndian.Uint64(rows)), int64(binary.LittleEndian.Uint64(rows[8:])), dictionary[n]
		if r.Proto != "" { // else it has no ends
			r.Src, r.Dst = readEnd(rows[16:]), readEnd(rows[16+endBytes:])
		}
		if !yield(i, r) {
			return nil
		}
	}
	return nil
}

// lines returns the events at these places of a block, which are in order.
func (u *unpacker) lines(packed []byte, places []int) ([]json.RawMessage, error) {
	lines := make([]json.RawMessage, 0, len(places))
	var text []byte
	for first := 0; len(places) > 0; first += chunkEvents {
		size, n := binary.Uvarint(packed)
		if n <= 0 || size > uint64(len(packed)-n) {
			return nil, errBlock
		}
		chunk := packed[n : n+int(size)]
		packed = packed[n+int(size):]
		if places[0] >= first+chunkEvents {
			continue
		}
		var err error
		if text, err = u.zstd.DecodeAll(chunk, text[:0]); err != nil {
			return nil, fmt.Errorf("%w: %w", errBlock, err)
		}
		rest := text
		for at := first; len(places) > 0 && places[0] < first+chunkEvents; at++ {
			end := bytes.IndexByte(rest, '\n')
			if end < 0 {
				return nil, errBlock
			}
			if at == places[0] {
				lines = append(lines, bytes.Clone(rest[:end])) // who keeps one does not keep them all
				places = places[1:]
			}
			rest = rest[end+1:]
		}
	}
	return lines, nil
}
