// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

func verdict(ms float64, packets int) event.Verdict {
	return event.Verdict{VerdictMS: ms, Packets: packets}
}

func TestConclusionFollowsTheFlows(t *testing.T) {
	web := &flow{what: "https", ok: true, passed: 10, wanted: 10}
	badWeb := &flow{what: "https", passed: 3, wanted: 10}
	cut := &flow{what: "a", tunnel: true, ok: true, passed: 5, wanted: 100, verdict: verdict(3, 4)}
	slowCut := &flow{what: "b", tunnel: true, ok: true, wanted: 100, verdict: verdict(12.5, 6)}
	missed := &flow{what: "b", tunnel: true, passed: 100, wanted: 100, verdict: verdict(900, 99)}
	for _, tt := range []struct {
		name  string
		flows []*flow
		ok    bool
		words string
	}{
		{"all as it should be", []*flow{web, cut, slowCut}, true, "2 of 2 connections through 2 tunnels cut, each within 6 packets and 12.5 ms; 5 of 200 bytes got through. 1 of 1 ordinary flows untouched."},
		{"a connection was missed, the next one cut", []*flow{web, cut, missed, slowCut}, true, "2 of 3 connections through 2 tunnels cut, each within 6 packets and 12.5 ms; 105 of 300 bytes got through. 1 of 1 ordinary flows untouched."},
		{"a tunnel was missed", []*flow{web, cut, missed, missed}, false, "1 of 3 connections through 2 tunnels cut, each within 4 packets and 3.0 ms; 205 of 300 bytes got through. 1 of 1 ordinary flows untouched."},
		{"all tunnels were missed", []*flow{web, missed}, false, "0 of 1 connections through 1 tunnels cut; 100 of 100 bytes got through. 1 of 1 ordinary flows untouched."},
		{"an ordinary flow was cut", []*flow{web, badWeb, cut}, false, "1 of 1 connections through 1 tunnels cut, each within 4 packets and 3.0 ms; 5 of 100 bytes got through. 1 of 2 ordinary flows untouched."},
		{"nothing was tried", nil, false, "0 of 0 connections through 0 tunnels cut; 0 of 0 bytes got through. 0 of 0 ordinary flows untouched."},
	} {
		if ok, words := conclude(tt.flows); ok != tt.ok || words != tt.words {
			t.Errorf("%s: %v, %q\nwant %v, %q", tt.name, ok, words, tt.ok, tt.words)
		}
	}
}

func TestFirstEntryOfADump(t *testing.T) {
	const one = "[{\n        \"key\": {\n            \"vlan\": 0\n        },\n        \"value\": {\n        }\n    }\n]\n"
	const two = "[{\n        \"key\": {\n            \"vlan\": 0\n        },\n        \"value\": {\n        }\n    },{\n        \"key\": {\n        },\n        \"value\": {\n        }\n    }\n]\n"
	for _, tt := range []struct {
		dump, entry string
		more        int
	}{
		{one, one, 0},
		{two, strings.TrimSuffix(one, "]\n"), 1},
		{"[]\n", "[]\n", 0},
	} {
		if entry, more := firstEntry(tt.dump); entry != tt.entry || more != tt.more {
			t.Errorf("%q and %d more\nwant %q and %d", entry, more, tt.entry, tt.more)
		}
	}
}

func TestTableNamesWhatDecided(t *testing.T) {
	text.DisableColors()
	sum := 0.953
	shared := event.Verdict{Class: "unknown", Naming: event.Naming{RuleClasses: []string{"shadowsocks", "v2ray"}, RuleConfidence: &sum, Likeliest: "shadowsocks"}, Confidence: 0.551}
	web := event.Verdict{Class: "background", Naming: event.Naming{Likeliest: "background"}, Confidence: 0.999}
	var out bytes.Buffer
	printFlows(&out, []*flow{{what: "web", ok: true, verdict: web}, {what: "caught", tunnel: true, ok: true, verdict: shared}})
	for what, want := range map[string]string{"web": "background 0.999", "caught": "shadowsocks|v2ray 0.953"} {
		found := false
		for line := range strings.Lines(out.String()) {
			cells := strings.Join(strings.Fields(strings.ReplaceAll(line, "\u2502", "")), " ")
			found = found || strings.HasPrefix(cells, what+" ") && strings.Contains(cells, want)
		}
		if !found {
			t.Errorf("no row of %s has %q:\n%s", what, want, out.String())
		}
	}
}

func TestTableTellsCutFromMissed(t *testing.T) {
	text.DisableColors()
	var out bytes.Buffer
	printFlows(&out, []*flow{
		{what: "web", ok: true},
		{what: "disturbed"},
		{what: "caught", tunnel: true, ok: true},
		{what: "other", tunnel: true},
	})
	for what, word := range map[string]string{"web": "untouched", "disturbed": "DISTURBED", "caught": "cut", "other": "MISSED"} {
		found := false
		for line := range strings.Lines(out.String()) {
			found = found || strings.Contains(line, " "+what+" ") && strings.Contains(line, " "+word+" ")
		}
		if !found {
			t.Errorf("no row says that %s is %s:\n%s", what, word, out.String())
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("escape sequences without a terminal")
	}
}

// All that is printed fits into a terminal of 100 columns, and nothing of it is lost.
func TestOutputFitsIntoItsColumns(t *testing.T) {
	text.DisableColors()
	sum := 0.953
	shared := event.Verdict{Class: "unknown", Naming: event.Naming{RuleClasses: []string{"shadowsocks", "v2ray", "obfs4"}, RuleConfidence: &sum, Likeliest: "shadowsocks"}, Confidence: 0.551, VerdictMS: 12345}
	var out bytes.Buffer
	w := &wrapped{to: &out}
	printFlows(w, []*flow{{what: "https, HTTP/1.1", ok: true, passed: 1 << 30, verdict: shared}, {what: "shadowsocks aes-128-gcm", tunnel: true, ok: true, passed: 1000, verdict: shared}})
	long := strings.TrimSpace(strings.Repeat("word and another ", 20))
	for _, line := range []string{keys, next, long + "\n", "  " + long + "\n", "\n", "short\n"} {
		if n, err := w.Write([]byte(line)); n != len(line) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	for line := range strings.Lines(out.String()) {
		if n := text.StringWidthWithoutEscSequences(strings.TrimSuffix(line, "\n")); n > columns {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if n := strings.Count(strings.Join(strings.Fields(out.String()), " "), long); n != 2 {
		t.Errorf("of two long lines %d are whole:\n%s", n, &out)
	}
	if !strings.Contains(out.String(), "\n\nshort\n") {
		t.Errorf("short and empty lines are not as they were:\n%s", &out)
	}
	if picture := string(svg(out.String())); !strings.HasSuffix(picture, "</svg>\n") || !strings.Contains(picture, "HTTP/1.1") {
		t.Errorf("picture %s", picture)
	}
}

// The demonstration itself, as make demo shows it.
func TestDemoShowsWhatItShould(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var out bytes.Buffer
	asExpected, err := run(ctx, &out, "", "")
	if err != nil || !asExpected {
		t.Fatalf("%v:\n%s", err, &out)
	}
	for line := range strings.Lines(out.String()) {
		if n := text.StringWidthWithoutEscSequences(strings.TrimSuffix(line, "\n")); n > columns {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if !strings.HasSuffix(out.String(), next) {
		t.Errorf("it does not end with what to do next:\n%s", &out)
	}
}
