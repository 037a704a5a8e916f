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

// A tcHook is where programs see socket buffers of an interface.
type tcHook struct {
	name   string // of the direction, in messages
	attach ebpf.AttachType
	parent uint32 // of filters
	pin    string // of the TCX link
	// anchor is the place among other programs, nearest to the wire: what comes in is seen as it
	// came, what goes out as it goes.
	anchor link.Anchor
}

var (
	tcIngress = tcHook{"ingress", ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS, pinTCXIngress, link.Head()}
	tcEgress  = tcHook{"egress", ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS, pinTCX, link.Tail()}
)

// How a program is attached to a tcHook.
const (
	byTCX    = "tcx"
	byClsact = "clsact"
)

// attachTC attaches a program through TCX, or as a clsact filter on kernels before 6.6, or puts
// it in the place of the one that is pinned in the folder. A filter has no link.
func (i *iface) attachTC(prog *ebpf.Program, at tcHook, folder *os.File, forceClsact bool) (l link.Link, how string, err error) {
	pin := inFolder(folder, at.pin)
	old, err := i.openPinnedLink(pin)
	if err != nil {
		return nil, "", err
	}
	if old != nil {
		if err := old.Update(prog); err != nil {
			_ = old.Close()
			return nil, "", fmt.Errorf("swap the %s program of %s: %w", at.name, i.name, err)
		}
		return old, byTCX, nil
	}
	if !forceClsact {
		l, err := link.AttachTCX(link.TCXOptions{Interface: i.index(), Program: prog, Attach: at.attach, Anchor: at.anchor})
		if err == nil {
			if err := l.Pin(pin); err != nil {
				return l, byTCX, fmt.Errorf("pin %s: %w", pin, err)
			}
			return l, byTCX, nil
		}
		if !errors.Is(err, link.ErrNotSupported) {
			return nil, "", refused(err, "attach tcx %s to %s: %v", at.name, i.name, err)
		}
	}
	if err := installClsact(i, prog, at); err != nil {
		return nil, "", refused(err, "attach the %s filter to %s: %v", at.name, i.name, err)
	}
	return nil, byClsact, nil
}

// attachEgress attaches the egress program.
func (d *DataPath) attachEgress(ifc *iface, opts Options) (err error) {
	d.egress, d.Info.Egress, err = ifc.attachTC(d.coll.Programs[datapathProgEdEgress], tcEgress, d.lock, opts.forceClsact)
	return err
}

// clsactName tells our filters from others.
const clsactName = "earlydrop"

// clsactFilter is our filter's place in the list.
func clsactFilter(ifc *iface, at tcHook) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifc.index(),
			Parent:    at.parent,
			Handle:    1,
			Priority:  1,
			Protocol:  unix.ETH_P_ALL,
		},
		Name:         clsactName,
		DirectAction: true,
	}
}

// ownFilter returns the id of the program of our filter on a link, 0 if there is none.
func ownFilter(l netlink.Link, at tcHook) ebpf.ProgramID {
	filters, err := netlink.FilterList(l, at.parent)
	if err != nil {
		return 0 // no clsact there
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == clsactName {
			return ebpf.ProgramID(b.Id)
		}
	}
	return 0
}

func clsactQdisc(ifc *iface) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifc.index(),
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
}

func installClsact(ifc *iface, prog *ebpf.Program, at tcHook) error {
	if err := netlink.QdiscAdd(clsactQdisc(ifc)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add qdisc clsact: %w", err)
	}
	f := clsactFilter(ifc, at)
	f.Fd = prog.FD()
	// Replaces our own filter in place; another one in its place is refused.
	filters, err := netlink.FilterList(ifc.link, at.parent)
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

// removeClsact removes our filters at some hooks, and the qdisc if no other filter uses it.
func removeClsact(ifc *iface, hooks ...tcHook) error {
	found := false
	for _, at := range hooks {
		if ownFilter(ifc.link, at) == 0 {
			continue
		}
		found = true
		if err := netlink.FilterDel(clsactFilter(ifc, at)); err != nil {
			return fmt.Errorf("remove the %s filter of %s: %w", at.name, ifc.name, err)
		}
	}
	if !found {
		return nil
	}
	for _, at := range []tcHook{tcIngress, tcEgress} {
		if others, err := netlink.FilterList(ifc.link, at.parent); err != nil || len(others) > 0 {
			return nil
		}
	}
	if err := netlink.QdiscDel(clsactQdisc(ifc)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove qdisc clsact of %s: %w", ifc.name, err)
	}
	return nil
}
