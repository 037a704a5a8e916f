// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"net"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

// segment is a segment of a connection's client as a host sends it.
func segment(t *testing.T, v6 bool, flags byte, payload []byte) (frame []byte) {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	tcp := &layers.TCP{SrcPort: 10000, DstPort: 443, Seq: 1001, Ack: 5001, Window: 500,
		SYN: flags&syn != 0, ACK: flags&ack != 0, PSH: flags&psh != 0, RST: flags&rst != 0, FIN: flags&fin != 0,
		Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindNop}, {OptionType: layers.TCPOptionKindNop},
			{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: []byte{0, 15, 66, 64, 0, 0, 0, 9}}}}
	var ip gopacket.SerializableLayer
	if v6 {
		eth.EthernetType = layers.EthernetTypeIPv6
		six := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: net.ParseIP("2001:db8::1"), DstIP: net.ParseIP("2001:db8::2")}
		_ = tcp.SetNetworkLayerForChecksum(six)
		ip = six
	} else {
		four := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, Flags: layers.IPv4DontFragment, SrcIP: net.IP{192, 0, 2, 1}, DstIP: net.IP{198, 51, 100, 1}}
		_ = tcp.SetNetworkLayerForChecksum(four)
		ip = four
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, tcp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// forEach runs a test over IPv4 and IPv6, with a segment of an odd length.
func forEach(t *testing.T, fn func(t *testing.T, frame []byte, p *packet)) {
	t.Helper()
	for name, v6 := range map[string]bool{"ipv4": false, "ipv6": true} {
		t.Run(name, func(t *testing.T) {
			frame := segment(t, v6, psh|ack, hello[:999])
			p, ok := parsePacket(frame, protoTCP)
			if !ok {
				t.Fatal("the segment is not understood")
			}
			fn(t, frame, p)
		})
	}
}

func TestPacketsComeOutAsTheyWent(t *testing.T) {
	forEach(t, func(t *testing.T, frame []byte, p *packet) {
		if got := p.frame(); !bytes.Equal(got, frame) {
			t.Errorf("got  %x\nwant %x", got, frame)
		}
		// Ethernet padding is no payload.
		padded, ok := parsePacket(append(bytes.Clone(frame), make([]byte, 9)...), protoTCP)
		if !ok || !bytes.Equal(padded.frame(), frame) {
			t.Error("padding became part of the packet")
		}
		twice := p.clone()
		twice.turn()
		twice.turn()
		if !bytes.Equal(twice.frame(), frame) {
			t.Error("turned twice, it is another packet")
		}
		if _, ok := parsePacket(frame[:60], protoTCP); ok {
			t.Error("a packet that was cut is understood")
		}
		if _, ok := parsePacket(frame, protoTest); ok {
			t.Error("a packet of another protocol is understood")
		}
	})
}

// Whatever is changed, what the program's own walk over headers finds is what was meant.
func TestChangedPacketsAreWellFormed(t *testing.T) {
	for _, tt := range []struct {
		name    string
		changes []change
		payload int
	}{
		{"a signature", []change{signed}, 999},
		{"padding", []change{padded}, 999},
		{"other payload", []change{loaded}, 800},
		{"no room for two options", []change{signed, signed}, 999},
		{"a header of destination options", []change{func(p *packet) {
			if p.v6() {
				p.extend(protoDestOpts, []byte{0, 0, 1, 4, 0, 0, 0, 0})
				p.extend(protoDestOpts, []byte{0, 0, 1, 4, 0, 0, 0, 0})
			}
		}}, 999},
		{"a wrong checksum", []change{wrongSum}, 999},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forEach(t, func(t *testing.T, _ []byte, p *packet) {
				frame := with(p, tt.changes...).frame()
				h, verdict := headers.Parse(frame, len(frame))
				if verdict != headers.OK || h.PayloadLen != tt.payload {
					t.Errorf("%v, %d bytes of payload, want %v, %d", verdict, h.PayloadLen, headers.OK, tt.payload)
				}
				right := tcpSum(t, frame) == 0
				if wrong := tt.name == "a wrong checksum"; right == wrong {
					t.Errorf("the checksum is right: %v", right)
				}
			})
		})
	}
}

// tcpSum returns the sum over the segment in a frame, which is 0 where its checksum is right.
func tcpSum(t *testing.T, frame []byte) uint16 {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	tcp := p.Layer(layers.LayerTypeTCP)
	if tcp == nil {
		t.Fatalf("no TCP in %s", p)
	}
	body := append(bytes.Clone(tcp.LayerContents()), tcp.LayerPayload()...)
	sum := add(uint32(protoTCP)+uint32(len(body)), body)
	if six, ok := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6); ok {
		sum = add(add(sum, six.SrcIP), six.DstIP)
	} else {
		four := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
		sum = add(add(sum, four.SrcIP.To4()), four.DstIP.To4())
	}
	return ^fold(sum)
}

func TestTimestampsGoStale(t *testing.T) {
	forEach(t, func(t *testing.T, _ []byte, p *packet) {
		stale(p)
		at, n := p.findOption(optTimestamps)
		if want := []byte{0, 6, 26, 128, 0, 0, 0, 9}; n != 10 || !bytes.Equal(p.tcp[at+2:at+10], want) { // 1 000 000 - 600 000
			t.Errorf("the option at %d of %d bytes in %x, want %x in it", at, n, p.tcp, want)
		}
		p.removeOption(optTimestamps)
		if at, n := p.findOption(optTimestamps); at != 0 || n != 0 {
			t.Errorf("removed, it is there: at %d, %d bytes", at, n)
		}
	})
}

// Fragments hold what the packet held, each byte where it was, however they are cut.
func TestFragmentsMakeThePacket(t *testing.T) {
	for name, pieces := range map[string][]piece{
		"even": even(160), "tiny first": {{from: 0, to: 8}, {from: 8, to: 1 << 16}}, "whole": {{from: 0, to: 1 << 16}}, "backwards": reversed(even(24)),
	} {
		t.Run(name, func(t *testing.T) {
			forEach(t, func(t *testing.T, frame []byte, p *packet) {
				at := len(frame) - len(p.tcp) - len(p.payload)
				body := frame[at:]
				got := make([]byte, len(body))
				last := 0
				for _, f := range p.fragments(pieces...) {
					pk := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default)
					offset, more, data := 0, false, []byte(nil)
					if h, ok := pk.Layer(layers.LayerTypeIPv6Fragment).(*layers.IPv6Fragment); ok {
						offset, more, data = int(h.FragmentOffset)*8, h.MoreFragments, h.Payload
					} else if h, ok := pk.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ok {
						offset, more, data = int(h.FragOffset)*8, h.Flags&layers.IPv4MoreFragments != 0, h.Payload
						if h.Flags&layers.IPv4DontFragment != 0 || fold(add(0, h.Contents)) != 0xffff {
							t.Errorf("header %x", h.Contents)
						}
					}
					if offset+len(data) > len(got) {
						t.Fatalf("%d bytes at %d, the packet has %d", len(data), offset, len(got))
					}
					copy(got[offset:], data)
					if !more {
						last++
						if offset+len(data) != len(got) {
							t.Errorf("the last fragment ends at %d of %d", offset+len(data), len(got))
						}
					}
				}
				if last != 1 || !bytes.Equal(got, body) {
					t.Errorf("%d last fragments; got  %x\nwant %x", last, got, body)
				}
			})
		})
	}
}

// What a server that keeps what came first makes of the segments is what the client sent.
func TestSegmentsMakeTheStream(t *testing.T) {
	for name, h := range map[string]hook{
		"multisplit": cutAt(false, 2, 50, 100), "disorder": cutAt(true, 2, 50, 100), "beyond": cutAt(true, 50, 5000), "fakedsplit": fakedSplit(false), "fakeddisorder": fakedSplit(true),
		"overlap-left": overlapLeft, "overlap-new": overlapNew, "overlap-old": overlapOld, "stutter": stutter,
	} {
		t.Run(name, func(t *testing.T) {
			forEach(t, func(t *testing.T, _ []byte, p *packet) {
				want := bytes.Clone(p.payload)
				f := &flow{strategy: &strategy{}, x: p.seq() - 1, opened: true}
				frames := h(f, p)
				if len(frames) < 2 {
					t.Fatalf("%d segments", len(frames))
				}
				if got := received(t, frames, f.x+1); !bytes.Equal(got, want) {
					t.Errorf("got %x\nwant %x", got, want)
				}
			})
		})
	}
}

// received is the stream that a host makes of segments: what is not in order waits, and
// gives way to what comes in order.
func received(t *testing.T, frames [][]byte, next uint32) (stream []byte) {
	t.Helper()
	type waiting struct {
		seq  uint32
		data []byte
	}
	var queue []waiting
	take := func(seq uint32, data []byte) bool {
		behind := int(int32(next - seq))
		if behind < 0 {
			return false
		}
		if behind < len(data) {
			stream = append(stream, data[behind:]...)
			next += uint32(len(data) - behind)
		}
		return true
	}
	for _, frame := range frames {
		if tcpSum(t, frame) != 0 {
			continue
		}
		p, ok := parsePacket(frame, protoTCP)
		if !ok {
			t.Fatal("no packet")
		}
		if !take(p.seq(), p.payload) {
			queue = append(queue, waiting{p.seq(), p.payload})
		}
		for range queue { // one may be what another has waited for
			queue = slices.DeleteFunc(queue, func(w waiting) bool { return take(w.seq, w.data) })
		}
	}
	return stream
}
