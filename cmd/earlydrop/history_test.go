// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/explanation"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/history"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// pastOf makes a history with the verdict on a flow of a file, which is treated, and one on
// another that passes. It returns the history's file, the ID of the first, and the flow's sample.
func pastOf(t *testing.T, file string, addresses history.Addresses) (path string, id event.ID, s *flow.Sample) {
	t.Helper()
	return pastBy(t, file, addresses, "tunnels")
}

// pastBy is pastOf with the name of the rule that treats the first flow.
func pastBy(t *testing.T, file string, addresses history.Addresses, rule string) (path string, id event.ID, s *flow.Sample) {
	t.Helper()
	s = new(flow.Sample)
	numbers, err := explanation.Flows(&captures.File{Name: file}, assembly.Options{}, nil, s, 0)
	if err != nil || len(numbers) == 0 {
		t.Fatal(numbers, err)
	}
	path = filepath.Join(t.TempDir(), "history.db")
	h, err := history.Open(history.Options{Path: path, Captures: &history.Captures{Addresses: addresses}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	var ids event.IDs
	decided := policy.Decision{Action: flow.Drop, Rule: rule, RuleClasses: "v2ray", Class: "v2ray", Likeliest: "v2ray", Detected: true, Confidence: 0.9, Reason: policy.ReasonRule, TTL: time.Minute}
	v := event.NewVerdict(s, &flow.Result{Class: "v2ray", Confidence: 0.9, Labels: []string{"v2ray"}, Scores: []float64{0.9}}, &decided)
	pass := *v
	enforced := true
	v.Interface, v.File, v.Mode, v.Enforced, v.Model, v.Time = "eth0", "", "enforce", &enforced, "m 1", time.Now()
	ids.Identify(v)
	h.KeepVerdict(v, s)
	pass.Interface, pass.File, pass.Mode, pass.Model, pass.Decision, pass.Detected, pass.Time = "eth0", "", "enforce", "m 1", "pass", false, time.Now()
	pass.Rule, pass.Dst = "", netip.MustParseAddrPort("192.0.2.99:443")
	ids.Identify(&pass)
	h.KeepVerdict(&pass, s)
	return path, v.ID, s
}

// A day later, the capture of a verdict gives the same class, probabilities and image, with its
// addresses or without.
func TestKeptCaptureExplainsTheSame(t *testing.T) {
	dir := explainFixture(t)
	for _, model := range []string{tinyModel, fiveChannels} {
		name, data, err := readModel(model)
		if err != nil {
			t.Fatal(err)
		}
		engine, err := openEngine(name, data, onnx.Options{Device: "cpu"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = engine.Close() })
		for i, word := range history.AddressWords() {
			for _, capture := range []string{"one.pcap", "dns.pcap"} {
				t.Run(filepath.Base(model)+" "+word+" "+capture, func(t *testing.T) {
					path, id, s := pastOf(t, filepath.Join(dir, capture), history.Addresses(i))
					code, file, stderr := runForTest("capture", "--control", "none", "--history", path, id.String())
					if code != exitOK || stderr != "" {
						t.Fatalf("exit code %d, %s", code, stderr)
					}
					kept := filepath.Join(t.TempDir(), "why.pcapng")
					if err := os.WriteFile(kept, []byte(file), 0o600); err != nil {
						t.Fatal(err)
					}
					again := new(flow.Sample)
					if _, err := explanation.Flows(&captures.File{Name: kept}, assembly.Options{}, nil, again, 0); err != nil {
						t.Fatal(err)
					}
					m := engine.Manifest()
					want, got := make([]uint8, len(m.Channels)*classifier.ImagePixels), make([]uint8, len(m.Channels)*classifier.ImagePixels)
					classifier.Render(s, m.Mask, m.Channels, want)
					classifier.Render(again, m.Mask, m.Channels, got)
					if !bytes.Equal(want, got) {
						t.Error("the image is another one")
					}
					results := make([]flow.Result, 2)
					if err := engine.Classify([]*flow.Sample{s, again}, results); err != nil {
						t.Fatal(err)
					}
					if results[0].Class != results[1].Class || !slices.Equal(results[0].Scores, results[1].Scores) {
						t.Errorf("%+v is %+v now", results[0], results[1])
					}
					for _, end := range []netip.AddrPort{s.Initiator(), s.Responder()} {
						addr := end.Addr().AsSlice()
						there := bytes.Contains([]byte(file), addr) || strings.Contains(file, end.Addr().String())
						if there != (history.Addresses(i) == history.AddressesKept) {
							t.Errorf("address %s in the file: %v", end.Addr(), there)
						}
					}
					if !strings.Contains(file, `"decision":"drop"`) || !strings.Contains(file, "drop       ") {
						t.Error("the file does not say what the verdict was")
					}
					// explain and replay take it.
					_, was, _ := runForTest("explain", filepath.Join(dir, capture), "--model", model)
					code, is, stderr := runForTest("explain", kept, "--model", model)
					_, was, _ = strings.Cut(was, "\nmodel ")
					_, is, _ = strings.Cut(is, "\nmodel ")
					if code != exitOK || was == "" || word == "kept" && was != is {
						t.Errorf("exit code %d, %s, explained as\n%s\nwas\n%s", code, stderr, is, was)
					}
					_, was, _ = runForTest("replay", "--json", "--model", model, filepath.Join(dir, capture))
					code, is, stderr = runForTest("replay", "--json", "--model", model, kept)
					if a, b := parseRecord(t, was), parseRecord(t, is); code != exitOK || a.Class != b.Class || a.Confidence != b.Confidence || a.HandedOver != b.HandedOver ||
						a.Packets != b.Packets || a.Bytes != b.Bytes || !a.Start.Equal(b.Start) || !a.Time.Equal(b.Time) {
						t.Errorf("exit code %d, %s, replayed as\n%s\nwas\n%s", code, stderr, is, was)
					}
				})
			}
		}
	}
}

// What was is printed for people and for programs, chosen by what is asked for.
func TestEventsOfThePast(t *testing.T) {
	path, id, s := pastOf(t, filepath.Join(explainFixture(t), "one.pcap"), history.AddressesKept)
	events := func(args ...string) (code int, stdout, stderr string) {
		return runForTest(append([]string{"events", "--control", "none", "--history", path}, args...)...)
	}
	for name, tt := range map[string]struct {
		args []string
		n    int
	}{
		"all":         {nil, 2},
		"since":       {[]string{"--since", "1h"}, 2},
		"until":       {[]string{"--until", "1h"}, 0},
		"date":        {[]string{"--since", "2026-01-01", "--until", "2100-01-01 13:00"}, 2},
		"host":        {[]string{"--host", s.Responder().Addr().String()}, 1},
		"network":     {[]string{"--host", "10.0.0.0/8"}, 2},
		"server":      {[]string{"--server", s.Responder().String()}, 1},
		"filter":      {[]string{"--filter", "decision=drop", "--filter", "class=v2ray"}, 1},
		"limit":       {[]string{"--limit", "1"}, 1},
		"nobody":      {[]string{"--host", "203.0.113.1"}, 0},
		"other port":  {[]string{"--server", "192.0.2.99:444"}, 0},
		"both ends":   {[]string{"--host", "192.0.2.99", "--filter", "src=10.0.0.0/8"}, 1},
		"their class": {[]string{"--filter", "class=background"}, 0},
	} {
		for _, form := range []string{"--verbose", "--json", "--csv"} {
			code, stdout, stderr := events(append(tt.args, form)...)
			n := strings.Count(stdout, "\n")
			if form == "--csv" {
				rows, err := csv.NewReader(strings.NewReader(stdout)).ReadAll()
				if err != nil || !slices.Equal(rows[0], csvHeader) {
					t.Errorf("%s: %v, %v", name, rows, err)
				}
				n = len(rows) - 1
			}
			if code != exitOK || n != tt.n || (stderr != "") != (n == 0 && form == "--verbose") {
				t.Errorf("%s %s: exit code %d, %q, %d events, want %d:\n%s", name, form, code, stderr, n, tt.n, stdout)
			}
		}
	}
	_, stdout, _ := events()
	if lines := strings.Split(stdout, "\n"); !strings.HasPrefix(lines[0], id.String()+"  20") || !strings.Contains(lines[0], "  drop ") {
		t.Errorf("printed as\n%s", stdout)
	}
	_, stdout, _ = events("--json", "--limit", "1")
	if e, err := event.Decode([]byte(stdout)); err != nil || e.(*event.Verdict).Decision != "pass" {
		t.Errorf("the latest is %s, %v", stdout, err)
	}
}

func TestWhatEventsAndCaptureRefuse(t *testing.T) {
	path, id, _ := pastOf(t, filepath.Join(explainFixture(t), "one.pcap"), history.AddressesKept)
	text := filepath.Join(t.TempDir(), "text.db")
	if err := os.WriteFile(text, bytes.Repeat([]byte("no history\n"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"events", "--history", path, "--since", "soon"}, `--since "soon": use a time such as 2h or 7d (ago), 13:00, 2026-11-25 or "2026-11-25 13:00"`},
		{[]string{"events", "--history", path, "--since", "1h", "--until", "2h"}, "is not before --until"},
		{[]string{"events", "--history", path, "--host", "example"}, `--host: "example" is no network`},
		{[]string{"events", "--history", path, "--server", "192.0.2.7"}, `--server: "192.0.2.7" is no endpoint`},
		{[]string{"events", "--history", path, "--host", "192.0.2.7", "--filter", "cidr=10.0.0.0/8"}, "--host and --filter cidr are the same"},
		{[]string{"events", "--history", path, "--filter", "clas=v2ray"}, `--filter unknown parameter "clas", did you mean class?`},
		{[]string{"events", "--history", path, "--json", "--csv"}, "--csv and --json exclude each other"},
		{[]string{"events", "--follow", "--since", "1h"}, "--follow is about what comes, and --since about what was"},
		{[]string{"events", "--history", path + "x"}, "there is no " + path + "x"},
		{[]string{"events", "--history", text}, "it is no history of earlydrop, or damaged"},
		{[]string{"capture", "--history", path}, "capture needs EVENT"},
		{[]string{"capture", "--history", path, "?"}, `"?" is no id of an event: these are as hdwn8ksmeo`},
		{[]string{"capture", "--history", path, (id + 1000).String()}, fmt.Sprintf("the capture of event %s: not found in the history: attach --history-captures keeps those of treated flows", id+1000)},
		{[]string{"capture", "--history", text, id.String()}, "it is no history of earlydrop, or damaged"},
		{[]string{"attach", "-i", "lo", "--history-captures"}, "--history-captures is about the history: name its file with --history"},
		{[]string{"attach", "-i", "lo", "--history", path, "--history-addresses", "hashed"}, "--history-addresses is about captures: --history-captures has them kept"},
		{[]string{"attach", "-i", "lo", "--history", path, "--history-captures", "--history-captures-size", "200"}, "more than half of --history-size"},
		{[]string{"attach", "-i", "lo", "--history", path, "--history-passes", "some"}, `--history-passes "some": use all, none, a rate`},
		{[]string{"attach", "-i", "lo", "--history", path, "--history-age", "1"}, "has no unit"},
		{[]string{"attach", "-i", "lo", "--history", path, "--history-size", "1"}, "--history-size"},
	} {
		code, stdout, stderr := runForTest(append(tt.args, "--control", "none")...)
		if code != exitBadInput || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, tt.want) {
			t.Errorf("%q: exit code %d, %q, %q, want %q", tt.args, code, stdout, stderr, tt.want)
		}
	}
}

func TestTimesOfThePast(t *testing.T) {
	zone := time.FixedZone("here", 3600)
	now := time.Date(2026, 11, 26, 14, 30, 0, 0, zone)
	for text, want := range map[string]time.Time{
		"2h":                        now.Add(-2 * time.Hour),
		"1w2d":                      now.Add(-9 * 24 * time.Hour),
		"13:00":                     time.Date(2026, 11, 26, 13, 0, 0, 0, zone),
		"23:59:59":                  time.Date(2026, 11, 26, 23, 59, 59, 0, zone),
		"2026-11-25":                time.Date(2026, 11, 25, 0, 0, 0, 0, zone),
		"2026-11-25 13:00":          time.Date(2026, 11, 25, 13, 0, 0, 0, zone),
		"2026-11-25 13:00:01":       time.Date(2026, 11, 25, 13, 0, 1, 0, zone),
		"2026-11-25T13:00":          time.Date(2026, 11, 25, 13, 0, 0, 0, zone),
		"2026-11-25T13:00:01.5Z":    time.Date(2026, 11, 25, 13, 0, 1, 5e8, time.UTC),
		"2026-11-25T13:00:01+02:00": time.Date(2026, 11, 25, 11, 0, 1, 0, time.UTC),
	} {
		if got, err := parseWhen(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%s is %s, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "2", "-2h", "yesterday", "25:00", "2026-13-01", "now"} {
		if got, err := parseWhen(text, now); err == nil {
			t.Errorf("%q is %s", text, got)
		}
	}
}
