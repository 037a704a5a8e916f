// SPDX-License-Identifier: Apache-2.0

package native

import (
	"errors"
	"fmt"

	"github.com/earlydrop/earlydrop/classifier"
)

// ErrOther is wrapped by the errors that tell that a model is not one that this package
// computes. It may be a good one.
var ErrOther = errors.New("not a model that is computed natively")

// Load loads the model in data, the bytes of an ONNX file. name is what errors call the model;
// it is the file's path, or another word for where the model comes from. Of limits, what is 0
// has the default of classifier.Limits.Complete. data is not kept.
//
// Where the error does not wrap ErrOther, the file is damaged, or its check images have other
// logits than the file says.
//
// Load may be called concurrently.
func Load(name string, data []byte, limits classifier.Limits) (*classifier.Network, error) {
	return load(name, data, limits, best())
}

// Computes returns nil if Load takes the model in data: its graph is one that this package
// computes. The error wraps ErrOther and says what is different.
func Computes(data []byte) error {
	_, err := recognize(data)
	return err
}

// load is Load for certain instructions.
func load(name string, data []byte, limits classifier.Limits, with instructions) (*classifier.Network, error) {
	manifest, err := classifier.ReadManifest(name, data)
	if err != nil {
		return nil, err
	}
	limits, err = limits.Complete(classifier.DefaultLimits())
	if err != nil {
		return nil, err
	}
	w, err := recognize(data)
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", name, err)
	}
	backend, err := newBackend(w, limits, with)
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", name, err)
	}
	return classifier.NewNetwork(name, manifest, backend)
}

// instructions are the processor's that a computation uses.
type instructions int

// Those that the computation was written for.
const (
	portable instructions = iota
	avx2
	avx512
)

func (i instructions) String() string { return [...]string{"portable", "avx2", "avx512"}[i] }
