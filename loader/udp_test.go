// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

func udpKey() flow.Key {
	key, _ := flow.NewKey(client, server, flow.UDP, 0, 0)
	return key
}

// silent moves the latest packet of a decided flow so far back, as if the clock had gone
// on.
func (k *kernel) silent(key flow.Key, d time.Duration) {
	k.t.Helper()
	kk := toKernelKey(key)
	var v datapathFlow
	if err := k.flows.Lookup(&kk, &v); err != nil {
		k.t.Fatalf("flow %s: %v", key, err)
	}
	v.LastNs, v.LastTick = v.LastNs-uint64(d), v.LastTick-1
	if err := k.flows.Update(&kk, &v, ebpf.UpdateExist); err != nil {
		k.t.Fatal(err)
	}
}

// talk runs datagrams of both sides, of so many bytes, and returns what was handed over.
func (k *kernel) talk(bytes ...int) []*flow.Sample {
	k.t.Helper()
	for i, n := range bytes {
		hook := ingress
		if i%2 == 1 {
			hook = egress
		}
		if k.run(hook, udp(i%2 == 0, n)) {
			k.t.Fatal("a datagram was dropped")
		}
	}
	return k.samples()
}

// Silence is no beginning: a flow that is decided stays so, and what comes after a long
// silence is captured as resumed.
func TestSilentUDPFlowsAreDecidedOrResumed(t *testing.T) {
	// The clock goes on by what the flow's entry is set back, and that can't be before
	// the machine was started: a hundredth of the default time, and of the silences.
	const scale = 100
	k := loadKernel(t, config{udpIdle: DefaultUDPIdle / scale})
	for monotonic() < uint64(2*DefaultUDPIdle/scale) {
		time.Sleep(time.Second)
	}
	for _, tt := range []struct {
		name    string
		silence time.Duration
		resumed bool
	}{
		{"65 s", 65 * time.Second / scale, false},
		{"9 min", 9 * time.Minute / scale, false},
		{"a little more than 10 min", DefaultUDPIdle/scale + 20*time.Millisecond, true},
		{"11 min", 11 * time.Minute / scale, true},
	} {
		for _, verdict := range []string{"pending", "pass"} {
			t.Run(tt.name+", "+verdict, func(t *testing.T) {
				k := k.emptied(t)
				if got := k.talk(700, 700); len(got) != 1 || got[0].Resumed {
					t.Fatalf("the flow's beginning: %d samples, %+v", len(got), got)
				}
				if verdict == "pass" {
					if err := k.Pass(udpKey()); err != nil {
						t.Fatal(err)
					}
				}
				k.silent(udpKey(), tt.silence)
				got := k.talk(300, 300, 300, 300, 300)
				if !tt.resumed {
					if len(got) != 0 {
						t.Fatalf("%d samples of a flow that is decided", len(got))
					}
					return
				}
				if len(got) != 1 || !got[0].Resumed || got[0].MidStream || !got[0].Complete() || !got[0].InitiatorIsLo {
					t.Fatalf("%d samples, %+v", len(got), got)
				}
				// It is decided again, and no other flow.
				if got := k.talk(700, 700); len(got) != 0 {
					t.Errorf("%d samples after the second", len(got))
				}
				k.silent(udpKey(), tt.silence)
				if got := k.talk(0, 0, 700, 700); len(got) != 1 || !got[0].Resumed {
					t.Errorf("after another silence: %d samples, %+v", len(got), got)
				}
			})
		}
	}
}

// What comes after a block is the middle of a flow.
func TestBlockedUDPFlowsAreResumed(t *testing.T) {
	k := loadKernel(t, config{udpIdle: DefaultUDPIdle})
	key := udpKey()
	for _, tt := range []struct {
		name            string
		removed, forgot bool
	}{
		{"the block is still there", false, false},
		{"the block was removed", true, false},
		{"the block is still there, and the flow forgotten", false, true},
		{"the block was removed, and the flow forgotten", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := k.emptied(t)
			if got := k.talk(700, 700); len(got) != 1 || got[0].Resumed {
				t.Fatalf("the flow's beginning: %+v", got)
			}
			if err := k.Apply(key, drop(50*time.Millisecond, "c", "r")); err != nil {
				t.Fatal(err)
			}
			end := monotonic() + uint64(70*time.Millisecond)
			if !k.run(ingress, udp(true, 100)) || !k.run(egress, udp(false, 100)) {
				t.Error("a datagram of a blocked flow passed")
			}
			if tt.forgot {
				kk := toKernelKey(key)
				if err := k.flows.Delete(&kk); err != nil {
					t.Fatal(err)
				}
			}
			waitUntil(end)
			expire := func() (n int) {
				blocks, err := k.ExpireBlocks()
				if err != nil {
					t.Fatal(err)
				}
				return len(blocks)
			}
			if tt.removed && expire() != 1 {
				t.Fatal("the block was not removed")
			}
			got := k.talk(300, 300, 300, 300)
			if len(got) != 1 || !got[0].Resumed {
				t.Fatalf("%d samples, %+v", len(got), got)
			}
			// The coarse clock, of the kernel's note, may lag by a tick.
			if err := k.Pass(key); err != nil {
				t.Fatal(err)
			}
			if !tt.removed && expire() != 1 {
				t.Fatal("the block was not removed")
			}
			if got := k.talk(700, 700); len(got) != 0 {
				t.Errorf("judged once more: %+v", got)
			}
		})
	}
}

// A flow that somebody unblocked is left alone.
func TestUnblockedUDPFlowsStayDecided(t *testing.T) {
	k := loadKernel(t, config{udpIdle: DefaultUDPIdle})
	k.talk(700, 700)
	if err := k.Apply(udpKey(), drop(time.Hour, "c", "r")); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Unblock(udpKey()); err != nil {
		t.Fatal(err)
	}
	if got := k.talk(700, 700); len(got) != 0 {
		t.Errorf("%d samples", len(got))
	}
}

// A UDP block ends at its time, whatever comes.
func TestUDPBlocksAreNotRenewed(t *testing.T) {
	k := loadKernel(t, config{})
	if err := k.Apply(udpKey(), drop(20*time.Millisecond, "c", "r")); err != nil {
		t.Fatal(err)
	}
	end := monotonic() + uint64(20*time.Millisecond)
	for monotonic() < end-uint64(5*time.Millisecond) {
		k.run(ingress, udp(true, 100))
	}
	waitUntil(end)
	if slices.Contains([]bool{k.run(ingress, udp(true, 100)), k.run(egress, udp(false, 100))}, true) {
		t.Error("a datagram was dropped after the end of its block")
	}
}

// captureUDP has a new flow of the client's port captured.
func captureUDP(t *testing.T, d *DataPath, port uint16) *flow.Sample {
	t.Helper()
	r, err := d.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	src := netip.AddrPortFrom(client.Addr(), port)
	for i, e := range []entry{tcxIngress, egress, tcxIngress} {
		from, to := src, server
		if i == 1 {
			from, to = server, src
		}
		frame := f.Ethernet(f.IP(from, to, f.UDP, f.Datagram(from, to, f.Payload(500))))
		if _, err := d.coll.Programs[string(e)].Run(&ebpf.RunOptions{Data: frame}); err != nil {
			t.Fatal(err)
		}
	}
	s := new(flow.Sample)
	if err := r.Read(s); err != nil {
		t.Fatal(err)
	}
	return s
}

// The attach is no beginning: what is new soon after the first one may have been open
// before. Whoever takes over does not start that again.
func TestUDPFlowsThatAreNewAfterTheFirstAttachAreResumed(t *testing.T) {
	const warmup = 2 * time.Second
	port := uint16(50000)
	// resumed captures a new flow and says what it is.
	resumed := func(d *DataPath) bool {
		t.Helper()
		port++
		return captureUDP(t, d, port).Resumed
	}
	inNamespace(t)
	d := attach(t, Options{UDPWarmup: time.Hour})
	if !resumed(d) {
		t.Error("a flow that is new after the first attach begins")
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	d = attach(t, Options{UDPWarmup: warmup})
	end := monotonic() + uint64(warmup)
	waitUntil(end)
	if resumed(d) {
		t.Error("resumed after the time that was asked for")
	}
	for range 2 { // a restart, or an upgrade
		if err := d.Release(); err != nil {
			t.Fatal(err)
		}
		if d = attach(t, Options{UDPWarmup: warmup}); !d.Info.Adopted {
			t.Fatal("nothing was adopted")
		}
		if resumed(d) {
			t.Error("an adoption counts as the first attach")
		}
	}
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	// A replacement knows none of the flows that are open.
	d = attach(t, Options{UDPWarmup: time.Hour, Sizes: Sizes{Flows: 2048}})
	if d.Info.Adopted || !resumed(d) {
		t.Errorf("adopted %v; or no flow is resumed after all were forgotten", d.Info.Adopted)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	d = attach(t, Options{UDPWarmup: -1})
	if resumed(d) {
		t.Error("resumed though that was not asked for")
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}

// Whatever a flow carries: after 65 s of silence it is decided still, after 11 minutes it
// is resumed.
func TestElevenMinutesOfSilenceAreNoBeginning(t *testing.T) {
	const scale = 100 // as above
	k := loadKernel(t, config{udpIdle: DefaultUDPIdle / scale})
	for monotonic() < uint64(2*DefaultUDPIdle/scale) {
		time.Sleep(time.Second)
	}
	for _, tt := range []struct {
		name        string
		begin, more []int // bytes of payload, of both sides by turns
	}{
		{"QUIC", []int{1200, 1200, 1200, 1250}, []int{60, 1250, 45}},
		{"NAT-T", []int{136, 136, 1400, 104}, []int{1, 136, 1400, 120, 104}},
		{"RTP", []int{172, 172, 172, 172, 172, 172}, []int{172, 172, 172, 172, 172, 172}},
		{"RTP of a video", []int{1200, 52, 1200, 52}, []int{1200, 52}},
		{"WireGuard", []int{148, 92, 96, 128, 1452}, []int{32, 96, 148, 92, 96, 1452}},
		{"DTLS", []int{160, 60, 180, 1100, 500, 120}, []int{85, 85, 200, 1000}},
		{"DNS", []int{40, 90, 40, 90, 40, 90, 40, 90, 40, 90, 40, 90}, []int{40, 400, 40, 400, 40, 400}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := k.emptied(t)
			if got := k.talk(tt.begin...); len(got) != 1 || got[0].Resumed {
				t.Fatalf("the flow's beginning: %d samples, %+v", len(got), got)
			}
			if err := k.Pass(udpKey()); err != nil {
				t.Fatal(err)
			}
			k.silent(udpKey(), 65*time.Second/scale)
			if got := k.talk(tt.more...); len(got) != 0 {
				t.Errorf("after 65 s: %+v", got)
			}
			k.silent(udpKey(), 11*time.Minute/scale)
			if got := k.talk(tt.more...); len(got) != 1 || !got[0].Resumed {
				t.Errorf("after 11 min: %+v", got)
			}
		})
	}
}
