// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"html/template"
	"image"
	"image/png"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/classifier/explain"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/history"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/why"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// fake is a gateway without a kernel, behind a real control socket. What it has no method for
// is not asked for.
type fake struct {
	control.Gateway
	log  *eventlog.Log
	door *control.Server // nil before daemonOf

	kept *history.History // nil: there is none

	mu      sync.Mutex
	class   string // of what is detected
	rule    string // that detects
	worries []status.Worry
	asked   int // how often it was asked for Top
	began   time.Time
	blocks  map[flow.Key]status.Block
	pairs   []status.Pair

	explanations int // that were made

	late chan struct{} // what the next question about blocks waits for; nil: nothing
}

func newFake(t *testing.T) *fake {
	t.Helper()
	log, err := eventlog.Open(eventlog.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(log.Close)
	return &fake{log: log, class: "shadowsocks", rule: "tunnels", began: time.Now(), blocks: map[flow.Key]status.Block{}}
}

func (f *fake) About() *status.Report { return &status.Report{PID: 7, Version: "1"} }
func (f *fake) Interfaces() []string  { return []string{"eth0"} }

// Top tells of counters that grow, now faster and now slower.
func (f *fake) Top(int) (*status.Top, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	t := time.Since(f.began).Seconds()
	n := uint64(3000*t + 3000*(1-math.Cos(t/2)) + 500*(1-math.Cos(t*2)))
	s := &status.Status{
		Interface: "eth0", State: status.Well, Running: true, Mode: "enforce", Ingress: "xdp", XDP: "native", Egress: "tcx", Policy: "/etc/earlydrop/policy.yaml", Model: "compact 1",
		Flows: loader.Occupancy{Flows: 1200, Collecting: 30, Blocked: len(f.blocks)}, Capacity: loader.Occupancy{Flows: 100_000, Collecting: 1000, Blocked: 4000},
		Counters: map[string]uint64{"packets_ingress": n, "packets_egress": n / 2, "dropped_packets": n / 10, "dropped_bytes": n * 90, "tcp_opened": n / 10, "udp_opened": n / 20},
		Daemon:   map[string]uint64{"classified": n / 20, "to_drop": n / 200},
		Classes:  map[string]uint64{"background": n / 20, f.class: n / 200},
		Verdicts: []status.Verdicts{{Decision: "pass", Reason: "no_rule", Flows: n / 20}, {Rule: f.rule, Decision: "drop", Reason: "rule", Flows: n / 200}},
		Traffic:  &loader.Traffic{RxBytes: n * 900, TxBytes: n * 80},
		Latency:  &status.Latency{Verdicts: 100, Times: status.Times{P50: 210, P90: 400, P99: 900, Max: 1500}},
		Worries:  f.worries,
	}
	r := status.Report{
		PID: 7, Version: "1", Device: "cpu", Interfaces: []*status.Status{s}, Time: time.Now(), Since: time.Now().Add(-time.Hour), Model: "compact 1", Policy: s.Policy,
		Queue: status.Fill{Used: 3, Size: 4096}, Inference: &status.Inference{Batches: 9, Times: status.Times{P50: 300, P99: 800}},
		Evidence: status.Evidence{Detected: status.Fill{Used: 40, Size: 1000}, Undetected: status.Fill{Size: 1000}, Treated: status.Fill{Used: 7, Size: 1000}},
	}
	leader := func(initiator, server string, detected, dropped uint64) status.Leader {
		return status.Leader{
			Initiator: netip.MustParsePrefix(initiator), Server: netip.MustParseAddrPort(server), Proto: "tcp", Detected: detected, Blocked: detected,
			DroppedPackets: dropped / 900, DroppedBytes: dropped, Blocks: 1, Interface: "eth0", Class: f.class, Rule: f.rule, Last: time.Now(),
		}
	}
	pairs := []status.Leader{leader("10.0.0.2/32", "192.0.2.7:8388", 41, 90_000), leader("10.0.0.3/32", "192.0.2.7:8388", 17, 2_000_000), leader("2001:db8:1:2::/64", "[2001:db8::7]:443", 3, 500)}
	top := &status.Top{Report: r, Pairs: pairs, Latest: []*event.Verdict{verdict("10.0.0.7:7", "192.0.2.77:8388", f.class, f.rule)}}
	for _, l := range pairs {
		server, initiator := l, l
		server.Initiator, initiator.Server, initiator.Proto = netip.Prefix{}, netip.AddrPort{}, ""
		top.Servers, top.Initiators = append(top.Servers, server), append(top.Initiators, initiator)
	}
	return top, nil
}

func (f *fake) Blocks() (all []status.Block, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if late := f.late; late != nil {
		f.late = nil
		f.mu.Unlock()
		<-late
		f.mu.Lock()
	}
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

func (f *fake) History() *history.History { return f.kept }

// keep has a history keep events.
func (f *fake) keep(t *testing.T, events ...*event.Verdict) {
	t.Helper()
	var err error
	if f.kept, err = history.Open(history.Options{Path: filepath.Join(t.TempDir(), "history.db"), Captures: &history.Captures{}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.kept.Close)
	for i, e := range events {
		e.ID = event.ID(i + 1)
		f.kept.KeepVerdict(e, sample(e.Src, e.Dst))
	}
	for begin := time.Now(); f.kept.LastID() < event.ID(len(events)); time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > 2*time.Minute {
			t.Fatalf("it is not written: %+v", f.kept.Status())
		}
	}
}

// Why remembers a decision about each flow that is blocked, of a verdict as verdict makes it.
func (f *fake) Why(q *why.Query) *why.Answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := &why.Answer{Of: q.Of(), Policy: "/etc/earlydrop/policy.yaml", Decisions: []why.Decision{}, Pairs: []why.Pair{}}
	for _, b := range f.blocks {
		if q.Fits(b.Lo, b.Hi) {
			a.Decisions = append(a.Decisions, why.Decision{Verdict: verdict(b.Lo.String(), b.Hi.String(), b.Class, b.Rule), Block: &b})
			a.Pairs = append(a.Pairs, why.Pair{Initiator: netip.PrefixFrom(b.Lo.Addr(), 32), Server: b.Hi, Detected: 3, Judged: 4, Rule: f.rule, Until: time.Now().Add(time.Hour)})
		}
	}
	a.Matched = len(a.Decisions)
	return a
}

func (f *fake) Pairs() ([]status.Pair, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.pairs), nil
}

func (f *fake) ForgetPair(p flow.Pair) (was []status.Pair, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pairs = slices.DeleteFunc(f.pairs, func(one status.Pair) bool {
		if one.Pair() == p {
			was = append(was, one)
		}
		return one.Pair() == p
	})
	if was == nil {
		err = fmt.Errorf("forget %s: %w", p, ebpf.ErrKeyNotExist)
	}
	return was, err
}

// treat has a pair treated.
func (f *fake) treat(initiator, server string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pairs = append(f.pairs, status.Pair{
		Interface: "eth0", Initiator: netip.MustParsePrefix(initiator), Server: netip.MustParseAddrPort(server), Proto: "tcp", Action: "drop", Class: f.class, Rule: f.rule,
		Since: time.Now(), Expires: time.Now().Add(time.Hour), Connections: 7, Packets: 21, Bytes: 1554, Last: time.Now(),
	})
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

// sample is a capture of two packets.
func sample(src, dst netip.AddrPort) *flow.Sample {
	s := &flow.Sample{}
	s.Reset()
	s.Key, s.InitiatorIsLo = flow.NewKey(src, dst, flow.TCP, 0, 0)
	s.Start, s.Elapsed, s.Reason = time.Now(), 20*time.Millisecond, flow.ReasonFull
	s.Source.Interface = "eth0"
	s.Data = make([]byte, flow.CaptureBytes)
	s.Packets = append(s.Packets, flow.Packet{WireLen: 74, FromInitiator: true}, flow.Packet{Offset: 74, WireLen: 1500})
	return s
}

// explained stands for what a model says: of a capture as sample makes it, which it has to
// be given.
func (f *fake) explained(_ context.Context, v *event.Verdict, capture []byte) (*Explained, error) {
	file, err := assembly.Read("kept", bytes.NewReader(capture))
	if err != nil {
		return nil, err
	}
	packets := 0
	a := assembly.New(assembly.Options{}, func(_ *assembly.Flow, s *flow.Sample) { packets = len(s.Packets) }, nil)
	if err := file.Run(a, nil); err != nil || packets != 2 {
		return nil, fmt.Errorf("it has %d packets: %w", packets, err)
	}
	var pixels bytes.Buffer
	if err := png.Encode(&pixels, image.NewRGBA(image.Rect(0, 0, 32, 32))); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.explanations++
	part := explain.ViewPart{Text: hostile, Runs: []image.Rectangle{image.Rect(3, 0, 9, 1)}}
	begin := explain.ViewBegin{Number: 2, At: image.Pt(10, 2), Color: "#e08000", Lines: []image.Rectangle{image.Rect(10, 2, 32, 2)}}
	return &Explained{Class: v.Class, Confidence: 0.97, Model: v.Model, View: &explain.View{
		About: v.Class, Side: 32, Scale: "0.4000", Steps: []string{"#1040c8", "#e4e4e4", "#c81010"}, Unseen: "#d3c4e6", Initiator: "#e08000", Responder: "#009080",
		Maps: []explain.ViewMap{{
			Title: "effect of the bytes", Pixels: template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(pixels.Bytes())),
			Parts: []explain.ViewPart{part}, Begins: []explain.ViewBegin{begin},
		}},
		Packets: []explain.ViewPacket{{Number: 1, FromInitiator: true, Wire: 74, Captured: 74}, {Number: 2, Millis: 12.5, Wire: 1500, Payload: 1446, Captured: 950}},
		Groups:  []explain.Part{{Name: "all payload", Effect: 0.4}}, Singular: []explain.Part{{Name: "payload of packet 2 (responder), bytes 0-15", Value: hostile, Effect: -0.03}},
	}}, nil
}

// verdict is an event of a flow that a rule was asked about; a flow of class background passes
// undetected.
func verdict(src, dst, class, rule string) *event.Verdict {
	s := sample(netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst))
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
