// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
)

// reloads counts them. It is safe for concurrent use.
type reloads struct {
	mu sync.Mutex
	status.Reloads
}

// note counts one.
func (r *reloads) note(done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !done {
		r.Failed++
		return
	}
	r.Done++
	r.Last = time.Now()
}

func (r *reloads) counts() status.Reloads {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.Reloads
}

// describe adds to a report what is the gateway's own, and not an interface's.
func (g *Gateway) describe(r *status.Report) {
	c, j, now := &g.config, g.judge.Load(), time.Now()
	r.Time, r.Since = now, g.began
	r.Model, r.ModelDigest = j.model, c.Engine.Manifest().Digest
	r.Policy, r.PolicyDigest = c.PolicyName, j.policy.Digest
	r.Queue = status.Fill{Used: c.Engine.Waiting(), Size: c.Engine.Queue()}
	if n, times := g.inference.times(now); n > 0 {
		r.Inference = &status.Inference{Batches: n, Times: times}
	}
	r.InferenceTimes = g.inference.histogram()
	known := c.Evidence.Summary()
	r.Evidence = status.Evidence{
		Undetected:    status.Fill{Used: known.Clean, Size: known.RoomClean},
		Detected:      status.Fill{Used: known.Suspect, Size: known.RoomSuspect},
		Treated:       status.Fill{Used: known.Treated, Size: known.RoomTreated},
		LimitsReached: known.LimitsReached, PausedUntil: known.Until, PausedUnprovenUntil: known.UnprovenUntil,
	}
	r.Reloads = g.reloads.counts()
}
