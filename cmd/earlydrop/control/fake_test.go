// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventtest"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/history"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/why"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// fake is a gateway without a kernel. Its interfaces are eth0 and eth1, with room for
// blocks on each.
type fake struct {
	room   int
	reload error
	kept   *history.History
	log    *eventlog.Log
	text   bytes.Buffer // of the log

	mu     sync.Mutex
	modes  map[string]policy.Mode
	blocks map[string]map[flow.Key]loader.Block

	forgotten bool // the pair
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{room: 100, modes: map[string]policy.Mode{}, blocks: map[string]map[flow.Key]loader.Block{"eth0": {}, "eth1": {}}}
	var err error
	if f.log, err = eventlog.Open(eventlog.Config{JSON: &f.text}); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fake) Interfaces() []string { return []string{"eth0", "eth1"} }

func (f *fake) About() *status.Report {
	return &status.Report{PID: 7, Version: "1", Namespace: "net:[1]"}
}

func (f *fake) Report() (*status.Report, error) {
	return &status.Report{PID: 7, Interfaces: []*status.Status{{Interface: "eth0"}, {Interface: "eth1"}}}, nil
}

// Top says in Policy how many were asked for.
func (f *fake) Top(n int) (*status.Top, error) {
	r, err := f.Report()
	r.Policy = fmt.Sprintf("top %d", n)
	return &status.Top{Report: *r, Pairs: []status.Leader{{Detected: 3}}}, err
}

func (f *fake) Blocks() (all []status.Block, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, blocks := range f.blocks {
		for _, b := range blocks {
			all = append(all, status.NewBlock(name, &b))
		}
	}
	return all, nil
}

func (f *fake) of(iface string) (map[flow.Key]loader.Block, error) {
	blocks, ok := f.blocks[iface]
	if !ok {
		return nil, fmt.Errorf("%w to %s", loader.ErrNotAttached, iface)
	}
	return blocks, nil
}

// Block says that blocks of eth1 are suspended.
func (f *fake) Block(iface string, key flow.Key, ttl time.Duration) (suspended bool, err error) {
	return iface == "eth1", f.put(iface, loader.Block{Key: key, Since: time.Now(), Expires: time.Now().Add(ttl), Rule: "by hand"})
}

func (f *fake) put(iface string, b loader.Block) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	blocks, err := f.of(iface)
	if err != nil {
		return err
	}
	if len(blocks) == f.room {
		return fmt.Errorf("block %s: %w", b.Key, loader.ErrFull)
	}
	blocks[b.Key] = b
	return nil
}

func (f *fake) Unblock(iface string, key flow.Key) (status.Block, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	blocks, err := f.of(iface)
	if err != nil {
		return status.Block{}, err
	}
	b, ok := blocks[key]
	if !ok {
		return status.Block{}, fmt.Errorf("unblock %s: %w", key, ebpf.ErrKeyNotExist)
	}
	delete(blocks, key)
	return status.NewBlock(iface, &b), nil
}

// SetMode refuses to have eth1 enforce.
func (f *fake) SetMode(mode policy.Mode, ifaces ...string) (changed []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(ifaces) == 0 {
		ifaces = f.Interfaces()
	}
	for _, name := range ifaces {
		if _, err := f.of(name); err != nil {
			return nil, err
		}
		if name == "eth1" && mode == policy.Enforce {
			return nil, &loader.MonitorOnlyError{Interface: name, Why: "so it is"}
		}
	}
	for _, name := range ifaces {
		if f.modes[name] != mode {
			f.modes[name] = mode
			changed = append(changed, name)
		}
	}
	return changed, nil
}

// Reload fails as f.reload says, and UseModel refuses all but /m.onnx.
func (f *fake) Reload() (*Reloaded, error) {
	if f.reload != nil {
		return nil, f.reload
	}
	return &Reloaded{Policy: "p.yaml", Model: "m 1", Changes: &policy.Changes{RulesAdded: []string{"new"}}, Lifted: 2}, nil
}

func (f *fake) UseModel(name string) (*Reloaded, error) {
	switch name {
	case "/m.onnx":
		return &Reloaded{Policy: "p.yaml", Model: "m 2", Was: "m 1"}, nil
	case "/half.onnx":
		return &Reloaded{Policy: "p.yaml", Model: "m 2", Was: "m 1"}, errors.New("a map could not be written")
	}
	return nil, errors.New(name + ": no such model")
}

func (f *fake) History() *history.History { return f.kept }

// Pairs are one of 10.0.0.1, on both interfaces.
func (f *fake) Pairs() (all []status.Pair, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range f.Interfaces() {
		if !f.forgotten {
			all = append(all, status.NewPair(name, &loader.Pair{Pair: fakePair, Flows: 2, Packets: 5, Bytes: 300, Class: "v2ray", Rule: "tunnels", Action: flow.Drop}))
		}
	}
	return all, nil
}

func (f *fake) ForgetPair(p flow.Pair) ([]status.Pair, error) {
	all, err := f.Pairs()
	f.mu.Lock()
	defer f.mu.Unlock()
	if p != fakePair || f.forgotten {
		return nil, fmt.Errorf("%s: %w", p, ebpf.ErrKeyNotExist)
	}
	f.forgotten = true
	return all, err
}

var fakePair = flow.Pair{Initiator: netip.MustParsePrefix("10.0.0.1/32"), Server: netip.MustParseAddrPort("192.0.2.7:443")}

// Why knows a decision about 10.0.0.1.
func (f *fake) Why(q *why.Query) *why.Answer {
	a := &why.Answer{Of: q.Of(), Policy: "p.yaml", PolicySince: started, Remembered: 1, Room: 1, Since: started, Decisions: []why.Decision{}, Pairs: []why.Pair{}}
	v := &event.Verdict{Time: started, Endpoints: event.Endpoints{Src: netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("10.0.0.2:443"), Proto: "tcp"},
		Start: started, Decision: "drop", Reason: policy.ReasonRule, Rule: "tunnels", PolicyLine: 7}
	if q.Fits(v.Src, v.Dst) {
		a.Matched, a.Decisions = 1, append(a.Decisions, why.Decision{Verdict: v, BeforeReload: true, Block: &status.Block{Interface: "eth0", Packets: 3}})
	}
	return a
}

// started is when the fake began.
var started = time.Date(2026, 11, 26, 4, 0, 0, 0, time.UTC)

func (f *fake) Follow(waiting int) *eventlog.Follower { return f.log.Follow(waiting) }
func (f *fake) Audit(a *event.Audit)                  { f.log.Add(a) }

// audits closes the log and returns what was audited.
func (f *fake) audits(t *testing.T) (audits []*event.Audit) {
	t.Helper()
	f.log.Close()
	for line := range bytes.Lines(f.text.Bytes()) {
		e, err := eventtest.Decode(line)
		if err != nil {
			t.Fatal(err)
		}
		if a, ok := e.(*event.Audit); ok {
			audits = append(audits, a)
		}
	}
	return audits
}

func key(a, b string, proto flow.Proto) flow.Key {
	k, _ := flow.NewKey(netip.MustParseAddrPort(a), netip.MustParseAddrPort(b), proto, 0, 0)
	return k
}

// listenFor returns a server that serves a gateway.
func listenFor(t *testing.T, f *fake, c Config) *Server {
	t.Helper()
	s, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	s.Serve(f)
	return s
}

// serve returns a server of a gateway and a client of it. The group is one that nobody
// is in, unless a test makes a process of it.
const testGroup = 54321

func serve(t *testing.T, f *fake) (*Server, *Client) {
	t.Helper()
	s := listenFor(t, f, Config{Path: filepath.Join(t.TempDir(), "run", "control.sock"), Group: testGroup})
	t.Cleanup(s.Close)
	c := NewClient(s.Path())
	t.Cleanup(c.Close)
	return s, c
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
