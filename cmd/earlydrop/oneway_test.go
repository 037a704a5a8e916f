// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/dataset"
)

// onlyFrom returns the packets that src has sent. Both directions are numbered as if the
// other one was there.
func onlyFrom(t testing.TB, packets []testPacket, src string) []byte {
	t.Helper()
	file := captureBytes(t, packets...)
	out, at := file[:24:24], 24
	for i, p := range packets {
		size := len(captureBytes(t, packets[:i+1]...)) - len(captureBytes(t, packets[:i]...))
		if p.src == src {
			out = append(out, file[at:at+size]...)
		}
		at += size
	}
	return out
}

// oneWayFixture is a folder with captures of connections of which one direction is there,
// and policies.
func oneWayFixture(t *testing.T) string {
	const client, server = "10.0.0.1:2000", "10.9.0.1:443"
	talk := eagerFlow(0, 2000)
	request := onlyFrom(t, append(talk[:4:4], testPacket{at: 5 * time.Millisecond, src: client, dst: server, flags: "A", payload: bytes.Repeat([]byte{200}, 1100)}), client)
	var whole []testPacket
	for i := range 19 {
		whole = append(whole, eagerFlow(time.Duration(i+1)*time.Second, 3000+i)...)
	}
	all := captureBytes(t, whole...)
	return writeFiles(t, map[string][]byte{
		"client.pcap": request,
		"server.pcap": onlyFrom(t, talk, server),
		"both.pcap":   captureBytes(t, talk...),
		// 1 of 20 is 5 %, 1 of 19 more.
		"five.pcap":  append(request[:len(request):len(request)], all[24:]...),
		"more.pcap":  append(request[:len(request):len(request)], captureBytes(t, whole[:6*18]...)[24:]...),
		"rest.pcap":  captureBytes(t, whole[:6*18]...),
		"plain.yaml": []byte(droppingPolicy),
		"treat.yaml": []byte(strings.ReplaceAll(droppingPolicy, "ttl: 1m", "ttl: 1m, one_way: true")),
	})
}

func TestReplayCapturesOneWayFlowsWhereAsked(t *testing.T) {
	dir := oneWayFixture(t)
	for _, tt := range []struct {
		args string
		want []string // of each flow: initiator, whether it is one-way, decision, rule, reason
	}{
		{"--policy DIR/treat.yaml DIR/client.pcap DIR/server.pcap", nil},
		{"--policy DIR/plain.yaml --one-way DIR/client.pcap DIR/server.pcap",
			[]string{"10.0.0.1:2000 true pass all one-way", "10.0.0.1:2000 true pass all one-way"}},
		{"--policy DIR/treat.yaml --one-way DIR/client.pcap DIR/server.pcap",
			[]string{"10.0.0.1:2000 true drop all rule", "10.0.0.1:2000 true drop all rule"}},
		{"--policy DIR/plain.yaml --one-way DIR/both.pcap", []string{"10.0.0.1:2000 false drop all rule"}},
	} {
		code, stdout, stderr := runForTest(strings.Fields(strings.ReplaceAll("replay --json --model "+tinyModel+" "+tt.args, "DIR", dir))...)
		var got []string
		for line := range strings.Lines(stdout) {
			r := parseRecord(t, line)
			got = append(got, fmt.Sprintf("%s %v %s %s %s", r.Src, r.OneWay, r.Decision, r.Rule, r.Reason))
			if strings.Contains(line, `"one_way":true`) != r.OneWay {
				t.Errorf("%s: %s", tt.args, line)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" || code != exitOK {
			t.Errorf("%s: exit code %d, %s (-want +got):\n%s", tt.args, code, stderr, diff)
		}
	}

	_, stdout, _ := runForTest("replay", "--one-way", "--model", tinyModel, filepath.Join(dir, "client.pcap"))
	if lines := strings.Split(stdout, "\n"); len(lines) != 5 || !strings.HasSuffix(lines[1], " one-way") {
		t.Errorf("the table has no note:\n%s", stdout)
	}
}

func TestReplaySaysThatADirectionIsMissing(t *testing.T) {
	dir := oneWayFixture(t)
	const advice = " only one direction is there, so they are not judged; where routing was asymmetric, --one-way captures them\n"
	for _, tt := range []struct{ args, want string }{
		{"DIR/client.pcap", "warning: DIR/client.pcap: of 100 % of the TCP connections (1 of 1)" + advice},
		{"DIR/both.pcap", ""},
		{"DIR/five.pcap", ""},
		{"DIR/more.pcap", "warning: DIR/more.pcap: of 5 % of the TCP connections (1 of 19)" + advice},
		{"--one-way DIR/more.pcap", ""},
		{"DIR/more.pcap DIR/both.pcap DIR/client.pcap", "warning: DIR/more.pcap: of 5 % of the TCP connections (1 of 19)" + advice +
			"warning: DIR/client.pcap: of 100 % of the TCP connections (1 of 1)" + advice},
		{"--join DIR/rest.pcap DIR/client.pcap", "warning: DIR/client.pcap and 1 more: of 5 % of the TCP connections (1 of 19)" + advice},
	} {
		code, _, stderr := runForTest(strings.Fields(strings.ReplaceAll("replay --model "+tinyModel+" "+tt.args, "DIR", dir))...)
		want := strings.ReplaceAll(tt.want, "DIR", dir)
		if code != exitOK || stderr != want {
			t.Errorf("%s: exit code %d, stderr %q, want %q", tt.args, code, stderr, want)
		}
	}
}

func TestExplainOfAOneWayFlow(t *testing.T) {
	path := filepath.Join(oneWayFixture(t), "client.pcap")
	code, stdout, stderr := runForTest("explain", "--model", tinyModel, "--one-way", path)
	if code != exitOK || !strings.Contains(stdout, "\none-way: one direction alone is in the file") {
		t.Errorf("exit code %d, %s:\n%s", code, stderr, stdout)
	}
	if code, _, stderr := runForTest("explain", "--model", tinyModel, path); code != exitBadInput || !strings.Contains(stderr, "has no flow with payload whose beginning is in it") {
		t.Errorf("without the option: exit code %d, %s", code, stderr)
	}
	both := filepath.Join(filepath.Dir(path), "both.pcap")
	if _, stdout, _ := runForTest("explain", "--model", tinyModel, "--one-way", both); !strings.Contains(stdout, "flow 1 of 1") || strings.Contains(stdout, "one-way") {
		t.Errorf("of both directions:\n%s", stdout)
	}
}

func TestDatasetTakesOneWayFlowsWhereAsked(t *testing.T) {
	dir := oneWayFixture(t)
	manifest := "path\tlabel\tgroup\tprogram\nclient.pcap\ta\tg\tx\nboth.pcap\tb\tg\ty\n"
	if err := os.WriteFile(filepath.Join(dir, "m.tsv"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	code, _, stderr := runForTest("dataset", "--one-way", "--manifest", filepath.Join(dir, "m.tsv"), "--out", out)
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	want := "index\tlabel\tgroup\tfile\tsrc\tdst\tproto\tcaptured\treason\tone_way\tprogram\n" +
		"0\ta\tg\tclient.pcap\t10.0.0.1:2000\t10.9.0.1:443\ttcp\t1024\tfull\ttrue\tx\n" +
		"1\tb\tg\tboth.pcap\t10.0.0.1:2000\t10.9.0.1:443\ttcp\t1024\tfull\tfalse\ty\n"
	if diff := cmp.Diff(want, string(readFileOf(t, filepath.Join(out, dataset.SamplesFile)))); diff != "" {
		t.Errorf("samples.tsv (-want +got):\n%s", diff)
	}
	code, _, stderr = runForTest("dataset", "--manifest", filepath.Join(dir, "m.tsv"), "--out", out)
	if code != exitBadInput || !strings.Contains(stderr, "no capture of label a holds a flow with payload") {
		t.Errorf("without the option: exit code %d, %s", code, stderr)
	}
	// The command makes the column.
	if err := os.WriteFile(filepath.Join(dir, "m.tsv"), []byte(strings.Replace(manifest, "program", "one_way", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := runForTest("dataset", "--manifest", filepath.Join(dir, "m.tsv"), "--out", out); code != exitBadInput || !strings.Contains(stderr, `column "one_way" is one that every dataset has`) {
		t.Errorf("a column of that name: exit code %d, %s", code, stderr)
	}
}
