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
	"github.com/earlydrop/earlydrop/loader/flow/headers"
	"github.com/earlydrop/earlydrop/loader/internal/frames"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// describe writes a sample as one line: initiator's port, reason, bytes,
// elapsed milliseconds, and each packet as direction, bytes captured and time.
func describe(s *flow.Sample) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %v %d %dms:", s.Initiator().Port(), s.Reason, len(s.Data), s.Elapsed.Milliseconds())
	if s.Resumed {
		b.WriteString(" resumed")
	}
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

// run feeds packets and returns the samples as describe writes them, and the counters
// beyond OK and the samples' reasons. It does so again with no flow in memory, which
// must not change anything.
func run(t testing.TB, options Options, packets []at) (samples []string, counters string) {
	t.Helper()
	samples, counters = feed(t, options, packets, false)
	again, countersAgain := feed(t, options, packets, true)
	if diff := cmp.Diff(samples, again); diff != "" || counters != countersAgain {
		t.Errorf("with a temporary file: counters %s (-without +with):\n%s", countersAgain, diff)
	}
	return samples, counters
}

// feed is half of run: each flow leaves memory after each packet, or none does.
func feed(t testing.TB, options Options, packets []at, out bool) (samples []string, counters string) {
	t.Helper()
	a := New(options, func(f *Flow, s *flow.Sample) {
		samples = append(samples, describe(s))
		if f.Key != s.Key || f.InitiatorIsLo != s.InitiatorIsLo || !f.Start.Equal(s.Start) {
			t.Errorf("flow %+v with sample %+v", f, s.Meta)
		}
	}, nil)
	for _, p := range packets {
		a.PacketFrom(p.side, epoch.Add(time.Duration(p.ms)*time.Millisecond), p.frame, len(p.frame))
		for a.shrink(); out && a.list.n > 0; {
			a.leaveMemory(a.list.first(), false)
		}
	}
	if err := a.Flush(); err != nil {
		t.Error(err)
	}
	var parts []string
	for c, n := range a.Counters() {
		if n > 0 && c > int(headers.OK) && c != int(IPv4) && (c < int(Full) || c > int(End)) {
			parts = append(parts, fmt.Sprintf("%v %d", Counter(c), n))
		}
	}
	return samples, strings.Join(parts, ", ")
}

func TestAssembler(t *testing.T) {
	datagram := func(ms int, fromClient bool, n int) at { return at{ms: ms, frame: udp4(fromClient, n)} }
	repeat := func(n, ms int, frame []byte) (out []at) {
		for i := range n {
			out = append(out, at{ms: ms + i, frame: frame})
		}
		return out
	}
	padded := talk(t, ">S <SA >A >A1")
	padded[3].frame = append(padded[3].frame, 0, 0, 0, 0, 0)
	// behind so many bytes of destination options
	tcp6 := func(src, dst netip.AddrPort, flags headers.Flags, seq, ack uint32, options, n int) []byte {
		segment := frames.Numbered(tcpSeg(src, dst, flags, nil, payload(n)), seq, ack)
		if options == 0 {
			return eth(ip(src, dst, 6, segment))
		}
		return eth(ip(src, dst, extDestOpts, append(frames.Extension(6, options/8-1), segment...)))
	}
	other := func(n int) []byte { return eth(ip(server6, client6, 17, udpDgram(server6, client6, payload(n)))) }
	reply := eth(ip(client6, server6, 17, udpDgram(client6, server6, nil))) // to other

	tests := []struct {
		name     string
		options  Options
		packets  []at
		samples  []string
		counters string // beyond the samples' reasons and OK
	}{
		{name: "nothing"},
		{
			name: "one byte", packets: talk(t, ">S <SA >A >A1"),
			samples:  []string{"40000 end 217 3ms: >54@0 <54@1 >54@2 >55@3"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name: "Ethernet padding stays out", packets: padded,
			samples:  []string{"40000 end 217 3ms: >54@0 <54@1 >54@2 >55@3"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name: "exactly 1024 bytes across packets", packets: talk(t, ">S <SA >A >A100 <A600 >A"),
			samples:  []string{"40000 full 1024 5ms: >54@0 <54@1 >54@2 >154@3 <654@4 >54@5"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name: "1025 bytes", packets: talk(t, ">S <SA >A >A101 <A600 >A >A50"),
			samples:  []string{"40000 full 1024 5ms: >54@0 <54@1 >54@2 >155@3 <654@4 >53/54@5"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name: "one byte short of full", packets: talk(t, ">S <SA >A >A807"),
			samples:  []string{"40000 end 1023 3ms: >54@0 <54@1 >54@2 >861@3"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name: "a large packet is cut", packets: talk(t, ">S <SA >A <A1400"),
			samples:  []string{"40000 full 1024 3ms: >54@0 <54@1 >54@2 <862/1454@3"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name: "FIN hands over, that packet included", packets: talk(t, ">S <SA >A >A5 <FA6 >A7"),
			samples:  []string{"40000 closed 281 4ms: >54@0 <54@1 >54@2 >59@3 <60@4", "40000 end 342 5ms: >54@0 <54@1 >54@2 >59@3 <60@4 >61@5"},
			counters: "syns 1, tcp_opened 1, again 1",
		},
		{
			name: "RST hands over", packets: talk(t, ">S <SA >A >A5 <R"),
			samples:  []string{"40000 closed 275 4ms: >54@0 <54@1 >54@2 >59@3 <54@4"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name: "FIN with the first payload", packets: talk(t, ">S <SA >A >FA5"),
			samples:  []string{"40000 closed 221 3ms: >54@0 <54@1 >54@2 >59@3"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name: "a FIN that fills the capture", packets: talk(t, ">S <SA >A >FA900"),
			samples:  []string{"40000 full 1024 3ms: >54@0 <54@1 >54@2 >862/954@3"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name: "idle", packets: talk(t, ">S <SA >A >A5 @2002 <A6 @4002 <A7"),
			samples:  []string{"40000 idle 281 4002ms: >54@0 <54@1 >54@2 >59@3 <60@2002", "40000 end 342 4002ms: >54@0 <54@1 >54@2 >59@3 <60@2002 <61@4002"},
			counters: "syns 1, tcp_opened 1, again 1",
		},
		{
			name: "what is not captured does not keep a flow from being idle", packets: talk(t, ">S <SA >A >A5 @2002 >A5,seq-5,lost <A6"),
			samples:  []string{"40000 idle 221 2003ms: >54@0 <54@1 >54@2 >59@3", "40000 end 281 2003ms: >54@0 <54@1 >54@2 >59@3 <60@2003"},
			counters: "syns 1, tcp_opened 1, behind 1, again 1",
		},
		{
			name: "a handshake does not fall idle", packets: talk(t, ">S <SA >A @9000 >A1"),
			samples:  []string{"40000 end 217 9000ms: >54@0 <54@1 >54@2 >55@9000"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name: "captures fall idle in order of time", packets: []at{datagram(0, true, 1), {ms: 5, frame: other(2)}, {ms: 6, frame: reply}, datagram(9, false, 3), datagram(5000, true, 0)},
			samples:  []string{"443 idle 126 2001ms: >64@0 <62@1", "40000 idle 88 2009ms: >43@0 <45@9"},
			counters: "udp_waiting 2",
		},
		{
			name: "a header-only packet above 160 bytes is left out", packets: []at{
				{ms: 0, frame: tcp6(client6, server6, SYN, 1, 0, 0, 0)}, {ms: 1, frame: tcp6(server6, client6, SYN|ACK, 7, 2, 0, 0)},
				{ms: 2, frame: tcp6(client6, server6, ACK, 2, 8, 88, 0)}, {ms: 3, frame: tcp6(client6, server6, ACK, 2, 8, 80, 0)},
				{ms: 4, frame: tcp6(client6, server6, ACK, 2, 8, 88, 1)}},
			samples:  []string{"40000 end 465 4ms: >74@0 <74@1 >154@3 >163@4"},
			counters: "syns 1, tcp_opened 1, handshake_left_out 1",
		},
		{
			name: "handshake bytes are bounded", packets: talk(t, ">S <SA >A >A >A >A >A >A >A1"),
			samples:  []string{"40000 end 433 8ms: >54@0 <54@1 >54@2 >54@3 >54@4 >54@5 >54@6 >55@8"},
			counters: "syns 1, tcp_opened 1, handshake_left_out 1",
		},
		{
			name: "a smaller frame may still fit", packets: talk(t, ">S,options40 <SA,options40 >A,options40 >A,options40 <A,options40 >A >A1"),
			samples:  []string{"40000 end 431 6ms: >94@0 <94@1 >94@2 >94@3 >55@6"},
			counters: "syns 1, tcp_opened 1, handshake_left_out 2",
		},
		{
			name: "UDP, silent and back", packets: []at{datagram(0, true, 1), datagram(2500, false, 2), datagram(602500, false, 3), datagram(1202501, false, 4), datagram(1202502, true, 5)},
			samples:  []string{"40000 idle 87 4500ms: >43@0 <44@2500", "443 end 93 1ms: resumed >46@0 <47@1"},
			counters: "udp_waiting 2",
		},
		{
			name: "empty datagrams start nothing", packets: []at{datagram(0, true, 0), datagram(1, false, 5), datagram(2, true, 0)},
			samples:  []string{"443 end 89 1ms: >47@0 <42@1"},
			counters: "header_only 1, udp_waiting 1",
		},
		{
			name: "25 packets fill a capture", packets: append(append(repeat(1, 0, udp4(true, 1)), repeat(40, 1, udp4(true, 0))...), datagram(50, false, 0)),
			samples: []string{"40000 full 1024 50ms: >43@0" + func() (s string) {
				for i := range 23 {
					s += fmt.Sprintf(" >42@%d", i+1)
				}
				return s + " >15/42@24"
			}()},
			counters: "udp_waiting 1",
		},
		{
			name:     "time that goes backwards stands still",
			packets:  []at{datagram(100, true, 1), datagram(50, false, 2), datagram(101, true, 3), datagram(-9999, true, 4), datagram(103, true, 5)},
			samples:  []string{"40000 end 225 3ms: >43@0 <44@0 >45@1 >46@1 >47@3"},
			counters: "udp_waiting 1",
		},
		{
			name: "a flow falls idle though the clock stands still",
			packets: []at{{ms: 1e6, frame: other(2)}, {ms: 1e6, frame: reply},
				datagram(0, true, 1), datagram(1999, false, 2), datagram(3999, true, 3)},
			samples:  []string{"40000 idle 87 3999ms: >43@0 <44@1999", "443 end 126 0ms: >64@0 <62@0"},
			counters: "udp_waiting 2",
		},
		{
			name: "what is no flow is counted", packets: []at{{}, {frame: with(udp4(true, 1), 12, 8, 6)}, {frame: right(with(udp4(true, 1), 23, 1))},
				{frame: right(with(udp4(true, 1), 21, 1))}, {frame: eth(ip(client4, server4, 17, nil), etherVLAN, 1, etherVLAN, 1, etherVLAN, 1)}},
			counters: "not_ip 1, other_proto 1, malformed 1, unparsable 1, later_fragment 1",
		},
		{
			name: "a checksum that the network card fills in", packets: []at{{frame: with(udp4(true, 1), 24, 0, 0)}, {frame: with(udp4(true, 1), 24, 0, 1)}, datagram(0, false, 0)},
			samples:  []string{"40000 end 85 0ms: >43@0 <42@0"},
			counters: "malformed 1, bad_checksum 1, udp_waiting 1",
		},
		{
			name: "an empty checksum is not what is wrong", packets: []at{{frame: with(with(udp4(true, 1), 22, 0), 24, 0, 0)}},
			counters: "malformed 1",
		},
		{
			name: "a checksum that is missing on the wire", packets: []at{{frame: with(udp4(true, 1), 24, 0, 0)}},
			options:  Options{StrictChecksums: true},
			counters: "malformed 1, bad_checksum 1",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			samples, counters := run(t, tt.options, tt.packets)
			if diff := cmp.Diff(tt.samples, samples); diff != "" {
				t.Errorf("samples (-want +got):\n%s", diff)
			}
			if counters != tt.counters {
				t.Errorf("counters %q, want %q", counters, tt.counters)
			}
		})
	}
}

func TestCaptureIsTheFramesThemselves(t *testing.T) {
	var want, got []byte
	a := New(Options{}, func(_ *Flow, s *flow.Sample) { got = bytes.Clone(s.Data) }, nil)
	for i, p := range talk(t, ">S <SA >A33 <A444") {
		want = append(want, p.frame...)
		buf := append(slices.Clone(p.frame), 0xee, 0xee) // a trailer
		a.Packet(epoch.Add(time.Duration(i)), buf, len(buf))
		clear(buf) // the assembler must have copied what it keeps
	}
	a.Flush()
	if !bytes.Equal(got, want) {
		t.Errorf("capture\n got %x\nwant %x", got, want)
	}
}

func TestSnapLengthKeepsTheWireLength(t *testing.T) {
	frame := udp4(true, 500)
	a := New(Options{}, func(f *Flow, s *flow.Sample) {
		if got, want := describe(s), "40000 end 142 0ms: >100/542@0 <42@0"; got != want {
			t.Errorf("sample %q, want %q", got, want)
		}
		if f.Bytes != 542+42 {
			t.Errorf("flow of %d bytes, want %d", f.Bytes, 542+42)
		}
	}, nil)
	a.Packet(epoch, frame[:100], len(frame))
	reply := udp4(false, 0)
	a.Packet(epoch, reply, len(reply))
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
	packets := slices.Concat(
		talk(t, ">S >S >S,x7 <SA <SA >A >A1000 <A1000"),                                                           // full, then more
		[]at{{ms: 8, frame: udp4(true, 10)}, {ms: 9, frame: udp4(false, 10)}, {ms: 4000, frame: udp4(false, 10)}}, // idle, then more
		talk(t, "new @5000 >S <SA >A >A <A,seq-99999,lost >A10 >A10,seq-10,lost >A10"),                            // another connection
		[]at{{ms: 5010, frame: eth(ip(server6, client6, 6, tcpSeg(server6, client6, ACK, nil, nil)))}})            // mid-stream: no record
	for _, p := range packets {
		a.Packet(epoch.Add(time.Duration(p.ms)*time.Millisecond), p.frame, len(p.frame))
	}
	a.Flush()
	want := []string{
		// The SYN that won, both SYN+ACKs; a SYN that was not answered is no part of it.
		"1 full 6 packets 2324 bytes",
		"2 idle 3 packets 156 bytes",
		"3 end 7 packets 408 bytes",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
}

func TestFlowsAreNumberedByTheirFirstPacket(t *testing.T) {
	numbers := map[flow.Proto]uint64{}
	a := New(Options{}, func(f *Flow, _ *flow.Sample) { numbers[f.Key.Proto] = f.Seq }, nil)
	for i, p := range append(slices.Insert(talk(t, ">S <SA >A >A5"), 1, at{frame: udp4(true, 10)}), at{frame: udp4(false, 10)}) {
		a.Packet(epoch.Add(time.Duration(i)), p.frame, len(p.frame))
	}
	a.Flush()
	if diff := cmp.Diff(map[flow.Proto]uint64{flow.TCP: 0, flow.UDP: 1}, numbers); diff != "" {
		t.Errorf("numbers (-want +got):\n%s", diff)
	}
}

// checkSample states what holds for every sample.
func checkSample(t *testing.T, s *flow.Sample) {
	t.Helper()
	if n := len(s.Data); n == 0 || n > flow.CaptureBytes || s.Complete() != (s.Reason == flow.ReasonFull) && s.Revision == 0 && !s.Variant {
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
	p, _ := headers.Parse(s.Frame(0), int(s.Packets[0].WireLen))
	if alone := p.Flags&(SYN|ACK) == SYN|ACK; !s.MidStream && s.Packets[0].FromInitiator == alone {
		t.Fatal("the first packet is not the initiator's, nor a SYN+ACK")
	}
}

// assemble feeds packets and checks each sample and each flow's life. It returns
// what became of them: samples and totals in order of the flows' start, the order of their
// hand-over, and counters.
func assemble(t *testing.T, options Options, packets []at) (outcome []string) {
	t.Helper()
	samples, ends, last := map[uint64]string{}, map[uint64]string{}, uint64(0)
	var order []uint64 // of hand-over
	handed := 0
	a := New(options, func(f *Flow, s *flow.Sample) {
		checkSample(t, s)
		if s.Variant {
			if !strings.HasPrefix(samples[f.Seq], fmt.Sprintf("%d ", f.Seq)) {
				t.Fatalf("flow %d has a variant, but no capture", f.Seq)
			}
			return
		}
		if (samples[f.Seq] != "") != (s.Revision > 0) || s.Revision > 0 && !s.MidStream && !strings.HasSuffix(samples[f.Seq], fmt.Sprintf("; provisional, revision %d", s.Revision-1)) {
			t.Fatalf("flow %d is handed over twice, with revision %d of %q", f.Seq, s.Revision, samples[f.Seq])
		}
		handed++
		order = append(order, f.Seq)
		provisional := ""
		if s.Provisional {
			provisional = fmt.Sprintf("; provisional, revision %d", s.Revision)
		}
		defer func() { samples[f.Seq] += provisional }()
		samples[f.Seq] += fmt.Sprintf("%d %s %x", f.Seq, describe(s), s.Data)
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
	if counters.Samples() != uint64(handed) || counters.Packets() != uint64(len(packets)) {
		t.Fatalf("counters %v with %d samples of %d packets", counters, handed, len(packets))
	}
	return append(outcome, fmt.Sprint(order, counters))
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
			flags := []headers.Flags{SYN, SYN | ACK, ACK, ACK, ACK, ACK, FIN | ACK, RST}[rnd.IntN(8)]
			// So few numbers that they are right again and again.
			segment := frames.Numbered(tcpSeg(src, dst, flags, nil, body), rnd.Uint32N(3), rnd.Uint32N(3))
			frame := eth(ip(src, dst, 6, segment))
			if rnd.IntN(3) == 0 {
				frame = eth(ip(src, dst, 17, udpDgram(src, dst, body)))
			}
			packets = append(packets, at{ms: ms, frame: frame})
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

// What is said of an IPv4 checksum is a share of the packets that have one.
func TestPacketsWithAnIPv4HeaderAreCounted(t *testing.T) {
	v4, v6 := udp4(true, 1), eth(ip(client6, server6, 17, udpDgram(client6, server6, payload(1))))
	for _, tt := range []struct {
		name  string
		frame []byte
		want  uint64
	}{
		{"a datagram", v4, 1},
		{"wrong checksum", with(v4, 24, 0, 1), 1},
		{"TTL 0", right(with(v4, 22, 0)), 1},
		{"neither TCP nor UDP", right(with(v4, 23, 1)), 1},
		{"a later fragment", right(with(v4, 21, 1)), 1},
		{"cut in its header", v4[:30], 1},
		{"IPv6", v6, 0},
		{"no IP", with(v4, 12, 8, 6), 0},
		{"version 5", with(v4, 14, 0x55), 0},
		{"nothing", nil, 0},
	} {
		a := New(Options{}, func(*Flow, *flow.Sample) {}, nil)
		a.Packet(epoch, tt.frame, 60)
		if got := a.Counters()[IPv4]; got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
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
	f.Add(record(talk(f, ">S <SA >A >A500 <A600")...))
	f.Add(record(at{0, udp4(true, 5), 0}, at{3000, udp4(false, 5), 0}, at{62000, udp4(false, 5), 0}))
	f.Add(record(talk(f, ">S <SA >A >A5 >S3,lost >F3 new >S30,tfo <SA >A <SA,x5 >A >A")...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var packets []at
		ms := 0
		for len(b) >= 4 {
			ms += int(int16(binary.BigEndian.Uint16(b)))
			n := min(int(binary.BigEndian.Uint16(b[2:])), len(b)-4)
			packets = append(packets, at{ms: ms, frame: b[4 : 4+n]})
			b = b[4+n:]
		}
		assembleTwice(t, Options{MidStream: ms%2 == 1}, packets)
	})
}

func BenchmarkAssembler(b *testing.B) {
	var connections [1000][]at
	for i := range connections {
		connections[i] = talk(b, ">S <SA >A >A400 <A400 >A400 <A400 >A400 >A400 <FA")
		for _, p := range connections[i] {
			port := 34 // the client's, from the frame's beginning
			if bytes.Equal(p.frame[26:30], server4.Addr().AsSlice()) {
				port += 2
			}
			binary.BigEndian.PutUint16(p.frame[port:], uint16(1024+i))
		}
	}
	a := New(Options{}, func(*Flow, *flow.Sample) {}, nil)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		// Ten packets of each of 100 flows at a time, interleaved.
		frame := connections[n/1000%10*100+n%100][n/100%10].frame
		a.Packet(epoch.Add(time.Duration(n)*time.Microsecond), frame, len(frame))
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
}

// A sample is from the file that its flow begins in, wherever it ends, and also if it
// waited in the temporary file.
func TestSamplesNameTheFileThatTheirFlowBeginsIn(t *testing.T) {
	got := map[uint16]string{}
	a := New(Options{MaxOpen: 2, TempDir: t.TempDir()}, func(f *Flow, s *flow.Sample) {
		got[s.Initiator().Port()] = s.Source.File
	}, nil)
	now := epoch
	// datagrams has the flows of some of the client's ports send one each way.
	datagrams := func(ports ...uint16) {
		for _, answers := range []bool{false, true} {
			for _, port := range ports {
				src, dst := netip.AddrPortFrom(client4.Addr(), port), server4
				if answers {
					src, dst = dst, src
				}
				frame := eth(ip(src, dst, 17, udpDgram(src, dst, payload(100))))
				a.Packet(now, frame, len(frame))
				now = now.Add(time.Millisecond)
			}
		}
	}
	from := func(file string) { a.From(flow.Source{File: file}) }
	datagrams(1)
	from("a")
	datagrams(2, 3, 4, 5)
	from("no flow begins here")
	datagrams(3)
	from("b")
	datagrams(5, 6, 7)
	if err := a.Flush(); err != nil {
		t.Fatal(err)
	}
	want := map[uint16]string{1: "", 2: "a", 3: "a", 4: "a", 5: "a", 6: "b", 7: "b"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files by port (-want +got):\n%s", diff)
	}
	// What comes after the end is from nowhere that was named before it.
	clear(got)
	datagrams(8)
	if err := a.Flush(); err != nil || got[8] != "" {
		t.Errorf("after the end: %q, %v", got[8], err)
	}
}
