// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// withMetadata returns an ONNX file with metadata added. Where a key stands twice,
// the last one holds.
func withMetadata(onnx []byte, properties map[string]string) []byte {
	onnx = slices.Clone(onnx)
	for key, value := range properties {
		var entry []byte
		entry = protowire.AppendTag(entry, 1, protowire.BytesType) // StringStringEntryProto.key
		entry = protowire.AppendString(entry, "earlydrop."+key)
		entry = protowire.AppendTag(entry, 2, protowire.BytesType) // .value
		entry = protowire.AppendString(entry, value)
		onnx = protowire.AppendTag(onnx, 14, protowire.BytesType) // ModelProto.metadata_props
		onnx = protowire.AppendBytes(onnx, entry)
	}
	return onnx
}

// A model that is sure of nothing answers unknown, and a rule may drop that.
func TestRuleOverUnknownDropsWhatIsLikeNoClass(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	_, onnx := models.Default()
	// At such a temperature all labels are about as likely.
	model := s.file("unsure.onnx", string(withMetadata(onnx, map[string]string{"temperature": "1000", "unknown": "0.9"})))
	d := s.attach("--model", model, "--policy", s.file("unknown.yaml", `mode: enforce
rules:
  - name: strange
    class: unknown
    action: drop
    ttl: 10m
`))
	tr := s.download(must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t))
	v := must(d.Verdict(s.ctx, tr.tunnel.Server, 0))(t)
	if v.Class != flow.Unknown || v.Decision != "drop" || v.Rule != "strange" || v.Enforced == nil || !*v.Enforced || v.Confidence >= 0.9 || len(v.Scores) < 3 {
		t.Errorf("verdict %+v", v)
	}
	s.stalled(tr, v)
	blocks := must(s.Blocks(s.ctx))(t)
	if !slices.ContainsFunc(blocks, func(b rig.Block) bool { return b.Class == flow.Unknown && b.Rule == "strange" }) {
		t.Errorf("blocks %+v, want one of class unknown by rule strange", blocks)
	}
	if last := s.stop(d); last.Classes[flow.Unknown] == 0 {
		t.Errorf("summary %+v", last)
	}
}
