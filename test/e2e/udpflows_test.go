// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// The times of UDP flows in these tests, shorter than any that an operator wants.
const (
	udpWarmup = 4 * time.Second
	udpIdle   = time.Second
	udpTTL    = 2 * time.Second
)

// suspicious is a model that takes everything for a tunnel, so that a flow passes for what
// else is known of it or not at all.
var suspicious = func() string {
	path, err := filepath.Abs("../../classifier/testdata/suspicious.onnx")
	if err != nil {
		panic(err)
	}
	return path
}()

// of reports whether an event is about the flow, whoever spoke first.
func (f *udpFlow) of(e rig.Event) bool {
	return e.Src == f.src && e.Dst == f.dst || e.Src == f.dst && e.Dst == f.src
}

// verdicts returns the verdicts about the flow so far.
func (f *udpFlow) verdicts(d *rig.Daemon) []rig.Event {
	return slices.DeleteFunc(d.Events(), func(e rig.Event) bool { return e.Event != "verdict" || !f.of(e) })
}

// udpTrial has flows go through situations and counts what becomes of them.
type udpTrial struct {
	*scene
	counts map[string]map[string][2]int // situation, kind: how many are as they should be, of how many
	order  []string                     // of the situations
}

// count notes whether a flow is as it should be.
func (u *udpTrial) count(situation string, f *udpFlow, good bool) {
	if u.counts[situation] == nil {
		u.counts[situation] = map[string][2]int{}
		u.order = append(u.order, situation)
	}
	n := u.counts[situation][f.kind]
	n[1]++
	if good {
		n[0]++
	}
	u.counts[situation][f.kind] = n
}

// goesOn fails unless data of each flow arrives three times more.
func (u *udpTrial) goesOn(situation string, flows []*udpFlow) {
	u.t.Helper()
	type state struct{ arrived, lost int64 }
	at := map[*udpFlow]state{}
	for _, f := range flows {
		at[f] = state{f.arrived.Load(), f.lost.Load()}
	}
	for _, f := range flows {
		err := rig.Until(u.ctx, func() (bool, error) {
			return f.arrived.Load() >= at[f].arrived+3 || f.lost.Load() > at[f].lost, nil
		})
		if err != nil || f.lost.Load() > at[f].lost {
			u.t.Errorf("%s: nothing arrives of %s %s > %s", situation, f.kind, f.src, f.dst)
		}
	}
}

// resumed waits for a verdict about each flow, beyond those of before, and fails unless
// all verdicts say that it is resumed and passes, no flow is blocked, and its data arrives.
func (u *udpTrial) resumed(situation string, d *rig.Daemon, flows []*udpFlow, before map[*udpFlow]int) {
	u.t.Helper()
	for _, f := range flows {
		_, err := d.Wait(u.ctx, fmt.Sprintf("%s: a verdict about %s %s > %s", situation, f.kind, f.src, f.dst), func(rig.Event) bool {
			return len(f.verdicts(d)) > before[f]
		})
		if err != nil {
			u.t.Fatal(err)
		}
	}
	u.goesOn(situation, flows)
	for _, f := range flows {
		good := true
		for _, v := range f.verdicts(d)[before[f]:] {
			if !v.Resumed || v.Decision != "pass" || v.Rule != "" && v.Reason != "mid-stream" {
				u.t.Errorf("%s: %s: %+v", situation, f.kind, v)
				good = false
			}
		}
		u.count(situation, f, good)
	}
	if blocks := must(u.Blocks(u.ctx))(u.t); len(blocks) > 0 {
		u.t.Errorf("%s: blocked: %+v", situation, blocks)
	}
}

// seen is how many verdicts there are about each flow.
func seen(d *rig.Daemon, flows []*udpFlow) map[*udpFlow]int {
	n := map[*udpFlow]int{}
	for _, f := range flows {
		n[f] = len(f.verdicts(d))
	}
	return n
}

// print logs how many flows of each kind were as they should be.
func (u *udpTrial) print() {
	kinds := slices.Sorted(maps.Keys(u.counts[u.order[0]]))
	var text strings.Builder
	fmt.Fprintf(&text, "%-44s %s\n", "", strings.Join(kinds, " | "))
	for _, situation := range u.order {
		fmt.Fprintf(&text, "%-44s", situation)
		for _, kind := range kinds {
			n := u.counts[situation][kind]
			fmt.Fprintf(&text, " %*s |", len(kind)-1, fmt.Sprintf("%d/%d", n[0], n[1]))
		}
		text.WriteByte('\n')
	}
	u.t.Logf("flows as they should be:\n%s", text.String())
}

// Of flows that run at an attach, or go on after silence, a restart or a block, none is
// cut, though a rule would drop each of them that began now.
func TestUDPFlowsThatGoOnAreNotCut(t *testing.T) {
	t.Parallel()
	u := &udpTrial{scene: newScene(t, lab.Config{}), counts: map[string]map[string][2]int{}}
	must(u.StartDNS(u.ctx, lab.DNSConfig{}))(t)
	kinds := udpKinds()
	open := func(n int) (flows []*udpFlow) {
		for _, kind := range slices.Sorted(maps.Keys(kinds)) {
			for range n {
				flows = append(flows, kinds[kind](u.scene).run(u.scene))
			}
		}
		return flows
	}
	old := open(2)
	u.goesOn("before the attach", old)

	policy := u.file("both.yaml", "mode: enforce\nrules: [{name: both, class: [shadowsocks, v2ray], min_confidence: 0.01, action: drop, ttl: 2s, udp_unproven: true}]\n")
	args := []string{"--policy", policy, "--model", suspicious, "--udp-warmup", udpWarmup.String(), "--udp-idle", udpIdle.String()}
	d := u.attach(args...)
	u.resumed("running at the attach", d, old, nil)

	// Those that begin now are what the rule is about, or are blocked by hand, as some of
	// those that run.
	time.Sleep(time.Until(d.Attached.Time.Add(udpWarmup)))
	began := open(1)
	var blocked []*udpFlow
	for _, f := range began {
		v := must(d.Wait(u.ctx, "the verdict about "+f.kind, func(e rig.Event) bool { return e.Event == "verdict" && f.of(e) }))(t)
		if v.Resumed {
			t.Errorf("%s began after the attach, and is resumed: %+v", f.kind, v)
		}
		u.count("begins: dropped", f, v.Decision == "drop")
		if v.Decision == "drop" {
			blocked = append(blocked, f)
		}
	}
	if len(blocked) == 0 {
		t.Fatal("the rule drops nothing: the test shows nothing")
	}
	var wg sync.WaitGroup
	for i, f := range old {
		if i%2 == 0 {
			blocked = append(blocked, f)
			wg.Go(func() {
				if _, err := u.Earlydrop(u.ctx, "blocked", "add", "-i", rig.Device, "--ttl", udpTTL.String(), "udp", f.src.String(), f.dst.String()); err != nil {
					t.Error(err)
				}
			})
		}
	}
	before := seen(d, blocked)
	wg.Wait()
	for _, f := range blocked {
		ended := must(d.Wait(u.ctx, "the end of the block of "+f.kind, func(e rig.Event) bool { return e.Event == "block_ended" && f.of(e) }))(t)
		if ended.DroppedPackets == 0 {
			t.Errorf("nothing of %s was dropped", f.kind)
		}
	}
	u.resumed("after the end of a block", d, blocked, before)

	all := slices.Concat(old, began)
	before = seen(d, all)
	silent(all, udpIdle+udpIdle/2)
	u.resumed("silent for longer than --udp-idle", d, all, before)

	d.Kill()
	u.goesOn("without the daemon", all)
	d = u.attach(args...)
	if !d.Attached.Adopted {
		t.Errorf("nothing was adopted: %+v", d.Attached)
	}
	u.goesOn("after kill -9 and an adoption", all)
	silent(all, udpIdle+udpIdle/2)
	u.resumed("silent after kill -9 and an adoption", d, all, nil)

	if _, err := d.Stop(u.ctx); err != nil {
		t.Fatal(err)
	}
	u.goesOn("detached", all)
	d = u.attach("--policy", policy, "--model", suspicious, "--udp-idle", udpIdle.String())
	u.resumed("after a detachment and another attach", d, all, nil)
	u.stop(d)
	u.print()
}
