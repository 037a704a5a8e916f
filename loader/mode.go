// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
)

// The mode is one word, which the programs read for each packet that they would drop, and
// nobody else knows better: whoever writes it has changed the mode, at once and also for
// blocks that are there already. It stays when the process ends.

// Enforces reports the mode: true in mode enforce, in which the programs drop the packets of
// blocked flows and malformed fragments. In mode monitor they drop nothing.
func (t *Tables) Enforces() (bool, error) {
	if t.modeWord != nil {
		var word [unsafe.Sizeof(datapathMode{})]byte
		if _, err := t.modeWord.ReadAt(word[:], 0); err != nil {
			return false, fmt.Errorf("read map mode: %w", err)
		}
		return binary.NativeEndian.Uint32(word[:]) != 0, nil
	}
	var is datapathMode
	if err := t.mode.Lookup(uint32(0), &is); err != nil {
		return false, fmt.Errorf("read map mode: %w", err)
	}
	return is.Enforce != 0, nil
}

// SetMode changes the mode from the next packet on, and returns what it was. Monitor suspends
// all blocks, also those by hand: they stay, and their time goes on. Enforce takes them up
// again. It is refused with a [*MonitorOnlyError], and nothing is changed, where the
// attachment is for mode monitor only ([Options.MonitorOnly]).
func (t *Tables) SetMode(enforce bool) (was bool, err error) {
	if enforce {
		if err := t.mayEnforce(); err != nil {
			return false, err
		}
	}
	if was, err = t.Enforces(); err != nil {
		return false, err
	}
	return was, t.writeMode(enforce)
}

// SetModes is [Tables.SetMode] for several interfaces: where one of them refuses, none is
// changed, and the error has all that do. It returns those that had the other mode.
func SetModes(all []*Tables, enforce bool) (changed []*Tables, err error) {
	if enforce {
		errs := make([]error, len(all))
		for i, t := range all {
			errs[i] = t.mayEnforce()
		}
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
	}
	// All before any: interfaces of a group have one word.
	had := make([]bool, len(all))
	for i, t := range all {
		if had[i], err = t.Enforces(); err != nil {
			return nil, err
		}
	}
	for i, t := range all {
		_, e := t.SetMode(enforce)
		err = errors.Join(err, e)
		if e == nil && had[i] != enforce {
			changed = append(changed, t)
		}
	}
	return changed, err
}

// mayEnforce returns a [*MonitorOnlyError] where the attachment is for mode monitor only.
func (t *Tables) mayEnforce() error {
	var a datapathAttached
	if err := t.att.Lookup(uint32(0), &a); err != nil {
		return fmt.Errorf("read map attachment: %w", err)
	}
	if why := fromFixed(a.MonitorOnly[:]); why != "" {
		return &MonitorOnlyError{Interface: t.Interface(), Why: why}
	}
	return nil
}

func (t *Tables) writeMode(enforce bool) error {
	is := datapathMode{Enforce: uint32(bit(enforce))}
	if err := t.mode.Update(uint32(0), &is, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write map mode: %w", err)
	}
	return nil
}

// A MonitorOnlyError says why an interface can't be in mode enforce.
type MonitorOnlyError struct{ Interface, Why string }

// Error returns one lower-case line.
func (e *MonitorOnlyError) Error() string {
	return fmt.Sprintf("%s can't be in mode enforce: %s", e.Interface, e.Why)
}
