// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
)

// Flags of a TCP header.
const (
	fin = 1 << iota
	syn
	rst
	psh
	ack
	urg
)

// Protocol numbers, and kinds of TCP options.
const (
	protoTCP      = 6
	protoTest     = 253 // for experiments: RFC 3692
	protoHopByHop = 0
	protoFragment = 44
	protoDestOpts = 60

	optNOP         = 1
	optWindowScale = 3
	optSACK        = 5
	optTimestamps  = 8
	optMD5         = 19 // RFC 2385
	optUserTimeout = 28 // RFC 5482
	optMPTCP       = 30 // RFC 8684
)

const (
	ethernetLen = 14
	ipv6Len     = 40
)

// packet is a frame that carries TCP, in parts that can be changed one by one. Lengths
// and checksums are made when it is put together again.
type packet struct {
	eth     []byte
	ip      []byte // IPv4 with its options; IPv6 with extension headers
	tcp     []byte // with its options
	payload []byte

	badSum bool // the TCP checksum is made wrong
	cut    int  // (optional) how many bytes less than it has the IP header says it has
	offset int  // (optional) by how many words too long the TCP header says that it is
}

// parsePacket takes apart a frame with TCP straight in IPv4 or IPv6, as hosts send it;
// proto is TCP's number, which a strategy may have changed.
func parsePacket(frame []byte, proto byte) (*packet, bool) {
	if len(frame) < ethernetLen+20 {
		return nil, false
	}
	p := &packet{eth: frame[:ethernetLen]}
	rest := frame[ethernetLen:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		size, all := int(rest[0]&15)*4, int(binary.BigEndian.Uint16(rest[2:]))
		fragment := binary.BigEndian.Uint16(rest[6:])&0x3fff != 0
		if rest[9] != proto || fragment || size < 20 || all < size || all > len(rest) {
			return nil, false
		}
		p.ip, rest = rest[:size], rest[size:all]
	case 0x86dd:
		if len(rest) < ipv6Len || rest[6] != proto {
			return nil, false
		}
		all := ipv6Len + int(binary.BigEndian.Uint16(rest[4:]))
		if all > len(rest) {
			return nil, false
		}
		p.ip, rest = rest[:ipv6Len], rest[ipv6Len:all]
	default:
		return nil, false
	}
	if len(rest) < 20 || int(rest[12]>>4)*4 < 20 || int(rest[12]>>4)*4 > len(rest) {
		return nil, false
	}
	size := int(rest[12]>>4) * 4
	p.tcp, p.payload = rest[:size], rest[size:]
	return p.clone(), true // each part can grow by itself
}

func (p *packet) clone() *packet {
	c := *p
	c.eth, c.ip, c.tcp, c.payload = bytes.Clone(p.eth), bytes.Clone(p.ip), bytes.Clone(p.tcp), bytes.Clone(p.payload)
	return &c
}

func (p *packet) v6() bool           { return p.ip[0]>>4 == 6 }
func (p *packet) srcPort() uint16    { return binary.BigEndian.Uint16(p.tcp) }
func (p *packet) dstPort() uint16    { return binary.BigEndian.Uint16(p.tcp[2:]) }
func (p *packet) seq() uint32        { return binary.BigEndian.Uint32(p.tcp[4:]) }
func (p *packet) ack() uint32        { return binary.BigEndian.Uint32(p.tcp[8:]) }
func (p *packet) flags() byte        { return p.tcp[13] }
func (p *packet) setSeq(v uint32)    { binary.BigEndian.PutUint32(p.tcp[4:], v) }
func (p *packet) setAck(v uint32)    { binary.BigEndian.PutUint32(p.tcp[8:], v) }
func (p *packet) setFlags(v byte)    { p.tcp[13] = v }
func (p *packet) setWindow(v uint16) { binary.BigEndian.PutUint16(p.tcp[14:], v) }

// is tells that of the flags SYN, ACK, RST and FIN those and no others are set.
func (p *packet) is(flags byte) bool { return p.flags()&(syn|ack|rst|fin) == flags }

func (p *packet) setTTL(v byte) {
	if p.v6() {
		p.ip[7] = v
	} else {
		p.ip[8] = v
	}
}

// setProto changes the number of the protocol that the packet carries.
func (p *packet) setProto(v byte) {
	if p.v6() {
		p.ip[6] = v
	} else {
		p.ip[9] = v
	}
}

// turn swaps the two ends: the packet is from who it was to. It leaves the Ethernet
// header alone, whose addresses are those of the leg.
func (p *packet) turn() {
	at, n := 12, 4
	if p.v6() {
		at, n = 8, 16
	}
	src := bytes.Clone(p.ip[at : at+n])
	copy(p.ip[at:], p.ip[at+n:at+2*n])
	copy(p.ip[at+n:], src)
	from, to := p.srcPort(), p.dstPort()
	binary.BigEndian.PutUint16(p.tcp, to)
	binary.BigEndian.PutUint16(p.tcp[2:], from)
}

// findOption returns where a TCP option begins in the header, and its length; 0 for none.
func (p *packet) findOption(kind byte) (at, size int) {
	for at := 20; at+1 < len(p.tcp) && p.tcp[at] != 0; {
		if p.tcp[at] == optNOP {
			at++
			continue
		}
		n := int(p.tcp[at+1])
		if n < 2 || at+n > len(p.tcp) {
			return 0, 0
		}
		if p.tcp[at] == kind {
			return at, n
		}
		at += n
	}
	return 0, 0
}

// removeOption overwrites a TCP option by padding.
func (p *packet) removeOption(kind byte) {
	at, n := p.findOption(kind)
	for i := range n {
		p.tcp[at+i] = optNOP
	}
}

// addOption appends a TCP option where there is room; padding fills the last word.
func (p *packet) addOption(kind byte, content []byte) {
	o := append([]byte{kind, byte(2 + len(content))}, content...)
	for len(o)%4 != 0 {
		o = append(o, optNOP)
	}
	if len(p.tcp)+len(o) <= 60 {
		p.tcp = append(p.tcp, o...)
	}
}

// extend puts an IPv6 extension header in front of TCP. Its first byte is filled in.
func (p *packet) extend(proto byte, header []byte) {
	next := &p.ip[6]
	for at := ipv6Len; at < len(p.ip); at += 8 { // extensions of strategies have 8 bytes
		next = &p.ip[at]
	}
	header[0], *next = *next, proto
	p.ip = append(p.ip, header...)
}

// frame puts the packet together.
func (p *packet) frame() []byte {
	ip, tcp := bytes.Clone(p.ip), bytes.Clone(p.tcp)
	size := len(tcp) + len(p.payload)
	tcp[12] = byte(len(tcp)/4+p.offset)<<4 | tcp[12]&15
	sum := uint32(protoTCP) + uint32(size)
	if p.v6() {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-ipv6Len+size-p.cut))
		sum = add(sum, ip[8:40])
	} else {
		ip[0] = 0x40 | byte(len(ip)/4)
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+size-p.cut))
		clear(ip[10:12])
		binary.BigEndian.PutUint16(ip[10:], ^fold(add(0, ip)))
		sum = add(sum, ip[12:20])
	}
	clear(tcp[16:18])
	binary.BigEndian.PutUint16(tcp[16:], ^fold(add(add(sum, tcp), p.payload)))
	if p.badSum {
		tcp[16] ^= 0x55
	}
	return slices.Concat(p.eth, ip, tcp, p.payload)
}

func add(sum uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// piece is a range of what IP carries that goes into a fragment of its own, from a
// multiple of 8 on. data is what is sent in place of what belongs there. (optional)
type piece struct {
	from, to int
	data     []byte
}

// fragments puts the packet together and cuts it up by IP. A last piece that ends beyond
// the packet is cut to fit.
func (p *packet) fragments(pieces ...piece) [][]byte {
	whole := p.frame()
	head, body := whole[:ethernetLen+len(p.ip)], whole[ethernetLen+len(p.ip):]
	id := rand.Uint32() | 1
	var frames [][]byte
	for _, c := range pieces {
		c.to = min(c.to, len(body))
		if c.from >= c.to {
			continue
		}
		data := body[c.from:c.to]
		if c.data != nil {
			data = c.data[:c.to-c.from]
		}
		h := bytes.Clone(head)
		ip := h[ethernetLen:]
		offset := uint16(c.from / 8)
		more := c.to < len(body)
		if p.v6() {
			f := []byte{ip[6], 0, 0, 0, 0, 0, 0, 0}
			binary.BigEndian.PutUint16(f[2:], offset<<3)
			if more {
				f[3] |= 1
			}
			binary.BigEndian.PutUint32(f[4:], id)
			ip[6] = protoFragment
			binary.BigEndian.PutUint16(ip[4:], uint16(len(f)+len(data)))
			h = append(h, f...)
		} else {
			if more {
				offset |= 0x2000
			}
			binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(data)))
			binary.BigEndian.PutUint16(ip[4:], uint16(id))
			binary.BigEndian.PutUint16(ip[6:], offset)
			clear(ip[10:12])
			binary.BigEndian.PutUint16(ip[10:], ^fold(add(0, ip)))
		}
		frames = append(frames, append(h, data...))
	}
	return frames
}
