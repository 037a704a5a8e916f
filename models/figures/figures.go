// SPDX-License-Identifier: Apache-2.0

// Package figures reads how well a model does, as the training code wrote it into the
// model's file.
package figures

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Figures is what the training code measured; models/train writes it. Its
// groups of flows are the labels, for background also its kinds ("captures",
// "lab, random-like", ...) and "ordinary", all of it that is neither made to look
// random nor a tunnel.
type Figures struct {
	Flows  int `json:"flows"`
	Groups int `json:"groups"`
	// MinConfidence is that of a rule over all classes; Sums has, for each value
	// and group, how many flows reach it with the sum of all classes.
	MinConfidence float64                     `json:"min_confidence"`
	Sums          map[string]map[string]Share `json:"sums"`
	// Single is, for each label and group, what a rule over that label alone
	// detects at the label's threshold.
	Single map[string]map[string]Share `json:"single"`
	// ByCipher is, for each group and variant, what is detected at Detail.
	Detail   float64 `json:"detail"`
	ByCipher map[string]map[string]struct {
		Taken Share `json:"taken"`
	} `json:"by_cipher"`
}

// Read returns the figures of a model. ok is false where they have another shape, or there
// are none.
func Read(text []byte) (f *Figures, ok bool) {
	f = &Figures{}
	ok = json.Unmarshal(text, f) == nil && f.Flows > 0 && len(f.Detected()) > 0
	return f, ok
}

// Detected returns what a rule over all classes detects, by group.
func (f *Figures) Detected() map[string]Share {
	return f.Sums[strconv.FormatFloat(f.MinConfidence, 'g', 6, 64)]
}

// ByTLS returns of the flows of a label that were inside TLS, and of those that were
// not, how many a rule over all classes detects. What is seen of a flow in TLS is
// TLS's own first message, like any other's, whatever it carries: one figure for both
// would be true of neither. ok is false for a label that has not both.
func (f *Figures) ByTLS(label string) (inside, outside Share, ok bool) {
	if f.Detail != f.MinConfidence {
		return Share{}, Share{}, false
	}
	for variant, figures := range f.ByCipher[label] {
		to := &outside
		if strings.HasSuffix(variant, "tls") {
			to = &inside
		}
		to.Hits += figures.Taken.Hits
		to.Total += figures.Taken.Total
	}
	for _, s := range []*Share{&inside, &outside} {
		s.Low, s.High = wilson(s.Hits, s.Total)
	}
	return inside, outside, inside.Total > 0 && outside.Total > 0
}

// wilson returns the 95 % confidence interval of a share (Wilson's score interval).
func wilson(hits, total int) (low, high float64) {
	if total == 0 {
		return 0, 1
	}
	const z = 1.959963984540054
	n := float64(total)
	p := float64(hits) / n
	middle := p + z*z/(2*n)
	half := z * math.Sqrt(p*(1-p)/n+z*z/(4*n*n))
	all := 1 + z*z/n
	return max(0, (middle-half)/all), min(1, (middle+half)/all)
}

// Ordinary is the group of Figures that false positives are budgeted on.
const Ordinary = "ordinary"

// Share is a counted share with its 95 % confidence interval.
type Share struct {
	Hits  int     `json:"hits"`
	Total int     `json:"total"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// String prints "97.5 % (39 of 40; 87.1 to 99.6)".
func (s *Share) String() string {
	if s == nil || s.Total <= 0 {
		return "-"
	}
	return fmt.Sprintf("%s %% (%d of %d; %s to %s)", percent(float64(s.Hits)/float64(s.Total)),
		s.Hits, s.Total, percent(s.Low), percent(s.High))
}

// percent prints a share to a tenth of a percent. What is not all or nothing
// is never rounded to it.
func percent(p float64) string {
	switch v := 100 * p; {
	case v > 99.9 && v < 100:
		return ">99.9"
	case v > 0 && v < 0.1:
		return "<0.1"
	default:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
}
