// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/flow"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// at is a frame and its time after epoch in milliseconds.
type at struct {
	ms    int
	frame []byte
}

// describe writes a sample as one line: initiator's port, reason, bytes,
// elapsed milliseconds, and each packet as direction, bytes captured and time.
func describe(s *flow.Sample) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %v %d %dms:", s.Initiator().Port(), s.Reason, len(s.Data), s.Elapsed.Milliseconds())
	for i, p := range s.Packets {
		arrow := '<'
		if p.FromInitiator {
			arrow = '>'
		}
		fmt.Fprintf(&b, " %c%d", arrow, len(s.Frame(i)))
		if int(p.WireLen) != len(s.Frame(i)) {
			fmt.Fprintf(&b, "/%d", p.WireLen)
		}
		fmt.Fprintf(&b, "@%d", p.Time.Milliseconds())
	}
	return b.String()
}

// open4 is the handshake of client4 with server4 in the first 2 ms.
func open4() []at {
	return []at{{0, tcp4(true, SYN, 0)}, {1, tcp4(false, SYN|ACK, 0)}, {2, tcp4(true, ACK, 0)}}
}

func TestAssembler(t *testing.T) {
	repeat := func(n, ms int, frame []byte) (out []at) {
		for i := range n {
			out = append(out, at{ms + i, frame})
		}
		return out
	}
	padded := append(tcp4(true, ACK, 1), 0, 0, 0, 0, 0)
	options := func(flags TCPFlags, n int) []byte {
		return eth(ip(client4, server4, 6, tcpSeg(client4, server4, flags, make([]byte, n), nil)))
	}
	ihl15 := eth(with(ip(client4, server4, 6, append(make([]byte, 40), tcpSeg(client4, server4, ACK, make([]byte, 40), nil)...)), 0, 0x4f))
	tcp6 := func(n int, seg []byte) []byte { // behind n bytes of destination options
		if n > 0 {
			return eth(ip(client6, server6, extDestOpts, append(with(make([]byte, n), 0, 6, byte(n/8-1)), seg...)))
		}
		return eth(ip(client6, server6, 6, seg))
	}
	syn6 := tcp6(0, tcpSeg(client6, server6, SYN, nil, nil))
	big6 := tcp6(88, tcpSeg(client6, server6, ACK, nil, nil)) // 162 bytes
	data6 := tcp6(0, tcpSeg(client6, server6, ACK, nil, payload(1)))

	tests := []struct {
		name     string
		options  Options
		packets  []at
		samples  []string
		counters map[Counter]uint64 // beyond the samples' reasons and OK
	}{
		{name: "nothing"},
		{
			name: "SYN without payload", packets: repeat(1, 0, tcp4(true, SYN, 0)),
			counters: map[Counter]uint64{HeaderOnly: 1},
		},
		{
			name: "one byte", packets: append(open4(), at{3, tcp4(true, ACK, 1)}),
			samples: []string{"40000 end 217 3ms: >54@0 <54@1 >54@2 >55@3"},
		},
		{
			name: "Ethernet padding stays out", packets: append(open4(), at{3, padded}),
			samples: []string{"40000 end 217 3ms: >54@0 <54@1 >54@2 >55@3"},
		},
		{
			name: "exactly 1024 bytes across packets",
			packets: append(open4(), at{3, tcp4(true, ACK, 100)}, at{4, tcp4(false, ACK, 600)},
				at{5, tcp4(true, ACK, 0)}),
			samples: []string{"40000 full 1024 5ms: >54@0 <54@1 >54@2 >154@3 <654@4 >54@5"},
		},
		{
			name: "1025 bytes",
			packets: append(open4(), at{3, tcp4(true, ACK, 101)}, at{4, tcp4(false, ACK, 600)},
				at{5, tcp4(true, ACK, 0)}, at{6, tcp4(true, ACK, 50)}),
			samples: []string{"40000 full 1024 5ms: >54@0 <54@1 >54@2 >155@3 <654@4 >53/54@5"},
		},
		{
			name: "one byte short of full", packets: append(open4(), at{3, tcp4(true, ACK, 807)}),
			samples: []string{"40000 end 1023 3ms: >54@0 <54@1 >54@2 >861@3"},
		},
		{
			name: "a large packet is cut", packets: append(open4(), at{3, tcp4(false, ACK, 1400)}),
			samples: []string{"40000 full 1024 3ms: >54@0 <54@1 >54@2 <862/1454@3"},
		},
		{
			name:    "a retransmission counts like any packet",
			packets: append(open4(), at{3, tcp4(true, ACK, 10)}, at{4, tcp4(true, ACK, 10)}),
			samples: []string{"40000 end 290 4ms: >54@0 <54@1 >54@2 >64@3 >64@4"},
		},
		{
			name: "data in the SYN", packets: []at{{0, tcp4(true, SYN, 20)}, {1, tcp4(false, SYN|ACK, 0)}},
			samples: []string{"40000 end 128 1ms: >74@0 <54@1"},
		},
		{
			name:    "a SYN of the same direction restarts a handshake",
			packets: append([]at{{0, tcp4(true, SYN, 0)}, {1, tcp4(false, SYN|ACK, 0)}, {1000, tcp4(true, SYN, 0)}}, at{1001, tcp4(true, ACK, 1)}),
			samples: []string{"40000 end 109 1ms: >54@0 >55@1"},
		},
		{
			name: "simultaneous open",
			packets: []at{{0, tcp4(true, SYN, 0)}, {1, tcp4(false, SYN, 0)}, {2, tcp4(true, SYN|ACK, 0)},
				{3, tcp4(false, ACK, 4)}},
			samples: []string{"40000 end 220 3ms: >54@0 <54@1 >54@2 <58@3"},
		},
		{
			name:     "a SYN throws away a capture in progress",
			packets:  append(open4(), at{3, tcp4(true, ACK, 5)}, at{4, tcp4(false, SYN, 0)}, at{5, tcp4(true, ACK, 7)}),
			samples:  []string{"443 end 115 1ms: >54@0 <61@1"},
			counters: map[Counter]uint64{Restarted: 1},
		},
		{
			name: "a SYN on a decided flow begins another",
			packets: append(append(open4(), at{3, tcp4(true, ACK, 1000)}),
				at{10, tcp4(true, SYN, 0)}, at{11, tcp4(true, ACK, 1)}),
			samples: []string{"40000 full 1024 3ms: >54@0 <54@1 >54@2 >862/1054@3", "40000 end 109 1ms: >54@0 >55@1"},
		},
		{
			name: "RST first", packets: []at{{0, tcp4(false, RST, 0)}, {1, tcp4(true, ACK, 10)}},
			counters: map[Counter]uint64{MidStream: 1},
		},
		{
			name: "RST on a handshake", packets: []at{{0, tcp4(true, SYN, 0)}, {1, tcp4(false, RST|ACK, 0)}},
			counters: map[Counter]uint64{HeaderOnly: 1},
		},
		{
			name: "SYN with FIN begins a flow", packets: []at{{0, tcp4(true, SYN|FIN, 0)}, {1, tcp4(true, ACK, 9)}},
			samples: []string{"40000 end 117 1ms: >54@0 >63@1"},
		},
		{
			name: "SYN with RST of the responder ends a handshake", packets: []at{{0, tcp4(true, SYN, 0)},
				{1, tcp4(false, SYN|RST, 0)}},
			counters: map[Counter]uint64{HeaderOnly: 1},
		},
		{
			name: "after RST on a handshake nothing is known", packets: []at{{0, tcp4(true, SYN, 0)},
				{1, tcp4(false, RST|ACK, 0)}, {2, tcp4(true, ACK, 9)}},
			counters: map[Counter]uint64{HeaderOnly: 1, MidStream: 1},
		},
		{
			name: "FIN hands over, that packet included", packets: append(open4(), at{3, tcp4(true, ACK, 5)},
				at{4, tcp4(false, FIN|ACK, 6)}, at{5, tcp4(true, ACK, 7)}),
			samples: []string{"40000 closed 281 4ms: >54@0 <54@1 >54@2 >59@3 <60@4"},
		},
		{
			name: "RST hands over", packets: append(open4(), at{3, tcp4(true, ACK, 5)}, at{4, tcp4(false, RST, 0)}),
			samples: []string{"40000 closed 275 4ms: >54@0 <54@1 >54@2 >59@3 <54@4"},
		},
		{
			name: "FIN with the first payload", packets: append(open4(), at{3, tcp4(true, FIN|ACK, 5)}),
			samples: []string{"40000 closed 221 3ms: >54@0 <54@1 >54@2 >59@3"},
		},
		{
			name: "a FIN that fills the capture", packets: append(open4(), at{3, tcp4(true, FIN|ACK, 900)}),
			samples: []string{"40000 full 1024 3ms: >54@0 <54@1 >54@2 >862/954@3"},
		},
		{
			name: "mid-stream", packets: []at{{0, tcp4(true, ACK, 10)}, {1, tcp4(false, ACK, 2000)}, {2, tcp4(false, SYN|ACK, 0)}},
			counters: map[Counter]uint64{MidStream: 1},
		},
		{
			name:    "mid-stream flows are captured from their next payload byte on",
			options: Options{MidStream: true},
			packets: []at{{0, tcp4(true, ACK, 0)}, {1, tcp4(true, FIN|ACK, 0)}, {2, tcp4(false, ACK, 10)}, {3, tcp4(true, ACK, 0)}, {4, tcp4(true, FIN|ACK, 1)},
				{5, tcp4(true, ACK, 2000)}},
			samples:  []string{"443 closed 173 2ms: >64@0 <54@1 <55@2"},
			counters: map[Counter]uint64{MidStream: 1},
		},
		{
			name: "a SYN on a mid-stream flow begins one", packets: append([]at{{0, tcp4(true, ACK, 10)}},
				at{1, tcp4(true, SYN, 0)}, at{2, tcp4(true, ACK, 3)}),
			samples:  []string{"40000 end 111 1ms: >54@0 >57@1"},
			counters: map[Counter]uint64{MidStream: 1},
		},
		{
			name: "idle",
			packets: append(open4(), at{3, tcp4(true, ACK, 5)}, at{2002, tcp4(false, ACK, 6)},
				at{4002, tcp4(false, ACK, 7)}),
			samples: []string{"40000 idle 281 4002ms: >54@0 <54@1 >54@2 >59@3 <60@2002"},
		},
		{
			name: "a handshake does not fall idle", packets: append(open4(), at{9000, tcp4(true, ACK, 1)}),
			samples: []string{"40000 end 217 9000ms: >54@0 <54@1 >54@2 >55@9000"},
		},
		{
			name: "captures fall idle in order of time", packets: []at{{0, udp4(true, 1)}, {5, eth(ip(server6, client6, 17, udpDgram(server6, client6, payload(2))))},
				{9, udp4(false, 3)}, {5000, tcp4(true, SYN, 0)}},
			samples:  []string{"443 idle 64 2000ms: >64@0", "40000 idle 88 2009ms: >43@0 <45@9"},
			counters: map[Counter]uint64{HeaderOnly: 1},
		},
		{
			name:     "a header-only packet above 160 bytes is left out",
			packets:  []at{{0, syn6}, {1, big6}, {2, data6}},
			samples:  []string{"40000 end 149 2ms: >74@0 >75@2"},
			counters: map[Counter]uint64{LeftOut: 1},
		},
		{
			name: "handshake bytes are bounded", packets: append(append([]at{{0, tcp4(true, SYN, 0)}},
				repeat(7, 1, tcp4(true, ACK, 0))...), at{9, tcp4(true, ACK, 1)}),
			samples:  []string{"40000 end 433 9ms: >54@0 >54@1 >54@2 >54@3 >54@4 >54@5 >54@6 >55@9"},
			counters: map[Counter]uint64{LeftOut: 1},
		},
		{
			name: "a smaller frame may still fit",
			packets: []at{{0, options(SYN, 40)}, {1, options(ACK, 40)}, {2, options(ACK, 40)}, {3, ihl15},
				{4, tcp4(true, ACK, 0)}, {5, tcp4(true, ACK, 1)}},
			samples:  []string{"40000 end 391 5ms: >94@0 >94@1 >94@2 >54@4 >55@5"},
			counters: map[Counter]uint64{LeftOut: 1},
		},
		{
			name: "UDP, idle and back", packets: []at{{0, udp4(true, 1)}, {2500, udp4(false, 2)}, {62500, udp4(false, 3)}, {122501, udp4(false, 4)}},
			samples: []string{"40000 idle 43 2000ms: >43@0", "443 end 46 0ms: >46@0"},
		},
		{
			name: "empty datagrams start nothing", packets: []at{{0, udp4(true, 0)}, {1, udp4(false, 5)}, {2, udp4(true, 0)}},
			samples:  []string{"443 end 89 1ms: >47@0 <42@1"},
			counters: map[Counter]uint64{HeaderOnly: 1},
		},
		{
			name: "25 packets fill a capture", packets: append(repeat(1, 0, udp4(true, 1)), repeat(40, 1, udp4(true, 0))...),
			samples: []string{"40000 full 1024 24ms: >43@0" + func() (s string) {
				for i := range 23 {
					s += fmt.Sprintf(" >42@%d", i+1)
				}
				return s + " >15/42@24"
			}()},
		},
		{
			name:    "time that goes backwards stands still",
			packets: []at{{100, udp4(true, 1)}, {50, udp4(false, 2)}, {101, udp4(true, 3)}, {-9999, udp4(true, 4)}, {103, udp4(true, 5)}},
			samples: []string{"40000 end 225 3ms: >43@0 <44@0 >45@1 >46@1 >47@3"},
		},
		{
			name: "a flow falls idle though the clock stands still",
			packets: []at{{1e6, eth(ip(server6, client6, 17, udpDgram(server6, client6, payload(2))))},
				{0, udp4(true, 1)}, {1999, udp4(false, 2)}, {3999, udp4(true, 3)}},
			samples: []string{"40000 idle 87 3999ms: >43@0 <44@1999", "443 end 64 0ms: >64@0"},
		},
		{
			name: "what is no flow is counted", packets: []at{{0, nil}, {1, with(udp4(true, 1), 12, 8, 6)}, {2, with(udp4(true, 1), 23, 1)},
				{3, with(udp4(true, 1), 21, 1)}, {4, eth(ip(client4, server4, 17, nil), etherVLAN, 1, etherVLAN, 1, etherVLAN, 1)}},
			counters: map[Counter]uint64{Counter(Malformed): 1, Counter(NotIP): 1, Counter(OtherProto): 1,
				Counter(LaterFragment): 1, Counter(Unparsable): 1},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var samples []string
			a := New(tt.options, func(f *Flow, s *flow.Sample) {
				samples = append(samples, describe(s))
				if f.Key != s.Key || f.InitiatorIsLo != s.InitiatorIsLo || !f.Start.Equal(s.Start) {
					t.Errorf("flow %+v with sample %+v", f, s.Meta)
				}
			}, nil)
			for _, p := range tt.packets {
				a.Packet(epoch.Add(time.Duration(p.ms)*time.Millisecond), p.frame, len(p.frame))
			}
			a.Flush()
			if diff := cmp.Diff(tt.samples, samples); diff != "" {
				t.Errorf("samples (-want +got):\n%s", diff)
			}
			got := map[Counter]uint64{}
			counters := a.Counters()
			for c := Counter(OK) + 1; c < NumCounters; c++ {
				if n := counters[c]; n > 0 && (c < Full || c > End) {
					got[c] = n
				}
			}
			if len(tt.counters) == 0 && len(got) == 0 {
				return
			}
			if diff := cmp.Diff(tt.counters, got); diff != "" {
				t.Errorf("counters (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCaptureIsTheFramesThemselves(t *testing.T) {
	frames := [][]byte{tcp4(true, SYN, 0), tcp4(false, SYN|ACK, 0), tcp4(true, ACK, 33), tcp4(false, ACK, 444)}
	var got []byte
	a := New(Options{}, func(_ *Flow, s *flow.Sample) { got = bytes.Clone(s.Data) }, nil)
	for i, frame := range frames {
		buf := append(slices.Clone(frame), 0xee, 0xee) // a trailer
		a.Packet(epoch.Add(time.Duration(i)), buf, len(buf))
		clear(buf) // the assembler must have copied what it keeps
	}
	a.Flush()
	if want := slices.Concat(frames...); !bytes.Equal(got, want) {
		t.Errorf("capture\n got %x\nwant %x", got, want)
	}
}

func TestSnapLengthKeepsTheWireLength(t *testing.T) {
	frame := udp4(true, 500)
	a := New(Options{}, func(f *Flow, s *flow.Sample) {
		if got, want := describe(s), "40000 end 100 0ms: >100/542@0"; got != want {
			t.Errorf("sample %q, want %q", got, want)
		}
		if f.Bytes != 542 {
			t.Errorf("flow of %d bytes, want 542", f.Bytes)
		}
	}, nil)
	a.Packet(epoch, frame[:100], len(frame))
	a.Flush()
	if a.Counters().Samples() != 1 {
		t.Error("no sample")
	}
}

func TestTotalsCoverTheWholeFlow(t *testing.T) {
	var got []string
	reasons := map[uint64]flow.Reason{}
	a := New(Options{}, func(f *Flow, s *flow.Sample) { reasons[f.Seq] = s.Reason }, func(f Totals) {
		got = append(got, fmt.Sprintf("%d %v %d packets %d bytes", f.Seq, reasons[f.Seq], f.Packets, f.Bytes))
	})
	packets := append(open4(), at{3, tcp4(true, ACK, 1000)}, at{4, tcp4(false, ACK, 1000)}, // full, then more
		at{5, udp4(true, 10)}, at{4000, udp4(false, 10)}, // idle, then more
		at{5000, tcp4(true, SYN, 0)}, at{5001, tcp4(true, ACK, 10)}, // a new life
		at{5002, eth(ip(server6, client6, 6, tcpSeg(server6, client6, ACK, nil, nil)))}) // mid-stream: no record
	for _, p := range packets {
		a.Packet(epoch.Add(time.Duration(p.ms)*time.Millisecond), p.frame, len(p.frame))
	}
	a.Flush()
	want := []string{
		"0 full 5 packets 2270 bytes",
		"1 idle 2 packets 104 bytes",
		"2 end 2 packets 118 bytes",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
}

// checkSample states what holds for every sample.
func checkSample(t *testing.T, s *flow.Sample) {
	t.Helper()
	if n := len(s.Data); n == 0 || n > flow.CaptureBytes || s.Complete() != (s.Reason == flow.ReasonFull) {
		t.Fatalf("capture of %d bytes handed over as %v", n, s.Reason)
	}
	if n := len(s.Packets); n == 0 || n > flow.MaxPackets {
		t.Fatalf("%d packets", n)
	}
	sum, last := 0, time.Duration(0)
	for i, p := range s.Packets {
		if int(p.Offset) != sum {
			t.Fatalf("packet %d at offset %d, want %d", i, p.Offset, sum)
		}
		n := len(s.Frame(i))
		sum += n
		if n == 0 || n > int(p.WireLen) {
			t.Fatalf("packet %d has %d bytes, %d on the wire", i, n, p.WireLen)
		}
		if p.Time < last || p.Time > s.Elapsed {
			t.Fatalf("packet %d at %v after %v, elapsed %v", i, p.Time, last, s.Elapsed)
		}
		last = p.Time
	}
	if sum != len(s.Data) {
		t.Fatalf("packets have %d bytes, capture %d", sum, len(s.Data))
	}
	if !s.Packets[0].FromInitiator {
		t.Fatal("the first packet is not the initiator's")
	}
}

// assemble feeds packets and checks each sample and each flow's life. It returns
// what became of them: samples and totals in order of the flows' start, and counters.
func assemble(t *testing.T, options Options, packets []at) (outcome []string) {
	t.Helper()
	samples, ends, last := map[uint64]string{}, map[uint64]string{}, uint64(0)
	a := New(options, func(f *Flow, s *flow.Sample) {
		checkSample(t, s)
		if samples[f.Seq] != "" {
			t.Fatalf("flow %d is handed over twice", f.Seq)
		}
		samples[f.Seq] = fmt.Sprintf("%d %s %x", f.Seq, describe(s), s.Data)
	}, func(f Totals) {
		if samples[f.Seq] == "" || ends[f.Seq] != "" || f.Seq < last {
			t.Fatalf("flow %d ends, after flow %d; its sample is %q", f.Seq, last, samples[f.Seq])
		}
		last = f.Seq
		ends[f.Seq] = fmt.Sprintf("%d packets, %d bytes", f.Packets, f.Bytes)
		outcome = append(outcome, samples[f.Seq], ends[f.Seq])
	})
	for _, p := range packets {
		a.Packet(epoch.Add(time.Duration(p.ms)*time.Millisecond), p.frame, len(p.frame)+p.ms%3)
	}
	if err := a.Flush(); err != nil {
		t.Fatal(err)
	}
	if len(ends) != len(samples) {
		t.Fatalf("%d of %d flows ended", len(ends), len(samples))
	}
	counters := a.Counters()
	if counters.Samples() != uint64(len(samples)) || counters.Packets() != uint64(len(packets)) {
		t.Fatalf("counters %v with %d samples of %d packets", counters, len(samples), len(packets))
	}
	return append(outcome, fmt.Sprint(counters))
}

// assembleTwice does so again with as few flows in memory as possible, which must
// not change anything.
func assembleTwice(t *testing.T, options Options, packets []at) (outcome []string) {
	t.Helper()
	outcome = assemble(t, options, packets)
	options.MaxOpen = 2
	if diff := cmp.Diff(outcome, assemble(t, options, packets)); diff != "" {
		t.Fatalf("with a temporary file (-without +with):\n%s", diff)
	}
	return outcome
}

func TestRandomTrafficKeepsTheRules(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var packets []at
		ms := 0
		for range 300 {
			ms += []int{0, 1, 50, 700, 2100, -30, -4000}[rnd.IntN(7)]
			src := netip.AddrPortFrom(client4.Addr(), client4.Port()+uint16(rnd.IntN(12)))
			dst := server4
			if rnd.IntN(2) == 0 {
				src, dst = dst, src
			}
			body := payload([]int{0, 0, 1, 40, 300, 1400}[rnd.IntN(6)])
			flags := []TCPFlags{SYN, SYN | ACK, ACK, ACK, ACK, ACK, FIN | ACK, RST}[rnd.IntN(8)]
			frame := eth(ip(src, dst, 6, tcpSeg(src, dst, flags, nil, body)))
			if rnd.IntN(3) == 0 {
				frame = eth(ip(src, dst, 17, udpDgram(src, dst, body)))
			}
			packets = append(packets, at{ms, frame})
		}
		options := Options{MidStream: seed%2 == 1}
		first := assembleTwice(t, options, packets)
		if len(first) < 20 {
			t.Fatalf("seed %d: %d samples", seed, len(first)/2)
		}
		if diff := cmp.Diff(first, assemble(t, options, packets)); diff != "" {
			t.Fatalf("seed %d: two runs differ:\n%s", seed, diff)
		}
	}
}

func FuzzAssembler(f *testing.F) {
	record := func(packets ...at) (b []byte) {
		for _, p := range packets {
			b = binary.BigEndian.AppendUint16(b, uint16(p.ms))
			b = binary.BigEndian.AppendUint16(b, uint16(len(p.frame)))
			b = append(b, p.frame...)
		}
		return b
	}
	f.Add(record(append(open4(), at{1, tcp4(true, ACK, 500)}, at{1, tcp4(false, ACK, 600)})...))
	f.Add(record(at{0, udp4(true, 5)}, at{3000, udp4(false, 5)}, at{62000, udp4(false, 5)}))
	f.Add(record(append(open4(), at{1, tcp4(true, ACK, 5)}, at{1, tcp4(true, SYN, 3)}, at{1, tcp4(true, FIN, 3)})...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var packets []at
		ms := 0
		for len(b) >= 4 {
			ms += int(int16(binary.BigEndian.Uint16(b)))
			n := min(int(binary.BigEndian.Uint16(b[2:])), len(b)-4)
			packets = append(packets, at{ms, b[4 : 4+n]})
			b = b[4+n:]
		}
		assembleTwice(t, Options{MidStream: ms%2 == 1}, packets)
	})
}

func BenchmarkAssembler(b *testing.B) {
	var frames [][]byte
	for i := range 1000 {
		src := netip.AddrPortFrom(client4.Addr(), uint16(1024+i))
		for j, flags := range []TCPFlags{SYN, SYN | ACK, ACK, ACK, ACK, ACK, ACK, ACK, ACK, FIN | ACK} {
			body := payload(0)
			if j > 2 && j < 9 {
				body = payload(400)
			}
			s, d := src, server4
			if j%2 == 1 {
				s, d = d, s
			}
			frames = append(frames, eth(ip(s, d, 6, tcpSeg(s, d, flags, nil, body))))
		}
	}
	a := New(Options{}, func(*Flow, *flow.Sample) {}, nil)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		// Ten packets of each of 100 flows at a time, interleaved.
		i := n % len(frames)
		group, rest := i/1000, i%1000
		frame := frames[group*1000+rest%100*10+rest/100]
		a.Packet(epoch.Add(time.Duration(n)*time.Microsecond), frame, len(frame))
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
}
