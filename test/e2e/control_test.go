// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventtest"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// The commands ask the daemon while there is one, and the pinned maps when there is none.
func TestCommandsAskTheDaemon(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	d := s.attach("--mode", "enforce")
	follow := must(s.Command(s.ctx, s.Binary(), "events", "--follow", "--json", "--filter", "event=audit,block_ended"))(t)
	stream := must(follow.StdoutPipe())(t)
	if err := s.Start(follow); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = follow.Process.Kill() })
	flow := []string{"tcp", "192.0.2.1:1000", "192.0.2.2:2000"}
	edit := func(args ...string) { must(s.Earlydrop(s.ctx, append([]string{"blocked"}, args...)...))(t) }
	lines := bufio.NewScanner(stream)
	next := func() event.Event {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("the stream ended: %v", lines.Err())
		}
		return must(eventtest.Decode(lines.Bytes()))(t)
	}
	// The stream has begun when one of many blocks is in it.
	begun := make(chan event.Event)
	go func() { begun <- next() }()
	for waiting := true; waiting; {
		edit(append([]string{"add", "-i", rig.Device}, flow...)...)
		select {
		case e := <-begun:
			if a, ok := e.(*event.Audit); !ok || a.Action != "blocked_add" || a.Outcome != event.Done || a.UID != 0 || a.PID == 0 || a.Interface != rig.Device {
				t.Errorf("%+v", e)
			}
			waiting = false
		default:
		}
	}
	edit("del", "-i", rig.Device, "--rule", "by hand")
	for {
		e := next()
		if a, ok := e.(*event.Audit); ok && a.Action == "blocked_add" {
			continue // of those before
		}
		if b, ok := e.(*event.BlockEnded); !ok || b.Reason != "by_hand" || b.Src.String() != "192.0.2.1:1000" {
			t.Errorf("%+v", e)
		}
		break
	}
	if a, ok := next().(*event.Audit); !ok || a.Action != "blocked_del" || a.Blocks != 1 {
		t.Errorf("%+v", a)
	}

	// All is well, and the daemon says more than the maps.
	if err := rig.Until(s.ctx, func() (bool, error) {
		code, st := s.statusCode(t)
		if code != 0 || st.State != status.Well || !st.Running {
			t.Errorf("exit code %d, %+v", code, st)
		}
		return st.RecentSeconds > 0, nil
	}); err != nil {
		t.Errorf("the daemon does not tell of lately: %v", err)
	}
	edit(append([]string{"add", "-i", rig.Device}, flow...)...)
	list := func() string { return must(s.Earlydrop(s.ctx, "blocked", "list", "--cidr", "192.0.2.0/24"))(t) }
	if out := list(); !strings.Contains(out, "192.0.2.2:2000") {
		t.Errorf("blocked list: %s", out)
	}

	d.Kill()
	if err := follow.Wait(); err == nil {
		t.Error("the stream of a daemon that is killed ends as if nothing was")
	}
	if code, st := s.statusCode(t); code != 3 || st.State != status.Unattended || st.Running || len(st.Worries) != 1 || st.Worries[0].Kind != status.WorryNoDaemon {
		t.Errorf("exit code %d, %+v", code, st)
	}
	if out := list(); !strings.Contains(out, "192.0.2.2:2000") {
		t.Errorf("blocked list without a daemon: %s", out)
	}
	if _, err := os.Lstat(s.Control()); err != nil {
		t.Errorf("a daemon that was killed has removed its socket: %v", err)
	}
	edit("del", "-i", rig.Device, "--cidr", "192.0.2.1")
	if out := list(); !strings.Contains(out, "no blocked flow is chosen") {
		t.Errorf("blocked list after all were lifted: %s", out)
	}
	if out := must(s.Run(s.ctx, s.Binary(), "events", "--follow"))(t); out.Code != 2 || !strings.Contains(out.Stderr, "no daemon answers") {
		t.Errorf("%+v", out)
	}

	// The next one replaces the socket, and takes it away at its end.
	d = s.attach("--mode", "enforce")
	if code, st := s.statusCode(t); code != 0 || st.PID != d.PID() {
		t.Errorf("exit code %d, %+v", code, st)
	}
	s.stop(d)
	if _, err := os.Lstat(s.Control()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays behind: %v", err)
	}
}

// statusCode runs status and returns what it says of the one interface.
func (s *scene) statusCode(t *testing.T) (code int, st status.Status) {
	t.Helper()
	out := must(s.Run(s.ctx, s.Binary(), "status", "--json"))(t)
	if err := json.Unmarshal([]byte(out.Stdout), &st); err != nil {
		t.Fatalf("%+v: %v", out, err)
	}
	return out.Code, st
}

// A socket that is asked for and can't be had is refused before anything is attached; one
// that is only the default is warned of.
func TestSocketThatCanNotBeHad(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	path := filepath.Join(s.Dir(), "taken")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.refused(t, []string{s.Binary(), "attach", "-i", rig.Device, "--control", path}, nil, []string{"--control", path, "no socket"})
	if err := os.WriteFile(s.Control(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d := s.attach()
	if !strings.Contains(d.Stderr(), "there is no control socket") {
		t.Errorf("standard error: %s", d.Stderr())
	}
	if code, st := s.statusCode(t); code != 0 || !st.Running {
		t.Errorf("exit code %d, %+v", code, st)
	}
	s.stop(d)
}

// A daemon that has attached keeps three capabilities (and CAP_SYS_NICE where it can't do without), no way to more, and not every
// system call, on each of its threads; the inference engine's as well.
func TestDaemonKeepsFewRights(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	d := s.attach("--mode", "enforce")
	may := 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON | 1<<unix.CAP_NET_ADMIN
	var realTime unix.Rlimit
	if err := unix.Prlimit(d.PID(), unix.RLIMIT_RTPRIO, nil, &realTime); err != nil {
		t.Fatal(err)
	}
	if realTime.Cur == 0 { // without the right to set the limit
		may |= 1 << unix.CAP_SYS_NICE
	}
	want := map[string]string{"NoNewPrivs": "1", "Seccomp": "2"}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		want[set] = fmt.Sprintf("%016x", may)
	}
	want["CapInh"], want["CapAmb"] = fmt.Sprintf("%016x", 0), fmt.Sprintf("%016x", 0)
	// wrong returns what the threads have else, and how many they are.
	wrong := func() (threads int, list []string) {
		paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.PID()))
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				continue // the thread has ended
			}
			threads++
			for line := range strings.Lines(string(text)) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
				if w, ok := want[name]; ok && value != w {
					list = append(list, path+" "+line)
				}
			}
		}
		return threads, list
	}
	// It attaches before it gives them up.
	err := rig.Until(s.ctx, func() (bool, error) {
		_, list := wrong()
		return len(list) == 0, nil
	})
	if threads, list := wrong(); err != nil || threads < 4 {
		t.Errorf("%v, %d threads: %v", err, threads, list)
	}
	// It works: a tunnel is still dropped.
	tr, v := s.blockedDownload(d)
	tr.stop()
	if v.Enforced == nil || !*v.Enforced {
		t.Errorf("%+v", v)
	}
	if _, list := wrong(); len(list) > 0 {
		t.Errorf("after a verdict: %v", list)
	}
	if text := d.Stderr(); strings.Contains(text, "could be given up") {
		t.Error(text)
	}
	s.stop(d)
}

// The mistake in a policy is what reload says; a model is taken over by a daemon that has
// given up its rights; and the event file is opened again.
func TestReloadAndModelOverTheSocket(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	file, events := filepath.Join(s.Dir(), "policy.yaml"), filepath.Join(s.Dir(), "events.jsonl")
	const text = "rules: [{name: tunnels, class: [shadowsocks, v2ray], action: drop, ttl: 10m}]\n" // both models know these
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d := s.daemonOf(s.Binary(), "attach", "-i", rig.Device, "--json", "--policy", file, "--events", events)
	if err := errors.Join(os.WriteFile(file, []byte(text+"allow: [{cidr: 10.0.0.0/33}]\n"), 0o600), os.Rename(events, events+".1")); err != nil {
		t.Fatal(err)
	}
	check := must(s.Run(s.ctx, s.Binary(), "policy", "check", file))(t)
	s.refused(t, []string{s.Binary(), "reload"}, nil, []string{strings.TrimPrefix(strings.TrimSpace(check.Stderr), "earlydrop: ")})
	if err := rig.Until(s.ctx, func() (bool, error) {
		_, err := os.Stat(events)
		return err == nil, nil
	}); err != nil {
		t.Errorf("the event file is not opened again: %v", err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := must(s.Earlydrop(s.ctx, "model", "use", "paper"))(t); !strings.Contains(out, "model paper ") || !strings.Contains(out, "instead of compact ") {
		t.Errorf("model use printed %q", out)
	}
	if _, st := s.statusCode(t); !strings.HasPrefix(st.Model, "paper ") {
		t.Errorf("status says model %q", st.Model)
	}
	s.refused(t, []string{s.Binary(), "model", "use", file}, nil, []string{file})
	s.stop(d) // events are written behind the answers
	audits := rig.Of[*event.Audit](must(readEvents(events))(t))
	var told []string
	for _, a := range audits {
		told = append(told, a.Action+" "+a.Outcome)
	}
	if want := []string{"reload refused", "model done", "model refused"}; !slices.Equal(told, want) {
		t.Errorf("audits %q, want %q", told, want)
	}
}

// Members of the group earlydrop read and edit blocks, and do no more; others are left with
// what they may do without a daemon, which is nothing.
func TestGroupMayReadAndEditBlocks(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	const gid, nobody = 54321, 65534
	// The group is there for the rig alone.
	groups := must(os.ReadFile("/etc/group"))(t)
	file := s.file("group", string(groups)+fmt.Sprintf("earlydrop:x:%d:\n", gid))
	if err := errors.Join(os.Chmod(file, 0o644), os.Chmod(s.Dir(), 0o755)); err != nil { // that others come to the socket
		t.Fatal(err)
	}
	if out := must(s.Run(s.ctx, "mount", "--bind", file, "/etc/group"))(t); out.Code != 0 {
		t.Fatalf("%+v", out)
	}
	d := s.attach("--mode", "enforce")
	s.says(d, s.Control()+", for root and the group earlydrop")
	var st unix.Stat_t
	if err := unix.Stat(s.Control(), &st); err != nil || st.Gid != gid || st.Mode&0o777 != 0o660 {
		t.Errorf("the socket has group %d, mode %o, %v", st.Gid, st.Mode, err)
	}
	as := func(group string, args ...string) rig.Output {
		t.Helper()
		return must(s.Run(s.ctx, append([]string{"setpriv", fmt.Sprintf("--reuid=%d", nobody), fmt.Sprintf("--regid=%d", nobody), group, "--inh-caps=-all", s.Binary()}, args...)...))(t)
	}
	member, other := fmt.Sprintf("--groups=%d", gid), "--clear-groups"
	flow := []string{"-i", rig.Device, "tcp", "192.0.2.1:1000", "192.0.2.2:2000"}
	for _, tt := range []struct {
		args []string
		want string // in what a member is told
		code int    // of a member
	}{
		{[]string{"status"}, "running, pid " + fmt.Sprint(d.PID()), 0},
		{append([]string{"blocked", "add"}, flow...), "blocked for 10m", 0},
		{[]string{"blocked", "list"}, "192.0.2.2:2000", 0},
		{append([]string{"blocked", "del"}, flow...), "passes again", 0},
		{[]string{"mode", "monitor"}, "it takes root", 2},
		{[]string{"reload"}, "it takes root", 2},
		{[]string{"model", "use", "paper"}, "it takes root", 2},
		{[]string{"detach", "-i", rig.Device}, "run as root", 2},
	} {
		if out := as(member, tt.args...); out.Code != tt.code || !strings.Contains(out.Stdout+out.Stderr, tt.want) {
			t.Errorf("a member: %v: %+v", tt.args, out)
		}
		if out := as(other, tt.args...); out.Code != 2 || out.Stdout != "" {
			t.Errorf("another user: %v: %+v", tt.args, out)
		}
	}
	var told []string
	for _, a := range rig.Of[*event.Audit](d.Events()) {
		if a.UID != nobody || a.GID != nobody {
			t.Errorf("%+v", a)
		}
		told = append(told, a.Action+" "+a.Outcome)
	}
	if want := []string{"blocked_add done", "blocked_del done", "mode refused", "reload refused", "model refused"}; !slices.Equal(told, want) {
		t.Errorf("audits %q, want %q", told, want)
	}
	s.stop(d)
}
