// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/explanation"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/term"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

var update = flag.Bool("update", false, "write the expected output anew")

const (
	fiveChannels = "../../classifier/testdata/tiny5.onnx"
)

// explainFixture is a folder with captures for explain.
func explainFixture(t testing.TB) string {
	ms := time.Millisecond
	dns := []testPacket{
		{at: 40 * ms, src: "10.0.0.1:53001", dst: "10.9.0.3:53", udp: true, payload: []byte("question")},
		{at: 41 * ms, src: "10.9.0.3:53", dst: "10.0.0.1:53001", udp: true, payload: []byte("a longer answer")},
	}
	whole := captureBytes(t, append(conversation(0, "10.0.0.1:1001", "10.9.0.1:443", []byte("hello"), bytes.Repeat([]byte("x"), 2000)), dns...)...)
	return writeFiles(t, map[string][]byte{
		"one.pcap":    captureBytes(t, conversation(0, "10.0.0.1:1001", "10.9.0.1:443", []byte("hello"), bytes.Repeat([]byte("x"), 2000))...),
		"two.pcap":    whole,
		"dns.pcap":    captureBytes(t, dns...),
		"cut.pcap":    whole[:len(whole)-1],
		"silent.pcap": captureBytes(t, testPacket{src: "10.0.0.1:1001", dst: "10.9.0.1:443", flags: "S"}),
		"text.pcap":   []byte("hello\n"),
		"empty.pcap":  nil,
		"text.onnx":   []byte("no model"),
	})
}

// equalButLastDigits compares texts; numbers with a fraction may differ by what
// the arithmetic of another machine makes of their last digit.
func equalButLastDigits(want, got string) bool {
	number := regexp.MustCompile(`[+-]?\d+\.\d{4}\b`)
	a, b := number.FindAllString(want, -1), number.FindAllString(got, -1)
	if len(a) != len(b) || number.ReplaceAllString(want, "N") != number.ReplaceAllString(got, "N") {
		return false
	}
	for i := range a {
		x, errX := strconv.ParseFloat(a[i], 64)
		y, errY := strconv.ParseFloat(b[i], 64)
		if errX != nil || errY != nil || math.Abs(x-y) > 1.01e-4 {
			return false
		}
	}
	return true
}

func TestExplainPrintsWhatMattered(t *testing.T) {
	dir := explainFixture(t)
	for _, tt := range []struct {
		golden string
		args   []string
	}{
		{"explain-dns.txt", []string{"dns.pcap", "--model", fiveChannels}},
		{"explain-second.txt", []string{"two.pcap", "--flow", "2", "--model", tinyModel}},
		{"explain-list.txt", []string{"two.pcap", "--model", tinyModel}},
	} {
		t.Run(tt.golden, func(t *testing.T) {
			tt.args[0] = filepath.Join(dir, tt.args[0])
			tt.args = append(tt.args, "--policy", flowPolicy(t))
			code, stdout, stderr := runForTest(append([]string{"explain"}, tt.args...)...)
			if code != exitOK || stderr != "" {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			stdout = strings.ReplaceAll(stdout, dir, "DIR")
			path := filepath.Join("testdata", tt.golden)
			if *update {
				if err := os.WriteFile(path, []byte(stdout), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !equalButLastDigits(string(want), stdout) {
				t.Errorf("output (-want +got):\n%s", cmp.Diff(string(want), stdout))
			}
			_, again, _ := runForTest(append([]string{"explain"}, tt.args...)...)
			if strings.ReplaceAll(again, dir, "DIR") != stdout {
				t.Error("a second run says something else")
			}
		})
	}
}

// What a model is not told has no effect, and what the mask replaces is not tried.
func TestExplainLeavesOutWhatTheModelDoesNotSee(t *testing.T) {
	dir := explainFixture(t)
	_, stdout, _ := runForTest("explain", filepath.Join(dir, "one.pcap"), "--model", tinyModel)
	for _, word := range []string{"  length of packet", "  direction of packet", "  time of packet", "all lengths", "Ethernet source", "TCP source port", "TTL of packet"} {
		if strings.Contains(stdout, word) {
			t.Errorf("a model of bytes alone, mask strict, is said to depend on %q:\n%s", word, stdout)
		}
	}
	if !strings.Contains(stdout, "\n   0  ____________") {
		t.Errorf("the Ethernet addresses are not shown as unseen:\n%s", stdout)
	}
	_, stdout, _ = runForTest("explain", filepath.Join(dir, "one.pcap"), "--model", fiveChannels)
	for _, word := range []string{"length of packet", "direction of packet", "time of packet", "all lengths of packets", "all times of packets"} {
		if !strings.Contains(stdout, word) {
			t.Errorf("a model of five channels is not said to depend on %q:\n%s", word, stdout)
		}
	}
}

// The name says which kind of file is written.
func TestExplainWritesAFile(t *testing.T) {
	dir := explainFixture(t)
	for name, begins := range map[string]string{
		"out.html": "<!DOCTYPE html>", "OUT.HTM": "<!DOCTYPE html>", "out.png": "\x89PNG\r\n", "out": "\x89PNG\r\n",
	} {
		out := filepath.Join(dir, name)
		code, stdout, stderr := runForTest("explain", filepath.Join(dir, "one.pcap"), "--model", fiveChannels, "--out", out)
		if code != exitOK || !strings.Contains(stdout, "EFFECT") {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		text := string(readFileOf(t, out))
		if !strings.HasPrefix(text, begins) {
			t.Errorf("%s begins with %.20q", name, text)
		}
		if strings.HasPrefix(begins, "<") && !strings.Contains(text, "<h1>"+filepath.Join(dir, "one.pcap")+", flow 1 of 1: tcp ") {
			t.Errorf("%s does not say which flow it is of", name)
		}
	}
}

func TestExplainInColour(t *testing.T) {
	dir := explainFixture(t)
	var s flow.Sample
	numbers, err := explanation.Flows(&captures.File{Name: filepath.Join(dir, "one.pcap")}, assembly.Options{}, func(int64) {}, &s, 0)
	if err != nil || len(numbers) != 1 {
		t.Fatalf("flows %v, %v", numbers, err)
	}
	engine, err := onnx.OpenFile(fiveChannels, onnx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	e, err := explanation.New(engine, &policy.Policy{}, &s, explanation.Place{})
	if err != nil {
		t.Fatal(err)
	}
	colored, plain := explanationText(e, true, term.Unbounded), explanationText(e, false, term.Unbounded)
	if n, want := strings.Count(colored, "\u2580"), 3*classifier.ImageSide*classifier.ImageSide/2; n != want {
		t.Errorf("%d half blocks, want %d", n, want)
	}
	if strings.Contains(plain, "\x1b") || !strings.Contains(colored, "\x1b[38;2;") {
		t.Error("escape sequences are where they should not be, or missing where they should be")
	}
	if text := explanationText(e, true, 31); !strings.Contains(text, "has 31: make it wider, or have them drawn (--out FILE)\n") || !strings.Contains(text, "EFFECT") {
		t.Errorf("in 31 columns:\n%s", text)
	}
	var buffer bytes.Buffer
	if term.HasColors(&buffer) {
		t.Error("a buffer is taken for a terminal")
	}
}

// What is explained is what the policy went by, also where the model names no class.
func TestExplainIsAboutWhatDecided(t *testing.T) {
	dir := explainFixture(t)
	model := writeFile(t, "m.onnx", boundedModel(t))
	rules := func(text string) string { return writeFile(t, "p.yaml", "rules: [{"+text+", action: drop, ttl: 1m}]") }
	for _, tt := range []struct {
		name, policy string
		want         []string // lines, in order
		explained    string
	}{
		{"no rule is about it", rules("class: v2ray, min_confidence: 0.9"), []string{
			`class unknown (shadowsocks 0.349): no label reaches 0.5`,
			`decision: pass, no rule is about it`,
		}, "shadowsocks"},
		{"a rule over both", rules("name: both, class: [v2ray, shadowsocks], min_confidence: 0.6"), []string{
			`class v2ray|shadowsocks 0.681 (shadowsocks 0.349): no label reaches 0.5`,
			`decision: drop, rule both: the probability of v2ray or shadowsocks is 0.6810; the rule asks for 0.6`,
		}, "v2ray|shadowsocks"},
		{"not enough", rules("name: both, class: [v2ray, shadowsocks], min_confidence: 0.9"), []string{
			`class v2ray|shadowsocks 0.681 (shadowsocks 0.349): no label reaches 0.5`,
			`decision: pass, below min_confidence both: the probability of v2ray or shadowsocks is 0.6810; the rule asks for 0.9`,
		}, "v2ray|shadowsocks"},
		{"a rule over unknown", rules("name: strange, class: unknown"), []string{
			`class unknown (shadowsocks 0.349): no label reaches 0.5`,
			`decision: drop, rule strange is about flows that are like no class`,
		}, "shadowsocks"},
		{"allowed", writeFile(t, "p.yaml", "allow: [{port: 443}]"), []string{
			`class unknown (shadowsocks 0.349): no label reaches 0.5`,
			`decision: pass, allow-list: port 443`,
		}, "shadowsocks"},
		{"the shipped policy", "", []string{
			`class shadowsocks|v2ray 0.681 (shadowsocks 0.349): no label reaches 0.5`,
			`decision: pass, below min_confidence tunnels: the probability of shadowsocks or v2ray is 0.6810; the rule asks for 0.9`,
		}, "shadowsocks|v2ray"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := []string{"explain", filepath.Join(dir, "one.pcap"), "--model", model}
			if tt.policy != "" {
				args = append(args, "--policy", tt.policy)
			}
			code, stdout, stderr := runForTest(args...)
			if code != exitOK {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			if lines := "\n" + strings.Join(tt.want, "\n") + "\nprobabilities: "; !strings.Contains(stdout, lines) {
				t.Errorf("stdout lacks%s\n%s", lines, stdout)
			}
			if legend := fmt.Sprintf(", for %s; a to i: against it", tt.explained); !strings.Contains(stdout, legend) {
				t.Errorf("stdout lacks %q:\n%s", legend, stdout)
			}
		})
	}
	code, _, stderr := runForTest("explain", filepath.Join(dir, "one.pcap"), "--model", model, "--policy", rules("class: trojan, min_confidence: 0.9"))
	if code != exitBadInput || !strings.Contains(stderr, `no class "trojan"`) {
		t.Errorf("a policy for another model: exit code %d, %s", code, stderr)
	}
}

func TestExplainRefusesBadInput(t *testing.T) {
	dir := explainFixture(t)
	for _, tt := range []struct {
		name, args string
		code       int
		want       string
	}{
		{"no file", "", exitBadInput, "explain needs FILE"},
		{"two files", "DIR/one.pcap DIR/two.pcap", exitBadInput, "unexpected argument"},
		{"missing file", "DIR/none.pcap", exitBadInput, "DIR/none.pcap: no such file or directory"},
		{"folder", "DIR", exitBadInput, "DIR: is a folder, not a capture file"},
		{"no capture", "DIR/text.pcap", exitBadInput, "DIR/text.pcap: not a pcap or pcapng file"},
		{"empty file", "DIR/empty.pcap", exitBadInput, "DIR/empty.pcap: not a pcap or pcapng file: it is empty"},
		{"capture without flows", "DIR/silent.pcap", exitBadInput, "DIR/silent.pcap has no flow with payload whose beginning is in it"},
		{"no such flow", "DIR/two.pcap --flow 3", exitBadInput, "DIR/two.pcap has 2 flows, no number 3 (without --flow they are listed)"},
		{"no such flow of one", "DIR/one.pcap --flow 2", exitBadInput, "DIR/one.pcap has 1 flow, no number 2"},
		{"flow 0", "DIR/two.pcap --flow 0", exitBadInput, `--flow "0": use a whole number from 1 `},
		{"flow -1", "DIR/two.pcap --flow=-1", exitBadInput, `--flow "-1": use a whole number from 1 `},
		{"flow x", "DIR/two.pcap --flow x", exitBadInput, `"x"`},
		{"picture of several flows", "DIR/two.pcap --out DIR/x.png", exitBadInput, "--out is about one flow, but DIR/two.pcap has 2: choose one with --flow"},
		{"picture without a name", "DIR/one.pcap --out=", exitBadInput, "--out needs the name of a file"},
		{"picture in no folder", "DIR/one.pcap --out DIR/none/x.png", exitBadInput, "DIR/none/x.png: no such file"},
		{"no model", "DIR/one.pcap --model DIR/text.onnx", exitBadInput, "not an ONNX model"},
		{"mid-stream", "DIR/one.pcap --mid-stream maybe", exitBadInput, `"maybe"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := strings.Fields(strings.ReplaceAll(tt.args, "DIR", dir))
			if !strings.Contains(tt.args, "--model") {
				args = append(args, "--model", tinyModel)
			}
			code, stdout, stderr := runForTest(append([]string{"explain"}, args...)...)
			if code != tt.code || stdout != "" {
				t.Errorf("exit code %d, want %d; stdout %q", code, tt.code, stdout)
			}
			if want := strings.ReplaceAll(tt.want, "DIR", dir); !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("stderr %q, want one line with %q", stderr, want)
			}
		})
	}
	// What could be read of a cut file is explained, and the end of it reported.
	code, stdout, stderr := runForTest("explain", filepath.Join(dir, "cut.pcap"), "--flow", "1", "--model", tinyModel)
	if code != exitFailure || !strings.Contains(stdout, "EFFECT") || !strings.Contains(stderr, "file is cut off") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("cut file: exit code %d, stderr %q, stdout\n%s", code, stderr, stdout)
	}
}
