// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	stdcmp "cmp"
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/parts"
	"github.com/earlydrop/earlydrop/loader/flow/signals"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// kernel is the loaded, unattached data path; its programs run on frames that the
// test hands in (BPF_PROG_RUN).
type kernel struct {
	t    testing.TB
	spec *ebpf.CollectionSpec // of all programs
	coll *ebpf.Collection
	*Tables
	ring  *ringbuf.Reader
	parts *parts.Store // of captures that ended early
}

type config struct {
	slots, ring, handshakes, blocked, flows uint32 // sizes; small by default
	pairs                                   uint32
	idle, udpIdle                           time.Duration
	rawIP, midStream, oneHook, oneWay       bool
	noAnswers                               bool // to packets of flows that are reset
	pending                                 int  // as Options.Pending
	partial                                 partialSums
}

// idleKernels holds for each config a kernel that no test uses: the verifier takes most of
// what the tests of this package cost, so a kernel with tables of the usual sizes is emptied
// and used again.
var idleKernels = struct {
	sync.Mutex
	of map[config]*kernel
}{of: map[config]*kernel{}}

// loadKernel skips nothing: without root or the features these tests fail.
func loadKernel(t testing.TB, c config) *kernel {
	t.Helper()
	idleKernels.Lock()
	k := idleKernels.of[c]
	delete(idleKernels.of, c)
	idleKernels.Unlock()
	again := k != nil
	if !again {
		k = newKernel(t, c)
	}
	tables, err := newTables("test", k.coll.Maps)
	if err != nil {
		t.Fatal(err)
	}
	k.Tables = tables
	if again {
		k = k.emptied(t)
	}
	k.enforce(true)
	t.Cleanup(func() {
		if err := tables.filter.close(); err != nil {
			t.Error(err)
		}
		usual := c.slots == 0 && c.ring == 0 && c.handshakes == 0 && c.blocked == 0 && c.flows == 0 && c.pairs == 0
		idleKernels.Lock()
		defer idleKernels.Unlock()
		if usual && !t.Failed() && idleKernels.of[c] == nil {
			idleKernels.of[c] = k
			return
		}
		k.ring.Close()
		k.coll.Close()
	})
	return k
}

// newKernel loads the programs.
func newKernel(t testing.TB, c config) *kernel {
	t.Helper()
	if err := Preflight(); err != nil {
		t.Fatal(err)
	}
	spec, err := loadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	set := func(name string, v any) {
		if err := spec.Variables[name].Set(v); err != nil {
			t.Fatal(err)
		}
	}
	if c.idle == 0 {
		c.idle = time.Hour
	}
	if c.udpIdle == 0 {
		c.udpIdle = time.Hour
	}
	if c.slots == 0 {
		c.slots = 64
	}
	set(datapathVarCfgIdleNs, uint64(c.idle))
	set(datapathVarCfgUdpIdleNs, uint64(c.udpIdle))
	set(datapathVarCfgRawIp, c.rawIP)
	set(datapathVarCfgPartialSums, uint8(c.partial))
	set(datapathVarCfgPendingBytes, uint32(max(stdcmp.Or(c.pending, DefaultPending), 0)))
	set(datapathVarCfgMidStream, c.midStream)
	set(datapathVarCfgOneHook, c.oneHook)
	set(datapathVarCfgOneWay, c.oneWay)
	if !c.noAnswers {
		set(datapathVarCfgAnswers, uint8(answerIngress|answerEgress))
	}
	set(datapathVarCfgHashSecret, newSecret())
	sizes := Sizes{Flows: 1024, Blocked: 1024, Handshakes: 1024} // small ones load faster
	sizes.apply(spec)
	sizes = Sizes{Flows: c.flows, Blocked: c.blocked, Handshakes: c.handshakes, Collecting: c.slots, RingBytes: c.ring}
	sizes.apply(spec)
	if c.pairs == 0 {
		c.pairs = 64
	}
	spec.Maps[datapathMapPairs].MaxEntries = c.pairs
	if err := setSizes(spec); err != nil {
		t.Fatal(err)
	}
	for _, m := range spec.Maps {
		if m.Type == ebpf.Array && m.Name != datapathMapSlots { // which has locks
			m.Flags |= unix.BPF_F_MMAPABLE // to be emptied at once
		}
	}
	whole := spec.Copy()
	delete(spec.Programs, datapathProgEdTcxIngress) // see program
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatal(loadError(err))
	}
	if err := freeSlots(coll.Programs[datapathProgEdFreeSlots]); err != nil {
		t.Fatal(err)
	}
	ring, err := ringbuf.NewReader(coll.Maps[datapathMapSamples])
	if err != nil {
		t.Fatal(err)
	}
	return &kernel{t: t, spec: whole, coll: coll, ring: ring, parts: parts.NewStore(parts.DefaultKept)}
}

const (
	xdpDrop, xdpPass = 1, 2
	tcUnspec, tcShot = 0xffffffff, 2
)

// entry is a hook under its program's name.
type entry string

const (
	ingress    entry = datapathProgEdIngress
	tcxIngress entry = datapathProgEdTcxIngress
	egress     entry = datapathProgEdEgress
)

// hooks are all of them.
var hooks = []entry{ingress, tcxIngress, egress}

// emptied returns k for the test t, with nothing left of what earlier tests did with it:
// loading the programs anew takes much longer, above all on an emulated kernel.
func (k *kernel) emptied(t testing.TB) *kernel {
	t.Helper()
	k = &kernel{t: t, spec: k.spec, coll: k.coll, Tables: k.Tables, ring: k.ring, parts: parts.NewStore(parts.DefaultKept)}
	k.samples()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{datapathMapFlows, datapathMapCollecting, datapathMapBlocked} {
		m := k.coll.Maps[name]
		var key datapathFlowKey
		for m.NextKey(nil, &key) == nil {
			must(m.Delete(&key))
		}
	}
	sides := k.coll.Maps[datapathMapSameSide]
	for key := make([]byte, sides.KeySize()); sides.NextKey(nil, key) == nil; {
		must(sides.Delete(key))
	}
	k.forgetFragments()
	pairs := k.coll.Maps[datapathMapPairs]
	for key := (datapathPairKey{}); pairs.NextKey(nil, &key) == nil; {
		must(pairs.Delete(&key))
	}
	must(k.SetExempt(nil))
	for name, m := range k.coll.Maps {
		if m.Type() == ebpf.Array && name != datapathMapSlots && (name[0] != '.' || name == mapBlockFilter) {
			must(zero(m))
		}
	}
	k.enforce(true)
	for _, name := range []string{datapathMapFreeSlots, datapathMapFreeTcpSlots} {
		var id uint32
		for k.coll.Maps[name].LookupAndDelete(nil, &id) == nil { // an empty queue is an error
		}
	}
	must(freeSlots(k.coll.Programs[datapathProgEdFreeSlots]))
	must(k.coll.Maps[datapathMapCounters].Update(uint32(0), make([]datapathCounts, ebpf.MustPossibleCPU()), ebpf.UpdateAny))
	return k
}

// program returns that of a hook. The one on TCX ingress is loaded when it is asked for: it
// takes time, and few tests run it.
func (k *kernel) program(e entry) *ebpf.Program {
	k.t.Helper()
	if p := k.coll.Programs[string(e)]; p != nil {
		return p
	}
	loaded, err := loadBeside(k.coll.Maps, k.spec, false, string(e))
	if err != nil {
		k.t.Fatal(err)
	}
	k.coll.Programs[string(e)] = loaded[string(e)]
	return loaded[string(e)]
}

// forgetFragments empties the table of first fragments.
func (k *kernel) forgetFragments() {
	k.t.Helper()
	var key datapathFragmentKey
	for m := k.coll.Maps[datapathMapFragments]; m.NextKey(nil, &key) == nil; {
		if err := m.Delete(&key); err != nil {
			k.t.Fatal(err)
		}
	}
}

// waitingInUse is WAITING_IN_USE of bpf/maps.h.
const waitingInUse = 65536

// zero sets all values of an array of a kernel to 0.
func zero(m *ebpf.Map) error {
	memory, err := m.Memory()
	if err != nil {
		return err
	}
	_, err = memory.WriteAt(make([]byte, memory.Size()), 0)
	return err
}

// run passes a frame through a hook and reports whether it was dropped.
func (k *kernel) run(e entry, frame []byte) (dropped bool) {
	k.t.Helper()
	opts := &ebpf.RunOptions{Data: frame}
	ret, err := k.program(e).Run(opts)
	if err != nil {
		k.t.Fatalf("run %s on %d bytes: %v", e, len(frame), err)
	}
	switch {
	case e == ingress && ret == xdpPass, e != ingress && ret == tcUnspec:
		return false
	case e == ingress && ret == xdpDrop, e != ingress && ret == tcShot:
		return true
	}
	k.t.Fatalf("%s returned %d", e, ret)
	return false
}

// Pass is DataPath.Pass.
func (k *kernel) Pass(keys ...flow.Key) error {
	k.t.Helper()
	return pass(k.coll.Programs[datapathProgEdPassed], keys)
}

func (k *kernel) sweep() int {
	k.t.Helper()
	n, err := k.coll.Programs[datapathProgEdSweep].Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		k.t.Fatal(err)
	}
	return int(n)
}

// samples takes everything out of the ring.
func (k *kernel) samples() []*flow.Sample {
	k.t.Helper()
	var out []*flow.Sample
	for {
		k.ring.SetDeadline(time.Now())
		rec, err := k.ring.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return out
		}
		if err != nil {
			k.t.Fatal(err)
		}
		s := new(flow.Sample)
		if err := decodeSample(rec.RawSample, s); err != nil {
			k.t.Fatal(err)
		}
		k.parts.Join(s)
		signals.Note(s, signals.Live)
		out = append(out, s)
		if v := new(flow.Sample); signals.Variant(s, v) {
			out = append(out, v)
		}
	}
}

func (k *kernel) counts() map[string]uint64 {
	k.t.Helper()
	c, err := k.Counters()
	if err != nil {
		k.t.Fatal(err)
	}
	m := c.Values()
	maps.DeleteFunc(m, func(_ string, v uint64) bool { return v == 0 })
	return m
}

// seen is what must be the same wherever a flow is assembled.
type seen struct {
	Key           string
	InitiatorIsLo bool
	Reason        string
	Offsets       []uint16
	WireLens      []uint32
	FromInitiator []bool
	Data          []byte
	Numbers       flow.Numbers
	OneWay        bool
	MidStream     bool
	Resumed       bool
	Provisional   bool
	Revision      int
	Variant       bool
	Signals       []string
}

func look(s *flow.Sample) seen {
	v := seen{
		Key: s.Key.String(), InitiatorIsLo: s.InitiatorIsLo, Reason: s.Reason.String(),
		Data: slices.Clone(s.Data), Numbers: s.Numbers, OneWay: s.OneWay, MidStream: s.MidStream, Resumed: s.Resumed, Provisional: s.Provisional, Revision: s.Revision, Variant: s.Variant, Signals: s.Signals.Names(),
	}
	for _, p := range s.Packets {
		v.Offsets = append(v.Offsets, p.Offset)
		v.WireLens = append(v.WireLens, p.WireLen)
		v.FromInitiator = append(v.FromInitiator, p.FromInitiator)
	}
	return v
}

// assemble runs the same frames through the assembly of capture files.
func assemble(frames [][]byte, midStream bool) []seen {
	var out []seen
	a := assembly.New(assembly.Options{IdleTimeout: time.Hour, UDPIdle: time.Hour, MidStream: midStream, StrictChecksums: true},
		func(_ *assembly.Flow, s *flow.Sample) { out = append(out, look(s)) }, nil)
	for i, frame := range frames {
		a.Packet(time.Unix(1, int64(i)*1000), frame, len(frame))
	}
	return out
}

var (
	client  = netip.MustParseAddrPort("10.0.0.2:40000")
	server  = netip.MustParseAddrPort("192.0.2.7:443")
	peer6   = netip.MustParseAddrPort("[fd00::2]:40000")
	host6   = netip.MustParseAddrPort("[2001:db8::7]:443")
	mapped4 = netip.MustParseAddrPort("[::ffff:192.0.2.7]:443")
	mdns4   = netip.MustParseAddrPort("10.0.0.2:5353")
	group4  = netip.MustParseAddrPort("224.0.0.251:5353")
	mdns6   = netip.MustParseAddrPort("[fe80::1]:5353")
	group6  = netip.MustParseAddrPort("[ff02::fb]:5353")
)

// number is the sequence number of a connection's segment, as long as its sender has sent
// nothing before: both ends begin with 1.
func number(flags byte) uint32 {
	if flags&f.SYN != 0 {
		return 1
	}
	return 2
}

// up is a TCP frame of the client with n payload bytes, down one of the server. Neither
// has had payload before.
func up(flags byte, n int) []byte { return upAt(number(flags), 2, flags, n) }

func down(flags byte, n int) []byte { return downAt(number(flags), 2, flags, n) }

// upAt and downAt have other numbers.
func upAt(seq, ack uint32, flags byte, n int) []byte {
	return f.Ethernet(f.IP(client, server, f.TCP, f.Numbered(f.Segment(client, server, flags, nil, f.Payload(n)), seq, ack)))
}

func downAt(seq, ack uint32, flags byte, n int) []byte {
	return f.Ethernet(f.IP(server, client, f.TCP, f.Numbered(f.Segment(server, client, flags, nil, f.Payload(n)), seq, ack)))
}

// otherUp is a frame of the client with other payload than upAt has.
func otherUp(seq uint32, n int) []byte {
	return f.Ethernet(f.IP(client, server, f.TCP, f.Numbered(f.Segment(client, server, f.ACK, nil, bytes.Repeat([]byte{'q'}, n)), seq, 2)))
}

// segment is a TCP segment as up and down have them.
func segment(src, dst netip.AddrPort, flags byte, options []byte, n int) []byte {
	return f.Numbered(f.Segment(src, dst, flags, options, f.Payload(n)), number(flags), 2)
}

// spoiled has a wrong checksum.
func spoiled(frame []byte) []byte {
	return f.With(frame, 50, frame[50]^0x5a)
}

func udp(fromClient bool, n int) []byte {
	src, dst := client, server
	if !fromClient {
		src, dst = dst, src
	}
	return f.Ethernet(f.IP(src, dst, f.UDP, f.Datagram(src, dst, f.Payload(n))))
}

func handshake() [][]byte { return handshakeAt(1, 1) }

// handshakeAt is one with other initial numbers.
func handshakeAt(x, y uint32) [][]byte {
	return [][]byte{upAt(x, 0, f.SYN, 0), downAt(y, x+1, f.SYN|f.ACK, 0), upAt(x+1, y+1, f.ACK, 0)}
}

func after(packets [][]byte, more ...[]byte) [][]byte { return append(slices.Clone(packets), more...) }

// fourTimes is what the client hands over that sends ten bytes and a FIN again and again.
func fourTimes(key string) (all []seen) {
	for n := range 5 {
		s := seen{Key: key, InitiatorIsLo: true, Reason: "closed", Revision: n, Offsets: []uint16{0, 54, 108}, WireLens: []uint32{54, 54, 54}, FromInitiator: []bool{true, false, true}}
		for i := range n + 1 {
			s.Offsets, s.WireLens, s.FromInitiator = append(s.Offsets, uint16(162+64*i)), append(s.WireLens, 64), append(s.FromInitiator, true)
		}
		switch {
		case n > 1:
			s.Signals = []string{"tiny", "fin_then_data"}
		case n > 0:
			s.Signals = []string{"fin_then_data"}
		}
		all = append(all, s)
	}
	return all
}

// TestPackets runs each row on all hooks and through the Go assembly.
func TestPackets(t *testing.T) {
	syn := segment(client, server, f.SYN, nil, 0)
	answer := f.IP(server, client, f.TCP, segment(server, client, f.SYN|f.ACK, nil, 0))
	thousand := f.IP(client, server, f.TCP, segment(client, server, f.ACK, nil, 1000))
	syn6 := segment(peer6, host6, f.SYN, nil, 0)
	answer6 := f.IP(host6, peer6, f.TCP, segment(host6, peer6, f.SYN|f.ACK, nil, 0))
	ip := f.IP(client, server, f.TCP, syn)
	data6 := segment(peer6, host6, f.ACK, nil, 1200)
	timestamps := []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
	const header = 54 // Ethernet, IPv4, TCP without options
	data := f.IP(client, server, f.TCP, f.Segment(client, server, f.ACK, nil, f.Payload(1400)))
	type row struct {
		name   string
		frames [][]byte
		counts map[string]uint64 // without packets_*
		want   []seen            // nil: nothing is handed over; Data is compared with the assembly's
		// BPF_PROG_RUN builds no socket buffer from less than an IP header or
		// more than a page; such frames run in XDP alone.
		xdpOnly   bool
		midStream bool // capture such flows
		open      int  // captures that are not handed over
	}
	// A client that writes byte by byte, each acknowledged.
	var drops [][]byte
	for i := range uint32(9) {
		drops = append(drops, upAt(2+i, 2, f.ACK, 1), downAt(2, 3+i, f.ACK, 0))
	}
	// A SYN of Multipath TCP; segments in fragments that hide their header; one behind more
	// headers than are walked, and a header-only one of its sender.
	joining := f.Ethernet(f.IP(client, server, f.TCP, f.Numbered(f.Segment(client, server, f.SYN, joinOptions, nil), 1, 0)))
	var hidden [4][][]byte
	for i := range hidden {
		packet := f.IP(client, server, f.TCP, f.Numbered(f.Segment(client, server, f.ACK, nil, f.Payload(1400)), uint32(2+1400*i), 2))
		for _, piece := range f.Fragments(packet, uint32(i+1), pieces(16)...) {
			hidden[i] = append(hidden[i], f.Ethernet(piece))
		}
	}
	unwalked := f.Ethernet(f.IP(peer6, host6, 60, slices.Concat(slices.Repeat(f.Extension(60, 0), 6), f.Extension(f.TCP, 0), data6)))
	long6 := func(src, dst netip.AddrPort, segment []byte) []byte {
		return f.Ethernet(f.IP(src, dst, 60, slices.Concat(f.Extension(f.TCP, 12), segment)))
	}
	own6 := func(seq uint32) []byte {
		return f.Ethernet(f.IP(peer6, host6, f.TCP, f.Numbered(f.Segment(peer6, host6, f.ACK, nil, nil), seq, 2)))
	}
	const whole = "tcp 10.0.0.2:40000 <> 192.0.2.7:443"
	tests := []row{
		{
			name:   "payload behind a FIN goes on with the capture, and a retransmission does not",
			frames: after(handshake(), up(f.ACK, 300), down(f.FIN|f.ACK, 0), up(f.ACK, 300), upAt(302, 3, f.ACK, 100), upAt(402, 3, f.ACK, 900), upAt(1302, 3, f.ACK, 500)),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_closed": 1, "handed_full": 1, "again": 1, "behind": 1},
			want: []seen{
				{Key: whole, InitiatorIsLo: true, Reason: "closed", Offsets: []uint16{0, 54, 108, 162, 516}, WireLens: []uint32{54, 54, 54, 354, 54},
					FromInitiator: []bool{true, false, true, true, false}},
				{Key: whole, InitiatorIsLo: true, Reason: "full", Revision: 1, Offsets: []uint16{0, 54, 108, 162, 516, 570, 724},
					WireLens: []uint32{54, 54, 54, 354, 54, 154, 954}, FromInitiator: []bool{true, false, true, true, false, true, true}},
			},
		},
		{
			name: "a capture goes on four times",
			frames: after(handshake(), up(f.FIN|f.ACK, 10), upAt(12, 2, f.FIN|f.ACK, 10), upAt(22, 2, f.FIN|f.ACK, 10), upAt(32, 2, f.FIN|f.ACK, 10),
				upAt(42, 2, f.FIN|f.ACK, 10), upAt(52, 2, f.FIN|f.ACK, 10), upAt(62, 2, f.ACK, 1000)),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_closed": 5, "again": 4},
			want:   fourTimes(whole),
		},
		{
			name: "a stranger's payload behind a FIN does not go on with the capture",
			frames: after(handshake(), up(f.ACK, 300), down(f.FIN|f.ACK, 0), upAt(70_000, 3, f.ACK, 100), upAt(302, 70_000, f.ACK, 100),
				spoiled(upAt(302, 3, f.ACK, 100))),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_closed": 1, "out_of_place": 2, "decoys": 1},
			want: []seen{{Key: whole, InitiatorIsLo: true, Reason: "closed", Offsets: []uint16{0, 54, 108, 162, 516}, WireLens: []uint32{54, 54, 54, 354, 54},
				FromInitiator: []bool{true, false, true, true, false}}},
		},
		{
			name:   "a range that comes again with other bytes is judged twice, one byte of it is not",
			frames: after(handshake(), up(f.ACK, 300), otherUp(301, 1), otherUp(102, 100), otherUp(2, 50), upAt(302, 2, f.ACK, 700)),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1, "behind": 3},
			want: []seen{
				{Key: whole, InitiatorIsLo: true, Reason: "full", Signals: []string{"overlap"}, Offsets: []uint16{0, 54, 108, 162, 516}, WireLens: []uint32{54, 54, 54, 354, 754},
					FromInitiator: []bool{true, false, true, true, true}},
				{Key: whole, InitiatorIsLo: true, Reason: "full", Signals: []string{"overlap"}, Variant: true, Offsets: []uint16{0, 54, 108, 162, 516}, WireLens: []uint32{54, 54, 54, 354, 754},
					FromInitiator: []bool{true, false, true, true, true}},
			},
		},
		{
			name: "many header-only segments fill no capture",
			frames: after(handshake(), up(f.ACK, 10), downAt(2, 3, f.ACK, 0), downAt(2, 4, f.ACK, 0), downAt(2, 5, f.ACK, 0), downAt(2, 6, f.ACK, 0), downAt(2, 7, f.ACK, 0),
				downAt(2, 8, f.ACK, 0), downAt(2, 9, f.ACK, 0), downAt(2, 10, f.ACK, 0), downAt(2, 11, f.ACK, 0), downAt(2, 12, f.ACK, 0), upAt(12, 2, f.ACK, 1000)),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1, "bare": 3},
			want: []seen{{Key: whole, InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 54, 108, 162, 226, 280, 334, 388, 442, 496, 550, 604}, WireLens: []uint32{54, 54, 54, 64, 54, 54, 54, 54, 54, 54, 54, 1054},
				FromInitiator: []bool{true, false, true, true, false, false, false, false, false, false, false, true}}},
		},
		{
			name:   "a capture with next to no payload goes on, and tiny segments become one",
			frames: after(handshake(), append(drops, upAt(11, 2, f.ACK, 1100), upAt(1111, 2, f.ACK, 100))...),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 2, "bare": 1, "again": 1},
			want: []seen{
				{Key: whole, InitiatorIsLo: true, Reason: "full", Provisional: true, Signals: []string{"tiny"},
					Offsets:       []uint16{0, 54, 108, 162, 217, 271, 326, 380, 435, 489, 544, 598, 653, 707, 762, 816, 871, 925, 980},
					WireLens:      []uint32{54, 54, 54, 55, 54, 55, 54, 55, 54, 55, 54, 55, 54, 55, 54, 55, 54, 55, 55},
					FromInitiator: []bool{true, false, true, true, false, true, false, true, false, true, false, true, false, true, false, true, false, true, true}},
				// The ninth byte did not fit into the first part, and was kept beside.
				{Key: whole, InitiatorIsLo: true, Reason: "full", Revision: 1, Signals: []string{"tiny"},
					Offsets: []uint16{0, 54, 108, 162}, WireLens: []uint32{54, 54, 54, 1163}, FromInitiator: []bool{true, false, true, true}},
			},
		},
		{
			name:   "the handshake of a connection that joins another one is handed over once",
			frames: [][]byte{joining, down(f.SYN|f.ACK, 0), up(f.ACK, 0), up(f.ACK, 1400), down(f.ACK, 1400)},
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "mptcp_join": 1, "handed_closed": 1},
			want: []seen{{Key: whole, InitiatorIsLo: true, MidStream: true, Reason: "closed", Signals: []string{"mptcp_join"},
				Offsets: []uint16{0, 74}, WireLens: []uint32{74, 54}, FromInitiator: []bool{true, false}}},
		},
		{
			name:   "payload in fragments that hide their header moves the connection on",
			frames: slices.Concat(handshake(), hidden[0], hidden[1], [][]byte{downAt(2, 2802, f.ACK, 0)}, hidden[2], [][]byte{downAt(2, 4202, f.ACK, 0)}, hidden[3], [][]byte{downAt(2, 5602, f.ACK, 0), upAt(5602, 2, f.ACK, 1400)}),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "bad_fragment": 8, "handed_closed": 1},
			want: []seen{{Key: whole, InitiatorIsLo: true, MidStream: true, Reason: "closed", Signals: []string{"fragmented", "unreadable"},
				Offsets: []uint16{0, 54, 108, 162, 216}, WireLens: []uint32{54, 54, 54, 54, 54}, FromInitiator: []bool{true, false, true, false, false}}},
		},
		{
			name:   "payload behind headers that are not walked moves the connection on",
			frames: [][]byte{f.Ethernet(f.IP(peer6, host6, f.TCP, syn6)), f.Ethernet(answer6), f.Ethernet(f.IP(peer6, host6, f.TCP, segment(peer6, host6, f.ACK, nil, 0))), unwalked, own6(4098), unwalked, own6(4099), own6(9000)},
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "unparsable": 2, "handed_closed": 1},
			want: []seen{{Key: "tcp [2001:db8::7]:443 <> [fd00::2]:40000", MidStream: true, Reason: "closed", Signals: []string{"unreadable"},
				Offsets: []uint16{0, 74, 148, 222, 296}, WireLens: []uint32{74, 74, 74, 74, 74}, FromInitiator: []bool{true, false, true, true, true}}},
		},
		{
			name: "of a handshake that was too long to keep there is nothing to hand over",
			frames: [][]byte{
				long6(host6, peer6, segment(host6, peer6, f.SYN|f.ACK, nil, 0)), long6(peer6, host6, segment(peer6, host6, f.ACK, nil, 0)),
				long6(peer6, host6, f.Numbered(f.Segment(peer6, host6, f.ACK, nil, nil), 9000, 2)), f.Ethernet(f.IP(peer6, host6, f.TCP, data6)),
			},
			counts: map[string]uint64{"tcp_opened": 1},
		},
		{
			name:   "a connection that moved on by 4 KB is not unreadable, nor one whose numbers somebody guessed",
			frames: after(handshake(), downAt(2, 4098, f.ACK, 0), upAt(4098, 2, f.ACK, 0), downAt(2, 16387, f.ACK, 0), downAt(16387, 2, f.ACK, 0), upAt(2, 16387, f.ACK, 0), spoiled(downAt(2, 5000, f.ACK, 0))),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "out_of_place": 3, "decoys": 1},
		},
		{
			name:   "payload that was read first makes no connection unreadable",
			frames: after(handshake(), up(f.ACK, 1400), downAt(2, 9000, f.ACK, 0), upAt(9000, 2, f.ACK, 0)),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{Key: whole, InitiatorIsLo: true, Reason: "full", Offsets: []uint16{0, 54, 108, 162}, WireLens: []uint32{54, 54, 54, 1454},
				FromInitiator: []bool{true, false, true, true}}},
		},
		{
			name:   "where sides are not known, payload out of place is only counted",
			frames: slices.Concat(handshake(), slices.Repeat([][]byte{upAt(90_000, 2, f.ACK, 1400), downAt(90_000, 2, f.ACK, 1400)}, 13), [][]byte{up(f.ACK, 1400)}),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "out_of_place": 26, "handed_full": 1},
			want: []seen{{Key: whole, InitiatorIsLo: true, Reason: "full", Offsets: []uint16{0, 54, 108, 162}, WireLens: []uint32{54, 54, 54, 1454},
				FromInitiator: []bool{true, false, true, true}}},
		},

		{name: "frame too short for IP", frames: [][]byte{f.Ethernet(ip)[:20]}, counts: map[string]uint64{"malformed": 1}, xdpOnly: true},
		{name: "frame too short for TCP", frames: [][]byte{f.Ethernet(ip)[:53]}, counts: map[string]uint64{"malformed": 1}},
		{name: "ARP", frames: [][]byte{f.With(f.Ethernet(ip), 12, 0x08, 0x06)}, counts: map[string]uint64{"not_ip": 1}},
		{name: "LLDP", frames: [][]byte{f.With(f.Ethernet(ip), 12, 0x88, 0xcc)}, counts: map[string]uint64{"not_ip": 1}},
		{name: "ICMP", frames: [][]byte{f.Ethernet(f.IP(client, server, 1, f.Payload(64)))}, counts: map[string]uint64{"other_proto": 1}},
		{name: "SCTP", frames: [][]byte{f.Ethernet(f.IP(client, server, 132, f.Payload(64)))}, counts: map[string]uint64{"other_proto": 1}},
		{name: "ihl below 5", frames: [][]byte{f.Checksum(f.With(f.Ethernet(ip), 14, 0x44))}, counts: map[string]uint64{"malformed": 1}},
		{name: "ihl beyond the packet", frames: [][]byte{f.Checksum(f.With(f.Ethernet(ip), 14, 0x4f))}, counts: map[string]uint64{"malformed": 1}},
		{name: "doff below 5", frames: [][]byte{f.With(f.Ethernet(ip), 46, 0x40)}, counts: map[string]uint64{"malformed": 1}},
		{name: "doff beyond the packet", frames: [][]byte{f.With(f.Ethernet(ip), 46, 0xf0)}, counts: map[string]uint64{"malformed": 1}},
		{name: "UDP length 7", frames: [][]byte{f.With(udp(true, 10), 38, 0, 7)}, counts: map[string]uint64{"malformed": 1}},
		{name: "three VLAN tags", frames: [][]byte{f.Ethernet(ip, f.TypeQinQ, 1, f.TypeVLAN, 2, f.TypeVLAN, 3)}, counts: map[string]uint64{"unparsable": 1}},
		{name: "first fragment is a packet", frames: [][]byte{f.Checksum(f.With(f.Ethernet(ip), 20, 0x20, 0))}, counts: map[string]uint64{"syns": 1}},
		{name: "later fragment", frames: [][]byte{f.Checksum(f.With(f.Ethernet(ip), 20, 0, 3))}, counts: map[string]uint64{"later_fragment": 1}},
		{
			name:   "IPv6 later fragment",
			frames: [][]byte{f.Ethernet(f.IP(peer6, host6, 44, slices.Concat(f.FragmentHeader(f.TCP, 24, false, 1), syn6)))},
			counts: map[string]uint64{"later_fragment": 1},
		},
		{
			name:   "IPv6 with more extension headers than are walked",
			frames: [][]byte{f.Ethernet(f.IP(peer6, host6, 60, slices.Concat(f.Extension(60, 0), f.Extension(60, 0), f.Extension(60, 0), f.Extension(60, 0), f.Extension(60, 0), f.Extension(60, 0), f.Extension(f.TCP, 0), syn6)))},
			counts: map[string]uint64{"unparsable": 1},
		},
		{name: "SYN without payload", frames: [][]byte{up(f.SYN, 0)}, counts: map[string]uint64{"syns": 1}},
		{name: "SYN with FIN or RST", frames: [][]byte{up(f.SYN|f.FIN, 0), up(f.SYN|f.RST, 9), down(f.SYN|f.ACK|f.FIN, 0), down(f.SYN|f.ACK|f.RST, 0)}, counts: map[string]uint64{"bad_flags": 4}},
		{name: "IPv4 checksum wrong or missing", frames: [][]byte{f.With(up(f.SYN, 0), 24, 0xab), f.With(udp(true, 9), 24, 0, 0)}, counts: map[string]uint64{"malformed": 2}},
		{name: "IPv4 checksum wrong by an option", frames: [][]byte{f.With(f.Checksum(f.Ethernet(f.With(f.IP(client, server, f.TCP, slices.Concat(make([]byte, 8), syn)), 0, 0x47))), 41, 1)}, counts: map[string]uint64{"malformed": 1}},
		{name: "TTL 0 and hop limit 0", frames: [][]byte{f.Checksum(f.With(up(f.SYN, 0), 22, 0)), f.With(f.Ethernet(f.IP(peer6, host6, f.TCP, syn6)), 21, 0)}, counts: map[string]uint64{"malformed": 2}},
		{name: "IPv4 address as IPv6 has it", frames: [][]byte{f.Ethernet(f.IP(mapped4, host6, f.TCP, syn6)), f.Ethernet(f.IP(peer6, mapped4, f.TCP, syn6))}, counts: map[string]uint64{"malformed": 2}},
		{name: "handshake and close without payload", frames: after(handshake(), up(f.FIN|f.ACK, 0)), counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "header_only": 1}},
		{name: "SYN and RST", frames: [][]byte{up(f.SYN, 0), down(f.RST|f.ACK, 0)}, counts: map[string]uint64{"syns": 1, "mid_stream": 1}},
		{name: "RST, FIN and payload out of place", frames: after(handshake(), downAt(7, 0, f.RST, 0), upAt(9, 2, f.RST, 0), upAt(99999, 2, f.FIN|f.ACK, 0), upAt(2, 99999, f.ACK, 9)), counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "out_of_place": 4}},
		{name: "mid-stream is remembered", frames: [][]byte{up(f.ACK, 10), up(f.ACK, 1400), down(f.ACK, 1400)}, counts: map[string]uint64{"mid_stream": 1}},
		{
			name:      "mid-stream is captured from its next payload byte on",
			midStream: true,
			frames:    [][]byte{up(f.ACK, 0), up(f.FIN|f.ACK, 0), down(f.ACK, 400), up(f.ACK, 0), up(f.ACK, 600), up(f.ACK, 1400)},
			counts:    map[string]uint64{"mid_stream": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: false, MidStream: true, Reason: "full",
				Offsets: []uint16{0, 454, 508}, WireLens: []uint32{454, 54, 654}, FromInitiator: []bool{true, false, false},
			}},
		},
		{
			name:      "mid-stream capture ends with the next connection",
			midStream: true,
			frames:    after(after([][]byte{up(f.RST, 0), up(f.ACK, 10)}, handshake()...), down(f.RST, 0), up(f.FIN|f.ACK, 5), up(f.ACK, 7)),
			counts:    map[string]uint64{"syns": 1, "tcp_opened": 1, "restarted": 1, "header_only": 1, "mid_stream": 1, "handed_closed": 1, "again": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "closed",
				Offsets: []uint16{0, 54, 108, 162, 216}, WireLens: []uint32{54, 54, 54, 54, 59}, FromInitiator: []bool{true, false, true, false, true},
			}},
			open: 1,
		},
		{name: "RST first", frames: [][]byte{up(f.RST, 0)}, counts: map[string]uint64{"mid_stream": 1}},
		{name: "RST first, then a SYN", frames: [][]byte{down(f.RST|f.ACK, 0), up(f.SYN, 0)}, counts: map[string]uint64{"mid_stream": 1, "syns": 1}},
		{name: "empty datagram", frames: [][]byte{udp(true, 0)}, counts: map[string]uint64{"header_only": 1}},
		{
			name:   "one byte and close",
			frames: after(handshake(), up(f.ACK|f.PSH, 1), down(f.FIN|f.ACK, 0)),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_closed": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "closed",
				Offsets: []uint16{0, 54, 108, 162, 217}, WireLens: []uint32{54, 54, 54, 55, 54},
				FromInitiator: []bool{true, false, true, true, false},
			}},
		},
		{
			name:   "1023 bytes are not handed over",
			frames: after(handshake(), up(f.ACK, 1023-4*header)),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1},
		},
		{
			name:   "exactly 1024 bytes",
			frames: after(handshake(), up(f.ACK, 1024-4*header)),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 54, 108, 162}, WireLens: []uint32{54, 54, 54, 862},
				FromInitiator: []bool{true, false, true, true},
			}},
		},
		{
			name:   "1025 bytes across packets, then more",
			frames: after(handshake(), up(f.ACK, 400), down(f.ACK, 1025-5*header-400), up(f.ACK, 1000), down(f.FIN, 0)),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 54, 108, 162, 616}, WireLens: []uint32{54, 54, 54, 454, 409},
				FromInitiator: []bool{true, false, true, true, false},
			}},
		},
		{
			name:   "the server's side is the lower one",
			frames: [][]byte{down(f.SYN, 0), up(f.SYN|f.ACK, 0), down(f.ACK, 1400)},
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: false, Reason: "full",
				Offsets: []uint16{0, 54, 108}, WireLens: []uint32{54, 54, 1454}, FromInitiator: []bool{true, false, true},
			}},
		},
		{
			name:   "data in SYN that is acknowledged",
			frames: [][]byte{up(f.SYN, 10), downAt(1, 12, f.SYN|f.ACK, 0), upAt(12, 2, f.ACK, 1400)},
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 64, 118}, WireLens: []uint32{64, 54, 1454}, FromInitiator: []bool{true, false, true},
			}},
		},
		{
			name:   "data in SYN that is not acknowledged comes again",
			frames: [][]byte{up(f.SYN, 10), down(f.SYN|f.ACK, 0), up(f.ACK, 1400)},
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full", Signals: []string{"syn_data"},
				Offsets: []uint16{0, 54, 108}, WireLens: []uint32{54, 54, 1454}, FromInitiator: []bool{true, false, true},
			}},
		},
		{
			name:   "a SYN that is sent again changes nothing, another one may win",
			frames: [][]byte{upAt(77, 0, f.SYN, 0), upAt(77, 0, f.SYN, 0), up(f.SYN, 0), up(f.SYN, 0), down(f.SYN|f.ACK, 0), down(f.SYN|f.ACK, 0), up(f.ACK, 1400)},
			counts: map[string]uint64{"syns": 2, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 54, 108}, WireLens: []uint32{54, 54, 1454}, FromInitiator: []bool{true, false, true},
			}},
		},
		{
			name:   "of a simultaneous open the one that is answered first is the initiator",
			frames: [][]byte{up(f.SYN, 0), down(f.SYN, 0), up(f.SYN|f.ACK, 0), down(f.SYN|f.ACK, 0), down(f.ACK, 0), up(f.ACK, 0), down(f.ACK, 1400)},
			counts: map[string]uint64{"syns": 2, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: false, Reason: "full",
				Offsets: []uint16{0, 54, 108, 162, 216}, WireLens: []uint32{54, 54, 54, 54, 1454}, FromInitiator: []bool{true, false, true, false, true},
			}},
		},
		{
			name:   "port reuse while collecting and after the hand-over",
			frames: slices.Concat(after(handshake(), up(f.ACK, 10)), after(handshakeAt(700, 80), upAt(701, 81, f.ACK, 1400), upAt(2101, 81, f.ACK, 1400)), after(handshakeAt(9, 9), upAt(10, 10, f.ACK, 1400))),
			counts: map[string]uint64{"syns": 3, "tcp_opened": 3, "restarted": 1, "handed_full": 2},
			want: slices.Repeat([]seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 54, 108, 162}, WireLens: []uint32{54, 54, 54, 1454}, FromInitiator: []bool{true, false, true, true},
			}}, 2),
		},
		{
			name:   "more header-only packets than a handshake keeps",
			frames: after(handshake(), up(f.ACK, 0), up(f.ACK, 0), up(f.ACK, 0), up(f.ACK, 0), up(f.ACK, 0), up(f.ACK, 1400)),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 54, 108, 162, 216, 270, 324, 378}, WireLens: []uint32{54, 54, 54, 54, 54, 54, 54, 1454},
				FromInitiator: []bool{true, false, true, true, true, true, true, true},
			}},
		},
		{
			name:   "UDP both ways",
			frames: [][]byte{udp(true, 300), udp(false, 300), udp(true, 0), udp(false, 600)},
			counts: map[string]uint64{"udp_waiting": 1, "udp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "udp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 342, 684, 726}, WireLens: []uint32{342, 342, 42, 642}, FromInitiator: []bool{true, false, true, false},
			}},
		},
		{
			name:   "UDP length 0 and length beyond the packet",
			frames: [][]byte{f.With(udp(true, 300), 38, 0, 0), f.With(udp(true, 1000), 38, 0xff, 0xff), udp(false, 0)},
			counts: map[string]uint64{"udp_waiting": 1, "udp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "udp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 342}, WireLens: []uint32{342, 1042}, FromInitiator: []bool{true, true},
			}},
		},
		{
			name: "Ethernet padding is cut",
			frames: [][]byte{
				slices.Concat(up(f.SYN, 0), f.Payload(6)), slices.Concat(down(f.SYN|f.ACK, 0), f.Payload(6)),
				slices.Concat(up(f.ACK, 1), f.Payload(5)), down(f.RST, 0),
			},
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_closed": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "closed",
				Offsets: []uint16{0, 54, 108, 163}, WireLens: []uint32{54, 54, 55, 54}, FromInitiator: []bool{true, false, true, false},
			}},
		},
		{
			name: "802.1Q and QinQ ids belong to the key",
			frames: [][]byte{
				f.Ethernet(ip, f.TypeVLAN, 7), f.Ethernet(ip, f.TypeQinQ, 7, f.TypeVLAN, 8), f.Ethernet(ip, f.TypeVLAN, 0xe000),
				f.Ethernet(answer, f.TypeVLAN, 7), f.Ethernet(answer, f.TypeQinQ, 7, f.TypeVLAN, 8), f.Ethernet(answer, f.TypeVLAN, 0xe000),
				f.Ethernet(thousand, f.TypeVLAN, 7), f.Ethernet(thousand, f.TypeQinQ, 7, f.TypeVLAN, 8), f.Ethernet(thousand, f.TypeVLAN, 0xe000),
			},
			counts: map[string]uint64{"syns": 3, "tcp_opened": 3, "handed_full": 3},
			want: []seen{
				{Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443 vlan 7", InitiatorIsLo: true, Reason: "full", Offsets: []uint16{0, 58, 116}, WireLens: []uint32{58, 58, 1058}, FromInitiator: []bool{true, false, true}},
				{Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443 vlan 7.8", InitiatorIsLo: true, Reason: "full", Offsets: []uint16{0, 62, 124}, WireLens: []uint32{62, 62, 1062}, FromInitiator: []bool{true, false, true}},
				{Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full", Offsets: []uint16{0, 58, 116}, WireLens: []uint32{58, 58, 1058}, FromInitiator: []bool{true, false, true}},
			},
		},
		{
			name: "IPv4 options and TCP options",
			frames: [][]byte{
				f.Ethernet(f.WithOptions(client, server, 10, f.TCP, syn)),
				f.Ethernet(answer), f.Ethernet(f.IP(client, server, f.TCP, segment(client, server, f.ACK, timestamps, 1000))),
			},
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 94, 148}, WireLens: []uint32{94, 54, 1066}, FromInitiator: []bool{true, false, true},
			}},
		},
		{
			name: "IPv6 with hop-by-hop, routing, destination options, first fragment",
			frames: [][]byte{
				f.Ethernet(f.IP(peer6, host6, f.TCP, syn6)), f.Ethernet(answer6),
				f.Ethernet(f.IP(peer6, host6, 0, slices.Concat(f.Extension(43, 0), f.Extension(60, 1), f.Extension(44, 0), []byte{f.TCP, 0, 0, 1, 0, 0, 0, 1}, data6))),
			},
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp [2001:db8::7]:443 <> [fd00::2]:40000", InitiatorIsLo: false, Reason: "full",
				Offsets: []uint16{0, 74, 148}, WireLens: []uint32{74, 74, 1314}, FromInitiator: []bool{true, false, true}, Signals: []string{"fragmented"},
			}},
		},
		{
			name:   "IP total length beyond the frame, and zero",
			frames: [][]byte{f.Checksum(f.With(up(f.SYN, 0), 16, 0xff, 0xff)), down(f.SYN|f.ACK, 0), f.Checksum(f.With(up(f.ACK, 1400), 16, 0, 0))},
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 54, 108}, WireLens: []uint32{54, 54, 1454}, FromInitiator: []bool{true, false, true},
			}},
		},
		{
			name:    "jumbo frame in XDP fragments",
			xdpOnly: true,
			frames:  after(handshake(), up(f.ACK, 8900)),
			counts:  map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 54, 108, 162}, WireLens: []uint32{54, 54, 54, 8954}, FromInitiator: []bool{true, false, true, true},
			}},
		},
		{
			name: "each pair of tag types is a QinQ",
			frames: [][]byte{
				f.Ethernet(data, f.TypeVLAN, 7, f.TypeVLAN, 8), f.Ethernet(data, 0x9100, 7, f.TypeVLAN, 9),
				f.Ethernet(data, f.TypeQinQ, 7, f.TypeQinQ, 10), f.Ethernet(data, f.TypeQinQ, 11), f.Ethernet(data, f.TypeVLAN, 0, f.TypeVLAN, 12),
			},
			counts:    map[string]uint64{"mid_stream": 5, "handed_full": 5},
			midStream: true,
			want: []seen{
				{Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443 vlan 7.8", InitiatorIsLo: true, MidStream: true, Reason: "full", Offsets: []uint16{0}, WireLens: []uint32{1462}, FromInitiator: []bool{true}},
				{Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443 vlan 7.9", InitiatorIsLo: true, MidStream: true, Reason: "full", Offsets: []uint16{0}, WireLens: []uint32{1462}, FromInitiator: []bool{true}},
				{Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443 vlan 7.10", InitiatorIsLo: true, MidStream: true, Reason: "full", Offsets: []uint16{0}, WireLens: []uint32{1462}, FromInitiator: []bool{true}},
				{Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443 vlan 11", InitiatorIsLo: true, MidStream: true, Reason: "full", Offsets: []uint16{0}, WireLens: []uint32{1458}, FromInitiator: []bool{true}},
				{Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443.12", InitiatorIsLo: true, MidStream: true, Reason: "full", Offsets: []uint16{0}, WireLens: []uint32{1462}, FromInitiator: []bool{true}},
			},
		},
		{
			name: "multicast has one side",
			frames: [][]byte{
				f.With(f.Ethernet(f.IP(mdns4, group4, f.UDP, f.Datagram(mdns4, group4, f.Payload(1200)))), 0, 1, 0, 0x5e, 0, 0, 0xfb),
				f.With(f.Ethernet(f.IP(mdns6, group6, f.UDP, f.Datagram(mdns6, group6, f.Payload(1200)))), 0, 0x33, 0x33, 0, 0, 0, 0xfb),
			},
			counts: map[string]uint64{"udp_waiting": 2},
		},
		{name: "IGMP and MLD", frames: [][]byte{f.Ethernet(f.IP(client, group4, 2, f.Payload(64))), f.Ethernet(f.IP(peer6, group6, 0, slices.Concat(f.Extension(58, 0), f.Payload(64))))}, counts: map[string]uint64{"other_proto": 2}},
		{
			name: "ihl=15 and doff=15 in one packet",
			frames: [][]byte{
				f.Ethernet(f.WithOptions(client, server, 10, f.TCP, segment(client, server, f.SYN, make([]byte, 40), 0))),
				f.Ethernet(answer),
				f.Ethernet(f.WithOptions(client, server, 10, f.TCP, segment(client, server, f.ACK, make([]byte, 40), 900))),
			},
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 134, 188}, WireLens: []uint32{134, 54, 1034}, FromInitiator: []bool{true, false, true},
			}},
		},
		{
			name: "IPv6 padding is cut",
			frames: [][]byte{
				f.Ethernet(f.IP(peer6, host6, f.TCP, syn6)), f.Ethernet(answer6), slices.Concat(f.Ethernet(f.IP(peer6, host6, f.TCP, segment(peer6, host6, f.ACK|f.FIN, nil, 1))), f.Payload(9)),
			},
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_closed": 1},
			want: []seen{{
				Key: "tcp [2001:db8::7]:443 <> [fd00::2]:40000", InitiatorIsLo: false, Reason: "closed",
				Offsets: []uint16{0, 74, 148}, WireLens: []uint32{74, 74, 75}, FromInitiator: []bool{true, false, true},
			}},
		},
		{
			name:   "a SYN inside a capture, and its answer, change nothing",
			frames: after(handshake(), up(f.ACK, 300), upAt(5, 0, f.SYN, 0), downAt(9, 6, f.SYN|f.ACK, 0), up(f.SYN, 0), downAt(5, 0, f.SYN, 0), upAt(302, 2, f.ACK, 700)),
			counts: map[string]uint64{"syns": 4, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 54, 108, 162, 516}, WireLens: []uint32{54, 54, 54, 354, 754}, FromInitiator: []bool{true, false, true, true, true},
			}},
		},
		{
			name:   "a retransmission is not captured again, what is ahead is, and a late filler once",
			frames: after(handshake(), up(f.ACK, 300), up(f.ACK, 300), down(f.SYN|f.ACK, 0), upAt(402, 2, f.ACK, 100), upAt(302, 2, f.ACK, 100), upAt(302, 2, f.ACK, 100), upAt(502, 2, f.ACK, 300)),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "behind": 2, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 54, 108, 162, 516, 670, 824}, WireLens: []uint32{54, 54, 54, 354, 154, 154, 354},
				FromInitiator: []bool{true, false, true, true, true, true, true},
			}},
		},
		{
			name: "segments with a wrong checksum are left out, whatever they say",
			frames: after(handshake(), spoiled(up(f.ACK, 700)), spoiled(down(f.ACK, 1400)), spoiled(up(f.FIN|f.ACK, 0)), spoiled(upAt(2, 2, f.RST|f.ACK, 0)),
				up(f.ACK, 300), spoiled(upAt(302, 2, f.ACK, 700)), spoiled(up(f.ACK, 300)), upAt(302, 2, f.ACK, 700)),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "decoys": 6, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full", Signals: []string{"decoy"},
				Offsets: []uint16{0, 54, 108, 162, 516}, WireLens: []uint32{54, 54, 54, 354, 754}, FromInitiator: []bool{true, false, true, true, true},
			}},
		},
		{
			name:   "a wrong checksum proves no connection",
			frames: [][]byte{handshake()[0], handshake()[1], spoiled(handshake()[2]), spoiled(up(f.ACK, 1100))},
			counts: map[string]uint64{"syns": 1, "out_of_place": 2},
		},
		{
			name:   "a segment out of place with a wrong checksum is no signal",
			frames: after(handshake(), spoiled(upAt(70_000, 2, f.ACK, 300)), up(f.ACK, 300), spoiled(upAt(70_000, 2, f.ACK, 300)), spoiled(upAt(302, 40_000, f.ACK, 300)), upAt(302, 2, f.ACK, 700)),
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "decoys": 3, "handed_full": 1},
			want: []seen{{
				Key: "tcp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0, 54, 108, 162, 516}, WireLens: []uint32{54, 54, 54, 354, 754}, FromInitiator: []bool{true, false, true, true, true},
			}},
		},
		{
			name:   "mid-stream segments with a wrong checksum",
			frames: [][]byte{spoiled(up(f.ACK, 100)), up(f.ACK, 100), spoiled(up(f.ACK, 100))},
			counts: map[string]uint64{"decoys": 1, "mid_stream": 1},
		},
		{
			name:   "one packet of UDP bounded by its own length",
			frames: [][]byte{f.With(udp(true, 300), 38, 0, 8), f.With(udp(true, 1000), 38, 0, 9), udp(false, 1)},
			counts: map[string]uint64{"header_only": 1, "udp_waiting": 1, "udp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "udp 10.0.0.2:40000 <> 192.0.2.7:443", InitiatorIsLo: true, Reason: "full",
				Offsets: []uint16{0}, WireLens: []uint32{1042}, FromInitiator: []bool{true},
			}},
		},
	}
	// Each extension header in front of the transport header, alone.
	for _, ext := range []struct {
		name    string
		number  byte
		header  []byte
		signals []string
	}{
		{"hop-by-hop options", 0, f.Extension(f.TCP, 0), nil},
		{"long hop-by-hop options", 0, f.Extension(f.TCP, 7), nil},
		{"routing", 43, f.Extension(f.TCP, 2), nil},
		{"destination options", 60, f.Extension(f.TCP, 1), nil},
		{"first fragment", 44, []byte{f.TCP, 0xff, 0, 7, 0, 0, 0, 1}, []string{"fragmented"}}, // with its reserved bits set
		{"authentication", 51, slices.Concat([]byte{f.TCP, 4}, make([]byte, 22)), nil},
	} {
		n := uint32(len(ext.header))
		tests = append(tests, row{
			name: "IPv6 with " + ext.name,
			frames: [][]byte{
				f.Ethernet(f.IP(peer6, host6, ext.number, slices.Concat(ext.header, syn6))), f.Ethernet(answer6),
				f.Ethernet(f.IP(peer6, host6, ext.number, slices.Concat(ext.header, data6))),
			},
			counts: map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1},
			want: []seen{{
				Key: "tcp [2001:db8::7]:443 <> [fd00::2]:40000", InitiatorIsLo: false, Reason: "full",
				Offsets: []uint16{0, uint16(74 + n), uint16(148 + n)}, WireLens: []uint32{74 + n, 74, 1274 + n}, FromInitiator: []bool{true, false, true},
				Signals: ext.signals,
			}},
		})
	}
	// A frame that ends at each boundary, and one byte before it.
	for _, cut := range []struct {
		name  string
		frame []byte
		ends  []int
	}{
		{"IPv4", f.Ethernet(ip), []int{14, 15, 33, 34, 35, 53}},
		{"UDP", udp(true, 1), []int{34, 41}},
		{"IPv6", f.Ethernet(f.IP(peer6, host6, f.TCP, syn6)), []int{14, 53, 54, 73}},
		{"VLAN", f.Ethernet(ip, f.TypeVLAN, 7), []int{14, 17, 18, 37, 38, 57}},
		{"QinQ", f.Ethernet(ip, f.TypeQinQ, 7, f.TypeVLAN, 8), []int{18, 21, 22, 41, 61}},
		{"IPv6 hop-by-hop", f.Ethernet(f.IP(peer6, host6, 0, slices.Concat(f.Extension(f.TCP, 0), syn6))), []int{54, 61, 62, 81}},
		{"IPv4 options", f.Ethernet(f.WithOptions(client, server, 10, f.TCP, syn)), []int{34, 73, 74, 93}},
		{"TCP options", f.Ethernet(f.IP(client, server, f.TCP, f.Segment(client, server, f.SYN, make([]byte, 40), nil))), []int{54, 93}},
	} {
		var all, long [][]byte
		for _, end := range cut.ends {
			all = append(all, cut.frame[:end])
			if end >= 14+40 {
				long = append(long, cut.frame[:end])
			}
		}
		tests = append(tests, row{name: cut.name + " frames that end early", frames: all, counts: map[string]uint64{"malformed": uint64(len(all))}, xdpOnly: true})
		if len(long) > 0 {
			tests = append(tests, row{name: cut.name + " frames that end in the last header", frames: long, counts: map[string]uint64{"malformed": uint64(len(long))}})
		}
	}
	kernels := map[bool]*kernel{}
	for _, midStream := range []bool{false, true} {
		kernels[midStream] = loadKernel(t, config{midStream: midStream, oneHook: true})
	}
	for _, tt := range tests {
		for i := range tt.want {
			// What ended early may go on.
			w := &tt.want[i]
			w.Provisional = w.Provisional || strings.HasPrefix(w.Key, "tcp") && w.Reason != "full" && !w.MidStream && w.Revision < 4
		}
		wantAssembly := assemble(tt.frames, tt.midStream)
		for _, e := range hooks {
			if tt.xdpOnly && e != ingress {
				continue
			}
			t.Run(tt.name+"/"+string(e), func(t *testing.T) {
				k := kernels[tt.midStream].emptied(t)
				k.enforce(false)
				for _, frame := range tt.frames {
					if k.run(e, frame) {
						t.Error("a packet was dropped")
					}
				}
				var got, gotRows []seen
				for _, s := range k.samples() {
					signals.Note(s, signals.File) // as the assembly does
					v := look(s)
					got = append(got, v)
					v.Data, v.Numbers = nil, flow.Numbers{}
					gotRows = append(gotRows, v)
				}
				if diff := cmp.Diff(tt.want, gotRows); diff != "" {
					t.Errorf("handed over (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(wantAssembly, got); diff != "" {
					t.Errorf("assembly and kernel differ (-assembly +kernel):\n%s", diff)
				}
				counts := k.counts()
				delete(counts, "packets_ingress")
				delete(counts, "packets_egress")
				if diff := cmp.Diff(tt.counts, counts); diff != "" {
					t.Errorf("counters (-want +got):\n%s", diff)
				}
				// What nobody collects any more has given its slot back.
				if o, err := k.Occupancy(); err != nil || len(tt.want) > 0 && o.Collecting != tt.open {
					t.Errorf("occupancy %+v, %v", o, err)
				}
			})
		}
	}
}
