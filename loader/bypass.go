// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// Bypasses are ways in which packets of an interface may go past the programs on it, as
// far as they can be seen from its network namespace.
type Bypasses struct {
	// Bond is the bond that the interface is a port of: the other ports carry packets of
	// the same flows. Empty for none.
	Bond string
	// Flowtables are nftables' flowtables, as "family table flowtable", whose flows the
	// interface's hardware forwards by itself. Flowtables in software are no bypass: what
	// they forward comes in and goes out through the same hooks.
	Flowtables []string
	// TCOffload says that the driver may run tc filters in hardware (hw-tc-offload).
	TCOffload bool
	// Redirectors are other interfaces with an XDP program that is not earlydrop's: it
	// may send frames out of this one (XDP_REDIRECT) past the hook on egress.
	Redirectors []string
	// InFront is another XDP program on the interface itself, where ours is on TCX ingress: what
	// it drops, sends back or redirects is not seen. Its name, or "id N"; empty: none.
	InFront string
}

// bypasses looks for them. What can't be read counts as not there.
func (i *iface) bypasses() (b Bypasses) {
	attrs := i.link.Attrs()
	if master, err := netlink.LinkByIndex(attrs.MasterIndex); attrs.MasterIndex != 0 && err == nil && master.Type() == "bond" {
		b.Bond = master.Attrs().Name
	}
	b.Flowtables = hardwareFlowtables(attrs.Name)
	b.TCOffload = anyFeature(attrs.Name, "hw-tc-offload")
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return b
	}
	// The names of programs take CAP_SYS_ADMIN; what is pinned does not.
	own := map[int]bool{attrs.Index: true}
	pins, _ := allPinned()
	for _, p := range pins {
		if p.link != nil {
			own[p.link.Attrs().Index] = true
		}
	}
	for _, l := range links {
		xdp := l.Attrs().Xdp
		if own[l.Attrs().Index] || xdp == nil || !xdp.Attached || programName(ebpf.ProgramID(xdp.ProgId)) == datapathProgEdIngress {
			continue
		}
		b.Redirectors = append(b.Redirectors, l.Attrs().Name)
	}
	slices.Sort(b.Redirectors)
	return b
}

// hardwareFlowtables lists those in which the device is, and which are offloaded.
func hardwareFlowtables(device string) (names []string) {
	conn, err := nftables.New()
	if err != nil {
		return nil
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil // no nftables in this kernel
	}
	for _, table := range tables {
		list, err := conn.ListFlowtables(table)
		if err != nil {
			continue // a kernel without flowtables
		}
		for _, ft := range list {
			if ft.Flags&nftables.FlowtableFlagsHWOffload != 0 && slices.Contains(ft.Devices, device) {
				names = append(names, fmt.Sprintf("%s %s %s", familyName(table.Family), table.Name, ft.Name))
			}
		}
	}
	return names
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	}
	return fmt.Sprintf("family-%d", f)
}
