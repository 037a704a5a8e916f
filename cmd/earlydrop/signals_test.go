// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// What a flow shows is said in every output, and a rule may ask for it.
func TestSignalsAreSaidAndAskedFor(t *testing.T) {
	plain := eagerFlow(0, 2000)
	tiny := slices.Clone(plain[:3])
	for i, b := range [][]byte{{1}, {2}, {3}, plain[3].payload} {
		p := plain[3]
		p.at += time.Duration(i) * time.Millisecond / 8
		p.payload = b
		tiny = append(tiny, p)
	}
	tiny = append(tiny, plain[4:]...)
	decoy := slices.Insert(slices.Clone(plain), 4, plain[3])
	decoys := captureBytes(t, decoy...)
	// The fourth packet's payload changes, its checksum does not.
	at := 24
	for range 3 {
		at += 16 + int(decoys[at+8]) + int(decoys[at+9])<<8
	}
	decoys[at+16+54] ^= 0xff
	dir := writeFiles(t, map[string][]byte{
		"plain.pcap": captureBytes(t, plain...), "tiny.pcap": captureBytes(t, tiny...), "decoy.pcap": decoys,
		"any.yaml":  []byte(droppingPolicy),
		"tiny.yaml": []byte(strings.ReplaceAll(droppingPolicy, "ttl: 1m", "ttl: 1m, signal: [tiny, ttl]")),
	})
	for _, tt := range []struct {
		file   string
		want   []string
		passes string // why, by the policy that asks for a signal
	}{
		{"plain.pcap", nil, "no signal"},
		{"tiny.pcap", []string{"tiny"}, ""},
		// The decoy took the place of the segment that came again: bytes are missing.
		{"decoy.pcap", []string{"decoy", "gap"}, "mid-stream"},
	} {
		path := filepath.Join(dir, tt.file)
		code, stdout, stderr := runForTest("replay", "--json", "--model", tinyModel, "--policy", filepath.Join(dir, "tiny.yaml"), path)
		if code != exitOK {
			t.Fatalf("%s: exit code %d: %s", tt.file, code, stderr)
		}
		r := parseRecord(t, stdout)
		if !slices.Equal(r.Signals, tt.want) {
			t.Errorf("%s: signals %v, want %v", tt.file, r.Signals, tt.want)
		}
		if r.Class != "background" && (r.Reason != "rule" || tt.passes != "") && r.Reason != tt.passes {
			t.Errorf("%s: class %s, decision %s, reason %s", tt.file, r.Class, r.Decision, r.Reason)
		}
		_, stdout, _ = runForTest("replay", "--model", tinyModel, path)
		notes := "-"
		if tt.want != nil {
			notes = strings.Join(tt.want, ",")
		}
		if !strings.Contains(stdout, " "+notes+"\n") && !strings.Contains(stdout, " "+notes+" ") {
			t.Errorf("%s: no note %s in:\n%s", tt.file, notes, stdout)
		}
		_, stdout, _ = runForTest("explain", "--model", tinyModel, path)
		if line := "\nsignals: " + strings.Join(tt.want, ", ") + "\n"; strings.Contains(stdout, "\nsignals: ") != (tt.want != nil) || tt.want != nil && !strings.Contains(stdout, line) {
			t.Errorf("%s: want %q in:\n%s", tt.file, line, stdout)
		}
	}
	_, stdout, _ := runForTest("policy", "check", filepath.Join(dir, "tiny.yaml"))
	if want := "and the flow shows ttl or tiny"; !strings.Contains(stdout, want) {
		t.Errorf("policy check does not say %q:\n%s", want, stdout)
	}
	v := event.Verdict{Decision: "pass", Endpoints: event.Endpoints{Proto: "tcp"}, Signals: []string{"decoy", "gap"}}
	if line := v.Text(false); !strings.Contains(line, ", shows decoy gap") {
		t.Errorf("a line of the log: %s", line)
	}
}

// A connection whose payload nobody could read is an event, and no rule treats it that does not
// ask for the middle of streams.
func TestHandshakeAloneIsShown(t *testing.T) {
	packets := conversation(0, "10.0.0.1:2000", "10.9.0.1:443", make([]byte, 6000), nil)
	file, at := captureBytes(t, packets...), 24
	for i := range packets {
		n := 16 + int(file[at+8]) + int(file[at+9])<<8
		if packets[i].payload != nil {
			file = slices.Delete(file, at, at+n) // its sequence numbers stay
			continue
		}
		at += n
	}
	dir := writeFiles(t, map[string][]byte{
		"unread.pcap": file, "any.yaml": []byte(droppingPolicy),
		"middle.yaml": []byte(strings.ReplaceAll(droppingPolicy, "ttl: 1m", "ttl: 1m, mid_stream: true, signal: unreadable")),
	})
	for policy, want := range map[string]string{"any.yaml": "mid-stream", "middle.yaml": "rule"} {
		code, stdout, stderr := runForTest("replay", "--json", "--model", tinyModel, "--policy", filepath.Join(dir, policy), filepath.Join(dir, "unread.pcap"))
		if code != exitOK {
			t.Fatalf("%s: exit code %d: %s", policy, code, stderr)
		}
		r := parseRecord(t, stdout)
		if !r.MidStream || !slices.Equal(r.Signals, []string{"unreadable"}) || r.HandedOver != "closed" || r.Packets != 4 {
			t.Errorf("%s: %+v", policy, r)
		}
		if r.Reason != want {
			t.Errorf("%s: class %s, decision %s, reason %s, want %s", policy, r.Class, r.Decision, r.Reason, want)
		}
	}
}
