// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"fmt"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Defaults of Options, the same as of the live data path.
const (
	DefaultIdleTimeout = 2 * time.Second
	DefaultUDPIdle     = 60 * time.Second
	DefaultMaxOpen     = 16384
)

// Options sets the times of an Assembler. The zero value means the defaults.
type Options struct {
	// IdleTimeout hands a capture over that got no packet for this long
	// (optional, DefaultIdleTimeout).
	IdleTimeout time.Duration
	// UDPIdle starts a UDP flow afresh when a datagram comes more than this
	// after its last one (optional, DefaultUDPIdle).
	UDPIdle time.Duration
	// MidStream captures TCP flows whose SYN is missing, from their next
	// payload byte on and with its sender as the initiator, instead of leaving
	// them alone (optional).
	MidStream bool
	// MaxOpen bounds the TCP flows before their first payload byte, and the
	// captures in progress, that are held in memory, at least 2 (optional,
	// DefaultMaxOpen). Those beyond that have been silent longest wait in a
	// temporary file; nothing else changes for them.
	MaxOpen int
	// TempDir is the folder of the temporary file (optional, os.TempDir()).
	TempDir string
}

// Counter names a cause that an Assembler counts. The numbers below verdicts
// are those of Verdict.
type Counter uint8

// Counters beyond the parser's verdicts.
const (
	// MidStream counts TCP flows that were first seen without their SYN.
	MidStream Counter = Counter(verdicts) + iota
	// HeaderOnly counts TCP flows that ended without a payload byte, and
	// datagrams without payload that found no flow.
	HeaderOnly
	// LeftOut counts header-only packets that no longer fitted into a
	// flow's handshake bytes and are missing from its capture.
	LeftOut
	// Restarted counts captures thrown away because the flow began afresh.
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
	MidStream:  "mid_stream",
	HeaderOnly: "header_only",
	LeftOut:    "handshake_left_out",
	Restarted:  "restarted",
	Full:       "handed_full",
	Closed:     "handed_closed",
	Idle:       "handed_idle",
	End:        "handed_end",
	Cut:        "cut",
	Incomplete: "incomplete",
}

// String returns the counter's name.
func (c Counter) String() string {
	if c < Counter(verdicts) {
		return Verdict(c).String()
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
	for _, v := range c[:verdicts] {
		n += v
	}
	return n
}

// Samples returns the number of captures handed over.
func (c Counters) Samples() uint64 { return c[Full] + c[Closed] + c[Idle] + c[End] }

type stage uint8

const (
	handshake  stage = iota // TCP before its first payload byte
	collecting              // capture in progress
	decided                 // handed over, or mid-stream
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
	// Seq numbers the flows of a file in order of their start, from 0.
	Seq uint64

	stage      stage
	handedOver bool
	midStream  bool
	cut        bool   // the file lacks bytes of a captured packet
	incomplete bool   // too many of them: flow.Meta
	early      []byte // frames of the handshake stage
	earlyRecs  []flow.Packet
	sample     *flow.Sample // while collecting
	deadline   time.Time    // of a collecting flow, on the Assembler's clock

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
// Its memory is bounded but for some 40 bytes per flow: a flow that is decided
// leaves its totals in the ledger, and of the others those that have been
// silent longest wait in a temporary file when there are many (Options.MaxOpen).
// Nothing is forgotten before the file ends, so neither changes a sample, a
// total or a counter.
type Assembler struct {
	opts     Options
	onSample func(*Flow, *flow.Sample)
	onEnd    func(Totals)

	flows    map[uint64]*Flow // by Seq, those that are neither decided nor in pages
	waiting  ring             // those in the handshake stage
	list     ring             // the collecting ones, in order of their latest packet
	ledger   *ledger          // all flows, by Seq and by key
	pages    *pages           // what is not in memory
	recalled Flow             // the decided flow that a packet is for
	now      time.Time
	counters Counters
	free     []*flow.Sample
}

// New returns an Assembler. onSample gets each capture exactly once, in order
// of hand-over; the sample is valid until onSample returns. onEnd (optional)
// is called by Flush for each flow that was handed over, in order of their
// start.
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

// Packet takes the next frame, which begins with an Ethernet header; wireLen
// is its length on the wire. frame may be reused after the call.
//
// Captures that fell idle before ts are handed over first. ts may go
// backwards, as it does in merged files: the clock then stands still, and the
// times inside a flow never decrease.
func (a *Assembler) Packet(ts time.Time, frame []byte, wireLen int) {
	if ts.After(a.now) {
		a.now = ts
		a.expire()
	}
	p, verdict := Parse(frame, wireLen)
	a.counters[verdict]++
	if verdict != OK {
		return
	}
	if len(frame) > p.WireLen {
		frame = frame[:p.WireLen]
	}

	f := a.find(p.Key)
	if f != nil && f.stage == collecting && ts.Sub(f.Last) >= a.opts.IdleTimeout {
		// Only where the clock stands still: it would have expired.
		a.handOver(f, flow.ReasonIdle)
	}
	if p.Key.Proto == flow.UDP {
		f = a.startUDP(f, ts, &p)
	} else {
		f = a.startTCP(f, ts, &p)
	}
	if f == nil {
		return
	}
	f.Packets++
	f.Bytes += uint64(p.WireLen)
	if ts.After(f.Last) {
		f.Last = ts
	}
	a.used(f)

	if f.stage == handshake {
		if p.PayloadLen == 0 {
			// A SYN that began the flow does not end it as well, whatever
			// other flags it has.
			if p.Flags.Closes() && f.Packets > 1 {
				a.counters[HeaderOnly]++
				a.drop(f)
				return
			}
			a.keepEarly(f, &p, frame)
			return
		}
		a.collect(f)
	}
	if f.stage == collecting {
		a.capture(f, &p, frame)
	}
}

// startUDP returns the flow that the datagram belongs to, nil for none.
func (a *Assembler) startUDP(f *Flow, ts time.Time, p *Packet) *Flow {
	if f != nil && ts.Sub(f.Last) <= a.opts.UDPIdle {
		return f
	}
	// Unknown, or silent for so long that the old flow is over.
	if p.PayloadLen == 0 {
		a.counters[HeaderOnly]++
		return nil
	}
	f = a.start(f, ts, p)
	a.collect(f)
	return f
}

// startTCP returns the flow that the segment belongs to, nil for none.
func (a *Assembler) startTCP(f *Flow, ts time.Time, p *Packet) *Flow {
	if p.Flags.Opens() {
		// A SYN of the responder on a handshake is a simultaneous open, any
		// other SYN on a known flow a new connection on the same ports.
		if f != nil && f.stage == handshake && f.InitiatorIsLo != p.SrcIsLo {
			return f
		}
		return a.start(f, ts, p)
	}
	if f != nil {
		return f
	}
	if !a.opts.MidStream {
		a.counters[MidStream]++
		f = a.start(nil, ts, p)
		f.stage = decided
	} else if p.PayloadLen > 0 {
		a.counters[MidStream]++
		f = a.start(nil, ts, p)
		f.midStream = true
	}
	return f
}

// start begins a flow in the handshake stage. old is the flow that has the
// key now, nil for none.
func (a *Assembler) start(old *Flow, ts time.Time, p *Packet) *Flow {
	if old != nil {
		if old.stage == collecting {
			a.counters[Restarted]++
			a.release(old)
		}
		a.drop(old)
	}
	f := &Flow{Key: p.Key, InitiatorIsLo: p.SrcIsLo, Start: ts, Last: ts}
	a.enter(f)
	return f
}

// keepEarly adds a header-only packet to the handshake frames, if it fits.
func (a *Assembler) keepEarly(f *Flow, p *Packet, frame []byte) {
	if len(frame) > flow.HandshakeFrame || len(f.early)+len(frame) > flow.HandshakeBytes ||
		len(f.earlyRecs) == flow.HandshakePackets {
		a.counters[LeftOut]++
		return
	}
	f.noteCut(p, frame, flow.CaptureBytes)
	f.earlyRecs = append(f.earlyRecs, f.record(p, len(f.early)))
	f.early = append(f.early, frame...)
}

// record describes the packet that is captured at offset. Times have the
// kernel's resolution.
func (f *Flow) record(p *Packet, offset int) flow.Packet {
	return flow.Packet{
		Offset:        uint16(offset),
		WireLen:       uint32(p.WireLen),
		FromInitiator: p.SrcIsLo == f.InitiatorIsLo,
		Time:          f.Last.Sub(f.Start).Truncate(time.Microsecond),
	}
}

// collect moves a flow to the collecting stage: the handshake frames become
// the start of its capture.
func (a *Assembler) collect(f *Flow) {
	f.leave()
	f.sample = a.takeSample()
	f.sample.Data = append(f.sample.Data, f.early...)
	f.sample.Packets = append(f.sample.Packets, f.earlyRecs...)
	f.early, f.earlyRecs = nil, nil
	f.stage = collecting
}

// capture adds a packet to the capture and hands it over when it is full or
// the connection closes. Full comes first: a FIN in the packet that fills the
// capture changes nothing about it.
func (a *Assembler) capture(f *Flow, p *Packet, frame []byte) {
	s := f.sample
	f.noteCut(p, frame, flow.CaptureBytes-len(s.Data))
	s.Packets = append(s.Packets, f.record(p, len(s.Data)))
	s.Data = append(s.Data, frame[:min(len(frame), flow.CaptureBytes-len(s.Data))]...)
	switch {
	case s.Complete():
		a.handOver(f, flow.ReasonFull)
	case p.Flags.Closes():
		a.handOver(f, flow.ReasonClosed)
	default:
		a.touch(f)
	}
}

// handOver gives the capture to the handler; from then on the flow is only
// counted.
func (a *Assembler) handOver(f *Flow, reason flow.Reason) {
	s := f.sample
	s.Meta = flow.Meta{Key: f.Key, InitiatorIsLo: f.InitiatorIsLo, Reason: reason,
		Start: f.Start, Elapsed: f.Last.Sub(f.Start),
		MidStream: f.midStream, Cut: f.cut, Incomplete: f.incomplete}
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
	f.stage, f.handedOver = decided, true
	a.onSample(f, s)
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
	a.list.push(f)
	a.shrink(&a.list)
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
	for f := a.takeOldest(); f != nil; f = a.takeOldest() {
		reason := flow.ReasonEnd
		if !f.deadline.After(a.now) {
			reason = flow.ReasonIdle // it was behind others in the temporary file
		}
		a.handOver(f, reason)
	}
	a.counters[HeaderOnly] += uint64(a.waiting.n) + a.pages.handshakes
	a.ledger.totals(a.onEnd)
	err := a.pages.close()
	a.clear()
	return err
}
