// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// childEnv makes the test binary open an engine and print how it went: ONNX
// Runtime is set up once per process, so each way to find its library needs a
// process of its own.
const childEnv = "EARLYDROP_TEST_OPEN"

func TestMain(m *testing.M) {
	if model := os.Getenv(childEnv); model != "" {
		e, err := OpenFile(model, Options{Library: os.Getenv(childEnv + "_LIBRARY")})
		if err != nil {
			if errors.Is(err, ErrLibrary) {
				os.Stdout.WriteString("library: ")
			}
			os.Stdout.WriteString(err.Error())
			os.Exit(0)
		}
		e.Close()
		os.Stdout.WriteString("opened with " + RuntimeVersion())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// openInChild opens the tiny model in a process of its own, in dir, and
// returns what it printed.
func openInChild(t *testing.T, exe, dir, library, env string) string {
	t.Helper()
	model, err := filepath.Abs(filepath.Join("testdata", "tiny.onnx"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Dir = dir
	cmd.Env = []string{childEnv + "=" + model, childEnv + "_LIBRARY=" + library, LibraryEnv + "=" + env}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestLibraryIsLookedForInOrder(t *testing.T) {
	openEngine(t, "tiny.onnx", Options{}) // fails first and clearer where there is no library at all
	real := runtimeState.path
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// place copies the test binary or links the library.
	place := func(from string, to ...string) string {
		path := filepath.Join(to...)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(from, path); err != nil {
			data, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, data, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	bad := filepath.Join(t.TempDir(), "bad.so")
	if err := os.WriteFile(bad, []byte("no library"), 0o644); err != nil {
		t.Fatal(err)
	}

	besides := t.TempDir()
	exeBeside := place(exe, besides, "earlydrop")
	place(real, besides, "lib", libraryName)
	above := t.TempDir()
	place(real, above, "bin", "lib", libraryName)
	deep := filepath.Join(above, "a", "b")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	nowhere := t.TempDir()

	for _, tt := range []struct {
		name, exe, dir, library, env string
		want                         string
	}{
		{"option before variable", exe, nowhere, real, bad, "opened with 1."},
		{"variable before the program's folder", exeBeside, nowhere, "", bad, "library: "},
		{"variable", exe, nowhere, "", real, "opened with 1."},
		{"beside the program", exeBeside, nowhere, "", "", "opened with 1."},
		{"above the working directory", exe, deep, "", "", "opened with 1."},
		{"bad option", exeBeside, above, bad, "", bad},
		{"missing option", exeBeside, above, bad + ".none", "", "run 'make onnxruntime' or set " + LibraryEnv},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := openInChild(t, tt.exe, tt.dir, tt.library, tt.env)
			if !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if strings.Contains(got, "\n") {
				t.Errorf("%q is more than one line", got)
			}
		})
	}
}

// A library of an older ONNX Runtime is told by the version that it knows.
func TestLibraryTooOldSaysSo(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Fatalf("no C compiler, which this package needs anyway: %v", err)
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "old.c")
	// All that the binding asks a library before it uses it.
	if err := os.WriteFile(source, []byte(`
#include <stddef.h>
#include <stdint.h>
static const void *get_api(uint32_t version) { (void)version; return NULL; }
static const char *get_version(void) { return "1.20.1"; }
static const struct {
	const void *(*get_api)(uint32_t);
	const char *(*get_version)(void);
} base = { get_api, get_version };
const void *OrtGetApiBase(void) { return &base; }
`), 0o644); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(dir, libraryName)
	if out, err := exec.Command(cc, "-shared", "-fPIC", "-o", old, source).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	got := openInChild(t, exe, dir, old, "")
	for _, want := range []string{"library: ", old, "too old: version 1.24 or later", "make onnxruntime"} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestSecondLibraryIsRefused(t *testing.T) {
	openEngine(t, "tiny.onnx", Options{})
	_, err := Open("tiny.onnx", readModel(t, "tiny.onnx"), Options{Library: "/nonexistent/libonnxruntime.so.1"})
	if !errors.Is(err, ErrLibrary) || !strings.Contains(err.Error(), "/nonexistent/") {
		t.Errorf("got %v", err)
	}
}
