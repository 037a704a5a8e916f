// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
	"github.com/earlydrop/earlydrop/policy"
)

// shipped opens the shipped model and policy.
func shipped() (*classifier.Engine, *policy.Policy, error) {
	name, data := models.Default()
	engine, err := onnx.Open(name, data, onnx.Options{MaxBatch: Batch})
	if err != nil {
		return nil, nil, err
	}
	m := engine.Manifest()
	p, err := policy.Default(&policy.Model{Labels: m.Labels, Thresholds: m.Thresholds, AnyThreshold: m.AnyThreshold, Unknown: m.Unknown > 0})
	return engine, p, err
}

// What would become of the flows of a capture, in the order in which they began.
func Example() {
	engine, p, err := shipped()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Close()
	in, err := captures.Open(context.Background(), []string{"../../../test/testdata/shadowsocks.pcap"}, false)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer in.Close()
	r := New(Config{Engine: engine, Policy: p, Verdict: func(v *event.Verdict) error {
		fmt.Println(v.Proto, v.Dst, v.Called(), v.Decision)
		return nil
	}})
	defer r.Close()
	if err := r.Read(in.Files); err != nil {
		fmt.Println(err)
	}
	fmt.Println("dropped:", r.Summary().Drops)
	// Output:
	// tcp 10.143.175.2:25688 shadowsocks|v2ray drop
	// tcp 192.168.248.2:11972 shadowsocks|v2ray drop
	// udp 84.22.128.2:27127 shadowsocks pass
	// tcp 10.3.42.2:13822 shadowsocks|v2ray drop
	// dropped: 3
}

// What is kept of a flow while it waits for its turn is all that an event has.
func TestCoderKeepsTheVerdict(t *testing.T) {
	m := &classifier.Manifest{Name: "tiny", Version: "1", Labels: []string{"background", "v2ray"}}
	s := &flow.Sample{}
	s.Reset()
	s.Source.File = "a.pcap"
	s.Key, s.InitiatorIsLo = flow.NewKey(netip.MustParseAddrPort("[2001:db8::2]:40000"), netip.MustParseAddrPort("[2001:db8::1]:443"), flow.TCP, 4095, 1)
	s.Start, s.Elapsed, s.Reason = time.Date(2026, 11, 25, 23, 59, 59, 995_000_001, time.UTC), 2*time.Second+1, flow.ReasonIdle
	s.Cut, s.Incomplete, s.MidStream, s.OneWay, s.Resumed, s.Signals = true, true, true, true, true, flow.SignalFragmented
	s.Variant, s.Scant, s.MissingStart, s.Revision = true, true, true, 3
	s.Data = append(s.Data, make([]byte, 70)...)
	s.Packets = append(s.Packets, flow.Packet{WireLen: 70_000}, flow.Packet{Offset: 60, WireLen: 60})
	result := &flow.Result{Class: "v2ray", Confidence: 0.75, Labels: m.Labels, Scores: []float64{0.25, 0.75}}
	for _, d := range []policy.Decision{
		{Action: flow.Drop, Rule: "tunnels", RuleClasses: "v2ray", Class: "v2ray", Likeliest: "v2ray", Confidence: 0.75, Detected: true, TTL: time.Hour, Reason: policy.ReasonRule},
		{Class: "background", Likeliest: "v2ray", Reason: policy.ReasonNoRule},
		{Action: flow.Log, Class: "v2ray", Likeliest: "v2ray", Rule: "pairs", Reason: policy.ReasonPair, Scope: flow.ScopePair, TTL: 7 * 24 * time.Hour, Seen: 3, Judged: 4},
	} {
		want := event.NewVerdict(s, result, &d)
		want.Model = "tiny 1"
		c, got := newCoder(m), record{}
		encoded := c.encode(nil, s, result, &d)
		if err := c.decode(encoded, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, &got.Verdict, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" || got.called != d.Class {
			t.Errorf("called %s (-want +got):\n%s", got.called, diff)
		}
		if err := c.decode(encoded[:len(encoded)-1], &got); err == nil {
			t.Error("a record that was cut is taken")
		}
	}
}

// An error of who is told ends the replay, and is what Read returns.
func TestReadReturnsTheErrorOfVerdict(t *testing.T) {
	engine, p, err := shipped()
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	full := errors.New("the disk is full")
	told := 0
	r := New(Config{Engine: engine, Policy: p, Verdict: func(*event.Verdict) error { told++; return full }})
	defer r.Close()
	if err := r.Read([]*captures.File{{Name: "../../../test/testdata/shadowsocks.pcap"}}); !errors.Is(err, full) || told != 1 {
		t.Errorf("%v after %d verdicts", err, told)
	}
}
