// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// XDPMode says where in the receive path the ingress program runs.
type XDPMode string

// XDP modes. Auto tries native and falls back to generic.
const (
	XDPAuto    XDPMode = "auto"
	XDPNative  XDPMode = "native"  // in the driver, before a socket buffer exists
	XDPGeneric XDPMode = "generic" // in the stack, on any driver, slower
)

// ParseXDPMode turns a flag's word into an XDPMode.
func ParseXDPMode(s string) (XDPMode, error) {
	switch m := XDPMode(s); m {
	case XDPAuto, XDPNative, XDPGeneric:
		return m, nil
	}
	return "", fmt.Errorf("unknown xdp mode %q: use auto, native or generic", s)
}

// Options are what an operator can ask of a data path.
type Options struct {
	// Interface is the name of the network interface.
	Interface string
	// XDPMode defaults to XDPAuto. (optional)
	XDPMode XDPMode
	// Idle is how long a collecting flow may be silent before what it has is
	// handed over; default 2 s. (optional)
	Idle time.Duration
	// UDPIdle is how long a UDP flow may be silent before its next datagram
	// starts a new flow; default 60 s. (optional)
	UDPIdle time.Duration
	// MidStream captures TCP flows that are seen without their SYN, from their
	// next payload byte on and with its sender as the initiator. By default they
	// are left alone, as what a model knows is how flows begin. (optional)
	MidStream bool
	// OneHook says that both directions of the traffic come in through the interface, as at
	// a mirror port, or leave through it, as at a one-armed router: by the hook, the two
	// sides can't be told apart, so a connection is proven by its numbers alone, and
	// whoever can send in both directions can forge one. (optional)
	OneHook bool
	// OneWay captures TCP connections of which one direction only is seen, as with
	// asymmetric routing. Their samples say so, since whoever can send in that direction
	// can forge them. By default they are counted and left alone. (optional)
	OneWay bool
	// Monitor says that no flow may be dropped: blocks that an earlier daemon
	// left are removed before the programs run.
	Monitor bool
	// Sizes of the tables; 0 is the default, or what is pinned when it is adopted.
	// Out of bounds they are refused; Handshakes and RingBytes are rounded up to
	// powers of two.
	// Other sizes than what is pinned has replace it whole. (optional)
	Sizes Sizes

	// What `earlydrop status` shows. (optional)
	Version, Model, Policy string

	// forceClsact attaches the way that kernels before 6.6 need; for tests.
	forceClsact bool
}

// Info tells what Attach did.
type Info struct {
	XDPMode       XDPMode // native or generic
	XDPFallback   error   // why native mode was not possible, nil if it was or was not asked for
	Egress        string  // tcx or clsact
	Adopted       bool    // maps and links of an earlier process were taken over
	Replaced      string  // why what was pinned could not be adopted and was replaced, else empty
	BlocksAdopted int     // blocks with time left that go on
	BlocksRemoved int     // blocks removed because of Options.Monitor
	Bypasses      Bypasses
	HiddenVLANs   bool   // the driver takes VLAN tags out before the ingress program sees the frame
	Sizes         Sizes  // of the tables, none 0
	Memory        uint64 // bytes of kernel memory that the tables take, an estimate
	PinDir        string
}

// A DataPath is the attached data path of one interface. Its methods are safe for
// concurrent use. One process at a time can hold it.
type DataPath struct {
	*Tables
	Info Info

	iface   string
	coll    *ebpf.Collection
	ingress link.Link
	egress  egressLink
	lock    *os.File
	sweepIn []byte
	about   datapathAttached
}

// Attach loads the programs and attaches them to the interface, or adopts what an
// earlier process left there. It returns a [*RefusedError], and has changed
// nothing, when the interface, the rights or the kernel do not allow it.
func Attach(opts Options) (_ *DataPath, err error) {
	if opts.XDPMode == "" {
		opts.XDPMode = XDPAuto
	}
	if opts.Idle == 0 {
		opts.Idle = 2 * time.Second
	}
	if opts.UDPIdle == 0 {
		opts.UDPIdle = 60 * time.Second
	}
	if err := opts.Sizes.check(); err != nil {
		return nil, err
	}
	ifc, err := findInterface(opts.Interface)
	if err != nil {
		return nil, err
	}
	if err := Preflight(); err != nil {
		return nil, err
	}
	if err := ensureBPFFS(); err != nil {
		return nil, err
	}
	dir := pinDir(opts.Interface)
	if err := ifc.refuseForeignXDP(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, refused(err, "create %s: %v", dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, refused(err, "already attached to %s by a running process%s", opts.Interface, pidHint(opts.Interface))
		}
		return nil, err
	}

	d := &DataPath{iface: opts.Interface, lock: lock, sweepIn: make([]byte, 64)}
	d.Info.PinDir = dir
	d.Info.HiddenVLANs = ifc.hidesVLANs()
	d.Info.Bypasses = ifc.bypasses()
	defer func() {
		if err != nil {
			err = errors.Join(err, d.abandon(ifc))
		}
	}()

	spec, err := configuredSpec(opts, ifc)
	if err != nil {
		return nil, err
	}
	pinned, why := adoptable(spec, opts.Sizes, dir)
	if why != "" {
		d.Info.Replaced = why
		if err := detachPinned(ifc); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("create %s: %w", dir, err)
		}
		// The lock's folder is a new one.
		_ = d.lock.Close()
		if d.lock, err = lockDir(dir); err != nil {
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
	}
	d.Info.Adopted = pinned != nil
	if err := setSizes(spec); err != nil { // only now: an adopted set has its own
		closeMaps(pinned)
		return nil, err
	}
	d.Info.Sizes, d.Info.Memory = sizesOf(spec), tablesMemory(spec)
	d.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: pinned})
	closeMaps(pinned) // the collection has its own descriptors
	if err != nil {
		return nil, loadError(err)
	}
	if d.Tables, err = newTables(opts.Interface, d.coll.Maps); err != nil {
		return nil, err
	}
	if d.Info.Adopted {
		if err := d.adoptBlocks(opts.Monitor); err != nil {
			return nil, err
		}
	} else if err := d.prepareMaps(dir); err != nil {
		return nil, err
	}
	// Maps first: from the first packet on, everything must be in place.
	if err := d.attachIngress(ifc, opts, filepath.Join(dir, pinXDP)); err != nil {
		return nil, err
	}
	if err := d.attachEgress(ifc, opts, filepath.Join(dir, pinTCX)); err != nil {
		return nil, err
	}
	if err := d.describe(opts, spec); err != nil {
		return nil, err
	}
	return d, nil
}

func pidHint(iface string) string {
	t, err := Open(iface)
	if err != nil {
		return ""
	}
	defer t.Close()
	a, err := t.Attachment()
	if err != nil || a.PID == 0 {
		return ""
	}
	return fmt.Sprintf(" (pid %d): stop it first", a.PID)
}

// configuredSpec returns the objects with the operator's constants in.
func configuredSpec(opts Options, ifc *iface) (*ebpf.CollectionSpec, error) {
	spec, err := loadDatapath()
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]any{
		datapathVarCfgIdleNs:     uint64(opts.Idle),
		datapathVarCfgUdpIdleNs:  uint64(opts.UDPIdle),
		datapathVarCfgRawIp:      ifc.rawIP(),
		datapathVarCfgHashSecret: newSecret(),
		datapathVarCfgMidStream:  opts.MidStream,
		datapathVarCfgOneHook:    opts.OneHook,
		datapathVarCfgOneWay:     opts.OneWay,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	opts.Sizes.apply(spec)
	// Creating the map adds the flag by itself; comparing with a pinned one
	// does not.
	spec.Maps[mapBlockFilter].Flags |= unix.BPF_F_MMAPABLE
	return spec, nil
}

// outlives reports whether a map outlives the process: all but the one that holds a
// program's constants.
func outlives(name string) bool {
	return name == mapBlockFilter || name[0] != '.'
}

// adoptable opens the pinned maps if a complete set with this layout, and with the
// sizes that were asked for, is there; spec then has the sizes of that set.
// Otherwise why says what is wrong with the set; it is empty if there is none.
func adoptable(spec *ebpf.CollectionSpec, sizes Sizes, dir string) (_ map[string]*ebpf.Map, why string) {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return nil, ""
	}
	maps := make(map[string]*ebpf.Map)
	asked := spec
	spec = spec.Copy() // what is not adopted must not leave its sizes behind
	defer func() {
		if why != "" {
			closeMaps(maps)
			return
		}
		for name, m := range spec.Maps {
			asked.Maps[name].MaxEntries = m.MaxEntries
		}
	}()
	for name := range spec.Maps {
		if !outlives(name) {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, pinName(name)), nil)
		if err != nil {
			return nil, fmt.Sprintf("pinned map %s: %v", name, err)
		}
		maps[name] = m
		sizes.follow(spec, name, m)
		if err := spec.Maps[name].Compatible(m); err != nil {
			return nil, fmt.Sprintf("pinned map %s has another layout: %v", name, err)
		}
	}
	var a datapathAttached
	if err := maps[datapathMapAttachment].Lookup(uint32(0), &a); err != nil {
		return nil, fmt.Sprintf("pinned map attachment: %v", err)
	}
	if a.LayoutVersion != layoutVersion {
		return nil, fmt.Sprintf("pinned maps have layout %d, this program has %d", a.LayoutVersion, layoutVersion)
	}
	// The handshakes that are under way stay where they are found.
	if err := asked.Variables[datapathVarCfgHashSecret].Set(a.HashSecret); err != nil {
		return nil, fmt.Sprintf("set %s: %v", datapathVarCfgHashSecret, err)
	}
	return maps, ""
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		_ = m.Close()
	}
}

// layoutVersion is LAYOUT_VERSION of bpf/earlydrop.h.
const layoutVersion = 3

// blockLayout is BLOCK_LAYOUT of bpf/earlydrop.h.
const blockLayout = 3

// hashSecret is the type of cfg_hash_secret.
type hashSecret = [12]uint32

// newSecret draws the secret of the hash by which tables are searched.
func newSecret() (s hashSecret) {
	for i := range s {
		s[i] = rand.Uint32() // of a ChaCha8 that the system's randomness has seeded
	}
	return s
}

func bit(set bool) uint8 {
	if set {
		return 1
	}
	return 0
}

func (d *DataPath) adoptBlocks(monitor bool) error {
	if monitor {
		n, err := d.UnblockAll()
		d.Info.BlocksRemoved = n
		return err
	}
	blocks, err := d.Blocked()
	d.Info.BlocksAdopted = len(blocks)
	return err
}

func (d *DataPath) prepareMaps(dir string) error {
	if err := fillSlots(d.coll.Maps); err != nil {
		return err
	}
	for name, m := range d.coll.Maps {
		if !outlives(name) {
			continue
		}
		if err := m.Pin(filepath.Join(dir, pinName(name))); err != nil {
			return fmt.Errorf("pin map %s below %s: %w", name, dir, err)
		}
	}
	return nil
}

func (d *DataPath) describe(opts Options, spec *ebpf.CollectionSpec) error {
	mode := "enforce"
	if opts.Monitor {
		mode = "monitor"
	}
	a := datapathAttached{
		LayoutVersion: layoutVersion,
		Pid:           uint32(os.Getpid()),
		AttachedNs:    uint64(time.Now().UnixNano()),
		BlockLayout:   blockLayout,
		OneHook:       bit(opts.OneHook),
		OneWay:        bit(opts.OneWay),
	}
	if err := spec.Variables[datapathVarCfgHashSecret].Get(&a.HashSecret); err != nil {
		return fmt.Errorf("read %s: %w", datapathVarCfgHashSecret, err)
	}
	fixed(a.XdpMode[:], string(d.Info.XDPMode))
	fixed(a.Egress[:], d.Info.Egress)
	fixed(a.Mode[:], mode)
	fixed(a.Version[:], opts.Version)
	fixed(a.Model[:], opts.Model)
	fixed(a.Policy[:], opts.Policy)
	d.about = a
	return d.Report(DaemonCounters{})
}

// Report shows the daemon's counters to `earlydrop status`. It is not safe for
// concurrent use with itself.
func (d *DataPath) Report(c DaemonCounters) error {
	a := &d.about
	a.Classified, a.ToDrop, a.Blocked = c.Classified, c.ToDrop, c.Blocked
	a.QueueFull, a.NotClassified, a.NotBlocked = c.QueueFull, c.NotClassified, c.NotBlocked
	if err := d.att.Update(uint32(0), a, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write map attachment: %w", err)
	}
	return nil
}

// Sweep hands over the captures of flows that have been idle and returns how many
// there were. Call it a few times per second.
func (d *DataPath) Sweep() (int, error) {
	n, err := d.coll.Programs[datapathProgEdSweep].Run(&ebpf.RunOptions{Data: d.sweepIn})
	if err != nil {
		return 0, fmt.Errorf("run the idle sweep: %w", err)
	}
	return int(n), nil
}

// Detach stops the data path and removes programs, maps and pins.
func (d *DataPath) Detach() error {
	ifc := &iface{name: d.iface}
	if found, err := findInterface(d.iface); err == nil {
		ifc = found
	}
	return errors.Join(d.closeLinks(), detachPinned(ifc), d.close())
}

// Release closes this process's handles and leaves the data path running.
func (d *DataPath) Release() error { return errors.Join(d.closeLinks(), d.close()) }

func (d *DataPath) closeLinks() error {
	var errs []error
	if d.ingress != nil {
		errs = append(errs, d.ingress.Close())
	}
	if d.egress != nil {
		errs = append(errs, d.egress.Close())
	}
	return errors.Join(errs...)
}

func (d *DataPath) close() error {
	var err error
	if d.Tables != nil {
		err = d.filter.close() // its maps are the collection's
	}
	if d.coll != nil {
		d.coll.Close()
	}
	return errors.Join(err, d.lock.Close())
}

// abandon undoes a failed Attach. What was adopted keeps running.
func (d *DataPath) abandon(ifc *iface) error {
	if d.Info.Adopted {
		return d.Release()
	}
	return errors.Join(d.closeLinks(), detachPinned(ifc), d.close())
}

// Detach removes what any process left attached to the interface. It refuses
// while a daemon runs, unless stop is set: then it asks the daemon to end
// (SIGTERM) and waits for it at most ten seconds. An interface that is gone takes
// its programs along; the pins are removed all the same.
func Detach(name string, stop bool) error {
	dir := pinDir(name)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrPermission) {
		return refused(err, "%s can't be read: run as root", dir)
	} else if err != nil {
		return fmt.Errorf("%w to %s (nothing at %s)", ErrNotAttached, name, dir)
	}
	if err := requireCapabilities(); err != nil {
		return err
	}
	lock, err := lockDir(dir)
	if errors.Is(err, unix.EWOULDBLOCK) {
		if !stop {
			return refused(err, "a running process holds %s%s", name, pidHint(name))
		}
		if lock, err = stopDaemon(name); err != nil {
			return err
		}
		if lock == nil {
			return nil // it detached by itself
		}
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	ifc := &iface{name: name}
	if found, err := findInterface(name); err == nil {
		ifc = found
	}
	return detachPinned(ifc)
}

// stopDaemon ends the process that holds the interface and takes its lock. The
// lock is nil when the daemon removed everything as it ended.
func stopDaemon(name string) (*os.File, error) {
	t, err := Open(name)
	if err != nil {
		return nil, err
	}
	a, err := t.Attachment()
	_ = t.Close()
	if err != nil {
		return nil, err
	}
	if err := unix.Kill(a.PID, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("stop the daemon of %s, pid %d: %w", name, a.PID, err)
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		lock, err := lockDir(pinDir(name))
		switch {
		case err == nil:
			return lock, nil
		case errors.Is(err, os.ErrNotExist):
			return nil, nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, err
		}
	}
	return nil, fmt.Errorf("the daemon of %s, pid %d, did not end within 10 s: stop it by hand", name, a.PID)
}

// detachPinned removes the pinned links, a clsact filter, and the pins.
func detachPinned(ifc *iface) error {
	dir := pinDir(ifc.name)
	var errs []error
	for _, name := range []string{pinXDP, pinTCX} {
		l, err := link.LoadPinnedLink(filepath.Join(dir, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("open pinned %s: %w", name, err))
			continue
		}
		// Unpinned and closed, the last reference goes and the program with it.
		errs = append(errs, l.Unpin(), l.Close())
	}
	if ifc.link != nil {
		errs = append(errs, removeClsact(ifc))
	}
	errs = append(errs, removePins(ifc.name))
	return errors.Join(errs...)
}
