// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// FuzzParse holds that Parse never panics and comes back quickly; that every
// error is one line with a place that exists in the text; and that an accepted policy
// keeps to the bounds of the format and, written out in full and read again,
// is the same and decides the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte(decideYAML))
	f.Add(defaultYAML)
	for _, seed := range []string{
		"", "mode: enforce", "mode: \"monitor\"\r\nrules: []\r\n", "- a\n- b", "{mode: monitor, allow: [{port: [1, 2-3]}]}",
		"mode: &a monitor", "mode: *a", "<<: {}", "? a\n: b", "mode: |\n  x\n", "mode: 'a\nb'", "a: b\n---\nc: d\n", "%YAML 1.2\n---\n",
		"rules:\n\t- x", "[[[[", "- - - -", "\xff\xfe", "rules: [{class: v2ray, min_confidence: .9, action: drop, ttl: 1m, except: [{cidr: '::ffff:1.2.3.0/120'}]}]",
		"rules: [{class: unknown, action: drop, ttl: 1m}, {class: tor, action: drop, ttl: 1m}, {class: [tor, v2ray], action: drop, ttl: 1m}]",
		"rules: [{class: v2ray, action: drop, ttl: 1m, mid_stream: true}, {class: v2ray, action: drop, ttl: 1m, mid_stream: FALSE}]",
		"rules: [{class: v2ray, action: drop, ttl: 1m, udp_unproven: true}, {class: v2ray, action: drop, ttl: 1m, mid_stream: true, udp_unproven: false}]",
		"one_hook: true\nrules: [{class: v2ray, action: drop, ttl: 1m, one_way: true}]",
		"rules: [{class: v2ray, action: drop, ttl: 1m, signal: [tiny, fragmented]}, {class: v2ray, action: drop, ttl: 1m, signal: ttl}]",
		"!!map {}", "# only\n", "mode: monitor # x\n...\n", "rules:\n- name: é\n", "\ufeffmode: x", "a: >-\n x\n\n y\nmode:", "allow:\n - cidr: ::/0\n   port:\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		begin := time.Now()
		p, err := Parse("f.yaml", data, model)
		if took := time.Since(begin); took > 5*time.Second {
			t.Fatalf("%d bytes took %v", len(data), took)
		}
		if err != nil {
			checkError(t, data, err)
			return
		}
		checkPolicy(t, p)

		again, err := Parse("again.yaml", []byte(writeYAML(p)), model)
		if err != nil {
			t.Fatalf("written out, it is refused: %v\n%s", err, writeYAML(p))
		}
		if diff := cmp.Diff(p, again, comparePolicies); diff != "" {
			t.Fatalf("written out, it is another policy:\n%s", diff)
		}
		for _, m := range probes(p) {
			for _, class := range append(slices.Clone(labels), flow.Unknown) {
				for _, confidence := range []float64{0, 0.5, 0.9, 1} {
					r := flow.Result{Class: class, Confidence: confidence}
					one, two := p.Decide(m, r), again.Decide(m, r)
					if one != two {
						t.Fatalf("%s %v: %+v, written out %+v", m.Key, r, one, two)
					}
					checkDecision(t, p, m, one)
				}
			}
		}
	})
}

func checkError(t *testing.T, data []byte, err error) {
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error is a %T", err)
	}
	if strings.ContainsFunc(err.Error(), unicode.IsControl) {
		t.Fatalf("error is not one line of text: %q", err)
	}
	if lines := bytes.Count(data, []byte("\n")) + 1; e.Line < 1 || e.Column < 1 || e.Line > lines {
		t.Fatalf("error in line %d column %d of %d lines: %v", e.Line, e.Column, lines, err)
	}
	if e.Msg == "" || e.File != "f.yaml" {
		t.Fatalf("error is %#v", e)
	}
}

func checkPolicy(t *testing.T, p *Policy) {
	names := make(map[string]bool)
	checkMatches(t, p.Allow)
	for _, r := range p.Rules {
		if names[r.Name] || !ruleName.MatchString(r.Name) {
			t.Fatalf("rule name %q", r.Name)
		}
		names[r.Name] = true
		if len(r.Classes) == 0 || slices.Contains(r.Classes, flow.Background) {
			t.Fatalf("classes %q", r.Classes)
		}
		for i, class := range r.Classes {
			if !slices.Contains(labels, class) && !(class == flow.Unknown && len(r.Classes) == 1) || slices.Contains(r.Classes[:i], class) {
				t.Fatalf("classes %q", r.Classes)
			}
		}
		least := 0.0 // of a threshold of the model, and for unknown
		if !r.ModelThreshold && r.Classes[0] != flow.Unknown {
			least = math.SmallestNonzeroFloat64
		}
		if !(r.MinConfidence >= least && r.MinConfidence <= 1) || r.Action != flow.Drop || r.TTL < MinTTL || r.TTL > MaxTTL {
			t.Fatalf("rule %+v", r)
		}
		checkMatches(t, r.Except)
	}
}

func checkMatches(t *testing.T, matches []Match) {
	for _, m := range matches {
		if !m.Prefix.IsValid() && len(m.Ports) == 0 {
			t.Fatal("an entry matches everything")
		}
		if m.Prefix.IsValid() && (m.Prefix != m.Prefix.Masked() || m.Prefix.Addr().Is4In6()) || !m.Prefix.IsValid() && m.Side != AnySide {
			t.Fatalf("entry %s", &m)
		}
		for _, r := range m.Ports {
			if r.First == 0 || r.First > r.Last {
				t.Fatalf("ports %s", r)
			}
		}
	}
}

// checkDecision holds what every decision keeps to.
func checkDecision(t *testing.T, p *Policy, m *flow.Meta, d Decision) {
	at := slices.IndexFunc(p.Rules, func(r Rule) bool { return r.Name == d.Rule })
	switch d.Reason {
	case ReasonRule:
		if at < 0 || d.Action != flow.Drop || d.TTL != p.Rules[at].TTL || d.Confidence < p.Rules[at].MinConfidence || !slices.Contains(p.Rules[at].Classes, d.Class) ||
			m.Incomplete || m.MidStream && !p.Rules[at].MidStream || m.Key.Proto == flow.UDP && !p.Rules[at].UDPUnproven || m.OneWay && !p.Rules[at].OneWay ||
			p.Rules[at].Signals != 0 && m.Signals&p.Rules[at].Signals == 0 {
			t.Fatalf("decision %+v", d)
		}
		return
	case ReasonOneWay:
		if at < 0 || !m.OneWay || p.Rules[at].OneWay {
			t.Fatalf("decision %+v", d)
		}
	case ReasonUDPUnproven:
		if at < 0 || m.Key.Proto != flow.UDP || p.Rules[at].UDPUnproven {
			t.Fatalf("decision %+v", d)
		}
	case ReasonMidStream:
		if at < 0 || !m.MidStream || p.Rules[at].MidStream {
			t.Fatalf("decision %+v", d)
		}
	case ReasonNoSignal:
		if at < 0 || p.Rules[at].Signals == 0 || m.Signals&p.Rules[at].Signals != 0 {
			t.Fatalf("decision %+v", d)
		}
	case ReasonIncomplete:
		if !m.Incomplete || d.Rule != "" {
			t.Fatalf("decision %+v", d)
		}
	case ReasonLowConfidence, ReasonException:
		if at < 0 || !slices.Contains(p.Rules[at].Classes, d.Class) {
			t.Fatalf("decision %+v", d)
		}
	case ReasonAllowList:
		if d.Rule == "" {
			t.Fatalf("decision %+v", d)
		}
	case ReasonNoRule:
		if d.Rule != "" {
			t.Fatalf("decision %+v", d)
		}
	default:
		t.Fatalf("decision %+v", d)
	}
	if d.Action != flow.Pass || d.TTL != 0 {
		t.Fatalf("decision %+v", d)
	}
}

// probes returns flows at and beside the edges of every network and port of p.
func probes(p *Policy) []*flow.Meta {
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	ports := []uint16{1, 443, 65535}
	collect := func(matches []Match) {
		for _, m := range matches[:min(len(matches), 4)] {
			if m.Prefix.IsValid() {
				addrs = append(addrs, m.Prefix.Addr())
				if m.Prefix.Addr().Prev().IsValid() {
					addrs = append(addrs, m.Prefix.Addr().Prev())
				}
			}
			for _, r := range m.Ports[:min(len(m.Ports), 2)] {
				ports = append(ports, r.First-1, r.First, r.Last, r.Last+1)
			}
		}
	}
	collect(p.Allow)
	for _, r := range p.Rules[:min(len(p.Rules), 4)] {
		collect(r.Except)
	}
	var flows []*flow.Meta
	for i, a := range addrs {
		b := addrs[(i+1)%len(addrs)]
		for _, port := range ports {
			for _, proto := range []flow.Proto{flow.TCP, flow.UDP} {
				key, isLo := flow.NewKey(netip.AddrPortFrom(a, 50000), netip.AddrPortFrom(b, port), proto, 0, 0)
				flows = append(flows, &flow.Meta{Key: key, InitiatorIsLo: isLo}, &flow.Meta{Key: key, InitiatorIsLo: !isLo},
					&flow.Meta{Key: key, InitiatorIsLo: isLo, MidStream: true}, &flow.Meta{Key: key, InitiatorIsLo: isLo, OneWay: true}, &flow.Meta{Key: key, InitiatorIsLo: isLo, Signals: flow.SignalTTL | flow.SignalTiny}, &flow.Meta{Key: key, InitiatorIsLo: isLo, MidStream: true, Cut: true, Incomplete: true})
			}
		}
	}
	return flows
}

// writeYAML writes p out with every key that the format has.
func writeYAML(p *Policy) string {
	var b strings.Builder
	fmt.Fprintf(&b, "mode: %s\none_hook: %t\n", p.Mode, p.OneHook)
	matches := func(indent, key string, list []Match) {
		if len(list) == 0 {
			fmt.Fprintf(&b, "%s%s: []\n", indent, key)
			return
		}
		fmt.Fprintf(&b, "%s%s:\n", indent, key)
		for _, m := range list {
			var fields []string
			if m.Prefix.IsValid() {
				fields = append(fields, fmt.Sprintf("cidr: %q", m.Prefix), "side: "+m.Side.String())
			}
			if len(m.Ports) > 0 {
				var ports []string
				for _, r := range m.Ports {
					ports = append(ports, r.String())
				}
				fields = append(fields, "port: ["+strings.Join(ports, ", ")+"]")
			}
			fmt.Fprintf(&b, "%s  - {%s}\n", indent, strings.Join(fields, ", "))
		}
	}
	matches("", "allow", p.Allow)
	if len(p.Rules) > 0 {
		b.WriteString("rules:\n")
	}
	for _, r := range p.Rules {
		// A quoted name, for it may look like a number; a plain fraction, for
		// YAML wants a point before an exponent.
		fmt.Fprintf(&b, "  - name: %q\n    class: [%s]\n    action: %s\n    ttl: %s\n", r.Name, strings.Join(r.Classes, ", "), r.Action, r.TTL)
		if !r.ModelThreshold && r.Classes[0] != flow.Unknown {
			fmt.Fprintf(&b, "    min_confidence: %s\n", strconv.FormatFloat(r.MinConfidence, 'f', -1, 64))
		}
		fmt.Fprintf(&b, "    mid_stream: %t\n", r.MidStream)
		fmt.Fprintf(&b, "    udp_unproven: %t\n", r.UDPUnproven)
		fmt.Fprintf(&b, "    one_way: %t\n", r.OneWay)
		if names := r.Signals.Names(); names != nil {
			fmt.Fprintf(&b, "    signal: [%s]\n", strings.Join(names, ", "))
		}
		matches("    ", "except", r.Except)
	}
	return b.String()
}
