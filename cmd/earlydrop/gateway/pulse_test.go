// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// stuckBackend computes nothing until it is told to.
type stuckBackend struct{ goOn chan struct{} }

func (b stuckBackend) Run([]byte, int, []float32) error { <-b.goOn; return nil }
func (stuckBackend) Limits() classifier.Limits          { return classifier.Limits{Batch: 1, Runs: 1} }
func (stuckBackend) Device() string                     { return "none" }
func (stuckBackend) Close() error                       { return nil }

func TestGatewaySaysWhatHasStalled(t *testing.T) {
	tiny := openTiny(t)
	defer tiny.Close()
	manifest := *tiny.Manifest()
	manifest.Check = nil // opening it would compute them
	backend := stuckBackend{make(chan struct{})}
	engine, err := classifier.NewEngine("stuck", &manifest, backend, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	g := &Gateway{config: Config{Engine: engine}}
	a := newAttachment(g, nil, func() string { return "v0" })
	g.attached = []*attachment{a}
	const long = time.Hour
	if s := g.Stalled(long); s != "" {
		t.Errorf("at the beginning %s", s)
	}
	before := time.Now().Add(-2 * long).UnixNano()
	a.tidied.at.Store(before)
	if s := g.Stalled(long); s != "the work on v0" {
		t.Errorf("its work is not done: %q", s)
	}
	a.tidied.beat()

	decided := make(chan struct{}, 4)
	for range 3 { // one or two are being computed, so that one waits
		s := engine.Get()
		*s = flow.Sample{}
		s.Data = append(s.Data, make([]byte, 64)...)
		a.pending.Add(1)
		if !engine.Submit(s, func(*flow.Sample, flow.Result, error) { decided <- struct{}{} }) {
			t.Fatal("the queue is full")
		}
	}
	g.classified.at.Store(before)
	if s := g.Stalled(long); s != "the classifier" {
		t.Errorf("captures wait: %q", s)
	}
	close(backend.goOn)
	for range 3 {
		<-decided
	}
	if s := g.Stalled(long); s != "" {
		t.Errorf("nothing waits any more: %s", s)
	}
}
