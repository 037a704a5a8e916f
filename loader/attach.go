// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// iface is the network interface that the data path is for.
type iface struct {
	name string
	link netlink.Link
}

func findInterface(name string) (*iface, error) {
	l, err := interfaceNamed(name)
	if err == nil && l == nil {
		err = refused(ErrNoInterface, "%v: %s", ErrNoInterface, name)
	}
	if err != nil {
		return nil, err
	}
	return &iface{name: name, link: l}, nil
}

func (i *iface) index() int { return i.link.Attrs().Index }

// rawIP reports whether frames begin with the IP header (tun, wg, ipip).
func (i *iface) rawIP() bool {
	switch i.link.Attrs().EncapType {
	case "ether", "loopback":
		return false
	}
	return true
}

// severed reports whether a link is attached to nothing any more: its interface is gone,
// or it was detached by force. A new interface of the same name needs a new link.
func severed(l link.Link) bool {
	info, err := l.Info()
	return err == nil && ifindexOf(info) == 0
}

// openPinnedLink returns the link that an earlier process pinned, or nil when there
// is none. One that is not attached to this interface is removed: that one is gone.
func (i *iface) openPinnedLink(pin string) (link.Link, error) {
	l, err := openPin(pin)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case errors.Is(err, errForeignPin):
		if err := os.Remove(pin); err != nil {
			return nil, fmt.Errorf("remove what has the name of a pin: %w", err)
		}
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("open pinned link %s: %w", pin, err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read pinned link %s: %w", pin, err), l.Close())
	}
	if ifindexOf(info) == uint32(i.index()) {
		return l, nil
	}
	if err := errors.Join(l.Unpin(), l.Close()); err != nil {
		return nil, fmt.Errorf("remove pinned link %s of an interface that is gone: %w", pin, err)
	}
	return nil, nil
}

// attachIngress attaches the XDP program, or puts it in the place of the one that
// is pinned.
func (d *DataPath) attachIngress(ifc *iface, opts Options, pin string) error {
	prog := d.coll.Programs[datapathProgEdIngress]
	old, err := ifc.openPinnedLink(pin)
	if err != nil {
		return err
	}
	if old != nil {
		mode := ifc.attachedMode()
		if opts.XDPMode == XDPAuto || opts.XDPMode == mode {
			if err := old.Update(prog); err != nil {
				_ = old.Close()
				return fmt.Errorf("swap the ingress program of %s: %w", ifc.name, err)
			}
			d.ingress, d.Info.XDPMode = old, mode
			return nil
		}
		// Another mode was asked for: the kernel can't change it in place.
		if err := errors.Join(old.Detach(), old.Unpin(), old.Close()); err != nil {
			return fmt.Errorf("detach the ingress program of %s: %w", ifc.name, err)
		}
	}

	attach := func(flags link.XDPAttachFlags) (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifc.index(), Flags: flags})
	}
	switch opts.XDPMode {
	case XDPAuto:
		d.Info.XDPMode = XDPNative
		if d.ingress, err = attach(link.XDPDriverMode); err != nil {
			d.Info.XDPMode, d.Info.XDPFallback = XDPGeneric, err
			d.ingress, err = attach(link.XDPGenericMode)
		}
	case XDPNative:
		d.Info.XDPMode = XDPNative
		d.ingress, err = attach(link.XDPDriverMode)
	case XDPGeneric:
		d.Info.XDPMode = XDPGeneric
		d.ingress, err = attach(link.XDPGenericMode)
	}
	if err != nil {
		d.ingress = nil
		return refused(&XDPModeError{opts.XDPMode, err}, "attach xdp to %s in %s mode: %v", ifc.name, d.Info.XDPMode, err)
	}
	if err := d.ingress.Pin(pin); err != nil {
		return fmt.Errorf("pin %s: %w", pin, err)
	}
	return nil
}

// attachedMode returns the mode of the XDP program on the interface now.
func (i *iface) attachedMode() XDPMode {
	l, err := netlink.LinkByIndex(i.index())
	if err == nil && l.Attrs().Xdp != nil && l.Attrs().Xdp.AttachMode == xdpAttachedSKB {
		return XDPGeneric
	}
	return XDPNative
}

// XDP_ATTACHED_DRV and XDP_ATTACHED_SKB of linux/if_link.h.
const (
	xdpAttachedDRV = 1
	xdpAttachedSKB = 2
)

// attachEgress attaches the egress program through TCX, or as a clsact filter on
// kernels before 6.6.
func (d *DataPath) attachEgress(ifc *iface, opts Options, pin string) error {
	prog := d.coll.Programs[datapathProgEdEgress]
	old, err := ifc.openPinnedLink(pin)
	if err != nil {
		return err
	}
	if old != nil {
		if err := old.Update(prog); err != nil {
			_ = old.Close()
			return fmt.Errorf("swap the egress program of %s: %w", ifc.name, err)
		}
		d.egress, d.Info.Egress = old, "tcx"
		return nil
	}
	if !opts.forceClsact {
		l, err := link.AttachTCX(link.TCXOptions{Interface: ifc.index(), Program: prog, Attach: ebpf.AttachTCXEgress})
		if err == nil {
			d.egress, d.Info.Egress = l, "tcx"
			if err := l.Pin(pin); err != nil {
				return fmt.Errorf("pin %s: %w", pin, err)
			}
			return nil
		}
		if !errors.Is(err, link.ErrNotSupported) {
			return refused(err, "attach tcx egress to %s: %v", ifc.name, err)
		}
	}
	if err := installClsact(ifc, prog); err != nil {
		return refused(err, "attach the egress filter to %s: %v", ifc.name, err)
	}
	d.Info.Egress = "clsact"
	return nil
}

// clsactFilter is our filter's place in the list; its name tells it from others.
func clsactFilter(ifc *iface) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifc.index(),
			Parent:    netlink.HANDLE_MIN_EGRESS,
			Handle:    1,
			Priority:  1,
			Protocol:  unix.ETH_P_ALL,
		},
		Name:         "earlydrop",
		DirectAction: true,
	}
}

func clsactQdisc(ifc *iface) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifc.index(),
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
}

func installClsact(ifc *iface, prog *ebpf.Program) error {
	if err := netlink.QdiscAdd(clsactQdisc(ifc)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add qdisc clsact: %w", err)
	}
	f := clsactFilter(ifc)
	f.Fd = prog.FD()
	// Replaces our own filter in place; another one in its place is refused.
	filters, err := netlink.FilterList(ifc.link, netlink.HANDLE_MIN_EGRESS)
	if err != nil {
		return fmt.Errorf("list filters: %w", err)
	}
	for _, other := range filters {
		b, ok := other.(*netlink.BpfFilter)
		if other.Attrs().Priority == f.Priority && (!ok || b.Name != f.Name) {
			return fmt.Errorf("another filter has priority %d: remove it or move it behind", f.Priority)
		}
	}
	if err := netlink.FilterReplace(f); err != nil {
		return fmt.Errorf("add filter: %w", err)
	}
	return nil
}

// removeClsact removes our filter, and the qdisc if no other filter uses it.
func removeClsact(ifc *iface) error {
	found, others := false, 0
	for _, parent := range []uint32{netlink.HANDLE_MIN_EGRESS, netlink.HANDLE_MIN_INGRESS} {
		filters, err := netlink.FilterList(ifc.link, parent)
		if err != nil {
			return nil // no clsact there
		}
		for _, f := range filters {
			if b, ok := f.(*netlink.BpfFilter); ok && parent == netlink.HANDLE_MIN_EGRESS && b.Name == "earlydrop" {
				found = true
			} else {
				others++
			}
		}
	}
	if !found {
		return nil
	}
	if err := netlink.FilterDel(clsactFilter(ifc)); err != nil {
		return fmt.Errorf("remove the egress filter of %s: %w", ifc.name, err)
	}
	if others == 0 {
		if err := netlink.QdiscDel(clsactQdisc(ifc)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("remove qdisc clsact of %s: %w", ifc.name, err)
		}
	}
	return nil
}

// hidesVLANs reports whether this interface has VLAN interfaces while its driver
// strips tags on receive: the ingress program then sees their frames untagged.
func (i *iface) hidesVLANs() bool {
	links, err := netlink.LinkList()
	if err != nil {
		return false
	}
	for _, l := range links {
		if l.Type() == "vlan" && l.Attrs().ParentIndex == i.index() {
			return stripsVLANs(i.name)
		}
	}
	return false
}
