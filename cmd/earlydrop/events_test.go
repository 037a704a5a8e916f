// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// failing writes to buf as long as err is nil; on err it writes half.
type failing struct {
	buf   bytes.Buffer
	err   error
	tries int
}

func (f *failing) Write(p []byte) (int, error) {
	f.tries++
	if f.err != nil {
		n, _ := f.buf.Write(p[:len(p)/2])
		return n, f.err
	}
	return f.buf.Write(p)
}

func TestOutputOutlivesItsFailures(t *testing.T) {
	for _, tt := range []struct {
		err   error
		tty   bool
		want  string
		tries int
	}{
		{nil, false, "one\ntwo\nthree\n", 3},
		// The disk is full for a while: the cut line gets an end, no other is lost.
		{unix.ENOSPC, false, "one\ntw\nthree\n", 4},
		{unix.EIO, false, "one\ntw\nthree\n", 4},
		// The reader is gone for good.
		{unix.EPIPE, false, "one\ntw", 2},
		{fmt.Errorf("write: %w", unix.EPIPE), false, "one\ntw", 2},
		// So is a terminal that was closed.
		{unix.EIO, true, "one\ntw", 2},
	} {
		f := &failing{}
		o := &output{to: f, tty: tt.tty}
		for i, line := range []string{"one\n", "two\n", "three\n"} {
			f.err = nil
			if i == 1 {
				f.err = tt.err
			}
			if n, err := io.WriteString(o, line); n != len(line) || err != nil {
				t.Errorf("%v: wrote %d, %v", tt.err, n, err)
			}
		}
		if got := f.buf.String(); got != tt.want || f.tries != tt.tries {
			t.Errorf("%v: %q after %d writes, want %q after %d", tt.err, got, f.tries, tt.want, tt.tries)
		}
	}
}

// verdict is an event such as attach prints.
func verdict(n int, detected bool) event {
	decision := flow.Pass
	if detected {
		decision = flow.Drop
	}
	p := 0.551
	return event{
		Time: time.Date(2026, 11, 25, 1, 2, 3, 4_000_000, time.UTC), Event: "verdict", Interface: "v0", Src: "10.0.0.1:1", Dst: "10.0.0.2:2", Proto: "tcp",
		Class: "unknown", Confidence: &p, Decision: decision.String(), Enforced: &detected, Packets: n, naming: naming{Likeliest: "shadowsocks", Detected: &detected},
	}
}

func TestVerdictsInWords(t *testing.T) {
	sum, likeliest := 0.953, 0.551
	full := fmt.Errorf("block: the table is %w", loader.ErrFull)
	for _, tt := range []struct {
		name     string
		mode     policy.Mode
		decision policy.Decision
		enforced bool
		failed   error
		want     string
	}{
		{"dropped", policy.Enforce, policy.Decision{Action: flow.Drop, Rule: "tunnels", RuleClasses: "shadowsocks|v2ray", Reason: policy.ReasonRule}, true, nil,
			"drop         tcp 10.0.0.1:1 > 10.0.0.2:2  shadowsocks|v2ray 0.953 (shadowsocks 0.551)  5.0 ms, 1 packets  rule tunnels"},
		{"monitor", policy.Monitor, policy.Decision{Action: flow.Drop, Rule: "tunnels", RuleClasses: "shadowsocks|v2ray", Reason: policy.ReasonRule}, false, nil,
			"would drop   tcp 10.0.0.1:1 > 10.0.0.2:2  shadowsocks|v2ray 0.953 (shadowsocks 0.551)  5.0 ms, 1 packets  rule tunnels"},
		{"the table is full", policy.Enforce, policy.Decision{Action: flow.Drop, Rule: "tunnels", RuleClasses: "shadowsocks|v2ray", Reason: policy.ReasonRule}, false, full,
			"drop failed  tcp 10.0.0.1:1 > 10.0.0.2:2  shadowsocks|v2ray 0.953 (shadowsocks 0.551)  5.0 ms, 1 packets  rule tunnels  it passes: block: the table is full"},
		{"not enough", policy.Enforce, policy.Decision{Rule: "tunnels", RuleClasses: "shadowsocks", Reason: policy.ReasonLowConfidence}, false, nil,
			"pass         tcp 10.0.0.1:1 > 10.0.0.2:2  shadowsocks 0.953  5.0 ms, 1 packets  below min_confidence tunnels"},
		{"no rule", policy.Enforce, policy.Decision{Reason: policy.ReasonNoRule}, false, nil,
			"pass         tcp 10.0.0.1:1 > 10.0.0.2:2  unknown (shadowsocks 0.551)  5.0 ms, 1 packets"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Date(2026, 11, 25, 23, 59, 59, 995_000_000, time.FixedZone("here", 3600))
			s := &flow.Sample{}
			s.Reset()
			s.Key, s.InitiatorIsLo = flow.NewKey(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), flow.TCP, 0, 0)
			s.Source, s.Start = flow.Source{Interface: "v0", Index: 2}, start
			s.Packets = append(s.Packets, flow.Packet{WireLen: 60})
			tt.decision.Confidence, tt.decision.Likeliest = sum, "shadowsocks"
			e := newVerdictEvent(&daemon{mode: tt.mode}, s, flow.Result{Class: "unknown", Confidence: likeliest}, tt.decision, tt.enforced, tt.failed, start.Add(5*time.Millisecond))
			var b bytes.Buffer
			if err := (&sinks{}).print(&b, &e); err != nil {
				t.Fatal(err)
			}
			// The date is in it, and the zone: a log lasts for more than a day.
			if want := "2026-11-26T00:00:00.000+01:00  " + tt.want + "\n"; b.String() != want {
				t.Errorf("printed\n%swant\n%s", b.String(), want)
			}
			if (e.Error != "") != (tt.failed != nil) {
				t.Errorf("the event has the error %q", e.Error)
			}
		})
	}
}

// newSinks returns sinks that write to the event file, and to nothing else.
func newSinks(t *testing.T, path, passes string) *sinks {
	t.Helper()
	file, err := openEventFile(path)
	if err != nil {
		t.Fatal(err)
	}
	limit, err := parsePassLimit(passes)
	if err != nil {
		t.Fatal(err)
	}
	return &sinks{iface: func() string { return "v0" }, file: file, stderr: io.Discard, passes: limit}
}

// numbers returns what the events of a file count, and fails for a torn line.
func numbers(t *testing.T, path string) (n []int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil || !strings.HasSuffix(line, "\n") {
			t.Fatalf("%s: %q, %v", path, line, err)
		}
		n = append(n, e.Packets)
	}
	return n
}

// The file is renamed and opened again, over and over, while events come: each is in
// one file, whole, in order, and what comes after the signal is in the new file.
func TestSignalOpensTheEventFileAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	s := newSinks(t, path, "all")
	s.start()
	signals := make(chan os.Signal)
	stop := s.reopenOn(signals)
	const rotations, each = 20, 500
	n := 0
	for i := range rotations {
		for range each {
			n++
			s.put(verdict(n, true))
		}
		if err := os.Rename(path, fmt.Sprint(path, ".", i)); err != nil {
			t.Fatal(err)
		}
		for range each { // between the two steps of logrotate
			n++
			s.put(verdict(n, true))
		}
		signals <- unix.SIGHUP
		// The next file is there as soon as the signal was seen to.
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, err := os.Stat(path); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("no new file")
			}
		}
	}
	n++
	s.put(verdict(n, true))
	stop()
	s.close()
	want := 1
	for i := range rotations + 1 {
		file, count := fmt.Sprint(path, ".", i), 2*each
		if i == rotations {
			file, count = path, 1
		}
		got := numbers(t, file)
		if len(got) != count {
			t.Errorf("%s has %d events, want %d", file, len(got), count)
		}
		for _, v := range got {
			if v != want {
				t.Fatalf("%s has event %d in the place of %d", file, v, want)
			}
			want++
		}
	}
	if lost := s.lost.Load(); lost != 0 {
		t.Errorf("%d events were lost", lost)
	}
}

// Where the file can't be opened again, the events go on to the old one; and a
// signal without an event file changes nothing.
func TestEventFileThatCanNotBeOpenedAgainStays(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "logs", "events.jsonl")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	saved := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(saved)
	s := newSinks(t, path, "all")
	s.start()
	signals := make(chan os.Signal)
	stop := s.reopenOn(signals)
	s.put(verdict(1, true))
	moved := filepath.Join(dir, "moved")
	if err := os.Rename(filepath.Dir(path), moved); err != nil {
		t.Fatal(err)
	}
	signals <- unix.SIGHUP
	signals <- unix.SIGHUP // the first one is seen to when this one is taken
	s.put(verdict(2, true))
	stop()
	s.close()
	if got := numbers(t, filepath.Join(moved, "events.jsonl")); len(got) != 2 {
		t.Errorf("the old file has the events %v, want 1 and 2", got)
	}
	if !strings.Contains(log.String(), "can't be opened again") || !strings.Contains(log.String(), "no such file") {
		t.Errorf("it is not said: %s", log.String())
	}
	if s.lost.Load() != 0 {
		t.Errorf("%d events were lost", s.lost.Load())
	}

	none := &sinks{iface: func() string { return "v0" }, text: io.Discard, stderr: io.Discard, passes: &passLimit{all: true}}
	none.start()
	stop = none.reopenOn(signals)
	signals <- unix.SIGHUP
	stop()
	none.close()
	if !strings.Contains(log.String(), "no event file") {
		t.Errorf("it is not said: %s", log.String())
	}
}

// A FIFO is opened if somebody reads it, and never waited for; other things that
// are no file are refused with the reason.
func TestEventFileIsNeverWaitedFor(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for path, want := range map[string]string{
		fifo:                        fifo + " is a FIFO that nobody reads: start its reader first",
		socket:                      socket + " is a socket: name a file or a FIFO",
		dir:                         dir + ": is a directory",
		filepath.Join(dir, "no/no"): "no/no: no such file or directory",
	} {
		if _, err := openEventFile(path); err == nil || exitCode(err) != exitBadInput || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}

	reader, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	s := newSinks(t, fifo, "all")
	if s.file.created {
		t.Error("the FIFO is taken for a file that was made")
	}
	s.start()
	for n := range 300 { // more than a pipe holds
		s.put(verdict(n, true))
	}
	lines := bufio.NewScanner(reader)
	for n := range 300 {
		var e event
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &e) != nil || e.Packets != n {
			t.Fatalf("line %d is %q, %v", n, lines.Text(), lines.Err())
		}
	}
	s.close()
}

// A reader that has stopped does not keep the daemon from its end.
func TestReaderThatStandsStillDoesNotHoldUpTheEnd(t *testing.T) {
	saved := stuckAfter
	stuckAfter = 300 * time.Millisecond
	defer func() { stuckAfter = saved }()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := newSinks(t, fifo, "all")
	s.start()
	for n := range 2 * eventQueue {
		s.verdict(verdict(n, true))
	}
	s.put(verdict(0, true)) // the last word of a daemon
	if s.lost.Load() == 0 {
		t.Error("nothing was lost: this test says little")
	}
	s.close()
	// Let go of what the writer holds.
	_ = reader.Close()
	<-s.done
	_ = s.file.Close()
}

// In a flood of flows that pass, the queue has room for the others.
func TestFloodOfPassesLeavesRoomForDetectedFlows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	s := newSinks(t, path, "all")
	s.queue, s.done = make(chan event, eventQueue), make(chan struct{}) // nobody takes any yet
	for n := range 2 * eventQueue {
		s.verdict(verdict(n, false))
	}
	for n := range eventQueue / 4 {
		s.verdict(verdict(100_000+n, true))
	}
	if want := uint64(2*eventQueue - eventQueue*3/4); s.lost.Load() != want {
		t.Errorf("%d events were lost, want %d", s.lost.Load(), want)
	}
	go s.write()
	s.close()
	kept := 0
	for _, n := range numbers(t, path) {
		if n >= 100_000 {
			kept++
		}
	}
	if kept != eventQueue/4 {
		t.Errorf("%d of %d detected flows are in the file", kept, eventQueue/4)
	}
}

func TestPassLimit(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	for _, tt := range []struct {
		value string
		want  [4]int // of 1000 in each of four seconds
	}{
		{"all", [4]int{1000, 1000, 1000, 1000}},
		{"none", [4]int{}},
		{"1/s", [4]int{1, 1, 1, 1}},
		{"100/s", [4]int{100, 100, 100, 100}},
		{"5000/s", [4]int{1000, 1000, 1000, 1000}},
		{"1/1", [4]int{1000, 1000, 1000, 1000}},
		{"1/100", [4]int{10, 10, 10, 10}},
		{"1/300", [4]int{4, 3, 3, 4}},
	} {
		l, err := parsePassLimit(tt.value)
		if err != nil {
			t.Fatal(err)
		}
		var got [4]int
		for second := range got {
			for i := range 1000 {
				if l.allow(start.Add(time.Duration(second)*time.Second + time.Duration(i)*time.Millisecond)) {
					got[second]++
				}
			}
		}
		written := got[0] + got[1] + got[2] + got[3]
		if got != tt.want || l.leftOut.Load() != uint64(4000-written) {
			t.Errorf("%s: %v are written and %d left out, want %v", tt.value, got, l.leftOut.Load(), tt.want)
		}
		s := &sinks{iface: func() string { return "v0" }, passes: l}
		e, ok := s.leftOutEvent(start)
		if ok != (written < 4000) || e.PassesLeftOut != uint64(4000-written) {
			t.Errorf("%s: %+v, %v", tt.value, e, ok)
		}
		if _, again := s.leftOutEvent(start); again {
			t.Errorf("%s: what was left out is told twice", tt.value)
		}
	}
}

func TestVerdictEventSaysThatAFlowIsMidStream(t *testing.T) {
	var s flow.Sample
	s.Reset()
	s.Key, s.InitiatorIsLo = flow.NewKey(netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("10.9.0.1:443"), flow.TCP, 0, 0)
	p, err := policy.Parse("p.yaml", []byte("rules: [{name: all, class: v2ray, min_confidence: 0.5, action: drop, ttl: 1m}]"), nil)
	if err != nil {
		t.Fatal(err)
	}
	result := flow.Result{Class: "v2ray", Confidence: 0.9}
	for _, midStream := range []bool{false, true} {
		s.MidStream = midStream
		e := newVerdictEvent(&daemon{mode: policy.Enforce}, &s, result, p.Decide(&s.Meta, result), !midStream, nil, testStart)
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		if err := (&sinks{}).print(&text, &e); err != nil {
			t.Fatal(err)
		}
		if midStream != strings.Contains(string(line), `"mid_stream":true`) || midStream != strings.Contains(string(line), `"reason":"mid-stream"`) ||
			midStream == strings.Contains(string(line), `"decision":"drop"`) {
			t.Errorf("mid-stream %v: %s", midStream, line)
		}
		if midStream != strings.Contains(text.String(), ", mid-stream  mid-stream all") || midStream == strings.Contains(text.String(), "drop ") {
			t.Errorf("mid-stream %v: %s", midStream, &text)
		}
	}
}
