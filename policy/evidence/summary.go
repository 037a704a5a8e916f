// SPDX-License-Identifier: Apache-2.0

package evidence

import "time"

// Summary is how much a State knows.
type Summary struct {
	// Pairs of which no flow was detected, of which one was, and that are or were treated,
	// with how many of each are remembered at most.
	Clean, Suspect, Treated             int
	RoomClean, RoomSuspect, RoomTreated int
	LimitsReached                       uint64
	// Rules pause until then: for flows that prove nothing about their initiator, and for
	// others. Zero where no limit was reached.
	UnprovenUntil, Until time.Time
}

// Summary returns how much is known.
func (s *State) Summary() Summary {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Summary{
		Clean: s.kinds[clean].Len(), Suspect: s.kinds[suspect].Len(), Treated: s.kinds[treated].Len(),
		RoomClean: s.room(clean), RoomSuspect: s.room(suspect), RoomTreated: s.room(treated),
		LimitsReached: s.counts.limitsReached, UnprovenUntil: s.limits[0].until, Until: s.limits[1].until,
	}
}
