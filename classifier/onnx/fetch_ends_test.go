// SPDX-License-Identifier: Apache-2.0

package onnx

import (
	"bytes"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A full disk is said to be one, whichever it is, and not blamed on the registry.
func TestFetchOntoAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, to mount a small file system")
	}
	f := newFetcher(t)
	f.library = make([]byte, 1<<20)
	for i := range f.library {
		f.library[i] = byte(rand.Uint32()) // so that it stays long when it is compressed
	}
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	f.archive = tarball(t, map[string][]byte{"package/bin/napi-v6/linux/" + arch + "/libonnxruntime.so.1": f.library})
	f.pin(f.archive, f.library)
	asked := f.npm("", "/nonexistent")
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	registry := "NPM_CONFIG_REGISTRY=" + newRegistry(t, map[string][]byte{archivePath: f.archive}).URL
	f.mustFail(1, []string{"can't write " + small, "TMPDIR"}, registry, "TMPDIR="+small)
	if _, err := os.Stat(asked); err == nil {
		t.Error("npm was asked, which can't write either")
	}
	f.dest = filepath.Join(small, "lib")
	f.mustFail(1, []string{f.dest, "No space left"}, registry)
	if left, err := os.ReadDir(small); err != nil || len(left) != 1 { // lib
		t.Errorf("left %v, %v", left, err)
	}
}

// Ctrl-C, a closed terminal and a second signal leave nothing behind.
func TestFetchIsInterrupted(t *testing.T) {
	// What the tests' own process ignores, as under nohup, its children would ignore as well.
	caught := make(chan os.Signal, 8)
	signal.Notify(caught, unix.SIGINT, unix.SIGHUP, unix.SIGTERM)
	defer signal.Stop(caught)
	for _, signals := range [][]syscall.Signal{{unix.SIGINT}, {unix.SIGHUP}, {unix.SIGTERM, unix.SIGINT, unix.SIGHUP}} {
		f := newFetcher(t)
		asked, done := make(chan struct{}), make(chan struct{})
		var once sync.Once
		r := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			once.Do(func() { close(asked) })
			select {
			case <-done:
			case <-req.Context().Done():
			}
		}))
		tmp := t.TempDir()
		cmd := exec.Command(filepath.Join(f.bin, "sh"), f.script, f.dest)
		cmd.Env = []string{"PATH=" + f.bin, "HOME=" + tmp, "TMPDIR=" + tmp, "NPM_CONFIG_REGISTRY=" + r.URL}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a terminal sends it to all
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-asked:
		case <-time.After(30 * time.Second):
			t.Error("the registry was not asked")
		}
		for _, s := range signals {
			_ = unix.Kill(-cmd.Process.Pid, s)
		}
		_ = cmd.Wait()
		close(done)
		r.Close()
		if code := cmd.ProcessState.ExitCode(); code != 130 || f.installed() {
			t.Errorf("%v: exit code %d, installed %v: %s", signals, code, f.installed(), stderr.String())
		}
		for _, dir := range []string{tmp, f.dest} {
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("%v: left %v, %v", signals, left, err)
			}
		}
	}
}

// Two builds may fetch at the same time.
func TestFetchTwiceAtOnce(t *testing.T) {
	f := newFetcher(t)
	r := newRegistry(t, map[string][]byte{archivePath: f.archive})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			cmd := exec.Command(filepath.Join(f.bin, "sh"), f.script, f.dest)
			cmd.Env = []string{"PATH=" + f.bin, "NPM_CONFIG_REGISTRY=" + r.URL}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	if entries, err := os.ReadDir(f.dest); err != nil || len(entries) != 1 || !f.installed() {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestFetchRefusesWhatIsNoFolder(t *testing.T) {
	f := newFetcher(t)
	r := "NPM_CONFIG_REGISTRY=" + newRegistry(t, map[string][]byte{archivePath: f.archive}).URL
	if err := os.MkdirAll(filepath.Join(f.dest, libraryName), 0o755); err != nil {
		t.Fatal(err)
	}
	if code, stderr := f.run(r); code != 1 || !strings.Contains(stderr, libraryName+" is a folder") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	for _, dest := range []string{"", "-x", "--help"} {
		f.dest = dest
		f.mustFail(1, []string{"usage: "}, r)
	}
}
