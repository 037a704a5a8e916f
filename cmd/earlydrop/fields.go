// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// field is a named piece of a frame: bytes [start, end), counted from its first.
type field struct {
	name       string
	start, end int
}

// Sizes and numbers of the headers that are named. The classifier walks the same
// ones (package classifier, mask.go).
const (
	ethernetHeader = 14
	ipv4Header     = 20
	ipv6Header     = 40
	tcpHeader      = 20

	maxTags       = 2
	maxExtensions = 6
)

// nameFields divides a captured frame, which may be cut, into its header fields and
// says where the L4 payload begins (the length of the frame, if there is none or it
// can't be told). The fields are in order and leave no byte of the header out.
func nameFields(frame []byte) (fields []field, payload int) {
	n := namer{frame: frame}
	n.ethernet()
	return n.fields, min(n.at, len(frame))
}

// namer names the bytes of a frame one after another.
type namer struct {
	frame  []byte
	at     int
	fields []field
}

// add names the next size bytes, as many as there are.
func (n *namer) add(size int, format string, args ...any) {
	end := min(n.at+size, len(n.frame))
	if end > n.at {
		n.fields = append(n.fields, field{fmt.Sprintf(format, args...), n.at, end})
	}
	n.at += max(size, 0)
}

// rest names what is left: nothing in it can be told apart.
func (n *namer) rest(name string) {
	n.add(len(n.frame)-n.at, "%s", name)
	n.at = len(n.frame)
}

// has reports whether size bytes at off, counted from the next byte, were captured.
func (n *namer) has(off, size int) bool { return n.at+off+size <= len(n.frame) }

func (n *namer) be16(off int) int { return int(binary.BigEndian.Uint16(n.frame[n.at+off:])) }

func (n *namer) ethernet() {
	if len(n.frame) < ethernetHeader {
		n.add(6, "Ethernet destination")
		n.add(6, "Ethernet source")
		n.rest("EtherType")
		return
	}
	ether := n.be16(12)
	n.add(6, "Ethernet destination")
	n.add(6, "Ethernet source")
	n.add(2, "EtherType")
	for tag := 1; tag <= maxTags && (ether == 0x8100 || ether == 0x88a8 || ether == 0x9100); tag++ {
		known := n.has(2, 2)
		if known {
			ether = n.be16(2)
		}
		n.add(2, "VLAN tag %d", tag)
		n.add(2, "VLAN tag %d EtherType", tag)
		if !known {
			n.rest("cut header")
			return
		}
	}
	switch ether {
	case 0x0800:
		n.ipv4()
	case 0x86dd:
		n.ipv6()
	default:
		n.rest("not IP")
	}
}

func (n *namer) ipv4() {
	if !n.has(0, 10) || n.frame[n.at]>>4 != 4 || n.frame[n.at]&0x0f < ipv4Header/4 {
		n.rest("IPv4 header, cut or damaged")
		return
	}
	size, fragment, proto := int(n.frame[n.at]&0x0f)*4, n.be16(6)&0x1fff, int(n.frame[n.at+9])
	for _, f := range []struct {
		size int
		name string
	}{
		{1, "version and header length"}, {1, "DSCP and ECN"}, {2, "total length"}, {2, "identification"},
		{2, "flags and fragment offset"}, {1, "TTL"}, {1, "protocol"}, {2, "header checksum"},
		{4, "source address"}, {4, "destination address"}, {size - ipv4Header, "options"},
	} {
		n.add(f.size, "IPv4 %s", f.name)
	}
	if fragment != 0 {
		n.rest("part of a fragmented packet")
		return
	}
	n.transport(proto)
}

func (n *namer) ipv6() {
	if !n.has(0, 7) || n.frame[n.at]>>4 != 6 {
		n.rest("IPv6 header, cut or damaged")
		return
	}
	next := int(n.frame[n.at+6])
	for _, f := range []struct {
		size int
		name string
	}{
		{1, "version and traffic class"}, {3, "flow label"}, {2, "payload length"}, {1, "next header"}, {1, "hop limit"},
		{16, "source address"}, {16, "destination address"},
	} {
		n.add(f.size, "IPv6 %s", f.name)
	}
	for range maxExtensions {
		name, size := "", 0
		switch next {
		case 0:
			name = "hop-by-hop options"
		case 43:
			name = "routing header"
		case 44:
			name, size = "fragment header", 8
		case 51:
			name = "authentication header"
		case 60:
			name = "destination options"
		default:
			n.transport(next)
			return
		}
		if !n.has(0, 4) {
			n.rest("IPv6 " + name + ", cut")
			return
		}
		switch {
		case next == 51:
			size = 8 + 4*int(n.frame[n.at+1])
		case size == 0:
			size = 8 + 8*int(n.frame[n.at+1])
		}
		later := next == 44 && n.be16(2)&0xfff8 != 0
		next = int(n.frame[n.at])
		n.add(size, "IPv6 %s", name)
		if later {
			n.rest("part of a fragmented packet")
			return
		}
	}
	n.transport(next)
}

func (n *namer) transport(proto int) {
	switch flow.Proto(proto) {
	case flow.TCP:
		n.tcp()
	case flow.UDP:
		for _, name := range []string{"source port", "destination port", "length", "checksum"} {
			n.add(2, "UDP %s", name)
		}
	default:
		n.rest("neither TCP nor UDP")
	}
}

func (n *namer) tcp() {
	size := tcpHeader // where the capture ends before it
	if n.has(12, 1) {
		size = int(n.frame[n.at+12]>>4) * 4
	}
	for _, f := range []struct {
		size int
		name string
	}{
		{2, "source port"}, {2, "destination port"}, {4, "sequence number"}, {4, "acknowledgement number"},
		{1, "header length"}, {1, "flags"}, {2, "window"}, {2, "checksum"}, {2, "urgent pointer"},
	} {
		n.add(f.size, "TCP %s", f.name)
	}
	if size < tcpHeader {
		n.rest("TCP header, damaged")
		return
	}
	end := n.at + size - tcpHeader
	for n.at < min(end, len(n.frame)) {
		kind := int(n.frame[n.at])
		name, ok := tcpOptions[kind]
		if !ok {
			name = fmt.Sprintf("option %d", kind)
		}
		left := min(end, len(n.frame)) - n.at
		length := 1
		switch {
		case kind == 0:
			length = left // padding follows
		case kind == 1:
			for length < left && n.frame[n.at+length] == 1 {
				length++
			}
		case left >= 2 && n.frame[n.at+1] >= 2:
			length = min(int(n.frame[n.at+1]), end-n.at)
		default: // no length, or one that can't be
			length = left
		}
		n.add(length, "TCP %s", name)
	}
	n.at = max(n.at, end)
}

// tcpOptions names the kinds of options that are seen at the beginning of flows.
var tcpOptions = map[int]string{
	0: "option end", 1: "option padding", 2: "option MSS", 3: "option window scale", 4: "option SACK permitted",
	5: "option SACK", 8: "option timestamps", 19: "option MD5", 29: "option AO", 30: "option Multipath TCP", 34: "option Fast Open",
}
