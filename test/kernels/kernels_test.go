// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/test/kernels/machine"
)

func TestNewestOfSeries(t *testing.T) {
	for _, tt := range []struct {
		name        string
		names, want []string
	}{
		{"none", nil, []string{}},
		{"the newest of each series", []string{
			"linux-image-6.12.101+deb12-cloud-amd64", "linux-image-6.1.0-9-cloud-amd64",
			"linux-image-6.12.99+deb12-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64",
		}, []string{"linux-image-6.1.0-56-cloud-amd64", "linux-image-6.12.101+deb12-cloud-amd64"}},
		{"series in order of number", []string{"linux-image-6.12.9-cloud-amd64", "linux-image-6.9.1-cloud-amd64"},
			[]string{"linux-image-6.9.1-cloud-amd64", "linux-image-6.12.9-cloud-amd64"}},
		{"other flavours, meta-packages, debug symbols", []string{
			"linux-image-6.1.0-56-amd64", "linux-image-6.1.0-56-rt-amd64", "linux-image-cloud-amd64",
			"linux-image-6.12-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64-dbg", "linux-image-6.1.0-56-cloud-amd64-unsigned",
		}, []string{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, newestOfSeries(tt.names)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

const good = `=== RUN   TestOne
=== RUN   TestOne/a
    x_test.go:1: a note
--- PASS: TestOne (0.01s)
    --- PASS: TestOne/a (0.00s)
    --- PASS: TestOne/b (0.00s)
--- PASS: TestTwo (0.01s)
PASS

` + machine.EndMark + "0\n[    1.0] reboot: Power down\n"

func TestConsole(t *testing.T) {
	for _, tt := range []struct {
		name, console, err string // err: a word of it, empty: passed
	}{
		{"passed", good, ""},
		{"carriage returns of a serial line", strings.ReplaceAll(good, "\n", "\r\n"), ""},
		{"a kernel message before a line", "[    0.1] clock is slow\n" + good, ""},
		{"nothing at all", "", "before its tests did"},
		{"panic in between", "--- PASS: TestOne (0.01s)\n[    1.0] Kernel panic - not syncing\n", "before its tests did"},
		{"failed", "--- PASS: TestOne (0.01s)\n--- FAIL: TestTwo (0.01s)\nFAIL\n" + machine.EndMark + "1\n", "failed: TestTwo"},
		{"skipped", "--- PASS: TestOne (0.01s)\n--- SKIP: TestTwo (0.01s)\nPASS\n" + machine.EndMark + "0\n", "skipped: TestTwo"},
		{"a subtest skipped", "--- PASS: TestOne (0.01s)\n    --- SKIP: TestOne/a (0.01s)\nPASS\n" + machine.EndMark + "0\n", "skipped: TestOne/a"},
		{"no tests", "testing: warning: no tests to run\nPASS\n" + machine.EndMark + "0\n", "no test ran"},
		{"crash of the test program", "--- PASS: TestOne (0.01s)\npanic: boom\n" + machine.EndMark + "2\n", "status 2"},
		{"a module that does not load", machine.EndMark + "load module /modules/veth: exec format error\n", "load module"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			r, err := readConsole(strings.NewReader(tt.console), &log, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.ReplaceAll(tt.console, "\r", ""); log.String() != want {
				t.Errorf("log %q, want %q", log.String(), want)
			}
			err = r.err()
			switch {
			case tt.err == "" && err != nil:
				t.Error(err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
}

func TestConsoleShowsWhatMatters(t *testing.T) {
	var shown bytes.Buffer
	r, err := readConsole(strings.NewReader(good), io.Discard, &shown)
	if err != nil {
		t.Fatal(err)
	}
	want := "    x_test.go:1: a note\n--- PASS: TestOne (0.01s)\n--- PASS: TestTwo (0.01s)\nPASS\n"
	if diff := cmp.Diff(want, shown.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(r.passed) != 2 || r.subtests != 2 {
		t.Errorf("%d tests with %d subtests, want 2 with 2", len(r.passed), r.subtests)
	}
}

// The program cpio, where it is installed, reads what is written; its format is
// checked by hand all the same.
func TestCPIO(t *testing.T) {
	var b bytes.Buffer
	c := newCPIOWriter(&b)
	c.dir("/dev")
	c.char("/dev/console", 5, 1)
	c.file("/five", []byte("12345"))
	c.file("/empty", nil)
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%4 != 0 {
		t.Errorf("%d bytes are no multiple of four", b.Len())
	}
	const header = 110
	entry := b.Bytes()[:header+len("dev\x00")]
	want := "070701" + "00000001" + "000041ed" + "00000000" + "00000000" + "00000001" + strings.Repeat("00000000", 6) + "00000004" + "00000000" + "dev\x00"
	if diff := cmp.Diff(want, string(entry)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	path, err := exec.LookPath("cpio")
	if err != nil {
		return
	}
	dir := t.TempDir()
	cmd := exec.Command(path, "-i", "--quiet", "five", "empty")
	cmd.Dir, cmd.Stdin = dir, &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	for name, content := range map[string]string{"five": "12345", "empty": ""} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != content {
			t.Errorf("%s holds %q, %v", name, got, err)
		}
	}
}

type failingWriter struct{ left int }

func (w *failingWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, io.ErrShortWrite
	}
	return len(b), nil
}

func TestCPIOKeepsTheFirstError(t *testing.T) {
	c := newCPIOWriter(&failingWriter{left: 150})
	c.file("/a", make([]byte, 100))
	if err := c.close(); err != io.ErrShortWrite {
		t.Errorf("error %v", err)
	}
}

// object makes an ELF file with one section, .modinfo or another.
func object(section, content string) []byte {
	names := "\x00.shstrtab\x00" + section + "\x00"
	le := binary.LittleEndian
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...)
	le.PutUint16(b[16:], 1)  // relocatable
	le.PutUint16(b[18:], 62) // x86-64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[40:], uint64(64+len(names)+len(content))) // section table
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 1)
	b = append(b, names+content...)
	entry := func(name, kind, off, size int) {
		e := make([]byte, 64)
		le.PutUint32(e, uint32(name))
		le.PutUint32(e[4:], uint32(kind))
		le.PutUint64(e[24:], uint64(off))
		le.PutUint64(e[32:], uint64(size))
		b = append(b, e...)
	}
	entry(0, 0, 0, 0)
	entry(1, 3, 64, len(names))
	entry(11, 1, 64+len(names), len(content))
	return b
}

func TestModulesAreLoadedAfterWhatTheyNeed(t *testing.T) {
	dir := t.TempDir()
	k := &kernel{image: "vmlinuz-1", files: make(map[string]string), built: map[string]bool{"ipv6": true}}
	for name, needs := range map[string]string{"bridge": "stp,llc,ipv6", "stp": "llc", "llc": "", "veth": "nf-part", "nf_part": ""} {
		k.files[name] = filepath.Join(dir, name+".ko")
		if err := os.WriteFile(k.files[name], object(".modinfo", "license=GPL\x00depends="+needs+"\x00name="+name+"\x00"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := k.load(context.Background(), []string{"bridge", "veth", "llc", "ipv6"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range got {
		names = append(names, m.name)
	}
	if diff := cmp.Diff([]string{"llc", "stp", "bridge", "nf_part", "veth"}, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := k.load(context.Background(), []string{"sch_ingress"}); err == nil || !strings.Contains(err.Error(), "sch_ingress") {
		t.Errorf("a module that is not there: %v", err)
	}
}

func TestNoModule(t *testing.T) {
	for name, data := range map[string][]byte{"text": []byte("#!/bin/sh\n"), "another object": object(".comment", "x")} {
		if needs, err := dependencies(data); err == nil {
			t.Errorf("%s needs %v", name, needs)
		}
	}
}

func TestModuleNames(t *testing.T) {
	for path, want := range map[string]string{
		"kernel/drivers/net/veth.ko": "veth", "a/nf-part.ko.xz": "nf_part", "b/x.ko.zst": "x", "modules.order": "",
	} {
		got, ok := moduleName(path)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%s: %q, %v, want %q", path, got, ok, want)
		}
	}
}
