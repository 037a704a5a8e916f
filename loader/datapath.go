// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
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

// ParseXDPMode turns a word into an XDPMode.
func ParseXDPMode(s string) (XDPMode, error) {
	switch m := XDPMode(s); m {
	case XDPAuto, XDPNative, XDPGeneric:
		return m, nil
	}
	return "", fmt.Errorf("unknown xdp mode %q: use auto, native or generic", s)
}

// Defaults of Options.
const (
	// DefaultUDPIdle is above the pauses of QUIC, IPsec NAT-T and RTP.
	DefaultUDPIdle = 10 * time.Minute
	// DefaultUDPWarmup is above what most flows are silent for that are in use.
	DefaultUDPWarmup = 60 * time.Second
)

// Options are what an operator can ask of a data path.
type Options struct {
	// Interface is the name of the network interface.
	Interface string
	// XDPMode defaults to XDPAuto. (optional)
	XDPMode XDPMode
	// Idle is how long a collecting flow may be silent before what it has is
	// handed over; default 2 s. (optional)
	Idle time.Duration
	// UDPIdle is how long a UDP flow that is decided may be silent before it is
	// captured again, and marked as resumed; default [DefaultUDPIdle]. (optional)
	UDPIdle time.Duration
	// UDPWarmup is how long after the first attach a UDP flow that is seen for the
	// first time counts as resumed, since it may have been open before. An adoption
	// does not start it again; what replaces a set of pins does, as it knows no flow.
	// Default [DefaultUDPWarmup]; negative: none. (optional)
	UDPWarmup time.Duration
	// MidStream captures TCP flows that are seen without their SYN, from their
	// next payload byte on and with its sender as the initiator. By default they
	// are left alone, as what a model knows is how flows begin. (optional)
	MidStream bool
	// OneHook says that both directions of the traffic come in through the interface, as at
	// a mirror port, or leave through it, as at a one-armed router: by the hook, the two
	// sides can't be distinguished, so a connection is proven by its numbers alone, and
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

	// What [Tables.Attachment] tells. (optional)
	Version, Model, Policy string

	// forceClsact attaches the way that kernels before 6.6 need, failLoad has the kernel
	// refuse a program; for tests.
	forceClsact, failLoad bool
}

// Info tells what Attach did.
type Info struct {
	XDPMode       XDPMode  // native or generic
	XDPFallback   error    // why native mode was not possible, nil if it was or was not asked for
	Egress        string   // tcx or clsact
	Adopted       bool     // maps and links of an earlier process were taken over
	Replaced      string   // why what was pinned could not be adopted and was replaced, else empty
	BlocksAdopted int      // blocks that go on, taken over or carried into the new tables
	BlocksLost    error    // which blocks could not be carried into the new tables, and why
	BlocksRemoved int      // blocks removed because of Options.Monitor
	Bypasses      Bypasses // ways past the programs
	HiddenVLANs   bool     // the driver takes VLAN tags out before the ingress program sees the frame
	Loopback      bool     // the interface shows each packet twice: sent, then received
	Bridge        bool     // the interface is a bridge: what it forwards between its ports is not seen
	Ports         []string // names of the interfaces that the bridge joins
	// PrivatePins says that the BPF file system is of this mount namespace alone, as
	// `ip netns exec` makes one for each call: no command outside sees what is pinned,
	// and it ends with the namespace's last process, blocks included.
	PrivatePins bool
	Sizes       Sizes  // of the tables, none 0
	Memory      uint64 // bytes of kernel memory that the tables take, an estimate
	PinDir      string // where it is pinned at first; Tables.PinDir is where it is now
}

// A DataPath is the attached data path of one interface. Its methods are safe for
// concurrent use. One process at a time can hold it.
type DataPath struct {
	*Tables
	Info Info

	coll    *ebpf.Collection
	ingress link.Link
	egress  link.Link    // nil: a clsact filter
	index   atomic.Int32 // of the interface
	sweepIn []byte
	sides   *sides
	foreign bool // what is pinned is another process's, and goes on if Attach fails

	mu         sync.Mutex // of what Check changes
	lock       *os.File   // the folder of the pins
	away       bool       // the interface is in another network namespace
	pinsFailed bool       // Check could not put back a pin the last time
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
		opts.UDPIdle = DefaultUDPIdle
	}
	switch {
	case opts.UDPWarmup == 0:
		opts.UDPWarmup = DefaultUDPWarmup
	case opts.UDPWarmup < 0:
		opts.UDPWarmup = 0
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
	dir, err := ifc.chooseFolder()
	if err != nil {
		return nil, err
	}
	lock, err := makeFolder(dir)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, refused(err, "already attached to %s by a running process%s: stop it first", opts.Interface, pidHint(dir))
	case errors.Is(err, os.ErrPermission):
		return nil, noAccess(err, "create %s: permission denied", dir)
	case err != nil:
		return nil, refused(err, "create %s: %v", dir, err)
	}

	d := &DataPath{lock: lock, sweepIn: make([]byte, 64)}
	d.index.Store(int32(ifc.index()))
	d.Info.HiddenVLANs = ifc.hidesVLANs()
	d.Info.Bypasses = ifc.bypasses()
	d.Info.Loopback = ifc.link.Attrs().EncapType == "loopback"
	if d.Info.Bridge = ifc.link.Type() == "bridge"; d.Info.Bridge {
		d.Info.Ports = ifc.ports()
	}
	d.Info.PrivatePins = PrivatePins()
	defer func() {
		if err != nil {
			err = errors.Join(err, d.abandon(ifc))
		}
	}()

	spec, err := configuredSpec(opts, ifc)
	if err != nil {
		return nil, err
	}
	pinned, why := adoptable(spec, opts.Sizes, lock)
	var carried []carriedBlock
	d.Info.Adopted = pinned != nil
	d.foreign = d.Info.Adopted || why != ""
	if why != "" {
		d.Info.Replaced = why
		if carried, err = pinnedBlocks(lock); err != nil {
			return nil, err
		}
	}
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
	// Under the interface's present name, if it had another one when it was pinned.
	d.Info.PinDir = renameFolder(dir, opts.Interface)
	d.at.Store(&place{opts.Interface, d.Info.PinDir})
	if d.Info.Adopted {
		if err := d.adoptBlocks(opts.Monitor); err != nil {
			return nil, err
		}
	} else if err := d.replaceMaps(carried, opts.Monitor); err != nil {
		return nil, err
	}
	if d.sides, err = watchSides(d.index.Load, d.coll.Maps[datapathMapSameSide]); err != nil {
		return nil, err
	}
	d.own = d.sides.addresses
	// Maps first: from the first packet on, everything must be in place.
	if err := d.attachIngress(ifc, opts, inFolder(lock, pinXDP)); err != nil {
		return nil, err
	}
	if err := d.attachEgress(ifc, opts, inFolder(lock, pinTCX)); err != nil {
		return nil, err
	}
	if err := d.setMode(opts.Monitor); err != nil {
		return nil, err
	}
	if err := d.describe(opts, spec); err != nil {
		return nil, err
	}
	return d, nil
}

// configuredSpec returns the objects with the operator's constants in.
func configuredSpec(opts Options, ifc *iface) (*ebpf.CollectionSpec, error) {
	spec, err := loadDatapath()
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]any{
		datapathVarCfgIdleNs:        uint64(opts.Idle),
		datapathVarCfgUdpIdleNs:     uint64(opts.UDPIdle),
		datapathVarCfgRawIp:         ifc.rawIP(),
		datapathVarCfgHashSecret:    newSecret(),
		datapathVarCfgFirstAttachNs: monotonic(),
		datapathVarCfgUdpWarmupNs:   uint64(opts.UDPWarmup),
		datapathVarCfgMidStream:     opts.MidStream,
		datapathVarCfgOneHook:       opts.OneHook,
		datapathVarCfgOneWay:        opts.OneWay,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	if opts.failLoad {
		spec.Programs[datapathProgEdEgress].Instructions = nil
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
func adoptable(spec *ebpf.CollectionSpec, sizes Sizes, folder *os.File) (_ map[string]*ebpf.Map, why string) {
	if !hasOwnPins(inFolder(folder, "")) {
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
		m, err := loadPinnedMap(inFolder(folder, pinName(name)))
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
	// What was new a moment ago is not new because another process took over.
	if err := asked.Variables[datapathVarCfgFirstAttachNs].Set(a.FirstNs); err != nil {
		return nil, fmt.Sprintf("set %s: %v", datapathVarCfgFirstAttachNs, err)
	}
	return maps, ""
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		_ = m.Close()
	}
}

// layoutVersion is LAYOUT_VERSION of bpf/earlydrop.h.
const layoutVersion = 4

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

// replaceMaps makes the new maps ready, with the blocks of those that are pinned, and pins
// them in their place. The programs that use the old ones run until theirs are swapped.
func (d *DataPath) replaceMaps(carried []carriedBlock, monitor bool) error {
	if err := fillSlots(d.coll.Maps); err != nil {
		return err
	}
	if monitor {
		d.Info.BlocksRemoved = len(carried)
	} else {
		d.Info.BlocksAdopted, d.Info.BlocksLost = d.carryBlocks(carried)
	}
	d.foreign = false
	if err := errors.Join(renameOldLinks(d.lock), unpinMaps(d.lock)); err != nil {
		return fmt.Errorf("replace what is pinned below %s: %w", d.Info.PinDir, err)
	}
	for name, m := range d.coll.Maps {
		if !outlives(name) {
			continue
		}
		if err := m.Pin(inFolder(d.lock, pinName(name))); err != nil {
			return fmt.Errorf("pin map %s below %s: %w", name, d.Info.PinDir, err)
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
	if err := spec.Variables[datapathVarCfgFirstAttachNs].Get(&a.FirstNs); err != nil {
		return fmt.Errorf("read %s: %w", datapathVarCfgFirstAttachNs, err)
	}
	fixed(a.XdpMode[:], string(d.Info.XDPMode))
	fixed(a.Egress[:], d.Info.Egress)
	fixed(a.Mode[:], mode)
	fixed(a.Version[:], opts.Version)
	fixed(a.Model[:], opts.Model)
	fixed(a.Policy[:], opts.Policy)
	if err := d.att.Update(uint32(0), &a, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write map attachment: %w", err)
	}
	return d.Report(nil)
}

// setMode tells the programs the mode, which stays when this process is gone.
func (d *DataPath) setMode(monitor bool) error {
	is := datapathMode{Enforce: 1}
	if monitor {
		is.Enforce = 0
	}
	if err := d.coll.Maps[datapathMapMode].Update(uint32(0), &is, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write map mode: %w", err)
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
	d.mu.Lock()
	defer d.mu.Unlock()
	var l netlink.Link
	var err error
	if d.egress == nil { // a filter: it goes by the interface
		l, _, err = whereIs(d.ingress)
	}
	return errors.Join(err, d.remove(l), d.close())
}

// remove detaches the programs and removes the pins, and the egress filter of an
// interface, which may be nil.
func (d *DataPath) remove(l netlink.Link) error {
	var errs []error
	for _, attached := range []link.Link{d.ingress, d.egress} {
		if attached != nil {
			errs = append(errs, attached.Detach()) // a pin may be hidden by a mount
		}
	}
	errs = append(errs, d.closeLinks(), removeDataPath(d.lock, l), removeFolder(d.lock))
	return errors.Join(errs...)
}

// Release closes this process's handles and leaves the data path running. It returns an
// error where pins are missing and can't be put back: then the data path ends here.
func (d *DataPath) Release() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := *d.at.Load()
	_, err := d.keepPins(&at)
	return errors.Join(err, d.closeLinks(), d.close())
}

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
	if d.sides != nil {
		d.sides.close()
	}
	if d.Tables != nil {
		err = d.filter.close() // its maps are the collection's
	}
	if d.coll != nil {
		d.coll.Close()
	}
	return errors.Join(err, d.lock.Close())
}

// abandon undoes a failed Attach. What was adopted, or not replaced yet, keeps running.
func (d *DataPath) abandon(ifc *iface) error {
	if d.foreign {
		return errors.Join(d.closeLinks(), d.close())
	}
	return errors.Join(d.remove(ifc.link), d.close())
}

// Detach removes what any process left attached to the interface. It refuses
// while a daemon runs, unless stop is set: then it asks the daemon to end
// (SIGTERM) and waits for it at most ten seconds. An interface that is gone takes
// its programs along; the pins are removed all the same.
func Detach(name string, stop bool) error {
	p, folder, err := openPinned(name)
	if err != nil {
		return err
	}
	defer folder.Close()
	if err := requireCapabilities(); err != nil {
		return err
	}
	err = tryLock(folder, unix.LOCK_EX)
	if errors.Is(err, unix.EWOULDBLOCK) {
		if !stop {
			return refused(err, "a running process holds %s%s: stop it first", name, pidHint(p.dir))
		}
		err = stopHolder(folder, name)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil // it detached by itself
	case err != nil:
		return err
	}
	if l, err := loadPinnedLink(inFolder(folder, ""), linkPins[1]); err == nil {
		_ = l.Close()
	} else if p.standing == standsElsewhere {
		return refused(nil, "%s is in another network namespace, and its egress filter can only be removed there", name)
	}
	return errors.Join(removeDataPath(folder, p.link), removeFolder(folder))
}
