// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
)

// Lately is at least the last recentSpan: counters are kept once in recentEvery.
const (
	recentSpan  = time.Minute
	recentEvery = 5 * time.Second
)

// recent keeps what the counters were, to tell by how much they grew. It is safe for
// concurrent use.
type recent struct {
	mu   sync.Mutex
	kept []pastCounts // the oldest first
}

type pastCounts struct {
	at     time.Time
	values map[string]uint64
}

// due reports whether it is time to note counters again.
func (r *recent) due(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.kept) == 0 || now.Sub(r.kept[len(r.kept)-1].at) >= recentEvery
}

// note keeps counters, and forgets those that are too old.
func (r *recent) note(now time.Time, values map[string]uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept = append(r.kept, pastCounts{now, values})
	for len(r.kept) > 1 && now.Sub(r.kept[1].at) >= recentSpan {
		r.kept = r.kept[1:]
	}
}

// growth returns by how much each counter that grew did lately, and how long that is.
func (r *recent) growth(now time.Time, values map[string]uint64) (grown map[string]uint64, span time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.kept) == 0 {
		return nil, 0
	}
	first := &r.kept[0]
	for name, n := range values {
		if was := first.values[name]; n > was {
			if grown == nil {
				grown = map[string]uint64{}
			}
			grown[name] = n - was
		}
	}
	return grown, now.Sub(first.at)
}

// noteRecent notes the attachment's counters where it is due.
func (a *attachment) noteRecent() {
	now := time.Now()
	if !a.recent.due(now) {
		return
	}
	if kernel, err := a.dp.Counters(); err == nil {
		a.recent.note(now, status.Passing(kernel.Values(), a.counts.list().Values()))
	}
}
