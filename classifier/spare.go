// SPDX-License-Identifier: Apache-2.0

package classifier

import "github.com/earlydrop/earlydrop/loader/flow"

// Failure tells of a device that failed in the middle of the work.
type Failure struct {
	Device  string // that failed
	Instead string // that computes since
	Err     error  // the first one; it names the model and the device
}

// FallBackOn gives n a spare: a network of the same model on another device. An engine
// that has n computes with the spare from the first batch on that n can't compute and the
// spare can, that batch included, so that no sample is without a result for it. A batch that
// neither can compute is not the device's fault and changes nothing.
//
// The spare is n's from then on. FallBackOn is called before an engine takes n.
func (n *Network) FallBackOn(spare *Network) { n.spare, spare.replaces = spare, n }

// Failure returns what the device that was asked for has failed with, nil where it has not
// and computes. After a Swap it is about the new model.
func (e *Engine) Failure() *Failure { return e.network.Load().failure.Load() }

// OnFailure has f called once for each model whose device fails, when the other device
// computes already. It is a call beside the work; Close waits for it.
func (e *Engine) OnFailure(f func(Failure)) { e.onFailure.Store(&f) }

// infer is n's, or its spare's where n's device has failed or fails now.
func (e *Engine) infer(n *Network, images []uint8, b *buffer, results []flow.Result) error {
	if n.spare == nil {
		return n.infer(images, b, results)
	}
	if n.spare.failure.Load() != nil {
		return n.onSpare(images, results)
	}
	err := n.infer(images, b, results)
	if err == nil || n.onSpare(images, results) != nil {
		return err
	}
	e.fallBack(n, err)
	return nil
}

// onSpare computes images with the spare, as many at a time as that takes.
func (n *Network) onSpare(images []uint8, results []flow.Result) error {
	size := n.manifest.imageBytes()
	return n.spare.inBatches(results, func(_ *Network, from, to int, _ *buffer) ([]uint8, error) {
		return images[from*size : to*size], nil
	}, (*Network).infer)
}

// fallBack has the spare of n take its place, whose device has failed. Others may see the
// same at the same time, or Swap n away.
func (e *Engine) fallBack(n *Network, err error) {
	f := &Failure{Device: n.backend.Device(), Instead: n.spare.backend.Device(), Err: err}
	if !n.spare.failure.CompareAndSwap(nil, f) || !e.network.CompareAndSwap(n, n.spare) {
		return
	}
	// The caller is a worker, or holds mu, so Close has not begun to wait for the workers.
	e.workers.Go(func() {
		_ = e.grow(n.spare.limits.Runs) // it fails where the engine is closed
		if told := e.onFailure.Load(); told != nil {
			(*told)(*f)
		}
	})
}
