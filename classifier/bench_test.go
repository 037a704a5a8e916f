// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package classifier_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
	"github.com/earlydrop/earlydrop/test/onnxruntime"
)

func TestMain(m *testing.M) { os.Exit(onnxruntime.Main(m.Run)) }

// The whole of a classification: mask, planes, network, probabilities.
func BenchmarkClassify(b *testing.B) {
	name, data := models.Default()
	for _, batch := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			e, err := onnx.Open(name, data, onnx.Options{Workers: 1, MaxBatch: batch})
			if err != nil {
				b.Fatal(err)
			}
			defer e.Close()
			samples := make([]*flow.Sample, batch)
			for i := range samples {
				samples[i] = classifier.RandomSample(uint64(i))
			}
			results := make([]flow.Result, batch)
			b.ReportAllocs()
			for b.Loop() {
				if err := e.Classify(samples, results); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/flow")
		})
	}
}
