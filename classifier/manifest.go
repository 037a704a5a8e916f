// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// ManifestFormat is the version of the model contract that this package
// reads. A model of another format is refused.
const ManifestFormat = 1

// keyPrefix begins every metadata key of the contract in an ONNX file.
const keyPrefix = "earlydrop."

// Names of the network's only input, uint8 [N, len(Channels), 32, 32], and of its
// only output, float32 [N, len(Labels)]. N is the number of images, from 1.
const (
	InputName  = "image"
	OutputName = "logits"
)

// maxLabels bounds what a model may tell apart.
const maxLabels = 256

// Manifest is the contract between a model and this package. It is in the
// model file's ONNX metadata, under keys that begin with "earlydrop.".
//
// The network has one input, InputName, and one output, OutputName. A Manifest is
// not changed once it is read, and may be shared by goroutines.
type Manifest struct {
	Format  int    `json:"format"`  // always ManifestFormat
	Name    string `json:"name"`    // of the model, for people
	Version string `json:"version"` // of the model; part of every decision's record
	// Labels names the outputs in order. Labels differ from one another, one of
	// them is flow.Background, and none is flow.Unknown.
	Labels   []string  `json:"labels"`
	Channels []Channel `json:"channels"` // the planes of the input, in order
	Mask     Recipe    `json:"mask"`
	// Temperature divides the logits before the softmax; greater than 0.
	Temperature float64 `json:"temperature"`
	// Thresholds gives for every label but flow.Background the probability,
	// 0 to 1, from which the model's author holds the label to be sure enough
	// to act on.
	Thresholds map[string]float64 `json:"thresholds"`
	// AnyThreshold, 0 to 1, is the probability that the labels but
	// flow.Background have to reach together for a flow to be one of them,
	// whichever. A part of the labels never has more, so that it is a bound for
	// them as well. It is the greatest of Thresholds where the file has none.
	AnyThreshold float64 `json:"any_threshold"`
	// Unknown, 0 to 1, is the probability that the likeliest label has to reach;
	// below it the outcome is flow.Unknown. It is 0, which is never, where the
	// file has none.
	Unknown float64 `json:"unknown"`
	// TrainingData is the digest of the data set that the model was trained
	// on, as "sha256:<hex>".
	TrainingData string `json:"training_data"`
	// Figures is a JSON object with what was measured on held-out data.
	Figures   json.RawMessage `json:"figures"`
	CreatedBy string          `json:"created_by"` // program and version that wrote the file
	// Digest is that of the whole file, as "sha256:<hex>".
	Digest string `json:"-"`
	// Check holds the logits that the training framework computed for the
	// images of checkImage, one row per image. It may be empty. An Engine is
	// not opened on a model that it computes differently.
	Check [][]float64 `json:"-"`
}

// MarshalText lets JSON hold the recipe's name.
func (r Recipe) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// MarshalText lets JSON hold the channel's name.
func (c Channel) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// ErrNotModel is wrapped by the errors of ReadManifest for data that is no
// ONNX model or only the beginning of one.
var ErrNotModel = errors.New("not an ONNX model")

// ReadManifestFile reads and checks the manifest of the model file at path. It
// needs no backend. Errors name the file and the wrong value.
func ReadManifestFile(path string) (*Manifest, error) {
	data, err := ReadModelFile(path)
	if err != nil {
		return nil, err
	}
	return ReadManifest(path, data)
}

// ReadManifest reads the manifest out of an ONNX file's bytes and checks it,
// and the network's input and output against it. It needs no backend: only the
// file's frame is read, the network's weights are skipped. name is what the errors
// call the model; it is the file's path, or another word for its origin. An error
// names the wrong value, and wraps ErrNotModel if data is no model at all.
func ReadManifest(name string, data []byte) (*Manifest, error) {
	m, err := readManifest(data)
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", name, err)
	}
	return m, nil
}

func readManifest(data []byte) (*Manifest, error) {
	file, err := parseONNX(data)
	if err != nil {
		return nil, err
	}
	m := &Manifest{Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(data))}
	p := properties{file.metadata}

	// The format comes first: of another format nothing else can be said.
	format, err := p.get("format")
	if err != nil {
		return nil, err
	}
	if m.Format, err = strconv.Atoi(format); err != nil || m.Format != ManifestFormat {
		return nil, p.wrong("format", "this program reads format %d", ManifestFormat)
	}
	for _, text := range []struct {
		key string
		dst *string
	}{{"name", &m.Name}, {"version", &m.Version}, {"training_data", &m.TrainingData}, {"created_by", &m.CreatedBy}} {
		v, err := p.get(text.key)
		if err != nil {
			return nil, err
		}
		if v == "" || strings.ContainsFunc(v, unicode.IsControl) {
			return nil, p.wrong(text.key, "expected one line of text")
		}
		*text.dst = v
	}
	if digest, ok := strings.CutPrefix(m.TrainingData, "sha256:"); !ok || !isHex(digest, 64) {
		return nil, p.wrong("training_data", `expected "sha256:" and 64 hexadecimal digits`)
	}
	if err := p.labels(m); err != nil {
		return nil, err
	}
	if err := p.channels(m); err != nil {
		return nil, err
	}
	image, err := p.get("image")
	if err != nil {
		return nil, err
	}
	if want := fmt.Sprintf("%dx%d", ImageSide, ImageSide); image != want {
		return nil, p.wrong("image", "the image is %s", want)
	}
	mask, err := p.get("mask")
	if err != nil {
		return nil, err
	}
	if m.Mask, err = ParseRecipe(mask); err != nil {
		return nil, fmt.Errorf("metadata %smask: %w", keyPrefix, err)
	}
	temperature, err := p.get("temperature")
	if err != nil {
		return nil, err
	}
	m.Temperature, err = strconv.ParseFloat(temperature, 64)
	if err != nil || !(m.Temperature > 0) || math.IsInf(m.Temperature, 0) {
		return nil, p.wrong("temperature", "expected a number greater than 0")
	}
	if err := p.thresholds(m); err != nil {
		return nil, err
	}
	m.AnyThreshold = slices.Max(slices.Collect(maps.Values(m.Thresholds)))
	if err := p.probability("any_threshold", &m.AnyThreshold); err != nil {
		return nil, err
	}
	if err := p.probability("unknown", &m.Unknown); err != nil {
		return nil, err
	}
	figures, err := p.get("figures")
	if err != nil {
		return nil, err
	}
	m.Figures = json.RawMessage(figures)
	// It is long, and not looked into here.
	if !json.Valid(m.Figures) || !strings.HasPrefix(strings.TrimLeft(figures, " \t\r\n"), "{") {
		return nil, p.wrong("figures", "expected a JSON object")
	}
	if err := p.check(m); err != nil {
		return nil, err
	}
	if err := file.checkShapes(len(m.Channels), len(m.Labels)); err != nil {
		return nil, err
	}
	return m, nil
}

// imageBytes is the size of one image: len(Channels) planes.
func (m *Manifest) imageBytes() int { return len(m.Channels) * ImagePixels }

// Threshold returns the probability from which label is sure enough to act
// on, and 1 for a label without one (flow.Background, or one that the model
// does not have).
func (m *Manifest) Threshold(label string) float64 {
	if t, ok := m.Thresholds[label]; ok {
		return t
	}
	return 1
}

// properties is the metadata of a model file.
type properties struct{ values map[string]string }

func (p properties) get(key string) (string, error) {
	v, ok := p.values[keyPrefix+key]
	if !ok {
		return "", fmt.Errorf("metadata %s%s is missing, so this is no model for earlydrop", keyPrefix, key)
	}
	return v, nil
}

// wrong returns the error for a value that can't be used.
func (p properties) wrong(key, format string, args ...any) error {
	v := p.values[keyPrefix+key]
	if len(v) > 80 {
		v = v[:77] + "..."
	}
	return fmt.Errorf("metadata %s%s is %q: %s", keyPrefix, key, v, fmt.Sprintf(format, args...))
}

// json decodes a value strictly: one JSON value and nothing behind it.
func (p properties) json(key string, dst any, expected string) error {
	v, err := p.get(key)
	if err != nil {
		return err
	}
	d := json.NewDecoder(strings.NewReader(v))
	d.DisallowUnknownFields()
	if err := d.Decode(dst); err != nil {
		return p.wrong(key, "%s", expected)
	}
	if _, err := d.Token(); err != io.EOF {
		return p.wrong(key, "%s", expected)
	}
	return nil
}

func (p properties) labels(m *Manifest) error {
	if err := p.json("labels", &m.Labels, "expected a JSON list of names"); err != nil {
		return err
	}
	if len(m.Labels) < 2 || len(m.Labels) > maxLabels {
		return p.wrong("labels", "expected 2 to %d labels", maxLabels)
	}
	for i, label := range m.Labels {
		if !isLabel(label) {
			return p.wrong("labels", "label %q is not made of a-z, 0-9, '-', '_' and '.'", label)
		}
		if label == flow.Unknown {
			return p.wrong("labels", "%q is the outcome of a flow that is like no label, so it can't be one", label)
		}
		if slices.Contains(m.Labels[:i], label) {
			return p.wrong("labels", "label %q stands twice", label)
		}
	}
	if !slices.Contains(m.Labels, flow.Background) {
		return p.wrong("labels", "label %q is missing", flow.Background)
	}
	return nil
}

func (p properties) channels(m *Manifest) error {
	var names []string
	if err := p.json("channels", &names, "expected a JSON list of names"); err != nil {
		return err
	}
	if len(names) == 0 {
		return p.wrong("channels", "expected at least one channel")
	}
	for _, name := range names {
		c, err := ParseChannel(name)
		if err != nil {
			return fmt.Errorf("metadata %schannels: %w", keyPrefix, err)
		}
		if slices.Contains(m.Channels, c) {
			return p.wrong("channels", "channel %q stands twice", name)
		}
		m.Channels = append(m.Channels, c)
	}
	return nil
}

func (p properties) thresholds(m *Manifest) error {
	const expected = "expected a JSON object with a probability for every label but background"
	if err := p.json("thresholds", &m.Thresholds, expected); err != nil {
		return err
	}
	for _, label := range slices.Sorted(maps.Keys(m.Thresholds)) {
		t := m.Thresholds[label]
		if label == flow.Background || !slices.Contains(m.Labels, label) {
			return p.wrong("thresholds", "%q can't have a threshold", label)
		}
		if !(t >= 0 && t <= 1) {
			return p.wrong("thresholds", "%v is not between 0 and 1", t)
		}
	}
	if len(m.Thresholds) != len(m.Labels)-1 {
		return p.wrong("thresholds", expected)
	}
	return nil
}

// probability reads an optional value into dst, which keeps its own without it.
func (p properties) probability(key string, dst *float64) error {
	v, ok := p.values[keyPrefix+key]
	if !ok {
		return nil
	}
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || !(f >= 0 && f <= 1) {
		return p.wrong(key, "expected a number from 0 to 1")
	}
	*dst = f
	return nil
}

// check reads the optional logits of the self-check.
func (p properties) check(m *Manifest) error {
	if _, ok := p.values[keyPrefix+"check"]; !ok {
		return nil
	}
	const expected = "expected a JSON list of rows with one logit per label"
	if err := p.json("check", &m.Check, expected); err != nil {
		return err
	}
	for _, row := range m.Check {
		if len(row) != len(m.Labels) {
			return p.wrong("check", expected)
		}
	}
	return nil
}

// isLabel reports whether s can name a class in a policy file.
func isLabel(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	})
}

func isHex(s string, n int) bool {
	return len(s) == n && len(bytes.Trim([]byte(s), "0123456789abcdef")) == 0
}
