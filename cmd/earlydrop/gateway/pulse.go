// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"sync/atomic"
	"time"
)

// pulse is when a part of the gateway has last moved.
type pulse struct{ at atomic.Int64 }

func (p *pulse) beat() { p.at.Store(time.Now().UnixNano()) }

func (p *pulse) age() time.Duration { return time.Since(time.Unix(0, p.at.Load())) }

// Stalled says what has not moved for so long although it should have, and nothing where all
// does: an interface whose regular work is not done, or the classifier while captures wait
// for it. It is meant to be called again and again, several times within that time. Safe for
// concurrent use.
func (g *Gateway) Stalled(after time.Duration) string {
	if g.config.Engine.Waiting() == 0 {
		g.classified.beat()
	}
	if g.classified.age() > after {
		return "the classifier"
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range g.attached {
		if a.tidied.age() > after {
			return "the work on " + a.iface()
		}
	}
	return ""
}
