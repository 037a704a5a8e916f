// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Treated is a pair that there was enough evidence for.
type Treated struct {
	flow.Pair
	Rule, Class  string
	Since, Until time.Time
	Seen, Judged int // flows that the rule had detected, and that were judged; 0 if it isn't known
}

func (p *pair) treated() Treated {
	t := &p.treatment
	return Treated{p.Pair, t.rule, t.class, t.since, t.until, t.seen, t.judged}
}

// Treated returns the pairs that are treated at a time, in no order. The policy may be
// another one by then: whether a pair's rule is still there is not asked.
func (s *State) Treated(now time.Time) []Treated {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Treated, 0, s.kinds[treated].Len())
	for e := s.kinds[treated].Front(); e != nil; e = e.Next() {
		if known := e.Value.(*pair); now.Before(known.treatment.until) {
			all = append(all, known.treated())
		}
	}
	return all
}

// TreatmentOf returns how a pair is treated at a time, if it is.
func (s *State) TreatmentOf(p flow.Pair, now time.Time) (t Treated, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.pairs[p]
	if e == nil || e.Value.(*pair).treatment.rule == "" || !now.Before(e.Value.(*pair).treatment.until) {
		return Treated{}, false
	}
	return e.Value.(*pair).treated(), true
}

// Changes is another number whenever Treated may return other pairs than before, but for those
// whose time is over.
func (s *State) Changes() uint64 { return s.changes.Load() }

// Treat takes a treatment over that goes on, as an earlier State has made it. What else is known
// of the pair stays.
func (s *State) Treat(t Treated) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.pairs[t.Pair]
	if e == nil {
		e = s.kinds[treated].PushFront(&pair{Pair: t.Pair, kind: treated})
		s.pairs[t.Pair] = e
	}
	e.Value.(*pair).treatment = treatment{t.Rule, t.Class, t.Since, t.Until, t.Seen, t.Judged}
	s.put(e, treated)
	s.saved = false
	s.changes.Add(1)
}

// Forget forgets all that is known of a pair, so that it takes as much evidence as at first to
// treat it. It reports whether the pair was treated.
func (s *State) Forget(p flow.Pair) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.pairs[p]
	if e == nil {
		return false
	}
	was := e.Value.(*pair).treatment.rule != ""
	s.remove(e)
	s.saved = false
	return was
}
