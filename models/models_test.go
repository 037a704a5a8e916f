// SPDX-License-Identifier: Apache-2.0

package models

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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

// What is beside a model as its figures is what its file says.
func TestFiguresBesideModelsAreOfTheirFiles(t *testing.T) {
	for _, name := range []string{"compact", "paper"} {
		file, onnx, _ := Named(name)
		m, err := classifier.ReadManifest(file, onnx)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(name + ".figures.json")
		if err != nil {
			t.Fatal(err)
		}
		var beside struct {
			TrainingData string `json:"training_data"`
			Thresholds   map[string]float64
			Figures      any
		}
		var inside any
		if err := errors.Join(json.Unmarshal(text, &beside), json.Unmarshal(m.Figures, &inside)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(inside, beside.Figures); diff != "" || beside.TrainingData != m.TrainingData {
			t.Errorf("%s.figures.json (-model +file), of data %s:\n%s", name, beside.TrainingData, diff)
		}
		for _, label := range m.Labels[1:] {
			if got := beside.Thresholds[label]; got != m.Threshold(label) {
				t.Errorf("%s.figures.json: the threshold of %s is %v, want %v", name, label, got, m.Threshold(label))
			}
		}
	}
}

// What people write by hand is added up again: a share is that of its counts, and its
// interval is Wilson's.
func TestFiguresWrittenByHandAddUp(t *testing.T) {
	share := regexp.MustCompile(`([\d.]+) % \((\d+) of (\d+)(?:; ([\d.]+) to ([\d.]+))?\)`)
	figures := 0
	for _, page := range []string{"compact.md", "paper.md", "evaluation.md", "train/NOTES.md"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range share.FindAllStringSubmatch(strings.Join(strings.Fields(string(text)), " "), -1) {
			figures++
			number := func(s string) float64 {
				v, err := strconv.ParseFloat(s, 64)
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
			hits, total := number(m[2]), number(m[3])
			const z = 1.959964
			p := hits / total
			middle := p + z*z/(2*total)
			spread := z * math.Sqrt(p*(1-p)/total+z*z/(4*total*total))
			all := 1 + z*z/total
			for _, c := range []struct {
				said string
				is   float64
			}{{m[1], p}, {m[4], max(0, (middle-spread)/all)}, {m[5], min(1, (middle+spread)/all)}} {
				if c.said == "" {
					continue
				}
				_, digits, _ := strings.Cut(c.said, ".")
				if math.Abs(number(c.said)-100*c.is) > 0.51*math.Pow10(-len(digits)) {
					t.Errorf("%s says %q; of these counts it is %.3f", page, m[0], 100*c.is)
				}
			}
		}
	}
	if figures < 60 {
		t.Errorf("only %d figures were looked at", figures)
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
