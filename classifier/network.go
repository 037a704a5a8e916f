// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// Network is one model, ready to compute: its backend computes what the training code did.
// It belongs to whoever made it until an Engine takes it.
type Network struct {
	manifest *Manifest
	name     string
	backend  Backend
	limits   Limits

	// buffers has one for each run at a time. Who computes takes one out and puts
	// it back.
	buffers chan *buffer

	// spare computes where the backend fails, and replaces is the other way round. Of a
	// spare, failure is why it has taken the other's place.
	spare, replaces *Network
	failure         atomic.Pointer[Failure]
}

// buffer is the memory of one run.
type buffer struct {
	images []uint8   // [Limits.Batch][C][32][32]
	logits []float32 // [Limits.Batch][K]
}

// NewNetwork returns the model with manifest m, whose network backend computes. name is
// what errors call the model; it is the file's path, or another word for where the model
// comes from.
//
// The backend belongs to the network, which closes it in Close, or here on an error. An
// error comes from a backend that fails or does not compute what the training code did (see
// Manifest.Check).
func NewNetwork(name string, m *Manifest, backend Backend) (*Network, error) {
	limits := backend.Limits()
	n := &Network{manifest: m, name: name, backend: backend, limits: limits, buffers: make(chan *buffer, limits.Runs)}
	for range limits.Runs {
		n.buffers <- &buffer{
			images: make([]uint8, limits.Batch*m.imageBytes()),
			logits: make([]float32, limits.Batch*len(m.Labels)),
		}
	}
	if err := n.selfCheck(); err != nil {
		return nil, errors.Join(n.wrap(err), backend.Close())
	}
	return n, nil
}

// Manifest returns the model's manifest. It is shared and read-only.
func (n *Network) Manifest() *Manifest { return n.manifest }

// Device returns where the model is computed, as Backend.Device has it.
func (n *Network) Device() string { return n.backend.Device() }

// Close frees the memory of the model, and of its spare. It is not for a network that an Engine
// has taken.
func (n *Network) Close() error {
	err := n.backend.Close()
	for _, other := range []*Network{n.spare, n.replaces} {
		if other != nil {
			err = errors.Join(err, other.backend.Close())
		}
	}
	return err
}

// wrap says of an error which model it is about, and where that is computed.
func (n *Network) wrap(err error) error {
	return fmt.Errorf("model %s on %s: %w", n.name, n.backend.Device(), err)
}

// Swap has the engine compute with another model from the next batch on. What is being
// computed is finished with the old one, its handlers included, and what waits is computed
// with the new one: no sample is lost. Between the two, while no handler runs, it calls
// between, which may be nil. It returns when the old model's memory is freed.
//
// The network is the engine's from then on. With ErrClosed nothing has changed, and it is
// closed. Any other error is about the old model's end. Swap must not be called from a
// handler, or from between.
func (e *Engine) Swap(n *Network, between func()) error {
	if err := e.grow(n.limits.Runs); err != nil {
		return errors.Join(err, n.Close())
	}
	e.computing.Lock()
	select {
	case <-e.stop:
		e.computing.Unlock()
		return errors.Join(ErrClosed, n.Close())
	default:
	}
	old := e.network.Swap(n)
	if between != nil {
		between()
	}
	e.computing.Unlock()
	return old.Close()
}

// grow sees to it that there are so many workers at least.
func (e *Engine) grow(n int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return ErrClosed
	}
	for ; e.working < n; e.working++ {
		e.workers.Go(e.work)
	}
	return nil
}
