// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// DefaultQueue is how many samples may wait if NewEngine is not told otherwise: enough for
// the workers while a reader sleeps, and few enough that what waits is still worth a verdict
// (10 ms at 50 000 per second). What comes faster is better left where it comes from.
const DefaultQueue = 512

// ErrClosed is the error of samples that were still waiting, or are submitted,
// when the Engine is closed.
var ErrClosed = errors.New("classifier is closed")

// Engine classifies captures with one model at a time.
//
// There are two ways to use it: Classify and ClassifyImages return when all is
// done, and Submit and ComputeNow hand each result to a Handler. Both may go on at
// the same time. All methods are safe for concurrent use.
type Engine struct {
	network atomic.Pointer[Network]
	// computing is held for reading by whoever computes with the network or hands its
	// results over, so that Swap can come between. It is taken after mu.
	computing sync.RWMutex
	onFailure atomic.Pointer[func(Failure)]

	queue   chan task
	free    chan *flow.Sample
	room    chan struct{} // has one element since something was taken out of queue
	workers sync.WaitGroup
	spare   sync.Pool // *workspace, of ComputeNow
	// computed (optional) is told of each batch.
	computed atomic.Pointer[func(flows int, took time.Duration)]

	mu      sync.RWMutex // guards closed, working, and sending to queue
	closed  bool
	working int // workers
	stop    chan struct{}
}

// NewEngine returns an engine for the model with manifest m, whose network backend
// computes, as NewNetwork has it. queue is how many samples may wait, at least 1; 0 is
// DefaultQueue. When so many wait, Submit refuses more.
//
// The backend belongs to the engine, which closes it in Close, or here on an error.
// An error comes from a queue out of range, or is NewNetwork's.
func NewEngine(name string, m *Manifest, backend Backend, queue int) (*Engine, error) {
	n, err := NewNetwork(name, m, backend)
	if err != nil {
		return nil, err
	}
	return n.Engine(queue)
}

// Engine returns an engine that computes with the network, which belongs to it from then on.
// queue is as of NewEngine; where it is out of range, the network is closed.
func (n *Network) Engine(queue int) (*Engine, error) {
	if queue == 0 {
		queue = DefaultQueue
	}
	if queue < 1 {
		return nil, errors.Join(fmt.Errorf("classifier: queue is %d, expected at least 1", queue), n.Close())
	}
	e := &Engine{
		queue: make(chan task, queue),
		free:  make(chan *flow.Sample, queue+2*n.limits.Runs*n.limits.Batch),
		room:  make(chan struct{}, 1),
		stop:  make(chan struct{}),
		spare: sync.Pool{New: oneSample},
	}
	e.network.Store(n)
	return e, e.grow(n.limits.Runs)
}

// Manifest returns the model's manifest. It is shared and read-only. After a Swap it is
// another one.
func (e *Engine) Manifest() *Manifest { return e.network.Load().manifest }

// Device returns where the model is computed, as Backend.Device has it. It changes where the
// device fails (see Failure), and with a Swap.
func (e *Engine) Device() string { return e.network.Load().backend.Device() }

// OnBatch has f told of each batch from now on that was submitted: of how many flows it is,
// and how long it took to make their images and compute them. f is called concurrently, before
// the handlers of the batch, and there is one at a time.
func (e *Engine) OnBatch(f func(flows int, took time.Duration)) { e.computed.Store(&f) }

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
	e.computing.Lock() // a Swap that was before ends
	defer e.computing.Unlock()
	return e.network.Load().Close()
}
