// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// A download that is open at the attach is captured from its middle where the
// operator asks for it, says so, and is blocked only where a rule says so, too.
func TestOpenDownloadsAreBlockedWhereARuleSaysSo(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: lab.LinkConfig{Relay: lab.RelayConfig{Delay: time.Millisecond, Rate: 20e6}}})
	policy := func(mode, more string) string {
		return s.file(mode+".yaml", fmt.Sprintf("mode: %s\nrules:\n  - {name: tunnels, class: [%s], min_confidence: 0.01, action: drop, ttl: 10m%s}\n",
			mode, strings.Join(tunnelClasses, ", "), more))
	}
	plain, middle := policy("monitor", ""), policy("enforce", ", mid_stream: true")
	const downloads = 3
	// The model does not take each download for a tunnel.
	for round := range tries {
		var open []*transfer
		for range downloads {
			open = append(open, s.download(nil))
		}
		for _, tr := range open {
			if err := rig.Until(s.ctx, func() (bool, error) { return tr.bytes.Load() > 0, nil }); err != nil {
				t.Fatal(err)
			}
		}
		// verdicts waits for those about the open downloads. Whoever sent the first
		// packet counts as the initiator.
		verdicts := func(d *rig.Daemon) (found []*event.Verdict) {
			server := open[0].server(s)
			seen := map[string]bool{}
			for len(found) < downloads {
				v := must(rig.Wait(s.ctx, d, "the verdict about a download", func(e *event.Verdict) bool {
					return (e.Src == server || e.Dst == server) && !seen[e.Src.String()+e.Dst.String()]
				}))(t)
				seen[v.Src.String()+v.Dst.String()] = true
				if !v.MidStream {
					t.Errorf("a download that was open is not mid-stream: %+v", v)
				}
				found = append(found, v)
			}
			return found
		}

		d := s.attach("--mid-stream", "capture", "--policy", plain)
		for _, v := range verdicts(d) {
			if v.Decision != "pass" || v.Rule == "tunnels" && v.Reason != "mid-stream" {
				t.Errorf("a rule without mid_stream: %+v", v)
			}
		}
		s.stop(d)

		d = s.attach("--mid-stream", "capture", "--policy", middle)
		dropped := 0
		for _, v := range verdicts(d) {
			if v.Decision == "drop" {
				dropped++
				if v.Enforced == nil || !*v.Enforced || v.Reason != "rule" {
					t.Errorf("a rule with mid_stream: %+v", v)
				}
				s.risen(v, 1)
			} else if v.Reason == "mid-stream" {
				t.Errorf("a rule with mid_stream: %+v", v)
			}
		}
		s.stop(d)
		for _, tr := range open {
			tr.stop()
		}
		t.Logf("round %d: %d of %d open downloads dropped", round, dropped, downloads)
		if dropped > 0 {
			return
		}
	}
	t.Errorf("no open download was dropped in %d rounds", tries)
}
