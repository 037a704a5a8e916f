// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// runner runs one command line, the program's name left out.
type runner func(args ...string) (code int, stdout, stderr string)

// Built without cgo, the program does all but classify.
func TestProgramWithoutCgo(t *testing.T) {
	program := filepath.Join(t.TempDir(), "earlydrop")
	for _, args := range [][]string{{"build", "-o", program, "."}, {"vet", "."}} {
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("CGO_ENABLED=0 go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run := func(args ...string) (int, string, string) {
		var stdout, stderr strings.Builder
		cmd := exec.Command(program, args...)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
	}
	t.Run("commands", func(t *testing.T) { commandsWithoutCgo(t, run) })
	t.Run("data path", func(t *testing.T) { dataPathWithoutCgo(t, run) })
}

// What needs a model run says that there is none; all else is as with cgo.
func commandsWithoutCgo(t *testing.T, run runner) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	request := []byte(strings.Repeat("request", 20))
	pcap := write("captures/group/flow.pcap", captureBytes(t, conversation(0, "10.0.0.1:1000", "10.0.0.2:80", request, request)...))
	policyFile := write("policy.yaml", []byte("rules:\n- {class: shadowsocks, min_confidence: 0.9, action: drop, ttl: 10m}\n"))

	for _, args := range [][]string{
		{"version"},
		{"--help"},
		{"model", "info"},
		{"model", "info", tinyModel},
		{"model", "info", "--json", "paper"},
		{"model", "info", pcap},
		{"policy", "default"},
		{"policy", "check", policyFile},
		{"policy", "check", pcap},
		{"status", "-i", "nosuch0"},
		{"blocked", "list", "-i", "nosuch0"},
		{"blocked", "del", "-i", "nosuch0", "--all"},
		{"detach", "-i", "nosuch0"},
		{"replay", dir + "/none"},
		{"replay", "--model", dir + "/none", pcap},
		{"replay", "--model", pcap, pcap},
		{"explain", dir + "/none"},
		{"attach", "-i", "nosuch0", "--device", "tpu"},
		{"attach", "-i", "nosuch0", "--model", pcap},
	} {
		code, stdout, stderr := run(args...)
		stderr = strings.ReplaceAll(stderr, "\u00a0", " ") // protobuf's errors differ from build to build
		wantCode, wantStdout, wantStderr := runForTest(args...)
		wantStderr = strings.ReplaceAll(wantStderr, "\u00a0", " ")
		if args[0] == "version" { // the two are stamped differently
			stdout, wantStdout = stdout[:len("earlydrop ")], wantStdout[:len("earlydrop ")]
		}
		if code != wantCode || stdout != wantStdout || stderr != wantStderr {
			t.Errorf("earlydrop %q: exit code %d, %q, %q\nwith cgo: %d, %q, %q", args, code, stdout, stderr, wantCode, wantStdout, wantStderr)
		}
	}

	out := filepath.Join(dir, "dataset")
	if code, stdout, stderr := run("dataset", "--captures", filepath.Join(dir, "captures"), "--label", "ssh", "--out", out); code != exitOK {
		t.Errorf("dataset: exit code %d, %q, %q", code, stdout, stderr)
	}
	if rows, err := os.ReadFile(filepath.Join(out, "samples.tsv")); err != nil || strings.Count(string(rows), "\n") != 2 {
		t.Errorf("samples.tsv: %v, %q", err, rows)
	}

	for _, args := range [][]string{
		{"attach", "-i", "nosuch0"},
		{"attach", "-i", "nosuch0", "--device", "cuda:0", "--model", tinyModel},
		{"replay", pcap},
		{"replay", "--json", "--model", "paper", "--policy", policyFile, pcap},
		{"explain", pcap},
		{"explain", "--out", filepath.Join(dir, "why.png"), pcap},
	} {
		code, stdout, stderr := run(args...)
		const want = "earlydrop: this program was built without cgo, so it can't compute a model; build it with CGO_ENABLED=1 and a C compiler, as 'make build' does\n"
		if code != exitBadInput || stdout != "" || stderr != want {
			t.Errorf("earlydrop %q: exit code %d, %q, %q; want %d and %q", args, code, stdout, stderr, exitBadInput, want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "why.png")); err == nil {
		t.Error("explain left a picture behind")
	}
}

// What another program has attached is shown and removed.
func dataPathWithoutCgo(t *testing.T, run runner) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to attach")
	}
	runtime.LockOSThread() // what is run starts in the namespace of this thread
	old, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(netns.Set(old), fresh.Close(), old.Close()); err != nil {
			panic(err) // the thread is of no use to other tests
		}
		runtime.UnlockOSThread()
	}()
	iface := fmt.Sprintf("nocgo%d", os.Getpid()%1000000)
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: iface}, PeerName: "peer"}); err != nil {
		t.Fatal(err)
	}
	dp, err := loader.Attach(loader.Options{Interface: iface, XDPMode: loader.XDPGeneric, Model: "test 1", Policy: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = loader.Detach(iface, false) }() // where the program did not
	meta := &flow.Meta{Key: flow.Key{
		Lo: netip.MustParseAddrPort("192.0.2.1:1000"), Hi: netip.MustParseAddrPort("192.0.2.2:443"), Proto: flow.TCP,
	}}
	if err := errors.Join(dp.ApplyFlow(meta, flow.Treatment{Action: flow.Drop, TTL: time.Hour, Class: "shadowsocks", Rule: "tunnels"}), dp.Release()); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"status", "-i", iface}, exitNotWell, "test 1"},
		{[]string{"blocked", "list", "-i", iface}, exitOK, "192.0.2.2:443"},
		{[]string{"blocked", "del", "-i", iface, "--all"}, exitOK, "1"},
		{[]string{"blocked", "list", "-i", iface}, exitOK, "no flow is blocked"},
		{[]string{"detach", "-i", iface}, exitOK, "detached from " + iface},
	} {
		if code, stdout, stderr := run(tt.args...); code != tt.code || !strings.Contains(stdout, tt.want) {
			t.Errorf("earlydrop %q: exit code %d, %q, %q; want %q", tt.args, code, stdout, stderr, tt.want)
		}
	}
	if _, err := loader.Open(iface); !errors.Is(err, loader.ErrNotAttached) {
		t.Errorf("detached, and opened again: %v", err)
	}
}
