// SPDX-License-Identifier: Apache-2.0

package signals

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

var (
	client4 = netip.MustParseAddrPort("10.0.0.2:40000")
	server4 = netip.MustParseAddrPort("192.0.2.1:443")
	client6 = netip.MustParseAddrPort("[2001:db8::2]:40000")
	server6 = netip.MustParseAddrPort("[2001:db8:1::1]:443")
)

// packet is one frame of a sample.
type packet struct {
	up    bool
	frame []byte
}

func setChecksum(src, dst netip.AddrPort, proto uint32, segment []byte, at int) {
	total := ^fold(sum(src.Addr().AsSlice()) + sum(dst.Addr().AsSlice()) + proto + uint32(len(segment)) + sum(segment))
	segment[at], segment[at+1] = byte(total>>8), byte(total)
}

type endpoints struct{ client, server netip.AddrPort }

// seg is a TCP segment with a right checksum.
func (e endpoints) seg(up bool, flags byte, seq, ack uint32, payload int) packet {
	src, dst := e.client, e.server
	if !up {
		src, dst = dst, src
	}
	s := f.Numbered(f.Segment(src, dst, flags, nil, f.Payload(payload)), seq, ack)
	setChecksum(src, dst, f.TCP, s, 16)
	return packet{up, f.Ethernet(f.IP(src, dst, f.TCP, s))}
}

func (e endpoints) dgram(up bool, payload int) packet {
	src, dst := e.client, e.server
	if !up {
		src, dst = dst, src
	}
	d := f.Datagram(src, dst, f.Payload(payload))
	setChecksum(src, dst, f.UDP, d, 6)
	return packet{up, f.Ethernet(f.IP(src, dst, f.UDP, d))}
}

func (e endpoints) handshake() []packet {
	return []packet{e.seg(true, f.SYN, 0, 0, 0), e.seg(false, f.SYN|f.ACK, 100, 1, 0), e.seg(true, f.ACK, 1, 101, 0)}
}

// sample puts packets into a sample as the data path does: the last one may be cut.
func sample(packets []packet) *flow.Sample {
	s := &flow.Sample{}
	s.Reset()
	for _, p := range packets {
		if len(s.Data) == flow.CaptureBytes {
			break
		}
		s.Packets = append(s.Packets, flow.Packet{Offset: uint16(len(s.Data)), WireLen: uint32(len(p.frame)), FromInitiator: p.up})
		s.Data = append(s.Data, p.frame[:min(len(p.frame), flow.CaptureBytes-len(s.Data))]...)
	}
	return s
}

// change returns the packet with another byte at off, counted from the IP header, and the
// IPv4 header's checksum set anew.
func change(p packet, off int, b byte) packet {
	p.frame = bytes.Clone(p.frame)
	p.frame[14+off] = b
	if p.frame[14]>>4 == 4 {
		f.SetChecksum(p.frame[14:])
	}
	return p
}

func TestNote(t *testing.T) {
	for name, e := range map[string]endpoints{"IPv4": {client4, server4}, "IPv6": {client6, server6}} {
		ttl, checksum, udpChecksum := 8, 20+16, 20+6
		if name == "IPv6" {
			ttl, checksum, udpChecksum = 7, 40+16, 40+6
		}
		after := func(p ...packet) []packet { return append(e.handshake(), p...) }
		data := func(seq uint32, n int) packet { return e.seg(true, f.ACK, seq, 101, n) }
		wrong := change(data(1, 300), checksum, 0x55)
		for _, tt := range []struct {
			name    string
			packets []packet
			want    flow.Signals
			left    int // packets that stay
		}{
			{"ordinary", after(data(1, 300), e.seg(false, f.ACK, 101, 301, 400)), 0, 5},
			{"two tiny ones", after(data(1, 1), data(2, 1), data(3, 200)), 0, 6},
			{"three tiny ones", after(data(1, 1), data(2, 15), data(17, 1)), flow.SignalTiny, 6},
			{"tiny ones of the responder", after(data(1, 200), e.seg(false, f.ACK, 101, 201, 2), e.seg(false, f.ACK, 103, 201, 2), e.seg(false, f.ACK, 105, 201, 2)), flow.SignalTiny, 7},
			{"tiny ones behind a greater one", after(data(1, 16), data(17, 1), data(18, 1), data(19, 1)), 0, 7},
			{"another time to live", after(data(1, 100), change(data(101, 100), ttl, 5)), flow.SignalTTL, 5},
			{"nearly the same time to live", after(change(data(1, 100), ttl, 64+2), change(data(101, 100), ttl, 64-2)), 0, 5},
			{"the other side's time to live", after(data(1, 100), change(e.seg(false, f.ACK, 101, 101, 10), ttl, 64)), 0, 5},
			{"a hole", after(data(1, 100), data(102, 100)), flow.SignalGap, 5},
			{"a hole in front", after(data(2, 100)), flow.SignalGap, 4},
			{"bytes of the other side that were not seen, acknowledged", after(data(1, 100), e.seg(true, f.ACK, 101, 102, 100)), flow.SignalGap, 5},
			{"by a header-only packet", after(data(1, 100), e.seg(false, f.ACK, 101, 102, 0)), flow.SignalGap, 5},
			{"bytes that come later than their acknowledgement", after(data(1, 100), e.seg(true, f.ACK, 101, 201, 100), e.seg(false, f.ACK, 101, 101, 100)), 0, 6},
			{"a FIN, acknowledged", after(data(1, 100), e.seg(false, f.FIN|f.ACK, 101, 101, 50), e.seg(true, f.ACK, 101, 152, 0)), 0, 6},
			{"more than a FIN, acknowledged", after(data(1, 100), e.seg(false, f.FIN|f.ACK, 101, 101, 50), e.seg(true, f.ACK, 101, 153, 0)), flow.SignalGap, 6},
			{"data in the SYN, acknowledged, of which no more than headers are there", []packet{e.seg(true, f.SYN, 0, 0, 0), e.seg(false, f.SYN|f.ACK, 100, 301, 0), e.seg(false, f.ACK, 101, 301, 400)}, flow.SignalGap, 3},
			{"data in the SYN, acknowledged in part", []packet{e.seg(true, f.SYN, 0, 0, 0), e.seg(false, f.SYN|f.ACK, 100, 101, 0), e.seg(true, f.ACK, 101, 101, 100)}, flow.SignalGap, 3},
			{"from the middle, acknowledging what was not seen", []packet{data(5000, 100), e.seg(false, f.ACK, 70, 5400, 100)}, 0, 2},
			{"out of order", after(data(101, 100), data(1, 100)), 0, 5},
			{"overlapping", after(data(1, 100), data(50, 100), data(150, 10)), 0, 6},
			{"around the end of the numbers", []packet{e.seg(true, f.SYN, 0xfffffffe, 0, 0), e.seg(true, f.ACK, 0xffffffff, 1, 100), e.seg(true, f.ACK, 99, 1, 100)}, 0, 3},
			{"a hole around the end of the numbers", []packet{e.seg(true, f.SYN, 0xfffffffe, 0, 0), e.seg(true, f.ACK, 0xffffffff, 1, 100), e.seg(true, f.ACK, 100, 1, 100)}, flow.SignalGap, 3},
			{"data in the SYN", []packet{e.seg(true, f.SYN, 0, 0, 100), e.seg(false, f.SYN|f.ACK, 100, 101, 0), e.seg(true, f.ACK, 101, 101, 100)}, 0, 3},
			{"from the middle", []packet{data(5000, 100), data(5100, 100)}, 0, 2},
			{"a long one, cut by the capture, with a wrong checksum", after(change(data(1, 1400), checksum, 0x55)), 0, 4},
			{"datagrams", []packet{e.dgram(true, 100), e.dgram(false, 100)}, 0, 2},
			{"a decoy datagram", []packet{change(e.dgram(true, 100), udpChecksum, 0x55), e.dgram(true, 100)}, flow.SignalDecoy, 1},
			{"wrong datagrams and nothing else", []packet{change(e.dgram(true, 100), udpChecksum, 0x55), e.dgram(false, 100)}, 0, 2},
			{"several", after(data(1, 1), data(2, 1), data(3, 1), change(data(9, 100), ttl, 5)), flow.SignalTiny | flow.SignalTTL | flow.SignalGap, 7},
			{"a wrong checksum of TCP, which is others' work", after(wrong, data(301, 300)), 0, 5},
		} {
			s := sample(tt.packets)
			Note(s, Live)
			if s.Signals != tt.want || len(s.Packets) != tt.left {
				t.Errorf("%s, %s: %v, %d packets stay, want %v, %d", name, tt.name, s.Signals.Names(), len(s.Packets), tt.want.Names(), tt.left)
			}
		}
	}
}

// Wherever the sample's end cuts the last frame, that is no signal.
func TestCutFramesAreNoSignal(t *testing.T) {
	for name, e := range map[string]endpoints{"IPv4": {client4, server4}, "IPv6": {client6, server6}} {
		whole := sample(append(e.handshake(), e.seg(true, f.ACK, 1, 101, 200), e.seg(false, f.ACK, 101, 201, 100), e.seg(true, f.ACK, 201, 201, 100)))
		last := whole.Packets[len(whole.Packets)-1]
		for end := int(last.Offset) + 1; end <= len(whole.Data); end++ {
			cut := &flow.Sample{Packets: slices.Clone(whole.Packets), Data: whole.Data[:end:end]}
			if Note(cut, Live); cut.Signals != 0 || len(cut.Data) != end {
				t.Errorf("%s, cut after %d bytes of the last frame: %v, %d bytes stay of %d", name, end-int(last.Offset), cut.Signals.Names(), len(cut.Data), end)
			}
		}
	}
}

// However the segments of the two sides came, what is judged is as if none had been late.
func TestPayloadIsInOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for name, e := range map[string]endpoints{"IPv4": {client4, server4}, "IPv6": {client6, server6}} {
		for round := range 500 {
			// Numbers may wrap.
			x, y := random.Uint32(), random.Uint32()
			if round%2 == 0 {
				x = 0xffffffff - uint32(random.IntN(200))
			}
			right := []packet{e.seg(true, f.SYN, x-1, 0, 0), e.seg(false, f.SYN|f.ACK, y-1, x, 0), e.seg(true, f.ACK, x, y, 0)}
			var places [2][]int
			for len(right) < 8 {
				up := random.IntN(2) > 0
				at := &y
				if up {
					at = &x
				}
				size := random.IntN(40)
				p := e.seg(up, f.ACK, *at, 0, size)
				*at += uint32(size)
				if size > 0 {
					places[side01(up)] = append(places[side01(up)], len(right))
				}
				right = append(right, p)
			}
			came := slices.Clone(right)
			for _, of := range places {
				random.Shuffle(len(of), func(i, j int) { came[of[i]], came[of[j]] = came[of[j]], came[of[i]] })
			}
			got, want := sample(came), sample(right)
			for i := range got.Packets {
				got.Packets[i].Time = time.Duration(i)
				want.Packets[i].Time = time.Duration(i)
			}
			if len(want.Data) == flow.CaptureBytes {
				t.Fatal("the packets do not fit into a sample")
			}
			Note(got, Live)
			if !slices.Equal(got.Packets, want.Packets) || !bytes.Equal(got.Data, want.Data) {
				t.Fatalf("%s, round %d: got %v, want %v", name, round, got.Packets, want.Packets)
			}
		}
	}
}

func side01(up bool) int { return which(flow.Packet{FromInitiator: up}) }

// Segments of one number stay as they came: nobody can tell which one was first.
func TestPayloadOfOneNumberStays(t *testing.T) {
	e := endpoints{client4, server4}
	for _, n := range []int{1, 100, 300} {
		s := sample(append(e.handshake(), e.seg(true, f.ACK, 1, 101, 100), e.seg(true, f.ACK, 1, 101, n), e.seg(false, f.ACK, 101, 101, 200)))
		want := bytes.Clone(s.Data)
		if Note(s, Live); !bytes.Equal(s.Data, want) {
			t.Errorf("100 bytes and %d of the same number changed places", n)
		}
	}
}

// A segment that the capture's end cut goes to its place with what there is of it.
func TestCutSegmentsGoToTheirPlace(t *testing.T) {
	e := endpoints{client4, server4}
	first, second := e.seg(true, f.ACK, 1, 101, 1400), e.seg(true, f.ACK, 1401, 101, 300)
	s := sample(append(e.handshake(), second, first))
	held := len(s.Frame(4))
	Note(s, Live)
	if len(s.Packets) != 5 || len(s.Data) != flow.CaptureBytes || int(s.Packets[3].WireLen) != len(first.frame) ||
		!bytes.Equal(s.Frame(3), first.frame[:held]) || !bytes.Equal(s.Frame(4), second.frame) {
		t.Errorf("%v, %d bytes", s.Packets, len(s.Data))
	}
}

// What stays is what was there, byte for byte.
func TestDecoysAreTakenOut(t *testing.T) {
	e := endpoints{client4, server4}
	decoy := change(e.dgram(true, 80), 26, 0x99)
	right := []packet{e.dgram(true, 90), e.dgram(false, 70), e.dgram(true, 11)}
	want := sample(right)
	for i := range len(right) + 1 {
		for _, n := range []int{1, 2} {
			got := sample(slices.Insert(slices.Clone(right), i, slices.Repeat([]packet{decoy}, n)...))
			Note(got, Live)
			if !slices.Equal(got.Packets, want.Packets) || !bytes.Equal(got.Data, want.Data) {
				t.Errorf("%d decoys in front of packet %d: left %v", n, i, got.Packets)
			}
		}
	}
}

// Checksums that a network card is yet to fill in are no decoys.
func TestOffloadedChecksums(t *testing.T) {
	e := endpoints{client4, server4}
	pseudo := func(n int) uint16 {
		return fold(sum(e.client.Addr().AsSlice()) + sum(e.server.Addr().AsSlice()) + uint32(f.TCP) + uint32(n))
	}
	p := e.seg(true, f.ACK, 1, 101, 90)
	for _, tt := range []struct {
		name   string
		stored uint16
		from   Origin
		decoy  bool
	}{
		{"pseudo-header, live", pseudo(20 + 90), Live, false},
		{"pseudo-header, file", pseudo(20 + 90), File, false},
		{"pseudo-header without a length, live", pseudo(0), Live, true},
		{"pseudo-header without a length, file", pseudo(0), File, false},
		{"nothing, live", 0, Live, true},
		{"nothing, file", 0, File, false},
		{"anything, file", 0x1234, File, true},
	} {
		frame := bytes.Clone(p.frame)
		frame[14+36], frame[14+37] = byte(tt.stored>>8), byte(tt.stored)
		var h headers.Headers
		h.Walk(frame, len(frame))
		if got := WrongChecksum(&h, frame, tt.from); got != tt.decoy {
			t.Errorf("%s: wrong: %v", tt.name, got)
		}
	}
	var h headers.Headers
	for what, frame := range map[string][]byte{
		"cut":       p.frame[:100],
		"long":      e.seg(true, f.ACK, 1, 101, ChecksumBytes-19).frame,
		"extension": f.Ethernet(f.IP(client6, server6, headers.DestOptions, slices.Concat(f.Extension(f.TCP, 0), p.frame[34:]))),
	} {
		frame = bytes.Clone(frame)
		frame[len(frame)-1] ^= 1
		h.Walk(frame, max(len(frame), len(p.frame)))
		if WrongChecksum(&h, frame, Live) {
			t.Errorf("%s: wrong", what)
		}
	}
	long := e.seg(true, f.ACK, 1, 101, ChecksumBytes-20).frame
	long[len(long)-1] ^= 1
	if h.Walk(long, len(long)); !WrongChecksum(&h, long, Live) {
		t.Error("one of the greatest length is not wrong")
	}
}

func TestFragmentsAreASignal(t *testing.T) {
	e := endpoints{client4, server4}
	p := change(e.seg(true, f.ACK, 1, 101, 90), 6, 0x20)
	p.frame[14+36] ^= 1 // the checksum is of the whole packet
	s := sample(append(e.handshake(), p))
	Note(s, Live)
	if s.Signals != flow.SignalFragmented || len(s.Packets) != 4 {
		t.Errorf("%v, %d packets", s.Signals.Names(), len(s.Packets))
	}
}

// Whatever a sample holds, what stays of it is in order, and a second look changes nothing.
func TestNoteTakesWhatever(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		s := &flow.Sample{}
		s.Reset()
		for len(s.Packets) < flow.MaxPackets && len(s.Data) < flow.CaptureBytes-1 && random.IntN(20) > 0 {
			n := 1 + random.IntN(min(200, flow.CaptureBytes-len(s.Data)-1))
			s.Packets = append(s.Packets, flow.Packet{Offset: uint16(len(s.Data)), WireLen: uint32(n + random.IntN(3)*random.IntN(2000)), FromInitiator: random.IntN(2) > 0})
			e := endpoints{client4, server4}
			if random.IntN(2) > 0 {
				e = endpoints{client6, server6}
			}
			frame := e.seg(random.IntN(2) > 0, byte(random.IntN(64)), random.Uint32(), random.Uint32(), random.IntN(150)).frame
			for range random.IntN(3) {
				frame[random.IntN(len(frame))] ^= byte(1 << random.IntN(8))
			}
			frame = append(frame, make([]byte, 200)...)
			s.Data = append(s.Data, frame[:n]...)
		}
		Note(s, Origin(random.IntN(3)))
		first, data := slices.Clone(s.Packets), bytes.Clone(s.Data)
		end := 0
		for i := range s.Packets {
			if int(s.Packets[i].Offset) != end || len(s.Frame(i)) == 0 {
				t.Fatalf("packet %d begins at %d, want %d", i, s.Packets[i].Offset, end)
			}
			end += len(s.Frame(i))
		}
		if end != len(s.Data) {
			t.Fatalf("packets end at %d of %d", end, len(s.Data))
		}
		Note(s, Live)
		if !slices.Equal(first, s.Packets) && len(s.Packets) > len(first) || !bytes.Equal(data, s.Data) && len(s.Data) > len(data) {
			t.Fatalf("a second look made more of it")
		}
	}
}

// It runs for each flow, and the collector must not.
func TestNoteDoesNotAllocate(t *testing.T) {
	e := endpoints{client4, server4}
	packets := append(e.handshake(), e.seg(true, f.ACK, 301, 101, 100), e.seg(true, f.ACK, 1, 101, 300), change(e.seg(false, f.ACK, 101, 301, 200), 36, 0x99))
	whole, s := sample(packets), sample(packets)
	if n := testing.AllocsPerRun(100, func() {
		s.Packets, s.Data = append(s.Packets[:0], whole.Packets...), append(s.Data[:0], whole.Data...)
		Note(s, Live)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkNote(b *testing.B) {
	e := endpoints{client4, server4}
	for name, second := range map[string]packet{"in-order": e.seg(true, f.ACK, 301, 101, 100), "late": e.seg(true, f.ACK, 0xffffff00, 101, 100)} {
		whole := sample(append(e.handshake(), e.seg(true, f.ACK, 1, 101, 300), second, e.seg(false, f.ACK, 101, 301, 400)))
		b.Run(name, func(b *testing.B) {
			s := sample(nil)
			b.ReportAllocs()
			for b.Loop() {
				s.Packets, s.Data = append(s.Packets[:0], whole.Packets...), append(s.Data[:0], whole.Data...)
				Note(s, Live)
			}
		})
	}
}

// What is missing in front of a side's bytes makes them the middle of a stream.
func TestMissingStart(t *testing.T) {
	e := endpoints{client4, server4}
	data := func(seq uint32, n int) packet { return e.seg(true, f.ACK, seq, 101, n) }
	for _, tt := range []struct {
		name    string
		packets []packet
		want    bool
	}{
		{"whole", append(e.handshake(), data(1, 100), data(101, 100)), false},
		{"a hole behind the start", append(e.handshake(), data(1, 100), data(102, 100)), false},
		{"the start comes late", append(e.handshake(), data(101, 100), data(1, 100)), false},
		{"the start is missing", append(e.handshake(), data(101, 100)), true},
		{"the responder's start is missing", append(e.handshake(), data(1, 100), e.seg(false, f.ACK, 102, 101, 100)), true},
		{"seen from the middle", []packet{data(101, 100)}, false},
		{"datagrams", []packet{e.dgram(true, 100), e.dgram(false, 100)}, false},
	} {
		s := sample(tt.packets)
		if Note(s, Live); s.MissingStart != tt.want {
			t.Errorf("%s: %v", tt.name, s.MissingStart)
		}
	}
}

// TestVariantHasTheLaterBytes: those in the range, and no others.
func TestVariantHasTheLaterBytes(t *testing.T) {
	for _, tt := range []struct {
		name  string
		seq   uint32
		again string
		want  string // of the two segments; empty: no variant
	}{
		{"the same", 10, "abcd", ""},
		{"within", 11, "XY", "aXYdefgh"},
		{"over both", 12, "XYZW", "abXYZWgh"},
		{"before and within", 8, "..XY", "XYcdefgh"},
		{"within and behind", 16, "XY..", "abcdefXY"},
		{"in front", 6, "XXXX", ""},
		{"behind", 18, "XXXX", ""},
	} {
		s := new(flow.Sample)
		s.Reset()
		for i, part := range []string{"abcd", "efgh"} {
			frame := f.Ethernet(f.IP(client4, server4, f.TCP, f.Numbered(f.Segment(client4, server4, f.ACK, nil, []byte(part)), uint32(10+4*i), 2)))
			s.Packets = append(s.Packets, flow.Packet{Offset: uint16(len(s.Data)), WireLen: uint32(len(frame)), FromInitiator: true})
			s.Data = append(s.Data, frame...)
		}
		s.KeepRepeat(tt.seq, true, []byte(tt.again))
		Note(s, Live)
		v := new(flow.Sample)
		is := Variant(s, v)
		if is != (tt.want != "") || is != (s.Signals == flow.SignalOverlap) {
			t.Errorf("%s: variant %v, signals %v", tt.name, is, s.Signals.Names())
			continue
		}
		if is {
			if got := string(v.Frame(0)[54:]) + string(v.Frame(1)[54:]); got != tt.want || !v.Variant || s.Variant {
				t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
			}
		}
		s.Repeat.FromInitiator = false
		s.Signals = 0
		if Note(s, Live); s.Signals != 0 {
			t.Errorf("%s: of the other side: signals %v", tt.name, s.Signals.Names())
		}
	}
}

// TestSegmentsThatNoHostAccepts are left out of what is judged, whole or in part.
func TestSegmentsThatNoHostAccepts(t *testing.T) {
	stamp := func(v byte) []byte { return []byte{1, 1, 8, 10, 0, 0, 0, v, 0, 0, 0, 0} }
	signature := append([]byte{1, 1, 19, 18}, make([]byte, 16)...)
	type segment struct {
		seq     uint32
		flags   byte
		options []byte
		payload string
	}
	for _, tt := range []struct {
		name     string
		segments []segment
		signals  flow.Signals
		want     string // payload that is judged
		variant  string
	}{
		{"a signature that nobody asked for", []segment{{1, f.SYN, nil, ""}, {2, f.ACK, signature, "fake"}, {2, f.ACK, nil, "true"}}, flow.SignalDecoy, "true", ""},
		{"signatures in all", []segment{{1, f.SYN, signature, ""}, {2, f.ACK, signature, "true"}}, 0, "true", ""},
		{"a timestamp of the past", []segment{{1, f.SYN, stamp(9), ""}, {2, f.ACK, stamp(8), "fake"}, {2, f.ACK, stamp(9), "true"}}, flow.SignalDecoy, "true", ""},
		{"without a SYN nothing is known", []segment{{2, f.ACK, signature, "fake"}, {6, f.ACK, stamp(9), "true"}, {10, f.ACK, stamp(8), "late"}}, flow.SignalTiny, "faketruelate", ""},
		{"bytes in front of the first", []segment{{100, f.SYN, nil, ""}, {97, f.ACK, nil, "fakerest"}, {105, f.ACK, nil, "more"}}, flow.SignalOverlap, "fakerestmore", "restmore"},
		{"urgent data", []segment{{1, f.SYN, nil, ""}, {2, f.ACK | 0x20, nil, "u"}}, flow.SignalUrgent, "u", ""},
		{"options that end too early", []segment{{1, f.SYN, nil, ""}, {2, f.ACK, []byte{1, 1, 19, 40}, "true"}, {6, f.ACK, []byte{19, 1, 8, 10}, "more"}}, 0, "truemore", ""},
	} {
		s := new(flow.Sample)
		s.Reset()
		for _, seg := range tt.segments {
			frame := f.Ethernet(f.IP(client4, server4, f.TCP, f.Numbered(f.Segment(client4, server4, seg.flags, seg.options, []byte(seg.payload)), seg.seq, 2)))
			s.Packets = append(s.Packets, flow.Packet{Offset: uint16(len(s.Data)), WireLen: uint32(len(frame)), FromInitiator: true})
			s.Data = append(s.Data, frame...)
		}
		payload := func(s *flow.Sample) (all string) {
			for i, p := range s.Packets {
				h, verdict := headers.Parse(s.Frame(i), int(p.WireLen))
				if verdict != headers.OK {
					t.Errorf("%s: packet %d: %v", tt.name, i, verdict)
				}
				all += string(s.Frame(i)[h.Payload:])
			}
			return all
		}
		Note(s, Live)
		if got := payload(s); got != tt.want || s.Signals != tt.signals {
			t.Errorf("%s: %q and signals %v, want %q and %v", tt.name, got, s.Signals.Names(), tt.want, tt.signals.Names())
		}
		v := new(flow.Sample)
		if is := Variant(s, v); is != (tt.variant != "") || is && payload(v) != tt.variant {
			t.Errorf("%s: variant %v %q, want %q", tt.name, is, payload(v), tt.variant)
		}
	}
}

// Of a connection of which one direction is seen, the other is known by acknowledgements alone.
// What a SYN carried and was not kept is the beginning of its side.
func TestGapsByAcknowledgements(t *testing.T) {
	e := endpoints{client4, server4}
	s := sample([]packet{e.seg(true, f.SYN, 0, 0, 0), e.seg(true, f.ACK, 1, 101, 100), e.seg(true, f.ACK, 101, 501, 100)})
	s.OneWay = true
	if Note(s, Live); s.Signals != 0 || s.MissingStart {
		t.Errorf("one way: signals %v, missing start %v", s.Signals.Names(), s.MissingStart)
	}
	s = sample([]packet{e.seg(true, f.SYN, 0, 0, 0), e.seg(false, f.SYN|f.ACK, 100, 301, 0), e.seg(false, f.ACK, 101, 301, 400)})
	if Note(s, Live); s.Signals != flow.SignalGap || !s.MissingStart {
		t.Errorf("data in the SYN: signals %v, missing start %v", s.Signals.Names(), s.MissingStart)
	}
	// A packet of which an earlier part of the capture has no more than the beginning of its
	// headers may be what was acknowledged.
	whole := e.seg(true, f.ACK, 1, 101, 100).frame
	s = sample(append(e.handshake(), packet{true, whole[:20]}, e.seg(false, f.ACK, 101, 101, 50)))
	s.Packets[3].WireLen = uint32(len(whole))
	if Note(s, Live); s.Signals != 0 || s.MissingStart {
		t.Errorf("a packet without its headers: signals %v, missing start %v", s.Signals.Names(), s.MissingStart)
	}
	s = sample(append(e.handshake(), e.seg(true, f.ACK, 1, 102, 100)))
	if Note(s, Live); s.Signals != flow.SignalGap || s.MissingStart {
		t.Errorf("acknowledged and not seen: signals %v, missing start %v", s.Signals.Names(), s.MissingStart)
	}
}
