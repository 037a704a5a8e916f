// SPDX-License-Identifier: Apache-2.0

package dataset

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

// A session has the first packets of its flow alone, those of the same ports before
// and after it left out, and those after the end of the capture not.
func TestSessionsOfOneKey(t *testing.T) {
	start := time.Date(2026, 5, 4, 3, 2, 1, 234_567_000, time.UTC)
	a, b := netip.MustParseAddrPort("10.0.0.1:1001"), netip.MustParseAddrPort("10.9.0.1:443")
	key, lo := flow.NewKey(a, b, flow.UDP, 0, 0)
	var s sessions
	var meta flow.Meta
	meta.Key = key
	for _, begin := range []struct {
		at      time.Duration
		aOpened bool
	}{{0, false}, {100 * time.Second, true}, {200 * time.Second, false}} {
		meta.Start, meta.InitiatorIsLo = start.Add(begin.at), lo == begin.aOpened
		s.add(&meta)
	}
	send := func(at time.Duration, fromA bool, payload int) {
		s.packet(start.Add(at), &headers.Packet{Key: key, SrcIsLo: lo == fromA, Headers: headers.Headers{WireLen: 42 + payload, PayloadLen: payload}})
	}
	for i := range 3 {
		send(time.Duration(i)*time.Second, false, 3)
	}
	for i := range 100 {
		at := 100*time.Second + time.Duration(i)*time.Millisecond
		if i == 2 { // the clock goes backwards, beyond the beginning
			at = 90 * time.Second
		}
		send(at, true, 1+i)
	}
	send(200*time.Second, false, 5)
	others, _ := flow.NewKey(b, netip.MustParseAddrPort("10.0.0.1:1002"), flow.UDP, 0, 0)
	s.packet(start.Add(200*time.Second), &headers.Packet{Key: others, Headers: headers.Headers{WireLen: 50, PayloadLen: 8}})

	if err := s.complete("a.pcap"); err != nil {
		t.Fatal(err)
	}
	var got [][]sessionPacket
	for _, one := range s.all {
		got = append(got, one.packets)
	}
	want := [][]sessionPacket{{{45, 3, 1, 0}, {45, 3, 1, 1e6}, {45, 3, 1, 2e6}}, nil, {{47, 5, 1, 0}}}
	for i := range int32(sessionPackets) {
		want[1] = append(want[1], sessionPacket{43 + i, 1 + i, 1, 1000 * i})
	}
	want[1][2][3] = 1000
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sessions (-want +got):\n%s", diff)
	}
	meta.Start = start.Add(time.Hour)
	s.add(&meta)
	if err := s.complete("a.pcap"); err == nil || !strings.Contains(err.Error(), "a.pcap has changed while it was read") {
		t.Errorf("a session that is not in the file: %v", err)
	}
}
