// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package onnx

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/earlydrop/earlydrop/test/onnxruntime"
)

// childEnv makes the test binary open an engine and print how it went: ONNX
// Runtime is set up once per process, so each way to find its library needs a
// process of its own.
const childEnv = "EARLYDROP_TEST_OPEN"

// quickExit spares a child that was built with the race detector a second of waiting.
const quickExit = "GORACE=atexit_sleep_ms=0"

func TestMain(m *testing.M) {
	if model, device := os.Getenv(childEnv), os.Getenv(childEnv+"_DEVICE"); device != "" {
		if err := classifyOnDevice(model, device, os.Getenv(childEnv+"_FAILS") != ""); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	} else if model != "" {
		e, err := OpenFile(model, Options{Library: os.Getenv(childEnv + "_LIBRARY")})
		if err != nil {
			if errors.Is(err, ErrLibrary) {
				os.Stdout.WriteString("library: ")
			}
			os.Stdout.WriteString(err.Error())
			os.Exit(0)
		}
		os.Stdout.WriteString("opened with " + RuntimeVersion())
		if os.Getenv(childEnv+"_SOCKETS") != "" {
			fmt.Printf(", %d sockets", sockets())
		}
		e.Close()
		os.Exit(0)
	}
	os.Exit(onnxruntime.Main(m.Run))
}

// child is a process of its own that opens the tiny model.
type child struct {
	exe     string   // the test binary, or a copy of it
	dir     string   // working directory
	library string   // Options.Library
	env     []string // besides what tells it to open the model
	attr    *syscall.SysProcAttr
}

// open returns what the child printed.
func (c child) open(t *testing.T) string {
	t.Helper()
	// A checkout may lie where only its owner may read, as root's home.
	model := place(t, filepath.Join(modelFolder, "tiny.onnx"), openFolder(t), "tiny.onnx")
	cmd := exec.Command(c.exe)
	cmd.Dir = c.dir
	cmd.Env = append([]string{childEnv + "=" + model, childEnv + "_LIBRARY=" + c.library, quickExit}, c.env...)
	cmd.SysProcAttr = c.attr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if strings.Contains(string(out), "\n") {
		t.Errorf("%q is more than one line", out)
	}
	return string(out)
}

// ONNX Runtime tells its maker nothing: it keeps no files for that, whatever the environment
// says, and opens no socket.
func TestRuntimeSendsNothing(t *testing.T) {
	exe, real := testBinary(t), realLibrary(t)
	for _, asked := range []string{"", "0"} {
		home := t.TempDir()
		env := []string{"HOME=" + home, "TMPDIR=" + home, "XDG_CACHE_HOME=" + home, childEnv + "_SOCKETS=1"}
		if asked != "" {
			env = append(env, noTelemetry+"="+asked)
		}
		if got := (child{exe: exe, library: real, env: env}).open(t); !strings.HasPrefix(got, "opened with 1.") || !strings.HasSuffix(got, ", 0 sockets") {
			t.Errorf("%s=%q: %s", noTelemetry, asked, got)
		}
		if left, err := os.ReadDir(home); err != nil || len(left) > 0 {
			t.Errorf("%s=%q: it has left %v, %v", noTelemetry, asked, left, err)
		}
	}
}

// sockets returns how many sockets the process has open.
func sockets() (n int) {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	for _, fd := range open {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

// testBinary returns the path of the running test binary.
func testBinary(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// realLibrary returns the path of ONNX Runtime's library.
func realLibrary(t *testing.T) string {
	t.Helper()
	openEngine(t, "tiny.onnx", Options{}) // fails first and clearer where there is no library at all
	return runtimeState.path
}

// place copies a file, mode included, and returns the copy's path.
func place(t *testing.T, from string, to ...string) string {
	t.Helper()
	path := filepath.Join(to...)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// openFolder returns a temporary folder that every user may enter.
func openFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ed-library-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// compileLibrary compiles C source to a shared library at path.
func compileLibrary(t *testing.T, path, source string, flags ...string) {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Fatalf("no C compiler, which this package needs anyway: %v", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(cc, append([]string{"-shared", "-fPIC", "-x", "c", "-o", path, "-"}, flags...)...)
	cmd.Stdin = strings.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestLibraryIsLookedForInOrder(t *testing.T) {
	real, exe := realLibrary(t), testBinary(t)
	bad := filepath.Join(t.TempDir(), "bad.so")
	if err := os.WriteFile(bad, []byte("no library"), 0o644); err != nil {
		t.Fatal(err)
	}
	besides := t.TempDir()
	exeBeside := place(t, exe, besides, "earlydrop")
	place(t, real, besides, "lib", libraryName)
	nowhere := t.TempDir()
	variable := func(path string) []string { return []string{LibraryEnv + "=" + path} }

	for _, tt := range []struct {
		name string
		child
		want string
	}{
		{"option before variable", child{exe: exe, library: real, env: variable(bad)}, "opened with 1."},
		{"variable before the program's folder", child{exe: exeBeside, env: variable(bad)}, "library: "},
		{"variable", child{exe: exe, env: variable(real)}, "opened with 1."},
		{"beside the program", child{exe: exeBeside}, "opened with 1."},
		{"beside the program, before the loader's folders", child{exe: exeBeside, env: []string{"LD_LIBRARY_PATH=" + filepath.Dir(bad)}}, "opened with 1."},
		{"in a folder of the loader", child{exe: exe, env: []string{"LD_LIBRARY_PATH=/nonexistent:" + filepath.Dir(real)}}, "opened with 1."},
		{"bare name in a folder of the loader", child{exe: exe, env: append(variable(libraryName), "LD_LIBRARY_PATH="+filepath.Dir(real))}, "opened with 1."},
		{"bare name in none", child{exe: exeBeside, env: variable("libnone.so.7")}, `EARLYDROP_ONNXRUNTIME is "libnone.so.7", but no folder`},
		{"bad option", child{exe: exeBeside, library: bad}, bad},
		{"missing option", child{exe: exeBeside, library: bad + ".none"}, bad + ".none (asked for by option): no such file or directory"},
		{"folder", child{exe: exeBeside, library: nowhere}, nowhere + " (asked for by option): not a regular file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.dir = nowhere
			if got := tt.open(t); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// Who can write to the working directory, or above it, must not choose the code that
// runs with the program's rights.
func TestLibraryIsNeverTakenFromTheWorkingDirectory(t *testing.T) {
	exe := testBinary(t)
	planted := t.TempDir()
	marker := filepath.Join(planted, "ran")
	source := fmt.Sprintf(`
#include <fcntl.h>
__attribute__((constructor)) static void ran(void) { creat(%q, 0600); }
`, marker)
	deep := filepath.Join(planted, "a", "b")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	compileLibrary(t, filepath.Join(planted, libraryName), source)
	for _, dir := range []string{planted, deep} {
		for _, below := range []string{"", "lib", "bin", "bin/lib"} {
			if path := filepath.Join(dir, below, libraryName); !isFile(path) {
				place(t, filepath.Join(planted, libraryName), path)
			}
		}
	}
	for _, dir := range []string{planted, deep} {
		for _, env := range [][]string{
			nil,
			{"PWD=" + dir},
			{"LD_LIBRARY_PATH="},
			{"LD_LIBRARY_PATH=:"},
			{"LD_LIBRARY_PATH=:/nonexistent"},
			{"LD_LIBRARY_PATH=/nonexistent;.;lib:bin/lib:./lib:$ORIGIN"},
			{LibraryEnv + "="},
			{LibraryEnv + "=" + libraryName},
		} {
			if got := (child{exe: exe, dir: dir, env: env}).open(t); !strings.HasPrefix(got, "library: ") {
				t.Errorf("in %s with %v: got %q, want that there is no library", dir, env, got)
			}
		}
	}
	if _, err := os.Stat(marker); err == nil {
		t.Fatal("a library of the working directory was loaded")
	}
	// The test would see it.
	(child{exe: exe, dir: planted, library: filepath.Join(planted, libraryName)}).open(t)
	if _, err := os.Stat(marker); err != nil {
		t.Errorf("the planted library leaves no mark: %v", err)
	}
}

func TestFoldersOfTheLoaderAreReadFromItsConfiguration(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("d/b.conf", "/b1:/b2,/b3\n")
	write("d/a.conf", "# comment\n/a # comment\nrelative\n")
	write("d/none.txt", "/none\n")
	write("circle.conf", "include "+filepath.Join(dir, "circle.conf")+"\n")
	config := write("ld.so.conf", "/first\ninclude d/*.conf\ninclude circle.conf\n  /last  \n")
	got := loaderFolders("/v1::lib;/v2:.:", config)
	want := []string{"/v1", "/v2", "/first", "/a", "/b1", "/b2", "/b3", "/last", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got := loaderFolders("", filepath.Join(dir, "missing")); !slices.Equal(got, want[len(want)-4:]) {
		t.Errorf("without a configuration: %v", got)
	}
}

// A library of an older ONNX Runtime is told by the version that it knows.
func TestLibraryTooOldSaysSo(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, libraryName)
	// All that the binding asks a library before it uses it.
	compileLibrary(t, old, `
#include <stddef.h>
#include <stdint.h>
static const void *get_api(uint32_t version) { (void)version; return NULL; }
static const char *get_version(void) { return "1.20.1"; }
static const struct {
	const void *(*get_api)(uint32_t);
	const char *(*get_version)(void);
} base = { get_api, get_version };
const void *OrtGetApiBase(void) { return &base; }
`)
	got := child{exe: testBinary(t), dir: dir, library: old}.open(t)
	for _, want := range []string{"library: ", old, "too old: version 1.24 or later"} {
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
