// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// A folder of pins is made under the name that its interface has then. Afterwards the
// interface may be renamed, moved to another network namespace or removed, and another
// one may get its name. So what is pinned for an interface is found by the program that
// is attached to it; a name counts only where nothing is attached.

// standing is where the interface is that a link was made for.
type standing int

const (
	standsNowhere   standing = iota // it was removed, or the link was detached by force
	standsHere                      // in the network namespace of this process
	standsElsewhere                 // in another one
)

// whereIs returns where the interface of a link on ingress is, and the interface itself if it is here.
func whereIs(l link.Link) (netlink.Link, standing, error) {
	info, err := l.Info()
	if err != nil {
		return nil, standsNowhere, err
	}
	index := ifindexOf(info)
	if index == 0 {
		return nil, standsNowhere, nil
	}
	found, err := netlink.LinkByIndex(int(index))
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		return nil, standsElsewhere, nil
	case err != nil:
		return nil, standsElsewhere, fmt.Errorf("look up interface %d: %w", index, err)
	}
	// Each network namespace has indexes of its own; programs have one id everywhere.
	here := false
	if info.TCX() != nil {
		here = hasProgram(int(index), info.Program)
	} else if xdp := found.Attrs().Xdp; xdp != nil {
		here = xdp.ProgId == uint32(info.Program)
	}
	if !here {
		return nil, standsElsewhere, nil
	}
	return found, standsHere, nil
}

// ifindexOf returns the index of the interface that a link is attached to, in that one's
// network namespace; 0 if it is attached to none any more.
func ifindexOf(info *link.Info) uint32 {
	if x := info.XDP(); x != nil {
		return x.Ifindex
	}
	if t := info.TCX(); t != nil {
		return t.Ifindex
	}
	return 0
}

// pinned is a folder of pins.
type pinned struct {
	called   string // the name that the folder has
	iface    string // the interface's present name, or called, unless it is here
	dir      string
	standing standing
	link     netlink.Link // the interface, if it is here
}

// readPinned finds out whose a folder is.
func readPinned(dir, called string) (*pinned, error) {
	p := &pinned{called: called, iface: called, dir: dir}
	l, err := loadPinnedLink(dir, pinsXDP)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errForeignPin) {
		l, err = loadPinnedLink(dir, pinsTCXIngress)
	}
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, errForeignPin):
		if id := pinnedFilter(dir); id != 0 {
			p.link, p.standing, err = whereFilter(id, 0)
			if p.standing == standsNowhere && isHeld(dir) {
				p.standing = standsElsewhere
			}
		} else {
			p.link, p.standing, err = whereEgressFilter(dir)
		}
		p.isHere()
		return p, err
	case errors.Is(err, os.ErrPermission):
		return nil, noAccess(err, "%s can't be read: permission denied", dir)
	case err != nil:
		return nil, fmt.Errorf("open the pinned link of %s: %w", called, err)
	}
	defer l.Close()
	if p.link, p.standing, err = whereIs(l); err != nil {
		return nil, err
	}
	p.isHere()
	return p, nil
}

// isHere calls what is pinned by the interface, if that is here.
func (p *pinned) isHere() {
	if p.link != nil {
		p.iface = p.link.Attrs().Name
	}
}

// allPinned returns all folders of pins, sorted by the names of their interfaces.
func allPinned() ([]*pinned, error) {
	entries, err := os.ReadDir(pinRoot)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, noAccess(err, "%s can't be read: permission denied", pinRoot)
	}
	if err != nil {
		return nil, fmt.Errorf("read the pins: %w", err)
	}
	var all []*pinned
	var errs []error
	for _, e := range entries {
		name, ok := interfaceOf(e.Name())
		if !ok || !e.IsDir() {
			continue
		}
		dir := filepath.Join(pinRoot, e.Name())
		p, err := readPinned(dir, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		// Without a pin of ours it is somebody else's, or one that is just being made.
		if hasOwnPins(dir) {
			all = append(all, p)
		}
	}
	slices.SortStableFunc(all, func(a, b *pinned) int { return strings.Compare(a.iface, b.iface) })
	return all, errors.Join(errs...)
}

// findPinned finds what is pinned for an interface by its present name, or by its last
// one when it is not in this network namespace any more. The error wraps
// [ErrNotAttached] if there is nothing.
func findPinned(name string) (*pinned, error) {
	present, err := interfaceNamed(name)
	if err != nil {
		return nil, err
	}
	all, errs := allPinned()
	var named []*pinned
	for _, p := range all {
		if p.standing == standsHere && p.iface == name {
			return p, nil
		}
		if p.called == name {
			named = append(named, p)
		}
	}
	if errs != nil {
		// One of those that could not be read may be the one.
		return nil, errs
	}
	nothing := fmt.Errorf("%w to %s (nothing at %s)", ErrNotAttached, name, pinDir(name))
	var alive, dead []*pinned
	for _, p := range named {
		switch {
		case p.standing == standsNowhere:
			dead = append(dead, p)
		case p.standing == standsHere:
			nothing = fmt.Errorf("%w to %s: what is pinned at %s is attached to %s", ErrNotAttached, name, p.dir, p.iface)
		case present != nil:
			nothing = fmt.Errorf("%w to %s: what is pinned at %s is attached to an interface of another network namespace", ErrNotAttached, name, p.dir)
		default:
			alive = append(alive, p)
		}
	}
	switch {
	case len(alive) > 1:
		return nil, refused(nil, "several interfaces called %s are attached (%s and %s): run it in the network namespace of the one that is meant", name, alive[0].dir, alive[1].dir)
	case len(alive) == 1:
		return alive[0], nil
	case len(dead) > 0:
		return dead[0], nil
	}
	if present != nil {
		if o := (&iface{name: name, link: present}).occupied(); o != nil && o.Own {
			return nil, fmt.Errorf("%w: %w", nothing, o)
		}
	}
	return nil, nothing
}

// openPinned is findPinned and opens the folder as well.
func openPinned(name string) (*pinned, *os.File, error) {
	for try := 0; ; try++ {
		p, err := findPinned(name)
		if err != nil {
			return nil, nil, err
		}
		folder, err := openFolder(p.dir)
		switch {
		case err == nil:
			return p, folder, nil
		case errors.Is(err, os.ErrNotExist) && try < 3:
			// Renamed with its interface, or removed, in between.
		default:
			return nil, nil, fmt.Errorf("open the pins of %s: %w", name, err)
		}
	}
}

// chooseFolder returns the folder for the pins of an interface that is to be attached. It
// refuses an interface that has an earlydrop from elsewhere, or, where XDP is to be taken,
// another XDP program, since the kernel takes one only.
func (i *iface) chooseFolder(opts *Options) (string, error) {
	all, errs := allPinned()
	for _, p := range all {
		if p.standing == standsHere && p.link.Attrs().Index == i.index() {
			return p.dir, nil
		}
	}
	if o := i.occupied(); o != nil && (o.Own || opts.Ingress == IngressXDP) {
		if errs != nil {
			return "", errs
		}
		return "", refused(o, "%s", o)
	}
	dirs := pinDirs(i.name)
	for _, dir := range dirs {
		at := slices.IndexFunc(all, func(p *pinned) bool { return p.dir == dir })
		if at < 0 || all[at].standing == standsNowhere {
			return dir, nil
		}
		// It was renamed, and now this one has its name: the folder goes along.
		if p := all[at]; p.standing == standsHere && renameFolder(dir, p.iface) != dir {
			return dir, nil
		}
	}
	return "", refused(nil, "what is pinned at %s is attached to another interface that was called %s: detach that one first", strings.Join(dirs, " and "), i.name)
}
