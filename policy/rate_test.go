// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

const rateRule = "write 1kbit to 10gbit, a whole number with kbit, mbit or gbit (1000 bits a second and so on), such as 64kbit"

func TestRatesAreReadAndPrinted(t *testing.T) {
	for text, want := range map[string]uint64{"1kbit": MinRate, "64kbit": 8_000, "2mbit": 250_000, "10gbit": MaxRate, "1500kbit": 187_500} {
		got, err := ParseRate(text)
		if err != nil || got != want || FormatRate(got) != text {
			t.Errorf("%s: %d bytes/s, %v, printed as %s", text, got, err, FormatRate(got))
		}
	}
}

// What a rule does is in the decision, and in the treatment that it asks for.
func TestActionsAreInTheDecision(t *testing.T) {
	for _, tt := range []struct {
		keys string
		want flow.Treatment
		says string // of Describe
	}{
		{"action: reset, ttl: 1h", flow.Treatment{Action: flow.Reset, TTL: time.Hour}, "rule r: reset v2ray for 1h when the confidence is at least 0.5\n"},
		{"action: limit, rate: 64kbit, ttl: 1h", flow.Treatment{Action: flow.Limit, TTL: time.Hour, Rate: 8000}, "rule r: limit v2ray to 64kbit for 1h when the confidence is at least 0.5\n"},
		{"action: drop, ttl: 1h, meanwhile: limit, rate: 1mbit, evidence: {flows: 3, share: 0.5, within: 1h}", flow.Treatment{Action: flow.Limit, TTL: time.Hour, Rate: 125_000},
			"; meanwhile limit to 1mbit\n"},
		{"action: limit, rate: 1mbit, ttl: 1h, meanwhile: log, evidence: {flows: 3, share: 0.5, within: 1h}", flow.Treatment{}, "  limit the pair"},
	} {
		p, err := Parse("p.yaml", []byte("rules: [{name: r, class: v2ray, min_confidence: 0.5, "+tt.keys+"}]"), nil)
		if err != nil {
			t.Fatal(err)
		}
		d := p.Decide(meta("10.0.0.1:5000", "192.0.2.9:443"), flow.Result{Class: "v2ray", Confidence: 0.9})
		if tt.want.Action != flow.Pass {
			tt.want.Class, tt.want.Rule = "v2ray", "r"
		}
		if got := d.Treatment(); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.keys, got, tt.want)
		}
		if text := p.Describe(); !strings.Contains(text, tt.says) {
			t.Errorf("%s: described as %q", tt.keys, text)
		}
	}
}
