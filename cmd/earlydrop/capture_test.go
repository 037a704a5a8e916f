// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/dataset"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// pipeOf returns the path of a pipe that gives b, and then ends.
func pipeOf(t *testing.T, b []byte) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	go func() {
		_, _ = w.Write(b)
		w.Close()
	}()
	return fmt.Sprintf("/dev/fd/%d", r.Fd())
}

// stdinOf makes standard input give b, and then end.
func stdinOf(t *testing.T, b []byte) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin := os.Stdin
	os.Stdin = r
	t.Cleanup(func() { os.Stdin = stdin; r.Close() })
	go func() {
		_, _ = w.Write(b)
		w.Close()
	}()
	return "-"
}

// fifoOf returns a named pipe that gives b, and then ends.
func fifoOf(t *testing.T, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if w, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			_, _ = w.Write(b)
			w.Close()
		}
	}()
	t.Cleanup(func() { // also where nothing opened it
		if r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			<-done
			r.Close()
		}
	})
	return path
}

var pipes = map[string]func(*testing.T, []byte) string{"-": stdinOf, "FIFO": fifoOf, "/dev/fd": pipeOf}

func zipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if closeErr := w.Close(); err != nil || closeErr != nil {
		t.Fatal(err, closeErr)
	}
	return out.Bytes()
}

// flowsOfJSON returns the flows of replay's output in order of their start.
func flowsOfJSON(t *testing.T, stdout string) (flows []*event.Verdict) {
	t.Helper()
	for line := range strings.Lines(stdout) {
		flows = append(flows, parseRecord(t, line))
	}
	slices.SortStableFunc(flows, func(a, b *event.Verdict) int { return a.Start.Compare(b.Start) })
	return flows
}

func readFileOf(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReplayReadsPipesAsFiles(t *testing.T) {
	dir := replayFixture(t)
	many := filepath.Join(dir, "many.pcap")
	b := readFileOf(t, many)
	_, table, _ := runForTest("replay", "--model", tinyModel, many)
	_, lines, _ := runForTest("replay", "--json", "--model", tinyModel, many)
	for name, pipe := range pipes {
		t.Run(name, func(t *testing.T) {
			for _, b := range [][]byte{b, zipped(t, b)} {
				code, stdout, stderr := runForTest("replay", "--model", tinyModel, pipe(t, b))
				if code != exitOK || stderr != "" || stdout != table {
					t.Errorf("exit code %d, stderr %q, stdout (-file +pipe):\n%s", code, stderr, cmp.Diff(table, stdout))
				}
			}
			path := pipe(t, b)
			code, stdout, stderr := runForTest("replay", "--json", "--model", tinyModel, path)
			if code != exitOK || !strings.HasPrefix(stderr, "101 flows in 1 file classified: ") {
				t.Errorf("exit code %d, stderr %q", code, stderr)
			}
			if diff := cmp.Diff(flowsOfJSON(t, lines), flowsOfJSON(t, stdout), cmpopts.EquateComparable(netip.AddrPort{}),
				cmpopts.IgnoreFields(event.Verdict{}, "File"), cmpopts.EquateApprox(0, 2e-6)); diff != "" {
				t.Errorf("flows (-file +pipe):\n%s", diff)
			}
			if r := flowsOfJSON(t, stdout)[0]; r.File != path {
				t.Errorf("file %q, want %q", r.File, path)
			}
		})
	}
}

func TestExplainReadsPipesAsFiles(t *testing.T) {
	dir := explainFixture(t)
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	for name, pipe := range pipes {
		for _, args := range [][]string{{"two.pcap"}, {"two.pcap", "--flow", "2"}, {"cut.pcap", "--flow", "1"}} {
			path := filepath.Join(dir, args[0])
			args = append([]string{"--model", tinyModel}, args[1:]...)
			wantCode, want, wantErr := runForTest(append([]string{"explain", path}, args...)...)
			piped := pipe(t, readFileOf(t, path))
			code, got, gotErr := runForTest(append([]string{"explain", piped}, args...)...)
			title := piped
			if piped == "-" {
				title = "standard input"
			}
			if code != wantCode || got != strings.ReplaceAll(want, path, title) || gotErr != strings.ReplaceAll(wantErr, path, title) {
				t.Errorf("%s, %v: exit code %d, stderr %q, stdout (-file +pipe):\n%s", name, args, code, gotErr, cmp.Diff(want, got))
			}
		}
	}
	// fifoOf makes its folders there, too, which go with the test.
	if left, err := filepath.Glob(filepath.Join(temporary, "earlydrop-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDatasetReadsPipes(t *testing.T) {
	capture := captureBytes(t, conversation(0, "10.0.0.1:1001", "10.9.0.1:443", []byte("hello"), nil)...)
	dir := writeFiles(t, map[string][]byte{"manifest.tsv": []byte("path\tlabel\tgroup\n" + fifoOf(t, capture) + "\ta\tg\n")})
	code, stdout, stderr := runForTest("dataset", "--manifest", filepath.Join(dir, "manifest.tsv"), "--out", filepath.Join(dir, "out"))
	if code != exitOK || !strings.Contains(stdout, "1 samples of 1 files") {
		t.Errorf("exit code %d, stderr %q, stdout\n%s", code, stderr, stdout)
	}
}

func TestPipesThatCanNotBeRead(t *testing.T) {
	text := []byte("hello, world\n")
	for _, command := range []string{"replay", "explain"} {
		for name, tt := range map[string]struct {
			path string
			want string
		}{
			"nothing":   {pipeOf(t, nil), ": not a pcap or pcapng file: it is empty"},
			"text":      {pipeOf(t, text), ": not a pcap or pcapng file"},
			"text to -": {stdinOf(t, text), "standard input: not a pcap or pcapng file"},
			"zstd":      {pipeOf(t, []byte("\x28\xb5\x2f\xfd....")), ": it is compressed with zstd, but only gzip can be read"},
		} {
			code, stdout, stderr := runForTest(command, "--model", tinyModel, tt.path)
			if code != exitBadInput || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, tt.want) {
				t.Errorf("%s, %s: exit code %d, stdout %q, stderr %q, want %q in it", command, name, code, stdout, stderr, tt.want)
			}
		}
	}
	fifo := fifoOf(t, nil)
	for _, args := range [][]string{{"-", "-"}, {"-", "/dev/stdin"}, {fifo, fifo}} {
		if args[1] == "/dev/stdin" {
			if info, err := os.Stat(args[1]); err != nil || info.Mode().IsRegular() {
				continue // the tests' own standard input, which is not ours
			}
			args[0] = args[1]
		}
		code, stdout, stderr := runForTest(append([]string{"replay", "--model", tinyModel}, args...)...)
		if code != exitBadInput || stdout != "" || !strings.Contains(stderr, "can be read only once, but is named twice") {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
}

// live runs replay --json on a FIFO into which the test writes.
type live struct {
	path   string
	in     *os.File
	out    *bufio.Reader
	code   chan int
	stderr bytes.Buffer
	cancel context.CancelFunc
}

func startLive(t *testing.T, args ...string) *live {
	t.Helper()
	l := &live{path: filepath.Join(t.TempDir(), "fifo"), code: make(chan int, 1)}
	if err := unix.Mkfifo(l.path, 0o600); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	l.out = bufio.NewReader(r)
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	go func() {
		l.code <- runContext(ctx, append([]string{"earlydrop", "replay", "--json", "--model", tinyModel, l.path}, args...), w, &l.stderr)
		w.Close()
	}()
	in, err := os.OpenFile(l.path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.in = in
	t.Cleanup(func() { cancel(); in.Close() })
	return l
}

// write sends packets; the first time with the file's header before them.
func (l *live) write(t *testing.T, b []byte) {
	t.Helper()
	if _, err := l.in.Write(b); err != nil {
		t.Fatal(err)
	}
}

// flow returns the next line.
func (l *live) flow(t *testing.T) *event.Verdict {
	t.Helper()
	line, err := l.out.ReadString('\n')
	if err != nil {
		t.Fatalf("line %q, %v, stderr %q", line, err, l.stderr.String())
	}
	return flowsOfJSON(t, line)[0]
}

func TestReplayPrintsFlowsWhileAPipeGoesOn(t *testing.T) {
	whole := captureBytes(t, slices.Concat(
		conversation(0, "10.0.0.1:1001", "10.9.0.1:443", []byte("hello"), bytes.Repeat([]byte("x"), 2000)),
		conversation(time.Second, "10.0.0.1:1002", "10.9.0.1:443", []byte("hello"), bytes.Repeat([]byte("y"), 2000)))...)
	second := bytes.LastIndex(whole, []byte("hello")) - 300 // before the second connection
	l := startLive(t)
	l.write(t, whole[:second])
	if r := l.flow(t); r.Src.String() != "10.0.0.1:1001" || r.File != l.path || !r.Complete || r.Captured != 1024 {
		t.Errorf("first flow %+v", r)
	}
	l.write(t, whole[second:])
	if r := l.flow(t); r.Src.String() != "10.0.0.1:1002" {
		t.Errorf("second flow %+v", r)
	}
	l.in.Close()
	if code := <-l.code; code != exitOK || !strings.HasPrefix(l.stderr.String(), "2 flows in 1 file classified: ") {
		t.Errorf("exit code %d, stderr %q", code, l.stderr.String())
	}
}

// An interrupt ends a pipe as if that was all of it, in the middle of a record too.
func TestInterruptEndsAPipe(t *testing.T) {
	whole := captureBytes(t, conversation(0, "10.0.0.1:1001", "10.9.0.1:443", []byte("hello"), bytes.Repeat([]byte("x"), 2000))...)
	l := startLive(t)
	l.write(t, whole[:len(whole)-1])
	l.flow(t)
	// The line tells that the command has its handler.
	if err := unix.Kill(unix.Getpid(), unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := <-l.code; code != exitOK || !strings.Contains(l.stderr.String(), "1 flow in 1 file classified: ") || strings.Count(l.stderr.String(), "\n") != 2 {
		t.Errorf("exit code %d, stderr %q", code, l.stderr.String())
	}
}

func TestExplainOfAnInterruptedPipe(t *testing.T) {
	whole := captureBytes(t, conversation(0, "10.0.0.1:1001", "10.9.0.1:443", []byte("hello"), bytes.Repeat([]byte("x"), 2000))...)
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		w, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return
		}
		defer w.Close()
		// More than a pipe holds, so that all but its end was read when Write returns.
		_, _ = w.Write(whole)
		for range 4 {
			_, _ = w.Write(recordOf(make([]byte, 60_000)))
		}
		_, _ = w.Write(recordOf(make([]byte, 60_000))[:100])
		cancel()
		<-ctx.Done()
	}()
	var stdout, stderr bytes.Buffer
	code := runContext(ctx, []string{"earlydrop", "explain", path, "--model", tinyModel}, &stdout, &stderr)
	if code != exitOK || !strings.Contains(stdout.String(), "flow 1 of 1: tcp 10.0.0.1:1001") || stderr.Len() > 0 {
		t.Errorf("exit code %d, stderr %q, stdout\n%s", code, stderr.String(), stdout.String())
	}
}

// recordOf returns a packet as a pcap file has it.
func recordOf(packet []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(testStart.Unix()))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(packet)))
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(packet))), packet...)
}

// withLink returns a capture of captureBytes with another link type.
func withLink(b []byte, link byte) []byte {
	b = slices.Clone(b)
	b[20] = link
	return b
}

func TestReplayReadsTheRestOfWhatCanNotBeRead(t *testing.T) {
	one := captureBytes(t, answered(testPacket{src: "10.0.0.1:1", dst: "10.9.0.1:2", udp: true, payload: []byte("one")})...)
	two := captureBytes(t, answered(testPacket{at: time.Second, src: "10.0.0.2:1", dst: "10.9.0.1:2", udp: true, payload: []byte("two")})...)
	dir := writeFiles(t, map[string][]byte{"one.pcap": one, "usb.pcap": withLink(one, 249), "two.pcap": two, "silent.pcap": withLink(one[:24], 249)})
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, args := range [][]string{nil, {"--json"}, {"--join"}} {
		code, stdout, stderr := runForTest(append([]string{"replay", "--model", tinyModel, path("one.pcap"), path("usb.pcap"), path("two.pcap")}, args...)...)
		if code != exitFailure {
			t.Errorf("%v: exit code %d, want %d", args, code, exitFailure)
		}
		if !strings.Contains(stdout, "10.0.0.1:1") || !strings.Contains(stdout, "10.0.0.2:1") {
			t.Errorf("%v: the other files were not read:\n%s", args, stdout)
		}
		want := "earlydrop: " + path("usb.pcap") + ": 2 packets skipped: unsupported link type 249 (USBPcap)\n"
		if !strings.HasSuffix(stderr, want) {
			t.Errorf("%v: stderr %q, want it to end with %q", args, stderr, want)
		}
	}
	code, stdout, stderr := runForTest("replay", "--model", tinyModel, path("usb.pcap"))
	if code != exitFailure || !strings.Contains(stdout, "0 flows in 1 file") || !strings.Contains(stderr, "2 packets skipped") {
		t.Errorf("alone: exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	if code, _, stderr := runForTest("replay", "--model", tinyModel, path("silent.pcap")); code != exitOK || stderr != "" {
		t.Errorf("nothing to be skipped: exit code %d, stderr %q", code, stderr)
	}
	code, stdout, stderr = runForTest("explain", "--model", tinyModel, path("usb.pcap"))
	if code != exitFailure || stdout != "" || !strings.Contains(stderr, "2 packets skipped") {
		t.Errorf("explain: exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

// joinFixture is a folder with a capture, and the same cut into three files whose
// names are in another order.
func joinFixture(t *testing.T) string {
	ms := time.Millisecond
	download := conversation(10*ms, "10.0.0.1:1001", "10.9.0.1:443", []byte("hello"), bytes.Repeat([]byte("x"), 500))
	download = slices.Insert(download, 5, testPacket{at: 15 * ms, src: "10.9.0.1:443", dst: "10.0.0.1:1001", flags: "A", payload: bytes.Repeat([]byte("y"), 900)})
	packets := append([]testPacket{{src: "10.0.0.9:53001", dst: "10.9.0.3:53", udp: true, payload: []byte("question")}}, download...)
	packets = append(packets, testPacket{at: 900 * ms, src: "10.9.0.3:53", dst: "10.0.0.9:53001", udp: true, payload: []byte("answer")})
	packets = append(packets, answered(testPacket{at: 901 * ms, src: "10.0.0.8:53001", dst: "10.9.0.3:53", udp: true, payload: []byte("another")})...)
	whole := captureBytes(t, packets...)
	part := func(from, to int) []byte {
		return slices.Concat(whole[:24], whole[len(captureBytes(t, packets[:from]...)):len(captureBytes(t, packets[:to]...))])
	}
	return writeFiles(t, map[string][]byte{
		"whole.pcap": whole,
		"cut9":       part(0, 5),
		"cut10":      part(5, 7),
		"cut11":      part(7, len(packets)),
		"cut12":      part(0, 0),
	})
}

func TestReplayJoinsACaptureThatWasCut(t *testing.T) {
	dir := joinFixture(t)
	_, stdout, _ := runForTest("replay", "--json", "--model", tinyModel, filepath.Join(dir, "whole.pcap"))
	want := flowsOfJSON(t, stdout)
	if len(want) != 3 {
		t.Fatalf("%d flows in the whole capture", len(want))
	}
	for i, name := range []string{"cut9", "cut9", "cut11"} {
		want[i].File = filepath.Join(dir, name)
	}
	cut := func(names ...string) (paths []string) {
		for _, name := range names {
			paths = append(paths, filepath.Join(dir, name))
		}
		return paths
	}
	for _, files := range [][]string{cut("cut10", "cut11", "cut12", "cut9"), cut("cut9", "cut10", "cut11", "cut12"), cut("cut11", "cut12", "cut10", "cut9")} {
		code, stdout, stderr := runForTest(append([]string{"replay", "--join", "--json", "--model", tinyModel}, files...)...)
		if code != exitOK || !strings.HasPrefix(stderr, "3 flows in 4 files classified: ") {
			t.Errorf("exit code %d, stderr %q", code, stderr)
		}
		if diff := cmp.Diff(want, flowsOfJSON(t, stdout), cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateApprox(0, 2e-6)); diff != "" {
			t.Errorf("flows (-whole +joined):\n%s", diff)
		}
	}
	// Each for itself, they are other captures.
	_, stdout, _ = runForTest(append([]string{"replay", "--json", "--model", tinyModel}, cut("cut9", "cut10", "cut11", "cut12")...)...)
	if diff := cmp.Diff(want, flowsOfJSON(t, stdout), cmpopts.EquateComparable(netip.AddrPort{})); diff == "" {
		t.Error("the files are joined without being told")
	}
	// Pipes are put in order as well.
	var lines []string
	for _, name := range []string{"cut11", "cut9", "cut10"} {
		lines = append(lines, pipeOf(t, readFileOf(t, filepath.Join(dir, name))))
	}
	_, stdout, stderr := runForTest(append([]string{"replay", "--join", "--json", "--model", tinyModel}, lines...)...)
	got := flowsOfJSON(t, stdout)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.IgnoreFields(event.Verdict{}, "File", "FlowPackets", "FlowBytes"),
		cmpopts.EquateApprox(0, 2e-6)); diff != "" {
		t.Errorf("flows of pipes (-whole +joined), stderr %q:\n%s", stderr, diff)
	}
}

// What is missing of one file is said; the others go on with the capture.
func TestReplayJoinsWhatCanBeRead(t *testing.T) {
	dir := joinFixture(t)
	path := filepath.Join(dir, "cut9")
	b := readFileOf(t, path)
	if err := os.WriteFile(path, b[:len(b)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := runForTest("replay", "--join", "--model", tinyModel, filepath.Join(dir, "cut10"), path, filepath.Join(dir, "cut11"))
	if code != exitFailure || !strings.Contains(stdout, "3 flows in 3 files classified") || !strings.Contains(stderr, "cut9: file is cut off in the middle of a record (after 4 packets") {
		t.Errorf("exit code %d, stderr %q, stdout\n%s", code, stderr, stdout)
	}
}

// samplesOf returns the rows of samples.tsv and the digest of a dataset.
func samplesOf(t *testing.T, out string) (rows [][]string, d dataset.Info) {
	t.Helper()
	for line := range strings.Lines(string(readFileOf(t, filepath.Join(out, dataset.SamplesFile)))) {
		rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
	}
	if err := json.Unmarshal(readFileOf(t, filepath.Join(out, dataset.InfoFile)), &d); err != nil {
		t.Fatal(err)
	}
	return rows[1:], d
}

func TestDatasetJoinsTheFilesOfAFolder(t *testing.T) {
	from := joinFixture(t)
	dir := t.TempDir()
	for name, as := range map[string]string{"whole.pcap": "whole/one/a", "cut9": "cut/one/9", "cut10": "cut/one/10", "cut11": "cut/one/11", "cut12": "cut/one/12"} {
		path := filepath.Join(dir, as)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(from, name), path); err != nil {
			t.Fatal(err)
		}
	}
	run := func(folder string, args ...string) ([][]string, dataset.Info) {
		out := filepath.Join(t.TempDir(), "out")
		code, _, stderr := runForTest(append([]string{"dataset", "--captures", filepath.Join(dir, folder), "--label", "a", "--out", out}, args...)...)
		if code != exitOK || stderr != "" {
			t.Fatalf("exit code %d, stderr %q", code, stderr)
		}
		return samplesOf(t, out)
	}
	want, wantSet := run("whole")
	got, set := run("cut", "--join")
	if len(got) != len(want) {
		t.Fatalf("%d samples, want %d", len(got), len(want))
	}
	files := map[string]string{}
	for i := range got {
		files[got[i][4]] = got[i][3]
		got[i][3] = want[i][3]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("samples but for their files (-whole +joined):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"10.0.0.9:53001": "one/9", "10.0.0.1:1001": "one/9", "10.0.0.8:53001": "one/11"}, files); diff != "" {
		t.Errorf("files in which the flows begin (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantSet.Counters, set.Counters); diff != "" || set.Files != 4 {
		t.Errorf("%d files, counters (-whole +joined):\n%s", set.Files, diff)
	}
	if apart, _ := run("cut"); cmp.Equal(len(apart), len(want)) && apart[0][7] == want[0][7] {
		t.Error("the files are joined without being told")
	}
}

// A folder may hold anything, and what is there is used; the files of a manifest must
// be readable as a whole.
func TestDatasetSaysWhatWasSkipped(t *testing.T) {
	good := captureBytes(t, conversation(0, "10.0.0.1:1001", "10.9.0.1:443", []byte("hello"), nil)...)
	dir := writeFiles(t, map[string][]byte{
		"pcaps/good.pcap": good, "pcaps/usb1.pcap": withLink(good, 249), "pcaps/usb2.pcap": withLink(good, 249),
		"pcaps/usb3.pcap": withLink(good[:len(good)-1], 249),
		"manifest.tsv":    []byte("path\tlabel\tgroup\npcaps/good.pcap\ta\tg\npcaps/usb1.pcap\ta\tg\n"),
	})
	out := filepath.Join(dir, "out")
	code, _, stderr := runForTest("dataset", "--captures", filepath.Join(dir, "pcaps"), "--label", "a", "--out", out)
	want := "warning: 3 files could not be read, or not whole:\n" +
		"  2 x packets skipped: unsupported link type 249 (USBPcap), first " + filepath.Join(dir, "pcaps/usb1.pcap") + "\n" +
		"  1 x packets skipped: unsupported link type 249 (USBPcap), and cut off or damaged, first " + filepath.Join(dir, "pcaps/usb3.pcap") + "\n"
	if code != exitOK || stderr != want {
		t.Errorf("exit code %d, stderr\n%s\nwant\n%s", code, stderr, want)
	}
	code, _, stderr = runForTest("dataset", "--manifest", filepath.Join(dir, "manifest.tsv"), "--out", out)
	if code != exitBadInput || !strings.Contains(stderr, "usb1.pcap: 6 packets skipped: unsupported link type 249 (USBPcap)") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}
