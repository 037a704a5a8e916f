// SPDX-License-Identifier: Apache-2.0

package signals

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/earlydrop/earlydrop/loader/flow"
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
			{"a decoy in front", after(wrong, data(1, 300)), flow.SignalDecoy, 4},
			{"a decoy at the end", after(data(1, 300), wrong), flow.SignalDecoy, 4},
			{"decoys and nothing else", after(wrong, wrong), flow.SignalDecoy, 3},
			{"another time to live", after(data(1, 100), change(data(101, 100), ttl, 5)), flow.SignalTTL, 5},
			{"nearly the same time to live", after(change(data(1, 100), ttl, 64+2), change(data(101, 100), ttl, 64-2)), 0, 5},
			{"the other side's time to live", after(data(1, 100), change(e.seg(false, f.ACK, 101, 101, 10), ttl, 64)), 0, 5},
			{"a hole", after(data(1, 100), data(102, 100)), flow.SignalGap, 5},
			{"a hole in front", after(data(2, 100)), flow.SignalGap, 4},
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
			{"a wrong SYN", []packet{change(e.seg(true, f.SYN, 0, 0, 0), checksum, 0x55), e.seg(false, f.SYN|f.ACK, 100, 1, 0), data(1, 100), change(data(101, 100), checksum, 0x55)}, 0, 4},
			{"several", after(wrong, change(data(3, 100), ttl, 5)), flow.SignalDecoy | flow.SignalTTL | flow.SignalGap, 4},
		} {
			s := sample(tt.packets)
			Note(s, Live)
			if s.Signals != tt.want || len(s.Packets) != tt.left {
				t.Errorf("%s, %s: %v, %d packets stay, want %v, %d", name, tt.name, s.Signals.Names(), len(s.Packets), tt.want.Names(), tt.left)
			}
		}
	}
}

// What stays is what was there, byte for byte.
func TestDecoysAreTakenOut(t *testing.T) {
	e := endpoints{client4, server4}
	decoy := change(e.seg(true, f.ACK, 1, 101, 80), 36, 0x99)
	right := append(e.handshake(), e.seg(true, f.ACK, 1, 101, 90), e.seg(false, f.ACK, 101, 91, 70))
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
		s := sample([]packet{e.seg(true, f.SYN, 0, 0, 0), {true, frame}})
		Note(s, tt.from)
		if got := s.Signals&flow.SignalDecoy != 0; got != tt.decoy {
			t.Errorf("%s: decoy %v", tt.name, got)
		}
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
		Note(s, Origin(random.IntN(2) > 0))
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

func BenchmarkNote(b *testing.B) {
	e := endpoints{client4, server4}
	s := sample(append(e.handshake(), e.seg(true, f.ACK, 1, 101, 300), e.seg(false, f.ACK, 101, 301, 400)))
	b.ReportAllocs()
	for b.Loop() {
		Note(s, Live)
	}
}
