// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	ethtoolGetFlags = 0x25   // ETHTOOL_GFLAGS in linux/ethtool.h
	flagRxVLAN      = 1 << 8 // ETH_FLAG_RXVLAN
)

// stripsVLANs reports whether the driver takes VLAN tags out of received frames
// (ethtool's rx-vlan-offload). An interface that can't say does not.
func stripsVLANs(name string) bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{cmd: ethtoolGetFlags}
	var ifreq struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the kernel's union is larger than a pointer
	}
	copy(ifreq.name[:unix.IFNAMSIZ-1], name)
	ifreq.data = unsafe.Pointer(&value)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq)))
	return errno == 0 && value.data&flagRxVLAN != 0
}
