// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Classify computes the results of samples, in the same order, and returns
// when all are done. results must be as long as samples; the memory of its
// Scores is used again where it is large enough. On an error no result is
// valid: it is ErrClosed, or names the model and what went wrong with it.
func (e *Engine) Classify(samples []*flow.Sample, results []flow.Result) error {
	if len(samples) != len(results) {
		return fmt.Errorf("classifier: %d samples, but room for %d results", len(samples), len(results))
	}
	return e.inBatches(results, func(n *Network, from, to int, b *buffer) ([]uint8, error) {
		return n.render(samples[from:to], b), nil
	})
}

// ClassifyImages is Classify for images that the caller has rendered, as Render
// does for the model's mask and channels: one after another, one for each of
// results.
func (e *Engine) ClassifyImages(images []uint8, results []flow.Result) error {
	return e.inBatches(results, func(n *Network, from, to int, _ *buffer) ([]uint8, error) {
		size := n.manifest.imageBytes()
		if len(images) != len(results)*size {
			return nil, fmt.Errorf("classifier: %d bytes of images, expected %d of %d bytes", len(images), len(results), size)
		}
		return images[from*size : to*size], nil
	})
}

// inBatches fills results. images returns the images of the results from one index to another,
// and may use the buffer. All are computed with one network.
func (e *Engine) inBatches(results []flow.Result, images func(n *Network, from, to int, b *buffer) ([]uint8, error)) error {
	// Holding the lock keeps Close from freeing what is computed with.
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		return ErrClosed
	}
	e.computing.RLock()
	defer e.computing.RUnlock()
	return e.network.Load().inBatches(results, images, e.infer)
}

// inBatches is Engine.inBatches, as many at a time as the backend takes. infer computes them.
func (n *Network) inBatches(results []flow.Result, images func(n *Network, from, to int, b *buffer) ([]uint8, error),
	infer func(n *Network, images []uint8, b *buffer, results []flow.Result) error) error {
	for from := 0; from < len(results); from += n.limits.Batch {
		to := min(from+n.limits.Batch, len(results))
		err := func() error {
			b := <-n.buffers
			defer func() { n.buffers <- b }()
			batch, err := images(n, from, to, b)
			if err != nil {
				return err
			}
			return infer(n, batch, b, results[from:to])
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

// render writes the images of samples, at most Limits.Batch, to b.
func (n *Network) render(samples []*flow.Sample, b *buffer) []uint8 {
	size := n.manifest.imageBytes()
	for i, s := range samples {
		Render(s, n.manifest.Mask, n.manifest.Channels, b.images[i*size:(i+1)*size])
	}
	return b.images[:len(samples)*size]
}

// infer fills results, at most Limits.Batch, with the answers for images. It uses
// the logits of b.
func (n *Network) infer(images []uint8, b *buffer, results []flow.Result) error {
	labels := len(n.manifest.Labels)
	if err := n.backend.Run(images, len(results), b.logits); err != nil {
		return n.wrap(err)
	}
	for i := range results {
		if err := n.manifest.answer(b.logits[i*labels:][:labels], &results[i]); err != nil {
			return n.wrap(err)
		}
	}
	return nil
}

// answer fills r with what the logits of one image say.
func (m *Manifest) answer(logits []float32, r *flow.Result) error {
	r.Labels = m.Labels
	r.Scores = slices.Grow(r.Scores[:0], len(logits))[:len(logits)]
	softmax(logits, m.Temperature, r.Scores)
	best := 0
	for k, p := range r.Scores {
		if math.IsNaN(p) {
			return errors.New("the network's output is not a number")
		}
		if p > r.Scores[best] {
			best = k
		}
	}
	r.Class, r.Confidence = r.Labels[best], r.Scores[best]
	if r.Confidence < m.Unknown {
		r.Class = flow.Unknown
	}
	return nil
}

// softmax writes the probabilities of logits/temperature to p.
func softmax(logits []float32, temperature float64, p []float64) {
	top := math.Inf(-1)
	for _, v := range logits {
		top = max(top, float64(v))
	}
	sum := 0.0
	for i, v := range logits {
		p[i] = math.Exp((float64(v) - top) / temperature)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
}
