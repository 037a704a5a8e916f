// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"math"
	"testing"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/models"
)

func TestIntervalsAreTheTrainingCodes(t *testing.T) {
	name, onnx := models.Default()
	m, err := classifier.ReadManifest(name, onnx)
	if err != nil {
		t.Fatal(err)
	}
	f, ok := Read(m.Figures)
	if !ok {
		t.Fatalf("no figures in %s: %s", name, m.Figures)
	}
	compared := 0
	for group, s := range f.Detected() {
		low, high := wilson(s.Hits, s.Total)
		if math.Abs(low-s.Low) > 1e-6 || math.Abs(high-s.High) > 1e-6 {
			t.Errorf("%s: %v to %v, in the model file %v to %v", group, low, high, s.Low, s.High)
		}
		compared++
	}
	if compared < len(m.Labels) {
		t.Errorf("only %d intervals compared", compared)
	}
	if low, high := wilson(0, 0); low != 0 || high != 1 {
		t.Errorf("of nothing: %v to %v", low, high)
	}
}

func TestFiguresOfAnotherShapeAreNone(t *testing.T) {
	for _, text := range []string{"", "null", "[]", `{"accuracy": 0.9}`, `{"flows": 10}`, `{"flows": "10"}`} {
		if f, ok := Read([]byte(text)); ok {
			t.Errorf("%s: %+v", text, f)
		}
	}
}

func TestSharesAreNeverRoundedToAllOrNothing(t *testing.T) {
	for _, tt := range []struct {
		share Share
		want  string
	}{
		{Share{39, 40, 0.871, 0.996}, "97.5 % (39 of 40; 87.1 to 99.6)"},
		{Share{9999, 10000, 0.99944, 0.99999}, ">99.9 % (9999 of 10000; >99.9 to >99.9)"},
		{Share{1, 100000, 0.000001, 0.00006}, "<0.1 % (1 of 100000; <0.1 to <0.1)"},
		{Share{10, 10, 0.722, 1}, "100.0 % (10 of 10; 72.2 to 100.0)"},
		{Share{}, "-"},
	} {
		if got := tt.share.String(); got != tt.want {
			t.Errorf("%+v is printed %q, want %q", tt.share, got, tt.want)
		}
	}
}
