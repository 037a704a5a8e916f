// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// hop is a packet and the hook that it comes by.
type hop struct {
	hook  entry
	frame []byte
}

// joinOptions are the options of a SYN that joins another connection (MPTCP).
var joinOptions = []byte{2, 4, 5, 180, 1, 1, 4, 2, 30, 12, 0x10, 1, 1, 2, 3, 4, 5, 6, 7, 8}

// path is where the two ends of a connection are: the client's packets come by one hook,
// the server's by the other.
type path struct{ client, server entry }

// paths have the client on either side, and each hook on ingress.
var paths = []path{{ingress, egress}, {tcxIngress, egress}, {egress, ingress}, {egress, tcxIngress}}

func (p path) up(seq, ack uint32, flags byte, n int) hop {
	return hop{p.client, upAt(seq, ack, flags, n)}
}

func (p path) down(seq, ack uint32, flags byte, n int) hop {
	return hop{p.server, downAt(seq, ack, flags, n)}
}

// by sends a packet by another hook than its sender's.
func (h hop) by(e entry) hop { return hop{e, h.frame} }

func (p path) handshake(x, y uint32) []hop {
	return []hop{p.up(x, 0, f.SYN, 0), p.down(y, x+1, f.SYN|f.ACK, 0), p.up(x+1, y+1, f.ACK, 0)}
}

// TestStrangersFromOneSide: who sends from one side of the interface, and does not see the
// other, begins no connection, ends none, hides none, and gets none captured. Each row is
// run with the client on either side.
func TestStrangersFromOneSide(t *testing.T) {
	type row struct {
		name string
		hops func(p path) []hop
		// captured are the sequence numbers by which each sample's connection began.
		captured  []uint32
		counts    map[string]uint64 // without packets_*
		oneWay    bool
		midStream bool // that is what the samples are
	}
	const data = f.ACK | f.PSH
	rows := []row{
		{
			name:     "a connection that both ends make",
			hops:     func(p path) []hop { return append(p.handshake(1, 1), p.up(2, 2, data, 1400)) },
			captured: []uint32{1},
			counts:   map[string]uint64{"syns": 1, "tcp_opened": 1, "handed_full": 1},
		},
		{
			name: "forged SYN on a decided flow: the verdict stays, the middle is not captured",
			hops: func(p path) []hop {
				return append(p.handshake(1, 1), p.up(2, 2, data, 1400),
					p.down(700, 0, f.SYN, 0), p.up(800, 0, f.SYN, 0).by(p.server), p.down(2, 1402, data, 1400), p.up(1402, 1402, data, 1400))
			},
			captured: []uint32{1},
			counts:   map[string]uint64{"syns": 3, "tcp_opened": 1, "handed_full": 1},
		},
		{
			name: "handshake forged from one side",
			hops: func(p path) []hop {
				return []hop{p.up(1, 0, f.SYN, 0).by(p.server), p.down(1, 2, f.SYN|f.ACK, 0), p.up(2, 2, f.ACK, 0).by(p.server), p.up(2, 2, data, 1400).by(p.server)}
			},
			// The third one answers a SYN+ACK that came from its own side.
			counts: map[string]uint64{"syns": 1, "reflected": 1, "one_way": 1, "mid_stream": 1},
		},
		{
			name: "SYN and answer of the other side's number, guessed",
			hops: func(p path) []hop {
				return []hop{p.up(1, 0, f.SYN, 0), p.down(1, 2, f.SYN|f.ACK, 0), p.up(2, 99, f.ACK, 0), p.up(3, 1, data, 1400), p.up(2, 2, f.RST|f.ACK, 0)}
			},
			counts: map[string]uint64{"syns": 1, "out_of_place": 3},
		},
		{
			name: "roles are not swapped by a SYN of the other end",
			hops: func(p path) []hop {
				return []hop{p.down(50, 0, f.SYN, 0), p.up(1, 0, f.SYN, 0), p.down(60, 0, f.SYN, 0), p.down(1, 2, f.SYN|f.ACK, 0), p.down(70, 0, f.SYN, 0), p.up(2, 2, data, 1400)}
			},
			captured: []uint32{1},
			counts:   map[string]uint64{"syns": 4, "tcp_opened": 1, "handed_full": 1},
		},
		{
			name: "RST and FIN out of place, of client, server and a third party, before the first payload",
			hops: func(p path) []hop {
				return append(p.handshake(1, 1), p.up(900, 0, f.RST, 0), p.down(900, 0, f.RST, 0), p.up(77777, 2, f.FIN|f.ACK, 0), p.down(2, 77777, f.FIN|f.ACK, 0),
					p.up(2, 2, f.RST, 0).by(p.server), p.up(2, 2, data, 1400))
			},
			captured: []uint32{1},
			counts:   map[string]uint64{"syns": 1, "tcp_opened": 1, "out_of_place": 4, "wrong_side": 1, "handed_full": 1},
		},
		{
			name: "RST in place before the first payload hides nothing",
			hops: func(p path) []hop {
				return append(p.handshake(1, 1), p.up(2, 2, f.RST, 0), p.up(2, 2, data, 1400))
			},
			captured: []uint32{1},
			counts:   map[string]uint64{"syns": 1, "tcp_opened": 1, "header_only": 1, "handed_full": 1},
		},
		{
			name: "payload of strangers inside a capture",
			hops: func(p path) []hop {
				return append(p.handshake(1, 1), p.up(2, 2, data, 100), p.up(102, 2, data, 1400).by(p.server), p.down(900000, 2, data, 1400),
					p.up(102+16385, 2, data, 1400), p.down(2, 102+16385, data, 1400), p.up(102, 2, f.RST, 0).by(p.server), p.up(103, 0, f.RST, 0), p.up(102, 2, data, 1000))
			},
			captured: []uint32{1},
			counts:   map[string]uint64{"syns": 1, "tcp_opened": 1, "wrong_side": 2, "out_of_place": 4, "handed_full": 1},
		},
		{
			name: "SYN inside a capture, with and without payload",
			hops: func(p path) []hop {
				return append(p.handshake(1, 1), p.up(2, 2, data, 100), p.up(9, 0, f.SYN, 0), p.up(10, 0, f.SYN, 30), p.down(9, 0, f.SYN, 0), p.up(102, 2, data, 1000))
			},
			captured: []uint32{1},
			counts:   map[string]uint64{"syns": 4, "tcp_opened": 1, "handed_full": 1},
		},
		{
			name: "SYN+ACK of a stranger does not replace the one that was asked for",
			hops: func(p path) []hop {
				return []hop{p.up(1, 0, f.SYN, 0), p.down(1, 2, f.SYN|f.ACK, 0), p.down(5, 99, f.SYN|f.ACK, 0), p.up(2, 2, data, 1400)}
			},
			captured: []uint32{1},
			counts:   map[string]uint64{"syns": 1, "tcp_opened": 1, "out_of_place": 1, "handed_full": 1},
		},
		{
			name: "a SYN that was not seen: its answer is enough",
			hops: func(p path) []hop {
				return []hop{p.down(1, 2, f.SYN|f.ACK, 0), p.up(2, 2, f.ACK, 0), p.up(2, 2, data, 1400)}
			},
			captured: []uint32{1},
			counts:   map[string]uint64{"tcp_opened": 1, "handed_full": 1},
		},
		{
			name: "a segment before the handshake does not hide the flow",
			hops: func(p path) []hop {
				return append(append([]hop{p.up(77, 77, data, 10), p.down(77, 77, data, 10).by(p.client)}, p.handshake(1, 1)...), p.up(2, 2, data, 1400))
			},
			captured: []uint32{1},
			counts:   map[string]uint64{"mid_stream": 1, "syns": 1, "tcp_opened": 1, "handed_full": 1},
		},
		{
			name: "the next connection of a decided flow's key",
			hops: func(p path) []hop {
				return append(append(append(p.handshake(1, 1), p.up(2, 2, data, 1400)), p.handshake(700, 80)...), p.up(701, 81, data, 1400))
			},
			captured: []uint32{1, 700},
			counts:   map[string]uint64{"syns": 2, "tcp_opened": 2, "handed_full": 2},
		},
		{
			name: "MPTCP subflow is the middle of a stream",
			hops: func(p path) []hop {
				join := f.Ethernet(f.IP(client, server, f.TCP, f.Numbered(f.Segment(client, server, f.SYN, joinOptions, nil), 1, 0)))
				return []hop{{p.client, join}, p.down(1, 2, f.SYN|f.ACK, 0), p.up(2, 2, f.ACK, 0), p.up(2, 2, data, 1400)}
			},
			captured:  []uint32{1},
			midStream: true,
			counts:    map[string]uint64{"syns": 1, "tcp_opened": 1, "mptcp_join": 1, "handed_closed": 1},
		},
		{
			name:   "one direction alone, where it is asked for",
			oneWay: true,
			hops: func(p path) []hop {
				return []hop{p.up(1, 0, f.SYN, 0), p.up(2, 2, f.ACK, 0), p.up(2, 99999, data, 400), p.up(402, 999999, data, 1400)}
			},
			captured: []uint32{1},
			counts:   map[string]uint64{"syns": 1, "one_way": 1, "tcp_opened": 1, "handed_full": 1},
		},
		{
			name: "one direction alone is counted once",
			hops: func(p path) []hop {
				return []hop{p.up(1, 0, f.SYN, 0), p.up(2, 2, f.ACK, 0), p.up(2, 2, data, 400), p.up(402, 2, data, 1400)}
			},
			counts: map[string]uint64{"syns": 1, "one_way": 1, "mid_stream": 1},
		},
	}
	kernels := map[bool]*kernel{}
	for _, oneWay := range []bool{false, true} {
		kernels[oneWay] = loadKernel(t, config{oneWay: oneWay})
	}
	for _, tt := range rows {
		for _, p := range paths {
			t.Run(tt.name+"/client by "+string(p.client), func(t *testing.T) {
				k := kernels[tt.oneWay].emptied(t)
				for _, h := range tt.hops(p) {
					if k.run(h.hook, h.frame) {
						t.Error("a packet was dropped")
					}
				}
				var captured []uint32
				for _, s := range k.samples() {
					captured = append(captured, s.Numbers.InitiatorISN)
					if !s.InitiatorIsLo || s.OneWay != tt.oneWay || s.MidStream != tt.midStream {
						t.Errorf("sample %+v", s.Meta)
					}
				}
				if diff := cmp.Diff(tt.captured, captured); diff != "" {
					t.Errorf("captured (-want +got):\n%s", diff)
				}
				counts := k.counts()
				delete(counts, "packets_ingress")
				delete(counts, "packets_egress")
				if diff := cmp.Diff(tt.counts, counts); diff != "" {
					t.Errorf("counters (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// receivedBy is a context of the egress program that says through which device the packet
// came into this machine.
func receivedBy(device uint32) *struct {
	_              [9]uint32
	IngressIfindex uint32
	_              [38]uint32
} {
	ctx := &struct {
		_              [9]uint32
		IngressIfindex uint32
		_              [38]uint32
	}{}
	ctx.IngressIfindex = device
	return ctx
}

// Routing, a bridge or a VLAN on the interface sends forged packets back through it: they
// are from the side that they came in by.
func TestForgedHandshakeThatIsReflected(t *testing.T) {
	const self, stacked, other = 7, 8, 9
	for _, tt := range []struct {
		name   string
		device uint32 // that the kernel says the reflected packets were received by
		counts map[string]uint64
	}{
		{"by the interface itself", self, map[string]uint64{"syns": 1, "reflected": 1, "one_way": 1, "mid_stream": 1}},
		{"by a device on it", stacked, map[string]uint64{"syns": 1, "reflected": 1, "one_way": 1, "mid_stream": 1}},
		// Nothing says so, but the numbers of the handshake came in a moment ago.
		{"by a device that nothing is known of", other, map[string]uint64{"syns": 1, "reflected": 3, "one_way": 0, "mid_stream": 1}},
		{"by nothing", 0, map[string]uint64{"syns": 1, "reflected": 3, "one_way": 0, "mid_stream": 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := loadKernel(t, config{})
			for _, device := range []uint32{self, stacked} {
				if err := k.coll.Maps[datapathMapSameSide].Update(device, uint8(1), ebpf.UpdateAny); err != nil {
					t.Fatal(err)
				}
			}
			for _, frame := range [][]byte{
				upAt(1, 0, f.SYN, 0), downAt(1, 2, f.SYN|f.ACK, 0), upAt(2, 2, f.ACK, 0), upAt(2, 2, f.ACK, 1400),
			} {
				k.run(ingress, frame)
				if _, err := k.coll.Programs[string(egress)].Run(&ebpf.RunOptions{Data: frame, Context: receivedBy(tt.device)}); err != nil {
					t.Fatal(err)
				}
			}
			counts := k.counts()
			for name, want := range tt.counts {
				if counts[name] != want {
					t.Errorf("%s is %d, want %d", name, counts[name], want)
				}
			}
			if counts["tcp_opened"] != 0 || len(k.samples()) != 0 {
				t.Errorf("a forged connection was taken for real: %v", counts)
			}
		})
	}
}

// Strangers' segments push out strangers' words only.
func TestMidStreamFlowsPushOutNoVerdict(t *testing.T) {
	k := loadKernel(t, config{oneHook: true, flows: 1024})
	k.judged()
	frame := up(f.ACK, 10)
	for i := range 5000 {
		from(frame, 0x0b000000+i)
		k.run(ingress, frame)
	}
	if o, err := k.Occupancy(); err != nil || o.Flows != 1 {
		t.Errorf("occupancy %+v, %v", o, err)
	}
	if c := k.counts()["mid_stream"]; c != 5000 {
		t.Errorf("%d mid-stream flows", c)
	}
	k.run(ingress, frame) // known
	if c := k.counts()["mid_stream"]; c != 5000 {
		t.Errorf("%d mid-stream flows, the last one twice", c)
	}
}

// openFrom makes a connection of a client and sends one byte.
func (k *kernel) openFrom(client, server netip.AddrPort) {
	k.t.Helper()
	seg := func(src, dst netip.AddrPort, flags byte, n int) []byte {
		return f.Ethernet(f.IP(src, dst, f.TCP, segment(src, dst, flags, nil, n)))
	}
	for _, frame := range [][]byte{seg(client, server, f.SYN, 0), seg(server, client, f.SYN|f.ACK, 0), seg(client, server, f.ACK, 1)} {
		k.run(ingress, frame)
	}
}

func TestInitiatorMayHaveAnEighthOfScarceSlots(t *testing.T) {
	const slots = 1024
	host := netip.MustParseAddr("10.0.0.2")
	to := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 80)
	}
	fresh := func() *kernel {
		return loadKernel(t, config{oneHook: true, slots: slots, handshakes: 4096, flows: 4096})
	}
	want := func(k *kernel, what string, collecting, refused int) {
		t.Helper()
		o, err := k.Occupancy()
		if c := k.counts(); err != nil || o.Collecting != collecting || c["initiator_slots"] != uint64(refused) || c["slots_full"] != 0 {
			t.Errorf("%s: %d collecting, %d refused, want %d, %d; %v", what, o.Collecting, c["initiator_slots"], collecting, refused, err)
		}
	}
	k := fresh()
	for i := range slots * 3 / 4 {
		k.openFrom(netip.AddrPortFrom(host, 1000), to(i))
	}
	want(k, "one host to many servers", slots*3/4, 0)
	k.openFrom(netip.AddrPortFrom(host, 1001), to(5000))
	want(k, "one more of it", slots*3/4, 1)
	k.openFrom(netip.MustParseAddrPort("10.0.0.3:1001"), to(5000))
	want(k, "one of another host", slots*3/4+1, 1)
	// What is refused is not captured late, and what is given back can be had again.
	for i := range slots * 3 / 4 {
		dst := to(i)
		src := netip.AddrPortFrom(host, 1000)
		k.run(ingress, f.Ethernet(f.IP(src, dst, f.TCP, f.Numbered(f.Segment(src, dst, f.ACK, nil, f.Payload(1400)), 3, 2))))
		if i%64 == 0 {
			k.samples()
		}
	}
	k.samples()
	k.openFrom(netip.AddrPortFrom(host, 1002), to(5001))
	want(k, "after the hand-over", 2, 1)

	// Who can make connections in a neighbour's name, to one server, takes nothing of what
	// the neighbour has to others.
	k = fresh()
	for i := range slots * 3 / 4 {
		k.openFrom(netip.AddrPortFrom(host, uint16(1000+i)), server)
	}
	want(k, "one host to one server", slots*3/4, 0)
	k.openFrom(netip.AddrPortFrom(host, 9), server)
	want(k, "the same server", slots*3/4, 1)
	k.openFrom(netip.AddrPortFrom(host, 9), to(1))
	want(k, "another server", slots*3/4+1, 1)
}

// These two keys fell together under every seed of the hash that was used before, which
// met its secret only once.
func TestKeysDoNotCollideUnderEverySecret(t *testing.T) {
	a := netip.MustParseAddr("2001:db8:ffff:1::20").As16()
	b := a
	b[7] ^= 0x80
	b[15] ^= 0x80
	b[11] ^= 0x80
	lo := netip.MustParseAddrPort("[2001:db8:0:1::10]:40000")
	k := loadKernel(t, config{oneHook: true, handshakes: 1024})
	for _, addr := range [][16]byte{a, b} {
		hi := netip.AddrPortFrom(netip.AddrFrom16(addr), 443)
		k.run(ingress, f.Ethernet(f.IP(lo, hi, f.TCP, segment(lo, hi, f.SYN, nil, 0))))
	}
	tags := map[uint32]bool{}
	m := k.coll.Maps[datapathMapHandshakeTags]
	for i := range m.MaxEntries() {
		var bucket datapathHandshakeBucket
		if err := m.Lookup(i, &bucket); err != nil {
			t.Fatal(err)
		}
		for _, word := range bucket.Word {
			if word != 0 {
				tags[i<<16|word>>16] = true
			}
		}
	}
	if len(tags) != 2 {
		t.Errorf("%d places of two keys", len(tags))
	}
}

// A SYN that joined the middle of nothing: times of handshakes count from the SYN that was
// acknowledged.
func TestPacketTimesCountFromTheSYN(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	k.run(ingress, up(f.SYN, 0))
	waitUntil(monotonic() + uint64(20*time.Millisecond))
	k.run(ingress, up(f.SYN, 0)) // once more
	k.run(egress, down(f.SYN|f.ACK, 0))
	k.run(ingress, up(f.ACK, 1400))
	got := k.samples()
	if len(got) != 1 || got[0].Packets[0].Time != 0 || got[0].Packets[1].Time < 20*time.Millisecond {
		t.Fatalf("samples %+v", got)
	}
	if binary.BigEndian.Uint32(got[0].Frame(0)[38:]) != 1 || got[0].Key.Proto != flow.TCP {
		t.Error("the capture does not begin with the SYN")
	}
}
