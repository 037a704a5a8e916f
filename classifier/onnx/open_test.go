// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package onnx

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
)

func TestEngineOpensAndChecksItself(t *testing.T) {
	for _, name := range []string{"tiny.onnx", "tiny5.onnx"} {
		t.Run(name, func(t *testing.T) {
			e := openEngine(t, name, Options{Workers: 1})
			if len(e.Manifest().Check) == 0 {
				t.Fatal("the model has no check images, so the test proves nothing")
			}
			if e.Device() != "cpu (onnx)" || RuntimeVersion() == "" {
				t.Errorf("device %q, runtime %q", e.Device(), RuntimeVersion())
			}
		})
	}
}

// The shipped model computes the same logits as the training code (the
// self-check of Open) and knows the classes that the shipped policy names.
func TestEngineOpensShippedModel(t *testing.T) {
	name, data := models.Default()
	e, err := Open(name, data, Options{Workers: 1, MaxBatch: 4})
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

// Whoever opens an engine gets the refusal of whoever reads the manifest.
func TestOpenRefusesWhatReadManifestRefuses(t *testing.T) {
	for _, file := range []string{"wrong-input-type.onnx", "wrong-outputs.onnx", "fixed-batch.onnx"} {
		_, want := classifier.ReadManifest(file, readModel(t, file))
		if _, err := Open(file, readModel(t, file), Options{}); err == nil || want == nil || err.Error() != want.Error() {
			t.Errorf("%s: Open says %v, want %v", file, err, want)
		}
	}
	if _, err := OpenFile(filepath.Join(t.TempDir(), "none.onnx"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
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

func TestDefaultsDependOnTheDevice(t *testing.T) {
	for _, tt := range []struct {
		asked, want Options
	}{
		{Options{}, Options{Device: "cpu", Workers: min(runtime.GOMAXPROCS(0), 256), MaxBatch: 32}},
		{Options{Device: "cuda:1"}, Options{Device: "cuda:1", Workers: 2, MaxBatch: 256}},
		{Options{Device: "cuda:1", Workers: 3, MaxBatch: 9}, Options{Device: "cuda:1", Workers: 3, MaxBatch: 9}},
	} {
		if _, err := tt.asked.complete(); err != nil || tt.asked != tt.want {
			t.Errorf("%+v, %v; want %+v", tt.asked, err, tt.want)
		}
	}
}

func TestClassifyDoesNotDependOnBatchOrOrder(t *testing.T) {
	for _, name := range []string{"tiny.onnx", "tiny5.onnx"} {
		t.Run(name, func(t *testing.T) {
			const n = 100
			samples := randomSamples(n)
			one := openEngine(t, name, Options{Workers: 1, MaxBatch: 1})
			many := openEngine(t, name, Options{Workers: 2, MaxBatch: 32})
			want, got := make([]flow.Result, n), make([]flow.Result, n)
			if err := one.Classify(samples, want); err != nil {
				t.Fatal(err)
			}
			reversed := slices.Clone(samples)
			slices.Reverse(reversed)
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

// A run that fails does not spoil the next one. (The model fails where the last pixel
// is not 0.)
func TestRunThatFailsGivesItsErrorAndTheNextOneWorks(t *testing.T) {
	e := openEngine(t, "fails-at-run.onnx", Options{Workers: 1, MaxBatch: 1})
	good := make([]uint8, len(e.Manifest().Channels)*classifier.ImagePixels)
	bad := slices.Clone(good)
	bad[len(bad)-1] = 255
	results := make([]flow.Result, 1)
	for _, tt := range []struct {
		image []uint8
		fails bool
	}{{good, false}, {bad, true}, {good, false}} {
		err := e.ClassifyImages(tt.image, results)
		if (err != nil) != tt.fails {
			t.Fatalf("error is %v, want one: %v", err, tt.fails)
		}
		if err != nil && !strings.Contains(err.Error(), "fails-at-run.onnx") {
			t.Errorf("%v does not name the model", err)
		}
	}
}

// What ONNX Runtime computes with is freed only when nothing computes any more.
func TestCloseUnderLoad(t *testing.T) {
	for range 5 {
		e, err := Open("tiny.onnx", readModel(t, "tiny.onnx"), Options{Workers: 2, MaxBatch: 4, Queue: 64})
		if err != nil {
			t.Fatal(err)
		}
		var handled, accepted atomic.Int64
		many := make(chan struct{}, 1) // were handled
		handler := func(s *flow.Sample, _ flow.Result, err error) {
			if len(s.Data) != flow.CaptureBytes {
				t.Errorf("sample has %d bytes: it was taken back too early", len(s.Data))
			}
			if err != nil && !errors.Is(err, classifier.ErrClosed) {
				t.Error(err)
			}
			if handled.Add(1) == 200 {
				many <- struct{}{}
			}
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
					if e.Submit(s, handler) {
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
					if !errors.Is(err, classifier.ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		})
		<-many
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		afterClose := handled.Load()
		close(stop)
		wg.Wait()
		if h := handled.Load(); h != accepted.Load() || h != afterClose {
			t.Errorf("accepted %d, handled %d (%d when Close returned)", accepted.Load(), h, afterClose)
		}
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
	handler := func(*flow.Sample, flow.Result, error) { done <- struct{}{} }
	once := func() {
		s := e.Get()
		s.Data = append(s.Data, model.Data...)
		s.Packets = append(s.Packets, model.Packets...)
		if !e.Submit(s, handler) {
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
