// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

const (
	// maxLeaders is how many pairs, servers and initiators are counted, each by detected flows
	// and by dropped bytes: 3 MB at most.
	maxLeaders = 2048
	// maxLatest is how many verdicts are kept, on detected flows and on others: 1 MB at most.
	maxLatest = 256
	// walkedFor is how long one walk of the blocks serves all who ask.
	walkedFor = time.Second
)

// subject is what a list is about: a pair, or one end of it. What is not of the list is zero.
type subject struct {
	flow.Pair
	proto flow.Proto
}

// numLists is how many lists there are: pairs, servers, initiators.
const numLists = 3

// subjectsOf returns what a flow counts for, in each list.
func subjectsOf(m *flow.Meta) [numLists]subject {
	return subjectsOfPair(m.Pair(), m.Key.Proto)
}

func subjectsOfPair(p flow.Pair, proto flow.Proto) [numLists]subject {
	pair := subject{p, proto}
	server, initiator := pair, pair
	server.Initiator = netip.Prefix{}
	initiator.Server, initiator.proto = netip.AddrPort{}, 0
	return [numLists]subject{pair, server, initiator}
}

// detections are what came of the detected flows of a subject, and drops what its blocks
// dropped that are over.
type (
	detections struct {
		blocked            uint64
		iface, class, rule string // of the latest
		last               time.Time
	}
	drops struct{ packets uint64 }
)

// tops knows who is detected and dropped most, and the latest verdicts. It costs the verdict
// on a flow that passes undetected no more than a pointer, and only where that became an event.
// It is safe for concurrent use.
type tops struct {
	mu       sync.Mutex
	detected [numLists]*leaders[subject, detections]
	dropped  [numLists]*leaders[subject, drops] // by bytes
	latest   [2]ring                            // of flows that pass undetected, and of others

	walking sync.Mutex // of what follows
	inForce [numLists]inForces
	walked  time.Time
}

// inForce is what the blocks of a subject, and the pairs that the kernel treats, have dropped that
// are there.
type inForce struct {
	blocks, pairs  int
	packets, bytes uint64
}

// inForces are those of a list.
type inForces map[subject]*inForce

func (all inForces) at(s subject) *inForce {
	of := all[s]
	if of == nil {
		of = new(inForce)
		all[s] = of
	}
	return of
}

func newTops() *tops {
	t := new(tops)
	for i := range numLists {
		t.detected[i], t.dropped[i] = newLeaders[subject, detections](maxLeaders), newLeaders[subject, drops](maxLeaders)
	}
	return t
}

// note counts a detected flow.
func (t *tops) note(m *flow.Meta, d *policy.Decision, blocked bool, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, s := range subjectsOf(m) {
		of := t.detected[i].add(s, 1)
		of.iface, of.class, of.rule, of.last = m.Source.Interface, d.Class, d.Rule, at
		if blocked {
			of.blocked++
		}
	}
}

// noteBlocked counts the block of a flow that was counted before.
func (t *tops) noteBlocked(m *flow.Meta) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, s := range subjectsOf(m) {
		t.detected[i].add(s, 0).blocked++
	}
}

// noteEndedPair counts the SYNs that a pair dropped that is over.
func (t *tops) noteEndedPair(p *loader.Pair) {
	if p.Packets == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, s := range subjectsOfPair(p.Pair, flow.TCP) {
		t.dropped[i].add(s, p.Bytes).packets += p.Packets
	}
}

// noteEnded counts what a block dropped that is over.
func (t *tops) noteEnded(b *loader.Block) {
	if b.Packets == 0 {
		return
	}
	m := metaOf(b)
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, s := range subjectsOf(&m) {
		t.dropped[i].add(s, b.Bytes).packets += b.Packets
	}
}

// metaOf returns who opened the flow of a block. A block by hand does not know: its lower port
// is taken for the server's.
func metaOf(b *loader.Block) flow.Meta {
	m := flow.Meta{Key: b.Key, InitiatorIsLo: b.InitiatorIsLo}
	if b.ByHand() {
		m.InitiatorIsLo = b.Key.Lo.Port() > b.Key.Hi.Port()
	}
	return m
}

// keep keeps a verdict as one of the latest. It must not be changed any more.
func (t *tops) keep(v *event.Verdict) {
	of := 0
	if v.Detected {
		of = 1
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.latest[of].put(v)
}

// ring has the latest verdicts.
type ring struct {
	kept [maxLatest]*event.Verdict
	next int
}

func (r *ring) put(v *event.Verdict) {
	r.kept[r.next] = v
	r.next = (r.next + 1) % maxLatest
}

// list returns the n latest, the latest first.
func (r *ring) list(n int) (list []*event.Verdict) {
	for i := range min(n, maxLatest) {
		v := r.kept[(r.next-1-i+maxLatest)%maxLatest]
		if v == nil {
			break
		}
		list = append(list, v)
	}
	return list
}

// Top returns one look at all there is, with so many of each list: twice as many where those
// with the most detected flows and those with the most dropped bytes are others. It walks the
// maps as Report does.
func (g *Gateway) Top(n int) (*status.Top, error) {
	r, err := g.Report()
	if err != nil {
		return nil, err
	}
	top := &status.Top{Report: *r}
	walked, err := g.blocksInForce()
	if err != nil {
		return nil, err
	}
	t := g.tops
	t.mu.Lock()
	defer t.mu.Unlock()
	top.Pairs, top.Servers, top.Initiators = t.list(0, n, walked[0]), t.list(1, n, walked[1]), t.list(2, n, walked[2])
	top.Latest = slices.Concat([]*event.Verdict{}, t.latest[0].list(n), t.latest[1].list(n))
	slices.SortStableFunc(top.Latest, func(a, b *event.Verdict) int { return b.Time.Compare(a.Time) })
	return top, nil
}

// blocksInForce returns what the blocks dropped that are there, as it was a second ago at most.
func (g *Gateway) blocksInForce() ([numLists]inForces, error) {
	t := g.tops
	t.walking.Lock()
	defer t.walking.Unlock()
	if time.Since(t.walked) < walkedFor {
		return t.inForce, nil
	}
	var of [numLists]inForces
	for i := range of {
		of[i] = inForces{}
	}
	groups := map[*loader.Group]bool{} // that have their blocks in common
	err := g.each(func(a *attachment) error {
		if group := a.asked.Group; group != nil {
			if groups[group] {
				return nil
			}
			groups[group] = true
		}
		pairs, errOfPairs := a.dp.Pairs()
		for i := range pairs {
			for k, s := range subjectsOfPair(pairs[i].Pair, flow.TCP) {
				sum := of[k].at(s)
				sum.pairs++
				sum.packets += pairs[i].Packets
				sum.bytes += pairs[i].Bytes
			}
		}
		blocks, err := a.dp.Blocked()
		for i := range blocks {
			m := metaOf(&blocks[i])
			for k, s := range subjectsOf(&m) {
				sum := of[k].at(s)
				sum.blocks++
				sum.packets += blocks[i].Packets
				sum.bytes += blocks[i].Bytes
			}
		}
		return errors.Join(err, errOfPairs)
	})
	if err == nil {
		t.inForce, t.walked = of, time.Now()
	}
	return of, err
}

// list returns a list: those n with the most detected flows, and those n with the most dropped
// bytes. The caller has t.mu.
func (t *tops) list(which, n int, walked inForces) []status.Leader {
	detected, dropped := t.detected[which], t.dropped[which]
	chosen := map[subject]bool{}
	for _, e := range detected.top(n) {
		chosen[e.key] = true
	}
	type bytes struct {
		subject
		n uint64
	}
	var most []bytes
	for s, of := range walked {
		if e := dropped.of[s]; e != nil {
			most = append(most, bytes{s, e.has() + of.bytes})
		} else {
			most = append(most, bytes{s, of.bytes})
		}
	}
	for s, e := range dropped.of {
		if walked[s] == nil {
			most = append(most, bytes{s, e.has()})
		}
	}
	slices.SortFunc(most, func(a, b bytes) int { return cmp.Compare(b.n, a.n) })
	for _, s := range most[:min(n, len(most))] {
		chosen[s.subject] = true
	}
	list := make([]status.Leader, 0, len(chosen))
	for s := range chosen {
		list = append(list, t.leader(s, detected.of[s], dropped.of[s], walked[s]))
	}
	slices.SortFunc(list, func(a, b status.Leader) int {
		return cmp.Or(cmp.Compare(b.Detected, a.Detected), cmp.Compare(b.DroppedBytes, a.DroppedBytes), b.Last.Compare(a.Last),
			a.Initiator.Compare(b.Initiator), a.Server.Compare(b.Server), cmp.Compare(a.VLAN, b.VLAN), cmp.Compare(a.InnerVLAN, b.InnerVLAN))
	})
	return list
}

// leader tells of a subject. Of what is nil, nothing is known.
func (t *tops) leader(s subject, detected *leader[subject, detections], dropped *leader[subject, drops], walked *inForce) status.Leader {
	l := status.Leader{Initiator: s.Initiator, Server: s.Server, VLAN: s.VLAN, InnerVLAN: s.InnerVLAN}
	if s.proto != 0 {
		l.Proto = s.proto.String()
	}
	if detected != nil {
		of := &detected.value
		l.Detected, l.DetectedMissed, l.Blocked = detected.has(), detected.missed, of.blocked
		l.Interface, l.Class, l.Rule, l.Last = of.iface, of.class, of.rule, of.last
	}
	if dropped != nil {
		l.DroppedPackets, l.DroppedBytes, l.DroppedBytesMissed = dropped.value.packets, dropped.has(), dropped.missed
	}
	if walked != nil {
		l.Blocks, l.Treated = walked.blocks, walked.pairs
		l.DroppedPackets += walked.packets
		l.DroppedBytes += walked.bytes
	}
	return l
}
