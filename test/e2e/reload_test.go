// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// reloaded waits until the daemon has told of so many reloads, and returns the last one.
func (s *scene) reloaded(d *rig.Daemon, n int) *event.Reloaded {
	s.t.Helper()
	var all []*event.Reloaded
	if err := rig.Until(s.ctx, func() (bool, error) {
		all = rig.Of[*event.Reloaded](d.Events())
		return len(all) >= n, nil
	}); err != nil {
		s.t.Fatalf("reload %d is not told of: %v", n, err)
	}
	return all[n-1]
}

// A client that is blocked and allowed since goes on; one that is blocked by hand does not. A
// policy with a mistake changes nothing, and the mistake is said as policy check says it.
func TestReloadLetsAllowedClientsGoOn(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	file := s.policy("enforce", "10m")
	text := string(must(os.ReadFile(file))(t))
	d := s.attach("--policy", file)
	tr, v := s.blockedDownload(d)
	must(s.Earlydrop(s.ctx, "blocked", "add", "-i", rig.Device, "tcp", "192.0.2.1:1", "192.0.2.2:2"))(t)

	write := func(text string) {
		t.Helper()
		// As an editor does it.
		next := filepath.Join(s.Dir(), "next.yaml")
		if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, file); err != nil {
			t.Fatal(err)
		}
	}
	write(text + "allow: [{cidr: 10.0.0.0/33}]\n")
	out := must(s.Run(s.ctx, s.Binary(), "policy", "check", file))(t)
	if err := d.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if r := s.reloaded(d, 1); r.Error == "" || !strings.Contains(out.Stderr, r.Error) || r.Changes != nil {
		t.Errorf("told %+v, policy check says %q", r, out.Stderr)
	}
	s.says(d, out.Stderr)
	s.risen(v, 2)

	write(text + fmt.Sprintf("allow: [{cidr: %s/32, side: initiator}]\n", s.ClientAddr(4)))
	if out := must(s.Earlydrop(s.ctx, "reload", "-i", rig.Device))(t); !strings.Contains(out, s.ClientAddr(4).String()) || !strings.Contains(out, "1 blocks lifted") {
		t.Errorf("reload printed %q", out)
	}
	r := s.reloaded(d, 2)
	if want := []string{fmt.Sprintf("cidr %s/32 side initiator", s.ClientAddr(4))}; r.Error != "" || r.Changes == nil || !slices.Equal(r.Changes.AllowAdded, want) || r.BlocksLifted != 1 {
		t.Errorf("told %+v", r)
	}
	s.goesOn("the client that is allowed", tr)
	ended := must(rig.Wait(s.ctx, d, "the end of the block", func(e *event.BlockEnded) bool { return e.Reason == "policy" }))(t)
	if ended.DroppedPackets == 0 || ended.Rule != "tunnels" {
		t.Errorf("the end of the block: %+v", ended)
	}
	if blocks := must(s.Blocks(s.ctx))(t); len(blocks) != 1 || blocks[0].Rule != "by hand" {
		t.Errorf("blocked are %+v", blocks)
	}
	next := s.download(must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t))
	s.goesOn("a new connection", next)
	must(rig.Wait(s.ctx, d, "its verdict", func(e *event.Verdict) bool { return e.Reason == "allow-list" }))(t)
	next.stop()
	tr.stop()
	s.stop(d)
	again := must(s.Run(s.ctx, s.Binary(), "reload"))(t)
	if again.Code != 2 || strings.Count(again.Stderr, "\n") != 1 {
		t.Errorf("reload without a daemon: %+v", again)
	}
}
