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

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// browse opens n connections to the web server, one after the other.
func (s *scene) browse(n int) {
	s.t.Helper()
	for range n {
		if r := s.Curl(s.ctx, nil, s.URL("https", 4, s.web.HTTPSPort, "/64k")); r.Err != nil {
			s.t.Fatal(r.Err)
		}
	}
}

// recorded waits until an event file has n verdicts and returns their initiators'
// ports.
func (s *scene) recorded(path string, n int) (ports []uint16) {
	s.t.Helper()
	err := rig.Until(s.ctx, func() (bool, error) {
		events, err := readEvents(path)
		ports = nil
		for _, v := range rig.Of[*event.Verdict](events) {
			ports = append(ports, v.Src.Port())
		}
		return len(ports) >= n, err
	})
	if err != nil || len(ports) != n {
		s.t.Fatalf("%s has %d verdicts, want %d (%v)", path, len(ports), n, err)
	}
	return ports
}

// exists waits for a file.
func (s *scene) exists(path string) {
	s.t.Helper()
	err := rig.Until(s.ctx, func() (bool, error) {
		_, err := os.Stat(path)
		return err == nil, nil
	})
	if err != nil {
		s.t.Fatalf("%s: %v", path, err)
	}
}

// As logrotate does it: the file gets another name, then SIGHUP is sent. Every
// event is in one of the two files, and the work goes on.
func TestLogRotation(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	path := filepath.Join(s.Dir(), "events.jsonl")
	d := s.attach("--events", path)
	s.browse(2)
	s.recorded(path, 2)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	s.browse(2) // before the signal: the old file
	early := s.recorded(path+".1", 4)
	if err := d.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.exists(path)
	s.browse(3)
	late := s.recorded(path, 3)
	s.says(d, "event file opened again")

	// A second time, with a folder in the place of the file: it stays with the old one.
	if err := os.Rename(path, path+".2"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.says(d, "can't be opened again", "is a directory")
	s.browse(1)
	late = append(late, s.recorded(path+".2", 4)[3:]...)

	s.stop(d)
	var want []uint16
	for _, v := range rig.Of[*event.Verdict](d.Events()) {
		want = append(want, v.Src.Port())
	}
	if got := slices.Concat(early, late); !slices.Equal(got, want) {
		t.Errorf("the files have the flows of ports %v, standard output %v", got, want)
	}
	// The signal reloads the policy as well, at the same time.
	events := slices.DeleteFunc(must(readEvents(path+".2"))(t), func(e event.Event) bool { return e.Kind() == event.KindReloaded })
	if len(events) == 0 || events[0].Kind() != event.KindVerdict || events[len(events)-1].Kind() != event.KindEnded {
		t.Errorf("the last file has %d events: %+v", len(events), events)
	}
}

// The terminal that it was started from is closed: it works on.
func TestClosedTerminal(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	path := filepath.Join(s.Dir(), "events.jsonl")
	cmd, err := s.Command(s.ctx, s.Binary(), "attach", "-i", rig.Device, "--events", path)
	if err != nil {
		t.Fatal(err)
	}
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if err := s.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	_ = tty.Close()
	s.browse1st(path)
	if err := ptmx.Close(); err != nil { // which sends SIGHUP
		t.Fatal(err)
	}
	s.browse(2)
	s.recorded(path, 3)
	if st := must(s.Status(s.ctx))(t); !st.Running {
		t.Error("the daemon has ended with its terminal")
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	s.clean()
	events := must(readEvents(path))(t)
	if last := events[len(events)-1]; last.Kind() != event.KindEnded {
		t.Errorf("the last event is %+v", last)
	}
}

// browse1st waits until something is attached, and for the verdict about one
// connection.
func (s *scene) browse1st(path string) {
	s.t.Helper()
	s.exists(path)
	err := rig.Until(s.ctx, func() (bool, error) {
		events, err := readEvents(path)
		return len(events) > 0, err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.browse(1)
	s.recorded(path, 1)
}

// Of flows that pass undetected as many are written as was asked for; what is left
// out is counted. Those that are detected are all there.
func TestPassesAreLeftOutAndDropsAreNot(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	tun := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t)
	for _, tt := range []struct {
		value       string
		written, of int
	}{{"none", 0, 6}, {"1/3", 2, 6}} {
		d := s.attach("--policy", s.policy("monitor", "10m"), "--events-pass", tt.value)
		s.browse(tt.of)
		var drop *event.Verdict
		for range tries {
			// The tunnel's connections that are missed are left out as well.
			tr := s.download(tun)
			s.complete("a download in monitor mode", tr)
			if verdicts := d.Verdicts(tun.Server); len(verdicts) > 0 && verdicts[len(verdicts)-1].Decision == "drop" {
				drop = verdicts[len(verdicts)-1]
				break
			}
		}
		if drop == nil || !drop.Detected {
			t.Fatalf("--events-pass %s: no verdict to drop a tunnel: %+v", tt.value, drop)
		}
		last := s.stop(d)
		web, told, all := 0, uint64(0), uint64(0)
		for _, e := range d.Events() {
			switch e := e.(type) {
			case *event.Verdict:
				all++
				if !e.Detected {
					web++
				}
			case *event.LeftOut:
				told += e.PassesLeftOut
			}
		}
		if web < tt.written || tt.written == 0 && web > 0 || web > tt.written+tries {
			t.Errorf("--events-pass %s: %d verdicts on undetected flows are written, want %d", tt.value, web, tt.written)
		}
		if left := last.Counters["passes_left_out"]; left == 0 || left != told || all+left != last.Counters["classified"] {
			t.Errorf("--events-pass %s: %d verdicts written, %d left out as the summary says and %d as the events do, of %d flows",
				tt.value, all, left, told, last.Counters["classified"])
		}
	}
}

// A FIFO without a reader is refused at once, and one with a reader gets the events.
func TestEventsIntoAFIFO(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	path := filepath.Join(s.Dir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	s.refused(t, []string{s.Binary(), "attach", "-i", rig.Device, "--events", path}, nil, []string{path, "FIFO that nobody reads"})
	s.clean()
	reader, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	d := s.attach("--events", path)
	s.browse(1)
	must(rig.Wait(s.ctx, d, "a verdict", func(*event.Verdict) bool { return true }))(t)
	s.stop(d)
	text := make([]byte, 1<<16)
	n, err := reader.Read(text)
	if err != nil || !strings.Contains(string(text[:n]), `"event":"attached"`) || !strings.Contains(string(text[:n]), `"event":"ended"`) {
		t.Errorf("the reader got %q, %v", text[:n], err)
	}
}

// When no more flows can be blocked, that is said in words, counted, and not called
// a drop.
func TestFullTableOfBlocks(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	const most = 16
	d := s.enforce("--max-blocked", fmt.Sprint(most))
	add := func(n int) rig.Output {
		return must(s.Run(s.ctx, s.Binary(), "blocked", "add", "-i", rig.Device, "--ttl", "1d12h", "tcp", fmt.Sprintf("192.0.2.1:%d", 1000+n), "192.0.2.2:80"))(t)
	}
	for n := range most {
		out := add(n)
		if want := fmt.Sprintf("blocked for 1d12h: tcp 192.0.2.1:%d <> 192.0.2.2:80\n", 1000+n); out.Code != 0 || out.Stdout != want {
			t.Fatalf("block %d: %+v, want %q", n, out, want)
		}
	}
	out := add(most)
	want := fmt.Sprintf("earlydrop: block tcp 192.0.2.1:%d <> 192.0.2.2:80: the table of blocked flows is full: it holds %d (remove some with earlydrop blocked del, or attach with a larger --max-blocked)\n", 1000+most, most)
	if out.Code != 1 || out.Stderr != want {
		t.Errorf("one block too many: %+v, want %q", out, want)
	}
	// One that is there can still be changed.
	if out := add(0); out.Code != 0 {
		t.Errorf("a block that is there already: %+v", out)
	}
	tun := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t)
	tr, v := s.tunnelled(d, tun, false)
	if !strings.Contains(v.Error, "the table of blocked flows is full: it holds 16") || v.Mode != "enforce" {
		t.Errorf("verdict %+v", v)
	}
	s.complete("a flow that found no room", tr)
	s.says(d, "flow not blocked, it passes", "is full")
	last := s.stop(d)
	if last.Counters["blocked_full"] == 0 || last.Counters["blocked_full"] != last.Counters["not_blocked"] || last.Counters["blocked"] != 0 {
		t.Errorf("summary %+v", last.Counters)
	}
}
