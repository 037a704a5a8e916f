// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
)

// Lately is at least the last recentSpan: counters are kept once in recentEvery.
const (
	recentSpan  = time.Minute
	recentEvery = 5 * time.Second
	// ratesOver is at least how long a time rates are of, where there was one.
	ratesOver = 3 * time.Second
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
	totals status.Totals
}

// due reports whether it is time to note counters again.
func (r *recent) due(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.kept) == 0 || now.Sub(r.kept[len(r.kept)-1].at) >= recentEvery
}

// note keeps counters, and forgets those that are too old.
func (r *recent) note(now time.Time, values map[string]uint64, totals status.Totals) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept = append(r.kept, pastCounts{now, values, totals})
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

// rates returns how fast totals grew in the last seconds, nil where that is not known yet.
func (r *recent) rates(now time.Time, totals status.Totals) *status.Rates {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := len(r.kept) - 1; i >= 0; i-- {
		if took := now.Sub(r.kept[i].at); took >= ratesOver || i == 0 {
			return totals.Since(r.kept[i].totals, took)
		}
	}
	return nil
}

// noteRecent notes the attachment's counters where it is due.
func (a *attachment) noteRecent() {
	now := time.Now()
	if !a.recent.due(now) {
		return
	}
	if kernel, err := a.dp.Counters(); err == nil {
		var traffic *loader.Traffic
		if t, err := a.dp.Traffic(); err == nil {
			traffic = &t
		}
		of, daemon := kernel.Values(), a.counts.list().Values()
		a.recent.note(now, status.Passing(of, daemon), status.NewTotals(daemon, of, traffic))
	}
}
