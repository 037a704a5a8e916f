// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// XDPMode says where in the receive path the ingress program runs.
type XDPMode string

// XDP modes. Auto tries native and falls back to generic.
const (
	XDPAuto    XDPMode = "auto"
	XDPNative  XDPMode = "native"  // in the driver, before a socket buffer exists
	XDPGeneric XDPMode = "generic" // in front of the stack, on any driver
	XDPNone    XDPMode = "none"    // not XDP but TCX or clsact; of [Info] and [Attachment] alone
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

// attachXDP attaches the XDP program, or puts it in the place of the one that is pinned.
// fallback is why native mode was not possible where another one was taken.
func (i *iface) attachXDP(prog *ebpf.Program, asked XDPMode, folder *os.File) (l link.Link, mode XDPMode, fallback, err error) {
	pin := inFolder(folder, pinXDP)
	old, err := i.openPinnedLink(pin)
	if err != nil {
		return nil, "", nil, err
	}
	if old != nil {
		mode := i.attachedMode()
		if asked == XDPAuto || asked == mode {
			if err := old.Update(prog); err != nil {
				_ = old.Close()
				return nil, "", nil, fmt.Errorf("swap the ingress program of %s: %w", i.name, err)
			}
			return old, mode, nil, nil
		}
		// Another mode was asked for: the kernel can't change it in place.
		if err := removeLink(old); err != nil {
			return nil, "", nil, fmt.Errorf("detach the ingress program of %s: %w", i.name, err)
		}
	}

	attach := func(flags link.XDPAttachFlags) (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Program: prog, Interface: i.index(), Flags: flags})
	}
	mode = XDPNative
	if asked != XDPGeneric {
		l, err = attach(link.XDPDriverMode)
	}
	if asked == XDPGeneric || asked == XDPAuto && err != nil {
		mode, fallback = XDPGeneric, err
		l, err = attach(link.XDPGenericMode)
	}
	if err != nil {
		return nil, "", nil, refused(&XDPModeError{asked, err}, "attach xdp to %s in %s mode: %v", i.name, mode, err)
	}
	if err := l.Pin(pin); err != nil {
		return l, mode, fallback, fmt.Errorf("pin %s: %w", pin, err)
	}
	return l, mode, fallback, nil
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
