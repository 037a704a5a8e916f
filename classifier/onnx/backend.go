// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package onnx

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	ort "github.com/yalue/onnxruntime_go"
	"golang.org/x/sync/errgroup"

	"github.com/earlydrop/earlydrop/classifier"
)

// backend is one model in ONNX Runtime.
type backend struct {
	device string
	limits classifier.Limits

	// sizes are the batches that are computed, from small to large. Others are padded to
	// the next size.
	sizes []int
	// sessions[i] computes sizes[i]. On a CPU one session computes all. On a GPU each size has
	// one, with weights of its own: a convolution there prepares itself anew, for
	// milliseconds, whenever a batch has another size than the one before, be that of another
	// worker.
	sessions []*ort.DynamicAdvancedSession

	// free has the buffers that no run uses, of all of them.
	free chan *buffers
	all  []*buffers

	imageBytes, labels int // of one image
}

// gpuSizes are the batches that a GPU computes: for each new size it would allocate memory
// and choose kernels anew, in the middle of the work.
var gpuSizes = [...]int{1, 8, 32, 64, 128, 256}

// sizesOf returns the batches that are computed where the largest is most. A CPU computes
// every size, as nothing is dearer there than a padded image.
func sizesOf(most int, gpu bool) (sizes []int) {
	if !gpu {
		for n := range most {
			sizes = append(sizes, n+1)
		}
		return sizes
	}
	for _, n := range gpuSizes {
		sizes = append(sizes, n)
		if n >= most {
			break
		}
	}
	return sizes
}

// buffers holds the tensors of one run at a time. ONNX Runtime reads and writes Go
// memory in place: for each size there are tensors of the first images and logits of the
// same two buffers, so that a run allocates nothing.
type buffers struct {
	images []uint8   // [largest size][C][32][32]
	logits []float32 // [largest size][K]
	// inputs[i] and outputs[i] are for sizes[i] images, and so is bindings[i].
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
		sizes:      sizesOf(opts.MaxBatch, gpu >= 0),
		free:       make(chan *buffers, opts.Workers),
		imageBytes: len(m.Channels) * classifier.ImagePixels,
		labels:     len(m.Labels),
	}
	defer func() {
		if err != nil {
			_ = b.Close()
		}
	}()
	if err := b.newSessions(data, gpu); err != nil {
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
	if gpu >= 0 {
		if err := b.warmUp(); err != nil {
			return nil, withLacking(err)
		}
	}
	return b, nil
}

// warmUp computes a batch of each size with each of the buffers, all of them at the same time
// as in the work that follows: nothing is allocated or chosen any more then, and a device that
// can't do it is found before that.
func (b *backend) warmUp() error {
	var running errgroup.Group
	for _, one := range b.all {
		running.Go(func() error {
			for i, n := range b.sizes {
				if err := b.compute(one, i); err != nil {
					return fmt.Errorf("warming up with %d images: %w", n, err)
				}
			}
			return nil
		})
	}
	return running.Wait()
}

// newSessions builds the sessions.
func (b *backend) newSessions(data []byte, gpu int) error {
	for i := range b.sizes {
		if i > 0 && gpu < 0 {
			b.sessions = append(b.sessions, b.sessions[0])
			continue
		}
		session, err := newSession(data, gpu)
		if err != nil {
			return err
		}
		b.sessions = append(b.sessions, session)
	}
	return nil
}

// newSession builds a session that all runs of a size share: ONNX Runtime allows
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
			return nil, withLacking(fmt.Errorf("the CUDA provider can't be used: %w", err))
		}
	}
	session, err := ort.NewDynamicAdvancedSessionWithONNXData(data,
		[]string{classifier.InputName}, []string{classifier.OutputName}, options)
	if err != nil && gpu >= 0 {
		err = withLacking(err)
	}
	return session, err
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
		// As the GPU's matrix units want it: without it each convolution
		// turns what it reads and writes.
		"prefer_nhwc": "1",
	}); err != nil {
		return err
	}
	return options.AppendExecutionProviderCUDA(cuda)
}

// newBuffers returns what it made also on failure, so that it can be destroyed.
func (b *backend) newBuffers(channels int64) (*buffers, error) {
	largest := b.sizes[len(b.sizes)-1]
	one := &buffers{
		images: make([]uint8, largest*b.imageBytes),
		logits: make([]float32, largest*b.labels),
	}
	for i, n := range b.sizes {
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
		binding, err := b.sessions[i].CreateIoBinding()
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
	i, _ := slices.BinarySearch(b.sizes, n)
	used := copy(one.images, images[:n*b.imageBytes])
	clear(one.images[used : b.sizes[i]*b.imageBytes]) // other flows were there
	if err := b.compute(one, i); err != nil {
		return err
	}
	copy(logits, one.logits[:n*b.labels])
	return nil
}

// compute computes the logits of the first sizes[i] images of the buffers. A panic of the
// binding becomes an error.
func (b *backend) compute(one *buffers, i int) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("ONNX Runtime's binding panicked: %v", r)
		}
	}()
	if b.device != cpu {
		return b.sessions[i].Run(one.inputs[i:i+1], one.outputs[i:i+1])
	}
	return b.sessions[i].RunWithBinding(one.bindings[i])
}

// Limits implements classifier.Backend.
func (b *backend) Limits() classifier.Limits { return b.limits }

// Device implements classifier.Backend. On the CPU there is another backend as well.
func (b *backend) Device() string {
	if b.device == cpu {
		return cpu + " (onnx)"
	}
	return b.device
}

// Close implements classifier.Backend.
func (b *backend) Close() (err error) {
	for _, one := range b.all {
		err = errors.Join(err, one.destroy())
	}
	b.all = nil
	for _, session := range slices.Compact(b.sessions) {
		err = errors.Join(err, session.Destroy())
	}
	b.sessions = nil
	returnMemory()
	return err
}
