// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// loadWith loads a policy with files beside it.
func loadWith(t *testing.T, text string, files map[string]string) (*Policy, error) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "p.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Load(path, model)
	if err != nil {
		err = errors.New(strings.ReplaceAll(err.Error(), dir+"/", ""))
	}
	return p, err
}

const ruleStart = "rules: [{class: v2ray, min_confidence: 0.9, action: drop, ttl: 10m, "

func TestParseConditions(t *testing.T) {
	prefix := netip.MustParsePrefix
	yes := true
	evidence := func(r *Rule) {
		r.Evidence = &Evidence{Flows: 3, Share: 0.6, Within: time.Hour, MinConfidence: 0.9}
		r.Meanwhile = flow.Drop
	}
	for _, tt := range []struct {
		name, text string
		change     func(*Rule)
	}{
		{"proto", "proto: tcp", func(r *Rule) { r.Proto = flow.TCP }},
		{"udp", "proto: udp, udp_unproven: true", func(r *Rule) { r.Proto, r.UDPUnproven = flow.UDP, true }},
		{"from a network", "from: 10.0.0.0/8", func(r *Rule) { r.From = []Endpoint{{Prefix: prefix("10.0.0.0/8")}} }},
		{"from addresses and networks", "from: [10.0.0.1, '2001:db8::/32', '::1', '::ffff:192.0.2.1']", func(r *Rule) {
			r.From = []Endpoint{{Prefix: prefix("10.0.0.1/32")}, {Prefix: prefix("2001:db8::/32")}, {Prefix: prefix("::1/128")}, {Prefix: prefix("192.0.2.1/32")}}
		}},
		{"to ports", "to: [{port: [22, 8000-8100]}, {cidr: 192.0.2.0/24, port: 443}]", func(r *Rule) {
			r.To = []Endpoint{{Ports: []PortRange{{22, 22}, {8000, 8100}}}, {Prefix: prefix("192.0.2.0/24"), Ports: []PortRange{{443, 443}}}}
		}},
		{"interface", "interface: eth0", func(r *Rule) { r.Interfaces = []string{"eth0"} }},
		{"interfaces", "interface: [eth0, br-lan.10]", func(r *Rule) { r.Interfaces = []string{"eth0", "br-lan.10"} }},
		{"vlans", "vlan: [0, 10, 100-199]", func(r *Rule) { r.VLANs = []VLANRange{{0, 0}, {10, 10}, {100, 199}} }},
		{"complete", "complete: true", func(r *Rule) { r.Complete = &yes }},
		{"scope flow", "scope: flow", func(*Rule) {}},
		{"evidence", "evidence: {flows: 3, share: 0.6, within: 1h}", evidence},
		{"evidence and scope", "scope: pair, evidence: {flows: 3, share: 0.6, within: 1h}", evidence},
		{"meanwhile reset", "meanwhile: reset, evidence: {flows: 3, share: 0.6, within: 1h}", func(r *Rule) { evidence(r); r.Meanwhile = flow.Reset }},
		{"meanwhile limit", "meanwhile: limit, rate: 2mbit, evidence: {flows: 3, share: 0.6, within: 1h}", func(r *Rule) { evidence(r); r.Meanwhile, r.Rate = flow.Limit, 250_000 }},
		{"meanwhile", "meanwhile: log, evidence: {flows: 3, share: 0.6, within: 1h}", func(r *Rule) { evidence(r); r.Meanwhile = flow.Log }},
		{"evidence that is less sure", "evidence: {flows: 32, share: 1, within: 7d, min_confidence: 0.5}", func(r *Rule) {
			r.Evidence, r.Meanwhile = &Evidence{Flows: 32, Share: 1, Within: MaxWithin, MinConfidence: 0.5}, flow.Drop
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := Rule{Name: "rule-1", Classes: []string{"v2ray"}, MinConfidence: 0.9, Action: flow.Drop, TTL: 10 * time.Minute}
			tt.change(&want)
			p, err := Parse("p.yaml", []byte(ruleStart+tt.text+"}]"), model)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]Rule{want}, p.Rules, comparePolicies); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
		})
	}
	for _, tt := range []struct {
		text string
		want Limits
	}{
		{"", Limits{200, time.Minute, 0.25}}, {"limits: none", Limits{}}, {"limits: {flows: 5/s}", Limits{Flows: 5, Per: time.Second}},
		{"limits: {share: 1}", Limits{Share: 1}}, {"limits: {flows: 1000000/h, share: .5}", Limits{1000000, time.Hour, 0.5}},
	} {
		if p := mustParse(t, "mode: monitor\n"+tt.text); p.Limits != tt.want {
			t.Errorf("%q: %+v, want %+v", tt.text, p.Limits, tt.want)
		}
	}
	p := mustParse(t, "rules: [{class: v2ray, action: log}]")
	if r := p.Rules[0]; r.Action != flow.Log || r.TTL != 0 {
		t.Errorf("log: %+v", r)
	}
}

func TestParseRefusesWhatCanNotBe(t *testing.T) {
	const evidence = "evidence: {flows: 3, share: 0.6, within: 1h}"
	for _, tt := range []struct{ text, want string }{
		{ruleStart + "proto: icmp}]", `1:76: unknown proto "icmp", did you mean tcp?; write tcp or udp`},
		{ruleStart + "proto: upd}]", `1:76: unknown proto "upd", did you mean udp?; write tcp or udp`},
		{ruleStart + "from: []}]", "1:75: from is an empty list; name at least one"},
		{ruleStart + "from: 10.0.0.1/8}]", `1:75: from: "10.0.0.1/8" has host bits set; the network is 10.0.0.0/8, or set:NAME`},
		{ruleStart + "from: home}]", `1:75: from: "home" is neither a network nor an address; write one such as 192.0.2.0/24 or 2001:db8::1, or set:NAME`},
		{ruleStart + "from: 'fe80::1%eth0'}]", `1:75: from: "fe80::1%eth0" is neither a network nor an address; write one such as 192.0.2.0/24 or 2001:db8::1, or set:NAME`},
		{ruleStart + "to: '192.0.2.7:443'}]", `1:73: to: "192.0.2.7:443" has a port; write {cidr: 192.0.2.7/32, port: 443}`},
		{ruleStart + "from: [7]}]", "1:76: from has to be a network, an address, set:NAME or a mapping with cidr, set and port, but is a number"},
		{ruleStart + "to: set:cloud}]", `1:73: there is no set "cloud"; sets has none`},
		{ruleStart + "to: [{side: any}]}]", `1:75: unknown key "side" in an entry of to, did you mean cidr?; known are cidr, set, port`},
		{ruleStart + "to: [{}]}]", "1:74: an entry of to needs a cidr, a set or a port"},
		{ruleStart + "interface: 'a b'}]", `1:80: interface "a b" can't be the name of one: it has 1 to 15 characters, no space, "/" or ":"`},
		{ruleStart + "interface: [eth0, eth0]}]", `1:87: interface "eth0" is named twice; keep one of them`},
		{ruleStart + "vlan: 4096}]", `1:75: vlan "4096" is not a VLAN ID; write 0 to 4095, or a range such as 100-199`},
		{ruleStart + "vlan: 20-10}]", `1:75: vlan range "20-10" is backwards; write 10-20`},
		{ruleStart + "complete: maybe}]", `1:79: complete has to be true or false, but is "maybe"`},
		{ruleStart + "scope: pair}]", `1:76: rule 1 treats a pair after one flow, and a verdict on one flow is too little for that; add evidence, for example "evidence: {flows: 3, share: 0.6, within: 1h}"`},
		{ruleStart + "scope: server, " + evidence + "}]", "1:76: scope server is refused: whoever can open connections to a server could have it cut for everybody; write pair, which cuts off only those whose flows were detected"},
		{ruleStart + "scope: flow, " + evidence + "}]", "1:76: rule 1 has evidence, which is of a pair (an initiator and a server); write scope: pair, or remove evidence"},
		{ruleStart + "scope: par, " + evidence + "}]", `1:76: unknown scope "par", did you mean pair?; write flow or pair`},
		{ruleStart + "meanwhile: log}]", "1:69: meanwhile says what is done until there is enough evidence, and rule 1 has none; remove it or add evidence"},
		{ruleStart + "meanwhile: pass, " + evidence + "}]", `1:80: unknown meanwhile "pass"; write drop, reset, limit or log (what no rule treats passes)`},
		{ruleStart + "meanwhile: limit, " + evidence + "}]", `1:9: rule 1 limits flows and has no rate; add one, for example "rate: 64kbit"`},
		{ruleStart + "rate: 1mbit}]", "1:69: rate says how much action limit lets pass, and rule 1 has another action; remove rate, or write action: limit"},
		{ruleStart + "proto: udp, udp_unproven: true, " + evidence + "}]", "1:101: rule 1 is for UDP flows, which are evidence for nothing: anybody can forge datagrams; write proto: tcp, or remove evidence"},
		{ruleStart + "udp_unproven: true, " + evidence + "}]", "1:89: rule 1 has evidence and udp_unproven: true, but UDP flows are evidence for nothing: anybody can forge datagrams; give them a rule of their own"},
		{ruleStart + "one_way: true, " + evidence + "}]", "1:84: rule 1 has evidence and one_way: true, but connections of which one direction was seen are evidence for nothing, as they may be forged; give them a rule of their own"},
		{ruleStart + "evidence: 3}]", "1:79: evidence of rule 1 has to be a mapping with the keys flows, share, within, min_confidence, but is a number"},
		{ruleStart + "evidence: {flows: 1, share: 0.6, within: 1h}}]", `1:87: flows "1" is not a number of flows that are evidence; write 2 to 32`},
		{ruleStart + "evidence: {flows: 33, share: 0.6, within: 1h}}]", `1:87: flows "33" is not a number of flows that are evidence; write 2 to 32`},
		{ruleStart + "evidence: {flows: '3', share: 0.6, within: 1h}}]", `1:87: flows "3" is not a number of flows that are evidence; write 2 to 32`},
		{ruleStart + "evidence: {flows: 3, share: 0, within: 1h}}]", `1:97: share "0" is out of range; write a number above 0 and at most 1, such as 0.6`},
		{ruleStart + "evidence: {flows: 3, share: 60%, within: 1h}}]", "1:97: share has to be a number such as 0.6, but is text"},
		{ruleStart + "evidence: {flows: 3, share: 0.6, within: 8d}}]", "1:110: within is longer than 7d; flows that are so far apart say little together"},
		{ruleStart + "evidence: {flows: 3, share: 0.6, within: 60}}]", `1:110: within "60" has no unit; write 60s, 60m, 60h or 60d`},
		{ruleStart + "evidence: {flows: 3, within: 1h}}]", `1:79: evidence of rule 1 has no share; add one, for example "share: 0.6"`},
		{"rules: [{class: v2ray, action: rst, ttl: 10m}]", `1:32: unknown action "rst", did you mean reset?; write drop, reset, limit or log (what no rule treats passes)`},
		{"rules: [{class: v2ray, action: limit, ttl: 10m}]", `1:9: rule 1 limits flows and has no rate; add one, for example "rate: 64kbit"`},
		{"rules: [{class: v2ray, min_confidence: 0.9, action: limit, ttl: 10m, rate: 64}]", `1:76: rate "64" is no rate; ` + rateRule},
		{"rules: [{class: v2ray, min_confidence: 0.9, action: limit, ttl: 10m, rate: 64 kbit}]", `1:76: rate "64 kbit" is no rate; ` + rateRule},
		{"rules: [{class: v2ray, min_confidence: 0.9, action: limit, ttl: 10m, rate: 64kbyte}]", `1:76: rate "64kbyte" is no rate; ` + rateRule},
		{"rules: [{class: v2ray, min_confidence: 0.9, action: limit, ttl: 10m, rate: 0kbit}]", `1:76: rate "0kbit" is no rate; ` + rateRule},
		{"rules: [{class: v2ray, min_confidence: 0.9, action: limit, ttl: 10m, rate: 64Kbit}]", `1:76: rate "64Kbit" is no rate; ` + rateRule},
		{"rules: [{class: v2ray, min_confidence: 0.9, action: limit, ttl: 10m, rate: -1kbit}]", `1:76: rate "-1kbit" is no rate; ` + rateRule},
		{"rules: [{class: v2ray, min_confidence: 0.9, action: limit, ttl: 10m, rate: 1.5mbit}]", `1:76: rate "1.5mbit" is no rate; ` + rateRule},
		{"rules: [{class: v2ray, min_confidence: 0.9, action: limit, ttl: 10m, rate: 11gbit}]", `1:76: rate "11gbit" is no rate; ` + rateRule},
		{"rules: [{class: v2ray, min_confidence: 0.9, action: limit, ttl: 10m, rate: 99999999999kbit}]", `1:76: rate "99999999999kbit" is no rate; ` + rateRule},
		{"rules: [{class: v2ray, min_confidence: 0.9, action: limit, ttl: 10m, rate: 64kbit/s}]", `1:76: rate "64kbit/s" is no rate; ` + rateRule},
		{"rules: [{class: v2ray, min_confidence: 0.9, action: limit, rate: 64kbit, ttl: 10m, meanwhile: drop, " + evidence + "}]", "1:95: rule 1 would drop flows while it waits for evidence, and only limit then; write meanwhile: limit"},
		{"rules: [{class: v2ray, action: log, ttl: 10m}]", "1:37: rule 1 treats no flow, as its action is log, so that there is nothing that could last; remove ttl"},
		{"rules: [{class: v2ray, action: log, " + evidence + "}]", `1:9: rule 1 has no ttl; add one, for example "ttl: 10m"`},
		{"rules: [{class: v2ray, action: log, meanwhile: drop, ttl: 1m, " + evidence + "}]", "1:48: rule 1 would drop flows while it waits for evidence, and only log then; write meanwhile: log"},
		{"limits: off", `1:9: limits "off"; write none, or a mapping such as {flows: 200/min, share: 0.25}`},
		{"limits: {}", "1:9: limits names no limit; remove it for flows: 200/min and share: 0.25, or write limits: none"},
		{"limits: {flows: 0/min}", `1:17: flows "0/min" is not a number of flows in a time; write 1 to 1000000, and /s, /min or /h, such as 200/min`},
		{"limits: {flows: 200}", "1:17: flows has to be text such as 200/min, but is a number"},
		{"limits: {flows: 200/day}", `1:17: flows "200/day" is not a number of flows in a time; write 1 to 1000000, and /s, /min or /h, such as 200/min`},
		{"limits: {share: 1.5}", `1:17: share "1.5" is out of range; write a number above 0 and at most 1, such as 0.25`},
		{"limits: {flow: 1/s}", `1:10: unknown key "flow" in limits, did you mean flows?; known are flows, share`},
		{"protect: [{cidr: 10.0.0.0/8, port: 1}]", `1:30: unknown key "port" in an entry of protect; known are cidr, set`},
		{"allow: [{cidr: 10.0.0.0/8, set: a}]", "1:28: an entry of allow has a cidr and a set; make two entries of it"},
		{"sets: [a]", `1:7: sets has to be a mapping such as "cloud: {file: cloud.txt}", but is a list`},
		{"sets: {a b: {file: x}}", `1:8: the name of a set "a b" has to be 1 to 64 letters, digits, ".", "_" or "-", the first a letter or digit`},
		{"sets: {a: x.txt}", "1:11: set a has to be a mapping with the keys file, but is text"},
		{"sets: {a: {}}", `1:8: set a has no file; add one, for example "file: a.txt"`},
		{"sets: {a: {file: ''}}", "1:18: file of set a is empty; write a path, beside the policy file or absolute"},
	} {
		p, err := Parse("p.yaml", []byte(tt.text), model)
		if err == nil || err.Error() != "p.yaml:"+tt.want || p != nil {
			t.Errorf("%s\n got %v\nwant p.yaml:%s", tt.text, err, tt.want)
		}
	}
}

func TestSetsAreReadFromFilesBesideThePolicy(t *testing.T) {
	p, err := loadWith(t, `
sets:
  cloud: {file: cloud.txt}
  home: {file: ./home}
allow:
  - set: cloud
    side: responder
    port: 443
protect: ['set:home', 203.0.113.0/24]
rules:
  - {name: a, class: v2ray, action: drop, ttl: 1m, from: 'set:home'}
`, map[string]string{
		"cloud.txt": "\ufeff# cloud\r\n192.0.2.0/24 # a network\r\n\r\n  2001:db8::1\t\n::ffff:198.51.100.0/120\n192.0.2.0/24\n",
		"home":      "10.0.0.0/8\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := p.Sets[0].Len(); len(p.Sets) != 2 || p.Sets[0].Name != "cloud" || n != 3 {
		t.Errorf("set %s of %d has %d networks, want 3", p.Sets[0].Name, len(p.Sets), n)
	}
	for _, tt := range []struct {
		initiator, responder string
		want                 string
	}{
		{"10.0.0.1:5000", "192.0.2.9:443", ReasonAllowList},
		{"10.0.0.1:5000", "192.0.2.9:444", ReasonRule},
		{"10.0.0.1:5000", "198.51.100.200:443", ReasonAllowList},
		{"10.0.0.1:5000", "198.51.101.1:443", ReasonRule},
		{"192.0.2.9:5000", "10.0.0.1:443", ReasonNoRule}, // of the set only responders are allowed
		{"[2001:db8::2]:5000", "[2001:db8::1]:443", ReasonAllowList},
	} {
		if d := p.Decide(meta(tt.initiator, tt.responder), flow.Result{Class: "v2ray", Confidence: 1}); d.Reason != tt.want {
			t.Errorf("%s > %s: %+v, want %s", tt.initiator, tt.responder, d, tt.want)
		}
	}
	for addr, want := range map[string]bool{"10.9.9.9": true, "203.0.113.1": true, "192.0.2.1": false} {
		if p.Protects(netip.MustParseAddr(addr)) != want {
			t.Errorf("%s is protected: %v", addr, !want)
		}
	}
}

func TestSetFilesThatAreWrong(t *testing.T) {
	const policy = "mode: monitor\nsets:\n  big: {file: big.txt}\n"
	for _, tt := range []struct{ name, file, want string }{
		{"a bad line", "192.0.2.0/24\n192.0.2.300\n", `big.txt:2:1: "192.0.2.300" is neither a network nor an address; write one such as 192.0.2.0/24 or 2001:db8::1`},
		{"host bits", "# a\n\n192.0.2.1/24\n", `big.txt:3:1: "192.0.2.1/24" has host bits set; the network is 192.0.2.0/24`},
		{"two on a line", "192.0.2.0/24 198.51.100.0/24\n", `big.txt:1:1: "192.0.2.0/24 198.51.100.0/24" is neither a network nor an address; write one such as 192.0.2.0/24 or 2001:db8::1`},
		{"cut", "192.0.2.0/24\n198.51.100.1", "big.txt:2:1: the file ends within a line; if it is whole, end its last line with a line break"},
		{"empty", "", `big.txt:1:1: the file of set big is empty; if that is meant, write a comment into it ("# none")`},
		{"not UTF-8", "192.0.2.0/24\n# caf\xe9\n", "big.txt:2:1: the line is not UTF-8; is it a list of networks, one a line?"},
		{"binary", "\x00\x01\x02\n", `big.txt:1:1: "\x00\x01\x02" is neither a network nor an address; write one such as 192.0.2.0/24 or 2001:db8::1`},
		{"a long line", strings.Repeat("x", 600) + "\n", "big.txt:1:1: the line is longer than 512 bytes; write one network a line"},
		{"a line without end", strings.Repeat("x", 70<<10), "big.txt:1:1: the line is longer than 512 bytes; write one network a line"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := loadWith(t, policy, map[string]string{"big.txt": tt.file})
			if p != nil || err == nil || err.Error() != tt.want {
				t.Errorf("%v\nwant %s", err, tt.want)
			}
		})
	}
	if _, err := loadWith(t, policy, nil); err == nil || err.Error() != "p.yaml:3:15: set big: stat big.txt: no such file or directory" {
		t.Errorf("no file: %v", err)
	}
	folder := t.TempDir()
	_, err := loadWith(t, strings.Replace(policy, "big.txt", folder, 1), nil)
	if err == nil || !strings.HasPrefix(err.Error(), "p.yaml:3:15: set big: ") || !strings.HasSuffix(err.Error(), " is a folder; name a file with one network a line") {
		t.Errorf("a folder: %v", err)
	}
	_, err = loadWith(t, strings.Replace(policy, "big.txt", "/dev/zero", 1), nil)
	if err == nil || err.Error() != `p.yaml:3:15: set big: "/dev/zero" is no regular file; name a file with one network a line` {
		t.Errorf("a device: %v", err)
	}
	_, err = loadWith(t, "sets: {cloud: {file: c}}\nallow: [{set: clout}]", map[string]string{"c": "10.0.0.0/8\n"})
	if err == nil || err.Error() != `p.yaml:2:15: there is no set "clout", did you mean cloud?; sets has cloud` {
		t.Errorf("unknown set: %v", err)
	}
	_, err = loadWith(t, "sets: {a: {file: c}, a: {file: c}}", map[string]string{"c": "10.0.0.0/8\n"})
	if err == nil || err.Error() != `p.yaml:1:22: there are two sets "a"; give one of them another name` {
		t.Errorf("a set twice: %v", err)
	}
}

// FuzzReadSet holds that what is read never panics, and that each mistake has its line.
func FuzzReadSet(f *testing.F) {
	for _, seed := range []string{"192.0.2.0/24\n", "::/0 # all\n", "#\n", "1.2.3.4", "\xff\n", "::ffff:1.2.3.4/96\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := readSet("s", "f.txt", bytes.NewReader(data))
		var mistake *Error
		switch {
		case err == nil:
			if s.Len() > bytes.Count(data, []byte("\n")) {
				t.Errorf("%d networks in %d lines", s.Len(), bytes.Count(data, []byte("\n")))
			}
		case !errors.As(err, &mistake) || mistake.Line < 1 || mistake.Line > bytes.Count(data, []byte("\n"))+1 || strings.ContainsAny(err.Error(), "\n\r\x1b"):
			t.Errorf("error %q", err)
		}
	})
}

// A set of a million networks is what lists of clouds and countries come to.
func TestASetOfAMillionFitsInto300MB(t *testing.T) {
	var text bytes.Buffer
	r := rand.New(rand.NewPCG(1, 2))
	const n = 1_000_000
	for i := range n {
		if i%4 == 0 {
			fmt.Fprintf(&text, "2001:db8:%x:%x::%x\n", r.IntN(1<<16), r.IntN(1<<16), r.IntN(1<<16))
		} else {
			fmt.Fprintf(&text, "%d.%d.%d.%d\n", 1+r.IntN(223), r.IntN(256), r.IntN(256), r.IntN(256))
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := time.Now()
	s, err := readSet("big", "big.txt", &text)
	took := time.Since(start)
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if mb := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) >> 20; s.Len() < n*99/100 || mb > 300 {
		t.Errorf("%d networks take %d MB", s.Len(), mb)
	} else {
		t.Logf("%d networks in %v, %d MB", s.Len(), took, mb)
	}
}

// matchesOne is what a table has to come to, entry by entry.
func matchesOne(m *Match, initiator netip.Addr, responder netip.AddrPort) bool {
	has := func(a netip.Addr) bool {
		if m.Set != nil {
			return m.Set.Contains(a)
		}
		return m.Prefix.Contains(a)
	}
	if (m.Prefix.IsValid() || m.Set != nil) && !(m.Side != ResponderSide && has(initiator) || m.Side != InitiatorSide && has(responder.Addr())) {
		return false
	}
	r := row{ports: m.Ports}
	return r.fits(responder.Port())
}

// The table names the same entry as a look at each of the list does.
func TestTableFindsTheFirstEntryThatFits(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	set, err := readSet("s", "s", strings.NewReader("10.0.0.0/28\n2001:db8::/127\n"))
	if err != nil {
		t.Fatal(err)
	}
	addr := func() netip.Addr {
		if r.IntN(4) == 0 {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(r.IntN(8))})
		}
		return netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(64))})
	}
	found := 0
	for range 2000 {
		var list []Match
		for range r.IntN(12) {
			m := Match{Side: Side(r.IntN(3))}
			switch a := addr(); r.IntN(8) {
			case 0:
				m.Side = AnySide
			case 1:
				m.Set = set
			default:
				m.Prefix, _ = a.Prefix(a.BitLen() - r.IntN(9))
			}
			for range r.IntN(3) {
				first := uint16(1 + r.IntN(6))
				m.Ports = append(m.Ports, PortRange{first, first + uint16(r.IntN(3))})
			}
			if m.Side == AnySide && !m.Prefix.IsValid() && m.Set == nil && m.Ports == nil {
				m.Ports = []PortRange{{1, 1}}
			}
			list = append(list, m)
		}
		table := newMatcher(list)
		for range 20 {
			initiator, responder := addr(), netip.AddrPortFrom(addr(), uint16(1+r.IntN(9)))
			want := -1
			for i := range list {
				if matchesOne(&list[i], initiator, responder) {
					want = i
					break
				}
			}
			if got := table.first(initiator, responder); got != want {
				t.Fatalf("%v\n%s > %s: entry %d, want %d", list, initiator, responder, got, want)
			}
			if want > 0 {
				found++
			}
		}
	}
	if found < 1000 {
		t.Errorf("only %d flows fit an entry that is not the first one", found)
	}
}

func TestDecideAsksRulesOnlyAboutTheFlowsThatTheyAreFor(t *testing.T) {
	for _, tt := range []struct {
		condition string
		is, isNot func(m *flow.Meta)
	}{
		{"proto: tcp, udp_unproven: true", func(*flow.Meta) {}, func(m *flow.Meta) { m.Key.Proto = flow.UDP }},
		{"proto: udp, udp_unproven: true", func(m *flow.Meta) { m.Key.Proto = flow.UDP }, func(*flow.Meta) {}},
		{"interface: [lan, wan]", func(m *flow.Meta) { m.Source.Interface = "wan" }, func(m *flow.Meta) { m.Source.Interface = "dmz" }},
		{"interface: lan", func(m *flow.Meta) { m.Source.Interface = "lan" }, func(m *flow.Meta) { m.Source.File = "lan" }},
		{"vlan: [10-12, 20]", func(m *flow.Meta) { m.Key.VLAN = 12 }, func(m *flow.Meta) { m.Key.VLAN = 13 }},
		{"vlan: 10", func(m *flow.Meta) { m.Key.VLAN, m.Key.InnerVLAN = 10, 5 }, func(m *flow.Meta) { m.Key.VLAN, m.Key.InnerVLAN = 5, 10 }},
		{"vlan: 0", func(*flow.Meta) {}, func(m *flow.Meta) { m.Key.VLAN = 1 }},
		{"from: 100.64.0.1", func(*flow.Meta) {}, func(m *flow.Meta) { m.InitiatorIsLo = !m.InitiatorIsLo }},
		{"to: [{cidr: 100.64.0.2/32, port: 443}]", func(*flow.Meta) {}, func(m *flow.Meta) { m.InitiatorIsLo = !m.InitiatorIsLo }},
		{"from: [{port: 50000}]", func(*flow.Meta) {}, func(m *flow.Meta) { m.InitiatorIsLo = !m.InitiatorIsLo }},
		{"from: 100.64.0.0/30, to: [{port: 1-443}]", func(*flow.Meta) {}, func(m *flow.Meta) { m.InitiatorIsLo = !m.InitiatorIsLo }},
	} {
		p := mustParse(t, ruleStart+tt.condition+"}]")
		for _, is := range []bool{true, false} {
			m := meta("100.64.0.1:50000", "100.64.0.2:443")
			if is {
				tt.is(m)
			} else {
				tt.isNot(m)
			}
			want := Decision{Class: "v2ray", Likeliest: "v2ray", Confidence: 1, Reason: ReasonNoRule}
			if is {
				want = Decision{Class: "v2ray", Likeliest: "v2ray", Confidence: 1, Reason: ReasonRule, Action: flow.Drop, Rule: "rule-1", RuleClasses: "v2ray", Detected: true, Line: 1, TTL: 10 * time.Minute}
			}
			if got := p.Decide(m, flow.Result{Class: "v2ray", Confidence: 1}); got != want {
				t.Errorf("%s, is such a flow: %v: %+v, want %+v", tt.condition, is, got, want)
			}
		}
	}
}

func TestDecideByHowMuchWasCaptured(t *testing.T) {
	for _, tt := range []struct {
		complete string
		full     bool
		want     string
	}{
		{"true", true, ReasonRule}, {"true", false, ReasonPartial}, {"false", false, ReasonRule}, {"false", true, ReasonComplete},
	} {
		m := meta("100.64.0.1:50000", "100.64.0.2:443")
		m.Full = tt.full
		if d := mustParse(t, ruleStart+"complete: "+tt.complete+"}]").Decide(m, flow.Result{Class: "v2ray", Confidence: 1}); d.Reason != tt.want || !d.Detected {
			t.Errorf("complete: %s, full: %v: %+v, want %s", tt.complete, tt.full, d, tt.want)
		}
	}
}

func TestDecideLogs(t *testing.T) {
	p := mustParse(t, `rules:
  - {name: seen, class: v2ray, min_confidence: 0.9, action: log}
  - {name: cut, class: v2ray, min_confidence: 0.5, action: drop, ttl: 1m}
`)
	d := p.Decide(meta("100.64.0.1:50000", "100.64.0.2:443"), flow.Result{Class: "v2ray", Confidence: 0.95})
	want := Decision{Class: "v2ray", Likeliest: "v2ray", Confidence: 0.95, Reason: ReasonRule, Action: flow.Log, Rule: "seen", RuleClasses: "v2ray", Detected: true, Line: 2}
	if d != want || d.Treatment() != (flow.Treatment{}) {
		t.Errorf("%+v, want %+v", d, want)
	}
	if d := p.Decide(meta("100.64.0.1:50000", "100.64.0.2:443"), flow.Result{Class: "v2ray", Confidence: 0.8}); d.Action != flow.Drop || d.Rule != "cut" {
		t.Errorf("too little to be logged: %+v", d)
	}
}

// What a flow is evidence for is decided rule by rule, down to the rule that decides.
func TestDecideSaysWhatAFlowIsEvidenceFor(t *testing.T) {
	const first = "  - {name: first, class: v2ray, min_confidence: 0.9, action: drop, ttl: 1m, evidence: {flows: 3, share: 0.6, within: 1h, min_confidence: 0.5}}\n"
	const second = "  - {name: second, class: [v2ray, tor], min_confidence: 0.7, meanwhile: log, action: drop, ttl: 1h, evidence: {flows: 2, share: 0.1, within: 1m}}\n"
	for _, tt := range []struct {
		name       string
		rules      string
		confidence float64
		change     func(*flow.Meta)
		action     flow.Action
		rule       string
		reason     string
		counts     uint64
		detected   bool
	}{
		{"sure", first + second, 0.95, nil, flow.Drop, "first", ReasonRule, 1, true},
		{"enough for the second rule, which only logs", first + second, 0.8, nil, flow.Log, "second", ReasonMeanwhile, 3, true},
		{"evidence for the first alone", first + second, 0.6, nil, flow.Pass, "first", ReasonMeanwhile, 1, true},
		{"not enough", first + second, 0.4, nil, flow.Pass, "first", ReasonLowConfidence, 0, false},
		{"the other order", second + first, 0.95, nil, flow.Log, "second", ReasonMeanwhile, 1, true},
		{"sure, but one-way", first + second, 0.95, func(m *flow.Meta) { m.OneWay = true }, flow.Pass, "first", ReasonOneWay, 0, true},
		{"sure, but UDP", first + second, 0.95, func(m *flow.Meta) { m.Key.Proto = flow.UDP }, flow.Pass, "first", ReasonUDPUnproven, 0, true},
		{"from the middle", strings.Replace(first, "ttl:", "mid_stream: true, ttl:", 1), 0.95, func(m *flow.Meta) { m.MidStream = true }, flow.Drop, "first", ReasonRule, 0, true},
		{"from the middle, evidence at most", strings.Replace(first, "ttl:", "mid_stream: true, ttl:", 1), 0.6, func(m *flow.Meta) { m.MidStream = true }, flow.Pass, "first", ReasonLowConfidence, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := meta("100.64.0.1:50000", "100.64.0.2:443")
			if tt.change != nil {
				tt.change(m)
			}
			d := mustParse(t, "rules:\n"+tt.rules).Decide(m, flow.Result{Class: "v2ray", Confidence: tt.confidence})
			if d.Action != tt.action || d.Rule != tt.rule && d.Action != flow.Pass || d.Reason != tt.reason || d.Counts != tt.counts || d.Detected != tt.detected || (d.Action == flow.Drop) != (d.TTL > 0) {
				t.Errorf("%+v", d)
			}
		})
	}
}

func TestNeverActs(t *testing.T) {
	set, err := readSet("s", "s", strings.NewReader("10.0.0.0/8\n"))
	if err != nil {
		t.Fatal(err)
	}
	none, err := readSet("none", "none", strings.NewReader("# none\n"))
	if err != nil {
		t.Fatal(err)
	}
	const rule = "{class: v2ray, min_confidence: 0.5, action: drop, ttl: 1m"
	for _, tt := range []struct{ above, conditions, why string }{
		{"", "", ""},
		{"", ", proto: udp", "it is for UDP flows, and has no udp_unproven: true"},
		{"", ", proto: udp, udp_unproven: true", ""},
		{"", ", proto: udp, udp_unproven: true, provisional: true", "it is for UDP flows, whose verdicts are never provisional"},
		{"", ", from: 10.0.0.0/8, to: '2001:db8::/32'", "no flow is from an IPv4 address to an IPv6 one, or the other way round"},
		{"", ", from: 10.0.0.0/8, to: [{port: 443}]", ""},
		{"", ", except: [{cidr: 0.0.0.0/0}]", ""},
		{"", ", except: [{cidr: 0.0.0.0/0}, {cidr: '::/0', side: responder}]", "its exceptions have all of its flows"},
		{"", ", from: 10.1.0.0/16, except: [{cidr: 10.0.0.0/8}]", "its exceptions have all of its flows"},
		{"", ", from: 10.1.0.0/16, except: [{cidr: 10.0.0.0/8, side: responder}]", ""},
		{"", ", from: 10.1.0.0/16, except: [{cidr: 10.0.0.0/8, port: 443}]", ""},
		{"", ", to: [{port: 443}], except: [{port: 443}]", "its exceptions have all of its flows"},
		{"", ", from: 192.0.2.7", "the allow-list has all of its flows"},
		{rule + "}", ", from: 10.0.0.0/8", "a rule above it treats all of its flows"},
		{rule + ", from: 10.0.0.0/8}", "", ""},
		{rule + ", from: 10.0.0.0/8}", ", from: [10.1.0.0/16, 10.2.0.1]", "a rule above it treats all of its flows"},
		{rule + ", from: [{cidr: 10.0.0.0/8, port: 1}]}", ", from: 10.1.0.0/16", ""},
		{rule + ", proto: tcp}", ", proto: tcp", "a rule above it treats all of its flows"},
		{rule + ", proto: tcp}", "", ""},
		{rule + ", vlan: [1, 2]}", ", vlan: 2", "a rule above it treats all of its flows"},
		{rule + ", vlan: [1, 2]}", ", vlan: [2, 3]", ""},
		{rule + ", interface: a}", "", ""},
		{rule + ", complete: true}", ", complete: false", ""},
		{rule + "}", ", evidence: {flows: 2, share: 1, within: 1m, min_confidence: 0.4}", ""},
		{rule + ", evidence: {flows: 2, share: 1, within: 1m}}", "", "a rule above it treats all of its flows"},
	} {
		text := "allow: [{cidr: 192.0.2.0/24}]\nrules:\n"
		if tt.above != "" {
			text += "  - " + tt.above + "\n"
		}
		p := mustParse(t, text+"  - "+rule+tt.conditions+"}\n")
		if got := p.NeverActs(len(p.Rules) - 1); got != tt.why {
			t.Errorf("%s below %s: %q, want %q", tt.conditions, tt.above, got, tt.why)
		}
	}
	for _, tt := range []struct {
		rule Rule
		why  string
	}{
		{Rule{Classes: []string{"tor"}, From: []Endpoint{{Set: none}}}, "it is for flows from sets that are empty"},
		{Rule{Classes: []string{"tor"}, To: []Endpoint{{Set: none}, {Set: set}}}, ""},
		{Rule{Classes: []string{"tor"}, To: []Endpoint{{Set: none}}}, "it is for flows to sets that are empty"},
		{Rule{Classes: []string{"tor"}, To: []Endpoint{{Set: set}}, Except: []Match{{Set: set}}}, "its exceptions have all of its flows"},
		{Rule{Classes: []string{"tor"}, To: []Endpoint{{Prefix: netip.MustParsePrefix("10.2.0.0/16")}}, Except: []Match{{Set: set}}}, "its exceptions have all of its flows"},
		{Rule{Classes: []string{"tor"}, To: []Endpoint{{Set: set}}, Except: []Match{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}}}, ""},
	} {
		p := Policy{Rules: []Rule{tt.rule}}
		if got := p.NeverActs(0); got != tt.why {
			t.Errorf("%+v: %q, want %q", tt.rule, got, tt.why)
		}
	}
}
