// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

var randomPackets = flag.Int("packets", 50_000, "packets of TestKernelAgainstAssemblyRandom")

// choices turns bytes into decisions; when they run out, every decision is 0.
type choices struct {
	b []byte
	// number is the input's. It is in all addresses, so that nothing that the data
	// path remembers of another input is of the same flow.
	number uint16
}

func (c *choices) next() byte {
	if len(c.b) == 0 {
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *choices) below(n int) int { return int(c.next()) % n }

func (c *choices) oneIn(n int) bool { return c.below(n) == n-1 }

func pick[T any](c *choices, from ...T) T { return from[c.below(len(from))] }

// endpoints are the flows of one input. Ports and addresses tie and differ in
// each place where the order of a key is decided; one pair is the same flow twice,
// as IPv4 and as IPv4 mapped into IPv6.
var endpoints = [][2]netip.AddrPort{
	{client, server},
	{client, netip.AddrPortFrom(client.Addr(), 9)},
	{netip.MustParseAddrPort("10.0.0.2:443"), netip.MustParseAddrPort("10.0.0.3:443")},
	{peer6, host6},
	{netip.MustParseAddrPort("[fd00::2]:5"), netip.MustParseAddrPort("[fd00:0:0:1::2]:5")},
	{netip.MustParseAddrPort("[::ffff:10.0.0.2]:40000"), netip.MustParseAddrPort("[::ffff:192.0.2.7]:443")},
	{netip.MustParseAddrPort("10.0.0.2:5353"), netip.MustParseAddrPort("224.0.0.251:5353")},
	{netip.MustParseAddrPort("[fe80::1]:0"), netip.MustParseAddrPort("[ff02::fb]:65535")},
}

// step is one packet as it is on the wire, and how it reaches the programs.
type step struct {
	hook  entry
	taken bool // the outer tag is taken out of the frame, as hardware does
	frame []byte
}

// transport builds a segment, a datagram or something else.
func (c *choices) transport(src, dst netip.AddrPort) (proto byte, body []byte) {
	size := pick(c, 0, 0, 0, 1, 2, 100, 300, 500, 862, 863, 1000, 1400)
	if c.oneIn(8) {
		size = c.below(256)
	}
	if c.oneIn(32) {
		size = 8900
	}
	payload := make([]byte, size)
	for i, first := 0, c.next(); i < size; i++ {
		payload[i] = first + byte(i)
	}
	switch c.below(8) {
	default:
		flags := pick[byte](c, f.SYN, f.SYN|f.ACK, f.ACK, f.ACK, f.ACK|f.PSH, f.ACK|f.PSH, f.FIN|f.ACK, f.RST, f.SYN|f.FIN, f.SYN|f.RST, 0)
		if flags == f.SYN && !c.oneIn(4) {
			payload = nil
		}
		segment := f.Segment(src, dst, flags, make([]byte, pick(c, 0, 0, 12, 20, 40)), payload)
		return f.TCP, f.Numbered(segment, uint32(c.below(3)), uint32(c.below(3)))
	case 5, 6:
		body := f.Datagram(src, dst, payload)
		switch c.below(12) { // lengths that are not what is there
		case 8:
			body = f.With(body, 4, 0, 0)
		case 9:
			body = f.With(body, 4, 0, c.next()%16)
		case 10:
			body = f.With(body, 4, 0xff, 0xff)
		case 11:
			binary.BigEndian.PutUint16(body[4:], uint16(8+c.below(len(body)-7)))
		}
		return f.UDP, body
	case 7:
		return pick[byte](c, 1, 58, 132, 47, 4, 41, 59), payload
	}
}

// ip puts a network header in front, with options, extension headers, fragments and
// lengths that lie.
func (c *choices) ip(src, dst netip.AddrPort, proto byte, body []byte) []byte {
	plain := !c.oneIn(4)
	if src.Addr().Is4() {
		if plain {
			return f.IP(src, dst, proto, body)
		}
		words := c.below(11)
		packet := f.WithOptions(src, dst, words, proto, body)
		switch c.below(10) {
		case 5: // first fragment
			packet[6] = 0x20
		case 6: // a later one
			packet[6], packet[7] = c.next()&0x3f, c.next()
		case 7:
			packet[2], packet[3] = 0, 0
		case 8:
			packet[2], packet[3] = 0xff, c.next()
		case 9:
			binary.BigEndian.PutUint16(packet[2:], uint16(c.below(len(packet)+1)))
		}
		f.SetChecksum(packet)
		return packet
	}
	if !plain {
		for range c.below(8) {
			switch kind := pick[byte](c, 0, 43, 60, 51, 44); kind {
			case 44:
				offset := byte(0)
				if c.oneIn(4) {
					offset = c.next()
				}
				body = slices.Concat([]byte{proto, c.next(), 0, offset, 0, 0, 0, 1}, body)
				proto = kind
			case 51: // counts in words, less 2
				words := c.below(4)
				body = slices.Concat([]byte{proto, byte(words)}, make([]byte, 6+4*words), body)
				proto = kind
			default:
				body = slices.Concat(f.Extension(proto, c.below(4)), body)
				proto = kind
			}
		}
	}
	packet := f.IP(src, dst, proto, body)
	if !plain {
		switch c.below(8) {
		case 5:
			packet[4], packet[5] = 0, 0
		case 6:
			packet[4], packet[5] = 0xff, c.next()
		case 7:
			binary.BigEndian.PutUint16(packet[4:], uint16(c.below(len(packet))))
		}
	}
	return packet
}

// packet builds the next one. raw leaves the Ethernet header out.
func (c *choices) packet(raw bool) step {
	hook := pick(c, hooks...)
	pair := c.endpoints()
	src, dst := pair[0], pair[1]
	proto, body := c.transport(src, dst)
	frame := pick(c, c.fragments(c.ip(src, dst, proto, body))...)
	tagged := false
	if !raw {
		var tags []int
		if c.oneIn(4) {
			kinds := []int{f.TypeVLAN, f.TypeQinQ, 0x9100}
			for range 1 + c.below(3) {
				tags = append(tags, pick(c, kinds...), pick(c, 7, 0xe007, 0xe000, 0, 0xffff))
			}
			// The kernel takes out tags of the two standard kinds.
			tagged = tags[0] != 0x9100
		}
		frame = f.Ethernet(frame, tags...)
		if c.oneIn(32) {
			binary.BigEndian.PutUint16(frame[12:], pick[uint16](c, 0x0806, 0x88cc, 0x8847, 0x0040, f.TypeIPv6, f.TypeIPv4))
			tagged = false
		}
	}
	if c.oneIn(8) { // padding or a trailer
		frame = append(frame, bytes.Repeat([]byte{0xee}, c.below(48))...)
	}
	if c.oneIn(16) {
		frame = frame[:min(len(frame), c.below(128))]
	}
	if c.oneIn(8) {
		from := 0
		if tagged {
			from = 18
		}
		for range 1 + c.below(3) {
			if off := from + c.below(96); off < len(frame) {
				frame[off] ^= c.next()
			}
		}
	}
	if c.oneIn(64) {
		n := c.below(256)
		frame = slices.Clone(c.b[:min(len(c.b), n)])
		tagged = false
	}
	// BPF_PROG_RUN takes no less than an Ethernet header, and for a socket buffer
	// no less than an IP header behind it, with the tag taken out, and no more than a page.
	if len(frame) < 14 {
		frame = append(frame, make([]byte, 14-len(frame))...)
	}
	if len(frame) < 14+4+40 || len(frame) > 3000 {
		hook = ingress
	}
	return step{hook: hook, taken: tagged && hook != ingress && c.oneIn(2), frame: frame}
}

// talk is a TCP connection that is being built.
type talk struct {
	c         *choices
	raw       bool
	tags      []int
	pair      [2]netip.AddrPort // initiator, responder
	hook      [2]entry          // where their packets come by
	isn, next [2]uint32
	steps     []step
}

// segment adds one of an end, with options and payload of so many bytes, and headers
// of sizes that differ now and then.
func (t *talk) segment(from int, hook entry, flags byte, seq, ack uint32, options []byte, payload int) {
	c, src, dst := t.c, t.pair[from], t.pair[1-from]
	if c.oneIn(8) {
		options = append(options, bytes.Repeat([]byte{1}, 4*c.below((44-len(options))/4))...)
	}
	body := f.Numbered(f.Segment(src, dst, flags, options, f.Payload(payload)), seq, ack)
	packet := f.IP(src, dst, f.TCP, body)
	if c.oneIn(8) {
		if src.Addr().Is6() {
			packet = f.IP(src, dst, 60, slices.Concat(f.Extension(f.TCP, c.below(8)), body))
		} else {
			words := c.below(11)
			packet = f.WithOptions(src, dst, words, f.TCP, body)
		}
	}
	if c.oneIn(8) { // a checksum that is wrong, missing, or left to a network card
		at := len(packet) - len(body) + 16
		packet[at] ^= c.next()
		switch c.below(4) {
		case 0:
			packet[at], packet[at+1] = 0, 0
		case 1:
			whole := packet[at-16:]
			binary.BigEndian.PutUint16(whole[16:], f.PseudoSum(src, dst, f.TCP, len(whole)))
		}
	}
	for _, packet := range c.fragments(packet) {
		if !t.raw {
			packet = f.Ethernet(packet, t.tags...)
		}
		t.steps = append(t.steps, step{hook: hook, frame: packet})
	}
}

// fragments cuts a packet up now and then: well or badly, in order or not, with an id of its
// own or one that others have as well.
func (c *choices) fragments(packet []byte) [][]byte {
	if !c.oneIn(8) {
		return [][]byte{packet}
	}
	first := pick(c, 8, 16, 24, 32, 40, 48, 64, 80)
	second := first + 8*c.below(6)
	pieces := []f.Piece{{From: 0, To: first}, {From: first, To: second}, {From: second, To: 1 << 16}}
	switch c.below(8) {
	case 4: // one piece twice, or an overlap
		pieces = append(pieces, f.Piece{From: 8 * c.below(8), To: second})
	case 5: // the first one is missing, or late
		pieces = pieces[1:]
		if c.oneIn(2) {
			pieces = append(pieces, f.Piece{From: 0, To: first})
		}
	case 6:
		slices.Reverse(pieces)
	case 7: // a whole packet
		pieces = []f.Piece{{From: 0, To: 1 << 16}}
	}
	return f.Fragments(packet, uint32(c.below(4)), pieces...)
}

// send adds a segment with the numbers of its sender's stack, and moves that on.
func (t *talk) send(from int, flags byte, payload int) {
	t.segment(from, t.hook[from], flags, t.next[from], t.next[1-from], nil, payload)
	t.next[from] += uint32(payload)
	if flags&f.FIN != 0 {
		t.next[from]++
	}
}

func other(e entry) entry {
	if e == egress {
		return ingress
	}
	return egress
}

// near is a small distance between two sequence numbers, or one at a bound.
func (c *choices) near() uint32 {
	d := pick(c, 0, 0, 1, 5, 20, 300, 16384, 16385, 1<<20, 1<<20+1, 1<<30)
	if c.oneIn(2) {
		d = -d
	}
	return uint32(d)
}

// forge adds a packet that does not belong there: anything may be wrong about it.
func (t *talk) forge() {
	c := t.c
	from := c.below(2)
	flags := pick[byte](c, f.SYN, f.SYN|f.ACK, f.RST, f.RST|f.ACK, f.FIN|f.ACK, f.ACK, f.ACK, 0, f.SYN|f.RST, f.SYN|f.FIN|f.ACK)
	seq, ack := t.next[from]+c.near(), t.next[1-from]+c.near()
	if flags&f.SYN != 0 {
		seq = t.isn[from] + c.near()
	}
	hook := t.hook[from]
	if c.oneIn(2) {
		hook = other(hook)
	}
	t.segment(from, hook, flags, seq, ack, nil, pick(c, 0, 0, 1, 20))
}

// begin adds a handshake, mostly a right one.
func (t *talk) begin() {
	c := t.c
	for i := range t.isn {
		t.isn[i] = pick(c, uint32(c.next())<<24|uint32(c.next())<<8, 0xffffff80, 0x7ffffff0, t.isn[i], t.isn[i]+100)
	}
	t.next = t.isn
	data, accepted := 0, 0
	var options []byte
	if c.oneIn(6) { // TCP Fast Open
		data = pick(c, 1, 20, 66, 86, 106, 107, 300)
		accepted = pick(c, data, data, 0, data/2)
	}
	if c.oneIn(16) {
		options = pick(c, []byte{30, 12, 0x10, 1, 1, 2, 3, 4, 5, 6, 7, 8}, []byte{1, 1, 1, 30}, []byte{30, 3, 0x1f}, []byte{30, 40, 0x10, 0},
			[]byte{2, 4, 5, 5, 30, 4, 0x00, 0, 0}, []byte{0, 30, 3, 0x10}, []byte{99, 0, 30, 3, 0x10}, []byte{99, 60, 30, 3, 0x10})
	}
	syn := func() { t.segment(0, t.hook[0], f.SYN, t.isn[0], 0, options, data) }
	answer := func(ack uint32) {
		t.segment(1, t.hook[1], f.SYN|f.ACK, t.isn[1], ack, nil, pick(c, 0, 0, 0, 0, 0, 0, 0, 9))
	}
	switch c.below(16) {
	case 12: // in fragments: nothing that has its ports
	case 13: // another one first, or last
		t.segment(0, t.hook[0], f.SYN, t.isn[0]+7, 0, nil, 0)
		syn()
	case 14:
		syn()
		t.segment(0, pick(c, hooks...), f.SYN, t.isn[0]+7, 0, nil, 0)
		if c.oneIn(2) {
			t.segment(0, t.hook[0], f.SYN, t.isn[0]+14, 0, nil, 0)
		}
	case 15: // sent again
		syn()
		syn()
	default:
		syn()
	}
	t.next[0] = t.isn[0] + 1 + uint32(accepted)
	if c.oneIn(8) {
		t.forge()
	}
	t.next[1] = t.isn[1] + 1
	switch c.below(16) {
	case 10: // both open
		t.segment(1, t.hook[1], f.SYN, t.isn[1], 0, nil, 0)
		t.segment(0, t.hook[0], f.SYN|f.ACK, t.isn[0], t.next[1], nil, 0)
		answer(t.next[0])
	case 11: // one way
	case 12:
		answer(t.next[0] + c.near())
		answer(t.next[0])
	case 13, 14: // sent again
		answer(t.next[0])
		answer(t.next[0])
	case 15: // and out again
		answer(t.next[0])
		t.hook[0] = other(t.hook[0])
		if c.oneIn(2) {
			t.hook[1] = other(t.hook[1])
		}
		answer(t.next[0])
	default:
		answer(t.next[0])
	}
	if c.oneIn(8) {
		t.forge()
	}
	if c.oneIn(16) {
		t.send(1, f.ACK, pick(c, 0, 1, 300)) // early
	}
	if !c.oneIn(4) {
		t.send(0, f.ACK, 0)
	}
}

// segmentSizes are bytes of payload, most of them so few that a capture has many.
var segmentSizes = []int{1, 1, 5, 20, 60, 100, 300, 863, 1400}

// on adds what a connection goes on with.
func (t *talk) on() {
	c := t.c
	from, size := c.below(2), pick(c, segmentSizes...)
	seq, ack := t.next[from], t.next[1-from]
	again := func(d uint32, n int) { t.segment(from, t.hook[from], f.ACK, seq+d, ack, nil, n) }
	switch c.below(22) {
	default:
		t.send(from, f.ACK|f.PSH, size)
	case 7:
		t.send(from, f.ACK, 0)
	case 8: // reordered
		again(uint32(size), 20)
		t.send(from, f.ACK, size)
		t.send(from, f.ACK, 20)
	case 9: // sent again
		t.send(from, f.ACK, size)
		again(0, size)
	case 10: // sent again with more
		t.send(from, f.ACK, size)
		again(0, size+1)
		t.next[from]++
	case 11: // a hole that is filled from one of its ends, or in its middle, twice
		again(60, 20)
		n := pick(c, 20, 40, 60, 100)
		d := uint32(pick(c, 0, 20, 40))
		again(d, n)
		again(d, n)
		again(0, 60)
		t.next[from] += 80
	case 12: // two holes
		again(20, 20)
		again(60, 20)
		again(40, 20)
		again(0, 20)
		t.next[from] += 80
	case 13: // keep-alives
		again(^uint32(0), c.below(2))
	case 14: // at the window's bounds
		t.segment(from, t.hook[from], f.ACK, seq+c.near(), ack, nil, pick(c, 0, size))
	case 15:
		t.segment(from, t.hook[from], f.ACK, seq, ack+c.near(), nil, pick(c, 0, size))
		if c.oneIn(2) {
			t.next[from] += uint32(size)
		}
	case 16:
		t.segment(from, other(t.hook[from]), f.ACK, seq, ack, nil, pick(c, 0, size))
	case 17:
		t.send(from, f.FIN|f.ACK, pick(c, 0, size))
	case 18:
		t.segment(from, t.hook[from], pick[byte](c, f.RST, f.RST|f.ACK, f.FIN|f.ACK, f.FIN), seq+c.near(), ack, nil, pick(c, 0, 0, 20))
	case 19:
		t.forge()
	case 20: // much payload out of place, mostly of both sides
		for end := range pick(c, 1, 2, 2) {
			for range pick(c, 11, 12, 12) {
				t.segment(end, t.hook[end], f.ACK, t.next[end]+1<<30, t.next[1-end], nil, pick(c, 1400, 1400, 1366))
			}
		}
	case 21: // payload that nobody sees
		t.next[from] += pick[uint32](c, 1400, 4096, 4097, 9000)
		t.send(pick(c, from, 1-from), f.ACK, 0)
	}
}

// connection builds one or more connections of the same two ends.
func (c *choices) connection(raw bool) []step {
	t := &talk{c: c, raw: raw, pair: c.endpoints(), hook: pick(c, [2]entry{ingress, egress}, [2]entry{egress, ingress}, [2]entry{tcxIngress, egress}, [2]entry{egress, tcxIngress})}
	if !raw && c.oneIn(4) {
		t.tags = []int{f.TypeVLAN, 7}
	}
	for {
		t.begin()
		for range c.below(12) {
			t.on()
		}
		if !c.oneIn(3) || len(t.steps) > inputPackets {
			return t.steps
		}
		if c.oneIn(4) { // the next one the other way round
			t.pair[0], t.pair[1] = t.pair[1], t.pair[0]
			t.hook[0], t.hook[1] = t.hook[1], t.hook[0]
			t.isn[0], t.isn[1] = t.isn[1], t.isn[0]
		}
	}
}

// endpoints picks two ends, of this input.
func (c *choices) endpoints() (pair [2]netip.AddrPort) {
	pair = endpoints[c.below(4)]
	if c.oneIn(4) {
		pair = pick(c, endpoints...)
	}
	if c.oneIn(2) {
		pair[0], pair[1] = pair[1], pair[0]
	}
	for i, end := range pair {
		pair[i] = netip.AddrPortFrom(c.mine(end.Addr()), end.Port())
	}
	return pair
}

// mine makes an address one of this input, in the same order.
func (c *choices) mine(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		b := addr.As4()
		b[1], b[2] = b[1]^byte(c.number>>8), b[2]^byte(c.number)
		return netip.AddrFrom4(b)
	}
	b := addr.As16()
	if !addr.Is4In6() {
		b[4], b[5] = b[4]^byte(c.number>>8), b[5]^byte(c.number)
	}
	return netip.AddrFrom16(b)
}

// inputPackets bounds the packets of one input, the last connection apart.
const inputPackets = 48

// decode turns an input into one of the twin's data paths and packets for it. Two
// connections may be mixed, and strange packets are between their segments.
func decode(input []byte, number func(path int) uint16) (path int, steps []step) {
	c := &choices{b: input}
	path = c.below(len(twinConfigs))
	c.number = number(path)
	raw := twinConfigs[path].rawIP
	for len(steps) == 0 || len(c.b) > 0 && len(steps) < inputPackets {
		switch c.below(4) {
		case 0:
			steps = append(steps, c.packet(raw))
		case 1:
			mixed := [2][]step{c.connection(raw), c.connection(raw)}
			for len(mixed[0])+len(mixed[1]) > 0 {
				i := c.below(2)
				if len(mixed[i]) == 0 {
					i = 1 - i
				}
				steps, mixed[i] = append(steps, mixed[i][0]), mixed[i][1:]
			}
		default:
			steps = append(steps, c.connection(raw)...)
		}
	}
	return path, steps
}

// twinConfigs are the data paths that inputs run through. Whatever collects is idle
// for the sweep, which the comparison ends an input with.
var twinConfigs = []config{
	{idle: 1, handshakes: 1 << 14},
	{idle: 1, handshakes: 1 << 14, midStream: true},
	{idle: 1, handshakes: 1 << 14, rawIP: true, oneHook: true},
	{idle: 1, handshakes: 1 << 14, oneHook: true, oneWay: true},
	{idle: 1, handshakes: 1 << 14, oneWay: true, midStream: true},
}

// A twin runs packets through the kernel programs and through the assembly.
type twin struct {
	paths  []*twinPath
	counts map[string]uint64 // what the kernel has counted so far, of all inputs
}

type twinPath struct {
	*kernel
	config
	// offloaded moves the outer tag from the context's fields into the socket
	// buffer, where hardware and the stack put it, and goes on with the hook's program.
	offloaded map[entry]*ebpf.Program
	before    map[string]uint64
	inputs    uint16 // so far; they wrap
}

func newTwin(t testing.TB) *twin {
	t.Helper()
	w := &twin{counts: map[string]uint64{}}
	for _, c := range twinConfigs {
		w.paths = append(w.paths, newTwinPath(t, c))
	}
	return w
}

func newTwinPath(t testing.TB, c config) *twinPath {
	t.Helper()
	k := loadKernel(t, c)
	k.enforce(false) // malformed fragments pass, as in files
	p := &twinPath{kernel: k, config: c, offloaded: map[entry]*ebpf.Program{egress: offloadTag(t, k, egress), tcxIngress: offloadTag(t, k, tcxIngress)}}
	p.before = p.counts()
	return p
}

// skbContext is the start of struct __sk_buff; mark and priority, which BPF_PROG_RUN
// lets in, carry the tag to the program of offloadTag.
type skbContext struct {
	_        [2]uint32
	Mark     uint32 // TCI
	_        [5]uint32
	Priority uint32 // EtherType in network order
	_        [39]uint32
}

const tagFailed = 0x7a9

// offloadTag returns a program that pushes a tag, which the kernel keeps beside the
// frame, and then runs a hook's program.
func offloadTag(t testing.TB, k *kernel, e entry) *ebpf.Program {
	t.Helper()
	next, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { next.Close() })
	if err := next.Update(uint32(0), k.program(e), ebpf.UpdateAny); err != nil {
		t.Fatal(err)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "offload_tag", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R2, asm.R6, 32, asm.Word),
			asm.LoadMem(asm.R3, asm.R6, 8, asm.Word),
			asm.FnSkbVlanPush.Call(),
			asm.JNE.Imm(asm.R0, 0, "failed"),
			asm.LoadMem(asm.R2, asm.R6, 20, asm.Word), // vlan_present
			asm.JEq.Imm(asm.R2, 0, "failed"),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMapPtr(asm.R2, next.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, tagFailed).WithSymbol("failed"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatalf("load the program that offloads a tag: %v", err)
	}
	t.Cleanup(func() { prog.Close() })
	return prog
}

func (p *twinPath) step(s step) {
	p.t.Helper()
	if !s.taken {
		if p.run(s.hook, s.frame) {
			p.t.Fatal("a packet was dropped")
		}
		return
	}
	ctx := skbContext{
		Mark:     uint32(binary.BigEndian.Uint16(s.frame[14:])),
		Priority: uint32(binary.NativeEndian.Uint16(s.frame[12:])),
	}
	ret, err := p.offloaded[s.hook].Run(&ebpf.RunOptions{Data: slices.Concat(s.frame[:12], s.frame[16:]), Context: &ctx})
	if err != nil || ret != tcUnspec {
		p.t.Fatalf("%s with an offloaded tag returned %#x, %v", s.hook, ret, err)
	}
}

// comparable are the counters that kernel and assembly both have.
var comparable = []assembly.Counter{
	assembly.Counter(headers.NotIP), assembly.Counter(headers.OtherProto), assembly.Counter(headers.Malformed),
	assembly.Counter(headers.Unparsable), assembly.Counter(headers.LaterFragment), assembly.Counter(headers.BadFragment), assembly.FollowedFragment,
	assembly.MidStream, assembly.SYNs, assembly.Opened, assembly.OneWay, assembly.MPJoin, assembly.BadFlags,
	assembly.Reflected, assembly.WrongSide, assembly.OutOfPlace, assembly.Behind, assembly.Decoys, assembly.HeaderOnly,
	assembly.Restarted, assembly.Waiting, assembly.Full, assembly.Closed,
}

// never are counters that no packets of an input make the kernel count.
var never = []string{"load_failed", "slots_full", "initiator_slots", "initiator_waiting", "collecting_full", "handshake_busy", "ring_full", "dropped_packets", "bad_fragment_dropped"}

// outcome is what must agree.
type outcome struct {
	HandedOver []seen // in order
	Collecting []seen // captures that were not complete, by key
	UDP        uint64 // flows
	Counters   map[string]uint64

	leftOut uint64 // of handshakes; the kernel does not count it
}

var ignoreLeftOut = cmpopts.IgnoreUnexported(outcome{})

// side is the one that a hook tells, with one hook none.
func (s step) side(oneHook bool) assembly.Side {
	switch {
	case oneHook:
		return assembly.SideUnknown
	case s.hook != egress:
		return assembly.SideInbound
	}
	return assembly.SideOutbound
}

// ethernet returns the step's frame with an Ethernet header, as the reader of capture
// files does it.
func (s step) ethernet(raw bool) []byte {
	if !raw {
		return s.frame
	}
	etherType := 0
	switch s.frame[0] >> 4 {
	case 4:
		etherType = f.TypeIPv4
	case 6:
		etherType = f.TypeIPv6
	}
	return slices.Concat(make([]byte, 12), []byte{byte(etherType >> 8), byte(etherType)}, s.frame)
}

// assembled is what the assembly makes of the packets. The keys that it saw come
// with it.
func assembled(steps []step, c config) (o outcome, keys map[flow.Key]bool) {
	keys = map[flow.Key]bool{}
	o.Counters = map[string]uint64{}
	a := assembly.New(assembly.Options{IdleTimeout: time.Hour, UDPIdle: time.Hour, MidStream: c.midStream, OneWay: c.oneWay, StrictChecksums: true},
		func(fl *assembly.Flow, s *flow.Sample) {
			if s.Key.Proto == flow.UDP {
				o.UDP++
			}
			v := look(s)
			if s.Reason == flow.ReasonEnd {
				v.Reason, v.Provisional = "", false
				o.Collecting = append(o.Collecting, v)
			} else {
				o.HandedOver = append(o.HandedOver, v)
			}
		}, nil)
	for i, s := range steps {
		frame := s.ethernet(c.rawIP)
		if p, verdict := headers.Parse(frame, len(frame)); verdict == headers.OK {
			keys[p.Key] = true
		}
		a.PacketFrom(s.side(c.oneHook), time.Unix(1, int64(i)*1000), frame, len(frame))
	}
	counters := a.Counters()
	for _, c := range comparable {
		o.Counters[c.String()] = counters[c]
	}
	for _, name := range never {
		o.Counters[name] = 0
	}
	o.Counters["packets"] = uint64(len(steps))
	o.leftOut = counters[assembly.LeftOut]
	a.Flush()
	slices.SortFunc(o.Collecting, bySeen)
	return o, keys
}

func bySeen(a, b seen) int { return strings.Compare(a.Key, b.Key) }

// captured is what the kernel programs make of them.
func (p *twinPath) captured(steps []step) (o outcome) {
	p.t.Helper()
	o.Counters = map[string]uint64{}
	for _, s := range steps {
		p.step(s)
	}
	for _, s := range p.samples() {
		o.HandedOver = append(o.HandedOver, look(s))
	}
	now := p.counts()
	diff := map[string]uint64{}
	for name, v := range now {
		diff[name] = v - p.before[name]
	}
	for _, c := range comparable {
		o.Counters[c.String()] = diff[c.String()]
	}
	o.UDP = diff["udp_opened"]
	for _, name := range never {
		o.Counters[name] = diff[name]
	}
	o.Counters["packets"] = diff["packets_ingress"] + diff["packets_egress"]
	time.Sleep(time.Nanosecond) // idle is one of them
	p.sweep()
	for _, s := range p.samples() {
		v := look(s)
		if s.Reason == flow.ReasonIdle {
			v.Reason, v.Provisional = "", false
		}
		o.Collecting = append(o.Collecting, v)
	}
	slices.SortFunc(o.Collecting, bySeen)
	return o
}

// forget takes out what would be in the way of the next inputs. Their flows have other
// keys; only handshakes would push out others, and the map of decided flows, which has
// room for few, might forget one that is wanted.
func (p *twinPath) forget(keys map[flow.Key]bool) {
	p.t.Helper()
	for key := range keys {
		k := toKernelKey(key)
		_ = p.coll.Maps[datapathMapFlows].Delete(&k) // not there, most of them
	}
	for _, name := range []string{datapathMapHandshakeTags, datapathMapWaitingTags} {
		if err := zero(p.coll.Maps[name]); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := p.coll.Maps[datapathMapWaitingQuota].Update(uint32(waitingInUse), uint32(0), ebpf.UpdateAny); err != nil {
		p.t.Fatal(err)
	}
	if p.inputs++; p.inputs == 0 { // their numbers begin again
		p.forgetFragments()
		for _, name := range []string{datapathMapSettled, datapathMapSeenInside} {
			if err := zero(p.coll.Maps[name]); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	if o, err := p.Occupancy(); err != nil || o.Collecting != 0 {
		p.t.Fatalf("after an input: occupancy %+v, %v", o, err)
	}
	p.before = p.counts()
}

// compare runs one input through both and returns the number of its packets and
// what was handed over.
func (w *twin) compare(t testing.TB, input []byte) (packets int, got outcome) {
	t.Helper()
	path, steps := decode(input, func(path int) uint16 { return w.paths[path].inputs })
	p := w.paths[path]
	p.t = t
	before := p.before
	start := time.Now()
	want, got, keys := p.both(steps)
	for tries := 0; time.Since(start) > 100*time.Millisecond && tries < 100; tries++ {
		// Whether a packet was reflected is a matter of a second by the kernel's clock, and
		// a busy machine may stand still for as long, more than once: again, with all
		// forgotten.
		p.inputs = ^uint16(0)
		p.forget(keys)
		before = p.before
		start = time.Now()
		want, got, keys = p.both(steps)
	}
	if !reflect.DeepEqual(want, got) { // much faster than a diff
		t.Logf("input %q, %+v", input, p.config)
		steps = p.thinned(steps)
		for i, s := range steps {
			frame := s.ethernet(p.rawIP)
			h, verdict := headers.Parse(frame, len(frame))
			t.Logf("packet %d: %s, tag taken out: %v, %v %v, from lo %v, flags %#02x, seq %#x, ack %#x, payload %d at %d: %s", i, s.hook, s.taken,
				verdict, h.Key, h.SrcIsLo, h.Flags, h.Seq, h.Ack, h.PayloadLen, h.Payload, hex.EncodeToString(s.frame[:min(len(s.frame), 128)]))
		}
		want, got, keys = p.both(steps)
		t.Errorf("assembly and kernel differ (-assembly +kernel):\n%s", gocmp.Diff(want, got, ignoreLeftOut))
	}
	for name, v := range p.counts() {
		w.counts[name] += v - before[name]
	}
	p.forget(keys)
	return len(steps), got
}

// both is what assembly and kernel make of the packets.
func (p *twinPath) both(steps []step) (want, got outcome, keys map[flow.Key]bool) {
	p.t.Helper()
	want, keys = assembled(steps, p.config)
	got = p.captured(steps)
	got.leftOut = want.leftOut
	return want, got, keys
}

// thinned returns as few of the packets as it takes for assembly and kernel to differ.
func (p *twinPath) thinned(steps []step) []step {
	p.t.Helper()
	for i := 0; i < len(steps); {
		less := slices.Delete(slices.Clone(steps), i, i+1)
		p.inputs = ^uint16(0) // the keys are the same again
		p.forget(nil)
		if want, got, keys := p.both(less); !reflect.DeepEqual(want, got) {
			steps, i = less, 0
			p.forget(keys)
		} else {
			i++
			p.forget(keys)
		}
	}
	p.inputs = ^uint16(0)
	p.forget(nil)
	return steps
}

// A tag that hardware is to insert, or that was taken out on receive, and therefore stands
// beside the frame, gives the bytes that it would give inside the frame.
func TestOffloadedTagIsCapturedAsIfInTheFrame(t *testing.T) {
	segment := func(src, dst netip.AddrPort, flags byte, seq, ack uint32, n int, tags ...int) []byte {
		return f.Ethernet(f.IP(src, dst, f.TCP, f.Numbered(f.Segment(src, dst, flags, nil, f.Payload(n)), seq, ack)), tags...)
	}
	for _, tt := range []struct {
		name string
		tags []int
		key  string
	}{
		{"802.1Q", []int{f.TypeVLAN, 0xe064}, " vlan 100"},
		{"802.1ad", []int{f.TypeQinQ, 100}, " vlan 100"},
		{"priority tag", []int{f.TypeVLAN, 0xe000}, ""},
		{"QinQ", []int{f.TypeQinQ, 7, f.TypeVLAN, 4094}, " vlan 7.4094"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newTwinPath(t, config{idle: 1, handshakes: 1 << 14, oneHook: true})
			steps := func(hook entry, taken bool) (all []step) {
				for _, frame := range [][]byte{
					segment(client, server, f.SYN, 10, 0, 0, tt.tags...), segment(server, client, f.SYN|f.ACK, 50, 11, 0, tt.tags...), segment(client, server, f.ACK, 11, 51, 1400, tt.tags...),
					segment(peer6, host6, f.SYN, 10, 0, 5, tt.tags...), segment(host6, peer6, f.SYN|f.ACK, 50, 16, 0, tt.tags...), segment(peer6, host6, f.ACK|f.FIN, 16, 51, 100, tt.tags...),
				} {
					all = append(all, step{hook: hook, taken: taken, frame: frame})
				}
				return all
			}
			want, keys := assembled(steps(ingress, false), p.config)
			inFrame := p.captured(steps(ingress, false))
			for _, hook := range []entry{tcxIngress, egress} {
				p.forget(keys)
				beside := p.captured(steps(hook, true))
				if diff := gocmp.Diff(inFrame, beside, ignoreLeftOut); diff != "" {
					t.Errorf("%s: the tag makes a difference (-in the frame of XDP +beside it):\n%s", hook, diff)
				}
				if diff := gocmp.Diff(want, beside, ignoreLeftOut); diff != "" {
					t.Errorf("%s: assembly and kernel differ (-assembly +kernel):\n%s", hook, diff)
				}
				if len(beside.HandedOver) != 2 || beside.HandedOver[0].Key != "tcp 10.0.0.2:40000 <> 192.0.2.7:443"+tt.key {
					t.Fatalf("%s: handed over %+v", hook, beside.HandedOver)
				}
				if n := 2 * len(tt.tags); len(beside.HandedOver[0].Data) != 1024 || beside.HandedOver[0].WireLens[1] != uint32(54+n) {
					t.Errorf("%s: wire lengths %v", hook, beside.HandedOver[0].WireLens)
				}
			}
		})
	}
}

// FuzzKernelAgainstAssembly: whatever the packets, both hooks and the assembly of
// capture files agree on keys, directions, offsets, bytes, numbers and counters. No two
// runs of an input have the same addresses, so minimizing inputs takes long and finds
// little: run it with -fuzzminimizetime 100x.
func FuzzKernelAgainstAssembly(fz *testing.F) {
	w := newTwin(fz)
	fz.Add([]byte{})
	fz.Fuzz(func(t *testing.T, input []byte) { w.compare(t, input) })
}

// TestKernelAgainstAssemblyRandom does the same with random packets, always the
// same ones, and makes sure that they reach what they are meant to reach.
func TestKernelAgainstAssemblyRandom(t *testing.T) {
	w := newTwin(t)
	random := rand.New(rand.NewPCG(1, 2))
	start, packets, inputs := time.Now(), 0, 0
	kinds := map[string]int{}
	leftOut := uint64(0)
	for packets < *randomPackets && !t.Failed() {
		input := make([]byte, 100+random.IntN(900))
		for i := range input {
			input[i] = byte(random.Uint32())
		}
		n, got := w.compare(t, input)
		packets += n
		inputs++
		leftOut += got.leftOut
		for _, s := range slices.Concat(got.HandedOver, got.Collecting) {
			for _, kind := range s.kinds() {
				kinds[kind]++
			}
		}
	}
	if t.Failed() {
		return
	}
	t.Logf("%d packets in %d inputs, %.1f s: samples %v, counters %v", packets, inputs, time.Since(start).Seconds(), kinds, w.counts)
	if leftOut == 0 {
		t.Error("no packet was left out of a handshake")
	}
	// Deep states are reached often, not by accident.
	atLeast := func(what string, got uint64, want int) {
		if got < uint64(max(1, want)) {
			t.Errorf("%d %s, want %d of %d packets", got, what, want, packets)
		}
	}
	for kind, share := range sampleKinds {
		atLeast("samples "+kind, uint64(kinds[kind]), packets/share)
	}
	for _, c := range comparable {
		share := 2000
		if c < assembly.MidStream || c == assembly.MPJoin { // what is no segment, or rare
			share = 10_000
		}
		atLeast("counted as "+c.String(), w.counts[c.String()], packets/share)
	}
}

// sampleKinds are those that random packets have to reach, each at least once in so many
// packets.
var sampleKinds = map[string]int{
	"full": 200, "closed": 200, "idle": 100, "one way": 2000, "mid-stream": 2000, "of a SYN+ACK alone": 2000,
	"out_of_place": 20_000, "unreadable": 2000, "mptcp_join": 5000,
	"with data in the SYN": 2000, "of ten packets": 500, "of both directions": 100,
}

// kinds says what is special about a sample.
func (s *seen) kinds() (kinds []string) {
	add := func(is bool, kind string) {
		if is {
			kinds = append(kinds, kind)
		}
	}
	kinds = append(kinds, s.Signals...)
	add(true, cmp.Or(s.Reason, "idle"))
	add(s.OneWay, "one way")
	add(s.MidStream, "mid-stream")
	add(len(s.Offsets) >= 10, "of ten packets")
	add(slices.Contains(s.FromInitiator, false), "of both directions")
	h, verdict := headers.Parse(s.Data[:min(len(s.Data), int(s.WireLens[0]))], int(s.WireLens[0]))
	if verdict == headers.OK && h.Proto == flow.TCP {
		add(h.Flags&(headers.SYN|headers.ACK) == headers.SYN|headers.ACK && !s.FromInitiator[0], "of a SYN+ACK alone")
		add(h.Flags.Opens() && h.PayloadLen > 0, "with data in the SYN")
	}
	return kinds
}
