// SPDX-License-Identifier: Apache-2.0

package classifier

import "github.com/earlydrop/earlydrop/loader/flow"

// work computes what is submitted, and hands it over, until the engine is closed.
func (e *Engine) work() {
	batch := make([]task, 0, e.limits.Batch)
	samples := make([]*flow.Sample, e.limits.Batch)
	results := make([]flow.Result, e.limits.Batch)
	for {
		batch = e.nextBatch(batch)
		if len(batch) == 0 {
			return
		}
		for i, t := range batch {
			samples[i] = t.sample
		}
		err := ErrClosed
		select {
		case <-e.stop:
			// What waited when the engine was closed passes unclassified.
		default:
			b := <-e.buffers
			err = e.infer(e.render(samples[:len(batch)], b), b, results[:len(batch)])
			e.buffers <- b
		}
		e.handOver(batch, results, err)
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
