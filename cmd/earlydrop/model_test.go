// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/models"
)

const tinyModel = "../../classifier/testdata/tiny.onnx"

func TestModelInfoPrintsContract(t *testing.T) {
	code, stdout, stderr := runForTest("model", "info", tinyModel)
	if code != exitOK || stderr != "" {
		t.Fatalf("code %d, stderr %q", code, stderr)
	}
	for _, want := range []string{"test 0.1.0", tinyModel, "sha256:000000", "32x32, channels byte", "strict",
		"temperature    1.5\n", "any threshold  0.9\n", "unknown        never\n", "\nbackground   -\n", "\nshadowsocks  0.9\n", "\nv2ray        0.8\n", "figures: {}"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("stdout lacks %q:\n%s", want, stdout)
		}
	}
}

func TestModelInfoJSON(t *testing.T) {
	code, stdout, stderr := runForTest("model", "info", tinyModel, "--json")
	if code != exitOK || stderr != "" {
		t.Fatalf("code %d, stderr %q", code, stderr)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(tinyModel)
	if err != nil {
		t.Fatal(err)
	}
	if len(got["sha256"].(string)) != 64 {
		t.Errorf("sha256 is %v", got["sha256"])
	}
	delete(got, "sha256")
	want := map[string]any{
		"file": tinyModel, "bytes": float64(info.Size()), "format": 1.0, "name": "test", "version": "0.1.0",
		"labels": []any{"background", "shadowsocks", "v2ray"}, "channels": []any{"byte"}, "mask": "strict",
		"temperature": 1.5, "thresholds": map[string]any{"shadowsocks": 0.9, "v2ray": 0.8}, "any_threshold": 0.9, "unknown": 0.0,
		"training_data": "sha256:" + strings.Repeat("0", 64), "figures": map[string]any{}, "created_by": "make_models.py",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

func TestModelInfoPrintsWhenTheOutcomeIsUnknown(t *testing.T) {
	code, stdout, stderr := runForTest("model", "info", writeFile(t, "m.onnx", boundedModel(t)))
	if code != exitOK || stderr != "" || !strings.Contains(stdout, "any threshold  0.85\n") ||
		!strings.Contains(stdout, "unknown        when the likeliest label is below 0.5\n") {
		t.Errorf("code %d, stderr %q, stdout:\n%s", code, stderr, stdout)
	}
}

func TestModelInfoOfShippedModel(t *testing.T) {
	code, stdout, stderr := runForTest("model", "info")
	if code != exitOK || stderr != "" || !strings.Contains(stdout, models.DefaultName) || !strings.Contains(stdout, "shadowsocks") {
		t.Errorf("code %d, stderr %q, stdout:\n%s", code, stderr, stdout)
	}
}

func TestModelInfoRefusesBadFiles(t *testing.T) {
	dir := t.TempDir()
	onnx, err := os.ReadFile(tinyModel)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct{ path, want string }{
		{filepath.Join(dir, "none.onnx"), "no such file"},
		{dir, "not a regular file"},
		{write("empty.onnx", nil), "the file is empty"},
		{write("cut.onnx", onnx[:len(onnx)/2]), "cut short"},
		{write("text.onnx", []byte("hello\n")), "not an ONNX model"},
		{"../../classifier/testdata/wrong-outputs.onnx", "logits float32 [N,2]"},
	} {
		for _, command := range [][]string{{"model", "info", tt.path}, {"model", "info", "--json", tt.path}} {
			code, stdout, stderr := runForTest(command...)
			if code != exitBadInput || stdout != "" || strings.Count(stderr, "\n") != 1 ||
				!strings.Contains(stderr, tt.want) || !strings.Contains(stderr, tt.path) {
				t.Errorf("%v: code %d, stdout %q, stderr %q, want %q", command, code, stdout, stderr, tt.want)
			}
		}
	}
	if code, _, stderr := runForTest("model", "info", "a", "b"); code != exitBadInput || !strings.Contains(stderr, `"b"`) {
		t.Errorf("code %d, stderr %q", code, stderr)
	}
}

func TestModelInfoPrintsFigures(t *testing.T) {
	for _, tt := range []struct {
		share share
		want  string
	}{
		{share{39, 40, 0.871, 0.996}, "97.5 % (39 of 40; 87.1 to 99.6)"},
		{share{9999, 10000, 0.99944, 0.99999}, ">99.9 % (9999 of 10000; >99.9 to >99.9)"},
		{share{1, 100000, 0.000001, 0.00006}, "<0.1 % (1 of 100000; <0.1 to <0.1)"},
		{share{10, 10, 0.722, 1}, "100.0 % (10 of 10; 72.2 to 100.0)"},
		{share{}, "-"},
	} {
		if got := tt.share.String(); got != tt.want {
			t.Errorf("%+v is printed %q, want %q", tt.share, got, tt.want)
		}
	}
}
