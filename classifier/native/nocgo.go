// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package native

import (
	"fmt"

	"github.com/earlydrop/earlydrop/classifier"
)

func newBackend(*weights, classifier.Limits, instructions) (classifier.Backend, error) {
	return nil, fmt.Errorf("%w: this program was built without cgo", ErrOther)
}

func best() instructions { return portable }
