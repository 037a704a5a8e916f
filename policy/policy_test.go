// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/earlydrop/earlydrop/loader/flow"
)

var labels = []string{"background", "shadowsocks", "v2ray", "tor"}

var model = &Model{
	Labels:       labels,
	Thresholds:   map[string]float64{"shadowsocks": 0.8, "v2ray": 0.7, "tor": 0},
	AnyThreshold: 0.95,
	Unknown:      true,
}

// meta describes a TCP flow from initiator to responder.
func meta(initiator, responder string) *flow.Meta {
	key, isLo := flow.NewKey(netip.MustParseAddrPort(initiator), netip.MustParseAddrPort(responder), flow.TCP, 0, 0)
	return &flow.Meta{Key: key, InitiatorIsLo: isLo}
}

func mustParse(tb testing.TB, text string) *Policy {
	tb.Helper()
	p, err := Parse("test.yaml", []byte(text), model)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

const decideYAML = `
mode: enforce
allow:
  - cidr: 192.0.2.0/24
  - cidr: 2001:db8:a::/48
    side: responder
  - cidr: 203.0.113.7/32
    side: initiator
    port: [443, 8000-8100]
  - port: 22
  - cidr: 198.51.100.0/24
    port: 853
rules:
  - name: strict
    class: shadowsocks
    min_confidence: 0.99
    action: drop
    ttl: 1h
    except:
      - cidr: 10.0.0.0/8
      - port: 8388
      - cidr: 2001:db8:b::/48
        side: initiator
        port: 1000-1999
  - name: lax
    class: [shadowsocks, v2ray]
    min_confidence: 0.9
    action: drop
    ttl: 10m
    except:
      - cidr: 10.1.0.0/16
  - class: tor
    min_confidence: 1
    action: drop
    ttl: 1s
`

// names are what a decision says of its classes; TestDecisionNamesWhatDecided is
// about these fields.
var names = cmpopts.IgnoreFields(Decision{}, "RuleClasses", "Likeliest", "Detected", "Line")

// lines is TestDecisionsSayWhichLineDecided about.
var lines = cmpopts.IgnoreFields(Decision{}, "Line")

// A rule with several classes asks whether the flow is one of them.
func TestDecideAddsUpTheClassesOfARule(t *testing.T) {
	p := mustParse(t, `rules:
  - {name: both, class: [shadowsocks, v2ray], min_confidence: 0.9, action: drop, ttl: 10m}
  - {name: one, class: v2ray, min_confidence: 0.4, action: drop, ttl: 1h}
`)
	labels := []string{"background", "shadowsocks", "v2ray"}
	for _, tt := range []struct {
		name   string
		class  string
		scores []float64
		want   Decision
	}{
		{"a clear tunnel of unclear kind", "shadowsocks", []float64{0.02, 0.55, 0.43},
			Decision{Action: flow.Drop, Rule: "both", Confidence: 0.98, TTL: 10 * time.Minute, Reason: ReasonRule}},
		{"not enough together", "shadowsocks", []float64{0.2, 0.5, 0.3},
			Decision{Rule: "both", Confidence: 0.8, Reason: ReasonLowConfidence}},
		{"not enough together, enough for a rule of one", "v2ray", []float64{0.2, 0.35, 0.45},
			Decision{Action: flow.Drop, Rule: "one", Confidence: 0.45, TTL: time.Hour, Reason: ReasonRule}},
		{"background leads, whatever the rest adds up to", "background", []float64{0.05, 0.475, 0.475},
			Decision{Confidence: 0.05, Reason: ReasonNoRule}},
		{"rounding above one", "shadowsocks", []float64{0, 0.6, 0.4000000001},
			Decision{Action: flow.Drop, Rule: "both", Confidence: 1, TTL: 10 * time.Minute, Reason: ReasonRule}},
		{"not a number", "shadowsocks", []float64{0, math.NaN(), 1},
			Decision{Rule: "both", Confidence: math.NaN(), Reason: ReasonLowConfidence}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := flow.Result{Class: tt.class, Labels: labels, Scores: tt.scores, Confidence: tt.scores[slices.Index(labels, tt.class)]}
			got := p.Decide(meta("10.0.0.2:40000", "198.51.100.7:8388"), r)
			tt.want.Class = tt.class
			near := cmp.Comparer(func(a, b float64) bool { return a == b || math.Abs(a-b) < 1e-12 || math.IsNaN(a) && math.IsNaN(b) })
			if diff := cmp.Diff(tt.want, got, near, names); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
		})
	}
}

// The outcome unknown means that no class is likely enough to be named. A rule may
// name it; for the others it is min_confidence that counts.
func TestDecideUnknown(t *testing.T) {
	const both = "  - {name: both, class: [shadowsocks, v2ray], min_confidence: 0.9, action: drop, ttl: 10m}\n"
	const one = "  - {name: one, class: shadowsocks, min_confidence: 0.1, action: drop, ttl: 10m}\n"
	const sure = "  - {name: sure, class: shadowsocks, min_confidence: 0.9, action: drop, ttl: 10m}\n"
	const unknown = "  - {name: strange, class: unknown, action: drop, ttl: 1h, except: [{port: 53}]}\n"
	drop := func(rule string, ttl time.Duration, confidence float64) Decision {
		return Decision{Action: flow.Drop, Rule: rule, Confidence: confidence, TTL: ttl, Reason: ReasonRule}
	}
	for _, tt := range []struct {
		name, rules string
		port        string
		scores      []float64 // background, shadowsocks, v2ray, tor
		want        Decision
	}{
		{"no rule names it", one, "443", []float64{0.4, 0.3, 0.2, 0.1}, Decision{Confidence: 0.4, Reason: ReasonNoRule}},
		{"one class is likely enough for its rule", one + unknown, "443", []float64{0.2, 0.4, 0.3, 0.1}, drop("one", 10*time.Minute, 0.4)},
		{"one class is not", sure, "443", []float64{0.2, 0.4, 0.3, 0.1}, Decision{Rule: "sure", Confidence: 0.4, Reason: ReasonLowConfidence}},
		{"one class is not, and another rule names it", sure + unknown, "443", []float64{0.2, 0.4, 0.3, 0.1}, drop("strange", time.Hour, 0.4)},
		{"a rule names it", unknown, "443", []float64{0.2, 0.4, 0.3, 0.1}, drop("strange", time.Hour, 0.4)},
		{"background is the likeliest", unknown, "443", []float64{0.4, 0.2, 0.3, 0.1}, drop("strange", time.Hour, 0.4)},
		{"an exception", unknown, "53", []float64{0.4, 0.2, 0.3, 0.1}, Decision{Rule: "strange", Confidence: 0.4, Reason: ReasonException}},
		{"several classes are likely enough together", both + unknown, "443", []float64{0.04, 0.47, 0.47, 0.02}, drop("both", 10*time.Minute, 0.94)},
		{"several classes are not", both, "443", []float64{0.2, 0.4, 0.3, 0.1}, Decision{Rule: "both", Confidence: 0.7, Reason: ReasonLowConfidence}},
		{"several classes are not, and another rule names it", both + unknown, "443", []float64{0.2, 0.4, 0.3, 0.1}, drop("strange", time.Hour, 0.4)},
		{"the likeliest is none of the several", both, "443", []float64{0, 0.3, 0.3, 0.4}, Decision{Confidence: 0.4, Reason: ReasonNoRule}},
		{"not a number", both, "443", []float64{0, math.NaN(), 0.3, 0.4}, Decision{Confidence: 0.4, Reason: ReasonNoRule}},
		{"without scores", both + unknown, "443", nil, drop("strange", time.Hour, 0.4)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := mustParse(t, "rules:\n"+tt.rules)
			r := flow.Result{Class: flow.Unknown, Confidence: 0.4, Labels: labels, Scores: tt.scores}
			tt.want.Class = flow.Unknown
			if tt.want.Rule == "one" || tt.want.Rule == "both" && tt.want.Action == flow.Drop {
				tt.want.Class = "shadowsocks"
			}
			got := p.Decide(meta("10.0.0.2:40000", "198.51.100.7:"+tt.port), r)
			near := cmp.Comparer(func(a, b float64) bool { return math.Abs(a-b) < 1e-12 })
			if diff := cmp.Diff(tt.want, got, near, names); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
		})
	}
	// The other way round: a flow with a class is not unknown.
	p := mustParse(t, "rules:\n"+unknown)
	got := p.Decide(meta("10.0.0.2:40000", "198.51.100.7:443"), flow.Result{Class: "shadowsocks", Confidence: 0.1})
	if want := (Decision{Class: "shadowsocks", Likeliest: "shadowsocks", Confidence: 0.1, Reason: ReasonNoRule}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// A decision names the classes that it comes from, one of them where there is room
// for one only, and says whether the flow was detected although it passes.
func TestDecisionNamesWhatDecided(t *testing.T) {
	const four = "  - {name: four, class: [v2ray, shadowsocks, tor, obfs4], min_confidence: 0.9, action: drop, ttl: 10m, except: [{port: 53}]}\n"
	const single = "  - {name: single, class: v2ray, min_confidence: 0.4, action: drop, ttl: 10m}\n"
	const strange = "  - {name: strange, class: unknown, action: drop, ttl: 10m}\n"
	const allowed = "allow: [{port: 22}]\n"
	labels := []string{"background", "shadowsocks", "v2ray", "tor", "obfs4"}
	for _, tt := range []struct {
		name, policy string
		port         string
		class        string
		scores       []float64
		rule         string
		classes      string
		called       string // Class
		likeliest    string
		confidence   float64
		detected     bool
	}{
		{"two of four share it, in the rule's order", "rules:\n" + four, "443", flow.Unknown, []float64{0.05, 0.55, 0.38, 0.01, 0.01}, "four", "v2ray|shadowsocks", "shadowsocks", "shadowsocks", 0.95, true},
		{"three of four share it", "rules:\n" + four, "443", flow.Unknown, []float64{0.05, 0.3, 0.31, 0.02, 0.32}, "four", "v2ray|shadowsocks|obfs4", "obfs4", "obfs4", 0.95, true},
		{"one has nearly all of it", "rules:\n" + four, "443", "shadowsocks", []float64{0.05, 0.92, 0.01, 0.01, 0.01}, "four", "shadowsocks", "shadowsocks", "shadowsocks", 0.95, true},
		{"one has a little too little", "rules:\n" + four, "443", "shadowsocks", []float64{0.05, 0.88, 0.05, 0.01, 0.01}, "four", "v2ray|shadowsocks", "shadowsocks", "shadowsocks", 0.95, true},
		{"all alike", "rules:\n" + four, "443", flow.Unknown, []float64{0, 0.25, 0.25, 0.25, 0.25}, "four", "v2ray|shadowsocks|tor|obfs4", "shadowsocks", "shadowsocks", 1, true},
		{"not enough: what was asked is named, the flow is called as the model does", "rules:\n" + four, "443", flow.Unknown, []float64{0.3, 0.4, 0.28, 0.01, 0.01}, "four", "v2ray|shadowsocks", flow.Unknown, "shadowsocks", 0.7, false},
		{"an exception", "rules:\n" + four, "53", flow.Unknown, []float64{0.05, 0.55, 0.38, 0.01, 0.01}, "four", "v2ray|shadowsocks", flow.Unknown, "shadowsocks", 0.95, true},
		{"an exception of the second rule that asks", "rules:\n  - {name: sure, class: shadowsocks, min_confidence: 0.9, action: drop, ttl: 10m}\n" + four, "53", flow.Unknown, []float64{0.05, 0.55, 0.38, 0.01, 0.01}, "sure", "shadowsocks", flow.Unknown, "shadowsocks", 0.55, true},
		{"a rule over one class", "rules:\n" + single, "443", flow.Unknown, []float64{0.2, 0.3, 0.45, 0.04, 0.01}, "single", "v2ray", "v2ray", "v2ray", 0.45, true},
		{"a rule over unknown", "rules:\n" + strange, "443", flow.Unknown, []float64{0.4, 0.3, 0.2, 0.05, 0.05}, "strange", "unknown", flow.Unknown, "background", 0.4, true},
		{"no rule", "rules:\n" + single, "443", flow.Unknown, []float64{0.4, 0.3, 0.2, 0.05, 0.05}, "", "", flow.Unknown, "background", 0.4, false},
		{"allowed, but detected", allowed + "rules:\n" + four, "22", flow.Unknown, []float64{0.05, 0.55, 0.38, 0.01, 0.01}, "port 22", "", flow.Unknown, "shadowsocks", 0.55, true},
		{"allowed, not enough", allowed + "rules:\n" + four, "22", flow.Unknown, []float64{0.3, 0.4, 0.28, 0.01, 0.01}, "port 22", "", flow.Unknown, "shadowsocks", 0.4, false},
		{"without scores", "rules:\n" + four, "443", "v2ray", nil, "four", "v2ray", "v2ray", "v2ray", 0.95, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Parse("test.yaml", []byte(tt.policy), &Model{Labels: labels, Unknown: true})
			if err != nil {
				t.Fatal(err)
			}
			r := flow.Result{Class: tt.class, Labels: labels, Scores: tt.scores, Confidence: 0.95}
			if tt.scores != nil {
				r.Confidence = slices.Max(tt.scores)
			}
			d := p.Decide(meta("10.0.0.2:40000", "198.51.100.7:"+tt.port), r)
			want := Decision{Rule: tt.rule, RuleClasses: tt.classes, Class: tt.called, Likeliest: tt.likeliest, Confidence: tt.confidence, Detected: tt.detected}
			near := cmp.Comparer(func(a, b float64) bool { return math.Abs(a-b) < 1e-12 })
			if diff := cmp.Diff(want, d, near, cmpopts.IgnoreFields(Decision{}, "Action", "TTL", "Reason", "Line")); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
			if d.Action == flow.Drop && (d.Class == flow.Unknown) != (tt.rule == "strange") {
				t.Errorf("a dropped flow is called %s", d.Class)
			}
			rule := p.RuleOf(&d)
			if (rule != nil) != (tt.classes != "") || rule != nil && rule.Name != tt.rule {
				t.Errorf("the decision is by rule %+v, want %s", rule, tt.rule)
			}
		})
	}
}

func TestDecide(t *testing.T) {
	p := mustParse(t, decideYAML)
	drop := func(rule string, ttl time.Duration) Decision {
		return Decision{Action: flow.Drop, Rule: rule, TTL: ttl, Reason: ReasonRule}
	}
	pass := func(rule, reason string) Decision { return Decision{Rule: rule, Reason: reason} }
	const client, server = "100.64.0.1:50000", "100.64.0.2:9000"
	const client6, server6 = "[2001:db8::1]:50000", "[2001:db8::2]:9000"

	tests := []struct {
		name                 string
		initiator, responder string
		class                string
		confidence           float64
		want                 Decision
	}{
		// Rules.
		{"first rule takes it", client, server, "shadowsocks", 0.995, drop("strict", time.Hour)},
		{"min_confidence is reached exactly", client, server, "shadowsocks", 0.99, drop("strict", time.Hour)},
		{"too little for the first, enough for the second", client, server, "shadowsocks", 0.95, drop("lax", 10*time.Minute)},
		{"second class of a list", client, server, "v2ray", 0.9, drop("lax", 10*time.Minute)},
		{"certainty", client, server, "tor", 1, drop("rule-3", time.Second)},
		{"just below certainty", client, server, "tor", 0.9999, pass("rule-3", ReasonLowConfidence)},
		{"below both rules: the first is named", client, server, "shadowsocks", 0.5, pass("strict", ReasonLowConfidence)},
		{"not a number", client, server, "shadowsocks", math.NaN(), pass("strict", ReasonLowConfidence)},
		{"no confidence", client, server, "v2ray", 0, pass("lax", ReasonLowConfidence)},
		{"background", client, server, "background", 1, pass("", ReasonNoRule)},
		{"class without a rule", client, server, "http", 1, pass("", ReasonNoRule)},
		{"no class", client, server, "", 1, pass("", ReasonNoRule)},
		{"classes are compared with case", client, server, "Shadowsocks", 1, pass("", ReasonNoRule)},
		{"IPv6", client6, server6, "shadowsocks", 1, drop("strict", time.Hour)},

		// Exceptions.
		{"exception by responder's network, next rule takes it", client, "10.2.0.1:9000", "shadowsocks", 1, drop("lax", 10*time.Minute)},
		{"exception by initiator's network, next rule takes it", "10.2.0.1:50000", server, "shadowsocks", 1, drop("lax", 10*time.Minute)},
		{"exceptions of both rules: the first is named", client, "10.1.0.1:9000", "shadowsocks", 1, pass("strict", ReasonException)},
		{"exception of the only rule for the class", client, "10.1.0.1:9000", "v2ray", 1, pass("lax", ReasonException)},
		{"below the first, exception of the second", client, "10.1.0.1:9000", "shadowsocks", 0.95, pass("strict", ReasonLowConfidence)},
		{"exception by responder's port", client, "100.64.0.2:8388", "shadowsocks", 1, drop("lax", 10*time.Minute)},
		{"initiator's port is no exception", "100.64.0.1:8388", server, "shadowsocks", 1, drop("strict", time.Hour)},
		{"exception by initiator and port", "[2001:db8:b::1]:50000", "[2001:db8::2]:1999", "shadowsocks", 1, drop("lax", 10*time.Minute)},
		{"initiator fits, port is above the range", "[2001:db8:b::1]:50000", "[2001:db8::2]:2000", "shadowsocks", 1, drop("strict", time.Hour)},
		{"port fits, but the network is the responder's", "[2001:db8::1]:50000", "[2001:db8:b::1]:1000", "shadowsocks", 1, drop("strict", time.Hour)},
		{"v4-mapped address in an exception", client, "[::ffff:10.1.0.1]:9000", "v2ray", 1, pass("lax", ReasonException)},

		// Allow-list.
		{"responder allowed", client, "192.0.2.9:9000", "shadowsocks", 1, pass("cidr 192.0.2.0/24", ReasonAllowList)},
		{"initiator allowed", "192.0.2.9:50000", server, "shadowsocks", 1, pass("cidr 192.0.2.0/24", ReasonAllowList)},
		{"last address of the network", client, "192.0.2.255:9000", "shadowsocks", 1, pass("cidr 192.0.2.0/24", ReasonAllowList)},
		{"one address behind the network", client, "192.0.3.0:9000", "shadowsocks", 1, drop("strict", time.Hour)},
		{"v4-mapped responder allowed", client6, "[::ffff:192.0.2.9]:9000", "shadowsocks", 1, pass("cidr 192.0.2.0/24", ReasonAllowList)},
		{"allow-list comes first for background too", client, "192.0.2.9:9000", "background", 1, pass("cidr 192.0.2.0/24", ReasonAllowList)},
		{"side responder fits", client6, "[2001:db8:a::1]:9000", "shadowsocks", 1, pass("cidr 2001:db8:a::/48 side responder", ReasonAllowList)},
		{"side responder, network is the initiator's", "[2001:db8:a::1]:50000", server6, "shadowsocks", 1, drop("strict", time.Hour)},
		{"side initiator and port", "203.0.113.7:50000", "100.64.0.2:443", "shadowsocks", 1,
			pass("cidr 203.0.113.7/32 side initiator port 443,8000-8100", ReasonAllowList)},
		{"lower end of a range", "203.0.113.7:50000", "100.64.0.2:8000", "shadowsocks", 1,
			pass("cidr 203.0.113.7/32 side initiator port 443,8000-8100", ReasonAllowList)},
		{"upper end of a range", "203.0.113.7:50000", "100.64.0.2:8100", "shadowsocks", 1,
			pass("cidr 203.0.113.7/32 side initiator port 443,8000-8100", ReasonAllowList)},
		{"below the range", "203.0.113.7:50000", "100.64.0.2:7999", "shadowsocks", 1, drop("strict", time.Hour)},
		{"above the range", "203.0.113.7:50000", "100.64.0.2:8101", "shadowsocks", 1, drop("strict", time.Hour)},
		{"side initiator, address is the responder's", client, "203.0.113.7:443", "shadowsocks", 1, drop("strict", time.Hour)},
		{"port alone", client6, "[2001:db8::2]:22", "shadowsocks", 1, pass("port 22", ReasonAllowList)},
		{"port alone is the responder's", "100.64.0.1:22", server, "shadowsocks", 1, drop("strict", time.Hour)},
		{"any side: port is the responder's", "198.51.100.1:50000", "100.64.0.2:853", "shadowsocks", 1, pass("cidr 198.51.100.0/24 port 853", ReasonAllowList)},
		{"any side: other port", "198.51.100.1:853", "100.64.0.2:9000", "shadowsocks", 1, drop("strict", time.Hour)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			result := flow.Result{Class: tt.class, Confidence: tt.confidence}
			tt.want.Class, tt.want.Confidence = tt.class, tt.confidence
			got := p.Decide(meta(tt.initiator, tt.responder), result)
			if diff := cmp.Diff(tt.want, got, names, cmp.Comparer(func(a, b float64) bool {
				return a == b || math.IsNaN(a) && math.IsNaN(b)
			})); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
		})
	}
}

// A model knows the beginnings of flows only.
func TestDecideTreatsMidStreamFlowsWhereARuleSaysSo(t *testing.T) {
	const plain = "  - {name: plain, class: v2ray, min_confidence: 0.9, action: drop, ttl: 1m, except: [{port: 53}]}\n"
	const middle = "  - {name: middle, class: v2ray, min_confidence: 0.8, action: drop, ttl: 1h, mid_stream: true}\n"
	const strange = "  - {name: strange, class: unknown, action: drop, ttl: 1h}\n"
	for _, tt := range []struct {
		name, rules string
		class       string
		confidence  float64
		port        string
		want        Decision // of a flow that was captured from its middle
	}{
		{"no rule asks for it", plain, "v2ray", 1, "443", Decision{Rule: "plain", Reason: ReasonMidStream}},
		{"a rule does", middle, "v2ray", 0.8, "443", Decision{Action: flow.Drop, Rule: "middle", TTL: time.Hour, Reason: ReasonRule}},
		{"a later rule does", plain + middle, "v2ray", 1, "443", Decision{Action: flow.Drop, Rule: "middle", TTL: time.Hour, Reason: ReasonRule}},
		{"a later rule asks for more", plain + middle, "v2ray", 0.7, "443", Decision{Rule: "plain", Reason: ReasonLowConfidence}},
		{"the rule would not have taken it anyway", plain, "v2ray", 0.7, "443", Decision{Rule: "plain", Reason: ReasonLowConfidence}},
		{"an exception", plain, "v2ray", 1, "53", Decision{Rule: "plain", Reason: ReasonException}},
		{"unknown", strange, flow.Unknown, 0.4, "443", Decision{Rule: "strange", Reason: ReasonMidStream}},
		{"another class", plain, "tor", 1, "443", Decision{Reason: ReasonNoRule}},
		{"the allow-list comes first", middle, "v2ray", 1, "22", Decision{Rule: "port 22", Reason: ReasonAllowList}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := mustParse(t, "allow: [{port: 22}]\nrules:\n"+tt.rules)
			m := meta("100.64.0.1:50000", "100.64.0.2:"+tt.port)
			r := flow.Result{Class: tt.class, Confidence: tt.confidence}
			whole := p.Decide(m, r)
			m.MidStream = true
			tt.want.Class, tt.want.Likeliest, tt.want.Confidence = tt.class, tt.class, tt.confidence
			if tt.want.Rule != "" && tt.want.Reason != ReasonAllowList {
				tt.want.RuleClasses = tt.class
			}
			// A flow is detected as it would be from its beginning.
			tt.want.Detected = tt.want.Reason != ReasonLowConfidence && tt.want.Reason != ReasonNoRule
			start := meta("100.64.0.1:50000", "100.64.0.2:"+tt.port)
			start.MissingStart = true
			for _, m := range []*flow.Meta{m, start} {
				if diff := cmp.Diff(tt.want, p.Decide(m, r), lines); diff != "" {
					t.Errorf("decision (-want +got):\n%s", diff)
				}
			}
			if (tt.want.Reason == ReasonMidStream) != (whole.Action == flow.Drop && p.Decide(m, r).Action == flow.Pass) || whole.Detected != tt.want.Detected {
				t.Errorf("captured from its beginning, it is %+v", whole)
			}
			if p.TreatsMidStream() != strings.Contains(tt.rules, "mid_stream: true") {
				t.Errorf("TreatsMidStream is %v", p.TreatsMidStream())
			}
		})
	}
}

func TestDecidePassesIncompleteFlows(t *testing.T) {
	p := mustParse(t, `allow: [{port: 22}]
rules:
  - {name: all, class: [shadowsocks, v2ray, tor], min_confidence: 0.1, action: drop, ttl: 1m, mid_stream: true}
  - {name: strange, class: unknown, action: drop, ttl: 1h, mid_stream: true}
`)
	for _, class := range []string{"v2ray", flow.Unknown, flow.Background} {
		r := flow.Result{Class: class, Confidence: 0.9}
		m := meta("100.64.0.1:50000", "100.64.0.2:443")
		m.Cut = true
		if got := p.Decide(m, r); (got.Action == flow.Drop) != (class != flow.Background) {
			t.Errorf("%s, cut: %+v", class, got)
		}
		m.Incomplete = true
		want := Decision{Class: class, Likeliest: class, Confidence: 0.9, Reason: ReasonIncomplete}
		if got := p.Decide(m, r); got != want {
			t.Errorf("%s, incomplete: %+v, want %+v", class, got, want)
		}
		m.MidStream = true
		if got := p.Decide(m, r); got != want {
			t.Errorf("%s, incomplete and mid-stream: %+v, want %+v", class, got, want)
		}
		m = meta("100.64.0.1:50000", "100.64.0.2:22")
		m.Cut, m.Incomplete = true, true
		if got := p.Decide(m, r); got.Reason != ReasonAllowList {
			t.Errorf("%s, incomplete and on the allow-list: %+v", class, got)
		}
	}
}

// Of a connection of which one direction alone is seen, the other end may know nothing.
func TestDecideTreatsOneWayFlowsWhereARuleSaysSo(t *testing.T) {
	const plain = "  - {name: plain, class: v2ray, min_confidence: 0.9, action: drop, ttl: 1m}\n"
	const oneWay = "  - {name: oneway, class: v2ray, min_confidence: 0.9, action: drop, ttl: 1h, one_way: true}\n"
	for _, tt := range []struct {
		name, rules string
		want        Decision
	}{
		{"no rule asks for it", plain, Decision{Rule: "plain", Reason: ReasonOneWay}},
		{"a rule does", oneWay, Decision{Action: flow.Drop, Rule: "oneway", TTL: time.Hour, Reason: ReasonRule}},
		{"a later rule does", plain + oneWay, Decision{Action: flow.Drop, Rule: "oneway", TTL: time.Hour, Reason: ReasonRule}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := meta("100.64.0.1:50000", "100.64.0.2:443")
			m.OneWay = true
			tt.want.Class, tt.want.Likeliest, tt.want.Confidence, tt.want.RuleClasses, tt.want.Detected = "v2ray", "v2ray", 1, "v2ray", true
			if diff := cmp.Diff(tt.want, mustParse(t, "rules:\n"+tt.rules).Decide(m, flow.Result{Class: "v2ray", Confidence: 1}), lines); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecideTakesFlowsThatShowASignal(t *testing.T) {
	const plain = "  - {name: plain, class: v2ray, min_confidence: 0.95, action: drop, ttl: 1m}\n"
	const signals = "  - {name: signals, class: v2ray, min_confidence: 0.5, action: drop, ttl: 1h, signal: [decoy, gap]}\n"
	for _, tt := range []struct {
		name, rules string
		shows       flow.Signals
		confidence  float64
		want        Decision
	}{
		{"none", signals, 0, 1, Decision{Rule: "signals", Reason: ReasonNoSignal}},
		{"another one", signals, flow.SignalTiny, 1, Decision{Rule: "signals", Reason: ReasonNoSignal}},
		{"one of them", signals, flow.SignalGap, 0.5, Decision{Action: flow.Drop, Rule: "signals", TTL: time.Hour, Reason: ReasonRule}},
		{"both and more", signals, flow.SignalGap | flow.SignalDecoy | flow.SignalTTL, 0.5, Decision{Action: flow.Drop, Rule: "signals", TTL: time.Hour, Reason: ReasonRule}},
		{"one, and too little confidence", signals, flow.SignalGap, 0.4, Decision{Rule: "signals", Reason: ReasonLowConfidence}},
		{"a later rule needs none", signals + plain, 0, 1, Decision{Action: flow.Drop, Rule: "plain", TTL: time.Minute, Reason: ReasonRule}},
		{"a later rule needs less confidence with one", plain + signals, flow.SignalDecoy, 0.6, Decision{Action: flow.Drop, Rule: "signals", TTL: time.Hour, Reason: ReasonRule}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := meta("100.64.0.1:50000", "100.64.0.2:443")
			m.Signals = tt.shows
			tt.want.Class, tt.want.Likeliest, tt.want.Confidence, tt.want.RuleClasses = "v2ray", "v2ray", tt.confidence, "v2ray"
			tt.want.Detected = tt.want.Reason != ReasonLowConfidence
			if diff := cmp.Diff(tt.want, mustParse(t, "rules:\n"+tt.rules).Decide(m, flow.Result{Class: "v2ray", Confidence: tt.confidence}), lines); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
		})
	}
}

// A datagram does not prove who has sent it.
// What decoys were taken out of may be no more than a handshake.
func TestDecidePassesFlowsOfWhichLittleButDecoysWasCaptured(t *testing.T) {
	p := mustParse(t, "rules:\n  - {name: plain, class: v2ray, min_confidence: 0.5, udp_unproven: true, action: drop, ttl: 1h}\n")
	for _, tt := range []struct {
		name    string
		scant   bool
		signals flow.Signals
		proto   flow.Proto
		want    string
	}{
		{"little but decoys", true, flow.SignalDecoy | flow.SignalTiny, flow.TCP, ReasonScant},
		{"decoys, and enough", false, flow.SignalDecoy, flow.TCP, ReasonRule},
		{"little, without decoys", true, flow.SignalTiny, flow.TCP, ReasonRule},
		{"little of a UDP flow", true, 0, flow.UDP, ReasonScant},
		{"enough of a UDP flow", false, 0, flow.UDP, ReasonRule},
	} {
		m := meta("100.64.0.1:50000", "100.64.0.2:443")
		m.Key.Proto, m.Scant, m.Signals = tt.proto, tt.scant, tt.signals
		d := p.Decide(m, flow.Result{Class: "v2ray", Confidence: 1})
		if d.Reason != tt.want || (d.Action == flow.Drop) != (tt.want == ReasonRule) || !d.Detected {
			t.Errorf("%s: %+v, want %q", tt.name, d, tt.want)
		}
	}
}

func TestDecideTreatsUDPFlowsWhereARuleSaysSo(t *testing.T) {
	const plain = "  - {name: plain, class: v2ray, min_confidence: 0.9, action: drop, ttl: 1m, except: [{port: 53}]}\n"
	const middle = "  - {name: middle, class: v2ray, min_confidence: 0.9, action: drop, ttl: 2m, mid_stream: true}\n"
	const udp = "  - {name: udp, class: v2ray, min_confidence: 0.8, action: drop, ttl: 1h, udp_unproven: true}\n"
	const both = "  - {name: both, class: v2ray, min_confidence: 0.8, action: drop, ttl: 2h, udp_unproven: true, mid_stream: true}\n"
	const strange = "  - {name: strange, class: unknown, action: drop, ttl: 1h}\n"
	for _, tt := range []struct {
		name, rules string
		class       string
		confidence  float64
		port        string
		resumed     bool
		want        Decision // of a UDP flow
	}{
		{"no rule asks for it", plain, "v2ray", 1, "443", false, Decision{Rule: "plain", Reason: ReasonUDPUnproven}},
		{"mid_stream does not", middle, "v2ray", 1, "443", true, Decision{Rule: "middle", Reason: ReasonUDPUnproven}},
		{"a rule does", udp, "v2ray", 0.8, "443", false, Decision{Action: flow.Drop, Rule: "udp", TTL: time.Hour, Reason: ReasonRule}},
		{"a later rule does", plain + udp, "v2ray", 1, "443", false, Decision{Action: flow.Drop, Rule: "udp", TTL: time.Hour, Reason: ReasonRule}},
		{"resumed", udp, "v2ray", 1, "443", true, Decision{Rule: "udp", Reason: ReasonMidStream}},
		{"resumed, and a rule asks for both", plain + udp + both, "v2ray", 1, "443", true, Decision{Action: flow.Drop, Rule: "both", TTL: 2 * time.Hour, Reason: ReasonRule}},
		{"resumed, and no rule asks for both", middle + udp, "v2ray", 1, "443", true, Decision{Rule: "middle", Reason: ReasonUDPUnproven}},
		{"a later rule asks for more", plain + udp, "v2ray", 0.7, "443", false, Decision{Rule: "plain", Reason: ReasonLowConfidence}},
		{"an exception", plain, "v2ray", 1, "53", false, Decision{Rule: "plain", Reason: ReasonException}},
		{"unknown", strange, flow.Unknown, 0.4, "443", false, Decision{Rule: "strange", Reason: ReasonUDPUnproven}},
		{"another class", plain, "tor", 1, "443", false, Decision{Reason: ReasonNoRule}},
		{"the allow-list comes first", udp, "v2ray", 1, "22", false, Decision{Rule: "port 22", Reason: ReasonAllowList}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := mustParse(t, "allow: [{port: 22}]\nrules:\n"+tt.rules)
			m := meta("100.64.0.1:50000", "100.64.0.2:"+tt.port)
			m.Key.Proto, m.Resumed = flow.UDP, tt.resumed
			tt.want.Class, tt.want.Likeliest, tt.want.Confidence = tt.class, tt.class, tt.confidence
			if tt.want.Rule != "" && tt.want.Reason != ReasonAllowList {
				tt.want.RuleClasses = tt.class
			}
			// A flow is detected as it would be over TCP.
			tt.want.Detected = tt.want.Reason != ReasonLowConfidence && tt.want.Reason != ReasonNoRule
			for range 2 {
				if diff := cmp.Diff(tt.want, p.Decide(m, flow.Result{Class: tt.class, Confidence: tt.confidence}), lines); diff != "" {
					t.Errorf("%+v: decision (-want +got):\n%s", m, diff)
				}
				m.MidStream, m.Resumed = m.Resumed, false // is the same to rules
			}
			if p.TreatsUDP() != strings.Contains(tt.rules, "udp_unproven: true") {
				t.Errorf("TreatsUDP is %v", p.TreatsUDP())
			}
		})
	}
}

func TestDropsTCP(t *testing.T) {
	for rule, want := range map[string]bool{
		"class: [a], action: drop, ttl: 1h":                                                             true,
		"class: [a], action: reset, ttl: 1h":                                                            true,
		"class: [a], action: limit, rate: 1mbit, ttl: 1h":                                               false,
		"class: [a], action: log":                                                                       false,
		"class: [a], action: drop, ttl: 1h, proto: udp, udp_unproven: true":                             false,
		"class: [a], action: drop, ttl: 1h, scope: pair, evidence: {flows: 3, share: 0.6, within: 10m}": true,
	} {
		p, err := Parse("p", []byte("rules: [{name: r, "+rule+"}]"), &Model{Labels: []string{"a", "b"}})
		if err != nil {
			t.Errorf("%s: %v", rule, err)
			continue
		}
		if p.DropsTCP() != want {
			t.Errorf("%s: %v", rule, p.DropsTCP())
		}
	}
}

// The key of a flow is canonical, so which end is Lo changes with the
// addresses; the decision must follow the initiator, not Lo.
func TestDecideFollowsTheInitiator(t *testing.T) {
	p := mustParse(t, "allow: [{cidr: 100.64.0.1/32, side: initiator}]")
	for _, peer := range []string{"1.1.1.1:9000", "200.1.1.1:9000"} {
		r := flow.Result{Class: "v2ray", Confidence: 1}
		if got := p.Decide(meta("100.64.0.1:50000", peer), r).Reason; got != ReasonAllowList {
			t.Errorf("to %s: %s, want %s", peer, got, ReasonAllowList)
		}
		if got := p.Decide(meta(peer, "100.64.0.1:50000"), r).Reason; got != ReasonNoRule {
			t.Errorf("from %s: %s, want %s", peer, got, ReasonNoRule)
		}
	}
}

// NewKey unmaps addresses, but a Key can be written by hand.
func TestDecideUnmapsAddresses(t *testing.T) {
	p := mustParse(t, "allow: [{cidr: 192.0.2.0/24, side: initiator}, {cidr: 203.0.113.0/24, side: responder}]")
	for _, ends := range [][2]string{
		{"[::ffff:192.0.2.1]:50000", "[::ffff:100.64.0.2]:9000"},
		{"[::ffff:100.64.0.1]:50000", "[::ffff:203.0.113.1]:9000"},
	} {
		m := &flow.Meta{InitiatorIsLo: true, Key: flow.Key{
			Lo: netip.MustParseAddrPort(ends[0]), Hi: netip.MustParseAddrPort(ends[1]), Proto: flow.TCP}}
		if got := p.Decide(m, flow.Result{Class: "v2ray", Confidence: 1}); got.Reason != ReasonAllowList {
			t.Errorf("%s: %+v, want it allowed", m.Key, got)
		}
	}
}

func TestEmptyPolicyPassesEverything(t *testing.T) {
	want := Decision{Class: "v2ray", Likeliest: "v2ray", Confidence: 1, Reason: ReasonNoRule}
	for _, p := range []*Policy{{}, mustParse(t, "mode: enforce"), mustParse(t, "rules: []\nallow: []")} {
		got := p.Decide(meta("192.0.2.1:1", "192.0.2.2:2"), flow.Result{Class: "v2ray", Confidence: 1})
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestDecideDoesNotAllocateAndMayRunConcurrently(t *testing.T) {
	p := mustParse(t, decideYAML)
	flows := []*flow.Meta{
		meta("100.64.0.1:50000", "100.64.0.2:9000"), // drop
		meta("100.64.0.1:50000", "192.0.2.9:9000"),  // allow-list
		meta("100.64.0.1:50000", "10.1.0.1:9000"),   // exception
		meta("[2001:db8::1]:50000", "[::ffff:192.0.2.9]:9000"),
	}
	result := flow.Result{Class: "shadowsocks", Confidence: 1}
	for i, m := range flows {
		if n := testing.AllocsPerRun(100, func() { p.Decide(m, result) }); n != 0 {
			t.Errorf("flow %d: %v allocations, want none", i, n)
		}
	}
	var want []Decision
	for _, m := range flows {
		want = append(want, p.Decide(m, result))
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 200 {
				for i, m := range flows {
					if got := p.Decide(m, result); got != want[i] {
						t.Errorf("flow %d: %+v, alone %+v", i, got, want[i])
						return
					}
				}
			}
		})
	}
	group.Wait()
}

func TestMode(t *testing.T) {
	for _, m := range []Mode{Monitor, Enforce} {
		if got, err := ParseMode(m.String()); err != nil || got != m {
			t.Errorf("ParseMode(%q) = %v, %v", m, got, err)
		}
	}
	tests := []struct{ word, want string }{
		{"enforced", `unknown mode "enforced", did you mean enforce?; write monitor or enforce`},
		{"", `unknown mode ""; write monitor or enforce`},
		{"Monitor", `unknown mode "Monitor", did you mean monitor?; write monitor or enforce`},
	}
	for _, tt := range tests {
		if m, err := ParseMode(tt.word); err == nil || err.Error() != tt.want || m != Monitor {
			t.Errorf("ParseMode(%q) = %v, %v; want %s", tt.word, m, err, tt.want)
		}
	}
	if flow.Pass.String() != "pass" || flow.Drop.String() != "drop" {
		t.Errorf("actions print as %s and %s", flow.Pass, flow.Drop)
	}
	var zero Policy
	if zero.Mode != Monitor || (Decision{}).Action != flow.Pass {
		t.Error("the zero mode and the zero action have to be the harmless ones")
	}
}

func BenchmarkDecide(b *testing.B) {
	def, err := Default(model)
	if err != nil {
		b.Fatal(err)
	}
	long := "allow:\n"
	for i := range 1000 {
		long += fmt.Sprintf("  - cidr: 11.%d.%d.0/24\n", i>>8, i&255)
	}
	big := mustParse(b, strings.Replace(decideYAML, "allow:\n", long, 1))
	m := meta("100.64.0.1:50000", "100.64.0.2:9000")
	for _, bb := range []struct {
		name   string
		p      *Policy
		result flow.Result
	}{
		{"default/pass", def, flow.Result{Class: "background", Confidence: 0.99}},
		{"default/drop", def, flow.Result{Class: "v2ray", Confidence: 0.99}},
		{"allow-list of 1000/drop", big, flow.Result{Class: "v2ray", Confidence: 0.99}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			var d Decision
			for b.Loop() {
				d = bb.p.Decide(m, bb.result)
			}
			if (d.Action == flow.Drop) != (bb.result.Class == "v2ray") {
				b.Fatalf("decision %+v", d)
			}
		})
	}
}

// A decision says which line of the file is its reason, in whatever style the file is written,
// and neither a decision nor a change of the policy depends on it.
func TestDecisionsSayWhichLineDecided(t *testing.T) {
	const text = `# a comment
allow:
  - cidr: 192.0.2.1/32

  -
    # of its own
    port: 22
  - {set: near}
sets: {near: {file: near.txt}}
rules:
  - class: [v2ray]
    from: [10.0.0.9]
    name: first
    action: log
  - {name: second, class: [v2ray, tor],
     min_confidence: 0.9, action: drop, ttl: 1h}
  - name: third
    class: tor
    min_confidence: 0.5
    action: drop
    ttl: 1h
    evidence: {flows: 2, share: 0.5, within: 1h}
`
	dir := t.TempDir()
	file := filepath.Join(dir, "p.yaml")
	for name, content := range map[string]string{file: text, filepath.Join(dir, "near.txt"): "192.0.2.77\n"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	model := &Model{Labels: []string{"background", "v2ray", "tor"}, Thresholds: map[string]float64{"v2ray": 0.5, "tor": 0.5}, AnyThreshold: 0.5}
	p, err := Load(file, model)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		from, to, class string
		confidence      float64
		reason          string
		line            int
	}{
		{"10.0.0.2:1", "192.0.2.1:443", "v2ray", 1, ReasonAllowList, 3},
		{"10.0.0.2:1", "192.0.2.2:22", "v2ray", 1, ReasonAllowList, 7},
		{"192.0.2.77:1", "192.0.2.2:23", "v2ray", 1, ReasonAllowList, 8},
		{"10.0.0.9:1", "192.0.2.2:443", "v2ray", 1, ReasonRule, 11},
		{"10.0.0.2:1", "192.0.2.2:443", "v2ray", 1, ReasonRule, 15},
		{"10.0.0.2:1", "192.0.2.2:443", "v2ray", 0.8, ReasonLowConfidence, 15},
		{"10.0.0.2:1", "192.0.2.2:443", "tor", 0.8, ReasonRule, 17},
		{"10.0.0.2:1", "192.0.2.2:443", "background", 1, ReasonNoRule, 0},
	} {
		m, r := meta(tt.from, tt.to), flow.Result{Class: tt.class, Confidence: tt.confidence}
		d := p.Decide(m, r)
		if d.Reason != tt.reason || d.Line != tt.line {
			t.Errorf("%s > %s %s %v: %s, line %d, want %s, %d", tt.from, tt.to, tt.class, tt.confidence, d.Reason, d.Line, tt.reason, tt.line)
		}
		if tt.line == 17 {
			onPair, pair := p.EvidenceRule(0).OnPair(d, &r), Decision{}
			if pair.Pair(p.EvidenceRule(0), time.Hour); onPair.Line != 17 || pair.Line != 17 {
				t.Errorf("on evidence line %d, of the pair line %d, want 17", onPair.Line, pair.Line)
			}
		}
	}
	moved := filepath.Join(dir, "moved.yaml")
	if err := os.WriteFile(moved, []byte("\n\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := Load(moved, model); err != nil || !again.ChangesFrom(p).None() {
		t.Errorf("the same two lines below: %v, %v", again.ChangesFrom(p), err)
	}
}

func TestReasonsAreComplete(t *testing.T) {
	source, err := os.ReadFile("policy.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, constant := range regexp.MustCompile(`(?m)^\tReason\w+ += "([^"]+)"`).FindAllStringSubmatch(string(source), -1) {
		if found++; !slices.Contains(Reasons, constant[1]) {
			t.Errorf("%q is not in Reasons", constant[1])
		}
	}
	if found != len(Reasons) {
		t.Errorf("%d constants, %d in Reasons", found, len(Reasons))
	}
}
