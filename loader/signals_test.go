// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// TestSignalsOfBothSides runs each row with the client on either side of the interface, and
// through the assembly, which has to see the same.
func TestSignalsOfBothSides(t *testing.T) {
	const data = f.ACK | f.PSH
	type row struct {
		name    string
		hops    func(p path) []hop
		signals [][]string // of each sample
		counts  map[string]uint64
	}
	// 16 KiB and 16 bytes of payload out of place, of one side.
	const segments, size = 16, 1025
	stray := func(h hop) []hop { return slices.Repeat([]hop{h}, segments) }
	rows := []row{
		{
			name: "payload out of place of both sides, while there is none in place",
			hops: func(p path) []hop {
				return slices.Concat(p.handshake(1, 1), stray(p.up(90_000, 2, data, size)), stray(p.down(2, 90_000, data, size)), []hop{p.up(2, 2, data, 1400)})
			},
			signals: [][]string{{"out_of_place"}, {"out_of_place"}},
			counts:  map[string]uint64{"syns": 1, "tcp_opened": 1, "out_of_place": 32, "handed_closed": 1, "again": 1, "handed_full": 1},
		},
		{
			name: "both sides jump from the SYN+ACK on",
			hops: func(p path) []hop {
				return slices.Concat(p.handshake(1, 1)[:2], []hop{p.up(90_000, 90_000, f.ACK, 0)}, stray(p.down(90_000, 90_000, data, size)), stray(p.up(90_000, 90_000, data, size)),
					stray(p.up(90_000, 90_000, data, size)), []hop{p.up(2, 2, data, 1400)})
			},
			signals: [][]string{{"out_of_place"}, {"out_of_place"}},
			counts:  map[string]uint64{"syns": 1, "out_of_place": 49, "handed_closed": 1, "again": 1, "handed_full": 1},
		},
		{
			name: "a stranger who forges both ends of a handshake from one side",
			hops: func(p path) []hop {
				return slices.Concat(p.handshake(1, 1)[:2], stray(p.down(90_000, 90_000, data, size)), stray(p.up(90_000, 90_000, data, size).by(p.server)), []hop{p.up(2, 2, data, 1400)})
			},
			signals: [][]string{nil},
			counts:  map[string]uint64{"syns": 1, "tcp_opened": 1, "out_of_place": 32, "handed_full": 1},
		},
		{
			name: "payload out of place of both sides, while collecting",
			hops: func(p path) []hop {
				return slices.Concat(p.handshake(1, 1), stray(p.down(90_000, 2, data, size)), []hop{p.up(2, 2, data, 100)}, stray(p.up(102, 90_000, data, size)), []hop{p.up(102, 2, data, 1400)})
			},
			signals: [][]string{{"out_of_place"}},
			counts:  map[string]uint64{"syns": 1, "tcp_opened": 1, "out_of_place": 32, "handed_full": 1},
		},
		{
			name: "16 KiB exactly of one side",
			hops: func(p path) []hop {
				return slices.Concat(p.handshake(1, 1), slices.Repeat([]hop{p.up(90_000, 2, data, 1024)}, 16), stray(p.down(90_000, 2, data, size)), []hop{p.up(2, 2, data, 1400)})
			},
			signals: [][]string{nil},
			counts:  map[string]uint64{"syns": 1, "tcp_opened": 1, "out_of_place": 32, "handed_full": 1},
		},
		{
			name: "a stranger who forges both ends from the client's side",
			hops: func(p path) []hop {
				return slices.Concat(p.handshake(1, 1), stray(p.up(90_000, 2, data, size)), stray(p.down(90_000, 2, data, size).by(p.client)), []hop{p.up(2, 2, data, 100)},
					stray(p.up(90_000, 2, data, size)), stray(p.down(90_000, 2, data, size).by(p.client)), []hop{p.up(102, 2, data, 1400)})
			},
			signals: [][]string{nil},
			counts:  map[string]uint64{"syns": 1, "tcp_opened": 1, "out_of_place": 32, "wrong_side": 32, "handed_full": 1},
		},
		{
			name: "segments of both sides out of place with a wrong checksum",
			hops: func(p path) []hop {
				up, down := p.up(90_000, 2, data, size), p.down(90_000, 2, data, size)
				up.frame, down.frame = spoiled(up.frame), spoiled(down.frame)
				return slices.Concat(p.handshake(1, 1), stray(up), stray(down), []hop{p.up(2, 2, data, 1400)})
			},
			signals: [][]string{nil},
			counts:  map[string]uint64{"syns": 1, "tcp_opened": 1, "decoys": 32, "handed_full": 1},
		},
		{
			name: "a capture that goes on begins to count anew, and keeps what was seen",
			hops: func(p path) []hop {
				return slices.Concat(p.handshake(1, 1), []hop{p.up(2, 2, data, 100)}, stray(p.up(90_000, 2, data, size)), []hop{p.up(102, 2, f.FIN|f.ACK, 0), p.up(102, 2, data, 100)},
					stray(p.down(90_000, 2, data, size)), []hop{p.up(202, 2, f.FIN|f.ACK, 0), p.up(202, 2, data, 100)},
					stray(p.up(90_000, 2, data, size)), stray(p.down(90_000, 2, data, size)), []hop{p.up(302, 2, f.FIN|f.ACK, 0), p.up(302, 2, data, 1400)})
			},
			signals: [][]string{nil, {"fin_then_data"}, {"fin_then_data", "out_of_place"}, {"fin_then_data", "out_of_place"}},
			counts:  map[string]uint64{"syns": 1, "tcp_opened": 1, "out_of_place": 64, "again": 3, "handed_closed": 3, "handed_full": 1},
		},
		{
			name: "a connection that moves on, and a stranger who does not know where it is",
			hops: func(p path) []hop {
				return slices.Concat(p.handshake(1, 1), []hop{p.down(2, 9_000, f.ACK, 0).by(p.client), p.up(9_000, 2, f.ACK, 0).by(p.server), p.down(2, 90_000, f.ACK, 0), p.up(2, 2, data, 1400)})
			},
			signals: [][]string{nil},
			counts:  map[string]uint64{"syns": 1, "tcp_opened": 1, "wrong_side": 2, "out_of_place": 1, "handed_full": 1},
		},
		{
			name: "a port that is used again after a connection of which nothing could be read, and one that joins another",
			hops: func(p path) []hop {
				join := hop{p.client, f.Ethernet(f.IP(client, server, f.TCP, f.Numbered(f.Segment(client, server, f.SYN, joinOptions, nil), 7_000, 0)))}
				return slices.Concat(p.handshake(1, 1), []hop{p.down(2, 9_000, f.ACK, 0), p.up(9_000, 2, data, 1400)},
					[]hop{join, p.down(50, 7_001, f.SYN|f.ACK, 0), p.up(7_001, 51, data, 1400), p.down(51, 8_401, data, 1400)},
					p.handshake(700, 80), []hop{p.up(701, 81, data, 1400)})
			},
			signals: [][]string{{"unreadable"}, {"mptcp_join"}, nil},
			counts:  map[string]uint64{"syns": 3, "tcp_opened": 3, "mptcp_join": 1, "handed_closed": 2, "handed_full": 1},
		},
	}
	all := loadKernel(t, config{})
	for _, tt := range rows {
		for _, p := range paths {
			t.Run(tt.name+"/client by "+string(p.client), func(t *testing.T) {
				k := all.emptied(t)
				var want, got []seen
				a := assembly.New(assembly.Options{IdleTimeout: time.Hour, StrictChecksums: true}, func(_ *assembly.Flow, s *flow.Sample) { want = append(want, look(s)) }, nil)
				for i, h := range tt.hops(p) {
					if k.run(h.hook, h.frame) {
						t.Error("a packet was dropped")
					}
					a.PacketFrom(step{hook: h.hook}.side(false), time.Unix(1, int64(i)*1000), h.frame, len(h.frame))
				}
				var signals [][]string
				for _, s := range k.samples() {
					got = append(got, look(s))
					signals = append(signals, s.Signals.Names())
				}
				if diff := cmp.Diff(tt.signals, signals); diff != "" {
					t.Errorf("signals (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("assembly and kernel differ (-assembly +kernel):\n%s", diff)
				}
				counts := k.counts()
				delete(counts, "packets_ingress")
				delete(counts, "packets_egress")
				if diff := cmp.Diff(tt.counts, counts); diff != "" {
					t.Errorf("counters (-want +got):\n%s", diff)
				}
				if o, err := k.Occupancy(); err != nil || o.Collecting != 0 {
					t.Errorf("occupancy %+v, %v", o, err)
				}
			})
		}
	}
}

// A handshake that is handed over alone has a slot for a moment; where none is free, its
// connection passes, and is known.
func TestHandshakeAloneHoldsNoSlot(t *testing.T) {
	const slots = 4
	k := loadKernel(t, config{oneHook: true, slots: slots})
	join := func(port uint16) {
		t.Helper()
		from := netip.AddrPortFrom(client.Addr(), port)
		for _, frame := range [][]byte{
			f.Ethernet(f.IP(from, server, f.TCP, f.Numbered(f.Segment(from, server, f.SYN, joinOptions, nil), 1, 0))),
			f.Ethernet(f.IP(server, from, f.TCP, segment(server, from, f.SYN|f.ACK, nil, 0))),
			f.Ethernet(f.IP(from, server, f.TCP, segment(from, server, f.ACK, nil, 100))),
			f.Ethernet(f.IP(server, from, f.TCP, segment(server, from, f.ACK, nil, 100))),
		} {
			k.run(ingress, frame)
		}
	}
	for port := range uint16(4 * slots) {
		join(1000 + port)
	}
	if n := len(k.samples()); n != 4*slots {
		t.Errorf("%d handshakes were handed over, want %d", n, 4*slots)
	}
	if o, err := k.Occupancy(); err != nil || o.Collecting != 0 {
		t.Errorf("occupancy %+v, %v", o, err)
	}
	for host := range byte(slots) { // one alone may not have all of them
		k.openFrom(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, host}), 2000), netip.AddrPortFrom(server.Addr(), 80+uint16(host)))
	}
	join(3000)
	if c := k.counts(); len(k.samples()) != 0 || c["slots_full"] != 1 || c["mptcp_join"] != 4*slots+1 || c["mid_stream"] != 0 {
		t.Errorf("counters with no slot free: %v", c)
	}
}
