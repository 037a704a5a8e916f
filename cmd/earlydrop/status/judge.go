// SPDX-License-Identifier: Apache-2.0

package status

import (
	"fmt"
	"slices"
)

// State is how an interface is, in a word.
type State string

// States.
const (
	Well       State = "well"
	Degraded   State = "degraded"   // a daemon works, and something passes unseen that should not
	Unattended State = "unattended" // no daemon works: blocked flows stay blocked, new flows pass
	Gone       State = "gone"       // pins are there, and nothing is attached
	Awaited    State = "waiting"    // a daemon waits for the interface
)

// Worse returns the worse of two states.
func Worse(a, b State) State {
	order := []State{Well, Degraded, Awaited, Unattended, Gone}
	if slices.Index(order, b) > slices.Index(order, a) {
		return b
	}
	return a
}

// A Worry is one thing that is not as it should be.
type Worry struct {
	Kind WorryKind `json:"kind"`
	What string    `json:"what,omitempty"` // the counter or table that it is about
	Text string    `json:"text"`           // one line for people
}

// WorryKind says what a worry is about.
type WorryKind string

// Kinds of worries.
const (
	WorryGone        WorryKind = "gone"         // nothing is attached
	WorryNoDaemon    WorryKind = "no_daemon"    // nobody classifies
	WorryUnreadable  WorryKind = "unreadable"   // captures or tables can't be read
	WorryTableFull   WorryKind = "table_full"   // a table whose entries make no room is nearly full
	WorryPassesNow   WorryKind = "passes_now"   // a counter of what passes unseen grew lately
	WorryPinsRemoved WorryKind = "pins_removed" // somebody removes pins
	WorryDevice      WorryKind = "device"       // a GPU failed, and the CPU classifies
)

// nearlyFull is how much of a table in percent may be used.
const nearlyFull = 90

// passing are the counters that say that something passes that the program should have
// seen, or told of. What they count is normal traffic, which did not fit; what is odd
// about the traffic itself is not in them.
var passing = []string{
	"slots_full", "initiator_slots", "initiator_waiting", "collecting_full", "handshake_busy", "ring_full", "load_failed", // the kernel's
	"queue_full", "not_classified", "not_blocked", "blocked_full", "paused", "events_lost", "pins_restored", // the daemon's
}

// Passing returns of the counters those that Recent is about.
func Passing(counters ...map[string]uint64) map[string]uint64 {
	values := map[string]uint64{}
	for _, of := range counters {
		for _, name := range passing {
			if n, ok := of[name]; ok {
				values[name] = n
			}
		}
	}
	return values
}

// Judge sets State, and Worries to what is worrying as far as it can be seen from the
// rest. Worries that are there already, which others know of, stay, and come after.
func (s *Status) Judge() {
	others := s.Worries
	s.State, s.Worries = Well, []Worry{}
	worry := func(state State, kind WorryKind, what, format string, args ...any) {
		s.State = Worse(s.State, state)
		s.Worries = append(s.Worries, Worry{kind, what, fmt.Sprintf(format, args...)})
	}
	switch {
	case s.Gone:
		worry(Gone, WorryGone, "", "nothing is attached: the interface was removed, or its programs were detached by force")
	case !s.Running:
		worry(Unattended, WorryNoDaemon, "", "no daemon is running: blocked flows stay blocked, new flows pass")
	}
	for _, table := range []struct {
		name       string
		used, size int
		then       string
	}{
		{"blocked", s.Flows.Blocked, s.Capacity.Blocked, "blocks that do not fit are not written, and the flows pass"},
		{"collecting", s.Flows.Collecting, s.Capacity.Collecting, "flows that do not fit pass unseen"},
	} {
		if table.size > 0 && table.used*100 >= table.size*nearlyFull {
			worry(Degraded, WorryTableFull, table.name, "the table %s is %d %% full, %d of %d: %s",
				table.name, table.used*100/table.size, table.used, table.size, table.then)
		}
	}
	for _, name := range passing {
		n := s.Recent[name]
		switch {
		case n == 0:
		case name == "pins_restored":
			worry(Degraded, WorryPinsRemoved, name, "pins were removed by others and put back: %d in the last %.0f s", n, s.RecentSeconds)
		default:
			worry(Degraded, WorryPassesNow, name, "%s grew by %d in the last %.0f s%s", name, n, s.RecentSeconds, s.help(name))
		}
	}
	for _, w := range others {
		if !slices.ContainsFunc(s.Worries, func(have Worry) bool { return have.Kind == w.Kind && have.What == w.What }) {
			s.State = Worse(s.State, Degraded)
			s.Worries = append(s.Worries, w)
		}
	}
}

// help says what a counter counts, after a colon, if that is known.
func (s *Status) help(name string) string {
	for _, c := range s.Rows {
		if c.Name == name && c.Help != "" {
			return ": " + c.Help
		}
	}
	return ""
}
