// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

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
