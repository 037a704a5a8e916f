// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// What a gateway tells and does for the control socket, while it runs and when it has ended.
func TestGatewayIsAsked(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, text := newConfig(t, 1)
	g, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	iface := config.Attach[0].Interface
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	done := make(chan error)
	go func() {
		_, err := g.Run(ctx)
		done <- err
	}()

	key, _ := flow.NewKey(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), flow.TCP, 0, 0)
	if suspended, err := g.Block(iface, key, time.Hour); err != nil || suspended {
		t.Errorf("block: %v, %v", suspended, err)
	}
	if _, err := g.Block("nosuch0", key, time.Hour); !errors.Is(err, loader.ErrNotAttached) {
		t.Errorf("block elsewhere: %v", err)
	}
	blocks, err := g.Blocks()
	if err != nil || len(blocks) != 1 || blocks[0].Interface != iface || blocks[0].Lo != key.Lo || blocks[0].Rule != flow.ByHand || blocks[0].Suspended {
		t.Errorf("blocks: %+v, %v", blocks, err)
	}

	r, err := g.Report()
	if err != nil || len(r.Interfaces) != 1 || r.PID != os.Getpid() || r.Namespace == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	s := r.Interfaces[0]
	if s.Interface != iface || !s.Running || s.PID != os.Getpid() || s.State != status.Well || s.Flows.Blocked != 1 || s.Capacity.Blocked == 0 || s.Latency != nil || len(s.Rules) != 0 {
		t.Errorf("%+v", s)
	}
	// A verdict is in the counts.
	a := g.attached[0]
	now, m := time.Now(), flow.Meta{Key: key, InitiatorIsLo: true, Source: flow.Source{Interface: iface}}
	a.countDecision(&m, &policy.Decision{Action: flow.Drop, Rule: "all", Class: "v2ray", Detected: true, Reason: policy.ReasonRule}, true, now)
	a.countDecision(&m, &policy.Decision{Action: flow.Drop, Rule: "all", Class: "v2ray", Detected: true, Reason: policy.ReasonRule}, false, now)
	a.countDecision(&m, &policy.Decision{Rule: "other", Reason: policy.ReasonLowConfidence}, false, now)
	a.countDecision(&m, &policy.Decision{Rule: "192.0.2.0/24", Reason: policy.ReasonAllowList}, false, now)
	a.latency.add(time.Now(), time.Millisecond)
	broken := "no more"
	a.unread.Store(&broken)
	if r, err = g.Report(); err != nil {
		t.Fatal(err)
	}
	if s = r.Interfaces[0]; len(s.Rules) != 1 || s.Rules["all"] != (status.Rule{Detected: 2, Blocked: 1}) || s.Latency.Verdicts != 1 || s.State != status.Degraded || s.Worries[0].Kind != status.WorryUnreadable {
		t.Errorf("%+v", s)
	}

	if want := []status.Verdicts{{Rule: "all", Decision: "drop", Reason: "rule", Flows: 2}, {Decision: "pass", Reason: "allow-list", Flows: 1}, {Rule: "other", Decision: "pass", Reason: "below min_confidence", Flows: 1}}; !slices.Equal(s.Verdicts, want) {
		t.Errorf("verdicts %+v, want %+v", s.Verdicts, want)
	}
	if r.Model != "test 0.1.0" || !strings.HasPrefix(r.ModelDigest, "sha256:") || r.Policy != "p.yaml" || !strings.HasPrefix(r.PolicyDigest, "sha256:") || r.Queue.Size == 0 || r.Evidence.Treated.Size == 0 || r.Since.After(r.Time) || s.Traffic == nil {
		t.Errorf("%+v, %+v", r, s)
	}
	g.tops.keep(&event.Verdict{Naming: event.Naming{Detected: true}, Endpoints: event.Endpoints{Src: key.Lo, Dst: key.Hi}})
	top, err := g.Top(5)
	if err != nil || len(top.Interfaces) != 1 || len(top.Latest) != 1 {
		t.Fatalf("%+v, %v", top, err)
	}
	want := status.Leader{
		Initiator: netip.PrefixFrom(key.Lo.Addr(), 32), Server: key.Hi, Proto: "tcp", Detected: 2, Blocked: 1, Blocks: 1,
		Interface: iface, Class: "v2ray", Rule: "all", Last: now,
	}
	byHand := status.Leader{Initiator: netip.PrefixFrom(key.Hi.Addr(), 32), Server: key.Lo, Proto: "tcp", Blocks: 1}
	// The block by hand takes the lower port, 1, for the server's.
	want.Blocks = 0
	if !slices.Equal(top.Pairs, []status.Leader{want, byHand}) {
		t.Errorf("pairs %+v, want %+v", top.Pairs, []status.Leader{want, byHand})
	}

	if b, err := g.Unblock(iface, key); err != nil || b.Lo != key.Lo {
		t.Errorf("unblock: %+v, %v", b, err)
	}
	if _, err := g.Unblock(iface, key); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("unblock again: %v", err)
	}
	if _, err := g.Unblock("nosuch0", key); !errors.Is(err, loader.ErrNotAttached) {
		t.Errorf("unblock elsewhere: %v", err)
	}
	g.Audit(&event.Audit{Time: time.Now(), Action: "blocked_del", Outcome: event.Done})

	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if r, err := g.Report(); err != nil || len(r.Interfaces) != 0 || len(g.Interfaces()) != 0 {
		t.Errorf("at the end: %+v, %v", r, err)
	}
	if _, err := g.Block(iface, key, time.Hour); !errors.Is(err, loader.ErrNotAttached) {
		t.Errorf("block at the end: %v", err)
	}
	config.Events.Close()
	var told []string
	for _, e := range kinds(t, text) {
		told = append(told, e.Kind())
		if e, ok := e.(*event.BlockEnded); ok && (e.Reason != string(EndByHand) || e.Rule != flow.ByHand) {
			t.Errorf("%+v", e)
		}
	}
	// Run may tell of its beginning later than it is asked.
	told = slices.DeleteFunc(told, func(kind string) bool { return kind == event.KindAttached })
	if !slices.Equal(told, []string{event.KindBlockEnded, event.KindAudit, event.KindEnded}) {
		t.Errorf("events %v", told)
	}
}
