// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
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

// What a rule drops is called by the rule's classes everywhere: in the line that
// attach prints, in the map, in the list of blocks and in the summary.
func TestDroppedFlowsAreNotCalledUnknown(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	_, onnx := models.Default()
	// No label is ever likely enough to be named, but the sum is what it was.
	model := s.file("unsure.onnx", string(withMetadata(onnx, map[string]string{"unknown": "1"})))
	text := s.attachText("--model", model, "--policy", s.policy("enforce", "10m"))
	tun := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t)
	sum := `\w+(?:\|\w+)* [01]\.\d{3}`
	drop := fmt.Sprintf(`(?m)^%s  drop +tcp \S+ > %s  %s(?: \((\w+) [01]\.\d{3}\))?  .* rule tunnels$`, timestamp, regexp.QuoteMeta(tun.Server.String()), sum)
	verdict := fmt.Sprintf(`(?m)^%s  \w+ +tcp \S+ > %s  `, timestamp, regexp.QuoteMeta(tun.Server.String()))
	var class string
	for n := range tries {
		s.download(tun)
		text.waits(fmt.Sprintf(`(%s(.*\n)*.*){%d}`, verdict, n+1))
		if m := regexp.MustCompile(drop).FindStringSubmatch(text.stdout.String()); m != nil {
			class = m[1]
			break
		}
	}
	if text.lacks(drop) {
		t.Fatalf("nothing fits %s in:\n%s", drop, text.stdout.String())
	}
	blocks := must(s.Blocks(s.ctx))(t)
	if len(blocks) != 1 || !slices.Contains(tunnelClasses, blocks[0].Class) || class != "" && blocks[0].Class != class {
		t.Errorf("blocks %+v, want one of the class %s", blocks, class)
	}
	for _, argv := range [][]string{{s.Binary(), "blocked", "list"}, {"bpftool", "map", "dump", "pinned", rig.PinDir + "/blocked"}} {
		if out := must(s.Run(s.ctx, argv...))(t); !strings.Contains(out.Stdout, blocks[0].Class) || strings.Contains(out.Stdout, flow.Unknown) {
			t.Errorf("%v prints\n%s", argv, out.Stdout)
		}
	}
	text.end(os.Interrupt)
	text.waits(fmt.Sprintf(`\n  %s +\d+ flows\n`, blocks[0].Class))
	s.clean()
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
	if v.Class != flow.Unknown || v.Called() != flow.Unknown || v.Likeliest == flow.Unknown || v.Decision != "drop" || v.Rule != "strange" || v.Enforced == nil || !*v.Enforced || v.Confidence >= 0.9 || len(v.Scores.Labels) < 3 {
		t.Errorf("verdict %+v", v)
	}
	s.stalled(tr, v)
	blocks := must(s.Blocks(s.ctx))(t)
	if !slices.ContainsFunc(blocks, func(b status.Block) bool { return b.Class == flow.Unknown && b.Rule == "strange" }) {
		t.Errorf("blocks %+v, want one of class unknown by rule strange", blocks)
	}
	if last := s.stop(d); last.Classes[flow.Unknown] == 0 {
		t.Errorf("summary %+v", last)
	}
}
