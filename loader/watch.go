// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// severed reports whether a link is attached to nothing any more: its interface is gone,
// or it was detached by force. A new interface of the same name needs a new link.
func severed(l link.Link) bool {
	info, err := l.Info()
	return err == nil && ifindexOf(info) == 0
}

// lookEvery is how often Watch looks at the data path when nothing tells it to.
const lookEvery = time.Second

// A Change is what [DataPath.Check] found to be otherwise than before; zero if nothing.
type Change struct {
	Was      string // the interface's former name, if it was renamed
	Moved    bool   // it was moved to another network namespace; its programs go on
	Restored int    // pins that others had removed and that are there again
	// PinsErr is why missing pins could not be put back; reported once, and tried again
	// with each look. Until then no other command sees the data path, which goes on, and
	// ends with this process.
	PinsErr error
}

// WatchLinks calls changed at once, and then whenever the kernel tells of a change of some
// interface in the network namespace of the caller, until ctx ends. Several changes may be one
// call. Where the kernel tells nothing, it is called every second.
func WatchLinks(ctx context.Context, changed func()) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		updates, done := make(chan netlink.LinkUpdate, 16), make(chan struct{})
		if err := subscribeLinks(updates, done); err != nil {
			changed()
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
			continue
		}
		changed() // after the subscription, so that nothing falls in between
		for open := true; open; {
			select {
			case <-ctx.Done():
				open = false
			case _, ok := <-updates:
				if open = ok; ok { // else overrun: what was told is lost
					changed()
				}
			}
		}
		unsubscribe(updates, done)
	}
}

// Watch looks after the data path until ctx ends: at once when the kernel tells of a
// change of the interface, else every second. It calls report for each change, and
// returns an error when the data path works no more.
func (d *DataPath) Watch(ctx context.Context, report func(Change)) error {
	return d.watch(ctx, subscribeLinks, report)
}

// watch is Watch with another source of what the kernel tells.
func (d *DataPath) watch(ctx context.Context, subscribe func(chan<- netlink.LinkUpdate, <-chan struct{}) error, report func(Change)) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var updates chan netlink.LinkUpdate
	var done chan struct{}
	unsubscribe := func() {
		if updates != nil {
			close(done)
			go func(rest <-chan netlink.LinkUpdate) {
				for range rest { // its sender may be waiting
				}
			}(updates)
		}
		updates = nil
	}
	defer func() { unsubscribe() }()
	for {
		// What the kernel tells makes it quick, no more: a subscription may be refused,
		// overrun or end, and then the ticks do.
		if updates == nil {
			to, until := make(chan netlink.LinkUpdate, 16), make(chan struct{})
			if subscribe(to, until) == nil {
				updates, done = to, until
			}
		}
		// After the subscription, so that nothing falls in between.
		c, err := d.Check()
		if err != nil {
			return err
		}
		if c != (Change{}) {
			report(c)
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				waiting = false
			case u, ok := <-updates:
				switch {
				case !ok:
					// Overrun: what was told is lost. A new one is made with the next tick.
					unsubscribe()
				case u.IfInfomsg.Family != unix.AF_UNSPEC || u.IfInfomsg.Index != d.index.Load():
					// Of another interface, or of a bridge about its port, which tells of
					// one that leaves it as if it were removed.
				default:
					waiting = false
				}
			}
		}
	}
}

func subscribeLinks(updates chan<- netlink.LinkUpdate, done <-chan struct{}) error {
	return netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{})
}

// where is whereIs of the program on ingress.
func (d *DataPath) where() (netlink.Link, standing, error) {
	if d.ingress == nil {
		return whereFilter(d.clsactID, int(d.index.Load()))
	}
	return whereIs(d.ingress)
}

// Check looks whether the interface and the pins are as they were, and follows what has
// changed. The error says that the data path works no more: the interface was removed, or
// somebody detached a program.
func (d *DataPath) Check() (Change, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var c Change
	at := *d.at.Load()
	l, stands, err := d.where()
	egressGone := d.egress != nil && severed(d.egress)
	if err == nil && (stands == standsNowhere) != egressGone {
		// The interface may have been removed between the two.
		l, stands, err = d.where()
		egressGone = d.egress != nil && severed(d.egress)
	}
	if err != nil {
		// The kernel is short of something: the next look tells.
		return c, nil
	}
	if stands == standsNowhere || egressGone {
		return c, d.lost(at.iface, stands == standsNowhere, egressGone)
	}
	if stands == standsElsewhere && d.egress == nil {
		return c, fmt.Errorf("interface %s was moved to another network namespace, which removed the egress filter", at.iface)
	}
	c.Moved = stands == standsElsewhere && !d.away
	d.away = stands == standsElsewhere
	if l != nil {
		d.index.Store(int32(l.Attrs().Index))
		if name := l.Attrs().Name; name != at.iface {
			c.Was, at.iface = at.iface, name
		}
	}
	c.Restored, err = d.keepPins(&at)
	if err != nil && !d.pinsFailed {
		c.PinsErr = err
	}
	d.pinsFailed = err != nil
	d.at.Store(&at)
	return c, nil
}

// lost tells why a program is not attached any more.
func (d *DataPath) lost(iface string, ingress, egress bool) error {
	what := "programs were"
	switch {
	case ingress && (egress || d.egress == nil):
		// Both go with the interface. A filter does not tell.
		if _, err := netlink.LinkByIndex(int(d.index.Load())); err != nil {
			return &RemovedError{iface}
		}
		if d.egress == nil {
			what = "ingress program was"
		}
	case ingress:
		what = "ingress program was"
	default:
		what = "egress program was"
	}
	return fmt.Errorf("the %s detached from %s by somebody else", what, iface)
}

// keepPins follows the folder of the pins, calls it by the interface's present name,
// and puts back what is missing.
func (d *DataPath) keepPins(at *place) (restored int, err error) {
	if !isAt(d.lock, at.dir) {
		if dir := folderPath(d.lock); dir != "" {
			at.dir = dir
		} else if err := d.newFolder(at.dir); err != nil {
			return 0, err
		}
	}
	at.dir = renameFolder(at.dir, at.iface)
	for name, m := range d.coll.Maps {
		if !outlives(name) || d.isPinned(pinName(name)) {
			continue
		}
		again, err := m.Clone() // m itself believes that it is pinned
		if err == nil {
			err = d.pinAgain(pinName(name), again)
		}
		if err != nil {
			return restored, fmt.Errorf("pin map %s again below %s: %w", name, at.dir, err)
		}
		restored++
	}
	if d.clsactID != 0 && !d.isPinned(pinClsact) {
		prog, err := d.coll.Programs[datapathProgEdTcxIngress].Clone()
		if err == nil {
			err = d.pinAgain(pinClsact, prog)
		}
		if err != nil {
			return restored, fmt.Errorf("pin the ingress program again below %s: %w", at.dir, err)
		}
		restored++
	}
	ingress := pinXDP
	if d.Info.Ingress != string(IngressXDP) {
		ingress = pinTCXIngress
	}
	for name, l := range map[string]link.Link{ingress: d.ingress, pinTCX: d.egress} {
		if l == nil || d.isPinned(name) {
			continue
		}
		again, err := cloneLink(l)
		if err == nil {
			err = d.pinAgain(name, again)
		}
		if err != nil {
			return restored, fmt.Errorf("pin %s again below %s: %w", name, at.dir, err)
		}
		restored++
	}
	return restored, nil
}

// pinAgain pins and closes a handle. What else has the name gives way, unless it is a
// folder with something in it.
func (d *DataPath) pinAgain(name string, handle interface {
	Pin(string) error
	io.Closer
}) error {

	err := removePin(d.lock, name)
	if err == nil {
		err = handle.Pin(inFolder(d.lock, name))
	}
	return errors.Join(err, handle.Close())
}

// isPinned reports whether something is pinned in the folder under that name.
func (d *DataPath) isPinned(name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(int(d.lock.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// newFolder makes the folder of the pins again after it was removed, or the file system
// that it is in unmounted.
func (d *DataPath) newFolder(dir string) error {
	if err := ensureBPFFS(); err != nil {
		return err
	}
	folder, err := makeFolder(dir)
	if err != nil {
		return fmt.Errorf("create %s again: %w", dir, err)
	}
	if hasOwnPins(dir) {
		return errors.Join(fmt.Errorf("what is pinned at %s is not of this process", dir), folder.Close())
	}
	// Where the old folder is only hidden by a mount, its pins would keep the maps.
	_ = unpin(d.lock)
	_ = d.lock.Close()
	d.lock = folder
	return nil
}

// cloneLink returns another handle of the same link.
func cloneLink(l link.Link) (link.Link, error) {
	raw, ok := l.(interface{ FD() int })
	if !ok {
		return nil, fmt.Errorf("link %T has no file descriptor", l)
	}
	fd, err := unix.FcntlInt(uintptr(raw.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the link's descriptor: %w", err)
	}
	return link.NewFromFD(fd)
}
