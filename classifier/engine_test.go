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
	"sync/atomic"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
)

// maxDifference is the tolerance between the results of different batch sizes.
const maxDifference = 1e-5

func TestEngineOpensAndChecksItself(t *testing.T) {
	for _, name := range []string{"tiny.onnx", "tiny5.onnx"} {
		t.Run(name, func(t *testing.T) {
			e := openEngine(t, name, Options{Workers: 1})
			if len(e.Manifest().Check) == 0 {
				t.Fatal("the model has no check images, so the test proves nothing")
			}
			if e.Device() != "cpu" || RuntimeVersion() == "" {
				t.Errorf("device %q, runtime %q", e.Device(), RuntimeVersion())
			}
		})
	}
}

// The shipped model computes the same logits as the training code (the
// self-check of Open) and knows the classes that the shipped policy names.
func TestEngineOpensShippedModel(t *testing.T) {
	name, onnx := models.Default()
	e, err := Open(name, onnx, Options{Workers: 1, MaxBatch: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	m := e.Manifest()
	if len(m.Check) == 0 {
		t.Error("the shipped model has no check images")
	}
	for _, label := range []string{"background", "shadowsocks", "v2ray"} {
		if !slices.Contains(m.Labels, label) {
			t.Errorf("labels are %s, without %s", m.Labels, label)
		}
	}
}

func TestEngineRefusesWhatItCanNotCompute(t *testing.T) {
	for _, tt := range []struct{ file, want string }{
		{"unknown-operator.onnx", "NoSuchOperator"},
		{"wrong-check.onnx", "self-check failed"},
	} {
		_, err := Open(tt.file, readModel(t, tt.file), Options{})
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.file) {
			t.Errorf("%s: got %v, want an error with the file's name and %q", tt.file, err, tt.want)
		}
	}
}

func TestEngineRefusesOptions(t *testing.T) {
	for _, tt := range []struct {
		opts Options
		want string
	}{
		{Options{Device: "tpu"}, `unknown device "tpu"`},
		{Options{Device: "cuda"}, `unknown device "cuda"`},
		{Options{Device: "cuda:-1"}, `unknown device "cuda:-1"`},
		{Options{Device: "cuda:999"}, `unknown device "cuda:999"`},
		{Options{Workers: -1}, "workers is -1"},
		{Options{Workers: 1000}, "workers is 1000"},
		{Options{MaxBatch: -1}, "max batch is -1"},
		{Options{MaxBatch: 1000}, "max batch is 1000"},
		{Options{Queue: -1}, "queue is -1"},
	} {
		_, err := Open("tiny.onnx", readModel(t, "tiny.onnx"), tt.opts)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: got %v, want %q", tt.opts, err, tt.want)
		}
	}
}

func TestEngineSaysWhyThereIsNoGPU(t *testing.T) {
	e, err := Open("tiny.onnx", readModel(t, "tiny.onnx"), Options{Device: "cuda:0"})
	if err == nil {
		defer e.Close()
		t.Skip("this machine has a GPU that ONNX Runtime can use")
	}
	if !strings.Contains(err.Error(), "cuda:0") || !strings.Contains(err.Error(), "CUDA provider") {
		t.Errorf("got %v", err)
	}
}

func TestClassifyDoesNotDependOnBatchOrOrder(t *testing.T) {
	for _, name := range []string{"tiny.onnx", "tiny5.onnx"} {
		t.Run(name, func(t *testing.T) {
			const n = 100
			samples := make([]*flow.Sample, n)
			for i := range samples {
				samples[i] = randomSample(uint64(i))
			}
			one := openEngine(t, name, Options{Workers: 1, MaxBatch: 1})
			many := openEngine(t, name, Options{Workers: 2, MaxBatch: 32})
			want, got := make([]flow.Result, n), make([]flow.Result, n)
			if err := one.Classify(samples, want); err != nil {
				t.Fatal(err)
			}
			reversed := make([]*flow.Sample, n)
			for i := range samples {
				reversed[i] = samples[n-1-i]
			}
			if err := many.Classify(reversed, got); err != nil {
				t.Fatal(err)
			}
			distinct := map[string]bool{}
			for i := range want {
				compareResults(t, i, got[n-1-i], want[i])
				distinct[fmt.Sprintf("%.6f", want[i].Scores)] = true
			}
			if len(distinct) < n/2 {
				t.Errorf("only %d different results for %d samples: the test would not see a mix-up", len(distinct), n)
			}
		})
	}
}

func compareResults(t *testing.T, i int, got, want flow.Result) {
	t.Helper()
	sum := 0.0
	for k := range want.Scores {
		sum += got.Scores[k]
		if math.Abs(got.Scores[k]-want.Scores[k]) > maxDifference {
			t.Fatalf("sample %d: scores %v, want %v", i, got.Scores, want.Scores)
		}
	}
	if math.Abs(sum-1) > 1e-9 {
		t.Fatalf("sample %d: scores %v sum to %v", i, got.Scores, sum)
	}
	if got.Class != want.Class || math.Abs(got.Confidence-want.Confidence) > maxDifference {
		t.Fatalf("sample %d: %s %v, want %s %v", i, got.Class, got.Confidence, want.Class, want.Confidence)
	}
}

func TestClassifyImagesGivesTheSameAsClassify(t *testing.T) {
	const n = 40
	e := openEngine(t, "tiny5.onnx", Options{Workers: 1, MaxBatch: 16})
	m := e.Manifest()
	samples, want, got := make([]*flow.Sample, n), make([]flow.Result, n), make([]flow.Result, n)
	size := len(m.Channels) * ImagePixels
	images := make([]uint8, n*size)
	for i := range samples {
		samples[i] = randomSample(uint64(i))
		Render(samples[i], m.Mask, m.Channels, images[i*size:(i+1)*size])
	}
	if err := e.Classify(samples, want); err != nil {
		t.Fatal(err)
	}
	if err := e.ClassifyImages(images, got); err != nil {
		t.Fatal(err)
	}
	for i := range got {
		compareResults(t, i, got[i], want[i])
	}
	for _, size := range []int{0, len(images) - 1, len(images) + 1} {
		if err := e.ClassifyImages(make([]uint8, size), got); err == nil {
			t.Errorf("%d bytes for %d images are accepted", size, n)
		}
	}
	if err := e.ClassifyImages(nil, nil); err != nil {
		t.Errorf("no image: %v", err)
	}
}

// Below the model's bound the outcome is unknown; the probabilities stay.
func TestUnknownIsTheOutcomeBelowTheBound(t *testing.T) {
	const n = 100
	samples := make([]*flow.Sample, n)
	for i := range samples {
		samples[i] = randomSample(uint64(i))
	}
	plain := make([]flow.Result, n)
	if err := openEngine(t, "tiny.onnx", Options{Workers: 1}).Classify(samples, plain); err != nil {
		t.Fatal(err)
	}
	confidences := make([]float64, n)
	for i := range plain {
		confidences[i] = plain[i].Confidence
	}
	slices.Sort(confidences)
	bound := strconv.FormatFloat((confidences[n/2-1]+confidences[n/2])/2, 'g', -1, 64) // half of them are below it
	e, err := Open("bounded", setMetadata(t, readModel(t, "tiny.onnx"), "unknown", &bound), Options{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	got := make([]flow.Result, n)
	if err := e.Classify(samples, got); err != nil {
		t.Fatal(err)
	}
	unknown := 0
	for i := range got {
		want := plain[i]
		if want.Confidence < e.Manifest().Unknown {
			want.Class = flow.Unknown
			unknown++
		}
		compareResults(t, i, got[i], want)
	}
	if unknown != n/2 {
		t.Errorf("%d of %d flows are unknown, want half", unknown, n)
	}
}

func TestSubmitGivesSameResultsAsClassify(t *testing.T) {
	const n = 200
	e := openEngine(t, "tiny.onnx", Options{Workers: 3, MaxBatch: 8, Queue: n})
	samples, want := make([]*flow.Sample, n), make([]flow.Result, n)
	for i := range samples {
		samples[i] = randomSample(uint64(i))
		// The initial time tells the handler which one it has.
		samples[i].Elapsed = time.Duration(i)
	}
	if err := e.Classify(samples, want); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	got := map[int]flow.Result{}
	var wg sync.WaitGroup
	wg.Add(n)
	if err := e.Start(func(s *flow.Sample, r flow.Result, err error) {
		defer wg.Done()
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			t.Error(err)
		}
		r.Scores = append([]float64(nil), r.Scores...)
		got[int(s.Elapsed)] = r
	}); err != nil {
		t.Fatal(err)
	}
	for _, s := range samples {
		if !e.Submit(s) {
			t.Fatal("refused with room in the queue")
		}
	}
	wg.Wait()
	if len(got) != n {
		t.Fatalf("%d results for %d samples", len(got), n)
	}
	for i := range want {
		compareResults(t, i, got[i], want[i])
	}
}

func TestSubmitRefusesWhenQueueIsFull(t *testing.T) {
	e := openEngine(t, "tiny.onnx", Options{Workers: 1, Queue: 2})
	// Not started yet, so nothing is taken out.
	for i := range 2 {
		if !e.Submit(randomSample(uint64(i))) {
			t.Fatalf("sample %d was refused", i)
		}
	}
	if e.Submit(randomSample(3)) {
		t.Fatal("a third sample went into a queue for two")
	}
	if e.Waiting() != 2 {
		t.Fatalf("%d are waiting, want 2", e.Waiting())
	}
	done := make(chan error, 2)
	if err := e.Start(func(_ *flow.Sample, _ flow.Result, err error) { done <- err }); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if !e.Submit(randomSample(4)) {
		t.Fatal("refused although the queue is empty again")
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestBatchThatFailsGivesItsErrorAndTheNextOneWorks(t *testing.T) {
	e := openEngine(t, "fails-at-run.onnx", Options{Workers: 1, MaxBatch: 1})
	good, bad := randomSample(1), randomSample(1)
	good.Data[flow.CaptureBytes-1] = 0
	bad.Data[flow.CaptureBytes-1] = 255
	results := make([]flow.Result, 1)
	for _, tt := range []struct {
		sample *flow.Sample
		fails  bool
	}{{good, false}, {bad, true}, {good, false}} {
		err := e.Classify([]*flow.Sample{tt.sample}, results)
		if (err != nil) != tt.fails {
			t.Fatalf("error is %v, want one: %v", err, tt.fails)
		}
		if err != nil && !strings.Contains(err.Error(), "fails-at-run.onnx") {
			t.Errorf("%v does not name the model", err)
		}
	}
	got := make(chan error, 1)
	if err := e.Start(func(_ *flow.Sample, _ flow.Result, err error) { got <- err }); err != nil {
		t.Fatal(err)
	}
	e.Submit(bad)
	if err := <-got; err == nil {
		t.Error("the handler got no error")
	}
}

func TestCloseUnderLoad(t *testing.T) {
	for round := range 5 {
		e, err := Open("tiny.onnx", readModel(t, "tiny.onnx"), Options{Workers: 2, MaxBatch: 4, Queue: 64})
		if err != nil {
			t.Fatal(err)
		}
		var handled, failed, accepted atomic.Int64
		if err := e.Start(func(s *flow.Sample, _ flow.Result, err error) {
			if len(s.Data) != flow.CaptureBytes {
				t.Errorf("sample has %d bytes: it was taken back too early", len(s.Data))
			}
			handled.Add(1)
			if errors.Is(err, ErrClosed) {
				failed.Add(1)
			} else if err != nil {
				t.Error(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		model := randomSample(1)
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					s := e.Get()
					s.Data = append(s.Data, model.Data...)
					s.Packets = append(s.Packets, model.Packets...)
					if e.Submit(s) {
						accepted.Add(1)
					} else {
						e.Put(s)
						runtime.Gosched()
					}
				}
			})
		}
		wg.Go(func() {
			results := make([]flow.Result, 1)
			for {
				if err := e.Classify([]*flow.Sample{model}, results); err != nil {
					if !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		})
		time.Sleep(time.Duration(5+10*round) * time.Millisecond)
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		afterClose := handled.Load()
		close(stop)
		wg.Wait()
		if err := e.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
		if e.Submit(model) {
			t.Error("a closed engine took a sample")
		}
		if h := handled.Load(); h != accepted.Load() || h != afterClose || h == 0 {
			t.Errorf("accepted %d, handled %d (%d when Close returned)", accepted.Load(), h, afterClose)
		}
		t.Logf("accepted %d, of which %d unclassified at the end", accepted.Load(), failed.Load())
	}
}

func TestStartOnlyOnce(t *testing.T) {
	e := openEngine(t, "tiny.onnx", Options{})
	nothing := func(*flow.Sample, flow.Result, error) {}
	if err := e.Start(nothing); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(nothing); err == nil {
		t.Error("a second start was allowed")
	}
	if err := e.Classify(make([]*flow.Sample, 1), nil); err == nil {
		t.Error("results of another length than samples were allowed")
	}
}

// A flow that goes through the queue costs no memory once the engine is warm.
func TestSubmitDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	e := openEngine(t, "tiny.onnx", Options{Workers: 1})
	model := randomSample(1)
	done := make(chan struct{}, 1)
	if err := e.Start(func(*flow.Sample, flow.Result, error) { done <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	once := func() {
		s := e.Get()
		s.Data = append(s.Data, model.Data...)
		s.Packets = append(s.Packets, model.Packets...)
		if !e.Submit(s) {
			t.Fatal("refused")
		}
		<-done
	}
	for range 100 {
		once()
	}
	if n := testing.AllocsPerRun(500, once); n >= 1 {
		t.Errorf("%v allocations per flow", n)
	}
}

func BenchmarkClassify(b *testing.B) {
	name, onnx := models.Default()
	for _, batch := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			e, err := Open(name, onnx, Options{Workers: 1, MaxBatch: batch})
			if err != nil {
				b.Fatal(err)
			}
			defer e.Close()
			samples := make([]*flow.Sample, batch)
			for i := range samples {
				samples[i] = randomSample(uint64(i))
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

func BenchmarkRender(b *testing.B) {
	s := randomSample(1)
	for _, tt := range []struct {
		name     string
		channels []Channel
	}{
		{"byte", []Channel{ChannelByte}},
		{"streams and packets", []Channel{ChannelStreams, ChannelPackets}},
		{"all", []Channel{ChannelByte, ChannelDirection, ChannelPayload, ChannelLength, ChannelTime}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			dst := make([]uint8, len(tt.channels)*ImagePixels)
			b.ReportAllocs()
			for b.Loop() {
				Render(s, RecipeStrict, tt.channels, dst)
			}
		})
	}
}
