// SPDX-License-Identifier: Apache-2.0

package main

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
	"github.com/earlydrop/earlydrop/policy"
)

const (
	// occlusionDraws is how often each part of a capture is replaced by random
	// values; what comes out is the mean.
	occlusionDraws = 16
	// payloadRun is how many bytes of payload are replaced at a time.
	payloadRun = 16
)

// part is a piece of what a model may look at: bytes of the capture, or what was
// noted about packets beside their bytes.
type part struct {
	name    string
	packets []int // whose bytes or records these are
	bytes   []int // of the capture
	records records
	value   string // what it was, for people
	group   bool   // stands for many other parts

	masked bool // the mask replaces all of it, so that the model never sees it
	seen   bool // the model's input changed when it was replaced
	// effect is by how much the probability that is explained falls when the part
	// is replaced, -1 to 1: above 0 it speaks for the class.
	effect float64
}

// records says which of a packet's records are replaced.
type records uint8

const (
	recordLength records = 1 << iota
	recordDirection
	recordTime
)

// occlusion tells which parts of a capture a verdict hangs on.
type occlusion struct {
	sample   *flow.Sample
	engine   *classifier.Engine
	result   flow.Result // of the whole capture
	decision policy.Decision
	rule     *policy.Rule // that was asked; nil if none was
	// Explained is the probability that the flow is of one of these labels: what
	// the rule went by, or else the likeliest label's.
	explained []int
	label     string // what these are called
	parts     []part
	masked    [flow.CaptureBytes]bool // replaced by the model's mask
	unseen    [flow.CaptureBytes]bool // masked, or no part of the model's input
	input     []uint8                 // the model's image

	payload []int   // per packet, where its payload begins in its frame, at most at its end
	wire    []int   // per packet, how long its payload was on the wire
	lengths [][]int // per packet, where its headers say how long it is
}

// newOcclusion classifies s and replaces, one after the other, each header field,
// each run of payload and each packet's length, direction and time. What it looks at
// is the probability that p decides by. The random values depend on nothing but the
// capture.
func newOcclusion(engine *classifier.Engine, p *policy.Policy, s *flow.Sample) (*occlusion, error) {
	o := &occlusion{sample: s, engine: engine}
	m := engine.Manifest()
	results := make([]flow.Result, 1)
	if err := engine.Classify([]*flow.Sample{s}, results); err != nil {
		return nil, err
	}
	o.result = results[0]
	o.decision = p.Decide(&s.Meta, o.result)
	o.rule = p.RuleOf(&o.decision)
	classes := []string{o.decision.Likeliest}
	o.label = o.decision.Likeliest
	if o.rule != nil && o.rule.Classes[0] != flow.Unknown {
		classes, o.label = o.rule.Classes, o.decision.RuleClasses
	}
	for i, label := range o.result.Labels {
		if slices.Contains(classes, label) {
			o.explained = append(o.explained, i)
		}
	}
	o.input = make([]uint8, len(m.Channels)*classifier.ImagePixels)
	classifier.Render(s, m.Mask, m.Channels, o.input)
	var mask [flow.CaptureBytes]uint8
	classifier.MaskMap(s, &mask)
	for i, v := range mask {
		o.masked[i] = v&uint8(m.Mask) != 0
	}
	o.divide()

	h := fnv.New64a()
	h.Write(s.Data)
	seed := h.Sum64()
	work, errs := make(chan int), make([]error, len(o.parts))
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			images := make([]uint8, occlusionDraws*len(o.input))
			results := make([]flow.Result, occlusionDraws)
			for i := range work {
				errs[i] = o.measure(&o.parts[i], rand.New(rand.NewPCG(seed, uint64(i))), images, results)
			}
		})
	}
	for i := range o.parts {
		work <- i
	}
	close(work)
	workers.Wait()
	o.unseen = o.masked
	for i := range o.parts {
		if p := &o.parts[i]; !p.seen && !p.group {
			for _, at := range p.bytes {
				o.unseen[at] = true
			}
		}
	}
	return o, errors.Join(errs...)
}

// probability returns, of a result, the probability that is explained.
func (o *occlusion) probability(r *flow.Result) (sum float64) {
	for _, i := range o.explained {
		sum += r.Scores[i]
	}
	return sum
}

// divide finds the parts of the capture.
func (o *occlusion) divide() {
	var headerBytes, payloads, all []int
	for i := range o.sample.Packets {
		frame, offset := o.sample.Frame(i), int(o.sample.Packets[i].Offset)
		r := &o.sample.Packets[i]
		var h headers.Headers
		h.Walk(frame, int(r.WireLen))
		fields, payload := h.Fields(frame), min(h.Payload, len(frame))
		o.payload = append(o.payload, payload)
		o.wire = append(o.wire, h.PayloadLen)
		o.lengths = append(o.lengths, lengthFields(fields))
		all = append(all, i)
		of := fmt.Sprintf("of packet %d (%s)", i+1, sender(&o.sample.Packets[i]))
		add := func(name string, start, end int) {
			p := part{name: name, packets: []int{i}, value: hexBytes(frame[start:end]), masked: true}
			for at := start; at < end; at++ {
				p.bytes = append(p.bytes, offset+at)
				p.masked = p.masked && o.masked[offset+at]
			}
			o.parts = append(o.parts, p)
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
		o.parts = append(o.parts,
			part{name: "length " + of, packets: []int{i}, records: recordLength, value: fmt.Sprintf("%d bytes of payload", o.wire[i])},
			part{name: "direction " + of, packets: []int{i}, records: recordDirection, value: sender(r)},
			part{name: "time " + of, packets: []int{i}, records: recordTime, value: r.Time.Round(time.Microsecond).String()})
	}
	for _, g := range []part{
		{name: "all header fields", bytes: headerBytes},
		{name: "all payload", bytes: payloads},
		{name: "all lengths of packets", packets: all, records: recordLength},
		{name: "all directions of packets", packets: all, records: recordDirection},
		{name: "all times of packets", packets: all, records: recordTime},
	} {
		g.group = true
		o.parts = append(o.parts, g)
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
func (o *occlusion) measure(p *part, r *rand.Rand, images []uint8, results []flow.Result) error {
	if p.masked {
		return nil
	}
	size := len(o.input)
	for d := range occlusionDraws {
		image := images[d*size : (d+1)*size]
		o.replace(p, r, image)
		p.seen = p.seen || !bytes.Equal(image, o.input)
	}
	if !p.seen {
		return nil
	}
	if err := o.engine.ClassifyImages(images, results); err != nil {
		return err
	}
	sum := 0.0
	for i := range results {
		sum += o.probability(&results[i])
	}
	p.effect = o.probability(&o.result) - sum/occlusionDraws
	return nil
}

// replace writes to image what the model gets when p is replaced by random values.
//
// The plane of the bytes is changed in place: where headers begin and end, and what
// the mask puts in, stays as it was. All other planes are made anew from a capture
// whose payload or records are changed, whatever these planes show of them.
func (o *occlusion) replace(p *part, r *rand.Rand, image []uint8) {
	m := o.engine.Manifest()
	var s flow.Sample
	s.CopyFrom(o.sample)
	random := make(map[int]uint8, len(p.bytes))
	for _, at := range p.bytes {
		random[at] = uint8(r.Uint32())
	}
	for i := range s.Packets {
		start := int(s.Packets[i].Offset) + o.payload[i]
		for at := start; at < int(s.Packets[i].Offset)+len(s.Frame(i)); at++ {
			if b, ok := random[at]; ok {
				s.Data[at] = b
			}
		}
	}
	for _, i := range p.packets {
		if p.records&recordLength != 0 {
			o.replaceLength(&s, i, r)
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
		copy(plane, o.input[c*classifier.ImagePixels:])
		for _, at := range p.bytes {
			if !o.masked[at] {
				plane[at] = random[at]
			}
		}
	}
}

// replaceLength makes the payload of packet i of s 1 to 1460 bytes longer than what
// was captured of it. All planes but that of the bytes go by this length, as 0 in a
// header says nothing.
func (o *occlusion) replaceLength(s *flow.Sample, i int, r *rand.Rand) {
	frame := s.Frame(i)
	s.Packets[i].WireLen = uint32(len(frame) + 1 + r.IntN(1460))
	for _, at := range o.lengths[i] {
		clear(frame[at:min(at+2, len(frame))])
	}
}

// strongest returns the single parts that the model sees, those with the largest
// effects first, at most n and none whose effect is printed as zero.
func (o *occlusion) strongest(n int) (parts []*part) {
	for i := range o.parts {
		if p := &o.parts[i]; p.seen && !p.group && printedEffect(p.effect) != 0 {
			parts = append(parts, p)
		}
	}
	// What is printed alike keeps its order, so that the last digits, which
	// depend on the machine, don't matter.
	slices.SortStableFunc(parts, func(a, b *part) int {
		return cmp.Compare(math.Abs(printedEffect(b.effect)), math.Abs(printedEffect(a.effect)))
	})
	return parts[:min(n, len(parts))]
}

// groups returns the parts that stand for many others, those that the model sees.
func (o *occlusion) groups() (parts []*part) {
	for i := range o.parts {
		if p := &o.parts[i]; p.seen && p.group {
			parts = append(parts, p)
		}
	}
	return parts
}

// printedEffect rounds an effect to the digits that are printed.
func printedEffect(e float64) float64 { return math.Round(e*1e4) / 1e4 }

// byteEffects returns the effect of each byte of the capture, which is that of its
// field or run of payload.
func (o *occlusion) byteEffects() (effects [flow.CaptureBytes]float64) {
	for i := range o.parts {
		if p := &o.parts[i]; !p.group {
			for _, at := range p.bytes {
				effects[at] = p.effect
			}
		}
	}
	return effects
}

// recordEffects returns for each byte the largest effect of its packet's length,
// direction and time, and whether the model sees any of these.
func (o *occlusion) recordEffects() (effects [flow.CaptureBytes]float64, seen bool) {
	for i := range o.parts {
		p := &o.parts[i]
		if p.group || p.records == 0 || !p.seen {
			continue
		}
		seen = true
		first := int(o.sample.Packets[p.packets[0]].Offset)
		for at := first; at < first+len(o.sample.Frame(p.packets[0])); at++ {
			if math.Abs(p.effect) > math.Abs(effects[at]) {
				effects[at] = p.effect
			}
		}
	}
	return effects, seen
}
