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
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
)

const cudaEnv = "EARLYDROP_TEST_CUDA"

// cudaRuns are batches, by their images: the sizes that a GPU computes, and others.
var cudaRuns = []int{1, 2, 8, 9, 32, 33, 64, 100, 128, 129, 256, 1, 200}

// cudaLibraries copies ONNX Runtime and the provider to where root may load them from,
// and returns the copies of both.
func cudaLibraries(t *testing.T) (core, provider string) {
	t.Helper()
	from := os.Getenv(cudaEnv)
	if from == "" {
		t.Fatalf("%s is not set: make test-gpu runs this", cudaEnv)
	}
	dir := openFolder(t)
	for _, name := range append([]string{libraryName}, providers[:]...) {
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
			"-w", "-fno-builtin", "-pthread", "-Wl,-soname,"+library, "-Wl,--version-script="+versions)
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

// openOnCUDA opens the default model on the GPU, with the CPU as its spare. It is not checked
// that the GPU computes what it should.
func openOnCUDA() (*classifier.Engine, error) {
	name, data := models.Default()
	manifest, err := classifier.ReadManifest(name, data)
	if err != nil {
		return nil, err
	}
	manifest.Check = nil
	n, err := load(name, manifest, data, Options{Device: "cuda:0"})
	if err != nil {
		return nil, err
	}
	spare, err := load(name, manifest, data, Options{})
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	n.FallBackOn(spare)
	return n.Engine(0)
}

// runOnCUDA has the GPU compute images that change. It writes a line before each batch to the
// log. The results are not looked at.
func runOnCUDA(log string) error {
	e, err := openOnCUDA()
	if err != nil {
		return err
	}
	defer e.Close()
	file, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	size := len(e.Manifest().Channels) * classifier.ImagePixels
	for run, n := range cudaRuns {
		images := make([]uint8, n*size)
		cudaImages(run, images)
		if _, err := fmt.Fprintf(file, "run %d\n", run); err != nil {
			return err
		}
		if err := e.ClassifyImages(images, make([]flow.Result, n)); err != nil {
			return err
		}
	}
	if f := e.Failure(); f != nil {
		return f.Err
	}
	return nil
}

// loseOnCUDA has the device be lost when it is to do something in the middle of the work. What
// comes out then is what the CPU computes.
func loseOnCUDA(broken string) error {
	e, err := openOnCUDA()
	if err != nil {
		return err
	}
	defer e.Close()
	name, data := models.Default()
	reference, err := Open(name, data, Options{})
	if err != nil {
		return err
	}
	defer reference.Close()
	size := len(e.Manifest().Channels) * classifier.ImagePixels
	for run, n := range []int{40, 40, 300} {
		images, got, want := make([]uint8, n*size), make([]flow.Result, n), make([]flow.Result, n)
		cudaImages(run, images)
		if run == 1 {
			os.Setenv("CUDA_STUB_BROKEN", broken)
		}
		if err := e.ClassifyImages(images, got); err != nil {
			return err
		}
		f := e.Failure()
		if run == 0 {
			if f != nil || e.Device() != "cuda:0" {
				return fmt.Errorf("before it is lost: on %s, failure %v", e.Device(), f)
			}
			continue
		}
		if f == nil || f.Device != "cuda:0" || e.Device() != "cpu (onnx)" {
			return fmt.Errorf("after it was lost: on %s, failure %v", e.Device(), f)
		}
		if err := reference.ClassifyImages(images, want); err != nil {
			return err
		}
		for i := range want {
			for k := range want[i].Scores {
				if math.Abs(got[i].Scores[k]-want[i].Scores[k]) > maxDifference {
					return fmt.Errorf("run %d, image %d: %v, on the CPU %v", run, i, got[i].Scores, want[i].Scores)
				}
			}
		}
		if run == 1 {
			fmt.Println("the failure:", f.Err)
		}
	}
	return nil
}

// overStub runs the calling test again in a process of its own, over the stub of CUDA.
func overStub(t *testing.T, core, stubs string, env ...string) (said string) {
	t.Helper()
	cmd := exec.Command(testBinary(t), "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), append(env, LibraryEnv+"="+core, "LD_LIBRARY_PATH="+stubs)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// readStubLog returns the copies to the device before the first run, those of each run, and
// how many kernels all runs have launched.
func readStubLog(t *testing.T, log string) (before [][]byte, copies [][][]byte, launches int) {
	t.Helper()
	file, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for r := bufio.NewReader(file); ; {
		line, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return before, copies, launches
		}
		if err != nil {
			t.Fatal(err)
		}
		var n int
		switch {
		case line == "launch\n":
			if copies != nil {
				launches++
			}
		case strings.HasPrefix(line, "run "):
			copies = append(copies, nil)
		default:
			if _, err := fmt.Sscanf(line, "copy %d\n", &n); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			data := make([]byte, n)
			if _, err := io.ReadFull(r, data); err != nil {
				t.Fatal(err)
			}
			if copies == nil {
				before = append(before, data)
			} else {
				copies[len(copies)-1] = append(copies[len(copies)-1], data)
			}
		}
	}
}

// The real provider, over a CUDA runtime that only keeps a record: each batch has its own
// images copied to the device, padded to one of the sizes, all of which were copied with each of
// the buffers before the first.
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
	overStub(t, core, stubs, "CUDA_STUB_LOG="+log)
	before, copies, launches := readStubLog(t, log)
	if len(copies) != len(cudaRuns) || launches == 0 {
		t.Fatalf("the log has %d runs and %d launches of kernels", len(copies), launches)
	}
	name, data := models.Default()
	manifest, err := classifier.ReadManifest(name, data)
	if err != nil {
		t.Fatal(err)
	}
	size := len(manifest.Channels) * classifier.ImagePixels
	for _, n := range gpuSizes {
		warm := 0
		for _, b := range before {
			if bytes.Equal(b, make([]byte, n*size)) {
				warm++
			}
		}
		if warm != gpuWorkers() {
			t.Errorf("%d batches of %d images reach the device before the first run, want %d", warm, n, gpuWorkers())
		}
	}
	for run, n := range cudaRuns {
		i, _ := slices.BinarySearch(gpuSizes[:], n)
		want := make([]byte, gpuSizes[i]*size) // zeros after the images
		cudaImages(run, want[:n*size])
		if !slices.ContainsFunc(copies[run], func(b []byte) bool { return bytes.Equal(b, want) }) {
			var sizes []int
			for _, b := range copies[run] {
				sizes = append(sizes, len(b))
			}
			t.Errorf("run %d: its %d images, padded to %d bytes, do not reach the device; copies of %d bytes do", run, n, len(want), sizes)
		}
	}
	t.Logf("%d runs, %d launches of kernels", len(copies), launches)
}

// The real provider, over a device that is lost in the middle of the work: no result is lost.
func TestCUDAProviderThatLosesItsDevice(t *testing.T) {
	if broken := os.Getenv("CUDA_STUB_LOSES"); broken != "" { // the child
		if err := loseOnCUDA(broken); err != nil {
			t.Fatal(err)
		}
		return
	}
	core, provider := cudaLibraries(t)
	stubs := openFolder(t)
	stubCUDA(t, provider, stubs)
	for _, broken := range []string{"launch", "copy", "wait"} {
		said := overStub(t, core, stubs, "CUDA_STUB_LOSES="+broken, "CUDA_STUB_LOG="+os.DevNull)
		i := strings.Index(said, "the failure: ")
		if i < 0 {
			t.Fatalf("%s: the child says %q", broken, said)
		}
		line, _, _ := strings.Cut(said[i:], "\n")
		t.Logf("%s: %s", broken, line)
	}
}

// Where there is a GPU, it computes what the CPU does.
func TestCUDAComputesWhatTheCPUDoes(t *testing.T) {
	if _, err := os.Stat(driverDevice); err != nil {
		t.Skip("there is no NVIDIA GPU here")
	}
	core, _ := cudaLibraries(t)
	for _, model := range []string{"../testdata/tiny5.onnx", "../../models/compact.onnx", "../../models/paper.onnx"} {
		sameAsOnCPU(t, model, "cuda:0", 0.01, LibraryEnv+"="+core, "LD_LIBRARY_PATH="+os.Getenv("LD_LIBRARY_PATH"))
	}
}

// benchmarked are the models that are measured on a GPU.
var benchmarked = []string{"compact", "paper"}

// openBenchmarked opens a model on the GPU, with so many workers; 0 is the default.
func openBenchmarked(b *testing.B, named string, workers int) *classifier.Engine {
	b.Helper()
	if _, err := os.Stat(driverDevice); err != nil {
		b.Skip("there is no NVIDIA GPU here")
	}
	e, err := OpenFile(filepath.Join("../../models", named+".onnx"), Options{Device: "cuda:0", Workers: workers})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if f := e.Failure(); f != nil {
			b.Error(f.Err)
		}
		if err := e.Close(); err != nil {
			b.Error(err)
		}
	})
	return e
}

// BenchmarkCUDA has a GPU compute batches of each size, of images that are there.
func BenchmarkCUDA(b *testing.B) {
	for _, named := range benchmarked {
		b.Run(named, func(b *testing.B) {
			e := openBenchmarked(b, named, 0)
			size := len(e.Manifest().Channels) * classifier.ImagePixels
			for _, n := range gpuSizes {
				b.Run(strconv.Itoa(n), func(b *testing.B) {
					b.SetParallelism(mostGPUWorkers) // for each of GOMAXPROCS; more than the buffers wait
					b.RunParallel(func(pb *testing.PB) {
						images, results := make([]uint8, n*size), make([]flow.Result, n)
						for pb.Next() {
							if err := e.ClassifyImages(images, results); err != nil {
								b.Error(err)
							}
						}
					})
					b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "flows/s")
				})
			}
		})
	}
}

// BenchmarkCUDAPipeline has a GPU classify captures that three readers submit, by the number
// of workers.
func BenchmarkCUDAPipeline(b *testing.B) {
	const readers = 3
	samples := randomSamples(64)
	for _, named := range benchmarked {
		for _, workers := range []int{1, 2, 3, 4, 6} {
			b.Run(fmt.Sprintf("%s/%d", named, workers), func(b *testing.B) {
				e := openBenchmarked(b, named, workers)
				var handled, reading sync.WaitGroup
				handled.Add(b.N)
				handler := func(_ *flow.Sample, _ flow.Result, err error) {
					if err != nil {
						b.Error(err)
					}
					handled.Done()
				}
				before := processTime(b)
				b.ResetTimer()
				for reader := range readers {
					reading.Go(func() {
						for i := reader; i < b.N; i += readers {
							s := e.Get()
							s.CopyFrom(samples[i%len(samples)])
							for !e.Submit(s, handler) {
								<-e.Room()
							}
						}
					})
				}
				reading.Wait()
				handled.Wait()
				b.StopTimer()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "flows/s")
				b.ReportMetric((processTime(b)-before).Seconds()/b.Elapsed().Seconds(), "cores")
			})
		}
	}
}

// processTime is the time that this process has had on all cores.
func processTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
