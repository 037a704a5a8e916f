// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// fake is a gateway without a kernel, behind a real control socket. What it has no method for
// is not asked for.
type fake struct {
	control.Gateway
	log  *eventlog.Log
	door *control.Server // nil before daemonOf

	mu      sync.Mutex
	worries []status.Worry
	asked   int // reports
	packets uint64
	blocks  map[flow.Key]status.Block
}

func newFake(t *testing.T) *fake {
	t.Helper()
	log, err := eventlog.Open(eventlog.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(log.Close)
	return &fake{log: log, blocks: map[flow.Key]status.Block{}}
}

func (f *fake) About() *status.Report { return &status.Report{PID: 7, Version: "1"} }
func (f *fake) Interfaces() []string  { return []string{"eth0"} }

// Report tells of more packets each time.
func (f *fake) Report() (*status.Report, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	f.packets += 1000
	s := &status.Status{
		Interface: "eth0", State: status.Well, Running: true, Mode: "enforce", XDP: "native", Egress: "tcx", Policy: "/etc/earlydrop/policy.yaml", Model: "compact 1",
		Flows: loader.Occupancy{Flows: 1200, Collecting: 30, Blocked: len(f.blocks)}, Capacity: loader.Occupancy{Flows: 100_000, Collecting: 1000, Blocked: 4000},
		Counters: map[string]uint64{"packets_ingress": f.packets, "packets_egress": f.packets / 2, "dropped_packets": f.packets / 10, "dropped_bytes": f.packets * 90},
		Daemon:   map[string]uint64{"classified": f.packets / 20},
		Classes:  map[string]uint64{"background": f.packets / 20, "shadowsocks": f.packets / 200, "<img src=x onerror=boom()>": f.packets / 300},
		Rules:    map[string]status.Rule{"tunnels": {Detected: 12, Blocked: 11}, hostile: {Detected: 1}},
		Latency:  &status.Latency{Verdicts: 100, P50: 210, P90: 400, P99: 900, Max: 1500},
		Worries:  f.worries,
	}
	return &status.Report{PID: 7, Version: "1", Device: "cpu", Interfaces: []*status.Status{s}}, nil
}

func (f *fake) Blocks() (all []status.Block, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.blocks {
		all = append(all, b)
	}
	return all, nil
}

func (f *fake) Unblock(iface string, key flow.Key) (status.Block, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.blocks[key]
	if !ok || iface != b.Interface {
		return b, fmt.Errorf("unblock %s: %w", key, ebpf.ErrKeyNotExist)
	}
	delete(f.blocks, key)
	return b, nil
}

func (f *fake) Follow(waiting int) *eventlog.Follower { return f.log.Follow(waiting) }
func (f *fake) Audit(a *event.Audit)                  { f.log.Add(a) }

// block puts a block of a class and a rule.
func (f *fake) block(src, dst, class, rule string) flow.Key {
	f.mu.Lock()
	defer f.mu.Unlock()
	key, _ := flow.NewKey(netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), flow.TCP, 0, 0)
	f.blocks[key] = status.Block{
		Interface: "eth0", Lo: key.Lo, Hi: key.Hi, Proto: "tcp", Action: "drop", Class: class, Rule: rule,
		Since: time.Now().Add(-time.Minute), Expires: time.Now().Add(10 * time.Minute), Packets: 12, Bytes: 9000,
	}
	return key
}

func (f *fake) blocked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.blocks)
}

func (f *fake) reports() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

// hostile is a name that does harm where it is taken for markup, for a sequence that steers a
// terminal, or for text that runs the other way.
const hostile = "<img src=x onerror=boom()><script>boom()</script>\"'&\x1b[31m\u202eevil"

// verdict is an event of a flow that a rule was asked about; a flow of class background passes
// undetected.
func verdict(src, dst, class, rule string) *event.Verdict {
	s := &flow.Sample{}
	s.Reset()
	s.Key, s.InitiatorIsLo = flow.NewKey(netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), flow.TCP, 0, 0)
	s.Start, s.Elapsed, s.Reason = time.Now(), 20*time.Millisecond, flow.ReasonFull
	s.Source.Interface = "eth0"
	s.Data = make([]byte, flow.CaptureBytes)
	s.Packets = append(s.Packets, flow.Packet{WireLen: 74, FromInitiator: true}, flow.Packet{Offset: 74, WireLen: 1500})
	r := &flow.Result{Class: class, Confidence: 0.97, Labels: []string{"background", "shadowsocks", "v2ray"}, Scores: []float64{0.01, 0.97, 0.02}}
	d := &policy.Decision{Action: flow.Pass, Likeliest: class, Reason: policy.ReasonNoRule}
	if class != "background" {
		d = &policy.Decision{Action: flow.Drop, Rule: rule, RuleClasses: class, Class: class, Likeliest: class, Confidence: 0.97, Detected: true, TTL: 10 * time.Minute, Reason: policy.ReasonRule}
	}
	v := event.NewVerdict(s, r, d)
	enforced := d.Action == flow.Drop
	v.Mode, v.Enforced, v.Model, v.VerdictMS, v.LatencyUS = "enforce", &enforced, "compact 1", 21, 240
	return v
}

// daemonOf returns a client of the gateway's control socket.
func daemonOf(t *testing.T, f *fake) *control.Client {
	t.Helper()
	s, err := control.Listen(control.Config{Path: filepath.Join(t.TempDir(), "control.sock"), Group: -1})
	if err != nil {
		t.Fatal(err)
	}
	s.Serve(f)
	f.door = s
	t.Cleanup(s.Close)
	c := control.NewClient(s.Path())
	t.Cleanup(c.Close)
	return c
}

// serve returns a server that answers at a port of its own.
func serve(t *testing.T, c Config) *Server {
	t.Helper()
	if c.Address == "" {
		c.Address = "127.0.0.1:0"
	}
	s, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	s.Serve()
	t.Cleanup(s.Close)
	return s
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}
