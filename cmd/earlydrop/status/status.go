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
	"github.com/earlydrop/earlydrop/loader/flow"
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
	Device  string            `json:"device,omitempty"` // that classifies
	// Verdicts counts flows by what decided: the largest first.
	Verdicts []Verdicts `json:"verdicts,omitempty"`
	// Traffic is what the interface has carried, by its own statistics; nil where they can't
	// be read. Rates is how fast counters grew lately.
	Traffic *loader.Traffic `json:"traffic,omitempty"`
	Rates   *Rates          `json:"rates,omitempty"`
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

// Verdicts are those that were decided alike.
type Verdicts struct {
	// Rule is the one that was asked; empty where none was, or where the allow-list decided.
	// Where there are too many to count each, it is OtherRules.
	Rule     string `json:"rule"`
	Decision string `json:"decision"` // pass, log, limit, reset or drop
	Reason   string `json:"reason"`
	Flows    uint64 `json:"flows"`
}

// OtherRules stands for all rules beyond those that are counted each.
const OtherRules = "(others)"

// Latency is how long verdicts took lately, from the hand-over of a flow until the verdict
// was in the kernel's map.
type Latency struct {
	Verdicts uint64 `json:"verdicts"` // that the rest is about
	Times
}

// Inference is how long the model took lately for batches of flows.
type Inference struct {
	Batches uint64 `json:"batches"` // that the rest is about
	Times
}

// Times says how long things took, in microseconds.
type Times struct {
	P50 float64 `json:"p50_us"` // half of them took at most so long
	P90 float64 `json:"p90_us"`
	P99 float64 `json:"p99_us"`
	Max float64 `json:"max_us"`
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

// Pair tells of an initiator and a server whose connections are treated as they begin.
type Pair struct {
	Interface   string         `json:"interface"`
	Initiator   netip.Prefix   `json:"initiator"` // an IPv4 address (/32), or an IPv6 network (/64)
	Server      netip.AddrPort `json:"server"`
	Proto       string         `json:"proto"` // tcp
	VLAN        uint16         `json:"vlan"`
	InnerVLAN   uint16         `json:"inner_vlan"`
	Action      string         `json:"action"`         // drop, reset or limit
	Rate        uint64         `json:"rate,omitempty"` // bytes per second that pass of each connection, with limit
	Class       string         `json:"class"`
	Rule        string         `json:"rule"`
	Since       time.Time      `json:"since"`
	Expires     time.Time      `json:"expires"`
	Connections uint64         `json:"connections"` // that began meanwhile
	Packets     uint64         `json:"packets"`     // SYNs that were dropped
	Bytes       uint64         `json:"bytes"`
	Last        time.Time      `json:"last,omitzero"` // when the last of them began
	Suspended   bool           `json:"suspended"`     // the mode is monitor: they pass
}

// NewPair tells of a pair of an interface. Suspended is the caller's to set.
func NewPair(iface string, p *loader.Pair) Pair {
	return Pair{
		Interface: iface, Initiator: p.Initiator, Server: p.Server, Proto: flow.TCP.String(), VLAN: p.VLAN, InnerVLAN: p.InnerVLAN,
		Action: p.Action.String(), Rate: p.Rate, Class: p.Class, Rule: p.Rule, Since: p.Since, Expires: p.Expires,
		Connections: p.Flows, Packets: p.Packets, Bytes: p.Bytes, Last: p.Last,
	}
}

// Pair returns which pair it is.
func (p *Pair) Pair() flow.Pair {
	return flow.Pair{Initiator: p.Initiator, Server: p.Server, VLAN: p.VLAN, InnerVLAN: p.InnerVLAN}
}

// Waiting tells of an interface that is waited for.
type Waiting struct {
	Interface string `json:"interface"`
	State     State  `json:"state"`           // Awaited
	Error     string `json:"error,omitempty"` // why it can't be attached to; empty where it is not there
}

// Report tells of a gateway.
type Report struct {
	Time       time.Time `json:"time"`  // when it was read
	Since      time.Time `json:"since"` // when the gateway began to work
	PID        int       `json:"pid"`
	Version    string    `json:"version"`
	Device     string    `json:"device"` // that classifies
	Namespace  string    `json:"netns"`  // the network namespace, as /proc/PID/ns/net names it
	Interfaces []*Status `json:"interfaces"`
	// Waiting are interfaces that are to be attached to as soon as they can be.
	Waiting []Waiting `json:"waiting,omitempty"`
	// History tells of the file that events are kept in; nil where there is none.
	History *History `json:"history,omitempty"`

	Model        string `json:"model"`         // name and version
	ModelDigest  string `json:"model_digest"`  // of its file, sha256:<hex>
	Policy       string `json:"policy"`        // file, or built-in
	PolicyDigest string `json:"policy_digest"` // of its text, sha256:<hex>
	Queue        Fill   `json:"queue"`         // captures that wait for the model
	// Inference is how long the model took lately; nil if it had nothing to do.
	Inference *Inference `json:"inference,omitempty"`
	Evidence  Evidence   `json:"evidence"`
	Reloads   Reloads    `json:"reloads"`

	// InferenceTimes is what Inference is about, since the gateway began.
	InferenceTimes *Histogram `json:"-"`
}

// Fill is how much of something with room for so much is used.
type Fill struct {
	Used int `json:"used"`
	Size int `json:"size"`
}

// Evidence is how much is known of pairs of initiator and server.
type Evidence struct {
	Undetected Fill `json:"undetected"` // pairs no flow of which was detected
	Detected   Fill `json:"detected"`   // pairs a flow of which was, and which are not treated
	Treated    Fill `json:"treated"`    // pairs that are treated, or were until their time was over
	// LimitsReached is how often a limit of the policy was reached. Until then rules pause:
	// for flows that prove nothing about their initiator, and for others.
	LimitsReached       uint64    `json:"limits_reached"`
	PausedUntil         time.Time `json:"paused_until,omitzero"`
	PausedUnprovenUntil time.Time `json:"paused_unproven_until,omitzero"`
}

// Reloads counts reloads of the policy, and changes of the model.
type Reloads struct {
	Done   uint64    `json:"done"`
	Failed uint64    `json:"failed"` // nothing was changed
	Last   time.Time `json:"last,omitzero"`
}

// History tells of the file that events are kept in.
type History struct {
	File   string    `json:"file"`
	Events uint64    `json:"events"`          // in the file
	Bytes  int64     `json:"bytes"`           // of the file that are in use
	Limit  int64     `json:"limit_bytes"`     // the most that Bytes may be
	Oldest time.Time `json:"oldest,omitzero"` // event
	Lost   uint64    `json:"lost"`            // events that are not in it since the daemon began, though they should be
	// CapturesLost is the same of captures.
	CapturesLost uint64 `json:"captures_lost,omitempty"`
	Error        string `json:"error,omitempty"` // why nothing can be written now
}
