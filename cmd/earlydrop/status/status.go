// SPDX-License-Identifier: Apache-2.0

// Package status has what is told of an interface that something is pinned for: how it is
// attached, what was counted, and which flows are blocked. The JSON of its types is what
// `status --json` and `blocked list --json` print, one object on a line.
package status

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/earlydrop/earlydrop/loader"
)

// Status tells of one interface.
type Status struct {
	Interface string            `json:"interface"`
	Pins      string            `json:"pins"`    // folder
	Running   bool              `json:"running"` // the daemon exists
	PID       int               `json:"pid"`     // of the daemon, or of the last one
	Since     time.Time         `json:"since"`   // when it attached or adopted
	XDP       string            `json:"xdp"`     // native or generic
	Egress    string            `json:"egress"`  // tcx or clsact
	Mode      string            `json:"mode"`    // monitor or enforce
	OneHook   bool              `json:"one_hook"`
	OneWay    bool              `json:"one_way"`
	Policy    string            `json:"policy"`
	Model     string            `json:"model"`
	Version   string            `json:"version"`
	Flows     loader.Occupancy  `json:"occupancy"`
	Daemon    map[string]uint64 `json:"daemon"`   // what the daemon has counted
	Counters  map[string]uint64 `json:"counters"` // what the kernel has counted

	// Gone: nothing is attached any more.
	Gone bool `json:"-"`
	// Rows are Daemon and Counters in the order in which people are told of them.
	Rows loader.Counters `json:"-"`
}

// Read returns what there is to tell. It walks the maps, which takes some milliseconds
// for 100 000 flows.
func Read(t *loader.Tables) (*Status, error) {
	a, errA := t.Attachment()
	o, errO := t.Occupancy()
	counters, errC := t.Counters()
	daemon, errD := t.DaemonCounters()
	if err := errors.Join(errA, errO, errC, errD); err != nil {
		return nil, err
	}
	return &Status{
		Interface: a.Interface, Pins: t.PinDir(), Gone: a.Gone, Running: a.Alive, PID: a.PID, Since: a.Since, XDP: string(a.XDPMode), Egress: a.Egress,
		Mode: a.Mode, OneHook: a.OneHook, OneWay: a.OneWay, Policy: a.Policy, Model: a.Model, Version: a.Version, Flows: o,
		Daemon: daemon.Values(), Counters: counters.Values(), Rows: slices.Concat(daemon, counters),
	}, nil
}

// Block tells of one blocked flow.
type Block struct {
	Interface string         `json:"interface"`
	Lo        netip.AddrPort `json:"lo"` // the endpoint that compares lower
	Hi        netip.AddrPort `json:"hi"`
	Proto     string         `json:"proto"` // tcp or udp
	VLAN      uint16         `json:"vlan"`
	InnerVLAN uint16         `json:"inner_vlan"`
	Class     string         `json:"class"`
	Rule      string         `json:"rule"`
	Since     time.Time      `json:"since"`
	Expires   time.Time      `json:"expires"`
	Packets   uint64         `json:"packets"` // dropped so far
	Bytes     uint64         `json:"bytes"`
	Suspended bool           `json:"suspended"` // the mode is monitor: its packets pass
}

// NewBlock tells of a block of an interface. Suspended is the caller's to set.
func NewBlock(iface string, b *loader.Block) Block {
	return Block{
		Interface: iface, Lo: b.Key.Lo, Hi: b.Key.Hi, Proto: b.Key.Proto.String(), VLAN: b.Key.VLAN, InnerVLAN: b.Key.InnerVLAN,
		Class: b.Class, Rule: b.Rule, Since: b.Since, Expires: b.Expires, Packets: b.Packets, Bytes: b.Bytes,
	}
}

// Report tells of a gateway.
type Report struct {
	PID        int       `json:"pid"`
	Interfaces []*Status `json:"interfaces"`
}
