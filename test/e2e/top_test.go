// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// tmux is a terminal that shows a program, and whose keys are pressed.
type tmux struct {
	s      *scene
	socket string
}

// inTmux starts a shell command in a terminal of a size.
func (s *scene) inTmux(width, height int, command string) *tmux {
	s.t.Helper()
	x := &tmux{s, filepath.Join(s.t.TempDir(), "tmux.sock")}
	x.run("-f", "/dev/null", "new-session", "-d", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height), command)
	s.t.Cleanup(func() { _, _ = s.Run(s.ctx, "tmux", "-S", x.socket, "kill-server") })
	return x
}

func (x *tmux) run(args ...string) string {
	x.s.t.Helper()
	out, err := x.s.Run(x.s.ctx, append([]string{"tmux", "-S", x.socket}, args...)...)
	if err != nil || out.Code != 0 {
		x.s.t.Fatalf("tmux %q: %+v, %v", args, out, err)
	}
	return out.Stdout
}

func (x *tmux) press(keys ...string) {
	x.s.t.Helper()
	x.run(append([]string{"send-keys"}, keys...)...)
}

// await waits until all of the texts are on the screen.
func (x *tmux) await(texts ...string) {
	x.s.t.Helper()
	screen := ""
	ctx, cancel := context.WithTimeout(x.s.ctx, time.Minute)
	defer cancel()
	if err := rig.Until(ctx, func() (bool, error) {
		screen = x.run("capture-pane", "-p")
		for _, text := range texts {
			if !strings.Contains(screen, text) {
				return false, nil
			}
		}
		return true, nil
	}); err != nil {
		x.s.t.Fatalf("%q: %v; the screen is\n%s", texts, err, screen)
	}
}

// The live view of a real daemon, in a real terminal: what is dropped, its story, an end of a
// block, another size, and a daemon that is started again.
func TestTopShowsADaemonAtWork(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	policy := s.file("ssh.yaml", "rules: [{name: remote, class: ssh, min_confidence: 0.1, action: drop, ttl: 1h}]\n")
	d := s.attach("--policy", policy, "--mode", "enforce")
	sshd := must(s.StartSSH(s.ctx, 0))(t)
	s.browse(2)
	cut, giveUp := context.WithCancel(s.ctx) // which nothing but this ends: its packets are dropped
	transfers := make(chan struct{})
	go func() {
		defer close(transfers)
		s.SSHTransfer(cut, sshd, 4, 4<<20)
	}()
	t.Cleanup(func() {
		giveUp()
		<-transfers
	})
	server := netip.AddrPortFrom(s.ServerAddr(4), sshd.Port)
	verdict := must(d.Verdict(s.ctx, server, 0))(t)

	x := s.inTmux(80, 24, fmt.Sprintf("%s top --interval 200ms --control %s; echo ended with $?; cat", s.Binary(), s.Control()))
	x.await("[1latest]", "mode enforce", server.String(), verdict.Src.String(), "? help")
	x.press("/", "d", "r", "o", "p", "Enter", "Enter")
	x.await(fmt.Sprintf("tcp %s > %s", verdict.Src, server), "reason: rule", "remote", "earlydrop why")
	x.press("Escape")
	x.await("filter drop", "decision initiator")
	x.press("Escape") // ends the filter
	x.await("pass")
	x.press("2")
	x.await("[2pairs]", "10.", server.String())
	x.press("u")
	x.await("unblock tcp", "on "+rig.Device+"? y/n")
	if n := len(must(s.Blocks(s.ctx))(t)); n != 1 {
		t.Fatalf("%d blocks before the answer", n)
	}
	x.press("y")
	x.await("1 flows pass again")
	if n := len(must(s.Blocks(s.ctx))(t)); n != 0 {
		t.Errorf("%d blocks after the answer", n)
	}
	x.run("resize-window", "-x", "200", "-y", "60")
	x.press("9")
	x.await("[9 ifaces]", rig.Device, "iface ^", "proto initiator")

	// Where no daemon is, and one is again.
	must(d.Stop(s.ctx))(t)
	x.await("no daemon listens at", "trying again")
	s.attach("--policy", policy)
	x.await("mode monitor", rig.Device, "well")
	x.press("q")
	x.await("ended with 0")

	out := must(s.Earlydrop(s.ctx, "top", "--looks", "1", "--json", "--control", s.Control()))(t)
	var top status.Top
	if err := json.Unmarshal([]byte(out), &top); err != nil || len(top.Interfaces) != 1 || top.Interfaces[0].Rates == nil {
		t.Errorf("%v: %s", err, out)
	}
}
