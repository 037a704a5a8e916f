// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
)

// Tables are the maps of one attached interface, as any process with the rights
// can open them. Its methods are safe for concurrent use, also by several
// processes.
type Tables struct {
	at   atomic.Pointer[place]
	gone bool

	flows, blocked, pairs, exempt, collecting, counters, daemon, att, mode *ebpf.Map
	modeWord                                                               *ebpf.Memory // mode, where it can be read without a system call

	filter *blockFilter

	*blocks
	// own returns the interface's own addresses; nil: not known.
	own func() ([]netip.Addr, error)
}

// blocks is what is known of the blocks in a table.
type blocks struct {
	blocking sync.Mutex // of what follows, and of adding and removing blocks
	census   census
	evicted  []Block // that made room, for ExpireBlocks
}

// place is where a data path is: the interface's name, and the folder of the pins.
type place struct{ iface, dir string }

// Interface returns the present name of the interface. While it is in another network
// namespace that can't be seen, and it is the last one that was.
func (t *Tables) Interface() string { return t.at.Load().iface }

// PinDir returns the folder that everything is pinned in. It is called after the
// interface, with %2e for each dot, which the BPF file system does not take in names.
func (t *Tables) PinDir() string { return t.at.Load().dir }

// Attachment describes how an interface is attached.
type Attachment struct {
	Interface string
	PID       int       // of the daemon, or of the last one
	Alive     bool      // whether a daemon holds the interface
	Gone      bool      // nothing is attached: the interface was removed, or somebody detached the programs
	Since     time.Time // when it attached or adopted
	Ingress   string    // xdp, tcx or clsact
	// IngressWhy tells, in a line, why that hook was taken; cut to 159 bytes.
	IngressWhy string
	XDPMode    XDPMode // native or generic; none without XDP
	Egress     string  // tcx or clsact
	Mode       string  // monitor or enforce, as the programs have it
	OneHook    bool    // both directions come through one hook
	OneWay     bool    // connections of which one direction is seen are captured
	Version    string  // of the program that attached
	Model      string  // cut to 63 bytes
	Policy     string  // path, cut to 127 bytes

	MonitorOnly string // why SetMode refuses mode enforce; empty: it does not
}

// Open opens the pinned maps of an interface, by its present name. It returns an error
// that wraps [ErrNotAttached] when there are none.
func Open(iface string) (*Tables, error) {
	p, folder, err := openPinned(iface)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	return openTables(p, folder)
}

// OpenAll opens the pinned maps of every interface that something is pinned for, in the
// order of their names. The caller closes each, also when there is an error: that is about
// those which could not be opened.
func OpenAll() ([]*Tables, error) {
	found, err := allPinned()
	errs := []error{err}
	var all []*Tables
	for _, p := range found {
		t, err := func() (*Tables, error) {
			folder, err := openFolder(p.dir)
			if err != nil {
				return nil, err
			}
			defer folder.Close()
			t, err := openTables(p, folder)
			if !errors.Is(err, errIncomplete) {
				return t, err
			}
			if _, busy := daemonOf(folder); busy {
				return nil, ErrNotAttached // it is being attached or detached
			}
			return openTables(p, folder) // it may have been until now
		}()
		if errors.Is(err, ErrNotAttached) || errors.Is(err, os.ErrNotExist) && !errors.Is(err, errIncomplete) {
			continue // detached in the meantime
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, t)
	}
	return all, errors.Join(errs...)
}

// errIncomplete means that a pin is missing, or that something else has its name.
var errIncomplete = errors.New("incomplete pins")

func openTables(p *pinned, folder *os.File) (*Tables, error) {
	maps := make(map[string]*ebpf.Map)
	for _, name := range tableMaps {
		m, err := loadPinnedMap(inFolder(folder, pinName(name)))
		if err != nil {
			closeMaps(maps)
			switch {
			case !hasOwnPins(inFolder(folder, "")):
				return nil, fmt.Errorf("%w to %s (nothing at %s)", ErrNotAttached, p.iface, p.dir)
			case errors.Is(err, os.ErrPermission):
				return nil, noAccess(err, "map %s of %s can't be opened: permission denied", name, p.iface)
			}
			return nil, fmt.Errorf("%w of %s, detach and attach again: open map %s: %w", errIncomplete, p.iface, name, err)
		}
		maps[name] = m
	}
	t, err := newTables(p.iface, maps)
	if err != nil {
		closeMaps(maps)
		return nil, err
	}
	t.at.Store(&place{p.iface, p.dir})
	t.gone = p.standing == standsNowhere
	return t, nil
}

// tableMaps are the maps that Tables works on.
var tableMaps = []string{
	datapathMapFlows, datapathMapBlocked, datapathMapPairs, datapathMapExempt, datapathMapCollecting,
	datapathMapCounters, datapathMapDaemonCounters, datapathMapAttachment, datapathMapMode, mapBlockFilter,
}

// newTables takes over the maps that tableMaps names.
func newTables(iface string, maps map[string]*ebpf.Map) (*Tables, error) {
	filter, err := openBlockFilter(maps[mapBlockFilter])
	if err != nil {
		return nil, err
	}
	t := &Tables{
		blocks: new(blocks),
		filter: filter,
		flows:  maps[datapathMapFlows], blocked: maps[datapathMapBlocked],
		pairs: maps[datapathMapPairs], exempt: maps[datapathMapExempt],
		collecting: maps[datapathMapCollecting],
		counters:   maps[datapathMapCounters], daemon: maps[datapathMapDaemonCounters],
		att: maps[datapathMapAttachment], mode: maps[datapathMapMode],
	}
	// Of programs of before, it is no memory.
	t.modeWord, _ = t.mode.Memory()
	t.at.Store(&place{iface, pinDir(iface)})
	return t, nil
}

// Close gives the file descriptors back. It changes nothing in the kernel.
func (t *Tables) Close() error {
	errs := []error{t.filter.close()}
	for _, m := range []*ebpf.Map{t.flows, t.blocked, t.pairs, t.exempt, t.collecting, t.counters, t.daemon, t.att, t.mode, t.filter.m} {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

const batchSize = 4096 // entries per system call when a map is walked

// walk calls f for every entry of a hash map, a batch of entries per system call.
func walk[K, V any](m *ebpf.Map, f func(*K, *V)) error {
	var cursor ebpf.MapBatchCursor
	n := min(batchSize, int(m.MaxEntries()))
	keys, values := make([]K, n), make([]V, n)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			f(&keys[i], &values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read map %s: %w", m, err)
		}
	}
}

// Occupancy is how many flows, and pairs, are in which map.
type Occupancy struct {
	Flows      int `json:"flows"`      // handed over or decided
	Collecting int `json:"collecting"` // being captured
	Blocked    int `json:"blocked"`    // time left or not yet removed
	Pairs      int `json:"pairs"`      // treated, or not yet removed
}

// Occupancy walks the maps; it takes some milliseconds for 100 000 flows.
func (t *Tables) Occupancy() (Occupancy, error) {
	var o Occupancy
	err := errors.Join(
		walk(t.flows, func(_ *datapathFlowKey, _ *datapathFlow) { o.Flows++ }),
		walk(t.collecting, func(_ *datapathFlowKey, _ *datapathSlotRef) { o.Collecting++ }),
		walk(t.blocked, func(_ *datapathFlowKey, _ *datapathBlock) { o.Blocked++ }),
		walk(t.pairs, func(_ *datapathPairKey, _ *datapathPair) { o.Pairs++ }),
	)
	return o, err
}

// Attachment returns how the interface is attached.
func (t *Tables) Attachment() (Attachment, error) {
	var a datapathAttached
	if err := t.att.Lookup(uint32(0), &a); err != nil {
		return Attachment{}, fmt.Errorf("read map attachment: %w", err)
	}
	enforces, err := t.Enforces()
	if err != nil {
		return Attachment{}, err
	}
	mode := "monitor"
	if enforces {
		mode = "enforce"
	}
	pid, alive := int(a.Pid), false
	if folder, err := openFolder(t.PinDir()); err == nil {
		var holder int
		if holder, alive = daemonOf(folder); holder != 0 {
			pid = holder
		}
		_ = folder.Close()
	}
	return Attachment{
		Interface:  t.Interface(),
		PID:        pid,
		Alive:      alive,
		Gone:       t.gone,
		Since:      time.Unix(0, int64(a.AttachedNs)),
		Ingress:    fromFixed(a.Ingress[:]),
		IngressWhy: fromFixed(a.IngressWhy[:]),
		XDPMode:    XDPMode(fromFixed(a.XdpMode[:])),
		Egress:     fromFixed(a.Egress[:]),
		Mode:       mode,
		OneHook:    a.OneHook != 0,
		OneWay:     a.OneWay != 0,
		Version:    fromFixed(a.Version[:]),
		Model:      fromFixed(a.Model[:]),
		Policy:     fromFixed(a.Policy[:]),

		MonitorOnly: fromFixed(a.MonitorOnly[:]),
	}, nil
}
