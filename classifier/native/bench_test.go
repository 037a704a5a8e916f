// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package native

import (
	"fmt"
	"testing"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
)

// The network and the probabilities, of flows of the golden captures, natively with each of
// this machine's instructions and in ONNX Runtime.
func BenchmarkNetwork(b *testing.B) {
	name, data := models.Default()
	images := goldenImages(b)
	for len(images) < 128*imageBytes {
		images = append(images, images...)
	}
	for _, batch := range []int{1, 8, 32, 128} {
		measure := func(by string, open func() (*classifier.Network, error)) {
			b.Run(fmt.Sprintf("batch=%d/by=%s", batch, by), func(b *testing.B) {
				n, err := open()
				if err != nil {
					b.Fatal(err)
				}
				e, err := n.Engine(0)
				if err != nil {
					b.Fatal(err)
				}
				defer e.Close()
				results := make([]flow.Result, batch)
				flows, at := len(images)/imageBytes, 0
				for b.Loop() {
					if at+batch > flows {
						at = 0
					}
					if err := e.ClassifyImages(images[at*imageBytes:(at+batch)*imageBytes], results); err != nil {
						b.Fatal(err)
					}
					at += batch
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/flow")
			})
		}
		limits := classifier.Limits{Runs: 1, Batch: batch}
		for _, with := range each() {
			measure(with.String(), func() (*classifier.Network, error) { return load(name, data, limits, with) })
		}
		measure("onnx", func() (*classifier.Network, error) {
			return onnx.Load(name, data, onnx.Options{Workers: limits.Runs, MaxBatch: limits.Batch})
		})
	}
}
