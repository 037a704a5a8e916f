// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

var model = &policy.Model{Labels: []string{"background", "shadowsocks", "v2ray"}, AnyThreshold: 0.9, Thresholds: map[string]float64{"shadowsocks": 0.9, "v2ray": 0.9}}

const pairRule = "  - {name: pairs, class: shadowsocks, min_confidence: 0.9, action: drop, ttl: 10m, evidence: {flows: 3, share: 0.6, within: 1h, min_confidence: 0.5}}\n"

func parse(t testing.TB, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse("test.yaml", []byte(text), model)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var epoch = time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)

// oneFlow is what a test says of a flow: a TCP connection from 10.0.0.1 to 192.0.2.1:443 of
// background by itself.
type oneFlow struct {
	at         time.Duration // when it begins; its verdict comes 10 ms later
	from, to   string
	shadowsock float64
	change     func(*flow.Meta)
}

func (f oneFlow) decide(s *State, p *policy.Policy) policy.Decision {
	from, to := f.from, f.to
	if from == "" {
		from = fmt.Sprintf("10.0.0.1:%d", 40000+f.at/time.Millisecond%20000)
	}
	if to == "" {
		to = "192.0.2.1:443"
	}
	key, isLo := flow.NewKey(netip.MustParseAddrPort(from), netip.MustParseAddrPort(to), flow.TCP, 0, 0)
	m := &flow.Meta{Key: key, InitiatorIsLo: isLo, Start: epoch.Add(f.at), Elapsed: 10 * time.Millisecond}
	if f.change != nil {
		f.change(m)
	}
	r := flow.Result{Class: "background", Labels: model.Labels, Scores: []float64{1 - f.shadowsock, f.shadowsock, 0}}
	r.Confidence = r.Scores[0]
	if f.shadowsock >= 0.5 {
		r.Class, r.Confidence = "shadowsocks", f.shadowsock
	}
	d, _ := s.Decide(p, m, r)
	return d
}

func flows(confidences ...float64) (list []oneFlow) {
	for i, c := range confidences {
		list = append(list, oneFlow{at: time.Duration(i) * time.Second, shadowsock: c})
	}
	return list
}

func TestPairsAreTreatedOnEvidence(t *testing.T) {
	with := func(list []oneFlow, i int, change func(*oneFlow)) []oneFlow {
		change(&list[i])
		return list
	}
	of := func(list []oneFlow, change func(int, *oneFlow)) []oneFlow {
		for i := range list {
			change(i, &list[i])
		}
		return list
	}
	// want has a letter per flow: . passes, d dropped alone, E completes the evidence and the
	// pair is dropped, P dropped with its pair, a on the allow-list.
	for _, tt := range []struct {
		name, policy string
		flows        []oneFlow
		want         string
	}{
		{"the third of three", "", flows(0.6, 0.6, 0.6, 0, 0.6), "..EPP"},
		{"a sure flow is dropped meanwhile", "", flows(0.95, 0.6, 0.95, 0.95), "d.EP"},
		{"two are not enough", "", flows(0.95, 0.95, 0, 0.4), "dd.."},
		{"less sure than evidence has to be", "", flows(0.45, 0.45, 0.45, 0.45), "...."},
		{"the share of those judged is too small at first", "", flows(0, 0, 0.6, 0.6, 0.6, 0.6), "....EP"}, // until it is 3 of 5
		{"three of six", "", flows(0, 0, 0, 0.6, 0.6, 0.6), "......"},
		{"not within the time", "", of(flows(0.6, 0.6, 0.6, 0.6), func(i int, f *oneFlow) { f.at *= 1801 }), "...."},
		{"within the time again", "", of(flows(0.6, 0.6, 0.6, 0.6), func(i int, f *oneFlow) { f.at *= 1799 }), "..EE"},
		{"after its time to live, with what is still known", "", with(flows(0.6, 0.6, 0.6, 0.6), 3, func(f *oneFlow) { f.at = 11 * time.Minute }), "..EE"},
		{"after its time to live, a flow that was not detected", "", with(flows(0.6, 0.6, 0.6, 0), 3, func(f *oneFlow) { f.at = 11 * time.Minute }), "..E."},
		{"a flow that began before, and was not detected", "", with(flows(0.6, 0.6, 0.6, 0), 3, func(f *oneFlow) { f.at = 1500 * time.Millisecond; f.from = "10.0.0.1:1" }), "..E."},
		{"a flow that began before, and was detected", "", with(flows(0.6, 0.6, 0.6, 0.6), 3, func(f *oneFlow) { f.at = 1500 * time.Millisecond; f.from = "10.0.0.1:1" }), "..EP"},
		{"another server", "", with(flows(0.6, 0.6, 0.6, 0), 3, func(f *oneFlow) { f.to = "192.0.2.2:443" }), "..E."},
		{"another port", "", with(flows(0.6, 0.6, 0.6, 0), 3, func(f *oneFlow) { f.to = "192.0.2.1:444" }), "..E."},
		{"another initiator", "", with(flows(0.6, 0.6, 0.6, 0.6), 3, func(f *oneFlow) { f.from = "10.0.0.2:40000" }), "..E."},
		{"the same address in another VLAN", "", with(flows(0.6, 0.6, 0.6, 0.6), 3, func(f *oneFlow) { f.change = func(m *flow.Meta) { m.Key.VLAN = 7 } }), "..E."},
		{"flows of one IPv6 network of 64 bits", "", of(flows(0.6, 0.6, 0.6), func(i int, f *oneFlow) {
			f.from, f.to = fmt.Sprintf("[2001:db8::%d]:40000", i+1), "[2001:db8:1::1]:443"
		}), "..E"},
		{"flows of several", "", of(flows(0.6, 0.6, 0.6), func(i int, f *oneFlow) {
			f.from, f.to = fmt.Sprintf("[2001:db8:0:%d::1]:40000", i+1), "[2001:db8:1::1]:443"
		}), "..."},
		{"v4-mapped is IPv4", "", with(flows(0.6, 0.6, 0.6), 2, func(f *oneFlow) { f.from = "[::ffff:10.0.0.1]:5000" }), "..E"},
		{"UDP is evidence for nothing", "", of(flows(0.6, 0.6, 0.6, 0.6), func(i int, f *oneFlow) { f.change = func(m *flow.Meta) { m.Key.Proto = flow.UDP } }), "...."},
		{"UDP of a treated pair's ends", "", with(flows(0.6, 0.6, 0.6, 0), 3, func(f *oneFlow) { f.change = func(m *flow.Meta) { m.Key.Proto = flow.UDP } }), "..E."},
		{"one direction alone, which anybody can forge", "", of(flows(0.95, 0.95, 0.95, 0), func(i int, f *oneFlow) { f.change = func(m *flow.Meta) { m.OneWay = i < 3 } }), "...."},
		{"from the middle: who began is not known", "", of(flows(0.95, 0.95, 0.95, 0), func(i int, f *oneFlow) { f.change = func(m *flow.Meta) { m.MidStream = i < 3 } }), "...."},
		{"verdicts on one flow are one", "", of(flows(0.6, 0.6, 0.6, 0.6), func(i int, f *oneFlow) {
			f.at, f.change = 0, func(m *flow.Meta) { m.Revision, m.Elapsed = i, time.Duration(i+1)*time.Second }
		}), "...."},
		{"the last verdict on a flow counts", "", with(flows(0.6, 0.6, 0, 0.6), 2, func(f *oneFlow) {
			f.at, f.change = 0, func(m *flow.Meta) { m.Revision, m.Elapsed = 1, 2*time.Second }
		}), "...."},
		{"of a variant both verdicts count", "", with(flows(0.6, 0.6, 0, 0.6), 2, func(f *oneFlow) { f.at, f.change = 0, func(m *flow.Meta) { m.Variant = true } }), "...E"},
		{"a server that is protected", "protect: [192.0.2.0/24]\n", flows(0.95, 0.6, 0.6, 0.6), "d..."},
		{"a server that is allowed", "allow: [{cidr: 192.0.2.1/32}]\n", flows(0.95, 0.6, 0.6, 0.6), "aaaa"},
		{"an incomplete flow of a file", "", with(flows(0.6, 0.6, 0.6, 0), 1, func(f *oneFlow) { f.change = func(m *flow.Meta) { m.Cut, m.Incomplete = true, true } }), "...."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, s, got := parse(t, tt.policy+"rules:\n"+pairRule), New(Options{}), ""
			for i, f := range tt.flows {
				d := f.decide(s, p)
				switch {
				case d.Action == flow.Pass && d.Reason == policy.ReasonAllowList:
					got += "a"
				case d.Action == flow.Pass:
					got += "."
				case d.Reason == policy.ReasonRule:
					got += "d"
				case d.Reason == policy.ReasonEvidence:
					got += "E"
					if d.Scope != flow.ScopePair || d.TTL != 10*time.Minute || d.Class != "shadowsocks" || !d.Detected || d.Seen < 3 || d.Judged < d.Seen {
						t.Errorf("flow %d: %+v", i, d)
					}
				case d.Reason == policy.ReasonPair:
					got += "P"
					if d.Scope != flow.ScopePair || d.TTL <= 0 || d.TTL > 10*time.Minute || d.Class != "shadowsocks" || d.Rule != "pairs" {
						t.Errorf("flow %d: %+v", i, d)
					}
				default:
					t.Errorf("flow %d: %+v", i, d)
				}
			}
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

func TestMeanwhileLog(t *testing.T) {
	p := parse(t, "rules:\n  - {name: pairs, class: shadowsocks, min_confidence: 0.9, action: drop, meanwhile: log, ttl: 10m, evidence: {flows: 2, share: 1, within: 1h}}\n")
	s := New(Options{})
	var got []string
	for _, f := range flows(0.95, 0.95, 0) {
		d := f.decide(s, p)
		got = append(got, d.Action.String()+" "+d.Reason)
	}
	if text := strings.Join(got, ", "); text != "log meanwhile, drop evidence, drop pair" {
		t.Error(text)
	}
}

// What is done to flows before there is evidence is bounded as what is done without; what is
// done on evidence is not.
func TestLimitsBoundWhatIsDoneMeanwhile(t *testing.T) {
	for _, meanwhile := range []string{"limit, rate: 64kbit", "reset", "drop"} {
		p := parse(t, "limits: {flows: 3/min}\nrules:\n  - {name: pairs, class: shadowsocks, min_confidence: 0.9, action: drop, meanwhile: "+meanwhile+", ttl: 10m, evidence: {flows: 2, share: 1, within: 1h}}\n")
		s := New(Options{})
		var got []string
		for i := range 6 {
			d := oneFlow{at: time.Duration(i) * time.Second, from: fmt.Sprintf("10.0.0.%d:4000%d", i%5+1, i), shadowsock: 0.95}.decide(s, p)
			if (d.Rate != 0) != (d.Action == flow.Limit) {
				t.Errorf("decision %+v", d)
			}
			got = append(got, d.Action.String())
		}
		word, _, _ := strings.Cut(meanwhile, ",")
		if text, want := strings.Join(got, " "), strings.Repeat(word+" ", 3)+"pass pass drop"; text != want {
			t.Errorf("meanwhile %s: %s, want %s", meanwhile, text, want)
		}
	}
}

// Flows that were detected and passed are treated with their pair; others that are open are not.
func TestEarlierFlowsAreTreatedWithTheirPair(t *testing.T) {
	p := parse(t, "rules:\n"+strings.Replace(pairRule, "flows: 3", "flows: 12", 1))
	s := New(Options{})
	for i := range 12 {
		f := oneFlow{at: time.Duration(i) * time.Second, shadowsock: 0.6, from: fmt.Sprintf("10.0.0.1:%d", 1000+i)}
		switch i {
		case 5:
			f.shadowsock = 0.95 // it is dropped by itself
		case 8:
			f.shadowsock = 0
		}
		f.decide(s, p)
	}
	key, isLo := flow.NewKey(netip.MustParseAddrPort("10.0.0.1:2000"), netip.MustParseAddrPort("192.0.2.1:443"), flow.TCP, 0, 0)
	m := &flow.Meta{Key: key, InitiatorIsLo: isLo, Start: epoch.Add(time.Minute)}
	d, earlier := s.Decide(p, m, flow.Result{Class: "shadowsocks", Confidence: 0.6})
	var ports []uint16
	for i := range earlier {
		ports = append(ports, earlier[i].Initiator().Port())
	}
	if fmt.Sprint(ports) != "[1002 1003 1004 1006 1007 1009 1010 1011]" || d.Reason != policy.ReasonEvidence || d.Seen != 12 || d.Judged != 13 {
		t.Errorf("earlier flows %v, decision %+v", ports, d)
	}
	m.Start = m.Start.Add(time.Second)
	if d, earlier := s.Decide(p, m, flow.Result{Class: "shadowsocks", Confidence: 0.6}); earlier != nil || d.Reason != policy.ReasonPair {
		t.Errorf("again: %v, %+v", earlier, d)
	}
}

// What one rule has seen is not lost when the policy is read again, and counts for the rule of
// the same name. Where the rule has gone, its pairs are treated no longer.
func TestEvidenceOutlivesAReload(t *testing.T) {
	s := New(Options{})
	before, after, without := parse(t, "rules:\n"+pairRule), parse(t, "rules:\n  - {name: other, class: v2ray, action: drop, ttl: 1m, evidence: {flows: 2, share: 1, within: 1h}}\n"+pairRule), parse(t, "mode: monitor")
	list := flows(0.6, 0.6, 0.6, 0, 0, 0)
	for i, want := range []struct {
		p      *policy.Policy
		reason string
	}{{before, policy.ReasonMeanwhile}, {before, policy.ReasonMeanwhile}, {after, policy.ReasonEvidence}, {before, policy.ReasonPair}, {without, policy.ReasonNoRule}, {after, policy.ReasonPair}} {
		if d := list[i].decide(s, want.p); d.Reason != want.reason {
			t.Errorf("flow %d: %+v, want %s", i, d, want.reason)
		}
	}
	allowed := parse(t, "allow: [{cidr: 192.0.2.1/32}]\nrules:\n"+pairRule)
	if d := (oneFlow{at: 8 * time.Second}).decide(s, allowed); d.Action != flow.Pass || d.Reason != policy.ReasonAllowList {
		t.Errorf("the server is on the allow-list now: %+v", d)
	}
	if d := (oneFlow{at: 9 * time.Second}).decide(s, before); d.Reason != policy.ReasonPair {
		t.Errorf("the server is on the allow-list no longer: %+v", d)
	}
	elsewhere := parse(t, "rules:\n"+strings.Replace(pairRule, "class:", "from: 10.9.0.0/16, class:", 1))
	if d := (oneFlow{at: 10 * time.Second}).decide(s, elsewhere); d.Action != flow.Pass {
		t.Errorf("the rule is for others now: %+v", d)
	}
	if d := (oneFlow{at: 11 * time.Second}).decide(s, before); d.Action != flow.Pass {
		t.Errorf("the treatment ended with the rule's change: %+v", d)
	}
}

// More names of rules than are remembered come and go over many reloads.
func TestManyReloadsWithOtherNames(t *testing.T) {
	s := New(Options{})
	for n := range 200 {
		p := parse(t, "rules:\n"+strings.Replace(pairRule, "name: pairs", fmt.Sprintf("name: r%d", n), 1))
		at := time.Duration(n) * time.Hour
		for i, want := range []string{policy.ReasonMeanwhile, policy.ReasonMeanwhile, policy.ReasonEvidence} {
			f := oneFlow{at: at + time.Duration(i)*time.Second, shadowsock: 0.6, to: fmt.Sprintf("192.0.2.%d:443", n)}
			if d := f.decide(s, p); d.Reason != want {
				t.Fatalf("rule r%d, flow %d: %+v, want %s", n, i, d, want)
			}
		}
	}
}

// Pairs without a detected flow never push out others, however many there are.
func TestStateIsBounded(t *testing.T) {
	p, s := parse(t, "limits: none\nrules:\n"+pairRule), New(Options{Pairs: 64})
	for _, f := range flows(0.6, 0.6) {
		f.decide(s, p)
	}
	for i := range 1000 {
		f := oneFlow{at: 2*time.Second + time.Duration(i), from: fmt.Sprintf("10.1.%d.%d:40000", i/250, i%250)}
		f.decide(s, p)
	}
	if len(s.pairs) != 33 || s.counts.forgotten != 1000-32 {
		t.Errorf("%d pairs, %d forgotten", len(s.pairs), s.counts.forgotten)
	}
	if d := (oneFlow{at: 3 * time.Second, shadowsock: 0.6}).decide(s, p); d.Reason != policy.ReasonEvidence {
		t.Errorf("the evidence is lost: %+v", d)
	}
	// Others with detected flows do push out.
	for i := range 17 {
		for n := range 3 {
			f := oneFlow{at: 4*time.Second + time.Duration(i*3+n)*time.Millisecond, shadowsock: 0.6, from: fmt.Sprintf("10.2.0.%d:40%03d", i, n)}
			f.decide(s, p)
		}
	}
	if d := (oneFlow{at: 5 * time.Second}).decide(s, p); d.Action != flow.Pass || s.counts.pairsTreated != 18 {
		t.Errorf("%+v, %+v", d, s.counts)
	}
	for range 200 { // and of a pair not more flows are kept than it takes
		(oneFlow{at: 6 * time.Second, shadowsock: 0.6}).decide(s, p)
	}
	if n := len(s.pairs[(&flow.Meta{Key: flow.Key{Lo: netip.MustParseAddrPort("10.0.0.1:1"), Hi: netip.MustParseAddrPort("192.0.2.1:443")}, InitiatorIsLo: true}).Pair()].Value.(*pair).flows); n > policy.MaxEvidenceFlows {
		t.Errorf("%d flows are kept", n)
	}
}

func TestLimits(t *testing.T) {
	const rule = "rules:\n  - {name: flows, class: shadowsocks, min_confidence: 0.9, action: drop, ttl: 1m, udp_unproven: true}\n"
	for _, tt := range []struct {
		name, policy string
		// flow returns flow number i.
		n      int
		flow   func(i int) oneFlow
		passes int    // the first one that does not get dropped though it is detected; -1: none
		limit  string // that was reached
	}{
		{"one host with 1000 tunnels a minute", "", 1000, func(i int) oneFlow {
			return oneFlow{at: time.Duration(i) * 60 * time.Millisecond, shadowsock: 0.95, to: fmt.Sprintf("192.0.2.%d:443", i%250)}
		}, -1, ""},
		{"seven hosts, all with tunnels", "", 700, func(i int) oneFlow {
			return oneFlow{at: time.Duration(i) * time.Millisecond, shadowsock: 0.95, from: fmt.Sprintf("10.0.0.%d:%d", i%7+1, 1000+i)}
		}, -1, ""},
		{"a model that calls everything shadowsocks", "", 100, func(i int) oneFlow {
			return oneFlow{at: time.Duration(i) * 10 * time.Millisecond, shadowsock: 0.95, from: fmt.Sprintf("10.0.0.%d:%d", i%100+1, 1000+i)}
		}, 7, "share"},
		{"a quarter of the hosts have tunnels", "", 400, func(i int) oneFlow {
			f := oneFlow{at: time.Duration(i) * time.Millisecond, from: fmt.Sprintf("10.0.0.%d:%d", i%100+1, 1000+i)}
			if i%4 == 3 {
				f.shadowsock = 0.95
			}
			return f
		}, -1, ""},
		{"too many in a minute", "limits: {flows: 3/min}\n", 10, func(i int) oneFlow {
			return oneFlow{at: time.Duration(i) * time.Second, shadowsock: 0.95, from: fmt.Sprintf("10.0.0.%d:%d", i%100+1, 1000+i)}
		}, 3, "flows"},
		{"not too many, as they take longer", "limits: {flows: 3/min}\n", 10, func(i int) oneFlow {
			return oneFlow{at: time.Duration(i) * 21 * time.Second, shadowsock: 0.95, from: fmt.Sprintf("10.0.0.%d:%d", i%100+1, 1000+i)}
		}, -1, ""},
		{"IPv6 networks count", "limits: {flows: 3/min}\n", 10, func(i int) oneFlow {
			return oneFlow{at: time.Duration(i) * time.Second, shadowsock: 0.95, from: fmt.Sprintf("[2001:db8::%d]:%d", i%100+1, 1000+i), to: "[2001:db8:1::1]:443"}
		}, -1, ""},
		{"no limits", "limits: none\n", 500, func(i int) oneFlow {
			return oneFlow{at: time.Duration(i) * time.Millisecond, shadowsock: 0.95, from: fmt.Sprintf("10.0.%d.%d:%d", i/100, i%100+1, 1000+i)}
		}, -1, ""},
		{"the pause ends", "limits: {flows: 3/min}\n", 6, func(i int) oneFlow {
			f := oneFlow{at: time.Duration(i) * time.Second, shadowsock: 0.95, from: fmt.Sprintf("10.0.0.%d:%d", i%100+1, 1000+i)}
			if i >= 4 {
				f.at += 10 * time.Minute
			}
			return f
		}, 3, "flows"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var alerts []Alert
			s := New(Options{Alert: func(a Alert) { alerts = append(alerts, a) }})
			p, first := parse(t, tt.policy+rule), -1
			var last policy.Decision
			for i := range tt.n {
				f := tt.flow(i)
				last = f.decide(s, p)
				if f.shadowsock > 0 && last.Action == flow.Pass && first < 0 {
					first = i
					if last.Reason != policy.ReasonPaused || last.TTL != 0 || !last.Detected {
						t.Errorf("flow %d: %+v", i, last)
					}
				}
			}
			if first != tt.passes || (len(alerts) > 0) != (tt.limit != "") || len(alerts) > 1 {
				t.Fatalf("flow %d passes, want %d; alerts %+v", first, tt.passes, alerts)
			}
			if tt.limit == "" {
				return
			}
			a := alerts[0]
			if a.Limit != tt.limit || !a.Proven || a.Until.Sub(a.Time) != 10*time.Minute || a.Treated != first+1 || a.Initiators != first+1 || a.Time.Sub(epoch) > 5*time.Second {
				t.Errorf("alert %+v", a)
			}
			if ended := strings.Contains(tt.name, "ends"); ended != (last.Action == flow.Drop) {
				t.Errorf("the last flow: %+v", last)
			}
			if s.counts.limitsReached != 1 || s.counts.paused == 0 {
				t.Errorf("%+v", s.counts)
			}
		})
	}
}

// Who forges datagrams can have treatments of UDP paused, and not those of TCP.
func TestForgedInitiatorsPauseNothingForOthers(t *testing.T) {
	p := parse(t, "rules:\n  - {name: flows, class: shadowsocks, min_confidence: 0.9, action: drop, ttl: 1m, udp_unproven: true, one_way: true}\n")
	for _, forge := range []func(*flow.Meta){func(m *flow.Meta) { m.Key.Proto = flow.UDP }, func(m *flow.Meta) { m.OneWay = true }} {
		var alerts []Alert
		s := New(Options{Alert: func(a Alert) { alerts = append(alerts, a) }})
		var d policy.Decision
		for i := range 50 {
			d = oneFlow{at: time.Duration(i) * time.Millisecond, shadowsock: 0.95, from: fmt.Sprintf("10.1.0.%d:40000", i+1), change: forge}.decide(s, p)
		}
		if d.Reason != policy.ReasonPaused || len(alerts) != 1 || alerts[0].Proven {
			t.Errorf("%+v, alerts %+v", d, alerts)
		}
		if d := (oneFlow{at: time.Second, shadowsock: 0.95}).decide(s, p); d.Action != flow.Drop {
			t.Errorf("a proven flow: %+v", d)
		}
	}
}

// Above a limit what is done on evidence goes on.
func TestEvidenceGoesOnWhileOthersPause(t *testing.T) {
	p, s := parse(t, "limits: {flows: 1/min}\nrules:\n"+pairRule), New(Options{})
	list := flows(0.95, 0.95, 0.95, 0.95)
	list[1].from = "10.0.0.2:40000"
	list = append(list, oneFlow{at: 4 * time.Second, shadowsock: 0.95}, oneFlow{at: 5 * time.Second})
	var got []string
	for _, f := range list {
		d := f.decide(s, p)
		got = append(got, d.Action.String()+" "+d.Reason)
	}
	const want = "drop rule, pass paused, pass paused, drop evidence, drop pair, drop pair"
	if text := strings.Join(got, ", "); text != want {
		t.Errorf("%s\nwant %s", text, want)
	}
}

func TestStateSurvivesARestart(t *testing.T) {
	p := parse(t, "limits: {flows: 1/h}\nrules:\n"+pairRule)
	path := filepath.Join(t.TempDir(), "state", "evidence.json")
	s := New(Options{})
	if err := s.Load(path); err != nil { // not there
		t.Fatal(err)
	}
	for _, f := range []oneFlow{
		{at: 0, shadowsock: 0.6}, {at: 1, shadowsock: 0.6, from: "10.0.0.1:1"}, // two of three
		{at: 0, shadowsock: 0.6, from: "10.0.0.2:1"}, {at: 1, shadowsock: 0.6, from: "10.0.0.2:2"}, {at: 2, shadowsock: 0.6, from: "10.0.0.2:3"}, // treated
		{at: 0, from: "10.0.0.3:1"}, {at: 1, from: "10.0.0.3:2"}, {at: 2, from: "10.0.0.3:3"}, // clean
		{at: 3, shadowsock: 0.95, from: "10.0.0.4:1"}, {at: 4, shadowsock: 0.95, from: "10.0.0.5:1"}, // a limit is reached
	} {
		f.decide(s, p)
	}
	var want bytes.Buffer
	if err := s.Write(&want); err != nil {
		t.Fatal(err)
	}
	s.saved = false
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(path); err != nil { // nothing has changed
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Fatalf("%v, %v", left, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("who speaks with whom may be read by others: %v", info.Mode())
	}

	again := New(Options{})
	if err := again.Load(path); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := again.Write(&got); err != nil || got.String() != want.String() {
		t.Errorf("%v: read and written again:\n%s\nwant:\n%s", err, &got, &want)
	}
	for _, tt := range []struct {
		flow oneFlow
		want string
	}{
		{oneFlow{at: time.Second, shadowsock: 0.6}, policy.ReasonEvidence},
		{oneFlow{at: time.Second, from: "10.0.0.2:9"}, policy.ReasonPair},
		{oneFlow{at: time.Second, shadowsock: 0.6, from: "10.0.0.3:9"}, policy.ReasonMeanwhile},
		{oneFlow{at: time.Second, shadowsock: 0.95, from: "10.0.0.6:9"}, policy.ReasonPaused},
	} {
		if d := tt.flow.decide(again, p); d.Reason != tt.want {
			t.Errorf("%s: %+v, want %s", tt.flow.from, d, tt.want)
		}
	}
}

func TestBadFilesStartEmpty(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "it is empty"},
		{"cut", `{"version":1,"pairs":[{"init`, "it is cut off"},
		{"text", "hello", "invalid character 'h' looking for beginning of value"},
		{"another version", `{"version":2}`, "it is of version 2, and this program knows 1"},
		{"another form", `[]`, "json: cannot unmarshal array into Go value of type evidence.saved"},
		{"a network as initiator", `{"version":1,"pairs":[{"initiator":"10.0.0.0/8","server":"192.0.2.1:443"}]}`, "pair 1: initiator 10.0.0.0/8 is neither an IPv4 address nor an IPv6 network of 64 bits"},
		{"no server", `{"version":1,"pairs":[{"initiator":"10.0.0.1/32","server":""}]}`, "pair 1: server invalid AddrPort is no address and port"},
		{"a pair twice", `{"version":1,"pairs":[{"initiator":"10.0.0.1/32","server":"192.0.2.1:443"},{"initiator":"10.0.0.1/32","server":"192.0.2.1:443"}]}`, "pair 2: it is there twice"},
		{"many flows", `{"version":1,"pairs":[{"initiator":"10.0.0.1/32","server":"192.0.2.1:443","flows":[` + strings.Repeat(`{},`, 32) + `{}]}]}`, "pair 1: it has 33 flows, more than 32"},
	} {
		path := filepath.Join(dir, tt.name)
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := New(Options{})
		if err := s.Load(path); err == nil || err.Error() != path+": "+tt.want || len(s.pairs) != 0 {
			t.Errorf("%s: %v, %d pairs", tt.name, err, len(s.pairs))
		}
	}
	if err := New(Options{}).Load(dir); err == nil || err.Error() != dir+" is a folder" {
		t.Errorf("a folder: %v", err)
	}
}

func BenchmarkDecide(b *testing.B) {
	p, s := parse(b, "rules:\n"+pairRule), New(Options{})
	m := &flow.Meta{Start: epoch, InitiatorIsLo: true}
	r := flow.Result{Class: "background", Confidence: 1}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.Key, _ = flow.NewKey(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 4), byte(i)}), 1000), netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 443), flow.TCP, 0, 0)
		m.Start = m.Start.Add(time.Microsecond)
		s.Decide(p, m, r)
	}
}

// What is treated is told of, can be taken over by another State, and forgotten.
func TestTreatedPairsAreToldOfAndForgotten(t *testing.T) {
	s, p := New(Options{}), parse(t, "rules:\n"+pairRule)
	changes := s.Changes()
	changed := func() bool {
		was := changes
		changes = s.Changes()
		return was != changes
	}
	third := func(from time.Duration) policy.Decision {
		var d policy.Decision
		for i := range 3 {
			d = oneFlow{at: from + time.Duration(i)*time.Second, shadowsock: 0.99}.decide(s, p)
		}
		return d
	}
	third(0)
	if !changed() {
		t.Error("a pair is treated, and nothing has changed")
	}
	var now time.Time
	for _, e := range s.pairs {
		now = e.Value.(*pair).treatment.since
	}
	all := s.Treated(now)
	if len(all) != 1 || all[0].Rule != "pairs" || all[0].Class != "shadowsocks" || all[0].Seen != 3 || all[0].Judged != 3 || !all[0].Until.After(now) {
		t.Fatalf("treated: %+v", all)
	}
	one := all[0]
	if got, ok := s.TreatmentOf(one.Pair, now); !ok || got != one {
		t.Errorf("one: %+v, %v", got, ok)
	}
	if len(s.Treated(one.Until)) != 0 {
		t.Error("it is treated when its time is over")
	}
	if changed() {
		t.Error("who asks changes something")
	}
	other := New(Options{})
	other.Treat(one)
	if got := other.Treated(now); len(got) != 1 || got[0] != one {
		t.Errorf("taken over: %+v", got)
	}
	if d := (oneFlow{at: time.Minute}).decide(other, p); d.Reason != policy.ReasonPair || d.Action != flow.Drop {
		t.Errorf("the next flow: %+v", d)
	}
	if !s.Forget(one.Pair) || s.Forget(one.Pair) || !changed() {
		t.Error("it is not forgotten once")
	}
	if len(s.Treated(now)) != 0 || len(s.pairs) != 0 {
		t.Errorf("%d pairs are left", len(s.pairs))
	}
	// Of nothing, it takes as much as at first.
	if d := (oneFlow{at: time.Minute, shadowsock: 0.99}).decide(s, p); d.Scope == flow.ScopePair {
		t.Errorf("the next flow: %+v", d)
	}
}
