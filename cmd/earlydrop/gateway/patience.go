// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"time"
)

// How failures that pass are told from those that last.
var (
	lastingAfter  = 2 * time.Second
	tryAgainAfter = 100 * time.Millisecond
)

// patience tells failures that pass from those that last: what fails again and again
// for lastingAfter, with no success in between, lasts. It is for one goroutine.
type patience struct{ since time.Time }

// lasts notes a failure and reports whether it lasts.
func (p *patience) lasts() bool {
	if p.since.IsZero() {
		p.since = time.Now()
	}
	return time.Since(p.since) >= lastingAfter
}

// over notes a success.
func (p *patience) over() { p.since = time.Time{} }

// pause waits, but not longer than ctx lasts.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
