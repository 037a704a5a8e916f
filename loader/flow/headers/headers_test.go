// SPDX-License-Identifier: Apache-2.0

package headers

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/internal/frames"
)

// Short names for building packets layer by layer, from the inside out.
var (
	payload  = frames.Payload
	udpDgram = frames.Datagram
	ip       = frames.IP
	eth      = frames.Ethernet
	client4  = netip.MustParseAddrPort("10.0.0.2:40000")
	server4  = netip.MustParseAddrPort("192.0.2.7:443")
	client6  = netip.MustParseAddrPort("[fd00::2]:40000")
	server6  = netip.MustParseAddrPort("[2001:db8::7]:443")
)

// with returns a frame in which the bytes at off are replaced and the IPv4
// checksum is right again; spoilt leaves that as it was.
func with(frame []byte, off int, b ...byte) []byte { return frames.Checksum(spoilt(frame, off, b...)) }

var spoilt = frames.With

func tcpSeg(src, dst netip.AddrPort, flags Flags, options, body []byte) []byte {
	return frames.Segment(src, dst, byte(flags), options, body)
}

// tcp4 returns a whole frame of client4 to server4, or back.
func tcp4(fromClient bool, flags Flags, n int) []byte {
	src, dst := client4, server4
	if !fromClient {
		src, dst = dst, src
	}
	return eth(ip(src, dst, frames.TCP, tcpSeg(src, dst, flags, nil, payload(n))))
}

func udp4(n int) []byte {
	return eth(ip(client4, server4, frames.UDP, udpDgram(client4, server4, payload(n))))
}

func key(src, dst netip.AddrPort, proto flow.Proto, vlans ...uint16) flow.Key {
	vlans = append(vlans, 0, 0)
	k, _ := flow.NewKey(src, dst, proto, vlans[0], vlans[1])
	return k
}

// ext returns one IPv6 extension header of 8 bytes that leads to next.
func ext(next byte, b ...byte) []byte {
	return with(make([]byte, 8), 0, append([]byte{next}, b...)...)
}

// found is what most rows of TestParse look at.
type found struct {
	Key                         flow.Key
	SrcIsLo                     bool
	Flags                       Flags
	WireLen                     int
	L3, L4, Payload, PayloadLen int
}

func TestParse(t *testing.T) {
	const tcp, udp = byte(6), byte(17)
	syn4 := tcpSeg(client4, server4, SYN, nil, nil)
	data4 := eth(ip(client4, server4, tcp, tcpSeg(client4, server4, ACK, nil, payload(10))))
	dgram4 := eth(ip(client4, server4, udp, udpDgram(client4, server4, payload(10))))
	syn6 := tcpSeg(client6, server6, SYN, nil, nil)
	ip4 := key(client4, server4, flow.TCP)
	udp4 := key(client4, server4, flow.UDP)
	ip6 := key(client6, server6, flow.TCP)
	v6 := func(next byte, body ...[]byte) []byte {
		return eth(ip(client6, server6, next, slices.Concat(body...)))
	}
	mapped := netip.MustParseAddr("::ffff:192.0.2.7").As16()
	nat64 := netip.MustParseAddr("64:ff9b::192.0.2.7").As16()
	compatible := netip.MustParseAddr("::192.0.2.7").As16()
	// ihl=15: 40 bytes of options between the header and the segment.
	ihl15 := eth(ip(client4, server4, tcp, slices.Concat(make([]byte, 40), syn4)))
	ihl15 = with(ihl15, 14, 0x4f)

	tests := []struct {
		name    string
		frame   []byte
		wireLen int // 0 = len(frame)
		want    found
		verdict Verdict
	}{
		{name: "empty frame", verdict: Malformed},
		{name: "frame too short for Ethernet", frame: data4[:13], verdict: Malformed},
		{name: "Ethernet header alone", frame: data4[:14], verdict: Malformed},
		{name: "IPv4 header cut off", frame: data4[:33], verdict: Malformed},
		{name: "TCP header cut off", frame: data4[:53], verdict: Malformed},
		{name: "ARP", frame: with(data4, 12, 0x08, 0x06), verdict: NotIP},
		{name: "802.3 length", frame: with(data4, 12, 0x00, 0x40), verdict: NotIP},
		{name: "ICMP", frame: with(data4, 23, 1), verdict: OtherProto},
		{name: "IPv4 EtherType, version 6", frame: with(data4, 14, 0x65), verdict: Malformed},
		{name: "ihl below 5", frame: with(data4, 14, 0x44), verdict: Malformed},
		{name: "ihl beyond the total length", frame: with(data4, 14, 0x4f), verdict: Malformed},
		{name: "ihl beyond the frame", frame: with(data4[:14+50], 14, 0x4f), wireLen: 200, verdict: Malformed},
		{name: "total length below the header", frame: with(data4, 16, 0, 19), verdict: Malformed},
		{name: "total length ends inside the TCP header", frame: with(data4, 16, 0, 39), verdict: Malformed},
		{name: "IPv4 checksum is wrong", frame: spoilt(data4, 24, 0x12, 0x34), verdict: Malformed},
		{name: "IPv4 checksum is 0", frame: spoilt(data4, 24, 0, 0), verdict: Malformed},
		{name: "IPv4 address is another than the checksum's", frame: spoilt(data4, 33, 8), verdict: Malformed},
		{name: "IPv4 option is another than the checksum's", frame: spoilt(ihl15, 50, 1), verdict: Malformed},
		{name: "IPv4 checksum wrong in a later fragment", frame: spoilt(with(data4, 20, 0x20, 0x01), 24, 0, 0), verdict: Malformed},
		{name: "IPv4 checksum wrong in front of ICMP", frame: spoilt(with(data4, 23, 1), 24, 0, 0), verdict: Malformed},
		{name: "TTL 0", frame: with(data4, 22, 0), verdict: Malformed},
		{
			name: "TTL 1", frame: with(data4, 22, 1),
			want: found{Key: ip4, SrcIsLo: true, Flags: ACK, WireLen: 64, L3: 14, L4: 34, Payload: 54, PayloadLen: 10},
		},
		{name: "doff below 5", frame: with(data4, 46, 0x40), verdict: Malformed},
		{name: "doff beyond the packet", frame: with(data4, 46, 0x80), verdict: Malformed},
		{
			name: "TCP payload", frame: data4,
			want: found{Key: ip4, SrcIsLo: true, Flags: ACK, WireLen: 64, L3: 14, L4: 34, Payload: 54, PayloadLen: 10},
		},
		{
			name: "the other direction", frame: tcp4(false, SYN|ACK, 0),
			want: found{Key: ip4, SrcIsLo: false, Flags: SYN | ACK, WireLen: 54, L3: 14, L4: 34, Payload: 54},
		},
		{
			name: "TCP options fill the packet", frame: with(data4[:62], 16, 0, 48, 0x12, 0x34),
			wireLen: 62, want: found{Key: ip4, SrcIsLo: true, Flags: ACK, WireLen: 62, L3: 14, L4: 34, Payload: 54, PayloadLen: 8},
		},
		{
			name:  "TCP options are no payload",
			frame: eth(ip(client4, server4, tcp, tcpSeg(client4, server4, ACK, make([]byte, 12), payload(3)))),
			want:  found{Key: ip4, SrcIsLo: true, Flags: ACK, WireLen: 69, L3: 14, L4: 34, Payload: 66, PayloadLen: 3},
		},
		{
			name: "ihl=15", frame: ihl15,
			want: found{Key: ip4, SrcIsLo: true, Flags: SYN, WireLen: 94, L3: 14, L4: 74, Payload: 94},
		},
		{
			name: "VLAN", frame: eth(ip(client4, server4, tcp, syn4), TypeVLAN, 0xe064),
			want: found{Key: key(client4, server4, flow.TCP, 100), SrcIsLo: true, Flags: SYN, WireLen: 58, L3: 18, L4: 38, Payload: 58},
		},
		{
			name: "priority tag", frame: eth(ip(client4, server4, tcp, syn4), TypeVLAN, 0xe000),
			want: found{Key: ip4, SrcIsLo: true, Flags: SYN, WireLen: 58, L3: 18, L4: 38, Payload: 58},
		},
		{
			name: "QinQ", frame: eth(ip(client4, server4, tcp, syn4), TypeQinQ, 7, TypeVLAN, 100),
			want: found{Key: key(client4, server4, flow.TCP, 7, 100), SrcIsLo: true, Flags: SYN, WireLen: 62, L3: 22, L4: 42, Payload: 62},
		},
		{
			name: "old QinQ EtherType", frame: eth(ip(client4, server4, tcp, syn4), TypeOldQinQ, 7, TypeVLAN, 100),
			want: found{Key: key(client4, server4, flow.TCP, 7, 100), SrcIsLo: true, Flags: SYN, WireLen: 62, L3: 22, L4: 42, Payload: 62},
		},
		{
			name:  "three tags",
			frame: eth(ip(client4, server4, tcp, syn4), TypeVLAN, 1, TypeVLAN, 2, TypeVLAN, 3), verdict: Unparsable,
		},
		{name: "tag cut off", frame: eth(ip(client4, server4, tcp, syn4), TypeVLAN, 1)[:17], verdict: Malformed},
		{
			name: "Ethernet padding is cut", frame: append(tcp4(true, SYN, 0), 0, 0, 0, 0, 0, 0),
			want: found{Key: ip4, SrcIsLo: true, Flags: SYN, WireLen: 54, L3: 14, L4: 34, Payload: 54},
		},
		{
			name: "GSO: total length 0", frame: with(data4, 16, 0, 0),
			want: found{Key: ip4, SrcIsLo: true, Flags: ACK, WireLen: 64, L3: 14, L4: 34, Payload: 54, PayloadLen: 10},
		},
		{
			name: "BIG TCP: total length and checksum 0", frame: spoilt(with(data4, 16, 0, 0), 24, 0, 0),
			want: found{Key: ip4, SrcIsLo: true, Flags: ACK, WireLen: 64, L3: 14, L4: 34, Payload: 54, PayloadLen: 10},
		},
		{name: "BIG TCP: total length 0, checksum wrong", frame: spoilt(with(data4, 16, 0, 0), 24, 0, 1), verdict: Malformed},
		{
			name: "GSO: total length 0, frame cut by the snap length", frame: with(data4, 16, 0, 0), wireLen: 70000,
			want: found{Key: ip4, SrcIsLo: true, Flags: ACK, WireLen: 70000, L3: 14, L4: 34, Payload: 54, PayloadLen: 69946},
		},
		{
			name: "total length beyond the frame", frame: with(data4, 16, 0xff, 0xff),
			want: found{Key: ip4, SrcIsLo: true, Flags: ACK, WireLen: 64, L3: 14, L4: 34, Payload: 54, PayloadLen: 10},
		},
		{
			name: "cut by the snap length", frame: data4[:54], wireLen: 64,
			want: found{Key: ip4, SrcIsLo: true, Flags: ACK, WireLen: 64, L3: 14, L4: 34, Payload: 54, PayloadLen: 10},
		},
		{
			name: "wire length below the frame's is not believed", frame: data4, wireLen: 20,
			want: found{Key: ip4, SrcIsLo: true, Flags: ACK, WireLen: 64, L3: 14, L4: 34, Payload: 54, PayloadLen: 10},
		},
		{
			name: "first fragment", frame: with(data4, 20, 0x20, 0x00),
			want: found{Key: ip4, SrcIsLo: true, Flags: ACK, WireLen: 64, L3: 14, L4: 34, Payload: 54, PayloadLen: 10},
		},
		{name: "later fragment", frame: with(data4, 20, 0x20, 0x03), verdict: LaterFragment},
		{name: "later fragment that begins with the TCP flags", frame: with(data4, 20, 0x20, 0x01), verdict: BadFragment},
		{name: "last fragment that begins in the TCP header", frame: with(data4, 20, 0, 0x02), verdict: BadFragment},
		{name: "later fragment of UDP, behind its header", frame: with(dgram4, 20, 0x20, 0x01), verdict: LaterFragment},
		{name: "first fragment with the ports alone", frame: with(data4, 16, 0, 28, 0, 0, 0x20, 0), verdict: BadFragment},
		{name: "first fragment that ends in the TCP options", frame: with(with(data4, 16, 0, 44, 0, 0, 0x20, 0), 46, 0x80), verdict: BadFragment},
		{name: "first fragment with a TCP header of 16 bytes", frame: with(with(data4, 20, 0x20, 0), 46, 0x40), verdict: Malformed},
		{name: "first fragment that ends in the UDP header", frame: with(dgram4, 16, 0, 27, 0, 0, 0x20, 0), verdict: BadFragment},
		{name: "first fragment whose TCP header the file lacks", frame: with(data4, 20, 0x20, 0)[:50], wireLen: 64, verdict: Malformed},
		{name: "first fragment of ICMP", frame: with(data4, 16, 0, 28, 0, 0, 0x20, 0, 64, 1), verdict: OtherProto},
		{name: "last fragment", frame: with(data4, 20, 0x1f, 0xff), verdict: LaterFragment},
		{name: "later fragment of another protocol", frame: with(data4, 20, 0, 1, 64, 1), verdict: LaterFragment},
		{
			name: "UDP", frame: dgram4,
			want: found{Key: udp4, SrcIsLo: true, WireLen: 52, L3: 14, L4: 34, Payload: 42, PayloadLen: 10},
		},
		{
			name: "UDP without payload", frame: eth(ip(client4, server4, udp, udpDgram(client4, server4, nil))),
			want: found{Key: udp4, SrcIsLo: true, WireLen: 42, L3: 14, L4: 34, Payload: 42},
		},
		{name: "UDP header cut off", frame: with(dgram4, 16, 0, 27), verdict: Malformed},
		{
			name: "UDP length 0 is the rest", frame: with(dgram4, 38, 0, 0),
			want: found{Key: udp4, SrcIsLo: true, WireLen: 52, L3: 14, L4: 34, Payload: 42, PayloadLen: 10},
		},
		{name: "UDP length 7", frame: with(dgram4, 38, 0, 7), verdict: Malformed},
		{
			name: "UDP length 8", frame: with(dgram4, 38, 0, 8),
			want: found{Key: udp4, SrcIsLo: true, WireLen: 52, L3: 14, L4: 34, Payload: 42},
		},
		{
			name: "UDP length bounds the payload, not the frame", frame: with(dgram4, 38, 0, 12),
			want: found{Key: udp4, SrcIsLo: true, WireLen: 52, L3: 14, L4: 34, Payload: 42, PayloadLen: 4},
		},
		{
			name: "UDP length beyond the packet", frame: with(dgram4, 38, 0xff, 0xff),
			want: found{Key: udp4, SrcIsLo: true, WireLen: 52, L3: 14, L4: 34, Payload: 42, PayloadLen: 10},
		},
		{
			name: "IPv6", frame: v6(tcp, syn6),
			want: found{Key: ip6, SrcIsLo: false, Flags: SYN, WireLen: 74, L3: 14, L4: 54, Payload: 74},
		},
		{name: "IPv6 hop limit 0", frame: with(v6(tcp, syn6), 21, 0), verdict: Malformed},
		{name: "IPv6 source is v4-mapped", frame: with(v6(tcp, syn6), 22, mapped[:]...), verdict: Malformed},
		{name: "IPv6 destination is v4-mapped", frame: with(v6(tcp, syn6), 38, mapped[:]...), verdict: Malformed},
		{name: "IPv6 v4-mapped in a later fragment", frame: with(v6(Fragment, ext(tcp, 0, 0, 8), syn6), 22, mapped[:]...), verdict: Malformed},
		{
			name: "IPv6 NAT64 prefix is not v4-mapped", frame: with(v6(tcp, syn6), 22, nat64[:]...),
			want: found{Key: key(netip.AddrPortFrom(netip.AddrFrom16(nat64), 40000), server6, flow.TCP), SrcIsLo: true, Flags: SYN, WireLen: 74, L3: 14, L4: 54, Payload: 74},
		},
		{
			name: "IPv6 v4-compatible is not v4-mapped", frame: with(v6(tcp, syn6), 22, compatible[:]...),
			want: found{Key: key(netip.AddrPortFrom(netip.AddrFrom16(compatible), 40000), server6, flow.TCP), SrcIsLo: true, Flags: SYN, WireLen: 74, L3: 14, L4: 54, Payload: 74},
		},
		{name: "IPv6 EtherType, version 4", frame: with(v6(tcp, syn6), 14, 0x45), verdict: Malformed},
		{name: "IPv6 header cut off", frame: v6(tcp, syn6)[:53], verdict: Malformed},
		{
			name: "IPv6 padding is cut", frame: append(v6(tcp, syn6), 1, 2, 3),
			want: found{Key: ip6, Flags: SYN, WireLen: 74, L3: 14, L4: 54, Payload: 74},
		},
		{
			name: "IPv6 payload length 0", frame: with(v6(tcp, syn6, payload(5)), 18, 0, 0),
			want: found{Key: ip6, Flags: SYN, WireLen: 79, L3: 14, L4: 54, Payload: 74, PayloadLen: 5},
		},
		{name: "IPv6 payload length 0 and no payload", frame: v6(tcp), verdict: Malformed},
		{
			name: "IPv6 extension chain",
			frame: v6(HopByHop, ext(Routing), ext(DestOptions), ext(Auth),
				ext(tcp, 1), make([]byte, 4), syn6),
			want: found{Key: ip6, Flags: SYN, WireLen: 110, L3: 14, L4: 90, Payload: 110},
		},
		{
			name: "IPv6 long hop-by-hop", frame: v6(HopByHop, ext(tcp, 1), make([]byte, 8), syn6),
			want: found{Key: ip6, Flags: SYN, WireLen: 90, L3: 14, L4: 70, Payload: 90},
		},
		{
			name: "IPv6 AH counts in words", frame: v6(Auth, ext(tcp, 4), make([]byte, 16), syn6),
			want: found{Key: ip6, Flags: SYN, WireLen: 98, L3: 14, L4: 78, Payload: 98},
		},
		{
			name: "IPv6 first fragment", frame: v6(Fragment, ext(tcp, 0xff, 0, 1), syn6),
			want: found{Key: ip6, Flags: SYN, WireLen: 82, L3: 14, L4: 62, Payload: 82},
		},
		{name: "IPv6 later fragment", frame: v6(Fragment, ext(tcp, 0, 0, 24), syn6), verdict: LaterFragment},
		{name: "IPv6 later fragment that begins with the TCP flags", frame: v6(Fragment, ext(tcp, 0, 0, 8), syn6), verdict: BadFragment},
		{name: "IPv6 later fragment of UDP, behind its header", frame: v6(Fragment, ext(udp, 0, 0, 8), syn6), verdict: LaterFragment},
		{name: "IPv6 first fragment with the ports alone", frame: v6(Fragment, ext(tcp, 0, 0, 1), syn6[:8]), verdict: BadFragment},
		{name: "IPv6 first fragment that ends in an extension header", frame: v6(Fragment, ext(DestOptions, 0, 0, 1), ext(tcp, 200), syn6), verdict: BadFragment},
		{name: "IPv6 first fragment that ends before one", frame: v6(HopByHop, ext(Fragment), ext(DestOptions, 0, 0, 1)), verdict: BadFragment},
		{name: "IPv6 whole packet with a fragment header that ends before one", frame: v6(Fragment, ext(DestOptions, 0, 0, 0)), verdict: Malformed},
		{name: "IPv6 fragment in a first fragment", frame: v6(Fragment, ext(Fragment, 0, 0, 1), ext(tcp, 0, 0, 1), syn6), verdict: BadFragment},
		{name: "IPv6 later fragment in a first fragment", frame: v6(Fragment, ext(Fragment, 0, 0, 1), ext(udp, 0, 4, 0), syn6), verdict: BadFragment},
		{name: "IPv6 later fragment behind a fragment header that is none", frame: v6(Fragment, ext(Fragment, 0, 0, 6), ext(udp, 0, 4, 0), syn6), verdict: LaterFragment},
		{name: "IPv6 first fragment with seven extension headers", frame: v6(Fragment, ext(DestOptions, 0, 0, 1), ext(DestOptions), ext(DestOptions), ext(DestOptions),
			ext(DestOptions), ext(DestOptions), ext(tcp), syn6), verdict: Unparsable},
		{
			name: "IPv6 reserved bits are no fragment offset", frame: v6(Fragment, ext(tcp, 0, 0, 6), syn6),
			want: found{Key: ip6, Flags: SYN, WireLen: 82, L3: 14, L4: 62, Payload: 82},
		},
		{
			name: "six extension headers",
			frame: v6(DestOptions, ext(DestOptions), ext(DestOptions), ext(DestOptions), ext(DestOptions),
				ext(DestOptions), ext(tcp), syn6),
			want: found{Key: ip6, Flags: SYN, WireLen: 122, L3: 14, L4: 102, Payload: 122},
		},
		{
			name: "seven extension headers",
			frame: v6(DestOptions, ext(DestOptions), ext(DestOptions), ext(DestOptions), ext(DestOptions),
				ext(DestOptions), ext(DestOptions), ext(tcp), syn6),
			verdict: Unparsable,
		},
		{name: "extension header cut off", frame: v6(HopByHop, ext(tcp)[:7]), verdict: Malformed},
		{name: "extension header beyond the packet", frame: v6(HopByHop, ext(tcp, 200), syn6), verdict: Malformed},
		{name: "IPv6 no next header", frame: v6(59), verdict: OtherProto},
		{name: "IPv6 ICMP behind an extension", frame: v6(HopByHop, ext(58), syn6), verdict: OtherProto},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.wireLen == 0 {
				tt.wireLen = len(tt.frame)
			}
			p, verdict := Parse(tt.frame, tt.wireLen)
			if verdict != tt.verdict {
				t.Fatalf("verdict %v, want %v", verdict, tt.verdict)
			}
			got := found{p.Key, p.SrcIsLo, p.Flags, p.WireLen, p.L3, p.L4, p.Payload, p.PayloadLen}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(flow.Key{})); diff != "" {
				t.Errorf("packet (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	frames := [][]byte{tcp4(true, ACK, 100), eth(ip(client6, server6, 17, udpDgram(client6, server6, payload(9))))}
	if n := testing.AllocsPerRun(100, func() {
		for _, frame := range frames {
			if _, verdict := Parse(frame, len(frame)); verdict != OK {
				t.Fatal(verdict)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations per run, want 0", n)
	}
}

// What a host captures of its own packets may have no IPv4 checksum yet.
func TestParseCapturedBelievesAnEmptyChecksum(t *testing.T) {
	data := tcp4(true, ACK, 10)
	whole, _ := Parse(data, len(data))
	for _, tt := range []struct {
		name           string
		frame          []byte
		live, captured Verdict
		bad            bool
		badCaptured    bool
	}{
		{"right", data, OK, OK, false, false},
		{"empty", spoilt(data, 24, 0, 0), Malformed, OK, true, false},
		{"wrong", spoilt(data, 24, 0, 1), Malformed, Malformed, true, true},
		{"empty, TTL 0", spoilt(with(data, 22, 0), 24, 0, 0), Malformed, Malformed, true, false},
		{"wrong, TTL 0", spoilt(with(data, 22, 0), 24, 0, 1), Malformed, Malformed, true, true},
		{"right, TTL 0", with(data, 22, 0), Malformed, Malformed, false, false},
	} {
		if _, v := Parse(tt.frame, len(tt.frame)); v != tt.live {
			t.Errorf("%s: live %v, want %v", tt.name, v, tt.live)
		}
		p, v := ParseCaptured(tt.frame, len(tt.frame))
		if v != tt.captured || v == OK && p != whole {
			t.Errorf("%s: captured %v, want %v; %+v", tt.name, v, tt.captured, p)
		}
		var h Headers
		if h.Walk(tt.frame, len(tt.frame)); h.BadChecksum != tt.bad {
			t.Errorf("%s: bad checksum %v, want %v", tt.name, h.BadChecksum, tt.bad)
		}
		if v := h.WalkCaptured(tt.frame, len(tt.frame)); v != tt.captured || h.BadChecksum != tt.badCaptured {
			t.Errorf("%s: captured %v, bad checksum %v, want %v, %v", tt.name, v, h.BadChecksum, tt.captured, tt.badCaptured)
		}
	}
}

// A packet's numbers, and what only some packets have.
func TestParseReadsTheValues(t *testing.T) {
	frame := eth(ip(client6, server6, Routing, slices.Concat(ext(Fragment), ext(6, 0, 0, 1, 1, 2, 3, 4), tcpSeg(client6, server6, ACK, make([]byte, 12), payload(7)))), TypeQinQ, 7, TypeVLAN, 100)
	got, verdict := Parse(frame, len(frame))
	if verdict != OK {
		t.Fatal(verdict)
	}
	want := Headers{Tags: 2, VLAN: 7, InnerVLAN: 100, IP: 6, L3: 22, TTL: 64, MoreFragments: true, Exts: 2, Fragment: Fragmentation{ID: 0x01020304, Start: 78, Proto: 6},
		Ext:     [MaxExtensions]Extension{{Off: 62, Len: 8, Kind: Routing}, {Off: 70, Len: 8, Kind: Fragment}},
		WireLen: 117, Proto: flow.TCP, L4: 78, Seq: 1, Ack: 2, Window: 0xffff, Flags: ACK, Payload: 110, PayloadLen: 7}
	if diff := cmp.Diff(want, got.Headers, cmpopts.EquateComparable(Headers{})); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}

// What fragments of one packet share, and where they lie.
func TestWalkReadsFragments(t *testing.T) {
	segment := tcpSeg(client4, server4, ACK, nil, payload(100))
	first := with(eth(ip(client4, server4, 6, segment[:64])), 18, 0xab, 0xcd, 0x20, 0)
	later := with(eth(ip(client4, server4, 6, segment[64:])), 18, 0xab, 0xcd, 0, 8)
	behind := eth(ip(client6, server6, HopByHop, slices.Concat(ext(Fragment), ext(60, 0, 0x12, 0x35, 1, 2, 3, 4), payload(16))))
	for _, tt := range []struct {
		name  string
		frame []byte
		want  Fragmentation
	}{
		{"none", eth(ip(client4, server4, 6, segment)), Fragmentation{}},
		{"first", first, Fragmentation{ID: 0xabcd, Start: 34, Proto: 6}},
		{"later", later, Fragmentation{ID: 0xabcd, Start: 34, Offset: 64, Proto: 6}},
		{"IPv6 later", behind, Fragmentation{ID: 0x01020304, Start: 70, Offset: 0x1230, Proto: 60}},
	} {
		var h Headers
		h.Walk(tt.frame, len(tt.frame))
		if h.Fragment != tt.want || h.MoreFragments != (tt.name == "first") {
			t.Errorf("%s: %+v, more %v, want %+v", tt.name, h.Fragment, h.MoreFragments, tt.want)
		}
	}
}

// Walk goes on where Parse refuses, so that what a capture cut, and what no host
// would accept, is masked like any other frame.
func TestWalkGoesOnBehindWhatIsWrong(t *testing.T) {
	data := eth(ip(client4, server4, 6, tcpSeg(client4, server4, ACK, make([]byte, 12), payload(10))))
	dgram := udp4(10)
	data6 := eth(ip(client6, server6, HopByHop, slices.Concat(ext(6), tcpSeg(client6, server6, ACK, nil, payload(10)))))
	for _, tt := range []struct {
		name           string
		frame          []byte
		wireLen        int // 0 = len(frame)
		verdict        Verdict
		proto          flow.Proto
		l4             int
		payload        int
		length, inside int // of the payload: on the wire, in the frame
	}{
		{name: "whole", frame: data, proto: flow.TCP, l4: 34, payload: 66, length: 10, inside: 10},
		{name: "padded", frame: append(tcp4(true, ACK, 0), 0, 0, 0, 0, 0, 0), proto: flow.TCP, l4: 34, payload: 54},
		{name: "cut in the payload", frame: data[:70], wireLen: 76, proto: flow.TCP, l4: 34, payload: 66, length: 10, inside: 4},
		{name: "cut in the options", frame: data[:60], wireLen: 76, proto: flow.TCP, l4: 34, payload: 66, length: 10},
		{name: "cut before the TCP header length", frame: data[:46], wireLen: 76, verdict: Malformed, proto: flow.TCP, l4: 34, payload: 54, length: 22},
		{name: "cut in the IPv4 addresses", frame: data[:30], wireLen: 76, verdict: Malformed, proto: flow.TCP, l4: 34, payload: 54, length: 22},
		{name: "cut before the IPv4 protocol", frame: data[:23], wireLen: 76, verdict: Malformed, payload: 23},
		{name: "checksum wrong", frame: spoilt(data, 24, 1, 2), verdict: Malformed, proto: flow.TCP, l4: 34, payload: 66, length: 10, inside: 10},
		{name: "TTL 0", frame: with(data, 22, 0), verdict: Malformed, proto: flow.TCP, l4: 34, payload: 66, length: 10, inside: 10},
		{name: "total length below the header", frame: with(data, 16, 0, 19), verdict: Malformed, proto: flow.TCP, l4: 34, payload: 66, length: 10, inside: 10},
		{name: "TCP header beyond the packet", frame: with(data, 16, 0, 50), verdict: Malformed, proto: flow.TCP, l4: 34, payload: 66},
		{name: "doff below 5", frame: with(data, 46, 0x40), verdict: Malformed, proto: flow.TCP, l4: 34, payload: 76},
		{name: "UDP length 7", frame: with(dgram, 38, 0, 7), verdict: Malformed, proto: flow.UDP, l4: 34, payload: 42, length: 10, inside: 10},
		{name: "UDP cut in its header", frame: dgram[:38], wireLen: 52, verdict: Malformed, proto: flow.UDP, l4: 34, payload: 42, length: 10},
		{name: "IPv6 hop limit 0", frame: with(data6, 21, 0), verdict: Malformed, proto: flow.TCP, l4: 62, payload: 82, length: 10, inside: 10},
		{name: "IPv6 cut in an extension header", frame: data6[:57], wireLen: 92, verdict: Malformed, proto: flow.TCP, l4: 62, payload: 82, length: 10},
		{name: "IPv6 cut before an extension header", frame: data6[:55], wireLen: 92, verdict: Malformed, payload: 55},
		{name: "later fragment", frame: with(data, 20, 0x20, 3), verdict: LaterFragment, payload: 76},
		{name: "fragment that begins in the TCP header", frame: with(data, 20, 0x20, 1), verdict: BadFragment, payload: 76},
		{name: "ARP", frame: with(data, 12, 8, 6), verdict: NotIP, payload: 76},
		{name: "nothing", verdict: Malformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.wireLen == 0 {
				tt.wireLen = len(tt.frame)
			}
			var h Headers
			if got := h.Walk(tt.frame, tt.wireLen); got != tt.verdict {
				t.Errorf("verdict %v, want %v", got, tt.verdict)
			}
			if h.Proto != tt.proto || h.L4 != tt.l4 || h.Payload != tt.payload || h.PayloadLen != tt.length || h.Captured(len(tt.frame)) != tt.inside {
				t.Errorf("%s at %d, %d bytes of payload at %d, %d of them captured; want %s at %d, %d at %d, %d",
					h.Proto, h.L4, h.PayloadLen, h.Payload, h.Captured(len(tt.frame)), tt.proto, tt.l4, tt.length, tt.payload, tt.inside)
			}
		})
	}
}

func addSeeds(f *testing.F) {
	for _, frame := range [][]byte{
		tcp4(true, SYN, 0), udp4(5), eth(ip(client4, server4, 6, payload(40)), TypeQinQ, 1, TypeVLAN, 2),
		eth(ip(client4, server4, 6, tcpSeg(client4, server4, SYN, []byte{2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7}, nil))),
		eth(ip(client6, server6, HopByHop, slices.Concat(ext(Fragment), ext(6), tcpSeg(client6, server6, ACK, nil, payload(4))))),
		eth(ip(client6, server6, Routing, slices.Concat(ext(Auth, 0), ext(DestOptions, 1), ext(17), udpDgram(client6, server6, payload(4))))),
	} {
		f.Add(frame, len(frame))
		f.Add(frame[:len(frame)-3], len(frame))
	}
}

func FuzzParse(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, frame []byte, wireLen int) {
		wireLen = min(wireLen, 1<<20)
		p, verdict := Parse(frame, wireLen)
		if verdict >= NumVerdicts {
			t.Fatalf("verdict %d is none", verdict)
		}
		if verdict != OK {
			if p != (Packet{}) {
				t.Fatalf("%v with packet %+v", verdict, p)
			}
			return
		}
		wireLen = max(wireLen, len(frame))
		header := udpLen
		if p.Key.Proto == flow.TCP {
			header = tcpLen
		}
		if p.L3 < EthernetLen || p.L4 < p.L3+ipv4Len || p.L4+header > len(frame) ||
			p.L4+header+p.PayloadLen > p.WireLen || p.PayloadLen < 0 || p.WireLen > wireLen {
			t.Fatalf("%+v of a frame of %d bytes, %d on the wire", p, len(frame), wireLen)
		}
		// What stands behind the packet means nothing, unless a length of 0
		// made the frame's end the packet's.
		if p.WireLen < wireLen && p.WireLen < len(frame) {
			if again, verdict := Parse(frame[:p.WireLen], p.WireLen); verdict != OK || again != p {
				t.Fatalf("without its trailer: %v %+v, want %+v", verdict, again, p)
			}
		}
	})
}

// FuzzWalk holds for any bytes: the layers are in order, what they say lies within
// the frame or, where it is cut, within what was on the wire; the fields follow one
// another without a gap up to the payload; Paint says the same; and Parse agrees.
func FuzzWalk(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, frame []byte, wireLen int) {
		wireLen = max(len(frame), min(wireLen, 1<<20))
		before := slices.Clone(frame)
		h := Headers{Tags: 77, Exts: 77, Payload: -1} // nothing of an earlier walk stays
		verdict := h.Walk(frame, wireLen)
		p, parsed := Parse(frame, wireLen)
		if parsed != verdict || verdict == OK && p.Headers != h {
			t.Fatalf("Walk says %v, Parse %v; %+v, %+v", verdict, parsed, h, p.Headers)
		}
		if h.IP != 0 && (h.L3 != EthernetLen+tagLen*int(h.Tags) || h.L3 >= len(frame)) {
			t.Fatalf("IP header at %d, %d tags", h.L3, h.Tags)
		}
		at := h.L3
		for _, e := range h.Ext[:h.Exts] {
			if int(e.Off) < at || int(e.Off) >= len(frame) {
				t.Fatalf("extension header %+v behind %d, frame of %d", e, at, len(frame))
			}
			at = int(e.Off) + int(e.Len)
		}
		switch {
		case h.Proto == 0 && (h.L4 != 0 || h.Payload != len(frame) || h.PayloadLen != 0 || verdict == OK),
			h.Proto != 0 && (h.L4 <= h.L3 || h.L4 < at || h.L4 > h.Payload),
			h.PayloadLen < 0, h.PayloadLen > 0 && h.Payload+h.PayloadLen > wireLen,
			h.WireLen > wireLen, verdict == OK && h.Payload > h.WireLen,
			h.Captured(len(frame)) < 0, h.Captured(len(frame)) > max(0, len(frame)-h.Payload), h.Captured(len(frame)) > h.PayloadLen:
			t.Fatalf("%v: %+v of a frame of %d bytes, %d on the wire", verdict, h, len(frame), wireLen)
		}
		marks := slices.Repeat([]uint8{0xff}, len(frame))
		h.Paint(marks, &Numbers, frame)
		end := 0
		for _, s := range h.Fields(frame) {
			if s.Start != end || s.End <= s.Start || s.Field == 0 || s.Field >= NumFields {
				t.Fatalf("field %+v behind byte %d", s, end)
			}
			for i := s.Start; i < s.End; i++ {
				if marks[i] != uint8(s.Field) {
					t.Fatalf("byte %d is painted %d, want %v", i, marks[i], s.Field)
				}
			}
			end = s.End
		}
		if end != min(h.Payload, len(frame)) {
			t.Fatalf("the fields end at %d, the payload begins at %d", end, h.Payload)
		}
		for i, m := range marks[end:] {
			if m != 0xff {
				t.Fatalf("byte %d of the payload is painted %d", i, m)
			}
		}
		if !slices.Equal(before, frame) {
			t.Fatal("the frame was changed")
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for _, tt := range []struct {
		name  string
		frame []byte
	}{
		{"IPv4 TCP", eth(ip(client4, server4, 6, tcpSeg(client4, server4, ACK, make([]byte, 12), payload(100))))},
		{"IPv6 UDP", eth(ip(client6, server6, 17, udpDgram(client6, server6, payload(100))))},
	} {
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, verdict := Parse(tt.frame, len(tt.frame)); verdict != OK {
					b.Fatal(verdict)
				}
			}
		})
	}
}

func BenchmarkWalk(b *testing.B) {
	frame := eth(ip(client4, server4, 6, tcpSeg(client4, server4, ACK, make([]byte, 12), payload(100))))
	dst := make([]uint8, len(frame))
	var h Headers
	b.Run("offsets", func(b *testing.B) {
		for b.Loop() {
			h.Walk(frame, len(frame))
		}
	})
	b.Run("paint", func(b *testing.B) {
		for b.Loop() {
			h.Paint(dst, &Numbers, frame)
		}
	})
}
