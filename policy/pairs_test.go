// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// A rule is one for a pair only if it is one for all of its flows.
func TestRuleForPair(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"part.txt": "fd00::7\n", "whole.txt": "fd00::/64\n", "wide.txt": "fd00::/16\n10.0.0.0/8\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair4 := flow.Pair{Initiator: netip.MustParsePrefix("10.0.0.1/32"), Server: netip.MustParseAddrPort("192.0.2.7:443")}
	pair6 := flow.Pair{Initiator: netip.MustParsePrefix("fd00::/64"), Server: netip.MustParseAddrPort("[2001:db8::7]:443"), VLAN: 7}
	for _, tt := range []struct {
		name, top, rule string // that is added to the policy, and to its rule
		is4, is6        bool
	}{
		{"all", "", "", true, true},
		{"a rule that logs", "", "action: log,", false, false},
		{"initiators of a network", "", "from: ['fd00::/32', 10.0.0.0/8],", true, true},
		{"just the network", "", "from: 'fd00::/64',", false, true},
		{"some of the network", "", "from: 'fd00::/65',", false, false},
		{"all, and some of the network", "", "from: ['fd00::/32', 'fd00::7', 10.0.0.1],", true, false},
		{"initiators of a set", "", "from: set:wide,", true, true},
		{"the whole network of a set", "", "from: set:whole,", false, true},
		{"a part of it in a set", "", "from: [set:whole, set:part],", false, false},
		{"some ports of initiators", "", "from: {cidr: 10.0.0.0/8, port: 1000-2000},", false, false},
		{"a server", "", "to: {cidr: 192.0.2.0/24, port: 443},", true, false},
		{"another port of it", "", "to: {cidr: 192.0.2.0/24, port: 444},", false, false},
		{"an interface", "", "interface: eth0,", true, true},
		{"another interface", "", "interface: eth1,", false, false},
		{"a VLAN", "", "vlan: 7,", false, true},
		{"an exception for some", "", "except: [{cidr: 'fd00::7/128'}, {cidr: 10.0.0.2/32}],", true, false},
		{"an exception for all", "", "except: [{cidr: 'fd00::/16'}, {cidr: 10.0.0.1/32}],", false, false},
		{"an exception for a server", "", "except: [{cidr: '2001:db8::7/128', side: responder}],", true, false},
		{"an exception for a port", "", "except: [{port: 443}],", false, false},
		{"an allow-list for some", "allow: [{cidr: 'fd00::7/128'}]", "", true, false},
		{"an allow-list for some, as servers", "allow: [{cidr: 'fd00::7/128', side: responder}]", "", true, true},
		{"an allow-list for all", "allow: [{set: wide}]", "", false, false},
		{"a protected server", "protect: [192.0.2.0/24]", "", false, true},
	} {
		action := "action: drop, "
		if tt.name == "a rule that logs" {
			action = ""
		}
		text := "sets: {part: {file: part.txt}, whole: {file: whole.txt}, wide: {file: wide.txt}}\n" + tt.top +
			"\nrules: [{name: r, class: a, min_confidence: 0.9, " + action + tt.rule + " ttl: 1h, evidence: {flows: 3, share: 0.6, within: 1h}}]\n"
		p, err := Parse(filepath.Join(dir, "p.yaml"), []byte(text), nil)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		for pair, want := range map[flow.Pair]bool{pair4: tt.is4, pair6: tt.is6} {
			if got := p.RuleForPair("r", pair, flow.Source{Interface: "eth0"}) != nil; got != want {
				t.Errorf("%s: %s is %v, want %v", tt.name, pair, got, want)
			}
			if p.RuleForPair("s", pair, flow.Source{Interface: "eth0"}) != nil {
				t.Errorf("%s: there is no rule s", tt.name)
			}
		}
	}
}
