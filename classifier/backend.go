// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"fmt"
	"runtime"
)

// Backend computes the network of one model: images in, logits out. It knows
// nothing of flows, masks or labels' names; an Engine does all of that. The
// packages below this one have backends, and are the only ones that may use cgo.
type Backend interface {
	// Run computes the logits of n images, 1 to Limits().Batch.
	//
	// images begins with n images, one after another, each as Render writes it:
	// a plane of ImagePixels bytes, 0 to 255, for each of Manifest.Channels.
	// logits gets one value per image and label: those of an image are adjacent,
	// in the order of Manifest.Labels, neither scaled by Manifest.Temperature nor
	// bounded. What is in either slice beyond n images is left alone. Run keeps
	// neither when it returns, and does not write to images.
	//
	// An image's logits must not depend on the images beside it, but for rounding.
	//
	// Run is safe for concurrent use. More calls than Limits().Runs wait for one
	// another. After an error, logits has no meaning, and the next call works as
	// if nothing had happened.
	Run(images []uint8, n int, logits []float32) error

	// Limits says how much can be computed at once. It never changes.
	Limits() Limits

	// Device names where the network is computed, "cpu" or "cuda:N", and, in brackets,
	// by what where there is a choice: "cpu (onnx)". It never changes.
	Device() string

	// Close frees what the backend holds. No Run may be under way, and none may
	// follow.
	Close() error
}

// Limits is how much a Backend can compute at once.
type Limits struct {
	Runs  int // calls of Run at the same time, at least 1
	Batch int // images of one call, at least 1
}

// Bounds of Limits.
const (
	maxRuns  = 256
	maxBatch = 256
)

// DefaultLimits are those of a CPU: a run on each usable one, and batches of 32 images.
func DefaultLimits() Limits { return Limits{Runs: min(runtime.GOMAXPROCS(0), maxRuns), Batch: 32} }

// Complete returns l with the defaults in place of what is 0. An error says what is out of
// range: runs and batch are 1 to 256.
func (l Limits) Complete(defaults Limits) (Limits, error) {
	if l.Runs == 0 {
		l.Runs = defaults.Runs
	}
	if l.Batch == 0 {
		l.Batch = defaults.Batch
	}
	if l.Runs < 1 || l.Runs > maxRuns {
		return l, fmt.Errorf("classifier: workers is %d, expected 1 to %d", l.Runs, maxRuns)
	}
	if l.Batch < 1 || l.Batch > maxBatch {
		return l, fmt.Errorf("classifier: max batch is %d, expected 1 to %d", l.Batch, maxBatch)
	}
	return l, nil
}
