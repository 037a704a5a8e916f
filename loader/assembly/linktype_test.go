// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/flow/headers"
	"github.com/earlydrop/earlydrop/loader/internal/frames"
)

// snap returns an LLC and SNAP header.
func snap(etherType int) []byte {
	return slices.Concat([]byte{0xaa, 0xaa, 3, 0, 0, 0}, be16(etherType))
}

func le16(v int) []byte { return binary.LittleEndian.AppendUint16(nil, uint16(v)) }
func le32(v int) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(v)) }
func be32(v int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(v)) }

// wifiHead returns an 802.11 header of n bytes.
func wifiHead(control, n int) []byte { return append(le16(control), make([]byte, n-2)...) }

// nfAttribute returns an attribute of a netfilter log record, padded.
func nfAttribute(order binary.AppendByteOrder, kind int, value []byte) []byte {
	b := order.AppendUint16(order.AppendUint16(nil, uint16(4+len(value))), uint16(kind))
	return append(append(b, value...), make([]byte, -len(value)&3)...)
}

// pktapHead returns a PKTAP header of n bytes.
func pktapHead(append32 func(int) []byte, n, next, link int) []byte {
	return slices.Concat(append32(n), append32(next), append32(link), make([]byte, n-12))
}

// linkHeader is a packet of a link type and what is to become of it.
type linkHeader struct {
	name   string
	link   LinkType
	packet []byte
	want   []byte // the frame; nil if the packet is skipped
}

// linkHeaders returns packets of the link types with a header of their own.
func linkHeaders() []linkHeader {
	ip4 := udp4(true, 5)[madeHeader:]
	ip6 := frames.IP(client6, server6, frames.UDP, udpDgram(client6, server6, payload(5)))
	join := slices.Concat[[]byte]
	framed := func(etherType int, packet []byte) []byte { return join(make([]byte, 12), be16(etherType), packet) }
	v4, v6, short := framed(typeIPv4, ip4), framed(typeIPv6, ip6), []byte{}
	other := func(packet []byte) []byte { return framed(0, packet) }
	data4 := join(snap(typeIPv4), ip4)
	head := wifiHead(0x0108, 24)
	radiotap := func(bits int, fields ...byte) []byte {
		return join([]byte{0, 0}, le16(8+len(fields)), le32(bits), fields)
	}
	ppi := func(length, link int) []byte {
		return join([]byte{0, 0}, le16(length), le32(link), make([]byte, length-8))
	}
	packetHeader := nfAttribute(binary.LittleEndian, 1, []byte{8, 0, 1, 0})
	bigPacketHeader := nfAttribute(binary.BigEndian, 1, []byte{8, 0, 1, 0})
	return []linkHeader{
		{"PPP, address and control", LinkPPP, join([]byte{0xff, 3, 0, 0x21}, ip4), v4},
		{"PPP, IPv6", LinkPPP, join([]byte{0xff, 3, 0, 0x57}, ip6), v6},
		{"PPP without address", LinkPPP, join([]byte{0, 0x21}, ip4), v4},
		{"PPP, protocol of one byte", LinkPPP, join([]byte{0x21}, ip4), v4},
		{"PPP, address and protocol of one byte", LinkPPP, join([]byte{0xff, 3, 0x57}, ip6), v6},
		{"PPP, direction for the address", LinkPPP, join([]byte{1, 3, 0, 0x21}, ip4), v4},
		{"PPP, MPLS", LinkPPP, join([]byte{0xff, 3, 2, 0x81}, ip4), framed(typeMPLS, ip4)},
		{"PPP, LCP", LinkPPP, []byte{0xff, 3, 0xc0, 0x21, 1}, other([]byte{1})},
		{"PPP, nothing", LinkPPP, nil, short},
		{"PPP, cut behind the control", LinkPPP, []byte{0xff, 3}, short},
		{"PPP, cut in the protocol", LinkPPP, []byte{0xff, 3, 0}, short},
		{"serial, PPP", LinkSerial, join([]byte{0xff, 3, 0, 0x21}, ip4), v4},
		{"serial, Cisco", LinkSerial, join([]byte{0x0f, 0, 8, 0}, ip4), v4},
		{"serial, Cisco multicast", LinkSerial, join([]byte{0x8f, 0, 0x86, 0xdd}, ip6), v6},
		{"serial, Cisco cut", LinkSerial, []byte{0x8f, 0, 0x86}, short},
		{"PPPoE session", LinkPPPoE, join([]byte{0x11, 0, 0, 1, 0, 9, 0, 0x21}, ip4), v4},
		{"PPPoE session, cut", LinkPPPoE, []byte{0x11, 0, 0, 1, 0}, short},
		{"PPP with direction, received", LinkPPPDir, join([]byte{0, 0xff, 3, 0, 0x21}, ip4), v4},
		{"PPP with direction, sent, without address", LinkPPPDir, join([]byte{1, 0, 0x57}, ip6), v6},
		{"PPP with direction, nothing", LinkPPPDir, nil, short},
		{"PPP of pppd", LinkPPPD, join([]byte{1, 3, 0, 0x21}, ip4), v4},
		{"PPP of pppd, with its address", LinkPPPD, join([]byte{0xff, 3, 0, 0x21}, ip4), v4},
		{"PPP with direction, sent as all ones", LinkPPPDir, join([]byte{0xff, 0xff, 3, 0, 0x21}, ip4), v4},
		{"Cisco HDLC", LinkCiscoHDLC, join([]byte{0x0f, 0, 8, 0}, ip4), v4},
		{"Cisco HDLC, keepalive", LinkCiscoHDLC, []byte{0x8f, 0, 0x80, 0x35, 1}, framed(0x8035, []byte{1})},
		{"Cisco HDLC, cut", LinkCiscoHDLC, []byte{0x0f, 0, 8}, short},
		{"Cisco HDLC with direction", LinkHDLCDir, join([]byte{1, 0x0f, 0, 8, 0}, ip4), v4},
		{"Cisco HDLC with direction, nothing", LinkHDLCDir, nil, short},
		{"MPLS", LinkMPLS, ip4, framed(typeMPLS, ip4)},
		{"ATM", LinkATM, data4, v4},
		{"FDDI", LinkFDDI, join([]byte{0x54}, make([]byte, 12), data4), v4},
		{"FDDI, station management", LinkFDDI, []byte{0x41, 1}, other([]byte{0x41, 1})},
		{"FDDI, cut", LinkFDDI, []byte{0x50, 1}, short},
		{"OpenBSD IPsec", LinkEnc, join([]byte{2, 0, 0, 0}, make([]byte, 8), ip4), v4},
		{"OpenBSD IPsec, big endian", LinkEnc, join([]byte{0, 0, 0, 24}, make([]byte, 8), ip6), v6},
		{"OpenBSD IPsec, cut", LinkEnc, make([]byte, 11), short},
		{"netANALYZER", LinkNetAna, join(make([]byte, 4), udp4(true, 5)), udp4(true, 5)},
		{"netANALYZER, cut", LinkNetAna, make([]byte, 3), short},
		{"firewall log", LinkPFLog, join([]byte{61, 2}, make([]byte, 62), ip4), v4},
		{"firewall log, IPv6", LinkPFLog, join([]byte{61, 24}, make([]byte, 62), ip6), v6},
		{"firewall log, cut", LinkPFLog, join([]byte{61, 24}, make([]byte, 61)), short},
		{"firewall log, header too short", LinkPFLog, join([]byte{44, 2}, make([]byte, 42), ip4), short},
		{"null, IPv6 of Windows", LinkNull, join([]byte{23, 0, 0, 0}, ip6), v6},

		{"netfilter log", LinkNFLog, join([]byte{2, 0, 0, 5}, packetHeader, nfAttribute(binary.LittleEndian, 9, ip4)), v4},
		{"netfilter log, IPv6", LinkNFLog, join([]byte{10, 0, 0, 5}, packetHeader, nfAttribute(binary.LittleEndian, 9, ip6)), v6},
		{"netfilter log of a bridge", LinkNFLog, join([]byte{7, 0, 0, 5}, nfAttribute(binary.LittleEndian, 9, ip4), packetHeader), v4},
		{"netfilter log in the other byte order", LinkNFLog, join([]byte{2, 0, 0, 5}, bigPacketHeader, nfAttribute(binary.BigEndian, 9, ip4)), v4},
		{"netfilter log without packet", LinkNFLog, join([]byte{2, 0, 0, 5}, packetHeader), other(nil)},
		{"netfilter log, attribute of no length", LinkNFLog, join([]byte{2, 0, 0, 5}, make([]byte, 40)), other(nil)},
		{"netfilter log, cut", LinkNFLog, []byte{2, 0, 0}, short},

		{"802.11, to the access point", LinkWiFi, join(head, data4), v4},
		{"802.11, from the access point", LinkWiFi, join(wifiHead(0x0208, 24), data4), v4},
		{"802.11, QoS", LinkWiFi, join(wifiHead(0x0188, 26), data4), v4},
		{"802.11, QoS with HT control", LinkWiFi, join(wifiHead(0x8188, 30), data4), v4},
		{"802.11, four addresses", LinkWiFi, join(wifiHead(0x0308, 30), data4), v4},
		{"802.11, four addresses and QoS", LinkWiFi, join(wifiHead(0x0388, 32), snap(typeIPv6), ip6), v6},
		{"802.11, bridge tunnel", LinkWiFi, join(head, []byte{0xaa, 0xaa, 3, 0, 0, 0xf8, 8, 0}, ip4), v4},
		{"802.11, LLC without SNAP", LinkWiFi, join(head, []byte{0x42, 0x42, 3}, make([]byte, 9)), other(make([]byte, 4))},
		{"802.11, encrypted", LinkWiFi, join(wifiHead(0x4108, 24), data4), other(join(wifiHead(0x4108, 24), data4))},
		{"802.11, beacon", LinkWiFi, wifiHead(0x0080, 30), other(wifiHead(0x0080, 30))},
		{"802.11, no data", LinkWiFi, wifiHead(0x0148, 24), other(wifiHead(0x0148, 24))},
		{"802.11, later fragment", LinkWiFi, join(with(head, 22, 0x11), data4), other(join(with(head, 22, 0x11), data4))},
		{"802.11, several packets in one", LinkWiFi, join(with(wifiHead(0x0188, 26), 24, 0x80), data4),
			other(join(with(wifiHead(0x0188, 26), 24, 0x80), data4))},
		{"802.11, cut in its header", LinkWiFi, head[:23], short},
		{"802.11, cut in the QoS control", LinkWiFi, wifiHead(0x0188, 25), short},
		{"802.11, cut in the LLC header", LinkWiFi, join(head, snap(typeIPv4)[:7]), short},
		{"802.11, one byte", LinkWiFi, []byte{8}, short},
		{"radiotap", LinkRadiotap, join(radiotap(0), head, data4), v4},
		{"radiotap, time and flags", LinkRadiotap, join(radiotap(3, 1, 2, 3, 4, 5, 6, 7, 8, 0), head, data4), v4},
		{"radiotap, two words of bits, aligned", LinkRadiotap,
			join(radiotap(1<<31|3, append(make([]byte, 16), 0x20)...), wifiHead(0x0188, 26), []byte{0, 0}, data4), v4},
		{"radiotap, padded header", LinkRadiotap, join(radiotap(2, 0x20), wifiHead(0x0188, 26), []byte{0, 0}, data4), v4},
		{"radiotap, padding that is none", LinkRadiotap, join(radiotap(2, 0x20), head, data4), v4},
		{"radiotap, failed its check", LinkRadiotap, join(radiotap(2, 0x40), head, data4), short},
		{"radiotap, flags cut off", LinkRadiotap, join(radiotap(2), head, data4), v4},
		{"radiotap, bits without end", LinkRadiotap, join([]byte{0, 0, 16, 0}, le32(-1), le32(-1), le32(-1), head, data4), v4},
		{"radiotap, longer than the packet", LinkRadiotap, []byte{0, 0, 9, 0, 0, 0, 0, 0}, short},
		{"radiotap, shorter than itself", LinkRadiotap, join([]byte{0, 0, 7, 0, 0, 0, 0, 0}, head, data4), short},
		{"Prism", LinkPrism, join(le32(0x44), make([]byte, 140), head, data4), v4},
		{"Prism, in truth AVS", LinkPrism, join(be32(0x80211001), be32(64), make([]byte, 56), head, data4), v4},
		{"AVS", LinkAVS, join(be32(0x80211002), be32(64), make([]byte, 56), head, data4), v4},
		{"AVS, shorter than itself", LinkAVS, join(be32(0x80211001), be32(7), make([]byte, 56), head, data4), short},
		{"AVS, longer than any", LinkAVS, join(be32(0x80211001), be32(-1), head, data4), short},
		{"cooked, 802.11 device", LinkSLL, join([]byte{0, 0, 3, 0x23}, make([]byte, 12), radiotap(0), head, data4), v4},

		{"PPI, 802.11", LinkPPI, join(ppi(32, 105), head, data4), v4},
		{"PPI, Ethernet", LinkPPI, join(ppi(8, 1), udp4(true, 5)), udp4(true, 5)},
		{"PPI, USB", LinkPPI, join(ppi(8, 249), ip4), nil},
		{"PPI in PPI", LinkPPI, join(ppi(8, 192), ppi(8, 1), udp4(true, 5)), nil},
		{"PPI, shorter than itself", LinkPPI, join([]byte{0, 0}, le16(7), le32(1), ip4), short},
		{"PPI, longer than the packet", LinkPPI, join([]byte{0, 0}, le16(9), le32(1)), short},
		{"PKTAP, Ethernet", LinkPKTAP, join(pktapHead(le32, 108, 1, 1), udp4(true, 5)), udp4(true, 5)},
		{"PKTAP, raw IP", LinkPKTAP, join(pktapHead(le32, 108, 1, 12), ip6), v6},
		{"PKTAP, loopback", LinkPKTAP, join(pktapHead(le32, 156, 1, 0), []byte{30, 0, 0, 0}, ip6), v6},
		{"PKTAP in the other byte order", LinkPKTAP, join(pktapHead(be32, 108, 1, 1), udp4(true, 5)), udp4(true, 5)},
		{"PKTAP without packet", LinkPKTAP, pktapHead(le32, 108, 0, 1), other(nil)},
		{"PKTAP, USB", LinkPKTAP, join(pktapHead(le32, 108, 1, 266), ip4), nil},
		{"PKTAP, longer than the packet", LinkPKTAP, pktapHead(le32, 108, 1, 1)[:107], short},
		{"PKTAP, length beyond reason", LinkPKTAP, join(le32(-1), le32(1), le32(1)), short},
	}
}

func TestLinkHeadersAreTakenOff(t *testing.T) {
	for _, tt := range linkHeaders() {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readBytes(pcapFile(binary.LittleEndian, false, uint32(tt.link), tt.packet))
			if tt.want == nil {
				if !errors.Is(err, ErrLinkType) || len(got) != 0 {
					t.Errorf("%d packets, error %v, want none and %v", len(got), err, ErrLinkType)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := []packetRead{{0, tt.want, len(tt.want)}}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("packets (-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever the packet is cut to, its frame is a beginning of the whole one.
func TestLinkHeadersOfCutPackets(t *testing.T) {
	for _, tt := range linkHeaders() {
		if len(tt.want) <= madeHeader {
			continue
		}
		for n := range tt.packet {
			b := pcapFile(binary.LittleEndian, false, uint32(tt.link), tt.packet[:n])
			binary.LittleEndian.PutUint32(b[24+12:], uint32(len(tt.packet)))
			got, err := readBytes(b)
			if errors.Is(err, ErrLinkType) {
				continue
			}
			if err != nil || len(got) != 1 {
				t.Fatalf("%s, cut to %d bytes: %d packets, error %v", tt.name, n, len(got), err)
			}
			// Cut before the protocol is known, it is of none.
			frame := got[0].Frame
			if len(frame) > madeHeader && frame[12]|frame[13] != 0 &&
				(!slices.Equal(frame, tt.want[:len(frame)]) || got[0].WireLen != len(tt.want)) {
				t.Errorf("%s, cut to %d bytes: frame %x, %d on the wire", tt.name, n, frame, got[0].WireLen)
			}
		}
	}
}

// The kernel may hand only the beginning of a packet to the netfilter log.
func TestNetfilterLogSaysThePacketsLength(t *testing.T) {
	for _, whole := range [][]byte{
		udp4(true, 500)[madeHeader:], frames.IP(client6, server6, frames.UDP, udpDgram(client6, server6, payload(500))),
	} {
		record := slices.Concat([]byte{2, 0, 0, 0}, nfAttribute(binary.LittleEndian, 9, whole[:64]))
		got, err := readBytes(pcapFile(binary.LittleEndian, false, uint32(LinkNFLog), record))
		if err != nil || len(got) != 1 || len(got[0].Frame) != madeHeader+64 || got[0].WireLen != madeHeader+len(whole) {
			t.Errorf("packets %+v, error %v; want one of %d bytes, %d on the wire", got, err, madeHeader+64, madeHeader+len(whole))
		}
	}
}

func TestLinkTypesInWords(t *testing.T) {
	for link, want := range map[LinkType]string{
		220: "unsupported link type 220 (Linux USB, memory-mapped)", 187: "unsupported link type 187 (Bluetooth HCI)",
		149: "unsupported link type 149 (for private use)", 60000: "unsupported link type 60000 (unknown)",
		1 << 25: "unsupported link type 33554432 (unknown)",
	} {
		got, err := readBytes(pcapFile(binary.BigEndian, false, uint32(link), make([]byte, 60)))
		if err == nil || !strings.HasSuffix(err.Error(), ": 1 packet skipped: "+want) || len(got) != 0 {
			t.Errorf("%d packets, error %v, want %q", len(got), err, want)
		}
	}
	// All that can be read has a name.
	for link := range LinkType(1 << 9) {
		p := packet{data: make([]byte, 300), wireLen: 300}
		if err := p.unwrap(link, binary.LittleEndian); !errors.Is(err, ErrLinkType) && link.String() == "unknown" {
			t.Errorf("link type %d has no name", link)
		}
	}
}

func FuzzLinkType(f *testing.F) {
	for _, tt := range linkHeaders() {
		f.Add(uint32(tt.link), false, tt.packet)
	}
	f.Fuzz(func(t *testing.T, link uint32, big bool, data []byte) {
		var order binary.ByteOrder = binary.LittleEndian
		if big {
			order = binary.BigEndian
		}
		r := record{link: LinkType(link), order: order, data: data, captured: uint32(len(data)), original: uint32(len(data))}
		before := slices.Clone(data)
		var buf []byte
		frame, wireLen, skip := r.normalise(&buf)
		if len(frame) > len(data)+madeHeader || wireLen < len(frame) || skip != nil && (frame != nil || !errors.Is(skip, ErrLinkType)) {
			t.Fatalf("frame of %d bytes from %d, %d on the wire, %v", len(frame), len(data), wireLen, skip)
		}
		if !slices.Equal(data, before) {
			t.Fatal("the packet was changed")
		}
		headers.Parse(frame, wireLen)
	})
}
