// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// mode changes the mode of the gateway's interface.
func (s *scene) mode(to string) {
	s.t.Helper()
	if out := must(s.Earlydrop(s.ctx, "mode", to, "-i", rig.Device))(s.t); out != rig.Device+" is in mode "+to+" now\n" {
		s.t.Errorf("mode %s printed %q", to, out)
	}
}

// modeChanged waits until the daemon has told of so many changes of the mode, the last one to
// this mode.
func (s *scene) modeChanged(d *rig.Daemon, n int, to string) {
	s.t.Helper()
	var changes []*event.ModeChanged
	if err := rig.Until(s.ctx, func() (bool, error) {
		changes = rig.Of[*event.ModeChanged](d.Events())
		return len(changes) >= n, nil
	}); err != nil {
		s.t.Fatalf("no change to mode %s is told: %v", to, err)
	}
	if last := changes[len(changes)-1]; len(changes) != n || last.Mode != to || last.Interface != rig.Device {
		s.t.Errorf("%d changes, the last one %+v; want %d, the last one to %s", len(changes), last, n, to)
	}
}

// goesOn makes sure that a transfer gets bytes.
func (s *scene) goesOn(what string, tr *transfer) {
	s.t.Helper()
	before := tr.bytes.Load()
	if err := rig.Until(s.ctx, func() (bool, error) { return tr.bytes.Load() > before, nil }); err != nil {
		s.t.Errorf("%s does not go on: %v", what, err)
	}
}

// A change of the mode holds for what is blocked already, at once, and for what the daemon
// decides from then on; it tells of it.
func TestModeIsSwitchedUnderTraffic(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	d := s.attach("--policy", s.policy("monitor", "10m"))
	tun := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t)
	watched, _ := s.tunnelled(d, tun, false)

	s.mode("enforce")
	s.modeChanged(d, 1, "enforce")
	vmess := must(s.StartVMess(s.ctx, lab.VMessConfig{}))(t)
	cut, v := s.tunnelled(d, vmess, true)
	s.risen(v, 2)
	s.goesOn("what was decided in mode monitor", watched)

	s.mode("monitor")
	s.modeChanged(d, 2, "monitor")
	s.goesOn("what was blocked", cut)
	block, ok, err := s.Block(s.ctx, v.Src, v.Dst)
	if err != nil || !ok || !block.Suspended {
		t.Errorf("the block in mode monitor: %+v, %v, %v", block, ok, err)
	}
	dropped := block.Packets
	s.goesOn("what was blocked", cut)
	if block, _, err = s.Block(s.ctx, v.Src, v.Dst); err != nil || block.Packets != dropped {
		t.Errorf("the block counts %d packets in mode monitor, then %d: %v", dropped, block.Packets, err)
	}

	s.mode("enforce")
	s.risen(v, 2)
	s.stop(d)
	watched.stop()
	cut.stop()
}

// The mode can be changed without a daemon, and blocks follow it. The next daemon has the
// mode of its policy.
func TestModeWithoutADaemon(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	d := s.enforce()
	tr, v := s.blockedDownload(d)
	d.Kill()
	s.mode("monitor")
	if st := must(s.Status(s.ctx))(t); st.Mode != "monitor" || st.Running {
		t.Errorf("status: %+v", st)
	}
	s.goesOn("what was blocked", tr)
	d = s.enforce()
	if d.Attached.Mode != "enforce" || !d.Attached.Adopted {
		t.Errorf("attached: %+v", d.Attached)
	}
	s.risen(v, 2)
	s.stop(d)
	tr.stop()
}

// What attach refuses to enforce is refused later, too.
func TestModeIsRefusedAsAttachRefusesIt(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ flag, value, word string }{{"--one-hook", "", "one_hook"}, {"--mid-stream", "capture", "mid_stream"}} {
		t.Run(tt.word, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, lab.Config{})
			args := []string{tt.flag}
			if tt.value != "" {
				args = append(args, tt.value)
			}
			d := s.attach(append(args, "--policy", s.policy("monitor", "10m"))...)
			for _, alive := range []bool{true, false} {
				if !alive {
					d.Kill()
				}
				out := must(s.Run(s.ctx, s.Binary(), "mode", "enforce"))(t)
				if out.Code != 2 || strings.Count(out.Stderr, "\n") != 1 || !strings.Contains(out.Stderr, tt.word) || !strings.Contains(out.Stderr, rig.Device) {
					t.Errorf("daemon %v: %+v", alive, out)
				}
				if st := must(s.Status(s.ctx))(t); st.Mode != "monitor" {
					t.Errorf("daemon %v: mode %s", alive, st.Mode)
				}
			}
			must(s.Earlydrop(s.ctx, "detach", "-i", rig.Device))(t)
		})
	}
}
