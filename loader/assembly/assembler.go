// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
	"github.com/earlydrop/earlydrop/loader/flow/signals"
)

// Defaults of Options, the same as of the live data path.
const (
	DefaultIdleTimeout = 2 * time.Second
	DefaultUDPIdle     = 10 * time.Minute
	DefaultMaxOpen     = 16384
)

// Options sets the times of an Assembler. The zero value means the defaults.
type Options struct {
	// IdleTimeout hands a capture over that got no packet for this long
	// (optional, DefaultIdleTimeout).
	IdleTimeout time.Duration
	// UDPIdle captures a UDP flow again, as a resumed one, when a datagram comes
	// more than this after its last one (optional, DefaultUDPIdle).
	UDPIdle time.Duration
	// MidStream captures TCP flows whose SYN is missing, from their next
	// payload byte on and with its sender as the initiator, instead of leaving
	// them alone (optional).
	MidStream bool
	// OneWay captures TCP flows as well of which one direction alone is seen,
	// as it is behind asymmetric routing. Anybody can forge them (optional).
	OneWay bool
	// StrictChecksums takes a checksum of 0 for wrong, as the live data path does,
	// and believes none of a TCP connection less than others. In capture files
	// checksums may have been left to the network card, and addresses changed
	// (optional).
	StrictChecksums bool
	// OffCable says, with StrictChecksums, that what is inbound came off a cable, so that
	// no checksum of it is yet to be completed. It is for TCP (optional).
	OffCable bool
	// MaxOpen bounds the captures in progress that are held in memory, at least 2
	// (optional, DefaultMaxOpen). Those beyond that have been silent longest wait
	// in a temporary file; nothing else changes for them.
	MaxOpen int
	// TempDir is the folder of the temporary file (optional, os.TempDir()).
	TempDir string
}

// Counter names a cause that an Assembler counts. The numbers below
// headers.NumVerdicts are those of headers.Verdict.
type Counter uint8

// Counters beyond the parser's verdicts.
const (
	// BadChecksum counts those malformed packets that have a wrong checksum in
	// their IPv4 header.
	BadChecksum Counter = Counter(headers.NumVerdicts) + iota
	// IPv4 counts packets that have an IPv4 header, whatever their verdict.
	IPv4
	// MidStream counts TCP flows that were first seen without their beginning.
	MidStream
	// SYNs counts SYNs that could begin a connection, without retransmissions,
	// and Opened the connections that both ends made.
	SYNs
	Opened
	// OneWay counts TCP handshakes of which one direction alone was seen.
	OneWay
	// MPJoin counts subflows of Multipath TCP: they are mid-stream, and their handshake alone
	// is captured.
	MPJoin
	// FollowedFragment counts those later fragments that followed their first one.
	FollowedFragment
	// BadFlags counts segments with SYN that have RST or FIN as well.
	BadFlags
	// Reflected counts packets of a handshake, and datagrams, that went out through the
	// interface that they came in by.
	Reflected
	// WrongSide, OutOfPlace and Behind count segments that are missing from the
	// capture of their connection: its other end is on the side that they came
	// from, their numbers can't be, or their payload was seen before. OutOfPlace
	// counts those as well that are nothing of a handshake in progress.
	WrongSide
	OutOfPlace
	Behind
	// Bare counts header-only segments beyond those that a capture keeps, and Again
	// captures that went on, as payload followed an early end.
	Bare
	Again
	// Decoys counts TCP segments with a wrong checksum, of flows that are not decided.
	Decoys
	// HeaderOnly counts TCP connections, and handshakes that did not become one,
	// without a payload byte up to a RST, a FIN or the end of the file, and
	// datagrams without payload that found no flow.
	HeaderOnly
	// Waiting counts UDP flows of which one side had spoken, and Unanswered those of
	// them that nobody answered in time or before the end of the file: they are not
	// handed over.
	Waiting
	Unanswered
	// LeftOut counts header-only packets that no longer fitted into a
	// flow's handshake bytes and are missing from its capture.
	LeftOut
	// Restarted counts captures thrown away because a new connection began.
	Restarted
	// Full, Closed, Idle and End count samples by the reason of their
	// hand-over.
	Full
	Closed
	Idle
	End
	// Cut counts samples that are cut (flow.Meta), Incomplete those of them that
	// are incomplete.
	Cut
	Incomplete

	// NumCounters is the number of counters.
	NumCounters
)

var counterNames = [NumCounters]string{
	BadChecksum:      "bad_checksum",
	IPv4:             "ipv4",
	MidStream:        "mid_stream",
	SYNs:             "syns",
	Opened:           "tcp_opened",
	OneWay:           "one_way",
	MPJoin:           "mptcp_join",
	BadFlags:         "bad_flags",
	FollowedFragment: "followed_fragment",
	Reflected:        "reflected",
	WrongSide:        "wrong_side",
	OutOfPlace:       "out_of_place",
	Behind:           "behind",
	Bare:             "bare",
	Again:            "again",
	Decoys:           "decoys",
	HeaderOnly:       "header_only",
	Waiting:          "udp_waiting",
	Unanswered:       "udp_unanswered",
	LeftOut:          "handshake_left_out",
	Restarted:        "restarted",
	Full:             "handed_full",
	Closed:           "handed_closed",
	Idle:             "handed_idle",
	End:              "handed_end",
	Cut:              "cut",
	Incomplete:       "incomplete",
}

// String returns the counter's name.
func (c Counter) String() string {
	if c < Counter(headers.NumVerdicts) {
		return headers.Verdict(c).String()
	}
	if c < NumCounters {
		return counterNames[c]
	}
	return fmt.Sprintf("counter-%d", uint8(c))
}

// Counters holds one number per Counter. Those of the parser's verdicts count
// packets, OK those that belong to a flow or could have started one.
type Counters [NumCounters]uint64

// Add adds the numbers of other.
func (c *Counters) Add(other *Counters) {
	for i := range c {
		c[i] += other[i]
	}
}

// Packets returns the number of all packets seen.
func (c Counters) Packets() uint64 {
	var n uint64
	for _, v := range c[:headers.NumVerdicts] {
		n += v
	}
	return n
}

// Samples returns the number of captures handed over.
func (c Counters) Samples() uint64 { return c[Full] + c[Closed] + c[Idle] + c[End] }

type stage uint8

const (
	collecting stage = iota // capture in progress
	decided                 // handed over
)

// Flow is one life of a flow, from its start to its restart or the end of the
// file. It belongs to the Assembler; handlers may read it while they run.
type Flow struct {
	Key           flow.Key
	InitiatorIsLo bool
	Start, Last   time.Time // of its first and, so far, latest packet
	// Packets and Bytes count the whole flow so far, in both directions.
	// Bytes are on the wire, L2 header included, Ethernet padding left out.
	Packets, Bytes uint64
	// Seq numbers the flows of a file, or of several that are one capture, in order
	// of their start, from 0. Numbers are left out: of handshakes that became no flow.
	Seq uint64

	stage  stage
	sample *flow.Sample // while collecting
	lack   lack         // of the packets captured so far
	// fragmented: first fragments were captured, or those of a segment in place hide its header.
	fragmented bool

	// UDP alone. resumed: the flow may have been there before. asleep: it is decided,
	// and was silent since. side is the initiator's.
	resumed, asleep bool
	side            Side

	// TCP alone. marked: a candidate of the same key was answered. silent: it is
	// decided, and was not handed over.
	marked     bool
	silent     bool
	hasNumbers bool
	numbers    [2]uint32     // initial ones, of the lower endpoint and the higher one
	stream     *stream       // while collecting
	payload    int           // captured bytes of it
	bare       int           // bytes of captured header-only packets behind the first payload
	revision   int           // how often the capture went on
	before     int           // bytes of the capture before; 0 where another CaptureBytes are to be captured
	pieces     [2]tinyRun    // of the initiator and the responder
	unsure     bool          // next to no beginning, tiny or slow: it goes on though it is full
	lastSide   int           // direction of the last payload, and 1; 0: none
	begun      bool          // ScantBytes of payload had come before
	first      time.Duration // from Start to the first payload
	shown      flow.Signals  // why the handshake alone is captured, else 0

	captured time.Time // when the latest packet was captured
	turn     uint64    // orders the collecting flows by their latest captured packet
	deadline time.Time // of a collecting flow, on the Assembler's clock

	ring       *ring // that it is in, nil for none
	prev, next *Flow
}

// Totals are the figures of a whole flow that was handed over.
type Totals struct {
	Seq uint64 // as Flow.Seq
	// Packets and Bytes are explained at Flow.
	Packets, Bytes uint64
}

// Assembler builds flows from packets in file order. Its clock is the
// packets' own time. It is not safe for concurrent use.
//
// Its memory is bounded but for some 50 bytes per flow, and per SYN that began
// none: a flow that is decided leaves what matters of it in the ledger, and of the
// others those that have been silent longest wait in a temporary file when there are
// many (Options.MaxOpen). No flow is forgotten before the file ends, so neither
// changes a sample, a total or a counter.
type Assembler struct {
	opts     Options
	onSample func(*Flow, *flow.Sample)
	onEnd    func(Totals)

	flows      map[uint64]*Flow // by Seq, the collecting ones that are in memory
	handshakes handshakes
	list       ring    // those in order of their latest captured packet, but for looked
	looked     *Flow   // one taken back into memory for the latest packet, or nil
	turns      uint64  // that were given
	ledger     *ledger // all flows, by Seq and by key
	pages      *pages  // what is not in memory
	recalled   Flow    // the decided flow that a packet is for
	waits      waits
	ended      *ended
	variant    flow.Sample
	fragments  recent[fragmentKey, firstFragment]
	now        time.Time
	counters   Counters
	free       []*flow.Sample
	sources    []begin // in the order in which they came
}

// begin says that flows from a number on begin in a source.
type begin struct {
	seq    uint64
	source flow.Source
}

// New returns an Assembler. onSample gets each capture exactly once, and behind it its
// variant (flow.Meta) if it has one, in order of hand-over; the sample is valid until
// onSample returns. onEnd (optional) is called by Flush for each flow that was handed
// over, in order of their start.
func New(opts Options, onSample func(*Flow, *flow.Sample), onEnd func(Totals)) *Assembler {
	if opts.IdleTimeout <= 0 {
		opts.IdleTimeout = DefaultIdleTimeout
	}
	if opts.UDPIdle <= 0 {
		opts.UDPIdle = DefaultUDPIdle
	}
	if opts.MaxOpen <= 0 {
		opts.MaxOpen = DefaultMaxOpen
	}
	if onEnd == nil {
		onEnd = func(Totals) {}
	}
	a := &Assembler{opts: opts, onSample: onSample, onEnd: onEnd}
	a.clear()
	return a
}

// Counters returns what was counted so far.
func (a *Assembler) Counters() Counters { return a.counters }

// From says where the packets that follow are from. A flow's sample names the source that
// the flow begins in.
func (a *Assembler) From(source flow.Source) {
	if n := len(a.sources); n > 0 && a.sources[n-1].seq == a.ledger.n {
		a.sources = a.sources[:n-1] // no flow begins in it
	}
	a.sources = append(a.sources, begin{a.ledger.n, source})
}

// source returns where the flow of a number begins.
func (a *Assembler) source(seq uint64) flow.Source {
	after, found := slices.BinarySearchFunc(a.sources, seq, func(b begin, seq uint64) int { return cmp.Compare(b.seq, seq) })
	if found {
		after++
	}
	if after == 0 {
		return flow.Source{}
	}
	return a.sources[after-1].source
}

// Packet takes the next frame, which begins with an Ethernet header; wireLen
// is its length on the wire. frame may be reused after the call.
//
// Captures that fell idle before ts are handed over first. ts may go
// backwards, as it does in merged files: the clock then stands still, and the
// times inside a flow never decrease.
func (a *Assembler) Packet(ts time.Time, frame []byte, wireLen int) {
	a.PacketFrom(SideUnknown, ts, frame, wireLen)
}

// PacketFrom is Packet with the side of the interface that the frame came from.
// Where it is known, a connection has its ends on different sides.
func (a *Assembler) PacketFrom(side Side, ts time.Time, frame []byte, wireLen int) {
	a.shrink()
	if ts.After(a.now) {
		a.now = ts
		a.expire()
	}
	parse, s := headers.ParseCaptured, segment{ts: ts, side: side, origin: a.origin()}
	if a.opts.OffCable && a.opts.StrictChecksums && side == SideInbound {
		s.origin = signals.Cable
	}
	if a.opts.StrictChecksums {
		parse = headers.Parse
	}
	var verdict headers.Verdict
	s.Packet, verdict = parse(frame, wireLen)
	if verdict != headers.OK {
		a.refuse(verdict, &s, frame, wireLen)
		return
	}
	a.counters[headers.OK]++
	if s.IP == 4 {
		a.counters[IPv4]++
	}
	s.frame = frame[:min(len(frame), s.WireLen)]
	if s.MoreFragments && !s.badFlags() {
		a.noteFirst(&s)
	}

	f := a.find(s.Key)
	if f != nil && f.stage == collecting && ts.Sub(f.captured) >= a.opts.IdleTimeout {
		// Only where the clock stands still: it would have expired.
		a.handOver(f, flow.ReasonIdle)
	}
	if s.Key.Proto == flow.TCP {
		a.tcp(f, &s)
	} else {
		a.udp(f, &s)
	}
}

func (a *Assembler) origin() signals.Origin {
	if a.opts.StrictChecksums {
		return signals.Live
	}
	return signals.File
}

// refuse counts a frame that is no packet of a flow by itself, and what is known of it beside
// the parser's verdict.
func (a *Assembler) refuse(verdict headers.Verdict, s *segment, frame []byte, wireLen int) {
	if wireLen = max(wireLen, len(frame)); a.opts.StrictChecksums {
		s.Walk(frame, wireLen)
	} else {
		s.WalkCaptured(frame, wireLen)
	}
	switch verdict {
	case headers.LaterFragment:
		verdict = a.follow(s, frame)
	case headers.BadFragment:
		a.noteHidden(s, frame)
	}
	a.counters[verdict]++
	if s.IP == 4 {
		a.counters[IPv4]++
	}
	if s.BadChecksum {
		a.counters[BadChecksum]++
	}
}

// restart ends a flow of which the key begins another.
func (a *Assembler) restart(f *Flow) {
	if f.stage == collecting {
		a.counters[Restarted]++
		a.release(f)
		delete(a.flows, f.Seq)
		return
	}
	a.ended.forget(f.Seq)
	*a.ledger.state(f.Seq) |= over
}

// start begins a flow.
func (a *Assembler) start(key flow.Key, initiatorIsLo bool, ts time.Time, order uint64) *Flow {
	f := &Flow{Key: key, InitiatorIsLo: initiatorIsLo, Start: ts, Last: ts, Seq: order}
	a.ledger.start(order, a.ledger.hash(key))
	a.flows[order] = f
	return f
}

// order returns the number of a flow of which the first packet comes now, or may have
// come.
func (a *Assembler) order() uint64 { return a.ledger.reserve(a.now) }

// count adds a packet to the totals.
func (f *Flow) count(p *headers.Packet, ts time.Time) {
	f.Packets++
	f.Bytes += uint64(p.WireLen)
	f.Last = later(f.Last, ts)
}

// captured describes a packet that is captured at offset. Times have the
// kernel's resolution.
func captured(offset, wireLen int, fromInitiator bool, since time.Duration) flow.Packet {
	return flow.Packet{
		Offset:        uint16(offset),
		WireLen:       uint32(wireLen),
		FromInitiator: fromInitiator,
		Time:          since.Truncate(time.Microsecond),
	}
}

// collect begins the capture of a flow with the frames of its handshake.
func (a *Assembler) collect(f *Flow, early []byte, earlyRecs []flow.Packet) {
	f.sample = a.takeSample()
	f.sample.Data = append(f.sample.Data, early...)
	f.sample.Packets = append(f.sample.Packets, earlyRecs...)
}

// capture adds a packet to the capture and hands it over when it is full or
// the packet ends the connection. Full comes first: a FIN in the packet that
// fills the capture changes nothing about it.
func (a *Assembler) capture(f *Flow, p *headers.Packet, frame []byte, ends bool) {
	s := f.sample
	bare := p.PayloadLen == 0 && !p.MoreFragments && p.Key.Proto == flow.TCP
	if bare && !ends && f.bare+p.WireLen > bareBytes {
		a.counters[Bare]++
		return
	}
	if bare && !ends {
		f.bare += p.WireLen
	}
	room := flow.CaptureBytes - f.before - len(s.Data)
	if f.stream != nil {
		f.notePiece(p)
	}
	f.addPayload(max(0, min(p.WireLen, room)-(p.WireLen-p.PayloadLen)))
	f.captured = f.Last
	f.fragmented = f.fragmented || p.MoreFragments
	f.lack.add(lacks(p, frame, room))
	appendPacket(s, p, frame[:min(len(frame), room)], p.SrcIsLo == f.InitiatorIsLo, f.Last.Sub(f.Start))
	if f.unsure && room < len(frame) && len(s.Repeat.Data) == 0 {
		s.KeepRest(flow.RestOf(frame, room))
	}
	switch {
	case f.before+len(s.Data) == flow.CaptureBytes:
		a.handOver(f, flow.ReasonFull)
	case ends:
		a.handOver(f, flow.ReasonClosed)
	default:
		a.touch(f)
	}
}

// handOver gives the capture to the handler; from then on the flow is only
// counted.
func (a *Assembler) handOver(f *Flow, reason flow.Reason) {
	s := f.sample
	s.Meta = flow.Meta{Source: a.source(f.Seq), Key: f.Key, InitiatorIsLo: f.InitiatorIsLo, Reason: reason,
		Start: f.Start, Elapsed: f.captured.Sub(f.Start),
		Cut: f.lack.cut, Incomplete: f.lack.incomplete, Resumed: f.resumed}
	if f.stream != nil {
		f.describe(&s.Meta)
	}
	s.Revision, s.Provisional = f.revision, f.goesOn(reason)
	if s.Provisional {
		a.ended.add(f)
	}
	if f.fragmented {
		s.Signals |= flow.SignalFragmented
	}
	switch reason {
	case flow.ReasonFull:
		a.counters[Full]++
	case flow.ReasonClosed:
		a.counters[Closed]++
	case flow.ReasonIdle:
		a.counters[Idle]++
		s.Elapsed += a.opts.IdleTimeout
	case flow.ReasonEnd:
		a.counters[End]++
	}
	if s.Cut {
		a.counters[Cut]++
	}
	if s.Incomplete {
		a.counters[Incomplete]++
	}
	a.ended.parts.Join(s)
	signals.Note(s, a.origin())
	f.stage, f.stream = decided, nil
	a.onSample(f, s)
	if signals.Variant(s, &a.variant) {
		a.onSample(f, &a.variant)
	}
	a.release(f)
	a.settle(f)
}

// release takes the flow's sample back and the flow off the list.
func (a *Assembler) release(f *Flow) {
	f.leave()
	a.free = append(a.free, f.sample)
	f.sample = nil
}

// touch moves the flow to the end of the list. The clock never goes back, so
// the list stays in order of deadlines.
func (a *Assembler) touch(f *Flow) {
	f.deadline = a.now.Add(a.opts.IdleTimeout)
	f.turn = a.turns
	a.turns++
	a.list.push(f)
}

// expire hands over every capture whose deadline has come.
func (a *Assembler) expire() {
	for deadline, ok := a.oldest(); ok && !deadline.After(a.now); deadline, ok = a.oldest() {
		if f := a.takeOldest(); f != nil {
			a.handOver(f, flow.ReasonIdle)
		}
	}
}

// Flush ends the file: captures in progress are handed over in order of their
// latest packet, with flow.ReasonEnd, then every flow that was handed over
// ends, in order of its start. The Assembler is empty afterwards and may be
// used for another file; the counters go on.
//
// The error is that of Err: captures that were in the temporary file are lost.
func (a *Assembler) Flush() error {
	a.shrink()
	for f := a.takeOldest(); f != nil; f = a.takeOldest() {
		a.handOver(f, flow.ReasonEnd)
	}
	a.unanswered()
	a.counters[HeaderOnly] += a.handshakes.unended()
	a.ledger.totals(a.onEnd)
	err := a.pages.close()
	a.clear()
	return err
}
