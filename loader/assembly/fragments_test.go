// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"net/netip"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
	"github.com/earlydrop/earlydrop/loader/internal/frames"
)

// pieces are the fragments of a packet that is cut up at these bytes.
func pieces(packet []byte, id uint32, cuts ...int) [][]byte {
	var all []frames.Piece
	from := 0
	for _, to := range append(cuts, 1<<16) {
		all = append(all, frames.Piece{From: from, To: to})
		from = to
	}
	fragments := frames.Fragments(packet, id, all...)
	for i, fragment := range fragments {
		fragments[i] = eth(fragment)
	}
	return fragments
}

// Later fragments belong to the flow of their first for two seconds: they count in its totals,
// and are not captured.
func TestLaterFragmentsFollowTheirFirst(t *testing.T) {
	for _, of := range [][2]netip.AddrPort{{client4, server4}, {client6, server6}} {
		question := ip(of[0], of[1], 17, udpDgram(of[0], of[1], payload(40)))
		answer := ip(of[1], of[0], 17, udpDgram(of[1], of[0], payload(40)))
		cut := pieces(ip(of[0], of[1], 17, udpDgram(of[0], of[1], payload(400))), 7, 104, 208, 312)
		other := pieces(ip(of[0], of[1], 17, udpDgram(of[0], of[1], payload(400))), 8, 104)[1]
		var samples []flow.Meta
		var captured int
		var totals Totals
		a := New(Options{IdleTimeout: time.Hour}, func(_ *Flow, s *flow.Sample) {
			samples, captured = append(samples, s.Meta), len(s.Packets)
		}, func(t Totals) { totals = t })
		for _, p := range []struct {
			ms    int
			frame []byte
		}{
			{0, eth(question)}, {1, eth(answer)}, {2, cut[2]}, // before its first
			{10, cut[0]}, {11, cut[1]}, {12, other}, {2009, cut[2]}, {2010, cut[3]}, // too late
		} {
			a.Packet(epoch.Add(time.Duration(p.ms)*time.Millisecond), p.frame, len(p.frame))
		}
		if err := a.Flush(); err != nil {
			t.Fatal(err)
		}
		c := a.Counters()
		if c[Counter(headers.LaterFragment)] != 5 || c[FollowedFragment] != 2 || c[Counter(headers.BadFragment)] != 0 || c.Packets() != 8 {
			t.Errorf("%s: counters %v", of[0], c)
		}
		if len(samples) != 1 || captured != 3 || samples[0].Signals != flow.SignalFragmented {
			t.Errorf("%s: %d packets in samples %+v", of[0], captured, samples)
		}
		bytes := uint64(2*(14+len(question)) + len(cut[0]) + len(cut[1]) + len(cut[2]))
		if totals.Packets != 5 || totals.Bytes != bytes {
			t.Errorf("%s: totals %+v, want 5 packets, %d bytes", of[0], totals, bytes)
		}
	}
}

// What is known of fragments goes along to the temporary file.
func TestHiddenHeaderIsSignalledThroughTheTemporaryFile(t *testing.T) {
	segment := func(flags headers.Flags, seq, ack uint32, n int) []byte {
		return ip(client4, server4, 6, frames.Numbered(tcpSeg(client4, server4, flags, nil, payload(n)), seq, ack))
	}
	synAck := ip(server4, client4, 6, frames.Numbered(tcpSeg(server4, client4, SYN|ACK, nil, nil), 1, 2))
	var signals []string
	a := New(Options{MaxOpen: 2, TempDir: t.TempDir()}, func(f *Flow, s *flow.Sample) {
		if s.Key.Proto == flow.TCP {
			signals = append(signals, s.Signals.Names()...)
		}
	}, nil)
	all := [][]byte{eth(segment(SYN, 1, 0, 0)), eth(synAck), eth(segment(ACK, 2, 2, 0)), eth(segment(ACK, 2, 2, 10))}
	all = append(all, pieces(segment(ACK, 12, 2, 300), 7, 8)[0])
	for _, frame := range all {
		a.Packet(epoch, frame, len(frame))
	}
	tiny(a, 10, 0) // push it out
	if len(a.flows) > 3 {
		t.Fatalf("%d flows are in memory", len(a.flows))
	}
	if err := a.Flush(); err != nil {
		t.Fatal(err)
	}
	if len(signals) != 1 || signals[0] != "fragmented" {
		t.Errorf("signals %v, want fragmented", signals)
	}
}
