// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/gopacket/gopacket/layers"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/models"
	"github.com/earlydrop/earlydrop/policy"
)

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// boundedModel returns the tiny model with an any_threshold of 0.85 and the
// outcome unknown below 0.5.
func boundedModel(t testing.TB) string {
	t.Helper()
	onnx, err := os.ReadFile(tinyModel)
	if err != nil {
		t.Fatal(err)
	}
	for _, property := range [][2]string{{"any_threshold", "0.85"}, {"unknown", "0.5"}} {
		var entry []byte
		entry = protowire.AppendTag(entry, 1, protowire.BytesType) // StringStringEntryProto.key
		entry = protowire.AppendString(entry, "earlydrop."+property[0])
		entry = protowire.AppendTag(entry, 2, protowire.BytesType) // .value
		entry = protowire.AppendString(entry, property[1])
		onnx = protowire.AppendTag(onnx, 14, protowire.BytesType) // ModelProto.metadata_props
		onnx = protowire.AppendBytes(onnx, entry)
	}
	return string(onnx)
}

func TestPolicyCheckSaysWhatThePolicyDoes(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"no rules", "mode: enforce", "mode enforce: drops what the rules say\nno rules: everything passes\n"},
		{"everything", `
mode: monitor
allow:
  - cidr: 192.0.2.0/24
  - cidr: 2001:db8::/32
    side: initiator
    port: 22
  - port: [443, 8000-8100, 9000]
rules:
  - name: tunnels
    class: [shadowsocks, v2ray]
    min_confidence: 0.95
    action: drop
    ttl: 1h
    except:
      - cidr: 10.0.0.0/8
        side: responder
      - port: 8388
  - class: v2ray
    min_confidence: 1
    action: drop
    ttl: 90s
  - class: v2ray
    action: drop
    ttl: 1m
  - class: [v2ray, shadowsocks]
    action: drop
    ttl: 1m
  - class: unknown
    action: drop
    ttl: 1m
`, `mode monitor: decides and logs, drops nothing
no rule blocks flows
  from or to 192.0.2.0/24
  from 2001:db8::/32, to port 22
  to port 443, 8000-8100 or 9000
rule tunnels: drop shadowsocks or v2ray for 1h when the confidence is at least 0.95
  except to 10.0.0.0/8
  except to port 8388
otherwise rule rule-2: drop v2ray for 1m30s when the confidence is at least 1
otherwise rule rule-3: drop v2ray for 1m when the confidence is at least 0.8 (the model's threshold)
otherwise rule rule-4: drop v2ray or shadowsocks for 1m when the confidence is at least 0.85 (the model's threshold)
otherwise rule rule-5: drop unknown for 1m whatever is the likeliest class
everything else passes
UDP flows, tunnels as well, are identified and logged, not treated: no rule says udp_unproven: true
limits: above 200 flows in 1m (an initiator counts once an hour) or 25 % of the initiators of an hour, what is done without evidence pauses for 10m
each rule can act
`},
		{"a rule behind one that takes all", `
rules:
  - {name: wide, class: [v2ray], min_confidence: 0.5, action: drop, ttl: 10m}
  - {name: late, class: v2ray, min_confidence: 0.9, action: drop, ttl: 1h}
  - {name: lower, class: v2ray, min_confidence: 0.4, action: drop, ttl: 1h}
  - {name: other, class: [v2ray, shadowsocks], min_confidence: 0.9, action: drop, ttl: 1h}
`, `mode monitor: decides and logs, drops nothing
rule wide: drop v2ray for 10m when the confidence is at least 0.5
otherwise rule late: drop v2ray for 1h when the confidence is at least 0.9
otherwise rule lower: drop v2ray for 1h when the confidence is at least 0.4
otherwise rule other: drop v2ray or shadowsocks for 1h when the confidence is at least 0.9
everything else passes
UDP flows, tunnels as well, are identified and logged, not treated: no rule says udp_unproven: true
limits: above 200 flows in 1m (an initiator counts once an hour) or 25 % of the initiators of an hour, what is done without evidence pauses for 10m
note: rule late never acts: a rule above it treats all of its flows
each other rule can act
`},
		{"flows captured from their middle", `
rules:
  - {name: begun, class: v2ray, min_confidence: 0.5, action: drop, ttl: 10m, mid_stream: false}
  - {name: open, class: v2ray, min_confidence: 0.9, action: drop, ttl: 1h, mid_stream: true}
  - {name: again, class: v2ray, min_confidence: 0.9, action: drop, ttl: 1h, mid_stream: true}
  - {name: late, class: v2ray, min_confidence: 0.9, action: drop, ttl: 1h}
  - {name: strange, class: unknown, action: drop, ttl: 1m, mid_stream: true}
  - {name: udp, class: v2ray, min_confidence: 0.9, action: drop, ttl: 1h, udp_unproven: true}
  - {name: both, class: v2ray, min_confidence: 0.9, action: drop, ttl: 1h, mid_stream: true, udp_unproven: true}
  - {name: udp-again, class: v2ray, min_confidence: 0.9, action: drop, ttl: 1h, udp_unproven: true}
`, `mode monitor: decides and logs, drops nothing
rule begun: drop v2ray for 10m when the confidence is at least 0.5
otherwise rule open: drop v2ray for 1h when the confidence is at least 0.9, flows captured from their middle as well
otherwise rule again: drop v2ray for 1h when the confidence is at least 0.9, flows captured from their middle as well
otherwise rule late: drop v2ray for 1h when the confidence is at least 0.9
otherwise rule strange: drop unknown for 1m whatever is the likeliest class, flows captured from their middle as well
otherwise rule udp: drop v2ray for 1h when the confidence is at least 0.9, UDP flows as well
otherwise rule both: drop v2ray for 1h when the confidence is at least 0.9, flows captured from their middle as well, UDP flows as well
otherwise rule udp-again: drop v2ray for 1h when the confidence is at least 0.9, UDP flows as well
everything else passes
limits: above 200 flows in 1m (an initiator counts once an hour) or 25 % of the initiators of an hour, what is done without evidence pauses for 10m
note: rule again never acts: a rule above it treats all of its flows
note: rule late never acts: a rule above it treats all of its flows
note: rule udp-again never acts: a rule above it treats all of its flows
each other rule can act
`},
		{"evidence about servers that are protected", `
limits: none
protect: [192.0.2.0/24]
rules:
  - {name: ours, class: v2ray, min_confidence: 0.5, action: drop, ttl: 10m, to: 192.0.2.7, evidence: {flows: 2, share: 1, within: 1h}}
`, `mode monitor: decides and logs, drops nothing
no pair is treated whose server is in 192.0.2.0/24
rule ours: drop v2ray to 192.0.2.7 when the confidence is at least 0.5
  drop the pair (initiator and server) for 10m when 2 of its flows within 1h are detected, and at least 100 % of those judged
everything else passes
UDP flows, tunnels as well, are identified and logged, not treated: no rule says udp_unproven: true
no limits: nothing bounds how many flows are treated
note: rule ours never treats a pair: protect has all of its servers
the rule can act
`},
		{"all that the language has", `
mode: enforce
limits: {flows: 5/s}
protect: [192.0.2.0/24, '2001:db8::1']
rules:
  - name: tunnels
    class: v2ray
    min_confidence: 0.9
    proto: tcp
    from: [10.0.0.0/8, 192.0.2.7]
    to: [{port: [443, 8000-8100]}, {cidr: 198.51.100.0/24, port: 22}]
    interface: [lan, dmz]
    vlan: [0, 10-19]
    complete: true
    action: drop
    ttl: 7d
    meanwhile: log
    evidence: {flows: 3, share: 0.6, within: 1h, min_confidence: 0.5}
  - {name: seen, class: shadowsocks, min_confidence: 0.5, action: log}
`, `mode enforce: drops what the rules say
no pair is treated whose server is in 192.0.2.0/24 or 2001:db8::1
rule tunnels: drop v2ray over TCP from 10.0.0.0/8 or 192.0.2.7 to port 443,8000-8100 or 198.51.100.0/24 port 22 on lan or dmz with VLAN ID none or 10-19 when the confidence is at least 0.9, and all 1024 bytes are in
  drop the pair (initiator and server) for 7d when 3 of its flows within 1h are detected with a confidence of at least 0.5, and at least 60 % of those judged; meanwhile log
otherwise rule seen: log shadowsocks when the confidence is at least 0.5
everything else passes
UDP flows, tunnels as well, are identified and logged, not treated: no rule says udp_unproven: true
each rule can act
`},
	}
	model := writeFile(t, "m.onnx", boundedModel(t))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := runForTest("policy", "check", "--model", model, writeFile(t, "p.yaml", tt.text))
			if code != exitOK || stderr != "" {
				t.Errorf("code %d, stderr %q", code, stderr)
			}
			if want := tt.want + "ok\n"; stdout != want {
				t.Errorf("stdout:\n%s\nwant:\n%s", stdout, want)
			}
		})
	}
}

func TestPolicyCheckShowsThePlaceOfAMistake(t *testing.T) {
	path := writeFile(t, "p.yaml", "mode: monitor\nrules:\n  - clas: v2ray\n")
	code, stdout, stderr := runForTest("policy", "check", path)
	want := "earlydrop: " + path + `:3:5: unknown key "clas" in rule 1, did you mean class?; known are name, class, min_confidence, proto, from, to, interface, vlan, action, rate, ttl, scope, evidence, meanwhile, mid_stream, udp_unproven, one_way, provisional, complete, signal, except` + "\n"
	if code != exitBadInput || stdout != "" || stderr != want {
		t.Errorf("code %d, stdout %q, stderr\n%swant\n%s", code, stdout, stderr, want)
	}
}

func TestPolicyCheckRefusesFilesItCanNotRead(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "none")
	good := writeFile(t, "p.yaml", "mode: monitor\n")
	tests := []struct {
		args []string
		want string
	}{
		{[]string{missing}, "earlydrop: read policy: open " + missing + ": no such file or directory\n"},
		{[]string{dir}, "earlydrop: read policy: read " + dir + ": is a directory\n"},
		{[]string{""}, "earlydrop: policy check needs FILE, but its name is empty\n"},
		{[]string{good, "--model", missing}, "earlydrop: model: open " + missing + ": no such file or directory\n"},
		{[]string{good, "--model"}, "earlydrop: flag --model needs a value (see earlydrop policy check --help)\n"},
	}
	for _, tt := range tests {
		code, stdout, stderr := runForTest(append([]string{"policy", "check"}, tt.args...)...)
		if code != exitBadInput || stdout != "" || stderr != tt.want {
			t.Errorf("%q: code %d, stdout %q, stderr\n%swant\n%s", tt.args, code, stdout, stderr, tt.want)
		}
	}
}

// The shipped model and the one of --model know different classes.
func TestPolicyCheckTakesTheLabelsFromTheModel(t *testing.T) {
	shipped, err := readPolicyModel("")
	if err != nil {
		t.Fatal(err)
	}
	has := strings.Join(slices.DeleteFunc(slices.Clone(shipped.Labels), func(s string) bool { return s == "background" }), ", ")
	path := writeFile(t, "p.yaml", "rules: [{class: vpn-2, min_confidence: 0.9, action: drop, ttl: 10m}]")
	code, stdout, stderr := runForTest("policy", "check", path)
	if want := "earlydrop: " + path + ":1:17: the model has no class \"vpn-2\"; it has " + has + "\n"; code != exitBadInput || stdout != "" || stderr != want {
		t.Errorf("shipped model: code %d, stdout %q, stderr\n%swant\n%s", code, stdout, stderr, want)
	}
	_, onnx := models.Default()
	// A word of the same length keeps the file's structure whole.
	model := writeFile(t, "vpn.onnx", strings.ReplaceAll(string(onnx), "v2ray", "vpn-2"))
	code, stdout, stderr = runForTest("policy", "check", path, "--model", model)
	if code != exitOK || stderr != "" || !strings.Contains(stdout, "drop vpn-2 for 10m") {
		t.Errorf("other model: code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

// What is no model is refused before the policy is looked at.
func TestPolicyCheckRefusesAModelThatIsNone(t *testing.T) {
	model := writeFile(t, "m.onnx", "not a model")
	code, stdout, stderr := runForTest("policy", "check", writeFile(t, "p.yaml", "mode: monitor"), "--model", model)
	if code != exitBadInput || stdout != "" || !strings.Contains(stderr, model) || strings.Count(stderr, "\n") != 1 {
		t.Errorf("code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

func TestPolicyDefaultPassesItsOwnCheck(t *testing.T) {
	model, err := readPolicyModel("")
	if err != nil {
		t.Fatal(err)
	}
	code, text, stderr := runForTest("policy", "default")
	if code != exitOK || stderr != "" || text != policy.DefaultYAML(model.Labels) {
		t.Fatalf("code %d, stderr %q, stdout %q", code, stderr, text)
	}
	code, stdout, stderr := runForTest("policy", "check", writeFile(t, "p.yaml", text))
	if code != exitOK || stderr != "" || !strings.Contains(stdout, "rule tunnels: drop shadowsocks") ||
		!strings.Contains(stdout, "when the confidence is at least 0.9") || !strings.Contains(stdout, "the rule can act\n") {
		t.Errorf("code %d, stderr %q, stdout\n%s", code, stderr, stdout)
	}
}

func TestLoadPolicy(t *testing.T) {
	p, err := loadPolicy("", &policy.Model{Labels: []string{"background", "shadowsocks", "v2ray"}})
	if err != nil || len(p.Rules) == 0 {
		t.Errorf("embedded policy: %+v, %v", p, err)
	}
	for _, path := range []string{"", filepath.Join(t.TempDir(), "none"), writeFile(t, "p.yaml", "x")} {
		p, err := loadPolicy(path, &policy.Model{Labels: []string{"background"}})
		if err == nil || exitCode(err) != exitBadInput || p != nil {
			t.Errorf("loadPolicy(%q) = %v, %v; want bad input", path, p, err)
		}
	}
}

// The examples are what an operator begins with: they are valid, each of their rules can act,
// none of them drops anything as it is, and they do what they say.
func TestExamplesOfPolicies(t *testing.T) {
	examples, err := filepath.Glob("../../policy/examples/*.yaml")
	if err != nil || len(examples) != 4 {
		t.Fatalf("%v, %v", examples, err)
	}
	tunnels := func(from layers.TCPPort, network byte) string {
		return copiesOf(t, from, 4, func(i int, _ net.IP) (net.IP, time.Duration) {
			return net.IPv4(10, network, 30, 1), time.Duration(i) * time.Minute
		})
	}
	clients, lab, sure := tunnels(51628, 1), tunnels(51628, 20), tunnels(35384, 1)
	for _, tt := range []struct{ example, clients, lab string }{
		{"campus", "limit meanwhile, limit meanwhile, drop evidence pair, drop pair pair", "pass allow-list, pass allow-list, pass allow-list, pass allow-list"},
		{"cautious", "log meanwhile, log meanwhile, drop evidence pair, drop pair pair", "pass below min_confidence, pass below min_confidence, pass below min_confidence, pass below min_confidence"},
		{"company", "pass meanwhile, drop evidence pair, drop pair pair, drop pair pair", "pass meanwhile, drop evidence pair, drop pair pair, drop pair pair"},
		{"research", "log rule, log rule, log rule, log rule", "log rule, log rule, log rule, log rule"},
	} {
		path := "../../policy/examples/" + tt.example + ".yaml"
		code, stdout, stderr := runForTest("policy", "check", path)
		if code != exitOK || stderr != "" || !strings.HasPrefix(stdout, "mode monitor: ") || !strings.HasSuffix(stdout, "rule can act\nok\n") {
			t.Errorf("%s: code %d, %s\n%s", tt.example, code, stderr, stdout)
		}
		captures := map[string]string{clients: tt.clients, lab: tt.lab}
		if tt.example == "cautious" { // it wants to be sure
			captures = map[string]string{sure: tt.clients, lab: tt.lab}
		}
		for capture, want := range captures {
			code, stdout, stderr := runForTest("replay", "--json", "--policy", path, capture)
			events, err := event.DecodeAll([]byte(stdout))
			if code != exitOK || err != nil {
				t.Fatal(code, stderr, err)
			}
			if got := strings.Join(fatesOf(events), ", "); got != want {
				t.Errorf("%s: %s\nwant %s", tt.example, got, want)
			}
		}
	}
}
