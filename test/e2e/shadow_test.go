// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"path/filepath"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// A second model that takes ordinary flows for tunnels is told of, and drops nothing.
func TestShadowModelIsToldOfAndDropsNothing(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	suspicious := must(filepath.Abs(filepath.Join(testModels, "suspicious.onnx")))(t)
	policy := s.file("low.yaml", "mode: enforce\nrules: [{name: both, class: [shadowsocks, v2ray], min_confidence: 0.3, action: drop, ttl: 1h}]\n")
	d := s.attach("--policy", policy, "--shadow", suspicious)
	r := s.Curl(s.ctx, nil, s.URL("https", 4, s.web.HTTPSPort, "/64k"))
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	e := must(rig.Wait(s.ctx, d, "what the models disagree on", func(e *event.Disagreed) bool { return e.Dst.Port() == s.web.HTTPSPort }))(t)
	if e.First.Class != "background" || e.First.Decision != "pass" || e.Second.Model != "test 0.1.0" || e.Second.Class == "background" || e.Interface != rig.Device || e.Src.Addr() != s.ClientAddr(4) {
		t.Errorf("event %+v", e)
	}
	v := must(rig.Wait(s.ctx, d, "the verdict", func(v *event.Verdict) bool { return v.Src == e.Src }))(t)
	if v.Decision != "pass" || v.Model == e.Second.Model {
		t.Errorf("verdict %+v", v)
	}
	if blocks := must(s.Blocks(s.ctx))(t); len(blocks) > 0 {
		t.Errorf("blocked: %+v", blocks)
	}
	if last := must(d.Stop(s.ctx))(t); last.Counters["shadow_disagreed"] == 0 || last.Counters["shadowed"] < last.Counters["shadow_disagreed"] {
		t.Errorf("counters %v", last.Counters)
	}
}
