// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Known is what is known of a pair of which a flow was detected.
type Known struct {
	flow.Pair
	// Detected of the Judged latest flows were detected, by any rule with evidence.
	Detected, Judged int
	Last             time.Time // verdict
	// Rule treats the pair until Until, whether or not a flow comes. It is empty where none does.
	Rule         string
	Class        string
	Since, Until time.Time
}

// Known returns what is known of pairs that fits is true for, as far as a flow of them was
// detected: those that are treated first, and of each kind the latest first; at most so many.
// A treatment counts as over at now. It looks at some ten thousand pairs, and holds up Decide
// for a millisecond or two.
func (s *State) Known(now time.Time, most int, fits func(*flow.Pair) bool) (all []Known) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kind := range []kind{treated, suspect} {
		for e := s.kinds[kind].Front(); e != nil && len(all) < most; e = e.Next() {
			p := e.Value.(*pair)
			if !fits(&p.Pair) {
				continue
			}
			k := Known{Pair: p.Pair, Judged: len(p.flows)}
			for i := range p.flows {
				if p.flows[i].rules != 0 {
					k.Detected++
				}
				if at := time.Unix(0, p.flows[i].at); at.After(k.Last) {
					k.Last = at
				}
			}
			if t := &p.treatment; t.rule != "" && now.Before(t.until) {
				k.Rule, k.Class, k.Since, k.Until = t.rule, t.class, t.since, t.until
			}
			all = append(all, k)
		}
	}
	return all
}
