// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/earlydrop/earlydrop/loader/flow"
)

var errDevice = errors.New("the device is lost")

// newSpared returns an engine over gpu, with cpu as its spare. The engine is closed when the
// test ends; then both have to have been used well, and closed.
func newSpared(t *testing.T) (e *Engine, m *Manifest, gpu, cpu *backend) {
	t.Helper()
	m, gpu = newBackend(t, Limits{Runs: 2, Batch: 8})
	_, cpu = newBackend(t, Limits{Runs: 3, Batch: 3})
	gpu.device, cpu.device = "gpu", "cpu"
	n, err := NewNetwork("fake", m, gpu)
	if err != nil {
		t.Fatal(err)
	}
	spare, err := NewNetwork("fake", m, cpu)
	if err != nil {
		t.Fatal(err)
	}
	n.FallBackOn(spare)
	if e, err = n.Engine(0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		for _, b := range []*backend{gpu, cpu} {
			if len(b.misused) > 0 || b.closed != 1 || b.most > b.limits.Runs {
				t.Errorf("%s: closed %d times, %d runs at a time of %d, %v", b.device, b.closed, b.most, b.limits.Runs, b.misused)
			}
		}
	})
	return e, m, gpu, cpu
}

// failFrom has the backend fail from some run on.
func (b *backend) failFrom(run int64) {
	var runs atomic.Int64
	b.fail = func([]uint8) error {
		if runs.Add(1) >= run {
			return errDevice
		}
		return nil
	}
}

func sameScores(a, b flow.Result) bool {
	return a.Class == b.Class && slices.EqualFunc(a.Scores, b.Scores, func(x, y float64) bool { return math.Abs(x-y) < 1e-9 })
}

// A device fails under load: every sample has the result that it would have had, the failure
// is told once, and the spare has as many workers as it can use.
func TestDeviceThatFailsLosesNoSample(t *testing.T) {
	e, m, gpu, cpu := newSpared(t)
	gpu.failFrom(20)
	told := make(chan Failure, 10)
	e.OnFailure(func(f Failure) { told <- f })
	if lone := e.Get(); e.ComputeNow(lone, nil) {
		t.Error("a device that may hang is waited for by the caller")
	} else {
		e.Put(lone)
	}
	const n = 2000
	samples := randomSamples(64)
	want := make([]flow.Result, len(samples))
	for i, s := range samples {
		want[i] = expected(m, gpu, s)
	}
	var wrong atomic.Int64
	var pending sync.WaitGroup
	for i := range n {
		s := e.Get()
		s.CopyFrom(samples[i%len(samples)])
		pending.Add(1)
		for !e.Submit(s, func(_ *flow.Sample, r flow.Result, err error) {
			if err != nil || !sameScores(r, want[i%len(samples)]) {
				wrong.Add(1)
			}
			pending.Done()
		}) {
		}
	}
	pending.Wait()
	f := <-told
	if wrong.Load() > 0 {
		t.Errorf("%d of %d samples have no result, or a wrong one", wrong.Load(), n)
	}
	if f.Device != "gpu" || f.Instead != "cpu" || !errors.Is(f.Err, errDevice) || !strings.Contains(f.Err.Error(), "model fake on gpu: ") {
		t.Errorf("told of %+v", f)
	}
	if now := e.Failure(); now == nil || *now != f || e.Device() != "cpu" {
		t.Errorf("it computes on %s, failure %+v", e.Device(), now)
	}
	e.mu.Lock()
	working := e.working
	e.mu.Unlock()
	if working != cpu.limits.Runs {
		t.Errorf("%d workers, want %d", working, cpu.limits.Runs)
	}
	// What has failed is not asked again, neither by the queue nor by Classify.
	gpu.mu.Lock()
	before := gpu.runs
	gpu.mu.Unlock()
	results := make([]flow.Result, len(samples))
	if err := e.Classify(samples, results); err != nil || !slices.EqualFunc(results, want, sameScores) {
		t.Errorf("Classify: %v", err)
	}
	lone := e.Get()
	lone.CopyFrom(samples[0])
	if !e.ComputeNow(lone, func(_ *flow.Sample, r flow.Result, err error) {
		if err != nil || !sameScores(r, want[0]) {
			t.Errorf("ComputeNow: %v, %v", r, err)
		}
	}) {
		t.Error("the spare computes nothing at once")
	}
	if gpu.runs != before || len(told) > 0 {
		t.Errorf("%d runs of the failed device, told %d times more", gpu.runs-before, len(told))
	}
}

func TestClassifyFallsBackInTheMiddle(t *testing.T) {
	for name, spoil := range map[string]func(*backend){
		"an error":          func(b *backend) { b.failFrom(3) },
		"what is no number": func(b *backend) { b.notANumber = true },
	} {
		e, m, gpu, _ := newSpared(t)
		spoil(gpu)
		samples := randomSamples(40)
		results := make([]flow.Result, len(samples))
		if err := e.Classify(samples, results); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i, s := range samples {
			if want := expected(m, gpu, s); !sameScores(results[i], want) {
				t.Fatalf("%s: sample %d: %v, want %v", name, i, results[i], want)
			}
		}
		if e.Failure() == nil || e.Device() != "cpu" {
			t.Errorf("%s: it computes on %s", name, e.Device())
		}
	}
}

// What no device can compute is not a device's fault.
func TestImageThatNothingCanComputeIsNoFailureOfTheDevice(t *testing.T) {
	e, m, gpu, cpu := newSpared(t)
	odd := func(images []uint8) error {
		if slices.Contains(images, 255) {
			return errors.New("odd image")
		}
		return nil
	}
	gpu.fail, cpu.fail = odd, odd
	good := make([]uint8, m.imageBytes())
	bad := slices.Clone(good)
	bad[0] = 255
	results := make([]flow.Result, 1)
	for range 3 {
		if err := e.ClassifyImages(bad, results); err == nil || !strings.Contains(err.Error(), "on gpu: odd image") {
			t.Errorf("got %v", err)
		}
		if err := e.ClassifyImages(good, results); err != nil {
			t.Error(err)
		}
	}
	if e.Failure() != nil || e.Device() != "gpu" {
		t.Errorf("it computes on %s, failure %+v", e.Device(), e.Failure())
	}
}

// Another model has a device of its own, and what is left of the one before is freed.
func TestSwapEndsAFailure(t *testing.T) {
	m, gpu := newBackend(t, Limits{Runs: 1, Batch: 8})
	_, cpu := newBackend(t, Limits{Runs: 1, Batch: 8})
	gpu.failFrom(1)
	var networks []*Network
	for _, b := range []*backend{gpu, cpu} {
		n, err := NewNetwork("fake", m, b)
		if err != nil {
			t.Fatal(err)
		}
		networks = append(networks, n)
	}
	networks[0].FallBackOn(networks[1])
	e, err := networks[0].Engine(0)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	results := make([]flow.Result, 1)
	if err := e.Classify(randomSamples(1), results); err != nil || e.Failure() == nil {
		t.Fatalf("%v, failure %v", err, e.Failure())
	}
	next, _ := swapped(t, 1)
	if err := e.Swap(next, nil); err != nil {
		t.Fatal(err)
	}
	if e.Failure() != nil || e.Device() != "fake" || gpu.closed != 1 || cpu.closed != 1 {
		t.Errorf("failure %v, on %s; closed %d and %d times", e.Failure(), e.Device(), gpu.closed, cpu.closed)
	}
}
