// SPDX-License-Identifier: Apache-2.0

package classifier

import "github.com/earlydrop/earlydrop/loader/flow"

// Handler takes the result of one submitted sample, or the error that kept it
// from having one; then result is empty. It is called from several goroutines at
// once. The sample and result.Scores are valid until it returns. It must call none of
// Classify, ClassifyImages, Submit, ComputeNow, Swap and Close of its engine, which may wait
// for it.
type Handler func(s *flow.Sample, result flow.Result, err error)

// task is a sample in the queue, and who waits for its result.
type task struct {
	sample  *flow.Sample
	handler Handler
}

// Get returns an empty sample to fill and submit, reused where possible.
func (e *Engine) Get() *flow.Sample {
	select {
	case s := <-e.free:
		return s
	default:
		s := new(flow.Sample)
		s.Reset()
		return s
	}
}

// Put takes back a sample of Get that was not submitted, or that Submit
// refused. The caller must not use it afterwards.
func (e *Engine) Put(s *flow.Sample) {
	s.Reset()
	select {
	case e.free <- s:
	default: // as many as can ever be waiting are there already
	}
}

// Submit queues a sample. It never waits: it returns false when the queue is full
// or the engine is closed, and then the sample stays the caller's. When it returns
// true the sample belongs to the engine, which calls handler exactly once and then
// takes it back as Put does.
//
// Each sample may have a handler of its own. A method value, as in Submit(s, x.done),
// is made anew in each call, which takes memory; one that is kept in a variable does
// not.
func (e *Engine) Submit(s *flow.Sample, handler Handler) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		return false
	}
	select {
	case e.queue <- task{s, handler}:
		return true
	default:
		return false
	}
}

// Waiting returns how many samples are queued and not yet being computed.
func (e *Engine) Waiting() int { return len(e.queue) }

// Queue returns how many samples may wait: Submit refuses more.
func (e *Engine) Queue() int { return cap(e.queue) }

// Room returns a channel that has an element once there is room in the queue again: whoever
// was refused by Submit may wait for it, with others, and try again. It has none when the
// engine is closed.
func (e *Engine) Room() <-chan struct{} { return e.room }

// nextBatch fills batch, whose length is ignored, with what is waiting, up to its
// capacity. It waits for the first task and never for more: batches grow under load,
// and a sample that comes alone is computed at once. It is empty when the queue is
// closed and has nothing left.
func (e *Engine) nextBatch(batch []task) []task {
	batch = batch[:0]
	first, ok := <-e.queue
	if !ok {
		return batch
	}
	batch = append(batch, first)
	for len(batch) < cap(batch) {
		select {
		case t, ok := <-e.queue:
			if !ok {
				return batch
			}
			batch = append(batch, t)
		default:
			return batch
		}
	}
	return batch
}
