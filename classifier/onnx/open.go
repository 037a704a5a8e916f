// SPDX-License-Identifier: Apache-2.0

package onnx

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/earlydrop/earlydrop/classifier"
)

// Defaults of Options.
const (
	// mostGPUWorkers is how many batches are on their way at the same time where a GPU
	// computes, if there are cores for it: images of one are made and verdicts of another
	// written while the GPU has a third. With paper on an H100 one classifies 174 000 flows a
	// second, two 263 000, four 384 000 and six 508 000 (make bench-gpu); each takes a core.
	mostGPUWorkers = 4
	gpuBatch       = 256

	// cpu is the device that needs no GPU.
	cpu = "cpu"
)

// Options says how a model is computed. The zero value is usable.
type Options struct {
	// Library is the path of ONNX Runtime's shared library (optional). Without
	// it, the library is looked for: in the variable EARLYDROP_ONNXRUNTIME, in
	// lib/ beside the program (before that, for a GPU, in lib-cuda/), and in the folders
	// of the system's loader.
	//
	// With root's rights, or with capabilities, Open refuses (ErrUnsafeLibrary)
	// a library that somebody else could replace: one whose file, or a folder
	// or symbolic link on the way to it, is owned by neither root nor the owner
	// of the executable, or is writable by its group or by everybody. Sticky
	// folders, as /tmp, may be.
	Library string
	// Device is "cpu" (the default) or "cuda:N" for the GPU of that number.
	Device string
	// Workers is the number of batches that are computed at the same time,
	// each on one thread, 1 to 256 (optional; default: one per usable CPU, and at
	// most 4 on a GPU, where some prepare a batch while another's is computed).
	Workers int
	// MaxBatch bounds how many flows a worker computes at once, 1 to 256
	// (optional; default 32, and 256 on a GPU, where batches are padded to one of a
	// few sizes).
	MaxBatch int
	// Queue is how many samples may wait, at least 1 (optional; default
	// classifier.DefaultQueue). When so many wait, Engine.Submit refuses more.
	Queue int
}

const (
	// LibraryEnv names the environment variable that says where ONNX
	// Runtime's shared library is.
	LibraryEnv = "EARLYDROP_ONNXRUNTIME"

	// libraryName is what the library is called in the folders searched.
	libraryName = "libonnxruntime.so.1"
)

// ErrLibrary is wrapped by the errors that tell that ONNX Runtime's shared
// library is missing, too old, or no such library.
var ErrLibrary = errors.New("ONNX Runtime can't be used")

// ErrUnsafeLibrary is wrapped, beside ErrLibrary, by the errors that tell that
// others could change a file that would be loaded with root's rights.
var ErrUnsafeLibrary = errors.New("not safe to load with root's rights")

// ErrLacking is wrapped by the errors that tell what a machine lacks that a GPU needs.
var ErrLacking = errors.New("this machine lacks what a GPU needs")

// ErrNoCgo is wrapped by the errors of Open in a program that was built without cgo.
var ErrNoCgo = errors.New("this program was built without cgo, so it can't compute a model")

// Open loads the model in data, the bytes of an ONNX file, and returns an engine that
// computes it with opts.Workers workers. name is what errors call the model; it is the
// file's path, or another word for where the model comes from. data is not kept.
//
// The errors name the model and what is wrong with it. Those that wrap ErrLibrary are
// about ONNX Runtime's shared library instead, ErrLacking about the machine, and ErrNoCgo
// about this program.
//
// A GPU has computed batches of every size when Open returns. Where it fails later, the CPU
// goes on: see classifier.Engine.Failure.
//
// Open may be called concurrently.
func Open(name string, data []byte, opts Options) (*classifier.Engine, error) {
	n, err := Load(name, data, opts)
	if err != nil {
		return nil, err
	}
	return n.Engine(opts.Queue)
}

// Load is Open without an engine: for one that has a model already, see
// classifier.Engine.Swap. opts.Queue is not used. A network on a GPU has a spare on the CPU,
// with the defaults of that.
func Load(name string, data []byte, opts Options) (*classifier.Network, error) {
	manifest, err := classifier.ReadManifest(name, data)
	if err != nil {
		return nil, err
	}
	n, err := load(name, manifest, data, opts)
	if err != nil || !strings.HasPrefix(n.Device(), "cuda:") {
		return n, err
	}
	spare, err := load(name, manifest, data, Options{Library: opts.Library})
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	n.FallBackOn(spare)
	return n, nil
}

// load loads the model on the device of opts alone.
func load(name string, manifest *classifier.Manifest, data []byte, opts Options) (*classifier.Network, error) {
	gpu, err := opts.complete()
	if err != nil {
		return nil, err
	}
	if err := initRuntime(opts.Library, gpu >= 0); err != nil {
		return nil, err
	}
	backend, err := newBackend(manifest, data, opts, gpu)
	if err != nil {
		return nil, fmt.Errorf("model %s on %s: %w", name, opts.Device, err)
	}
	return classifier.NewNetwork(name, manifest, backend)
}

// OpenFile is Open on the model file at path.
func OpenFile(path string, opts Options) (*classifier.Engine, error) {
	data, err := classifier.ReadModelFile(path)
	if err != nil {
		return nil, err
	}
	return Open(path, data, opts)
}

// complete checks the options and puts the defaults in. It returns the number of the
// GPU, -1 for the CPU.
func (o *Options) complete() (gpu int, err error) {
	if o.Device, gpu, err = parseDevice(o.Device); err != nil {
		return gpu, err
	}
	defaults := classifier.DefaultLimits()
	if gpu >= 0 {
		defaults = classifier.Limits{Runs: gpuWorkers(), Batch: gpuBatch}
	}
	limits, err := classifier.Limits{Runs: o.Workers, Batch: o.MaxBatch}.Complete(defaults)
	if err != nil {
		return gpu, err
	}
	o.Workers, o.MaxBatch = limits.Runs, limits.Batch
	return gpu, nil
}

// gpuWorkers is how many workers there are by default where a GPU computes.
func gpuWorkers() int { return min(mostGPUWorkers, classifier.DefaultLimits().Runs) }

// parseDevice returns the device's canonical name and the number of the GPU,
// -1 for the CPU.
func parseDevice(s string) (name string, gpu int, err error) {
	if s == "" || s == cpu {
		return cpu, -1, nil
	}
	if number, ok := strings.CutPrefix(s, "cuda:"); ok {
		if n, err := strconv.ParseUint(number, 10, 8); err == nil {
			return fmt.Sprintf("cuda:%d", n), int(n), nil
		}
	}
	return "", 0, fmt.Errorf("unknown device %q (known: cpu, cuda:N with N from 0)", s)
}
