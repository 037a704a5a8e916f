// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package native

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/internal/wire"
	"github.com/earlydrop/earlydrop/models"
)

// place is where a field is in a message, and in those below: the number of the field, and how
// many of the same come before it.
type place struct {
	num protowire.Number
	nth int
}

// edit returns the message with the field at a place replaced by what f makes of it, without
// the field if that is nil.
func edit(t testing.TB, message []byte, f func(old []byte) []byte, at ...place) []byte {
	t.Helper()
	var out []byte
	nth, found := 0, false
	if err := wire.Each(message, func(v wire.Field) error {
		here := v.Num == at[0].num && nth == at[0].nth
		if v.Num == at[0].num {
			nth++
		}
		switch {
		case v.Type == protowire.VarintType:
			out = protowire.AppendVarint(protowire.AppendTag(out, v.Num, v.Type), v.Varint)
		case v.Type == protowire.Fixed32Type:
			out = protowire.AppendFixed32(protowire.AppendTag(out, v.Num, v.Type), uint32(v.Fixed))
		case here:
			found = true
			old := bytes.Clone(v.Bytes)
			if len(at) > 1 {
				old = edit(t, old, f, at[1:]...)
			} else if old = f(old); old == nil {
				return nil
			}
			out = protowire.AppendBytes(protowire.AppendTag(out, v.Num, v.Type), old)
		default:
			out = protowire.AppendBytes(protowire.AppendTag(out, v.Num, v.Type), v.Bytes)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !found {
		t.Fatalf("no field at %v", at)
	}
	return out
}

// with returns f for edit that appends a field of bytes.
func with(num protowire.Number, value []byte) func([]byte) []byte {
	return func(old []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(old, num, protowire.BytesType), value)
	}
}

// nodeOf returns the place of the first node with an operator, after skip of them.
func nodeOf(t testing.TB, data []byte, operator string, skip int) place {
	t.Helper()
	g, err := readGraph(data)
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range g.nodes {
		if n.operator == operator {
			if skip == 0 {
				return place{graphNode, i}
			}
			skip--
		}
	}
	t.Fatalf("no node %s", operator)
	return place{}
}

// What differs from the graph that is known in anything is another backend's.
func TestOtherModelsAreRefused(t *testing.T) {
	_, data := models.Default()
	graph := place{modelGraph, 0}
	nothing := func([]byte) []byte { return nil }
	to := func(s string) func([]byte) []byte { return func([]byte) []byte { return []byte(s) } }
	number := func(i int, v float32) func([]byte) []byte {
		return func(old []byte) []byte {
			binary.LittleEndian.PutUint32(old[4*i:], math.Float32bits(v))
			return old
		}
	}
	varint := func(num protowire.Number, v uint64) func([]byte) []byte {
		return func(old []byte) []byte {
			return protowire.AppendVarint(protowire.AppendTag(old, num, protowire.VarintType), v)
		}
	}
	cast := nodeOf(t, data, "Cast", 0)
	matrix := place{}
	g, err := readGraph(data)
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range g.nodes {
		if n.operator == "MatMul" && matrix.num == 0 {
			matrix = place{graphNode, i - 1} // its constant
		}
	}
	for name, changed := range map[string][]byte{
		"empty":                 {},
		"no model":              []byte("no model at all"),
		"an operator":           edit(t, data, to("LeakyRelu"), graph, nodeOf(t, data, "Relu", 1), place{nodeOperator, 0}),
		"its domain":            edit(t, data, with(nodeDomain, []byte("com.microsoft")), graph, nodeOf(t, data, "Relu", 1)),
		"an attribute":          edit(t, data, with(nodeAttribute, []byte("\x0a\x04beta\xa0\x01\x02")), graph, nodeOf(t, data, "Gather", 0)),
		"no attribute":          edit(t, data, nothing, graph, nodeOf(t, data, "Gather", 0), place{nodeAttribute, 0}),
		"an attribute's value":  edit(t, data, to("\x0a\x02to\x18\x07\xa0\x01\x02"), graph, cast, place{nodeAttribute, 0}),
		"a connection":          edit(t, data, to("image"), graph, nodeOf(t, data, "Relu", 2), place{nodeInput, 0}),
		"an input":              edit(t, data, to("nothing"), graph, nodeOf(t, data, "Relu", 2), place{nodeInput, 0}),
		"one input more":        edit(t, data, with(nodeInput, []byte("image")), graph, nodeOf(t, data, "Relu", 0)),
		"a node less":           edit(t, data, nothing, graph, nodeOf(t, data, "Relu", 1)),
		"a node more":           edit(t, data, with(graphNode, []byte("\x0a\x06logits\x12\x04more\x22\x04Relu")), graph),
		"a node that is hidden": edit(t, data, with(graphNode, []byte("\x0a\x06logits\x12\x06logits\x22\x04Relu")), graph),
		"a name twice":          edit(t, data, to("image"), graph, nodeOf(t, data, "Relu", 0), place{nodeOutput, 0}),
		"a constant":            edit(t, data, number(8, 2), graph, matrix, place{nodeAttribute, 0}, place{attributeTensor, 0}, place{tensorRaw, 0}),
		"a weight no number":    edit(t, data, number(100, float32(math.NaN())), graph, place{graphInitializer, 2}, place{tensorRaw, 0}),
		"a weight infinite":     edit(t, data, number(0, float32(math.Inf(-1))), graph, place{graphInitializer, 17}, place{tensorRaw, 0}),
		"a weight huge":         edit(t, data, number(5, 1e30), graph, place{graphInitializer, 6}, place{tensorRaw, 0}),
		"weights less":          edit(t, data, nothing, graph, place{graphInitializer, 4}),
		"weights more":          edit(t, data, with(graphInitializer, []byte("\x10\x01\x42\x04more\x4a\x04\x00\x00\x00\x00")), graph),
		"weights too short":     edit(t, data, func(old []byte) []byte { return old[4:] }, graph, place{graphInitializer, 8}, place{tensorRaw, 0}),
		"weights elsewhere":     edit(t, data, with(13, []byte("\x0a\x08location\x12\x05other")), graph, place{graphInitializer, 8}),
		"another dimension":     edit(t, data, varint(tensorDim, 1), graph, place{graphInitializer, 8}),
		"another input":         edit(t, data, with(graphInput, []byte("\x0a\x04more")), graph),
		"another output":        edit(t, data, with(graphOutput, []byte("\x0a\x04more")), graph),
		"sparse weights":        edit(t, data, with(15, nil), graph),
		"a second graph":        with(modelGraph, nil)(data),
		"functions":             with(25, nil)(data),
		"a second operator set": with(modelOpset, []byte("\x0a\x03any\x10\x01"))(data),
		"another operator set":  edit(t, data, to("\x10\x0e"), place{modelOpset, 0}),
	} {
		if _, err := recognize(changed); !errors.Is(err, ErrOther) {
			t.Errorf("%s: %v", name, err)
		}
	}
	files, err := filepath.Glob("../testdata/*.onnx")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	for _, path := range append(files, "../../models/paper.onnx") {
		other, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := Computes(other); !errors.Is(err, ErrOther) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// What has no meaning may be anything: names, and texts about the file.
func TestNamesDoNotMatter(t *testing.T) {
	_, data := models.Default()
	graph := place{modelGraph, 0}
	changed := edit(t, data, func([]byte) []byte { return []byte("another") }, graph, place{graphName, 0})
	changed = edit(t, changed, with(nodeDoc, []byte("text")), graph, place{graphNode, 3})
	changed = with(modelDoc, []byte("text"))(changed)
	for _, at := range [][]place{{{graphInitializer, 12}, {tensorName, 0}}, {nodeOf(t, data, "Gemm", 5), {nodeInput, 1}}} {
		changed = edit(t, changed, func([]byte) []byte { return []byte("renamed") }, append([]place{graph}, at...)...)
	}
	if err := Computes(changed); err != nil {
		t.Error(err)
	}
}

// A model with other weights, and one with fewer labels, are computed as ONNX Runtime does.
func TestModelsWithTheSameGraphAreComputed(t *testing.T) {
	_, data := models.Default()
	graph := place{modelGraph, 0}
	r := rand.New(rand.NewPCG(3, 3))
	weights := data
	for i := range 18 {
		weights = edit(t, weights, func(old []byte) []byte {
			for at := 0; at < len(old); at += 4 {
				v := math.Float32frombits(binary.LittleEndian.Uint32(old[at:]))
				binary.LittleEndian.PutUint32(old[at:], math.Float32bits(v*(0.5+r.Float32())))
			}
			return old
		}, graph, place{graphInitializer, i}, place{tensorRaw, 0})
	}
	// Three labels: the first rows of the last weights and biases.
	const few = 3
	dim := func(num protowire.Number, all ...uint64) (out []byte) {
		for _, v := range all {
			out = protowire.AppendVarint(protowire.AppendTag(out, num, protowire.VarintType), v)
		}
		return out
	}
	fewer := edit(t, data, func(old []byte) []byte {
		raw := edit(t, old, func(raw []byte) []byte { return raw[:few*128*4] }, place{tensorRaw, 0})
		return append(dim(tensorDim, few, 128), raw[5:]...) // after the old ones
	}, graph, place{graphInitializer, 16})
	fewer = edit(t, fewer, func(old []byte) []byte {
		raw := edit(t, old, func(raw []byte) []byte { return raw[:few*4] }, place{tensorRaw, 0})
		return append(dim(tensorDim, few), raw[2:]...)
	}, graph, place{graphInitializer, 17})
	fewer = edit(t, fewer, func([]byte) []byte { return dim(dimValue, few) },
		graph, place{graphOutput, 0}, place{valueType, 0}, place{typeTensor, 0}, place{tensorTypeShape, 0}, place{shapeDim, 1})

	plausible, any := randomImages(20)
	images := append(plausible, any...)
	for _, tt := range []struct {
		name   string
		data   []byte
		labels int
	}{{"other weights", weights, labels}, {"three labels", fewer, few}} {
		want := reference(t, tt.data, tt.labels)(t, images)
		for _, with := range each() {
			got := run(t, newCompact(t, tt.data, classifier.Limits{Runs: 1, Batch: 32}, with), images, tt.labels)
			for i := range len(images) / imageBytes {
				d, scale := difference(got[i*tt.labels:][:tt.labels], want[i*tt.labels:][:tt.labels])
				if !(d <= tolerance(scale)) {
					t.Errorf("%s, %v, image %d: %v, want %v", tt.name, with, i, got[i*tt.labels:][:tt.labels], want[i*tt.labels:][:tt.labels])
				}
			}
		}
	}
}

// A model whose weights are not those that its check images were computed with is not loaded.
func TestLoadChecksItself(t *testing.T) {
	name, data := models.Default()
	changed := edit(t, data, func(old []byte) []byte {
		for at := 3; at < len(old); at += 4 {
			old[at] ^= 0x80 // the sign
		}
		return old
	}, place{modelGraph, 0}, place{graphInitializer, 16}, place{tensorRaw, 0})
	for _, with := range each() {
		if _, err := load(name, changed, classifier.Limits{}, with); err == nil || errors.Is(err, ErrOther) {
			t.Errorf("%v: %v", with, err)
		}
	}
	if _, err := Load(name, data, classifier.Limits{Runs: 257}); err == nil || errors.Is(err, ErrOther) {
		t.Errorf("too many runs: %v", err)
	}
}

// A damaged file is refused, or has the logits that ONNX Runtime computes of it.
func TestDamagedFiles(t *testing.T) {
	_, data := models.Default()
	r := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		if err := Computes(data[:r.IntN(len(data))]); err == nil {
			t.Error("a part of a model is taken")
		}
	}
	// All that is not raw weights, which is a tenth, is damaged as often as these.
	g, err := readGraph(data)
	if err != nil {
		t.Fatal(err)
	}
	first, last := bytes.Index(data, g.initializers[0].raw), bytes.LastIndex(data, g.initializers[17].raw)
	images := slices.Concat(edgeImages()[:imageBytes*4], goldenImages(t)[:imageBytes*4])
	compared := 0
	for i := range 300 {
		damaged := bytes.Clone(data)
		at := r.IntN(len(data))
		if i%2 == 0 {
			if at = r.IntN(len(data) - (last - first)); at >= first {
				at += last - first
			}
		}
		damaged[at] ^= 1 << r.IntN(8)
		w, err := recognize(damaged)
		if err != nil {
			if !errors.Is(err, ErrOther) {
				t.Errorf("byte %d: %v", at, err)
			}
			continue
		}
		if compared++; compared > 12 || w.labels != labels {
			continue
		}
		want := reference(t, damaged, labels)(t, images)
		got := run(t, newCompact(t, damaged, classifier.Limits{Runs: 1, Batch: 8}, best()), images, labels)
		if d, scale := difference(got, want); !(d <= tolerance(scale)) {
			t.Errorf("byte %d: logits are off by %g of %g", at, d, scale)
		}
	}
	if compared < 12 {
		t.Errorf("only %d were compared", compared)
	}
}
