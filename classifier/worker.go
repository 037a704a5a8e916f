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
	n, results := e.network.Load(), w.results[:len(w.batch)]
	select {
	case <-e.stop:
		// What waited when the engine was closed passes unclassified.
		e.handOver(w.batch, results, ErrClosed)
		return
	default:
	}
	// More than one run only where a network was swapped for one of smaller batches.
	for from := 0; from < len(w.batch); from += n.limits.Batch {
		to := min(from+n.limits.Batch, len(w.batch))
		b := <-n.buffers
		begun := time.Now()
		err := n.infer(n.render(w.samples[from:to], b), b, results[from:to])
		if told := e.computed.Load(); told != nil {
			(*told)(to-from, time.Since(begun))
		}
		n.buffers <- b
		e.handOver(w.batch[from:to], results[from:to], err)
	}
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
}
