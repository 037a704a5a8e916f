// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const bpffsMount = "/sys/fs/bpf"

// pinRoot is where everything is pinned. Tests set another bpffs.
var pinRoot = bpffsMount + "/earlydrop"

// Names of the pinned links, beside the maps, which go by their own names. A program from
// before layout 3 looks for them under their old names: it finds none, takes what is
// attached for somebody else's, and leaves it.
const (
	pinXDP = "link_xdp"
	pinTCX = "link_tcx" // egress
	// pinTCXIngress is the other hook on ingress; pinClsact is the program of that one where it
	// is a clsact filter, which has no link.
	pinTCXIngress = "link_tcx_ingress"
	pinClsact     = "clsact_ingress"

	oldPinXDP = "link_ingress"
	oldPinTCX = "link_egress"
)

// The names that each link may be pinned under.
var (
	pinsXDP        = []string{pinXDP, oldPinXDP}
	pinsTCXIngress = []string{pinTCXIngress}
	pinsEgress     = []string{pinTCX, oldPinTCX}

	linkPins = [][]string{pinsXDP, pinsTCXIngress, pinsEgress}
)

// loadPinnedLink opens a link of ours that is pinned under one of some names. The error
// wraps [os.ErrNotExist] if there is none, and errForeignPin if it is not ours.
func loadPinnedLink(dir string, names []string) (l link.Link, err error) {
	for _, name := range names {
		if l, err = openPin(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return l, err
}

// renameOldLinks gives the links of an older program their new names, so that the
// programs behind them are swapped in place.
func renameOldLinks(folder *os.File) error {
	for _, names := range [][]string{pinsXDP, pinsEgress} {
		err := unix.Renameat(int(folder.Fd()), names[1], int(folder.Fd()), names[0])
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("rename pinned %s: %w", names[1], err)
		}
	}
	return nil
}

// formerPins are what earlier versions pinned under these names.
var formerPins = []string{"scratch", oldPinXDP, oldPinTCX}

// ownPins are the names of everything that earlydrop pins or once pinned. Nothing
// else is ever removed.
var ownPins = func() []string {
	names := append([]string{pinXDP, pinTCXIngress, pinClsact, pinTCX, pinName(mapBlockFilter)}, formerPins...)
	for f := range reflect.TypeFor[datapathMapSpecs]().Fields() {
		names = append(names, pinName(f.Tag.Get("ebpf")))
	}
	return names
}()

// pinName is the file name of a pinned map.
func pinName(mapName string) string {
	if mapName == mapBlockFilter {
		return datapathVarBlockFilter
	}
	return mapName
}

// pinDir is the folder of an interface's pins.
func pinDir(iface string) string { return filepath.Join(pinRoot, folderName(iface)) }

// ensureBPFFS mounts the BPF file system where systemd would have, as bpftool and
// tc do.
func ensureBPFFS() error {
	var st unix.Statfs_t
	mount := filepath.Dir(pinRoot)
	if err := unix.Statfs(mount, &st); err != nil {
		return refused(err, "%s: %v (is sysfs mounted?)", mount, err)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", mount, "bpf", 0, "mode=0700"); err != nil {
		return refused(fmt.Errorf("%w: %w", ErrNoBPFFS, err), "mount the BPF file system at %s: %v", mount, err)
	}
	return nil
}

// MountPins mounts the BPF file system where pins are, if it is not mounted, as Attach does:
// for a process that gives up the right to (CAP_SYS_ADMIN) before it attaches.
func MountPins() error { return ensureBPFFS() }

// openFolder opens a folder of pins, but no symbolic link to one.
func openFolder(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// inFolder is the path of a pin in an open folder, whatever the folder is called by
// now and whatever is mounted over it.
func inFolder(folder *os.File, pin string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), pin)
}

// isAt reports whether the open folder is the one that dir leads to.
func isAt(folder *os.File, dir string) bool {
	is, err := folder.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(dir)
	return err == nil && os.SameFile(is, there)
}

// folderPath returns where below pinRoot an open folder is; empty when it is not
// there any more. Other processes rename it with its interface.
func folderPath(folder *os.File) string {
	entries, _ := os.ReadDir(pinRoot)
	for _, e := range entries {
		if dir := filepath.Join(pinRoot, e.Name()); isAt(folder, dir) {
			return dir
		}
	}
	return ""
}

// renameFolder calls a folder by its interface's present name, and returns where it is
// then: where it was, if another folder has that name.
func renameFolder(dir, iface string) string {
	if called, _ := interfaceOf(filepath.Base(dir)); called == iface {
		return dir
	}
	for _, to := range pinDirs(iface) {
		if unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE) == nil {
			return to
		}
	}
	return dir
}

// hasOwnPins reports whether one of our pins is in the folder.
func hasOwnPins(dir string) bool {
	return slices.ContainsFunc(ownPins, func(pin string) bool {
		_, err := os.Lstat(filepath.Join(dir, pin))
		return err == nil
	})
}

// errForeignPin means that something else has the name of one of our pins.
var errForeignPin = errors.New("not pinned by earlydrop")

// isPin returns an error that wraps errForeignPin for a folder, and for a symbolic link,
// which may lead to what others have pinned.
func isPin(pin string) error {
	info, err := os.Lstat(pin)
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", pin, errForeignPin)
	}
	return err
}

// loadPinnedMap opens a map that we pinned.
func loadPinnedMap(pin string) (*ebpf.Map, error) {
	if err := isPin(pin); err != nil {
		return nil, err
	}
	return ebpf.LoadPinnedMap(pin, nil)
}

// openPin opens a link that we pinned. The error wraps [os.ErrNotExist] where
// there is none, and errForeignPin where its name leads to something else, as to the link
// of another program: whoever may write to the folder could have us detach that one. What
// this process has no right to read counts as ours.
func openPin(pin string) (link.Link, error) {
	if err := isPin(pin); err != nil {
		return nil, err
	}
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		// It is no link, unless the system says otherwise.
		if !errors.As(err, new(syscall.Errno)) {
			err = fmt.Errorf("%w: %w", errForeignPin, err)
		}
		return nil, err
	}
	about, err := l.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read pinned link %s: %w", pin, err), l.Close())
	}
	own := map[string]string{
		pinXDP: datapathProgEdIngress, oldPinXDP: datapathProgEdIngress, pinTCXIngress: datapathProgEdTcxIngress,
		pinTCX: datapathProgEdEgress, oldPinTCX: datapathProgEdEgress,
	}[filepath.Base(pin)]
	if name := programName(about.Program); name != "" && name != own {
		return nil, errors.Join(fmt.Errorf("%s: %w: a link of program %s", pin, errForeignPin, name), l.Close())
	}
	return l, nil
}

// removeDataPath detaches the programs whose links are pinned in the folder, removes
// the filters of an interface, which may be nil, and unpins what is ours.
func removeDataPath(folder *os.File, l netlink.Link) error {
	return errors.Join(detachPrograms(folder, l), unpin(folder))
}

// detachPrograms detaches the programs of the pinned links, and removes the filters of
// an interface, which may be nil.
func detachPrograms(folder *os.File, l netlink.Link) error {
	var errs []error
	for _, names := range linkPins {
		pinned, err := loadPinnedLink(inFolder(folder, ""), names)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, errForeignPin) {
			continue // the name is unpinned below, whatever it leads to stays
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("open pinned %s: %w", names[0], err))
			continue
		}
		// By force: it may be pinned somewhere else as well.
		errs = append(errs, pinned.Detach(), pinned.Close())
	}
	if l != nil {
		errs = append(errs, removeClsact(&iface{name: l.Attrs().Name, link: l}, tcIngress, tcEgress))
	}
	return errors.Join(errs...)
}

// unpin removes our pins from the folder and nothing else.
func unpin(folder *os.File) error { return unpinExcept(folder, nil) }

// unpinMaps removes the pins of all maps and leaves those of links. What the maps hold
// goes on while programs use them.
func unpinMaps(folder *os.File) error {
	return unpinExcept(folder, append(slices.Concat(linkPins...), pinClsact))
}

func unpinExcept(folder *os.File, keep []string) error {
	var errs []error
	for _, pin := range ownPins {
		if slices.Contains(keep, pin) {
			continue
		}
		errs = append(errs, removePin(folder, pin))
	}
	return errors.Join(errs...)
}

// removePin removes what has the name of a pin, if there is something.
func removePin(folder *os.File, pin string) error {
	err := unix.Unlinkat(int(folder.Fd()), pin, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(int(folder.Fd()), pin, unix.AT_REMOVEDIR)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove pin %s: %w", pin, err)
	}
	return nil
}

// removeFolder removes a folder without our pins, and pinRoot when it was the last. What
// others have put there stays, and is an error.
func removeFolder(folder *os.File) error {
	dir := folderPath(folder)
	if dir == "" {
		return nil
	}
	if err := os.Remove(dir); errors.Is(err, unix.ENOTEMPTY) {
		var left []string
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			left = append(left, e.Name())
		}
		return fmt.Errorf("%s stays: not made by earlydrop: %s", dir, strings.Join(left, ", "))
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// A root that was prepared for somebody stays: it has another owner or other rights
	// than one that we make.
	var st unix.Stat_t
	if unix.Lstat(pinRoot, &st) == nil && st.Mode&0o7777 == rootMode && int(st.Uid) == os.Geteuid() && int(st.Gid) == os.Getegid() {
		// Fails while other interfaces are attached, as it should.
		_ = os.Remove(pinRoot)
	}
	return nil
}

// rootMode are the rights of the folders that we make.
const rootMode = 0o700

// PrivatePins reports whether the BPF file system is another one than those that the
// first process of this PID namespace sees, or none: then this mount namespace is one of
// its own, as `ip netns exec` makes it for each call, and what is pinned ends with it. It
// is false in a container, whose first process is in the container, and where that can't
// be told.
func PrivatePins() bool { return privatePins("/proc/self/mountinfo") }

func privatePins(mountinfo string) bool {
	first, errFirst := os.ReadFile("/proc/1/mountinfo")
	own, errOwn := os.ReadFile(mountinfo)
	var st unix.Stat_t
	if errFirst != nil || errOwn != nil || unix.Stat(filepath.Dir(pinRoot), &st) != nil {
		return false
	}
	return !sharesMount(string(own), string(first)) &&
		!slices.Contains(bpffsDevices(string(first)), fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
}

// sharesMount reports whether two mountinfo files of /proc are of one mount namespace.
// Each mount is in one namespace only, and has a number of its own.
func sharesMount(a, b string) bool {
	numbers := make(map[string]bool)
	for line := range strings.Lines(a) {
		number, _, _ := strings.Cut(line, " ")
		numbers[number] = true
	}
	for line := range strings.Lines(b) {
		if number, _, _ := strings.Cut(line, " "); numbers[number] {
			return true
		}
	}
	return false
}

// bpffsDevices returns the device numbers, such as 0:35, of the BPF file systems in a
// mountinfo file.
func bpffsDevices(mountinfo string) []string {
	var devices []string
	for line := range strings.Lines(mountinfo) {
		// 63 29 0:35 / /sys/fs/bpf rw,relatime shared:9 - bpf bpf rw,mode=700
		fields := strings.Fields(line)
		if dash := slices.Index(fields, "-"); dash > 2 && dash+1 < len(fields) && fields[dash+1] == "bpf" {
			devices = append(devices, fields[2])
		}
	}
	return devices
}
