// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// swapped makes a network of one of three models: each has labels, batches and runs of its
// own.
func swapped(t *testing.T, i int) (*Network, *backend) {
	t.Helper()
	limits := []Limits{{2, 8}, {1, 3}, {3, 16}}[i%3]
	m, b := newBackend(t, limits)
	m.Labels = slices.Clone(m.Labels)[:len(m.Labels)-i%3%2]
	m.Labels[0] = []string{"zero", "one", "two"}[i%3]
	b.labels = len(m.Labels)
	n, err := NewNetwork("fake", m, b)
	if err != nil {
		t.Fatal(err)
	}
	return n, b
}

// Under load, each sample has one result, of one model, and no model computes after the swap
// that ended it. Nothing but the swap orders what the handlers see: the race detector says
// whether it does.
func TestSwapUnderLoadLosesNoSample(t *testing.T) {
	const rate, swaps, atOnce = 5000, 40, 8 // rate: samples per second
	first, b := swapped(t, 0)
	backends := []*backend{b}
	e, err := first.Engine(0)
	if err != nil {
		t.Fatal(err)
	}
	var handled, wrong, refused, failed, submitted atomic.Int64
	var pending sync.WaitGroup
	model := first.manifest // what between and handlers share
	handler := func(s *flow.Sample, r flow.Result, err error) {
		defer pending.Done()
		handled.Add(1)
		switch {
		case err != nil:
			failed.Add(1)
		case &r.Labels[0] != &model.Labels[0] || len(r.Scores) != len(model.Labels):
			wrong.Add(1)
		}
	}
	done := make(chan struct{})
	var load sync.WaitGroup
	samples := randomSamples(16)
	load.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			for i := range rate / 100 {
				// A slow machine: no room is left but what Classify
				// below may take in between.
				if e.Queue()-e.Waiting() <= atOnce {
					break
				}
				s := e.Get()
				s.CopyFrom(samples[i%len(samples)])
				pending.Add(1)
				if !e.Submit(s, handler) {
					refused.Add(1)
					pending.Done()
					e.Put(s)
				} else {
					submitted.Add(1)
				}
			}
		}
	})
	load.Go(func() { // whoever waits for results does not notice
		results := make([]flow.Result, atOnce)
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := e.Classify(samples[:atOnce], results); err != nil {
				t.Error(err)
				return
			}
			for _, r := range results {
				if &r.Labels[0] != &results[0].Labels[0] {
					t.Error("one call has results of two models")
				}
			}
			time.Sleep(time.Millisecond)
		}
	})
	for i := 1; i <= swaps; i++ {
		before := handled.Load()
		n, b := swapped(t, i)
		backends = append(backends, b)
		if err := e.Swap(n, func() { model = n.manifest }); err != nil {
			t.Fatal(err)
		}
		if e.Manifest() != n.manifest {
			t.Error("the engine has another model")
		}
		if old := backends[i-1]; old.closed != 1 {
			t.Errorf("the old model was freed %d times", old.closed)
		}
		for handled.Load() < before+10 { // with the new one
			time.Sleep(time.Millisecond)
		}
	}
	close(done)
	load.Wait()
	pending.Wait()
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	for i, b := range backends {
		if len(b.misused) > 0 || b.closed != 1 || b.most > b.limits.Runs || b.largest > b.limits.Batch {
			t.Errorf("backend %d: closed %d times, %d runs at a time, batches of %d: %v", i, b.closed, b.most, b.largest, b.misused)
		}
	}
	if handled.Load() != submitted.Load() || refused.Load() > 0 || wrong.Load() > 0 || failed.Load() > 0 {
		t.Errorf("%d submitted, %d handled, %d refused, %d of another model, %d failed", submitted.Load(), handled.Load(), refused.Load(), wrong.Load(), failed.Load())
	}
}

// What is being computed at a swap is the old model's, what waits is the new one's.
func TestSwapComesBetweenTwoBatches(t *testing.T) {
	m, b := newBackend(t, Limits{1, 4})
	b.enter, b.leave = make(chan struct{}), make(chan struct{})
	e, err := NewEngine("fake", m, b, 8)
	if err != nil {
		t.Fatal(err)
	}
	labels := make(chan string, 8)
	submit := func() {
		t.Helper()
		if !e.Submit(randomSample(1), func(_ *flow.Sample, r flow.Result, err error) {
			if err != nil {
				t.Error(err)
			}
			labels <- r.Labels[0]
		}) {
			t.Fatal("refused")
		}
	}
	submit()
	<-b.enter
	submit()
	n, next := swapped(t, 1)
	ended := make(chan error)
	go func() { ended <- e.Swap(n, nil) }()
	select {
	case err := <-ended:
		t.Fatalf("swapped in the middle of a batch: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	b.leave <- struct{}{}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if got := []string{<-labels, <-labels}; !slices.Equal(got, []string{m.Labels[0], "one"}) {
		t.Errorf("labels %v", got)
	}
	if err := e.Close(); err != nil || b.closed != 1 || next.closed != 1 {
		t.Errorf("closed %d and %d times, %v", b.closed, next.closed, err)
	}
	late, unused := swapped(t, 2)
	if err := e.Swap(late, func() { t.Error("between was called") }); !errors.Is(err, ErrClosed) || unused.closed != 1 {
		t.Errorf("a swap after the end: %v, closed %d times", err, unused.closed)
	}
}
