// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// A packet of a decided flow passes by its word alone, also when `flows` has forgotten it;
// the next connection of its addresses and ports is judged nevertheless.
func TestSettledFlowsPassUntilTheNextConnection(t *testing.T) {
	for _, forgotten := range []bool{false, true} {
		k := loadKernel(t, config{oneHook: true})
		s := k.judged()
		packets := func() {
			for range 3 {
				k.run(ingress, upAt(1402, 2, f.ACK, 100))
				k.run(ingress, downAt(2, 1502, f.ACK, 100))
			}
		}
		packets()
		if forgotten {
			key := toKernelKey(s.Key)
			if err := k.flows.Delete(&key); err != nil {
				t.Fatal(err)
			}
			packets()
		}
		if n := k.counts()["mid_stream"]; n != 0 {
			t.Errorf("counted %d times as seen without a beginning", n)
		}
		next := handshakeAt(700, 80)
		for _, p := range next[:2] {
			k.run(ingress, p)
			packets() // stragglers settle nothing while a SYN stands acknowledged
		}
		k.run(ingress, next[2])
		packets()
		k.run(ingress, upAt(701, 81, f.ACK, 1100))
		// A straggler that begins in front of the first byte makes a variant of it.
		got := slices.DeleteFunc(k.samples(), func(s *flow.Sample) bool { return s.Variant })
		if len(got) != 1 || got[0].Numbers.InitiatorISN != 700 {
			t.Errorf("forgotten %v: %d samples of the next connection; %v", forgotten, len(got), k.counts())
		}
	}
}

// A block counts, settled or not.
func TestSettledFlowsAreBlocked(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	s := k.judged()
	for range 3 {
		k.expect("before the block", upAt(1402, 2, f.ACK, 100), false)
	}
	k.blockFlow(s, time.Hour)
	k.expect("blocked", upAt(1402, 2, f.ACK, 100), true)
	if _, err := k.Unblock(s.Key); err != nil {
		t.Fatal(err)
	}
	k.expect("after the block", upAt(1402, 2, f.ACK, 100), false)
}

// Packets of the old connection on one CPU, the handshake of the next one on another: each
// new connection is judged.
func TestConcurrentHandshakes(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Fatal("needs two CPUs")
	}
	k := loadKernel(t, config{oneHook: true, slots: 4096})
	const rounds = 400
	// The VLAN id makes each round another flow.
	tagged := func(frame []byte, i int) []byte {
		return slices.Concat(frame[:12], []byte{0x81, 0, byte((i + 1) >> 8), byte(i + 1)}, frame[12:])
	}
	run := func(frames ...[]byte) {
		for _, frame := range frames {
			if _, err := k.coll.Programs[string(ingress)].Run(&ebpf.RunOptions{Data: frame}); err != nil {
				t.Error(err)
			}
		}
	}
	for i := range rounds {
		for _, p := range after(handshake(), up(f.ACK, 1400)) {
			run(tagged(p, i))
		}
	}
	if n := len(k.samples()); n != rounds {
		t.Fatalf("%d of %d first connections", n, rounds)
	}
	var wg sync.WaitGroup
	var arrived, done atomic.Int32
	start := func(i int) {
		arrived.Add(1)
		for arrived.Load() < int32(2*(i+1)) && !t.Failed() {
			runtime.Gosched()
		}
	}
	wg.Add(2)
	go func() {
		defer wg.Done()
		runtime.LockOSThread()
		for i := range rounds {
			data, answer := tagged(upAt(1402, 2, f.ACK, 10), i), tagged(downAt(2, 1412, f.ACK, 10), i)
			start(i)
			for done.Load() <= int32(i) && !t.Failed() {
				run(data, answer)
			}
		}
	}()
	go func() {
		defer wg.Done()
		runtime.LockOSThread()
		for i := range rounds {
			next := append(handshakeAt(700, 80), upAt(701, 81, f.ACK, 1100))
			for j := range next {
				next[j] = tagged(next[j], i)
			}
			start(i)
			run(next...)
			done.Add(1)
		}
	}()
	wg.Wait()
	// A segment that finds its handshake in use by the other CPU passes uncaptured, also
	// where that CPU stands still for a while; what comes behind it is not lost.
	for i := range rounds {
		run(tagged(upAt(1801, 81, f.ACK, 1100), i), tagged(upAt(2901, 81, f.ACK, 1100), i))
	}
	got := k.samples()
	if len(got) != rounds {
		t.Errorf("%d of %d next connections are judged; %v", len(got), rounds, k.counts())
	}
	for _, s := range got {
		if s.Numbers.InitiatorISN != 700 {
			t.Errorf("%s: %+v", s.Key, s.Numbers)
		}
	}
}

// A datagram of a decided flow passes by its word alone, but not for longer than silence is
// noticed, nor after the flow's block.
func TestSettledDatagramsPassAndAreResumed(t *testing.T) {
	k := loadKernel(t, config{udpIdle: time.Hour})
	key := toKernelKey(udpKey())
	decide := func(last uint64) {
		if err := k.flows.Update(&key, &datapathFlow{Verdict: datapathVerdictVERDICT_PASS, LastNs: last}, ebpf.UpdateAny); err != nil {
			t.Fatal(err)
		}
	}
	begun := func() uint64 { return k.counts()["udp_waiting"] }
	decide(monotonic())
	for range 3 {
		k.run(ingress, udp(true, 100))
	}
	// `flows` has forgotten it, and the word has not: but for one tick of 16.
	if err := k.flows.Delete(&key); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		k.run(ingress, udp(true, 100))
	}
	if n := begun(); n != 0 {
		t.Errorf("%d flows begun while the word was there", n)
	}
	// An old word is good for nothing.
	k.ageSettled()
	k.run(ingress, udp(true, 100))
	if n := begun(); n != 1 {
		t.Errorf("%d flows begun behind an old word, want 1", n)
	}
	// Behind a block that has ended, the flow is captured again.
	decide(1)
	k.run(ingress, udp(true, 100))
	decide(monotonic())
	k.run(ingress, udp(true, 100))
	if err := k.Apply(udpKey(), flow.Treatment{Action: flow.Drop, TTL: time.Millisecond, Class: "x", Rule: "x"}); err != nil {
		t.Fatal(err)
	}
	for dropped := true; dropped; {
		dropped = k.run(ingress, udp(true, 100))
	}
	var v datapathFlow
	if err := k.flows.Lookup(&key, &v); err != nil || v.Verdict != datapathVerdictVERDICT_RESUMED {
		t.Errorf("behind the block: %+v, %v", v, err)
	}
	k.run(egress, udp(false, 100))
	if k.run(ingress, udp(true, 1000)); len(k.samples()) == 0 {
		t.Errorf("no sample behind the block: %v", k.counts())
	}
}

// ageSettled makes all words of UDP flows older than they are good for.
func (k *kernel) ageSettled() {
	k.t.Helper()
	m := k.coll.Maps[datapathMapSettled]
	var i uint32
	var word uint64
	for entries := m.Iterate(); entries.Next(&i, &word); {
		if word&(1<<62) == 0 {
			continue
		}
		if err := m.Put(i, word&^(0xffff<<46)|(word-16<<46)&(0xffff<<46)); err != nil {
			k.t.Fatal(err)
		}
	}
}
