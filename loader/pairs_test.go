// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

var (
	testPair = (&flow.Meta{Key: tcpKey(), InitiatorIsLo: true}).Pair()
	// pair6 is that of peer6, who is the higher end, and host6.
	pair6 = flow.Pair{Initiator: netip.MustParsePrefix("fd00::/64"), Server: host6}

	drops  = flow.Treatment{Action: flow.Drop, TTL: time.Hour, Class: "obfs4", Rule: "r"}
	limits = flow.Treatment{Action: flow.Limit, Rate: 125_000, TTL: time.Hour, Class: "obfs4", Rule: "r"}
)

// tcpFrame is a segment from one end to the other.
func tcpFrame(from, to netip.AddrPort, flags byte, n int, tags ...int) []byte {
	return f.Ethernet(f.IP(from, to, f.TCP, f.Numbered(f.Segment(from, to, flags, nil, f.Payload(n)), number(flags), 0)), tags...)
}

func portOf(a netip.AddrPort, port uint16) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), port) }

// pairOf returns what is known of a treated pair.
func (k *kernel) pairOf(p flow.Pair) Pair {
	k.t.Helper()
	all, err := k.Pairs()
	if err != nil {
		k.t.Fatal(err)
	}
	for _, one := range all {
		if one.Pair == p {
			return one
		}
	}
	k.t.Fatalf("%s is not among the %d pairs", p, len(all))
	return Pair{}
}

func (k *kernel) treatPair(p flow.Pair, t flow.Treatment) {
	k.t.Helper()
	if err := k.TreatPair(p, t); err != nil {
		k.t.Fatal(err)
	}
}

func TestPairIsTreatedFromItsNextSYNOn(t *testing.T) {
	k := loadKernel(t, config{})
	other := netip.MustParseAddr("10.0.0.3")
	fragments := func(packet []byte) []byte {
		return f.Ethernet(f.Fragments(packet, 7, f.Piece{From: 0, To: 24}, f.Piece{From: 24, To: 1 << 16})[0])
	}
	synData := f.IP(client, server, f.TCP, f.Numbered(f.Segment(client, server, f.SYN, nil, f.Payload(64)), 1, 0))
	for _, tt := range []struct {
		name  string
		frame []byte
		drops bool
	}{
		{"SYN", up(f.SYN, 0), true},
		{"SYN with ECN", tcpFrame(client, server, f.SYN|0xc0, 0), true},
		{"SYN with payload", tcpFrame(client, server, f.SYN, 100), true},
		{"SYN of another port", tcpFrame(portOf(client, 1), server, f.SYN, 0), true},
		{"first fragment of a SYN", fragments(synData), true},
		{"SYN in IPv6, of another address of the network", tcpFrame(netip.MustParseAddrPort("[fd00::3]:9"), host6, f.SYN, 0), true},
		{"SYN in IPv6, of a network of zeros", tcpFrame(netip.MustParseAddrPort("[::9]:9"), host6, f.SYN, 0), true},
		{"SYN of another IPv6 network", tcpFrame(netip.MustParseAddrPort("[fd00:0:0:1::2]:40000"), host6, f.SYN, 0), false},
		{"SYN of another address", tcpFrame(netip.AddrPortFrom(other, 40000), server, f.SYN, 0), false},
		{"SYN to another server", tcpFrame(client, netip.MustParseAddrPort("192.0.2.8:443"), f.SYN, 0), false},
		{"SYN to another port", tcpFrame(client, portOf(server, 444), f.SYN, 0), false},
		{"SYN in a VLAN", tcpFrame(client, server, f.SYN, 0, f.TypeVLAN, 7), false},
		{"SYN of the server", tcpFrame(server, client, f.SYN, 0), false},
		{"SYN+ACK of the initiator", up(f.SYN|f.ACK, 0), false},
		{"SYN+ACK of the server", down(f.SYN|f.ACK, 0), false},
		{"acknowledgement", up(f.ACK, 0), false},
		{"payload", up(f.ACK, 1000), false},
		{"FIN", up(f.FIN|f.ACK, 0), false},
		{"payload of the server", down(f.ACK, 1000), false},
		{"UDP", udp(true, 100), false},
	} {
		for _, e := range []entry{ingress, egress} {
			t.Run(tt.name+"/"+string(e), func(t *testing.T) {
				k := k.emptied(t)
				k.treatPair(testPair, drops)
				k.treatPair(pair6, drops)
				k.treatPair(flow.Pair{Initiator: netip.MustParsePrefix("::/64"), Server: host6}, drops)
				if got := k.run(e, tt.frame); got != tt.drops {
					t.Errorf("dropped is %v", got)
				}
				c := k.counts()
				if want := uint64(bit(tt.drops)); c["pair_connections"] != want || c["dropped_packets"] != want || tt.drops && c["syns"] != 0 {
					t.Errorf("counters %v", c)
				}
				// In mode monitor it is suspended, and when its time is over nothing is left.
				k.enforce(false)
				if k.run(e, tt.frame) {
					t.Error("dropped in mode monitor")
				}
			})
		}
	}
}

func TestPairCountsFlowsAndNotTheirRetransmissions(t *testing.T) {
	k := loadKernel(t, config{})
	for _, e := range []entry{ingress, egress} {
		k := k.emptied(t)
		k.treatPair(testPair, drops)
		if p := k.pairOf(testPair); p.Flows != 0 || !p.Last.IsZero() {
			t.Errorf("before: %+v", p)
		}
		for range 3 {
			for seq := range uint32(4) {
				if !k.run(e, upAt(seq+10, 0, f.SYN, 0)) {
					t.Error("a SYN passes")
				}
			}
		}
		p := k.pairOf(testPair)
		if p.Flows != 4 || p.Packets != 12 || p.Bytes != 12*54 || time.Since(p.Last) > time.Minute || p.Class != "obfs4" || p.Rule != "r" || p.Action != flow.Drop {
			t.Errorf("%s: %+v", e, p)
		}
		// A new treatment keeps what was counted.
		k.treatPair(testPair, resets)
		if p := k.pairOf(testPair); p.Flows != 4 || p.Action != flow.Reset {
			t.Errorf("%s: %+v", e, p)
		}
		got, err := k.ForgetPair(testPair)
		if err != nil || got.Packets != 12 {
			t.Errorf("forgotten: %+v, %v", got, err)
		}
		if k.run(e, up(f.SYN, 0)) {
			t.Error("a SYN of a pair that is forgotten is dropped")
		}
		if _, err := k.ForgetPair(testPair); !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Errorf("forgotten twice: %v", err)
		}
	}
}

func TestPairEndsWithItsTime(t *testing.T) {
	k := loadKernel(t, config{})
	short := drops
	short.TTL = time.Nanosecond
	k.treatPair(testPair, short)
	k.treatPair(pair6, drops)
	if k.run(ingress, up(f.SYN, 0)) {
		t.Error("dropped although its time is over")
	}
	if all, err := k.Pairs(); err != nil || len(all) != 1 {
		t.Errorf("pairs %+v, %v", all, err)
	}
	ended, err := k.ExpirePairs()
	if err != nil || len(ended) != 1 || ended[0].Pair != testPair {
		t.Errorf("ended %+v, %v", ended, err)
	}
	if ended, err := k.ExpirePairs(); err != nil || len(ended) != 0 {
		t.Errorf("ended once more %+v, %v", ended, err)
	}
	if n := k.filter.buckets[pairsInUse]; n != 1 {
		t.Errorf("%d pairs are counted, want 1", n)
	}
}

// What is open when its pair is treated goes on, and is captured and judged.
func TestPairLeavesOpenConnectionsAlone(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	for _, treatment := range []flow.Treatment{drops, resets, limits} {
		for _, e := range []entry{ingress, egress} {
			t.Run(treatment.Action.String()+"/"+string(e), func(t *testing.T) {
				k := k.emptied(t)
				h := handshake()
				for i, p := range append(h, up(f.ACK, 1400)) {
					if i == 1 {
						k.treatPair(testPair, treatment)
					}
					if k.run(e, p) {
						t.Errorf("packet %d was dropped", i)
					}
				}
				if got := k.samples(); len(got) != 1 {
					t.Errorf("%d samples, want 1", len(got))
				}
				// A SYN that somebody forges in its name is dropped, and changes nothing.
				want := map[flow.Action]fate{flow.Drop: dropped, flow.Reset: answered, flow.Limit: passes}[treatment.Action]
				if got, _ := k.become(e, upAt(77, 0, f.SYN, 0)); got != want {
					t.Errorf("the forged SYN: %s, want %s", got, want)
				}
				if k.run(e, upAt(1402, 2, f.ACK, 100)) || k.run(e, down(f.ACK, 100)) {
					t.Error("the connection ended")
				}
			})
		}
	}
}

func TestPairThatIsResetAnswersSYNs(t *testing.T) {
	k := loadKernel(t, config{})
	timestamps := []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
	for _, l := range []peers{
		{"ipv4", client, server, nil, nil},
		{"the client is the higher end", netip.MustParseAddrPort("203.0.113.9:40001"), server, nil, timestamps},
		{"vlan", client, server, []int{f.TypeVLAN, 77}, nil},
		{"ipv6", peer6, host6, nil, timestamps},
	} {
		for _, e := range []entry{ingress, egress} {
			t.Run(l.name+"/"+string(e), func(t *testing.T) {
				k := k.emptied(t)
				p := flow.Pair{Initiator: flow.Household(l.client.Addr()), Server: l.server}
				if l.tags != nil {
					p.VLAN = 77
				}
				k.treatPair(p, resets)
				for _, n := range []int{0, 33} {
					frame := l.segment(true, 0xffffffff, 0, f.SYN, n)
					got, out := k.become(e, frame)
					if got != answered {
						t.Fatalf("a SYN with %d bytes: %s", n, got)
					}
					l.isReset(t, out, frame, true, true, 0)
				}
				if c := k.counts(); c["resets"] != 2 || c["pair_connections"] != 1 || c["dropped_packets"] != 2 {
					t.Errorf("counters %v", c)
				}
			})
		}
	}
	t.Run("what can't be answered is dropped", func(t *testing.T) {
		k := loadKernel(t, config{noAnswers: true})
		k.treatPair(testPair, resets)
		for _, e := range []entry{ingress, egress} {
			if got, _ := k.become(e, up(f.SYN, 0)); got != dropped {
				t.Errorf("%s: %s", e, got)
			}
		}
	})
	t.Run("not too many", func(t *testing.T) {
		k := k.emptied(t)
		if err := k.coll.Maps[datapathMapResetBucket].Update(uint32(0), uint64(0), ebpf.UpdateAny); err != nil {
			t.Fatal(err)
		}
		k.treatPair(testPair, resets)
		const syns = 60
		for i := range uint32(syns) {
			k.become(ingress, upAt(i, 0, f.SYN, 0))
		}
		c := k.counts()
		if c["resets"] < 20 || c["resets_refused"] == 0 || c["resets"]+c["resets_refused"] != syns {
			t.Errorf("counters %v", c)
		}
		// Another pair is answered all the same.
		k.treatPair(pair6, resets)
		if got, _ := k.become(ingress, tcpFrame(peer6, host6, f.SYN, 0)); got != answered {
			t.Errorf("another pair: %s", got)
		}
	})
}

func TestPairThatIsLimitedIsNotCaptured(t *testing.T) {
	k := loadKernel(t, config{oneHook: true, blocked: 16})
	for _, e := range []entry{ingress, egress} {
		t.Run(string(e), func(t *testing.T) {
			k := k.emptied(t)
			k.treatPair(testPair, limits)
			for i, p := range append(handshake(), up(f.ACK, 1400)) {
				if k.run(e, p) {
					t.Errorf("packet %d was dropped", i)
				}
			}
			dropped := 0
			for i := range uint32(200) { // 290 KB at once
				if k.run(e, upAt(1402+1400*i, 2, f.ACK, 1400)) {
					dropped++
				}
			}
			if dropped < 50 || dropped > 150 {
				t.Errorf("%d of 200 packets were dropped", dropped)
			}
			k.sweep()
			if got := k.samples(); len(got) != 0 {
				t.Errorf("%d samples", len(got))
			}
			blocks, err := k.Blocked()
			if err != nil || len(blocks) != 1 || blocks[0].Action != flow.Limit || blocks[0].Rate != limits.Rate || blocks[0].Rule != "r" || blocks[0].Class != "obfs4" || !blocks[0].InitiatorIsLo {
				t.Fatalf("blocks %+v, %v", blocks, err)
			}
			if p := k.pairOf(testPair); p.Flows != 1 || p.Packets != 0 {
				t.Errorf("pair %+v", p)
			}
			// As any other block it ends when it is lifted, and the flow passes then.
			if _, err := k.Unblock(tcpKey()); err != nil {
				t.Fatal(err)
			}
			if n, m := k.filter.buckets[blocksInUse], k.filter.buckets[client.Port()^server.Port()]; n != 0 || m != 0 {
				t.Errorf("%d blocks are counted, %d of the bucket", n, m)
			}
			if k.run(e, upAt(1402, 2, f.ACK, 1400)) {
				t.Error("a packet was dropped")
			}
		})
	}
	t.Run("with half of the table full it is captured", func(t *testing.T) {
		k := k.emptied(t)
		k.treatPair(testPair, limits)
		for i := range uint16(8) {
			key, _ := flow.NewKey(portOf(client, 1000+i), server, flow.UDP, 0, 0)
			if err := k.Apply(key, drops); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range append(handshake(), up(f.ACK, 1400)) {
			k.run(ingress, p)
		}
		if got := k.samples(); len(got) != 1 {
			t.Errorf("%d samples, want 1", len(got))
		}
	})
	t.Run("in mode monitor it is captured", func(t *testing.T) {
		k := k.emptied(t)
		k.enforce(false)
		k.treatPair(testPair, limits)
		for _, p := range append(handshake(), up(f.ACK, 1400)) {
			k.run(ingress, p)
		}
		if got := k.samples(); len(got) != 1 {
			t.Errorf("%d samples, want 1", len(got))
		}
	})
	t.Run("a connection after a blocked one with its ports", func(t *testing.T) {
		k := k.emptied(t)
		if err := k.Apply(tcpKey(), drops); err != nil {
			t.Fatal(err)
		}
		k.treatPair(testPair, limits)
		for i, p := range append(handshakeAt(500, 600), upAt(501, 601, f.ACK, 1400)) {
			if k.run(ingress, p) {
				t.Errorf("packet %d was dropped", i)
			}
		}
		if blocks, err := k.Blocked(); err != nil || len(blocks) != 1 || blocks[0].Action != flow.Limit {
			t.Errorf("blocks %+v, %v", blocks, err)
		}
		if n := k.filter.buckets[blocksInUse]; n != 1 {
			t.Errorf("%d blocks are counted, want 1", n)
		}
	})
}

func TestTreatPairRefuses(t *testing.T) {
	k := loadKernel(t, config{pairs: 2})
	for name, tt := range map[string]struct {
		pair      flow.Pair
		treatment flow.Treatment
		want      string
	}{
		"pass":         {testPair, flow.Treatment{}, "knows no pass"},
		"log":          {testPair, flow.Treatment{Action: flow.Log, TTL: time.Hour}, "knows no log"},
		"no time":      {testPair, flow.Treatment{Action: flow.Drop}, "time to live 0s is not positive"},
		"no rate":      {testPair, flow.Treatment{Action: flow.Limit, TTL: time.Hour}, "rate of 0 bytes/s"},
		"a network":    {flow.Pair{Initiator: netip.MustParsePrefix("10.0.0.0/8"), Server: server}, drops, "neither an IPv4 address nor"},
		"one of IPv6":  {flow.Pair{Initiator: netip.MustParsePrefix("fd00::2/128"), Server: host6}, drops, "neither an IPv4 address nor"},
		"no initiator": {flow.Pair{Server: server}, drops, "neither an IPv4 address nor"},
		"no port":      {flow.Pair{Initiator: testPair.Initiator, Server: portOf(server, 0)}, drops, "no address and port"},
		"vlan":         {flow.Pair{Initiator: testPair.Initiator, Server: server, VLAN: 4096}, drops, "at most 4095"},
	} {
		if err := k.TreatPair(tt.pair, tt.treatment); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := k.filter.buckets[pairsInUse]; n != 0 {
		t.Errorf("%d pairs are counted", n)
	}
	full := func(port uint16) error {
		return k.TreatPair(flow.Pair{Initiator: testPair.Initiator, Server: portOf(server, port)}, drops)
	}
	if err := errors.Join(full(1), full(2)); err != nil {
		t.Fatal(err)
	}
	if err := full(3); !errors.Is(err, ErrFull) || !strings.HasSuffix(err.Error(), "the table of treated pairs is full: it holds 2") {
		t.Errorf("full: %v", err)
	}
	if err := full(2); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	if n := k.filter.buckets[pairsInUse]; n != 2 {
		t.Errorf("%d pairs are counted, want 2", n)
	}
	if k.run(ingress, tcpFrame(client, portOf(server, 3), f.SYN, 0)) {
		t.Error("what has no room is dropped")
	}
}

// Another process goes on with the pairs of one that was killed, another version of the tables
// gets them, and detaching leaves none.
func TestPairsOutliveTheProcess(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	for _, p := range []flow.Pair{testPair, pair6} {
		if err := d.TreatPair(p, drops); err != nil {
			t.Fatal(err)
		}
	}
	short := drops
	short.TTL = time.Nanosecond
	if err := d.TreatPair(flow.Pair{Initiator: testPair.Initiator, Server: portOf(server, 1)}, short); err != nil {
		t.Fatal(err)
	}
	syn := func(want bool) {
		t.Helper()
		ret, err := d.coll.Programs[string(tcxIngress)].Run(&ebpf.RunOptions{Data: up(f.SYN, 0)})
		if err != nil || (ret == tcShot) != want {
			t.Errorf("a SYN: %d, %v", ret, err)
		}
	}
	syn(true)
	for i, opts := range []Options{{}, {Sizes: Sizes{Flows: 2048}}, {Monitor: true, Sizes: Sizes{Flows: 2048}}, {Sizes: Sizes{Flows: 4096}}} {
		if err := d.Release(); err != nil {
			t.Fatal(err)
		}
		d = attach(t, opts)
		all, err := d.Pairs()
		if err != nil || len(all) != 2 || d.Info.PairsAdopted != 2 || !d.Info.PairsKnown || d.Info.BlocksLost != nil {
			t.Fatalf("%d: pairs %+v, %v, info %+v", i, all, err, d.Info)
		}
		for _, p := range all {
			if p.Pair == testPair && p.Packets == 0 || p.Rule != "r" || time.Until(p.Expires) < 50*time.Minute {
				t.Errorf("%d: %+v", i, p)
			}
		}
		if want := i%2 == 1; d.Info.Adopted == want {
			t.Errorf("%d: adopted is %v", i, d.Info.Adopted)
		}
		syn(!opts.Monitor)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
	d = attach(t, Options{})
	if all, err := d.Pairs(); err != nil || len(all) != 0 || d.Info.PairsKnown {
		t.Errorf("pairs %+v, %v, info %+v", all, err, d.Info)
	}
	syn(false)
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
}

func TestGroupSharesPairsAndExemptNetworks(t *testing.T) {
	inNamespace(t)
	all := inGroup(t, []string{"v0", "v1"}, nil)
	defer releaseAll(t, all)
	if err := all[0].TreatPair(testPair, drops); err != nil {
		t.Fatal(err)
	}
	if got, err := all[1].Pairs(); err != nil || len(got) != 1 {
		t.Errorf("pairs %+v, %v", got, err)
	}
	if _, err := all[1].ForgetPair(testPair); err != nil {
		t.Error(err)
	}
	if got, err := all[0].Pairs(); err != nil || len(got) != 0 {
		t.Errorf("pairs %+v, %v", got, err)
	}
}
