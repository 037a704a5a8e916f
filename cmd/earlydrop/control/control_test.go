// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

func TestBlocksAreAddedListedAndLifted(t *testing.T) {
	f := newFake(t)
	_, c := serve(t, f)
	ctx := within(t)
	a, b := key("10.0.0.1:1000", "192.0.2.7:443", flow.TCP), key("[2001:db8::1]:53", "[2001:db8::2]:2000", flow.UDP)
	tagged := a
	tagged.VLAN, tagged.InnerVLAN = 7, 8
	for _, add := range []struct {
		iface string
		key   flow.Key
	}{{"eth0", a}, {"eth1", a}, {"eth1", b}, {"eth0", tagged}} {
		if suspended, err := c.Block(ctx, add.iface, add.key, 10*time.Minute); err != nil || suspended != (add.iface == "eth1") {
			t.Fatal(suspended, err)
		}
	}
	now := time.Now()
	if err := f.put("eth1", loader.Block{Key: key("10.9.9.9:1", "192.0.2.7:2", flow.TCP), Class: "shadowsocks", Rule: "tunnels-of-some", Packets: 5, Bytes: 500, Since: now, Expires: now.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		filter BlockFilter
		sort   string
		limit  int
		want   []string // interface and lower end
		all    int      // 0: as many as want
	}{
		{BlockFilter{}, "interface", 0, []string{"eth0 10.0.0.1:1000", "eth0 10.0.0.1:1000", "eth1 10.0.0.1:1000", "eth1 10.9.9.9:1", "eth1 [2001:db8::1]:53"}, 0},
		{BlockFilter{}, "-interface", 2, []string{"eth1 10.0.0.1:1000", "eth1 10.9.9.9:1"}, 5},
		{BlockFilter{}, "-bytes", 1, []string{"eth1 10.9.9.9:1"}, 5},
		{BlockFilter{Interface: "eth1"}, "flow", 0, []string{"eth1 10.0.0.1:1000", "eth1 10.9.9.9:1", "eth1 [2001:db8::1]:53"}, 0},
		{BlockFilter{Proto: "udp"}, "", 0, []string{"eth1 [2001:db8::1]:53"}, 0},
		{BlockFilter{Rule: "tunnels-of-some-people"}, "", 0, []string{"eth1 10.9.9.9:1"}, 0}, // the map keeps 15 bytes
		{BlockFilter{Class: "shadowsocks"}, "", 0, []string{"eth1 10.9.9.9:1"}, 0},
		{BlockFilter{CIDR: netip.MustParsePrefix("192.0.2.0/24"), Interface: "eth0"}, "", 0, []string{"eth0 10.0.0.1:1000", "eth0 10.0.0.1:1000"}, 0},
		{BlockFilter{CIDR: netip.MustParsePrefix("2001:db8::/32")}, "", 0, []string{"eth1 [2001:db8::1]:53"}, 0},
		{BlockFilter{Flow: &a}, "interface", 0, []string{"eth0 10.0.0.1:1000", "eth1 10.0.0.1:1000"}, 0},
		{BlockFilter{Flow: &tagged}, "", 0, []string{"eth0 10.0.0.1:1000"}, 0},
		{BlockFilter{Class: "http"}, "", 0, nil, 0},
	} {
		got, err := c.Blocks(ctx, tt.filter, tt.sort, tt.limit)
		if err != nil {
			t.Errorf("%s: %v", &tt.filter, err)
			continue
		}
		var list []string
		for _, b := range got.Blocks {
			list = append(list, b.Interface+" "+b.Lo.String())
		}
		if tt.all == 0 {
			tt.all = len(tt.want)
		}
		if !slices.Equal(list, tt.want) || got.Matched != tt.all {
			t.Errorf("%s by %s: %d, %q, want %q", &tt.filter, tt.sort, got.Matched, list, tt.want)
		}
	}

	if _, err := c.Lift(ctx, BlockFilter{Interface: "eth0", Flow: &b}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a flow that is not blocked: %v", err)
	}
	if _, err := c.Lift(ctx, BlockFilter{Interface: "eth7", Flow: &b}); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "eth7") {
		t.Errorf("no such interface: %v", err)
	}
	if _, err := c.Lift(ctx, BlockFilter{Interface: "eth0"}); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("everything was lifted without being asked for: %v", err)
	}
	for _, tt := range []struct {
		filter BlockFilter
		want   Lifted
	}{
		{BlockFilter{Interface: "eth0", Flow: &tagged}, Lifted{Blocks: 1}},
		{BlockFilter{Rule: "tunnels-of-some"}, Lifted{1, 5, 500}},
		{BlockFilter{CIDR: netip.MustParsePrefix("10.0.0.0/8")}, Lifted{Blocks: 2}},
		{BlockFilter{CIDR: netip.MustParsePrefix("10.0.0.0/8")}, Lifted{}},
	} {
		if got, err := c.Lift(ctx, tt.filter); err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v, want %+v", &tt.filter, got, err, tt.want)
		}
	}
	if got, err := c.LiftAll(ctx, "eth0"); err != nil || got.Blocks != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := c.LiftAll(ctx, ""); err != nil || got.Blocks != 1 {
		t.Errorf("%+v, %v", got, err)
	}

	// All of it is audited, and who it was.
	var told []string
	for _, a := range f.audits(t) {
		if a.UID != uint32(os.Getuid()) || a.GID != uint32(os.Getgid()) || a.PID != int32(os.Getpid()) {
			t.Errorf("audited as %+v", a)
		}
		told = append(told, strings.TrimSuffix(strings.Join([]string{a.Action, a.Outcome, a.Interface, a.Asked}, "|"), "|"))
	}
	want := []string{
		"blocked_add|done|eth0|tcp 10.0.0.1:1000 <> 192.0.2.7:443 for 10m",
		"blocked_add|done|eth1|tcp 10.0.0.1:1000 <> 192.0.2.7:443 for 10m",
		"blocked_add|done|eth1|udp [2001:db8::1]:53 <> [2001:db8::2]:2000 for 10m",
		"blocked_add|done|eth0|tcp 10.0.0.1:1000 <> 192.0.2.7:443 vlan 7.8 for 10m",
		"blocked_del|refused|eth0|ends [2001:db8::1]:53,[2001:db8::2]:2000, interface eth0, proto udp",
		"blocked_del|refused|eth7|ends [2001:db8::1]:53,[2001:db8::2]:2000, interface eth7, proto udp",
		"blocked_del|done|eth0|ends 10.0.0.1:1000,192.0.2.7:443, inner_vlan 8, interface eth0, proto tcp, vlan 7",
		"blocked_del|done||rule tunnels-of-some",
		"blocked_del|done||cidr 10.0.0.0/8",
		"blocked_del|done||cidr 10.0.0.0/8",
		"blocked_del|done|eth0|all",
		"blocked_del|done||all",
	}
	if !slices.Equal(told, want) {
		t.Errorf("audits\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
	}
}

func TestModeIsSet(t *testing.T) {
	f := newFake(t)
	_, c := serve(t, f)
	ctx := within(t)
	var told *Error
	if _, err := c.SetMode(ctx, policy.Enforce, ""); !errors.As(err, &told) || told.Status != http.StatusConflict || !strings.Contains(err.Error(), "eth1 can't be in mode enforce: so it is") {
		t.Errorf("%v", err)
	}
	if _, err := c.SetMode(ctx, policy.Enforce, "eth7"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if changed, err := c.SetMode(ctx, policy.Enforce, "eth0"); err != nil || !slices.Equal(changed, []string{"eth0"}) || f.modes["eth0"] != policy.Enforce {
		t.Errorf("%v, %v", changed, err)
	}
	if changed, err := c.SetMode(ctx, policy.Enforce, "eth0"); err != nil || len(changed) != 0 {
		t.Errorf("again: %v, %v", changed, err)
	}
	if changed, err := c.SetMode(ctx, policy.Monitor, ""); err != nil || !slices.Equal(changed, []string{"eth0"}) {
		t.Errorf("%v, %v", changed, err)
	}
	var outcomes []string
	for _, a := range f.audits(t) {
		outcomes = append(outcomes, a.Action+" "+a.Interface+" "+a.Asked+" "+a.Outcome)
	}
	if want := []string{"mode  enforce refused", "mode eth7 enforce refused", "mode eth0 enforce done", "mode eth0 enforce done", "mode  monitor done"}; !slices.Equal(outcomes, want) {
		t.Errorf("audits %q, want %q", outcomes, want)
	}
}

func TestPolicyAndModelAreReloaded(t *testing.T) {
	f := newFake(t)
	_, c := serve(t, f)
	ctx := within(t)
	if r, err := c.Reload(ctx); err != nil || r.Policy != "p.yaml" || r.Lifted != 2 || !slices.Equal(r.Changes.RulesAdded, []string{"new"}) {
		t.Errorf("%+v, %v", r, err)
	}
	f.reload = errors.New("p.yaml:3:7: no such class")
	var told *Error
	if _, err := c.Reload(ctx); !errors.As(err, &told) || told.Status != http.StatusUnprocessableEntity || err.Error() != f.reload.Error() {
		t.Errorf("%v", err)
	}
	if r, err := c.UseModel(ctx, "/m.onnx"); err != nil || r.Model != "m 2" || r.Was != "m 1" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := c.UseModel(ctx, "paper"); !errors.As(err, &told) || told.Status != http.StatusUnprocessableEntity {
		t.Errorf("%v", err)
	}
	if _, err := c.UseModel(ctx, "/half.onnx"); !errors.As(err, &told) || told.Status != http.StatusInternalServerError {
		t.Errorf("%v", err)
	}
	var outcomes []string
	for _, a := range f.audits(t) {
		outcomes = append(outcomes, strings.TrimSpace(a.Action+" "+a.Asked)+" "+a.Outcome)
	}
	want := []string{"reload done", "reload refused", "model /m.onnx done", "model paper refused", "model /half.onnx failed"}
	if !slices.Equal(outcomes, want) {
		t.Errorf("audits %q, want %q", outcomes, want)
	}
}

func TestFullTableIsSaid(t *testing.T) {
	f := newFake(t)
	f.room = 0
	_, c := serve(t, f)
	_, err := c.Block(within(t), "eth0", key("10.0.0.1:1", "10.0.0.2:2", flow.TCP), time.Minute)
	var told *Error
	if !errors.As(err, &told) || !told.IsFull() {
		t.Errorf("%v", err)
	}
	if a := f.audits(t); len(a) != 1 || a[0].Outcome != event.Refused || a[0].Blocks != 0 || a[0].Error == "" {
		t.Errorf("%+v", a)
	}
}

// What a filter is written as is read as the same filter.
func TestFiltersSurviveTheirParameters(t *testing.T) {
	k := key("[2001:db8::1]:53", "[2001:db8::2]:2000", flow.UDP)
	k.VLAN = 5
	for _, f := range []BlockFilter{
		{}, {Interface: "eth0.5", Class: "v2ray", Rule: "a b", Proto: "tcp", CIDR: netip.MustParsePrefix("10.0.0.0/8")},
		{Flow: &k, Proto: "udp"},
	} {
		got, err := ParseBlockFilter(f.Values())
		if err != nil || got.String() != f.String() || (got.Flow == nil) != (f.Flow == nil) || got.Flow != nil && *got.Flow != *f.Flow {
			t.Errorf("%+v: %+v, %v", f, got, err)
		}
	}
	e := url.Values{
		"event": {"verdict,block_ended"}, "interface": {"eth0,eth1"}, "class": {"v2ray"}, "rule": {"tunnels"}, "decision": {"drop"}, "detected": {"true"},
		"proto": {"tcp,udp"}, "cidr": {"10.0.0.0/8,2001:db8::/32"}, "src": {"10.0.0.1/32"}, "dst": {"192.0.2.0/24"}, "server": {"192.0.2.7:2,[2001:db8::1]:443"},
	}
	f, err := ParseEventFilter(e)
	if err != nil || f.Values().Encode() != e.Encode() || len(e) != len(EventFilterKeys) {
		t.Errorf("%v, %v", f, err)
	}
}

func TestEventFilterMatches(t *testing.T) {
	ends := event.Endpoints{Src: netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("192.0.2.7:2"), Proto: "tcp"}
	verdict := &event.Verdict{Interface: "eth0", Endpoints: ends, Class: "unknown", Rule: "tunnels", Decision: "drop",
		Naming: event.Naming{RuleClasses: []string{"shadowsocks", "v2ray"}, Detected: true}}
	ended := &event.BlockEnded{Interface: "eth1", Endpoints: ends, Class: "v2ray"}
	audit := &event.Audit{Action: "reload"}
	for query, want := range map[string][]event.Event{
		"":                                {verdict, ended, audit},
		"event=audit":                     {audit},
		"event=audit,verdict":             {verdict, audit},
		"class=v2ray":                     {verdict, ended},
		"class=unknown":                   {verdict},
		"class=http":                      nil,
		"rule=tunnels":                    {verdict},
		"decision=drop":                   {verdict},
		"decision=pass":                   nil,
		"detected=true":                   {verdict},
		"detected=false":                  nil,
		"interface=eth1":                  {ended},
		"proto=tcp":                       {verdict, ended},
		"proto=udp":                       nil,
		"cidr=192.0.2.0/24":               {verdict, ended},
		"cidr=192.0.2.7":                  {verdict, ended},
		"cidr=10.0.0.2,2001:db8::/32":     nil,
		"cidr=::ffff:192.0.2.0/120":       {verdict, ended},
		"src=10.0.0.0/8":                  {verdict}, // of the end of a block it is not known
		"src=192.0.2.0/24":                nil,
		"dst=192.0.2.0/24&decision=drop":  {verdict},
		"server=192.0.2.7:2":              {verdict, ended},
		"server=10.0.0.1:1":               {ended}, // which end it is, is not known
		"server=192.0.2.7:3":              nil,
		"dst=192.0.2.0/24&decision=pass":  nil,
		"class=v2ray&interface=eth0,eth1": {verdict, ended},
	} {
		v, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		f, err := ParseEventFilter(v)
		if err != nil {
			t.Errorf("%s: %v", query, err)
			continue
		}
		var got []event.Event
		for _, e := range []event.Event{verdict, ended, audit} {
			if f.Match(e) {
				got = append(got, e)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", query, got, want)
		}
	}
}

// Every event that names an interface can be chosen by it, also one of a kind that is new.
func TestEveryEventIsChosenByItsInterface(t *testing.T) {
	f := &EventFilter{Interface: []string{"eth0"}}
	for _, kind := range event.Kinds {
		e, err := event.Decode(fmt.Appendf(nil, `{"event":%q,"interface":"eth0"}`, kind))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := f.Match(e), !slices.Contains([]string{event.KindLost, event.KindReloaded, event.KindDevice}, kind); got != want {
			t.Errorf("%s: %v", kind, got)
		}
	}
}

func TestEventsAreStreamed(t *testing.T) {
	f := newFake(t)
	_, c := serve(t, f)
	drops, err := c.Events(within(t), &EventFilter{Decision: []string{"drop"}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		decision := "pass"
		if i%3 == 0 {
			decision = "drop"
		}
		f.log.Add(&event.Verdict{Interface: "eth0", Decision: decision, Packets: i})
	}
	f.log.Close() // the stream ends with it
	var got []int
	for e, err := range drops {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.(*event.Verdict).Packets)
	}
	if !slices.Equal(got, []int{0, 3, 6, 9}) {
		t.Errorf("got %v", got)
	}
}

// A client that does not read holds up nobody, and learns how much it has lost.
func TestSlowReaderLosesEventsThatAreCounted(t *testing.T) {
	f := newFake(t)
	_, c := serve(t, f)
	ctx := within(t)
	events, err := c.Events(ctx, &EventFilter{Event: []string{event.KindVerdict, event.KindLost}})
	if err != nil {
		t.Fatal(err)
	}
	// As many as don't fit anywhere: not into the queue, the socket, and the client's buffers.
	const sent = 50_000
	reason := strings.Repeat("x", 200)
	begin := time.Now()
	for range sent {
		f.log.Add(&event.Verdict{Interface: "eth0", Decision: "drop", Naming: event.Naming{Detected: true}, Reason: reason})
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("events were held up: %s", took)
	}
	got, lost := 0, uint64(0)
	for e, err := range events {
		if err != nil {
			t.Fatal(err)
		}
		switch e := e.(type) {
		case *event.Verdict:
			got++
		case *event.Lost:
			lost += e.EventsLost
		}
		if uint64(got)+lost == sent {
			break
		}
	}
	if lost == 0 || uint64(got)+lost != sent {
		t.Errorf("%d came, %d were lost, of %d", got, lost, sent)
	}
}

func TestStreamsAreFew(t *testing.T) {
	f := newFake(t)
	_, c := serve(t, f)
	for range maxStreams {
		if _, err := c.Events(within(t), &EventFilter{}); err != nil {
			t.Fatal(err)
		}
	}
	var told *Error
	if _, err := c.Events(within(t), &EventFilter{}); !errors.As(err, &told) || told.Status != http.StatusServiceUnavailable {
		t.Errorf("one too many: %v", err)
	}
	if _, err := c.Status(within(t)); err != nil {
		t.Errorf("status beside the streams: %v", err)
	}
}

// The socket is replaced when its daemon is dead, and not when it lives; it goes with its
// server, if it is still that server's.
func TestSocketOfADeadDaemonIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	config, f := Config{Path: path, Group: -1}, newFake(t)
	first := listenFor(t, f, config)
	if _, err := Listen(config); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("beside a living one: %v", err)
	}
	if _, err := NewClient(path).Status(within(t)); err != nil {
		t.Errorf("the first one answers no more: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", info, err)
	}
	first.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays behind: %v", err)
	}
	if _, err := NewClient(path).Status(within(t)); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("nobody listens: %v", err)
	}

	// A dead one leaves its socket.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	if _, err := NewClient(path).Status(within(t)); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("a dead daemon: %v", err)
	}
	second := listenFor(t, f, config)
	// Somebody takes the socket away and puts their own there: it stays.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	third := listenFor(t, f, config)
	second.Close()
	if _, err := NewClient(path).Status(within(t)); err != nil {
		t.Errorf("the third one's socket is gone with the second: %v", err)
	}
	third.Close()
	// One that never served takes its socket away as well.
	if never, err := Listen(config); err != nil {
		t.Error(err)
	} else {
		never.Close()
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays behind: %v", err)
	}
}

func TestSocketThatCanNotBeMade(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"":                                  "107 bytes",
		"@earlydrop":                        "107 bytes",
		"a\x00b":                            "107 bytes",
		"/" + strings.Repeat("x", 107):      "107 bytes",
		file:                                "no socket",
		link:                                "no socket",
		dir:                                 "no socket",
		filepath.Join(dir, "no", "no", "s"): "folder",
		filepath.Join(file, "s"):            "not a directory",
	} {
		if s, err := Listen(Config{Path: path, Group: -1}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v", path, s, err)
		}
	}
	if text, err := os.ReadFile(file); string(text) != "mine" {
		t.Errorf("the file was changed: %q, %v", text, err)
	}
}

// Close does not wait for clients that stay.
func TestCloseEndsStreamsAndConnections(t *testing.T) {
	s, c := serve(t, newFake(t))
	events, err := c.Events(within(t), &EventFilter{})
	if err != nil {
		t.Fatal(err)
	}
	idle, err := net.Dial("unix", s.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Close()
	}()
	for range events { //nolint:revive // until it ends
	}
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Error("it does not end")
	}
}

func TestSortKeysAreKnown(t *testing.T) {
	blocks := []status.Block{{Interface: "b"}, {Interface: "a"}}
	for _, by := range SortKeys {
		if err := errors.Join(SortBlocks(blocks, by), SortBlocks(blocks, "-"+by)); err != nil {
			t.Error(err)
		}
	}
	if err := SortBlocks(blocks, "colour"); err == nil {
		t.Error("by colour")
	}
	for _, by := range PairSortKeys {
		pairs := []status.Pair{{Interface: "b"}, {Interface: "a"}}
		if err := errors.Join(SortPairs(pairs, by), SortPairs(pairs, "-"+by)); err != nil {
			t.Error(err)
		}
	}
	if err := SortPairs(nil, "flow"); err == nil || !strings.Contains(err.Error(), "pair, since") {
		t.Errorf("pairs by flow: %v", err)
	}
}

// The kernel keeps a process's groups: all are asked for.
func TestPeerHasAllItsGroups(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	want, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	got, err := peerGroups(pair[0])
	if err != nil || len(got) != len(want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
}

// A daemon says what its process id is for itself; the kernel says what it is for the client.
func TestClientSeesTheDaemonsProcess(t *testing.T) {
	_, c := serve(t, newFake(t))
	about, err := c.About(within(t))
	if err != nil || about.PID != os.Getpid() || about.Version != "1" || !slices.Equal(about.Interfaces, []string{"eth0", "eth1"}) {
		t.Errorf("%+v, %v", about, err)
	}
	r, err := c.Status(within(t))
	if err != nil || r.PID != os.Getpid() || len(r.Interfaces) != 2 || r.Interfaces[1].PID != os.Getpid() {
		t.Errorf("%+v, %v", r, err)
	}
}
