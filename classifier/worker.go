// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"slices"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// work computes what is submitted, and hands it over, until the engine is closed.
func (e *Engine) work() {
	var w workspace
	for {
		n := e.network.Load() // the batch may be computed with the next one
		w.batch = e.nextBatch(slices.Grow(w.batch[:0], n.limits.Batch)[:0:n.limits.Batch])
		if len(w.batch) == 0 {
			return
		}
		select {
		case e.room <- struct{}{}:
		default: // nobody has taken the last one
		}
		e.compute(&w)
	}
}

// workspace is the memory of a worker.
type workspace struct {
	batch   []task
	samples []*flow.Sample
	results []flow.Result
}

// compute computes a batch, and hands it over, with one network.
func (e *Engine) compute(w *workspace) {
	e.computing.RLock()
	defer e.computing.RUnlock()
	w.samples = w.samples[:0]
	for _, t := range w.batch {
		w.samples = append(w.samples, t.sample)
	}
	for len(w.results) < len(w.batch) {
		w.results = append(w.results, flow.Result{})
	}
	n := e.network.Load()
	select {
	case <-e.stop:
		// What waited when the engine was closed passes unclassified.
		e.handOver(w.batch, w.results, ErrClosed)
		return
	default:
	}
	// More than one run only where a network was swapped for one of smaller batches.
	for from := 0; from < len(w.batch); from += n.limits.Batch {
		to := min(from+n.limits.Batch, len(w.batch))
		e.computePart(n, <-n.buffers, w, from, to)
	}
}

// computePart computes a part of a batch, at most Limits.Batch, in a buffer of the network,
// to which it gives it back, and hands it over.
func (e *Engine) computePart(n *Network, b *buffer, w *workspace, from, to int) {
	begun := time.Now()
	err := e.infer(n, n.render(w.samples[from:to], b), b, w.results[from:to])
	if told := e.computed.Load(); told != nil {
		(*told)(to-from, time.Since(begun))
	}
	n.buffers <- b
	e.handOver(w.batch[from:to], w.results[from:to], err)
}

// ComputeNow computes a sample in the caller's goroutine and calls handler, if nothing waits
// and the network has a run to spare: that is sooner than with Submit, which wakes another
// goroutine. It returns true then, and the sample was taken back as Put does. It returns
// false at once, and the sample stays the caller's, if there is something to wait for, the
// engine is closed, or the network has a spare: its device may take its time, or hang.
func (e *Engine) ComputeNow(s *flow.Sample, handler Handler) bool {
	if e.Waiting() > 0 {
		return false
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed || !e.computing.TryRLock() { // a Swap is under way
		return false
	}
	defer e.computing.RUnlock()
	n := e.network.Load()
	if n.spare != nil {
		return false
	}
	select {
	case b := <-n.buffers:
		w := e.spare.Get().(*workspace)
		w.batch[0], w.samples[0] = task{s, handler}, s
		e.computePart(n, b, w, 0, 1)
		e.spare.Put(w)
		return true
	default:
		return false
	}
}

// oneSample is a workspace for ComputeNow.
func oneSample() any {
	return &workspace{batch: make([]task, 1), samples: make([]*flow.Sample, 1), results: make([]flow.Result, 1)}
}

// handOver calls the handlers of a batch with their results, or all with err, and
// takes the samples back.
func (e *Engine) handOver(batch []task, results []flow.Result, err error) {
	for i, t := range batch {
		if err != nil {
			t.handler(t.sample, flow.Result{}, err)
		} else {
			t.handler(t.sample, results[i], nil)
		}
		e.Put(t.sample)
	}
	if f := e.handled.Load(); f != nil {
		(*f)()
	}
}
