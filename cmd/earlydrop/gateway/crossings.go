// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"container/list"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

// A flow that crosses two attached interfaces is handed over by both. The first hand-over is
// judged; the second is recognised and passes there, since the flow is dropped at the first.
//
// What is recognised is not judged, so it has to be the same connection. TCP: both
// interfaces have proven it, both initial sequence numbers are the same, which NAT does not
// change, and so are the bytes of both sides as far as both have captured them. UDP: the same
// addresses and ports, and the same datagrams. Whoever can make another flow look like that
// can only have bytes pass that have been judged.

const (
	// crossingTime is how long a flow is remembered after its hand-over. Usually the other
	// one follows within a millisecond; where the ends pause, both wait until they are idle.
	crossingTime = 5 * time.Second
	// mostCrossings bounds the flows that are remembered, of about 1 KB each.
	mostCrossings = 4096
)

// identity is what two hand-overs of one flow have in common, and few others have.
type identity struct {
	initiatorISN, responderISN uint32   // TCP
	key                        flow.Key // UDP
	variant                    bool     // of what came twice, the later bytes
}

// identityOf returns the identity of a flow, and false where it has none that is proven.
func identityOf(m *flow.Meta) (id identity, ok bool) {
	id = identity{variant: m.Variant}
	if m.Key.Proto == flow.UDP {
		id.key = m.Key
		return id, true
	}
	id.initiatorISN, id.responderISN = m.Numbers.InitiatorISN, m.Numbers.ResponderISN
	return id, m.Numbers.ISNKnown && !m.OneWay
}

// sent is what each side has sent, the initiator first, as far as it was captured without
// holes.
type sent [2][]byte

func (p *sent) len() int { return len(p[0]) + len(p[1]) }

// read fills p with what was captured of a flow. Of each datagram, its length comes first.
func (p *sent) read(s *flow.Sample) {
	var next [2]uint32
	if n := &s.Numbers; n.ISNKnown {
		next = [2]uint32{n.InitiatorISN + 1, n.ResponderISN + 1}
	}
	p[0], p[1] = p[0][:0], p[1][:0]
	for i := range s.Packets {
		var h headers.Headers
		frame := s.Frame(i)
		if h.Walk(frame, int(s.Packets[i].WireLen)) != headers.OK || h.PayloadLen == 0 {
			continue
		}
		side := 1
		if s.Packets[i].FromInitiator {
			side = 0
		}
		payload := frame[min(h.Payload, len(frame)):][:h.Captured(len(frame))]
		if h.Proto == flow.UDP {
			p[side] = append(binary.BigEndian.AppendUint16(p[side], uint16(h.PayloadLen)), payload...)
			continue
		}
		seq := h.Seq
		if h.Flags&headers.SYN != 0 {
			seq++
		}
		// What is in front of the next byte was sent before, what is behind it has a hole in
		// front.
		if known := int(int32(next[side] - seq)); known >= 0 && known < len(payload) {
			p[side] = append(p[side], payload[known:]...)
			next[side] += uint32(len(payload) - known)
		}
	}
}

// sighting is a flow as one interface sees it.
type sighting struct {
	at  *attachment
	key flow.Key
}

// crossing is a flow that was handed over and judged.
type crossing struct {
	id       identity
	judged   sighting
	others   []sighting // where it was recognised
	sent     sent
	middle   bool // it was judged as the middle of a flow, of which rules treat less
	complete bool // nothing more is captured of it
	time     time.Time
	place    *list.Element
}

// common returns how many bytes were captured both there and here, and whether they are the
// same.
func (c *crossing) common(p *sent) (n int, same bool) {
	for side, judged := range c.sent {
		both := min(len(judged), len(p[side]))
		if !bytes.Equal(judged[:both], p[side][:both]) {
			return 0, false
		}
		n += both
	}
	return n, true
}

// isMiddle reports whether a capture is judged as the middle of a flow.
func isMiddle(m *flow.Meta) bool { return m.MidStream || m.Resumed }

// covers reports whether all that another interface has captured of a flow was judged, and as
// what it is there.
func (c *crossing) covers(p *sent, middle bool) bool {
	n, same := c.common(p)
	if c.middle && !middle {
		return false
	}
	if c.complete {
		// Headers may be longer at one interface (a VLAN tag) and segments at the other (what
		// a network card divides later), so that not as much of both sides fits in.
		return same && 4*n >= 3*p.len()
	}
	return same && n == p.len()
}

// isPart reports whether another interface has captured all that was judged, and perhaps more.
func (c *crossing) isPart(p *sent) bool {
	n, same := c.common(p)
	return same && n == c.sent.len()
}

// allows reports whether a sighting may be this flow: it is at one interface once.
func (c *crossing) allows(s sighting) bool {
	if c.judged.at == s.at {
		return false
	}
	for _, other := range c.others {
		if other.at == s.at && other.key != s.key {
			return false
		}
	}
	return true
}

// crossings remembers flows that were handed over. It is safe for concurrent use.
type crossings struct {
	mu    sync.Mutex
	flows map[identity][]*crossing
	order *list.List // of *crossing, the oldest first
	free  []*crossing
}

func newCrossings() *crossings {
	return &crossings{flows: map[identity][]*crossing{}, order: list.New()}
}

// meet notes a flow that was handed over now. It returns where it was judged before, else
// nil; then c is what is remembered of it, to be forgotten if it is not judged after all.
// early is how many were forgotten before their time.
func (x *crossings) meet(here sighting, m *flow.Meta, p *sent, now time.Time) (before *sighting, c *crossing, early int) {
	id, ok := identityOf(m)
	if !ok || m.Key.Proto == flow.UDP && p.len() == 0 {
		return nil, nil, 0
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for e := x.order.Front(); e != nil && now.Sub(e.Value.(*crossing).time) > crossingTime; e = x.order.Front() {
		x.remove(e.Value.(*crossing))
	}
	middle := isMiddle(m)
	c, again := x.find(here, id, p, middle)
	switch {
	case c == nil:
		if x.order.Len() >= mostCrossings {
			x.remove(x.order.Front().Value.(*crossing))
			early = 1
		}
		c = x.add(id)
	case !again && c.covers(p, middle):
		if !slices.Contains(c.others, here) {
			c.others = append(c.others, here)
		}
		judged := c.judged
		return &judged, nil, 0
	case !again:
		// More was captured here: this is judged, too, and then it is the other that sees
		// nothing new.
		c.others = append(slices.DeleteFunc(c.others, func(s sighting) bool { return s == here }), c.judged)
	}
	c.judged, c.complete, c.middle, c.time = here, !m.Provisional, middle, now
	for side := range p {
		c.sent[side] = append(c.sent[side][:0], p[side]...)
	}
	x.order.MoveToBack(c.place)
	return nil, c, early
}

// find returns the flow that was handed over before which this one may be, nil if there is
// none. again says that the same interface goes on with it.
func (x *crossings) find(here sighting, id identity, p *sent, middle bool) (c *crossing, again bool) {
	all := x.flows[id]
	for _, c := range all {
		if c.judged == here {
			return c, true
		}
	}
	for _, c := range all {
		if c.judged.key == here.key && c.allows(here) {
			return c, false
		}
	}
	// By other addresses, it has to be another flow at none of the interfaces: one that was
	// recognised elsewhere by these addresses is not changed on its way here.
	for _, c := range all {
		if slices.ContainsFunc(c.others, func(s sighting) bool { return s.key == here.key && s.at != here.at }) {
			return nil, false
		}
	}
	for _, c := range all {
		if c.allows(here) && (c.covers(p, middle) || c.isPart(p)) {
			return c, false
		}
	}
	return nil, false
}

func (x *crossings) add(id identity) *crossing {
	c := new(crossing)
	if n := len(x.free); n > 0 {
		c, x.free = x.free[n-1], x.free[:n-1]
	}
	c.id, c.others = id, c.others[:0]
	c.place = x.order.PushBack(c)
	x.flows[id] = append(x.flows[id], c)
	return c
}

func (x *crossings) remove(c *crossing) {
	x.order.Remove(c.place)
	c.place = nil
	if rest := slices.DeleteFunc(x.flows[c.id], func(other *crossing) bool { return other == c }); len(rest) > 0 {
		x.flows[c.id] = rest
	} else {
		delete(x.flows, c.id)
	}
	x.free = append(x.free, c)
}

// forget takes back what meet has remembered at that interface.
func (x *crossings) forget(c *crossing, at *attachment) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if c.place != nil && c.judged.at == at {
		x.remove(c)
	}
}

// end forgets what was judged at an interface that is not attached any more: nothing is
// dropped there.
func (x *crossings) end(at *attachment) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for e := x.order.Front(); e != nil; {
		c := e.Value.(*crossing)
		e = e.Next()
		if c.judged.at == at {
			x.remove(c)
		}
	}
}

// recognise reports whether a capture is of a flow that another interface handed over first.
// Then the flow passes here. If not, c is what is remembered of it.
func (a *attachment) recognise(s *flow.Sample) (c *crossing, recognised bool) {
	g := a.gateway
	if g.several.Load() < 2 {
		return nil, false
	}
	a.sent.read(s)
	before, c, early := g.crossings.meet(sighting{a, s.Key}, &s.Meta, &a.sent, time.Now())
	a.counts[countCrossingsForgotten].Add(uint64(early))
	if before == nil {
		return c, false
	}
	a.counts[countCrossed].Add(1)
	if err := a.dp.Pass(s.Key); err != nil {
		a.notWritten(err, 1)
	}
	if translated(before.key, s.Key) {
		g.adviseNAT(*before, sighting{a, s.Key})
	}
	return nil, true
}

// translated reports whether the ends have other addresses or ports.
func translated(a, b flow.Key) bool { return a.Lo != b.Lo || a.Hi != b.Hi }

// adviseNAT says, once for two interfaces, that addresses are translated between them.
func (g *Gateway) adviseNAT(a, b sighting) {
	one, other := a.at.iface(), b.at.iface()
	if _, said := g.natSaid.LoadOrStore([2]string{min(one, other), max(one, other)}, true); said {
		return
	}
	inside := "the one with the hosts' own addresses"
	switch {
	case isOutside(one, a.key, b.key):
		inside = other
	case isOutside(other, b.key, a.key):
		inside = one
	}
	slog.Warn("addresses are translated (NAT) between two attached interfaces: each flow is judged once, by the addresses of whichever hands it over first; attach to the inner one alone to have blocks and events by the hosts' own addresses",
		"interfaces", one+" "+other, "inner", inside)
}

// isOutside reports whether an address of a flow at an interface that the flow does not have
// at the other one is the interface's own: it is the one that hides others.
func isOutside(iface string, here, there flow.Key) bool {
	i, err := net.InterfaceByName(iface)
	if err != nil {
		return false
	}
	own, err := i.Addrs()
	if err != nil {
		return false
	}
	for _, a := range own {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		addr := prefix.Addr().Unmap().WithZone("")
		has := func(k flow.Key) bool { return k.Lo.Addr() == addr || k.Hi.Addr() == addr }
		if has(here) && !has(there) {
			return true
		}
	}
	return false
}
