// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/earlydrop/earlydrop/test/lab"
)

// tagged downloads a page while it sniffs at the gateway and says whether
// every TCP frame from the client, and every one to it, carried VLAN 77.
func tagged(t *testing.T, l *lab.Lab, port uint16) (both [2]bool) {
	t.Helper()
	s, err := lab.NewSniffer(l.Gateway, lab.GatewayClientDev, 256)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// Frames that wait to be read are lost with the sniffer: it is closed when the
	// page is there and frames of both directions were read.
	var seen [2]atomic.Bool
	go func() {
		defer s.Close()
		l.Curl(ctx, nil, l.URL("http", 4, port, "/1k"))
		for !(seen[0].Load() && seen[1].Load()) && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}()
	var with, without [2]int
	for {
		f, err := s.Read()
		if err != nil {
			break
		}
		pkt := gopacket.NewPacket(f.Data, layers.LayerTypeEthernet, gopacket.NoCopy)
		tcp, ok := pkt.Layer(layers.LayerTypeTCP).(*layers.TCP)
		if !ok {
			continue
		}
		dir := 0
		if uint16(tcp.SrcPort) == port {
			dir = 1
		}
		if tag, ok := pkt.Layer(layers.LayerTypeDot1Q).(*layers.Dot1Q); ok && tag.VLANIdentifier == 77 {
			with[dir]++
		} else {
			without[dir]++
		}
		seen[dir].Store(true)
	}
	for i := range both {
		both[i] = with[i] > 0 && without[i] == 0
	}
	return both
}
