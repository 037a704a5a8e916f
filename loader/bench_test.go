// SPDX-License-Identifier: Apache-2.0

//go:build !emulated

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/internal/floor"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// The benchmarks below time programs under BPF_PROG_RUN, which repeats one packet
// inside the kernel. Floor and data path are timed in turn, several times, and the
// least of each is taken: what a busy machine adds is not the program's.

const (
	benchRepeat = 200_000
	benchRounds = 15
)

func timeProgram(b *testing.B, p *ebpf.Program, frame []byte, repeat int) time.Duration {
	b.Helper()
	_, d, err := p.Benchmark(frame, repeat, nil)
	if err != nil {
		b.Fatal(err)
	}
	return d
}

// compare reports what a packet costs in the data path, on the floor, and the ratio.
func compare(b *testing.B, ours, least *ebpf.Program, frame []byte) {
	b.Helper()
	var best, bestFloor time.Duration
	for range benchRounds {
		if d := timeProgram(b, least, frame, benchRepeat); bestFloor == 0 || d < bestFloor {
			bestFloor = d
		}
		if d := timeProgram(b, ours, frame, benchRepeat); best == 0 || d < best {
			best = d
		}
	}
	for range b.N { // the figures above are what counts
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(best.Nanoseconds()), "ns/packet")
	b.ReportMetric(float64(bestFloor.Nanoseconds()), "ns/packet-floor")
	b.ReportMetric(float64(best)/float64(bestFloor), "x-floor")
}

func loadFloorPrograms(b *testing.B, frame []byte, flows int) *ebpf.Collection {
	b.Helper()
	spec, err := floor.Spec()
	if err != nil {
		b.Fatal(err)
	}
	spec.Maps["floor_flows"].MaxEntries = uint32(max(1024, flows))
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		b.Fatal(loadError(err))
	}
	b.Cleanup(coll.Close)
	key := make([]byte, 40)
	copy(key[12:16], frame[26:30])
	copy(key[28:32], frame[30:34])
	copy(key[32:36], frame[34:38])
	key[36] = frame[23]
	m := coll.Maps["floor_flows"]
	for i := 1; i < flows; i++ {
		other := append([]byte(nil), key...)
		binary.BigEndian.PutUint32(other[0:], uint32(i))
		if err := m.Update(other, uint64(1), ebpf.UpdateAny); err != nil {
			b.Fatal(err)
		}
	}
	if err := m.Update(key, uint64(1), ebpf.UpdateAny); err != nil {
		b.Fatal(err)
	}
	return coll
}

func benchmarkDecided(b *testing.B, flows int, blocked bool) {
	frame := up(f.ACK, 0)
	k := loadKernel(b, config{flows: uint32(max(1024, flows)), blocked: uint32(max(1024, flows))})
	fl := loadFloorPrograms(b, frame, flows)
	for i := 1; i < flows; i++ {
		key := toKernelKey(tcpKey())
		binary.BigEndian.PutUint32(key.LoAddr[0:], uint32(i))
		var err error
		if blocked {
			err = k.blocked.Update(&key, &datapathBlock{ExpiresNs: 1 << 62}, ebpf.UpdateAny)
		} else {
			err = k.flows.Update(&key, &datapathFlow{Verdict: datapathVerdictVERDICT_PASS}, ebpf.UpdateAny)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	least := fl.Programs["floor_pass"]
	if blocked {
		least = fl.Programs["floor_drop"]
		if err := k.Apply(tcpKey(), drop(time.Hour, "", "")); err != nil {
			b.Fatal(err)
		}
	} else {
		key := toKernelKey(tcpKey())
		if err := k.flows.Update(&key, &datapathFlow{Verdict: datapathVerdictVERDICT_PASS}, ebpf.UpdateAny); err != nil {
			b.Fatal(err)
		}
	}
	if dropped := k.run(ingress, frame); dropped != blocked {
		b.Fatalf("dropped: %v", dropped)
	}
	compare(b, k.coll.Programs[string(ingress)], least, frame)
}

func BenchmarkDecidedFlow(b *testing.B) {
	for name, flows := range map[string]int{"1-flow": 1, "1000000-flows": 1_000_000} {
		b.Run("passed/"+name, func(b *testing.B) { benchmarkDecided(b, flows, false) })
		b.Run("dropped/"+name, func(b *testing.B) { benchmarkDecided(b, flows, true) })
	}
}

// BenchmarkDecidedUDP times datagrams of a flow that is decided.
func BenchmarkDecidedUDP(b *testing.B) {
	frame := udp(true, 12) // as long as the headers of a segment
	k := loadKernel(b, config{})
	fl := loadFloorPrograms(b, frame, 1)
	key := toKernelKey(udpKey())
	if err := k.flows.Update(&key, &datapathFlow{Verdict: datapathVerdictVERDICT_PASS, LastNs: 1 << 62}, ebpf.UpdateAny); err != nil {
		b.Fatal(err)
	}
	k.run(ingress, frame)
	if c := k.counts(); c["udp_waiting"]+c["udp_opened"] != 0 {
		b.Fatalf("counters %v", c)
	}
	compare(b, k.coll.Programs[string(ingress)], fl.Programs["floor_pass"], frame)
}

// BenchmarkMidStream times packets of a TCP flow whose beginning was not seen, in front of
// flows that are known.
func BenchmarkMidStream(b *testing.B) {
	frame := up(f.ACK, 0)
	k := loadKernel(b, config{})
	fl := loadFloorPrograms(b, frame, 1)
	k.run(ingress, frame)
	if c := k.counts(); c["mid_stream"] != 1 {
		b.Fatalf("counters %v", c)
	}
	compare(b, k.coll.Programs[string(ingress)], fl.Programs["floor_pass"], frame)
}

// loadBench loads the data path with its benchmark programs.
func loadBench(b testing.TB, sizes Sizes) *ebpf.Collection {
	b.Helper()
	spec, err := floor.Spec()
	if err != nil {
		b.Fatal(err)
	}
	sizes.apply(spec)
	if err := setSizes(spec); err != nil {
		b.Fatal(err)
	}
	// The benchmark programs are of one hook.
	if err := spec.Variables[datapathVarCfgOneHook].Set(true); err != nil {
		b.Fatal(err)
	}
	spec.Maps["floor_flows"].MaxEntries = sizesOf(spec).Flows
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		b.Fatal(loadError(err))
	}
	if err := freeSlots(coll.Programs[datapathProgEdFreeSlots]); err != nil {
		b.Fatal(err)
	}
	return coll
}

// The benchmarks' programs have the data path in them, and a frame of their own in front.
func TestBenchmarkProgramsLoad(t *testing.T) {
	loadBench(t, Sizes{Flows: 1024, Blocked: 16, Handshakes: 1024, Collecting: 16, RingBytes: 64 << 10}).Close()
}

// timeFresh times packets each of which opens a flow of its own. What is timed writes
// to the tables, so each round has new ones.
func timeFresh(b *testing.B, program string, frame []byte, repeat int, sizes Sizes, prepare ...func(*ebpf.Collection)) time.Duration {
	b.Helper()
	var best time.Duration
	for range 5 {
		coll := loadBench(b, sizes)
		for _, f := range prepare {
			f(coll)
		}
		d := timeProgram(b, coll.Programs[program], frame, repeat)
		if best == 0 || d < best {
			best = d
		}
		counters, err := readCounters(coll.Maps[datapathMapCounters])
		coll.Close()
		if err != nil {
			b.Fatal(err)
		}
		c := counters.Values()
		if opened := c["syns"] + c["udp_waiting"]; program != "floor_insert" &&
			(opened != uint64(repeat) || c["ring_full"]+c["slots_full"]+c["collecting_full"] != 0) {
			b.Fatalf("not what was to be timed: %v", c)
		}
	}
	return best
}

func reportPerPacket(b *testing.B, d time.Duration) {
	for range b.N { // the figures are what counts
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(d.Nanoseconds()), "ns/packet")
}

// BenchmarkSYN times SYNs each of which opens a flow: with tables that stay in the
// CPU's caches, as with few clients, and with tables of the default size, as in a
// flood, where memory is most of the cost. The floor is a program that adds each new
// flow to an LRU hash of the same size.
func BenchmarkSYN(b *testing.B) {
	for name, sizes := range map[string]Sizes{
		"in-cache": {Flows: 1024, Handshakes: 1024, Collecting: 1024},
		"flood":    {Collecting: 1024},
	} {
		b.Run(name, func(b *testing.B) {
			const repeat = 100_000
			d := timeFresh(b, "bench_packet", up(f.SYN, 0), repeat, sizes)
			least := timeFresh(b, "floor_insert", up(f.SYN, 0), repeat, sizes)
			reportPerPacket(b, d)
			b.ReportMetric(float64(least.Nanoseconds()), "ns/packet-floor")
			b.ReportMetric(float64(d)/float64(least), "x-floor")
		})
	}
}

// BenchmarkSYNWithPairs times the same where pairs are treated, none of which is the SYN's, and
// SYNs that are dropped.
func BenchmarkSYNWithPairs(b *testing.B) {
	sizes := Sizes{Flows: 1024, Handshakes: 1024, Collecting: 1024}
	for _, n := range []int{0, 1, 16384} {
		b.Run(fmt.Sprintf("passes/%d", n), func(b *testing.B) {
			reportPerPacket(b, timeFresh(b, "bench_packet", up(f.SYN, 0), 100_000, sizes, func(coll *ebpf.Collection) { addPairs(b, coll.Maps, n) }))
		})
	}
	b.Run("dropped", func(b *testing.B) {
		k := loadKernel(b, config{pairs: 16384})
		addPairs(b, k.coll.Maps, 16383)
		k.treatPair(testPair, drops)
		frame := up(f.SYN, 0)
		if !k.run(ingress, frame) {
			b.Fatal("it passes")
		}
		var best time.Duration
		for range benchRounds {
			if d := timeProgram(b, k.coll.Programs[string(ingress)], frame, benchRepeat); best == 0 || d < best {
				best = d
			}
		}
		reportPerPacket(b, best)
	})
}

// addPairs adds pairs that no frame is of.
func addPairs(b *testing.B, maps map[string]*ebpf.Map, n int) {
	b.Helper()
	if n == 0 {
		return
	}
	t, err := newTables("bench", maps)
	if err != nil {
		b.Fatal(err)
	}
	for i := range n {
		p := flow.Pair{Initiator: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 32), Server: server}
		if err := t.TreatPair(p, drops); err != nil {
			b.Fatal(err)
		}
	}
	if err := t.filter.close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkExempt times the look for exempt networks, of which none has an end of the flow, by
// what it adds to a datagram whose capture begins to wait.
func BenchmarkExempt(b *testing.B) {
	for _, n := range []int{0, 1000, MaxExempt} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			reportPerPacket(b, timeFresh(b, "bench_packet", udp(true, 100), 6000, Sizes{}, func(coll *ebpf.Collection) {
				t, err := newTables("bench", coll.Maps)
				if err != nil {
					b.Fatal(err)
				}
				networks := make([]netip.Prefix, n)
				for i := range networks { // of /20 to /32, each of another /20
					var addr [4]byte
					binary.BigEndian.PutUint32(addr[:], 0x10000000+uint32(i)<<12)
					networks[i], _ = netip.AddrFrom4(addr).Prefix(20 + i%13)
				}
				if err := errors.Join(t.SetExempt(networks), t.filter.close()); err != nil {
					b.Fatal(err)
				}
			}))
		})
	}
}

// BenchmarkCapture times packets of 1 KB that are captured: one that joins the capture
// of its flow, and the first one of a UDP flow, which waits for an answer.
func BenchmarkCapture(b *testing.B) {
	frame := udp(true, 958) // 1000 bytes
	for _, tt := range []struct {
		name  string
		opens [][]byte
		frame []byte
	}{
		{"joins", [][]byte{udp(true, 1), udp(false, 1)}, frame},
		{"joins-TCP", append(handshake(), up(f.ACK, 1)), upAt(3, 2, f.ACK, 946)}, // its checksum is looked at
	} {
		b.Run(tt.name, func(b *testing.B) {
			coll := loadBench(b, Sizes{Collecting: 1024})
			defer coll.Close()
			for _, opens := range tt.opens {
				if _, _, err := coll.Programs[string(ingress)].Test(opens); err != nil {
					b.Fatal(err)
				}
			}
			var ref datapathSlotRef
			var key datapathFlowKey
			entries := coll.Maps[datapathMapCollecting].Iterate()
			if !entries.Next(&key, &ref) {
				b.Fatalf("the flow is not collecting: %v", entries.Err())
			}
			for name, v := range map[string]uint32{"bench_slot": ref.Slot, "bench_seq": 3} {
				if err := coll.Variables[name].Set(v); err != nil {
					b.Fatal(err)
				}
			}
			var best time.Duration
			for range benchRounds {
				if d := timeProgram(b, coll.Programs["bench_join"], tt.frame, benchRepeat); best == 0 || d < best {
					best = d
				}
			}
			counters, err := readCounters(coll.Maps[datapathMapCounters])
			if err != nil {
				b.Fatal(err)
			}
			c := counters.Values()
			if c["packets_ingress"] < benchRounds*benchRepeat || c["udp_opened"]+c["tcp_opened"] != 1 || c["handed_full"] > 1 || c["behind"]+c["out_of_place"]+c["decoys"] > 0 {
				b.Fatalf("not what was to be timed: %v", c)
			}
			reportPerPacket(b, best)
		})
	}
	b.Run("waits", func(b *testing.B) {
		reportPerPacket(b, timeFresh(b, "bench_packet", frame, 6000, Sizes{}))
	})
}

// BenchmarkHandover times a datagram and its answer that open a flow, fill its capture and
// hand it over, and what the hand-over adds to two that stop short of it.
func BenchmarkHandover(b *testing.B) {
	const repeat = 6000
	sizes := Sizes{RingBytes: 1 << 24}
	all := timeFresh(b, "bench_answer", udp(true, 512-42), repeat, sizes)
	opening := timeFresh(b, "bench_answer", udp(true, 511-42), repeat, sizes)
	reportPerPacket(b, all)
	b.ReportMetric(float64((all - opening).Nanoseconds()), "ns/hand-over")
}

// From a packet table to the reader's Sample: what user space adds per capture.
func BenchmarkDecodeSample(b *testing.B) {
	k := loadKernel(b, config{oneHook: true})
	for _, p := range after(handshake(), up(f.ACK, 1400)) {
		k.run(ingress, p)
	}
	k.ring.SetDeadline(time.Now())
	rec, err := k.ring.Read()
	if err != nil {
		b.Fatal(err)
	}
	s := new(flow.Sample)
	b.ReportAllocs()
	for b.Loop() {
		if err := decodeSample(rec.RawSample, s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBlock(b *testing.B) {
	k := loadKernel(b, config{})
	key := tcpKey()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		key.Lo = netip.AddrPortFrom(key.Lo.Addr(), uint16(i%1000))
		if err := k.Apply(key, drop(time.Hour, "shadowsocks", "tunnels")); err != nil {
			b.Fatal(err)
		}
	}
}
