// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// passAll loads an XDP program that passes everything.
func passAll(t *testing.T, name string) *ebpf.Program {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.LoadImm(asm.R0, xdpPass, asm.DWord), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = prog.Close() })
	return prog
}

// Whose the program is that has the interface, and how it is attached, is told, since
// each way needs another way to detach it.
func TestOtherProgramsAreDescribed(t *testing.T) {
	inNamespace(t)
	prog := passAll(t, "somebody_else")
	info, err := prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	v0, err := netlink.LinkByName("v0")
	if err != nil {
		t.Fatal(err)
	}
	describe := func() *OccupiedError {
		t.Helper()
		_, err := Attach(Options{Interface: "v0", Ingress: IngressXDP})
		var refused *RefusedError
		var o *OccupiedError
		if !errors.As(err, &refused) || !errors.As(err, &o) {
			t.Fatalf("error %v", err)
		}
		return o
	}
	for mode, flags := range map[XDPMode]link.XDPAttachFlags{XDPNative: link.XDPDriverMode, XDPGeneric: link.XDPGenericMode} {
		want := OccupiedError{Interface: "v0", Program: "somebody_else", ID: uint32(id), Mode: mode}
		same := func(o *OccupiedError, links []uint32) bool {
			return o.Interface == want.Interface && o.Program == want.Program && o.ID == want.ID && o.Mode == want.Mode && !o.Own && o.PID == 0 && slices.Equal(o.Links, links)
		}
		if err := netlink.LinkSetXdpFdWithFlags(v0, prog.FD(), int(flags)); err != nil {
			t.Fatal(err)
		}
		if o := describe(); !same(o, nil) {
			t.Errorf("by netlink, %s: %+v", mode, o)
		}
		if err := netlink.LinkSetXdpFdWithFlags(v0, -1, int(flags)); err != nil {
			t.Fatal(err)
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: v0.Attrs().Index, Flags: flags})
		if err != nil {
			t.Fatal(err)
		}
		linkInfo, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		if o := describe(); !same(o, []uint32{uint32(linkInfo.ID)}) {
			t.Errorf("by link %d, %s: %+v", linkInfo.ID, mode, o)
		}
		// What is left of a link that was detached is not one.
		if err := l.Detach(); err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	nothingLeft(t)
}

// An earlydrop that is pinned in another BPF file system is known for what it is, with
// all that has to be detached.
func TestOwnProgramsElsewhereAreRecognised(t *testing.T) {
	ownElsewhere(t, Options{Ingress: IngressXDP}, datapathProgEdIngress)
	if haveTCX(t) {
		ownElsewhere(t, Options{}, datapathProgEdTcxIngress)
	}
}

func ownElsewhere(t *testing.T, opts Options, program string) {
	t.Helper()
	inNamespace(t)
	d := attach(t, opts)
	mountOver(t)
	var occupied *OccupiedError
	_, err := Attach(Options{Interface: "v0"})
	if !errors.As(err, &occupied) || !occupied.Own || occupied.Program != program {
		t.Fatalf("attach: %v, %+v", err, occupied)
	}
	links := []link.Link{d.ingress}
	if d.egress != nil {
		links = append(links, d.egress)
	}
	var want []uint32
	for _, l := range links {
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, uint32(info.ID))
	}
	if !slices.Equal(occupied.Links, want) {
		t.Errorf("links %v, want %v", occupied.Links, want)
	}
	for what, err := range map[string]error{"open": openErr("v0"), "detach": Detach("v0", true)} {
		occupied = nil
		if !errors.Is(err, ErrNotAttached) || !errors.As(err, &occupied) || !occupied.Own {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, id := range want {
		l, err := link.NewFromID(link.ID(id))
		if err == nil {
			err = errors.Join(l.Detach(), l.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if xdp, egress := attached(t); xdp != 0 || haveTCX(t) && len(egress) != 0 {
		t.Errorf("attached: xdp %d, egress %v", xdp, egress)
	}
	// Now there is room for one that is pinned here.
	if err := errors.Join(attach(t, Options{}).Detach(), d.Detach()); err != nil {
		t.Error(err)
	}
	nothingLeft(t)
}

func TestHolderOfALinkIsFound(t *testing.T) {
	if pid := holderOf([]uint32{1 << 31}); pid != 0 {
		t.Errorf("process %d has a link that there is not", pid)
	}
	if pid := holderOf(nil); pid != 0 {
		t.Errorf("process %d has no link", pid)
	}
}

func TestBPFFileSystemsOfAMountNamespace(t *testing.T) {
	const text = `22 27 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw
30 22 0:26 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700
31 22 0:27 / /sys/fs/cgroup rw shared:4 master:1 - cgroup2 bpf rw
99 27 0:50 / /mnt/a\040b rw - bpf none rw
12 bpf
`
	if got, want := bpffsDevices(text), []string{"0:26", "0:50"}; !slices.Equal(got, want) {
		t.Errorf("devices %v, want %v", got, want)
	}
}

// What this process has mounted is seen by the first one, as long as they share a mount
// namespace: nothing to warn of. In one of its own there is.
func TestPinsOfAnOwnMountNamespaceArePrivate(t *testing.T) {
	inNamespace(t)
	first, errFirst := os.ReadFile("/proc/1/mountinfo")
	own, errOwn := os.ReadFile("/proc/self/mountinfo")
	if err := errors.Join(errFirst, errOwn); err != nil {
		t.Fatal(err)
	}
	if shared := sharesMount(string(own), string(first)); PrivatePins() == shared {
		t.Errorf("private %v, mounts are shared: %v", !shared, shared)
	}
	// The file system of the test, and one of the namespace's own.
	before := PrivatePins()
	sees := make(chan [2]bool)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its mount namespace
		if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")); err != nil {
			t.Error(err)
		}
		var got [2]bool
		got[0] = privatePins("/proc/thread-self/mountinfo")
		mount := filepath.Dir(pinRoot)
		if err := unix.Mount("bpf", mount, "bpf", 0, ""); err != nil {
			t.Error(err)
		}
		got[1] = privatePins("/proc/thread-self/mountinfo")
		sees <- got
	}()
	if got := <-sees; got != [2]bool{before, true} {
		t.Errorf("private %v in another mount namespace: with the file system of all, with one of its own", got)
	}
}

// A bridge and the loopback interface show something else than an operator expects.
func TestWhatAnInterfaceShowsIsTold(t *testing.T) {
	inNamespace(t)
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	v0, err := netlink.LinkByName("v0")
	if err == nil {
		err = errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetMaster(v0, bridge))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name             string
		loopback, bridge bool
		ports            []string
	}{{"lo", true, false, nil}, {"br0", false, true, []string{"v0"}}, {"v0", false, false, nil}} {
		d := attachTo(t, tt.name)
		if i := d.Info; i.Loopback != tt.loopback || i.Bridge != tt.bridge || !slices.Equal(i.Ports, tt.ports) {
			t.Errorf("%s: %+v", tt.name, i)
		}
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
	}
	nothingLeft(t)
}
