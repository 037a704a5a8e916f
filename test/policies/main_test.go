// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/test/onnxruntime"
)

func TestMain(m *testing.M) { os.Exit(onnxruntime.Main(m.Run)) }

// The captures of the golden tests as a recording, and as third-party captures.
func TestPoliciesAreMeasured(t *testing.T) {
	lab, others, dir := t.TempDir(), t.TempDir(), t.TempDir()
	manifest := "path\tlabel\tprogram\tcipher\tcarried\tkind\n"
	copyTo := func(folder, name, class string) {
		data, err := os.ReadFile("../testdata/" + class + ".pcap")
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(folder, name)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(folder, name), data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct{ path, class, label, program, cipher, carried, kind string }{
		{"one/shadowsocks.ss.aes.1.https.pcap", "shadowsocks", "shadowsocks", "ss", "aes", "https", tunnel},
		{"one/v2ray.xray.ws-tls.2.https.pcap", "ssh", "v2ray", "xray", "ws-tls", "https", tunnel},
		{"one/background.http.pcap", "ssh", "background", "nginx", "-", "http", ordinary},
		{"one/background.custom.length.3.http.pcap", "obfs4", "background", "custom", "length", "http", randomLike},
	} {
		copyTo(lab, row.path, row.class)
		manifest += strings.Join([]string{row.path, row.label, row.program, row.cipher, row.carried, row.kind}, "\t") + "\n"
	}
	if err := os.WriteFile(filepath.Join(lab, "manifest.tsv"), []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	copyTo(others, "a/tunnel.pcap", "shadowsocks")
	copyTo(others, "b/more.pcap", "ssh")
	for name, text := range map[string]string{filepath.Join(others, "README"): "no capture", filepath.Join(others, "empty.pcap"): ""} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	eager := filepath.Join(dir, "eager.yaml")
	if err := os.WriteFile(eager, []byte("rules: [{class: [shadowsocks, v2ray, obfs4], min_confidence: 0.5, action: drop, ttl: 1m}]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(&out, lab, others, []string{eager, builtIn}); err != nil {
		t.Fatal(err)
	}
	text, builtIn, _ := strings.Cut(out.String(), "## built-in, ")
	for _, want := range []string{
		"## eager.yaml, model compact ", "| shadowsocks | 3 | 100.00 % (3 of 3; 43.85 to 100.00) | 0.00 % (0 of 3; 0.00 to 56.15) | 1 | 0.00 % (0 of 1;",
		"| v2ray in TLS | 5 | 0 | all |", "| **all** | 5 | 5 | 0.00 % (0 of 5; 0.00 to 43.45) |", "| custom tunnels | 5 | 5 | 100.00 % (5 of 5; 56.55 to 100.00) |",
		"| a/tunnel.pcap | 3 | 3 | 100.00 % (3 of 3; 43.85 to 100.00) |", "| 3 others | | | 0 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if !strings.Contains(builtIn, "| shadowsocks | 3 |") {
		t.Errorf("the built-in policy:\n%s", builtIn)
	}
}

// Flows of one tunnel are evidence for one another across its files.
func TestFilesOfATunnelAreOneCapture(t *testing.T) {
	dir := t.TempDir()
	const head = "path\tlabel\tprogram\tcipher\tcarried\tkind\n"
	manifest := head + "a/ss.p.c.1.http.pcap\tss\tp\tc\thttp\ttunnel\na/ss.p.c.2.http.pcap\tss\tp\tc\thttp\ttunnel\na/ss.p.c.1.git.pcap\tss\tp\tc\tgit\ttunnel\n" +
		"a/background.x.y.1.http.pcap\tbackground\tx\ty\thttp\trandom-like\na/background.x.y.1.git.pcap\tbackground\tx\ty\tgit\trandom-like\n"
	if err := os.WriteFile(filepath.Join(dir, "manifest.tsv"), []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	jobs, err := recorded(dir)
	if err != nil || len(jobs) != 4 || len(jobs[0].files) != 2 || filepath.Base(jobs[0].files[1]) != "ss.p.c.1.git.pcap" || len(jobs[1].files) != 1 {
		t.Errorf("%+v, %v", jobs, err)
	}
	pair, alone := newTables(), []*judged{{treated: true, passed: 1}, {passed: 5000}, {treated: true, passed: 2}, {treated: true, passed: 3}}
	pair.add(&jobs[0], []*judged{{treated: true, passed: 100}, {passed: 5000}, {treated: true, onPair: true, passed: 300}, {treated: true, onPair: true, passed: 400}}, alone)
	if r := pair.tunnels["ss"]; r.flows != 4 || r.alone != 3 || r.passed != 1 || r.pairs != 1 || r.third != 1 || r.ever != 1 || len(r.bytes) != 1 || r.bytes[0] != 5400 {
		t.Errorf("%+v", r)
	}
}

func TestBadFoldersAreRefused(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{"": "names no capture", "path\tkind\n": "names no capture", "path\tkind\na\n": "2: 1 columns, want 2", "path\tlabel\na\tb\n": "no path, or no kind"} {
		if err := os.WriteFile(filepath.Join(dir, "manifest.tsv"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := run(io.Discard, dir, "", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	for _, folders := range [][2]string{{"", ""}, {filepath.Join(dir, "none"), ""}, {"", filepath.Join(dir, "none")}} {
		if err := run(io.Discard, folders[0], folders[1], nil); err == nil {
			t.Errorf("%q: no error", folders)
		}
	}
}

func TestWilson(t *testing.T) {
	for _, tt := range []struct {
		n, of     int
		low, high float64
	}{{0, 10, 0, 0.277533}, {10, 10, 0.722467, 1}, {13, 6991, 0.001087, 0.003180}} {
		if low, high := wilson(tt.n, tt.of); max(low-tt.low, tt.low-low, high-tt.high, tt.high-high) > 1e-5 {
			t.Errorf("%d of %d: %f to %f, want %f to %f", tt.n, tt.of, low, high, tt.low, tt.high)
		}
	}
}
