// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/models"
)

const tinyModel = "../../classifier/testdata/tiny.onnx"

func TestModelInfoPrintsContract(t *testing.T) {
	code, stdout, stderr := runForTest("model", "info", tinyModel)
	if code != exitOK || stderr != "" {
		t.Fatalf("code %d, stderr %q", code, stderr)
	}
	for _, want := range []string{"test 0.1.0", tinyModel, "sha256:000000", "on a CPU       computed by ONNX Runtime\n", "32x32, channels byte", "strict",
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
		"native": false, "training_data": "sha256:" + strings.Repeat("0", 64), "figures": map[string]any{}, "created_by": "make_models.py",
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
	for _, args := range [][]string{{"model", "info"}, {"model", "info", "paper"}} {
		code, stdout, stderr := runForTest(args...)
		if code != exitOK || stderr != "" {
			t.Errorf("%v: code %d, stderr %q", args, code, stderr)
		}
		words := []string{"\nshadowsocks ", " (476 of 5805; ", "\nall that is ordinary  ", "% (11 of 21990; "}
		if len(args) == 2 {
			words = []string{models.DefaultName, "\non a CPU       computed by native code ", "\nshadowsocks ", "detected by a rule over all labels (0.5)", " 98.6 % (3262 of 3307; 98.2 to 99.0) ",
				" 81.0 % (2679 of 3307; ", "\n- outside TLS  ", " 99.4 % (2331 of 2344; 99.1 to 99.7) ", " 0.6 % (2 of 334; 0.2 to 2.2) ",
				"\nlab, random-like      27.1 % (1174 of 4333; ", "\nall that is ordinary  <0.1 % (5 of 13429; "}
		}
		for _, word := range words {
			if !strings.Contains(stdout, word) {
				t.Errorf("%v lacks %q:\n%s", args, word, stdout)
			}
		}
	}
}

// The README's figures are those that model info prints, of the same flows.
func TestREADMEGivesTheFiguresOfModelInfo(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	text, _, found := strings.Cut(strings.Join(strings.Fields(string(readme)), " "), "`earlydrop model info` prints these figures")
	if !found {
		t.Fatal("it does not say which figures those are")
	}
	code, stdout, stderr := runForTest("model", "info")
	if code != exitOK {
		t.Fatalf("code %d, stderr %q", code, stderr)
	}
	figures := regexp.MustCompile(`([\d.<>]+) % of [^(]*\((\d+) of (\d+)`).FindAllStringSubmatch(text, -1)
	if len(figures) < 4 {
		t.Fatalf("only %d figures found in: %s", len(figures), text)
	}
	for _, f := range figures {
		if want := f[1] + " % (" + f[2] + " of " + f[3] + "; "; !strings.Contains(stdout, want) {
			t.Errorf("the README says %q; model info does not print %q:\n%s", f[0], want, stdout)
		}
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

// A model that native code computes is opened with it, unless ONNX Runtime is asked for; others
// are ONNX Runtime's.
func TestDeviceSaysWhatComputes(t *testing.T) {
	for _, tt := range []struct{ model, device, want string }{
		{"", "", "cpu (native "}, {"", "cpu", "cpu (native "}, {"", deviceONNX, "cpu (onnx)"},
		{tinyModel, "cpu", "cpu (onnx)"}, {"paper", "", "cpu (onnx)"},
	} {
		n, err := loadNetwork(tt.model, onnx.Options{Device: tt.device, Workers: 1})
		if err != nil {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		if !strings.HasPrefix(n.Device(), tt.want) {
			t.Errorf("%+v: on %s", tt, n.Device())
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, device := range []string{"tpu", "onnx", "cpu:", "cpu:native", "CPU"} {
		_, err := loadNetwork("", onnx.Options{Device: device})
		if err == nil || !strings.Contains(err.Error(), device) || !strings.Contains(err.Error(), "cpu, cpu:onnx, cuda:N") {
			t.Errorf("%s: %v", device, err)
		}
	}
}
