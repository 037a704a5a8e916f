// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/parts"
)

// A Group is several interfaces between which flows move, such as the uplinks of a router:
// what one of them knows of a flow, and what it blocks, all of them do. To it they are one
// interface with one inside and one outside. Each has programs, counters and a ring buffer of
// its own; the tables of flows and blocks are the same maps.
//
// Those of its interfaces that one process attaches to name the same Group in their [Options],
// at once or one after another. A Group is safe for concurrent use.
type Group struct {
	names []string

	mu      sync.Mutex
	members []*DataPath // whose programs are loaded
	secret  hashSecret  // of the tables
	firstNs uint64

	sides sync.Mutex // while the map same_side is written
	parts sharedParts
	*blocks
}

// NewGroup returns a group of the interfaces with these names.
func NewGroup(names ...string) *Group {
	return &Group{names: slices.Clone(names), parts: sharedParts{store: parts.NewStore(parts.DefaultKept)}, blocks: new(blocks)}
}

// Names returns the names of its interfaces.
func (g *Group) Names() []string { return slices.Clone(g.names) }

// ownMaps are the maps that each interface of a group has for itself.
var ownMaps = []string{datapathMapSamples, datapathMapCounters, datapathMapDaemonCounters, datapathMapAttachment, datapathMapMode, datapathMapResetBucket, datapathMapHeartbeat}

// isShared reports whether the interfaces of a group have a map in common.
func isShared(name string) bool { return outlives(name) && !slices.Contains(ownMaps, name) }

// shared is what an interface gets from another one of its group.
type shared struct {
	with    string // the other one
	maps    map[string]*ebpf.Map
	secret  hashSecret
	firstNs uint64
}

// shared returns what there is of the group already, nil if nothing. The caller closes it.
func (g *Group) shared() (*shared, error) {
	if g == nil {
		return nil, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.members) == 0 {
		return nil, nil
	}
	first := g.members[0]
	s := &shared{with: first.Interface(), maps: map[string]*ebpf.Map{}, secret: g.secret, firstNs: g.firstNs}
	for name, m := range first.coll.Maps {
		if !isShared(name) {
			continue
		}
		again, err := m.Clone()
		if err != nil {
			closeMaps(s.maps)
			return nil, fmt.Errorf("share map %s of %s: %w", name, s.with, err)
		}
		s.maps[name] = again
	}
	return s, nil
}

func (s *shared) close() {
	if s != nil {
		closeMaps(s.maps)
	}
}

// apply has the objects use what is shared.
func (s *shared) apply(spec *ebpf.CollectionSpec) error {
	for name, m := range s.maps {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	return errors.Join(spec.Variables[datapathVarCfgHashSecret].Set(s.secret), spec.Variables[datapathVarCfgFirstAttachNs].Set(s.firstNs))
}

// join makes d one of the group, whose programs are loaded as of spec.
func (g *Group) join(d *DataPath, spec *ebpf.CollectionSpec) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	err := errors.Join(spec.Variables[datapathVarCfgHashSecret].Get(&g.secret), spec.Variables[datapathVarCfgFirstAttachNs].Get(&g.firstNs))
	if err != nil {
		return err
	}
	g.members = append(g.members, d)
	d.blocks = g.blocks
	return nil
}

// leave undoes join. What is built on d's interface is not a side of the others any more.
func (g *Group) leave(d *DataPath) {
	if g == nil {
		return
	}
	g.mu.Lock()
	g.members = slices.DeleteFunc(g.members, func(other *DataPath) bool { return other == d })
	rest := slices.Clone(g.members)
	g.mu.Unlock()
	for _, other := range rest {
		if other.sides != nil && other.sides.update() == nil {
			return
		}
	}
}

// indexes returns those of the interfaces that are attached.
func (g *Group) indexes() (all []int32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, d := range g.members {
		all = append(all, d.index.Load())
	}
	return all
}

// misfit says why an interface can't go on with its pinned maps: they are not those that its
// group shares, or others share them. It is empty if it can.
func (d *DataPath) misfit(pinned map[string]*ebpf.Map, opts *Options, base *shared) (string, error) {
	own, err := mapID(pinned[datapathMapBlocked])
	if err != nil {
		return "", err
	}
	if base != nil {
		theirs, err := mapID(base.maps[datapathMapBlocked])
		if err != nil || theirs == own {
			return "", err
		}
		return "its flows are shared with " + base.with + " from now on", nil
	}
	entries, err := os.ReadDir(pinRoot)
	if err != nil {
		return "", fmt.Errorf("read the pins: %w", err)
	}
	for _, e := range entries {
		name, ok := interfaceOf(e.Name())
		dir := filepath.Join(pinRoot, e.Name())
		if !ok || isAt(d.lock, dir) || opts.Group != nil && slices.Contains(opts.Group.names, name) {
			continue
		}
		m, err := loadPinnedMap(filepath.Join(dir, pinName(datapathMapBlocked)))
		if err != nil {
			continue // nothing of ours
		}
		theirs, err := mapID(m)
		_ = m.Close()
		if err == nil && theirs == own {
			return "its flows were shared with " + name, nil
		}
	}
	return "", nil
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("read about map %s: %w", m, err)
	}
	id, ok := info.ID()
	if !ok {
		return 0, fmt.Errorf("the kernel does not tell the id of map %s", m)
	}
	return id, nil
}

// hasPins reports whether anything of ours is pinned for the interface.
func (i *iface) hasPins() bool {
	return slices.ContainsFunc(pinDirs(i.name), hasOwnPins)
}

// joiner puts captures together that ended early.
type joiner interface{ Join(*flow.Sample) }

// sharedParts is a store of parts for several readers: a flow may go on at another interface.
type sharedParts struct {
	mu    sync.Mutex
	store *parts.Store
}

// Join is that of the store.
func (p *sharedParts) Join(s *flow.Sample) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.store.Join(s)
}
