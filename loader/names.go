// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// checkName refuses what the kernel would not accept as an interface's name
// (dev_valid_name in net/core/dev.c): the name becomes part of a path.
func checkName(name string) error {
	ok := name != "" && len(name) < unix.IFNAMSIZ && name != "." && name != ".."
	for i := 0; ok && i < len(name); i++ {
		switch name[i] {
		// White space is what isspace() of the kernel says, which is of Latin-1:
		// 0xa0, its no-break space, is in the middle of some UTF-8 characters.
		case 0, '/', ':', ' ', '\t', '\n', '\v', '\f', '\r', 0xa0:
			ok = false
		}
	}
	if !ok {
		return refused(nil, "%q can't be the name of an interface: 1 to 15 bytes, not . or .., without /, : and white space", name)
	}
	return nil
}

// interfaceNamed returns the interface of that name, nil if there is none in this network
// namespace. It refuses what can't be a name, and further names (altnames): each interface
// goes by one.
func interfaceNamed(name string) (netlink.Link, error) {
	invalid := checkName(name)
	l, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	switch {
	case err == nil && l.Attrs().Name != name:
		return nil, refused(nil, "%q is another name of interface %s: use that one", name, l.Attrs().Name)
	case invalid != nil:
		return nil, invalid
	case errors.As(err, &missing):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look up interface %s: %w", name, err)
	}
	return l, nil
}

// The BPF file system keeps dots in names for itself, and VLAN interfaces are called
// eth0.100. The kernel gives no interface a name with a percent sign.
var (
	toFolder   = strings.NewReplacer(".", "%2e", "%", "%25")
	fromFolder = strings.NewReplacer("%2e", ".", "%25", "%")
)

// netMark is between the name of an interface and the number of its network namespace
// in the name of a folder, where an interface of another one has the plain folder.
const netMark = "%net"

// folderName is what the folder of an interface's pins is called. Different names
// have different folders.
func folderName(iface string) string { return toFolder.Replace(iface) }

// interfaceOf undoes folderName. It reports false for what no folder of ours is called.
func interfaceOf(folder string) (string, bool) {
	plain, net, marked := strings.Cut(folder, netMark)
	if marked {
		if n, err := strconv.ParseUint(net, 10, 64); err != nil || net != strconv.FormatUint(n, 10) {
			return "", false
		}
	}
	name := fromFolder.Replace(plain)
	return name, checkName(name) == nil && folderName(name) == plain
}

// pinDirs are the folders that the pins of an interface of this network namespace may be
// in, the one to be preferred first.
func pinDirs(iface string) []string {
	dirs := []string{pinDir(iface)}
	var st unix.Stat_t
	if unix.Stat("/proc/thread-self/ns/net", &st) == nil {
		dirs = append(dirs, dirs[0]+netMark+strconv.FormatUint(st.Ino, 10))
	}
	return dirs
}
