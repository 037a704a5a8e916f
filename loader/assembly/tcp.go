// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"slices"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
	"github.com/earlydrop/earlydrop/loader/flow/signals"
)

// A TCP connection is judged only if both its ends have made it. Until then there
// are candidates, and they change nothing that is known of the connection's key:
// whoever can send packets from one side of the interface alone can forge a SYN, or
// a SYN+ACK, but not the answer to the other one's number.
//
// The kernel program follows the same rules, packet by packet.

// candidateAge is how long a SYN is the first one of its key and side, and how
// long an answered candidate is looked at for the sake of a flow that has the key.
const candidateAge = time.Minute

// reflectedAge is how soon a packet of a handshake is seen again that is sent out
// through the interface that it came in by.
const reflectedAge = time.Second

// maxCandidates bounds the candidates, and maxRemembered half of the keys of
// mid-stream connections, and of the inbound packets of handshakes, that are
// remembered. The live data path has about as many, by default.
const (
	maxCandidates = 1 << 16
	maxRemembered = 1 << 16
)

// segment is a TCP segment on its way through the rules.
type segment struct {
	headers.Packet
	ts    time.Time
	side  Side
	frame []byte // to the end of the packet

	origin  signals.Origin
	checked bool // whether wrong is known
	wrong   bool // the checksum
}

// wrongChecksum reports whether no host accepts the segment.
func (s *segment) wrongChecksum() bool {
	if !s.checked {
		s.checked, s.wrong = true, signals.WrongChecksum(&s.Headers, s.frame, s.origin)
	}
	return s.wrong
}

// sender is the index of the sender's side among the candidates of a key.
func (s *segment) sender() int {
	if s.side == SideOutbound || s.side == SideUnknown && s.SrcIsLo {
		return 1
	}
	return 0
}

// candidateState is how far a handshake has come.
type candidateState uint8

const (
	begun         candidateState = iota // nothing but SYNs
	answeredAlone                       // a SYN+ACK without a SYN that it acknowledges
	answered                            // a SYN+ACK that acknowledges a SYN
	proven                              // and the initiator has acknowledged that
)

// syn is a SYN that was seen.
type syn struct {
	known   bool
	fromLo  bool // its direction
	mpJoin  bool
	right   bool // its checksum
	seq     uint32
	payload int // bytes
	first   time.Time
	order   uint64 // of its flow, should it be acknowledged

	// frame is the whole one, or the headers where it is longer than
	// flow.HandshakeFrame; nil where they are as well.
	frame              []byte
	wireLen, headerLen int    // of the whole one
	lack, headerLack   lack   // of the whole one and of its headers
	packets, bytes     uint64 // its retransmissions included
}

// candidate is a handshake whose initiator is on one side.
type candidate struct {
	key   flow.Key
	index int // among the candidates of the key
	side  Side
	// syns are the first and the latest one. The one that is acknowledged wins.
	syns  [2]syn
	state candidateState
	// oneWay: it was counted as such.
	oneWay bool

	// From answeredAlone on.
	initiatorIsLo  bool
	mpJoin         bool
	closed         bool   // proven, and a RST or FIN in place came
	fragmented     bool   // a segment in place came in fragments that hide its header
	payloadKept    bool   // the SYN had payload, which was acknowledged and is in early
	x, y           uint32 // initial numbers of initiator and responder
	ack            uint32 // of the SYN+ACK
	stream         stream
	at             time.Time // of the SYN+ACK
	start, last    time.Time // of the first packet in early and of the latest one
	early          []byte    // frames
	earlyRecs      []flow.Packet
	lack           lack // of those
	packets, bytes uint64
	order          uint64 // of the flow

	// Those that are not proven form a list in order of their latest change, and
	// those that are another one.
	prev, next *candidate
}

// candidates are those of one key, by the side of the initiator.
type candidates [2]*candidate

// recent is a map that forgets what was not asked for or set for longest.
type recent[K comparable, V any] struct{ young, old map[K]V }

func (r *recent[K, V]) get(key K) (v V, ok bool) {
	if v, ok = r.young[key]; ok {
		return v, true
	}
	if v, ok = r.old[key]; ok {
		r.set(key, v)
	}
	return v, ok
}

func (r *recent[K, V]) set(key K, v V) {
	if r.young == nil || len(r.young) >= maxRemembered {
		r.young, r.old = map[K]V{}, r.young
	}
	r.young[key] = v
}

func (r *recent[K, V]) delete(key K) {
	delete(r.young, key)
	delete(r.old, key)
}

// inbound is a packet of a handshake, or a datagram (its length and checksum), that came in.
type inbound struct {
	key      flow.Key
	fromLo   bool
	flags    headers.Flags
	seq, ack uint32
}

// handshakes is what an Assembler knows of TCP beside its flows.
type handshakes struct {
	of           map[flow.Key]*candidates
	n            int
	open, proven candidate // rings: next is the one that gives way first
	withoutData  uint64    // connections and handshakes that ended without payload
	midStream    recent[flow.Key, struct{}]
	inbound      recent[inbound, time.Time]
}

func (h *handshakes) init() {
	*h = handshakes{of: map[flow.Key]*candidates{}}
	h.open.prev, h.open.next = &h.open, &h.open
	h.proven.prev, h.proven.next = &h.proven, &h.proven
}

// reflected reports whether a SYN or SYN+ACK left a moment after it came in: routing
// sent it back, and nobody on the other side has sent it.
func (h *handshakes) reflected(s *segment) bool {
	return h.sentBack(s, inbound{s.Key, s.SrcIsLo, s.Flags & (headers.SYN | headers.ACK), s.Seq, s.Ack})
}

// sentBack reports whether what left came in a moment before.
func (h *handshakes) sentBack(s *segment, what inbound) bool {
	switch s.side {
	case SideInbound:
		h.inbound.set(what, s.ts)
	case SideOutbound:
		at, ok := h.inbound.get(what)
		return ok && s.ts.Sub(at) <= reflectedAge
	}
	return false
}

// candidate returns the candidate of a key and side, a new one if need be.
func (h *handshakes) candidate(key flow.Key, index int, side Side) *candidate {
	pair := h.of[key]
	if pair == nil {
		pair = new(candidates)
		h.of[key] = pair
	}
	c := pair[index]
	if c == nil {
		c = &candidate{key: key, index: index, side: side}
		pair[index] = c
		h.n++
	}
	h.touch(c)
	if h.n > maxCandidates {
		oldest := h.open.next
		if oldest == c || oldest == &h.open {
			oldest = h.proven.next
		}
		if !oldest.closed {
			h.withoutData++
		}
		h.drop(oldest)
	}
	return c
}

// unended returns the number of connections and handshakes without payload that were
// not counted when they ended.
func (h *handshakes) unended() uint64 {
	n := h.withoutData
	for _, pair := range h.of {
		for _, c := range pair {
			if c != nil && !c.closed {
				n++
			}
		}
	}
	return n
}

// touch makes the candidate the last of its list to give way.
func (h *handshakes) touch(c *candidate) {
	c.unlink()
	ring := &h.open
	if c.state == proven && !c.closed {
		ring = &h.proven
	}
	c.prev, c.next = ring.prev, ring
	c.prev.next, c.next.prev = c, c
}

func (c *candidate) unlink() {
	if c.prev != nil {
		c.prev.next, c.next.prev = c.next, c.prev
		c.prev, c.next = nil, nil
	}
}

// drop forgets a candidate.
func (h *handshakes) drop(c *candidate) {
	c.unlink()
	pair := h.of[c.key]
	pair[c.index] = nil
	if pair[1-c.index] == nil {
		delete(h.of, c.key)
	}
	h.n--
}

// tcp takes a segment. f is the flow that has its key, or nil.
func (a *Assembler) tcp(f *Flow, s *segment) {
	switch {
	case s.Flags&headers.SYN == 0:
		a.segment(f, s)
	case s.badFlags():
		a.counters[BadFlags]++
	case s.Flags.Opens():
		a.syn(s)
	default:
		a.synAck(f, s)
	}
}

// badFlags reports whether no host sends a segment with these flags.
func (s *segment) badFlags() bool {
	return s.Proto == flow.TCP && s.Flags&headers.SYN != 0 && s.Flags.Closes()
}

// hasPayload reports whether the segment or datagram has payload. Of a first fragment, all of
// it may come in later ones.
func (s *segment) hasPayload() bool { return s.PayloadLen > 0 || s.MoreFragments }

// syn makes a SYN a candidate. It touches nothing else that is known of its key.
func (a *Assembler) syn(s *segment) {
	if a.handshakes.reflected(s) {
		a.counters[Reflected]++
		return
	}
	c := a.handshakes.candidate(s.Key, s.sender(), s.side)
	if known := c.findSYN(s); known != nil { // a retransmission
		known.packets++
		known.bytes += uint64(s.WireLen)
		return
	}
	a.counters[SYNs]++
	to := &c.syns[0]
	if to.known && s.ts.Sub(to.first) <= candidateAge {
		to = &c.syns[1]
	}
	*to = syn{known: true, order: a.order(), fromLo: s.SrcIsLo, seq: s.Seq, payload: s.PayloadLen, mpJoin: joins(s), right: !s.wrongChecksum(),
		first: s.ts, wireLen: s.WireLen, headerLen: s.Payload, packets: 1, bytes: uint64(s.WireLen),
		lack: lacks(&s.Packet, s.frame, flow.CaptureBytes), headerLack: lacksHeaders(&s.Packet, s.frame)}
	if s.WireLen <= flow.HandshakeFrame {
		to.frame = slices.Clone(s.frame)
	} else if s.Payload <= flow.HandshakeFrame {
		to.frame = slices.Clone(s.headersAlone())
	}
}

// headersAlone cuts the segment's payload off.
func (s *segment) headersAlone() []byte {
	return s.frame[:min(len(s.frame), s.Payload)]
}

// findSYN returns the SYN of which the segment is a copy.
func (c *candidate) findSYN(s *segment) *syn {
	for i := range c.syns {
		if known := &c.syns[i]; known.known && known.seq == s.Seq && known.fromLo == s.SrcIsLo {
			return known
		}
	}
	return nil
}

// sameSYNACK reports whether the segment is a copy of the SYN+ACK that answered.
func (c *candidate) sameSYNACK(s *segment) bool {
	return c.state != begun && c.initiatorIsLo != s.SrcIsLo && c.y == s.Seq && c.ack == s.Ack
}

// answers returns the SYN that a SYN+ACK acknowledges, and how many bytes of its
// payload.
func (c *candidate) answers(s *segment) (won *syn, payload int) {
	for i := range c.syns {
		won := &c.syns[i]
		if n := diff(s.Ack, won.seq+1); won.known && won.fromLo != s.SrcIsLo && n >= 0 && n <= won.payload {
			return won, n
		}
	}
	return nil, 0
}

// joins reports whether a SYN adds a subflow to a connection of Multipath TCP
// (MP_JOIN, RFC 8684): what it carries is the middle of a stream.
func joins(s *segment) bool {
	const (
		end, pad, multipath = 0, 1, 30
		join                = 1 // the subtype
		tcpHeader           = 20
	)
	if s.Payload > flow.HandshakeFrame {
		return false // nor does the live data path look at so long headers
	}
	// Payload is where the options end.
	for options := s.frame[s.L4+tcpHeader : max(s.L4+tcpHeader, min(s.Payload, len(s.frame)))]; len(options) > 0; {
		if options[0] == end {
			return false
		}
		if options[0] == pad {
			options = options[1:]
			continue
		}
		if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
			return false
		}
		if options[0] == multipath && options[1] >= 3 && options[2]>>4 == join {
			return true
		}
		options = options[options[1]:]
	}
	return false
}

// synAck takes a SYN+ACK. f is the flow that has its key, or nil.
func (a *Assembler) synAck(f *Flow, s *segment) {
	if a.handshakes.reflected(s) {
		a.counters[Reflected]++
		return
	}
	index := s.sender()
	var c *candidate
	if pair := a.handshakes.of[s.Key]; pair != nil {
		c = pair[1-index]
		// Where sides are no longer believed, it may have begun on either.
		if other := pair[index]; s.side == SideUnknown && other != nil && other.side != SideUnknown {
			if won, _ := other.answers(s); won != nil {
				c = other
			}
		}
	}
	if c != nil {
		won, payload := c.answers(s)
		if c.sameSYNACK(s) && (won == nil || c.state != answeredAlone) { // a retransmission
			c.count(s)
			return
		}
		if won != nil {
			a.answer(f, c, s, won, payload)
			return
		}
		// One that acknowledges nothing that was seen never replaces one that does.
		switch {
		case c.state == answered && s.ts.Sub(c.at) <= candidateAge, c.state == proven && !c.closed:
			a.counters[OutOfPlace]++
			return
		}
	}
	// The SYN may have come in fragments, or behind more headers than are walked.
	a.answer(f, a.handshakes.candidate(s.Key, 1-index, s.side.other()), s, nil, 0)
}

// answer makes the SYN+ACK the one that the candidate goes by. won is the SYN that
// it acknowledges with so many bytes of payload, or nil. f is the flow that has the
// key, or nil.
func (a *Assembler) answer(f *Flow, c *candidate, s *segment, won *syn, payload int) {
	if c.state == proven && !c.closed {
		a.handshakes.withoutData++
	}
	next := candidate{key: c.key, index: c.index, side: c.side, syns: c.syns, prev: c.prev, next: c.next,
		state: answeredAlone, initiatorIsLo: !s.SrcIsLo,
		x: s.Ack - 1, y: s.Seq, ack: s.Ack, at: s.ts, start: s.ts, last: s.ts}
	next.stream = stream{next: [2]uint32{s.Ack, s.Seq + 1}, side: c.side}
	next.stream.first, next.stream.begun = [2]uint32{s.Ack, s.Seq + 1}, true
	next.stream.right[1] = !s.wrongChecksum()
	if won != nil {
		next.stream.right[0] = won.right
		next.state, next.x, next.mpJoin = answered, won.seq, won.mpJoin
		next.stream.first[0] = won.seq + 1
		next.oneWay = c.oneWay
		next.start, next.last = won.first, later(won.first, s.ts)
		next.packets, next.bytes, next.order = won.packets, won.bytes, won.order
		next.payloadKept = next.keepSYN(a, won, payload)
		next.stream.synData = payload < won.payload
	} else {
		next.order = a.order()
	}
	*c = next
	a.handshakes.touch(c)
	a.handshakes.midStream.delete(s.Key)
	if f != nil && won != nil {
		f.marked = true
		a.settle(f)
	}
	c.count(s)
	c.keep(a, s.SrcIsLo, c.last.Sub(c.start), s.Payload, s.headersAlone(), // early data comes again
		lacksHeaders(&s.Packet, s.frame))
}

// keepSYN makes the SYN the first of the frames, without payload that was not
// acknowledged. It reports whether the capture has payload now: what was acknowledged,
// and all of that.
func (c *candidate) keepSYN(a *Assembler, won *syn, acknowledged int) bool {
	wireLen, frame, lack := won.wireLen, won.frame, won.lack
	whole := acknowledged == won.payload && wireLen <= flow.HandshakeFrame
	if !whole {
		wireLen, frame, lack = won.headerLen, frame[:min(len(frame), won.headerLen)], won.headerLack
	}
	c.keep(a, won.fromLo, 0, wireLen, frame, lack)
	return whole && acknowledged > 0
}

// keep adds a packet without payload to the frames, if it fits. It came so long after
// the first one.
func (c *candidate) keep(a *Assembler, fromLo bool, since time.Duration, wireLen int, frame []byte, lack lack) {
	if wireLen > flow.HandshakeFrame || len(c.early)+len(frame) > flow.HandshakeBytes ||
		len(c.earlyRecs) == flow.HandshakePackets {
		a.counters[LeftOut]++
		return
	}
	c.earlyRecs = append(c.earlyRecs, captured(len(c.early), wireLen, fromLo == c.initiatorIsLo, since))
	c.early = append(c.early, frame...)
	c.lack.add(lack)
}

// count adds the segment to the totals of the connection.
func (c *candidate) count(s *segment) {
	c.packets++
	c.bytes += uint64(s.WireLen)
	c.last = later(c.last, s.ts)
}

// segment takes a segment without SYN. f is the flow that has its key, or nil.
func (a *Assembler) segment(f *Flow, s *segment) {
	pair := a.handshakes.of[s.Key]
	switch {
	case f != nil && f.marked && !pair.stands(answered, s.ts):
		f.marked = false
		fallthrough
	case f != nil && !f.marked:
		a.flowSegment(f, s)
		return
	case f == nil:
		if _, ok := a.handshakes.midStream.get(s.Key); ok {
			return
		}
	}
	if pair != nil && a.prove(f, pair, s) {
		return
	}
	if f != nil {
		a.flowSegment(f, s)
		return
	}
	if pair != nil {
		for _, c := range pair {
			if c != nil && c.state == proven {
				a.handshakeSegment(c, s)
				return
			}
		}
		if pair.stands(answered, s.ts) {
			a.early(pair[1-s.sender()], s)
			return
		}
		if c, won := pair.goesOn(s); c != nil {
			a.oneWay(c, won, s)
			return
		}
		if pair.stands(answeredAlone, s.ts) {
			a.counters[OutOfPlace]++
			return
		}
	}
	a.midStreamSegment(s)
}

// stands reports whether one of the candidates is in a state that a SYN+ACK brought it to,
// and not too old for it, nor known to go on in one direction alone.
func (pair *candidates) stands(state candidateState, now time.Time) bool {
	if pair != nil {
		for _, c := range pair {
			if c != nil && c.state == state && now.Sub(c.at) <= candidateAge && (state == answered || !c.oneWay) {
				return true
			}
		}
	}
	return false
}

// early takes a segment that does not prove the handshake in progress. c is the
// candidate that it could be the responder's of, or nil. A responder that speaks before
// its SYN+ACK is answered, as with TCP Fast Open, or seems to, as the answer is not in
// the capture file, must not hide the connection. What it says is not captured.
func (a *Assembler) early(c *candidate, s *segment) {
	at := OutOfPlace
	if c != nil && c.state == answered && c.initiatorIsLo != s.SrcIsLo && !c.stream.isDecoy(s, 1) {
		at, _ = c.stream.take(&s.Packet, 1, s.side)
	}
	if at != inPlace {
		a.counters[at]++
		if at == OutOfPlace {
			a.stray(s)
		}
		return
	}
	c.stream.serverData = c.stream.serverData || s.PayloadLen > 0
	c.count(s)
}

// stray takes a segment of either end that is out of place in the handshake in progress.
func (a *Assembler) stray(s *segment) {
	for _, c := range a.handshakes.of[s.Key] {
		if c == nil || c.state != answered {
			continue
		}
		dir := direction(&s.Packet, c.initiatorIsLo)
		if c.stream.isDecoy(s, dir) || !c.stream.isFrom(s, dir) {
			continue
		}
		if c.stream.noteStray(&s.Packet, dir, s.side); c.strays() {
			a.show(c, flow.SignalOutOfPlace)
			return
		}
	}
}

// strays reports whether both sides of a connection that has no payload have sent much of it out
// of place: they may have agreed on other numbers.
func (c *candidate) strays() bool { return c.stream.outOfPlace && len(c.earlyRecs) > 0 }

// proves reports whether the segment is the initiator's answer to the SYN+ACK, by its
// numbers. The bare one may have been lost, and some data with it.
func (c *candidate) proves(s *segment) bool {
	if s.SrcIsLo != c.initiatorIsLo || s.Flags&(headers.ACK|headers.RST) != headers.ACK || c.stream.isDecoy(s, 0) {
		return false
	}
	seq, ack := diff(s.Seq, c.ack), diff(s.Ack, c.y+1)
	switch c.state {
	case answeredAlone:
		return seq == 0 && ack == 0
	case answered:
		early := diff(c.stream.next[1], c.y+1)
		if early != 0 {
			early++ // its FIN
		}
		return seq >= 0 && seq <= seqWindow && ack >= 0 && ack <= early
	}
	return false
}

// wrongSide reports whether the segment is not from where the initiator is.
func (c *candidate) wrongSide(s *segment) bool {
	return s.side != SideUnknown && c.side != SideUnknown && s.side != c.side
}

// prove takes the segment that proves a candidate and reports whether there is
// nothing left to do with it. f is the flow that has the key, or nil.
func (a *Assembler) prove(f *Flow, pair *candidates, s *segment) bool {
	c := pair[s.sender()]
	if c == nil || !c.proves(s) {
		if c = pair[1-s.sender()]; c == nil || !c.proves(s) {
			return false
		}
	}
	if c.wrongSide(s) {
		// Somebody has sent all of it from one side, and it came back.
		a.counters[Reflected]++
		if c.syns[0].known || c.syns[1].known {
			*c = candidate{key: c.key, index: c.index, side: c.side, syns: c.syns, oneWay: c.oneWay, prev: c.prev, next: c.next}
		} else {
			a.handshakes.drop(c)
		}
		return true
	}
	other := pair[1-c.index]
	if f != nil && f.hasNumbers && f.numbers == c.numbers() ||
		other != nil && other.state == proven && other.numbers() == c.numbers() {
		// The connection that is known already.
		a.handshakes.drop(c)
		if f != nil {
			f.marked = false
		}
		return false
	}
	a.begin(f, c, s)
	return true
}

// numbers are the initial ones of the lower and the higher endpoint.
func (c *candidate) numbers() [2]uint32 {
	if c.initiatorIsLo {
		return [2]uint32{c.x, c.y}
	}
	return [2]uint32{c.y, c.x}
}

// begin makes the candidate a connection, by the segment that proves it, and ends all
// else that was known of its key. f is the flow that has the key, or nil.
func (a *Assembler) begin(f *Flow, c *candidate, s *segment) {
	if other := a.handshakes.of[c.key][1-c.index]; other != nil && other.state != begun {
		if other.state == proven && !other.closed {
			a.handshakes.withoutData++
		}
		a.handshakes.drop(other)
	}
	if f != nil {
		a.restart(f)
	}
	a.counters[Opened]++
	if c.mpJoin {
		a.counters[MPJoin]++
		c.count(s)
		a.show(c, flow.SignalMPTCPJoin)
		return
	}
	c.state = proven
	a.handshakes.touch(c)
	if c.payloadKept {
		a.flowSegment(a.open(c), s)
	} else {
		a.handshakeSegment(c, s)
	}
}

// handshakeSegment takes a segment of a connection that is proven and has no payload
// yet.
func (a *Assembler) handshakeSegment(c *candidate, s *segment) {
	if a.leaveOut(&c.stream, s, direction(&s.Packet, c.initiatorIsLo)) {
		return
	}
	dir := direction(&s.Packet, c.initiatorIsLo)
	at, ends := c.stream.take(&s.Packet, dir, s.side)
	if at != inPlace {
		if a.misplaced(&c.stream, s, dir, at); c.strays() {
			a.show(c, flow.SignalOutOfPlace)
		}
		return
	}
	c.count(s)
	if s.hasPayload() {
		f := a.open(c)
		f.Last = c.last
		a.capture(f, &s.Packet, s.frame, ends)
		return
	}
	c.keep(a, s.SrcIsLo, c.last.Sub(c.start), s.WireLen, s.frame, lacks(&s.Packet, s.frame, flow.CaptureBytes))
	if c.stream.unread(&s.Packet, dir) {
		a.show(c, flow.SignalUnreadable)
		return
	}
	if s.Flags.Closes() && !c.closed {
		c.closed = true
		a.counters[HeaderOnly]++
	}
	a.handshakes.touch(c)
}

// misplaced counts a segment of a connection that is not captured for where it is.
func (a *Assembler) misplaced(st *stream, s *segment, dir int, at place) {
	a.counters[at]++
	if at == OutOfPlace {
		st.noteStray(&s.Packet, dir, s.side)
	}
}

// show hands over the handshake of a connection of which nothing else is captured, for a
// signal. Its packets may all have been too long to keep.
func (a *Assembler) show(c *candidate, signal flow.Signals) {
	kept := len(c.earlyRecs) > 0
	f := a.open(c)
	if kept {
		f.shown = signal
		a.handOver(f, flow.ReasonClosed)
		return
	}
	a.release(f)
	f.stage, f.stream, f.silent = decided, nil, true
	a.settle(f)
}

// open makes a candidate the flow of its key, and begins its capture.
func (a *Assembler) open(c *candidate) *Flow {
	f := a.start(c.key, c.initiatorIsLo, c.start, c.order)
	f.Last, f.captured = c.last, c.last
	f.Packets, f.Bytes = c.packets, c.bytes
	f.hasNumbers, f.numbers = true, c.numbers()
	f.stream, f.lack, f.fragmented = &c.stream, c.lack, c.fragmented
	if c.payloadKept {
		f.payload = int(c.ack - (c.x + 1))
	}
	a.collect(f, c.early, c.earlyRecs)
	a.handshakes.drop(c)
	return f
}

// flowSegment takes a segment of a flow.
func (a *Assembler) flowSegment(f *Flow, s *segment) {
	f.count(&s.Packet, s.ts)
	if f.stage != collecting {
		if !a.again(f, s) {
			a.settle(f)
		}
		return
	}
	if a.leaveOut(f.stream, s, direction(&s.Packet, f.InitiatorIsLo)) {
		return
	}
	dir := direction(&s.Packet, f.InitiatorIsLo)
	at, ends := f.stream.take(&s.Packet, dir, s.side)
	if at != inPlace {
		a.misplaced(f.stream, s, dir, at)
		// One byte is how some ask whether the other side is alive.
		if at == Behind && s.PayloadLen > 1 && len(f.sample.Repeat.Data) == 0 {
			f.sample.KeepRepeat(s.Seq, dir == 0, s.frame[min(s.Payload, len(s.frame)):])
		}
		return
	}
	a.capture(f, &s.Packet, s.frame, ends)
}

// leaveOut reports whether a segment of a connection is a decoy, and counts it. One that
// is in place, but for its checksum, is a signal: who does not know the numbers can't
// send it.
func (a *Assembler) leaveOut(st *stream, s *segment, dir int) bool {
	if !st.isDecoy(s, dir) {
		return false
	}
	as := *st // the decoy moves nothing on
	switch at, _ := as.take(&s.Packet, dir, s.side); at {
	case WrongSide:
		a.counters[WrongSide]++
		return true
	case inPlace, Behind:
		st.decoy = true
	}
	a.counters[Decoys]++
	return true
}

// goesOn returns the candidate, if there is one, of a connection of which one direction
// alone is seen: by the segment that follows the SYN, then won is that, or the SYN+ACK.
func (pair *candidates) goesOn(s *segment) (c *candidate, won *syn) {
	if s.Flags&(headers.ACK|headers.RST) != headers.ACK || s.origin != signals.File && s.wrongChecksum() {
		return nil, nil
	}
	if c = pair[s.sender()]; c != nil && c.state == begun {
		for i := range c.syns {
			if won = &c.syns[i]; won.known && won.fromLo == s.SrcIsLo && won.seq+1 == s.Seq {
				return c, won
			}
		}
	}
	if c = pair[1-s.sender()]; c != nil && c.state == answeredAlone && c.initiatorIsLo != s.SrcIsLo && c.y+1 == s.Seq {
		return c, nil
	}
	return nil, nil
}

// oneWay takes a segment of a connection of which one direction alone was seen so far.
// won is its SYN, where that is the direction.
func (a *Assembler) oneWay(c *candidate, won *syn, s *segment) {
	if !c.oneWay {
		c.oneWay = true
		a.counters[OneWay]++
	}
	if !a.opts.OneWay {
		a.midStreamSegment(s)
		return
	}
	if won != nil {
		c.initiatorIsLo, c.mpJoin = won.fromLo, won.mpJoin
		c.x, c.y, c.ack = won.seq, s.Ack-1, won.seq+1
		c.at = s.ts
		c.start, c.last = won.first, later(won.first, s.ts)
		c.packets, c.bytes, c.order = won.packets, won.bytes, won.order
		c.stream = stream{next: [2]uint32{c.ack, s.Ack}, side: c.side}
		c.stream.first, c.stream.begun = [2]uint32{c.ack, s.Ack}, true
		c.stream.right[0] = won.right
		c.keepSYN(a, won, 0)
	}
	c.stream.oneWay = true
	a.begin(nil, c, s)
}

// midStreamSegment takes a segment of a connection of which no beginning was seen.
func (a *Assembler) midStreamSegment(s *segment) {
	if s.origin != signals.File && s.wrongChecksum() {
		a.counters[Decoys]++
		return
	}
	if !a.opts.MidStream {
		a.counters[MidStream]++
		// What may yet be proven must be looked at.
		if pair := a.handshakes.of[s.Key]; !pair.stands(answered, s.ts) && !pair.stands(answeredAlone, s.ts) {
			a.handshakes.midStream.set(s.Key, struct{}{})
		}
		return
	}
	// Every segment behind the SYN has ACK. Without it there is nothing to tell what
	// the other side sends next.
	if !s.hasPayload() || s.Flags&headers.ACK == 0 {
		return
	}
	a.counters[MidStream]++
	f := a.start(s.Key, s.SrcIsLo, s.ts, a.order())
	f.stream = &stream{next: [2]uint32{s.Seq + uint32(s.PayloadLen), s.Ack}, side: s.side}
	a.collect(f, nil, nil)
	f.count(&s.Packet, s.ts)
	a.capture(f, &s.Packet, s.frame, s.Flags.Closes())
}

// describe fills in what is known of a TCP connection.
func (f *Flow) describe(m *flow.Meta) {
	lo := 1
	if f.InitiatorIsLo {
		lo = 0
	}
	m.OneWay, m.MidStream = f.stream.oneWay, !f.hasNumbers || f.shown != 0
	m.Signals |= f.shown
	for _, seen := range [...]struct {
		it     bool
		signal flow.Signals
	}{{f.stream.decoy, flow.SignalDecoy}, {f.stream.synData, flow.SignalSYNData}, {f.stream.serverData, flow.SignalEarlyServerData}, {f.stream.outOfPlace, flow.SignalOutOfPlace}} {
		if seen.it {
			m.Signals |= seen.signal
		}
	}
	m.Numbers = flow.Numbers{
		InitiatorNext: f.stream.next[0], ResponderNext: f.stream.next[1],
		InitiatorNextKnown: true, ResponderNextKnown: true,
		ISNKnown: f.hasNumbers,
	}
	if f.hasNumbers {
		m.Numbers.InitiatorISN, m.Numbers.ResponderISN = f.numbers[lo], f.numbers[1-lo]
	}
}

// later returns the later one of two times.
func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
