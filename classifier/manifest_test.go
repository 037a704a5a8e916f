// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadManifest(t *testing.T) {
	m, err := ReadManifest("tiny5.onnx", readModel(t, "tiny5.onnx"))
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Check) != 3 || len(m.Check[0]) != 3 {
		t.Errorf("check is %v, want 3 rows of 3", m.Check)
	}
	m.Check = nil
	want := &Manifest{
		Format: 1, Name: "test", Version: "0.1.0",
		Labels:       []string{"background", "shadowsocks", "v2ray"},
		Channels:     []Channel{ChannelByte, ChannelDirection, ChannelPayload, ChannelLength, ChannelTime},
		Mask:         RecipePaper,
		Temperature:  1.5,
		Thresholds:   map[string]float64{"shadowsocks": 0.9, "v2ray": 0.8},
		AnyThreshold: 0.9,
		TrainingData: "sha256:" + strings.Repeat("0", 64),
		Figures:      json.RawMessage("{}"),
		CreatedBy:    "make_models.py",
		Digest:       fmt.Sprintf("sha256:%x", sha256.Sum256(readModel(t, "tiny5.onnx"))),
	}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
	for label, want := range map[string]float64{"v2ray": 0.8, "background": 1, "other": 1} {
		if got := m.Threshold(label); got != want {
			t.Errorf("threshold of %s is %v, want %v", label, got, want)
		}
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"mask":"paper"`, `"channels":["byte","direction","payload","length","time"]`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("JSON %s lacks %s", text, want)
		}
	}
}

func TestReadManifestReadsOptionalThresholds(t *testing.T) {
	for _, tt := range []struct {
		any, unknown         string // "" leaves the key out
		wantAny, wantUnknown float64
	}{
		{"", "", 0.9, 0},
		{"0.97", "", 0.97, 0},
		{"0.5", "0.4", 0.5, 0.4}, // may be less than a label's own
		{"0", "0", 0, 0},
		{"1", "1.0", 1, 1},
		{"9e-1", "1e-3", 0.9, 0.001},
	} {
		onnx := readModel(t, "tiny.onnx")
		for key, v := range map[string]string{"any_threshold": tt.any, "unknown": tt.unknown} {
			if v != "" {
				onnx = setMetadata(t, onnx, key, &v)
			}
		}
		m, err := ReadManifest("file.onnx", onnx)
		if err != nil {
			t.Errorf("%q, %q: %v", tt.any, tt.unknown, err)
			continue
		}
		if m.AnyThreshold != tt.wantAny || m.Unknown != tt.wantUnknown {
			t.Errorf("%q, %q: read as %v and %v, want %v and %v", tt.any, tt.unknown, m.AnyThreshold, m.Unknown, tt.wantAny, tt.wantUnknown)
		}
	}
}

func TestReadManifestRefusesMetadata(t *testing.T) {
	missing := func(key string) (string, *string, string) {
		return key, nil, "metadata earlydrop." + key + " is missing"
	}
	value := func(key, v, want string) (string, *string, string) { return key, &v, want }
	type row struct {
		key   string
		value *string
		want  string
	}
	var rows []row
	add := func(key string, value *string, want string) { rows = append(rows, row{key, value, want}) }
	for _, key := range []string{"format", "name", "version", "labels", "channels", "image", "mask",
		"temperature", "thresholds", "training_data", "figures", "created_by"} {
		add(missing(key))
	}
	add(value("format", "2", `earlydrop.format is "2": this program reads format 1`))
	add(value("format", "one", `"one"`))
	add(value("name", "", `expected one line`))
	add(value("version", "1\n2", `expected one line`))
	add(value("labels", "background,v2ray", "expected a JSON list"))
	add(value("labels", `["background","shadowsocks","v2ray"] []`, "expected a JSON list"))
	add(value("labels", `[1]`, "expected a JSON list"))
	add(value("labels", `["background"]`, "expected 2 to"))
	add(value("labels", `["background","v2ray","v2ray"]`, `"v2ray" stands twice`))
	add(value("labels", `["background","v2ray","Shadow Socks"]`, `"Shadow Socks"`))
	add(value("labels", `["other","shadowsocks","v2ray"]`, `"background" is missing`))
	add(value("labels", `["background","shadowsocks","unknown"]`, `"unknown" is the outcome of a flow that is like no label`))
	add(value("labels", `["background","shadowsocks","v2ray","tor"]`, "expected a JSON object with a probability for every label"))
	add(value("channels", `[]`, "at least one"))
	add(value("channels", `["colour"]`, `unknown channel "colour" (known: byte`))
	add(value("channels", `["byte","byte"]`, `"byte" stands twice`))
	add(value("channels", `["byte","time"]`, "input is image uint8 [N,1,32,32], expected image uint8 [N,2,32,32]"))
	add(value("image", "28x28", `"28x28": the image is 32x32`))
	add(value("mask", "none", `unknown mask recipe "none" (known: paper, strict)`))
	add(value("temperature", "0", "greater than 0"))
	add(value("temperature", "NaN", "greater than 0"))
	add(value("temperature", "Inf", "greater than 0"))
	add(value("temperature", "warm", `"warm"`))
	add(value("thresholds", `{"shadowsocks":0.9}`, "for every label"))
	add(value("thresholds", `{"shadowsocks":0.9,"v2ray":1.5}`, "1.5 is not between 0 and 1"))
	add(value("thresholds", `{"shadowsocks":0.9,"tor":0.5}`, `"tor" can't have a threshold`))
	add(value("thresholds", `{"shadowsocks":0.9,"background":0.5}`, `"background" can't have a threshold`))
	add(value("thresholds", `[]`, "expected a JSON object"))
	for _, key := range []string{"any_threshold", "unknown"} {
		for _, v := range []string{"", "high", "1.01", "-0.1", "NaN", "Inf", "0,5", "[0.5]"} {
			add(value(key, v, "metadata earlydrop."+key+` is "`+v+`": expected a number from 0 to 1`))
		}
	}
	add(value("training_data", "sha256:123", "64 hexadecimal digits"))
	add(value("training_data", strings.Repeat("0", 64), "64 hexadecimal digits"))
	add(value("figures", "null", "expected a JSON object"))
	add(value("figures", "{", "expected a JSON object"))
	add(value("check", `[[1,2]]`, "one logit per label"))
	add(value("check", `{}`, "expected a JSON list"))

	onnx := readModel(t, "tiny.onnx")
	for _, tt := range rows {
		_, err := ReadManifest("folder/file.onnx", setMetadata(t, onnx, tt.key, tt.value))
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "model folder/file.onnx: ") {
			t.Errorf("%s: got %v, want %q and the file's name", tt.key, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q is more than one line", tt.key, err)
		}
	}
}

func TestReadManifestRefusesNetworks(t *testing.T) {
	for _, tt := range []struct{ file, want string }{
		{"wrong-input-type.onnx", "input is image float32 [N,1,32,32], expected image uint8 [N,1,32,32]"},
		{"wrong-input-name.onnx", "input is picture uint8"},
		{"wrong-side.onnx", "input is image uint8 [N,1,28,28]"},
		{"wrong-planes.onnx", "input is image uint8 [N,2,32,32]"},
		{"fixed-batch.onnx", "input is image uint8 [1,1,32,32]"},
		{"wrong-output-name.onnx", "output is scores float32 [N,3], expected logits float32 [N,3]"},
		{"wrong-outputs.onnx", "output is logits float32 [N,2], expected logits float32 [N,3]"},
	} {
		_, err := ReadManifest(tt.file, readModel(t, tt.file))
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.file) {
			t.Errorf("%s: got %v, want %q", tt.file, err, tt.want)
		}
	}
}

func TestReadManifestRefusesOtherFiles(t *testing.T) {
	onnx := readModel(t, "tiny.onnx")
	for _, tt := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "the file is empty"},
		{"text", []byte("rules:\n- class: shadowsocks\n"), "not an ONNX model"},
		{"archive", []byte("PK\x03\x04\x14\x00\x00\x00\x08\x00"), "not an ONNX model"},
		{"zeros", make([]byte, 100), "not an ONNX model"},
		{"cut in the network", onnx[:len(onnx)/2], "cut short"},
		{"cut at its end", onnx[:len(onnx)-1], "cut short"},
	} {
		_, err := ReadManifest("file.onnx", tt.data)
		if !errors.Is(err, ErrNotModel) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestReadManifestFile(t *testing.T) {
	dir := t.TempDir()
	if m, err := ReadManifestFile(filepath.Join("testdata", "tiny.onnx")); err != nil || m.Name != "test" {
		t.Errorf("got %v, %v", m, err)
	}
	missing := filepath.Join(dir, "none.onnx")
	if _, err := ReadManifestFile(missing); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("got %v", err)
	}
	if _, err := ReadManifestFile(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("got %v", err)
	}
}

// FuzzReadManifest holds for any bytes: nothing panics, and what is accepted
// keeps what a caller relies on.
func FuzzReadManifest(f *testing.F) {
	f.Add(readModel(f, "tiny.onnx"))
	f.Add(readModel(f, "wrong-outputs.onnx"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ReadManifest("fuzz", data)
		if err != nil {
			if m != nil {
				t.Fatal("a manifest was returned together with an error")
			}
			return
		}
		if len(m.Labels) < 2 || len(m.Channels) == 0 || !(m.Temperature > 0) || len(m.Thresholds) != len(m.Labels)-1 ||
			!(m.AnyThreshold >= 0 && m.AnyThreshold <= 1) || !(m.Unknown >= 0 && m.Unknown <= 1) {
			t.Fatalf("accepted %+v", m)
		}
		if _, err := json.Marshal(m); err != nil {
			t.Fatal(err)
		}
	})
}
