// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"encoding/binary"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader/assembly/scratch"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// record is one flow that is told of.
type record struct {
	event.Verdict
	called string // in the summary
}

// coder turns what is known of a flow into bytes, as few as it can since
// there may be millions of flows, and back into a record. Words that many flows
// share are written as numbers. Its methods may be called concurrently.
type coder struct {
	labels []string
	model  string

	mu    sync.Mutex
	ids   map[string]uint64
	words []string
}

func newCoder(m *classifier.Manifest) *coder {
	return &coder{labels: m.Labels, model: m.Name + " " + m.Version, ids: map[string]uint64{}}
}

// id returns the number of a word.
func (c *coder) id(word string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, ok := c.ids[word]
	if !ok {
		id = uint64(len(c.words))
		c.ids[word] = id
		c.words = append(c.words, word)
	}
	return id
}

// word is the inverse of id.
func (c *coder) word(id uint64) (word string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id >= uint64(len(c.words)) {
		return "", false
	}
	return c.words[id], true
}

// encode appends a flow, all but its totals.
func (c *coder) encode(b []byte, s *flow.Sample, r *flow.Result, d *policy.Decision) []byte {
	b = scratch.AppendAddrPort(b, s.Initiator())
	b = scratch.AppendAddrPort(b, s.Responder())
	b = append(b, byte(s.Key.Proto), byte(s.Reason), byte(d.Action))
	b = scratch.AppendFlags(b, s.Complete(), s.Cut, s.Incomplete, s.MidStream, s.Resumed, s.OneWay, d.Detected, s.Provisional)
	b = scratch.AppendFlags(b, s.Variant, s.Scant, s.MissingStart)
	b = scratch.AppendTime(b, s.Start)
	for _, n := range [...]uint64{uint64(s.Key.VLAN), uint64(s.Key.InnerVLAN), uint64(s.Elapsed), uint64(s.Revision), uint64(s.Signals), uint64(len(s.Data)), uint64(len(s.Packets)),
		event.WireBytes(s), uint64(d.TTL), d.Rate, uint64(d.Line), uint64(d.Scope), uint64(d.Seen), uint64(d.Judged)} {
		b = binary.AppendUvarint(b, n)
	}
	for _, word := range [...]string{s.Source.File, r.Class, d.Rule, d.Reason, d.Class, d.Likeliest, d.RuleClasses} {
		b = binary.AppendUvarint(b, c.id(word))
	}
	b = appendScore(b, r.Confidence)
	b = appendScore(b, d.Confidence)
	for _, p := range r.Scores {
		b = appendScore(b, p)
	}
	return b
}

func appendScore(b []byte, p float64) []byte {
	return binary.AppendUvarint(b, uint64(math.Round(p*event.ScoreUnits)))
}

// decode fills r with what encode appended.
func (c *coder) decode(b []byte, r *record) error {
	d := scratch.NewDecoder(b)
	v := event.Verdict{Model: c.model}
	v.Src, v.Dst = d.AddrPort(), d.AddrPort()
	v.Proto, v.HandedOver, v.Decision = flow.Proto(d.Byte()).String(), flow.Reason(d.Byte()).String(), flow.Action(d.Byte()).String()
	var decision policy.Decision
	d.Flags(&v.Complete, &v.Cut, &v.Incomplete, &v.MidStream, &v.Resumed, &v.OneWay, &decision.Detected, &v.Provisional)
	d.Flags(&v.Variant, &v.Scant, &v.MissingStart)
	v.Start = d.Time()
	v.VLAN, v.InnerVLAN = uint16(d.Uvarint()), uint16(d.Uvarint())
	v.Time = v.Start.Add(time.Duration(d.Uvarint()))
	v.Revised = int(d.Uvarint())
	v.Signals = flow.Signals(d.Uvarint()).Names()
	v.Captured, v.Packets, v.Bytes = int(d.Uvarint()), int(d.Uvarint()), d.Uvarint()
	v.TTL = time.Duration(d.Uvarint()).Seconds()
	v.Rate, v.PolicyLine = d.Uvarint(), int(d.Uvarint())
	v.Scope = event.ScopeOf(flow.Scope(d.Uvarint()))
	v.EvidenceFlows, v.EvidenceJudged = int(d.Uvarint()), int(d.Uvarint())
	known := true
	for _, word := range [...]*string{&v.File, &v.Class, &v.Rule, &v.Reason, &r.called, &decision.Likeliest, &decision.RuleClasses} {
		var ok bool
		*word, ok = c.word(d.Uvarint())
		known = known && ok
	}
	score := func() float64 { return float64(d.Uvarint()) / event.ScoreUnits }
	v.Confidence, decision.Confidence = score(), score()
	v.Naming = event.NameFlow(&decision)
	v.Scores = event.Scores{Labels: c.labels, Values: r.Scores.Values[:0]} // its memory is used again
	for range c.labels {
		v.Scores.Values = append(v.Scores.Values, score())
	}
	r.Verdict = v
	if !known || !d.OK() {
		return errors.New("a record of the temporary file is damaged")
	}
	return nil
}
