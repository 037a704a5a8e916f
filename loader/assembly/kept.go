// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// keptMark begins the comment of a section of a pcapng file that is a capture as it was handed
// over. What packets do not say of it follows, as JSON.
const keptMark = "earlydrop capture 1 "

// keptFlow is what packets do not say of a capture.
type keptFlow struct {
	Initiator    netip.AddrPort `json:"initiator"`
	Responder    netip.AddrPort `json:"responder"`
	Proto        flow.Proto     `json:"proto"`
	VLAN         uint16         `json:"vlan,omitempty"`
	InnerVLAN    uint16         `json:"inner_vlan,omitempty"`
	Reason       flow.Reason    `json:"handed_over"`
	Start        time.Time      `json:"start"`
	Elapsed      time.Duration  `json:"elapsed_ns"`
	Seed         uint64         `json:"seed,string"`
	Numbers      flow.Numbers   `json:"numbers"`
	OneWay       bool           `json:"one_way,omitempty"`
	MidStream    bool           `json:"mid_stream,omitempty"`
	Cut          bool           `json:"cut,omitempty"`
	Incomplete   bool           `json:"incomplete,omitempty"`
	MissingStart bool           `json:"missing_start,omitempty"`
	Signals      []string       `json:"signals,omitempty"`
	Scant        bool           `json:"scant,omitempty"`
	Full         bool           `json:"full,omitempty"`
	Provisional  bool           `json:"provisional,omitempty"`
	Variant      bool           `json:"variant,omitempty"`
	Revision     int            `json:"revision,omitempty"`
	Resumed      bool           `json:"resumed,omitempty"`
	Packets      []keptPacket   `json:"packets"`
}

// keptPacket is what a packet's block does not say as exactly.
type keptPacket struct {
	Time          time.Duration `json:"ns"` // since the first one
	FromInitiator bool          `json:"from_initiator,omitempty"`
	OffCable      bool          `json:"off_cable,omitempty"`
	Segment       uint16        `json:"segment,omitempty"`
}

// WriteKept writes a capture as it was handed over, as a section of a pcapng file: a file of
// its own, or to be appended to others. A File gives it to an Assembler as the same sample again,
// whatever packets alone would become. Seed has to be set. The comments are for people:
// what is no UTF-8 in them is replaced, and what is beyond 64 KiB cut.
func WriteKept(w io.Writer, s *flow.Sample, comments ...string) error {
	k := keptFlow{
		Initiator: s.Initiator(), Responder: s.Responder(), Proto: s.Key.Proto, VLAN: s.Key.VLAN, InnerVLAN: s.Key.InnerVLAN,
		Reason: s.Reason, Start: s.Start.UTC(), Elapsed: s.Elapsed, Seed: s.Seed, Numbers: s.Numbers, OneWay: s.OneWay, MidStream: s.MidStream,
		Cut: s.Cut, Incomplete: s.Incomplete, MissingStart: s.MissingStart, Signals: s.Signals.Names(), Scant: s.Scant, Full: s.Full,
		Provisional: s.Provisional, Variant: s.Variant, Revision: s.Revision, Resumed: s.Resumed,
	}
	for i := range s.Packets {
		p := &s.Packets[i]
		k.Packets = append(k.Packets, keptPacket{p.Time, p.FromInitiator, p.OffCable, p.Segment})
	}
	mark, err := json.Marshal(&k)
	if err != nil {
		return err
	}
	order := binary.LittleEndian
	var file []byte
	block := func(kind uint32, body ...[]byte) {
		at := len(file)
		file = order.AppendUint32(order.AppendUint32(file, kind), 0)
		for _, part := range body {
			file = append(file, part...)
			file = append(file, make([]byte, -len(part)&3)...)
		}
		length := uint32(len(file) - at + blockTrailer)
		file = order.AppendUint32(file, length)
		order.PutUint32(file[at+4:], length)
	}
	option := func(to []byte, code uint16, value string) []byte {
		to = order.AppendUint16(order.AppendUint16(to, code), uint16(len(value)))
		return append(append(to, value...), make([]byte, -len(value)&3)...)
	}
	section := order.AppendUint64(order.AppendUint32(order.AppendUint32(nil, byteOrderMagic), 1), ^uint64(0)) // version 1.0, of unknown length
	section = option(section, optionComment, keptMark+string(mark))
	for _, text := range comments {
		section = option(section, optionComment, commentOf(text))
	}
	block(blockSection, option(section, optionEnd, ""))
	device := order.AppendUint32(order.AppendUint32(nil, uint32(LinkEthernet)), 0)         // no bound of lengths
	block(blockInterface, option(option(device, optionResolution, "\x09"), optionEnd, "")) // nanoseconds
	for i := range s.Packets {
		p := &s.Packets[i]
		stamp, frame := uint64(s.Start.Add(p.Time).UnixNano()), s.Frame(i)
		header := order.AppendUint32(order.AppendUint32(order.AppendUint32(nil, 0), uint32(stamp>>32)), uint32(stamp))
		block(blockEnhanced, order.AppendUint32(order.AppendUint32(header, uint32(len(frame))), p.WireLen), frame)
	}
	_, err = w.Write(file)
	return err
}

// commentOf returns a text as a comment may have it: UTF-8 without an end in the midst, and not
// too long for an option.
func commentOf(text string) string {
	const most = 1<<16 - 4
	text = strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", "\uFFFD"), "\uFFFD")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") // half a character at its end
	}
	return text
}

// kept is a section that is a capture, as far as it was read.
type kept struct {
	flow   keptFlow
	sample flow.Sample
}

// errKept is wrapped by errors about such a section.
var errKept = fmt.Errorf("%w: what is said of the capture of a flow", ErrDamaged)

// parseKept reads the comment of a section. It returns nil where it is another one.
func parseKept(comment []byte) (*kept, error) {
	text, ok := bytes.CutPrefix(comment, []byte(keptMark))
	if !ok {
		return nil, nil
	}
	k := new(kept)
	if err := json.Unmarshal(text, &k.flow); err != nil {
		return nil, fmt.Errorf("%w: %w", errKept, err)
	}
	f := &k.flow
	switch {
	case !f.Initiator.IsValid(), !f.Responder.IsValid():
		return nil, fmt.Errorf("%w: it lacks an end", errKept)
	case f.Proto != flow.TCP && f.Proto != flow.UDP:
		return nil, fmt.Errorf("%w: protocol %d", errKept, f.Proto)
	case len(f.Packets) == 0, len(f.Packets) > flow.MaxPackets:
		return nil, fmt.Errorf("%w: it has %d packets", errKept, len(f.Packets))
	case f.Seed == 0:
		return nil, fmt.Errorf("%w: it lacks the seed", errKept)
	case f.Elapsed < 0, f.Revision < 0:
		return nil, fmt.Errorf("%w: a number is negative", errKept)
	}
	s := &k.sample
	s.Reset()
	s.Key, s.InitiatorIsLo = flow.NewKey(f.Initiator, f.Responder, f.Proto, f.VLAN, f.InnerVLAN)
	s.Reason, s.Start, s.Elapsed, s.Seed, s.Numbers = f.Reason, f.Start, f.Elapsed, f.Seed, f.Numbers
	s.OneWay, s.MidStream, s.Cut, s.Incomplete, s.MissingStart = f.OneWay, f.MidStream, f.Cut, f.Incomplete, f.MissingStart
	s.Scant, s.Full, s.Provisional, s.Variant, s.Revision, s.Resumed = f.Scant, f.Full, f.Provisional, f.Variant, f.Revision, f.Resumed
	for _, name := range f.Signals {
		signal, _ := flow.ParseSignal(name) // one of a newer program is none
		s.Signals |= signal
	}
	return k, nil
}

// add adds the next packet, and reports whether it was the last one.
func (k *kept) add(frame []byte, wireLen int) (done bool, err error) {
	s := &k.sample
	n := len(s.Packets)
	if n == len(k.flow.Packets) {
		return false, fmt.Errorf("%w: there are more packets than it says", errKept)
	}
	if len(frame) == 0 || len(s.Data)+len(frame) > flow.CaptureBytes {
		return false, fmt.Errorf("%w: a packet of %d bytes does not fit", errKept, len(frame))
	}
	p := &k.flow.Packets[n]
	s.Packets = append(s.Packets, flow.Packet{Offset: uint16(len(s.Data)), WireLen: uint32(wireLen), FromInitiator: p.FromInitiator, OffCable: p.OffCable, Segment: p.Segment, Time: max(0, p.Time)})
	s.Data = append(s.Data, frame...)
	return len(s.Packets) == len(k.flow.Packets), nil
}

// unfinished returns an error where packets of the section are missing.
func (k *kept) unfinished() error {
	if k == nil || len(k.sample.Packets) == len(k.flow.Packets) {
		return nil
	}
	return fmt.Errorf("%w: of %d packets there are %d", errKept, len(k.flow.Packets), len(k.sample.Packets))
}

// feedKept gives a packet of a section that is a capture to the sample, and that to a.
func (f *File) feedKept(a *Assembler, frame []byte, wireLen int) error {
	done, err := f.kept.add(frame, wireLen)
	if done {
		a.takeKept(&f.kept.sample)
	}
	return f.keptError(err)
}

// keptError returns an error about such a section as those of a file are.
func (f *File) keptError(err error) error {
	if err == nil {
		return nil
	}
	f.err = &FileError{Path: f.path, Packets: f.packets, Offset: f.offset(), Err: err}
	return f.err
}

// takeKept hands over a capture as it was.
func (a *Assembler) takeKept(s *flow.Sample) {
	a.shrink()
	if s.Start.After(a.now) {
		a.now = s.Start
		a.expire()
	}
	if f := a.find(s.Key); f != nil {
		a.restart(f)
	}
	f := a.start(s.Key, s.InitiatorIsLo, s.Start, a.order())
	f.Last, f.Packets = s.Start.Add(s.Packets[len(s.Packets)-1].Time), uint64(len(s.Packets))
	for i := range s.Packets {
		f.Bytes += uint64(s.Packets[i].WireLen)
	}
	f.stage, f.revision = decided, s.Revision
	s.Source = a.source(f.Seq)
	if c, ok := map[flow.Reason]Counter{flow.ReasonFull: Full, flow.ReasonClosed: Closed, flow.ReasonIdle: Idle, flow.ReasonEnd: End}[s.Reason]; ok {
		a.counters[c]++
	}
	a.onSample(f, s)
	a.settle(f)
}
