// SPDX-License-Identifier: Apache-2.0

package history

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader/flow"
)

var labels = []string{"background", "shadowsocks", "v2ray", "trojan", "vmess", "wireguard", "openvpn", "tor", "obfs4", "ssh"}

// begin is when the events of tests begin.
var begin = time.Now().Add(-time.Hour).Truncate(time.Second)

// verdict returns one of many verdicts, 50 µs after the one before. One in a hundred is about a
// flow that is detected.
func verdict(n int) *event.Verdict {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	scores := make([]float64, len(labels))
	for i := range scores {
		scores[i] = r.Float64()
	}
	at := begin.Add(time.Duration(n) * 50 * time.Microsecond)
	v := &event.Verdict{
		Time: at, Start: at.Add(-time.Second).UTC(), Interface: "eth0", Mode: "enforce",
		Endpoints: event.Endpoints{
			Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(256)), byte(r.IntN(256))}), uint16(1024+r.IntN(60000))),
			Dst: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(256))}), 443), Proto: "tcp",
		},
		Class: labels[0], Confidence: r.Float64(), Scores: event.Scores{Labels: labels, Values: scores}, Decision: "pass", Enforced: new(bool), Reason: "no_rule",
		Naming: event.Naming{Likeliest: labels[0]}, Model: "compact 3", Captured: 1024, Complete: true, HandedOver: "full", Packets: 8, Bytes: 3423,
		VerdictMS: 53.25, LatencyUS: 234.5,
	}
	if n%100 == 0 {
		v.Class, v.Decision, v.Rule, v.Detected, v.RuleClasses = labels[1+r.IntN(9)], "drop", "tunnels", true, []string{"shadowsocks", "v2ray"}
	}
	v.ID = event.ID(at.UnixMicro())
	return v
}

// opened returns a history that syncs and tries again often.
func opened(t testing.TB, o Options) *History {
	t.Helper()
	if o.Path == "" {
		o.Path = filepath.Join(t.TempDir(), "history.db")
	}
	if o.syncEvery == 0 {
		o.syncEvery, o.retryEvery = 5*time.Millisecond, 10*time.Millisecond
	}
	h, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// many makes a file of so many verdicts, without a queue, and returns a reader of it.
func many(t testing.TB, n int) *Reader {
	t.Helper()
	path := filepath.Join(t.TempDir(), "history.db")
	h := &History{o: Options{Path: path, Bytes: 1 << 40, Age: 1 << 60, syncEvery: time.Hour, retryEvery: time.Hour}}
	w, err := newWriter(h)
	if err != nil {
		t.Fatal(err)
	}
	some := make([]entry, 20000)
	for i := range some {
		if some[i], err = newEntry(verdict(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		e := some[i%len(some)]
		later := begin.Add(time.Duration(i) * 50 * time.Microsecond).UnixMicro() // the rest is as it was
		e.id, e.at = event.ID(later), later
		w.add(e)
		if i%len(some) == len(some)-1 {
			w.sync()
		}
	}
	w.sync()
	w.close()
	if lost := h.lost.Load(); lost > 0 {
		t.Fatalf("%d events were lost", lost)
	}
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

type searcher interface {
	Search(context.Context, *Query) iter.Seq2[json.RawMessage, error]
}

func search(t testing.TB, s searcher, q *Query) (found []event.Event) {
	t.Helper()
	for line, err := range s.Search(context.Background(), q) {
		if err != nil {
			t.Fatal(err)
		}
		e, err := event.Decode(line)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, e)
	}
	return found
}

// cpuTime is what the process has used so far.
func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// waitFor waits until something is so.
func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come about", what)
		}
	}
}

// keep keeps events and waits until they are written for good.
func keep(t *testing.T, h *History, events ...event.Event) {
	t.Helper()
	var last event.ID
	for _, e := range events {
		last = max(last, event.IDOf(e))
		h.Keep(e)
	}
	waitFor(t, "the writing", func() bool { return h.LastID() >= last })
}

func verdicts(from, to int) (all []event.Event) {
	for i := from; i < to; i++ {
		all = append(all, verdict(i))
	}
	return all
}

func idsOf(events []event.Event) (ids []event.ID) {
	for _, e := range events {
		ids = append(ids, event.IDOf(e))
	}
	return ids
}

// What is kept is found again, as it was, by all that it can be searched by, in both orders, in
// pages, while it is written and after the file was opened again.
func TestEventsAreFoundAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.db")
	h := opened(t, Options{Path: path})
	const n = 1000 // several blocks
	all := verdicts(0, n)
	ended := &event.BlockEnded{Time: begin.Add(time.Minute), Interface: "eth1", Rule: "tunnels", Class: "v2ray", Reason: "expired",
		Endpoints: event.Endpoints{Src: netip.MustParseAddrPort("[2001:db8::1]:1"), Dst: netip.MustParseAddrPort("[2001:db8::2]:443"), Proto: "udp"}}
	ended.ID = event.ID(ended.Time.UnixMicro())
	mode := &event.ModeChanged{Time: begin.Add(2 * time.Minute), Interface: "eth0", Mode: "enforce"}
	mode.ID = event.ID(mode.Time.UnixMicro())
	all = append(all, ended, mode)
	// Workers queue events in slightly different order.
	mixed := slices.Clone(all)
	for i := 0; i+8 < n; i += 8 {
		slices.Reverse(mixed[i : i+8])
	}
	for i := 0; i < len(mixed); i += 100 { // in several batches
		keep(t, h, mixed[i:min(i+100, len(mixed))]...)
	}
	some := all[500].(*event.Verdict)
	prefix := func(p netip.Prefix) Query {
		q := Query{Fits: func(e *event.Properties) bool { return p.Contains(e.Src.Addr()) || p.Contains(e.Dst.Addr()) }}
		if k, ok := NetworkKey(p); ok {
			q.Need = [][]Key{{k}}
		}
		return q
	}
	whole := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	word := func(k Key, fits func(*event.Properties) bool) Query { return Query{Need: [][]Key{{k}}, Fits: fits} }
	check := func(s searcher) {
		t.Helper()
		for name, q := range map[string]Query{
			"all":     {},
			"client":  prefix(whole(some.Src.Addr())),
			"server":  prefix(whole(some.Dst.Addr())),
			"/24":     prefix(netip.PrefixFrom(some.Src.Addr(), 24).Masked()),
			"/12":     prefix(netip.MustParsePrefix("10.0.0.0/12")),
			"/4":      prefix(netip.MustParsePrefix("192.0.0.0/4")),
			"IPv6":    prefix(netip.MustParsePrefix("2001:db8::/40")),
			"nobody":  prefix(whole(netip.MustParseAddr("203.0.113.1"))),
			"drop":    word(DecisionKey("drop"), func(e *event.Properties) bool { return e.Decision == "drop" }),
			"class":   word(ClassKey("v2ray"), func(e *event.Properties) bool { return slices.Contains(e.Classes, "v2ray") }),
			"rule":    word(RuleKey("tunnels"), func(e *event.Properties) bool { return e.Rule == "tunnels" }),
			"kind":    word(EventKey(event.KindModeChanged), func(e *event.Properties) bool { return e.Kind == event.KindModeChanged }),
			"eth1":    word(InterfaceKey("eth1"), func(e *event.Properties) bool { return e.Interface == "eth1" }),
			"port":    word(ServerKey(some.Dst), func(e *event.Properties) bool { return e.Dst == some.Dst }),
			"low end": word(ServerKey(ended.Src), func(e *event.Properties) bool { return e.Src == ended.Src }), // it may be the server
			"time":    {Since: some.Time, Until: some.Time.Add(time.Millisecond)},
			"between": {After: all[100].(*event.Verdict).ID, Before: all[104].(*event.Verdict).ID},
		} {
			var want []event.Event
			for _, e := range all {
				p := event.PropertiesOf(e)
				if q.means(&row{event.IDOf(e), e.When().UnixMicro(), p}) {
					want = append(want, e)
				}
			}
			if (len(want) == 0) != (name == "nobody") {
				t.Fatalf("%s: %d events are meant", name, len(want))
			}
			q.Oldest = true
			got := search(t, s, &q)
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty(), cmpopts.EquateApproxTime(0)); diff != "" {
				t.Errorf("%s (-kept +found):\n%s", name, diff)
			}
			for _, oldest := range []bool{true, false} {
				page, pages := q, []event.Event(nil)
				page.Oldest, page.Limit = oldest, 60
				for len(pages) < len(want) {
					some := search(t, s, &page)
					if len(some) == 0 || len(some) > 60 {
						t.Fatalf("%s: a page of %d events", name, len(some))
					}
					pages = append(pages, some...)
					if oldest {
						page.After = event.IDOf(some[len(some)-1])
					} else {
						page.Before = event.IDOf(some[len(some)-1])
					}
				}
				if !oldest {
					slices.Reverse(pages)
				}
				if diff := cmp.Diff(idsOf(want), idsOf(pages)); diff != "" {
					t.Errorf("%s, in pages, the oldest first: %v (-kept +found):\n%s", name, oldest, diff)
				}
			}
		}
	}
	check(h)
	r, err := OpenReader(path) // beside the daemon
	if err != nil {
		t.Fatal(err)
	}
	check(r)
	line, err := r.Event(t.Context(), some.ID)
	if e, decodeErr := event.Decode(line); err != nil || decodeErr != nil || event.IDOf(e) != some.ID {
		t.Errorf("%s, %v", line, err)
	}
	if _, err := r.Event(t.Context(), some.ID+1); !errors.Is(err, ErrNotFound) {
		t.Errorf("an event that there is not: %v", err)
	}
	_ = r.Close()
	h.Close()
	h.Close() // once more is nothing
	h.Keep(all[0])
	if s := h.Status(); s.Events != uint64(len(all)) || s.Lost != 1 {
		t.Errorf("status %+v", s)
	}
	again := opened(t, Options{Path: path})
	if again.LastID() != mode.ID {
		t.Errorf("the last event is %s, want %s", again.LastID(), mode.ID)
	}
	check(again)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: others may read it", info.Mode(), err)
	}
}

func quiet(t *testing.T) *logged {
	t.Helper()
	l := &logged{}
	saved := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(l, nil)))
	t.Cleanup(func() { slog.SetDefault(saved) })
	return l
}

// logged is a log; safe for concurrent use.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// The oldest events make room, and those that are too old go.
func TestHistoryIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.db")
	h := opened(t, Options{Path: path, Bytes: LeastBytes})
	const n = 40_000
	for i := 0; i < n; i += 4000 {
		keep(t, h, verdicts(i, i+4000)...)
	}
	s := h.Status()
	if s.Bytes > LeastBytes || s.Bytes < LeastBytes/2 || s.Events > n*3/4 || s.Events < n/10 || s.Lost != 0 {
		t.Errorf("status %+v", s)
	}
	kept := search(t, h, &Query{})
	if event.IDOf(kept[0]) != verdict(n-1).ID || uint64(len(kept)) != s.Events {
		t.Errorf("%d events, the latest is %s; the status says %d", len(kept), event.IDOf(kept[0]), s.Events)
	}
	h.Close()
	if info, err := os.Stat(path); err != nil || info.Size() > LeastBytes*5/4 {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}

	// All of them are older than half an hour.
	h = opened(t, Options{Path: path, Age: 30 * time.Minute, Bytes: LeastBytes})
	v := verdict(0)
	v.Time = time.Now()
	v.ID = event.ID(v.Time.UnixMicro())
	keep(t, h, v)
	waitFor(t, "the end of old events", func() bool { return h.Status().Events == 1 })
	if got := search(t, h, &Query{}); len(got) != 1 || event.IDOf(got[0]) != v.ID {
		t.Errorf("%d events are left", len(got))
	}
	waitFor(t, "a smaller file", func() bool {
		info, err := os.Stat(path)
		return err == nil && info.Size() < LeastBytes/2
	})
}

// In a flood, verdicts that pass are lost first, and all that is lost is counted.
func TestQueueIsBounded(t *testing.T) {
	h := &History{o: Options{}, queue: make(chan item, queueLen)} // nobody takes any
	pass, drop := verdict(1), verdict(0)
	for range queueLen {
		h.Keep(pass)
	}
	for range queueLen / 4 {
		h.Keep(drop)
	}
	if got := h.Status().Lost; got != queueLen/4 {
		t.Errorf("%d were lost", got)
	}
	h.Keep(drop)
	if got := h.Status().Lost; got != queueLen/4+1 {
		t.Errorf("%d were lost", got)
	}
	var none *History
	none.Keep(drop)
	none.Close()
	if none.Wants(true, begin) || none.Status() != nil {
		t.Error("there is a history where there is none")
	}
}

// A file that makes no sense is put aside, and another one begun; one of a newer version stays
// as it is. Each is told in one line, and no event is in the way.
func TestWhatIsWrongWithTheFile(t *testing.T) {
	good := func(t *testing.T, path string) {
		h := opened(t, Options{Path: path})
		keep(t, h, verdicts(0, 500)...)
		h.Close()
	}
	overwrite := func(from int64, with string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			good(t, path)
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte(with), from); err != nil {
				t.Fatal(err)
			}
		}
	}
	run := func(text string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			good(t, path)
			db, err := connect(path, url.Values{})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if _, err := db.Exec(text); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tt := range map[string]struct {
		make  func(*testing.T, string)
		want  string // of the log
		works bool   // a new one is begun
	}{
		"no database": {func(t *testing.T, path string) { write(t, path, strings.Repeat("not a database\n", 100)) }, "a new one is begun", true},
		"header":      {overwrite(0, "garbage"), "a new one is begun", true},
		"pages":       {overwrite(4096, strings.Repeat("\xff", 3*4096)), "a new one is begun", true},
		"another's":   {run("PRAGMA application_id = 7"), "a new one is begun", true},
		"newer":       {run("PRAGMA user_version = 2"), "it is of a newer version of earlydrop: its form is 2, and this program knows 1", false},
		"a folder":    {func(t *testing.T, path string) { mkdir(t, path) }, "it can't be opened", false},
		"no folder":   {func(t *testing.T, path string) { _ = os.Remove(filepath.Dir(path)) }, "no such file or directory", false},
		"another's lock": {func(t *testing.T, path string) {
			f, err := lock(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
		}, "another daemon writes it", false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "folder", "history.db")
			mkdir(t, filepath.Dir(path))
			tt.make(t, path)
			log := quiet(t)
			h := opened(t, Options{Path: path})
			h.Keep(verdict(1000))
			if tt.works {
				keep(t, h, verdict(1001))
				if got := search(t, h, &Query{}); len(got) != 2 {
					t.Errorf("%d events, want 2", len(got))
				}
				aside, err := filepath.Glob(path + ".damaged-*Z")
				if err != nil || len(aside) != 1 {
					t.Errorf("put aside: %q, %v", aside, err)
				}
			} else {
				waitFor(t, "the loss", func() bool { return h.Status().Lost == 1 })
				if s := h.Status(); !strings.Contains(s.Error, tt.want) {
					t.Errorf("status %+v", s)
				}
				for _, err := range h.Search(t.Context(), &Query{}) {
					if err == nil || !strings.Contains(err.Error(), tt.want) {
						t.Errorf("a search says %v", err)
					}
				}
			}
			if text := log.String(); strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, tt.want) {
				t.Errorf("log, want one line with %q:\n%s", tt.want, text)
			}
			if _, err := OpenReader(path); !tt.works && name != "another's lock" && (err == nil || strings.Contains(err.Error(), "\n")) {
				t.Errorf("a reader says %v", err)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

// A damaged block is left out of an answer, and the others are in it.
func TestDamagedBlockIsLeftOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.db")
	h := opened(t, Options{Path: path})
	keep(t, h, verdicts(0, 1000)...)
	h.Close()
	db, err := connect(path, url.Values{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("UPDATE texts SET text = zeroblob(100) WHERE number = 2; UPDATE texts SET rows = x'00' WHERE number = 3"); err != nil {
		t.Fatal(err)
	}
	_ = db.Close()
	log := quiet(t)
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := len(search(t, r, &Query{})); got != 1000-2*blockEvents {
		t.Errorf("%d events are found", got)
	}
	if !strings.Contains(log.String(), "events of the history are left out") {
		t.Errorf("it is not said: %s", log)
	}
}

// Whatever the disk does, keeping goes on when it lets it, and nothing is lost that was written
// for good.
func TestFullAndReadOnlyDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disk")
	mkdir(t, dir)
	// The journal takes 4 MiB until its pages go to the file: by itself it must not fill the disk.
	const size = "size=16m"
	mount := func(flags uintptr, options string) {
		t.Helper()
		if err := unix.Mount("tmpfs", dir, "tmpfs", flags, options); err != nil {
			t.Fatal(err)
		}
	}
	mount(0, size)
	t.Cleanup(func() {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil { // once for each mount
		}
	})
	log := quiet(t)
	path := filepath.Join(dir, "history.db")
	h := opened(t, Options{Path: path})
	first := verdicts(0, 300)
	keep(t, h, first...)
	filler := filepath.Join(dir, "filler")
	fill := func() {
		t.Helper()
		f, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for {
			if _, err := f.Write(make([]byte, 4096)); err != nil {
				break
			}
		}
	}
	fill()
	i := 300
	more := func() {
		for range 50 {
			h.Keep(verdict(i))
			i++
		}
	}
	waitFor(t, "the full disk", func() bool { more(); return h.Status().Error != "" })
	lost := h.Status().Lost
	waitFor(t, "more loss", func() bool { more(); return h.Status().Lost > lost+100 })
	if got := h.Status().Error; !strings.Contains(got, "full") && !strings.Contains(got, "opened") {
		t.Errorf("status says %q", got)
	}
	if n := strings.Count(log.String(), "level=WARN"); n > 3 {
		t.Errorf("it is said %d times:\n%s", n, log)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "room", func() bool { more(); return h.Status().Error == "" })
	last := verdict(i)
	keep(t, h, last)
	found := idsOf(search(t, h, &Query{Oldest: true}))
	if !slices.Equal(found[:len(first)], idsOf(first)) || found[len(found)-1] != last.ID {
		t.Errorf("of %d events that were written for good and the last one, not all are found", len(first))
	}
	if !strings.Contains(log.String(), "the history is written again") {
		t.Errorf("it is not said that it works again:\n%s", log)
	}
	h.Close()

	// The same disk, read-only.
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, size); err != nil {
		t.Fatal(err)
	}
	h = opened(t, Options{Path: path})
	h.Keep(verdict(i + 1))
	waitFor(t, "the loss", func() bool { return h.Status().Lost == 1 })
	if got := h.Status().Error; !strings.Contains(got, "read-only") {
		t.Errorf("status says %q", got)
	}
	r, err := OpenReader(path) // who looks back needs no disk that can be written
	if err != nil {
		t.Fatal(err)
	}
	if got := len(search(t, r, &Query{})); got != len(found) {
		t.Errorf("%d events are read, want %d", got, len(found))
	}
	_ = r.Close()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, size); err != nil {
		t.Fatal(err)
	}
	i += 2
	waitFor(t, "a disk that can be written", func() bool { more(); return h.Status().Error == "" })
}

// sample is a capture of a connection between the ends of a verdict.
func sample(v *event.Verdict) *flow.Sample {
	s := new(flow.Sample)
	s.Reset()
	s.Key, s.InitiatorIsLo = flow.NewKey(v.Src, v.Dst, flow.TCP, 0, 0)
	s.Start, s.Reason = v.Start, flow.ReasonFull
	body := make([]byte, 900)
	r := rand.New(rand.NewPCG(uint64(v.ID), 2))
	for i := range body {
		body[i] = byte(r.Uint32())
	}
	ip := append([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0}, slices.Concat(v.Src.Addr().AsSlice(), v.Dst.Addr().AsSlice())...)
	binary.BigEndian.PutUint16(ip[2:], uint16(20+20+len(body)))
	tcp := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, v.Src.Port()), v.Dst.Port())
	tcp = append(tcp, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0, 0, 0, 0, 0)
	frame := slices.Concat([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}, ip, tcp, body)
	s.Data = append(s.Data, frame...)
	s.Packets = append(s.Packets, flow.Packet{WireLen: uint32(len(frame)), FromInitiator: true})
	return s
}

// Captures are kept of treated flows alone, found by their event, and bounded in size and age.
func TestCapturesAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.db")
	h := opened(t, Options{Path: path, Captures: &Captures{Bytes: 200 << 10}})
	var drops []*event.Verdict
	for i := 1; i <= 400; i++ {
		v := verdict(100 * i)
		h.KeepVerdict(v, sample(v))
		drops = append(drops, v)
	}
	pass := verdict(1)
	pass.ID = drops[len(drops)-1].ID + 1
	h.KeepVerdict(pass, sample(pass))
	waitFor(t, "the writing", func() bool { return h.LastID() >= pass.ID })
	last := drops[len(drops)-1]
	file, err := h.Capture(t.Context(), last.ID)
	if err != nil || !bytes.Contains(file, sample(last).Data) || !bytes.Contains(file, []byte(last.ID.String())) {
		t.Errorf("%d bytes, %v", len(file), err)
	}
	waitFor(t, "the end of the oldest captures", func() bool { _, err := h.Capture(t.Context(), drops[0].ID); return err != nil })
	for _, id := range []event.ID{pass.ID, drops[0].ID} {
		if _, err := h.Capture(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("event %s: %v", id, err)
		}
	}
	kept := func() (n, size int) {
		r, err := h.current()
		if err != nil {
			t.Fatal(err)
		}
		if err := r.db.QueryRow("SELECT count(*), coalesce(sum(bytes), 0) FROM captures").Scan(&n, &size); err != nil {
			t.Fatal(err)
		}
		return n, size
	}
	waitFor(t, "the end of the oldest captures", func() bool { _, size := kept(); return size <= 200<<10 })
	if n, _ := kept(); n < 50 || h.Status().CapturesLost != 0 {
		t.Errorf("%d captures are kept, %+v", n, h.Status())
	}
	h.Close()

	// They are an hour old; and a daemon that keeps none forgets them all the same, in time.
	h = opened(t, Options{Path: path, Captures: &Captures{Age: time.Minute}})
	waitFor(t, "the end of old captures", func() bool { n, _ := kept(); return n == 0 })
}

// Who has the key, and nobody else, can tell that it is the same address; and where there is no
// key, nothing is kept that it is to hide.
func TestHashedAddresses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.db")
	file := func(path string) string {
		h := opened(t, Options{Path: path, Captures: &Captures{Addresses: AddressesHashed}})
		defer h.Close()
		v := verdict(100)
		v.ID += h.LastID()
		h.KeepVerdict(v, sample(v))
		waitFor(t, "the writing", func() bool { return h.LastID() >= v.ID })
		f, err := h.Capture(t.Context(), v.ID)
		if err != nil {
			t.Fatal(err)
		}
		_, initiator, _ := strings.Cut(string(f), `{"initiator":"`)
		initiator, _, _ = strings.Cut(initiator, `"`)
		if a, err := netip.ParseAddrPort(initiator); err != nil || !netip.MustParsePrefix("240.0.0.0/4").Contains(a.Addr()) || a.Port() != v.Src.Port() {
			t.Errorf("%s is %s", v.Src, initiator)
		}
		return initiator
	}
	first, again, other := file(path), file(path), file(filepath.Join(t.TempDir(), "history.db"))
	if first != again || first == other {
		t.Errorf("one is %s, then %s; with another key %s", first, again, other)
	}
	if info, err := os.Stat(path + "-key"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info.Mode(), err)
	}
	write(t, path+"-key", "short")
	log := quiet(t)
	h := opened(t, Options{Path: path, Captures: &Captures{Addresses: AddressesHashed}})
	v := verdict(200)
	v.ID += h.LastID()
	h.KeepVerdict(v, sample(v))
	waitFor(t, "the writing", func() bool { return h.LastID() >= v.ID })
	if _, err := h.Capture(t.Context(), v.ID); !errors.Is(err, ErrNotFound) || h.Status().CapturesLost != 1 {
		t.Errorf("%v, %+v", err, h.Status())
	}
	if text := log.String(); strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, "is no key of 32 bytes: remove it") {
		t.Errorf("log:\n%s", text)
	}
}

// killedMark is the environment variable with the file of a process that is killed.
const killedMark = "EARLYDROP_TEST_HISTORY"

// What was written for good is there after SIGKILL, whenever that comes.
func TestWrittenEventsSurviveKill(t *testing.T) {
	if path := os.Getenv(killedMark); path != "" {
		h := opened(t, Options{Path: path})
		for i := 0; ; i++ {
			h.Keep(verdict(i))
			if i%64 == 0 {
				fmt.Printf("written %d\n", h.LastID())
			}
		}
	}
	path := filepath.Join(t.TempDir(), "history.db")
	for range 3 {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestWrittenEventsSurviveKill$")
		cmd.Env = append(os.Environ(), killedMark+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var before, last event.ID
		lines := bufio.NewScanner(out)
		for changes := 0; changes < 5 && lines.Scan(); {
			var id event.ID
			if _, err := fmt.Sscanf(lines.Text(), "written %d", &id); err != nil {
				continue
			}
			if id != last {
				changes++
			}
			before, last = last, id
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if before == 0 {
			t.Fatal("nothing was written")
		}
		r, err := OpenReader(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Event(t.Context(), last); err != nil {
			t.Errorf("what was written for good is not there: %v", err)
		}
		var check string
		if err := r.db.QueryRow("PRAGMA integrity_check").Scan(&check); err != nil || check != "ok" {
			t.Errorf("the file: %s, %v", check, err)
		}
		_ = r.Close()
	}
}

func BenchmarkSearch(b *testing.B) {
	const events = 1_000_000
	r := many(b, events)
	var size int64
	_ = r.db.QueryRow("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").Scan(&size)
	some := verdict(123_400)
	host := func(p netip.Prefix) Query {
		k, ok := NetworkKey(p)
		q := Query{Limit: 1000, Fits: func(e *event.Properties) bool { return p.Contains(e.Src.Addr()) || p.Contains(e.Dst.Addr()) }}
		if ok {
			q.Need = [][]Key{{k}}
		}
		return q
	}
	whole := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	absent := Query{Limit: 1000, Fits: func(e *event.Properties) bool { return e.Dst == some.Dst && e.Decision == "reset" }, Need: [][]Key{{ServerKey(some.Dst)}}}
	for _, bb := range []struct {
		name string
		q    Query
	}{
		{"latest", Query{Limit: 1000}},
		{"client", host(whole(some.Src.Addr()))},
		{"server", host(whole(some.Dst.Addr()))},
		{"stranger", host(whole(netip.MustParseAddr("203.0.113.9")))},
		{"network", host(netip.PrefixFrom(some.Src.Addr(), 24).Masked())},
		{"wide", host(netip.MustParsePrefix("172.16.0.0/12"))},
		{"drops", Query{Limit: 1000, Need: [][]Key{{DecisionKey("drop")}}, Fits: func(e *event.Properties) bool { return e.Decision == "drop" }}},
		{"nothing of a busy server", absent},
		{"time", Query{Limit: 1000, Since: some.Time, Until: some.Time.Add(time.Second)}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			n := 0
			before := cpuTime(b)
			for b.Loop() {
				n = 0
				for _, err := range r.Search(b.Context(), &bb.q) {
					if err != nil {
						b.Fatal(err)
					}
					n++
				}
			}
			b.ReportMetric(float64(cpuTime(b)-before)/1e6/float64(b.N), "cpu-ms/op") // other programs may be busy
			b.ReportMetric(float64(n), "found")
			b.ReportMetric(float64(size)/events, "file-B/event")
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	h := &History{o: Options{Path: filepath.Join(b.TempDir(), "history.db"), Bytes: 1 << 40, Age: 1 << 60, syncEvery: time.Hour, retryEvery: time.Hour}}
	w, err := newWriter(h)
	if err != nil {
		b.Fatal(err)
	}
	some := make([]*event.Verdict, 20000)
	for i := range some {
		some[i] = verdict(i)
	}
	i := 0
	for b.Loop() {
		v := *some[i%len(some)]
		v.ID += event.ID(i)
		w.take(item{event: &v})
		if i++; i%20000 == 0 {
			w.sync()
		}
	}
	w.close()
}
