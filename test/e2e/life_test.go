// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// blockedDownload has a download through Shadowsocks cut.
func (s *scene) blockedDownload(d *rig.Daemon) (*transfer, *event.Verdict) {
	s.t.Helper()
	tun := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(s.t)
	tr, v := s.tunnelled(d, tun, true)
	s.risen(v, 1)
	return tr, v
}

// says waits for words on the daemon's standard error, where it speaks to people
// while standard output has the events.
func (s *scene) says(d *rig.Daemon, words ...string) {
	s.t.Helper()
	for _, w := range words {
		err := rig.Until(s.ctx, func() (bool, error) { return strings.Contains(d.Stderr(), w), nil })
		if err != nil {
			s.t.Errorf("%q is not said (%v) in:\n%s", w, err, d.Stderr())
		}
	}
}

// A block by hand ends with its time, and the same connection goes on: its next
// retransmission passes. (What a policy blocks stays blocked as long as it goes on.)
func TestBlockExpires(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	d := s.enforce()
	tun := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t)
	tr, v := s.tunnelled(d, tun, true)
	s.risen(v, 1)
	passed := tr.bytes.Load()
	began := time.Now()
	must(s.Earlydrop(s.ctx, "blocked", "add", "-i", rig.Device, "--ttl", "2s", "tcp", v.Src.String(), v.Dst.String()))(t)
	ended := must(rig.Wait(s.ctx, d, "the end of the block", func(e *event.BlockEnded) bool {
		return e.Src == v.Src || e.Dst == v.Src
	}))(t)
	// How long after depends on what else the machine has to do.
	if took := ended.Time.Sub(began); took < 2*time.Second {
		t.Errorf("the block of 2 s was reported over after %s", took)
	}
	if ended.DroppedPackets == 0 || ended.DroppedBytes == 0 || ended.Rule != "by hand" || ended.Reason != "time" {
		t.Errorf("block_ended: %+v", ended)
	}
	if passed >= s.web.LargeBytes {
		t.Errorf("the download was over before the block: %d bytes", passed)
	}
	if _, ok, err := s.Block(s.ctx, v.Src, v.Dst); ok || err != nil {
		t.Errorf("still listed as blocked: %v, %v", ok, err)
	}
	s.complete("the download after the block", tr)
	verdicts := d.Verdicts(tun.Server)
	if n := len(slices.DeleteFunc(verdicts, func(e *event.Verdict) bool { return e.Src != v.Src })); n != 1 {
		t.Errorf("%d verdicts about one connection", n)
	}
	s.stop(d)
}

// A killed daemon's blocks stay, the next one adopts them, and only an ending in
// order takes them away: then the connection goes on.
func TestKilledDaemonLeavesFlowsBlocked(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	d := s.enforce()
	tr, v := s.blockedDownload(d)
	before := must(d.Objects())(t)

	d.Kill()
	s.stalled(tr, v)
	if st := must(s.Status(s.ctx))(t); st.Running || st.PID != d.PID() || st.Mode != "enforce" {
		t.Errorf("status after the kill: %+v", st)
	}
	// New flows pass, tunnels too: nobody is there to classify.
	if r := s.Curl(s.ctx, nil, s.URL("https", 4, s.web.HTTPSPort, "/1m")); r.Err != nil {
		t.Errorf("https while no daemon runs: %v", r.Err)
	}
	if r := s.Curl(s.ctx, tr.tunnel, s.URL("https", 4, s.web.HTTPSPort, "/1m")); r.Err != nil {
		t.Errorf("a new flow while no daemon runs: %v", r.Err)
	}

	d = s.enforce()
	if !d.Attached.Adopted {
		t.Errorf("not adopted: %+v", d.Attached)
	}
	s.says(d, "adopted "+rig.Device, "1 flows stay blocked")
	passed := tr.bytes.Load()
	s.risen(v, 1)
	if now := tr.bytes.Load(); now != passed {
		t.Errorf("the download went on with the adoption: %d bytes, then %d", passed, now)
	}
	if b, ok, err := s.Block(s.ctx, v.Src, v.Dst); !ok || err != nil || b.Class != v.Likeliest || b.Rule != v.Rule {
		t.Errorf("block after the adoption: %+v, %v, %v", b, ok, err)
	}
	// It works on: a second tunnel is cut too.
	s.blockedDownload(d)
	after := must(d.Objects())(t)
	if cmp.Equal(before.Progs, after.Progs) {
		t.Errorf("the programs were not swapped: %v", after.Progs)
	}

	if err := d.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, err := d.Exited(s.ctx); err != nil || code != 0 {
		t.Errorf("exit code %d, %v", code, err)
	}
	s.clean()
	s.complete("the download after the detachment", tr)
}

func TestPersistLeavesFlowsBlocked(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	d := s.enforce("--persist")
	tr, v := s.blockedDownload(d)
	last, err := d.Stop(s.ctx)
	if err != nil || !last.Persisted {
		t.Fatalf("%+v, %v", last, err)
	}
	s.says(d, "stays attached")
	s.stalled(tr, v)
	if st := must(s.Status(s.ctx))(t); st.Running {
		t.Errorf("status: %+v", st)
	}
	// Monitor drops nothing, so it lets what it finds blocked go on. The XDP mode
	// can change with an adoption.
	d = s.attach("--mode", "monitor", "--xdp", "generic")
	if !d.Attached.Adopted || d.Attached.XDP != "generic" {
		t.Errorf("not adopted: %+v", d.Attached)
	}
	s.says(d, "1 blocks removed")
	s.complete("the download in monitor mode", tr)
	s.stop(d)
}

// detach leaves nothing in the kernel, whether the daemon runs or was killed.
func TestDetachLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed %v", kill), func(t *testing.T) {
			t.Parallel()
			s := newScene(t, lab.Config{ServerLink: slow})
			d := s.enforce()
			tr, _ := s.blockedDownload(d)
			objects := must(d.Objects())(t)
			if len(objects.Progs) < 2 || len(objects.Maps) < 8 || len(objects.Links) != 2 {
				t.Errorf("the daemon has few objects: %+v", objects)
			}
			if diff := cmp.Diff(objects, must(objects.Present())(t)); diff != "" {
				t.Errorf("the kernel has other objects than the daemon (-daemon +kernel):\n%s", diff)
			}
			if kill {
				d.Kill()
			}
			out := must(s.Earlydrop(s.ctx, "detach", "-i", rig.Device))(t)
			if want := "detached from " + rig.Device + "\n"; out != want {
				t.Errorf("printed %q, want %q", out, want)
			}
			if code, err := d.Exited(s.ctx); err != nil || !kill && code != 0 {
				t.Errorf("exit code %d, %v", code, err)
			}
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", d.PID())); err == nil {
				t.Errorf("process %d is left", d.PID())
			}
			s.clean()
			// The kernel frees what nobody holds a little later.
			var still rig.Objects
			err := rig.Until(s.ctx, func() (bool, error) {
				now, err := objects.Present()
				if err == nil {
					still = now
				}
				return len(now.Progs)+len(now.Maps)+len(now.Links) == 0, err
			})
			if err != nil {
				t.Errorf("left in the kernel: %+v (%v)", still, err)
			}
			for _, argv := range [][]string{{"ip", "-d", "link", "show", "dev", rig.Device}, {"tc", "qdisc", "show", "dev", rig.Device}, {"tc", "filter", "show", "dev", rig.Device, "egress"}} {
				out := must(s.Run(s.ctx, argv...))(t)
				for _, word := range []string{"xdp", "clsact", "bpf"} {
					if strings.Contains(out.Stdout, word) {
						t.Errorf("%v shows %s:\n%s", argv, word, out.Stdout)
					}
				}
			}
			s.complete("the download after the detachment", tr)
			again := must(s.Run(s.ctx, s.Binary(), "detach", "-i", rig.Device))(t)
			if again.Code != 2 || !strings.Contains(again.Stderr, "not attached") {
				t.Errorf("a second detach: %+v", again)
			}
		})
	}
}
