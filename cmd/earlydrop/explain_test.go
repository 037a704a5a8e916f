// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"flag"
	"fmt"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

var update = flag.Bool("update", false, "write the expected output anew")

const (
	fiveChannels = "../../classifier/testdata/tiny5.onnx"
	planted      = "../../classifier/testdata/planted.onnx"
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

// The model looks at a byte of the first packet's TCP window, at the length of the
// packet at byte 200, at the direction of the one at byte 400, at the initiator's
// sixth byte of payload and at the length of the second packet with payload. Nothing
// else may be named.
func TestExplainFindsWhatAModelHangsOn(t *testing.T) {
	s := new(flow.Sample)
	s.Reset()
	ms := time.Millisecond
	for i, frame := range framesOf(t, filepath.Join(writeFiles(t, map[string][]byte{"a.pcap": captureBytes(t,
		testPacket{src: "10.0.0.1:1001", dst: "10.9.0.1:443", flags: "S"},
		testPacket{at: 1 * ms, src: "10.9.0.1:443", dst: "10.0.0.1:1001", flags: "SA"},
		testPacket{at: 2 * ms, src: "10.0.0.1:1001", dst: "10.9.0.1:443", flags: "A", payload: bytes.Repeat([]byte{0xff}, 200)},
		testPacket{at: 3 * ms, src: "10.0.0.1:1001", dst: "10.9.0.1:443", flags: "A", payload: bytes.Repeat([]byte("r"), 500)},
	)}), "a.pcap")) {
		s.Packets = append(s.Packets, flow.Packet{Offset: uint16(len(s.Data)), WireLen: uint32(len(frame)), FromInitiator: i != 1, Time: time.Duration(i) * ms})
		s.Data = append(s.Data, frame...)
	}
	engine, err := onnx.OpenFile(planted, onnx.Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	o, err := newOcclusion(engine, &policy.Policy{}, s)
	if err != nil {
		t.Fatal(err)
	}
	if o.label != "shadowsocks" {
		t.Fatalf("the capture is %s, scores %v", o.label, o.result.Scores)
	}
	effects := map[string]string{}
	for _, p := range o.strongest(100) {
		effects[p.name] = "for"
		if p.effect < 0 {
			effects[p.name] = "against"
		}
	}
	want := map[string]string{
		"TCP window of packet 1 (initiator)":          "for",     // byte 48, which is as large as can be
		"payload of packet 3 (initiator), bytes 0-15": "for",     // as large, too
		"length of packet 3 (initiator)":              "against", // bytes 108-361; the others are larger
		"direction of packet 4 (initiator)":           "for",     // from byte 362 on
		"direction of packet 3 (initiator)":           "for",     // its payload is of the other stream then
		"length of packet 4 (initiator)":              "against",
	}
	if diff := cmp.Diff(want, effects); diff != "" {
		t.Errorf("parts with an effect (-want +got):\n%s", diff)
	}
	groups := map[string]bool{}
	for _, p := range o.groups() {
		if printedEffect(p.effect) != 0 {
			groups[p.name] = true
		}
	}
	if diff := cmp.Diff(map[string]bool{"all header fields": true, "all payload": true, "all lengths of packets": true, "all directions of packets": true}, groups); diff != "" {
		t.Errorf("groups with an effect (-want +got):\n%s", diff)
	}
	heat := o.byteEffects()
	for i, e := range heat {
		if (printedEffect(e) != 0) != (i == 48 || i == 49 || i >= 162 && i < 178) { // the window and the payload's beginning
			t.Errorf("byte %d has the effect %v", i, e)
		}
	}
	records, seen := o.recordEffects()
	for _, i := range []int{0, 53, 107, 108, 361, 362, 1015} {
		if (printedEffect(records[i]) != 0) != (i >= 108 && i < len(s.Data)) {
			t.Errorf("byte %d of %d has the effect %v by its packet's records", i, len(s.Data), records[i])
		}
	}
	if !seen {
		t.Error("the model is said not to see lengths and directions")
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

func TestExplainWritesAPicture(t *testing.T) {
	dir := explainFixture(t)
	for _, tt := range []struct {
		model  string
		panels int
	}{
		{tinyModel, 2},    // bytes, their effects
		{fiveChannels, 7}, // bytes, four more channels, two kinds of effects
	} {
		out := filepath.Join(dir, "out.png")
		code, stdout, stderr := runForTest("explain", filepath.Join(dir, "one.pcap"), "--model", tt.model, "--out", out)
		if code != exitOK {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		f, err := os.Open(out)
		if err != nil {
			t.Fatal(err)
		}
		img, err := png.Decode(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		table := strings.Count(stdout[strings.Index(stdout, "EFFECT"):], "\n")
		if b := img.Bounds(); b.Dx() != pictureWidth || b.Dy() != pictureHeight(tt.panels, 7, table+1) {
			t.Errorf("%s: the picture is %dx%d, want %dx%d", tt.model, b.Dx(), b.Dy(), pictureWidth, pictureHeight(tt.panels, 7, table+1))
		}
		// Byte 46 is the length of the first packet's TCP header, 5 words.
		want := []color.RGBA{gray(0x50)}
		if tt.panels > 2 {
			want = append(want, gray(255), gray(128), gray(0), gray(0)) // from the initiator, header, length and time 0
		}
		for i := range tt.panels {
			x := pictureMargin + i%pictureColumns*(panelSize+pictureMargin) + 46%side*pictureScale + pictureScale/2
			y := pictureMargin + 7*lineHeight + i/pictureColumns*(lineHeight+panelSize+pictureMargin) + lineHeight + 46/side*pictureScale + pictureScale/2
			got := color.RGBAModel.Convert(img.At(x, y)).(color.RGBA)
			if i < len(want) && got != want[i] || i >= len(want) && (got == colorOut || got == colorUnseen) {
				t.Errorf("%s: byte 46 has the colour %v in panel %d", tt.model, got, i)
			}
		}
	}
}

func TestExplainInColour(t *testing.T) {
	dir := explainFixture(t)
	var s flow.Sample
	numbers, err := flowsOf(&captures.File{Name: filepath.Join(dir, "one.pcap")}, assembly.Options{}, &progress{}, &s, 0)
	if err != nil || len(numbers) != 1 {
		t.Fatalf("flows %v, %v", numbers, err)
	}
	engine, err := onnx.OpenFile(fiveChannels, onnx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	o, err := newOcclusion(engine, &policy.Policy{}, &s)
	if err != nil {
		t.Fatal(err)
	}
	e := explanation{o, "one.pcap", 1, 1}
	colored, plain := e.text(true, unbounded), e.text(false, unbounded)
	if n, want := strings.Count(colored, "\u2580"), 3*side*side/2; n != want {
		t.Errorf("%d half blocks, want %d", n, want)
	}
	if strings.Contains(plain, "\x1b") || !strings.Contains(colored, "\x1b[38;2;") {
		t.Error("escape sequences are where they should not be, or missing where they should be")
	}
	var buffer bytes.Buffer
	if hasColors(&buffer) {
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
			`decision: pass, below min_confidence tunnels: the probability of shadowsocks or v2ray is 0.6810; the rule asks for 0.85`,
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

// The effects are on the sum: what moves probability from one of the rule's classes
// to the other has none.
func TestExplainMeasuresTheSum(t *testing.T) {
	dir := explainFixture(t)
	var s flow.Sample
	numbers, err := flowsOf(&captures.File{Name: filepath.Join(dir, "dns.pcap")}, assembly.Options{}, &progress{}, nil, 0)
	if err == nil {
		_, err = flowsOf(&captures.File{Name: filepath.Join(dir, "dns.pcap")}, assembly.Options{}, &progress{}, &s, numbers[0])
	}
	if err != nil {
		t.Fatal(err)
	}
	engine, err := onnx.OpenFile(fiveChannels, onnx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	rule := policy.Rule{Name: "r", Classes: []string{"shadowsocks", "v2ray", "background"}, Action: flow.Drop, TTL: time.Minute}
	all, err := newOcclusion(engine, &policy.Policy{Rules: []policy.Rule{rule}}, &s)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all.parts {
		if math.Abs(p.effect) > 1e-6 {
			t.Errorf("all classes together are always 1, but %s has an effect of %v", p.name, p.effect)
		}
	}
	rule.Classes = []string{"shadowsocks", "v2ray"}
	both, err := newOcclusion(engine, &policy.Policy{Rules: []policy.Rule{rule}}, &s)
	if err != nil {
		t.Fatal(err)
	}
	one, err := newOcclusion(engine, &policy.Policy{}, &s)
	if err != nil {
		t.Fatal(err)
	}
	if len(both.strongest(1)) == 0 || cmp.Equal(names(both), names(one)) {
		t.Errorf("the same has effects on both classes together as on one: %v", names(both))
	}
}

func names(o *occlusion) (list []string) {
	for _, p := range o.strongest(strongestShown) {
		list = append(list, fmt.Sprintf("%s %+.4f", p.name, p.effect))
	}
	return list
}

// The maps keep to the width of the terminal: as many as fit are side by side.
func TestExplainKeepsToTheWidthOfTheTerminal(t *testing.T) {
	dir := explainFixture(t)
	var s flow.Sample
	if _, err := flowsOf(&captures.File{Name: filepath.Join(dir, "one.pcap")}, assembly.Options{}, &progress{}, &s, 0); err != nil {
		t.Fatal(err)
	}
	engine, err := onnx.OpenFile(fiveChannels, onnx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	o, err := newOcclusion(engine, &policy.Policy{}, &s)
	if err != nil {
		t.Fatal(err)
	}
	escapes := regexp.MustCompile("\x1b\\[[0-9;]*m")
	// What follows the maps is text, which may be broken anywhere.
	wide := func(grid string) (most, lines int) {
		for line := range strings.Lines(escapes.ReplaceAllString(grid, "")) {
			if strings.HasPrefix(line, "packets begin") || strings.HasPrefix(line, "1 to 9") {
				break
			}
			most, lines = max(most, utf8.RuneCountInString(strings.TrimSuffix(line, "\n"))), lines+1
		}
		return most, lines
	}
	const panel = side/2 + 1 // lines
	for _, tt := range []struct{ columns, lines int }{
		{unbounded, panel}, {102, panel}, {101, 2 * panel}, {80, 2 * panel}, {67, 2 * panel}, {66, 3 * panel}, {40, 3 * panel}, {32, 3 * panel},
	} {
		grid := o.colorGrid(tt.columns)
		if most, lines := wide(grid); most > tt.columns || lines != tt.lines {
			t.Errorf("in %d columns the coloured maps have %d lines of at most %d", tt.columns, lines, most)
		}
		if n, want := strings.Count(grid, "\u2580"), 3*side*side/2; n != want {
			t.Errorf("in %d columns there are %d half blocks, want %d", tt.columns, n, want)
		}
	}
	for _, columns := range []int{unbounded, 80, 60, 45, 38} {
		grid := o.textGrid(columns)
		if most, lines := wide(grid); most > columns || lines != side {
			t.Errorf("in %d columns the plain map has %d lines of at most %d", columns, lines, most)
		}
		if !strings.Contains(grid, "2 responder at ") {
			t.Errorf("in %d columns it is not said where packets begin:\n%s", columns, grid)
		}
	}
	for _, grid := range []string{o.colorGrid(31), o.textGrid(37)} {
		if strings.Count(grid, "\n") != 1 || !strings.Contains(grid, "--out FILE") {
			t.Errorf("in too few columns: %q", grid)
		}
	}
}

func TestColorsNeedATerminalThatKnowsThem(t *testing.T) {
	ptmx, tty := pseudoTerminal(t)
	for _, tt := range []struct {
		term, noColor string
		want          bool
	}{
		{"xterm-256color", "", true},
		{"linux", "", true},
		{"dumb", "", false},
		{"", "", false},
		{"xterm", "1", false},
		{"xterm", "0", false}, // whatever it is
	} {
		t.Setenv("TERM", tt.term)
		t.Setenv("NO_COLOR", tt.noColor)
		if got := hasColors(tty); got != tt.want {
			t.Errorf("TERM=%q NO_COLOR=%q: colours %v, want %v", tt.term, tt.noColor, got, tt.want)
		}
	}
	for _, tt := range []struct{ has, want int }{{57, 57}, {0, 80}} { // 0 is what a serial line says
		if err := unix.IoctlSetWinsize(int(ptmx.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: uint16(tt.has)}); err != nil {
			t.Fatal(err)
		}
		if got := columns(tty); got != tt.want {
			t.Errorf("a terminal of %d columns is taken for one of %d", tt.has, got)
		}
	}
	if columns(new(bytes.Buffer)) != unbounded {
		t.Error("a buffer has a width")
	}
}

// pseudoTerminal opens both ends of one.
func pseudoTerminal(t *testing.T) (ptmx, tty *os.File) {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ptmx.Close() })
	if err := unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return ptmx, tty
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
