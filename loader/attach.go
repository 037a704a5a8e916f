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
	link netlink.Link // nil when the interface is gone
}

func findInterface(name string) (*iface, error) {
	if name == "" {
		return nil, refused(nil, "no interface given: use -i")
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return nil, refused(err, "no such interface: %s (ip link shows what there is)", name)
		}
		return nil, fmt.Errorf("look up interface %s: %w", name, err)
	}
	// The name becomes a folder; altnames would lead to a second one.
	if l.Attrs().Name != name {
		return nil, refused(nil, "%s is another name of interface %s: use that one", name, l.Attrs().Name)
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

// refuseForeignXDP refuses an interface that has an XDP program other than the one
// pinned in dir, for the kernel takes one only, and pins whose program is attached
// to an interface other than this one.
func (i *iface) refuseForeignXDP(dir string) error {
	xdp := i.link.Attrs().Xdp
	attached := xdp != nil && xdp.Attached
	for _, name := range []string{pinXDP, oldPinXDP} {
		l, err := link.LoadPinnedLink(dir+"/"+name, nil)
		if err != nil {
			continue
		}
		defer l.Close()
		info, err := l.Info()
		switch {
		case err != nil:
			return fmt.Errorf("read the link pinned for %s: %w", i.name, err)
		case attached && uint32(info.Program) == xdp.ProgId:
			return nil
		case !attached && !severed(l):
			return refused(unix.EBUSY, "what is pinned at %s is attached to another interface that is or was called %s, renamed or in another network namespace: earlydrop detach -i %s removes it",
				dir, i.name, i.name)
		}
	}
	if !attached {
		return nil
	}
	name := "unknown"
	if p, err := ebpf.NewProgramFromID(ebpf.ProgramID(xdp.ProgId)); err == nil {
		if info, err := p.Info(); err == nil {
			name = info.Name
		}
		_ = p.Close()
	}
	return refused(unix.EBUSY, "another XDP program is attached to %s: %s, id %d (detach it first: ip link set dev %s xdp off)",
		i.name, name, xdp.ProgId, i.name)
}

// severed reports whether the interface that a link was attached to is gone. A new
// one of the same name needs a new link.
func severed(l link.Link) bool {
	info, err := l.Info()
	if err != nil {
		return false
	}
	if x := info.XDP(); x != nil {
		return x.Ifindex == 0
	}
	if t := info.TCX(); t != nil {
		return t.Ifindex == 0
	}
	return false
}

// openPinnedLink returns the link that an earlier process pinned, or nil when there
// is none. One whose interface is gone is removed.
func openPinnedLink(pin string) (link.Link, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("open pinned link %s: %w", pin, err)
	case !severed(l):
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
	old, err := openPinnedLink(pin)
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
		if err := errors.Join(old.Unpin(), old.Close()); err != nil {
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
		return refused(err, "attach xdp to %s in %s mode: %v%s", ifc.name, d.Info.XDPMode, err, xdpHint(opts.XDPMode))
	}
	if err := d.ingress.Pin(pin); err != nil {
		return fmt.Errorf("pin %s: %w", pin, err)
	}
	return nil
}

func xdpHint(mode XDPMode) string {
	if mode == XDPNative {
		return " (the driver may lack it: use --xdp auto or generic)"
	}
	return ""
}

// attachedMode returns the mode of the XDP program on the interface now.
func (i *iface) attachedMode() XDPMode {
	l, err := netlink.LinkByIndex(i.index())
	if err == nil && l.Attrs().Xdp != nil && l.Attrs().Xdp.AttachMode == xdpAttachedSKB {
		return XDPGeneric
	}
	return XDPNative
}

// xdpAttachedSKB is XDP_ATTACHED_SKB of linux/if_link.h.
const xdpAttachedSKB = 2

// egressLink is an attached egress program: a TCX link or a clsact filter.
type egressLink interface{ Close() error }

// attachEgress attaches the egress program through TCX, or as a clsact filter on
// kernels before 6.6.
func (d *DataPath) attachEgress(ifc *iface, opts Options, pin string) error {
	prog := d.coll.Programs[datapathProgEdEgress]
	old, err := openPinnedLink(pin)
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

// hidesVLANs reports whether VLAN interfaces stand on this one while the driver
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
