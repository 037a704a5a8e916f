// SPDX-License-Identifier: Apache-2.0

package headers

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

// unhex joins pieces of hexadecimal text to bytes.
func unhex(t testing.TB, pieces ...string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Join(pieces, ""), " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Pieces of frames.
const (
	macs    = "020000000002 020000000001"
	ip4TCP  = "4500 0034 abcd 4000 40 06 0000 0a000001 0a090001"
	ip4UDP  = "4500 0024 abcd 4000 40 11 0000 0a000001 0a090001"
	ip6     = "6000 1234 0014" // and next header, hop limit, addresses
	ip6End  = "40 20010db8000000000000000000000001 20010db8000000000000000000000002"
	tcpBare = "03e9 01bb 00000001 00000000 50 02 ffff 0000 0000"
	udpHead = "d031 0035 0010 0000"
)

func TestFields(t *testing.T) {
	for _, tt := range []struct {
		name  string
		frame []string
		want  string // NAME:LENGTH..., without the Ethernet addresses; payload
	}{
		{"TCP", []string{macs, "0800", ip4TCP, tcpBare, "6869"},
			"EtherType:2 IPv4 version and header length:1 IPv4 DSCP and ECN:1 IPv4 total length:2 IPv4 identification:2 IPv4 flags and fragment offset:2 " +
				"IPv4 TTL:1 IPv4 protocol:1 IPv4 header checksum:2 IPv4 source address:4 IPv4 destination address:4 " +
				"TCP source port:2 TCP destination port:2 TCP sequence number:4 TCP acknowledgement number:4 TCP header length:1 TCP flags:1 " +
				"TCP window:2 TCP checksum:2 TCP urgent pointer:2; payload at 54"},
		{"TCP options", []string{macs, "0800", ip4TCP, "03e9 01bb 00000001 00000000 c0 02 ffff 0000 0000", "020405b4 0402 080a0000000100000002 01 030307 01 fe03aa 01 00 0000", "6869"},
			"TCP option MSS:4 TCP option SACK permitted:2 TCP option timestamps:2 TCP option timestamps value:8 TCP option padding:1 TCP option window scale:3 " +
				"TCP option padding:1 TCP option:3 TCP option padding:1 TCP option end:3; payload at 82"},
		{"TCP option with a length that can't be", []string{macs, "0800", ip4TCP, "03e9 01bb 00000001 00000000 60 02 ffff 0000 0000", "02000000", "6869"},
			"TCP urgent pointer:2 TCP option MSS:4; payload at 58"},
		{"TCP option longer than the header", []string{macs, "0800", ip4TCP, "03e9 01bb 00000001 00000000 60 02 ffff 0000 0000", "02080000", "6869"},
			"TCP urgent pointer:2 TCP option MSS:4; payload at 58"},
		{"TCP options side by side", []string{macs, "0800", ip4TCP, "03e9 01bb 00000001 00000000 f0 02 ffff 0000 0000", "fe02 fe03aa 050a0000000100000002 050a0000000300000004 1e04abcd 2204aabb 0806bbbbbbbb 01"},
			"TCP urgent pointer:2 TCP option:2 TCP option:3 TCP option SACK:2 TCP option SACK edges:8 TCP option SACK:2 TCP option SACK edges:8 " +
				"TCP option Multipath TCP:3 TCP option Multipath TCP value:1 TCP option Fast Open:2 TCP option Fast Open cookie:2 " +
				"TCP option timestamps:6 TCP option padding:1; payload at 94"},
		{"TCP option cut in its value", []string{macs, "0800", ip4TCP, "03e9 01bb 00000001 00000000 80 02 ffff 0000 0000", "0101 080a000000"},
			"TCP urgent pointer:2 TCP option padding:2 TCP option timestamps:2 TCP option timestamps value:3; payload at 61"},
		{"TCP header too short", []string{macs, "0800", ip4TCP, "03e9 01bb 00000001 00000000 40 02 ffff 0000 0000", "6869"},
			"TCP urgent pointer:2 TCP header, damaged:2; payload at 56"},
		{"TCP header cut", []string{macs, "0800", ip4TCP, "03e9 01bb 000000"}, "TCP destination port:2 TCP sequence number:3; payload at 41"},
		{"IPv4 options", []string{macs, "0800", "4600 0034 abcd 4000 40 06 0000 0a000001 0a090001 94040000", tcpBare}, "IPv4 destination address:4 IPv4 options:4 TCP source port:2"},
		{"later fragment", []string{macs, "0800", "4500 0034 abcd 4001 40 06 0000 0a000001 0a090001", "0102030405"}, "IPv4 destination address:4 part of a fragmented packet:5; payload at 39"},
		{"IPv4 header too short", []string{macs, "0800", "4400 0034 abcd 4000 40 06 0000 0a000001 0a090001"}, "EtherType:2 IPv4 header, damaged:20; payload at 34"},
		{"UDP", []string{macs, "0800", ip4UDP, udpHead, "0102"}, "UDP source port:2 UDP destination port:2 UDP length:2 UDP checksum:2; payload at 42"},
		{"UDP without payload", []string{macs, "0800", ip4UDP, udpHead}, "UDP checksum:2; payload at 42"},
		{"ICMP", []string{macs, "0800", "4500 0024 abcd 4000 40 01 0000 0a000001 0a090001", "0800 0000"}, "IPv4 destination address:4 neither TCP nor UDP:4; payload at 38"},
		{"VLAN", []string{macs, "8100 0007 0800", ip4UDP, udpHead, "01"}, "EtherType:2 VLAN tag 1:2 VLAN tag 1 EtherType:2 IPv4 version and header length:1"},
		{"QinQ", []string{macs, "88a8 0007 8100 0008 0800", ip4UDP, udpHead, "01"}, "VLAN tag 1 EtherType:2 VLAN tag 2:2 VLAN tag 2 EtherType:2 IPv4 version and header length:1"},
		{"three tags", []string{macs, "88a8 0007 8100 0008 8100 0009 0800"}, "VLAN tag 2 EtherType:2 not IP:4; payload at 26"},
		{"cut tag", []string{macs, "8100 0007"}, "VLAN tag 1:2; payload at 16"},
		{"IPv6", []string{macs, "86dd", ip6, "06", ip6End, tcpBare, "01"},
			"IPv6 version and traffic class:1 IPv6 flow label:3 IPv6 payload length:2 IPv6 next header:1 IPv6 hop limit:1 IPv6 source address:16 IPv6 destination address:16 TCP source port:2"},
		{"IPv6 extension headers", []string{macs, "86dd", ip6, "00", ip6End, "3c00010400000000", "2c00010400000000", "3300000012345678", "1104000000000001 0000000100000000 0000000000000000", udpHead, "01"},
			"IPv6 destination address:16 IPv6 hop-by-hop options:8 IPv6 destination options:8 IPv6 fragment header:4 IPv6 fragment identification:4 IPv6 authentication header:4 IPv6 authentication value:20 UDP source port:2 UDP destination port:2 UDP length:2 UDP checksum:2; payload at 110"},
		{"IPv6 later fragment", []string{macs, "86dd", ip6, "2c", ip6End, "1100000812345678", "010203"}, "IPv6 fragment header:4 IPv6 fragment identification:4 part of a fragmented packet:3; payload at 65"},
		{"IPv6 extension headers of one kind", []string{macs, "86dd", ip6, "3c", ip6End, "3c00010400000000", "1100010400000000", udpHead},
			"IPv6 destination address:16 IPv6 destination options:8 IPv6 destination options:8 UDP source port:2"},
		{"IPv6 routing header", []string{macs, "86dd", ip6, "2b", ip6End, "1102040100000000 20010db8000000000000000000000009", udpHead},
			"IPv6 destination address:16 IPv6 routing header:8 IPv6 routing addresses:16 UDP source port:2"},
		{"IPv6 extension header cut", []string{macs, "86dd", ip6, "33", ip6End, "1104 0000 000001"},
			"IPv6 destination address:16 IPv6 authentication header:4 IPv6 authentication value:3; payload at 61"},
		{"IPv6 extension header cut before its length", []string{macs, "86dd", ip6, "2c", ip6End, "110000"}, "IPv6 destination address:16 IPv6 fragment header:3; payload at 57"},
		{"IPv6 header cut", []string{macs, "86dd", "6000 1234"}, "IPv6 version and traffic class:1 IPv6 flow label:3; payload at 18"},
		{"IPv6, version 5", []string{macs, "86dd", "5000 1234"}, "EtherType:2 IPv6 header, damaged:4; payload at 18"},
		{"IPv4 header cut", []string{macs, "0800", "4500 0034 ab"}, "IPv4 total length:2 IPv4 identification:1; payload at 19"},
		{"IPv6 without upper layer", []string{macs, "86dd", ip6, "3b", ip6End, "0102"}, "IPv6 destination address:16 neither TCP nor UDP:2; payload at 56"},
		{"ARP", []string{macs, "0806 00010800"}, "EtherType:2 not IP:4; payload at 18"},
		{"cut Ethernet header", []string{"0200000000020200000000 01 08"}, "EtherType:1; payload at 13"},
		{"empty", nil, "; payload at 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			frame := unhex(t, tt.frame...)
			var h Headers
			h.Walk(frame, len(frame))
			var words []string
			for _, f := range h.Fields(frame) {
				words = append(words, fmt.Sprintf("%s:%d", f.Field, f.End-f.Start))
			}
			if got := strings.Join(words, " ") + fmt.Sprintf("; payload at %d", min(h.Payload, len(frame))); !strings.Contains(got, tt.want) {
				t.Errorf("%s\nwant it to hold\n%s", got, tt.want)
			}
		})
	}
}

func TestEveryFieldHasANameOfItsOwn(t *testing.T) {
	seen := map[string]Field{}
	for f := Field(1); f < NumFields; f++ {
		name := f.String()
		if other, twice := seen[name]; twice || name == "" || strings.HasPrefix(name, "field-") {
			t.Errorf("field %d is called %q, as field %d", f, name, other)
		}
		seen[name] = f
	}
	if NumFields > firstByte {
		t.Errorf("%d fields do not fit below the mark of a first byte", NumFields)
	}
}

func TestPaintLeavesThePayload(t *testing.T) {
	frame := unhex(t, macs, "8100 0007 0800", ip4UDP, udpHead, "0102")
	var h Headers
	h.Walk(frame, len(frame))
	dst := make([]uint8, len(frame)+5)
	for i := range dst {
		dst[i] = 9
	}
	h.Paint(dst, &Table{OuterTag: 1, UDPDestination: 2, IPv4Source: 3}, frame)
	want := "000000000000 000000000000 0000 0101 0000 000000000000000000000000 03030303 00000000 0000 0202 0000 0000 0909 0909090909"
	if got := hex.EncodeToString(dst); got != strings.ReplaceAll(want, " ", "") {
		t.Errorf("painted %s", got)
	}
	if n := testing.AllocsPerRun(100, func() { h.Walk(frame, len(frame)); h.Paint(dst, &Numbers, frame) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
