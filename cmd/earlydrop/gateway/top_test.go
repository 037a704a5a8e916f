// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// Whoever has more than an even share of all is there, however many others come once, and what
// is said of him is true within what is said to be missed.
func TestLeadersKeepThoseWithTheMost(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const room, added = 64, 20_000
	l := newLeaders[int, uint64](room)
	truth := map[int]uint64{}
	for i := range added {
		key, weight := 1000+i, uint64(1) // comes once
		if i%4 == 0 {
			key, weight = random.IntN(5), 1+random.Uint64N(3)
		}
		truth[key] += weight
		*l.add(key, weight) += weight
	}
	if len(l.of) != room || len(l.heap) != room {
		t.Fatalf("%d and %d are counted, want %d", len(l.of), len(l.heap), room)
	}
	top := l.top(5)
	for i, e := range top {
		if e.key > 4 || i > 0 && e.has() > top[i-1].has() {
			t.Errorf("place %d: %+v", i, e)
		}
	}
	for key, e := range l.of {
		if e.key != key || l.heap[e.at] != e || e.has() > truth[key] || e.weight < truth[key] || e.value != e.has() {
			t.Errorf("%d has %d, and %+v is said", key, truth[key], e)
		}
	}
	if all := l.top(1000); len(all) != room {
		t.Errorf("%d are listed", len(all))
	}
}

func metaTo(initiator, server string, proto flow.Proto) *flow.Meta {
	key, isLo := flow.NewKey(netip.MustParseAddrPort(initiator), netip.MustParseAddrPort(server), proto, 0, 0)
	return &flow.Meta{Key: key, InitiatorIsLo: isLo, Source: flow.Source{Interface: "eth0"}}
}

func TestTopsTellWhoIsDetectedAndDroppedMost(t *testing.T) {
	tops := newTops()
	at := time.Unix(1000, 0)
	d := &policy.Decision{Class: "shadowsocks", Rule: "tunnels"}
	// Two addresses of one IPv6 network, and one of IPv4.
	one, two, three := metaTo("[2001:db8::1]:1", "[2001:db8:9::7]:8388", flow.TCP), metaTo("[2001:db8::2]:1", "[2001:db8:9::7]:8388", flow.TCP), metaTo("10.0.0.2:5", "192.0.2.7:443", flow.UDP)
	tops.note(one, d, true, at)
	tops.note(two, d, false, at.Add(time.Second))
	tops.noteBlocked(two)
	tops.note(three, d, true, at)
	tops.noteEnded(&loader.Block{Key: three.Key, InitiatorIsLo: three.InitiatorIsLo, Rule: "tunnels", Packets: 3, Bytes: 4000})
	tops.noteEnded(&loader.Block{Key: one.Key, InitiatorIsLo: one.InitiatorIsLo, Rule: "tunnels"}) // dropped nothing
	// One that is there, of somebody else: by hand, so the lower port is the server's.
	elsewhere := metaTo("10.0.0.9:5000", "192.0.2.9:22", flow.TCP)
	m := metaOf(&loader.Block{Key: elsewhere.Key, Rule: flow.ByHand})
	there := inForces{subjectsOf(&m)[0]: {blocks: 1, packets: 1, bytes: 9000}, subjectsOf(three)[0]: {blocks: 2, packets: 1, bytes: 1}}

	v6 := status.Leader{
		Initiator: netip.MustParsePrefix("2001:db8::/64"), Server: netip.MustParseAddrPort("[2001:db8:9::7]:8388"), Proto: "tcp",
		Detected: 2, Blocked: 2, Interface: "eth0", Class: "shadowsocks", Rule: "tunnels", Last: at.Add(time.Second),
	}
	v4 := status.Leader{
		Initiator: netip.MustParsePrefix("10.0.0.2/32"), Server: netip.MustParseAddrPort("192.0.2.7:443"), Proto: "udp",
		Detected: 1, Blocked: 1, DroppedPackets: 4, DroppedBytes: 4001, Blocks: 2, Interface: "eth0", Class: "shadowsocks", Rule: "tunnels", Last: at,
	}
	hand := status.Leader{Initiator: netip.MustParsePrefix("10.0.0.9/32"), Server: netip.MustParseAddrPort("192.0.2.9:22"), Proto: "tcp", DroppedPackets: 1, DroppedBytes: 9000, Blocks: 1}
	// SYNs that the kernel dropped of the pair, as it treats it, are drops as well.
	tops.noteEndedPair(&loader.Pair{Pair: three.Pair()})
	for _, tt := range []struct {
		n    int
		want []status.Leader
	}{{10, []status.Leader{v6, v4, hand}}, {1, []status.Leader{v6, hand}}, {0, nil}} {
		if got := tops.list(0, tt.n, there); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("the first %d:\n%+v, want\n%+v", tt.n, got, tt.want)
		}
	}
	tops.noteEndedPair(&loader.Pair{Pair: two.Pair(), Packets: 5, Bytes: 300})
	v6.Initiator, v6.DroppedPackets, v6.DroppedBytes, v6.Treated = netip.Prefix{}, 6, 350, 1
	if got := tops.list(1, 1, inForces{subjectsOf(two)[1]: {pairs: 1, packets: 1, bytes: 50}}); got[0] != v6 {
		t.Errorf("server %+v, want %+v", got[0], v6)
	}
	v4.Server, v4.Proto, v4.DroppedPackets, v4.DroppedBytes, v4.Blocks = netip.AddrPort{}, "", 3, 4000, 0
	if got := tops.list(2, 1, nil); len(got) != 2 || got[1] != v4 {
		t.Errorf("initiators %+v, want %+v", got, v4)
	}
}

func TestRingHasTheLatest(t *testing.T) {
	var r ring
	if got := r.list(5); len(got) != 0 {
		t.Errorf("%v of none", got)
	}
	for i := range maxLatest + 3 {
		r.put(&event.Verdict{Packets: i})
	}
	if got := r.list(2); len(got) != 2 || got[0].Packets != maxLatest+2 || got[1].Packets != maxLatest+1 {
		t.Errorf("%+v", got)
	}
	if got := r.list(10 * maxLatest); len(got) != maxLatest || got[maxLatest-1].Packets != 3 {
		t.Errorf("%d", len(got))
	}
}

// There are no more tallies than they may be, whatever a policy is called.
func TestTalliesAreBounded(t *testing.T) {
	var all tallies[string, int]
	for i := range 10 * maxTallies {
		*all.at(fmt.Sprint("rule ", i), "others")++
	}
	if n := len(all.all()); n != maxTallies+1 {
		t.Errorf("%d tallies", n)
	}
	if n := *all.at("others", "others"); n != 9*maxTallies {
		t.Errorf("%d of others", n)
	}
}

func TestRatesAreOfTheLastSeconds(t *testing.T) {
	var r recent
	begin := time.Unix(1000, 0)
	if got := r.rates(begin, status.Totals{}); got != nil {
		t.Errorf("%+v of nothing", got)
	}
	r.note(begin, nil, status.Totals{Packets: 100})
	r.note(begin.Add(5*time.Second), nil, status.Totals{Packets: 600, Bytes: 50})
	for _, tt := range []struct {
		after   time.Duration
		packets float64 // per second, where there are 1000
	}{
		{6 * time.Second, 150}, // since the beginning
		{9 * time.Second, 100}, // since the second note
	} {
		got := r.rates(begin.Add(tt.after), status.Totals{Packets: 1000, Bytes: 40})
		if got == nil || got.Packets != tt.packets || got.Bytes > 40/6.0 {
			t.Errorf("after %s: %+v, want %v packets", tt.after, got, tt.packets)
		}
	}
}
