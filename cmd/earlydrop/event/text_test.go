// SPDX-License-Identifier: Apache-2.0

package event

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

func TestVerdictsInWords(t *testing.T) {
	sum, likeliest := 0.953, 0.551
	for _, tt := range []struct {
		name     string
		decision policy.Decision
		enforced bool
		failed   string
		want     string
	}{
		{"dropped", policy.Decision{Action: flow.Drop, Rule: "tunnels", RuleClasses: "shadowsocks|v2ray", Reason: policy.ReasonRule}, true, "",
			"drop         tcp 10.0.0.1:1 > 10.0.0.2:2  shadowsocks|v2ray 0.953 (shadowsocks 0.551)  5.0 ms, 1 packets  rule tunnels"},
		{"monitor", policy.Decision{Action: flow.Drop, Rule: "tunnels", RuleClasses: "shadowsocks|v2ray", Reason: policy.ReasonRule}, false, "",
			"would drop   tcp 10.0.0.1:1 > 10.0.0.2:2  shadowsocks|v2ray 0.953 (shadowsocks 0.551)  5.0 ms, 1 packets  rule tunnels"},
		{"the table is full", policy.Decision{Action: flow.Drop, Rule: "tunnels", RuleClasses: "shadowsocks|v2ray", Reason: policy.ReasonRule}, false, "block: the table is full",
			"drop failed  tcp 10.0.0.1:1 > 10.0.0.2:2  shadowsocks|v2ray 0.953 (shadowsocks 0.551)  5.0 ms, 1 packets  rule tunnels  it passes: block: the table is full"},
		{"not enough", policy.Decision{Rule: "tunnels", RuleClasses: "shadowsocks", Reason: policy.ReasonLowConfidence}, false, "",
			"pass         tcp 10.0.0.1:1 > 10.0.0.2:2  shadowsocks 0.953  5.0 ms, 1 packets  below min_confidence tunnels"},
		{"no rule", policy.Decision{Reason: policy.ReasonNoRule}, false, "",
			"pass         tcp 10.0.0.1:1 > 10.0.0.2:2  unknown (shadowsocks 0.551)  5.0 ms, 1 packets"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Date(2026, 11, 25, 23, 59, 59, 995_000_000, time.FixedZone("here", 3600))
			s := &flow.Sample{}
			s.Reset()
			s.Key, s.InitiatorIsLo = flow.NewKey(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), flow.TCP, 0, 0)
			s.Start = start
			s.Packets = append(s.Packets, flow.Packet{WireLen: 60})
			tt.decision.Confidence, tt.decision.Likeliest = sum, "shadowsocks"
			v := NewVerdict(s, &flow.Result{Class: "unknown", Confidence: likeliest}, &tt.decision)
			v.Time, v.Enforced, v.Error, v.VerdictMS = start.Add(5*time.Millisecond), &tt.enforced, tt.failed, 5
			// The date is in it, and the zone: a log lasts for more than a day.
			if want := "2026-11-26T00:00:00.000+01:00  " + tt.want; v.Text(false) != want {
				t.Errorf("printed\n%s\nwant\n%s", v.Text(false), want)
			}
		})
	}
}

func TestVerdictEventSaysThatAFlowIsMidStream(t *testing.T) {
	var s flow.Sample
	s.Reset()
	s.Key, s.InitiatorIsLo = flow.NewKey(netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("10.9.0.1:443"), flow.TCP, 0, 0)
	p, err := policy.Parse("p.yaml", []byte("rules: [{name: all, class: v2ray, min_confidence: 0.5, action: drop, ttl: 1m}]"), nil)
	if err != nil {
		t.Fatal(err)
	}
	result := flow.Result{Class: "v2ray", Confidence: 0.9}
	for _, midStream := range []bool{false, true} {
		s.MidStream = midStream
		decision, enforced := p.Decide(&s.Meta, result), !midStream
		v := NewVerdict(&s, &result, &decision)
		v.Enforced = &enforced
		line, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		text := v.Text(false)
		if midStream != strings.Contains(string(line), `"mid_stream":true`) || midStream != strings.Contains(string(line), `"reason":"mid-stream"`) ||
			midStream == strings.Contains(string(line), `"decision":"drop"`) {
			t.Errorf("mid-stream %v: %s", midStream, line)
		}
		if midStream != strings.Contains(text, ", mid-stream  mid-stream all") || midStream == strings.Contains(text, "drop ") {
			t.Errorf("mid-stream %v: %s", midStream, text)
		}
	}
}
