// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package native

/*
#cgo CFLAGS: -O3
#cgo LDFLAGS: -lm
#cgo noescape compute
#cgo nocallback compute
#include "network.h"

static compute_function *const functions[] = {
	native_compute_portable,
#ifdef __x86_64__
	native_compute_avx2,
	native_compute_avx512,
#endif
};

static void compute(int with, const struct network *n, struct workspace *w, const uint8_t *images,
		    int32_t count, float *logits, int32_t labels)
{
	functions[with](n, w, images, count, logits, labels);
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/cpu"

	"github.com/earlydrop/earlydrop/classifier"
)

// backend is one model.
type backend struct {
	with    instructions
	network *C.struct_network
	labels  int
	limits  classifier.Limits
	// free has the memory that no run uses.
	free chan *C.struct_workspace
}

func newBackend(w *weights, limits classifier.Limits, with instructions) (classifier.Backend, error) {
	b := &backend{with: with, network: w.pack(), labels: w.labels, limits: limits, free: make(chan *C.struct_workspace, limits.Runs)}
	for range limits.Runs {
		b.free <- new(C.struct_workspace)
	}
	return b, nil
}

// there reports whether this machine has the instructions.
func (i instructions) there() bool {
	x := &cpu.X86
	switch i {
	case portable:
		return true
	case avx2:
		return x.HasAVX2 && x.HasFMA
	case avx512:
		// Processors before those with VBMI2 are slowed down by vectors of 512 bits.
		return x.HasAVX2 && x.HasFMA && x.HasAVX512F && x.HasAVX512VBMI2
	}
	return false
}

// best returns the fastest instructions that this machine has.
func best() instructions {
	for _, i := range []instructions{avx512, avx2} {
		if i.there() {
			return i
		}
	}
	return portable
}

// Run implements classifier.Backend.
func (b *backend) Run(images []uint8, n int, logits []float32) error {
	images, logits = images[:n*C.IMAGE], logits[:n*b.labels] // C reads and writes no more
	w := <-b.free
	C.compute(C.int(b.with), b.network, w, (*C.uint8_t)(&images[0]), C.int32_t(n), (*C.float)(unsafe.Pointer(&logits[0])), C.int32_t(b.labels))
	b.free <- w
	return nil
}

// Limits implements classifier.Backend.
func (b *backend) Limits() classifier.Limits { return b.limits }

// Device implements classifier.Backend.
func (b *backend) Device() string { return fmt.Sprintf("cpu (native %v)", b.with) }

// Close implements classifier.Backend. All memory is Go's.
func (b *backend) Close() error { return nil }
