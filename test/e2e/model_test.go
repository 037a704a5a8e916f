// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// While connections are made, the model of a running daemon is changed again and again: each
// connection gets its verdict, memory does not grow, and what does not fit changes nothing.
func TestModelIsChangedUnderTraffic(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	model := func(name string) string { return must(filepath.Abs(filepath.Join(testModels, name)))(t) }
	policy := s.file("low.yaml", "mode: monitor\nrules: [{name: both, class: [shadowsocks, v2ray], min_confidence: 0.3, action: drop, ttl: 1h}]\n")
	d := s.attach("--policy", policy)
	use := func(file string) rig.Output {
		t.Helper()
		return must(s.Run(s.ctx, s.Binary(), "model", "use", file))(t)
	}
	for file, word := range map[string]string{model("wrong-check.onnx"): "self-check", s.file("cut.onnx", "x"): "cut.onnx", s.file("labels.yaml", "") + "/none": "none"} {
		if out := use(file); out.Code != 2 || strings.Count(out.Stderr, "\n") != 1 || !strings.Contains(out.Stderr, word) {
			t.Errorf("%s: %+v", file, out)
		}
	}
	if st := must(s.Status(s.ctx))(t); !strings.HasPrefix(st.Model, "compact ") {
		t.Errorf("the model is %s", st.Model)
	}

	done := make(chan struct{})
	made := 0
	var traffic sync.WaitGroup
	traffic.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if r := s.Curl(s.ctx, nil, s.URL("https", 4, s.web.HTTPSPort, "/64k")); r.Err != nil {
				t.Error(r.Err)
				return
			}
			made++
		}
	})
	const rounds = 8
	var warm int64
	for i := range rounds {
		for _, file := range []string{model("suspicious.onnx"), "paper"} {
			if out := use(file); out.Code != 0 || !strings.Contains(out.Stdout, " instead of ") {
				t.Errorf("model use %s: %+v", file, out)
			}
		}
		if i == 1 {
			warm = int64(resident(t, d.PID()))
		}
	}
	grown := int64(resident(t, d.PID())) - warm
	if out := use(model("suspicious.onnx")); !strings.Contains(out.Stdout, "model test 0.1.0 instead of paper") {
		t.Errorf("model use printed %q", out.Stdout)
	}
	if st := must(s.Status(s.ctx))(t); st.Model != "test 0.1.0" {
		t.Errorf("the model is %s", st.Model)
	}
	close(done)
	traffic.Wait()
	var models map[string]int
	if err := rig.Until(s.ctx, func() (bool, error) {
		models = map[string]int{}
		n := 0
		for _, v := range rig.Of[*event.Verdict](d.Events()) {
			if v.Dst.Port() == s.web.HTTPSPort && v.Revised == 0 {
				models[v.Model]++
				n++
			}
		}
		return n >= made, nil
	}); err != nil {
		t.Errorf("%d connections, verdicts by model: %v", made, models)
	}
	if len(models) < 2 || grown > 32<<20 {
		t.Errorf("verdicts by model %v; %d KiB more than after two rounds", models, grown>>10)
	}
	reloads := rig.Of[*event.Reloaded](d.Events())
	if last := reloads[len(reloads)-1]; last.Model != "test 0.1.0" || last.Error != "" || !strings.HasPrefix(last.Was, "paper ") {
		t.Errorf("event %+v", last)
	}
	s.stop(d)
}

// ONNX Runtime is loaded when a model needs it, and not before: the default one does without.
func TestDefaultModelNeedsNoONNXRuntime(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	without := []string{"env", "EARLYDROP_ONNXRUNTIME=/nonexistent.so", s.Binary()}
	d := s.daemonOf(append(without, "attach", "-i", rig.Device, "--json")...)
	if st := must(s.Status(s.ctx))(t); !strings.HasPrefix(st.Device, "cpu (native ") {
		t.Errorf("device %s", st.Device)
	}
	if maps := must(os.ReadFile(fmt.Sprintf("/proc/%d/maps", d.PID())))(t); strings.Contains(string(maps), "onnxruntime") {
		t.Error("ONNX Runtime is loaded")
	}
	if r := s.Curl(s.ctx, nil, s.URL("https", 4, s.web.HTTPSPort, "/64k")); r.Err != nil {
		t.Error(r.Err)
	}
	must(rig.Wait(s.ctx, d, "a verdict", func(v *event.Verdict) bool { return v.Dst.Port() == s.web.HTTPSPort }))(t)
	out := must(s.Run(s.ctx, s.Binary(), "model", "use", "paper"))(t)
	if out.Code != 2 || strings.Count(out.Stderr, "\n") != 1 || !strings.Contains(out.Stderr, "/nonexistent.so") {
		t.Errorf("model use paper: %+v", out)
	}
	out = must(s.Run(s.ctx, append(without, "check", "-i", rig.Device)...))(t)
	if out.Code != 0 || !strings.Contains(out.Stdout, "passes its self-check on cpu (native ") {
		t.Errorf("check: %+v", out)
	}
	s.stop(d)
}
