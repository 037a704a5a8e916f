// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"

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
	pinTCX = "link_tcx"

	oldPinXDP = "link_ingress"
	oldPinTCX = "link_egress"
)

// renameOldLinks gives the links of an older program their new names, so that the
// programs behind them are swapped in place.
func renameOldLinks(dir string) error {
	for from, to := range map[string]string{oldPinXDP: pinXDP, oldPinTCX: pinTCX} {
		if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("rename pinned link %s in %s: %w", from, dir, err)
		}
	}
	return nil
}

// pinName is the file name of a pinned map.
func pinName(mapName string) string {
	if mapName == mapBlockFilter {
		return datapathVarBlockFilter
	}
	return mapName
}

func pinDir(iface string) string { return filepath.Join(pinRoot, iface) }

// Interfaces returns the names of the interfaces that something is pinned for.
func Interfaces() ([]string, error) {
	entries, err := os.ReadDir(pinRoot)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, refused(err, "%s can't be read: %v (run as root)", pinRoot, err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}

// ensureBPFFS mounts the BPF file system where systemd would have, as bpftool and
// tc do, too.
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
		return refused(err, "mount the BPF file system at %s: %v (run as root with CAP_SYS_ADMIN, or mount it before)", mount, err)
	}
	return nil
}

// lockDir takes the lock that a daemon holds for its interface as long as it
// lives. The kernel lets go of it when the process dies, however it dies.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// daemonAlive reports whether a daemon holds the interface.
func daemonAlive(iface string) bool {
	f, err := lockDir(pinDir(iface))
	if err != nil {
		return errors.Is(err, unix.EWOULDBLOCK)
	}
	_ = f.Close()
	return false
}

// removeMapPins removes the pins of all maps and leaves those of links. What the maps
// hold goes on while programs use them.
func removeMapPins(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != pinXDP && e.Name() != pinTCX {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// removePins removes everything below the interface's folder, and the root when
// it was the last.
func removePins(iface string) error {
	dir := pinDir(iface)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	// Fails while other interfaces are attached, as it should.
	_ = os.Remove(pinRoot)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove pins of %s: %w", iface, err)
	}
	return nil
}
