// SPDX-License-Identifier: Apache-2.0

//go:build gpu && cgo

// What make test-gpu runs: tests with ONNX Runtime's real CUDA provider, which lies in
// the folder that EARLYDROP_TEST_CUDA names.

package onnx

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/models"
)

const (
	cudaEnv   = "EARLYDROP_TEST_CUDA"
	cudaRuns  = 9
	cudaBatch = 4
)

// cudaLibraries copies ONNX Runtime and the provider to where root may load them from,
// and returns the copies of both.
func cudaLibraries(t *testing.T) (core, provider string) {
	t.Helper()
	from := os.Getenv(cudaEnv)
	if from == "" {
		t.Fatalf("%s is not set: make test-gpu runs this", cudaEnv)
	}
	dir := openFolder(t)
	for _, name := range []string{libraryName, "libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"} {
		provider = place(t, filepath.Join(from, name), dir, name)
	}
	return filepath.Join(dir, libraryName), provider
}

// stubCUDA makes a library in place of each that the provider needs of CUDA: the
// runtime of testdata, and functions that do nothing for all else that it imports.
func stubCUDA(t *testing.T, provider, dir string) {
	t.Helper()
	f, err := elf.Open(provider)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	needed, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	imports, err := f.ImportedSymbols()
	if err != nil {
		t.Fatal(err)
	}
	runtime, err := os.ReadFile(filepath.Join("testdata", "cudart_stub.c"))
	if err != nil {
		t.Fatal(err)
	}
	stubs := 0
	for _, library := range needed {
		if !strings.HasPrefix(library, "libcu") {
			continue
		}
		var source strings.Builder
		if strings.HasPrefix(library, "libcudart.") {
			source.Write(runtime)
		}
		for _, s := range imports {
			defined := regexp.MustCompile(`\b` + s.Name + `\(`).MatchString(source.String())
			if s.Library == library && !defined {
				fmt.Fprintf(&source, "int %s(void) { return 0; }\n", s.Name)
				stubs++
			}
		}
		// The symbols' version is the library's name.
		versions := filepath.Join(t.TempDir(), "versions")
		if err := os.WriteFile(versions, []byte(library+" { global: *; };\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		compileLibrary(t, filepath.Join(dir, library), source.String(),
			"-w", "-fno-builtin", "-Wl,-soname,"+library, "-Wl,--version-script="+versions)
	}
	if stubs == 0 {
		t.Fatalf("%s imports nothing of CUDA: it needs %v", provider, needed)
	}
}

// cudaImages are the images of one run: no two runs have the same.
func cudaImages(run int, images []uint8) {
	for i := range images {
		images[i] = uint8(17*run + 3*i + i>>8)
	}
}

// runOnCUDA opens the default model on the GPU and runs it on images that change. It
// writes a line before each run to the log. The results are not looked at.
func runOnCUDA(log string) error {
	name, data := models.Default()
	manifest, err := classifier.ReadManifest(name, data)
	if err != nil {
		return err
	}
	if err := initRuntime("", true); err != nil {
		return err
	}
	opts := Options{Device: "cuda:0", MaxBatch: cudaBatch}
	gpu, err := opts.complete()
	if err != nil {
		return err
	}
	b, err := newBackend(manifest, data, opts, gpu)
	if err != nil {
		return err
	}
	defer b.Close()
	file, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	size := len(manifest.Channels) * classifier.ImagePixels
	images, logits := make([]uint8, cudaBatch*size), make([]float32, cudaBatch*len(manifest.Labels))
	for run := range cudaRuns {
		n := run%cudaBatch + 1
		cudaImages(run, images[:n*size])
		if _, err := fmt.Fprintf(file, "run %d\n", run); err != nil {
			return err
		}
		if err := b.Run(images, n, logits); err != nil {
			return err
		}
	}
	return nil
}

// The real provider, over a CUDA runtime that only keeps a record: each run has its own
// images copied to the device.
func TestCUDAProviderGetsTheImagesOfEveryRun(t *testing.T) {
	if log := os.Getenv("CUDA_STUB_LOG"); log != "" { // the child
		if err := runOnCUDA(log); err != nil {
			t.Fatal(err)
		}
		return
	}
	core, provider := cudaLibraries(t)
	stubs := openFolder(t)
	stubCUDA(t, provider, stubs)
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command(testBinary(t), "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), LibraryEnv+"="+core, "LD_LIBRARY_PATH="+stubs, "CUDA_STUB_LOG="+log)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	file, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	name, data := models.Default()
	manifest, err := classifier.ReadManifest(name, data)
	if err != nil {
		t.Fatal(err)
	}
	size := len(manifest.Channels) * classifier.ImagePixels
	run, launches := -1, 0
	copies := make([][][]byte, cudaRuns) // to the device, by run
	for r := bufio.NewReader(file); ; {
		line, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var n int
		switch {
		case line == "launch\n":
			if run >= 0 {
				launches++
			}
		case strings.HasPrefix(line, "run "):
			if _, err := fmt.Sscanf(line, "run %d\n", &run); err != nil {
				t.Fatal(err)
			}
		default:
			if _, err := fmt.Sscanf(line, "copy %d\n", &n); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			data := make([]byte, n)
			if _, err := io.ReadFull(r, data); err != nil {
				t.Fatal(err)
			}
			if run >= 0 {
				copies[run] = append(copies[run], data)
			}
		}
	}
	if run != cudaRuns-1 || launches == 0 {
		t.Fatalf("the log ends with run %d and has %d launches of kernels", run, launches)
	}
	for run := range cudaRuns {
		want := make([]byte, (run%cudaBatch+1)*size)
		cudaImages(run, want)
		if !slices.ContainsFunc(copies[run], func(b []byte) bool { return bytes.Equal(b, want) }) {
			var sizes []int
			for _, b := range copies[run] {
				sizes = append(sizes, len(b))
			}
			t.Errorf("run %d: its %d bytes of images do not reach the device; copies of %d bytes do", run, len(want), sizes)
		}
	}
	t.Logf("%d runs, %d launches of kernels", cudaRuns, launches)
}

// Where there is a GPU, it computes what the CPU does.
func TestCUDAComputesWhatTheCPUDoes(t *testing.T) {
	if _, err := os.Stat("/dev/nvidiactl"); err != nil {
		t.Skip("there is no NVIDIA GPU here")
	}
	core, _ := cudaLibraries(t)
	for _, model := range []string{"../testdata/tiny5.onnx", "../../models/compact.onnx", "../../models/paper.onnx"} {
		sameAsOnCPU(t, model, "cuda:0", 0.01, LibraryEnv+"="+core, "LD_LIBRARY_PATH="+os.Getenv("LD_LIBRARY_PATH"))
	}
}
