// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

const (
	// draws is how often each part of a capture is replaced by random values; what
	// comes out is the mean.
	draws = 16
	// payloadRun is how many bytes of payload are replaced at a time.
	payloadRun = 16
)

// Part is a piece of what a model may look at: bytes of a capture, or what was noted
// about packets beside their bytes.
type Part struct {
	Name  string `json:"name"`            // such as "TCP window of packet 1 (initiator)"
	Value string `json:"value,omitempty"` // what it was, for people; empty of a group
	// Effect is by how much the probability that is explained falls when the part is
	// replaced, -1 to 1: above 0 it speaks for the labels.
	Effect float64 `json:"effect"`

	packets []int // whose bytes or records these are
	bytes   []int // of the capture
	records records
	group   bool // stands for many other parts

	masked bool // the mask replaces all of it, so that the model never sees it
	seen   bool // the model's input changed when it was replaced
}

// Rounded returns the effect as it is printed, with four digits: what is smaller depends
// on the machine.
func (p *Part) Rounded() float64 { return math.Round(p.Effect*1e4) / 1e4 }

// records says which of a packet's records are replaced.
type records uint8

const (
	recordLength records = 1 << iota
	recordDirection
	recordTime
)

// Explanation tells which parts of a capture the answer about it depends on. It is
// read-only.
type Explanation struct {
	about    string // what the labels are called
	sample   *flow.Sample
	engine   *classifier.Engine
	manifest *classifier.Manifest
	labels   []int   // whose probability is explained, by their indices
	whole    float64 // that probability
	parts    []Part
	masked   [flow.CaptureBytes]bool // replaced by the model's mask
	unseen   [flow.CaptureBytes]bool // masked, or no part of the model's input
	input    []uint8                 // the model's image

	payload []int   // per packet, where its payload begins in its frame, at most at its end
	wire    []int   // per packet, how long its payload was on the wire
	lengths [][]int // per packet, where its headers say how long it is
}

// New explains the answer about s, which is what the engine made of it: by how much the
// probability that the flow is of one of the labels falls when a part of the capture is
// replaced by random values. Those depend on nothing but the capture, so that the same
// comes out each time. about is what the labels together are called in texts; s must not
// change while the explanation is used. The error is the engine's.
func New(engine *classifier.Engine, s *flow.Sample, answer flow.Result, labels []string, about string) (*Explanation, error) {
	e := &Explanation{about: about, sample: s, engine: engine, manifest: engine.Manifest()}
	for i, label := range answer.Labels {
		if slices.Contains(labels, label) {
			e.labels = append(e.labels, i)
		}
	}
	e.whole = e.probability(&answer)
	m := e.manifest
	e.input = make([]uint8, len(m.Channels)*classifier.ImagePixels)
	classifier.Render(s, m.Mask, m.Channels, e.input)
	var mask [flow.CaptureBytes]uint8
	classifier.MaskMap(s, &mask)
	for i, v := range mask {
		e.masked[i] = v&uint8(m.Mask) != 0
	}
	e.divide()
	if err := e.measureAll(); err != nil {
		return nil, err
	}
	e.unseen = e.masked
	for i := range e.parts {
		if p := &e.parts[i]; !p.seen && !p.group {
			for _, at := range p.bytes {
				e.unseen[at] = true
			}
		}
	}
	return e, nil
}

// measureAll fills in the effects of all parts.
func (e *Explanation) measureAll() error {
	h := fnv.New64a()
	h.Write(e.sample.Data)
	seed := h.Sum64()
	work, errs := make(chan int), make([]error, len(e.parts))
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			images := make([]uint8, draws*len(e.input))
			results := make([]flow.Result, draws)
			for i := range work {
				errs[i] = e.measure(&e.parts[i], rand.New(rand.NewPCG(seed, uint64(i))), images, results)
			}
		})
	}
	for i := range e.parts {
		work <- i
	}
	close(work)
	workers.Wait()
	return errors.Join(errs...)
}

// probability returns, of a result, the probability that is explained.
func (e *Explanation) probability(r *flow.Result) (sum float64) {
	for _, i := range e.labels {
		sum += r.Scores[i]
	}
	return sum
}

// divide finds the parts of the capture.
func (e *Explanation) divide() {
	var headerBytes, payloads, all []int
	for i := range e.sample.Packets {
		frame, offset := e.sample.Frame(i), int(e.sample.Packets[i].Offset)
		r := &e.sample.Packets[i]
		var h headers.Headers
		h.Walk(frame, int(r.WireLen))
		fields, payload := h.Fields(frame), min(h.Payload, len(frame))
		e.payload = append(e.payload, payload)
		e.wire = append(e.wire, h.PayloadLen)
		e.lengths = append(e.lengths, lengthFields(fields))
		all = append(all, i)
		of := fmt.Sprintf("of packet %d (%s)", i+1, sender(&e.sample.Packets[i]))
		add := func(name string, start, end int) {
			p := Part{Name: name, packets: []int{i}, Value: hexBytes(frame[start:end]), masked: true}
			for at := start; at < end; at++ {
				p.bytes = append(p.bytes, offset+at)
				p.masked = p.masked && e.masked[offset+at]
			}
			e.parts = append(e.parts, p)
		}
		for _, f := range fields {
			add(fieldName(f, frame)+" "+of, f.Start, f.End)
		}
		for at := offset; at < offset+payload; at++ {
			headerBytes = append(headerBytes, at)
		}
		for start := payload; start < len(frame); start += payloadRun {
			end := min(start+payloadRun, len(frame))
			add(fmt.Sprintf("payload %s, bytes %d-%d", of, start-payload, end-payload-1), start, end)
		}
		for at := offset + payload; at < offset+len(frame); at++ {
			payloads = append(payloads, at)
		}
		e.parts = append(e.parts,
			Part{Name: "length " + of, packets: []int{i}, records: recordLength, Value: fmt.Sprintf("%d bytes of payload", e.wire[i])},
			Part{Name: "direction " + of, packets: []int{i}, records: recordDirection, Value: sender(r)},
			Part{Name: "time " + of, packets: []int{i}, records: recordTime, Value: r.Time.Round(time.Microsecond).String()})
	}
	for _, g := range []Part{
		{Name: "all header fields", bytes: headerBytes},
		{Name: "all payload", bytes: payloads},
		{Name: "all lengths of packets", packets: all, records: recordLength},
		{Name: "all directions of packets", packets: all, records: recordDirection},
		{Name: "all times of packets", packets: all, records: recordTime},
	} {
		g.group = true
		e.parts = append(e.parts, g)
	}
}

// fieldName names a field of frame for people.
func fieldName(f headers.Span, frame []byte) string {
	if f.Field == headers.TCPOptionOther {
		return fmt.Sprintf("%s %d", f.Field, frame[f.Start])
	}
	return f.Field.String()
}

// lengthFields returns where a frame says how long it is.
func lengthFields(fields []headers.Span) (offsets []int) {
	for _, f := range fields {
		switch f.Field {
		case headers.IPv4Length, headers.IPv6Length, headers.UDPLength:
			offsets = append(offsets, f.Start)
		}
	}
	return offsets
}

func sender(p *flow.Packet) string {
	if p.FromInitiator {
		return "initiator"
	}
	return "responder"
}

// hexBytes prints the first bytes of b.
func hexBytes(b []byte) string {
	const most = 16
	if len(b) > most {
		return fmt.Sprintf("% x ...", b[:most])
	}
	return fmt.Sprintf("% x", b)
}

// measure fills in what becomes of the probability without p. images and results
// are memory for all draws.
func (e *Explanation) measure(p *Part, r *rand.Rand, images []uint8, results []flow.Result) error {
	if p.masked {
		return nil
	}
	size := len(e.input)
	for d := range draws {
		image := images[d*size : (d+1)*size]
		e.replace(p, r, image)
		p.seen = p.seen || !bytes.Equal(image, e.input)
	}
	if !p.seen {
		return nil
	}
	if err := e.engine.ClassifyImages(images, results); err != nil {
		return err
	}
	sum := 0.0
	for i := range results {
		sum += e.probability(&results[i])
	}
	p.Effect = e.whole - sum/draws
	return nil
}

// replace writes to image what the model gets when p is replaced by random values.
//
// The plane of the bytes is changed in place: where headers begin and end, and what
// the mask puts in, stays as it was. All other planes are made anew from a capture
// whose payload or records are changed, whatever these planes show of them.
func (e *Explanation) replace(p *Part, r *rand.Rand, image []uint8) {
	m := e.manifest
	var s flow.Sample
	s.CopyFrom(e.sample)
	random := make(map[int]uint8, len(p.bytes))
	for _, at := range p.bytes {
		random[at] = uint8(r.Uint32())
	}
	for i := range s.Packets {
		start := int(s.Packets[i].Offset) + e.payload[i]
		for at := start; at < int(s.Packets[i].Offset)+len(s.Frame(i)); at++ {
			if b, ok := random[at]; ok {
				s.Data[at] = b
			}
		}
	}
	for _, i := range p.packets {
		if p.records&recordLength != 0 {
			e.replaceLength(&s, i, r)
		}
		if p.records&recordDirection != 0 {
			// One alone has only the other one to change to.
			s.Packets[i].FromInitiator = r.IntN(2) == 0 && p.group || !p.group && !s.Packets[i].FromInitiator
		}
		if p.records&recordTime != 0 {
			// As likely to be of any order of magnitude, from 1 us to a minute.
			s.Packets[i].Time = time.Duration(math.Exp2(r.Float64()*26)) * time.Microsecond
		}
	}
	classifier.Render(&s, m.Mask, m.Channels, image)
	for c, channel := range m.Channels {
		if channel != classifier.ChannelByte {
			continue
		}
		plane := image[c*classifier.ImagePixels:][:classifier.ImagePixels]
		copy(plane, e.input[c*classifier.ImagePixels:])
		for _, at := range p.bytes {
			if !e.masked[at] {
				plane[at] = random[at]
			}
		}
	}
}

// replaceLength makes the payload of packet i of s 1 to 1460 bytes longer than what
// was captured of it. All planes but that of the bytes go by this length, as 0 in a
// header says nothing.
func (e *Explanation) replaceLength(s *flow.Sample, i int, r *rand.Rand) {
	frame := s.Frame(i)
	s.Packets[i].WireLen = uint32(len(frame) + 1 + r.IntN(1460))
	for _, at := range e.lengths[i] {
		clear(frame[at:min(at+2, len(frame))])
	}
}

// Strongest returns the single parts that the model sees, those with the largest
// effects first, at most n and none whose effect is rounded to zero.
func (e *Explanation) Strongest(n int) (parts []Part) {
	for _, p := range e.parts {
		if p.seen && !p.group && p.Rounded() != 0 {
			parts = append(parts, p)
		}
	}
	// What is printed alike keeps its order, so that the last digits, which
	// depend on the machine, don't matter.
	slices.SortStableFunc(parts, func(a, b Part) int {
		return cmp.Compare(math.Abs(b.Rounded()), math.Abs(a.Rounded()))
	})
	return parts[:min(n, len(parts))]
}

// Groups returns what stands for many parts at once, as all header fields, as far as the
// model sees them.
func (e *Explanation) Groups() (parts []Part) {
	for _, p := range e.parts {
		if p.seen && p.group {
			parts = append(parts, p)
		}
	}
	return parts
}

// byteEffects returns the effect of each byte of the capture, which is that of its
// field or run of payload.
func (e *Explanation) byteEffects() (effects [flow.CaptureBytes]float64) {
	for i := range e.parts {
		if p := &e.parts[i]; !p.group {
			for _, at := range p.bytes {
				effects[at] = p.Effect
			}
		}
	}
	return effects
}

// recordEffects returns for each byte the largest effect of its packet's length,
// direction and time, and whether the model sees any of these.
func (e *Explanation) recordEffects() (effects [flow.CaptureBytes]float64, seen bool) {
	for i := range e.parts {
		p := &e.parts[i]
		if p.group || p.records == 0 || !p.seen {
			continue
		}
		seen = true
		first := int(e.sample.Packets[p.packets[0]].Offset)
		for at := first; at < first+len(e.sample.Frame(p.packets[0])); at++ {
			if math.Abs(p.Effect) > math.Abs(effects[at]) {
				effects[at] = p.Effect
			}
		}
	}
	return effects, seen
}
