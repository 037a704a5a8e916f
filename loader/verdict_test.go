// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

func tcpKey() flow.Key {
	key, _ := flow.NewKey(client, server, flow.TCP, 0, 0)
	return key
}

// waitUntil polls the monotonic clock, which nothing can wait on.
func waitUntil(ns uint64) {
	for monotonic() < ns {
		time.Sleep(time.Millisecond)
	}
}

func TestBlockDropsBothDirectionsAndCounts(t *testing.T) {
	for _, e := range hooks {
		t.Run(string(e), func(t *testing.T) {
			k := loadKernel(t, config{oneHook: true})
			for _, p := range after(handshake(), up(f.ACK, 1400)) {
				k.run(e, p)
			}
			if err := k.Apply(tcpKey(), drop(time.Hour, "shadowsocks", "tunnels")); err != nil {
				t.Fatal(err)
			}
			for _, p := range [][]byte{up(f.ACK, 100), down(f.ACK, 200), up(f.SYN, 1), down(f.SYN|f.ACK, 0), down(f.FIN|f.ACK, 0)} {
				if !k.run(e, p) {
					t.Error("a packet of the blocked flow passed")
				}
			}
			other := f.Ethernet(f.IP(client, netip.MustParseAddrPort("192.0.2.7:444"), f.TCP,
				f.Segment(client, netip.MustParseAddrPort("192.0.2.7:444"), f.ACK, nil, f.Payload(10))))
			if k.run(e, other) {
				t.Error("a packet of another flow was dropped")
			}
			blocks, err := k.Blocked()
			if err != nil || len(blocks) != 1 {
				t.Fatalf("blocked: %v, %v", blocks, err)
			}
			b := blocks[0]
			if want := uint64(154 + 254 + 55 + 54 + 54); b.Packets != 5 || b.Bytes != want || b.Class != "shadowsocks" || b.Rule != "tunnels" || b.Key != tcpKey() {
				t.Errorf("block %+v, want 5 packets, %d bytes", b, want)
			}
			if c := k.counts(); c["dropped_packets"] != 5 || c["dropped_bytes"] != b.Bytes {
				t.Errorf("counters %v", c)
			}
			if _, err := k.Unblock(tcpKey()); err != nil {
				t.Fatal(err)
			}
			if k.run(e, up(f.ACK, 100)) {
				t.Error("dropped after the block was removed")
			}
			if _, err := k.Unblock(tcpKey()); !errors.Is(err, ebpf.ErrKeyNotExist) {
				t.Errorf("second unblock: %v", err)
			}
		})
	}
}

func TestBlockEndsWithItsTimeToLive(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	for _, p := range after(handshake(), up(f.ACK, 1400)) {
		k.run(ingress, p)
	}
	if err := k.Apply(tcpKey(), drop(0, "", "")); err == nil {
		t.Error("a block without time to live was accepted")
	}
	// On a busy machine the time may be over before anything is tried: then with more.
	var end uint64
	for ttl := 60 * time.Millisecond; ; ttl *= 4 {
		begin := monotonic()
		if err := k.Apply(tcpKey(), drop(ttl, "shadowsocks", "r")); err != nil {
			t.Fatal(err)
		}
		end = monotonic() + uint64(ttl)
		dropped := k.run(ingress, up(f.ACK, 10))
		expired, err := k.ExpireBlocks()
		if monotonic() >= begin+uint64(ttl) {
			continue
		}
		if !dropped {
			t.Error("passed while blocked")
		}
		if err != nil || len(expired) != 0 {
			t.Errorf("expired early: %v, %v", expired, err)
		}
		break
	}
	waitUntil(end + uint64(20*time.Millisecond)) // the coarse clock's tick is 10 ms at most
	if k.run(ingress, up(f.ACK, 10)) {
		t.Error("dropped after the time to live")
	}
	expired, err := k.ExpireBlocks()
	if err != nil || len(expired) != 1 || expired[0].Packets != 1 || expired[0].Class != "shadowsocks" {
		t.Errorf("expired %+v, %v", expired, err)
	}
	if blocks, err := k.Blocked(); err != nil || len(blocks) != 0 {
		t.Errorf("still blocked: %v, %v", blocks, err)
	}
}

// A flow that is blocked by hand while it is collecting must stay blocked when the
// sweep hands it over.
func TestBlockByHandOutlivesTheHandover(t *testing.T) {
	k := loadKernel(t, config{oneHook: true, idle: time.Nanosecond})
	for _, p := range after(handshake(), up(f.ACK, 100)) {
		k.run(ingress, p)
	}
	if err := k.Apply(tcpKey(), drop(time.Hour, "", "")); err != nil {
		t.Fatal(err)
	}
	if n := k.sweep(); n != 1 {
		t.Errorf("sweep found %d, want 1", n)
	}
	if !k.run(ingress, up(f.ACK, 10)) {
		t.Error("passed: the hand-over hid the block")
	}
	if err := k.Pass(tcpKey()); err != nil {
		t.Fatal(err)
	}
	if !k.run(ingress, up(f.ACK, 10)) {
		t.Error("passed: the verdict hid the block")
	}
}

func TestPressureOnFlowsNeverUnblocks(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	if err := k.Apply(tcpKey(), drop(time.Hour, "", "")); err != nil {
		t.Fatal(err)
	}
	frame := up(f.ACK, 10)
	for i := range 20000 { // far more mid-stream flows than the LRU holds
		from(frame, 0x0b000000+i)
		k.run(ingress, frame)
	}
	if !k.run(ingress, up(f.ACK, 10)) {
		t.Error("passed after pressure")
	}
}

func TestVerdictPassKeepsFlow(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	for _, p := range after(handshake(), up(f.ACK, 1400)) {
		k.run(egress, p)
	}
	verdict := func() datapathVerdict {
		var v datapathFlow
		key := toKernelKey(tcpKey())
		if err := k.flows.Lookup(&key, &v); err != nil {
			t.Fatal(err)
		}
		return v.Verdict
	}
	if v := verdict(); v != datapathVerdictVERDICT_PENDING {
		t.Errorf("verdict %d before the decision", v)
	}
	if err := k.Pass(tcpKey()); err != nil {
		t.Fatal(err)
	}
	if v := verdict(); v != datapathVerdictVERDICT_PASS {
		t.Errorf("verdict %d after the decision", v)
	}
	unknown, _ := flow.NewKey(peer6, host6, flow.UDP, 3, 4)
	if err := k.Pass(unknown); err != nil {
		t.Errorf("pass of a forgotten flow: %v", err)
	}
}

// More flows than the kernel is told of at a time: what else is known of them stays, and a
// lifted block is not forgotten.
func TestManyVerdictsPass(t *testing.T) {
	k := loadKernel(t, config{})
	const n = 3*len(datapathPassed{}.Keys) + 1
	var keys []flow.Key
	was := func(i int) datapathFlow {
		f := datapathFlow{Verdict: datapathVerdictVERDICT_PENDING, IsnLo: uint32(i), Mark: uint8(i), Again: 1, Before: uint16(i)}
		switch i % 3 {
		case 1:
			f.Verdict = datapathVerdictVERDICT_EXEMPT
		case 2:
			f.Verdict = datapathVerdictVERDICT_RESUMED
		}
		return f
	}
	for i := range n {
		key := flow.Key{Lo: client, Hi: server, Proto: flow.UDP, VLAN: uint16(i)}
		keys = append(keys, key)
		if i%10 == 9 {
			continue // forgotten
		}
		raw, f := toKernelKey(key), was(i)
		if err := k.flows.Update(&raw, &f, ebpf.UpdateAny); err != nil {
			t.Fatal(err)
		}
	}
	before := monotonic()
	if err := k.Pass(keys...); err != nil {
		t.Fatal(err)
	}
	for i, key := range keys {
		var got datapathFlow
		raw, want := toKernelKey(key), was(i)
		err := k.flows.Lookup(&raw, &got)
		if i%10 == 9 {
			if !errors.Is(err, ebpf.ErrKeyNotExist) {
				t.Errorf("flow %d, which was forgotten, is there: %+v, %v", i, got, err)
			}
			continue
		}
		if want.Verdict != datapathVerdictVERDICT_EXEMPT {
			want.Verdict = datapathVerdictVERDICT_PASS
			if got.LastNs < before {
				t.Errorf("flow %d: time %d, before %d", i, got.LastNs, before)
			}
			want.LastNs = got.LastNs
		}
		if err != nil || got != want {
			t.Errorf("flow %d: %+v, %v, want %+v", i, got, err, want)
		}
	}
	if err := k.Pass(); err != nil {
		t.Errorf("no flow at all: %v", err)
	}
}

func TestIdleSweepHandsOver(t *testing.T) {
	// On a busy machine flows may be idle before anything is tried: then with more.
	var k *kernel
	var idle time.Duration
	for idle = 30 * time.Millisecond; ; idle *= 4 {
		k = loadKernel(t, config{oneHook: true, idle: idle})
		begin := monotonic()
		for _, p := range after(handshake(), up(f.ACK, 100)) {
			k.run(ingress, p)
		}
		k.run(ingress, udp(true, 50))
		k.run(ingress, udp(false, 50))
		n := k.sweep()
		if monotonic() >= begin+uint64(idle) {
			continue
		}
		if n != 0 {
			t.Errorf("sweep found %d before the idle time", n)
		}
		break
	}
	waitUntil(monotonic() + uint64(idle))
	if n := k.sweep(); n != 2 {
		t.Errorf("sweep found %d, want 2", n)
	}
	got := k.samples()
	if len(got) != 2 {
		t.Fatalf("%d samples, want 2", len(got))
	}
	for _, s := range got {
		if s.Reason != flow.ReasonIdle || s.Complete() || s.Elapsed < idle {
			t.Errorf("sample %s: reason %s, %d bytes, %s", s.Key, s.Reason, len(s.Data), s.Elapsed)
		}
		if age := time.Since(s.Start); age < 0 || age > time.Minute {
			t.Errorf("start %s is %s ago", s.Start, age)
		}
	}
	if n := k.sweep(); n != 0 {
		t.Errorf("second sweep found %d", n)
	}
}

func TestPacketTimes(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	k.run(ingress, up(f.SYN, 0))
	waitUntil(monotonic() + uint64(20*time.Millisecond))
	k.run(egress, down(f.SYN|f.ACK, 0))
	k.run(ingress, up(f.ACK, 1400))
	s := k.samples()[0]
	if s.Packets[0].Time != 0 || s.Packets[1].Time < 20*time.Millisecond || s.Packets[2].Time < s.Packets[1].Time {
		t.Errorf("times %v, %v, %v", s.Packets[0].Time, s.Packets[1].Time, s.Packets[2].Time)
	}
}

func TestRawIPGetsAnEthernetHeader(t *testing.T) {
	for _, e := range hooks {
		k := loadKernel(t, config{oneHook: true, rawIP: true})
		for _, p := range after(handshake(), up(f.ACK, 1400)) {
			k.run(e, p[14:])
		}
		v6 := f.IP(peer6, host6, f.UDP, f.Datagram(peer6, host6, f.Payload(1200)))
		k.run(e, v6)
		k.run(e, f.IP(host6, peer6, f.UDP, f.Datagram(host6, peer6, f.Payload(1))))
		got := k.samples()
		if len(got) != 2 {
			t.Fatalf("%s: %d samples", e, len(got))
		}
		var zero [12]byte
		for i, etherType := range []uint16{f.TypeIPv4, f.TypeIPv6} {
			for p := range got[i].Packets {
				frame := got[i].Frame(p)
				if !slices.Equal(frame[:12], zero[:]) || binary.BigEndian.Uint16(frame[12:]) != etherType {
					t.Errorf("%s: packet %d begins with % x", e, p, frame[:14])
				}
			}
		}
		if frame := got[1].Frame(0); !slices.Equal(frame[14:], v6[:1010]) || got[1].Packets[0].WireLen != uint32(14+len(v6)) {
			t.Errorf("%s: IPv6 frame is not whole", e)
		}
		want := assemble(after(handshake(), up(f.ACK, 1400)), false)[0]
		if diff := cmp.Diff(want.Offsets, look(got[0]).Offsets); diff != "" {
			t.Errorf("%s: offsets differ from Ethernet's:\n%s", e, diff)
		}
	}
}

// stream returns the packets of flow i: a handshake and enough payload.
func stream(i int) [][]byte {
	c := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 2}), 10000)
	seg := func(src, dst netip.AddrPort, flags byte, n int) []byte {
		return f.Ethernet(f.IP(src, dst, f.TCP, segment(src, dst, flags, nil, n)))
	}
	return [][]byte{seg(c, server, f.SYN, 0), seg(server, c, f.SYN|f.ACK, 0), seg(c, server, f.ACK, 1400)}
}

func TestRingFullPassesAndRecovers(t *testing.T) {
	k := loadKernel(t, config{oneHook: true, ring: uint32(unix.Getpagesize())}) // two captures
	for i := range 5 {
		for _, p := range stream(i) {
			if k.run(ingress, p) {
				t.Error("dropped")
			}
		}
	}
	c := k.counts()
	if c["handed_full"] != 5 || c["ring_full"] != 3 {
		t.Errorf("counters %v, want 5 handed over, 3 of them lost", c)
	}
	if n := len(k.samples()); n != 2 {
		t.Errorf("%d samples, want 2", n)
	}
	for _, p := range stream(9) {
		k.run(ingress, p)
	}
	if n := len(k.samples()); n != 1 {
		t.Errorf("%d samples after the reader came back, want 1", n)
	}
	if o, err := k.Occupancy(); err != nil || o.Collecting != 0 {
		t.Errorf("slots leak: %+v, %v", o, err)
	}
}

func TestSlotsFullPassesAndIsNotCapturedLate(t *testing.T) {
	k := loadKernel(t, config{oneHook: true, slots: 2})
	for i := range 3 {
		p := stream(i)
		k.run(ingress, p[0])
		k.run(ingress, p[1])
		k.run(ingress, p[2][:len(p[2])-1000]) // a packet of 454 bytes
	}
	if c := k.counts(); c["slots_full"] != 1 {
		t.Errorf("counters %v, want slots_full 1", c)
	}
	for i := range 3 { // the first two complete and give their slots back
		k.run(ingress, stream(i)[2])
	}
	if got := k.samples(); len(got) != 2 {
		t.Errorf("%d samples, want 2: the refused flow's first bytes are gone", len(got))
	}
	for _, p := range stream(3) {
		k.run(ingress, p)
	}
	if got := k.samples(); len(got) != 1 {
		t.Errorf("%d samples after slots came back, want 1", len(got))
	}
}

func TestBlockedFullIsAnErrorAndPasses(t *testing.T) {
	k := loadKernel(t, config{oneHook: true, blocked: 1})
	if err := k.Apply(tcpKey(), drop(time.Hour, "", "")); err != nil {
		t.Fatal(err)
	}
	other, _ := flow.NewKey(client, server, flow.UDP, 0, 0)
	err := k.Apply(other, drop(time.Hour, "", ""))
	if !errors.Is(err, ErrFull) || !errors.Is(err, unix.E2BIG) || !strings.HasSuffix(err.Error(), ": the table of blocked flows is full: it holds 1") {
		t.Errorf("second block: %v, want that the table is full", err)
	}
	// The one that is there is not refused.
	if err := k.Apply(tcpKey(), drop(time.Hour, "", "")); err != nil {
		t.Errorf("the first block once more: %v", err)
	}
	if k.run(ingress, udp(true, 10)) {
		t.Error("dropped without a block")
	}
}

func TestSYNFloodPushesOutHandshakesOnly(t *testing.T) {
	k := loadKernel(t, config{oneHook: true, handshakes: 1024})
	for _, p := range after(handshake(), up(f.ACK, 100)) { // collecting
		k.run(ingress, p)
	}
	frame := up(f.SYN, 0)
	for i := range 20000 {
		from(frame, 0x0b000000+i)
		k.run(ingress, frame)
	}
	k.run(ingress, upAt(102, 2, f.ACK, 1400))
	got := k.samples()
	if len(got) != 1 || got[0].Key != tcpKey() || !got[0].Complete() {
		t.Errorf("%d samples, want the collecting flow's", len(got))
	}
}

// from and to put another address into an IPv4 frame.
func from(frame []byte, addr int) { readdress(frame, 26, addr) }

func to(frame []byte, addr int) { readdress(frame, 30, addr) }

func readdress(frame []byte, off, addr int) {
	binary.BigEndian.PutUint32(frame[off:], uint32(addr))
	f.SetChecksum(frame[14:])
	f.SetTCPChecksum(frame[14:])
}

// A handshake outlives a flood that is a little smaller than its table, wherever the
// flood's flows fall, and one that is proven outlives all but a SYN that has its tag, too:
// one of 32768 that fall into its bucket, here one in 200 flows.
func TestFloodTakesOldestHandshakesFirst(t *testing.T) {
	const table = 4096
	packet := func(i int, flags byte, payload int) []byte {
		p := up(flags, payload)
		from(p, 0x0a000000+i)
		return p
	}
	answer := func(i int) []byte {
		p := down(f.SYN|f.ACK, 0)
		to(p, 0x0a000000+i)
		return p
	}
	for _, tt := range []struct {
		name   string
		proven bool
		flood  int
		least  int // of 100 flows
	}{
		{"half open, a flood of half the table", false, table / 2, 98},
		{"half open, a flood of ten tables: seen by the SYN+ACK", false, 10 * table, 95},
		{"proven, a flood of ten tables", true, 10 * table, 95},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := loadKernel(t, config{oneHook: true, handshakes: table, slots: 256})
			const flows = 100
			for i := range flows {
				k.run(ingress, packet(i, f.SYN, 0))
				if tt.proven {
					k.run(ingress, answer(i))
					k.run(ingress, packet(i, f.ACK, 0))
				}
			}
			flood := up(f.SYN, 0)
			for i := range tt.flood {
				from(flood, 0x0b000000+i)
				k.run(ingress, flood)
			}
			for i := range flows {
				if !tt.proven {
					k.run(ingress, answer(i))
				}
				k.run(ingress, packet(i, f.ACK, 1200))
			}
			got := len(k.samples())
			if got < tt.least {
				t.Errorf("%d of %d flows are identified, want %d at least", got, flows, tt.least)
			}
		})
	}
}

// Ever new UDP flows of which both sides speak take all slots but those that TCP flows
// have for themselves.
func TestUDPFloodLeavesSlotsToTCP(t *testing.T) {
	const slots = 1024 // so many that no two flows that share a quota by chance use it up
	k := loadKernel(t, config{oneHook: true, slots: slots})
	flood, answer := udp(true, 100), udp(false, 100)
	for i := range 2 * slots {
		from(flood, 0x0b000000+i)
		to(answer, 0x0b000000+i)
		k.run(ingress, flood)
		k.run(ingress, answer)
	}
	if c := k.counts()["slots_full"]; c != 2*slots-(slots-slots/4) {
		t.Errorf("%d flows were refused", c)
	}
	for round := range 2 { // what a TCP flow gives back is there for the next
		for i := range slots / 4 {
			tcp := func(p []byte) {
				from(p, 0x0c000000+i)
				k.run(ingress, p)
			}
			tcp(upAt(uint32(1000*round), 0, f.SYN, 0))
			answer := downAt(5, uint32(1000*round+1), f.SYN|f.ACK, 0)
			to(answer, 0x0c000000+i)
			k.run(ingress, answer)
			tcp(upAt(uint32(1000*round+1), 6, f.ACK, 100))
			tcp(upAt(uint32(1000*round+101), 6, f.ACK, 1200))
		}
		if got := len(k.samples()); got != slots/4 {
			t.Errorf("%d samples, want %d", got, slots/4)
		}
	}
	if c := k.counts()["slots_full"]; c != 2*slots-(slots-slots/4) {
		t.Errorf("TCP flows were refused, too: %d", c)
	}
	if o, err := k.Occupancy(); err != nil || o.Collecting != slots-slots/4 {
		t.Errorf("%+v, %v: want the flood's flows collecting", o, err)
	}
}

// Both hooks of one flow at the same time on two CPUs: every packet's bytes are
// its own, and the capture is handed over once.
func TestConcurrentHooks(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Fatal("needs two CPUs")
	}
	k := loadKernel(t, config{oneHook: true})
	const rounds = 300
	dgram := func(fromClient bool, i int) []byte {
		src, dst, fill := client, server, byte('c')
		if !fromClient {
			src, dst, fill = dst, src, 's'
		}
		body := slices.Repeat([]byte{fill}, 100)
		frame := f.Ethernet(f.IP(src, dst, f.UDP, f.Datagram(src, dst, body)))
		// The VLAN id makes each round another flow.
		return slices.Concat(frame[:12], []byte{0x81, 0, byte((i + 1) >> 8), byte(i + 1)}, frame[12:])
	}
	var wg sync.WaitGroup
	var arrived atomic.Int32 // at a start line, both sides together
	for _, side := range []struct {
		e          entry
		fromClient bool
	}{{ingress, true}, {egress, false}} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			runtime.LockOSThread()
			for i := range rounds {
				frame := dgram(side.fromClient, i)
				for n := range 8 {
					// The first two packets start at once on both sides, however
					// busy the CPUs are.
					if n < 2 {
						arrived.Add(1)
						for all := int32(2 * (2*i + n + 1)); arrived.Load() < all && !t.Failed(); {
							runtime.Gosched()
						}
					}
					_, err := k.coll.Programs[string(side.e)].Run(&ebpf.RunOptions{Data: frame})
					if err != nil {
						t.Error(err)
						return
					}
				}
			}
		}()
	}
	wg.Wait()
	got := k.samples()
	if len(got) != rounds {
		t.Errorf("%d samples of %d flows; %v", len(got), rounds, k.counts())
	}
	seen := make(map[flow.Key]bool)
	mixed := 0
	for _, s := range got {
		if seen[s.Key] {
			t.Errorf("%s was handed over twice", s.Key)
		}
		seen[s.Key] = true
		if !s.Complete() {
			t.Errorf("%s: %d bytes", s.Key, len(s.Data))
		}
		sides := 0
		for i, p := range s.Packets {
			want := byte('s')
			if p.FromInitiator == s.InitiatorIsLo { // the client is lower
				want = 'c'
			}
			if want == 'c' {
				sides |= 1
			} else {
				sides |= 2
			}
			frame := s.Frame(i)
			for j := 46; j < len(frame); j++ {
				if frame[j] != want {
					t.Fatalf("%s: packet %d has byte %q at %d, want %q", s.Key, i, frame[j], j, want)
				}
			}
		}
		if sides == 3 {
			mixed++
		}
	}
	if mixed == 0 {
		t.Error("no flow was seen by both hooks at once: nothing was tested")
	}
	if o, err := k.Occupancy(); err != nil || o.Collecting != 0 {
		t.Errorf("slots leak: %+v, %v", o, err)
	}
}

// A flow whose block was lifted passes for its life: nothing more of it is captured, and no verdict
// blocks it. Its key's next connection is another flow.
func TestLiftedFlowIsExempt(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	for _, e := range []entry{ingress, egress} {
		t.Run("TCP/"+string(e), func(t *testing.T) {
			k := k.emptied(t)
			// Handed over early: it would go on with payload.
			for _, p := range after(handshake(), up(f.ACK, 20), upAt(22, 2, f.FIN|f.ACK, 0)) {
				k.run(e, p)
			}
			s := k.samples()
			if len(s) != 1 || !s[0].Provisional {
				t.Fatalf("samples %+v", s)
			}
			if err := k.ApplyFlow(&s[0].Meta, drop(time.Hour, "obfs4", "r")); err != nil {
				t.Fatal(err)
			}
			if !k.run(e, upAt(22, 2, f.ACK, 500)) {
				t.Error("a packet of a blocked flow passes")
			}
			if _, err := k.Unblock(tcpKey()); err != nil {
				t.Fatal(err)
			}
			for _, p := range [][]byte{upAt(22, 2, f.ACK, 700), downAt(2, 722, f.ACK, 900), upAt(722, 902, f.ACK, 700)} {
				if k.run(e, p) {
					t.Error("a packet was dropped")
				}
			}
			k.sweep()
			if got := k.samples(); len(got) != 0 {
				t.Errorf("%d samples more", len(got))
			}
			// A verdict that was on its way, and one that passes.
			if err := k.ApplyFlow(&s[0].Meta, drop(time.Hour, "obfs4", "r")); !errors.Is(err, ErrExempt) {
				t.Errorf("blocked again: %v", err)
			}
			if err := k.Pass(s[0].Key); err != nil {
				t.Error(err)
			}
			if err := k.ApplyFlow(&s[0].Meta, drop(time.Hour, "obfs4", "r")); !errors.Is(err, ErrExempt) {
				t.Errorf("blocked after a verdict that passes: %v", err)
			}
			if k.run(e, upAt(1422, 902, f.ACK, 10)) {
				t.Error("a packet was dropped")
			}
			// Another connection of the key.
			for _, p := range after(handshakeAt(5000, 6000), upAt(5001, 6001, f.ACK, 1400)) {
				k.run(e, p)
			}
			if s = k.samples(); len(s) != 1 {
				t.Fatalf("%d samples of the next connection", len(s))
			}
			if err := k.ApplyFlow(&s[0].Meta, drop(time.Hour, "obfs4", "r")); err != nil {
				t.Errorf("the next connection: %v", err)
			}
		})
	}
	t.Run("forgotten", func(t *testing.T) {
		k := k.emptied(t)
		if err := k.Apply(tcpKey(), drop(time.Hour, "", flow.ByHand)); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Unblock(tcpKey()); err != nil {
			t.Fatal(err)
		}
		if err := k.ApplyFlow(&flow.Meta{Key: tcpKey()}, drop(time.Hour, "obfs4", "r")); !errors.Is(err, ErrExempt) {
			t.Errorf("blocked: %v", err)
		}
		// By hand it is, again.
		if err := k.Apply(tcpKey(), drop(time.Hour, "", flow.ByHand)); err != nil || !k.run(ingress, up(f.ACK, 1)) {
			t.Errorf("by hand: %v", err)
		}
	})
	t.Run("while it is captured", func(t *testing.T) {
		k := loadKernel(t, config{oneHook: true, idle: time.Nanosecond})
		for _, p := range after(handshake(), up(f.ACK, 300)) {
			k.run(ingress, p)
		}
		if err := k.Apply(tcpKey(), drop(time.Hour, "", flow.ByHand)); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Unblock(tcpKey()); err != nil {
			t.Fatal(err)
		}
		k.sweep()
		s := k.samples()
		if len(s) != 1 {
			t.Fatalf("%d samples", len(s))
		}
		if err := k.ApplyFlow(&s[0].Meta, drop(time.Hour, "obfs4", "r")); !errors.Is(err, ErrExempt) {
			t.Errorf("blocked: %v", err)
		}
		if k.run(ingress, upAt(302, 2, f.ACK, 900)) || len(k.samples()) != 0 {
			t.Error("dropped, or captured again")
		}
	})
	t.Run("UDP", func(t *testing.T) {
		k := k.emptied(t)
		for _, p := range [][]byte{udp(true, 500), udp(false, 500), udp(true, 500)} {
			k.run(ingress, p)
		}
		s := k.samples()
		if len(s) != 1 {
			t.Fatalf("%d samples", len(s))
		}
		if err := k.ApplyFlow(&s[0].Meta, drop(time.Hour, "obfs4", "r")); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Unblock(udpKey()); err != nil {
			t.Fatal(err)
		}
		if err := k.ApplyFlow(&s[0].Meta, drop(time.Hour, "obfs4", "r")); !errors.Is(err, ErrExempt) {
			t.Errorf("blocked again: %v", err)
		}
		if k.run(ingress, udp(true, 500)) || len(k.samples()) != 0 {
			t.Error("dropped, or captured")
		}
	})
}
