// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/earlydrop/earlydrop/loader/flow"
)

var comparePolicies = cmp.Options{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.IgnoreUnexported(Match{}, Rule{}, Policy{}, Set{}),
	cmpopts.IgnoreFields(Match{}, "Line"), cmpopts.IgnoreFields(Rule{}, "Line"), // TestDecisionsSayWhichLineDecided
	cmpopts.IgnoreFields(Policy{}, "Digest"), // of the text
	cmpopts.EquateEmpty(),
}

func TestParse(t *testing.T) {
	prefix := netip.MustParsePrefix
	rule := Rule{Name: "rule-1", Classes: []string{"v2ray"}, MinConfidence: 0.9, Action: flow.Drop, TTL: 10 * time.Minute}
	with := func(change func(*Rule)) *Policy {
		r := rule
		change(&r)
		return &Policy{Rules: []Rule{r}}
	}
	const ruleYAML = "rules: [{class: v2ray, min_confidence: 0.9, action: drop, ttl: 10m"
	tests := []struct {
		name, text string
		want       *Policy
	}{
		{"mode alone", "mode: enforce", &Policy{Mode: Enforce}},
		{"mode is monitor when it is left out", "rules: []", &Policy{}},
		{"quoted values and keys", "\"mode\": 'enforce'", &Policy{Mode: Enforce}},
		{"CRLF and byte order mark", "\ufeffmode: enforce\r\nrules: []\r\n", &Policy{Mode: Enforce}},
		{"document markers", "# comment\n---\nmode: enforce\n...\n", &Policy{Mode: Enforce}},
		{"JSON", `{"mode": "enforce", "allow": [{"cidr": "::/0", "port": [1, "2-3"]}]}`,
			&Policy{Mode: Enforce, Allow: []Match{{Prefix: prefix("::/0"), Ports: []PortRange{{1, 1}, {2, 3}}}}}},
		{"ports", "allow:\n- port: 443\n- port: 8000-8100\n- port: [1, 65535, '22', 5 - 9]\n", &Policy{Allow: []Match{
			{Ports: []PortRange{{443, 443}}},
			{Ports: []PortRange{{8000, 8100}}},
			{Ports: []PortRange{{1, 1}, {65535, 65535}, {22, 22}, {5, 9}}},
		}}},
		{"v4-mapped networks are IPv4", "allow: [{cidr: '::ffff:192.0.2.0/120'}, {cidr: '::ffff:0.0.0.0/96'}]",
			&Policy{Allow: []Match{{Prefix: prefix("192.0.2.0/24")}, {Prefix: prefix("0.0.0.0/0")}}}},
		{"sides", "allow:\n- {cidr: 192.0.2.0/24, side: initiator}\n- {cidr: 192.0.2.0/24, side: responder}\n- {cidr: 192.0.2.0/24, side: any}\n",
			&Policy{Allow: []Match{
				{Prefix: prefix("192.0.2.0/24"), Side: InitiatorSide},
				{Prefix: prefix("192.0.2.0/24"), Side: ResponderSide},
				{Prefix: prefix("192.0.2.0/24")},
			}}},
		{"default name", ruleYAML + "}]", &Policy{Rules: []Rule{rule}}},
		{"a name that YAML 1.1 takes for true", ruleYAML + ", name: on}]", with(func(r *Rule) { r.Name = "on" })},
		{"exceptions", ruleYAML + ", except: [{cidr: 10.0.0.0/8}, {port: 8388}]}]", with(func(r *Rule) {
			r.Except = []Match{{Prefix: prefix("10.0.0.0/8")}, {Ports: []PortRange{{8388, 8388}}}}
		})},
		{"several classes", strings.Replace(ruleYAML, "v2ray", "[v2ray, tor]", 1) + "}]", with(func(r *Rule) { r.Classes = []string{"v2ray", "tor"} })},
		{"the model's threshold of one class", strings.Replace(ruleYAML, "min_confidence: 0.9, ", "", 1) + "}]",
			with(func(r *Rule) { r.MinConfidence, r.ModelThreshold = 0.7, true })},
		{"a threshold of 0", "rules: [{class: [tor], action: drop, ttl: 10m}]",
			with(func(r *Rule) { r.Classes, r.MinConfidence, r.ModelThreshold = []string{"tor"}, 0, true })},
		{"the model's threshold of several classes", "rules: [{class: [v2ray, tor], action: drop, ttl: 10m}]",
			with(func(r *Rule) { r.Classes, r.MinConfidence, r.ModelThreshold = []string{"v2ray", "tor"}, 0.95, true })},
		{"unknown", "rules: [{class: unknown, action: drop, ttl: 10m}]",
			with(func(r *Rule) { r.Classes, r.MinConfidence = []string{"unknown"}, 0 })},
		{"unknown in a list", "rules: [{class: [unknown], action: drop, ttl: 10m}]",
			with(func(r *Rule) { r.Classes, r.MinConfidence = []string{"unknown"}, 0 })},
		{"confidence 1", strings.Replace(ruleYAML, "0.9", "1", 1) + "}]", with(func(r *Rule) { r.MinConfidence = 1 })},
		{"confidence .5", strings.Replace(ruleYAML, "0.9", ".5", 1) + "}]", with(func(r *Rule) { r.MinConfidence = 0.5 })},
		{"confidence with exponent", strings.Replace(ruleYAML, "0.9", "9.0e-1", 1) + "}]", with(func(*Rule) {})},
		{"longest ttl", strings.Replace(ruleYAML, "10m", "8760h", 1) + "}]", with(func(r *Rule) { r.TTL = MaxTTL })},
		{"shortest ttl", strings.Replace(ruleYAML, "10m", "1000ms", 1) + "}]", with(func(r *Rule) { r.TTL = MinTTL })},
		{"ttl in days and hours", strings.Replace(ruleYAML, "10m", "1d12h", 1) + "}]", with(func(r *Rule) { r.TTL = 36 * time.Hour })},
		{"mid-stream flows too", ruleYAML + ", mid_stream: true}]", with(func(r *Rule) { r.MidStream = true })},
		{"mid-stream flows not", ruleYAML + ", mid_stream: false}]", with(func(*Rule) {})},
		{"one-way flows too", ruleYAML + ", one_way: true}]", with(func(r *Rule) { r.OneWay = true })},
		{"udp flows too", ruleYAML + ", udp_unproven: true}]", with(func(r *Rule) { r.UDPUnproven = true })},
		{"udp flows not", ruleYAML + ", udp_unproven: false, mid_stream: true}]", with(func(r *Rule) { r.MidStream = true })},
		{"a signal", ruleYAML + ", signal: decoy}]", with(func(r *Rule) { r.Signals = flow.SignalDecoy })},
		{"signals", ruleYAML + ", signal: [gap, decoy]}]", with(func(r *Rule) { r.Signals = flow.SignalDecoy | flow.SignalGap })},
		{"mixed ttl", strings.Replace(ruleYAML, "10m", "1h30m", 1) + "}]", with(func(r *Rule) { r.TTL = 90 * time.Minute })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse("p.yaml", []byte(tt.text), model)
			if err != nil {
				t.Fatal(err)
			}
			if tt.want.Limits == (Limits{}) && !strings.Contains(tt.text, "limits") {
				tt.want.Limits = DefaultLimits
			}
			if diff := cmp.Diff(tt.want, got, comparePolicies); diff != "" {
				t.Errorf("policy (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	// A rule whose lines can be replaced; class is in line 3.
	rule := func(old, new string) string {
		const text = "rules:\n  - name: a\n    class: v2ray\n    min_confidence: 0.9\n    action: drop\n    ttl: 10m\n"
		if !strings.Contains(text, old) {
			t.Fatalf("%q is not in the rule", old)
		}
		return strings.Replace(text, old, new, 1)
	}
	const known = "known are name, class, min_confidence, proto, from, to, interface, vlan, action, rate, ttl, scope, evidence, meanwhile, mid_stream, udp_unproven, one_way, provisional, complete, signal, except"
	const confidence = "write a number above 0 and at most 1, such as 0.9"
	const port = "write 1 to 65535, or a range such as 8000-8100"
	tests := []struct {
		name, text, want string
	}{
		// The file as a whole.
		{"empty", "", `1:1: file holds no policy; write at least "mode: monitor"`},
		{"comment only", "# nothing\n\n", `1:1: file holds no policy; write at least "mode: monitor"`},
		{"markers only", "---\n---\n", `1:1: file holds no policy; write at least "mode: monitor"`},
		{"too large", strings.Repeat("# comment\n", 30000), "1:1: file is larger than 256 KiB; put long lists of networks into files of their own (sets)"},
		{"two documents", "mode: monitor\n---\nmode: enforce\n", `3:1: a second document begins here; a policy file holds one, remove the "---"`},
		{"text", "monitor", "1:1: the policy has to be a mapping with the keys mode, one_hook, limits, protect, sets, allow, rules, but is text"},
		{"list", "- mode: monitor", "1:1: the policy has to be a mapping with the keys mode, one_hook, limits, protect, sets, allow, rules, but is a list"},
		{"not UTF-8", "mode: monitor\n# caf\xe9\n", "2:6: byte 0xe9 is not UTF-8; save the file as UTF-8"},
		{"NUL byte", "mode: mon\x00itor", "1:10: control character U+0000; remove it"},
		{"escape sequence", "mode: \x1b[31m", "1:7: control character U+001B; remove it"},
		{"line separator", "mode: a\u2028b", "1:8: control character U+2028; remove it"},
		{"lone carriage return", "mode: enforce\rrules: []", "1:14: control character U+000D; remove it"},
		{"gzip", "\x1f\x8b\x08\x00", "1:1: control character U+001F; remove it"},

		// Syntax.
		{"open bracket", "mode: monitor\nrules:\n  - class: [a, b\n    ttl: 10m\n", "4:5: not valid YAML: ',' or ']' must be specified"},
		{"tab", "mode: monitor\n\trules: []\n", "2:1: not valid YAML: found character '\t' that cannot start any token"},
		{"indentation", "rules:\n  - class: a\n   ttl: 10m\n", "3:4: not valid YAML: value is not allowed in this context"},
		{"open quote", "mode: \"monitor\n", "1:7: not valid YAML: could not find end character of double-quoted text"},
		{"two colons", "mode: a: b\n", "1:7: not valid YAML: mapping value is not allowed in this context"},
		{"no colon", "mode: monitor\nallow\nrules: []\n", "2:1: not valid YAML: non-map value is specified"},
		{"anchor", "mode: &m monitor", "1:7: anchors, aliases and merge keys are not part of a policy file; write the value out"},
		{"alias", "mode: *m", "1:7: anchors, aliases and merge keys are not part of a policy file; write the value out"},
		{"merge key", "mode: monitor\n<<: {mode: enforce}", "2:1: anchors, aliases and merge keys are not part of a policy file; write the value out"},
		{"doubling aliases", "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "1:4: anchors, aliases and merge keys are not part of a policy file; write the value out"},
		{"tag", "mode: !!str monitor", `1:7: tags are not part of a policy file; remove "!!str"`},
		{"directive", "%YAML 1.2\n---\nmode: monitor", "1:1: directives are not part of a policy file; remove the line"},
		{"question mark key", "? mode\n: monitor", `1:1: "?" keys are not part of a policy file; write "key: value"`},
		{"deep brackets", "mode: " + strings.Repeat("[", 100000), "1:23: nested too deep; a policy file nests no deeper than 16"},
		{"deep braces", strings.Repeat("{a: ", 60000), "1:65: nested too deep; a policy file nests no deeper than 16"},
		{"deep dashes", strings.Repeat("- ", 60000), "1:33: nested too deep; a policy file nests no deeper than 16"},
		{"many keys", strings.Repeat("a:\n", 80000), "65:2: too many keys in a row; a policy has seven keys, and a rule some twenty"},
		{"many keys in braces", "{" + strings.Repeat("a: 1,", 50000), "1:323: too many keys in a row; a policy has seven keys, and a rule some twenty"},

		// Keys.
		{"unknown key", "mode: monitor\nlog: true\n", `2:1: unknown key "log" in the policy; known are mode, one_hook, limits, protect, sets, allow, rules`},
		{"mistyped key", "mode: monitor\nrule: []\n", `2:1: unknown key "rule" in the policy, did you mean rules?; known are mode, one_hook, limits, protect, sets, allow, rules`},
		{"key in the wrong case", "Mode: monitor\n", `1:1: unknown key "Mode" in the policy, did you mean mode?; known are mode, one_hook, limits, protect, sets, allow, rules`},
		{"mistyped key of a rule", rule("min_confidence", "min-confidence"), `4:5: unknown key "min-confidence" in rule 1, did you mean min_confidence?; ` + known},
		{"mistyped key behind others", rule("ttl", "tll"), `6:5: unknown key "tll" in rule 1, did you mean ttl?; ` + known},
		{"mistyped key of an entry", "allow:\n  - cdir: 10.0.0.0/8\n", `2:5: unknown key "cdir" in an entry of allow, did you mean cidr?; known are cidr, set, port, side, exempt`},
		{"mistyped key of an exception", rule("ttl: 10m", "ttl: 10m\n    except:\n      - ports: 1"), `8:9: unknown key "ports" in an entry of except, did you mean port?; known are cidr, set, port, side`},
		{"duplicate key", "mode: monitor\nrules: []\nmode: enforce\n", `3:1: key "mode" is given twice in the policy, first in line 1; keep one of them`},
		{"duplicate key, quoted", "mode: monitor\n'mode': enforce\n", `2:1: key "mode" is given twice in the policy, first in line 1; keep one of them`},
		{"duplicate key of a rule", rule("ttl: 10m", "ttl: 10m\n    class: tor"), `7:5: key "class" is given twice in rule 1, first in line 3; keep one of them`},
		{"duplicate key of an entry", "allow: [{port: 1, port: 2}]", `1:19: key "port" is given twice in an entry of allow, first in line 1; keep one of them`},
		{"true as key", "true: monitor", `1:1: key "true" in the policy has to be one of mode, one_hook, limits, protect, sets, allow, rules`},
		{"number as key", "1: monitor", `1:1: key "1" in the policy has to be one of mode, one_hook, limits, protect, sets, allow, rules`},
		{"long key", strings.Repeat("k", 100) + ": 1", `1:1: unknown key "` + strings.Repeat("k", 48) + `..." in the policy; known are mode, one_hook, limits, protect, sets, allow, rules`},
		{"columns count characters", "{\"ééé\": 1}", `1:2: unknown key "ééé" in the policy; known are mode, one_hook, limits, protect, sets, allow, rules`},
		{"columns count characters before", "allow: [{cidr: \"é\"}, 1]", `1:16: cidr "é" is not a network; write one such as 192.0.2.0/24 or 2001:db8::/32`},

		// Mode.
		{"unknown mode", "mode: block", `1:7: unknown mode "block"; write monitor or enforce`},
		{"mistyped mode", "mode: enforcing", `1:7: unknown mode "enforcing", did you mean enforce?; write monitor or enforce`},
		{"mode off", "mode: off", `1:7: unknown mode "off"; write monitor or enforce`},
		{"mode true", "mode: true", "1:7: mode has to be text such as monitor, but is true or false"},
		{"mode missing", "mode:\nrules: []", "1:1: mode has to be text such as monitor, but is nothing"},
		{"mode list", "mode: [monitor]", "1:7: mode has to be text such as monitor, but is a list"},
		{"mode mapping", "mode:\n  enforce: 1", "2:3: mode has to be text such as monitor, but is a mapping"},
		{"mode block", "mode: |\n  monitor", "1:7: mode has to be text such as monitor, but is a block of text"},

		// Allow-list.
		{"allow is text", "allow: 10.0.0.0/8", `1:8: allow has to be a list, but is text; begin each of its entries with "- "`},
		{"allow is a mapping", "allow:\n  cidr: 10.0.0.0/8", `2:3: allow has to be a list, but is a mapping; begin each of its entries with "- "`},
		{"allow is empty", "allow:\nmode: monitor", `1:1: allow has to be a list, but is nothing; begin each of its entries with "- "`},
		{"entry is text", "allow:\n  - 10.0.0.0/8", "2:5: an entry of allow has to be a mapping with the keys cidr, set, port, side, exempt, but is text"},
		{"entry is empty", "allow: [{}]", "1:9: an entry of allow needs a cidr, a set or a port"},
		{"side alone", "allow: [{side: any}]", "1:9: an entry of allow needs a cidr, a set or a port"},
		{"side without cidr", "allow: [{port: 1, side: any}]", "1:19: side says which address the cidr is compared with, but there is no cidr; add one or remove side"},
		{"unknown side", "allow: [{cidr: 10.0.0.0/8, side: server}]", `1:34: unknown side "server"; write initiator, responder or any`},
		{"mistyped side", "allow: [{cidr: 10.0.0.0/8, side: responser}]", `1:34: unknown side "responser", did you mean responder?; write initiator, responder or any`},
		{"side number", "allow: [{cidr: 10.0.0.0/8, side: 1}]", "1:34: side has to be text such as responder, but is a number"},
		{"host bits", "allow:\n  - cidr: 192.0.2.7/24\n", `2:11: cidr "192.0.2.7/24" has host bits set; the network is 192.0.2.0/24`},
		{"IPv6 host bits", "allow:\n  - cidr: 2001:db8::1/32\n", `2:11: cidr "2001:db8::1/32" has host bits set; the network is 2001:db8::/32`},
		{"v4-mapped host bits", "allow:\n  - cidr: '::ffff:192.0.2.1/120'\n", `2:11: cidr "::ffff:192.0.2.1/120" has host bits set; the network is ::ffff:192.0.2.0/120`},
		{"no prefix length", "allow: [{cidr: 192.0.2.7}]", `1:16: cidr "192.0.2.7" has no prefix length; for this one address write 192.0.2.7/32`},
		{"no IPv6 prefix length", "allow: [{cidr: '2001:db8::1'}]", `1:16: cidr "2001:db8::1" has no prefix length; for this one address write 2001:db8::1/128`},
		{"prefix too long", "allow: [{cidr: 10.0.0.0/33}]", `1:16: cidr "10.0.0.0/33" is not a network; write one such as 192.0.2.0/24 or 2001:db8::/32`},
		{"zone", "allow: [{cidr: 'fe80::1%eth0/64'}]", `1:16: cidr "fe80::1%eth0/64" is not a network; write one such as 192.0.2.0/24 or 2001:db8::/32`},
		{"host name", "allow: [{cidr: example.com}]", `1:16: cidr "example.com" is not a network; write one such as 192.0.2.0/24 or 2001:db8::/32`},
		{"cidr number", "allow: [{cidr: 10}]", "1:16: cidr has to be text such as 192.0.2.0/24, but is a number"},
		{"cidr list", "allow: [{cidr: [10.0.0.0/8]}]", "1:16: cidr has to be text such as 192.0.2.0/24, but is a list"},
		{"port 0", "allow: [{port: 0}]", `1:16: port "0" is not a port; ` + port},
		{"port 65536", "allow: [{port: 65536}]", `1:16: port "65536" is not a port; ` + port},
		{"huge port", "allow: [{port: 123456789012345678901234567890}]", `1:16: port "123456789012345678901234567890" is not a port; ` + port},
		{"negative port", "allow: [{port: -1}]", `1:16: port "-1" is not a port; ` + port},
		{"octal port", "allow: [{port: 0700}]", `1:16: port "0700" is not a port; ` + port},
		{"hexadecimal port", "allow: [{port: 0x50}]", `1:16: port "0x50" is not a port; ` + port},
		{"port with underscore", "allow: [{port: 1_000}]", `1:16: port "1_000" is not a port; ` + port},
		{"sexagesimal port", "allow: [{port: '1:30'}]", `1:16: port "1:30" is not a port; ` + port},
		{"fraction", "allow: [{port: 80.5}]", `1:16: port "80.5" is not a port; ` + port},
		{"service name", "allow: [{port: https}]", `1:16: port "https" is not a port; ` + port},
		{"open range", "allow: [{port: 8000-}]", `1:16: port "8000-" is not a port; ` + port},
		{"range of three", "allow: [{port: 1-2-3}]", `1:16: port "1-2-3" is not a port; ` + port},
		{"backward range", "allow: [{port: 8100-8000}]", `1:16: port range "8100-8000" is backwards; write 8000-8100`},
		{"second port of a list", "allow:\n  - port:\n    - 1\n    - x\n", `4:7: port "x" is not a port; ` + port},
		{"empty list of ports", "allow: [{port: []}]", "1:16: port is an empty list; name at least one"},
		{"no port", "allow:\n  - port:\n", "2:5: port has to be a number, a range such as 8000-8100 or a list of them, but is nothing"},
		{"port true", "allow: [{port: yes}, {port: true}]", `1:16: port "yes" is not a port; ` + port},
		{"port list in a list", "allow: [{port: [[1]]}]", "1:17: port has to be a number, a range such as 8000-8100 or a list of them, but is a list"},

		// Rules.
		{"rules are a mapping", "rules:\n  class: v2ray", `2:3: rules has to be a list, but is a mapping; begin each of its entries with "- "`},
		{"rule is text", "rules:\n  - drop v2ray", "2:5: rule 1 has to be a mapping with the keys name, class, min_confidence, proto, from, to, interface, vlan, action, rate, ttl, scope, evidence, meanwhile, mid_stream, udp_unproven, one_way, provisional, complete, signal, except, but is text"},
		{"rule is nothing", "rules:\n  -\n", "2:5: rule 1 has to be a mapping with the keys name, class, min_confidence, proto, from, to, interface, vlan, action, rate, ttl, scope, evidence, meanwhile, mid_stream, udp_unproven, one_way, provisional, complete, signal, except, but is nothing"},
		{"no class", rule("    class: v2ray\n", ""), `2:5: rule a has no class; add one, for example "class: shadowsocks"`},
		{"no action", rule("    action: drop\n", ""), `2:5: rule a has no action; add one, for example "action: drop"`},
		{"no ttl", rule("    ttl: 10m\n", ""), `2:5: rule a has no ttl; add one, for example "ttl: 10m"`},
		{"unnamed second rule", rule("ttl: 10m\n", "ttl: 10m\n  - class: tor\n"), `7:5: rule 2 has no action; add one, for example "action: drop"`},
		{"name is taken", "rules:\n" + strings.Repeat("  - {name: b, class: tor, min_confidence: 1, action: drop, ttl: 1m}\n", 2),
			`3:12: the name "b" is already that of the rule in line 2; give this rule another name`},
		{"default name is taken", "rules:\n  - {name: rule-2, class: tor, min_confidence: 1, action: drop, ttl: 1m}\n  - {class: tor, min_confidence: 1, action: drop, ttl: 1m}\n",
			`3:5: the name "rule-2" is already that of the rule in line 2; give this rule another name`},
		{"name with a space", rule("name: a", "name: a b"), `2:11: name "a b" has to be 1 to 64 letters, digits, ".", "_" or "-", the first a letter or digit`},
		{"empty name", rule("name: a", "name: ''"), `2:11: name "" has to be 1 to 64 letters, digits, ".", "_" or "-", the first a letter or digit`},
		{"name number", rule("name: a", "name: 5"), "2:11: name has to be text such as tunnels, but is a number"},
		{"unknown class", rule("v2ray", "http"), `3:12: the model has no class "http"; it has shadowsocks, v2ray, tor`},
		{"mistyped class", rule("v2ray", "v2rya"), `3:12: the model has no class "v2rya", did you mean v2ray?; it has shadowsocks, v2ray, tor`},
		{"mistyped class in a list", rule("v2ray", "[v2ray, shadowsock]"), `3:20: the model has no class "shadowsock", did you mean shadowsocks?; it has shadowsocks, v2ray, tor`},
		{"class in the wrong case", rule("v2ray", "V2Ray"), `3:12: the model has no class "V2Ray", did you mean v2ray?; it has shadowsocks, v2ray, tor`},
		{"background", rule("v2ray", "[v2ray, background]"), `3:20: class "background" is everything that is not a wanted class and can't be named in a rule; remove it`},
		{"unknown beside a class", rule("v2ray", "[v2ray, unknown]"), `3:20: class "unknown" is the outcome when no class is likely enough and can't be named beside others; give it a rule of its own`},
		{"unknown twice", rule("v2ray", "[unknown, unknown]"), `3:13: class "unknown" is the outcome when no class is likely enough and can't be named beside others; give it a rule of its own`},
		{"unknown in the wrong case", rule("v2ray", "Unknown"), `3:12: the model has no class "Unknown", did you mean unknown?; it has shadowsocks, v2ray, tor`},
		{"unknown with a confidence", rule("v2ray", "unknown"), "4:5: class \"unknown\" is the outcome when no class is likely enough, so there is no confidence in it; remove min_confidence"},
		{"class twice", rule("v2ray", "[v2ray, tor, v2ray]"), `3:25: class "v2ray" is named twice; keep one of them`},
		{"empty list of classes", rule("v2ray", "[]"), "3:12: class is an empty list; name at least one"},
		{"empty class", rule("v2ray", "''"), "3:12: class is empty; name a class of the model"},
		{"no value of class", rule("v2ray", ""), "3:5: class has to be text such as shadowsocks, but is nothing"},
		{"class number", rule("v2ray", "2"), "3:12: class has to be text such as shadowsocks, but is a number"},
		{"class mapping", rule("v2ray", "{v2ray: 1}"), "3:12: class has to be text such as shadowsocks, but is a mapping"},
		{"confidence 0", rule("0.9", "0"), `4:21: min_confidence "0" is out of range; ` + confidence},
		{"confidence above 1", rule("0.9", "1.01"), `4:21: min_confidence "1.01" is out of range; ` + confidence},
		{"confidence in percent", rule("0.9", "90"), `4:21: min_confidence "90" is out of range; ` + confidence},
		{"confidence with percent sign", rule("0.9", "90%"), "4:21: min_confidence has to be a number such as 0.9, but is text"},
		{"negative confidence", rule("0.9", "-0.5"), `4:21: min_confidence "-0.5" is out of range; ` + confidence},
		{"tiny confidence", rule("0.9", "1.0e-999"), `4:21: min_confidence "1.0e-999" is out of range; ` + confidence},
		{"confidence not a number", rule("0.9", ".nan"), `4:21: min_confidence ".nan" is out of range; ` + confidence},
		{"infinite confidence", rule("0.9", ".inf"), `4:21: min_confidence ".inf" is out of range; ` + confidence},
		{"hexadecimal confidence", rule("0.9", "0x1"), `4:21: min_confidence "0x1" is out of range; ` + confidence},
		{"quoted confidence", rule("0.9", "'0.9'"), "4:21: min_confidence has to be a number such as 0.9, but is text"},
		{"no value of confidence", rule("0.9", ""), "4:5: min_confidence has to be a number such as 0.9, but is nothing"},
		{"unknown action", rule("drop", "reject"), `5:13: unknown action "reject", did you mean reset?; write drop, reset, limit or log (what no rule treats passes)`},
		{"mistyped action", rule("drop", "dorp"), `5:13: unknown action "dorp", did you mean drop?; write drop, reset, limit or log (what no rule treats passes)`},
		{"action pass", rule("drop", "pass"), `5:13: unknown action "pass"; write drop, reset, limit or log (what no rule treats passes)`},
		{"action true", rule("drop", "true"), "5:13: action has to be text such as drop, but is true or false"},
		{"ttl without unit", rule("10m", "600"), `6:10: ttl "600" has no unit; write 600s, 600m, 600h or 600d`},
		{"ttl in quotes without unit", rule("10m", `"600"`), `6:10: ttl "600" has no unit; write 600s, 600m, 600h or 600d`},
		{"ttl in years", rule("10m", "1y"), `6:10: ttl "1y" is not a duration; write one such as 30s, 10m, 1h30m, 7d or 2w`},
		{"ttl in too many days", rule("10m", "366d"), `6:10: ttl "366d" is out of range; write at least 1s and at most 365d (a year)`},
		{"ttl word", rule("10m", "forever"), `6:10: ttl "forever" is not a duration; write one such as 30s, 10m, 1h30m, 7d or 2w`},
		{"ttl with a space", rule("10m", "10 m"), `6:10: ttl "10 m" is not a duration; write one such as 30s, 10m, 1h30m, 7d or 2w`},
		{"ttl too short", rule("10m", "999ms"), `6:10: ttl "999ms" is out of range; write at least 1s and at most 365d (a year)`},
		{"ttl too long", rule("10m", "8761h"), `6:10: ttl "8761h" is out of range; write at least 1s and at most 365d (a year)`},
		{"negative ttl", rule("10m", "-10m"), `6:10: ttl "-10m" is out of range; write at least 1s and at most 365d (a year)`},
		{"ttl fraction", rule("10m", "1.5"), "6:10: ttl has to be text such as 10m, but is a number"},
		{"mid_stream yes", rule("ttl: 10m", "ttl: 10m\n    mid_stream: yes"), `7:17: mid_stream has to be true or false, but is "yes"`},
		{"mid_stream quoted", rule("ttl: 10m", "ttl: 10m\n    mid_stream: 'true'"), `7:17: mid_stream has to be true or false, but is "true"; remove the quotes`},
		{"mid_stream in the wrong case", rule("ttl: 10m", "ttl: 10m\n    mid_stream: True"), `7:17: mid_stream has to be true or false, but is "True"`},
		{"mid_stream 1", rule("ttl: 10m", "ttl: 10m\n    mid_stream: 1"), "7:17: mid_stream has to be true or false, but is a number"},
		{"no value of mid_stream", rule("ttl: 10m", "ttl: 10m\n    mid_stream:"), "7:5: mid_stream has to be true or false, but is nothing"},
		{"mid_stream list", rule("ttl: 10m", "ttl: 10m\n    mid_stream: [true]"), "7:17: mid_stream has to be true or false, but is a list"},
		{"mistyped mid_stream", rule("ttl: 10m", "ttl: 10m\n    midstream: true"), `7:5: unknown key "midstream" in rule 1, did you mean mid_stream?; ` + known},
		{"mid_stream beside the rules", "mid_stream: true\nmode: monitor\n", `1:1: unknown key "mid_stream" in the policy; known are mode, one_hook, limits, protect, sets, allow, rules`},
		{"mistyped signal", rule("ttl: 10m", "ttl: 10m\n    signal: decoi"), `7:13: there is no signal "decoi", did you mean decoy?; there are decoy, ttl, gap, tiny, fragmented, slow, reset_then_data, fin_then_data, syn_data, early_server_data, overlap, urgent, out_of_place, unreadable, mptcp_join`},
		{"unknown signal in a list", rule("ttl: 10m", "ttl: 10m\n    signal: [gap, quack]"), `7:19: there is no signal "quack"; there are decoy, ttl, gap, tiny, fragmented, slow, reset_then_data, fin_then_data, syn_data, early_server_data, overlap, urgent, out_of_place, unreadable, mptcp_join`},
		{"signal twice", rule("ttl: 10m", "ttl: 10m\n    signal: [gap, gap]"), `7:19: signal "gap" is named twice; keep one of them`},
		{"no signal", rule("ttl: 10m", "ttl: 10m\n    signal: []"), `7:13: signal is an empty list; name at least one`},
		{"signal is a number", rule("ttl: 10m", "ttl: 10m\n    signal: 1"), `7:13: signal has to be text such as decoy, but is a number`},
		{"one_way yes", rule("ttl: 10m", "ttl: 10m\n    one_way: yes"), `7:14: one_way has to be true or false, but is "yes"`},
		{"one_hook yes", "one_hook: yes\nmode: monitor\n", `1:11: one_hook has to be true or false, but is "yes"`},
		{"one_hook in a rule", rule("ttl: 10m", "ttl: 10m\n    one_hook: true"), `7:5: unknown key "one_hook" in rule 1; ` + known},
		{"udp_unproven yes", rule("ttl: 10m", "ttl: 10m\n    udp_unproven: yes"), `7:19: udp_unproven has to be true or false, but is "yes"`},
		{"udp_unproven 1", rule("ttl: 10m", "ttl: 10m\n    udp_unproven: 1"), "7:19: udp_unproven has to be true or false, but is a number"},
		{"no value of udp_unproven", rule("ttl: 10m", "ttl: 10m\n    udp_unproven:"), "7:5: udp_unproven has to be true or false, but is nothing"},
		{"mistyped udp_unproven", rule("ttl: 10m", "ttl: 10m\n    udp-unproven: true"), `7:5: unknown key "udp-unproven" in rule 1, did you mean udp_unproven?; ` + known},
		{"exceptions are a mapping", rule("ttl: 10m", "ttl: 10m\n    except: {port: 1}"), `7:13: except has to be a list, but is a mapping; begin each of its entries with "- "`},
		{"exception with host bits", rule("ttl: 10m", "ttl: 10m\n    except:\n      - cidr: 10.1.0.0/8"), `8:15: cidr "10.1.0.0/8" has host bits set; the network is 10.0.0.0/8`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Parse("p.yaml", []byte(tt.text), model)
			if err == nil {
				t.Fatalf("accepted as %+v", p)
			}
			// A tab in a message of the library becomes a space.
			if want := "p.yaml:" + strings.ReplaceAll(tt.want, "\t", " "); err.Error() != want {
				t.Errorf("error:\n got %s\nwant %s", err, want)
			}
			var e *Error
			if !errors.As(err, &e) || e.File != "p.yaml" || e.Line < 1 || e.Column < 1 || e.Msg == "" {
				t.Errorf("error is %#v", err)
			}
			if p != nil {
				t.Error("a policy came with the error")
			}
		})
	}
}

func TestParseAcceptsManyRules(t *testing.T) {
	var text strings.Builder
	text.WriteString("allow:\n" + strings.Repeat("  - cidr: 192.0.2.0/24\n    side: responder\n    port: 443\n", 1000) + "rules:\n")
	for range 1000 {
		text.WriteString("  - class: v2ray\n    min_confidence: 0.9\n    action: drop\n    ttl: 10m\n    except:\n      - port: 1\n        cidr: 10.0.0.0/8\n")
	}
	p, err := Parse("p.yaml", []byte(text.String()), model)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Allow) != 1000 || len(p.Rules) != 1000 || p.Rules[999].Name != "rule-1000" || len(p.Rules[999].Except) != 1 {
		t.Errorf("%d allowed, %d rules", len(p.Allow), len(p.Rules))
	}
}

func TestParseWithoutModelAcceptsAnyClassButBackground(t *testing.T) {
	text := "rules: [{class: anything, min_confidence: 0.5, action: drop, ttl: 1m}]"
	if _, err := Parse("p.yaml", []byte(text), nil); err != nil {
		t.Error(err)
	}
	if _, err := Parse("p.yaml", []byte(strings.Replace(text, "anything", "background", 1)), nil); err == nil {
		t.Error("background was accepted")
	}
	// A model without wanted classes is not the same as no model.
	_, err := Parse("p.yaml", []byte(text), &Model{Labels: []string{"background"}})
	if want := `p.yaml:1:17: the model has no class "anything"; it has none`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestParseWithoutModelNeedsAConfidence(t *testing.T) {
	for text, want := range map[string]string{
		"rules: [{class: unknown, action: drop, ttl: 1m}]":                       "",
		"rules: [{class: a, min_confidence: 0.5, action: drop, ttl: 1m}]":        "",
		"rules: [{class: a, action: drop, ttl: 1m}]":                             `p.yaml:1:9: rule 1 has no min_confidence, and no model is known whose threshold would be used; add one, for example "min_confidence: 0.9"`,
		"rules: [{class: [a, b], name: two, action: drop, ttl: 1m}]":             `p.yaml:1:9: rule two has no min_confidence, and no model is known whose threshold would be used; add one, for example "min_confidence: 0.9"`,
		"rules: [{class: unknown, min_confidence: 1, action: drop, ttl: 1m}]":    "p.yaml:1:26: class \"unknown\" is the outcome when no class is likely enough, so there is no confidence in it; remove min_confidence",
		"rules: [{class: unknown, min_confidence: null, action: drop, ttl: 1m}]": "p.yaml:1:26: class \"unknown\" is the outcome when no class is likely enough, so there is no confidence in it; remove min_confidence",
	} {
		_, err := Parse("p.yaml", []byte(text), nil)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func TestParseRefusesUnknownOfAModelThatAlwaysDecides(t *testing.T) {
	decided := *model
	decided.Unknown = false
	_, err := Parse("p.yaml", []byte("rules: [{class: unknown, action: drop, ttl: 1m}]"), &decided)
	const want = `p.yaml:1:17: class "unknown" never comes: this model always decides for one of its classes, which are shadowsocks, v2ray, tor; remove the rule`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestErrorIsOneLineWhateverTheFileIsCalled(t *testing.T) {
	_, err := Parse("a\nb.yaml", nil, nil)
	if err == nil || strings.ContainsAny(err.Error(), "\r\n") {
		t.Errorf("got %q", err)
	}
}

func TestParseMayRunConcurrently(t *testing.T) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if p, err := Parse("test.yaml", []byte(decideYAML), model); err != nil || len(p.Rules) == 0 {
					t.Errorf("got %v, %v", p, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	good, bad, big := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml"), filepath.Join(dir, "big.yaml")
	for path, text := range map[string]string{
		good: "mode: enforce\n",
		bad:  "mode: monitor\n  x\n y: [",
		big:  strings.Repeat("#", MaxFileBytes+1),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Load(good, model)
	if err != nil || p.Mode != Enforce {
		t.Errorf("Load = %+v, %v", p, err)
	}
	for _, path := range []string{bad, big} {
		var e *Error
		if _, err := Load(path, model); !errors.As(err, &e) || e.File != path {
			t.Errorf("Load(%s) = %v, want an *Error that names the file", path, err)
		}
	}
	if _, err := Load(filepath.Join(dir, "none.yaml"), model); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := Load(dir, model); err == nil || !strings.HasPrefix(err.Error(), "read policy: ") {
		t.Errorf("folder: %v", err)
	}
}

func TestDefault(t *testing.T) {
	p, err := Default(model)
	if err != nil {
		t.Fatal(err)
	}
	if p.Mode != Monitor {
		t.Errorf("mode %s; the default must not drop", p.Mode)
	}
	// The model's tor is not among them: the built-in policy is about what it names.
	complete := true
	want := []Rule{{Name: "tunnels", Classes: []string{"shadowsocks", "v2ray"}, MinConfidence: 0.9, Action: flow.Drop, TTL: 10 * time.Minute, Proto: flow.TCP, Complete: &complete,
		Evidence: &Evidence{Flows: 3, Share: 0.6, Within: time.Hour, MinConfidence: 0.9}, Meanwhile: flow.Drop}}
	if diff := cmp.Diff(want, p.Rules, comparePolicies); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	for _, addr := range []string{"127.0.0.1", "::1", "169.254.1.1", "fe80::1", "224.0.0.251", "ff02::fb", "255.255.255.255"} {
		if !slices.ContainsFunc(p.Allow, func(m Match) bool { return m.Prefix.Contains(netip.MustParseAddr(addr)) }) {
			t.Errorf("%s is not on the allow-list", addr)
		}
	}
	for _, addr := range []string{"192.0.2.1", "10.0.0.1", "2001:db8::1", "fd00::1"} {
		if slices.ContainsFunc(p.Allow, func(m Match) bool { return m.Prefix.Contains(netip.MustParseAddr(addr)) }) {
			t.Errorf("%s is on the allow-list", addr)
		}
	}
	// It names what the model has, and never what somebody may log in with.
	p, err = Default(&Model{Labels: []string{"background", "ssh", "obfs4", "wireguard"}, Thresholds: map[string]float64{"obfs4": 0.6}, AnyThreshold: 0.9})
	if err != nil {
		t.Fatal(err)
	}
	if r := p.Rules[0]; !slices.Equal(r.Classes, []string{"obfs4"}) || r.MinConfidence != 0.9 {
		t.Errorf("rule for a model that has obfs4: %+v", r)
	}
	var e *Error
	_, err = Default(&Model{Labels: []string{"background", "ssh"}})
	const none = "default.yaml:1:1: the built-in policy is about shadowsocks, v2ray, vless, obfs4, and the model has none of them (it has ssh); write a policy of your own"
	if !errors.As(err, &e) || err.Error() != none {
		t.Errorf("a model with none of the classes: %v", err)
	}
	// What the comments offer has to be right as well, each by itself.
	text := DefaultYAML(labels)
	without := strings.NewReplacer("    proto: tcp\n", "", "    evidence: {flows: 3, share: 0.6, within: 1h}\n", "")
	for _, tt := range []struct {
		comment string
		holds   func(*Policy) bool
	}{
		{"one_hook: true", func(p *Policy) bool { return p.OneHook }},
		{"limits: {flows: 200/min, share: 0.25}", func(p *Policy) bool { return p.Limits == DefaultLimits }},
		{"protect: [192.0.2.0/24]", func(p *Policy) bool { return len(p.Protect) == 1 }},
		{"- cidr: 192.0.2.0/24\n  #   side: initiator\n  #   port: 22", func(p *Policy) bool {
			return p.Allow[7].Side == InitiatorSide && len(p.Allow[7].Ports) == 1
		}},
		{"from: [10.0.0.0/8, 192.0.2.7]", func(p *Policy) bool { return len(p.Rules[0].From) == 2 }},
		{"to: [{cidr: 198.51.100.0/24, port: 443}, {port: 8000-8100}]", func(p *Policy) bool { return len(p.Rules[0].To) == 2 }},
		{"interface: [lan0]", func(p *Policy) bool { return p.Rules[0].Interfaces != nil }},
		{"vlan: [0, 100-199]", func(p *Policy) bool { return len(p.Rules[0].VLANs) == 2 }},
		{"meanwhile: log", func(p *Policy) bool { return p.Rules[0].Meanwhile == flow.Log && p.Rules[0].Evidence != nil }},
		{"mid_stream: true", (*Policy).TreatsMidStream},
		{"udp_unproven: true", (*Policy).TreatsUDP},
		{"one_way: true", func(p *Policy) bool { return p.Rules[0].OneWay }},
		{"signal: [decoy]", func(p *Policy) bool { return p.Rules[0].Signals != 0 }},
		{"except:\n    #   - cidr: 10.0.0.0/8\n    #   - port: 8388", func(p *Policy) bool { return len(p.Rules[0].Except) == 2 }},
	} {
		offered := "# " + tt.comment + "\n"
		if !strings.Contains(text, offered) {
			t.Errorf("default.yaml has no comment %q", tt.comment)
			continue
		}
		changed := strings.Replace(text, offered, strings.NewReplacer("#   ", "  ").Replace(tt.comment)+"\n", 1)
		if tt.comment == "udp_unproven: true" || tt.comment == "one_way: true" { // as the comment says
			changed = without.Replace(changed)
		}
		p, err := Parse(DefaultName, []byte(changed), nil)
		if err != nil || !tt.holds(p) {
			t.Errorf("with %q: %v", tt.comment, err)
		}
	}
}

func TestDigestIsOfTheText(t *testing.T) {
	p, err := Parse("p.yaml", []byte("rules: []\n"), nil)
	if want := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("rules: []\n"))); err != nil || p.Digest != want {
		t.Errorf("%+v, %v, want %s", p, err, want)
	}
}
