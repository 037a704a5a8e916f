// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// withoutSysAdmin calls f without that capability, as a daemon has it that has attached. The
// goroutine has its thread for itself.
func withoutSysAdmin(t *testing.T, f func()) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&header, &had[0]); err != nil {
		t.Fatal(err)
	}
	has := had
	has[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
	if err := unix.Capset(&header, &has[0]); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Capset(&header, &had[0]); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

// Another interface's XDP program may forward past the egress hook, our own does not.
func TestForeignXDPBesideTheInterfaceIsFound(t *testing.T) {
	inNamespace(t)
	other := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "w0"}, PeerName: "w1"}
	if err := netlink.LinkAdd(other); err != nil {
		t.Fatal(err)
	}
	ours, err := Attach(Options{Interface: "w0"})
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Detach()
	ifc, err := findInterface("v0")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Bypasses{}, ifc.bypasses()); diff != "" {
		t.Errorf("without another program (-want +got):\n%s", diff)
	}
	withoutSysAdmin(t, func() {
		if diff := cmp.Diff(Bypasses{}, ifc.bypasses()); diff != "" {
			t.Errorf("without CAP_SYS_ADMIN (-want +got):\n%s", diff)
		}
	})
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "forwarder", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	peer, err := netlink.LinkByName("w1")
	if err != nil {
		t.Fatal(err)
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: peer.Attrs().Index})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if diff := cmp.Diff(Bypasses{Redirectors: []string{"w1"}}, ifc.bypasses()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
