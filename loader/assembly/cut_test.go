// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// checked returns the frame with the right checksum in its IPv4 header.
func checked(frame []byte) []byte {
	header := frame[14:34]
	header[10], header[11] = 0, 0
	sum := 0
	for i := 0; i < len(header); i += 2 {
		sum += int(binary.BigEndian.Uint16(header[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(header[10:], ^uint16(sum))
	return frame
}

func TestCutFlows(t *testing.T) {
	const whole, cut, incomplete = 0, 1, 2
	// snapped is a frame of which a file holds the first n bytes.
	type snapped struct {
		frame []byte
		n     int
	}
	all := func(frame []byte) snapped { return snapped{frame, len(frame)} }
	open := []snapped{all(tcp4(true, SYN, 0)), all(tcp4(false, SYN|ACK, 0)), all(tcp4(true, ACK, 0))} // 162 bytes
	after := func(packets ...snapped) []snapped { return append(append([]snapped{}, open...), packets...) }
	optionSYN := eth(ip(client4, server4, 6, tcpSeg(client4, server4, SYN, make([]byte, 20), nil)))
	options := eth(ip(client4, server4, 6, tcpSeg(client4, server4, ACK, make([]byte, 12), payload(100))))
	udp6 := eth(ip(client6, server6, 17, udpDgram(client6, server6, payload(100)))) // payload from 62 on
	vlan := eth(ip(client4, server4, 17, udpDgram(client4, server4, payload(100))), etherVLAN, 7)
	super := checked(with(tcp4(false, ACK, 40000), 16, 0, 0)) // of segmentation offload: no length in the header
	padded := append(udp4(true, 5), make([]byte, 13)...)
	fragment := checked(with(udp4(true, 100), 20, 0x20, 0)) // the first one: its datagram goes on
	binary.BigEndian.PutUint16(fragment[38:], 2000)

	for _, tt := range []struct {
		name    string
		packets []snapped
		want    int
		wire    bool // the file gives the length that it holds as the one on the wire
	}{
		{name: "whole", packets: after(all(tcp4(true, ACK, 100)), all(tcp4(false, ACK, 200)))},
		{name: "headers only", packets: after(snapped{tcp4(true, ACK, 100), 54}), want: incomplete},
		{name: "31 bytes of payload", packets: after(snapped{tcp4(true, ACK, 100), 54 + 31}), want: incomplete},
		{name: "32 bytes of payload", packets: after(snapped{tcp4(true, ACK, 100), 54 + 32}), want: cut},
		{name: "all but one byte of payload", packets: after(snapped{tcp4(true, ACK, 100), 54 + 99}), want: cut},
		{name: "little payload, all there", packets: after(all(tcp4(true, ACK, 31)))},
		{name: "little payload, not all there", packets: after(snapped{tcp4(true, ACK, 31), 54 + 30}), want: incomplete},
		{name: "exactly 32 bytes, one missing", packets: after(snapped{tcp4(true, ACK, 32), 54 + 31}), want: incomplete},
		{name: "one of many packets", packets: after(all(tcp4(true, ACK, 100)), snapped{tcp4(false, ACK, 200), 60}, all(tcp4(true, ACK, 100))), want: incomplete},
		{name: "cut first, then without payload", packets: after(snapped{tcp4(true, ACK, 100), 100}, snapped{tcp4(true, ACK, 100), 54}), want: incomplete},

		// 862 bytes are missing to the 1024th after the handshake.
		{name: "cut by the 1024th byte", packets: after(all(tcp4(false, ACK, 1400)))},
		{name: "cut in the file behind the 1024th byte", packets: after(snapped{tcp4(false, ACK, 1400), 1000})},
		{name: "cut in the file at the 1024th byte", packets: after(snapped{tcp4(false, ACK, 1400), 862})},
		{name: "cut in the file before the 1024th byte", packets: after(snapped{tcp4(false, ACK, 1400), 861}), want: cut},
		{name: "a few bytes have room, and are there", packets: after(all(tcp4(false, ACK, 748)), snapped{tcp4(true, ACK, 100), 60})},
		{name: "a few bytes have room, and are not there", packets: after(all(tcp4(false, ACK, 748)), snapped{tcp4(true, ACK, 100), 59}), want: incomplete},
		{name: "a packet that the capture has no room for", packets: after(all(tcp4(false, ACK, 1400)), snapped{tcp4(true, ACK, 100), 54})},

		{name: "options of a header-only packet", packets: []snapped{{optionSYN, 60}, open[1], all(tcp4(true, ACK, 40))}, want: cut},
		{name: "options before payload", packets: after(snapped{options, 60}), want: incomplete},
		{name: "payload behind options", packets: after(snapped{options, 66 + 32}), want: cut},
		{name: "a header-only packet later", packets: after(all(tcp4(true, ACK, 50)), all(tcp4(false, ACK, 0)))},
		{name: "UDP", packets: []snapped{{udp4(true, 100), 42 + 31}}, want: incomplete},
		{name: "UDP, cut", packets: []snapped{{udp4(true, 100), 42 + 32}}, want: cut},
		{name: "UDP, answer", packets: []snapped{all(udp4(true, 100)), {udp4(false, 100), 42}}, want: incomplete},
		{name: "IPv6", packets: []snapped{{udp6, 62 + 31}}, want: incomplete},
		{name: "IPv6, cut", packets: []snapped{{udp6, 62 + 32}}, want: cut},
		{name: "VLAN", packets: []snapped{{vlan, 46 + 31}}, want: incomplete},
		{name: "VLAN, cut", packets: []snapped{{vlan, 46 + 32}}, want: cut},
		{name: "Ethernet padding", packets: []snapped{all(padded)}},
		{name: "Ethernet padding cut off", packets: []snapped{{padded, 50}}},
		{name: "a super-packet", packets: after(all(super))},
		{name: "a super-packet, cut", packets: after(snapped{super, 200}), want: cut},
		{name: "a super-packet, headers only", packets: after(snapped{super, 54}), want: incomplete},
		{name: "a first fragment", packets: []snapped{all(fragment)}},
		{name: "a first fragment, cut", packets: []snapped{{fragment, 100}}, want: cut},
		{name: "a first fragment, headers only", packets: []snapped{{fragment, 50}}, want: incomplete},

		{name: "length on the wire lost", packets: after(snapped{tcp4(true, ACK, 100), 54 + 20}), want: incomplete, wire: true},
		{name: "length on the wire lost, cut", packets: after(snapped{tcp4(true, ACK, 100), 54 + 40}), want: cut, wire: true},
		{name: "length on the wire lost, whole", packets: after(all(tcp4(true, ACK, 100))), wire: true},
		{name: "length on the wire lost, UDP", packets: []snapped{{udp4(true, 100), 42 + 31}}, want: incomplete, wire: true},
		{name: "length on the wire lost, IPv6", packets: []snapped{{udp6, 62 + 31}}, want: incomplete, wire: true},
		{name: "length on the wire lost, headers only later", packets: after(all(tcp4(true, ACK, 100)), snapped{tcp4(false, ACK, 100), 54}), want: incomplete, wire: true},
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
	for range 2 {
		for i := range 100 {
			src := netip.AddrPortFrom(client4.Addr(), uint16(1000+i))
			frame := eth(ip(src, server4, 17, udpDgram(src, server4, payload(100))))
			a.Packet(epoch, frame[:50], len(frame))
		}
	}
	if err := a.Flush(); err != nil || n != 100 {
		t.Errorf("%d samples, %v", n, err)
	}
}

func TestMidStreamFlowsSaySo(t *testing.T) {
	got := map[uint16]bool{}
	a := New(Options{MidStream: true, MaxOpen: 2, TempDir: t.TempDir()}, func(_ *Flow, s *flow.Sample) { got[s.Initiator().Port()] = s.MidStream }, nil)
	ms := 0
	feed := func(frames ...[]byte) {
		for _, frame := range frames {
			a.Packet(epoch.Add(time.Duration(ms)*time.Millisecond), frame, len(frame))
			ms++
		}
	}
	port := func(p uint16, frame []byte) []byte {
		binary.BigEndian.PutUint16(frame[34:], p)
		return frame
	}
	for p := range uint16(9) { // more than there is room for
		feed(port(100+p, tcp4(true, ACK, 0)), port(100+p, tcp4(true, ACK, 10)))
	}
	feed(port(200, tcp4(true, SYN, 0)), port(200, tcp4(true, ACK, 10)))                                // from its beginning
	feed(port(201, tcp4(true, SYN|ACK, 10)), port(201, tcp4(true, ACK, 10)))                           // a SYN+ACK is no beginning
	feed(port(202, tcp4(true, ACK, 10)), port(202, tcp4(true, SYN, 0)), port(202, tcp4(true, ACK, 1))) // begins anew
	feed(port(203, udp4(true, 10)))
	if err := a.Flush(); err != nil {
		t.Fatal(err)
	}
	for p := range uint16(9) {
		if !got[100+p] {
			t.Errorf("flow of port %d is not mid-stream", 100+p)
		}
	}
	if got[200] || !got[201] || got[202] || got[203] || len(got) != 13 {
		t.Errorf("mid-stream: %v", got)
	}
}
