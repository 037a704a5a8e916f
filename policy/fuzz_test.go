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
		"limits: {flows: 3/min, share: .5}\nprotect: [10.0.0.0/8, {cidr: '::/0'}]\nrules: [{class: v2ray, proto: tcp, from: [10.0.0.0/8, {port: 1-3}], to: '2001:db8::1', interface: [a, b], vlan: [0, 7-9], complete: false, action: log}]",
		"limits: none\nrules: [{class: [v2ray, tor], meanwhile: log, scope: pair, action: drop, ttl: 7d, evidence: {flows: 3, share: 0.6, within: 1h, min_confidence: .2}}]",
		"rules: [{class: v2ray, action: limit, rate: 64kbit, ttl: 1m}, {class: tor, action: reset, ttl: 1h, meanwhile: limit, rate: 1500kbit, evidence: {flows: 2, share: 1, within: 1s}}]",
		"rules: [{class: tor, action: drop, ttl: 1h, meanwhile: reset, evidence: {flows: 2, share: 1, within: 1s}}, {class: tor, action: limit, rate: 0gbit, ttl: 1s}]",
		"sets: {a: {}}\nallow: [{set: a}]", "rules: [{class: tor, action: log, evidence: {flows: 2, share: 1, within: 1s}, ttl: 1s}]",
		"!!map {}", "# only\n", "mode: monitor # x\n...\n", "rules:\n- name: é\n", "\ufeffmode: x", "a: >-\n x\n\n y\nmode:", "allow:\n - cidr: ::/0\n   port:\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.Contains(data, []byte("file")) {
			return // of a set: FuzzReadSet is about those
		}
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
					if two.Line = one.Line; one != two {
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
		lasts := r.Action.Blocks() || r.Evidence != nil
		limits := r.Action == flow.Limit || r.Evidence != nil && r.Meanwhile == flow.Limit
		if !(r.MinConfidence >= least && r.MinConfidence <= 1) || !slices.Contains(actions, r.Action) || limits != (r.Rate != 0) || limits && (r.Rate < MinRate || r.Rate > MaxRate) || lasts && (r.TTL < MinTTL || r.TTL > MaxTTL) || !lasts && r.TTL != 0 {
			t.Fatalf("rule %+v", r)
		}
		if e := r.Evidence; e != nil && (e.Flows < 2 || e.Flows > MaxEvidenceFlows || !(e.Share > 0 && e.Share <= 1) || e.Within < MinTTL || e.Within > MaxWithin ||
			!slices.Contains(actions, r.Meanwhile) || r.Action == flow.Log && r.Meanwhile != flow.Log || r.Action == flow.Limit && r.Meanwhile != flow.Log && r.Meanwhile != flow.Limit || r.UDPUnproven || r.OneWay || r.Proto == flow.UDP) {
			t.Fatalf("rule %+v, evidence %+v", r, e)
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
	if (d.Action == flow.Limit) != (d.Rate != 0) {
		t.Fatalf("decision %+v", d)
	}
	if d.Action == flow.Log {
		if at < 0 || d.TTL != 0 || d.Reason != ReasonRule && d.Reason != ReasonMeanwhile || d.Confidence < p.Rules[at].MinConfidence {
			t.Fatalf("decision %+v", d)
		}
		return
	}
	switch d.Reason {
	case ReasonMeanwhile:
		if d.Action.Blocks() {
			if at < 0 || d.Action != p.Rules[at].Meanwhile || d.TTL != p.Rules[at].TTL || d.Confidence < p.Rules[at].MinConfidence {
				t.Fatalf("decision %+v", d)
			}
			return
		}
		if at < 0 || p.Rules[at].Evidence == nil || d.Counts == 0 || d.Confidence >= p.Rules[at].MinConfidence {
			t.Fatalf("decision %+v", d)
		}
	case ReasonPartial, ReasonComplete:
		if at < 0 || p.Rules[at].Complete == nil {
			t.Fatalf("decision %+v", d)
		}
	case ReasonProvisional, ReasonFinal:
		if at < 0 || p.Rules[at].Provisional == nil {
			t.Fatalf("decision %+v", d)
		}
	case ReasonRule:
		if at < 0 || !d.Action.Blocks() || d.Action != p.Rules[at].Action || d.TTL != p.Rules[at].TTL || d.Confidence < p.Rules[at].MinConfidence || !slices.Contains(p.Rules[at].Classes, d.Class) ||
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
	switch l := p.Limits; {
	case l == Limits{}:
		b.WriteString("limits: none\n")
	default:
		var keys []string
		if l.Flows > 0 {
			keys = append(keys, fmt.Sprintf("flows: %d/%s", l.Flows, map[time.Duration]string{time.Second: "s", time.Minute: "min", time.Hour: "h"}[l.Per]))
		}
		if l.Share > 0 {
			keys = append(keys, "share: "+strconv.FormatFloat(l.Share, 'f', -1, 64))
		}
		fmt.Fprintf(&b, "limits: {%s}\n", strings.Join(keys, ", "))
	}
	portList := func(ranges []PortRange) string {
		var ports []string
		for _, r := range ranges {
			ports = append(ports, r.String())
		}
		return "[" + strings.Join(ports, ", ") + "]"
	}
	endpoints := func(indent, key string, list []Endpoint) {
		if len(list) == 0 {
			return
		}
		var ends []string
		for _, e := range list {
			var fields []string
			if e.Prefix.IsValid() {
				fields = append(fields, fmt.Sprintf("cidr: %q", e.Prefix))
			}
			if len(e.Ports) > 0 {
				fields = append(fields, "port: "+portList(e.Ports))
			}
			ends = append(ends, "{"+strings.Join(fields, ", ")+"}")
		}
		fmt.Fprintf(&b, "%s%s: [%s]\n", indent, key, strings.Join(ends, ", "))
	}
	endpoints("", "protect", p.Protect)
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
		fmt.Fprintf(&b, "  - name: %q\n    class: [%s]\n    action: %s\n", r.Name, strings.Join(r.Classes, ", "), r.Action)
		if r.TTL > 0 {
			fmt.Fprintf(&b, "    ttl: %s\n", r.TTL)
		}
		if r.Rate != 0 {
			fmt.Fprintf(&b, "    rate: %s\n", FormatRate(r.Rate))
		}
		if r.Proto != 0 {
			fmt.Fprintf(&b, "    proto: %s\n", r.Proto)
		}
		endpoints("    ", "from", r.From)
		endpoints("    ", "to", r.To)
		if r.Interfaces != nil {
			fmt.Fprintf(&b, "    interface: [%q", r.Interfaces[0])
			for _, name := range r.Interfaces[1:] {
				fmt.Fprintf(&b, ", %q", name)
			}
			b.WriteString("]\n")
		}
		if r.VLANs != nil {
			var ids []PortRange
			for _, v := range r.VLANs {
				ids = append(ids, PortRange(v))
			}
			fmt.Fprintf(&b, "    vlan: %s\n", portList(ids))
		}
		for key, choice := range map[string]*bool{"complete": r.Complete, "provisional": r.Provisional} {
			if choice != nil {
				fmt.Fprintf(&b, "    %s: %t\n", key, *choice)
			}
		}
		if e := r.Evidence; e != nil {
			fmt.Fprintf(&b, "    meanwhile: %s\n    evidence: {flows: %d, share: %s, within: %s", r.Meanwhile, e.Flows, strconv.FormatFloat(e.Share, 'f', -1, 64), e.Within)
			if e.MinConfidence != r.MinConfidence {
				fmt.Fprintf(&b, ", min_confidence: %s", strconv.FormatFloat(e.MinConfidence, 'f', -1, 64))
			}
			b.WriteString("}\n")
		}
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
