// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"fmt"
	"math"
)

// checkImage fills image with fixed bytes of which the training code computes
// the logits too: pixel i of image n is ((i+1)*(2n+3) + i/32*(7n+1)) mod 256,
// where i counts through all planes.
func checkImage(n int, image []uint8) {
	for i := range image {
		image[i] = uint8((i+1)*(2*n+3) + i/ImageSide*(7*n+1))
	}
}

// checkTolerance is how far a logit may be off the training framework's, as a
// share of the largest logit plus a constant: a GPU with reduced precision is
// within, a wrong network or a broken provider is not.
const checkTolerance = 0.01

// selfCheck computes the manifest's check images and compares the logits.
func (n *Network) selfCheck() error {
	b := <-n.buffers
	defer func() { n.buffers <- b }()
	image := b.images[:n.manifest.imageBytes()]
	for i, want := range n.manifest.Check {
		checkImage(i, image)
		if err := n.backend.Run(image, 1, b.logits); err != nil {
			return err
		}
		scale := 1.0
		for _, w := range want {
			scale = max(scale, math.Abs(w))
		}
		for k, got := range b.logits[:len(want)] {
			if d := math.Abs(float64(got) - want[k]); !(d <= checkTolerance*scale) {
				return fmt.Errorf("self-check failed: logit %q of check image %d is %v, the training code computed %v",
					n.manifest.Labels[k], i, got, want[k])
			}
		}
	}
	return nil
}
