// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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
