// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"os"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Detach stops the data path and removes programs, maps and pins.
func (d *DataPath) Detach() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var l netlink.Link
	var err error
	if d.ingress == nil || d.egress == nil { // a filter: it goes by the interface
		l, _, err = d.where()
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
	d.group.leave(d)
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
// (SIGTERM), or, where it holds other interfaces as well, to let go of this one, and waits
// for it at most ten seconds. An interface that is gone takes
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
		if pid := lockedBy(folder); holdsOthers(pid, p.dir) {
			// It goes on without this one, as it finds that the programs are gone.
			if err := detachPrograms(folder, p.link); err != nil {
				return err
			}
			err = waitForHolder(folder, name, pid)
		} else {
			err = stopHolder(folder, name)
		}
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil // it detached by itself
	case err != nil:
		return err
	}
	elsewhere := p.standing == standsElsewhere
	if id := pinnedFilter(inFolder(folder, "")); id != 0 && p.standing != standsHere {
		if elsewhere, err = filterElsewhere(folder, id); err != nil {
			return err
		}
	}
	if l, err := loadPinnedLink(inFolder(folder, ""), pinsEgress); err == nil {
		_ = l.Close()
	} else if elsewhere {
		return refused(nil, "%s is in another network namespace, and its egress filter can only be removed there", name)
	}
	return errors.Join(removeDataPath(folder, p.link), removeFolder(folder))
}
