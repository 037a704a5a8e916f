// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

func TestCutFlows(t *testing.T) {
	const whole, cut, incomplete = 0, 1, 2
	// snapped is a frame of which a file holds the first n bytes.
	type snapped struct {
		frame []byte
		n     int
	}
	all := func(frame []byte) snapped { return snapped{frame, len(frame)} }
	// snap gives each packet of a connection, of which the file holds so many bytes;
	// without a number, or with 0, all of them.
	snap := func(words string, sizes ...int) (packets []snapped) {
		for i, p := range talk(t, words) {
			packets = append(packets, all(p.frame))
			if i < len(sizes) && sizes[i] > 0 {
				packets[i].n = sizes[i]
			}
		}
		return packets
	}
	after := func(words string, sizes ...int) []snapped { // 162 bytes of handshake
		return snap(">S <SA >A "+words, append([]int{0, 0, 0}, sizes...)...)
	}
	// The other side answers: a flow begins when both have spoken.
	answer, answer6 := all(udp4(false, 10)), all(eth(ip(server6, client6, 17, udpDgram(server6, client6, payload(10)))))
	answerVLAN := all(eth(ip(server4, client4, 17, udpDgram(server4, client4, payload(10))), etherVLAN, 7))
	udp6 := eth(ip(client6, server6, 17, udpDgram(client6, server6, payload(100)))) // payload from 62 on
	vlan := eth(ip(client4, server4, 17, udpDgram(client4, server4, payload(100))), etherVLAN, 7)
	super := func(n int) []snapped { // of segmentation offload: no length in the header
		packets := after("<A40000", n)
		packets[3].frame = right(with(packets[3].frame, 16, 0, 0))
		return packets
	}
	padded := append(udp4(true, 5), make([]byte, 13)...)
	fragment := right(with(udp4(true, 100), 20, 0x20, 0)) // the first one: its datagram goes on
	binary.BigEndian.PutUint16(fragment[38:], 2000)

	for _, tt := range []struct {
		name    string
		packets []snapped
		want    int
		wire    bool // the file gives the length that it holds as the one on the wire
	}{
		{name: "whole", packets: after(">A100 <A200")},
		{name: "headers only", packets: after(">A100", 54), want: incomplete},
		{name: "31 bytes of payload", packets: after(">A100", 54+31), want: incomplete},
		{name: "32 bytes of payload", packets: after(">A100", 54+32), want: cut},
		{name: "all but one byte of payload", packets: after(">A100", 54+99), want: cut},
		{name: "little payload, all there", packets: after(">A31")},
		{name: "little payload, not all there", packets: after(">A31", 54+30), want: incomplete},
		{name: "exactly 32 bytes, one missing", packets: after(">A32", 54+31), want: incomplete},
		{name: "one of many packets", packets: after(">A100 <A200 >A100", 0, 60), want: incomplete},
		{name: "cut first, then without payload", packets: after(">A100 >A100", 100, 54), want: incomplete},

		// 862 bytes are missing to the 1024th after the handshake.
		{name: "cut by the 1024th byte", packets: after("<A1400")},
		{name: "cut in the file behind the 1024th byte", packets: after("<A1400", 1000)},
		{name: "cut in the file at the 1024th byte", packets: after("<A1400", 862)},
		{name: "cut in the file before the 1024th byte", packets: after("<A1400", 861), want: cut},
		{name: "a few bytes have room, and are there", packets: after("<A748 >A100", 0, 60)},
		{name: "a few bytes have room, and are not there", packets: after("<A748 >A100", 0, 59), want: incomplete},
		{name: "a packet that the capture has no room for", packets: after("<A1400 >A100", 0, 54)},

		{name: "options of a header-only packet", packets: snap(">S,options20 <SA >A >A40", 60), want: cut},
		{name: "options of a SYN with payload", packets: snap(">S9,options20,tfo <SA >A >A40", 60), want: incomplete},
		{name: "payload of a SYN", packets: snap(">S60,tfo <SA >A >A40", 54+31), want: incomplete},
		{name: "payload of a SYN, cut", packets: snap(">S60,tfo <SA >A >A40", 54+32), want: cut},
		{name: "payload of a SYN that comes again", packets: snap(">S60 <SA >A >A60", 54+31)},
		{name: "payload of a SYN+ACK that comes again", packets: snap(">S <SA60 >A <A60", 0, 54+31)},
		{name: "options of a SYN+ACK", packets: snap(">S <SA,options20 >A >A40", 0, 60), want: cut},
		{name: "options of a segment before the payload", packets: snap(">S <SA >A,options20 >A40", 0, 0, 60), want: cut},
		{name: "not in place", packets: after(">A100 >A100,seq-99999,lost", 0, 60)},
		{name: "options before payload", packets: after(">A100,options12", 60), want: incomplete},
		{name: "payload behind options", packets: after(">A100,options12", 66+32), want: cut},
		{name: "a header-only packet later", packets: after(">A50 <A")},
		{name: "UDP", packets: []snapped{{udp4(true, 100), 42 + 31}, answer}, want: incomplete},
		{name: "UDP, cut", packets: []snapped{{udp4(true, 100), 42 + 32}, answer}, want: cut},
		{name: "UDP, answer", packets: []snapped{all(udp4(true, 100)), {udp4(false, 100), 42}}, want: incomplete},
		{name: "IPv6", packets: []snapped{{udp6, 62 + 31}, answer6}, want: incomplete},
		{name: "IPv6, cut", packets: []snapped{{udp6, 62 + 32}, answer6}, want: cut},
		{name: "VLAN", packets: []snapped{{vlan, 46 + 31}, answerVLAN}, want: incomplete},
		{name: "VLAN, cut", packets: []snapped{{vlan, 46 + 32}, answerVLAN}, want: cut},
		{name: "Ethernet padding", packets: []snapped{all(padded), answer}},
		{name: "Ethernet padding cut off", packets: []snapped{{padded, 50}, answer}},
		{name: "a super-packet", packets: super(0)},
		{name: "a super-packet, cut", packets: super(200), want: cut},
		{name: "a super-packet, headers only", packets: super(54), want: incomplete},
		{name: "a first fragment", packets: []snapped{all(fragment), answer}},
		{name: "a first fragment, cut", packets: []snapped{{fragment, 100}, answer}, want: cut},
		{name: "a first fragment, headers only", packets: []snapped{{fragment, 50}, answer}, want: incomplete},

		{name: "length on the wire lost", packets: after(">A100", 54+20), want: incomplete, wire: true},
		{name: "length on the wire lost, cut", packets: after(">A100", 54+40), want: cut, wire: true},
		{name: "length on the wire lost, whole", packets: after(">A100"), wire: true},
		{name: "length on the wire lost, UDP", packets: []snapped{{udp4(true, 100), 42 + 31}, answer}, want: incomplete, wire: true},
		{name: "length on the wire lost, IPv6", packets: []snapped{{udp6, 62 + 31}, answer6}, want: incomplete, wire: true},
		{name: "length on the wire lost, headers only later", packets: after(">A100 <A100", 0, 54), want: incomplete, wire: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := -1
			a := New(Options{}, func(_ *Flow, s *flow.Sample) {
				got = whole
				if s.Cut {
					got = cut
				}
				if s.Incomplete {
					got = incomplete
				}
				if s.Incomplete && !s.Cut || s.MidStream {
					t.Errorf("%+v", s.Meta)
				}
			}, nil)
			for i, p := range tt.packets {
				wireLen := len(p.frame)
				if tt.wire {
					wireLen = p.n
				}
				a.Packet(epoch.Add(time.Duration(i)*time.Millisecond), p.frame[:p.n], wireLen)
			}
			if err := a.Flush(); err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("flow is %d, want %d (0 whole, 1 cut, 2 incomplete)", got, tt.want)
			}
			c := a.Counters()
			if c[Cut] != min(uint64(tt.want), 1) || c[Incomplete] != uint64(tt.want/2) {
				t.Errorf("counters cut %d, incomplete %d", c[Cut], c[Incomplete])
			}
		})
	}
}

// A page is no excuse to forget that a flow is cut.
func TestFlowsStayCutInTheTemporaryFile(t *testing.T) {
	n := 0
	a := New(Options{MaxOpen: 2, TempDir: t.TempDir()}, func(_ *Flow, s *flow.Sample) {
		if !s.Incomplete || !s.Cut {
			t.Errorf("%v is not incomplete", s.Key)
		}
		n++
	}, nil)
	for _, answers := range []bool{false, true, false} {
		for i := range 100 {
			src, dst := netip.AddrPortFrom(client4.Addr(), uint16(1000+i)), server4
			if answers {
				src, dst = dst, src
			}
			frame := eth(ip(src, dst, 17, udpDgram(src, dst, payload(100))))
			a.Packet(epoch, frame[:50], len(frame))
		}
	}
	if err := a.Flush(); err != nil || n != 100 {
		t.Errorf("%d samples, %v", n, err)
	}
}

func TestMidStreamFlowsSaySo(t *testing.T) {
	got := map[uint16]bool{}
	a := New(Options{MidStream: true, MaxOpen: 2, TempDir: t.TempDir()}, func(_ *Flow, s *flow.Sample) {
		client := s.Initiator()
		if client.Port() == server4.Port() {
			client = s.Responder()
		}
		got[client.Port()] = s.MidStream
	}, nil)
	ms := 0
	feed := func(port uint16, words string) {
		for _, p := range talk(t, words) {
			at := 34
			if binary.BigEndian.Uint16(p.frame[at:]) == server4.Port() {
				at += 2
			}
			binary.BigEndian.PutUint16(p.frame[at:], port)
			a.Packet(epoch.Add(time.Duration(ms)*time.Millisecond), p.frame, len(p.frame))
			ms++
		}
	}
	for p := range uint16(9) { // more than there is room for
		feed(100+p, ">A >A10")
	}
	feed(200, ">S <SA >A >A10")
	feed(201, "<SA >A,ack+9 >A10,ack+9") // a SYN+ACK is no beginning
	feed(202, ">A10 new >S <SA >A >A1")  // begins anew
	for _, fromClient := range []bool{true, false} {
		datagram := udp4(fromClient, 10)
		a.Packet(epoch.Add(time.Duration(ms)*time.Millisecond), datagram, len(datagram))
	}
	if err := a.Flush(); err != nil {
		t.Fatal(err)
	}
	for p := range uint16(9) {
		if !got[100+p] {
			t.Errorf("flow of port %d is not mid-stream", 100+p)
		}
	}
	if got[200] || got[202] || got[client4.Port()] || len(got) < 12 {
		t.Errorf("mid-stream: %v", got)
	}
}
