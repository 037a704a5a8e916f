// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Defaults of Options.
const (
	// DefaultUDPIdle is above the pauses of QUIC, IPsec NAT-T and RTP.
	DefaultUDPIdle = 10 * time.Minute
	// DefaultUDPWarmup is above what most flows are silent for that are in use.
	DefaultUDPWarmup = 60 * time.Second
	// DefaultPending is about what a sender has on its way at first, 10 segments.
	DefaultPending = 16 << 10
	// MaxPending is more than passes in 5 ms.
	MaxPending = 1 << 30
)

// Options are what an operator can ask of a data path.
type Options struct {
	// Interface is the name of the network interface.
	Interface string
	// Ingress defaults to IngressAuto. (optional)
	Ingress Ingress
	// XDPMode defaults to XDPAuto. Another one asks for XDP. (optional)
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
	// Pending is how many bytes may pass, from the packet on that fills the capture, until there
	// is a verdict on a TCP connection that may be a tunnel ([flow.LooksRandom]), of both
	// directions together and in whole packets. What is more is dropped for at most 5 ms, and TCP
	// sends it again; only in mode enforce, and while [DataPath.Attend] is called. Default
	// [DefaultPending], at most [MaxPending]; negative: no connection waits. (optional)
	Pending int
	// Monitor says that no packet may be dropped: blocks by a rule that an earlier daemon
	// left are removed before the programs run, and those by hand are suspended.
	// [Tables.SetMode] changes the mode later.
	Monitor bool
	// Sizes of the tables; 0 is the default, or what is pinned when it is adopted.
	// Out of bounds they are refused; Handshakes and RingBytes are rounded up to
	// powers of two.
	// Other sizes than what is pinned has replace it whole. (optional)
	Sizes Sizes

	// Exempt are networks, at most [MaxExempt], whose flows pass: nothing of them is captured.
	// See [Tables.SetExempt]. (optional)
	Exempt []netip.Prefix

	// Group is the interfaces with which this one has its flows in common; nil: none.
	// (optional)
	Group *Group

	// What [Tables.Attachment] tells. (optional)
	Version, Model, Policy string
	// MonitorOnly says, in one line of at most 319 bytes, why [Tables.SetMode] is to refuse
	// mode enforce; empty: it is not. (optional)
	MonitorOnly string

	// forceClsact attaches the way that kernels before 6.6 need, failLoad has the kernel
	// refuse a program; for tests.
	forceClsact, failLoad bool
}

// Info tells what Attach did.
type Info struct {
	Ingress       string   // xdp, tcx or clsact
	IngressWhy    string   // why that hook was taken, in a line
	XDPMode       XDPMode  // native or generic; none without XDP
	XDPFallback   error    // why generic mode and not native, nil if it is not or was asked for
	Egress        string   // tcx or clsact
	Adopted       bool     // maps and links of an earlier process were taken over
	Replaced      string   // why what was pinned could not be adopted and was replaced, else empty
	BlocksAdopted int      // blocks that go on, taken over or carried into the new tables
	BlocksLost    error    // which blocks and pairs could not be carried into the new tables, and why
	PairsAdopted  int      // treated pairs that go on
	PairsKnown    bool     // there was a table of treated pairs, of which none was left out
	BlocksRemoved int      // blocks by a rule that were removed because of Options.Monitor
	BlocksHeld    int      // of BlocksAdopted, those by hand that it suspends
	Bypasses      Bypasses // ways past the programs
	HiddenVLANs   bool     // the driver takes VLAN tags out before XDP sees the frame
	Loopback      bool     // the interface shows each packet twice: sent, then received
	Bridge        bool     // the interface is a bridge: what it forwards between its ports is not seen
	Ports         []string // names of the interfaces that the bridge joins
	// PrivatePins says that the BPF file system is of this mount namespace alone, as
	// `ip netns exec` makes one for each call: no command outside sees what is pinned,
	// and it ends with the namespace's last process, blocks included.
	PrivatePins bool
	// NoResets says, in a line, which ends of flows with [flow.Reset] can't be sent a RST
	// through this interface, and why; empty: all can. Such flows are dropped alone.
	NoResets   string
	SharesWith string // of a group, the interface whose tables this one uses, if that was there first
	Sizes      Sizes  // of the tables, none 0
	Memory     uint64 // bytes of kernel memory that the tables take which are not shared, an estimate
	PinDir     string // where it is pinned at first; Tables.PinDir is where it is now
}

// A DataPath is the attached data path of one interface. Its methods are safe for
// concurrent use. One process at a time can hold it.
type DataPath struct {
	*Tables
	Info Info

	coll     *ebpf.Collection
	ingress  link.Link    // nil: a clsact filter, of program clsactID
	egress   link.Link    // nil: a clsact filter
	index    atomic.Int32 // of the interface
	sweepIn  []byte
	sides    *sides
	group    *Group // nil: none
	clsactID ebpf.ProgramID
	foreign  bool // what is pinned is another process's, and goes on if Attach fails

	mu         sync.Mutex // of what follows, which Check and Describe change
	about      datapathAttached
	lock       *os.File // the folder of the pins
	away       bool     // the interface is in another network namespace
	pinsFailed bool     // Check could not put back a pin the last time
}

// setDefaults fills in what was left out, and rounds what has to be.
func (o *Options) setDefaults() error {
	o.Ingress = cmp.Or(o.Ingress, IngressAuto)
	o.XDPMode = cmp.Or(o.XDPMode, XDPAuto)
	o.Idle = cmp.Or(o.Idle, 2*time.Second)
	o.UDPIdle = cmp.Or(o.UDPIdle, DefaultUDPIdle)
	o.UDPWarmup = max(cmp.Or(o.UDPWarmup, DefaultUDPWarmup), 0)
	o.Pending = min(max(cmp.Or(o.Pending, DefaultPending), 0), MaxPending)
	return errors.Join(o.checkIngress(), o.Sizes.check())
}

// Attach loads the programs and attaches them to the interface, or adopts what an
// earlier process left there. It returns a [*RefusedError], and has changed
// nothing, when the interface, the rights or the kernel do not allow it.
func Attach(opts Options) (*DataPath, error) {
	all, err := AttachAll([]Options{opts})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// AttachAll is Attach for several interfaces, each with programs and tables of its own. It
// attaches to all of them or to none: after an error nothing is attached that was not
// before, and what was pinned goes on.
func AttachAll(opts []Options) (_ []*DataPath, err error) {
	begun := make([]*attaching, 0, len(opts))
	defer func() {
		if err == nil {
			return
		}
		for _, a := range slices.Backward(begun) {
			err = errors.Join(err, a.undo())
		}
	}()
	// What can be wrong with one of them is found before anything of another is changed.
	found := make([]*iface, len(opts))
	opts = slices.Clone(opts)
	for i := range opts {
		if found[i], err = opts[i].check(); err != nil {
			return nil, err
		}
		for _, other := range found[:i] {
			if other.index() == found[i].index() {
				return nil, refused(nil, "%s and %s are the same interface: name it once", other.name, found[i].name)
			}
		}
	}
	// Of a group, those with pins come first: their tables are taken.
	first := make([]int, len(opts))
	for i := range first {
		first[i] = i
	}
	late := func(i int) uint8 { return bit(opts[i].Group != nil && !found[i].hasPins()) }
	slices.SortStableFunc(first, func(i, j int) int { return cmp.Compare(late(i), late(j)) })
	all := make([]*DataPath, len(opts))
	for _, i := range first {
		a, err := begin(opts[i], found[i])
		if a != nil {
			begun = append(begun, a)
		}
		if err != nil {
			return nil, err
		}
		all[i] = a.d
	}
	// What is adopted comes last: what is new can be taken away again without a trace.
	order := slices.Clone(begun)
	slices.SortStableFunc(order, func(a, b *attaching) int { return cmp.Compare(bit(a.d.foreign), bit(b.d.foreign)) })
	for _, a := range order {
		if err := a.finish(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// check finds out what can be found without changing anything.
func (o *Options) check() (*iface, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	if len(o.Exempt) > MaxExempt {
		return nil, refused(nil, "%d networks are to be exempt: there is room for %d", len(o.Exempt), MaxExempt)
	}
	ifc, err := findInterface(o.Interface)
	if err != nil {
		return nil, err
	}
	return ifc, Preflight()
}

// attaching is a data path on its way.
type attaching struct {
	opts     Options
	ifc      *iface
	ingress  ingressPlan
	dir      string // of the pins
	d        *DataPath
	spec     *ebpf.CollectionSpec
	carried  []carriedBlock
	pairs    []carriedPair
	existed  bool // something is pinned that goes on without this process
	finished bool
}

// begin takes the folder of the pins, and loads the programs. Nothing that runs has
// changed then. After an error, what is returned beside it has to be undone.
func begin(opts Options, ifc *iface) (_ *attaching, err error) {
	a := &attaching{opts: opts, ifc: ifc}
	var lock *os.File
	if a.dir, lock, err = ifc.takeFolder(&opts); err != nil {
		return nil, err
	}
	a.d = &DataPath{lock: lock, sweepIn: make([]byte, 64)}
	a.d.index.Store(int32(ifc.index()))
	if a.ingress, err = ifc.planIngress(&opts, lock); err != nil {
		a.d.foreign = true // what is pinned there can't be read, and stays
		return a, err
	}
	a.d.Info.look(ifc, a.ingress, opts.XDPMode)
	if a.spec, a.carried, err = a.d.load(opts, ifc, a.ingress); err == nil && a.d.Info.Replaced != "" {
		a.pairs, a.d.Info.PairsKnown, err = pinnedPairs(lock)
	}
	a.existed = a.d.foreign
	return a, err
}

// finish attaches the programs, or swaps those that run.
func (a *attaching) finish() (err error) {
	d := a.d
	// Under the interface's present name, if it had another one when it was pinned.
	d.Info.PinDir = renameFolder(a.dir, a.opts.Interface)
	d.at.Store(&place{a.opts.Interface, d.Info.PinDir})
	if d.Info.Adopted {
		err = d.adoptBlocks(a.opts.Monitor)
	} else {
		err = d.replaceMaps(a.carried, a.pairs, a.opts.Monitor)
	}
	if err != nil {
		return err
	}
	if d.sides, err = watchSides(d.index.Load, d.group, d.coll.Maps[datapathMapSameSide]); err != nil {
		return err
	}
	d.own = d.sides.addresses
	// Maps first: from the first packet on, everything must be in place.
	if err := d.SetExempt(a.opts.Exempt); err != nil {
		return err
	}
	if err := d.attachIngress(a.ifc, a.opts, a.ingress, a.spec); err != nil {
		return err
	}
	if err := d.attachEgress(a.ifc, a.opts); err != nil {
		return err
	}
	if err := d.writeMode(!a.opts.Monitor); err != nil {
		return err
	}
	if err := d.describe(a.opts, a.spec); err != nil {
		return err
	}
	if !d.foreign {
		if err := loadLater(a.spec, d.coll); err != nil {
			return loadError(err)
		}
	}
	a.finished = true
	return nil
}

// undo takes away what was attached. What there was before keeps running.
func (a *attaching) undo() error {
	switch {
	case !a.finished:
		return a.d.abandon(a.ifc)
	case a.existed:
		return a.d.Release()
	}
	return a.d.Detach()
}

// takeFolder makes the folder of an interface's pins, or finds it, and locks it.
func (i *iface) takeFolder(opts *Options) (dir string, lock *os.File, err error) {
	if err := ensureBPFFS(); err != nil {
		return "", nil, err
	}
	if dir, err = i.chooseFolder(opts); err != nil {
		return "", nil, err
	}
	lock, err = makeFolder(dir)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		err = refused(err, "already attached to %s by a running process%s: stop it first", i.name, pidHint(dir))
	case errors.Is(err, os.ErrPermission):
		err = noAccess(err, "create %s: permission denied", dir)
	case err != nil:
		err = refused(err, "create %s: %v", dir, err)
	}
	return dir, lock, err
}

// look fills in what is known of the interface before anything is attached.
func (n *Info) look(ifc *iface, plan ingressPlan, mode XDPMode) {
	n.Ingress, n.IngressWhy = string(plan.hook), plan.why
	n.HiddenVLANs = plan.hook == IngressXDP && ifc.hidesVLANs()
	n.Bypasses = ifc.bypasses()
	if plan.hook == IngressTCX && hasXDP(ifc.link) {
		if o := ifc.occupied(); !o.Own {
			n.Bypasses.InFront = cmp.Or(o.Program, fmt.Sprintf("id %d", o.ID))
		}
	}
	_, n.NoResets = ifc.answers(plan.hook, mode)
	n.Loopback = ifc.link.Attrs().EncapType == "loopback"
	if n.Bridge = ifc.link.Type() == "bridge"; n.Bridge {
		n.Ports = ifc.ports()
	}
	n.PrivatePins = PrivatePins()
}

// load loads the programs and makes their maps, or opens those that are pinned where
// they can be adopted. Of those that can't, carried are the blocks.
func (d *DataPath) load(opts Options, ifc *iface, plan ingressPlan) (spec *ebpf.CollectionSpec, carried []carriedBlock, err error) {
	if spec, err = configuredSpec(opts, ifc, plan); err != nil {
		return nil, nil, err
	}
	base, err := opts.Group.shared()
	if err != nil {
		return nil, nil, err
	}
	defer base.close()
	pinned, why := adoptable(spec, opts.Sizes, d.lock)
	defer func() { closeMaps(pinned) }() // the collection has its own descriptors
	if pinned != nil {
		if why, err = d.misfit(pinned, &opts, base); err != nil {
			return nil, nil, err
		}
		if why != "" {
			closeMaps(pinned)
			pinned = nil
		}
	}
	d.Info.Adopted, d.Info.Replaced = pinned != nil, why
	d.foreign = d.Info.Adopted || why != ""
	if why != "" {
		if carried, err = pinnedBlocks(d.lock); err != nil {
			return nil, nil, err
		}
	}
	replacements := pinned
	if base != nil {
		d.Info.SharesWith = base.with
		if pinned == nil {
			replacements = base.maps
		}
		if err := base.apply(spec); err != nil {
			return nil, nil, err
		}
	}
	if err := setSizes(spec); err != nil { // only now: an adopted set has its own
		return nil, nil, err
	}
	d.Info.Sizes, d.Info.Memory = sizesOf(spec), tablesMemory(spec, base != nil)
	made := takeTables()
	d.coll, err = newCollection(spec, replacements, made)
	closeMaps(made)
	if err == nil && d.foreign { // what runs is not touched before all of it is there
		err = loadLater(spec, d.coll)
	}
	if err != nil {
		return nil, nil, loadError(err)
	}
	if d.Tables, err = newTables(opts.Interface, d.coll.Maps); err != nil {
		return nil, nil, err
	}
	if opts.Group != nil {
		if err := opts.Group.join(d, spec); err != nil {
			return nil, nil, err
		}
		d.group = opts.Group
	}
	return spec, carried, nil
}

// configuredSpec returns the objects with the operator's constants in.
func configuredSpec(opts Options, ifc *iface, plan ingressPlan) (*ebpf.CollectionSpec, error) {
	spec, err := readPrograms()
	if err != nil {
		return nil, err
	}
	answers, _ := ifc.answers(plan.hook, opts.XDPMode)
	for name, value := range map[string]any{
		datapathVarCfgIdleNs:        uint64(opts.Idle),
		datapathVarCfgUdpIdleNs:     uint64(opts.UDPIdle),
		datapathVarCfgRawIp:         ifc.rawIP(),
		datapathVarCfgPartialSums:   uint8(ifc.partialSums()),
		datapathVarCfgAnswers:       answers,
		datapathVarCfgHashSecret:    newSecret(),
		datapathVarCfgFirstAttachNs: monotonic(),
		datapathVarCfgUdpWarmupNs:   uint64(opts.UDPWarmup),
		datapathVarCfgPendingBytes:  uint32(opts.Pending),
		datapathVarCfgMidStream:     opts.MidStream,
		datapathVarCfgOneHook:       opts.OneHook,
		datapathVarCfgOneWay:        opts.OneWay,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	for _, name := range []string{datapathProgEdIngress, datapathProgEdTcxIngress} {
		if name != plan.program() {
			delete(spec.Programs, name)
		}
	}
	if opts.failLoad {
		spec.Programs[datapathProgEdEgress].Instructions = nil
	}
	shapeTables(spec, opts.Sizes)
	return spec, nil
}

// shapeTables writes into the objects what is asked of their tables.
func shapeTables(spec *ebpf.CollectionSpec, sizes Sizes) {
	sizes.apply(spec)
	// Creating the map adds the flag by itself; comparing with one that is there does not.
	spec.Maps[mapBlockFilter].Flags |= unix.BPF_F_MMAPABLE
}

// outlives reports whether a map outlives the process: all but the one that holds a
// program's constants.
func outlives(name string) bool {
	return name == mapBlockFilter || name[0] != '.'
}

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

func (d *DataPath) describe(opts Options, spec *ebpf.CollectionSpec) error {
	d.about = datapathAttached{
		LayoutVersion: layoutVersion,
		Pid:           uint32(os.Getpid()),
		AttachedNs:    uint64(time.Now().UnixNano()),
		BlockLayout:   blockLayout,
		OneHook:       bit(opts.OneHook),
		OneWay:        bit(opts.OneWay),
	}
	if err := spec.Variables[datapathVarCfgHashSecret].Get(&d.about.HashSecret); err != nil {
		return fmt.Errorf("read %s: %w", datapathVarCfgHashSecret, err)
	}
	if err := spec.Variables[datapathVarCfgFirstAttachNs].Get(&d.about.FirstNs); err != nil {
		return fmt.Errorf("read %s: %w", datapathVarCfgFirstAttachNs, err)
	}
	fixed(d.about.Ingress[:], d.Info.Ingress)
	fixed(d.about.IngressWhy[:], d.Info.IngressWhy)
	fixed(d.about.XdpMode[:], string(d.Info.XDPMode))
	fixed(d.about.Egress[:], d.Info.Egress)
	fixed(d.about.Version[:], opts.Version)
	if err := d.Describe(opts.Model, opts.Policy, opts.MonitorOnly); err != nil {
		return err
	}
	return d.Report(nil)
}

// Describe changes what [Tables.Attachment] tells of the model, the policy, and why mode
// enforce is refused; see [Options].
func (d *DataPath) Describe(model, policy, monitorOnly string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	fixed(d.about.Model[:], model)
	fixed(d.about.Policy[:], policy)
	fixed(d.about.MonitorOnly[:], monitorOnly)
	if err := d.att.Update(uint32(0), &d.about, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write map attachment: %w", err)
	}
	return nil
}
