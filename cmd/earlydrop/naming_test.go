// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

func TestFlowIsNamedAfterWhatDecided(t *testing.T) {
	for _, tt := range []struct {
		name       string
		d          policy.Decision
		r          flow.Result
		line       string
		table      string
		confidence string
	}{
		{"two classes share it",
			policy.Decision{RuleClasses: "shadowsocks|v2ray", Likeliest: "shadowsocks", Confidence: 0.95}, flow.Result{Class: "unknown", Confidence: 0.551},
			"shadowsocks|v2ray 0.950 (shadowsocks 0.551)", "shadowsocks|v2ray (shadowsocks)", "0.9500"},
		{"one class has it",
			policy.Decision{RuleClasses: "shadowsocks", Likeliest: "shadowsocks", Confidence: 0.95}, flow.Result{Class: "shadowsocks", Confidence: 0.94},
			"shadowsocks 0.950", "shadowsocks", "0.9500"},
		{"a rule over unknown",
			policy.Decision{RuleClasses: "unknown", Likeliest: "background", Confidence: 0.4}, flow.Result{Class: "unknown", Confidence: 0.4},
			"unknown (background 0.400)", "unknown (background)", "0.4000"},
		{"no rule, unknown",
			policy.Decision{Likeliest: "background", Confidence: 0.4}, flow.Result{Class: "unknown", Confidence: 0.4},
			"unknown (background 0.400)", "unknown (background)", "0.4000"},
		{"no rule",
			policy.Decision{Likeliest: "background", Confidence: 0.99}, flow.Result{Class: "background", Confidence: 0.99},
			"background 0.990", "background", "0.9900"},
	} {
		n := nameFlow(&tt.d)
		name, confidence := n.table(tt.r.Class, tt.r.Confidence)
		if line := n.line(tt.r.Class, tt.r.Confidence); line != tt.line || name != tt.table || confidence != tt.confidence {
			t.Errorf("%s: %q, %q, %q; want %q, %q, %q", tt.name, line, name, confidence, tt.line, tt.table, tt.confidence)
		}
	}
}

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
	for i, want := range []string{"shadowsocks|v2ray (shadowsocks)  0.9564      drop      eager  -", "shadowsocks|v2ray (shadowsocks)  0.7353      drop      eager  -"} {
		if got := lines[i+1][column:]; got != want {
			t.Errorf("row %q, want %q", got, want)
		}
	}
	if want := "2 flows in 1 file classified: 2 shadowsocks; the policy drops 2"; lines[3] != want {
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
	_, stdout, _ := runForTest("replay", "--json", file)
	n := 0
	for line := range strings.Lines(stdout) {
		var r replayRecord
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		n++
		code, explained, stderr := runForTest("explain", file, "--flow", strconv.Itoa(n))
		want := []string{"\nclass " + r.line(r.Class, r.Confidence), fmt.Sprintf("\ndecision: %s, %s %s: ", r.Decision, r.Reason, r.Rule), fmt.Sprintf(" is %.4f; the rule asks for ", *r.RuleConfidence)}
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
