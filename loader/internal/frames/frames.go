// SPDX-License-Identifier: Apache-2.0

// Package frames builds packets layer by layer, from the inside out, for tests of
// the kernel programs and of the flow assembly. What it builds is right unless a
// test spoils it afterwards, the checksum of IPv4 headers included; those of TCP and
// UDP are left at zero, as nothing reads them.
package frames

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
)

// EtherTypes and transport protocols.
const (
	TypeIPv4 = 0x0800
	TypeIPv6 = 0x86dd
	TypeVLAN = 0x8100
	TypeQinQ = 0x88a8

	TCP = 6
	UDP = 17
)

// TCP flags.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	PSH = 0x08
	ACK = 0x10
)

func be16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

// Payload returns n bytes.
func Payload(n int) []byte { return []byte(strings.Repeat("p", n)) }

// Segment returns a TCP header with options, padded to 4 bytes, and payload.
func Segment(src, dst netip.AddrPort, flags byte, options, body []byte) []byte {
	options = slices.Clone(options)
	for len(options)%4 != 0 {
		options = append(options, 1)
	}
	doff := byte((20 + len(options)) / 4)
	return slices.Concat(be16(int(src.Port())), be16(int(dst.Port())),
		[]byte{0, 0, 0, 1, 0, 0, 0, 2, doff << 4, flags, 0xff, 0xff, 0, 0, 0, 0}, options, body)
}

// Numbered returns a copy of a segment with other sequence and acknowledgement numbers
// than 1 and 2.
func Numbered(segment []byte, seq, ack uint32) []byte {
	segment = slices.Clone(segment)
	binary.BigEndian.PutUint32(segment[4:], seq)
	binary.BigEndian.PutUint32(segment[8:], ack)
	return segment
}

// Datagram returns a UDP header and payload.
func Datagram(src, dst netip.AddrPort, body []byte) []byte {
	return slices.Concat(be16(int(src.Port())), be16(int(dst.Port())), be16(8+len(body)), be16(0), body)
}

// IP returns an IPv4 or IPv6 packet, as the addresses say.
func IP(src, dst netip.AddrPort, proto byte, body []byte) []byte {
	if src.Addr().Is4() {
		packet := slices.Concat([]byte{0x45, 0}, be16(20+len(body)),
			[]byte{0x12, 0x34, 0x40, 0, 64, proto, 0, 0}, src.Addr().AsSlice(), dst.Addr().AsSlice(), body)
		SetChecksum(packet)
		return packet
	}
	return slices.Concat([]byte{0x60, 0, 0, 0}, be16(len(body)), []byte{proto, 64},
		src.Addr().AsSlice(), dst.Addr().AsSlice(), body)
}

// Extension returns an IPv6 extension header of 8*(1+more) bytes in front of next.
func Extension(next byte, more int) []byte {
	return slices.Concat([]byte{next, byte(more)}, make([]byte, 6+8*more))
}

// Ethernet puts an Ethernet header in front; tags are pairs of EtherType and TCI,
// the outer one first.
func Ethernet(packet []byte, tags ...int) []byte {
	frame := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	for i := 0; i < len(tags); i += 2 {
		frame = slices.Concat(frame, be16(tags[i]), be16(tags[i+1]))
	}
	etherType := TypeIPv4
	if packet[0]>>4 == 6 {
		etherType = TypeIPv6
	}
	return slices.Concat(frame, be16(etherType), packet)
}

// With returns a copy of frame in which the bytes at off are replaced.
func With(frame []byte, off int, b ...byte) []byte {
	frame = slices.Clone(frame)
	copy(frame[off:], b)
	return frame
}

// Checksum returns a copy of a frame of Ethernet, with or without tags, and IPv4 in
// which the header's checksum is right again after With, wherever in the frame the
// header ends. What holds no such header comes back as it was.
func Checksum(frame []byte) []byte {
	frame = slices.Clone(frame)
	for off := 12; off+4 <= len(frame); off += 4 {
		switch binary.BigEndian.Uint16(frame[off:]) {
		case TypeVLAN, TypeQinQ, 0x9100:
			continue
		case TypeIPv4:
			SetChecksum(frame[off+2:])
		}
		return frame
	}
	return frame
}

// SetChecksum puts the right checksum into the header that an IPv4 packet begins with,
// if the header is whole.
func SetChecksum(packet []byte) {
	n := 0
	if len(packet) > 0 {
		n = int(packet[0]&0x0f) * 4
	}
	if n < 20 || n > len(packet) {
		return
	}
	packet[10], packet[11] = 0, 0
	sum := 0
	for i := 0; i < n; i += 2 {
		sum += int(binary.BigEndian.Uint16(packet[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(packet[10:], ^uint16(sum))
}
