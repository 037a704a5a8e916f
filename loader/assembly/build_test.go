// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"encoding/binary"
	"net/netip"

	"github.com/earlydrop/earlydrop/loader/flow/headers"
	"github.com/earlydrop/earlydrop/loader/internal/frames"
)

// Short names for building packets layer by layer, from the inside out.
var (
	payload  = frames.Payload
	udpDgram = frames.Datagram
	ip       = frames.IP
	eth      = frames.Ethernet
	with     = frames.With
	right    = frames.Checksum
	client4  = netip.MustParseAddrPort("10.0.0.2:40000")
	server4  = netip.MustParseAddrPort("192.0.2.7:443")
	client6  = netip.MustParseAddrPort("[fd00::2]:40000")
	server6  = netip.MustParseAddrPort("[2001:db8::7]:443")
)

// Names of package headers that the tests use all the time.
const (
	FIN = headers.FIN
	SYN = headers.SYN
	RST = headers.RST
	ACK = headers.ACK

	etherIPv4   = headers.TypeIPv4
	etherIPv6   = headers.TypeIPv6
	etherVLAN   = headers.TypeVLAN
	etherQinQ   = headers.TypeQinQ
	extDestOpts = headers.DestOptions
)

func be16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

func tcpSeg(src, dst netip.AddrPort, flags headers.Flags, options, body []byte) []byte {
	return frames.Segment(src, dst, byte(flags), options, body)
}

// tcp4 returns a whole frame of client4 to server4, or back.
func tcp4(fromClient bool, flags headers.Flags, n int) []byte {
	src, dst := client4, server4
	if !fromClient {
		src, dst = dst, src
	}
	return eth(ip(src, dst, frames.TCP, tcpSeg(src, dst, flags, nil, payload(n))))
}

func udp4(fromClient bool, n int) []byte {
	src, dst := client4, server4
	if !fromClient {
		src, dst = dst, src
	}
	return eth(ip(src, dst, frames.UDP, udpDgram(src, dst, payload(n))))
}
