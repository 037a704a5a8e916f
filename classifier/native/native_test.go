// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package native

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
)

// tolerance is how far a logit may be from ONNX Runtime's. Of images that no capture can have,
// logits are up to some thousands; it is a share of these then.
func tolerance(scale float64) float64 { return 1e-4 * max(1, scale/100) }

func TestLogitsAreONNXRuntimes(t *testing.T) {
	_, data := models.Default()
	want := reference(t, data, labels)
	plausible, any := randomImages(400)
	for name, images := range map[string][]uint8{
		"golden": goldenImages(t), "plausible": plausible, "any": any, "edges": edgeImages(),
	} {
		expected := want(t, images)
		for _, with := range each() {
			got := run(t, newCompact(t, data, classifier.Limits{Runs: 1, Batch: 32}, with), images, labels)
			most, of, worst := 0.0, 0, 0.0
			for i := range len(images) / imageBytes {
				d, scale := difference(got[i*labels:][:labels], expected[i*labels:][:labels])
				if !(d <= tolerance(scale)) {
					t.Errorf("%s, %v, image %d: %v, ONNX Runtime has %v", name, with, i, got[i*labels:][:labels], expected[i*labels:][:labels])
				}
				worst = max(worst, d/tolerance(scale))
				if d > most {
					most, of = d, i
				}
			}
			t.Logf("%s, %v: %d images, differences up to %.1e (image %d), %.0f %% of what is allowed",
				name, with, len(images)/imageBytes, most, of, 100*worst)
		}
	}
}

// The logits of an image are the same to the last bit, wherever it is in a batch and however
// large that is.
func TestBatchChangesNothing(t *testing.T) {
	name, data := models.Default()
	images, any := randomImages(129)
	images = append(images, any...)[:257*imageBytes]
	for _, with := range each() {
		alone := run(t, newCompact(t, data, classifier.Limits{Runs: 1, Batch: 1}, with), images, labels)
		b := newCompact(t, data, classifier.Limits{Runs: 1, Batch: 256}, with)
		for n := 1; n <= 256; n++ {
			from := 257 - n
			logits := make([]float32, n*labels+1)
			logits[n*labels] = 42
			if err := b.Run(images[from*imageBytes:], n, logits); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(logits[:n*labels], alone[from*labels:]) {
				t.Errorf("%v: a batch of %d has other logits than its images alone", with, n)
			}
			if logits[n*labels] != 42 {
				t.Errorf("%v: a batch of %d writes behind its logits", with, n)
			}
		}
	}
	// An engine divides what is more than a batch.
	one, err := Load(name, data, classifier.Limits{Runs: 1, Batch: 1})
	if err != nil {
		t.Fatal(err)
	}
	many, err := Load(name, data, classifier.Limits{Runs: 2, Batch: 100})
	if err != nil {
		t.Fatal(err)
	}
	var results [2][257]flow.Result
	for i, n := range []*classifier.Network{one, many} {
		e, err := n.Engine(0)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.ClassifyImages(images, results[i][:]); err != nil {
			t.Error(err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	for i, r := range results[1] {
		if want := results[0][i]; r.Class != want.Class || r.Confidence != want.Confidence {
			t.Errorf("image %d: %s %v, alone %s %v", i, r.Class, r.Confidence, want.Class, want.Confidence)
		}
	}
}

// More at the same time than there is memory for wait for one another, and none disturbs
// another.
func TestRunsAtTheSameTime(t *testing.T) {
	_, data := models.Default()
	images, _ := randomImages(32)
	for _, with := range each() {
		b := newCompact(t, data, classifier.Limits{Runs: 3, Batch: 8}, with)
		want := run(t, b, images, labels)
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				logits := make([]float32, 8*labels)
				for i := range 200 {
					from, n := (i+worker*3)%25, 1+(i+worker)%8
					if err := b.Run(images[from*imageBytes:], n, logits); err != nil {
						t.Error(err)
					}
					if !slices.Equal(logits[:n*labels], want[from*labels:][:n*labels]) {
						t.Errorf("%v: images %d to %d have other logits than alone", with, from, from+n)
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

func TestRunDoesNotAllocate(t *testing.T) {
	_, data := models.Default()
	images, _ := randomImages(8)
	logits := make([]float32, 8*labels)
	for _, with := range each() {
		b := newCompact(t, data, classifier.Limits{Runs: 1, Batch: 8}, with)
		if n := testing.AllocsPerRun(50, func() {
			if err := b.Run(images, 8, logits); err != nil {
				t.Fatal(err)
			}
		}); n > 0 {
			t.Errorf("%v: %v allocations per run", with, n)
		}
	}
}

// Who runs it beyond its memory is stopped before C is.
func TestRunRefusesSlicesThatAreTooShort(t *testing.T) {
	_, data := models.Default()
	b := newCompact(t, data, classifier.Limits{Runs: 1, Batch: 8}, portable)
	for _, tt := range []struct{ n, images, logits int }{{2, 2*imageBytes - 1, 2 * labels}, {2, 2 * imageBytes, 2*labels - 1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v: it computes", tt)
				}
			}()
			_ = b.Run(make([]uint8, tt.images), tt.n, make([]float32, tt.logits))
		}()
	}
	if err := b.Run(make([]uint8, imageBytes), 1, make([]float32, labels)); err != nil {
		t.Error(err)
	}
}

func TestLoadSaysWhereItComputes(t *testing.T) {
	name, data := models.Default()
	if err := Computes(data); err != nil {
		t.Fatal(err)
	}
	for _, with := range each() {
		n, err := load(name, data, classifier.Limits{}, with)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("cpu (native %s)", with); n.Device() != want || len(n.Manifest().Check) == 0 {
			t.Errorf("on %q, want %q; %d check images", n.Device(), want, len(n.Manifest().Check))
		}
	}
	if !slices.Contains(each(), best()) {
		t.Errorf("the best are %v, this machine has %v", best(), each())
	}
}

// Any image has the logits that ONNX Runtime has, and so the same verdict.
func FuzzLogits(f *testing.F) {
	_, data := models.Default()
	want := reference(f, data, labels)
	var backends []classifier.Backend
	for _, with := range each() {
		backends = append(backends, newCompact(f, data, classifier.Limits{Runs: 1, Batch: 1}, with))
	}
	plausible, any := randomImages(2)
	f.Add(plausible)
	f.Add(any)
	f.Add(edgeImages())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		image := make([]uint8, imageBytes)
		copy(image, data)
		expected := want(t, image)
		for i, b := range backends {
			got := run(t, b, image, labels)
			d, scale := difference(got, expected)
			if !(d <= 1e-3*max(1, scale/1000)) {
				t.Errorf("%v: %v, ONNX Runtime has %v", each()[i], got, expected)
			}
			first, second := highest(expected)
			if best, _ := highest(got); best != first && expected[first]-expected[second] > float32(2*d) {
				t.Errorf("%v: label %d, with ONNX Runtime %d", each()[i], best, first)
			}
		}
	})
}

// highest returns the indices of the two highest logits.
func highest(logits []float32) (first, second int) {
	order := make([]int, len(logits))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case logits[a] > logits[b]:
			return -1
		case logits[a] < logits[b]:
			return 1
		}
		return 0
	})
	return order[0], order[1]
}
