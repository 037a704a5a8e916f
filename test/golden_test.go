// SPDX-License-Identifier: Apache-2.0

// Package test holds the verdicts on the captures of testdata against what they
// were. test/lab/sample picked these captures out of a recording of real programs:
//
//	sudo go run ./test/lab/record --out data/lab --budget 10m --conditions 4
//	go run ./test/lab/sample --from data/lab --out test/testdata
//
// They show that nothing has changed, and nothing about how good a model is: it may
// have been trained on the same recording.
//
// Whoever changes the shipped model, or something before it on purpose, writes the
// expected verdicts again, and looks at the difference:
//
//	go test ./test -run Golden -update
package test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/csv"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventtest"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
)

var update = flag.Bool("update", false, "write the expected verdicts again")

const (
	labelsFile   = "testdata/labels.tsv"
	verdictsFile = "testdata/verdicts.tsv"
)

// maxBytes bounds the captures: they are in the history for ever.
const maxBytes = 300 << 10

// A probability is printed with four digits. What it was rounded from may be off by
// what another machine's arithmetic makes of it.
const (
	digits = 4
	slack  = 0.5e-4 + 2e-6
)

// flowOf names the flow as labels.tsv does.
func flowOf(v *event.Verdict) string {
	return strings.Join([]string{filepath.Base(v.File), v.Proto, v.Src.String(), v.Dst.String()}, "\t")
}

// row returns the flow's line of the table of expected verdicts.
func row(v *event.Verdict, label string) string {
	var scores []string
	for i, name := range v.Scores.Labels {
		scores = append(scores, name+" "+strconv.FormatFloat(v.Scores.Values[i], 'f', digits, 64))
	}
	slices.Sort(scores)
	return strings.Join([]string{flowOf(v), label, v.Class, v.Decision, cmp.Or(v.Rule, "-"), strings.Join(scores, ", ")}, "\t")
}

// readTable returns the lines of a table behind its header, cut at the tabs. Lines
// that begin with # are left out.
func readTable(t *testing.T, path string, columns int) (rows [][]string) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r := csv.NewReader(file)
	r.Comma, r.Comment, r.FieldsPerRecord = '\t', '#', columns
	if rows, err = r.ReadAll(); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if len(rows) < 2 {
		t.Fatalf("%s is empty", path)
	}
	return rows[1:]
}

// captures returns the capture files that labels.tsv names, and the label of each
// flow.
func captures(t *testing.T) (files []string, labels map[string]string) {
	t.Helper()
	labels = map[string]string{}
	for _, row := range readTable(t, labelsFile, 9) {
		files = append(files, filepath.Join("testdata", row[0]))
		labels[strings.Join(row[:4], "\t")] = row[4]
	}
	slices.Sort(files)
	return slices.Compact(files), labels
}

// replay runs the program on the captures with so many threads.
func replay(t *testing.T, program string, threads int, files ...string) []*event.Verdict {
	t.Helper()
	cmd := exec.Command(program, append([]string{"replay", "--json", "--policy", "testdata/policy.yaml"}, files...)...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("GOMAXPROCS=%d", threads))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("replay: %v: %s", err, stderr.String())
	}
	var verdicts []*event.Verdict
	for line := range bytes.Lines(out) {
		e, err := eventtest.Decode(line)
		if err != nil {
			t.Fatal(err)
		}
		verdicts = append(verdicts, e.(*event.Verdict))
	}
	return verdicts
}

func TestGoldenVerdicts(t *testing.T) {
	files, labels := captures(t)
	program, err := rig.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	all := replay(t, program, 1, files...)
	got := first(all)
	// Some pause in their first 1024 bytes, and go on.
	if n := len(all) - len(got); n != 2 {
		t.Errorf("%d verdicts were revised, want 2", n)
	}
	if len(got) != len(labels) {
		t.Errorf("%d verdicts on %d flows", len(got), len(labels))
	}
	right, drops := map[string]int{}, map[string]int{}
	for _, v := range got {
		label, ok := labels[flowOf(v)]
		if !ok {
			t.Errorf("%s is not in %s", flowOf(v), labelsFile)
		}
		if v.Class == label {
			right[label]++
		}
		if v.Decision == "drop" {
			drops[label]++
		}
	}
	t.Logf("class as labelled %v, dropped %v", right, drops)

	// Neither the number of threads nor what else is in the batch changes a digit.
	again := first(replay(t, program, 4, files...))
	var alone []*event.Verdict
	for _, file := range files {
		alone = append(alone, first(replay(t, program, 2, file))...)
	}
	for name, other := range map[string][]*event.Verdict{"with four threads": again, "file by file": alone} {
		for i, v := range other {
			if !sameVerdict(v, strings.Split(row(got[i], ""), "\t"), row(v, "")) {
				t.Errorf("%s:\n%s\nwith one thread:\n%s", name, row(v, ""), row(got[i], ""))
			}
		}
	}

	name, data := models.Default()
	model := fmt.Sprintf("# model %s, sha256 %x\n", name, sha256.Sum256(data))
	if *update {
		text := "# What `earlydrop replay` says about the captures. Written by: go test ./test -run Golden -update\n" + model +
			"file\tproto\tclient\tserver\tlabel\tclass\tdecision\trule\tprobabilities\n"
		for _, v := range got {
			text += row(v, labels[flowOf(v)]) + "\n"
		}
		if err := os.WriteFile(verdictsFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string][]string{}
	for _, row := range readTable(t, verdictsFile, 9) {
		want[strings.Join(row[:4], "\t")] = row
	}
	if text, err := os.ReadFile(verdictsFile); err != nil || !strings.Contains(string(text), model) {
		t.Errorf("%s was written for another model than %q; see the comment of this package, %v", verdictsFile, model, err)
	}
	if len(want) != len(got) {
		t.Errorf("%s has %d flows, the captures have %d", verdictsFile, len(want), len(got))
	}
	for _, v := range got {
		line := row(v, labels[flowOf(v)])
		expected, ok := want[flowOf(v)]
		if !ok {
			t.Errorf("no verdict is expected for %s", flowOf(v))
			continue
		}
		if !sameVerdict(v, expected, line) {
			t.Errorf("verdict\n got %s\nwant %s", line, strings.Join(expected, "\t"))
		}
	}
}

// first returns the first verdict of each flow.
func first(all []*event.Verdict) []*event.Verdict {
	return slices.DeleteFunc(slices.Clone(all), func(v *event.Verdict) bool { return v.Revised > 0 || v.Variant })
}

// sameVerdict holds a verdict against its expected row: all words are equal, and the
// probabilities to the last digit.
func sameVerdict(v *event.Verdict, want []string, got string) bool {
	words := strings.Split(got, "\t")
	if !slices.Equal(words[:len(words)-1], want[:len(want)-1]) {
		return false
	}
	scores := strings.Split(want[len(want)-1], ", ")
	if len(scores) != len(v.Scores.Labels) {
		return false
	}
	for _, score := range scores {
		label, text, _ := strings.Cut(score, " ")
		p, err := strconv.ParseFloat(text, 64)
		if err != nil || !v.Scores.Has(label) || math.Abs(p-v.Scores.Of(label)) > slack {
			return false
		}
	}
	return true
}

// The classifier's batches don't change a digit either.
func TestGoldenVerdictsDoNotDependOnTheBatch(t *testing.T) {
	files, _ := captures(t)
	var samples []*flow.Sample
	for _, path := range files {
		f, err := assembly.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		err = f.Run(assembly.New(assembly.Options{}, func(_ *assembly.Flow, s *flow.Sample) {
			mine := new(flow.Sample)
			mine.CopyFrom(s)
			samples = append(samples, mine)
		}, nil), func(int64) {})
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	name, data := models.Default()
	var first []flow.Result
	for _, options := range []onnx.Options{
		{Workers: 1, MaxBatch: 1}, {Workers: 1, MaxBatch: 3}, {Workers: 1, MaxBatch: 64}, {Workers: 4, MaxBatch: 32},
	} {
		engine, err := onnx.Open(name, data, options)
		if err != nil {
			t.Fatal(err)
		}
		results := make([]flow.Result, len(samples))
		if err := engine.Classify(samples, results); err != nil {
			t.Fatal(err)
		}
		if err := engine.Close(); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = results
			continue
		}
		for i, r := range results {
			for k, p := range r.Scores {
				if d := math.Abs(p - first[i].Scores[k]); d > 2e-6 || r.Class != first[i].Class {
					t.Errorf("batches of %d: flow %s is %s %s %.7f, alone %s %.7f", options.MaxBatch, samples[i].Key,
						r.Class, r.Labels[k], p, first[i].Class, first[i].Scores[k])
				}
			}
		}
	}
}

func TestGoldenCapturesAreSmall(t *testing.T) {
	entries, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		sum += info.Size()
	}
	if sum == 0 || sum > maxBytes {
		t.Errorf("testdata has %d bytes, want some and at most %d", sum, maxBytes)
	}
}
