// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package onnx

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/loader/flow"
)

const (
	// deviceSamples are as many as a test of a device classifies: batches of every size.
	deviceSamples = 40
	deviceBatch   = 8 // at most
	deviceWorkers = 2
)

// classifyOnDevice prints, as JSON, what an engine on the device makes of the samples
// 0 to deviceSamples, in batches of different sizes and with two sets of buffers. fails says
// that the device fails meanwhile.
func classifyOnDevice(model, device string, fails bool) error {
	e, err := OpenFile(model, Options{Device: device, MaxBatch: deviceBatch, Workers: deviceWorkers})
	if err != nil {
		return err
	}
	defer e.Close()
	scores := make([][]float64, deviceSamples)
	for i, size := 0, 1; i < deviceSamples; size = size%deviceBatch + 1 {
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
	if f := e.Failure(); (f != nil) != fails || fails && (f.Device != device || e.Device() != "cpu (onnx)") {
		return fmt.Errorf("it computes on %s, failure %+v", e.Device(), f)
	}
	return json.NewEncoder(os.Stdout).Encode(scores)
}

// sameAsOnCPU runs classifyOnDevice in a process of its own and compares.
func sameAsOnCPU(t *testing.T, model, device string, tolerance float64, env ...string) {
	t.Helper()
	sameOnDevice(t, testBinary(t), model, device, tolerance, env...)
}

// sameOnDevice is sameAsOnCPU for a copy of the test binary.
func sameOnDevice(t *testing.T, exe, model, device string, tolerance float64, env ...string) {
	t.Helper()
	cmd := exec.Command(exe)
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

// pretendedCUDA makes a library in the place of ONNX Runtime's that pretends to have the CUDA
// provider, and returns its path and what has to be in the environment for it.
func pretendedCUDA(t *testing.T, folder ...string) (library string, env []string) {
	t.Helper()
	real := realLibrary(t)
	source, err := os.ReadFile(filepath.Join("testdata", "copies_at_bind.c"))
	if err != nil {
		t.Fatal(err)
	}
	headers, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/yalue/onnxruntime_go").Output()
	if err != nil {
		t.Fatal(err)
	}
	library = filepath.Join(append(folder, libraryName)...)
	compileLibrary(t, library, string(source), "-I"+strings.TrimSpace(string(headers)), "-ldl", "-pthread")
	return library, []string{"EARLYDROP_TEST_REAL=" + real}
}

// The CUDA provider copies a bound input to the GPU when it is bound, not when the
// session runs. Over a library that does the same, the results are still those of the
// samples at hand. (make test-gpu shows it with the real provider.)
func TestDeviceGetsTheInputOfEveryRun(t *testing.T) {
	library, env := pretendedCUDA(t, t.TempDir())
	env = append(env, LibraryEnv+"="+library)
	for _, model := range []string{"../testdata/tiny.onnx", "../testdata/tiny5.onnx", "../../models/compact.onnx"} {
		sameAsOnCPU(t, model, "cuda:0", maxDifference, env...)
	}
}

// For a GPU the library with the provider is found beside the program, before the other one.
func TestLibraryForAGPUIsInAFolderOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	_, env := pretendedCUDA(t, dir, "lib-cuda")
	exe := place(t, testBinary(t), dir, "earlydrop")
	place(t, realLibrary(t), dir, "lib", libraryName)
	sameOnDevice(t, exe, "../testdata/tiny.onnx", "cuda:0", maxDifference, env...)
}

// Whatever is asked for, a GPU computes batches of a few sizes, all of which it has computed
// with all buffers before there is an engine.
func TestDeviceComputesFixedSizesThatAreWarm(t *testing.T) {
	for _, tt := range []struct {
		most  int
		sizes []int
	}{{1, []int{1}}, {8, []int{1, 8}}, {40, []int{1, 8, 32, 64}}, {0, []int{1, 8, 32, 64, 128, 256}}} {
		if got := sizesOf(cmp.Or(tt.most, gpuBatch), true); !slices.Equal(got, tt.sizes) {
			t.Errorf("at most %d: sizes %v, want %v", tt.most, got, tt.sizes)
		}
	}
	library, env := pretendedCUDA(t, t.TempDir())
	batches := filepath.Join(t.TempDir(), "batches")
	sameAsOnCPU(t, "../testdata/tiny5.onnx", "cuda:0", maxDifference, append(env, LibraryEnv+"="+library, "EARLYDROP_TEST_BATCHES="+batches)...)
	text, err := os.ReadFile(batches)
	if err != nil {
		t.Fatal(err)
	}
	sizes := sizesOf(deviceBatch, true)
	lines := strings.Fields(string(text))
	warm := lines[:min(len(lines), deviceWorkers*len(sizes))]
	for _, size := range sizes {
		n := 0
		for _, line := range warm {
			if line == strconv.Itoa(size) {
				n++
			}
		}
		if n != deviceWorkers {
			t.Errorf("%d batches of %d images are computed before the engine works, want %d: %v", n, size, deviceWorkers, warm)
		}
	}
	padded := 0
	for _, line := range lines[len(warm):] {
		n, err := strconv.Atoi(line)
		if err != nil || !slices.Contains(sizes, n) {
			t.Errorf("a batch of %s images is computed: %v", line, err)
		}
		if n == sizes[len(sizes)-1] {
			padded++
		}
	}
	if padded < deviceSamples/deviceBatch {
		t.Errorf("the largest size was computed %d times: %v", padded, lines)
	}
}

// A GPU that is lost in the middle of the work costs no result: the CPU has them, and those
// that come after.
func TestDeviceThatIsLostCostsNoResult(t *testing.T) {
	library, env := pretendedCUDA(t, t.TempDir())
	env = append(env, LibraryEnv+"="+library)
	warmUp := deviceWorkers * len(sizesOf(deviceBatch, true))
	for _, runs := range []int{warmUp + 3, warmUp + 7} {
		sameAsOnCPU(t, "../testdata/tiny5.onnx", "cuda:0", maxDifference, append(env, childEnv+"_FAILS=1", fmt.Sprintf("EARLYDROP_TEST_RUNS=%d", runs))...)
	}
	// One that never worked is not taken.
	cmd := exec.Command(testBinary(t))
	cmd.Env = append(env, childEnv+"=../testdata/tiny5.onnx", childEnv+"_DEVICE=cuda:0", quickExit, "EARLYDROP_TEST_RUNS=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "tiny5.onnx on cuda:0: ") || !strings.Contains(string(out), "warming up with ") ||
		!strings.Contains(string(out), "the device is lost") {
		t.Errorf("%v, %s", err, out)
	}
}
