// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/parts"
	"github.com/earlydrop/earlydrop/loader/flow/signals"
)

// ErrClosed is returned by [Reader.Read] after [Reader.Close].
var ErrClosed = errors.New("reader is closed")

// ErrBadRecord is wrapped by the error of [Reader.Read] about a record that
// contradicts itself. That one capture is lost; the next Read goes on after it.
var ErrBadRecord = errors.New("bad ring buffer record")

// A Reader takes captures from the ring buffer. It is for one goroutine; Close may
// be called from any.
type Reader struct {
	ring *ringbuf.Reader
	// open is held while the ring buffer is looked into, which must not be closed meanwhile.
	open   sync.Mutex
	closed bool
	record ringbuf.Record
	parts  joiner
	// A variant of the latest capture, if it has one.
	variant bool
	next    flow.Sample
	source  func() flow.Source
}

// NewReader returns a reader of the data path's captures.
func (d *DataPath) NewReader() (*Reader, error) {
	ring, err := ringbuf.NewReader(d.coll.Maps[datapathMapSamples])
	if err != nil {
		return nil, fmt.Errorf("open the ring buffer: %w", err)
	}
	r := &Reader{ring: ring, source: d.source}
	if d.group != nil {
		r.parts = &d.group.parts
	} else {
		r.parts = parts.NewStore(parts.DefaultKept)
	}
	return r, nil
}

// source is where what is captured now is from.
func (d *DataPath) source() flow.Source {
	return flow.Source{Interface: d.Interface(), Index: int(d.index.Load())}
}

// Read waits for the next capture and fills s with it, without allocating, unless the
// capture goes on with one that ended early: both are one sample then. A capture of which a
// range came twice, with different bytes, is followed by its variant. It
// returns [ErrClosed] after Close, and an error that wraps [ErrBadRecord] for a
// capture that can't be read. Any other error is the ring buffer's own, and the
// next Read may well fail at once with the same.
func (r *Reader) Read(s *flow.Sample) error {
	if r.variant {
		r.variant = false
		s.CopyFrom(&r.next)
		return nil
	}
	if err := r.readRecord(); err != nil {
		return err
	}
	if err := decodeSample(r.record.RawSample, s); err != nil {
		return err
	}
	s.Source = r.source()
	r.parts.Join(s)
	signals.Note(s, signals.Live)
	r.variant = signals.Variant(s, &r.next)
	return nil
}

// readRecord waits for the next record.
func (r *Reader) readRecord() error {
	err := r.ring.ReadInto(&r.record)
	switch {
	case errors.Is(err, os.ErrClosed):
		return ErrClosed
	case err != nil:
		return fmt.Errorf("read the ring buffer: %w", err)
	}
	return nil
}

// More reports whether a Read would have something at once. It is called between two of them.
func (r *Reader) More() bool { return r.variant || r.Fill() > 0 }

// Fill returns how much of the ring buffer waits to be read, 0 to 1, and 0 after Close. It is
// called between two Reads.
func (r *Reader) Fill() float64 {
	r.open.Lock()
	defer r.open.Unlock()
	if r.closed {
		return 0
	}
	return float64(r.ring.AvailableBytes()) / float64(r.ring.BufferSize())
}

// Skip passes over the next capture, which is the oldest, at a small part of what it costs to
// read it. It is for when there is More; its error is that of Read.
func (r *Reader) Skip() error {
	if r.variant {
		r.variant = false
		return nil
	}
	return r.readRecord()
}

// Close ends a Read that is waiting.
func (r *Reader) Close() error {
	r.open.Lock()
	r.closed = true
	r.open.Unlock()
	return r.ring.Close()
}

// decodeSample turns a struct sample, cut behind its captured bytes, into s. It
// reads the fields where the generated type has them, since the record is shorter
// than the struct.
func decodeSample(raw []byte, s *flow.Sample) error {
	var in datapathSample
	const header = int(unsafe.Offsetof(in.Data))
	s.Reset()
	if len(raw) < header {
		return fmt.Errorf("%w: %d bytes are fewer than its header has, %d", ErrBadRecord, len(raw), header)
	}
	le := binary.LittleEndian // both targets are
	length := int(le.Uint16(raw[unsafe.Offsetof(in.Length):]))
	count := int(raw[unsafe.Offsetof(in.PacketCount)])
	if length > flow.CaptureBytes || count > flow.MaxPackets || header+length > len(raw) {
		return fmt.Errorf("%w: it claims %d bytes in %d packets, but has %d", ErrBadRecord, length, count, len(raw)-header)
	}
	key := (*datapathFlowKey)(unsafe.Pointer(&raw[unsafe.Offsetof(in.Key)]))
	start := le.Uint64(raw[unsafe.Offsetof(in.StartNs):])
	end := le.Uint64(raw[unsafe.Offsetof(in.EndNs):])
	s.Meta = flow.Meta{
		Key:           fromKernelKey(key),
		InitiatorIsLo: raw[unsafe.Offsetof(in.InitiatorIsLo)] != 0,
		Reason:        flow.Reason(raw[unsafe.Offsetof(in.Reason)]),
		Start:         wallClock(start),
		Elapsed:       time.Duration(end - start),
		Numbers:       decodeNumbers(raw),
		OneWay:        raw[unsafe.Offsetof(in.Flags)]&sampleOneWay != 0,
		MidStream:     raw[unsafe.Offsetof(in.Flags)]&sampleMidStream != 0,
		Resumed:       raw[unsafe.Offsetof(in.Flags)]&sampleResumed != 0,
		Provisional:   raw[unsafe.Offsetof(in.Flags)]&sampleProvisional != 0,
		Revision:      int(raw[unsafe.Offsetof(in.Again)]),
	}
	for _, seen := range sampleSignals {
		if raw[unsafe.Offsetof(in.Flags)]&seen.flag != 0 {
			s.Signals |= seen.signal
		}
	}
	for _, seen := range sampleMore {
		if raw[unsafe.Offsetof(in.More)]&seen.flag != 0 {
			s.Signals |= seen.signal
		}
	}
	before := int(le.Uint16(raw[unsafe.Offsetof(in.Before):]))
	if before >= length {
		return fmt.Errorf("%w: it claims %d bytes behind %d", ErrBadRecord, length, before)
	}
	if raw[unsafe.Offsetof(in.Flags)]&sampleHidden != 0 {
		s.Signals |= flow.SignalFragmented
	}
	s.Packets = s.Packets[:count]
	last := 0
	for i := range s.Packets {
		var rec datapathPacketRecord
		p := raw[int(unsafe.Offsetof(in.Packets))+i*int(unsafe.Sizeof(rec)):]
		place := le.Uint16(p[unsafe.Offsetof(rec.Place):])
		s.Packets[i] = flow.Packet{
			WireLen:       le.Uint32(p[unsafe.Offsetof(rec.WireLen):]),
			Segment:       le.Uint16(p[unsafe.Offsetof(rec.Segment):]),
			FromInitiator: place&recordFromInitiator != 0,
			OffCable:      place&recordOffCable != 0,
			Time:          time.Duration(le.Uint32(p[unsafe.Offsetof(rec.TimeUs):])) * time.Microsecond,
		}
		if place&recordFragment != 0 {
			s.Signals |= flow.SignalFragmented
		}
		off := int(place&recordOffset) - before
		if off < last || off >= length-before {
			return fmt.Errorf("%w: packet %d is at offset %d of %d, after offset %d", ErrBadRecord, i, off, length-before, last)
		}
		s.Packets[i].Offset = uint16(off)
		last = off
	}
	s.Data = s.Data[:length-before]
	copy(s.Data, raw[header+before:header+length])
	if n, at := len(raw), int(unsafe.Offsetof(in.Repeat)); n > at {
		repeated := int(le.Uint16(raw[unsafe.Offsetof(in.RepeatLen):]))
		if at+repeated > n {
			return fmt.Errorf("%w: it claims %d repeated bytes, but has %d", ErrBadRecord, repeated, n-at)
		}
		if raw[unsafe.Offsetof(in.More)]&moreRest != 0 {
			s.KeepRest(raw[at : at+repeated])
			return nil
		}
		s.KeepRepeat(le.Uint32(raw[unsafe.Offsetof(in.RepeatSeq):]), raw[unsafe.Offsetof(in.RepeatFromInitiator):][0] != 0, raw[at:at+repeated])
	}
	return nil
}

// SAMPLE_*, MORE_*, RECORD_* and KNOWN_* of bpf/earlydrop.h.
const (
	sampleOneWay    = 1
	sampleMidStream = 2
	sampleResumed   = 4
	sampleDecoy     = 8
	sampleSYNData   = 16
	sampleEarly     = 32

	sampleProvisional = 64
	sampleHidden      = 128

	moreRest = 16

	recordOffset        = 0x1fff
	recordFromInitiator = 0x8000
	recordFragment      = 0x4000
	recordOffCable      = 0x2000

	knownISN    = 1
	knownNextLo = 2
	knownNextHi = 4
)

// sampleSignals are the flags that say what was seen of the packets that are not in the
// capture.
var sampleSignals = [...]struct {
	flag   byte
	signal flow.Signals
}{
	{sampleDecoy, flow.SignalDecoy},
	{sampleSYNData, flow.SignalSYNData},
	{sampleEarly, flow.SignalEarlyServerData},
}

// sampleMore is the same of MORE_* of bpf/earlydrop.h.
var sampleMore = [...]struct {
	flag   byte
	signal flow.Signals
}{
	{1, flow.SignalMPTCPJoin},
	{2, flow.SignalUnreadable},
	{4, flow.SignalOutOfPlace},
}

func decodeNumbers(raw []byte) flow.Numbers {
	var in datapathSample
	le := binary.LittleEndian
	known := raw[unsafe.Offsetof(in.Known)]
	isnLo, isnHi := le.Uint32(raw[unsafe.Offsetof(in.IsnLo):]), le.Uint32(raw[unsafe.Offsetof(in.IsnHi):])
	nextLo, nextHi := le.Uint32(raw[unsafe.Offsetof(in.NextLo):]), le.Uint32(raw[unsafe.Offsetof(in.NextHi):])
	loKnown, hiKnown := known&knownNextLo != 0, known&knownNextHi != 0
	if raw[unsafe.Offsetof(in.InitiatorIsLo)] == 0 {
		isnLo, isnHi, nextLo, nextHi, loKnown, hiKnown = isnHi, isnLo, nextHi, nextLo, hiKnown, loKnown
	}
	return flow.Numbers{
		InitiatorISN: isnLo, ResponderISN: isnHi, ISNKnown: known&knownISN != 0,
		InitiatorNext: nextLo, InitiatorNextKnown: loKnown,
		ResponderNext: nextHi, ResponderNextKnown: hiKnown,
	}
}

// Sweep hands over the captures of flows that have been idle and returns how many
// there were. Call it a few times per second.
func (d *DataPath) Sweep() (int, error) {
	n, err := d.coll.Programs[datapathProgEdSweep].Run(&ebpf.RunOptions{Data: d.sweepIn})
	if err != nil {
		return 0, fmt.Errorf("run the idle sweep: %w", err)
	}
	return int(n), nil
}
