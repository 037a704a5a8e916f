// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Without evidence, a rule does to each flow what it does meanwhile, and nothing is evidence.
func TestWithoutEvidence(t *testing.T) {
	p := mustParse(t, `mode: enforce
rules:
  - {name: drop, class: shadowsocks, min_confidence: 0.9, action: drop, ttl: 1h, evidence: {flows: 2, share: 1, within: 1h, min_confidence: 0.5}}
  - {name: log, class: v2ray, min_confidence: 0.9, action: drop, ttl: 1h, meanwhile: log, evidence: {flows: 2, share: 1, within: 1h}}
  - {name: limit, class: tor, min_confidence: 0.9, action: drop, ttl: 2h, meanwhile: limit, rate: 64kbit, evidence: {flows: 2, share: 1, within: 1h}}
`)
	alone := p.WithoutEvidence()
	if !p.TreatsPairs() || alone.TreatsPairs() || alone.EvidenceRule(0) != nil || alone.Mode != Enforce {
		t.Errorf("pairs: before %v, after %v", p.TreatsPairs(), alone.TreatsPairs())
	}
	for _, tt := range []struct {
		class      string
		confidence float64
		want       flow.Treatment
		reason     string
	}{
		{"shadowsocks", 0.95, flow.Treatment{Action: flow.Drop, TTL: time.Hour, Class: "shadowsocks", Rule: "drop"}, ReasonRule},
		{"shadowsocks", 0.6, flow.Treatment{}, ReasonLowConfidence},
		{"v2ray", 0.95, flow.Treatment{}, ReasonRule},
		{"tor", 0.95, flow.Treatment{Action: flow.Limit, TTL: 2 * time.Hour, Rate: 8000, Class: "tor", Rule: "limit"}, ReasonRule},
	} {
		d := alone.Decide(meta("10.0.0.2:1", "192.0.2.1:443"), flow.Result{Class: tt.class, Confidence: tt.confidence})
		if d.Treatment() != tt.want || d.Reason != tt.reason || d.Counts != 0 || d.TTL != tt.want.TTL {
			t.Errorf("%s %v: %+v, want %+v, %s", tt.class, tt.confidence, d, tt.want, tt.reason)
		}
	}
	if text := alone.Describe(); text == "" || p.Rules[0].Evidence == nil {
		t.Errorf("%s", text)
	}
}
