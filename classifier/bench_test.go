// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package classifier_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/native"
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
		for by, open := range map[string]func() (*classifier.Network, error){
			"native": func() (*classifier.Network, error) {
				return native.Load(name, data, classifier.Limits{Runs: 1, Batch: batch})
			},
			"onnx": func() (*classifier.Network, error) {
				return onnx.Load(name, data, onnx.Options{Workers: 1, MaxBatch: batch})
			},
		} {
			b.Run(fmt.Sprintf("batch=%d/by=%s", batch, by), func(b *testing.B) { benchmarkClassify(b, batch, open) })
		}
	}
}

func benchmarkClassify(b *testing.B, batch int, open func() (*classifier.Network, error)) {
	n, err := open()
	if err != nil {
		b.Fatal(err)
	}
	e, err := n.Engine(0)
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
}
