// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package onnx

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// deviceSamples are as many as a test of a device classifies: batches of every size.
const deviceSamples = 40

// classifyOnDevice prints, as JSON, what an engine on the device makes of the samples
// 0 to deviceSamples, in batches of different sizes and with two sets of buffers.
func classifyOnDevice(model, device string) error {
	const maxBatch = 8
	e, err := OpenFile(model, Options{Device: device, MaxBatch: maxBatch, Workers: 2})
	if err != nil {
		return err
	}
	defer e.Close()
	scores := make([][]float64, deviceSamples)
	for i, size := 0, 1; i < deviceSamples; size = size%maxBatch + 1 {
		size = min(size, deviceSamples-i)
		samples, results := make([]*flow.Sample, size), make([]flow.Result, size)
		for k := range samples {
			samples[k] = randomSample(uint64(i + k))
		}
		if err := e.Classify(samples, results); err != nil {
			return err
		}
		for k, r := range results {
			scores[i+k] = r.Scores
		}
		i += size
	}
	return json.NewEncoder(os.Stdout).Encode(scores)
}

// sameAsOnCPU runs classifyOnDevice in a process of its own and compares.
func sameAsOnCPU(t *testing.T, model, device string, tolerance float64, env ...string) {
	t.Helper()
	cmd := exec.Command(testBinary(t))
	cmd.Env = append([]string{childEnv + "=" + model, childEnv + "_DEVICE=" + device, quickExit}, env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var got [][]float64
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	e, err := OpenFile(model, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	samples, want := make([]*flow.Sample, deviceSamples), make([]flow.Result, deviceSamples)
	distinct := map[string]bool{}
	for i := range samples {
		samples[i] = randomSample(uint64(i))
	}
	if err := e.Classify(samples, want); err != nil {
		t.Fatal(err)
	}
	for i, w := range want {
		distinct[fmt.Sprintf("%.6f", w.Scores)] = true
		for k := range w.Scores {
			if d := got[i][k] - w.Scores[k]; !(-tolerance <= d && d <= tolerance) {
				t.Fatalf("sample %d: scores %v, on the CPU %v", i, got[i], w.Scores)
			}
		}
	}
	if len(distinct) < deviceSamples/2 {
		t.Errorf("only %d different results: the test would not see a mix-up", len(distinct))
	}
}

// The CUDA provider copies a bound input to the GPU when it is bound, not when the
// session runs. Over a library that does the same, the results are still those of the
// samples at hand. (make test-gpu shows it with the real provider.)
func TestDeviceGetsTheInputOfEveryRun(t *testing.T) {
	real := realLibrary(t)
	source, err := os.ReadFile(filepath.Join("testdata", "copies_at_bind.c"))
	if err != nil {
		t.Fatal(err)
	}
	headers, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/yalue/onnxruntime_go").Output()
	if err != nil {
		t.Fatal(err)
	}
	pretended := filepath.Join(t.TempDir(), libraryName)
	compileLibrary(t, pretended, string(source), "-I"+strings.TrimSpace(string(headers)), "-ldl")
	for _, model := range []string{"../testdata/tiny.onnx", "../testdata/tiny5.onnx", "../../models/compact.onnx"} {
		sameAsOnCPU(t, model, "cuda:0", maxDifference, LibraryEnv+"="+pretended, "EARLYDROP_TEST_REAL="+real)
	}
}
