// SPDX-License-Identifier: Apache-2.0

// Package status has what is told of an interface that something is pinned for: how it is
// attached, what was counted, what is worrying, and which flows are blocked. The JSON of
// its types is what `status --json` and `blocked list --json` print, one object on a line,
// and what the control socket answers. schema/v1.json describes it.
package status

import (
	_ "embed"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/earlydrop/earlydrop/loader"
)

// Schema is the JSON Schema (draft 2020-12) of Status, Report and Block. Its file is named
// after its version. Fields may be added to a version. Where one changes its meaning or
// its type, or goes, there is a new one.
//
//go:embed schema/v1.json
var Schema []byte

// Status tells of one interface.
type Status struct {
	Interface string    `json:"interface"`
	State     State     `json:"state"`
	Worries   []Worry   `json:"worries"` // the worst first
	Pins      string    `json:"pins"`    // folder
	Running   bool      `json:"running"` // the daemon exists
	PID       int       `json:"pid"`     // of the daemon, or of the last one
	Since     time.Time `json:"since"`   // when it attached or adopted
	Ingress   string    `json:"ingress"` // xdp, tcx or clsact
	// IngressWhy tells, in a line, why that hook was taken.
	IngressWhy string            `json:"ingress_why"`
	XDP        string            `json:"xdp"`    // native, generic, or none where Ingress is not xdp
	Egress     string            `json:"egress"` // tcx or clsact
	Mode       string            `json:"mode"`   // monitor or enforce
	OneHook    bool              `json:"one_hook"`
	OneWay     bool              `json:"one_way"`
	Policy     string            `json:"policy"`
	Model      string            `json:"model"`
	Version    string            `json:"version"`
	Flows      loader.Occupancy  `json:"occupancy"`
	Capacity   loader.Occupancy  `json:"capacity"` // the most that Flows can be
	Daemon     map[string]uint64 `json:"daemon"`   // what the daemon has counted
	Counters   map[string]uint64 `json:"counters"` // what the kernel has counted

	// What follows is known to the daemon alone, which tells of it over its socket.

	Classes map[string]uint64 `json:"classes,omitempty"` // flows by class
	Rules   map[string]Rule   `json:"rules,omitempty"`   // by name; those that detected something
	Latency *Latency          `json:"latency,omitempty"`
	// Recent is by how much counters grew lately that say that something passes unseen.
	Recent        map[string]uint64 `json:"recent,omitempty"`
	RecentSeconds float64           `json:"recent_seconds,omitempty"` // how long lately is

	// Gone: nothing is attached any more.
	Gone bool `json:"gone"`
	// Rows are Daemon and Counters in the order in which people are told of them.
	Rows loader.Counters `json:"-"`
	// Delays is what Latency is about, since the daemon attached; nil where it is not known.
	Delays *Histogram `json:"-"`
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
	s := &Status{
		Interface: a.Interface, Pins: t.PinDir(), Gone: a.Gone, Running: a.Alive, PID: a.PID, Since: a.Since, Ingress: a.Ingress, IngressWhy: a.IngressWhy, XDP: string(a.XDPMode), Egress: a.Egress,
		Mode: a.Mode, OneHook: a.OneHook, OneWay: a.OneWay, Policy: a.Policy, Model: a.Model, Version: a.Version, Flows: o, Capacity: t.Capacity(),
		Daemon: daemon.Values(), Counters: counters.Values(), Rows: slices.Concat(daemon, counters),
	}
	s.Judge()
	return s, nil
}

// Rule is what came of a rule.
type Rule struct {
	Detected uint64 `json:"detected"` // flows
	Blocked  uint64 `json:"blocked"`  // of them
}

// Latency is how long verdicts took lately, from the hand-over of a flow until the verdict
// was in the kernel's map.
type Latency struct {
	Verdicts uint64  `json:"verdicts"` // that the rest is about
	P50      float64 `json:"p50_us"`   // microseconds; half of the verdicts took at most so long
	P90      float64 `json:"p90_us"`
	P99      float64 `json:"p99_us"`
	Max      float64 `json:"max_us"`
}

// Histogram counts times by their size.
type Histogram struct {
	Count   uint64
	Sum     float64            // seconds
	Buckets map[float64]uint64 // by bound in seconds: how many took at most so long
}

// Block tells of one blocked flow.
type Block struct {
	Interface string         `json:"interface"`
	Lo        netip.AddrPort `json:"lo"` // the endpoint that compares lower
	Hi        netip.AddrPort `json:"hi"`
	Proto     string         `json:"proto"` // tcp or udp
	VLAN      uint16         `json:"vlan"`
	InnerVLAN uint16         `json:"inner_vlan"`
	Action    string         `json:"action"`         // drop, reset or limit
	Rate      uint64         `json:"rate,omitempty"` // bytes per second that pass, with limit
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
		Action: b.Action.String(), Rate: b.Rate, Class: b.Class, Rule: b.Rule, Since: b.Since, Expires: b.Expires, Packets: b.Packets, Bytes: b.Bytes,
	}
}

// Waiting tells of an interface that is waited for.
type Waiting struct {
	Interface string `json:"interface"`
	State     State  `json:"state"`           // Awaited
	Error     string `json:"error,omitempty"` // why it can't be attached to; empty where it is not there
}

// Report tells of a gateway.
type Report struct {
	PID        int       `json:"pid"`
	Version    string    `json:"version"`
	Device     string    `json:"device"` // that classifies
	Namespace  string    `json:"netns"`  // the network namespace, as /proc/PID/ns/net names it
	Interfaces []*Status `json:"interfaces"`
	// Waiting are interfaces that are to be attached to as soon as they can be.
	Waiting []Waiting `json:"waiting,omitempty"`
}
