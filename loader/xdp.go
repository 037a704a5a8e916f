// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// XDPMode says where in the receive path the ingress program runs.
type XDPMode string

// XDP modes. Auto tries native and falls back to generic.
const (
	XDPAuto    XDPMode = "auto"
	XDPNative  XDPMode = "native"  // in the driver, before a socket buffer exists
	XDPGeneric XDPMode = "generic" // in the stack, on any driver, slower
)

// ParseXDPMode turns a word into an XDPMode.
func ParseXDPMode(s string) (XDPMode, error) {
	switch m := XDPMode(s); m {
	case XDPAuto, XDPNative, XDPGeneric:
		return m, nil
	}
	return "", fmt.Errorf("unknown xdp mode %q: use auto, native or generic", s)
}

// An XDPModeError says that the ingress program can't be attached in the mode that was
// asked for. With XDPNative the driver may lack it.
type XDPModeError struct {
	Mode XDPMode
	Err  error // the kernel's
}

// Error returns one lower-case line.
func (e *XDPModeError) Error() string { return fmt.Sprintf("xdp in mode %s: %v", e.Mode, e.Err) }

// Unwrap returns the kernel's error.
func (e *XDPModeError) Unwrap() error { return e.Err }

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
