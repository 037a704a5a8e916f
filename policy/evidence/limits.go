// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"container/list"
	"net/netip"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

const (
	// onceIn is how long an initiator counts once.
	onceIn = time.Hour
	// shareFrom is how many initiators there have to be for a share of them to say anything.
	shareFrom = 8
	// maxInitiators bounds how many are remembered, some 15 MB.
	maxInitiators = 1 << 16
)

// Alert says that a limit was reached, so that what rules do without evidence pauses.
type Alert struct {
	Time   time.Time // of the capture's clock
	Source flow.Source
	Limit  string // "flows" or "share"
	// Proven is true where it is about connections whose handshake both ends have made, and
	// false where about others, whose initiators may be forged. Each has limits of its own, so
	// that nobody can have treatments of the first kind paused by forged packets.
	Proven bool
	// Initiators were judged within the last hour, and flows of Treated of them treated.
	Initiators, Treated int
	Until               time.Time
}

// breaker has what limits are about.
type breaker struct {
	initiators map[netip.Prefix]*list.Element // of *initiator
	judged     list.List                      // all of them, the latest first
	treated    list.List                      // of *initiator: those that count as treated, the latest first
	until      time.Time                      // rules pause
}

type initiator struct {
	prefix  netip.Prefix
	judged  time.Time // the latest flow
	counted time.Time // as treated
	treated *list.Element
}

// withinLimits notes the flow, and returns the decision, which is to pass where a limit is
// reached. The alert is empty unless that has just happened.
func (s *State) withinLimits(p *policy.Policy, m *flow.Meta, d policy.Decision) (policy.Decision, Alert) {
	b, now := &s.limits[0], verdictTime(m)
	if m.Proven() {
		b = &s.limits[1]
	}
	who := b.note(flow.Household(m.Initiator().Addr()), now)
	if !d.Action.Blocks() || d.Scope == flow.ScopePair {
		return d, Alert{} // it is not treated, or on evidence
	}
	var alert Alert
	if !now.Before(b.until) {
		limit := b.count(who, now, &p.Limits)
		if limit == "" {
			return d, Alert{}
		}
		alert = Alert{Time: now, Source: m.Source, Limit: limit, Proven: m.Proven(), Initiators: b.judged.Len(), Treated: b.treated.Len(), Until: now.Add(policy.PauseTime)}
		s.counts.limitsReached++
		s.saved = false
		b.pause(alert.Until)
	}
	s.counts.paused++
	d.Pass(policy.ReasonPaused)
	return d, alert
}

// note notes that a flow of an initiator was judged, and forgets what was an hour ago.
func (b *breaker) note(prefix netip.Prefix, now time.Time) *initiator {
	if b.initiators == nil {
		b.initiators = map[netip.Prefix]*list.Element{}
	}
	e := b.initiators[prefix]
	if e == nil {
		e = b.judged.PushFront(&initiator{prefix: prefix})
		b.initiators[prefix] = e
	} else {
		b.judged.MoveToFront(e)
	}
	who := e.Value.(*initiator)
	who.judged = now
	for last := b.treated.Back(); last != nil && now.Sub(last.Value.(*initiator).counted) >= onceIn; last = b.treated.Back() {
		b.uncount(last)
	}
	for last := b.judged.Back(); last != e && (b.judged.Len() > maxInitiators || now.Sub(last.Value.(*initiator).judged) >= onceIn); last = b.judged.Back() {
		old := last.Value.(*initiator)
		if old.treated != nil {
			b.uncount(old.treated)
		}
		delete(b.initiators, old.prefix)
		b.judged.Remove(last)
	}
	return who
}

func (b *breaker) uncount(e *list.Element) {
	e.Value.(*initiator).treated = nil
	b.treated.Remove(e)
}

// count counts an initiator of which a flow is to be treated, and returns the limit that is
// reached by it, if one is.
func (b *breaker) count(who *initiator, now time.Time, limits *policy.Limits) string {
	if who.treated != nil {
		return "" // once an hour
	}
	who.counted = now
	who.treated = b.treated.PushFront(who)
	if limits.Flows > 0 {
		n := 0
		for e := b.treated.Front(); e != nil && now.Sub(e.Value.(*initiator).counted) < limits.Per; e = e.Next() {
			if n++; n > limits.Flows {
				return "flows"
			}
		}
	}
	if all := b.judged.Len(); limits.Share > 0 && all >= shareFrom && float64(b.treated.Len())/float64(all) > limits.Share {
		return "share"
	}
	return ""
}

// pause begins a pause, after which counting begins anew.
func (b *breaker) pause(until time.Time) {
	b.until = until
	for e := b.treated.Front(); e != nil; e = b.treated.Front() {
		b.uncount(e)
	}
}
