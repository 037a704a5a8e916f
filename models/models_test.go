// SPDX-License-Identifier: Apache-2.0

package models

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/classifier"
)

func TestNamedModelsAreWhatTheirNamesSay(t *testing.T) {
	for _, want := range []string{"compact", "paper"} {
		file, onnx, ok := Named(want)
		if !ok || file != want+".onnx" {
			t.Fatalf("%s: file %q, %v", want, file, ok)
		}
		m, err := classifier.ReadManifest(file, onnx)
		if err != nil {
			t.Fatal(err)
		}
		if m.Name != want {
			t.Errorf("%s: the model says that it is %s", file, m.Name)
		}
		// The card is about this file.
		card, err := os.ReadFile(want + ".md")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(card), m.TrainingData) {
			t.Errorf("%s.md does not name the training data %s", want, m.TrainingData)
		}
	}
	if file, _, ok := Named("compact.onnx"); ok {
		t.Errorf("a path is taken for the name of %s", file)
	}
}

// A card, the page for people, gives the figures of its model file, which model info
// prints.
func TestCardsGiveTheFiguresOfTheirFiles(t *testing.T) {
	type share struct {
		Hits, Total int
		Low, High   float64
	}
	for _, name := range []string{"compact", "paper"} {
		file, onnx, _ := Named(name)
		m, err := classifier.ReadManifest(file, onnx)
		if err != nil {
			t.Fatal(err)
		}
		var figures struct {
			MinConfidence float64 `json:"min_confidence"`
			Sums          map[string]map[string]share
			Single        map[string]map[string]share
		}
		if err := json.Unmarshal(m.Figures, &figures); err != nil {
			t.Fatal(err)
		}
		card, err := os.ReadFile(name + ".md")
		if err != nil {
			t.Fatal(err)
		}
		detected := figures.Sums[fmt.Sprintf("%g", figures.MinConfidence)]
		shares := map[string]share{"ordinary": detected["ordinary"], "lab, random-like": detected["lab, random-like"]}
		for _, label := range m.Labels[1:] {
			shares[label], shares[label+" alone"] = detected[label], figures.Single[label][label]
		}
		for what, s := range shares {
			want := fmt.Sprintf("%.2f %% (%d of %d; %.2f to %.2f)", 100*float64(s.Hits)/float64(s.Total), s.Hits, s.Total, 100*s.Low, 100*s.High)
			if s.Total == 0 || !strings.Contains(string(card), want) {
				t.Errorf("%s.md does not give %s: %s", name, what, want)
			}
		}
	}
}

func TestDefaultIsSmall(t *testing.T) {
	name, onnx := Default()
	file, compact, _ := Named("compact")
	if name != file || !bytes.Equal(onnx, compact) {
		t.Errorf("the default is %s", name)
	}
	if len(onnx) > 2<<20 {
		t.Errorf("%d bytes", len(onnx))
	}
}
