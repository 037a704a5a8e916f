// SPDX-License-Identifier: Apache-2.0

package onnx

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// fetchTools are what fetch-onnxruntime.sh may use. npm is not among them.
var fetchTools = []string{"base64", "cat", "chmod", "cp", "curl", "cut", "gzip", "mkdir", "mktemp", "mv", "od", "rm",
	"rmdir", "sed", "sh", "sha256sum", "sha512sum", "tail", "tar", "tr", "uname"}

const (
	archivePath = "/onnxruntime-node/-/onnxruntime-node-1.29.0.tgz"
	cudaPath    = "/com.github.asus4.onnxruntime.linux-x64-gpu/-/com.github.asus4.onnxruntime.linux-x64-gpu-0.4.9.tgz"
)

// cudaFiles are what --cuda installs.
var cudaFiles = []string{libraryName, "libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"}

// fetcher runs the script, with the pins of a small archive in place of the real
// ones, on a PATH of its own.
type fetcher struct {
	t       *testing.T
	script  string
	bin     string // the PATH
	dest    string
	options []string
	archive []byte
	library []byte
}

func newFetcher(t *testing.T) *fetcher {
	t.Helper()
	f := &fetcher{t: t, bin: filepath.Join(t.TempDir(), "bin"), dest: filepath.Join(t.TempDir(), "lib"), library: []byte("a library\n")}
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	files := map[string][]byte{"package/bin/napi-v6/linux/" + arch + "/libonnxruntime.so.1": f.library}
	for _, name := range cudaFiles[1:] {
		files["package/Plugins/Linux/x64/"+name] = f.library
	}
	f.archive = tarball(t, files)
	f.pin(f.archive, f.library)
	if err := os.Mkdir(f.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tool := range fetchTools {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(f.bin, tool)); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func tarball(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for name, data := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pin writes the script with the hashes of this archive and this library.
func (f *fetcher) pin(archive, library []byte) {
	f.t.Helper()
	text, err := os.ReadFile("fetch-onnxruntime.sh")
	if err != nil {
		f.t.Fatal(err)
	}
	integrity, sum := sha512.Sum512(archive), sha256.Sum256(library)
	for pattern, value := range map[string]string{
		// What is pinned of the CUDA provider is in the same archive, for the tests of that.
		`(@[0-9.]+\) echo sha512-)\S+`:               base64.StdEncoding.EncodeToString(integrity[:]),
		`((?:\) hash=|/Linux/x64/\S+ ))[0-9a-f]{64}`: hex.EncodeToString(sum[:]),
	} {
		re := regexp.MustCompile(pattern)
		if !re.Match(text) {
			f.t.Fatalf("the script has nothing like %s", pattern)
		}
		text = re.ReplaceAll(text, []byte("${1}"+value))
	}
	f.script = filepath.Join(f.t.TempDir(), "fetch.sh")
	if err := os.WriteFile(f.script, text, 0o755); err != nil {
		f.t.Fatal(err)
	}
}

// tool puts a shell script on the PATH; text has no #! line.
func (f *fetcher) tool(name, text string) {
	f.t.Helper()
	path := filepath.Join(f.bin, name)
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		f.t.Fatal(err)
	}
}

// npm puts an npm on the PATH that is configured for a registry and packs a file.
// What it is asked is written to the file that is returned.
func (f *fetcher) npm(registry, archive string) (log string) {
	log = filepath.Join(f.t.TempDir(), "npm.log")
	f.tool("npm", fmt.Sprintf(`echo "$*" >>%q
case $1 in
config) echo %q ;;
pack) cp %q onnxruntime-node-1.29.0.tgz ;;
esac
`, log, registry, archive))
	return log
}

func (f *fetcher) run(env ...string) (code int, stderr string) {
	f.t.Helper()
	cmd := exec.Command(filepath.Join(f.bin, "sh"), slices.Concat([]string{f.script}, f.options, []string{f.dest})...)
	tmp := f.t.TempDir()
	cmd.Env = append([]string{"PATH=" + f.bin, "HOME=" + tmp, "TMPDIR=" + tmp}, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, failed := err.(*exec.ExitError); err != nil && !failed {
		f.t.Fatal(err)
	}
	if out.Len() > 0 {
		f.t.Errorf("it prints %q on standard output", out.String())
	}
	if left, _ := os.ReadDir(tmp); len(left) > 0 {
		f.t.Errorf("it leaves %v in the folder for temporary files", left)
	}
	if left, _ := filepath.Glob(filepath.Join(f.dest, ".*")); len(left) > 0 {
		f.t.Errorf("it leaves %v", left)
	}
	return cmd.ProcessState.ExitCode(), errs.String()
}

func (f *fetcher) installed() bool {
	data, err := os.ReadFile(filepath.Join(f.dest, libraryName))
	return err == nil && bytes.Equal(data, f.library)
}

func (f *fetcher) mustInstall(env ...string) {
	f.t.Helper()
	if code, stderr := f.run(env...); code != 0 || !f.installed() {
		f.t.Errorf("with %v: exit code %d, installed %v: %s", env, code, f.installed(), stderr)
	}
}

// mustFail makes sure that it ends with this code and, but for the line that says what
// is being fetched, one line with all the words, and installs nothing.
func (f *fetcher) mustFail(code int, words []string, env ...string) {
	f.t.Helper()
	got, stderr := f.run(env...)
	var lines []string
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "fetching ") {
			lines = append(lines, line)
		}
	}
	if got != code || len(lines) != 1 || f.installed() {
		f.t.Errorf("with %v: exit code %d, want %d; installed %v; %q, want one line", env, got, code, f.installed(), lines)
	}
	for _, word := range words {
		if !strings.Contains(stderr, word) {
			f.t.Errorf("with %v: %q lacks %q", env, stderr, word)
		}
	}
}

// registry serves files below paths, and counts requests.
type registry struct {
	*httptest.Server
	mu       sync.Mutex
	requests []string
}

func newRegistry(t *testing.T, files map[string][]byte) *registry {
	t.Helper()
	r := &registry{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		user, password, _ := req.BasicAuth()
		r.mu.Lock()
		r.requests = append(r.requests, strings.TrimPrefix(user+":"+password+" ", ": ")+req.URL.String())
		r.mu.Unlock()
		data, ok := files[req.URL.Path]
		if !ok {
			http.NotFound(w, req)
			return
		}
		w.Write(data)
	}))
	t.Cleanup(r.Close)
	return r
}

// asked returns the requests since the last call.
func (r *registry) asked() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked := r.requests
	r.requests = nil
	return asked
}

// unreachable returns the address of a port where nobody listens.
func unreachable(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

func TestFetchTakesTheRegistryThatIsNamed(t *testing.T) {
	f := newFetcher(t)
	r := newRegistry(t, map[string][]byte{archivePath: f.archive, "/some/path" + archivePath: f.archive})
	for _, tt := range []struct {
		name string
		env  []string
		want string
	}{
		{"plain", []string{"NPM_CONFIG_REGISTRY=" + r.URL}, archivePath},
		{"trailing slash", []string{"NPM_CONFIG_REGISTRY=" + r.URL + "/"}, archivePath},
		{"two slashes", []string{"NPM_CONFIG_REGISTRY=" + r.URL + "//"}, archivePath},
		{"path", []string{"NPM_CONFIG_REGISTRY=" + r.URL + "/some/path/"}, "/some/path" + archivePath},
		{"small letters", []string{"npm_config_registry=" + r.URL}, archivePath},
		{"capitals first", []string{"NPM_CONFIG_REGISTRY=" + r.URL + "/some/path", "npm_config_registry=" + r.URL}, "/some/path" + archivePath},
		{"credentials", []string{"NPM_CONFIG_REGISTRY=" + strings.Replace(r.URL, "//", "//user:p%40ss%22word@", 1)}, `user:p@ss"word ` + archivePath},
	} {
		t.Run(tt.name, func(t *testing.T) {
			os.RemoveAll(f.dest)
			f.mustInstall(tt.env...)
			if asked := r.asked(); len(asked) != 1 || asked[0] != tt.want {
				t.Errorf("asked for %q, want %q", asked, tt.want)
			}
		})
	}
}

func TestFetchTakesTheRegistryOfNpmsConfiguration(t *testing.T) {
	f := newFetcher(t)
	r := newRegistry(t, map[string][]byte{archivePath: f.archive})
	log := f.npm(r.URL+"/", "/nonexistent")
	f.mustInstall()
	if asked := r.asked(); len(asked) != 1 {
		t.Errorf("asked for %q", asked)
	}
	if text, _ := os.ReadFile(log); string(text) != "config get registry\n" {
		t.Errorf("npm was asked %q, want its configuration alone", text)
	}
	// The variable overrides it.
	os.RemoveAll(f.dest)
	f.npm(unreachable(t), "/nonexistent")
	f.mustInstall("NPM_CONFIG_REGISTRY=" + r.URL)
}

// Neither the terminal nor the list of processes shows a password.
func TestFetchKeepsCredentialsToItself(t *testing.T) {
	f := newFetcher(t)
	r := newRegistry(t, nil)
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "curl.log")
	f.tool("curl", fmt.Sprintf("echo \"$*\" >>%q\nexec %s \"$@\"\n", log, curl))
	with := func(url string) string { return strings.Replace(url, "//", "//user:secret@x@", 1) }
	f.mustFail(3, []string{r.URL, "404", "npm"}, "NPM_CONFIG_REGISTRY="+with(r.URL))
	closed := unreachable(t)
	f.mustFail(1, []string{closed}, "NPM_CONFIG_REGISTRY="+with(closed))
	for _, bad := range []string{"ftp://user:secret@host/", "user:secret@host", with(r.URL)} {
		if _, stderr := f.run("NPM_CONFIG_REGISTRY=" + bad); strings.Contains(stderr, "secret") {
			t.Errorf("%s: it prints the password: %q", bad, stderr)
		}
	}
	text, err := os.ReadFile(log)
	if err != nil || len(text) == 0 || strings.Contains(string(text), "secret") {
		t.Errorf("curl's arguments: %q, %v", text, err)
	}
}

func TestFetchGoesThroughAProxy(t *testing.T) {
	f := newFetcher(t)
	// To a proxy, the request has the whole address.
	proxy := newRegistry(t, map[string][]byte{archivePath: f.archive})
	registry := "NPM_CONFIG_REGISTRY=http://registry.invalid"
	for _, env := range [][]string{
		{"http_proxy=" + proxy.URL},
		{"HTTP_PROXY=" + proxy.URL},
		{"all_proxy=" + proxy.URL},
		{"http_proxy=" + proxy.URL, "HTTP_PROXY=" + unreachable(t)},
	} {
		os.RemoveAll(f.dest)
		f.mustInstall(append(env, registry)...)
		if asked := proxy.asked(); len(asked) != 1 || asked[0] != "http://registry.invalid"+archivePath {
			t.Errorf("with %v: the proxy was asked for %q", env, asked)
		}
	}
	os.RemoveAll(f.dest)
	direct := newRegistry(t, map[string][]byte{archivePath: f.archive})
	f.mustInstall("NPM_CONFIG_REGISTRY="+direct.URL, "HTTP_PROXY="+proxy.URL, "no_proxy=127.0.0.1")
	if asked := proxy.asked(); len(asked) > 0 {
		t.Errorf("in spite of no_proxy, the proxy was asked for %q", asked)
	}
	os.RemoveAll(f.dest)
	f.mustFail(1, []string{"registry.invalid"}, "http_proxy="+unreachable(t), registry)
}

func TestFetchNeedsNothingWhereTheLibraryIs(t *testing.T) {
	f := newFetcher(t)
	if err := os.MkdirAll(f.dest, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.dest, libraryName), f.library, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"curl", "tar", "gzip"} {
		if err := os.Remove(filepath.Join(f.bin, tool)); err != nil {
			t.Fatal(err)
		}
	}
	if code, stderr := f.run("NPM_CONFIG_REGISTRY=" + unreachable(t)); code != 0 || stderr != "" {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

func TestFetchSaysWhatIsWrong(t *testing.T) {
	f := newFetcher(t)
	good := newRegistry(t, map[string][]byte{archivePath: f.archive})
	closed := unreachable(t)
	f.mustFail(1, []string{"can't get onnxruntime-node@1.29.0 from " + closed + ": ", "https_proxy", "NPM_CONFIG_REGISTRY"},
		"NPM_CONFIG_REGISTRY="+closed)
	f.mustFail(1, []string{"onnxruntime-node@1.29.0", "not the one that was pinned"},
		"NPM_CONFIG_REGISTRY="+newRegistry(t, map[string][]byte{archivePath: []byte("<html>log in</html>")}).URL)
	f.mustFail(1, []string{`"ftp://host/"`, "no http or https address"}, "NPM_CONFIG_REGISTRY=ftp://host/")

	f.pin(f.archive, []byte("another library"))
	f.mustFail(1, []string{"sha256 of bin/napi-v6", "expected"}, "NPM_CONFIG_REGISTRY="+good.URL)
	empty := tarball(t, map[string][]byte{"package/package.json": nil})
	f.pin(empty, f.library)
	f.run("NPM_CONFIG_REGISTRY=" + newRegistry(t, map[string][]byte{archivePath: empty}).URL)
	if f.installed() {
		t.Error("something is installed that was not in the archive")
	}

	// A library of another release is left as it is until the new one is there.
	f.pin(f.archive, f.library)
	old := filepath.Join(f.dest, libraryName)
	if err := os.WriteFile(old, []byte("old"), 0o755); err != nil {
		t.Fatal(err)
	}
	f.mustFail(1, nil, "NPM_CONFIG_REGISTRY="+unreachable(t))
	if data, err := os.ReadFile(old); string(data) != "old" {
		t.Errorf("the old library is now %q, %v", data, err)
	}
	f.mustInstall("NPM_CONFIG_REGISTRY=" + good.URL)

	os.RemoveAll(f.dest)
	f.tool("uname", "echo riscv64")
	f.mustFail(1, []string{"riscv64", "x86_64", "aarch64"})
	if err := os.Remove(filepath.Join(f.bin, "curl")); err != nil {
		t.Fatal(err)
	}
	f.tool("uname", "echo "+map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH])
	f.mustFail(1, []string{"neither curl nor npm"})
}

// npm is asked where curl did not succeed, and what it brings is checked likewise.
func TestFetchFallsBackToNpm(t *testing.T) {
	f := newFetcher(t)
	file := filepath.Join(t.TempDir(), "archive.tgz")
	if err := os.WriteFile(file, f.archive, 0o644); err != nil {
		t.Fatal(err)
	}
	refusing := newRegistry(t, nil) // 404 for all
	f.npm("", file)
	for _, env := range []string{refusing.URL, unreachable(t)} {
		os.RemoveAll(f.dest)
		f.mustInstall("NPM_CONFIG_REGISTRY=" + env)
	}
	os.RemoveAll(f.dest)
	if err := os.Remove(filepath.Join(f.bin, "curl")); err != nil {
		t.Fatal(err)
	}
	f.mustInstall("NPM_CONFIG_REGISTRY=" + refusing.URL)

	os.RemoveAll(f.dest)
	if err := os.WriteFile(file, []byte("something else"), 0o644); err != nil {
		t.Fatal(err)
	}
	f.mustFail(1, []string{"not the one that was pinned"}, "NPM_CONFIG_REGISTRY="+refusing.URL)

	f.tool("npm", "printf 'npm error code E404\\nnpm error   at a (b.js:1)\\nnpm error 404 Not Found - GET http://user:secret@host/\\n' >&2; exit 1\n")
	f.mustFail(1, []string{"can't get onnxruntime-node@1.29.0 from " + refusing.URL + ": npm: code E404; 404 Not Found - GET http://host/\n"},
		"NPM_CONFIG_REGISTRY="+refusing.URL)
}
