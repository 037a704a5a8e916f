// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	ort "github.com/yalue/onnxruntime_go"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Defaults and bounds of Options.
const (
	DefaultMaxBatch = 32
	DefaultQueue    = 4096

	maxMaxBatch = 256
	maxWorkers  = 256

	// cpu is the device that needs no GPU.
	cpu = "cpu"
)

// Options says how an Engine computes. The zero value is usable.
type Options struct {
	// Library is the path of ONNX Runtime's shared library (optional). Without
	// it, the library is looked for: in the variable EARLYDROP_ONNXRUNTIME, in
	// lib/ beside the program, and in the folders of the system's loader.
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
	// each on one thread, 1 to 256 (optional; default: one per usable CPU, and
	// 1 on a GPU).
	Workers int
	// MaxBatch bounds how many flows a worker computes at once, 1 to 256
	// (optional; default 32).
	MaxBatch int
	// Queue is how many samples may wait, at least 1 (optional; default 4096).
	// When so many wait, Submit refuses more.
	Queue int
}

// ErrClosed is the error of samples that were still waiting, or are submitted,
// when the Engine is closed.
var ErrClosed = errors.New("classifier is closed")

// Handler takes the result of one submitted sample, or the error that kept it
// from having one. It is called from several goroutines at once. The sample
// and result.Scores are valid until it returns.
type Handler func(s *flow.Sample, result flow.Result, err error)

// Engine classifies captures with one model.
//
// There are two ways to use it: Classify, which returns when its samples are
// done, and Start with Submit, which hands results to a Handler. All methods
// are safe for concurrent use.
type Engine struct {
	manifest *Manifest
	name     string
	device   string
	session  *ort.DynamicAdvancedSession
	maxBatch int

	// lanes are the sets of buffers, one for each computation at a time. A
	// computation takes one out and puts it back.
	lanes chan *lane
	all   []*lane

	queue chan *flow.Sample
	free  chan *flow.Sample
	wg    sync.WaitGroup

	mu      sync.RWMutex // guards what follows, and sending to queue
	started bool
	closed  bool
	stop    chan struct{}
}

// lane holds the tensors of one computation at a time. ONNX Runtime reads and
// writes Go memory in place: for each batch size there are tensors of the first
// images and logits of the same two buffers, so that a run neither allocates nor
// pads.
type lane struct {
	images []uint8   // [maxBatch][C][32][32]
	logits []float32 // [maxBatch][K]
	// inputs[n-1] and outputs[n-1] are for n images, and so is bindings[n-1].
	inputs, outputs []ort.Value
	// bindings spare a run on the CPU all allocation. On another device there are
	// none: a bound input is copied there when it is bound, not when the session
	// runs, which would then see the same images for ever.
	bindings []*ort.IoBinding
}

// Open loads the model in onnx, the bytes of an ONNX file, and sets up
// opts.Workers computations. name stands in errors; it is the file's path, or
// another word for where the model comes from.
//
// The errors name the file and what is wrong with it; those that wrap
// ErrLibrary are about ONNX Runtime's shared library instead.
func Open(name string, onnx []byte, opts Options) (_ *Engine, err error) {
	manifest, err := ReadManifest(name, onnx)
	if err != nil {
		return nil, err
	}
	device, gpu, err := parseDevice(opts.Device)
	if err != nil {
		return nil, err
	}
	if opts.Workers == 0 {
		opts.Workers = min(runtime.GOMAXPROCS(0), maxWorkers)
		if gpu >= 0 {
			opts.Workers = 1
		}
	}
	if opts.MaxBatch == 0 {
		opts.MaxBatch = DefaultMaxBatch
	}
	if opts.Queue == 0 {
		opts.Queue = DefaultQueue
	}
	if opts.Workers < 1 || opts.Workers > maxWorkers {
		return nil, fmt.Errorf("classifier: workers is %d, expected 1 to %d", opts.Workers, maxWorkers)
	}
	if opts.MaxBatch < 1 || opts.MaxBatch > maxMaxBatch {
		return nil, fmt.Errorf("classifier: max batch is %d, expected 1 to %d", opts.MaxBatch, maxMaxBatch)
	}
	if opts.Queue < 1 {
		return nil, fmt.Errorf("classifier: queue is %d, expected at least 1", opts.Queue)
	}
	if err := initRuntime(opts.Library); err != nil {
		return nil, fmt.Errorf("classifier: %w", err)
	}

	e := &Engine{
		manifest: manifest,
		name:     name,
		device:   device,
		maxBatch: opts.MaxBatch,
		lanes:    make(chan *lane, opts.Workers),
		queue:    make(chan *flow.Sample, opts.Queue),
		free:     make(chan *flow.Sample, opts.Queue+2*opts.Workers*opts.MaxBatch),
		stop:     make(chan struct{}),
	}
	defer func() {
		if err != nil {
			e.destroy()
		}
	}()
	if e.session, err = newSession(onnx, gpu); err != nil {
		return nil, fmt.Errorf("model %s on %s: %w", name, device, err)
	}
	for range opts.Workers {
		l, err := e.newLane()
		if l != nil {
			e.all = append(e.all, l)
		}
		if err != nil {
			return nil, fmt.Errorf("model %s on %s: %w", name, device, err)
		}
		e.lanes <- l
	}
	if err := e.selfCheck(); err != nil {
		return nil, fmt.Errorf("model %s on %s: %w", name, device, err)
	}
	return e, nil
}

// OpenFile is Open on the model file at path.
func OpenFile(path string, opts Options) (*Engine, error) {
	data, err := ReadModelFile(path)
	if err != nil {
		return nil, err
	}
	return Open(path, data, opts)
}

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

// newSession builds the session that all lanes share: ONNX Runtime allows
// concurrent runs, and with one thread per run each computes on the goroutine
// that called it. Sharing keeps one copy of the weights in memory and caches.
func newSession(onnx []byte, gpu int) (*ort.DynamicAdvancedSession, error) {
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
	return ort.NewDynamicAdvancedSessionWithONNXData(onnx,
		[]string{inputName}, []string{outputName}, options)
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

// newLane returns what it made also on failure, so that it can be destroyed.
func (e *Engine) newLane() (*lane, error) {
	planes, labels := len(e.manifest.Channels), len(e.manifest.Labels)
	l := &lane{
		images: make([]uint8, e.maxBatch*planes*ImagePixels),
		logits: make([]float32, e.maxBatch*labels),
	}
	for n := 1; n <= e.maxBatch; n++ {
		in, err := ort.NewTensor(ort.NewShape(int64(n), int64(planes), ImageSide, ImageSide), l.images)
		if err != nil {
			return l, err
		}
		l.inputs = append(l.inputs, in)
		out, err := ort.NewTensor(ort.NewShape(int64(n), int64(labels)), l.logits)
		if err != nil {
			return l, err
		}
		l.outputs = append(l.outputs, out)
		if e.device != cpu {
			continue
		}
		binding, err := e.session.CreateIoBinding()
		if err != nil {
			return l, err
		}
		l.bindings = append(l.bindings, binding)
		if err := binding.BindInput(inputName, in); err != nil {
			return l, err
		}
		if err := binding.BindOutput(outputName, out); err != nil {
			return l, err
		}
	}
	return l, nil
}

func (l *lane) destroy() (err error) {
	for _, b := range l.bindings {
		err = errors.Join(err, b.Destroy())
	}
	for _, v := range slices.Concat(l.inputs, l.outputs) {
		err = errors.Join(err, v.Destroy())
	}
	return err
}

func (e *Engine) destroy() (err error) {
	for _, l := range e.all {
		err = errors.Join(err, l.destroy())
	}
	e.all = nil
	if e.session != nil {
		err = errors.Join(err, e.session.Destroy())
		e.session = nil
	}
	return err
}

// checkImage fills image with fixed bytes of which the training code computes
// the logits too: pixel i of image n is ((i+1)*(2n+3) + i/32*(7n+1)) mod 256,
// where i counts through all planes.
func checkImage(n int, image []uint8) {
	for i := range image {
		image[i] = uint8((i+1)*(2*n+3) + i/ImageSide*(7*n+1))
	}
}

// checkTolerance is how far a logit may be off the training framework's, as a
// share of the largest logit plus a constant: a GPU with reduced precision is
// within, a wrong network or a broken provider is not.
const checkTolerance = 0.01

// selfCheck computes the manifest's check images and compares the logits.
func (e *Engine) selfCheck() error {
	l := <-e.lanes
	defer func() { e.lanes <- l }()
	size, labels := len(e.manifest.Channels)*ImagePixels, len(e.manifest.Labels)
	for n, want := range e.manifest.Check {
		checkImage(n, l.images[:size])
		if err := e.run(l, 1); err != nil {
			return err
		}
		scale := 1.0
		for _, w := range want {
			scale = max(scale, math.Abs(w))
		}
		for k, got := range l.logits[:labels] {
			if d := math.Abs(float64(got) - want[k]); !(d <= checkTolerance*scale) {
				return fmt.Errorf("self-check failed: logit %q of check image %d is %v, the training code computed %v",
					e.manifest.Labels[k], n, got, want[k])
			}
		}
	}
	return nil
}

// Manifest returns the model's manifest. It is shared and read-only.
func (e *Engine) Manifest() *Manifest { return e.manifest }

// Device returns where the model is computed: "cpu" or "cuda:N".
func (e *Engine) Device() string { return e.device }

// Get returns an empty sample to fill and submit, reused where possible.
func (e *Engine) Get() *flow.Sample {
	select {
	case s := <-e.free:
		return s
	default:
		s := new(flow.Sample)
		s.Reset()
		return s
	}
}

// Put takes back a sample of Get that was not submitted, or that Submit
// refused. The caller must not use it afterwards.
func (e *Engine) Put(s *flow.Sample) {
	s.Reset()
	select {
	case e.free <- s:
	default: // as many as can ever be waiting are there already
	}
}

// Start begins to compute what is submitted and hands every result to handler.
// It may be called once.
func (e *Engine) Start(handler Handler) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return ErrClosed
	}
	if e.started {
		return errors.New("classifier was started already")
	}
	e.started = true
	for range len(e.all) {
		e.wg.Go(func() { e.work(handler) })
	}
	return nil
}

// Submit queues a sample. It never waits: it returns false when the queue is
// full or the engine is closed, and then the sample stays the caller's. When
// it returns true the sample belongs to the engine, which calls the handler
// exactly once and then takes it back as Put does.
func (e *Engine) Submit(s *flow.Sample) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		return false
	}
	select {
	case e.queue <- s:
		return true
	default:
		return false
	}
}

// Waiting returns how many samples are queued and not yet being computed.
func (e *Engine) Waiting() int { return len(e.queue) }

// work computes what is submitted until the engine is closed. It takes all
// that is waiting, up to one batch, and never waits for more: batches grow
// under load, and a sample that comes alone is computed at once.
func (e *Engine) work(handler Handler) {
	batch := make([]*flow.Sample, 0, e.maxBatch)
	results := make([]flow.Result, e.maxBatch)
	for s := range e.queue {
		batch = append(batch[:0], s)
	more:
		for len(batch) < e.maxBatch {
			select {
			case s, ok := <-e.queue:
				if !ok {
					break more
				}
				batch = append(batch, s)
			default:
				break more
			}
		}
		err := ErrClosed
		select {
		case <-e.stop:
			// What waited when the engine was closed passes unclassified.
		default:
			l := <-e.lanes
			err = e.compute(l, batch, results[:len(batch)])
			e.lanes <- l
		}
		for i, s := range batch {
			if err != nil {
				handler(s, flow.Result{}, err)
			} else {
				handler(s, results[i], nil)
			}
			e.Put(s)
		}
	}
}

// Classify computes the results of samples, in the same order, and returns
// when all are done. results must be as long as samples; the memory of its
// Scores is used again where it is large enough. On an error no result is
// valid.
func (e *Engine) Classify(samples []*flow.Sample, results []flow.Result) error {
	if len(samples) != len(results) {
		return fmt.Errorf("classifier: %d samples, but room for %d results", len(samples), len(results))
	}
	// Holding the lock keeps Close from freeing what is computed with.
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		return ErrClosed
	}
	for done := 0; done < len(samples); {
		n := min(e.maxBatch, len(samples)-done)
		l := <-e.lanes
		err := e.compute(l, samples[done:done+n], results[done:done+n])
		e.lanes <- l
		if err != nil {
			return err
		}
		done += n
	}
	return nil
}

// ClassifyImages is Classify for images that the caller has rendered, as Render
// does for the model's mask and channels: one behind the other, one for each of
// results.
func (e *Engine) ClassifyImages(images []uint8, results []flow.Result) error {
	size := len(e.manifest.Channels) * ImagePixels
	if len(images) != len(results)*size {
		return fmt.Errorf("classifier: %d bytes of images, expected %d of %d bytes", len(images), len(results), size)
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		return ErrClosed
	}
	for done := 0; done < len(results); {
		n := min(e.maxBatch, len(results)-done)
		l := <-e.lanes
		copy(l.images, images[done*size:(done+n)*size])
		err := e.infer(l, results[done:done+n])
		e.lanes <- l
		if err != nil {
			return err
		}
		done += n
	}
	return nil
}

// compute fills results with the answers for samples, at most maxBatch.
func (e *Engine) compute(l *lane, samples []*flow.Sample, results []flow.Result) error {
	size := len(e.manifest.Channels) * ImagePixels
	for i, s := range samples {
		Render(s, e.manifest.Mask, e.manifest.Channels, l.images[i*size:(i+1)*size])
	}
	return e.infer(l, results)
}

// infer fills results with the answers for the lane's first images.
func (e *Engine) infer(l *lane, results []flow.Result) error {
	labels := len(e.manifest.Labels)
	if err := e.run(l, len(results)); err != nil {
		return fmt.Errorf("model %s on %s: %w", e.name, e.device, err)
	}
	for i := range results {
		r := &results[i]
		logits := l.logits[i*labels:][:labels]
		r.Labels = e.manifest.Labels
		r.Scores = slices.Grow(r.Scores[:0], labels)[:labels]
		softmax(logits, e.manifest.Temperature, r.Scores)
		best := 0
		for k, p := range r.Scores {
			if math.IsNaN(p) {
				return fmt.Errorf("model %s on %s: the network's output is not a number", e.name, e.device)
			}
			if p > r.Scores[best] {
				best = k
			}
		}
		r.Class, r.Confidence = r.Labels[best], r.Scores[best]
		if r.Confidence < e.manifest.Unknown {
			r.Class = flow.Unknown
		}
	}
	return nil
}

// run computes the logits of the first n images of the lane. A panic of the
// binding becomes an error.
func (e *Engine) run(l *lane, n int) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("ONNX Runtime's binding panicked: %v", r)
		}
	}()
	if e.device != cpu {
		return e.session.Run(l.inputs[n-1:n], l.outputs[n-1:n])
	}
	return e.session.RunWithBinding(l.bindings[n-1])
}

// softmax writes the probabilities of logits/temperature to p.
func softmax(logits []float32, temperature float64, p []float64) {
	top := math.Inf(-1)
	for _, v := range logits {
		top = max(top, float64(v))
	}
	sum := 0.0
	for i, v := range logits {
		p[i] = math.Exp((float64(v) - top) / temperature)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
}

// Close ends the engine: what is being computed is finished, samples that
// still wait go to the handler with ErrClosed, and when it returns the handler
// is not called any more and all memory of the model is freed. It must not be
// called from the handler. A second Close does nothing.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	close(e.stop)
	close(e.queue)
	e.mu.Unlock()
	// From here on nobody new comes in, and Classify, which holds the lock
	// while it computes, is out.
	e.wg.Wait()
	return e.destroy()
}
