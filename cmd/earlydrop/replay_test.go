// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventtest"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/replay"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// eagerPolicy drops everything that is not background.
const eagerPolicy = `mode: monitor
rules:
  - name: eager
    class: [shadowsocks, v2ray]
    min_confidence: 0.01
    action: drop
    ttl: 1m
    udp_unproven: true
`

// answered is a datagram and an empty one of the other side: a flow begins when both have
// spoken.
func answered(p testPacket) []testPacket {
	return []testPacket{p, {at: p.at, src: p.dst, dst: p.src, udp: true}}
}

// replayFixture is a folder with a policy and captures. In mixed.pcap the
// first flow is handed over last.
func replayFixture(t testing.TB) string {
	ms := time.Millisecond
	mixed := []testPacket{
		{src: "10.0.0.1:53001", dst: "10.9.0.3:53", udp: true, payload: []byte("question")},
		{at: 1 * ms, src: "10.0.0.9:1009", dst: "10.9.0.9:22", flags: "A", payload: []byte("mid-stream")},
		{at: 2 * ms, src: "10.0.0.8:1008", dst: "10.9.0.8:22", flags: "S"},
	}
	mixed = append(mixed, conversation(10*ms, "10.9.0.200:1001", "10.9.0.1:443", []byte("hello"), bytes.Repeat([]byte("x"), 2000))...)
	mixed = append(mixed, testPacket{at: 20*ms + 499, src: "10.9.0.3:53", dst: "10.0.0.1:53001", udp: true, payload: []byte("answer")})
	many := []testPacket{}
	for i := range 3*replay.Batch + 5 {
		many = append(many, answered(testPacket{at: time.Duration(i) * ms, src: fmt.Sprintf("10.0.0.1:%d", 2000+i), dst: "10.9.0.3:9999",
			udp: true, payload: bytes.Repeat([]byte{byte(37 * i)}, 10+5*i)})...)
	}
	whole, all := captureBytes(t, mixed...), captureBytes(t, many...)
	return writeFiles(t, map[string][]byte{
		"policy.yaml":      []byte(eagerPolicy),
		"mixed.pcap":       whole,
		"many.pcap":        all,
		"one.pcap":         slices.Concat(whole[:24], all[len(captureBytes(t, many[:80]...)):len(captureBytes(t, many[:82]...))]),
		"cut.pcap":         whole[:len(whole)-1],
		"cut-at-once.pcap": whole[:30],
		"silent.pcap":      captureBytes(t, mixed[1], mixed[2]),
		"bright.pcap":      captureBytes(t, answered(testPacket{src: "10.0.0.1:1", dst: "10.9.0.1:2", udp: true, payload: bytes.Repeat([]byte{0xff}, 1400)})...),
		"text.pcap":        []byte("hello, world\n"),
		"empty.pcap":       nil,
		"broken.yaml":      []byte("mode: maybe\n"),
		"class.yaml":       []byte(strings.Replace(eagerPolicy, "v2ray", "trojan", 1)),
		"text.onnx":        []byte("no model"),
	})
}

// parseRecord returns the event of a line, which has to fit the schema.
func parseRecord(t testing.TB, line string) *event.Verdict {
	t.Helper()
	e, err := eventtest.Decode([]byte(line))
	if err != nil {
		t.Fatalf("line %q: %v", line, err)
	}
	return e.(*event.Verdict)
}

// expectedResult classifies a sample made of whole frames by hand, without
// the code that replay goes through.
func expectedResult(t *testing.T, s *flow.Sample) flow.Result {
	t.Helper()
	engine, err := onnx.OpenFile(tinyModel, onnx.Options{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	results := make([]flow.Result, 1)
	if err := engine.Classify([]*flow.Sample{s}, results); err != nil {
		t.Fatal(err)
	}
	return results[0]
}

// framesOf returns the frames of a pcap file without their Ethernet padding.
func framesOf(t *testing.T, path string) (frames [][]byte) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, err := pcapgo.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	for {
		frame, _, err := r.ReadPacketData()
		if err == io.EOF {
			return frames
		}
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, frame[:14+binary.BigEndian.Uint16(frame[16:])])
	}
}

func TestReplayJSONOfEachFlow(t *testing.T) {
	dir := replayFixture(t)
	path := filepath.Join(dir, "mixed.pcap")
	code, stdout, stderr := runForTest("replay", path, "--json", "--model", tinyModel, "--policy", filepath.Join(dir, "policy.yaml"))
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var got []map[string]any
	for line := range strings.Lines(stdout) {
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		got = append(got, object)
	}

	// The same samples from the frames themselves.
	src, dst := netip.MustParseAddrPort("10.9.0.200:1001"), netip.MustParseAddrPort("10.9.0.1:443")
	var tcp, udp flow.Sample
	tcp.Reset()
	tcp.Key, tcp.InitiatorIsLo = flow.NewKey(src, dst, flow.TCP, 0, 0)
	all := framesOf(t, path)
	for i, frame := range all[3:8] {
		tcp.Packets = append(tcp.Packets, flow.Packet{Offset: uint16(len(tcp.Data)), WireLen: uint32(len(frame)),
			FromInitiator: i != 1 && i != 4, Time: time.Duration(i) * time.Millisecond})
		tcp.Data = append(tcp.Data, frame[:min(len(frame), flow.CaptureBytes-len(tcp.Data))]...)
	}
	udp.Reset()
	udp.Key, udp.InitiatorIsLo = flow.NewKey(netip.MustParseAddrPort("10.0.0.1:53001"), netip.MustParseAddrPort("10.9.0.3:53"), flow.UDP, 0, 0)
	udp.Data = append(append(udp.Data, all[0]...), all[9]...)
	udp.Packets = append(udp.Packets, flow.Packet{WireLen: 50, FromInitiator: true},
		flow.Packet{Offset: 50, WireLen: 48, Time: 20 * time.Millisecond})

	// The TCP flow's last packet comes when all is captured.
	want := []map[string]any{
		{"event": "verdict", "file": path, "src": "10.0.0.1:53001", "dst": "10.9.0.3:53", "proto": "udp", "start": "2026-05-04T03:02:01.234567Z",
			"time": "2026-05-04T03:02:01.254567Z", "handed_over": "end", "scant": true, "ttl_seconds": 60.0, "model": "test 0.1.0",
			"packets": 2.0, "bytes": 98.0, "flow_packets": 2.0, "flow_bytes": 98.0, "captured": 98.0, "complete": false},
		{"event": "verdict", "file": path, "src": "10.9.0.200:1001", "dst": "10.9.0.1:443", "proto": "tcp", "start": "2026-05-04T03:02:01.244567Z",
			"time": "2026-05-04T03:02:01.248567Z", "handed_over": "full", "ttl_seconds": 60.0, "model": "test 0.1.0",
			"packets": 5.0, "bytes": 3*54 + 59 + 2054.0, "flow_packets": 6.0, "flow_bytes": 3*54 + 59 + 2054 + 54.0, "captured": 1024.0, "complete": true},
	}
	for i, s := range []*flow.Sample{&udp, &tcp} {
		r := expectedResult(t, s)
		scores := map[string]any{}
		for j, label := range r.Labels {
			scores[label] = r.Scores[j]
		}
		want[i]["class"], want[i]["confidence"], want[i]["scores"] = r.Class, r.Confidence, scores
		if r.Class == flow.Background {
			t.Fatal("the rule is about none of the flows")
		}
		want[i]["decision"], want[i]["rule"], want[i]["reason"], want[i]["policy_line"] = "drop", "eager", "rule", 3.0
		if s == &udp { // 14 bytes of payload
			want[i]["decision"], want[i]["reason"] = "pass", "scant"
			delete(want[i], "ttl_seconds")
		}
		want[i]["detected"], want[i]["likeliest"] = true, r.Class
		want[i]["rule_classes"], want[i]["rule_confidence"] = []any{"shadowsocks", "v2ray"}, 1-scores["background"].(float64)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateApprox(0, 2e-6)); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
	if want := "2 flows in 1 file classified: "; !strings.HasPrefix(stderr, want) {
		t.Errorf("stderr %q, want it to begin with %q", stderr, want)
	}
	if want := "10 packets: mid_stream 1 syns 2 tcp_opened 1 header_only 1 udp_waiting 1 handed_full 1 handed_end 1\n"; !strings.HasSuffix(stderr, want) {
		t.Errorf("stderr %q, want it to end with %q", stderr, want)
	}
}

func TestReplayIsDeterministic(t *testing.T) {
	dir := replayFixture(t)
	args := []string{"replay", "--json", "--model", tinyModel, filepath.Join(dir, "many.pcap"), filepath.Join(dir, "mixed.pcap")}
	code, first, stderr := runForTest(args...)
	if code != exitOK || strings.Count(first, "\n") != 3*replay.Batch+5+2 {
		t.Fatalf("exit code %d, %d lines, %s", code, strings.Count(first, "\n"), stderr)
	}
	if _, second, _ := runForTest(args...); first != second {
		t.Errorf("two runs differ:\n%s", cmp.Diff(first, second))
	}
	// A flow gets the same answer alone as among others.
	_, alone, _ := runForTest("replay", "--json", "--model", tinyModel, filepath.Join(dir, "one.pcap"))
	classes := map[string]int{}
	found := false
	single := parseRecord(t, alone)
	last := ""
	for line := range strings.Lines(first) {
		r := parseRecord(t, line)
		now := r.File + r.Start.Format(time.RFC3339Nano)
		if now <= last {
			t.Errorf("flow of %s after %s", now, last)
		}
		last = now
		classes[r.Class]++
		sum, most := 0.0, 0.0
		for _, p := range r.Scores.Values {
			sum += p
			most = max(most, p)
		}
		if math.Abs(sum-1) > 1e-5 || r.Scores.Of(r.Class) != r.Confidence || most != r.Confidence {
			t.Errorf("class %s with confidence %v, scores %v", r.Class, r.Confidence, r.Scores)
		}
		if r.Src == single.Src {
			found = true
			r.File = single.File
			if diff := cmp.Diff(single, r, cmpopts.IgnoreFields(event.Verdict{}, "Time", "Start"), cmpopts.EquateComparable(netip.AddrPort{}),
				cmpopts.EquateApprox(0, 2e-6)); diff != "" {
				t.Errorf("alone and among others:\n%s", diff)
			}
		}
	}
	if !found {
		t.Errorf("no flow of %s", single.Src)
	}
	if len(classes) < 2 {
		t.Errorf("all flows are of one class, %v: the comparison says little", classes)
	}
}

func TestReplayTable(t *testing.T) {
	dir := replayFixture(t)
	policy := filepath.Join(dir, "policy.yaml")
	code, stdout, stderr := runForTest("replay", "--model", tinyModel, "--policy", policy, filepath.Join(dir, "mixed.pcap"))
	if code != exitOK || stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	lines := strings.Split(stdout, "\n")
	if len(lines) != 6 || strings.Join(strings.Fields(lines[0]), " ") !=
		"START PROTO SRC DST PACKETS BYTES CAPTURED CLASS CONFIDENCE DECISION RULE NOTE" {
		t.Fatalf("stdout:\n%s", stdout)
	}
	for i, want := range []string{"2026-05-04 03:02:01.234  udp    10.0.0.1:53001   10.9.0.3:53  2        98     98",
		"2026-05-04 03:02:01.244  tcp    10.9.0.200:1001  10.9.0.1:443  6"} {
		if strings.Join(strings.Fields(lines[i+1]), " ")[:50] != strings.Join(strings.Fields(want), " ")[:50] {
			t.Errorf("line %q, want %q", lines[i+1], want)
		}
		if strings.Index(lines[i+1], "10.9.0") < strings.Index(lines[0], "SRC") {
			t.Errorf("columns are not aligned:\n%s", stdout)
		}
	}
	if !strings.HasPrefix(lines[3], "2 flows in 1 file classified: ") || !strings.HasPrefix(lines[4], "10 packets: ") {
		t.Errorf("summary:\n%s", stdout)
	}

	code, stdout, _ = runForTest("replay", "--model", tinyModel, filepath.Join(dir, "silent.pcap"), filepath.Join(dir, "one.pcap"))
	if code != exitOK || !strings.HasPrefix(stdout, "FILE ") || !strings.Contains(stdout, "\n"+filepath.Join(dir, "one.pcap")+" ") ||
		!strings.Contains(stdout, "1 flow in 2 files classified") {
		t.Errorf("exit code %d, stdout of two files:\n%s", code, stdout)
	}

	code, stdout, _ = runForTest("replay", "--model", tinyModel, filepath.Join(dir, "silent.pcap"))
	if want := "0 flows in 1 file classified; the policy drops 0\n2 packets: mid_stream 1 syns 1 header_only 1\n"; code != exitOK || stdout != want {
		t.Errorf("exit code %d, stdout of a file without flows %q, want %q", code, stdout, want)
	}
	code, stdout, _ = runForTest("replay", "--model", tinyModel, "--mid-stream", "capture", filepath.Join(dir, "silent.pcap"))
	if code != exitOK || !strings.Contains(stdout, "1 flow in 1 file classified") || !strings.Contains(stdout, "10.0.0.9:1009") {
		t.Errorf("exit code %d, stdout with mid-stream flows captured:\n%s", code, stdout)
	}
	code, _, stderr = runForTest("replay", "--mid-stream", "maybe", filepath.Join(dir, "silent.pcap"))
	if code != exitBadInput || !strings.Contains(stderr, `"maybe"`) {
		t.Errorf("exit code %d of an unknown policy for mid-stream flows: %s", code, stderr)
	}
}

// The outcome unknown is shown as a class, and a rule may name it.
func TestReplayShowsTheOutcomeUnknown(t *testing.T) {
	dir := replayFixture(t)
	model, policy := writeFile(t, "m.onnx", boundedModel(t)), writeFile(t, "p.yaml", `rules:
  - {name: strange, class: unknown, action: drop, ttl: 1m, udp_unproven: true}
  - {name: sure, class: shadowsocks, min_confidence: 0.53, action: drop, ttl: 1m, udp_unproven: true}
`)
	code, stdout, stderr := runForTest("replay", "--json", "--model", model, "--policy", policy, filepath.Join(dir, "many.pcap"))
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	got, unknown := map[string]int{}, 0
	for line := range strings.Lines(stdout) {
		r := parseRecord(t, line)
		if r.Class == flow.Unknown {
			unknown++
		}
		rule := ""
		switch {
		case r.Bytes < 2*42+64: // scant
		case r.Confidence < 0.5:
			rule = "strange"
		case r.Class == "shadowsocks" && r.Confidence >= 0.53:
			rule = "sure"
		}
		if (r.Class == flow.Unknown) != (r.Confidence < 0.5) || r.Rule != rule && r.Decision == "drop" || r.Decision == "drop" != (rule != "") {
			t.Errorf("%s", line)
		}
		got[rule]++
	}
	if len(got) != 3 {
		t.Errorf("rules that decided: %v, want each at least once", got)
	}
	if !strings.Contains(stderr, fmt.Sprintf(" %d unknown", unknown)) {
		t.Errorf("summary %q does not count %d unknown", stderr, unknown)
	}
}

func TestReplayWithShippedModelAndPolicy(t *testing.T) {
	code, stdout, stderr := runForTest("replay", "--json", filepath.Join(replayFixture(t), "mixed.pcap"))
	if code != exitOK || strings.Count(stdout, "\n") != 2 || !strings.Contains(stdout, `"scores":{"background":`) {
		t.Errorf("exit code %d, stdout:\n%s\nstderr: %s", code, stdout, stderr)
	}
}

func TestReplayReportsWhatItReadOfACutFile(t *testing.T) {
	dir := replayFixture(t)
	code, stdout, stderr := runForTest("replay", "--json", "--model", tinyModel,
		filepath.Join(dir, "cut.pcap"), filepath.Join(dir, "one.pcap"), filepath.Join(dir, "cut-at-once.pcap"))
	if code != exitFailure {
		t.Errorf("exit code %d, want %d", code, exitFailure)
	}
	// The packet that is missing is the answer of the UDP flow, which has not begun
	// without.
	if n := strings.Count(stdout, "\n"); n != 2 || strings.Contains(stdout, "10.0.0.1:53001") {
		t.Errorf("%d lines:\n%s", n, stdout)
	}
	lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	last := lines[len(lines)-1]
	if len(lines) != 3 || !strings.HasPrefix(last, "earlydrop: ") || !strings.Contains(last, "cut.pcap: file is cut off in the middle of a record (after 9 packets, at byte ") ||
		!strings.Contains(last, "cut-at-once.pcap: file is cut off in the middle of a record (after 0 packets, at byte 24)") {
		t.Errorf("stderr:\n%s", stderr)
	}
}

func TestReplayFailsWhenTheModelDoes(t *testing.T) {
	dir := replayFixture(t)
	code, stdout, stderr := runForTest("replay", "--json", "--model", "../../classifier/testdata/fails-at-run.onnx", filepath.Join(dir, "bright.pcap"))
	if code != exitFailure || stdout != "" || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

func TestReplayRefusesBadInput(t *testing.T) {
	dir := replayFixture(t)
	for _, tt := range []struct{ name, args, want string }{
		{"no file", "", "replay needs FILE"},
		{"missing file", "DIR/mixed.pcap DIR/none.pcap", "DIR/none.pcap: no such file or directory"},
		{"folder", "DIR", "DIR: is a folder, not a capture file"},
		{"no capture", "DIR/mixed.pcap DIR/text.pcap", "DIR/text.pcap: not a pcap or pcapng file"},
		{"empty file", "DIR/empty.pcap", "DIR/empty.pcap: not a pcap or pcapng file: it is empty"},
		{"missing policy", "--policy DIR/none.yaml DIR/mixed.pcap", "DIR/none.yaml: no such file"},
		{"broken policy", "--policy DIR/broken.yaml DIR/mixed.pcap", "DIR/broken.yaml:1:"},
		{"class that the model lacks", "--policy DIR/class.yaml DIR/mixed.pcap", `trojan`},
		{"missing model", "--model DIR/none.onnx DIR/mixed.pcap", "DIR/none.onnx: no such file"},
		{"no model", "--model DIR/text.onnx DIR/mixed.pcap", "not an ONNX model"},
		{"unknown flag", "--jsn DIR/mixed.pcap", "unknown flag --jsn, did you mean --json?"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := strings.Fields(strings.ReplaceAll("--json "+tt.args, "DIR", dir))
			if !strings.Contains(tt.args, "--model") {
				args = append([]string{"--model", tinyModel}, args...)
			}
			code, stdout, stderr := runForTest(append([]string{"replay"}, args...)...)
			if code != exitBadInput || stdout != "" {
				t.Errorf("exit code %d, want %d; stdout %q", code, exitBadInput, stdout)
			}
			if want := strings.ReplaceAll(tt.want, "DIR", dir); !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("stderr %q, want one line with %q", stderr, want)
			}
		})
	}
}
