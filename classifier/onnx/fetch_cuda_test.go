// SPDX-License-Identifier: Apache-2.0

package onnx

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// newCUDAFetcher is newFetcher for the CUDA provider, on a machine that has of CUDA what
// found says.
func newCUDAFetcher(t *testing.T, found string) *fetcher {
	t.Helper()
	f := newFetcher(t)
	f.options = []string{"--cuda", "--machine", "x86_64"}
	f.tool("uname", "echo x86_64")
	f.tool("ldd", fmt.Sprintf(`printf '\tlibcudart.so.13 => %s (0x1)\n\tlibcublasLt.so.13 => %s\n\tlibcuda.so.1 => not found\n'`, found, found))
	f.tool("ldconfig", "echo")
	f.tool("grep", "exit 1")
	if runtime.GOARCH != "amd64" { // the archive's library is for this machine
		f.archive = tarball(t, map[string][]byte{
			"package/bin/napi-v6/linux/x64/" + libraryName: f.library,
			"package/Plugins/Linux/x64/" + cudaFiles[1]:    f.library,
			"package/Plugins/Linux/x64/" + cudaFiles[2]:    f.library,
		})
		f.pin(f.archive, f.library)
	}
	return f
}

func (f *fetcher) hasCUDA(want []byte) bool {
	for _, name := range cudaFiles {
		if data, err := os.ReadFile(filepath.Join(f.dest, name)); err != nil || !bytes.Equal(data, want) {
			return false
		}
	}
	return true
}

// Who installs the provider is told whose it is, and what it lacks here, now and later.
func TestFetchOfTheCUDAProviderSaysWhoseItIsAndWhatItLacks(t *testing.T) {
	f := newCUDAFetcher(t, "not found")
	r := newRegistry(t, map[string][]byte{archivePath: f.archive, cudaPath: f.archive})
	code, said := f.run("NPM_CONFIG_REGISTRY=" + r.URL)
	if asked := r.asked(); code != 0 || !f.hasCUDA(f.library) || len(asked) != 2 {
		t.Fatalf("exit code %d, asked %q: %s", code, asked, said)
	}
	if n := strings.Count(said, "is a third party's, not Microsoft's own"); n != 1 {
		t.Errorf("it says %d times whose the two libraries are: %s", n, said)
	}
	lacks := []string{
		"for a GPU, this machine lacks libcudart.so.13 (CUDA's runtime)\n",
		"for a GPU, this machine lacks libcublasLt.so.13 (cuBLAS)\n",
		"for a GPU, this machine lacks libcuda.so.1 (NVIDIA's driver)\n",
		"for a GPU, this machine lacks libcudnn.so.9 (cuDNN; models with convolutions need it, such as paper)\n",
	}
	if !strings.HasSuffix(said, strings.Join(lacks, "")) {
		t.Errorf("got %s\nwant at its end %q", said, lacks)
	}
	code, said = f.run("NPM_CONFIG_REGISTRY=" + unreachable(t))
	if code != 0 || said != strings.Join(lacks, "") {
		t.Errorf("where all is there: exit code %d, %s", code, said)
	}

	f.tool("ldd", `printf '\tlibcuda.so.1 => /usr/lib/libcuda.so.1 (0x1)\n'`)
	f.tool("grep", "exit 0")
	if code, said = f.run(); code != 0 || said != "" {
		t.Errorf("where nothing is lacking: exit code %d, %s", code, said)
	}
}

// Microsoft's own release, unpacked or not, takes the place of the packages.
func TestFetchTakesTheCUDAProviderFromAFolderOrAnArchive(t *testing.T) {
	own := []byte("Microsoft's own\n")
	files := map[string][]byte{}
	unpacked := t.TempDir()
	for _, name := range cudaFiles {
		files["onnxruntime-linux-x64-gpu-9/lib/"+name] = own
		path := filepath.Join(unpacked, "release", "lib", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, own, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	archive := filepath.Join(t.TempDir(), "release.tgz")
	if err := os.WriteFile(archive, tarball(t, files), 0o644); err != nil {
		t.Fatal(err)
	}
	sums := regexp.MustCompile(`(?m)^sha256 [0-9a-f]{64}$`)
	for _, from := range []string{unpacked, filepath.Join(unpacked, "release"), filepath.Join(unpacked, "release", "lib"), archive} {
		f := newCUDAFetcher(t, "/found")
		f.options = append(f.options, "--from", from)
		code, said := f.run("NPM_CONFIG_REGISTRY=" + unreachable(t))
		if code != 0 || !f.hasCUDA(own) {
			t.Errorf("from %s: exit code %d: %s", from, code, said)
		}
		if n := len(sums.FindAllString(said, -1)); n != 3 || strings.Contains(said, "third party") || strings.Contains(said, "cublas") {
			t.Errorf("from %s: it prints %d hashes: %s", from, n, said)
		}
	}

	f := newCUDAFetcher(t, "/found")
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("no archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{t.TempDir(), plain, "/nonexistent"} {
		f.options = []string{"--cuda", "--machine", "x86_64", "--from", from}
		if code, said := f.run(); code != 1 || !strings.Contains(said, "fetch-onnxruntime: "+from) || f.installed() {
			t.Errorf("from %s: exit code %d, %s", from, code, said)
		}
	}
	for _, options := range [][]string{{"--from", archive}, {"--cuda", "--from"}, {"--cuda", "--from", ""}} {
		f.options = options
		if code, said := f.run(); code != 1 || !strings.Contains(said, "usage: ") {
			t.Errorf("%q: exit code %d, %s", options, code, said)
		}
	}
}
