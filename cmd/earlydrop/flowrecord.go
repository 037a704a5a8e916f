// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/loader/assembly/scratch"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// replayRecord is one flow in the output of replay. The JSON names are an
// interface.
type replayRecord struct {
	File       string    `json:"file"`
	Src        string    `json:"src"`
	Dst        string    `json:"dst"`
	Proto      string    `json:"proto"`
	Start      string    `json:"start"`
	Packets    uint64    `json:"packets"`
	Bytes      uint64    `json:"bytes"`
	Captured   int       `json:"captured"`
	Complete   bool      `json:"complete"`
	Cut        bool      `json:"cut,omitempty"`
	Incomplete bool      `json:"incomplete,omitempty"`
	MidStream  bool      `json:"mid_stream,omitempty"`
	Resumed    bool      `json:"resumed,omitempty"`
	OneWay     bool      `json:"one_way,omitempty"`
	Signals    []string  `json:"signals,omitempty"`
	Class      string    `json:"class"`
	Confidence float64   `json:"confidence"`
	Scores     scoreList `json:"scores"`
	Decision   string    `json:"decision"`
	Rule       string    `json:"rule"`
	naming
	Reason string `json:"reason"`

	start  time.Time // what Start says
	called string    // in the summary
}

// note says in a word what is special about the capture of a flow.
func (r *replayRecord) note() string {
	var notes []string
	switch {
	case r.Incomplete:
		notes = append(notes, "incomplete")
	case r.Cut:
		notes = append(notes, "cut")
	}
	if r.Resumed {
		notes = append(notes, "resumed")
	}
	if r.MidStream {
		notes = append(notes, "mid-stream")
	}
	if r.OneWay {
		notes = append(notes, "one-way")
	}
	notes = append(notes, r.Signals...)
	if notes == nil {
		return "-"
	}
	return strings.Join(notes, ",")
}

// scoreList holds the probability of each label of a model. It is an object in
// JSON, with the labels in alphabetical order.
type scoreList struct {
	labels *scoreLabels
	values []float64
}

// scoreLabels is what the scoreLists of one model share.
type scoreLabels struct {
	quoted []string // as JSON
	order  []int
}

func newScoreLabels(labels []string) *scoreLabels {
	l := &scoreLabels{}
	for i, label := range labels {
		text, _ := json.Marshal(label) // a string has no error
		l.quoted, l.order = append(l.quoted, string(text)), append(l.order, i)
	}
	slices.SortFunc(l.order, func(a, b int) int { return strings.Compare(labels[a], labels[b]) })
	return l
}

// MarshalJSON is for encoding/json.
func (s scoreList) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for n, i := range s.labels.order {
		if n > 0 {
			b = append(b, ',')
		}
		b = append(append(b, s.labels.quoted[i]...), ':')
		b = strconv.AppendFloat(b, s.values[i], 'f', -1, 64)
	}
	return append(b, '}'), nil
}

// scoreUnits is how many steps there are from 0 to 1 in the probabilities that are
// printed: their last digits depend on the machine.
const scoreUnits = 1e6

// recordCoder turns what is known of a flow into bytes, as few as it can since
// there may be millions of flows, and back into a record. Words that many flows
// share are written as numbers. Its methods may be called concurrently.
type recordCoder struct {
	labels *scoreLabels

	mu    sync.Mutex
	ids   map[string]uint64
	words []string
}

func newRecordCoder(labels []string) *recordCoder {
	return &recordCoder{labels: newScoreLabels(labels), ids: map[string]uint64{}}
}

// id returns the number of a word.
func (c *recordCoder) id(word string) uint64 {
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
func (c *recordCoder) word(id uint64) (word string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id >= uint64(len(c.words)) {
		return "", false
	}
	return c.words[id], true
}

// encode appends a flow, all but its totals.
func (c *recordCoder) encode(b []byte, s *flow.Sample, r *flow.Result, d *policy.Decision) []byte {
	b = scratch.AppendAddrPort(b, s.Initiator())
	b = scratch.AppendAddrPort(b, s.Responder())
	b = append(b, byte(s.Key.Proto), byte(d.Action))
	b = scratch.AppendFlags(b, s.Complete(), s.Cut, s.Incomplete, s.MidStream, s.Resumed, s.OneWay, d.Detected)
	b = binary.AppendUvarint(b, uint64(s.Signals))
	b = scratch.AppendTime(b, s.Start)
	b = binary.AppendUvarint(b, uint64(len(s.Data)))
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
	return binary.AppendUvarint(b, uint64(math.Round(p*scoreUnits)))
}

// decode fills r with what encode appended.
func (c *recordCoder) decode(b []byte, r *replayRecord) error {
	d := scratch.NewDecoder(b)
	r.Src, r.Dst = d.AddrPort().String(), d.AddrPort().String()
	r.Proto, r.Decision = flow.Proto(d.Byte()).String(), flow.Action(d.Byte()).String()
	var decision policy.Decision
	d.Flags(&r.Complete, &r.Cut, &r.Incomplete, &r.MidStream, &r.Resumed, &r.OneWay, &decision.Detected)
	r.Signals = flow.Signals(d.Uvarint()).Names()
	r.start = d.Time()
	r.Start = r.start.Format(time.RFC3339Nano)
	r.Captured = int(d.Uvarint())
	known := true
	for _, word := range [...]*string{&r.File, &r.Class, &r.Rule, &r.Reason, &r.called, &decision.Likeliest, &decision.RuleClasses} {
		var ok bool
		*word, ok = c.word(d.Uvarint())
		known = known && ok
	}
	score := func() float64 { return float64(d.Uvarint()) / scoreUnits }
	r.Confidence, decision.Confidence = score(), score()
	r.naming = nameFlow(&decision)
	r.Scores = scoreList{c.labels, r.Scores.values[:0]} // its memory is used again
	for range c.labels.order {
		r.Scores.values = append(r.Scores.values, score())
	}
	if !known || !d.OK() {
		return errors.New("a record of the temporary file is damaged")
	}
	return nil
}
