// SPDX-License-Identifier: Apache-2.0

package top

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/mattn/go-runewidth"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/why"
	"github.com/earlydrop/earlydrop/loader"
)

var update = flag.Bool("update", false, "write the expected screens anew")

// Clock times on the screen are local ones.
func TestMain(m *testing.M) {
	time.Local = time.UTC
	flag.Parse()
	os.Exit(m.Run())
}

// fake is a daemon.
type fake struct {
	mu     sync.Mutex
	top    *status.Top
	err    error
	blocks []status.Block
	pairs  []status.Pair
	lifted []string
}

func (f *fake) Top(context.Context, int) (*status.Top, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.top, f.err
}

func (f *fake) Blocks(_ context.Context, filter control.BlockFilter, _ string, _ int) (*control.Blocks, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := slices.DeleteFunc(slices.Clone(f.blocks), func(b status.Block) bool { return !filter.Match(&b) })
	return &control.Blocks{Matched: len(all), Blocks: all}, f.err
}

func (f *fake) Lift(_ context.Context, filter control.BlockFilter) (l control.Lifted, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blocks = slices.DeleteFunc(f.blocks, func(b status.Block) bool {
		if !filter.Match(&b) {
			return false
		}
		l.Blocks, l.Packets, l.Bytes = l.Blocks+1, l.Packets+b.Packets, l.Bytes+b.Bytes
		f.lifted = append(f.lifted, filter.String())
		return true
	})
	if l.Blocks == 0 {
		err = &control.Error{Status: 404, Message: "not blocked"}
	}
	return l, err
}

func (f *fake) Pairs(_ context.Context, filter control.PairFilter, _ string, _ int) (*control.Pairs, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := slices.DeleteFunc(slices.Clone(f.pairs), func(p status.Pair) bool { return !filter.Match(&p) })
	return &control.Pairs{Matched: len(all), Pairs: all}, f.err
}

func (f *fake) ForgetPairs(_ context.Context, filter control.PairFilter) (sum control.Forgotten, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pairs = slices.DeleteFunc(f.pairs, func(p status.Pair) bool {
		if !filter.Match(&p) {
			return false
		}
		sum.Pairs = 1 // a filter of these tests names one
		sum.Add(&p)
		return true
	})
	if sum.Pairs == 0 {
		err = &control.Error{Status: 404, Message: "not treated"}
	}
	return sum, err
}

// Why remembers what is latest.
func (f *fake) Why(_ context.Context, q *why.Query) (*why.Answer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := &why.Answer{Of: q.Of(), Remembered: 3, Room: 10_000, Since: noon}
	for _, e := range f.top.Latest {
		if q.Fits(e.Src, e.Dst) {
			a.Decisions = append(a.Decisions, why.Decision{Verdict: e})
		}
	}
	a.Matched = len(a.Decisions)
	return a, f.err
}

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// busy returns a daemon that has seen so many seconds of traffic.
func busy(seconds int) *fake {
	n := uint64(seconds)
	now := noon.Add(time.Duration(seconds) * time.Second)
	yes, no, confidence := true, false, 0.9941
	end := netip.MustParseAddrPort
	verdict := func(ago int, src, dst, class, decision, reason, rule string, detected bool, enforced *bool) *event.Verdict {
		e := &event.Verdict{
			Time: now.Add(-time.Duration(ago) * time.Second), Interface: "eth0", Mode: "enforce", Endpoints: event.Endpoints{Src: end(src), Dst: end(dst), Proto: "tcp"},
			Start: now.Add(-time.Duration(ago+1) * time.Second), Class: class, Confidence: 0.9876, Decision: decision, Enforced: enforced, Rule: rule, Reason: reason,
			Naming: event.Naming{Likeliest: class, Detected: detected}, Model: "compact 1.3.0", Captured: 1024, Complete: true, HandedOver: "full", Packets: 6, Bytes: 1400,
			VerdictMS: 31.4, LatencyUS: 171.2,
		}
		if detected {
			e.RuleClasses, e.RuleConfidence, e.TTL = []string{"shadowsocks", "v2ray"}, &confidence, 600
			e.Scores = event.Scores{Labels: []string{"background", "shadowsocks", "v2ray"}, Values: []float64{0.0059, 0.9876, 0.0065}}
		}
		return e
	}
	eth0 := &status.Status{
		Interface: "eth0", State: status.Well, Pins: "/sys/fs/bpf/earlydrop/eth0", Running: true, Since: noon, Ingress: "xdp", XDP: "native", Egress: "tcx", Mode: "enforce",
		Flows: loader.Occupancy{Flows: 31_000, Collecting: 12, Blocked: 2}, Capacity: loader.Occupancy{Flows: 262_144, Collecting: 8192, Blocked: 65_536},
		Daemon:   map[string]uint64{"classified": 100 * n, "to_drop": 2 * n},
		Counters: map[string]uint64{"packets_ingress": 5000 * n, "packets_egress": 4000 * n, "dropped_packets": 40 * n, "dropped_bytes": 60_000 * n, "tcp_opened": 110 * n},
		Classes:  map[string]uint64{"background": 98 * n, "shadowsocks": 2 * n}, Rules: map[string]status.Rule{"tunnels": {Detected: 2 * n, Blocked: 2 * n}},
		Verdicts: []status.Verdicts{{Decision: "pass", Reason: "no rule", Flows: 98 * n}, {Rule: "tunnels", Decision: "drop", Reason: "rule", Flows: 2 * n}},
		Traffic:  &loader.Traffic{RxBytes: 4_000_000 * n, TxBytes: 1_000_000 * n}, Latency: &status.Latency{Verdicts: 100, Times: status.Times{P50: 120, P90: 300, P99: 870, Max: 2100}},
	}
	eth1 := *eth0
	eth1.Interface, eth1.Pins, eth1.Mode, eth1.State, eth1.Traffic = "eth1", "/sys/fs/bpf/earlydrop/eth1", "monitor", status.Degraded, nil
	eth1.Flows.Collecting = 8000
	eth1.Judge()
	eth1.Rates = &status.Rates{Seconds: 5, Packets: 10}
	f := &fake{top: &status.Top{
		Report: status.Report{
			Time: now, Since: noon, PID: 7, Version: "v1.2.0", Model: "compact 1.3.0", Policy: "/etc/earlydrop/policy.yaml", Interfaces: []*status.Status{eth0, &eth1},
			Queue: status.Fill{Used: 3, Size: 4096}, Inference: &status.Inference{Batches: 9, Times: status.Times{P99: 640}},
			Waiting: []status.Waiting{{Interface: "wg0", State: status.Awaited}},
		},
		Pairs: []status.Leader{
			{Initiator: netip.MustParsePrefix("10.0.0.2/32"), Server: end("192.0.2.7:8388"), Proto: "tcp", Detected: 12, Blocked: 12, DroppedPackets: 800, DroppedBytes: 1_200_000, Blocks: 2, Interface: "eth0", Class: "shadowsocks", Rule: "tunnels", Last: now},
			{Initiator: netip.MustParsePrefix("2001:db8:1:2::/64"), Server: end("[2001:db8:ffff::1234:5678]:443"), Proto: "tcp", Detected: 3, DroppedBytes: 9_000_000, DroppedPackets: 7000, Interface: "eth1", Class: "v2ray", Rule: "tunnels", Last: noon},
		},
		Servers: []status.Leader{{Server: end("192.0.2.7:8388"), Proto: "tcp", Detected: 15, Blocked: 15, Class: "shadowsocks", Rule: "tunnels", Interface: "eth0", Last: now}},
		Latest: []*event.Verdict{
			verdict(1, "10.0.0.2:40000", "192.0.2.7:8388", "shadowsocks", "drop", "rule", "tunnels", true, &yes),
			verdict(2, "10.0.0.3:40001", "198.51.100.9:443", "background", "pass", "no rule", "", false, &no),
			verdict(3, "10.0.0.2:39999", "192.0.2.7:8388", "shadowsocks", "drop", "rule", "tunnels", true, &no),
		},
	}}
	for i := range 2 {
		f.blocks = append(f.blocks, status.Block{
			Interface: "eth0", Lo: end(fmt.Sprintf("10.0.0.2:%d", 40_000-i)), Hi: end("192.0.2.7:8388"), Proto: "tcp", Action: "drop", Class: "shadowsocks", Rule: "tunnels",
			Since: noon, Expires: now.Add(10 * time.Minute), Packets: 400, Bytes: 600_000 - uint64(i),
		})
	}
	// The same pair on both interfaces, and another one.
	for i, iface := range []string{"eth0", "eth1", "eth1"} {
		f.pairs = append(f.pairs, status.Pair{
			Interface: iface, Initiator: f.top.Pairs[i/2].Initiator, Server: f.top.Pairs[i/2].Server, Proto: "tcp", Action: "drop", Class: "shadowsocks", Rule: "tunnels",
			Since: noon, Expires: now.Add(time.Hour), Connections: 30, Packets: 70, Bytes: 4200 - uint64(i), Last: now, Suspended: iface == "eth1",
		})
	}
	f.top.Pairs[0].Treated, f.top.Pairs[1].Treated, f.top.Servers[0].Treated = 2, 1, 2
	return f
}

// at returns the view of a daemon at work, on a screen of that size.
func at(t *testing.T, f *fake, width, height int) *model {
	t.Helper()
	m := &model{Config: Config{Source: f, Every: time.Second}, view: newView(), ctx: context.Background()}
	m.counters = loader.Counters{{Name: "classified", Help: "flows that got a verdict"}, {Name: "dropped_packets", Help: "packets that were dropped"}, {Name: "tcp_opened", Help: "TCP connections"}}
	m.Update(tea.WindowSizeMsg{Width: width, Height: height})
	if f.top != nil {
		earlier := busy(int(f.top.Time.Sub(noon).Seconds()) - 5)
		m.Update(looked{top: earlier.top})
	}
	m.Update(m.ask())
	return m
}

// press presses keys, and does what comes of it at once.
func press(t *testing.T, m *model, keys ...string) {
	t.Helper()
	for _, name := range keys {
		key := tea.Key{Text: name}
		if special, ok := map[string]rune{
			"enter": tea.KeyEnter, "esc": tea.KeyEscape, "tab": tea.KeyTab, "up": tea.KeyUp, "down": tea.KeyDown, "end": tea.KeyEnd, "home": tea.KeyHome,
			"pgdown": tea.KeyPgDown, "backspace": tea.KeyBackspace, "left": tea.KeyLeft,
		}[name]; ok {
			key = tea.Key{Code: special}
		} else {
			key.Code = []rune(name)[0]
		}
		_, cmd := m.Update(tea.KeyPressMsg(key))
		for cmd != nil {
			msg := cmd()
			if _, ok := msg.(tea.QuitMsg); ok {
				return
			}
			_, cmd = m.Update(msg)
		}
	}
}

// golden compares a screen with the one in testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	var lines []string
	for l := range strings.Lines(text) {
		lines = append(lines, strings.TrimRight(l, " \n")+"\n")
	}
	got, path := strings.Join(lines, ""), filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; go test ./cmd/earlydrop/top -update writes it anew):\n%s", name, diff)
	}
}

// Every list, the stories, help and questions fit a small screen and use a large one.
func TestScreens(t *testing.T) {
	for _, screen := range []struct{ width, height int }{{80, 24}, {200, 60}} {
		for _, tt := range []struct {
			name string
			keys []string
		}{
			{"latest", nil}, {"latest-story", []string{"enter"}}, {"pairs", []string{"2"}}, {"pair-story", []string{"2", "enter"}}, {"classes", []string{"5"}},
			{"rules", []string{"6"}}, {"blocks", []string{"7", "down"}}, {"treated", []string{"8"}}, {"treated-story", []string{"8", "enter"}}, {"treated-question", []string{"8", "end", "u"}},
			{"interfaces", []string{"9"}}, {"interface-story", []string{"9", "enter"}}, {"help", []string{"?"}}, {"filter", []string{"/", "b", "a", "c", "k"}}, {"question", []string{"2", "u"}},
		} {
			m := at(t, busy(100), screen.width, screen.height)
			press(t, m, tt.keys...)
			text := m.text()
			if n := strings.Count(text, "\n") + 1; n != screen.height {
				t.Errorf("%s at %dx%d has %d lines", tt.name, screen.width, screen.height, n)
			}
			for l := range strings.SplitSeq(text, "\n") {
				if w := runewidth.StringWidth(l); w != screen.width {
					t.Errorf("%s at %dx%d has a line of %d: %q", tt.name, screen.width, screen.height, w, l)
				}
			}
			golden(t, fmt.Sprintf("%s-%dx%d", tt.name, screen.width, screen.height), text)
		}
	}
}

// Whatever the size, the screen is filled and no more than that.
func TestScreenFitsAnySize(t *testing.T) {
	for width := 1; width < 230; width += 7 {
		for _, height := range []int{1, 2, 5, 11, 24, 39, 40, 41, 100} {
			m := at(t, busy(100), width, height)
			for _, keys := range [][]string{nil, {"tab"}, {"enter"}, {"esc", "8"}, {"u"}, {"n", "enter"}, {"esc", "9", "enter"}, {"?"}} {
				press(t, m, keys...)
				text := m.text()
				for l := range strings.SplitSeq(text, "\n") {
					if w := runewidth.StringWidth(l); w != width {
						t.Fatalf("%dx%d, %q: a line of %d: %q", width, height, keys, w, l)
					}
				}
				if n := strings.Count(text, "\n") + 1; n != height {
					t.Fatalf("%dx%d, %q: %d lines", width, height, keys, n)
				}
			}
		}
	}
}

// rowsOf returns the rows of the list that are on the screen, without the mark of the selected one.
func rowsOf(m *model) (rows []string) {
	for l := range strings.SplitSeq(m.text(), "\n") {
		if len(rows) > 0 || strings.HasPrefix(l, "> ") {
			if strings.TrimSpace(l) == "" {
				break
			}
			rows = append(rows, l[2:])
		}
	}
	return rows
}

func TestKeysChangeWhatIsShown(t *testing.T) {
	m := at(t, busy(100), 120, 30)
	first := func() string {
		t.Helper()
		rows := rowsOf(m)
		if len(rows) == 0 {
			t.Fatalf("no rows:\n%s", m.text())
		}
		return rows[0]
	}
	has := func(text string) {
		t.Helper()
		if !strings.Contains(m.text(), text) {
			t.Errorf("%q is not in\n%s", text, m.text())
		}
	}
	press(t, m, "2")
	if got := first(); !strings.HasPrefix(got, "10.0.0.2 ") {
		t.Errorf("by detected flows: %q", got)
	}
	press(t, m, "S")
	if got := rowsOf(m); m.selected(m.table(pairs)) == nil || len(got) == 0 {
		t.Error("turned: nothing")
	}
	has("detected ^")
	press(t, m, "s", "s", "s") // blocked, blocks, dropped
	has("dropped v")
	if m.table(pairs).rows[0].cells[0].text != "2001:db8:1:2::/64" {
		t.Errorf("by dropped bytes: %+v", m.table(pairs).rows[0])
	}
	press(t, m, "i") // eth0
	has("only eth0")
	if rows := m.table(pairs).rows; len(rows) != 1 || rows[0].cells[0].text != "10.0.0.2" {
		t.Errorf("of eth0: %+v", rows)
	}
	press(t, m, "i", "i")
	has("only wg0")
	press(t, m, "i", "1", "/", "B", "A", "C", "x", "backspace", "enter")
	if rows := m.table(latest).rows; len(rows) != 1 {
		t.Errorf("filtered: %+v", rows)
	}
	has("filter BAC")
	press(t, m, "/", "z", "z", "enter")
	has("nothing here has BACzz in it")
	press(t, m, "esc")
	if rows := m.table(latest).rows; len(rows) != 3 {
		t.Errorf("no longer filtered: %+v", rows)
	}
	// A selected row is followed to where new ones push it; the top row stays at the top.
	press(t, m, "down")
	was := m.selected(m.table(latest)).id
	next := busy(100)
	more := *next.top.Latest[0]
	more.Time = more.Time.Add(time.Second)
	next.top.Latest = append([]*event.Verdict{&more}, next.top.Latest...)
	next.top.Time = next.top.Time.Add(time.Second)
	m.Update(looked{top: next.top})
	if got := m.selected(m.table(latest)); got.id != was || m.at != 2 {
		t.Errorf("the selection is at %d, %q, and was %q", m.at, got.id, was)
	}
	press(t, m, "home")
	m.Update(looked{top: busy(102).top})
	if m.selected(m.table(latest)); m.at != 0 {
		t.Errorf("the selection left the top for %d", m.at)
	}
	// While it stands still nothing changes.
	press(t, m, "p")
	has("PAUSED")
	m.Update(looked{top: busy(200).top})
	if !m.top().Time.Equal(busy(102).top.Time) {
		t.Error("it goes on")
	}
	press(t, m, "p")
	m.Update(looked{top: busy(200).top})
	if !m.top().Time.Equal(busy(200).top.Time) {
		t.Error("it stands still")
	}
}

func TestUnblockAsksBefore(t *testing.T) {
	f := busy(100)
	m := at(t, f, 120, 30)
	last := func() string {
		lines := strings.Split(m.text(), "\n")
		return strings.TrimSpace(lines[len(lines)-1])
	}
	for _, tt := range []struct {
		keys          []string
		want          string // in the last line
		blocks, pairs int    // left
	}{
		{[]string{"5", "u"}, "choose a verdict", 2, 3},
		{[]string{"1", "down", "u"}, "nothing of it is blocked: tcp 10.0.0.3:40001", 2, 3},
		{[]string{"home", "u"}, "lift 1 block and let tcp 10.0.0.2 > 192.0.2.7:8388 connect again? y/n", 2, 3},
		{[]string{"n"}, "nothing was changed", 2, 3},
		{[]string{"3", "u"}, "lift 2 blocks and let tcp 10.0.0.2 > 192.0.2.7:8388 connect again? y/n", 2, 3},
		{[]string{"q"}, "nothing was changed", 2, 3}, // anything else is no
		{[]string{"7", "down", "u"}, "unblock tcp 10.0.0.2:39999 <> 192.0.2.7:8388 on eth0? y/n", 2, 3},
		{[]string{"y"}, "1 flows pass again: 400 packets, 585.9 KiB had been dropped", 1, 3},
		{[]string{"2", "u", "y"}, "1 flows pass and 1 pairs may connect again: 540 packets, 594.1 KiB had been dropped", 0, 1},
		{[]string{"u"}, "nothing of it is blocked: pair tcp 10.0.0.2 > 192.0.2.7:8388", 0, 1},
		{[]string{"8", "end", "u"}, "let tcp 2001:db8:1:2::/64 > [2001:db8:ffff::1234:5678]:443 connect again? y/n", 0, 1},
		{[]string{"n", "enter", "u"}, "let tcp 2001:db8:1:2::/64 > [2001:db8:ffff::1234:5678]:443 connect again? y/n", 0, 1}, // of its story
		{[]string{"y"}, "1 pairs may connect again: 70 packets, 4.1 KiB had been dropped", 0, 0},
		{[]string{"u"}, "nothing of it is blocked: tcp 2001:db8:1:2::/64", 0, 0},
	} {
		press(t, m, tt.keys...)
		if got := last(); !strings.Contains(got, tt.want) || len(f.blocks) != tt.blocks || len(f.pairs) != tt.pairs {
			t.Errorf("%q: %q, %d blocks and %d pairs, want %q, %d and %d", tt.keys, got, len(f.blocks), len(f.pairs), tt.want, tt.blocks, tt.pairs)
		}
	}
	// Several of a server, or of an initiator.
	*f = fake{top: busy(100).top, blocks: busy(100).blocks, pairs: busy(100).pairs}
	f.pairs[2].Initiator, f.pairs[2].Server = netip.MustParsePrefix("10.0.0.9/32"), f.pairs[0].Server
	m.Update(m.ask())
	press(t, m, "esc", "3", "u")
	if got := last(); !strings.HasPrefix(got, "lift 2 blocks and let 2 pairs connect again, of server tcp 192.0.2.7:8388? y/n") {
		t.Errorf("%q", got)
	}
	f.blocks = nil
	press(t, m, "n", "u")
	if got := last(); !strings.HasPrefix(got, "let 2 pairs of server tcp 192.0.2.7:8388 connect again? y/n") {
		t.Errorf("%q", got)
	}
	// What is of another VLAN, or of UDP, is something else.
	f.pairs[0].VLAN, f.pairs[1].VLAN = 7, 7
	f.top.Servers[0].Proto = "udp"
	press(t, m, "n", "2", "u")
	if got := last(); !strings.HasPrefix(got, "nothing of it is blocked") {
		t.Errorf("of another VLAN: %q", got)
	}
	press(t, m, "3", "u")
	if got := last(); !strings.HasPrefix(got, "nothing of it is blocked") {
		t.Errorf("of UDP: %q", got)
	}

	// It was over before the answer.
	for keys, want := range map[string]string{"7": "0 flows pass again: 0 packets", "8": "0 pairs may connect again: 0 packets"} {
		f.blocks, f.pairs = busy(100).blocks, busy(100).pairs
		m.Update(m.ask())
		press(t, m, keys, "u")
		f.mu.Lock()
		f.blocks, f.pairs = nil, nil
		f.mu.Unlock()
		press(t, m, "y")
		if got := last(); !strings.HasPrefix(got, want) {
			t.Errorf("%q", got)
		}
	}
}

func TestDaemonThatGoesAndComesBack(t *testing.T) {
	f := busy(100)
	m := at(t, f, 100, 30)
	f.err = fmt.Errorf("%w at /run/x.sock", control.ErrNoDaemon)
	m.Update(m.ask())
	if text := m.text(); !strings.Contains(text, "! no daemon listens at /run/x.sock: trying again; what is below is from 12:01:40") || !strings.Contains(text, "192.0.2.7:8388") {
		t.Errorf("without a daemon:\n%s", text)
	}
	// Another one begins to count from 0.
	again := busy(1)
	again.top.Since = noon.Add(time.Hour)
	again.top.Time = again.top.Since.Add(time.Second)
	f.top, f.err = again.top, nil
	m.Update(m.ask())
	if text := m.text(); strings.Contains(text, "trying again") || !strings.Contains(text, "13:00:01") || !strings.Contains(text, "packets 10/s") {
		t.Errorf("with another daemon:\n%s", text)
	}

	// One that was never there.
	m = at(t, &fake{err: errors.New("no daemon listens at /run/x.sock")}, 60, 10)
	if text := m.text(); !strings.Contains(text, "no daemon listens at /run/x.sock: trying again") {
		t.Errorf("%s", text)
	}
	press(t, m, "enter", "u", "tab", "s", "/", "down")
}

// Names that come from elsewhere are never commands to the terminal.
func TestHostileNamesAreShownAsText(t *testing.T) {
	const hostile = "\x1b]0;owned\a\x1b[2J\u202eevil\u0301\r\n\x9b31m\x00"
	f := busy(100)
	top := f.top
	top.Policy, top.Model, top.Version = hostile, hostile, hostile
	for _, s := range top.Interfaces {
		s.Interface = hostile
		s.Mode, s.XDP, s.State = hostile, hostile, hostile
		s.Classes, s.Worries = map[string]uint64{hostile: 1}, []status.Worry{{Text: hostile}}
		s.Verdicts = []status.Verdicts{{Rule: hostile, Decision: hostile, Reason: hostile, Flows: 1}}
		s.Daemon[hostile] = 5
	}
	top.Waiting = []status.Waiting{{Interface: hostile, Error: hostile}}
	for _, l := range [][]status.Leader{top.Pairs, top.Servers} {
		for i := range l {
			l[i].Class, l[i].Rule, l[i].Interface, l[i].Proto = hostile, hostile, hostile, hostile
		}
	}
	for _, e := range top.Latest {
		e.Class, e.Rule, e.Reason, e.Interface, e.Model, e.Likeliest, e.RuleClasses, e.Error, e.HandedOver, e.Signals = hostile, hostile, hostile, hostile, hostile, hostile, []string{hostile}, hostile, hostile, []string{hostile}
		e.Scores.Labels = []string{hostile, hostile, hostile}
	}
	for i := range f.blocks {
		f.blocks[i].Class, f.blocks[i].Rule, f.blocks[i].Interface, f.blocks[i].Action = hostile, hostile, hostile, hostile
	}
	for i := range f.pairs {
		f.pairs[i].Class, f.pairs[i].Rule, f.pairs[i].Interface, f.pairs[i].Action = hostile, hostile, hostile, hostile
	}
	sequence := regexp.MustCompile("\x1b\\[[0-9;]*m")
	for _, colors := range []bool{false, true} {
		m := at(t, f, 160, 50)
		m.colors = colors
		for _, keys := range [][]string{nil, {"u"}, {"n"}, {"enter"}, {"u", "n"}, {"2"}, {"enter"}, {"3"}, {"5"}, {"enter"}, {"6"}, {"enter"}, {"7"}, {"enter"}, {"u"}, {"n", "8"}, {"enter"}, {"u"}, {"n", "9"}, {"enter"}, {"end"}, {"i"}, {"esc", "/", "\x1b", "\u202e"}} {
			press(t, m, keys...)
			text := strings.ReplaceAll(sequence.ReplaceAllString(m.text(), ""), "\n", "")
			if !colors {
				text = strings.ReplaceAll(m.text(), "\n", "")
			}
			if text != clean(text) {
				t.Errorf("after %q: %q", keys, text)
			}
		}
	}
	f.err = errors.New(hostile)
	m := at(t, f, 160, 50)
	if text := strings.ReplaceAll(m.text(), "\n", ""); text != clean(text) {
		t.Errorf("of an error: %q", text)
	}
	f.err = nil
	var out bytes.Buffer
	if err := Print(context.Background(), Config{Source: f}, 1, 120, &out); err != nil {
		t.Fatal(err)
	}
	if text := strings.ReplaceAll(out.String(), "\n", ""); text != clean(text) {
		t.Errorf("printed: %q", text)
	}
}

// Colours say nothing that the text does not.
func TestColorsChangeNoText(t *testing.T) {
	m := at(t, busy(100), 100, 45)
	without := m.text()
	if strings.Contains(without, "\x1b") {
		t.Errorf("without colours: %q", without)
	}
	m.colors = true
	if with := m.text(); !strings.Contains(with, "\x1b[33m") || regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(with, "") != without {
		t.Errorf("with colours: %q", with)
	}
}

func TestLooksArePrinted(t *testing.T) {
	var out bytes.Buffer
	if err := Print(context.Background(), Config{Source: busy(100), Every: time.Millisecond}, 2, 100, &out); err != nil {
		t.Fatal(err)
	}
	half, rest, _ := strings.Cut(out.String(), "\n\nearlydrop v1.2.0")
	if rest == "" || strings.Contains(rest, "\n\nearlydrop v1.2.0") {
		t.Fatalf("it is not two looks:\n%s", out.String())
	}
	golden(t, "printed", half+"\n")

	out.Reset()
	if err := Print(context.Background(), Config{Source: busy(100), JSON: true}, 1, 100, &out); err != nil || !strings.HasPrefix(out.String(), `{"time":"2026-11-26T12:01:40Z"`) {
		t.Errorf("%v, %s", err, out.String())
	}
	if err := Print(context.Background(), Config{Source: &fake{err: control.ErrNoDaemon}}, 1, 100, &out); !errors.Is(err, control.ErrNoDaemon) {
		t.Errorf("without a daemon: %v", err)
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Print(over, Config{Source: busy(100), Every: time.Hour}, 0, 100, &out); err != nil {
		t.Errorf("at the end: %v", err)
	}
}

func TestCheckNamesTheInterfacesThereAre(t *testing.T) {
	for name, want := range map[string]string{"eth0": "", "wg0": "", "eth9": "the daemon has no interface eth9, but eth0, eth1, wg0"} {
		err := (&Config{Source: busy(1), Interface: name}).Check(context.Background())
		if got := fmt.Sprint(err); got != want && (want != "" || err != nil) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

func TestNumbersInFewCharacters(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 7: "7", 999: "999", 1000: "1.0k", 9960: "10k", 999_600: "1.0M", 123_456_789: "123M", 1e15: "1.0P", 5e18: "5E"} {
		if got := scaled(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
	for us, want := range map[float64]string{1: "1 us", 999.6: "1.0 ms", 2_000_000: "2.0 s"} {
		if got := micros(us); got != want {
			t.Errorf("%v us is %q, want %q", us, got, want)
		}
	}
	if got := perSecond(0.25, true).text + perSecond(0, true).text + perSecond(5, false).text + percent(1, 1000).text + percent(0, 0).text; got != "0.20"+"-"+"<1%"+"-" {
		t.Errorf("%q", got)
	}
}
