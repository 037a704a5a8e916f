// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"sync/atomic"

	"github.com/earlydrop/earlydrop/loader"
)

// countID names what the daemon counts. A new counter is a name here and a row of
// countNames: status, the summary and the map daemon_counters have it then.
type countID int

const (
	countClassified countID = iota
	countToDrop
	countBlocked
	countQueueFull
	countNotClassified
	countNotBlocked
	countBlockedFull
	countPassesLeftOut
	countEventsLost
	countPinsRestored
	countCrossed
	countCrossingsForgotten
	countPairs
	countPairFlows
	countPairsNotWritten
	countForgotten
	countShadowed
	countDisagreed
	countShadowSkipped
	countPaused
	countOnSpare

	numCounts
)

var countNames = [numCounts]struct{ name, help string }{
	countClassified:         {"classified", "flows that got a verdict"},
	countToDrop:             {"to_drop", "verdicts that a rule wants dropped, reset or limited, in mode monitor as well"},
	countBlocked:            {"blocked", "blocks that were written"},
	countQueueFull:          {"queue_full", "flows that pass because the classifier was behind"},
	countNotClassified:      {"not_classified", "flows that pass because their capture or the model failed"},
	countNotBlocked:         {"not_blocked", "verdicts that could not be written: the flow passes"},
	countBlockedFull:        {"blocked_full", "blocks that could not be written because the table was full"},
	countPassesLeftOut:      {"passes_left_out", "verdicts on undetected flows that the events left out as asked"},
	countEventsLost:         {"events_lost", "events that were not written because the output was too slow"},
	countCrossed:            {"crossed", "flows that another attached interface handed over first: they were judged there"},
	countCrossingsForgotten: {"crossings_forgotten", "flows that were forgotten so early that another attached interface may have had them judged again"},
	countPinsRestored:       {"pins_restored", "pins that others had removed and that were put back"},
	countPairs:              {"pairs_treated", "pairs of initiator and server that there was enough evidence for, in mode monitor as well"},
	countPairFlows:          {"pair_flows", "verdicts on flows that began while their pair was treated"},
	countPairsNotWritten:    {"pairs_not_written", "pairs that the kernel could not be told to treat, mostly as its table was full: their flows are treated by their verdicts"},
	countForgotten:          {"evidence_forgotten", "pairs that others pushed out, so that what was known of them is lost"},
	countShadowed:           {"shadowed", "flows that the second model judged as well"},
	countDisagreed:          {"shadow_disagreed", "of those, flows that it named otherwise, or that the policy would then treat otherwise"},
	countShadowSkipped:      {"shadow_skipped", "flows that it did not judge, as there was no time for it or it failed"},
	countOnSpare:            {"on_spare_device", "verdicts that the CPU computed because the GPU had failed"},
	countPaused:             {"paused", "verdicts that pass since a limit of the policy was reached"},
}

// counts are the daemon's counters; safe for concurrent use.
type counts [numCounts]atomic.Uint64

// list returns them as they are now.
func (c *counts) list() loader.Counters {
	list := make(loader.Counters, numCounts)
	for i, n := range countNames {
		list[i] = loader.Counter{Name: n.name, Help: n.help, Value: c[i].Load()}
	}
	return list
}

// KnownCounters returns what a gateway counts for an interface, in the order in which
// people are told of it, each with value 0.
func KnownCounters() loader.Counters { return new(counts).list() }
