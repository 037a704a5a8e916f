// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bufio"
	"bytes"
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

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader/flow"
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

// verdict is an event such as attach writes.
func verdict(n int, detected bool) *event.Verdict {
	decision := flow.Pass
	if detected {
		decision = flow.Drop
	}
	return &event.Verdict{
		Time: time.Date(2026, 11, 25, 1, 2, 3, 4_000_000, time.UTC), Interface: "v0",
		Endpoints: event.Endpoints{Src: netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("10.0.0.2:2"), Proto: "tcp"},
		Class:     "unknown", Confidence: 0.551, Decision: decision.String(), Enforced: &detected, Packets: n, Naming: event.Naming{Likeliest: "shadowsocks", Detected: detected},
	}
}

// openLog returns a Log that writes to the file, and to nothing else.
func openLog(t *testing.T, path string) *Log {
	t.Helper()
	l, err := Open(Config{File: path})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// numbers returns what the events of a file count, and fails for a torn line.
func numbers(t *testing.T, path string) (n []int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		e, err := event.Decode([]byte(line))
		if err != nil || !strings.HasSuffix(line, "\n") {
			t.Fatalf("%s: %q, %v", path, line, err)
		}
		n = append(n, e.(*event.Verdict).Packets)
	}
	return n
}

// The file is renamed and opened again, over and over, while events come: each is in
// one file, whole, in order, and what comes after the signal is in the new file.
func TestSignalOpensTheEventFileAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	l := openLog(t, path)
	signals := make(chan os.Signal)
	stop := l.ReopenOn(signals)
	const rotations, each = 20, 500
	n := 0
	for i := range rotations {
		for range each {
			n++
			l.Put(verdict(n, true))
		}
		if err := os.Rename(path, fmt.Sprint(path, ".", i)); err != nil {
			t.Fatal(err)
		}
		for range each { // between the two steps of logrotate
			n++
			l.Put(verdict(n, true))
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
	l.Put(verdict(n, true))
	stop()
	l.Close()
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
	if lost := l.Lost(); lost != 0 {
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
	l := openLog(t, path)
	signals := make(chan os.Signal)
	stop := l.ReopenOn(signals)
	l.Put(verdict(1, true))
	moved := filepath.Join(dir, "moved")
	if err := os.Rename(filepath.Dir(path), moved); err != nil {
		t.Fatal(err)
	}
	signals <- unix.SIGHUP
	signals <- unix.SIGHUP // the first one is seen to when this one is taken
	l.Put(verdict(2, true))
	stop()
	l.Close()
	if got := numbers(t, filepath.Join(moved, "events.jsonl")); len(got) != 2 {
		t.Errorf("the old file has the events %v, want 1 and 2", got)
	}
	if !strings.Contains(log.String(), "can't be opened again") || !strings.Contains(log.String(), "no such file") {
		t.Errorf("it is not said: %s", log.String())
	}
	if l.Lost() != 0 {
		t.Errorf("%d events were lost", l.Lost())
	}

	// Without a file there is nothing to do.
	none, err := Open(Config{Text: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	stop = none.ReopenOn(signals)
	signals <- unix.SIGHUP
	stop()
	none.Close()
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
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for path, want := range map[string]string{
		fifo:                        fifo + " is a FIFO that nobody reads: start its reader first",
		socket:                      socket + " is a socket: name a file or a FIFO",
		dir:                         dir + ": is a directory",
		filepath.Join(dir, "no/no"): "no/no: no such file or directory",
	} {
		if _, err := Open(Config{File: path}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}

	reader, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	l := openLog(t, fifo)
	if l.file.created {
		t.Error("the FIFO is taken for a file that was made")
	}
	for n := range 300 { // more than a pipe holds
		l.Put(verdict(n, true))
	}
	lines := bufio.NewScanner(reader)
	for n := range 300 {
		if !lines.Scan() {
			t.Fatalf("line %d: %v", n, lines.Err())
		}
		if e, err := event.Decode(lines.Bytes()); err != nil || e.(*event.Verdict).Packets != n {
			t.Fatalf("line %d is %q, %v", n, lines.Text(), err)
		}
	}
	l.Close()
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
	l := openLog(t, fifo)
	for n := range 2 * queueLen {
		l.Add(verdict(n, true))
	}
	l.Put(verdict(0, true)) // the last word of a daemon
	if l.Lost() == 0 {
		t.Error("nothing was lost: this test says little")
	}
	l.Close()
	// Let go of what the writer holds.
	_ = reader.Close()
	<-l.done
	_ = l.file.Close()
}

// In a flood of flows that pass, the queue has room for the others.
func TestFloodOfPassesLeavesRoomForDetectedFlows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	l, err := open(Config{File: path}) // nobody takes any yet
	if err != nil {
		t.Fatal(err)
	}
	for n := range 2 * queueLen {
		l.Add(verdict(n, false))
	}
	for n := range queueLen / 4 {
		l.Add(verdict(100_000+n, true))
	}
	if want := uint64(2*queueLen - queueLen*3/4); l.Lost() != want {
		t.Errorf("%d events were lost, want %d", l.Lost(), want)
	}
	go l.write()
	l.Close()
	kept := 0
	for _, n := range numbers(t, path) {
		if n >= 100_000 {
			kept++
		}
	}
	if kept != queueLen/4 {
		t.Errorf("%d of %d detected flows are in the file", kept, queueLen/4)
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
		l, err := ParsePasses(tt.value)
		if err != nil {
			t.Fatal(err)
		}
		var got [4]int
		for second := range got {
			for i := range 1000 {
				if l.Allow(start.Add(time.Duration(second)*time.Second + time.Duration(i)*time.Millisecond)) {
					got[second]++
				}
			}
		}
		if got != tt.want {
			t.Errorf("%s: %v are written, want %v", tt.value, got, tt.want)
		}
	}
}
