// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A flow that is dropped is called by the rule's classes, not unknown, in the table,
// in the summary and for machines.
func TestReplayNamesWhatDecided(t *testing.T) {
	dir := replayFixture(t)
	model := writeFile(t, "m.onnx", boundedModel(t))
	args := []string{"replay", "--model", model, "--policy", filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "mixed.pcap")}
	code, stdout, stderr := runForTest(args...)
	if code != exitOK || stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	lines := strings.Split(stdout, "\n")
	column := strings.Index(lines[0], "CLASS")
	for i, want := range []string{"shadowsocks|v2ray (shadowsocks)  0.9564      pass      eager  -", "shadowsocks|v2ray (shadowsocks)  0.7353      drop      eager  -"} {
		if got := lines[i+1][column:]; got != want {
			t.Errorf("row %q, want %q", got, want)
		}
	}
	if want := "2 flows in 1 file classified: 2 shadowsocks; the policy drops 1"; lines[3] != want {
		t.Errorf("summary %q, want %q", lines[3], want)
	}
	code, stdout, stderr = runForTest(append(args, "--json")...)
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var got []string
	for line := range strings.Lines(stdout) {
		r := parseRecord(t, line)
		got = append(got, r.Class+" "+strings.Join(r.RuleClasses, "|")+" "+r.Likeliest)
	}
	// The second flow is like no class by itself, and the model's outcome says so.
	if diff := cmp.Diff([]string{"shadowsocks shadowsocks|v2ray shadowsocks", "unknown shadowsocks|v2ray shadowsocks"}, got); diff != "" {
		t.Errorf("class, rule_classes, likeliest (-want +got):\n%s", diff)
	}
}

// The table of replay and the explanation of a flow have the same words and figures.
func TestReplayAndExplainSayTheSame(t *testing.T) {
	const file = "../../test/testdata/shadowsocks.pcap"
	policy := flowPolicy(t)
	_, stdout, _ := runForTest("replay", "--json", "--policy", policy, file)
	n := 0
	for line := range strings.Lines(stdout) {
		r := parseRecord(t, line)
		n++
		code, explained, stderr := runForTest("explain", file, "--policy", policy, "--flow", strconv.Itoa(n))
		want := []string{"\nclass " + r.Line(r.Class, r.Confidence), fmt.Sprintf("\ndecision: %s, %s %s: ", r.Decision, r.Reason, r.Rule), fmt.Sprintf(" is %.4f; the rule asks for ", *r.RuleConfidence)}
		for _, w := range want {
			if code != exitOK || !strings.Contains(explained, w) {
				t.Errorf("flow %d: exit code %d, %s, no %q in\n%s", n, code, stderr, w, explained)
			}
		}
	}
	if n < 3 {
		t.Errorf("%d flows", n)
	}
}

// flowPolicy writes a policy whose rule is about each flow by itself, at the model's threshold,
// and returns the file.
func flowPolicy(t *testing.T) string {
	t.Helper()
	return writeFile(t, "flows.yaml", "rules: [{name: tunnels, class: [shadowsocks, v2ray], action: drop, ttl: 10m}]\n")
}
