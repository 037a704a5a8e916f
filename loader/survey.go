// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Survey is what can be known of an interface before anything is attached to it.
type Survey struct {
	// Info has of what Attach tells that which does not depend on attaching: the hook on ingress
	// that IngressAuto takes where nothing is attached (xdp or tcx), bypasses, hidden VLANs, the
	// kind of interface, private pins; and Sizes and Memory of the tables.
	Info
	Up     bool
	MTU    int
	Driver string // of the device; empty if it has none, or can't say
	// NativeXDP says whether the driver runs XDP programs, nil where the kernel can't tell
	// (before Linux 6.3).
	NativeXDP *bool
	// LargeReceive are the offloads that are on by which the device joins received packets (LRO,
	// GRO in hardware). Most drivers refuse an XDP program then, or switch them off with it.
	LargeReceive []string
	// Attached says that an earlydrop is attached, whose daemon may be gone; Occupied is
	// another XDP program on the interface, nil if there is none.
	Attached bool
	Occupied *OccupiedError
}

// Look surveys an interface; nothing is changed. sizes are those that tables would have. A
// [*RefusedError] says that there is no such interface, or that sizes are out of bounds.
// What can't be read counts as not there.
func Look(name string, sizes Sizes) (*Survey, error) {
	if err := sizes.check(); err != nil {
		return nil, err
	}
	ifc, err := findInterface(name)
	if err != nil {
		return nil, err
	}
	s := &Survey{
		Up: ifc.link.Attrs().Flags&unix.IFF_UP != 0, MTU: ifc.link.Attrs().MTU,
		NativeXDP: nativeXDP(ifc.index()), LargeReceive: ifc.largeReceive(),
	}
	if tool, err := ethtool.NewEthtool(); err == nil {
		s.Driver, _ = tool.DriverName(name)
		tool.Close()
	}
	plan, err := ifc.planIngress(&Options{Ingress: IngressAuto}, nil)
	if err != nil {
		return nil, err
	}
	s.look(ifc, plan, XDPAuto)
	if p, err := findPinned(name); err == nil && p != nil {
		s.Attached = true
	} else {
		s.Occupied = ifc.occupied()
	}
	spec, err := readObject()
	if err != nil {
		return nil, err
	}
	sizes.apply(spec)
	if err := setSizes(spec); err != nil {
		return nil, err
	}
	s.Sizes, s.Memory = sizesOf(spec), tablesMemory(spec, false)
	return s, nil
}

// Of the generic netlink family "netdev" (include/uapi/linux/netdev.h).
const (
	netdevCmdDevGet    = 1
	netdevAttrIfindex  = 1
	netdevAttrFeatures = 3
	netdevXDPBasic     = 1 // XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX
)

// nativeXDP asks the kernel whether a device's driver runs XDP programs; nil: it can't tell.
func nativeXDP(index int) *bool {
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		return nil
	}
	request := nl.NewNetlinkRequest(int(family.ID), 0)
	// Not nl.Genlmsg: it lacks the two reserved bytes, and sends what lies behind it.
	request.AddRawData([]byte{netdevCmdDevGet, 1, 0, 0})
	request.AddRawData(nl.NewRtAttr(netdevAttrIfindex, nl.Uint32Attr(uint32(index))).Serialize())
	replies, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil || len(replies) != 1 || len(replies[0]) < nl.SizeofGenlmsg {
		return nil
	}
	attributes, err := nl.ParseRouteAttr(replies[0][nl.SizeofGenlmsg:])
	if err != nil {
		return nil
	}
	for _, a := range attributes {
		if a.Attr.Type&nl.NLA_TYPE_MASK == netdevAttrFeatures && len(a.Value) >= 8 {
			has := binary.NativeEndian.Uint64(a.Value)&netdevXDPBasic != 0
			return &has
		}
	}
	return nil
}

// Requirement is something that attaching needs of the kernel or of the process.
type Requirement struct {
	Name string
	Err  error // what is missing; nil: nothing
}

// Requirements lists what Attach needs of this machine and this process, whatever the
// interface.
func Requirements() []Requirement {
	capabilities := requireCapabilities()
	list := []Requirement{{"capabilities", capabilities}}
	if capabilities == nil { // without them nothing can be found out
		list = append(list, Requirement{"kernel", requireFeatures()})
	}
	return list
}

// HaveBPFFS reports whether the BPF file system is mounted where everything is pinned.
func HaveBPFFS() bool {
	var st unix.Statfs_t
	return unix.Statfs(bpffsMount, &st) == nil && st.Type == unix.BPF_FS_MAGIC
}
