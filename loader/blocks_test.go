// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// judged runs a connection up to its hand-over and returns its sample. The client's next
// byte is 1402, the server's 2.
func (k *kernel) judged() *flow.Sample {
	k.t.Helper()
	for _, p := range after(handshake(), up(f.ACK, 1400)) {
		k.run(ingress, p)
	}
	got := k.samples()
	if len(got) != 1 {
		k.t.Fatalf("%d samples", len(got))
	}
	return got[0]
}

func (k *kernel) blockFlow(s *flow.Sample, ttl time.Duration) {
	k.t.Helper()
	if err := k.ApplyFlow(&s.Meta, drop(ttl, "shadowsocks", "tunnels")); err != nil {
		k.t.Fatal(err)
	}
}

func (k *kernel) expect(what string, frame []byte, dropped bool) {
	k.t.Helper()
	if got := k.run(ingress, frame); got != dropped {
		k.t.Errorf("%s: dropped %v, want %v", what, got, dropped)
	}
}

func (k *kernel) ended() []Block {
	k.t.Helper()
	ended, err := k.ExpireBlocks()
	if err != nil {
		k.t.Fatal(err)
	}
	return ended
}

func TestSampleHasTheNumbersOfTheConnection(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	want := flow.Numbers{InitiatorISN: 1, ResponderISN: 1, InitiatorNext: 1402, ResponderNext: 2, ISNKnown: true, InitiatorNextKnown: true, ResponderNextKnown: true}
	if s := k.judged(); s.Numbers != want || s.OneWay || s.MidStream {
		t.Errorf("%+v", s.Meta)
	}
}

// The next connection of the same addresses and ports is not the one that was blocked:
// behind masquerade it is the next customer's.
func TestBlockEndsWithItsConnection(t *testing.T) {
	for _, byHand := range []bool{false, true} {
		k := loadKernel(t, config{oneHook: true})
		s := k.judged()
		if byHand {
			if err := k.Apply(s.Key, drop(time.Hour, "", "")); err != nil {
				t.Fatal(err)
			}
		} else {
			k.blockFlow(s, time.Hour)
		}
		k.expect("header-only segment", upAt(1402, 2, f.ACK, 0), true)
		k.expect("SYN+ACK without a SYN", downAt(80, 701, f.SYN|f.ACK, 0), true)
		k.expect("SYN with payload", upAt(700, 0, f.SYN, 9), true)
		next := handshakeAt(700, 80)
		k.expect("SYN", next[0], false)
		k.expect("payload behind the SYN", upAt(1402, 2, f.ACK, 9), true)
		k.expect("header-only segment behind the SYN", upAt(1402, 2, f.ACK, 0), false)
		k.expect("SYN+ACK with payload", downAt(80, 701, f.SYN|f.ACK, 9), true)
		k.expect("SYN+ACK", next[1], false)
		k.expect("payload behind the SYN+ACK", downAt(2, 1402, f.ACK, 9), true)
		k.expect("payload that proves nothing", upAt(701, 99, f.ACK, 9), true)
		if ended := k.ended(); len(ended) != 0 {
			t.Errorf("ended early: %+v", ended)
		}
		k.expect("payload that proves the connection", upAt(701, 81, f.ACK, 100), false)
		k.expect("payload of the new connection", upAt(801, 81, f.ACK, 1000), false)
		if got := k.samples(); len(got) != 1 || got[0].Numbers.InitiatorISN != 700 {
			t.Errorf("%d samples of the new connection", len(got))
		}
		if blocks, err := k.Blocked(); err != nil || len(blocks) != 0 {
			t.Errorf("still blocked: %+v, %v", blocks, err)
		}
		if ended := k.ended(); len(ended) != 1 || ended[0].Ended != EndNewConnection || ended[0].Packets == 0 {
			t.Errorf("ended: %+v", ended)
		}
		k.expect("after the block was removed", upAt(1801, 81, f.ACK, 1000), false)
	}
}

// Who sends forged SYNs, from whatever side, opens no blocked connection.
func TestForgedSYNsDoNotEndABlock(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	k.blockFlow(k.judged(), time.Hour)
	for i := range uint32(20) {
		k.expect("SYN", upAt(i, 0, f.SYN, 0), false)
		k.expect("SYN of the server", downAt(i, 0, f.SYN, 0), false)
		k.expect("segment that goes on with it", upAt(i+1, i, f.ACK, 10), true)
		k.expect("payload", upAt(1402, 2, f.ACK, 10), true)
		k.expect("payload of the server", downAt(2, 1402, f.ACK, 10), true)
	}
	if ended := k.ended(); len(ended) != 0 {
		t.Errorf("ended: %+v", ended)
	}
}

func TestVerdictOnAConnectionThatIsGoneBlocksNothing(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	s := k.judged()
	for _, p := range handshakeAt(700, 80) {
		k.run(ingress, p)
	}
	if err := k.ApplyFlow(&s.Meta, drop(time.Hour, "", "")); !errors.Is(err, ErrFlowGone) {
		t.Errorf("error %v", err)
	}
	k.expect("payload", upAt(701, 81, f.ACK, 10), false)
	if o, err := k.Occupancy(); err != nil || o.Blocked != 0 || k.filter.buckets[uint16(40000)^443] != 0 {
		t.Errorf("left behind: %+v, %v", o, err)
	}
}

// runOut waits until the time of the only block is over.
func (k *kernel) runOut() {
	k.t.Helper()
	var b datapathBlock
	key := toKernelKey(tcpKey())
	if err := k.blocked.Lookup(&key, &b); err != nil {
		k.t.Fatal(err)
	}
	waitUntil(b.ExpiresNs + uint64(20*time.Millisecond))
}

func TestBlockIsRenewedWhileItsConnectionGoesOn(t *testing.T) {
	const ttl = 30 * time.Millisecond
	k := loadKernel(t, config{oneHook: true})
	k.blockFlow(k.judged(), ttl)
	k.expect("payload", upAt(1402, 2, f.ACK, 10), true)
	for i := range 5 {
		k.runOut()
		if ended := k.ended(); len(ended) != 0 {
			t.Fatalf("ended after %d renewals: %+v", i, ended)
		}
		k.expect("behind what was captured", upAt(1401, 2, f.ACK, 10), false)
		k.expect("too far ahead", upAt(1402+64<<20+1, 2, f.ACK, 10), false)
		if i%2 == 0 {
			k.expect("ahead", upAt(1402+uint32(i)<<20, 2, f.ACK, 10), true)
		} else {
			k.expect("ahead", downAt(2+uint32(i)<<20, 1402, f.ACK, 10), true)
		}
		k.expect("once renewed, all", upAt(77, 2, f.ACK, 10), true)
	}
	k.runOut()
	k.expect("after five renewals", upAt(1402, 2, f.ACK, 10), false)
	if ended := k.ended(); len(ended) != 1 || ended[0].Ended != EndTime || ended[0].Renewed != 5 {
		t.Errorf("ended: %+v", ended)
	}
	if c := k.counts(); c["renewed"] != 5 {
		t.Errorf("counters %v", c)
	}
}

// A block that its connection may still renew waits for it; the next connection ends it
// all the same.
func TestExpiredBlockDoesNotTakeTheNextConnection(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	k.blockFlow(k.judged(), 30*time.Millisecond)
	k.expect("payload", upAt(1402, 2, f.ACK, 10), true)
	k.runOut()
	// Its numbers are ahead of the old one's, as a stack chooses them.
	for _, p := range after(handshakeAt(60000, 90000), upAt(60001, 90001, f.ACK, 1400)) {
		k.expect("the next connection", p, false)
	}
	if got := k.samples(); len(got) != 1 {
		t.Errorf("%d samples", len(got))
	}
	if ended := k.ended(); len(ended) != 1 || ended[0].Ended != EndNewConnection {
		t.Errorf("ended: %+v", ended)
	}
}

func TestBlocksThatAreNotRenewed(t *testing.T) {
	for name, block := range map[string]func(k *kernel, s *flow.Sample) error{
		"by hand": func(k *kernel, s *flow.Sample) error { return k.Apply(s.Key, drop(30*time.Millisecond, "", "")) },
		"dropped nothing": func(k *kernel, s *flow.Sample) error {
			return k.ApplyFlow(&s.Meta, drop(30*time.Millisecond, "", ""))
		},
	} {
		k := loadKernel(t, config{oneHook: true})
		if err := block(k, k.judged()); err != nil {
			t.Fatal(err)
		}
		if name == "by hand" {
			k.expect("payload", upAt(1402, 2, f.ACK, 10), true)
		}
		k.runOut()
		if ended := k.ended(); len(ended) != 1 || ended[0].Ended != EndTime {
			t.Errorf("%s: ended: %+v", name, ended)
		}
	}
}

// metaOf is a flow of a client to a server, as its number says.
func metaOf(client, server netip.Addr, port int) *flow.Meta {
	key, lo := flow.NewKey(netip.AddrPortFrom(client, uint16(port)), netip.AddrPortFrom(server, 443), flow.TCP, 0, 0)
	return &flow.Meta{Key: key, InitiatorIsLo: lo}
}

// age makes all blocks older.
func (k *kernel) age(by time.Duration) {
	k.t.Helper()
	all := map[datapathFlowKey]datapathBlock{}
	if err := walk(k.blocked, func(key *datapathFlowKey, b *datapathBlock) { all[*key] = *b }); err != nil {
		k.t.Fatal(err)
	}
	for key, b := range all {
		b.SinceNs -= uint64(by)
		if err := k.blocked.Update(&key, &b, ebpf.UpdateExist); err != nil {
			k.t.Fatal(err)
		}
	}
	k.census = census{}
}

func TestFullTableOfBlocksGivesUpWhatDropsNothing(t *testing.T) {
	k := loadKernel(t, config{oneHook: true, blocked: 4})
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }
	block := func(i int) error { return k.ApplyFlow(metaOf(addr(i), server.Addr(), 1000), drop(time.Hour, "", "")) }
	for i := range 4 {
		if err := block(i); err != nil {
			t.Fatal(err)
		}
		k.age(time.Second)
	}
	if err := block(4); !errors.Is(err, unix.E2BIG) {
		t.Errorf("blocks that are not old enough: %v", err)
	}
	k.age(3 * time.Second) // 7, 6, 5 and 4 s old
	k.run(ingress, func() []byte {
		src, dst := netip.AddrPortFrom(addr(0), 1000), netip.AddrPortFrom(server.Addr(), 443)
		return f.Ethernet(f.IP(src, dst, f.TCP, segment(src, dst, f.ACK, nil, 10)))
	}())
	for i, want := range []error{nil, nil, unix.E2BIG} {
		if err := block(4 + i); !errors.Is(err, want) {
			t.Errorf("block %d: %v, want %v", 4+i, err, want)
		}
	}
	ended := k.ended()
	if len(ended) != 2 || ended[0].Ended != EndRoom || ended[0].Key != metaOf(addr(1), server.Addr(), 1000).Key || ended[1].Key != metaOf(addr(2), server.Addr(), 1000).Key {
		t.Errorf("made room: %+v", ended)
	}
	if blocks, err := k.Blocked(); err != nil || len(blocks) != 4 {
		t.Errorf("%d blocks, %v", len(blocks), err)
	}
}

func TestInitiatorMayHaveAQuarterOfAFullTableOfBlocks(t *testing.T) {
	const table = 64
	one, two := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	to := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }
	fill := func(k *kernel) {
		for i := range table * 3 / 4 {
			if err := k.ApplyFlow(metaOf(one, to(i), 1000), drop(time.Hour, "", "")); err != nil {
				t.Fatalf("block %d: %v", i, err)
			}
		}
	}
	k := loadKernel(t, config{oneHook: true, blocked: table})
	fill(k)
	if err := k.ApplyFlow(metaOf(one, to(99), 1000), drop(time.Hour, "", "")); !errors.Is(err, ErrInitiatorQuota) {
		t.Errorf("one more: %v", err)
	}
	if err := k.ApplyFlow(metaOf(two, to(99), 1000), drop(time.Hour, "", "")); err != nil {
		t.Errorf("another initiator: %v", err)
	}
	// By hand it is the operator's will.
	if err := k.Apply(metaOf(one, to(99), 1000).Key, drop(time.Hour, "", "")); err != nil {
		t.Errorf("by hand: %v", err)
	}
	// Addresses of the interface stand for many.
	k = loadKernel(t, config{oneHook: true, blocked: table})
	k.own = func() ([]netip.Addr, error) { return []netip.Addr{one}, nil }
	fill(k)
	if err := k.ApplyFlow(metaOf(one, to(99), 1000), drop(time.Hour, "", "")); err != nil {
		t.Errorf("the interface's own address: %v", err)
	}
	// Hosts of one /64 are one initiator.
	k = loadKernel(t, config{oneHook: true, blocked: table})
	for i := range table * 3 / 4 {
		host := netip.MustParseAddr("2001:db8::1").As16()
		host[15] = byte(i)
		if err := k.ApplyFlow(metaOf(netip.AddrFrom16(host), host6.Addr(), i), drop(time.Hour, "", "")); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.ApplyFlow(metaOf(netip.MustParseAddr("2001:db8::ffff"), host6.Addr(), 1000), drop(time.Hour, "", "")); !errors.Is(err, ErrInitiatorQuota) {
		t.Errorf("another host of the /64: %v", err)
	}
}

// Who can make connections in a neighbour's name, to one server, uses up nothing of what
// the neighbour may have to others.
func TestSpoofedNeighbourKeepsItsQuotaOfBlocks(t *testing.T) {
	const table = 64
	neighbour := netip.MustParseAddr("10.0.0.1")
	k := loadKernel(t, config{oneHook: true, blocked: table})
	for i := range table * 3 / 4 {
		if err := k.ApplyFlow(metaOf(neighbour, server.Addr(), 1000+i), drop(time.Hour, "", "")); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.ApplyFlow(metaOf(neighbour, server.Addr(), 9), drop(time.Hour, "", "")); !errors.Is(err, ErrInitiatorQuota) {
		t.Errorf("the same server: %v", err)
	}
	if err := k.ApplyFlow(metaOf(neighbour, netip.MustParseAddr("198.51.100.1"), 9), drop(time.Hour, "", "")); err != nil {
		t.Errorf("another server: %v", err)
	}
}
