// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"errors"
	"fmt"
	"sync"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// DefaultQueue is how many samples may wait if NewEngine is not told otherwise.
const DefaultQueue = 4096

// ErrClosed is the error of samples that were still waiting, or are submitted,
// when the Engine is closed.
var ErrClosed = errors.New("classifier is closed")

// Engine classifies captures with one model.
//
// There are two ways to use it: Classify and ClassifyImages return when all is
// done, and Submit hands each result to a Handler. Both may go on at the same
// time. All methods are safe for concurrent use.
type Engine struct {
	manifest *Manifest
	name     string
	backend  Backend
	limits   Limits

	// buffers has one for each run at a time. Who computes takes one out and puts
	// it back.
	buffers chan *buffer

	queue   chan task
	free    chan *flow.Sample
	workers sync.WaitGroup

	mu     sync.RWMutex // guards closed, and sending to queue
	closed bool
	stop   chan struct{}
}

// buffer is the memory of one run.
type buffer struct {
	images []uint8   // [Limits.Batch][C][32][32]
	logits []float32 // [Limits.Batch][K]
}

// NewEngine returns an engine for the model with manifest m, whose network backend
// computes. name is what errors call the model; it is the file's path, or another
// word for where the model comes from. queue is how many samples may wait, at least
// 1; 0 is DefaultQueue. When so many wait, Submit refuses more.
//
// The backend belongs to the engine, which closes it in Close, or here on an error.
// An error comes from a queue out of range, or from a backend that fails or does not
// compute what the training code did (see Manifest.Check).
func NewEngine(name string, m *Manifest, backend Backend, queue int) (*Engine, error) {
	if queue == 0 {
		queue = DefaultQueue
	}
	if queue < 1 {
		return nil, errors.Join(fmt.Errorf("classifier: queue is %d, expected at least 1", queue), backend.Close())
	}
	limits := backend.Limits()
	e := &Engine{
		manifest: m,
		name:     name,
		backend:  backend,
		limits:   limits,
		buffers:  make(chan *buffer, limits.Runs),
		queue:    make(chan task, queue),
		free:     make(chan *flow.Sample, queue+2*limits.Runs*limits.Batch),
		stop:     make(chan struct{}),
	}
	for range limits.Runs {
		e.buffers <- &buffer{
			images: make([]uint8, limits.Batch*m.imageBytes()),
			logits: make([]float32, limits.Batch*len(m.Labels)),
		}
	}
	if err := e.selfCheck(); err != nil {
		return nil, errors.Join(e.wrap(err), backend.Close())
	}
	for range limits.Runs {
		e.workers.Go(e.work)
	}
	return e, nil
}

// wrap says of an error which model it is about, and where that is computed.
func (e *Engine) wrap(err error) error {
	return fmt.Errorf("model %s on %s: %w", e.name, e.backend.Device(), err)
}

// Manifest returns the model's manifest. It is shared and read-only.
func (e *Engine) Manifest() *Manifest { return e.manifest }

// Device returns where the model is computed: "cpu" or "cuda:N".
func (e *Engine) Device() string { return e.backend.Device() }

// Close ends the engine: what is being computed is finished, samples that still
// wait go to their handlers with ErrClosed, and when it returns no handler is called
// any more and all memory of the model is freed. It must not be called from a
// handler. A second Close does nothing.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	close(e.stop)
	close(e.queue)
	e.mu.Unlock()
	// From here on nobody new comes in, and Classify, which holds the lock
	// while it computes, is out.
	e.workers.Wait()
	return e.backend.Close()
}
