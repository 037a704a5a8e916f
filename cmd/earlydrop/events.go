// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/policy"
)

// stamped puts the time in front of each write, which is one line of a log.
type stamped struct{ to io.Writer }

func (s stamped) Write(p []byte) (int, error) {
	if _, err := fmt.Fprintf(s.to, "%s  %s", event.Clock(time.Now()), p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// attached tells how the data path was attached.
func (d *daemon) attached(policyName string) {
	info := d.dp.Info
	var text strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&text, format+"\n", args...) }
	how, now := "attached", time.Now()
	if info.Adopted {
		how = "adopted"
	}
	say("%s  %s %s: xdp %s, egress %s, mode %s, policy %s, model %s, device %s",
		event.Clock(now), how, d.iface(), info.XDPMode, info.Egress, d.mode, policyName, d.model, d.engine.Device())
	if info.XDPFallback != nil {
		say("native xdp is not possible on %s, generic is slower: %v", d.iface(), info.XDPFallback)
	}
	if info.Replaced != "" {
		say("what was pinned was replaced: %s", info.Replaced)
	}
	if info.BlocksLost != nil {
		say("not all blocks found room in the new tables: %v", info.BlocksLost)
	}
	if info.BlocksAdopted > 0 {
		say("%d flows stay blocked", info.BlocksAdopted)
	}
	if info.BlocksRemoved > 0 {
		say("%d blocks removed: mode monitor drops nothing", info.BlocksRemoved)
	}
	if info.HiddenVLANs {
		say("%s strips VLAN tags on receive, so the two directions of tagged flows don't match: ethtool -K %s rxvlan off rx-vlan-stag-hw-parse off", d.iface(), d.iface())
	}
	if d.oneHook {
		say("%s", oneHookProof)
	}
	if !d.policy.TreatsUDP() {
		say("%s", udpNotTreated)
	} else {
		say("UDP flows are treated as rules say udp_unproven: true; who forges datagrams can have flows of others dropped")
	}
	say("tables: %s; %s of kernel memory", info.Sizes, event.ByteCount(info.Memory))
	say("maps: bpftool map dump pinned %s/blocked", info.PinDir)
	for _, warning := range warnings(d.iface(), info) {
		say("warning: %s", warning)
	}
	d.out.Say(text.String())
	d.out.Put(&event.Attached{
		Time: now, Interface: d.iface(), Mode: d.mode.String(), XDP: string(info.XDPMode),
		Egress: info.Egress, Adopted: info.Adopted, Policy: policyName, Model: d.model,
	})
}

// blockEnded tells that a block is over, and why.
func (d *daemon) blockEnded(b loader.Block) {
	d.out.Add(&event.BlockEnded{
		Time: time.Now(), Interface: d.iface(),
		Endpoints: event.Endpoints{Src: b.Key.Lo, Dst: b.Key.Hi, Proto: b.Key.Proto.String(), VLAN: b.Key.VLAN, InnerVLAN: b.Key.InnerVLAN},
		Class:     b.Class, Rule: b.Rule, Reason: string(b.Ended), DroppedPackets: b.Packets, DroppedBytes: b.Bytes,
	})
}

// sayLeftOut tells how many verdicts were left out since the last time, if any.
func (d *daemon) sayLeftOut(now time.Time) {
	if n := d.out.TakeLeftOut(); n > 0 {
		d.out.Put(&event.LeftOut{Time: now, Interface: d.iface(), PassesLeftOut: n})
	}
}

// summary is what a run of the daemon comes to.
type summary struct {
	iface    string
	took     time.Duration
	mode     policy.Mode
	classes  map[string]uint64
	counters map[string]uint64 // those that are not zero
	order    []string          // their names, in the kernel's order
}

func (d *daemon) summary() summary {
	s := summary{iface: d.iface(), took: time.Since(d.started), mode: d.mode, classes: map[string]uint64{}, counters: map[string]uint64{}}
	d.classes.Range(func(k, v any) bool {
		s.classes[k.(string)] = v.(*atomic.Uint64).Load()
		return true
	})
	all, _ := d.dp.Counters() // without them it says the rest
	for _, c := range append(all, d.counters()...) {
		if c.Value != 0 {
			s.counters[c.Name] = c.Value
			s.order = append(s.order, c.Name)
		}
	}
	return s
}

// ended prints the summary.
func ended(out *eventlog.Log, sum summary, persist bool) {
	var text strings.Builder
	now := time.Now()
	fmt.Fprintf(&text, "\n%s  %s after %s, mode %s\n", event.Clock(now), sum.iface, sum.took.Round(time.Millisecond), sum.mode)
	for _, class := range slices.Sorted(maps.Keys(sum.classes)) {
		fmt.Fprintf(&text, "  %-20s %10d flows\n", class, sum.classes[class])
	}
	for _, name := range sum.order {
		fmt.Fprintf(&text, "  %-20s %10d\n", name, sum.counters[name])
	}
	if persist {
		fmt.Fprintf(&text, "the data path stays attached to %s (earlydrop detach -i %s removes it)\n", sum.iface, sum.iface)
	} else {
		fmt.Fprintf(&text, "detached from %s\n", sum.iface)
	}
	out.Say(text.String())
	out.Put(&event.Ended{
		Time: now, Interface: sum.iface, Mode: sum.mode.String(), Classes: sum.classes,
		Counters: sum.counters, Persisted: persist,
	})
}
