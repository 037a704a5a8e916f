// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// legacyTables is how the kernel tells of the tables of iptables-legacy, of one version of IP:
// struct ipt_getinfo, ipt_get_entries and ipt_entry of linux/netfilter_ipv4/ip_tables.h, and
// their likes of ip6_tables.h.
type legacyTables struct {
	family        string // as nftables calls it
	names         string // the file of /proc that names the tables there are
	domain, level int

	out, outMask, inverted int // offsets in an entry: interface, its mask, flags of what is inverted
	target, next           int // ... where the offset of the target is, and of the next entry
	size                   int // of an entry without what follows it
}

var legacy = [...]legacyTables{
	{family: "ip", names: "ip_tables_names", domain: unix.AF_INET, level: unix.SOL_IP, out: 32, outMask: 64, inverted: 83, target: 88, next: 90, size: 112},
	{family: "ip6", names: "ip6_tables_names", domain: unix.AF_INET6, level: unix.SOL_IPV6, out: 80, outMask: 112, inverted: 132, target: 140, next: 142, size: 168},
}

const (
	getLegacyInfo    = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	getLegacyEntries = 65 // IPT_SO_GET_ENTRIES, IP6T_SO_GET_ENTRIES
	outInverted      = 2  // IPT_INV_VIA_OUT, IP6T_INV_VIA_OUT

	legacyName    = 32 // bytes of a table's name
	legacyInfo    = 84 // of struct ipt_getinfo, at the end of which is the entries' size
	legacyEntries = 40 // where the entries begin in struct ipt_get_entries
)

// findInLegacyTables returns the table of iptables-legacy that gives what leaves through an
// interface another source address, as nftables would name it. There is only one that may.
func findInLegacyTables(iface string) (table string, found bool) {
	const nat = "nat"
	for i := range legacy {
		l := &legacy[i]
		// To ask for a table that is not there would make it.
		names, err := os.ReadFile("/proc/thread-self/net/" + l.names)
		if err != nil || !slices.Contains(strings.Fields(string(names)), nat) {
			continue
		}
		entries, err := l.read(nat)
		if err == nil && l.changeSource(entries, iface) {
			return l.family + " " + nat, true
		}
	}
	return "", false
}

// read returns the entries of a table.
func (l *legacyTables) read(table string) ([]byte, error) {
	fd, err := unix.Socket(l.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	info := make([]byte, legacyInfo)
	copy(info[:legacyName-1], table)
	if err := getSockopt(fd, l.level, getLegacyInfo, info); err != nil {
		return nil, fmt.Errorf("size of table %s: %w", table, err)
	}
	size := binary.NativeEndian.Uint32(info[legacyInfo-4:])
	const most = 64 << 20
	if size > most {
		return nil, fmt.Errorf("table %s has %d bytes", table, size)
	}
	all := make([]byte, legacyEntries+int(size))
	copy(all[:legacyName-1], table)
	binary.NativeEndian.PutUint32(all[legacyName:], size)
	// It fails where the table has changed its size meanwhile.
	if err := getSockopt(fd, l.level, getLegacyEntries, all); err != nil {
		return nil, fmt.Errorf("table %s: %w", table, err)
	}
	return all[legacyEntries:], nil
}

func getSockopt(fd, level, name int, into []byte) error {
	length := uint32(len(into))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&into[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// changeSource reports whether an entry of a table gives another source address to what leaves
// through an interface. A condition that is not about the interface may hold.
func (l *legacyTables) changeSource(entries []byte, iface string) bool {
	for len(entries) >= l.size {
		target, next := int(binary.NativeEndian.Uint16(entries[l.target:])), int(binary.NativeEndian.Uint16(entries[l.next:]))
		const named = 2 + 29 // size and name of a target
		if next < l.size || next > len(entries) || target < l.size || target+named > next {
			return false
		}
		name, _, _ := bytes.Cut(entries[target+2:target+named], []byte{0})
		if (string(name) == "MASQUERADE" || string(name) == "SNAT") && l.isOut(entries, iface) {
			return true
		}
		entries = entries[next:]
	}
	return false
}

// isOut reports whether an entry is for what leaves through the interface.
func (l *legacyTables) isOut(entry []byte, iface string) bool {
	var name [unix.IFNAMSIZ]byte
	copy(name[:], iface)
	same := true
	for i := range name {
		same = same && (name[i]^entry[l.out+i])&entry[l.outMask+i] == 0
	}
	return same == (entry[l.inverted]&outInverted == 0)
}
