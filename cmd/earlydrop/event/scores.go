// SPDX-License-Identifier: Apache-2.0

package event

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// ScoreUnits is how many steps there are from 0 to 1 in the probabilities that are said
// of captures in files: their last digits depend on the machine.
const ScoreUnits = 1e6

// RoundScore rounds a probability to ScoreUnits.
func RoundScore(p float64) float64 { return math.Round(p*ScoreUnits) / ScoreUnits }

// Scores holds the probability of each label of a model, in the model's order. In JSON it
// is an object.
type Scores struct {
	Labels []string // shared by all that one model says; not to be changed
	Values []float64
}

// Of returns the probability of a label, 0 if the model has no such label.
func (s Scores) Of(label string) float64 {
	if i := slices.Index(s.Labels, label); i >= 0 {
		return s.Values[i]
	}
	return 0
}

// Has reports whether the model has the label.
func (s Scores) Has(label string) bool { return slices.Contains(s.Labels, label) }

// MarshalJSON is for encoding/json. A flood of verdicts goes through it.
func (s Scores) MarshalJSON() ([]byte, error) {
	if len(s.Labels) != len(s.Values) {
		return nil, fmt.Errorf("%d labels with %d probabilities", len(s.Labels), len(s.Values))
	}
	b := make([]byte, 0, 32*len(s.Labels)+2)
	b = append(b, '{')
	for i, label := range s.Labels {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = appendString(b, label); err != nil {
			return nil, err
		}
		b = append(b, ':')
		b = strconv.AppendFloat(b, s.Values[i], 'f', -1, 64)
	}
	return append(b, '}'), nil
}

// appendString appends a string as JSON.
func appendString(b []byte, s string) ([]byte, error) {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || strings.IndexByte(`"\<>&`, c) >= 0 {
			quoted, err := json.Marshal(s)
			return append(b, quoted...), err
		}
	}
	return append(append(append(b, '"'), s...), '"'), nil
}

// UnmarshalJSON is for encoding/json.
func (s *Scores) UnmarshalJSON(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return fmt.Errorf("scores %s: not an object", text)
	}
	*s = Scores{}
	for d.More() {
		label, err := d.Token()
		if err != nil {
			return fmt.Errorf("scores: %w", err)
		}
		var p float64
		if err := d.Decode(&p); err != nil {
			return fmt.Errorf("scores: %v: %w", label, err)
		}
		s.Labels, s.Values = append(s.Labels, label.(string)), append(s.Values, p)
	}
	return nil
}
