// SPDX-License-Identifier: Apache-2.0

package why

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

func TestQueryFitsEitherEnd(t *testing.T) {
	for _, tt := range []struct {
		network           string
		port              uint16
		initiator, server string
		flow, pair        bool
	}{
		{"10.0.0.1/32", 0, "10.0.0.1:40000", "192.0.2.1:443", true, true},
		{"192.0.2.1/32", 0, "10.0.0.1:40000", "192.0.2.1:443", true, true},
		{"10.0.0.2/32", 0, "10.0.0.1:40000", "192.0.2.1:443", false, false},
		{"10.0.0.0/8", 0, "10.0.0.1:40000", "192.0.2.1:443", true, true},
		{"192.0.2.1/32", 443, "10.0.0.1:40000", "192.0.2.1:443", true, true},
		{"192.0.2.1/32", 80, "10.0.0.1:40000", "192.0.2.1:443", false, false},
		{"192.0.2.1/32", 40000, "10.0.0.1:40000", "192.0.2.1:443", false, false},
		{"10.0.0.1/32", 443, "10.0.0.1:40000", "192.0.2.1:443", true, true},
		{"10.0.0.1/32", 40000, "10.0.0.1:40000", "192.0.2.1:443", true, false}, // a pair has no such port
		{"2001:db8::1/128", 0, "[2001:db8::1]:1", "[2001:db8:1::2]:443", true, true},
		{"2001:db8::5/128", 0, "[2001:db8::1]:1", "[2001:db8:1::2]:443", false, true}, // the pair is of the whole /64
		{"2001:db8::/32", 443, "[2001:db8::1]:1", "[2001:db8:1::2]:443", true, true},
		{"::/0", 0, "10.0.0.1:40000", "192.0.2.1:443", false, false},
	} {
		q := Query{Network: netip.MustParsePrefix(tt.network), Port: tt.port}
		initiator, server := netip.MustParseAddrPort(tt.initiator), netip.MustParseAddrPort(tt.server)
		bits := 32
		if initiator.Addr().Is6() {
			bits = 64
		}
		prefix, _ := initiator.Addr().Prefix(bits)
		pair := q.FitsPair(&flow.Pair{Initiator: prefix, Server: server})
		if flow := q.Fits(initiator, server); flow != tt.flow || pair != tt.pair {
			t.Errorf("%s of %s > %s: flow %v, pair %v", q.Of(), tt.initiator, tt.server, flow, pair)
		}
	}
}

var now = time.Date(2026, 11, 26, 5, 0, 0, 0, time.Local)

// decided returns a decision about a flow, as most are.
func decided(change func(*Decision)) Decision {
	confidence, not := 0.981, false
	d := Decision{Verdict: &event.Verdict{
		Time: now.Add(-time.Minute), Interface: "lan0", Mode: "enforce", Class: "shadowsocks", Confidence: 0.981, Enforced: &not,
		Endpoints: event.Endpoints{Src: netip.MustParseAddrPort("192.0.2.7:51334"), Dst: netip.MustParseAddrPort("203.0.113.5:8388"), Proto: "tcp"},
		Naming:    event.Naming{RuleClasses: []string{"shadowsocks"}, RuleConfidence: &confidence, Likeliest: "shadowsocks", Detected: true},
		Decision:  "pass", Rule: "tunnels", PolicyLine: 24,
	}}
	change(&d)
	return d
}

func (d *Decision) enforced(decision, reason string) {
	yes := true
	d.Decision, d.Reason, d.Enforced, d.TTL = decision, reason, &yes, 3600
}

// Each line of what people are told, as it is.
func TestText(t *testing.T) {
	answer := func(change func(*Answer)) *Answer {
		a := &Answer{Of: "192.0.2.7", Policy: "policy.yaml", PolicySince: now.Add(-30 * time.Second), Remembered: 812, Room: 10000, Since: now.Add(-time.Hour)}
		change(a)
		a.Matched = max(a.Matched, len(a.Decisions))
		return a
	}
	one := func(change func(*Decision)) *Answer {
		return answer(func(a *Answer) { a.Decisions = []Decision{decided(change)} })
	}
	for _, tt := range []struct {
		name string
		a    *Answer
		want string
	}{
		{"nothing is known", answer(func(*Answer) {}), `
192.0.2.7: the daemon knows of no decision, and remembers 812 decisions, back to 04:00:00
`},
		{"memory is full", answer(func(a *Answer) { a.Remembered = 10000; a.Since = now.AddDate(0, 0, -1) }), `
192.0.2.7: the daemon knows of no decision, and remembers the last 10000 decisions, back to
  2026-11-25 05:00:00
`},
		{"just begun", answer(func(a *Answer) { a.Remembered = 0 }), `
192.0.2.7: the daemon knows of no decision, and remembers none yet
`},
		{"a pair that is treated, a flow that is blocked, and more", answer(func(a *Answer) {
			a.Matched = 5
			a.Pairs = []Pair{
				{Initiator: netip.MustParsePrefix("192.0.2.7/32"), Server: netip.MustParseAddrPort("203.0.113.5:8388"), Detected: 3, Judged: 4, Rule: "tunnels", Until: now.Add(time.Hour), Kernel: []status.Pair{{Connections: 11}, {Connections: 1, Suspended: true}}},
				{Initiator: netip.MustParsePrefix("2001:db8::/64"), Server: netip.MustParseAddrPort("[2001:db8:1::5]:443"), VLAN: 7, InnerVLAN: 8, Detected: 1, Judged: 1},
			}
			a.Decisions = []Decision{decided(func(d *Decision) {
				d.enforced("drop", policy.ReasonEvidence)
				d.Scope, d.EvidenceFlows, d.EvidenceJudged, d.EarlierBlocked = "pair", 3, 4, 2
				d.Signals, d.Provisional = []string{"tiny", "slow"}, true
				d.Block = &status.Block{Action: "drop", Rule: "tunnels", Expires: now.Add(time.Hour), Packets: 37, Bytes: 12345}
			})}
		}), `
192.0.2.7: 5 decisions
pair 192.0.2.7 > 203.0.113.5:8388: treated by rule tunnels until 06:00:00, 3 of 4 flows detected; 12
  connections since; suspended, as the mode is monitor
pair 2001:db8::/64 > [2001:db8:1::5]:443 vlan 7.8: not treated, 1 of 1 flow detected

04:59:00  drop         tcp 192.0.2.7:51334 > 203.0.113.5:8388 on lan0
  shadowsocks 0.981: rule tunnels (policy.yaml:24) treats the pair until 05:59:00: 3 of 4 flows of
    the pair detected
  of the flow: tiny, slow, provisional
  blocked until 06:00:00, 37 packets (12.1 KiB) dropped so far

4 more, and the daemon remembers nothing before 04:00:00
`},
		{"a flow without VLAN, long addresses", one(func(d *Decision) {
			d.enforced("reset", policy.ReasonRule)
			d.Src, d.Dst = netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:6666]:51334"), netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:7777]:8388")
			d.Ended = &event.BlockEnded{Time: now, Reason: "new_connection", DroppedPackets: 1, DroppedBytes: 60}
		}), `
192.0.2.7: 1 decision

04:59:00  reset        on lan0
  tcp [2001:db8:1111:2222:3333:4444:5555:6666]:51334 > [2001:db8:1111:2222:3333:4444:5555:7777]:8388
  shadowsocks 0.981: rule tunnels (policy.yaml:24) resets it
  its block ended at 05:00:00 (new connection), 1 packet (60 B) dropped

nothing is remembered before 04:00:00
`},
		{"mode monitor, and the policy was read again", one(func(d *Decision) {
			d.Decision, d.Reason, d.Mode, d.BeforeReload = "drop", policy.ReasonRule, "monitor", true
		}), `
192.0.2.7: 1 decision

04:59:00  would drop   tcp 192.0.2.7:51334 > 203.0.113.5:8388 on lan0
  shadowsocks 0.981: rule tunnels (policy.yaml:24 before the reload of 04:59:30) drops it
  it passes: the mode was monitor

nothing is remembered before 04:00:00
`},
		{"limit by the built-in policy, suspended", answer(func(a *Answer) {
			a.Policy = "built-in"
			a.Decisions = []Decision{decided(func(d *Decision) {
				d.enforced("limit", policy.ReasonRule)
				d.Rate = 8000
				d.Block = &status.Block{Action: "limit", Rule: "tunnels", Expires: now, Suspended: true}
			})}
		}), `
192.0.2.7: 1 decision

04:59:00  limit        tcp 192.0.2.7:51334 > 203.0.113.5:8388 on lan0
  shadowsocks 0.981: rule tunnels (built-in policy, line 24) limits it to 64kbit
  limited until 05:00:00, 0 packets (0 B) dropped so far; suspended, as the mode is monitor

nothing is remembered before 04:00:00
`},
		{"it could not be blocked", one(func(d *Decision) {
			d.Decision, d.Reason, d.Error = "drop", policy.ReasonRule, "the table is full"
		}), `
192.0.2.7: 1 decision

04:59:00  drop failed  tcp 192.0.2.7:51334 > 203.0.113.5:8388 on lan0
  shadowsocks 0.981: rule tunnels (policy.yaml:24) drops it
  it passes: the table is full

nothing is remembered before 04:00:00
`},
		{"by hand", one(func(d *Decision) {
			d.Reason, d.Rule, d.PolicyLine, d.Naming = policy.ReasonNoRule, "", 0, event.Naming{Likeliest: "shadowsocks"}
			d.Block = &status.Block{Action: "drop", Rule: "by hand", Expires: now}
		}), `
192.0.2.7: 1 decision

04:59:00  pass         tcp 192.0.2.7:51334 > 203.0.113.5:8388 on lan0
  shadowsocks 0.981: no rule is for it
  blocked by hand until 05:00:00, 0 packets (0 B) dropped so far

nothing is remembered before 04:00:00
`},
		{"logged, and blocked with its pair", one(func(d *Decision) {
			d.Decision, d.Reason, d.EvidenceFlows, d.EvidenceJudged = "log", policy.ReasonMeanwhile, 2, 2
			d.Block = &status.Block{Action: "drop", Rule: "tunnels", Expires: now, Packets: 1, Bytes: 1500}
		}), `
192.0.2.7: 1 decision

04:59:00  log          tcp 192.0.2.7:51334 > 203.0.113.5:8388 on lan0
  shadowsocks 0.981: rule tunnels (policy.yaml:24) waits for evidence, 2 of 2 flows of the pair
    detected, and logs it meanwhile
  blocked by rule tunnels until 05:00:00, 1 packet (1.5 KiB) dropped so far

nothing is remembered before 04:00:00
`},
		{"the allow-list", one(func(d *Decision) { d.Reason, d.Rule, d.PolicyLine = policy.ReasonAllowList, "cidr 192.0.2.0/24", 7 }), `
192.0.2.7: 1 decision

04:59:00  pass         tcp 192.0.2.7:51334 > 203.0.113.5:8388 on lan0
  shadowsocks 0.981: the allow-list has cidr 192.0.2.0/24 (policy.yaml:7)

nothing is remembered before 04:00:00
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.a.Text(now)
			if got != tt.want[1:] {
				t.Errorf("got:\n%s", got)
			}
			for line := range strings.Lines(got) {
				if len(line) > lineWidth+1 {
					t.Errorf("%d columns: %s", len(line)-1, line)
				}
			}
		})
	}
}

// Every reason of a decision is told in words of its own.
func TestEveryReasonHasWords(t *testing.T) {
	said := map[string]string{}
	for _, reason := range policy.Reasons {
		d := decided(func(d *Decision) { d.Reason = reason })
		a := &Answer{Of: "192.0.2.7", Policy: "policy.yaml", Matched: 1, Decisions: []Decision{d}}
		text := a.Text(now)
		if other := said[text]; other != "" {
			t.Errorf("%s is told as %s is: %s", reason, other, text)
		}
		said[text] = reason
	}
}

// Names that hold commands for the terminal are not printed as they are.
func TestTextHoldsNoEscapeSequence(t *testing.T) {
	d := decided(func(d *Decision) { d.Interface, d.Reason = "e\x1b[31m0", policy.ReasonRule })
	a := &Answer{Of: "192.0.2.7", Policy: "\x1b]0;p\x07.yaml", Matched: 1, Decisions: []Decision{d}}
	if text := a.Text(now); strings.ContainsAny(text, "\x1b\x07") || !strings.Contains(text, "e?[31m0") {
		t.Errorf("%q", text)
	}
}

// The history adds what is older than memory and was asked about, as long as there is room.
func TestEarlierDecisionsAreAdded(t *testing.T) {
	since := time.Unix(1000, 0)
	a := &Answer{Since: since, PolicySince: since}
	q := &Query{Network: netip.MustParsePrefix("192.0.2.7/32"), Port: 443, Most: 2}
	ours, other := netip.MustParseAddrPort("192.0.2.7:443"), netip.MustParseAddrPort("192.0.2.7:80")
	client := netip.MustParseAddrPort("10.0.0.2:40000")
	for _, tt := range []struct {
		name        string
		at          time.Time
		server      netip.AddrPort
		added, more bool
	}{
		{"remembered as well", since, ours, false, true},
		{"another port", since.Add(-1), other, false, true},
		{"the first", since.Add(-1), ours, true, true},
		{"the last", since.Add(-2), ours, true, false},
		{"without room", since.Add(-3), ours, false, false},
	} {
		before := len(a.Earlier)
		v := &event.Verdict{Time: tt.at, Endpoints: event.Endpoints{Src: client, Dst: tt.server}}
		if more := a.AddEarlier(q, v); more != tt.more || len(a.Earlier) > before != tt.added {
			t.Errorf("%s: added %v, more %v", tt.name, len(a.Earlier) > before, more)
		}
	}
	if !a.Earlier[0].BeforeReload {
		t.Error("the policy was read since")
	}
}
