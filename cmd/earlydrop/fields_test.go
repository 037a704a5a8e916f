// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/loader/flow"
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

func TestNameFields(t *testing.T) {
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
			"TCP option MSS:4 TCP option SACK permitted:2 TCP option timestamps:10 TCP option padding:1 TCP option window scale:3 " +
				"TCP option padding:1 TCP option 254:3 TCP option padding:1 TCP option end:3; payload at 82"},
		{"TCP option with a length that can't be", []string{macs, "0800", ip4TCP, "03e9 01bb 00000001 00000000 60 02 ffff 0000 0000", "02000000", "6869"},
			"TCP urgent pointer:2 TCP option MSS:4; payload at 58"},
		{"TCP option longer than the header", []string{macs, "0800", ip4TCP, "03e9 01bb 00000001 00000000 60 02 ffff 0000 0000", "02080000", "6869"},
			"TCP urgent pointer:2 TCP option MSS:4; payload at 58"},
		{"TCP header too short", []string{macs, "0800", ip4TCP, "03e9 01bb 00000001 00000000 40 02 ffff 0000 0000", "6869"},
			"TCP urgent pointer:2 TCP header, damaged:2; payload at 56"},
		{"TCP header cut", []string{macs, "0800", ip4TCP, "03e9 01bb 000000"}, "TCP destination port:2 TCP sequence number:3; payload at 41"},
		{"IPv4 options", []string{macs, "0800", "4600 0034 abcd 4000 40 06 0000 0a000001 0a090001 94040000", tcpBare}, "IPv4 destination address:4 IPv4 options:4 TCP source port:2"},
		{"later fragment", []string{macs, "0800", "4500 0034 abcd 4001 40 06 0000 0a000001 0a090001", "0102030405"}, "IPv4 destination address:4 part of a fragmented packet:5; payload at 39"},
		{"IPv4 header too short", []string{macs, "0800", "4400 0034 abcd 4000 40 06 0000 0a000001 0a090001"}, "EtherType:2 IPv4 header, cut or damaged:20; payload at 34"},
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
			"IPv6 destination address:16 IPv6 hop-by-hop options:8 IPv6 destination options:8 IPv6 fragment header:8 IPv6 authentication header:24 UDP source port:2 UDP destination port:2 UDP length:2 UDP checksum:2; payload at 110"},
		{"IPv6 later fragment", []string{macs, "86dd", ip6, "2c", ip6End, "1100000812345678", "010203"}, "IPv6 fragment header:8 part of a fragmented packet:3; payload at 65"},
		{"IPv6 without upper layer", []string{macs, "86dd", ip6, "3b", ip6End, "0102"}, "IPv6 destination address:16 neither TCP nor UDP:2; payload at 56"},
		{"ARP", []string{macs, "0806 00010800"}, "EtherType:2 not IP:4; payload at 18"},
		{"cut Ethernet header", []string{"0200000000020200000000 01 08"}, "EtherType:1; payload at 13"},
		{"empty", nil, "; payload at 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fields, payload := nameFields(unhex(t, tt.frame...))
			var words []string
			for _, f := range fields {
				words = append(words, fmt.Sprintf("%s:%d", f.name, f.end-f.start))
			}
			if got := strings.Join(words, " ") + fmt.Sprintf("; payload at %d", payload); !strings.Contains(got, tt.want) {
				t.Errorf("%s\nwant it to hold\n%s", got, tt.want)
			}
		})
	}
}

// Whatever a frame holds, its fields follow one another without a gap up to the
// payload, and the classifier sees the payload begin at the same byte.
func TestNameFieldsAgreesWithTheClassifier(t *testing.T) {
	frames := [][]byte{
		unhex(t, macs, "0800", ip4TCP, "03e9 01bb 00000001 00000000 c0 02 ffff 0000 0000", "020405b4 0402 080a0000000100000002 01 030307 01010101010101", "68696869"),
		unhex(t, macs, "88a8 0007 8100 0008 0800", ip4UDP, udpHead, "0102030405060708"),
		unhex(t, macs, "86dd", ip6, "00", ip6End, "3c00010400000000", "2b00010400000000", "2c02000412345678 0000000000000000 0000000000000000", "1100000012345678", udpHead, "0102030405060708"),
		unhex(t, macs, "86dd", ip6, "33", ip6End, "0604000000000001 0000000100000000 0000000000000000", tcpBare, "0102"),
	}
	r := rand.New(rand.NewPCG(7, 7))
	for range 50000 {
		frame := slices.Clone(frames[r.IntN(len(frames))])
		frame = frame[:len(frame)-r.IntN(2)*r.IntN(len(frame))]
		for range r.IntN(4) {
			if len(frame) > 0 {
				frame[r.IntN(len(frame))] = uint8(r.Uint32())
			}
		}
		fields, payload := nameFields(frame)
		at := 0
		for _, f := range fields {
			if f.start != at || f.end <= f.start || f.name == "" {
				t.Fatalf("frame % x: field %+v, want it to begin at %d", frame, f, at)
			}
			at = f.end
		}
		if at != payload || payload > len(frame) {
			t.Fatalf("frame % x: fields end at %d, payload begins at %d of %d", frame, at, payload, len(frame))
		}
		var s flow.Sample
		s.Reset()
		s.Data = append(s.Data, frame...)
		s.Packets = append(s.Packets, flow.Packet{WireLen: uint32(len(frame))})
		var plane [classifier.ImagePixels]uint8
		classifier.Render(&s, classifier.RecipePaper, []classifier.Channel{classifier.ChannelPayload}, plane[:])
		seen := slices.Index(plane[:len(frame)], 255)
		if seen < 0 {
			seen = len(frame)
		}
		if diff := cmp.Diff(seen, payload); diff != "" {
			t.Fatalf("frame % x: payload begins at %d, for the classifier at %d", frame, payload, seen)
		}
	}
}
