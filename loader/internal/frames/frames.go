// SPDX-License-Identifier: Apache-2.0

// Package frames builds packets layer by layer, from the inside out, for tests of
// the kernel programs and of the flow assembly. What it builds is right unless a
// test spoils it afterwards, checksums included; that of UDP is left out, as it may be.
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
		return WithOptions(src, dst, 0, proto, body)
	}
	packet := slices.Concat([]byte{0x60, 0, 0, 0}, be16(len(body)), []byte{proto, 64},
		src.Addr().AsSlice(), dst.Addr().AsSlice(), body)
	SetTCPChecksum(packet)
	return packet
}

// WithOptions returns an IPv4 packet with so many words of options, all zero.
func WithOptions(src, dst netip.AddrPort, words int, proto byte, body []byte) []byte {
	packet := slices.Concat([]byte{0x45 + byte(words), 0}, be16(20+4*words+len(body)),
		[]byte{0x12, 0x34, 0x40, 0, 64, proto, 0, 0}, src.Addr().AsSlice(), dst.Addr().AsSlice(), make([]byte, 4*words), body)
	SetChecksum(packet)
	SetTCPChecksum(packet)
	return packet
}

// SetTCPChecksum puts the right checksum into the TCP segment that an IP packet, IPv6
// without extension headers, carries, if there is one.
func SetTCPChecksum(packet []byte) {
	addresses, proto, at := packet[8:min(40, len(packet))], packet[6], 40
	if packet[0]>>4 == 4 {
		addresses, proto, at = packet[12:20], packet[9], int(packet[0]&0x0f)*4
	}
	if proto != TCP || len(packet) < at+20 {
		return
	}
	segment := packet[at:]
	segment[16], segment[17] = 0, 0
	binary.BigEndian.PutUint16(segment[16:], ^fold(sum(addresses)+TCP+len(segment)+sum(segment)))
}

// PseudoSum is what stands in the place of the checksum of a segment of n bytes that a
// network card is yet to complete.
func PseudoSum(src, dst netip.AddrPort, proto byte, n int) uint16 {
	return fold(sum(src.Addr().AsSlice()) + sum(dst.Addr().AsSlice()) + int(proto) + n)
}

func sum(b []byte) (n int) {
	for i := 0; i+1 < len(b); i += 2 {
		n += int(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		n += int(b[len(b)-1]) << 8
	}
	return n
}

func fold(n int) uint16 {
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return uint16(n)
}

// A Piece is what of a packet, counted from where it may be cut up, goes into a fragment.
type Piece struct{ From, To int }

// Fragments cuts an IPv4 packet up behind its header and options, or an IPv6 packet
// behind its header. A piece that reaches to the end of the packet or beyond is the last one.
func Fragments(packet []byte, id uint32, pieces ...Piece) (all [][]byte) {
	for _, p := range pieces {
		head := 40
		if packet[0]>>4 == 4 {
			head = int(packet[0]&0x0f) * 4
		}
		body := packet[head:]
		more := byte(1)
		if p.To >= len(body) {
			p.To, more = len(body), 0
		}
		body = body[min(p.From, p.To):p.To]
		if packet[0]>>4 == 4 {
			fragment := slices.Concat(packet[:head], body)
			binary.BigEndian.PutUint16(fragment[2:], uint16(len(fragment)))
			binary.BigEndian.PutUint16(fragment[4:], uint16(id))
			binary.BigEndian.PutUint16(fragment[6:], uint16(more)<<13|uint16(p.From/8))
			SetChecksum(fragment)
			all = append(all, fragment)
			continue
		}
		fragment := slices.Concat(packet[:head], FragmentHeader(packet[6], p.From, more == 1, id), body)
		binary.BigEndian.PutUint16(fragment[4:], uint16(len(fragment)-40))
		fragment[6] = 44
		all = append(all, fragment)
	}
	return all
}

// FragmentHeader returns an IPv6 fragment header in front of next. offset is in bytes.
func FragmentHeader(next byte, offset int, more bool, id uint32) []byte {
	field := offset &^ 7
	if more {
		field |= 1
	}
	return binary.BigEndian.AppendUint32(slices.Concat([]byte{next, 0}, be16(field)), id)
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
	binary.BigEndian.PutUint16(packet[10:], ^fold(sum(packet[:n])))
}
