// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package onnx

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	ort "github.com/yalue/onnxruntime_go"

	"github.com/earlydrop/earlydrop/classifier"
)

// backend is one model in ONNX Runtime.
type backend struct {
	device  string
	limits  classifier.Limits
	session *ort.DynamicAdvancedSession

	// free has the buffers that no run uses, of all of them.
	free chan *buffers
	all  []*buffers

	imageBytes, labels int // of one image
}

// buffers holds the tensors of one run at a time. ONNX Runtime reads and writes Go
// memory in place: for each batch size there are tensors of the first images and
// logits of the same two buffers, so that a run neither allocates nor pads.
type buffers struct {
	images []uint8   // [Batch][C][32][32]
	logits []float32 // [Batch][K]
	// inputs[n-1] and outputs[n-1] are for n images, and so is bindings[n-1].
	inputs, outputs []ort.Value
	// bindings spare a run on the CPU all allocation. On another device there are
	// none: a bound input is copied there when it is bound, not when the session
	// runs, which would then see the same images for ever.
	bindings []*ort.IoBinding
}

// newBackend sets up the network of data for opts, which are complete. gpu is the
// number of opts.Device, -1 for the CPU. initRuntime has to come first.
func newBackend(m *classifier.Manifest, data []byte, opts Options, gpu int) (_ classifier.Backend, err error) {
	b := &backend{
		device:     opts.Device,
		limits:     classifier.Limits{Runs: opts.Workers, Batch: opts.MaxBatch},
		free:       make(chan *buffers, opts.Workers),
		imageBytes: len(m.Channels) * classifier.ImagePixels,
		labels:     len(m.Labels),
	}
	defer func() {
		if err != nil {
			_ = b.Close()
		}
	}()
	if b.session, err = newSession(data, gpu); err != nil {
		return nil, err
	}
	for range opts.Workers {
		one, err := b.newBuffers(int64(len(m.Channels)))
		b.all = append(b.all, one)
		if err != nil {
			return nil, err
		}
		b.free <- one
	}
	return b, nil
}

// newSession builds the session that all runs share: ONNX Runtime allows
// concurrent runs, and with one thread per run each computes on the goroutine
// that called it. Sharing keeps one copy of the weights in memory and caches.
func newSession(data []byte, gpu int) (*ort.DynamicAdvancedSession, error) {
	options, err := ort.NewSessionOptions()
	if err != nil {
		return nil, err
	}
	defer options.Destroy()
	for _, err := range []error{
		options.SetIntraOpNumThreads(1),
		options.SetInterOpNumThreads(1),
		options.SetExecutionMode(ort.ExecutionModeSequential),
		options.SetGraphOptimizationLevel(ort.GraphOptimizationLevelEnableAll),
		// A thread that waits for work must sleep, not spin: the CPU belongs
		// to the packets.
		options.AddSessionConfigEntry("session.intra_op.allow_spinning", "0"),
		options.AddSessionConfigEntry("session.inter_op.allow_spinning", "0"),
	} {
		if err != nil {
			return nil, err
		}
	}
	if gpu >= 0 {
		if err := appendCUDA(options, gpu); err != nil {
			return nil, fmt.Errorf("the CUDA provider can't be used: %w", err)
		}
	}
	return ort.NewDynamicAdvancedSessionWithONNXData(data,
		[]string{classifier.InputName}, []string{classifier.OutputName}, options)
}

func appendCUDA(options *ort.SessionOptions, gpu int) error {
	if err := checkProviders(); err != nil {
		return err
	}
	cuda, err := ort.NewCUDAProviderOptions()
	if err != nil {
		return err
	}
	defer cuda.Destroy()
	if err := cuda.Update(map[string]string{
		"device_id": strconv.Itoa(gpu),
		// The exhaustive search would time every algorithm anew for each
		// batch size.
		"cudnn_conv_algo_search": "HEURISTIC",
	}); err != nil {
		return err
	}
	return options.AppendExecutionProviderCUDA(cuda)
}

// newBuffers returns what it made also on failure, so that it can be destroyed.
func (b *backend) newBuffers(channels int64) (*buffers, error) {
	one := &buffers{
		images: make([]uint8, b.limits.Batch*b.imageBytes),
		logits: make([]float32, b.limits.Batch*b.labels),
	}
	for n := 1; n <= b.limits.Batch; n++ {
		in, err := ort.NewTensor(ort.NewShape(int64(n), channels, classifier.ImageSide, classifier.ImageSide), one.images)
		if err != nil {
			return one, err
		}
		one.inputs = append(one.inputs, in)
		out, err := ort.NewTensor(ort.NewShape(int64(n), int64(b.labels)), one.logits)
		if err != nil {
			return one, err
		}
		one.outputs = append(one.outputs, out)
		if b.device != cpu {
			continue
		}
		binding, err := b.session.CreateIoBinding()
		if err != nil {
			return one, err
		}
		one.bindings = append(one.bindings, binding)
		if err := binding.BindInput(classifier.InputName, in); err != nil {
			return one, err
		}
		if err := binding.BindOutput(classifier.OutputName, out); err != nil {
			return one, err
		}
	}
	return one, nil
}

func (one *buffers) destroy() (err error) {
	for _, binding := range one.bindings {
		err = errors.Join(err, binding.Destroy())
	}
	for _, v := range slices.Concat(one.inputs, one.outputs) {
		err = errors.Join(err, v.Destroy())
	}
	return err
}

// Run implements classifier.Backend. The images are copied, as ONNX Runtime's tensors
// are bound to memory of their own: less than a hundredth of what the network costs.
func (b *backend) Run(images []uint8, n int, logits []float32) error {
	one := <-b.free
	defer func() { b.free <- one }()
	copy(one.images, images[:n*b.imageBytes])
	if err := b.compute(one, n); err != nil {
		return err
	}
	copy(logits, one.logits[:n*b.labels])
	return nil
}

// compute computes the logits of the first n images of the buffers. A panic of the
// binding becomes an error.
func (b *backend) compute(one *buffers, n int) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("ONNX Runtime's binding panicked: %v", r)
		}
	}()
	if b.device != cpu {
		return b.session.Run(one.inputs[n-1:n], one.outputs[n-1:n])
	}
	return b.session.RunWithBinding(one.bindings[n-1])
}

// Limits implements classifier.Backend.
func (b *backend) Limits() classifier.Limits { return b.limits }

// Device implements classifier.Backend.
func (b *backend) Device() string { return b.device }

// Close implements classifier.Backend.
func (b *backend) Close() (err error) {
	for _, one := range b.all {
		err = errors.Join(err, one.destroy())
	}
	b.all = nil
	if b.session != nil {
		err = errors.Join(err, b.session.Destroy())
		b.session = nil
		returnMemory()
	}
	return err
}
