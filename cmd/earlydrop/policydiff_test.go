// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestPolicyDiffShowsTheFlowsThatChange(t *testing.T) {
	capture := copies(t, 5, func(i int, client net.IP) (net.IP, time.Duration) { return client, time.Duration(i) * time.Minute })
	const start = "rules: [{name: t, class: [shadowsocks, v2ray, obfs4], "
	write := func(text string) string { return writeFile(t, "p.yaml", text) }
	drop, pass, logs := write(start+"action: drop, ttl: 1m}]"), write("mode: enforce"), write(start+"action: log}]")
	pairs := write(start + "meanwhile: log, action: drop, ttl: 1h, evidence: {flows: 3, share: 0.6, within: 1h}}]")
	udp := write(start + "proto: udp, udp_unproven: true, action: drop, ttl: 1m}]")
	code, events, stderr := runForTest("replay", "--json", "--policy", drop, capture)
	if code != exitOK {
		t.Fatal(stderr)
	}
	file := writeFile(t, "events.jsonl", events+`{"event":"of a newer program"}`+"\n"+`{"time":"2026-11-26T00:00:00Z","event":"left_out","interface":"e","passes_left_out":7}`+"\n")
	for _, tt := range []struct {
		name, old, new string
		rows           int
		with, summary  string
	}{
		{"the same", drop, drop, 0, "", "0 of 5 flows change their fate; OLD drops 5, NEW 5\n"},
		{"nothing is dropped any more", drop, pass, 5, "  drop, rule t  pass, no rule\n", "5 of 5 flows change their fate: 5 from drop to pass; OLD drops 5, NEW 0\n"},
		{"only logged", pass, logs, 5, "  pass, no rule  log, rule t\n", "5 of 5 flows change their fate: 5 from pass to log; OLD drops 0, NEW 0\n"},
		{"on evidence", logs, pairs, 3, "  log, rule t  drop, evidence t\n", "3 of 5 flows change their fate: 3 from log to drop; OLD drops 0, NEW 3\n"},
		{"another protocol", udp, drop, 5, "  pass, no rule  drop, rule t\n", "5 of 5 flows change their fate: 5 from pass to drop; OLD drops 0, NEW 5\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, from := range [][]string{{"--captures", capture}, {"--events", file}} {
				summary := tt.summary
				if from[0] == "--events" {
					summary += "7 verdicts passed undetected and are not among the events\n"
				}
				code, stdout, stderr := runForTest(append([]string{"policy", "diff", tt.old, tt.new}, from...)...)
				if code != exitOK || stderr != "" || !strings.HasSuffix(stdout, summary) || !strings.Contains(stdout, tt.with) || tt.rows > 0 != strings.HasPrefix(stdout, "START") {
					t.Errorf("%s: code %d, %s\n%s\nwant %q and\n%s", from[0], code, stderr, stdout, tt.with, summary)
				}
				if rows := strings.Count(stdout, " tcp "); rows != tt.rows {
					t.Errorf("%s: %d rows, want %d\n%s", from[0], rows, tt.rows, stdout)
				}
			}
		})
	}
	// Several files, each a capture of its own: the pairs of one are not those of the other.
	code, stdout, stderr := runForTest("policy", "diff", logs, pairs, "--captures", capture, capture)
	if code != exitOK || !strings.HasSuffix(stdout, "6 of 10 flows change their fate: 6 from log to drop; OLD drops 0, NEW 6\n") {
		t.Errorf("code %d, %s\n%s", code, stderr, stdout)
	}
}

// A flow with several verdicts has one fate, and one place.
func TestPolicyDiffCountsARevisedFlowOnce(t *testing.T) {
	const verdict = `{"time":"2026-11-26T00:00:0%T%Z","event":"verdict","file":"a","src":"10.0.0.1:1","dst":"192.0.2.1:443","proto":"tcp","start":"2026-11-26T00:00:00Z",` +
		`"class":"shadowsocks","confidence":%C%,"scores":{"background":0,"shadowsocks":%C%,"v2ray":0},"decision":"pass","likeliest":"shadowsocks","detected":true,"reason":"no rule","model":"m 1","captured":100,"complete":false,"handed_over":"idle",%F%"packets":3,"bytes":100,"flow_packets":3,"flow_bytes":100}` + "\n"
	line := func(at, confidence, fields string) string {
		return strings.NewReplacer("%T%", at, "%C%", confidence, "%F%", fields).Replace(verdict)
	}
	events := writeFile(t, "e.jsonl", line("2", "0.99", `"provisional":true,`)+line("4", "0.1", `"revised":1,`))
	old, changed := writeFile(t, "p.yaml", "mode: monitor"), writeFile(t, "q.yaml", "rules: [{class: shadowsocks, min_confidence: 0.9, action: drop, ttl: 1m}]")
	code, stdout, stderr := runForTest("policy", "diff", old, changed, "--events", events)
	if code != exitOK || strings.Count(stdout, "10.0.0.1") != 1 || !strings.HasSuffix(stdout, "1 of 1 flow changes its fate: 1 from pass to drop; OLD drops 0, NEW 1\n") {
		t.Errorf("code %d, %s\n%s", code, stderr, stdout)
	}
}

func TestPolicyDiffRefuses(t *testing.T) {
	p, dir := writeFile(t, "p.yaml", "mode: monitor"), t.TempDir()
	bad := writeFile(t, "bad.jsonl", `{"event":"verdict","proto":"icmp","src":"10.0.0.1:1","dst":"10.0.0.2:2","scores":{}}`)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{p}, "policy diff needs OLD and NEW (see earlydrop policy diff --help)"},
		{[]string{p, p}, "policy diff needs --captures or --events, one of them (see policy diff --help)"},
		{[]string{p, p, "--captures", "a", "--events", "b"}, "policy diff needs --captures or --events, one of them (see policy diff --help)"},
		{[]string{p, p, "--events", dir + "/none"}, "events: open " + dir + "/none: no such file or directory"},
		{[]string{p, p, "--events", p}, p + ": event 1: invalid character 'm' looking for beginning of value"},
		{[]string{p, p, "--events", bad}, bad + `: event 1: proto "icmp" is neither tcp nor udp`},
		{[]string{p, p, "--events", bad, "--one-way"}, "--one-way says what is captured, and with --events everything is: leave it out"},
		{[]string{p, dir, "--events", bad}, "read policy: read " + dir + ": is a directory"},
	} {
		code, stdout, stderr := runForTest(append([]string{"policy", "diff"}, tt.args...)...)
		if code != exitBadInput || stdout != "" || stderr != "earlydrop: "+tt.want+"\n" {
			t.Errorf("%q: code %d, stdout %q, stderr\n%swant %s", tt.args, code, stdout, stderr, tt.want)
		}
	}
	fifo := filepath.Join(dir, "fifo")
	if err := os.WriteFile(fifo, []byte("no capture"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, stdout, stderr := runForTest("policy", "diff", p, p, "--captures", fifo); code != exitBadInput || stdout != "" || strings.Count(stderr, "\n") != 1 {
		t.Errorf("no capture: code %d, %q, %q", code, stdout, stderr)
	}
}
