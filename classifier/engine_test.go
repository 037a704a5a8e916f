// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// backend is a Backend whose network is a few sums. It notes what it must not see.
type backend struct {
	labels, size int // size of an image
	limits       Limits
	fail         func(images []uint8) error // optional
	enter        chan struct{}              // optional: each run says that it has begun,
	leave        chan struct{}              // and waits until it may end

	device     string // optional
	notANumber bool   // what each run gives

	mu            sync.Mutex
	runs          int // so far
	running, most int // at a time
	largest       int // batch
	closed        int // times
	misused       []string
}

func (b *backend) Run(images []uint8, n int, logits []float32) error {
	b.mu.Lock()
	b.running++
	b.runs++
	b.most, b.largest = max(b.most, b.running), max(b.largest, n)
	if b.closed > 0 {
		b.misused = append(b.misused, "run after it was closed")
	}
	if n < 1 || n > b.limits.Batch || len(images) < n*b.size || len(logits) < n*b.labels {
		b.misused = append(b.misused, fmt.Sprintf("run with n=%d, %d images, %d logits", n, len(images), len(logits)))
	}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.running--
		b.mu.Unlock()
	}()
	if b.enter != nil {
		b.enter <- struct{}{}
		<-b.leave
	}
	if b.fail != nil {
		if err := b.fail(images[:n*b.size]); err != nil {
			return err
		}
	}
	for i := range n {
		for k := range b.labels {
			logits[i*b.labels+k] = fakeLogit(images[i*b.size:(i+1)*b.size], k)
		}
		if b.notANumber {
			logits[i*b.labels] = float32(math.NaN())
		}
	}
	return nil
}

// fakeLogit is logit k of an image: no two images of a test have the same.
func fakeLogit(image []uint8, k int) float32 {
	sum := 0
	for i, v := range image {
		sum += int(v) * (i*(2*k+3)%31 + 1)
	}
	return float32(sum%4001) / 1000
}

func (b *backend) Limits() Limits { return b.limits }
func (b *backend) Device() string { return cmp.Or(b.device, "fake") }

func (b *backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running > 0 {
		b.misused = append(b.misused, "closed in the middle of a run")
	}
	b.closed++
	return nil
}

// newBackend returns a manifest without check images and a backend that suits it.
func newBackend(t testing.TB, limits Limits) (*Manifest, *backend) {
	t.Helper()
	m, err := ReadManifest("tiny5.onnx", readModel(t, "tiny5.onnx"))
	if err != nil {
		t.Fatal(err)
	}
	m.Check = nil // of the real network
	return m, &backend{labels: len(m.Labels), size: m.imageBytes(), limits: limits}
}

// newEngine returns an engine over b, which is closed when the test ends; then b has
// to have been used well.
func newEngine(t testing.TB, m *Manifest, b *backend, queue int) *Engine {
	t.Helper()
	e, err := NewEngine("fake", m, b, queue)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if len(b.misused) > 0 || b.closed != 1 || b.most > b.limits.Runs {
			t.Errorf("backend: closed %d times, %d runs at a time of %d, %v", b.closed, b.most, b.limits.Runs, b.misused)
		}
	})
	return e
}

func randomSamples(n int) []*flow.Sample {
	samples := make([]*flow.Sample, n)
	for i := range samples {
		samples[i] = randomSample(uint64(i))
	}
	return samples
}

// expected is what an engine has to make of s.
func expected(m *Manifest, b *backend, s *flow.Sample) flow.Result {
	image := make([]uint8, m.imageBytes())
	Render(s, m.Mask, m.Channels, image)
	r := flow.Result{Labels: m.Labels, Scores: make([]float64, b.labels)}
	sum := 0.0
	for k := range r.Scores {
		r.Scores[k] = math.Exp(float64(fakeLogit(image, k)) / m.Temperature)
		sum += r.Scores[k]
	}
	for k := range r.Scores {
		r.Scores[k] /= sum
		if r.Scores[k] > r.Confidence {
			r.Class, r.Confidence = m.Labels[k], r.Scores[k]
		}
	}
	return r
}

func compareResults(t *testing.T, i int, got, want flow.Result) {
	t.Helper()
	const tolerance = 1e-9
	sum := 0.0
	for k := range want.Scores {
		sum += got.Scores[k]
		if math.Abs(got.Scores[k]-want.Scores[k]) > tolerance {
			t.Fatalf("sample %d: scores %v, want %v", i, got.Scores, want.Scores)
		}
	}
	if math.Abs(sum-1) > tolerance {
		t.Fatalf("sample %d: scores %v sum to %v", i, got.Scores, sum)
	}
	if got.Class != want.Class || math.Abs(got.Confidence-want.Confidence) > tolerance {
		t.Fatalf("sample %d: %s %v, want %s %v", i, got.Class, got.Confidence, want.Class, want.Confidence)
	}
}

func TestClassifyGivesEachSampleItsResult(t *testing.T) {
	const n = 100
	for _, limits := range []Limits{{1, 1}, {1, 3}, {2, 32}, {1, 256}} {
		m, b := newBackend(t, limits)
		e := newEngine(t, m, b, 0)
		samples, results := randomSamples(n), make([]flow.Result, n)
		if err := e.Classify(samples, results); err != nil {
			t.Fatal(err)
		}
		distinct := map[string]bool{}
		for i, s := range samples {
			compareResults(t, i, results[i], expected(m, b, s))
			distinct[fmt.Sprintf("%.6f", results[i].Scores)] = true
		}
		if len(distinct) < n/2 {
			t.Errorf("only %d different results: the test would not see a mix-up", len(distinct))
		}
		if want := min(limits.Batch, n); b.largest != want || b.runs != (n+want-1)/want {
			t.Errorf("limits %v: %d runs of at most %d images", limits, b.runs, b.largest)
		}
	}
}

func TestClassifyImagesGivesTheSameAsClassify(t *testing.T) {
	const n = 40
	m, b := newBackend(t, Limits{1, 16})
	e := newEngine(t, m, b, 0)
	samples, want, got := randomSamples(n), make([]flow.Result, n), make([]flow.Result, n)
	size := len(m.Channels) * ImagePixels
	images := make([]uint8, n*size)
	for i, s := range samples {
		Render(s, m.Mask, m.Channels, images[i*size:(i+1)*size])
	}
	before := slices.Clone(images)
	if err := e.Classify(samples, want); err != nil {
		t.Fatal(err)
	}
	if err := e.ClassifyImages(images, got); err != nil {
		t.Fatal(err)
	}
	for i := range got {
		compareResults(t, i, got[i], want[i])
	}
	if !slices.Equal(images, before) {
		t.Error("the caller's images were changed")
	}
	for _, size := range []int{0, len(images) - 1, len(images) + 1} {
		if err := e.ClassifyImages(make([]uint8, size), got); err == nil {
			t.Errorf("%d bytes for %d images are accepted", size, n)
		}
	}
	if err := e.ClassifyImages(nil, nil); err != nil {
		t.Errorf("no image: %v", err)
	}
	if err := e.Classify(samples, got[:1]); err == nil {
		t.Error("results of another length than samples were allowed")
	}
}

// Below the model's bound the outcome is unknown; the probabilities stay.
func TestUnknownIsTheOutcomeBelowTheBound(t *testing.T) {
	const n = 100
	m, b := newBackend(t, Limits{1, 32})
	samples, want, got := randomSamples(n), make([]flow.Result, n), make([]flow.Result, n)
	confidences := make([]float64, n)
	for i, s := range samples {
		want[i] = expected(m, b, s)
		confidences[i] = want[i].Confidence
	}
	slices.Sort(confidences)
	m.Unknown = (confidences[n/2-1] + confidences[n/2]) / 2 // half of them are below it
	if err := newEngine(t, m, b, 0).Classify(samples, got); err != nil {
		t.Fatal(err)
	}
	unknown := 0
	for i := range got {
		if want[i].Confidence < m.Unknown {
			want[i].Class = flow.Unknown
			unknown++
		}
		compareResults(t, i, got[i], want[i])
	}
	if unknown != n/2 {
		t.Errorf("%d of %d flows are unknown, want half", unknown, n)
	}
}

// A backend that does not compute what the training code did is not used, and what an
// engine can't use is closed.
func TestNewEngineClosesABackendThatItRefuses(t *testing.T) {
	image := func(m *Manifest) []uint8 {
		image := make([]uint8, m.imageBytes())
		checkImage(0, image)
		return image
	}
	for _, tt := range []struct {
		name   string
		queue  int
		change func(m *Manifest, b *backend)
		want   string // "" if it is accepted
	}{
		{"right logits", 0, func(m *Manifest, b *backend) {
			m.Check = [][]float64{{0, 0, 0}}
			for k := range m.Check[0] {
				m.Check[0][k] = float64(fakeLogit(image(m), k)) + 0.005
			}
		}, ""},
		{"wrong logits", 0, func(m *Manifest, b *backend) { m.Check = [][]float64{{100, 0, 0}} },
			`model fake on fake: self-check failed: logit "background" of check image 0`},
		{"no numbers", 0, func(m *Manifest, b *backend) { m.Check, b.notANumber = [][]float64{{0, 0, 0}}, true }, "self-check failed"},
		{"failing run", 0, func(m *Manifest, b *backend) {
			m.Check = [][]float64{{0, 0, 0}}
			b.fail = func([]uint8) error { return errors.New("broken") }
		}, "model fake on fake: broken"},
		{"queue of -1", -1, func(*Manifest, *backend) {}, "queue is -1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, b := newBackend(t, Limits{1, 2})
			tt.change(m, b)
			e, err := NewEngine("fake", m, b, tt.queue)
			if tt.want == "" {
				if err != nil || b.closed != 0 || e.Close() != nil {
					t.Fatalf("got %v, backend closed %d times", err, b.closed)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if b.closed != 1 {
				t.Errorf("backend closed %d times", b.closed)
			}
		})
	}
}

// Handlers may differ from sample to sample; each is called once, with its own.
func TestSubmitGivesEachHandlerItsResult(t *testing.T) {
	const n, handlers = 200, 3
	m, b := newBackend(t, Limits{3, 8})
	e := newEngine(t, m, b, n)
	var mu sync.Mutex
	var wg sync.WaitGroup
	var got [handlers]map[int]flow.Result
	var handler [handlers]Handler
	for h := range handler {
		got[h] = map[int]flow.Result{}
		handler[h] = func(s *flow.Sample, r flow.Result, err error) {
			defer wg.Done()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			// Elapsed tells which sample it is. The memory of Scores is only lent.
			r.Scores = slices.Clone(r.Scores)
			if _, twice := got[h][int(s.Elapsed)]; twice {
				t.Errorf("sample %d was handed over twice", s.Elapsed)
			}
			got[h][int(s.Elapsed)] = r
		}
	}
	var told atomic.Int64
	e.OnBatch(func(flows int, took time.Duration) {
		if told.Add(int64(flows)); flows < 1 || flows > 8 || took <= 0 {
			t.Errorf("a batch of %d flows took %s", flows, took)
		}
	})
	want := make([]flow.Result, n)
	wg.Add(n)
	for i, s := range randomSamples(n) {
		want[i] = expected(m, b, s)
		s.Elapsed = time.Duration(i)
		if !e.Submit(s, handler[i%handlers]) {
			t.Fatal("refused with room in the queue")
		}
	}
	wg.Wait()
	for i := range want {
		r, ok := got[i%handlers][i]
		if !ok {
			t.Fatalf("sample %d did not come back to its handler", i)
		}
		compareResults(t, i, r, want[i])
	}
	if told.Load() != n || e.Queue() != n {
		t.Errorf("told of %d flows in batches, and of room for %d, want %d", told.Load(), e.Queue(), n)
	}
}

// What a handler leaves behind is seen after its batch, also of a sample that is computed by
// itself, and when the engine is closed.
func TestAfterBatchFollowsItsHandlers(t *testing.T) {
	const n = 100
	m, b := newBackend(t, Limits{3, 8})
	e := newEngine(t, m, b, n)
	var left, taken atomic.Int64
	e.AfterBatch(func() { taken.Add(left.Swap(0)) })
	handler := func(*flow.Sample, flow.Result, error) { left.Add(1) }
	s := e.Get()
	s.CopyFrom(randomSample(1))
	if !e.ComputeNow(s, handler) {
		t.Fatal("not computed, with nothing to wait for")
	}
	if taken.Load() != 1 {
		t.Errorf("%d results were taken after the first", taken.Load())
	}
	for _, s := range randomSamples(n) {
		if !e.Submit(s, handler) {
			t.Fatal("refused with room in the queue")
		}
	}
	e.Close()
	if taken.Load() != 1+n || left.Load() != 0 {
		t.Errorf("%d results were taken, %d left, want %d and none", taken.Load(), left.Load(), 1+n)
	}
}

func TestSubmitRefusesWhenQueueIsFull(t *testing.T) {
	m, b := newBackend(t, Limits{1, 1})
	b.enter, b.leave = make(chan struct{}), make(chan struct{})
	e := newEngine(t, m, b, 2)
	done := make(chan error, 4)
	handler := func(_ *flow.Sample, _ flow.Result, err error) { done <- err }
	submit := func() bool { return e.Submit(randomSample(1), handler) }
	if !submit() {
		t.Fatal("the first sample was refused")
	}
	<-b.enter // it is being computed
	for range 2 {
		if !submit() {
			t.Fatal("refused with room in the queue")
		}
	}
	if submit() {
		t.Fatal("a third sample went into a queue for two")
	}
	if e.Waiting() != 2 {
		t.Fatalf("%d are waiting, want 2", e.Waiting())
	}
	b.leave <- struct{}{}
	<-b.enter // one of the two was taken out
	if !submit() {
		t.Fatal("refused although there is room again")
	}
	for range 2 {
		b.leave <- struct{}{}
		<-b.enter
	}
	b.leave <- struct{}{}
	for range 4 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// ComputeNow computes in the goroutine that calls it, and only where nothing has to be waited
// for: a run that is taken, what waits, another model that is coming, the end.
func TestComputeNowNeverWaits(t *testing.T) {
	m, b := newBackend(t, Limits{1, 4})
	e := newEngine(t, m, b, 4)
	var got []error
	handler := func(s *flow.Sample, r flow.Result, err error) {
		if err == nil {
			compareResults(t, len(got), r, expected(m, b, s))
		}
		got = append(got, err) // without a lock
	}
	for n := range 3 {
		if !e.ComputeNow(randomSample(uint64(n)), handler) || len(got) != n+1 || got[n] != nil {
			t.Fatalf("sample %d: handed over %v", n, got)
		}
	}
	refused := func(when string) {
		t.Helper()
		if e.ComputeNow(randomSample(1), handler) || len(got) != 3 {
			t.Fatalf("computed %s", when)
		}
	}

	b.enter, b.leave = make(chan struct{}), make(chan struct{})
	done := make(chan struct{}, 2)
	later := func(*flow.Sample, flow.Result, error) { done <- struct{}{} }
	if !e.Submit(randomSample(1), later) {
		t.Fatal("refused")
	}
	<-b.enter
	refused("while the only run is taken")
	if !e.Submit(randomSample(1), later) {
		t.Fatal("refused")
	}
	refused("while another sample waits")
	b.leave <- struct{}{}
	<-b.enter
	b.leave <- struct{}{}
	<-done
	<-done
	b.enter, b.leave = nil, nil

	_, next := newBackend(t, Limits{1, 4})
	n, err := NewNetwork("next", m, next)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Swap(n, func() { refused("while the model is changed") }); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	refused("after the end")
}

// A worker takes all that waits, up to a batch, and does not wait for more.
func TestBatchesAreMadeOfWhatWaits(t *testing.T) {
	m, b := newBackend(t, Limits{1, 4})
	b.enter, b.leave = make(chan struct{}), make(chan struct{})
	var sizes []int
	b.fail = func(images []uint8) error { sizes = append(sizes, len(images)/b.size); return nil }
	e := newEngine(t, m, b, 16)
	var wg sync.WaitGroup
	handler := func(*flow.Sample, flow.Result, error) { wg.Done() }
	submit := func(n int) {
		wg.Add(n)
		for range n {
			if !e.Submit(randomSample(1), handler) {
				t.Fatal("refused")
			}
		}
	}
	submit(1)
	<-b.enter
	submit(6)
	for range 2 {
		b.leave <- struct{}{}
		<-b.enter
	}
	b.leave <- struct{}{}
	wg.Wait()
	if !slices.Equal(sizes, []int{1, 4, 2}) {
		t.Errorf("batches of %v, want 1, 4, 2", sizes)
	}
}

func TestBatchThatFailsGivesItsErrorAndTheNextOneWorks(t *testing.T) {
	m, b := newBackend(t, Limits{1, 1})
	broken := errors.New("broken")
	failing := true
	b.fail = func([]uint8) error {
		if failing {
			return broken
		}
		return nil
	}
	e := newEngine(t, m, b, 0)
	got := make(chan error, 1)
	handler := func(_ *flow.Sample, r flow.Result, err error) {
		if err != nil && (r.Class != "" || r.Scores != nil) {
			t.Errorf("with the error comes %v", r)
		}
		got <- err
	}
	results := make([]flow.Result, 1)
	for range 2 {
		e.Submit(randomSample(1), handler)
		for _, err := range []error{<-got, e.Classify(randomSamples(1), results)} {
			if errors.Is(err, broken) != failing {
				t.Fatalf("got %v", err)
			}
			if err != nil && !strings.HasPrefix(err.Error(), "model fake on fake: ") {
				t.Errorf("%v does not name the model and the device", err)
			}
		}
		failing = false
	}
	b.notANumber = true
	if err := e.Classify(randomSamples(1), results); err == nil || !strings.Contains(err.Error(), "not a number") {
		t.Errorf("got %v", err)
	}
}

// Close waits for what is being computed, and hands back what is not.
func TestCloseFinishesWhatIsComputedAndHandsBackTheRest(t *testing.T) {
	m, b := newBackend(t, Limits{1, 1})
	b.enter, b.leave = make(chan struct{}), make(chan struct{})
	e := newEngine(t, m, b, 8)
	var classified, unclassified atomic.Int64
	handler := func(s *flow.Sample, _ flow.Result, err error) {
		if len(s.Data) != flow.CaptureBytes {
			t.Errorf("sample has %d bytes: it was taken back too early", len(s.Data))
		}
		switch {
		case err == nil:
			classified.Add(1)
		case errors.Is(err, ErrClosed):
			unclassified.Add(1)
		default:
			t.Error(err)
		}
	}
	submit := func() bool { return e.Submit(randomSample(1), handler) }
	submit()
	<-b.enter
	for range 3 {
		submit()
	}
	closed := make(chan error)
	go func() { closed <- e.Close() }()
	begun := func() bool {
		e.mu.RLock()
		defer e.mu.RUnlock()
		return e.closed
	}
	for !begun() {
		runtime.Gosched()
	}
	select {
	case <-closed:
		t.Fatal("Close returned in the middle of a run")
	case b.leave <- struct{}{}:
	}
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	if classified.Load() != 1 || unclassified.Load() != 3 {
		t.Errorf("%d classified, %d not; want 1 and 3", classified.Load(), unclassified.Load())
	}
	if submit() || !errors.Is(e.Classify(randomSamples(1), make([]flow.Result, 1)), ErrClosed) {
		t.Error("a closed engine took a sample")
	}
	if err := e.Close(); err != nil {
		t.Errorf("second close: %v", err)
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
