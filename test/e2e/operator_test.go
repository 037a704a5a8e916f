// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// What an operator blocks and unblocks by hand takes effect on connections that
// are going on: in mode monitor as soon as the mode is enforce, and until it is monitor again.
func TestBlockingByHand(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	d := s.enforce()
	tr, v := s.blockedDownload(d)
	flow := []string{"tcp", v.Dst.String(), v.Src.String()} // in any order
	list := must(s.Earlydrop(s.ctx, "blocked", "list", "-i", rig.Device))(t)
	for _, w := range []string{v.Src.String(), v.Dst.String(), v.Likeliest, "tunnels"} {
		if !strings.Contains(list, w) {
			t.Errorf("blocked list lacks %s:\n%s", w, list)
		}
	}
	out := must(s.Earlydrop(s.ctx, append([]string{"blocked", "del", "-i", rig.Device}, flow...)...))(t)
	if !strings.HasPrefix(out, "passes again: ") {
		t.Errorf("blocked del printed %q", out)
	}
	s.complete("the download that was unblocked", tr)
	if again := must(s.Run(s.ctx, append([]string{s.Binary(), "blocked", "del", "-i", rig.Device}, flow...)...))(t); again.Code != 2 || !strings.Contains(again.Stderr, "not blocked") {
		t.Errorf("a second del: %+v", again)
	}
	s.stop(d)

	// An ordinary download that has been decided, cut by hand.
	d = s.attach("--mode", "monitor")
	plain := s.download(nil)
	v = must(d.Verdict(s.ctx, plain.server(s), 0))(t)
	if v.Decision != "pass" {
		t.Errorf("an ordinary download: %+v", v)
	}
	out = must(s.Earlydrop(s.ctx, "blocked", "add", "-i", rig.Device, "--ttl", "1h", "tcp", v.Src.String(), v.Dst.String()))(t)
	if !strings.HasPrefix(out, "blocked for 1h: ") || !strings.Contains(out, "suspended: "+rig.Device+" is in mode monitor") {
		t.Errorf("blocked add in mode monitor printed %q", out)
	}
	before := plain.bytes.Load()
	if err := rig.Until(s.ctx, func() (bool, error) { return plain.bytes.Load() > before, nil }); err != nil {
		t.Errorf("the download does not go on in mode monitor: %v", err)
	}
	if list := must(s.Earlydrop(s.ctx, "blocked", "list"))(t); !strings.Contains(list, "suspended") || !strings.Contains(list, "by hand") {
		t.Errorf("blocked list in mode monitor:\n%s", list)
	}
	if status := must(s.Earlydrop(s.ctx, "status"))(t); !strings.Contains(status, "1 blocked (suspended") {
		t.Errorf("status in mode monitor:\n%s", status)
	}
	if out := must(s.Earlydrop(s.ctx, "mode", "enforce", "-i", rig.Device))(t); out != rig.Device+" is in mode enforce now\n" {
		t.Errorf("mode enforce printed %q", out)
	}
	s.risen(v, 2)
	before = plain.bytes.Load()
	s.risen(v, 2)
	if now := plain.bytes.Load(); now != before || now >= s.web.LargeBytes {
		t.Errorf("blocked by hand, but %d bytes, then %d of %d", before, now, s.web.LargeBytes)
	}
	if out := must(s.Earlydrop(s.ctx, "mode", "monitor"))(t); out != rig.Device+" is in mode monitor now\n" {
		t.Errorf("mode monitor printed %q", out)
	}
	if err := rig.Until(s.ctx, func() (bool, error) { return plain.bytes.Load() > before, nil }); err != nil {
		t.Errorf("the download does not go on in mode monitor again: %v", err)
	}
	if out := must(s.Earlydrop(s.ctx, "blocked", "del", "-i", rig.Device, "--all"))(t); !strings.HasPrefix(out, "1 flows pass again, dropped ") {
		t.Errorf("del --all printed %q", out)
	}
	s.complete("the download after del --all", plain)
	s.stop(d)
}

// What attach prints for people: what it attached, one line per verdict, a
// summary; with --events the same as JSON in a file.
func TestAttachPrintsForPeople(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		flag           string
		ordinary, more bool // ordinary verdicts are printed, with details
	}{{"", true, false}, {"--quiet", false, false}, {"--verbose", true, true}} {
		t.Run("with "+tt.flag, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, lab.Config{ServerLink: slow}) // or all has passed before the verdict, on a busy machine
			events := filepath.Join(s.Dir(), "events.jsonl")
			args := []string{"--policy", s.policy("enforce", "10m"), "--events", events}
			if tt.flag != "" {
				args = append(args, tt.flag)
			}
			d := s.attachText(args...)
			d.waits(`^UDP .+\ncontrol socket: .+\n` + timestamp + `  attached gw-c: ingress tcx, egress tcx, mode enforce, policy \S+, model .+, device cpu \(native \w+\)\ningress tcx: a veth .+\ntables: .+ MiB of kernel memory\nmaps: bpftool map dump pinned /sys/fs/bpf/earlydrop/gw-c/blocked\n`)
			if r := s.Curl(s.ctx, nil, s.URL("https", 4, s.web.HTTPSPort, "/64k")); r.Err != nil {
				t.Fatal(r.Err)
			}
			web := fmt.Sprintf(`\n%s  pass +tcp \S+ > %s:%d  background [01]\.\d{3}  `, timestamp, regexp.QuoteMeta(s.ServerAddr(4).String()), s.web.HTTPSPort)
			if tt.ordinary {
				d.waits(web)
			}
			tun := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t)
			details := ""
			if tt.more {
				details = `  \[background .*, shadowsocks .*, v2ray .*; full, \d+ bytes captured, \d+ on the wire; verdict \d+ us after the hand-over; model .+\]`
			}
			class := `(` + strings.Join(tunnelClasses, "|") + `)`
			drop := `\n` + timestamp + `  drop +tcp \S+ > ` + regexp.QuoteMeta(tun.Server.String()) + `  ` + class + `(\|` + class + `)* \d\.\d+( \(` + class + ` \d\.\d+\))?  \d+\.\d ms, \d+ packets  rule tunnels` + details + `\n`
			// The file has every verdict, what is printed may have fewer.
			verdicts := func() []*event.Verdict {
				return slices.DeleteFunc(rig.Of[*event.Verdict](must(readEvents(events))(t)), func(v *event.Verdict) bool { return v.Dst != tun.Server })
			}
			for n := range tries {
				tr := s.download(tun)
				if err := rig.Until(s.ctx, func() (bool, error) { return len(verdicts()) > n, nil }); err != nil {
					t.Fatalf("no verdict about connection %d to %s: %v", n, tun.Server, err)
				}
				if verdicts()[n].Decision == "drop" {
					break
				}
				tr.stop()
			}
			d.waits(drop)
			if !tt.ordinary && !d.lacks(web) {
				t.Errorf("an ordinary verdict is printed:\n%s", d.stdout.String())
			}
			// The summary is to count a dropped packet, so there has to be one.
			if err := rig.Until(s.ctx, func() (bool, error) {
				blocks, err := s.Blocks(s.ctx)
				return slices.ContainsFunc(blocks, func(b status.Block) bool { return b.Packets > 0 }), err
			}); err != nil {
				t.Fatalf("nothing was dropped: %v", err)
			}
			d.end(os.Interrupt)
			d.waits(`\n` + timestamp + `  gw-c after .*, mode enforce\n  background +\d+ flows\n(.*\n)*  dropped_packets +\d+\n(.*\n)*  blocked +\d+\n(.*\n)*detached from gw-c\n$`)
			s.clean()

			// The file has all of it, quiet or not.
			var kinds []string
			for _, e := range must(readEvents(events))(t) {
				kind := e.Kind()
				if v, ok := e.(*event.Verdict); ok {
					kind += " " + v.Decision
				}
				kinds = append(kinds, kind)
			}
			want := regexp.MustCompile(`^attached, (verdict pass, )+verdict drop, ended$`)
			if got := strings.Join(kinds, ", "); !want.MatchString(got) {
				t.Errorf("the event file has %s; want %s", got, want)
			}
		})
	}
}

// `attach --json | head -1`: the reader ends, the work goes on, and Ctrl-C still
// detaches.
func TestReaderOfTheEventsEnds(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	cmd, err := s.Command(s.ctx, s.Binary(), "attach", "-i", rig.Device, "--json")
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr locked
	cmd.Stderr = &stderr
	if err := s.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.Contains(line, `"attached"`) {
		t.Fatalf("%q, %v", line, err)
	}
	_ = stdout.Close()
	for range 3 { // each verdict is a write into the closed pipe
		if r := s.Curl(s.ctx, nil, s.URL("https", 4, s.web.HTTPSPort, "/64k")); r.Err != nil {
			t.Error(r.Err)
		}
	}
	err = rig.Until(s.ctx, func() (bool, error) {
		return strings.Contains(stderr.String(), "nobody reads the events"), nil
	})
	if err != nil {
		t.Errorf("nothing is said (%v): %s", err, stderr.String())
	}
	if st := must(s.Status(s.ctx))(t); !st.Running {
		t.Error("the daemon has ended with its reader")
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, stderr.String())
	}
	s.clean()
}

// When the device goes, its programs go with it; the daemon says so and leaves no
// pins.
func TestInterfaceVanishes(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	d := s.enforce()
	dev, err := s.Gateway.Netlink().LinkByName(rig.Device)
	if err == nil {
		err = s.Gateway.Netlink().LinkDel(dev)
	}
	if err != nil {
		t.Fatal(err)
	}
	code, err := d.Exited(s.ctx)
	if err != nil || code != 1 {
		t.Errorf("exit code %d, %v, want 1", code, err)
	}
	if !strings.Contains(d.Stderr(), "earlydrop: interface gw-c was removed\n") {
		t.Errorf("standard error: %s", d.Stderr())
	}
	if pins, err := s.Pins(); err != nil || len(pins) > 0 {
		t.Errorf("pins are left: %v, %v", pins, err)
	}
}
