// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Ingress says at which hook packets are seen that come in through the interface.
type Ingress string

// Hooks on ingress. Auto takes XDP where a network card's driver runs it and loses nothing by
// it, and TCX elsewhere; where something is pinned, it keeps that one's hook.
const (
	IngressAuto Ingress = "auto"
	IngressXDP  Ingress = "xdp" // in front of the stack
	IngressTCX  Ingress = "tcx" // in the stack, once packets were joined (GRO); clsact before Linux 6.6
)

// ParseIngress turns a word into an Ingress.
func ParseIngress(s string) (Ingress, error) {
	switch in := Ingress(s); in {
	case IngressAuto, IngressXDP, IngressTCX:
		return in, nil
	}
	return "", fmt.Errorf("unknown ingress hook %q: use auto, xdp or tcx", s)
}

// checkIngress completes what is asked of the hook on ingress: a mode of XDP asks for XDP.
func (o *Options) checkIngress() error {
	if o.XDPMode == XDPAuto {
		return nil
	}
	switch o.Ingress {
	case IngressAuto:
		o.Ingress = IngressXDP
	case IngressTCX:
		return refused(nil, "xdp mode %s and ingress %s exclude one another: leave one out", o.XDPMode, o.Ingress)
	}
	return nil
}

// ingressPlan is the hook that is to be taken.
type ingressPlan struct {
	hook Ingress // IngressXDP or IngressTCX
	why  string  // in a line
	// orTCX says that TCX is taken where native XDP is not possible.
	orTCX bool
}

// planIngress chooses the hook. folder has the pins, if there are any; nil: there are none.
func (i *iface) planIngress(opts *Options, folder *os.File) (ingressPlan, error) {
	if opts.Ingress != IngressAuto {
		return ingressPlan{hook: opts.Ingress, why: "it was asked for"}, nil
	}
	if folder != nil {
		was, err := pinnedIngress(inFolder(folder, ""))
		if err != nil {
			return ingressPlan{}, err
		}
		if was != "" {
			return ingressPlan{hook: was, why: "it was attached so before"}, nil
		}
	}
	kind := i.link.Type()
	switch {
	case i.link.Attrs().EncapType == "loopback":
		return ingressPlan{hook: IngressTCX, why: "the loopback interface has no driver that could run XDP"}, nil
	case kind != "device":
		return ingressPlan{hook: IngressTCX, why: fmt.Sprintf("a %s gains nothing by XDP, which takes GRO and GSO from it or copies each packet", kind)}, nil
	}
	if has := nativeXDP(i.index()); has != nil && !*has {
		return ingressPlan{hook: IngressTCX, why: "the driver does not run XDP"}, nil
	}
	if off := i.largeReceive(); len(off) > 0 {
		return ingressPlan{hook: IngressTCX, why: "XDP in the driver would take " + strings.Join(off, " and ") + " from it"}, nil
	}
	if hasXDP(i.link) {
		return ingressPlan{hook: IngressTCX, why: "another XDP program is attached"}, nil
	}
	return ingressPlan{hook: IngressXDP, why: "the driver runs it, and no offload is lost", orTCX: true}, nil
}

// largeReceive returns which offloads are on that join received packets in the device or its
// driver: most drivers refuse XDP then, or switch them off with it.
func (i *iface) largeReceive() (on []string) {
	for _, feature := range []string{"rx-lro", "rx-gro-hw"} {
		if anyFeature(i.name, feature) {
			on = append(on, feature)
		}
	}
	return on
}

// pinnedIngress returns the hook of the program on ingress that is pinned in a folder; empty
// if there is none.
func pinnedIngress(dir string) (Ingress, error) {
	for _, p := range []struct {
		names []string
		hook  Ingress
	}{{pinsXDP, IngressXDP}, {pinsTCXIngress, IngressTCX}} {
		l, err := loadPinnedLink(dir, p.names)
		switch {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, errForeignPin):
			continue
		case err != nil:
			return "", fmt.Errorf("open the pinned link on ingress: %w", err)
		}
		return p.hook, l.Close()
	}
	if pinnedFilter(dir) != 0 {
		return IngressTCX, nil
	}
	return "", nil
}

// pinnedFilter returns the id of the program of the clsact filter on ingress, which has no link:
// it is pinned itself. 0: there is none.
func pinnedFilter(dir string) ebpf.ProgramID {
	pin := dir + "/" + pinClsact
	if isPin(pin) != nil {
		return 0
	}
	prog, err := ebpf.LoadPinnedProgram(pin, nil)
	if err != nil {
		return 0
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil || info.Name != datapathProgEdTcxIngress {
		return 0
	}
	id, _ := info.ID()
	return id
}

// ingressProgram is the name of the program for the hook.
func (p ingressPlan) program() string {
	if p.hook == IngressXDP {
		return datapathProgEdIngress
	}
	return datapathProgEdTcxIngress
}

// attachIngress attaches the program on ingress, or puts it in the place of the one that is
// pinned. Where that one has another hook, the data path moves to the new one without a packet
// that is seen by none, or by both where the driver keeps what XDP writes beside a packet.
func (d *DataPath) attachIngress(ifc *iface, opts Options, plan ingressPlan, spec *ebpf.CollectionSpec) error {
	prog := d.coll.Programs[plan.program()]
	err := d.takeIngress(ifc, opts, plan, spec, prog)
	var mode *XDPModeError
	if !plan.orTCX || !errors.As(err, &mode) {
		return err
	}
	// Only now is the other program needed.
	plan = ingressPlan{hook: IngressTCX, why: fmt.Sprintf("XDP in the driver is not possible: %v", mode.Err)}
	d.Info.IngressWhy = plan.why
	other, err := loadBeside(d.coll.Maps, spec, false, plan.program())
	if err != nil {
		return err
	}
	d.coll.Programs[plan.program()] = other[plan.program()]
	return d.takeIngress(ifc, opts, plan, spec, other[plan.program()])
}

func (d *DataPath) takeIngress(ifc *iface, opts Options, plan ingressPlan, spec *ebpf.CollectionSpec, prog *ebpf.Program) error {
	leave, err := d.otherIngress(ifc, plan.hook)
	if err != nil {
		return err
	}
	if leave == nil {
		return d.putIngress(ifc, opts, plan, prog)
	}
	// What was replaced has tables of its own: nothing is seen twice in one.
	if !d.Info.Adopted {
		return errors.Join(d.putIngress(ifc, opts, plan, prog), leave.remove())
	}
	both, err := loadBeside(d.coll.Maps, spec, true, datapathProgEdIngress, datapathProgEdTcxIngress)
	if err != nil {
		return errors.Join(err, leave.close())
	}
	defer func() {
		for _, p := range both {
			_ = p.Close()
		}
	}()
	old := both[datapathProgEdIngress]
	if plan.hook == IngressXDP {
		old = both[datapathProgEdTcxIngress]
	}
	if err := leave.swap(old); err != nil {
		return errors.Join(err, leave.close())
	}
	time.Sleep(underWay)
	if err := d.putIngress(ifc, opts, plan, both[plan.program()]); err != nil {
		return errors.Join(err, leave.close())
	}
	if err := leave.remove(); err != nil {
		return err
	}
	time.Sleep(underWay)
	return d.swapIngress(ifc, prog)
}

// underWay is longer than a packet is on its way from XDP to TCX.
const underWay = 200 * time.Millisecond

// putIngress attaches a program to the plan's hook.
func (d *DataPath) putIngress(ifc *iface, opts Options, plan ingressPlan, prog *ebpf.Program) (err error) {
	if plan.hook == IngressXDP {
		asked := opts.XDPMode
		if plan.orTCX {
			asked = XDPNative
		}
		d.Info.Ingress = string(IngressXDP)
		d.ingress, d.Info.XDPMode, d.Info.XDPFallback, err = ifc.attachXDP(prog, asked, d.lock)
		return err
	}
	d.Info.XDPMode = XDPNone
	d.ingress, d.Info.Ingress, err = ifc.attachTC(prog, tcIngress, d.lock, opts.forceClsact)
	if err != nil || d.ingress != nil {
		return err
	}
	return d.pinFilter(prog)
}

// pinFilter pins the program of the clsact filter, by which its interface is found.
func (d *DataPath) pinFilter(prog *ebpf.Program) error {
	again, err := prog.Clone() // prog itself may be pinned already
	if err != nil {
		return fmt.Errorf("duplicate the ingress program: %w", err)
	}
	if err := d.pinAgain(pinClsact, again); err != nil {
		return fmt.Errorf("pin the ingress program: %w", err)
	}
	info, err := prog.Info()
	if err != nil {
		return fmt.Errorf("read the ingress program: %w", err)
	}
	d.clsactID, _ = info.ID()
	return nil
}

// swapIngress puts a program in the place of the one that putIngress has attached.
func (d *DataPath) swapIngress(ifc *iface, prog *ebpf.Program) error {
	if d.ingress != nil {
		if err := d.ingress.Update(prog); err != nil {
			return fmt.Errorf("swap the ingress program of %s: %w", ifc.name, err)
		}
		return nil
	}
	if err := installClsact(ifc, prog, tcIngress); err != nil {
		return fmt.Errorf("swap the ingress filter of %s: %w", ifc.name, err)
	}
	return d.pinFilter(prog)
}

// loadBeside loads programs that use the maps of those that are loaded. twoHooks is for those
// that run while the data path has two hooks on ingress.
func loadBeside(loaded map[string]*ebpf.Map, spec *ebpf.CollectionSpec, twoHooks bool, names ...string) (map[string]*ebpf.Program, error) {
	spec = spec.Copy()
	if err := spec.Variables[datapathVarCfgTwoHooks].Set(twoHooks); err != nil {
		return nil, fmt.Errorf("set %s: %w", datapathVarCfgTwoHooks, err)
	}
	fresh, err := readObject()
	if err != nil {
		return nil, err
	}
	clear(spec.Programs)
	for _, name := range names {
		spec.Programs[name] = fresh.Programs[name]
	}
	maps := make(map[string]*ebpf.Map)
	for name, m := range loaded {
		if outlives(name) {
			maps[name] = m
		}
	}
	coll, err := newCollection(spec, maps, nil)
	if err != nil {
		return nil, loadError(err)
	}
	defer coll.Close()
	programs := coll.Programs
	coll.Programs = nil // the caller's
	return programs, nil
}

// otherHook is what is attached on ingress at the hook that is not the plan's.
type otherHook struct {
	ifc    *iface
	folder *os.File
	link   link.Link // nil: a clsact filter
}

// otherIngress returns what is attached there by the pins, nil if nothing is.
func (d *DataPath) otherIngress(ifc *iface, hook Ingress) (*otherHook, error) {
	names := pinsXDP
	if hook == IngressXDP {
		names = pinsTCXIngress
	}
	for _, name := range names {
		l, err := ifc.openPinnedLink(inFolder(d.lock, name))
		if err != nil {
			return nil, err
		}
		if l != nil {
			return &otherHook{ifc, d.lock, l}, nil
		}
	}
	if hook == IngressXDP && ownFilter(ifc.link, tcIngress) != 0 {
		return &otherHook{ifc, d.lock, nil}, nil
	}
	return nil, nil
}

// swap puts another program in its place.
func (o *otherHook) swap(prog *ebpf.Program) error {
	var err error
	if o.link != nil {
		err = o.link.Update(prog)
	} else {
		err = installClsact(o.ifc, prog, tcIngress)
	}
	if err != nil {
		return fmt.Errorf("swap the ingress program of %s: %w", o.ifc.name, err)
	}
	return nil
}

// remove detaches it.
func (o *otherHook) remove() error {
	var err error
	if o.link != nil {
		err = removeLink(o.link)
	} else {
		err = errors.Join(removeClsact(o.ifc, tcIngress), removePin(o.folder, pinClsact))
	}
	if err != nil {
		return fmt.Errorf("detach the former ingress program of %s: %w", o.ifc.name, err)
	}
	return nil
}

func (o *otherHook) close() error {
	if o.link == nil {
		return nil
	}
	return o.link.Close()
}

// removeLink detaches a link, with its pin.
func removeLink(l link.Link) error { return errors.Join(l.Detach(), l.Unpin(), l.Close()) }

// whereFilter is whereIs of a clsact filter on ingress, which does not follow its interface to
// another network namespace. index is that of the interface, if it is known, else 0.
func whereFilter(program ebpf.ProgramID, index int) (netlink.Link, standing, error) {
	links, err := interfaces(index)
	if err != nil {
		return nil, standsNowhere, err
	}
	for _, l := range links {
		if ownFilter(l, tcIngress) == program {
			return l, standsHere, nil
		}
	}
	return nil, standsNowhere, nil
}

// whereEgressFilter finds the interface here whose clsact filter on egress works with the maps in a
// folder, for one that lacks its pin of what is on ingress. It goes by the counters, which no
// two interfaces share. Without the right to look programs up by their ids it finds none.
func whereEgressFilter(dir string) (netlink.Link, standing, error) {
	counters, err := loadPinnedMap(dir + "/" + pinName(datapathMapCounters))
	if err != nil {
		return nil, standsNowhere, nil
	}
	defer counters.Close()
	id, err := mapID(counters)
	if err != nil {
		return nil, standsNowhere, nil
	}
	links, err := interfaces(0)
	if err != nil {
		return nil, standsNowhere, err
	}
	for _, l := range links {
		if slices.Contains(mapsOf(ownFilter(l, tcEgress)), id) {
			return l, standsHere, nil
		}
	}
	return nil, standsNowhere, nil
}

// mapsOf returns the maps that a program uses, nothing without the rights.
func mapsOf(program ebpf.ProgramID) []ebpf.MapID {
	info, err := programInfo(program)
	if err != nil {
		return nil
	}
	ids, _ := info.MapIDs()
	return ids
}

// interfaces returns the interface of that index, or all of them where it is 0; none where it is
// not there.
func interfaces(index int) (links []netlink.Link, err error) {
	if index != 0 {
		links = make([]netlink.Link, 1)
		links[0], err = netlink.LinkByIndex(index)
	} else {
		links, err = netlink.LinkList()
	}
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("look up interfaces: %w", err)
	}
	return links, nil
}

// goneWithin is how long the kernel may take to free a program that is used no more.
const goneWithin = 2 * time.Second

// filterElsewhere reports whether a filter on ingress that no interface here has is one of an
// interface in another network namespace: its program stays when it is not pinned any more.
// Then it is pinned again. Without the right to look programs up by their ids it is taken for
// gone.
func filterElsewhere(folder *os.File, id ebpf.ProgramID) (bool, error) {
	if err := removePin(folder, pinClsact); err != nil {
		return false, err
	}
	for deadline := time.Now().Add(goneWithin); ; time.Sleep(10 * time.Millisecond) {
		prog, err := ebpf.NewProgramFromID(id)
		if err != nil {
			return false, nil
		}
		if time.Now().After(deadline) {
			return true, errors.Join(prog.Pin(inFolder(folder, pinClsact)), prog.Close())
		}
		_ = prog.Close()
	}
}

// hasProgram reports whether a program is attached to TCX ingress of an interface. Without the
// right to ask it is believed.
func hasProgram(index int, id ebpf.ProgramID) bool {
	res, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return errors.Is(err, unix.EPERM)
	}
	for _, p := range res.Programs {
		if p.ID == id {
			return true
		}
	}
	return false
}
