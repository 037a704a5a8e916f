// SPDX-License-Identifier: Apache-2.0

package headers

import (
	"fmt"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Field is a kind of header field. A field that names one connection, one clock
// or one vantage point is a field of its own, apart from what is beside it in the
// same option or extension header, so that a table over fields can say which
// bytes a mask replaces.
type Field uint8

// Fields, in the order in which a frame has them. The numbers may change.
const (
	EthernetDestination Field = iota + 1
	EthernetSource
	EtherType
	OuterTag // tag control information: priority and id
	OuterTagType
	InnerTag
	InnerTagType

	IPv4Version // and header length
	IPv4Service // DSCP and ECN
	IPv4Length
	IPv4ID
	IPv4Fragment // flags and fragment offset
	IPv4TTL
	IPv4Protocol
	IPv4Checksum
	IPv4Source
	IPv4Destination
	IPv4Options

	IPv6Version   // and the high half of the traffic class
	IPv6FlowLabel // and the low half of the traffic class
	IPv6Length
	IPv6Next
	IPv6HopLimit
	IPv6Source
	IPv6Destination
	IPv6HopByHop
	IPv6DestOptions
	IPv6Routing     // up to segments left and the reserved bytes
	IPv6RoutingData // addresses
	IPv6FragmentHeader
	IPv6FragmentID
	IPv6Auth      // next header, length, reserved
	IPv6AuthValue // parameters index, sequence number, check value

	TCPSource
	TCPDestination
	TCPSequence
	TCPAcknowledgement
	TCPHeaderLen
	TCPFlags
	TCPWindow
	TCPChecksum
	TCPUrgent
	TCPOptionEnd // and the padding behind it
	TCPOptionNop // one or more
	TCPOptionMSS
	TCPOptionWindowScale
	TCPOptionSACKPermitted
	TCPOptionSACK
	TCPOptionSACKEdges
	TCPOptionTimestamps // all of it where its length is not 10
	TCPOptionTimestampsValue
	TCPOptionMD5
	TCPOptionMD5Value
	TCPOptionAO
	TCPOptionAOValue
	TCPOptionMultipath // kind, length, subtype
	TCPOptionMultipathValue
	TCPOptionFastOpen
	TCPOptionFastOpenCookie
	TCPOptionOther // its first byte is its kind

	UDPSource
	UDPDestination
	UDPLength
	UDPChecksum

	// What stands in place of headers or of a payload that can be told.
	NotIPHeader      // behind Ethernet and its tags
	BadIPv4          // a version or header length that can't be
	BadIPv6          // a version that can't be
	FragmentBody     // of a later fragment
	OtherProtoHeader // neither TCP nor UDP, or more extension headers than are walked
	BadTCP           // behind a TCP header whose length can't be

	// NumFields is one more than the greatest Field.
	NumFields
)

var fieldNames = [NumFields]string{
	EthernetDestination: "Ethernet destination", EthernetSource: "Ethernet source", EtherType: "EtherType",
	OuterTag: "VLAN tag 1", OuterTagType: "VLAN tag 1 EtherType", InnerTag: "VLAN tag 2", InnerTagType: "VLAN tag 2 EtherType",

	IPv4Version: "IPv4 version and header length", IPv4Service: "IPv4 DSCP and ECN", IPv4Length: "IPv4 total length",
	IPv4ID: "IPv4 identification", IPv4Fragment: "IPv4 flags and fragment offset", IPv4TTL: "IPv4 TTL",
	IPv4Protocol: "IPv4 protocol", IPv4Checksum: "IPv4 header checksum", IPv4Source: "IPv4 source address",
	IPv4Destination: "IPv4 destination address", IPv4Options: "IPv4 options",

	IPv6Version: "IPv6 version and traffic class", IPv6FlowLabel: "IPv6 flow label", IPv6Length: "IPv6 payload length",
	IPv6Next: "IPv6 next header", IPv6HopLimit: "IPv6 hop limit", IPv6Source: "IPv6 source address",
	IPv6Destination: "IPv6 destination address", IPv6HopByHop: "IPv6 hop-by-hop options",
	IPv6DestOptions: "IPv6 destination options", IPv6Routing: "IPv6 routing header", IPv6RoutingData: "IPv6 routing addresses",
	IPv6FragmentHeader: "IPv6 fragment header", IPv6FragmentID: "IPv6 fragment identification",
	IPv6Auth: "IPv6 authentication header", IPv6AuthValue: "IPv6 authentication value",

	TCPSource: "TCP source port", TCPDestination: "TCP destination port", TCPSequence: "TCP sequence number",
	TCPAcknowledgement: "TCP acknowledgement number", TCPHeaderLen: "TCP header length", TCPFlags: "TCP flags",
	TCPWindow: "TCP window", TCPChecksum: "TCP checksum", TCPUrgent: "TCP urgent pointer",
	TCPOptionEnd: "TCP option end", TCPOptionNop: "TCP option padding", TCPOptionMSS: "TCP option MSS",
	TCPOptionWindowScale: "TCP option window scale", TCPOptionSACKPermitted: "TCP option SACK permitted",
	TCPOptionSACK: "TCP option SACK", TCPOptionSACKEdges: "TCP option SACK edges",
	TCPOptionTimestamps: "TCP option timestamps", TCPOptionTimestampsValue: "TCP option timestamps value",
	TCPOptionMD5: "TCP option MD5", TCPOptionMD5Value: "TCP option MD5 value",
	TCPOptionAO: "TCP option AO", TCPOptionAOValue: "TCP option AO value",
	TCPOptionMultipath: "TCP option Multipath TCP", TCPOptionMultipathValue: "TCP option Multipath TCP value",
	TCPOptionFastOpen: "TCP option Fast Open", TCPOptionFastOpenCookie: "TCP option Fast Open cookie",
	TCPOptionOther: "TCP option",

	UDPSource: "UDP source port", UDPDestination: "UDP destination port", UDPLength: "UDP length", UDPChecksum: "UDP checksum",

	NotIPHeader: "not IP", BadIPv4: "IPv4 header, damaged", BadIPv6: "IPv6 header, damaged",
	FragmentBody: "part of a fragmented packet", OtherProtoHeader: "neither TCP nor UDP", BadTCP: "TCP header, damaged",
}

// String returns the field's name for people.
func (f Field) String() string {
	if f > 0 && f < NumFields {
		return fieldNames[f]
	}
	return fmt.Sprintf("field-%d", uint8(f))
}

// Span is where a frame has a field: bytes [Start, End), counted from its first.
type Span struct {
	Start, End int
	Field      Field
}

// Table holds a value for each Field, and those for no field as well, so that
// looking one up needs no check.
type Table [256]uint8

// Numbers gives every Field its own number. It is not to be changed.
var Numbers = func() (t Table) {
	for i := range t {
		t[i] = uint8(i)
	}
	return t
}()

// The fields of headers whose fields have fixed places, one for each byte.
var (
	ethernetFields = perByte(EthernetDestination, 6, EthernetSource, 6, EtherType, 2)
	tagFields      = [MaxTags][]Field{perByte(OuterTag, 2, OuterTagType, 2), perByte(InnerTag, 2, InnerTagType, 2)}
	ipv4Fields     = perByte(IPv4Version, 1, IPv4Service, 1, IPv4Length, 2, IPv4ID, 2, IPv4Fragment, 2, IPv4TTL, 1,
		IPv4Protocol, 1, IPv4Checksum, 2, IPv4Source, 4, IPv4Destination, 4)
	ipv6Fields = perByte(IPv6Version, 1, IPv6FlowLabel, 3, IPv6Length, 2, IPv6Next, 1, IPv6HopLimit, 1,
		IPv6Source, 16, IPv6Destination, 16)
	tcpFields = perByte(TCPSource, 2, TCPDestination, 2, TCPSequence, 4, TCPAcknowledgement, 4, TCPHeaderLen, 1,
		TCPFlags, 1, TCPWindow, 2, TCPChecksum, 2, TCPUrgent, 2)
	udpFields = perByte(UDPSource, 2, UDPDestination, 2, UDPLength, 2, UDPChecksum, 2)
)

// perByte takes fields, each with its length in bytes.
func perByte(pairs ...Field) (fields []Field) {
	for ; len(pairs) > 0; pairs = pairs[2:] {
		for range pairs[1] {
			fields = append(fields, pairs[0])
		}
	}
	return fields
}

// Fields returns the fields of the frame that h.Walk was called with, as far as
// the frame holds them. They are in order and leave no byte in front of the payload
// out.
func (h *Headers) Fields(frame []byte) (spans []Span) {
	marks := make([]uint8, len(frame))
	p := painter{dst: marks, table: &Numbers, first: firstByte}
	p.frame(h, frame)
	for i, mark := range marks[:min(p.at, len(marks))] {
		if n := len(spans) - 1; i > 0 && mark&firstByte == 0 && Field(mark) == spans[n].Field {
			spans[n].End++
		} else {
			spans = append(spans, Span{Start: i, End: i + 1, Field: Field(mark &^ firstByte)})
		}
	}
	return spans
}

// firstByte marks the first byte of a field that may follow its like.
const firstByte = 0x80

// Paint writes to dst, which is at least as long as the frame that h.Walk was
// called with, the value of table for every byte of a header field, and leaves the
// payload's bytes as they are. It does not allocate.
func (h *Headers) Paint(dst []uint8, table *Table, frame []byte) {
	p := painter{dst: dst[:len(frame)], table: table}
	p.frame(h, frame)
}

// painter paints the fields of a frame one after another.
type painter struct {
	dst   []uint8 // as long as the frame
	at    int     // where the next field begins; may lie behind the frame
	table *Table
	first uint8 // added to the value of a field's first byte, where fields of one kind may stand side by side
}

func (p *painter) frame(h *Headers, frame []byte) {
	p.header(ethernetFields)
	for i := range h.Tags {
		p.header(tagFields[i])
	}
	switch h.IP {
	case 4:
		p.header(ipv4Fields)
		p.add(IPv4Options, int(frame[h.L3]&0x0f)*4-ipv4Len)
	case 6:
		p.header(ipv6Fields)
		for i := range h.Exts {
			p.extension(h.Ext[i])
		}
	}
	switch h.Proto {
	case flow.TCP:
		p.header(tcpFields)
		if h.rest == 0 {
			p.tcpOptions(frame, h.Payload)
		}
	case flow.UDP:
		p.header(udpFields)
	}
	if h.rest != 0 {
		p.add(h.rest, len(frame)-p.at)
	}
}

// add paints a field of the next size bytes, as many of them as there are.
func (p *painter) add(field Field, size int) {
	if size <= 0 {
		return
	}
	if p.at < len(p.dst) {
		dst, value := p.dst[p.at:min(p.at+size, len(p.dst))], p.table[field]
		for i := range dst {
			dst[i] = value
		}
		dst[0] |= p.first
	}
	p.at += size
}

// header paints the fields of a header, given one for each byte.
func (p *painter) header(fields []Field) {
	if p.at < len(p.dst) {
		dst := p.dst[p.at:]
		n := min(len(fields), len(dst))
		dst = dst[:n]
		for i, field := range fields[:n] {
			dst[i] = p.table[field]
		}
	}
	p.at += len(fields)
}

func (p *painter) extension(ext Extension) {
	size := int(ext.Len)
	head, value, headLen := IPv6HopByHop, Field(0), size
	switch ext.Kind {
	case DestOptions:
		head = IPv6DestOptions
	case Routing:
		head, value, headLen = IPv6Routing, IPv6RoutingData, 8
	case Fragment:
		head, value, headLen = IPv6FragmentHeader, IPv6FragmentID, 4
	case Auth:
		head, value, headLen = IPv6Auth, IPv6AuthValue, 4
	}
	headLen = min(headLen, size)
	p.add(head, headLen)
	p.add(value, size-headLen)
}

// Kinds of TCP options (IANA's registry).
const (
	optionEnd           = 0
	optionNop           = 1
	optionMSS           = 2
	optionWindowScale   = 3
	optionSACKPermitted = 4
	optionSACK          = 5
	optionTimestamps    = 8
	optionMD5           = 19
	optionAO            = 29
	optionMultipath     = 30
	optionFastOpen      = 34

	timestampsLen = 10
)

// tcpOptions appends the options between here and the payload. Where one has a
// length that can't be, the rest can't be distinguished.
func (p *painter) tcpOptions(frame []byte, payload int) {
	end := min(payload, len(p.dst))
	for p.at < end {
		left, kind := end-p.at, frame[p.at]
		size := left
		switch {
		case kind == optionEnd:
			p.add(TCPOptionEnd, left)
			continue
		case kind == optionNop:
			for size = 1; size < left && frame[p.at+size] == optionNop; size++ {
			}
			p.add(TCPOptionNop, size)
			continue
		case left >= 2 && frame[p.at+1] >= 2:
			size = min(int(frame[p.at+1]), left)
		}
		head, value, headLen := TCPOptionOther, Field(0), size
		switch kind {
		case optionMSS:
			head = TCPOptionMSS
		case optionWindowScale:
			head = TCPOptionWindowScale
		case optionSACKPermitted:
			head = TCPOptionSACKPermitted
		case optionSACK:
			head, value, headLen = TCPOptionSACK, TCPOptionSACKEdges, 2
		case optionTimestamps:
			head = TCPOptionTimestamps
			if left >= 2 && frame[p.at+1] == timestampsLen {
				value, headLen = TCPOptionTimestampsValue, 2
			}
		case optionMD5:
			head, value, headLen = TCPOptionMD5, TCPOptionMD5Value, 2
		case optionAO:
			head, value, headLen = TCPOptionAO, TCPOptionAOValue, 2
		case optionMultipath:
			head, value, headLen = TCPOptionMultipath, TCPOptionMultipathValue, 3
		case optionFastOpen:
			head, value, headLen = TCPOptionFastOpen, TCPOptionFastOpenCookie, 2
		}
		if left < 2 || frame[p.at+1] < 2 {
			headLen = size // no length to go by
		}
		headLen = min(headLen, size)
		p.add(head, headLen)
		p.add(value, size-headLen)
	}
}
