// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ethtool commands and flags of <linux/ethtool.h> that x/sys lacks.
const (
	ethtoolSetRxCsum = 0x15
	ethtoolSetTxCsum = 0x17
	ethtoolSetTSO    = 0x1f
	ethtoolGetFlags  = 0x25
	ethtoolSetFlags  = 0x26
	ethtoolSetGSO    = 0x24
	ethtoolSetGRO    = 0x2c

	ethFlagTxVLAN = 1 << 7
	ethFlagRxVLAN = 1 << 8
)

// setOffloads runs inside the device's namespace. Tag insertion by the device
// is turned off on a VLAN leg, so that the tag is in the frame's bytes.
func setOffloads(dev string, cfg LinkConfig, vlan bool) error {
	if vlan {
		flags, err := ethtoolValue(dev, ethtoolGetFlags, 0)
		if err != nil {
			return fmt.Errorf("read offload flags of %s: %w", dev, err)
		}
		if want := flags &^ (ethFlagTxVLAN | ethFlagRxVLAN); want != flags {
			if _, err := ethtoolValue(dev, ethtoolSetFlags, want); err != nil {
				return fmt.Errorf("turn VLAN offload of %s off: %w", dev, err)
			}
		}
	}
	if !cfg.NoOffload || cfg.Relay.enabled() {
		return nil
	}
	for _, cmd := range []uint32{ethtoolSetTSO, ethtoolSetGSO, ethtoolSetGRO, ethtoolSetTxCsum, ethtoolSetRxCsum} {
		if _, err := ethtoolValue(dev, cmd, 0); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("turn offload %#x of %s off: %w", cmd, dev, err)
		}
	}
	return nil
}

// ethtoolValue is the SIOCETHTOOL ioctl with a struct ethtool_value.
func ethtoolValue(dev string, cmd, value uint32) (uint32, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	arg := struct{ cmd, data uint32 }{cmd, value}
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // struct ifreq is longer than the pointer
	}
	copy(req.name[:unix.IFNAMSIZ-1], dev)
	req.data = unsafe.Pointer(&arg)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return 0, errno
	}
	return arg.data, nil
}

// Offsets in struct __sk_buff and verdicts at TCX, from <linux/bpf.h>.
const (
	skbVLANPresent = 20
	skbVLANTCI     = 24

	tcxNext = -1
	tcxDrop = 2
)

// tagFrames makes a device speak 802.1Q: it tags what the stack sends, takes
// the tag off what arrives, and drops arrivals without tag or with another id.
// The chain goes on behind both programs, so one attached later at egress
// sees the tag; at ingress XDP is before them and sees it in the frame.
func tagFrames(n *Namespace, ifindex int, vlan uint16) (stop func() error, err error) {
	const proto = 0x0081 // 0x8100 in network byte order, on a little-endian host
	push := asm.Instructions{
		asm.Mov.Imm(asm.R2, proto),
		asm.Mov.Imm(asm.R3, int32(vlan)),
		asm.FnSkbVlanPush.Call(),
		asm.JNE.Imm(asm.R0, 0, "drop"),
		asm.Mov.Imm(asm.R0, tcxNext),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcxDrop).WithSymbol("drop"),
		asm.Return(),
	}
	pop := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, skbVLANPresent, asm.Word),
		asm.JEq.Imm(asm.R2, 0, "drop"),
		asm.LoadMem(asm.R2, asm.R1, skbVLANTCI, asm.Word),
		asm.And.Imm(asm.R2, 0x0fff),
		asm.JNE.Imm(asm.R2, int32(vlan), "drop"),
		asm.FnSkbVlanPop.Call(),
		asm.JNE.Imm(asm.R0, 0, "drop"),
		asm.Mov.Imm(asm.R0, tcxNext),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcxDrop).WithSymbol("drop"),
		asm.Return(),
	}
	var links []link.Link
	stop = func() error {
		var errs []error
		for _, l := range links {
			errs = append(errs, l.Close())
		}
		return errors.Join(errs...)
	}
	for _, p := range []struct {
		name string
		at   ebpf.AttachType
		code asm.Instructions
	}{{"lab_vlan_push", ebpf.AttachTCXEgress, push}, {"lab_vlan_pop", ebpf.AttachTCXIngress, pop}} {
		err := n.Do(func() error {
			prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
				Name: p.name, Type: ebpf.SchedCLS, AttachType: p.at, Instructions: p.code, License: "Apache-2.0",
			})
			if err != nil {
				return fmt.Errorf("load %s: %w", p.name, err)
			}
			defer prog.Close()
			lk, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: p.at})
			if err != nil {
				return fmt.Errorf("attach %s (needs Linux 6.6): %w", p.name, err)
			}
			links = append(links, lk)
			return nil
		})
		if err != nil {
			return nil, errors.Join(err, stop())
		}
	}
	return stop, nil
}
