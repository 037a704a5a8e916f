// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// met is what an interface hands over, and what is to come of it.
type met struct {
	at            string // the interface
	client        string // its address and port
	proto         flow.Proto
	isn           uint32 // of the client
	after         time.Duration
	first, second string // what the two sides have sent
	provisional   bool
	change        func(*flow.Meta)

	want string // the interface that has judged it; empty: it is judged here
}

func TestFlowsThatCrossAreRecognised(t *testing.T) {
	const lan, nat, other = "10.0.0.2:40000", "192.0.2.1:40001", "10.0.0.3:40000"
	long := strings.Repeat("x", 700)
	for _, tt := range []struct {
		name string
		met  []met
	}{
		{"the second of two interfaces, and of three", []met{
			{at: "a", client: lan, first: "GET", second: long}, {at: "b", client: lan, first: "GET", second: long, want: "a"},
			{at: "c", client: lan, first: "GET", second: long, want: "a"}}},
		{"behind NAT", []met{{at: "b", client: nat, first: "GET", second: long}, {at: "a", client: lan, first: "GET", second: long, want: "b"}}},
		{"twice at one interface", []met{{at: "a", client: lan, first: "GET"}, {at: "a", client: lan, first: "GET"}}},
		{"another connection of the same ends", []met{{at: "a", client: lan, first: "GET"}, {at: "b", client: lan, isn: 7, first: "GET"}}},
		{"other bytes", []met{{at: "a", client: lan, first: "GET"}, {at: "b", client: lan, first: "PUT"}, {at: "b", client: nat, first: "PUT"}}},
		{"other bytes, behind NAT", []met{{at: "a", client: lan, first: "GET"}, {at: "b", client: nat, first: "PUT"}}},
		{"bytes of the other side", []met{{at: "a", client: lan, first: long}, {at: "b", client: lan, second: long}, {at: "c", client: nat, second: "y"}}},
		{"too late", []met{{at: "a", client: lan, first: "GET"}, {at: "b", client: lan, first: "GET", after: crossingTime + 1}}},
		{"not too late", []met{{at: "a", client: lan, first: "GET"}, {at: "b", client: lan, first: "GET", after: crossingTime, want: "a"}}},
		{"less was captured", []met{{at: "a", client: lan, first: "GET", second: long}, {at: "b", client: lan, first: "GET", want: "a"}}},
		{"a little more was captured of one that is complete", []met{{at: "a", client: lan, first: "GET", second: long[:500]}, {at: "b", client: lan, first: "GET", second: long[:520], want: "a"}}},
		{"much more was captured", []met{{at: "a", client: lan, first: "GET", second: long[:50]}, {at: "b", client: lan, first: "GET", second: long},
			{at: "a", client: lan, first: "GET", second: long, want: "b"}}},
		{"more of one that is not complete", []met{{at: "a", client: lan, first: "GET", provisional: true}, {at: "b", client: lan, first: "GET /", provisional: true},
			{at: "a", client: lan, first: "GET /", provisional: true, want: "b"}, {at: "a", client: lan, first: "GET / H"}, {at: "b", client: lan, first: "GET / H", want: "a"}}},
		{"the same, behind NAT", []met{{at: "a", client: lan, first: "GET", provisional: true}, {at: "b", client: nat, first: "GET /", provisional: true},
			{at: "a", client: lan, first: "GET /", provisional: true, want: "b"}}},
		{"one direction was seen", []met{{at: "a", client: lan, first: "GET", change: oneWay}, {at: "b", client: lan, first: "GET", change: oneWay}, {at: "b", client: lan, first: "GET"}}},
		{"numbers are not known", []met{{at: "a", client: lan, first: "GET", change: unknown}, {at: "b", client: lan, first: "GET", change: unknown}}},
		{"the variant is another capture", []met{{at: "a", client: lan, first: "GET"}, {at: "a", client: lan, first: "PUT", change: variant},
			{at: "b", client: lan, first: "GET", want: "a"}, {at: "b", client: lan, first: "PUT", change: variant, want: "a"}}},
		{"it was judged as a middle", []met{{at: "a", client: lan, first: "GET", change: middle}, {at: "b", client: lan, first: "GET"}, {at: "a", client: lan, first: "GET", change: middle, want: "b"}}},
		{"it was judged from its beginning", []met{{at: "a", client: lan, first: "GET"}, {at: "b", client: lan, change: middle, want: "a"}}},
		{"UDP", []met{{at: "a", client: lan, proto: flow.UDP, first: "query", second: "answer"}, {at: "b", client: lan, proto: flow.UDP, first: "query", second: "answer", want: "a"}}},
		{"UDP of other addresses", []met{{at: "a", client: lan, proto: flow.UDP, first: "query"}, {at: "b", client: nat, proto: flow.UDP, first: "query"}}},
		{"UDP of other bytes", []met{{at: "a", client: lan, proto: flow.UDP, first: "query"}, {at: "b", client: lan, proto: flow.UDP, first: "qvery"}}},
		{"UDP that was judged as resumed", []met{{at: "a", client: lan, proto: flow.UDP, first: "query", change: resumed}, {at: "b", client: lan, proto: flow.UDP, first: "query"}}},
		{"resumed UDP", []met{{at: "a", client: lan, proto: flow.UDP, first: "query"}, {at: "b", client: lan, proto: flow.UDP, first: "query", change: resumed, want: "a"}}},
		{"UDP that is resumed at both", []met{{at: "a", client: lan, proto: flow.UDP, first: "query", change: resumed}, {at: "b", client: lan, proto: flow.UDP, first: "query", change: resumed, want: "a"}}},
		// Who has both ends of a connection wants it judged nowhere, by the help of another one
		// of the same numbers and bytes at each interface.
		{"with decoys on both sides", []met{
			{at: "a", client: "10.0.0.9:1", first: "GET"}, {at: "b", client: lan, first: "GET", want: "a"},
			{at: "b", client: "10.0.0.9:2", first: "GET"}, {at: "a", client: lan, first: "GET"}}},
		{"with decoys first", []met{
			{at: "a", client: "10.0.0.9:1", first: "GET"}, {at: "b", client: "10.0.0.9:2", first: "GET", want: "a"},
			{at: "a", client: lan, first: "GET"}, {at: "b", client: lan, first: "GET", want: "a"}}},
		{"two flows of the same numbers", []met{{at: "a", client: lan, first: "GET"}, {at: "a", client: other, first: "GET"},
			{at: "b", client: other, first: "GET", want: "a"}, {at: "b", client: lan, first: "GET", want: "a"}}},
	} {
		x, now := newCrossings(), time.Unix(1000, 0)
		interfaces := map[string]*attachment{}
		for _, name := range []string{"a", "b", "c"} {
			interfaces[name] = &attachment{iface: func() string { return name }}
		}
		for i, m := range tt.met {
			meta := flow.Meta{Numbers: flow.Numbers{InitiatorISN: 100 + m.isn, ResponderISN: 200, ISNKnown: true}, Provisional: m.provisional, InitiatorIsLo: true}
			if m.proto == 0 {
				m.proto = flow.TCP
			} else {
				meta.Numbers = flow.Numbers{}
			}
			meta.Key, _ = flow.NewKey(netip.MustParseAddrPort(m.client), netip.MustParseAddrPort("203.0.113.7:443"), m.proto, 0, 0)
			if m.change != nil {
				m.change(&meta)
			}
			now = now.Add(m.after)
			p := sent{[]byte(m.first), []byte(m.second)}
			before, _, early := x.meet(sighting{interfaces[m.at], meta.Key}, &meta, &p, now)
			got := ""
			if before != nil {
				got = before.at.iface()
			}
			if got != m.want || early != 0 {
				t.Errorf("%s: hand-over %d, at %s: judged at %q before, want %q", tt.name, i, m.at, got, m.want)
			}
		}
	}
}

func oneWay(m *flow.Meta)  { m.OneWay = true }
func unknown(m *flow.Meta) { m.Numbers.ISNKnown = false }
func variant(m *flow.Meta) { m.Variant = true }
func middle(m *flow.Meta)  { m.MidStream = true }
func resumed(m *flow.Meta) { m.Resumed = true }

// What is remembered is bounded, what is pushed out is counted, and what is not judged after
// all is forgotten.
func TestCrossingsAreBounded(t *testing.T) {
	x, now := newCrossings(), time.Unix(1000, 0)
	a, b := &attachment{}, &attachment{}
	p := sent{[]byte("GET"), nil}
	meet := func(at *attachment, isn uint32) (*sighting, *crossing, int) {
		m := flow.Meta{Numbers: flow.Numbers{InitiatorISN: isn, ISNKnown: true}}
		m.Key, _ = flow.NewKey(netip.MustParseAddrPort("10.0.0.2:40000"), netip.MustParseAddrPort("203.0.113.7:443"), flow.TCP, 0, 0)
		return x.meet(sighting{at, m.Key}, &m, &p, now)
	}
	early := 0
	for isn := range uint32(3 * mostCrossings) {
		_, _, n := meet(a, isn)
		early += n
	}
	if early != 2*mostCrossings || x.order.Len() != mostCrossings || len(x.flows) != mostCrossings {
		t.Errorf("%d forgotten early, %d remembered, %d found", early, x.order.Len(), len(x.flows))
	}
	if before, _, _ := meet(b, 3*mostCrossings-1); before == nil || before.at != a {
		t.Error("the latest is not recognised")
	}
	_, c, _ := meet(a, 9_999_999)
	x.forget(c, a)
	if before, _, _ := meet(b, 9_999_999); before != nil {
		t.Error("one that was not judged is recognised")
	}
	if _, _, n := meet(a, 5_555_555); n != 1 {
		t.Errorf("%d forgotten for the next one", n)
	}
	x.end(a)
	if x.order.Len() != 1 || x.order.Front().Value.(*crossing).judged.at != b {
		t.Errorf("after the end of one interface %d remain", x.order.Len())
	}
	x.end(b)
	if x.order.Len() != 0 || len(x.flows) != 0 {
		t.Errorf("after the interface's end %d remain, %d are found", x.order.Len(), len(x.flows))
	}
	meet(b, 7)
	now = now.Add(crossingTime + 1)
	if _, _, n := meet(a, 1); n != 0 || x.order.Len() != 1 || len(x.flows) != 1 {
		t.Errorf("after their time %d remain, %d are found", x.order.Len(), len(x.flows))
	}
}

// segment is a captured packet from the client or the server.
func segment(t *testing.T, s *flow.Sample, client bool, seq uint32, syn bool, payload string) {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: make(net.HardwareAddr, 6), DstMAC: make(net.HardwareAddr, 6), EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{10, 0, 0, 2}, DstIP: net.IP{203, 0, 113, 7}}
	tcp := &layers.TCP{SrcPort: 40000, DstPort: 443, Seq: seq, SYN: syn, ACK: true}
	if !client {
		ip.SrcIP, ip.DstIP, tcp.SrcPort, tcp.DstPort = ip.DstIP, ip.SrcIP, tcp.DstPort, tcp.SrcPort
	}
	_ = tcp.SetNetworkLayerForChecksum(ip)
	buffer := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, tcp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	frame := buffer.Bytes()
	s.Packets = append(s.Packets, flow.Packet{Offset: uint16(len(s.Data)), WireLen: uint32(len(frame)), FromInitiator: client})
	s.Data = append(s.Data, frame...)
}

// The bytes of a connection are the same however they were cut into segments.
func TestSentBytesDoNotDependOnSegments(t *testing.T) {
	for _, tt := range []struct {
		name string
		fill func(*flow.Sample)
		want [2]string
	}{
		{"as they come", func(s *flow.Sample) {
			segment(t, s, true, 100, true, "")
			segment(t, s, false, 4294967295, true, "")
			segment(t, s, true, 101, false, "hello")
			segment(t, s, false, 0, false, "good ")
			segment(t, s, false, 5, false, "bye")
		}, [2]string{"hello", "good bye"}},
		{"with data in the SYN, and some of it twice", func(s *flow.Sample) {
			segment(t, s, true, 100, true, "he")
			segment(t, s, true, 101, false, "hell")
			segment(t, s, true, 104, false, "lo")
			segment(t, s, true, 101, false, "hel")
			segment(t, s, false, 0, false, "good bye")
		}, [2]string{"hello", "good bye"}},
		{"with a hole", func(s *flow.Sample) {
			segment(t, s, true, 101, false, "he")
			segment(t, s, true, 105, false, "o")
			segment(t, s, false, 3, false, "d bye")
		}, [2]string{"he", ""}},
	} {
		s := new(flow.Sample)
		s.Reset()
		s.Numbers = flow.Numbers{InitiatorISN: 100, ResponderISN: 4294967295, ISNKnown: true}
		tt.fill(s)
		var p sent
		for range 2 { // it is used again
			p.read(s)
			if got := [2]string{string(p[0]), string(p[1])}; got != tt.want {
				t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
			}
		}
	}
}
