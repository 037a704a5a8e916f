// SPDX-License-Identifier: Apache-2.0

package models

import (
	"bytes"
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
