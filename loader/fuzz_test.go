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
type choices struct{ b []byte }

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
		return f.TCP, f.Segment(src, dst, flags, make([]byte, pick(c, 0, 0, 12, 20, 40)), payload)
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
		packet := f.IP(src, dst, proto, slices.Concat(make([]byte, 4*words), body))
		packet[0] = byte(0x45 + words)
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
	hook := pick(c, ingress, egress, egress)
	pair := endpoints[c.below(4)]
	if c.oneIn(4) {
		pair = pick(c, endpoints...)
	}
	src, dst := pair[0], pair[1]
	if c.oneIn(2) {
		src, dst = dst, src
	}
	proto, body := c.transport(src, dst)
	frame := c.ip(src, dst, proto, body)
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
	return step{hook: hook, taken: tagged && hook == egress && c.oneIn(2), frame: frame}
}

// opening builds the start of a connection with header-only packets of many sizes,
// more and larger ones than a handshake keeps, and at last data.
func (c *choices) opening(raw bool) (steps []step) {
	pair := pick(c, endpoints...)
	var tags []int
	if !raw && c.oneIn(4) {
		tags = []int{f.TypeVLAN, 7}
	}
	last := 1 + c.below(12)
	for i := range last + 1 {
		src, dst := pair[0], pair[1]
		flags, payload := byte(f.ACK), 0
		switch {
		case i == 0:
			flags = f.SYN
		case i == last:
			payload = 1 + int(c.next())*4
		}
		if i > 0 && c.oneIn(2) {
			src, dst = dst, src
			flags |= pick[byte](c, 0, f.SYN)
		}
		packet := f.IP(src, dst, f.TCP, f.Segment(src, dst, flags, make([]byte, 4*c.below(11)), f.Payload(payload)))
		if src.Addr().Is6() {
			body := packet[40:]
			if c.oneIn(2) {
				body = slices.Concat(f.Extension(f.TCP, c.below(8)), body)
				packet = f.IP(src, dst, 60, body)
			}
		} else if words := c.below(11); c.oneIn(2) {
			packet = f.IP(src, dst, f.TCP, slices.Concat(make([]byte, 4*words), packet[20:]))
			packet[0] += byte(words)
			f.SetChecksum(packet)
		}
		if !raw {
			packet = f.Ethernet(packet, tags...)
		}
		hook := ingress
		if len(packet) >= 14+4+40 && c.oneIn(2) {
			hook = egress
		}
		steps = append(steps, step{hook: hook, frame: packet})
	}
	return steps
}

// inputPackets bounds the packets of one input, the last opening apart.
const inputPackets = 48

// decode turns an input into one of the twin's data paths and packets for it.
func decode(input []byte) (path int, steps []step) {
	c := &choices{input}
	path = c.below(len(twinConfigs))
	for len(steps) == 0 || len(c.b) > 0 && len(steps) < inputPackets {
		raw := twinConfigs[path].rawIP
		if c.oneIn(16) {
			steps = append(steps, c.opening(raw)...)
		} else {
			steps = append(steps, c.packet(raw))
		}
	}
	return path, steps
}

// twinConfigs are the data paths that inputs run through. Whatever collects is idle
// for the sweep, which the comparison ends an input with.
var twinConfigs = []config{
	{idle: 1, handshakes: 1 << 14},
	{idle: 1, handshakes: 1 << 14, midStream: true},
	{idle: 1, handshakes: 1 << 14, rawIP: true},
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
	// buffer, where hardware puts it, and goes on with the egress program.
	offloaded *ebpf.Program
	before    map[string]uint64
}

func newTwin(t testing.TB) *twin {
	t.Helper()
	w := &twin{counts: map[string]uint64{}}
	for _, c := range twinConfigs {
		k := loadKernel(t, c)
		w.paths = append(w.paths, &twinPath{kernel: k, config: c, offloaded: offloadTag(t, k)})
	}
	return w
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
// frame, and then runs ed_egress.
func offloadTag(t testing.TB, k *kernel) *ebpf.Program {
	t.Helper()
	next, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { next.Close() })
	if err := next.Update(uint32(0), k.coll.Programs[datapathProgEdEgress], ebpf.UpdateAny); err != nil {
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
	ret, err := p.offloaded.Run(&ebpf.RunOptions{Data: slices.Concat(s.frame[:12], s.frame[16:]), Context: &ctx})
	if err != nil || ret != tcUnspec {
		p.t.Fatalf("egress with an offloaded tag returned %#x, %v", ret, err)
	}
}

// comparable are the counters that kernel and assembly both have.
var comparable = []assembly.Counter{
	assembly.Counter(headers.NotIP), assembly.Counter(headers.OtherProto), assembly.Counter(headers.Malformed),
	assembly.Counter(headers.Unparsable), assembly.Counter(headers.LaterFragment),
	assembly.MidStream, assembly.HeaderOnly, assembly.Restarted, assembly.Full, assembly.Closed,
}

// outcome is what must agree.
type outcome struct {
	HandedOver []seen // in order
	Collecting []seen // captures that were not complete, by key
	Started    uint64 // flows
	Counters   map[string]uint64

	leftOut uint64 // of handshakes; the kernel does not count it
}

var ignoreLeftOut = cmpopts.IgnoreUnexported(outcome{})

// assembled is what the assembly makes of the packets. The keys that it saw come
// with it.
func assembled(steps []step, c config) (o outcome, keys map[flow.Key]bool) {
	keys = map[flow.Key]bool{}
	o.Counters = map[string]uint64{}
	a := assembly.New(assembly.Options{IdleTimeout: time.Hour, UDPIdle: time.Hour, MidStream: c.midStream},
		func(fl *assembly.Flow, s *flow.Sample) {
			switch v := look(s); {
			case s.Key == sentinelKey:
				o.Started = fl.Seq
			case s.Reason == flow.ReasonEnd:
				v.Reason = ""
				o.Collecting = append(o.Collecting, v)
			default:
				o.HandedOver = append(o.HandedOver, v)
			}
		}, nil)
	for i, s := range steps {
		frame := s.frame
		if c.rawIP { // as the reader of capture files does it
			etherType := 0
			switch frame[0] >> 4 {
			case 4:
				etherType = f.TypeIPv4
			case 6:
				etherType = f.TypeIPv6
			}
			frame = slices.Concat(make([]byte, 12), []byte{byte(etherType >> 8), byte(etherType)}, frame)
		}
		if p, verdict := headers.Parse(frame, len(frame)); verdict == headers.OK {
			keys[p.Key] = true
		}
		a.Packet(time.Unix(1, int64(i)*1000), frame, len(frame))
	}
	counters := a.Counters()
	for _, c := range comparable {
		o.Counters[c.String()] = counters[c]
	}
	o.leftOut = counters[assembly.LeftOut]
	// A last flow's number tells how many there were before.
	a.Packet(time.Unix(2, 0), sentinel, len(sentinel))
	a.Flush()
	slices.SortFunc(o.Collecting, bySeen)
	return o, keys
}

func bySeen(a, b seen) int { return strings.Compare(a.Key, b.Key) }

var (
	sentinelFrom, sentinelTo = netip.MustParseAddrPort("203.0.113.1:1"), netip.MustParseAddrPort("203.0.113.2:2")
	sentinelKey, _           = flow.NewKey(sentinelFrom, sentinelTo, flow.UDP, 0, 0)
	sentinel                 = f.Ethernet(f.IP(sentinelFrom, sentinelTo, f.UDP, f.Datagram(sentinelFrom, sentinelTo, f.Payload(1))))
)

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
	o.Started = diff["tcp_opened"] + diff["udp_opened"] + diff["mid_stream"]
	for _, name := range []string{"load_failed", "slots_full", "collecting_full", "handshake_busy", "ring_full", "dropped_packets"} {
		if diff[name] != 0 {
			p.t.Errorf("%s rose by %d", name, diff[name])
		}
	}
	if n := diff["packets_ingress"] + diff["packets_egress"]; n != uint64(len(steps)) {
		p.t.Errorf("%d packets counted, %d sent", n, len(steps))
	}
	time.Sleep(time.Nanosecond) // idle is one of them
	p.sweep()
	for _, s := range p.samples() {
		if s.Reason != flow.ReasonIdle {
			p.t.Errorf("the sweep handed over: %v", s.Reason)
		}
		v := look(s)
		v.Reason = ""
		o.Collecting = append(o.Collecting, v)
	}
	slices.SortFunc(o.Collecting, bySeen)
	return o
}

// forget brings the data path back to where it knows nothing of the keys: a SYN and
// a RST leave nothing but what the map of decided flows has.
func (p *twinPath) forget(keys map[flow.Key]bool) {
	p.t.Helper()
	for key := range keys {
		if key.Proto == flow.TCP {
			lo, hi := key.Lo, key.Hi
			if lo.Addr().Is4() != hi.Addr().Is4() { // an IPv6 packet with one mapped address
				lo = netip.AddrPortFrom(netip.AddrFrom16(lo.Addr().As16()), lo.Port())
				hi = netip.AddrPortFrom(netip.AddrFrom16(hi.Addr().As16()), hi.Port())
			}
			for _, flags := range []byte{f.SYN, f.RST} {
				frame := f.IP(lo, hi, f.TCP, f.Segment(lo, hi, flags, nil, nil))
				if !p.rawIP {
					var tags []int
					if key.VLAN != 0 || key.InnerVLAN != 0 {
						tags = append(tags, f.TypeVLAN, int(key.VLAN))
					}
					if key.InnerVLAN != 0 {
						tags = append(tags, f.TypeVLAN, int(key.InnerVLAN))
					}
					frame = f.Ethernet(frame, tags...)
				}
				p.run(ingress, frame)
			}
		}
		k := toKernelKey(key)
		_ = p.coll.Maps[datapathMapFlows].Delete(&k) // TCP is gone already
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
	path, steps := decode(input)
	p := w.paths[path]
	p.t = t
	defer func() {
		if !t.Failed() {
			return
		}
		t.Logf("input %q, %+v", input, p.config)
		for i, s := range steps {
			t.Logf("packet %d: %s, tag taken out: %v, %d bytes: %s", i, s.hook, s.taken, len(s.frame), hex.EncodeToString(s.frame[:min(len(s.frame), 160)]))
		}
	}()
	if p.before == nil {
		p.before = p.counts()
	}
	before := p.before
	want, keys := assembled(steps, p.config)
	got = p.captured(steps)
	got.leftOut = want.leftOut
	if !reflect.DeepEqual(want, got) { // much faster than a diff
		t.Errorf("assembly and kernel differ (-assembly +kernel):\n%s", gocmp.Diff(want, got, ignoreLeftOut))
	}
	for name, v := range p.counts() {
		w.counts[name] += v - before[name]
	}
	p.forget(keys)
	return len(steps), got
}

// A tag that hardware is to insert, and therefore stands beside the frame at egress,
// gives the bytes that it would give inside the frame.
func TestOffloadedTagIsCapturedAsIfInTheFrame(t *testing.T) {
	segment := func(src, dst netip.AddrPort, flags byte, n int, tags ...int) []byte {
		return f.Ethernet(f.IP(src, dst, f.TCP, f.Segment(src, dst, flags, nil, f.Payload(n))), tags...)
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
			p := newTwin(t).paths[0]
			steps := func(taken bool) (all []step) {
				for _, frame := range [][]byte{
					segment(client, server, f.SYN, 5, tt.tags...), segment(server, client, f.ACK, 0, tt.tags...), segment(client, server, f.ACK, 1400, tt.tags...),
					segment(peer6, host6, f.SYN, 5, tt.tags...), segment(peer6, host6, f.ACK|f.FIN, 100, tt.tags...),
				} {
					all = append(all, step{hook: egress, taken: taken, frame: frame})
				}
				return all
			}
			want, keys := assembled(steps(false), p.config)
			p.before = p.counts()
			inFrame := p.captured(steps(false))
			p.forget(keys)
			beside := p.captured(steps(true))
			if diff := gocmp.Diff(inFrame, beside, ignoreLeftOut); diff != "" {
				t.Errorf("the tag makes a difference (-in the frame +beside it):\n%s", diff)
			}
			if diff := gocmp.Diff(want, beside, ignoreLeftOut); diff != "" {
				t.Errorf("assembly and kernel differ (-assembly +kernel):\n%s", diff)
			}
			if len(beside.HandedOver) != 2 || beside.HandedOver[0].Key != "tcp 10.0.0.2:40000 <> 192.0.2.7:443"+tt.key {
				t.Errorf("handed over %+v", beside.HandedOver)
			}
			if n := 2 * len(tt.tags); len(beside.HandedOver[0].Data) != 1024 || beside.HandedOver[0].WireLens[1] != uint32(54+n) {
				t.Errorf("wire lengths %v", beside.HandedOver[0].WireLens)
			}
		})
	}
}

// FuzzKernelAgainstAssembly: whatever the packets, both hooks and the assembly of
// capture files agree on keys, directions, offsets, bytes and counters.
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
	reasons := map[string]int{}
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
		for _, s := range got.HandedOver {
			reasons[s.Reason]++
		}
		reasons["idle"] += len(got.Collecting)
	}
	t.Logf("%d packets in %d inputs, %.1f s: handed over %v, counters %v", packets, inputs, time.Since(start).Seconds(), reasons, w.counts)
	if leftOut == 0 {
		t.Error("no packet was left out of a handshake")
	}
	for _, reason := range []string{"full", "closed", "idle"} {
		if reasons[reason] == 0 {
			t.Errorf("nothing was handed over with reason %s", reason)
		}
	}
	for _, name := range slices.SortedFunc(slices.Values(comparable), func(a, b assembly.Counter) int { return cmp.Compare(a, b) }) {
		if w.counts[name.String()] == 0 {
			t.Errorf("no packet counted as %s", name)
		}
	}
}
