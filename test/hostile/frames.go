// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/earlydrop/earlydrop/test/lab/flood"
)

// nowhere is where a flood goes; source address and port are overwritten.
const nowhere = "198.51.100.1:443"

// synFrames is a SYN as Linux sends it: 20 bytes of options, 74 bytes in all.
func synFrames() ([]flood.Frame, error) {
	frame, err := segment(&layers.TCP{Seq: 1, SYN: true, Options: []layers.TCPOption{
		{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}},
		{OptionType: layers.TCPOptionKindSACKPermitted, OptionLength: 2},
		{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: make([]byte, 8)},
		{OptionType: layers.TCPOptionKindNop},
		{OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3, OptionData: []byte{7}},
	}}, nil, false)
	return []flood.Frame{{Bytes: frame}}, err
}

// synByteFrames are a SYN and, without an answer to it, one byte.
func synByteFrames() ([]flood.Frame, error) {
	syn, err1 := segment(&layers.TCP{Seq: 1, SYN: true}, nil, false)
	data, err2 := segment(&layers.TCP{Seq: 2, Ack: 7, ACK: true, PSH: true}, []byte{'x'}, false)
	return []flood.Frame{{Bytes: syn}, {Bytes: data}}, errors.Join(err1, err2)
}

// handshakeFrames are whole connections, forged by one who is on one side only: the
// handshake with numbers that fit, and a byte of payload.
func handshakeFrames() ([]flood.Frame, error) {
	syn, err1 := segment(&layers.TCP{Seq: 1, SYN: true}, nil, false)
	synAck, err2 := segment(&layers.TCP{Seq: 100, Ack: 2, SYN: true, ACK: true}, nil, true)
	ack, err3 := segment(&layers.TCP{Seq: 2, Ack: 101, ACK: true}, nil, false)
	data, err4 := segment(&layers.TCP{Seq: 2, Ack: 101, ACK: true, PSH: true}, []byte{'x'}, false)
	return []flood.Frame{{Bytes: syn}, {Bytes: synAck, Reply: true}, {Bytes: ack}, {Bytes: data}}, errors.Join(err1, err2, err3, err4)
}

// segment is a TCP segment between the flood's initiator and nowhere.
func segment(tcp *layers.TCP, payload []byte, reply bool) ([]byte, error) {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{11, 0, 0, 1}, DstIP: net.IP{198, 51, 100, 1}}
	tcp.SrcPort, tcp.DstPort, tcp.Window = 1, 443, 64240
	if reply {
		ip.SrcIP, ip.DstIP = ip.DstIP, ip.SrcIP
		tcp.SrcPort, tcp.DstPort = tcp.DstPort, tcp.SrcPort
	}
	return flood.Ethernet(ip, tcp, gopacket.Payload(payload))
}

// udpFrames is a datagram with n bytes of payload.
func udpFrames(n int) ([]flood.Frame, error) {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{11, 0, 0, 1}, DstIP: net.IP{198, 51, 100, 1}}
	frame, err := flood.Ethernet(ip, &layers.UDP{SrcPort: 1, DstPort: 443}, gopacket.Payload(make([]byte, n)))
	return []flood.Frame{{Bytes: frame}}, err
}
