// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTimesOfUDPAreChecked(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"attach -i nosuch --udp-idle 999ms", `--udp-idle "999ms": use a time of 1s or more`},
		{"attach -i nosuch --udp-idle -1m", `--udp-idle "-1m": use a time of 1s or more`},
		{"attach -i nosuch --udp-warmup -1s", `--udp-warmup "-1s": use a time of 0s or more`},
		{"attach -i nosuch --udp-warmup 60", `--udp-warmup "60": use a time`},
		{"replay --udp-idle 0s x.pcap", `--udp-idle "0s": use a time of 1s or more`},
	} {
		code, stdout, stderr := runForTest(strings.Fields(tt.args)...)
		if code != exitBadInput || stdout != "" || !strings.Contains(stderr, tt.want) {
			t.Errorf("%s: exit code %d, %q, %q", tt.args, code, stdout, stderr)
		}
	}
}

// A conversation that goes on after a pause is not judged by its middle, unless a rule
// says so.
func TestReplayMarksResumedFlows(t *testing.T) {
	const a, b = "10.0.0.1:40000", "10.9.0.1:443"
	message := bytes.Repeat([]byte{200}, 600)
	talk := func(at time.Duration) []testPacket {
		return []testPacket{
			{at: at, src: a, dst: b, udp: true, payload: message}, {at: at + time.Millisecond, src: b, dst: a, udp: true, payload: message},
		}
	}
	dir := writeFiles(t, map[string][]byte{
		"65s.pcap":    captureBytes(t, append(talk(0), talk(65*time.Second)...)...),
		"11m.pcap":    captureBytes(t, append(talk(0), talk(11*time.Minute)...)...),
		"plain.yaml":  []byte(`rules: [{name: all, class: [shadowsocks, v2ray], min_confidence: 0.01, action: drop, ttl: 1m, udp_unproven: true}]`),
		"middle.yaml": []byte(`rules: [{name: all, class: [shadowsocks, v2ray], min_confidence: 0.01, action: drop, ttl: 1m, udp_unproven: true, mid_stream: true}]`),
	})
	for _, tt := range []struct {
		args []string
		want string // per flow: its decision, and whether it is resumed
	}{
		{[]string{"--policy", "plain.yaml", "65s.pcap"}, "drop"},
		{[]string{"--policy", "plain.yaml", "11m.pcap"}, "drop, pass resumed"},
		{[]string{"--policy", "middle.yaml", "11m.pcap"}, "drop, drop resumed"},
		{[]string{"--policy", "plain.yaml", "--udp-idle", "12m", "11m.pcap"}, "drop"},
		{[]string{"--policy", "plain.yaml", "--udp-idle", "1m", "65s.pcap"}, "drop, pass resumed"},
	} {
		args := []string{"replay", "--json", "--model", tinyModel}
		for _, arg := range tt.args {
			if strings.Contains(arg, ".") {
				arg = filepath.Join(dir, arg)
			}
			args = append(args, arg)
		}
		code, stdout, stderr := runForTest(args...)
		if code != exitOK {
			t.Fatalf("%v: exit code %d, %s", tt.args, code, stderr)
		}
		var got []string
		for line := range strings.Lines(stdout) {
			r := parseRecord(t, line)
			what := r.Decision
			if r.Resumed {
				what += " resumed"
			}
			got = append(got, what)
		}
		if got := strings.Join(got, ", "); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.args, got, tt.want)
		}
	}
}
