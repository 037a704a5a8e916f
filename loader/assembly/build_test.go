// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
)

// The functions below build packets layer by layer, from the inside out.

var (
	client4 = netip.MustParseAddrPort("10.0.0.2:40000")
	server4 = netip.MustParseAddrPort("192.0.2.7:443")
	client6 = netip.MustParseAddrPort("[fd00::2]:40000")
	server6 = netip.MustParseAddrPort("[2001:db8::7]:443")
)

func be16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

func payload(n int) []byte { return []byte(strings.Repeat("p", n)) }

// tcpSeg returns a TCP header with options (padded to 4 bytes) and payload.
func tcpSeg(src, dst netip.AddrPort, flags TCPFlags, options, body []byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, 1)
	}
	doff := byte((tcpHeader + len(options)) / 4)
	return slices.Concat(be16(int(src.Port())), be16(int(dst.Port())),
		[]byte{0, 0, 0, 1, 0, 0, 0, 2, doff << 4, byte(flags), 0xff, 0xff, 0, 0, 0, 0}, options, body)
}

func udpDgram(src, dst netip.AddrPort, body []byte) []byte {
	return slices.Concat(be16(int(src.Port())), be16(int(dst.Port())), be16(udpHeader+len(body)), be16(0), body)
}

// ip returns an IPv4 or IPv6 packet, as the addresses say.
func ip(src, dst netip.AddrPort, proto byte, body []byte) []byte {
	if src.Addr().Is4() {
		return slices.Concat([]byte{0x45, 0}, be16(ipv4Header+len(body)),
			[]byte{0x12, 0x34, 0x40, 0, 64, proto, 0, 0}, src.Addr().AsSlice(), dst.Addr().AsSlice(), body)
	}
	return slices.Concat([]byte{0x60, 0, 0, 0}, be16(len(body)), []byte{proto, 64},
		src.Addr().AsSlice(), dst.Addr().AsSlice(), body)
}

// eth puts an Ethernet header in front; tags are VLAN tags as EtherType and
// TCI pairs, the outer one first.
func eth(packet []byte, tags ...int) []byte {
	frame := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	for i := 0; i < len(tags); i += 2 {
		frame = slices.Concat(frame, be16(tags[i]), be16(tags[i+1]))
	}
	etherType := etherIPv4
	if packet[0]>>4 == 6 {
		etherType = etherIPv6
	}
	return slices.Concat(frame, be16(etherType), packet)
}

// tcp4 returns a whole frame of client4 to server4, or back.
func tcp4(fromClient bool, flags TCPFlags, n int) []byte {
	src, dst := client4, server4
	if !fromClient {
		src, dst = dst, src
	}
	return eth(ip(src, dst, byte(6), tcpSeg(src, dst, flags, nil, payload(n))))
}

func udp4(fromClient bool, n int) []byte {
	src, dst := client4, server4
	if !fromClient {
		src, dst = dst, src
	}
	return eth(ip(src, dst, byte(17), udpDgram(src, dst, payload(n))))
}

// with returns a copy of frame in which the bytes at off are replaced.
func with(frame []byte, off int, b ...byte) []byte {
	frame = slices.Clone(frame)
	copy(frame[off:], b)
	return frame
}
