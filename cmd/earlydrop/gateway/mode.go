// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/policy"
)

// toldMode is the last mode of an interface that an event has told of.
type toldMode struct {
	mode    atomic.Uint32 // a policy.Mode
	telling sync.Mutex    // of the change of mode
}

// mode returns the mode of the interface as the programs have it, and tells if it was
// changed. Where it can't be read nothing is dropped.
func (a *attachment) mode() policy.Mode {
	mode, ok := a.readMode()
	if ok && uint32(mode) != a.told.mode.Load() {
		a.tellMode()
	}
	return mode
}

func (a *attachment) readMode() (policy.Mode, bool) {
	enforces, err := a.dp.Enforces()
	if err != nil || !enforces {
		return policy.Monitor, err == nil
	}
	return policy.Enforce, true
}

// tellMode tells that the mode was changed, once for each change.
func (a *attachment) tellMode() {
	a.told.telling.Lock()
	defer a.told.telling.Unlock()
	// Once more: another worker may have told, and this one have read the mode before.
	mode, ok := a.readMode()
	if !ok || uint32(mode) == a.told.mode.Load() {
		return
	}
	a.told.mode.Store(uint32(mode))
	a.put(&event.ModeChanged{Time: time.Now(), Interface: a.iface(), Mode: mode.String()})
}

// SetMode changes the mode of the interfaces that are named, or of all, from the next packet
// on, and returns those that had the other mode. Where one is not attached
// ([loader.ErrNotAttached]), or refuses the mode ([*loader.MonitorOnlyError]), none is changed.
func (g *Gateway) SetMode(mode policy.Mode, ifaces ...string) (changed []string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	chosen := g.attached
	if len(ifaces) > 0 {
		chosen = nil
	}
	for _, name := range ifaces {
		i := slices.IndexFunc(g.attached, func(a *attachment) bool { return a.iface() == name })
		if i < 0 {
			return nil, fmt.Errorf("%w to %s", loader.ErrNotAttached, name)
		}
		chosen = append(chosen, g.attached[i])
	}
	all := make([]*loader.Tables, len(chosen))
	for i, a := range chosen {
		all[i] = a.dp.Tables
	}
	of, err := loader.SetModes(all, mode == policy.Enforce)
	for _, t := range of {
		changed = append(changed, t.Interface())
	}
	for _, a := range chosen {
		a.mode() // tells
	}
	return changed, err
}
