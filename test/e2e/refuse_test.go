// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/earlydrop/earlydrop/models"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

const testModels = "../../classifier/testdata"

// What can't work is refused with one line and exit code 2, and nothing is
// attached, pinned or changed.
func TestBadInputIsRefusedAndChangesNothing(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	model := func(name string) string {
		t.Helper()
		path, err := filepath.Abs(filepath.Join(testModels, name))
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	_, onnx := models.Default()
	truncated := s.file("truncated.onnx", string(onnx[:len(onnx)/2]))
	open := s.file("open.so", "code")
	if err := os.Chmod(open, 0o666); err != nil {
		t.Fatal(err)
	}
	rule := "mode: enforce\nrules:\n  - name: r\n    class: %s\n    min_confidence: 0.9\n    action: drop\n    ttl: %s\n"
	attach := []string{s.Binary(), "attach", "-i", rig.Device}
	with := func(args ...string) []string { return append(attach[:len(attach):len(attach)], args...) }
	nobody := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", s.Binary()}
	asNobody := func(args ...string) []string { return append(nobody[:len(nobody):len(nobody)], args...) }

	for _, tt := range []struct {
		name  string
		argv  []string
		env   []string
		words []string
	}{
		{"no such interface", []string{s.Binary(), "attach", "-i", "nope0"}, nil, []string{"no such interface", "nope0"}},
		{"no interface given", []string{s.Binary(), "attach"}, nil, []string{"--interface"}},
		{"not root", asNobody("attach", "-i", rig.Device), nil, []string{"CAP_NET_ADMIN", "CAP_BPF", "root"}},
		{"one capability is missing", append([]string{"setpriv", "--bounding-set=-net_admin"}, attach...), nil, []string{"CAP_NET_ADMIN"}},
		{"model is missing", with("--model", "/nonexistent.onnx"), nil, []string{"/nonexistent.onnx", "no such file"}},
		{"model is truncated", with("--model", truncated), nil, []string{truncated}},
		{"model is no model", with("--model", "/etc/passwd"), nil, []string{"/etc/passwd"}},
		{"model of another shape", with("--model", model("wrong-side.onnx")), nil, []string{"wrong-side.onnx", "32"}},
		{"model of other planes", with("--model", model("wrong-planes.onnx")), nil, []string{"wrong-planes.onnx"}},
		{"model with other labels than outputs", with("--model", model("wrong-outputs.onnx")), nil, []string{"wrong-outputs.onnx", "[N,2]", "[N,3]"}},
		{"model that computes something else", with("--model", model("wrong-check.onnx")), nil, []string{"wrong-check.onnx"}},
		{"device is unknown", with("--device", "tpu"), nil, []string{"tpu", "cpu", "cuda"}},
		{"library is missing", with("--device", "cpu:onnx"), []string{"EARLYDROP_ONNXRUNTIME=/nonexistent.so"}, []string{"ONNX Runtime", "/nonexistent.so", "EARLYDROP_ONNXRUNTIME"}},
		{"library is another one", with("--device", "cpu:onnx"), []string{"EARLYDROP_ONNXRUNTIME=libm.so.6"}, []string{"ONNX Runtime", "libm.so.6"}},
		{"library that everybody can change", with("--device", "cpu:onnx"), []string{"EARLYDROP_ONNXRUNTIME=" + open}, []string{"ONNX Runtime", open, "writable by everybody", "only root"}},
		{"policy is missing", with("--policy", "/nonexistent.yaml"), nil, []string{"/nonexistent.yaml"}},
		{"policy is no YAML", with("--policy", s.file("syntax.yaml", "mode: monitor\nrules: [\n")), nil, []string{"syntax.yaml:"}},
		{"policy with an unknown key", with("--policy", s.file("key.yaml", "mode: monitor\nruls: []\n")), nil, []string{"key.yaml:2:1", "ruls", "rules"}},
		{"policy with a class that the model lacks", with("--policy", s.file("class.yaml", fmt.Sprintf(rule, "shadowsox", "10m"))), nil, []string{"class.yaml:4:", "shadowsox", "shadowsocks"}},
		{"policy with a bad duration", with("--policy", s.file("ttl.yaml", fmt.Sprintf(rule, "v2ray", "soon"))), nil, []string{"ttl.yaml:7:", "soon"}},
		{"mode is unknown", with("--mode", "block"), nil, []string{"block", "monitor", "enforce"}},
		{"mid-stream policy is unknown", with("--mid-stream", "maybe"), nil, []string{"maybe", "ignore", "capture"}},
		{"xdp mode is unknown", with("--xdp", "fast"), nil, []string{"fast", "native", "generic"}},
		{"ingress hook is unknown", with("--ingress", "nic"), nil, []string{"nic", "xdp", "tcx"}},
		{"ingress hook and xdp mode", with("--ingress", "tcx", "--xdp", "native"), nil, []string{"--ingress tcx", "--xdp native"}},
		{"event file can't be written", with("--events", "/nonexistent/log"), nil, []string{"/nonexistent/log"}},
		{"flag is unknown", with("--polcy", "x"), nil, []string{"--polcy", "--policy"}},
		{"detach of nothing", []string{s.Binary(), "detach", "-i", rig.Device}, nil, []string{"earlydrop: not attached to " + rig.Device}},
		{"status of nothing", []string{s.Binary(), "status", "-i", rig.Device}, nil, []string{"earlydrop: not attached to " + rig.Device}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.refused(t, tt.argv, tt.env, tt.words)
			s.clean()
		})
	}

	t.Run("no event file is left", func(t *testing.T) {
		path, kept := filepath.Join(s.Dir(), "new.jsonl"), s.file("old.jsonl", "{}\n")
		for _, file := range []string{path, kept} {
			s.refused(t, []string{s.Binary(), "attach", "-i", "nope0", "--events", file}, nil, []string{"nope0"})
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left (%v)", path, err)
		}
		if text, err := os.ReadFile(kept); err != nil || string(text) != "{}\n" {
			t.Errorf("the file that was there before: %q, %v", text, err)
		}
	})

	t.Run("another XDP program", func(t *testing.T) {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "somebody_else", Type: ebpf.XDP, License: "GPL",
			Instructions: asm.Instructions{asm.LoadImm(asm.R0, 2, asm.DWord), asm.Return()}, // XDP_PASS
		})
		if err != nil {
			t.Fatal(err)
		}
		defer prog.Close()
		dev, err := s.Gateway.Netlink().LinkByName(rig.Device)
		if err != nil {
			t.Fatal(err)
		}
		var foreign link.Link
		err = s.Gateway.Do(func() (err error) {
			foreign, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: dev.Attrs().Index})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		s.refused(t, with("--ingress", "xdp"), nil, []string{"another XDP program", "somebody_else", rig.Device})
		dev, err = s.Gateway.Netlink().LinkByName(rig.Device)
		if err != nil || dev.Attrs().Xdp == nil || !dev.Attrs().Xdp.Attached {
			t.Errorf("the other program was taken away: %v, %v", dev, err)
		}
		if err := foreign.Close(); err != nil {
			t.Fatal(err)
		}
		s.clean()
	})

	t.Run("a second daemon", func(t *testing.T) {
		d := s.attach()
		s.refused(t, attach, nil, []string{"earlydrop: already attached", fmt.Sprint(d.PID())})
		for _, args := range [][]string{{"detach", "-i", rig.Device}, {"status", "-i", rig.Device}, {"status"}, {"blocked", "list"}, {"blocked", "del", "--all", "-i", rig.Device}} {
			s.refused(t, asNobody(args...), nil, []string{"run as root"})
		}
		// The first one works on.
		if r := s.Curl(s.ctx, nil, s.URL("https", 4, s.web.HTTPSPort, "/64k")); r.Err != nil {
			t.Error(r.Err)
		}
		s.stop(d)
	})
}

// refused runs a command that must be refused with one line that has these words.
func (s *scene) refused(t *testing.T, argv, env, words []string) {
	t.Helper()
	out, err := s.RunEnv(s.ctx, env, argv...)
	if err != nil {
		t.Fatal(err)
	}
	if out.Code != 2 || out.Stdout != "" || strings.Count(out.Stderr, "\n") != 1 || !strings.HasPrefix(out.Stderr, "earlydrop: ") || !strings.HasSuffix(out.Stderr, "\n") {
		t.Errorf("exit code %d, standard output %q, standard error %q; want 2 and one line", out.Code, out.Stdout, out.Stderr)
	}
	for _, w := range words {
		if !strings.Contains(out.Stderr, w) {
			t.Errorf("%q lacks %q", out.Stderr, w)
		}
	}
	t.Log(strings.TrimSpace(out.Stderr))
}
