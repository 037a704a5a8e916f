// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/dataset"
)

// snapped cuts every packet of a pcap file to n bytes at most.
func snapped(t testing.TB, file []byte, n int) []byte {
	t.Helper()
	out := bytes.Clone(file[:24])
	for rest := file[24:]; len(rest) > 0; {
		size := int(binary.LittleEndian.Uint32(rest[8:]))
		record := bytes.Clone(rest[:16+min(size, n)])
		binary.LittleEndian.PutUint32(record[8:], uint32(min(size, n)))
		out = append(out, record...)
		rest = rest[16+size:]
	}
	return out
}

// droppingPolicy drops every flow that it can.
const droppingPolicy = `mode: enforce
rules:
  - {name: all, class: [shadowsocks, v2ray], min_confidence: 0.01, action: drop, ttl: 1m}
`

// eagerFlow returns a connection that droppingPolicy drops, whole or without payload.
func eagerFlow(at time.Duration, port int) []testPacket {
	request := binary.BigEndian.AppendUint16(bytes.Repeat([]byte{200}, 48), uint16(port))
	return conversation(at, fmt.Sprintf("10.0.0.1:%d", port), "10.9.0.1:443", request, bytes.Repeat([]byte{200}, 1200))
}

// The paper's image of a flow without payload is none of a class.
func TestReplayDropsNoIncompleteFlow(t *testing.T) {
	var packets []testPacket
	for i := range 12 {
		packets = append(packets, eagerFlow(time.Duration(i)*time.Second, 2000+i)...)
	}
	whole := captureBytes(t, packets...)
	mixed := append(snapped(t, captureBytes(t, eagerFlow(0, 3000)...), 60), captureBytes(t, eagerFlow(time.Second, 3001)...)[24:]...)
	dir := writeFiles(t, map[string][]byte{
		"whole.pcap": whole, "54.pcap": snapped(t, whole, 54), "85.pcap": snapped(t, whole, 85), "86.pcap": snapped(t, whole, 86),
		"mixed.pcap": mixed, "policy.yaml": []byte(droppingPolicy),
	})
	policy := filepath.Join(dir, "policy.yaml")
	for _, tt := range []struct {
		file                   string
		flows, cut, incomplete int
		wanted                 int // flows that are not taken for background, at least
	}{
		{"whole.pcap", 12, 0, 0, 6}, {"54.pcap", 12, 12, 12, 3}, {"85.pcap", 12, 12, 12, 0}, {"86.pcap", 12, 12, 0, 0}, {"mixed.pcap", 2, 1, 1, 1},
	} {
		t.Run(tt.file, func(t *testing.T) {
			path := filepath.Join(dir, tt.file)
			code, stdout, stderr := runForTest("replay", "--json", "--model", tinyModel, "--policy", policy, path)
			if code != exitOK {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			flows, cut, incomplete, background := 0, 0, 0, 0
			for line := range strings.Lines(stdout) {
				r := parseRecord(t, line)
				flows++
				if r.Class == "background" {
					background++
				}
				want := [3]string{"drop", "all", "rule"}
				switch {
				case r.Incomplete:
					incomplete++
					want = [3]string{"pass", "", "incomplete"}
				case r.Class == "background":
					want = [3]string{"pass", "", "no rule"}
				}
				if r.Cut {
					cut++
				}
				if diff := cmp.Diff(want, [3]string{r.Decision, r.Rule, r.Reason}); diff != "" || r.Incomplete && !r.Cut {
					t.Errorf("%s%s", line, diff)
				}
			}
			if flows != tt.flows || cut != tt.cut || incomplete != tt.incomplete {
				t.Errorf("%d flows, %d cut, %d incomplete; want %+v", flows, cut, incomplete, tt)
			}
			if flows-background < tt.wanted {
				t.Errorf("%d flows are background: that they are not dropped says nothing", background)
			}
			warning := fmt.Sprintf("warning: %s: %d of %s incomplete: ", path, incomplete, count(uint64(flows), "flow"))
			if n := strings.Count(stderr, "warning: "); n != min(incomplete, 1) || n > 0 && !strings.HasPrefix(stderr, warning) {
				t.Errorf("stderr %q, want %d warnings: %q", stderr, min(incomplete, 1), warning)
			}
			if incomplete > 0 != strings.Contains(stderr, fmt.Sprintf("; %d incomplete; the policy drops ", incomplete)) ||
				incomplete > 0 != strings.Contains(stderr, fmt.Sprintf(" incomplete %d\n", incomplete)) ||
				cut > 0 != strings.Contains(stderr, fmt.Sprintf(" cut %d", cut)) {
				t.Errorf("summary does not count them: %q", stderr)
			}

			// The table has the same as notes.
			_, stdout, _ = runForTest("replay", "--model", tinyModel, "--policy", policy, path)
			notes := map[string]int{}
			for line := range strings.Lines(stdout) {
				fields := strings.Fields(line)
				if strings.HasPrefix(line, "2026-") {
					notes[fields[len(fields)-1]]++
				}
			}
			if notes["incomplete"] != incomplete || notes["cut"] != cut-incomplete || notes["-"] != flows-cut {
				t.Errorf("notes %v in:\n%s", notes, stdout)
			}
		})
	}
	// Each file warns for itself.
	_, _, stderr := runForTest("replay", "--model", tinyModel, filepath.Join(dir, "54.pcap"), filepath.Join(dir, "whole.pcap"), filepath.Join(dir, "mixed.pcap"))
	if strings.Count(stderr, "warning: ") != 2 || !strings.Contains(stderr, "54.pcap: 12 of 12 flows ") || !strings.Contains(stderr, "mixed.pcap: 1 of 2 flows ") {
		t.Errorf("stderr of three files %q", stderr)
	}
}

func TestExplainSaysWhatIsSpecialAboutACapture(t *testing.T) {
	flow := captureBytes(t, eagerFlow(0, 2000)...)
	dir := writeFiles(t, map[string][]byte{
		"whole.pcap": flow, "headers.pcap": snapped(t, flow, 54), "cut.pcap": snapped(t, flow, 200),
		"middle.pcap": captureBytes(t, eagerFlow(0, 2000)[3:]...),
		"two.pcap":    append(snapped(t, flow, 54), captureBytes(t, eagerFlow(time.Second, 2001)[3:]...)[24:]...),
	})
	const incomplete, cut, middle = "\nincomplete: the file holds fewer than 32 payload bytes ", "\ncut: the file lacks ", "\nmid-stream: captured from its middle"
	for _, tt := range []struct{ file, want string }{
		{"whole.pcap", ""}, {"headers.pcap", incomplete}, {"cut.pcap", cut}, {"middle.pcap", middle},
	} {
		code, stdout, stderr := runForTest("explain", "--model", tinyModel, "--mid-stream", "capture", filepath.Join(dir, tt.file))
		if code != exitOK || !strings.Contains(stdout, tt.want) {
			t.Errorf("%s: exit code %d, %s, no %q in:\n%s", tt.file, code, stderr, tt.want, stdout)
		}
		for _, other := range []string{incomplete, cut, middle} {
			if other != tt.want && strings.Contains(stdout, other) {
				t.Errorf("%s: %q", tt.file, other)
			}
		}
	}
	code, stdout, stderr := runForTest("explain", "--model", tinyModel, "--mid-stream", "capture", filepath.Join(dir, "two.pcap"))
	lines := strings.Split(stdout, "\n")
	if code != exitOK || len(lines) != 5 || !strings.HasSuffix(lines[1], "incomplete") || !strings.HasSuffix(lines[2], "mid-stream") {
		t.Errorf("exit code %d, %s, list:\n%s", code, stderr, stdout)
	}
}

func TestReplaySaysThatAFlowIsMidStream(t *testing.T) {
	packets := eagerFlow(0, 2000)[3:]
	packets = append(packets, eagerFlow(time.Second, 2001)...)
	dir := writeFiles(t, map[string][]byte{
		"a.pcap": captureBytes(t, packets...), "plain.yaml": []byte(droppingPolicy),
		"middle.yaml": []byte(strings.ReplaceAll(droppingPolicy, "ttl: 1m", "ttl: 1m, mid_stream: true")),
	})
	for _, tt := range []struct {
		policy string
		want   []string // of each flow: mid-stream, decision, rule, reason
	}{
		{"plain.yaml", []string{"true pass all mid-stream", "false drop all rule"}},
		{"middle.yaml", []string{"true drop all rule", "false drop all rule"}},
	} {
		code, stdout, stderr := runForTest("replay", "--json", "--mid-stream", "capture", "--model", tinyModel, "--policy", filepath.Join(dir, tt.policy), filepath.Join(dir, "a.pcap"))
		var got []string
		for line := range strings.Lines(stdout) {
			r := parseRecord(t, line)
			got = append(got, fmt.Sprintf("%v %s %s %s", r.MidStream, r.Decision, r.Rule, r.Reason))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" || code != exitOK {
			t.Errorf("%s: exit code %d, %s (-want +got):\n%s", tt.policy, code, stderr, diff)
		}
	}
}

// What an attach can't be asked for is refused before anything is touched: the
// interface does not even exist.
func TestAttachRefusesToEnforceOnMidStreamFlowsUnasked(t *testing.T) {
	plain := writeFile(t, "plain.yaml", strings.Replace(droppingPolicy, "enforce", "monitor", 1))
	enforce := writeFile(t, "enforce.yaml", droppingPolicy)
	middle := writeFile(t, "middle.yaml", strings.ReplaceAll(droppingPolicy, "ttl: 1m", "ttl: 1m, mid_stream: true"))
	const refused = "earlydrop: --mid-stream capture in mode enforce needs a rule with \"mid_stream: true\", and the policy has none"
	const missing = "earlydrop: no such interface"
	for _, tt := range []struct{ args, want string }{
		{"--mid-stream capture --policy " + enforce, refused},
		{"--mid-stream capture --policy " + plain + " --mode enforce", refused},
		{"--mid-stream capture --policy " + enforce + " --mode monitor", missing},
		{"--mid-stream capture --policy " + plain, missing},
		{"--mid-stream capture --policy " + middle, missing},
		{"--mid-stream ignore --policy " + enforce, missing},
		{"--policy " + enforce, missing},
	} {
		code, stdout, stderr := runForTest(append([]string{"attach", "-i", "no-such-device", "--model", tinyModel}, strings.Fields(tt.args)...)...)
		if code != exitBadInput || stdout != "" || !strings.HasPrefix(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q, want one line that begins with %q", tt.args, code, stdout, stderr, tt.want)
		}
	}
	// The built-in policy has no such rule.
	if code, _, stderr := runForTest("attach", "-i", "no-such-device", "--mode", "enforce", "--mid-stream", "capture"); code != exitBadInput || !strings.HasPrefix(stderr, refused) {
		t.Errorf("built-in policy: exit code %d, %s", code, stderr)
	}
}

func TestDatasetLeavesIncompleteFlowsOut(t *testing.T) {
	var packets []testPacket
	for i := range 3 {
		packets = append(packets, eagerFlow(time.Duration(i)*time.Second, 2000+i)...)
	}
	whole := captureBytes(t, packets...)
	dir := writeFiles(t, map[string][]byte{
		"in/a/whole.pcap": whole, "in/a/headers.pcap": snapped(t, whole, 54), "in/b/cut.pcap": snapped(t, captureBytes(t, eagerFlow(0, 2010)...), 200),
		"headers/a.pcap": snapped(t, whole, 54),
		"set.tsv":        []byte("path\tlabel\tgroup\nheaders/a.pcap\tshadowsocks\tg\n"),
	})
	out := filepath.Join(dir, "out")
	code, stdout, stderr := runForTest("dataset", "--captures", filepath.Join(dir, "in"), "--label", "background", "--out", out)
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	text, err := os.ReadFile(filepath.Join(out, dataset.InfoFile))
	if err != nil {
		t.Fatal(err)
	}
	var d dataset.Info
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if d.Samples != 4 || d.Incomplete["background"] != 3 || d.Counters["incomplete"] != 3 || d.Counters["cut"] != 4 {
		t.Errorf("dataset.json %s", text)
	}
	if !strings.Contains(stdout, "(incomplete left out)") {
		t.Errorf("stdout does not say it:\n%s", stdout)
	}
	want := "warning: 3 incomplete flows left out in 1 file, as of packets with payload fewer than 32 bytes of it are there (was the snap length small?), first " +
		filepath.Join(dir, "in/a/headers.pcap") + "\n"
	if stderr != want {
		t.Errorf("stderr %q, want %q", stderr, want)
	}

	// Where nothing else is there, nothing can be learned.
	for _, tt := range []struct{ args, want string }{
		{"--captures DIR/headers --label background", "--captures DIR/headers: 3 flows in it, all incomplete"},
		{"--manifest DIR/set.tsv", "no capture of label shadowsocks holds a flow that is complete: 3 flows left out"},
	} {
		args := strings.Fields(strings.ReplaceAll("dataset --out DIR/none "+tt.args, "DIR", dir))
		code, stdout, stderr := runForTest(args...)
		if want := strings.ReplaceAll(tt.want, "DIR", dir); code != exitBadInput || stdout != "" || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, stderr %q, want one line with %q", tt.args, code, stderr, want)
		}
	}
}
