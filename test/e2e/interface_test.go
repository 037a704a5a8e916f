// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// attachTo is attach for an interface other than the lab's.
func (s *scene) attachTo(device string, args ...string) *rig.Daemon {
	s.t.Helper()
	return s.daemonOf(append([]string{s.Binary(), "attach", "-i", device, "--json"}, args...)...)
}

func (s *scene) daemonOf(argv ...string) *rig.Daemon {
	s.t.Helper()
	d, err := s.Daemon(s.ctx, argv...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		d.Kill()
		if s.t.Failed() {
			s.t.Logf("standard error of %v:\n%s", argv, d.Stderr())
		}
	})
	return d
}

// veth adds a pair of interfaces to the gateway and returns the first one.
func (s *scene) veth(name, peer string) netlink.Link {
	s.t.Helper()
	nl := s.Gateway.Netlink()
	err := nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer})
	if err != nil {
		s.t.Fatal(err)
	}
	return must(nl.LinkByName(name))(s.t)
}

// statuses returns what status tells of all interfaces, by name.
func (s *scene) statuses() map[string]status.Status {
	s.t.Helper()
	all := make(map[string]status.Status)
	for _, st := range must(s.Statuses(s.ctx))(s.t) {
		all[st.Interface] = st
	}
	return all
}

// An interface with a dot in its name that joins a bridge, leaves it, is renamed and at
// last removed, while the daemon can't keep up with what the kernel tells: it is one
// interface all the time, and goes by the name that it has.
func TestInterfaceIsKnownByMoreThanItsName(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	nl := s.Gateway.Netlink()
	port := s.veth("ed.p0", "ed-p1")
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "ed-br"}}
	if err := nl.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	d := s.attachTo("ed.p0", "--mode", "enforce")
	s.says(d, "pinned /sys/fs/bpf/earlydrop/ed%2ep0/blocked")
	other := s.attach()
	flow := []string{"tcp", "192.0.2.1:1", "192.0.2.2:2"}
	must(s.Earlydrop(s.ctx, append([]string{"blocked", "add", "-i", "ed.p0"}, flow...)...))(t)

	for _, err := range []error{nl.LinkSetMaster(port, bridge), nl.LinkSetNoMaster(port), nl.LinkSetName(port, "ed.q0")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// The rename was told after the leaving.
	s.says(d, "renamed", "ed.q0")
	all := s.statuses()
	if st := all["ed.q0"]; len(all) != 2 || !st.Running || st.PID != d.PID() || all[rig.Device].PID != other.PID() {
		t.Errorf("status: %+v", all)
	}
	if out := must(s.Earlydrop(s.ctx, "status", "-i", "ed.q0"))(t); !strings.Contains(out, "/sys/fs/bpf/earlydrop/ed%2eq0\n") {
		t.Errorf("status does not tell where it is pinned:\n%s", out)
	}
	if out := must(s.Earlydrop(s.ctx, "blocked", "list"))(t); !strings.Contains(out, "ed.q0") || !strings.Contains(out, "192.0.2.1:1") {
		t.Errorf("blocked list:\n%s", out)
	}
	s.refused(t, []string{s.Binary(), "detach", "-i", "ed.p0"}, nil, []string{"not attached to ed.p0"})
	must(s.Earlydrop(s.ctx, append([]string{"blocked", "del", "-i", "ed.q0"}, flow...)...))(t)

	// More than the daemon's socket takes, and the end of the interface among it.
	if err := d.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		if err := nl.LinkSetAlias(port, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := nl.LinkDel(port); err != nil {
		t.Fatal(err)
	}
	if err := d.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if code, err := d.Exited(s.ctx); err != nil || code != 1 || !strings.Contains(d.Stderr(), "earlydrop: interface ed.q0 was removed\n") {
		t.Errorf("exit code %d, %v: %s", code, err, d.Stderr())
	}
	if last, ok := d.Events()[len(d.Events())-1].(*event.Ended); !ok || last.Interface != "ed.q0" {
		t.Errorf("last event: %+v", last)
	}
	s.stop(other)
}

// detach by the new name ends the daemon that was started by the old one.
func TestDetachByTheNewName(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	port := s.veth("ed-p0", "ed-p1")
	d := s.attachTo("ed-p0")
	if err := s.Gateway.Netlink().LinkSetName(port, "eth0.100"); err != nil {
		t.Fatal(err)
	}
	must(s.Earlydrop(s.ctx, "detach", "-i", "eth0.100"))(t)
	if code, err := d.Exited(s.ctx); err != nil || code != 0 {
		t.Errorf("exit code %d, %v", code, err)
	}
	s.clean()
}

// An interface that is moved to another network namespace stays attached, and is seen
// there.
func TestInterfaceMovesAway(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	port := s.veth("ed-p0", "ed-p1")
	d := s.attachTo("ed-p0")
	there := must(os.Open(s.Client.Path()))(t)
	defer there.Close()
	if err := s.Gateway.Netlink().LinkSetNsFd(port, int(there.Fd())); err != nil {
		t.Fatal(err)
	}
	s.says(d, "moved to another network namespace")
	moved := must(s.Client.Netlink().LinkByName("ed-p0"))(t)
	if err := s.Client.Netlink().LinkSetName(moved, "ed-c0"); err != nil {
		t.Fatal(err)
	}
	out := must(s.Run(s.ctx, "nsenter", "--net="+s.Client.Path(), s.Binary(), "status", "-i", "ed-c0", "--json"))(t)
	if !strings.Contains(out.Stdout, fmt.Sprintf(`"running":true,"pid":%d`, d.PID())) {
		t.Errorf("status there: %+v", out)
	}
	if st := s.statuses()["ed-p0"]; !st.Running {
		t.Errorf("status here: %+v", s.statuses())
	}
	if err := s.Client.Netlink().LinkDel(moved); err != nil {
		t.Fatal(err)
	}
	if code, err := d.Exited(s.ctx); err != nil || code != 1 || !strings.Contains(d.Stderr(), "was removed") {
		t.Errorf("exit code %d, %v: %s", code, err, d.Stderr())
	}
	s.clean()
}

// What a bridge and the loopback interface show is said when they are attached.
func TestMisleadingInterfacesAreWarnedOf(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	nl := s.Gateway.Netlink()
	port, bridge := s.veth("ed-p0", "ed-p1"), &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "ed-br"}}
	if err := nl.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	if err := nl.LinkSetMaster(port, bridge); err != nil {
		t.Fatal(err)
	}
	for device, words := range map[string][]string{
		"lo":    {"warning: lo shows each packet twice", "attach to the interface"},
		"ed-br": {"warning: ed-br is a bridge", "attach to a port of it (ed-p0)"},
		"ed-p0": nil,
	} {
		d := s.attachTo(device)
		s.says(d, append(words, "maps: ")...)
		if words == nil && strings.Contains(strings.ReplaceAll(d.Stderr(), "warning: the BPF file system", ""), "warning:") {
			t.Errorf("warned of %s: %s", device, d.Stderr())
		}
		if _, err := d.Stop(s.ctx); err != nil {
			t.Error(err)
		}
	}
	s.clean()
}

// What attach advises to do about another program takes it away, however it is attached.
func TestAdviceAboutOtherProgramsWorks(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	dev := must(s.Gateway.Netlink().LinkByName(rig.Device))(t)
	prog := must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebody_else", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.LoadImm(asm.R0, 2, asm.DWord), asm.Return()}, // XDP_PASS
	}))(t)
	defer prog.Close()
	for _, flags := range []link.XDPAttachFlags{link.XDPDriverMode, link.XDPGenericMode} {
		for _, byLink := range []bool{false, true} {
			err := s.Gateway.Do(func() error {
				if !byLink {
					return netlink.LinkSetXdpFdWithFlags(dev, prog.FD(), int(flags))
				}
				l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: dev.Attrs().Index, Flags: flags})
				if err == nil {
					t.Cleanup(func() { _ = l.Close() })
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			s.followAdvice("another XDP program is attached to "+rig.Device+": somebody_else, id ", "detach it first: ")
		}
	}
}

// followAdvice has attach refused with these words, runs the command that it advises
// behind them, and attaches.
func (s *scene) followAdvice(words, before string) {
	s.t.Helper()
	argv := []string{s.Binary(), "attach", "-i", rig.Device, "--ingress", "xdp"}
	s.refused(s.t, argv, nil, []string{words, before})
	out := must(s.Run(s.ctx, argv...))(s.t)
	_, advice, _ := strings.Cut(strings.TrimSpace(out.Stderr), before)
	if done := must(s.Run(s.ctx, "sh", "-c", advice))(s.t); done.Code != 0 {
		s.t.Fatalf("%s: %+v", advice, done)
	}
	s.clean()
	s.stop(s.attach())
}

// ip netns exec has a mount namespace for each call: attach says what that means, the
// other commands why they see nothing, and an earlydrop that is seen nowhere is known
// as one.
func TestMountNamespacesOfTheirOwn(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	inNetns := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(s.ctx, "ip", append([]string{"netns", "exec", s.Gateway.Name, s.Binary()}, args...)...)
		cmd.Env = append(os.Environ(), "EARLYDROP_CONTROL=none", "EARLYDROP_STATE="+s.Dir()) // they are seen from everywhere
		return cmd
	}
	attach := inNetns("attach", "-i", rig.Device)
	var stdout, stderr locked
	attach.Stdout, attach.Stderr = &stdout, &stderr
	if err := attach.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = attach.Process.Kill() })
	instead := "nsenter --net=/run/netns/" + s.Gateway.Name + " earlydrop "
	for _, w := range []string{"warning: the BPF file system is of this mount namespace alone", instead + "attach -i " + rig.Device + "\n"} {
		if err := rig.Until(s.ctx, func() (bool, error) { return strings.Contains(stdout.String(), w), nil }); err != nil {
			t.Fatalf("%q is not said (%v): %s%s", w, err, stdout.String(), stderr.String())
		}
	}
	for _, args := range [][]string{{"status"}, {"blocked", "list"}, {"status", "-i", rig.Device}, {"detach", "-i", rig.Device}} {
		out, err := inNetns(args...).CombinedOutput()
		if !strings.Contains(string(out), instead+"status") && !strings.Contains(string(out), "from elsewhere") {
			t.Errorf("%v: %v, %s", args, err, out)
		}
	}
	// The rig is yet another mount namespace.
	for _, args := range [][]string{{"attach"}, {"status"}, {"detach"}} {
		s.refused(t, append([]string{s.Binary()}, append(args, "-i", rig.Device)...), nil,
			[]string{"earlydrop is attached to " + rig.Device + " from elsewhere", fmt.Sprintf("stop process %d, or: bpftool link detach id ", attach.Process.Pid)})
	}
	s.followAdvice("earlydrop is attached to "+rig.Device+" from elsewhere", fmt.Sprintf("stop process %d, or: ", attach.Process.Pid))
	if err := attach.Wait(); attach.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "the programs were detached from "+rig.Device+" by somebody else") {
		t.Errorf("the one that lost its programs: %v, %s", err, stderr.String())
	}
}

// A container has a mount namespace of its own as well, but its first process is in it:
// what is pinned lasts as long as the container, and nothing is warned of. From outside,
// the daemon is found by what it holds, for it has another process id there; from beside,
// it can't be found, and is not guessed.
func TestProcessIDsOfContainers(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	container := func(argv ...string) []string {
		return append([]string{"unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"}, argv...)
	}
	d := s.daemonOf(container(s.Binary(), "attach", "-i", rig.Device, "--json")...)
	s.says(d, "maps: ")
	if strings.Contains(d.Stderr(), "warning:") {
		t.Errorf("warned in a container: %s", d.Stderr())
	}
	st := must(s.Status(s.ctx))(t)
	comm := must(os.ReadFile(fmt.Sprintf("/proc/%d/comm", st.PID)))(t)
	if !st.Running || strings.TrimSpace(string(comm)) != filepath.Base(s.Binary()) {
		t.Errorf("status %+v, process %d is %s", st, st.PID, comm)
	}
	s.refused(t, container(s.Binary(), "detach", "-i", rig.Device), nil, []string{"another PID namespace"})
	inside := []string{"nsenter", fmt.Sprintf("--target=%d", st.PID), "--pid", "--mount", s.Binary(), "detach", "-i", rig.Device}
	s.refused(t, inside, nil, []string{"process 1", "by hand"})
	if now := must(s.Status(s.ctx))(t); !now.Running || now.PID != st.PID {
		t.Errorf("status %+v, before %+v", now, st)
	}
	must(s.Earlydrop(s.ctx, "detach", "-i", rig.Device))(t)
	if code, err := d.Exited(s.ctx); err != nil || code != 0 {
		t.Errorf("exit code %d, %v: %s", code, err, d.Stderr())
	}
	s.clean()
}

// detach while attach is starting: what is pinned still names the process before it, or
// none. It ends the one that is starting, and nobody in its own process group.
func TestDetachWhileAttachStarts(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	for _, adopts := range []bool{true, false, true} {
		if adopts {
			s.attach().Kill()
		}
		cmd := must(s.Command(s.ctx, s.Binary(), "attach", "-i", rig.Device, "-q"))(t)
		var stderr locked
		cmd.Stdout, cmd.Stderr = &stderr, &stderr
		if err := s.Start(cmd); err != nil {
			t.Fatal(err)
		}
		// From when it has the lock on, with at least one pin.
		err := rig.Until(s.ctx, func() (bool, error) {
			locks, err := os.ReadFile("/proc/locks")
			pins, errPins := s.Pins()
			return strings.Contains(string(locks), fmt.Sprintf("WRITE %d ", cmd.Process.Pid)) && len(pins) > 2, errors.Join(err, errPins)
		})
		if err != nil {
			t.Fatal(err)
		}
		out := must(s.Run(s.ctx, "setsid", "--wait", "sh", "-c", `sleep 60 & "$0" detach -i "$1"; echo "code $?"; kill $! && echo alive`, s.Binary(), rig.Device))(t)
		if want := "detached from " + rig.Device + "\ncode 0\nalive\n"; out.Stdout != want {
			t.Errorf("adopts %v: %+v", adopts, out)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the daemon: %v: %s", err, stderr.String())
		}
		s.clean()
	}
}

// Pins that are taken away while it runs are there again within seconds; it is said once
// and counted. It has given up the right to mount what was unmounted: others do that.
func TestPinsTakenAwayAreThereAgain(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	d := s.attach("--mode", "enforce")
	must(s.Earlydrop(s.ctx, "blocked", "add", "-i", rig.Device, "tcp", "192.0.2.1:1", "192.0.2.2:2"))(t)
	before := must(s.Pins())(t)
	const said = "pins had been removed and are there again"
	for i, argv := range [][]string{{"rm", "-r", "/sys/fs/bpf/earlydrop"}, {"sh", "-c", "umount --lazy /sys/fs/bpf && mount -t bpf -o mode=0700 bpf /sys/fs/bpf"}, {"rm", rig.PinDir + "/blocked"}} {
		if out := must(s.Run(s.ctx, argv...))(t); out.Code != 0 {
			t.Fatalf("%v: %+v", argv, out)
		}
		err := rig.Until(s.ctx, func() (bool, error) { return strings.Count(d.Stderr(), said) == i+1, nil })
		if err != nil {
			t.Fatalf("%v: %v: %s", argv, err, d.Stderr())
		}
		if after := must(s.Pins())(t); !slices.Equal(before, after) {
			t.Errorf("%v: pins %v, before %v", argv, after, before)
		}
		if blocks := must(s.Blocks(s.ctx))(t); len(blocks) != 1 {
			t.Errorf("%v: blocks %v", argv, blocks)
		}
	}
	if last := s.stop(d); last.Counters["pins_restored"] != uint64(2*(len(before)-2)+1) {
		t.Errorf("%d pins; counted %v", len(before), last.Counters)
	}
}

// With no more than the documented capabilities it works as uid 0, and as another user
// after root has done what the refusal says. Without CAP_SYS_ADMIN a file system that was
// unmounted can't be put back: it is said, the work goes on, and is mended when it can.
func TestDocumentedCapabilitiesAreEnough(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	const three = "-all,+bpf,+perfmon,+net_admin"
	run := func(words ...string) rig.Output {
		t.Helper()
		return must(s.Run(s.ctx, words...))(t)
	}
	if out := run("chmod", "700", "/sys/fs/bpf"); out.Code != 0 {
		t.Fatalf("%+v", out)
	}
	root := []string{"setpriv", "--inh-caps=" + three, "--bounding-set=" + three, s.Binary()}
	user := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=" + three, "--ambient-caps=" + three, s.Binary()}
	with := func(who []string, args ...string) []string { return append(who[:len(who):len(who)], args...) }
	attach := []string{"attach", "-i", rig.Device, "--json"}

	d := s.daemonOf(with(root, attach...)...)
	if out := run("umount", "--lazy", "/sys/fs/bpf"); out.Code != 0 {
		t.Fatalf("%+v", out)
	}
	s.says(d, "can't be put back", "mount -t bpf bpf /sys/fs/bpf")
	if out := run("mount", "-t", "bpf", "-o", "mode=0700", "bpf", "/sys/fs/bpf"); out.Code != 0 {
		t.Fatalf("%+v", out)
	}
	s.says(d, "are there again")
	if n := strings.Count(d.Stderr(), "can't be put back"); n != 1 {
		t.Errorf("said %d times: %s", n, d.Stderr())
	}
	d.Kill()
	d = s.daemonOf(with(root, attach...)...)
	if !d.Attached.Adopted {
		t.Errorf("not adopted: %+v", d.Attached)
	}
	if out := run(with(root, "detach", "-i", rig.Device)...); out.Code != 0 {
		t.Errorf("%+v", out)
	}
	if code, err := d.Exited(s.ctx); err != nil || code != 0 {
		t.Errorf("exit code %d, %v", code, err)
	}
	s.clean()

	const before = "let root prepare the folder for group 65534: "
	for _, args := range [][]string{attach, {"status"}} {
		s.refused(t, with(user, args...), nil, []string{"permission denied", before})
	}
	_, advice, _ := strings.Cut(strings.TrimSpace(run(with(user, attach...)...).Stderr), before)
	if out := run("sh", "-c", advice); out.Code != 0 {
		t.Fatalf("%s: %+v", advice, out)
	}
	s.daemonOf(with(user, attach...)...).Kill()
	d = s.daemonOf(with(user, attach...)...)
	if !d.Attached.Adopted {
		t.Errorf("not adopted: %+v", d.Attached)
	}
	for _, args := range [][]string{{"status", "-i", rig.Device}, {"blocked", "list"}, {"blocked", "add", "-i", rig.Device, "tcp", "192.0.2.1:1", "192.0.2.2:2"}} {
		if out := run(with(user, args...)...); out.Code != 0 {
			t.Errorf("%v: %+v", args, out)
		}
	}
	// Root takes it away, but not what was prepared.
	must(s.Earlydrop(s.ctx, "detach", "-i", rig.Device))(t)
	if code, err := d.Exited(s.ctx); err != nil || code != 0 {
		t.Errorf("exit code %d, %v", code, err)
	}
	if pins := must(s.Pins())(t); !slices.Equal(pins, []string{"/earlydrop"}) {
		t.Errorf("left is %v", pins)
	}
	d = s.daemonOf(with(user, attach...)...)
	if out := run(with(user, "detach", "-i", rig.Device)...); out.Code != 0 {
		t.Errorf("%+v", out)
	}
	if _, err := d.Exited(s.ctx); err != nil {
		t.Error(err)
	}
}
