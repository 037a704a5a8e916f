// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"log/slog"
	"sync"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// passed are flows that verdicts let pass and the kernel is to be told of: it takes those of a
// batch in one call. They pass meanwhile, too.
type passed struct {
	mu    sync.Mutex
	flows []passedFlow
	spare []passedFlow // memory
}

type passedFlow struct {
	a   *attachment
	key flow.Key
}

// add has the next write tell the kernel of a flow. Until then it counts as one that the
// classifier has, so that the data path stays.
func (p *passed) add(a *attachment, key flow.Key) {
	a.pending.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flows = append(p.flows, passedFlow{a, key})
}

// write tells the kernel of all that were added, by any goroutine.
func (p *passed) write() {
	p.mu.Lock()
	all := p.flows
	p.flows, p.spare = p.spare[:0], nil
	p.mu.Unlock()
	flows := all
	var keys [64]flow.Key
	for len(flows) > 0 {
		a, n := flows[0].a, 0
		for n < min(len(flows), len(keys)) && flows[n].a == a {
			keys[n] = flows[n].key
			n++
		}
		if err := a.dp.Pass(keys[:n]...); err != nil {
			a.notWritten(err, n)
		}
		a.pending.Add(-n)
		flows = flows[n:]
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spare = all[:0]
}

// notWritten counts verdicts that the kernel was not told of.
func (a *attachment) notWritten(err error, flows int) {
	a.counts[countNotBlocked].Add(uint64(flows))
	a.warnBlock.Do(func() { slog.Warn("verdict not written, the flow passes", "interface", a.iface(), "error", err) })
}
