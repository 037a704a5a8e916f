// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// What the manual says of allow: it comes before every rule, and lifts no block that is
// there already.
func TestAllowComesBeforeRulesButLiftsNoBlock(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	d := s.enforce("--persist")
	tr, v := s.blockedDownload(d)
	if _, err := d.Stop(s.ctx); err != nil {
		t.Fatal(err)
	}

	rules := must(s.Run(s.ctx, "cat", s.policy("enforce", "10m")))(t).Stdout
	d = s.attach("--policy", s.file("allow.yaml", rules+fmt.Sprintf("allow:\n  - cidr: %s/32\n    port: %d\n", v.Dst.Addr(), v.Dst.Port())))
	if !d.Attached.Adopted {
		t.Errorf("attached: %+v", d.Attached)
	}
	s.stalled(tr, v)

	second := s.download(tr.tunnel)
	if verdict := must(d.Verdict(s.ctx, v.Dst, 0))(t); verdict.Decision != "pass" {
		t.Errorf("the verdict about an allowed flow: %+v", verdict)
	}
	s.complete("an allowed download", second)

	must(s.Earlydrop(s.ctx, "blocked", "del", "-i", rig.Device, "tcp", v.Src.String(), v.Dst.String()))(t)
	s.stop(d)
}
