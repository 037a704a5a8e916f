// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"encoding/binary"
	"errors"
)

// LinkType says what the packets of a capture begin with, in the numbers of
// pcap files (https://www.tcpdump.org/linktypes.html).
type LinkType uint32

// Link types that can be read.
const (
	LinkNull      LinkType = 0   // BSD loopback, family in the host's byte order
	LinkEthernet  LinkType = 1   // Ethernet
	LinkPPP       LinkType = 9   // PPP, with or without address and control
	LinkFDDI      LinkType = 10  // FDDI
	LinkATM11     LinkType = 11  // ATM, LLC encapsulation, as BSD writes it
	LinkRaw12     LinkType = 12  // raw IP, as most systems write it
	LinkRaw14     LinkType = 14  // raw IP, as OpenBSD writes it
	LinkSerial    LinkType = 50  // PPP or Cisco HDLC on a serial line
	LinkPPPoE     LinkType = 51  // PPPoE session, without the Ethernet header
	LinkATM       LinkType = 100 // ATM, LLC encapsulation
	LinkRaw       LinkType = 101 // raw IP
	LinkCiscoHDLC LinkType = 104 // Cisco HDLC
	LinkWiFi      LinkType = 105 // 802.11
	LinkLoop      LinkType = 108 // BSD loopback, family in network byte order
	LinkEnc       LinkType = 109 // OpenBSD IPsec (enc)
	LinkSLL       LinkType = 113 // Linux cooked, version 1
	LinkPFLog     LinkType = 117 // OpenBSD firewall log
	LinkPrism     LinkType = 119 // 802.11 after a Prism header
	LinkRadiotap  LinkType = 127 // 802.11 after a radiotap header
	LinkAVS       LinkType = 163 // 802.11 after an AVS header
	LinkPPPD      LinkType = 166 // PPP, direction in place of the address
	LinkPPI       LinkType = 192 // per-packet information, then what that names
	LinkPPPDir    LinkType = 204 // PPP after a byte for the direction
	LinkHDLCDir   LinkType = 205 // Cisco HDLC after a byte for the direction
	LinkMPLS      LinkType = 219 // MPLS
	LinkIPv4      LinkType = 228 // raw IPv4
	LinkIPv6      LinkType = 229 // raw IPv6
	LinkNFLog     LinkType = 239 // Linux netfilter log
	LinkNetAna    LinkType = 240 // Ethernet after a netANALYZER header
	LinkPKTAP     LinkType = 258 // Apple PKTAP, then what that names
	LinkSLL2      LinkType = 276 // Linux cooked, version 2
)

// String names the link type in words.
func (l LinkType) String() string {
	if name, ok := linkNames[l]; ok {
		return name
	}
	switch {
	case l >= 147 && l <= 162:
		return "for private use"
	}
	return "unknown"
}

// linkNames names what can be read and what captures are known to hold besides.
var linkNames = map[LinkType]string{
	LinkNull: "BSD loopback", LinkEthernet: "Ethernet", LinkPPP: "PPP", LinkFDDI: "FDDI", LinkATM11: "ATM (RFC 1483)",
	LinkRaw12: "raw IP", LinkRaw14: "raw IP", LinkSerial: "PPP on a serial line", LinkPPPoE: "PPPoE session",
	LinkATM: "ATM (RFC 1483)", LinkRaw: "raw IP", LinkCiscoHDLC: "Cisco HDLC", LinkWiFi: "802.11", LinkLoop: "OpenBSD loopback",
	LinkEnc: "OpenBSD IPsec", LinkSLL: "Linux cooked", LinkPFLog: "OpenBSD firewall log", LinkPrism: "802.11 with Prism header",
	LinkRadiotap: "802.11 with radiotap header", LinkAVS: "802.11 with AVS header", LinkPPPD: "PPP with direction, of pppd",
	LinkPPI: "PPI", LinkPPPDir: "PPP with direction", LinkHDLCDir: "Cisco HDLC with direction", LinkMPLS: "MPLS",
	LinkIPv4: "raw IPv4", LinkIPv6: "raw IPv6", LinkNFLog: "Linux netfilter log", LinkNetAna: "Ethernet with netANALYZER header",
	LinkPKTAP: "Apple PKTAP", LinkSLL2: "Linux cooked, version 2",

	2: "experimental Ethernet", 3: "AX.25", 6: "Token Ring", 7: "ARCNET", 8: "SLIP", 15: "BSD/OS SLIP", 16: "BSD/OS PPP",
	19: "classical IP over ATM", 32: "Redback", 99: "Symantec firewall", 107: "Frame Relay", 112: "Cisco HDLC, old number",
	114: "LocalTalk", 118: "Cisco IOS", 122: "IP over Fibre Channel", 123: "SunATM", 128: "TZSP", 129: "Linux ARCNET",
	130: "Juniper multilink PPP", 131: "Juniper multilink Frame Relay", 132: "Juniper encryption services", 133: "Juniper GGSN",
	134: "Juniper FRF.16", 135: "Juniper ATM2", 136: "Juniper services", 137: "Juniper ATM1", 138: "IP over FireWire",
	139: "SS7 MTP2 with header", 140: "SS7 MTP2", 141: "SS7 MTP3", 142: "SS7 SCCP", 143: "DOCSIS", 144: "Linux IrDA",
	164: "Juniper monitor", 165: "BACnet MS/TP", 167: "Juniper PPPoE", 168: "Juniper PPPoE over ATM", 169: "GPRS LLC",
	170: "GFP-T", 171: "GFP-F", 172: "Gcom T1/E1", 173: "Gcom serial", 174: "Juniper PIC peer", 175: "Ethernet with Endace ERF header",
	176: "packet over SONET with Endace ERF header", 177: "Linux LAPD", 178: "Juniper Ethernet", 179: "Juniper PPP",
	180: "Juniper Frame Relay", 181: "Juniper Cisco HDLC", 182: "FRF.16 Frame Relay", 183: "Juniper voice", 184: "ARINC 429",
	185: "ARINC 653", 186: "FreeBSD USB", 187: "Bluetooth HCI", 188: "802.16", 189: "Linux USB", 190: "CAN 2.0B",
	191: "802.15.4 with Linux padding", 193: "802.16 with radiotap header", 194: "Juniper ISM", 195: "802.15.4", 196: "SITA",
	197: "Endace ERF", 198: "Ethernet with u10 Networks header", 199: "IPMB", 200: "Juniper secure tunnel",
	201: "Bluetooth HCI with direction", 202: "AX.25 with KISS header", 203: "LAPD", 206: "Frame Relay with direction",
	207: "LAPB with direction", 209: "I2C on Linux", 210: "FlexRay", 211: "MOST", 212: "LIN", 213: "X2E serial",
	214: "X2E Xoraya", 215: "802.15.4 with PHY data", 216: "Linux input events", 217: "GSM Um", 218: "GSM Abis",
	220: "Linux USB, memory-mapped", 221: "DECT", 222: "AOS space data link", 223: "WirelessHART", 224: "Fibre Channel FC-2",
	225: "Fibre Channel FC-2 with delimiters", 226: "Solaris IPNET", 227: "CAN (SocketCAN)", 230: "802.15.4 without checksum",
	231: "D-Bus", 232: "Juniper virtual server", 233: "Juniper SRX", 234: "Juniper Fibre Channel", 235: "DVB-CI",
	236: "3GPP 27.010 multiplex", 237: "STANAG 5066", 238: "Juniper ATM CEMIC", 241: "netANALYZER, transparent",
	242: "IP over InfiniBand", 243: "MPEG-2 transport stream", 244: "ng40", 245: "NFC LLCP", 246: "OpenBSD pfsync",
	247: "InfiniBand", 248: "SCTP", 249: "USBPcap", 250: "RTAC serial", 251: "Bluetooth Low Energy", 252: "Wireshark upper PDU",
	253: "Linux netlink", 254: "Bluetooth monitor", 255: "Bluetooth baseband", 256: "Bluetooth Low Energy with header",
	257: "PROFIBUS", 259: "EPON", 260: "IPMI trace", 261: "Z-Wave R1, R2", 262: "Z-Wave R3", 263: "WattStopper DLM",
	264: "ISO 14443", 265: "RDS", 266: "macOS USB", 267: "OpenFlow of OpenBSD", 268: "SDLC", 269: "TI LLN sniffer", 270: "LoRaTap",
	271: "Linux vsock", 272: "Nordic Bluetooth sniffer", 273: "Excentis DOCSIS 3.1", 274: "Ethernet mPackets",
	275: "DisplayPort AUX", 278: "OpenVizsla USB", 279: "Elektrobit EBHSCR", 280: "VPP dispatch trace", 281: "Broadcom switch tag",
	282: "Broadcom switch tag in front", 283: "802.15.4 with TAP header", 284: "Marvell DSA switch tag", 285: "Marvell EDSA switch tag",
	286: "ELEE lawful intercept", 287: "Z-Wave serial", 288: "USB 2.0", 289: "ATSC ALP", 290: "Windows event trace",
	292: "ZBOSS NCP", 293: "USB 2.0, low speed", 294: "USB 2.0, full speed", 295: "USB 2.0, high speed",
}

// Numbers of the link headers that are written and read here.
const (
	madeHeader = 14 // an Ethernet header, as normalise makes it

	typeIPv4     = 0x0800
	typeIPv6     = 0x86dd
	typeMPLS     = 0x8847
	typeMPLSMany = 0x8848 // multicast

	nullHeader  = 4
	encHeader   = 12
	sllHeader   = 16
	sll2Header  = 20
	pppoeHeader = 6
	hdlcHeader  = 4
	fddiHeader  = 13
	snapHeader  = 8
	anaHeader   = 4
)

// errShort means that the link header is not whole.
var errShort = errors.New("the link header is cut off")

// packet is what is left of a record while its link headers are taken off.
type packet struct {
	data    []byte
	wireLen int64
	// etherType is what Ethernet calls the protocol, 0 where it has no number
	// for it.
	etherType uint16
	// ethernet means that data begins with an Ethernet header.
	ethernet bool
	// side is the side of the interface that the packet came from, and device
	// that interface's number, 0 where the header does not say it.
	side   Side
	device uint32
}

// normalise returns the packet as a frame with an Ethernet header, in *buf, which
// grows, where it has to build one, and its length on the wire. In place of
// another link's header stands one with zero addresses and the packet's
// EtherType, 0 where there is none. A VLAN tag that follows a cooked header
// thereby stays where Ethernet has it. A link header that is not whole gives an
// empty frame, which is as malformed for the parser. skip says why the packet
// can't be read.
func (r *record) normalise(buf *[]byte) (frame []byte, wireLen int, skip error) {
	// A record may be longer than what it says of its length on the wire.
	p := packet{data: r.data, wireLen: max(int64(r.captured), int64(r.original))}
	switch err := p.unwrap(r.link, r.order); {
	case err == errShort:
		return nil, 0, nil
	case err != nil:
		return nil, 0, err
	}
	if p.side != SideUnknown {
		r.side, r.device = p.side, p.device
	}
	if p.ethernet {
		return p.data, int(min(p.wireLen, maxWireLen)), nil
	}
	var header [madeHeader]byte
	binary.BigEndian.PutUint16(header[12:], p.etherType)
	*buf = append(append((*buf)[:0], header[:]...), p.data...)
	return *buf, int(min(p.wireLen+madeHeader, maxWireLen)), nil
}

// unwrap takes the header of link type l off. order is the byte order of the
// machine that captured, for headers that have it. The error is errShort or a
// linkError.
func (p *packet) unwrap(l LinkType, order binary.ByteOrder) error {
	switch l {
	case LinkPPI:
		return p.ppi()
	case LinkPKTAP:
		return p.pktap(order)
	}
	return p.unwrapPlain(l, order)
}

// unwrapPlain is unwrap for headers that don't name another link type.
func (p *packet) unwrapPlain(l LinkType, order binary.ByteOrder) error {
	switch l {
	case LinkEthernet:
		p.ethernet = true
		return nil
	case LinkNetAna:
		p.ethernet = true
		return p.cut(anaHeader)
	case LinkRaw12, LinkRaw14, LinkRaw:
		p.etherType = versionType(p.data)
		return nil
	case LinkIPv4:
		p.etherType = typeIPv4
		return nil
	case LinkIPv6:
		p.etherType = typeIPv6
		return nil
	case LinkMPLS:
		p.etherType = typeMPLS
		return nil
	case LinkNull, LinkLoop:
		return p.family(nullHeader)
	case LinkEnc:
		return p.family(encHeader)
	case LinkSLL:
		return p.cooked(sllHeader, 2, 14, 1)
	case LinkSLL2:
		if len(p.data) >= sll2Header {
			p.device = binary.BigEndian.Uint32(p.data[4:])
		}
		return p.cooked(sll2Header, 8, 0, 10)
	case LinkPPP, LinkSerial:
		return p.ppp()
	case LinkPPPD, LinkPPPDir:
		return p.pppDirection()
	case LinkPPPoE:
		if err := p.cut(pppoeHeader); err != nil {
			return err
		}
		return p.ppp()
	case LinkCiscoHDLC:
		return p.ciscoHDLC()
	case LinkHDLCDir:
		if err := p.cut(1); err != nil {
			return err
		}
		return p.ciscoHDLC()
	case LinkATM, LinkATM11:
		return p.llc()
	case LinkFDDI:
		if len(p.data) > 0 && p.data[0]&0xf8 != 0x50 { // no asynchronous LLC frame
			return nil
		}
		if err := p.cut(fddiHeader); err != nil {
			return err
		}
		return p.llc()
	case LinkPFLog:
		return p.pfLog()
	case LinkNFLog:
		return p.nfLog(order)
	case LinkWiFi:
		return p.wifi(false)
	case LinkRadiotap:
		return p.radiotap()
	case LinkPrism, LinkAVS:
		return p.prism()
	}
	return linkError{link: l}
}

// cut takes n bytes off the front.
func (p *packet) cut(n int) error {
	if n < 0 || n > len(p.data) {
		return errShort
	}
	p.data, p.wireLen = p.data[n:], p.wireLen-int64(n)
	return nil
}

// family takes a header off that begins with the address family.
func (p *packet) family(header int) error {
	if len(p.data) < header {
		return errShort
	}
	p.etherType = familyType(binary.BigEndian.Uint32(p.data))
	return p.cut(header)
}

// versionType returns the EtherType of a raw IP packet.
func versionType(data []byte) uint16 {
	if len(data) > 0 {
		switch data[0] >> 4 {
		case 4:
			return typeIPv4
		case 6:
			return typeIPv6
		}
	}
	return 0
}

// familyType returns the EtherType of a BSD address family. Link type 0 has it
// in the byte order of the machine that captured, which need not be that of
// the file; families are small numbers, so that tells.
func familyType(family uint32) uint16 {
	if family > 0xffff {
		family = family>>24 | family>>8&0xff00 | family<<8&0xff0000 | family<<24
	}
	switch family {
	case 2: // AF_INET everywhere
		return typeIPv4
	case 10, 23, 24, 28, 30: // AF_INET6 of Linux, Windows, NetBSD and OpenBSD, FreeBSD, macOS
		return typeIPv6
	}
	return 0
}

// cooked takes a Linux cooked header off, which has the kind of device (ARPHRD_*)
// and the protocol at these offsets. For some kinds of device the protocol is
// another kind of number, and for frames without EtherType it is a small one.
func (p *packet) cooked(header, deviceAt, protocolAt, kindAt int) error {
	if len(p.data) < header {
		return errShort
	}
	device, protocol := binary.BigEndian.Uint16(p.data[deviceAt:]), binary.BigEndian.Uint16(p.data[protocolAt:])
	p.side = cookedSide(device, p.data[kindAt])
	if err := p.cut(header); err != nil {
		return err
	}
	switch {
	case device == 803: // 802.11 with radiotap header
		return p.radiotap()
	case device == 770 || device == 824: // frame relay, netlink
		return nil
	case protocol == 4: // ETH_P_802_2
		return p.llc()
	}
	p.etherType = protocol
	return nil
}

// cookedSide returns the side that a cooked packet came from. A loopback device has
// none, and what others sent to others was mirrored.
func cookedSide(device uint16, kind byte) Side {
	const loopback = 772
	switch {
	case device == loopback:
		return SideUnknown
	case kind <= 2: // to us, to all, to a group
		return SideInbound
	case kind == 4: // sent by us
		return SideOutbound
	}
	return SideUnknown
}

// PPP protocols (RFC 1661 and its registry) and the bytes before them, where
// the line has HDLC framing.
const (
	pppAddress    = 0xff
	pppControl    = 0x03
	pppIPv4       = 0x0021
	pppIPv6       = 0x0057
	pppMPLS       = 0x0281
	pppMPLSMany   = 0x0283
	hdlcUnicast   = 0x0f // Cisco HDLC
	hdlcMulticast = 0x8f
)

// ppp takes a PPP header off, or the Cisco HDLC header that a serial line may
// have as well. Address and control may be left out, and the protocol be one
// byte long. In place of the address some programs write the direction.
func (p *packet) ppp() error {
	if len(p.data) >= 2 {
		switch {
		case p.data[0] == hdlcUnicast || p.data[0] == hdlcMulticast:
			return p.ciscoHDLC()
		case p.data[1] == pppControl && (p.data[0] == pppAddress || p.data[0] <= 1):
			if err := p.cut(2); err != nil {
				return err
			}
		}
	}
	if len(p.data) == 0 {
		return errShort
	}
	protocol, length := uint16(p.data[0]), 1
	if protocol&1 == 0 { // the first of two bytes is even, the last one odd
		if len(p.data) < 2 {
			return errShort
		}
		protocol, length = binary.BigEndian.Uint16(p.data), 2
	}
	switch protocol {
	case pppIPv4, typeIPv4:
		p.etherType = typeIPv4
	case pppIPv6, typeIPv6:
		p.etherType = typeIPv6
	case pppMPLS:
		p.etherType = typeMPLS
	case pppMPLSMany:
		p.etherType = typeMPLSMany
	}
	return p.cut(length)
}

// pppDirection takes a PPP header off that has the direction before it, in place of
// the address, or not at all.
func (p *packet) pppDirection() error {
	if len(p.data) < 2 || p.data[1] != pppControl || p.data[0] > 1 && p.data[0] != pppAddress {
		if err := p.cut(1); err != nil {
			return err
		}
	}
	return p.ppp()
}

// ciscoHDLC takes address, control and EtherType off.
func (p *packet) ciscoHDLC() error {
	if len(p.data) < hdlcHeader {
		return errShort
	}
	p.etherType = binary.BigEndian.Uint16(p.data[2:])
	return p.cut(hdlcHeader)
}

// llc takes an LLC and SNAP header off. Without SNAP there is no IP.
func (p *packet) llc() error {
	if len(p.data) < snapHeader {
		return errShort
	}
	h := p.data
	// The organisation is 0, or that of bridge tunnels (802.1H).
	if [3]byte(h) == [3]byte{0xaa, 0xaa, 0x03} && (h[3] == 0 && h[4] == 0 && (h[5] == 0 || h[5] == 0xf8)) {
		p.etherType = binary.BigEndian.Uint16(h[6:])
	}
	return p.cut(snapHeader)
}

// pfLogShortest is the length of the header before OpenBSD 3.x added to it.
const pfLogShortest = 45

// pfLog takes the header of a firewall log off. Its length is in its first byte,
// without the padding to four bytes, the family in its second.
func (p *packet) pfLog() error {
	if len(p.data) < 2 || p.data[0] < pfLogShortest {
		return errShort
	}
	p.etherType = familyType(uint32(p.data[1]))
	return p.cut((int(p.data[0]) + 3) &^ 3)
}

// Attributes of a netfilter log record.
const (
	nfHeader   = 4
	nfTLV      = 4 // length and type
	nfPayload  = 9
	nfTypeMask = 0x7fff // the upper bit says that the value is in network byte order
)

// nfLog finds the packet in a record of the netfilter log: a family, then
// attributes, of which one holds the packet from its IP header on. Their lengths
// are in the byte order of the machine that captured. The kernel may have copied
// only the beginning (nflog-size), so that the length on the wire is in the IP
// header alone.
func (p *packet) nfLog(order binary.ByteOrder) error {
	if len(p.data) < nfHeader {
		return errShort
	}
	for _, order := range []binary.ByteOrder{order, otherOrder(order)} {
		for rest := p.data[nfHeader:]; len(rest) >= nfTLV; {
			length, kind := int(order.Uint16(rest)), order.Uint16(rest[2:])&nfTypeMask
			if length < nfTLV {
				break
			}
			if kind == nfPayload {
				p.data = rest[nfTLV:min(length, len(rest))]
				p.etherType = versionType(p.data)
				p.wireLen = max(int64(length-nfTLV), ipLength(p.data))
				return nil
			}
			if next := (length + 3) &^ 3; next <= len(rest) {
				rest = rest[next:]
			} else {
				break
			}
		}
	}
	p.data, p.wireLen = nil, 0 // a record without a packet
	return nil
}

func otherOrder(order binary.ByteOrder) binary.ByteOrder {
	if order == binary.ByteOrder(binary.LittleEndian) {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// ipLength returns the length that an IP header gives for its packet, 0 where it
// gives none.
func ipLength(packet []byte) int64 {
	switch {
	case versionType(packet) == typeIPv4 && len(packet) >= 4:
		return int64(binary.BigEndian.Uint16(packet[2:]))
	case versionType(packet) == typeIPv6 && len(packet) >= 6:
		if n := int64(binary.BigEndian.Uint16(packet[4:])); n > 0 {
			return 40 + n
		}
	}
	return 0
}

// ppi takes a header of per-packet information off, and that of the link type
// that it names. Its numbers are little endian.
func (p *packet) ppi() error {
	if len(p.data) < 8 {
		return errShort
	}
	length, inner := binary.LittleEndian.Uint16(p.data[2:]), LinkType(binary.LittleEndian.Uint32(p.data[4:]))
	if length < 8 {
		return errShort
	}
	return p.inner(int(length), LinkPPI, inner, binary.LittleEndian)
}

// pktapShortest is what is read of a PKTAP header: its length, the type of the
// record and the link type of the packet.
const pktapShortest = 12

// pktap takes Apple's header off, and that of the link type that it names. Its
// numbers are in the byte order of the machine that captured, which was little
// endian for a long time now.
func (p *packet) pktap(order binary.ByteOrder) error {
	if len(p.data) < pktapShortest {
		return errShort
	}
	length := order.Uint32(p.data)
	if length > 0xffff {
		order = otherOrder(order)
		length = order.Uint32(p.data)
	}
	if length < pktapShortest || length > 0xffff {
		return errShort
	}
	if order.Uint32(p.data[4:]) != 1 { // no packet follows
		p.data, p.wireLen = nil, 0
		return nil
	}
	return p.inner(int(length), LinkPKTAP, LinkType(order.Uint32(p.data[8:])), order)
}

// inner takes a header off, and then that of another link type.
func (p *packet) inner(length int, outer, inner LinkType, order binary.ByteOrder) error {
	if err := p.cut(length); err != nil {
		return err
	}
	err := p.unwrapPlain(inner, order)
	var link linkError
	if errors.As(err, &link) {
		return linkError{link: link.link, inside: outer, wraps: true}
	}
	return err
}
