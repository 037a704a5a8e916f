// SPDX-License-Identifier: Apache-2.0

// Package event has the events that a gateway or a replay tells of, and their JSON: one
// object on a line each, the same for live traffic and for capture files. The JSON is an
// interface: schema/v1.json describes it, field by field.
package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// Event is one of *Attached, *Waiting, *Verdict, *BlockEnded, *PairTreated, *PairEnded, *LeftOut,
// *ModeChanged, *Reloaded, *DeviceFailed, *Disagreed, *Audit, *Lost, *LimitReached and *Ended.
type Event interface {
	// Kind is what the event is called in its field "event".
	Kind() string
	// When is the event's field "time".
	When() time.Time
	head() *Head
}

// The kinds of events.
const (
	KindAttached    = "attached"
	KindWaiting     = "waiting"
	KindVerdict     = "verdict"
	KindBlockEnded  = "block_ended"
	KindPairTreated = "pair_treated"
	KindPairEnded   = "pair_ended"
	KindLeftOut     = "left_out"
	KindModeChanged = "mode_changed"
	KindReloaded    = "reloaded"
	KindDevice      = "device_failed"
	KindDisagreed   = "disagreed"
	KindAudit       = "audit"
	KindLost        = "lost"
	KindLimit       = "limit_reached"
	KindEnded       = "ended"
)

// Kinds are all of them.
var Kinds = []string{
	KindAttached, KindWaiting, KindVerdict, KindBlockEnded, KindPairTreated, KindPairEnded, KindLeftOut, KindModeChanged, KindReloaded, KindDevice, KindDisagreed, KindAudit, KindLost, KindLimit, KindEnded,
}

// Kind implements Event.
func (*Attached) Kind() string     { return KindAttached }
func (*Waiting) Kind() string      { return KindWaiting }
func (*Verdict) Kind() string      { return KindVerdict }
func (*BlockEnded) Kind() string   { return KindBlockEnded }
func (*PairTreated) Kind() string  { return KindPairTreated }
func (*PairEnded) Kind() string    { return KindPairEnded }
func (*LeftOut) Kind() string      { return KindLeftOut }
func (*ModeChanged) Kind() string  { return KindModeChanged }
func (*Reloaded) Kind() string     { return KindReloaded }
func (*DeviceFailed) Kind() string { return KindDevice }
func (*Disagreed) Kind() string    { return KindDisagreed }
func (*Audit) Kind() string        { return KindAudit }
func (*Lost) Kind() string         { return KindLost }
func (*LimitReached) Kind() string { return KindLimit }
func (*Ended) Kind() string        { return KindEnded }

// When implements Event.
func (e *Attached) When() time.Time     { return e.Time }
func (e *Waiting) When() time.Time      { return e.Time }
func (e *Verdict) When() time.Time      { return e.Time }
func (e *BlockEnded) When() time.Time   { return e.Time }
func (e *LeftOut) When() time.Time      { return e.Time }
func (e *LimitReached) When() time.Time { return e.Time }
func (e *ModeChanged) When() time.Time  { return e.Time }
func (e *Reloaded) When() time.Time     { return e.Time }
func (e *PairEnded) When() time.Time    { return e.Time }
func (e *PairTreated) When() time.Time  { return e.Time }
func (e *DeviceFailed) When() time.Time { return e.Time }
func (e *Disagreed) When() time.Time    { return e.Time }
func (e *Audit) When() time.Time        { return e.Time }
func (e *Lost) When() time.Time         { return e.Time }
func (e *Ended) When() time.Time        { return e.Time }

// Attached says that an interface is watched from now on.
type Attached struct {
	Time  time.Time      `json:"time"`
	Event word[attached] `json:"event"`
	Head
	Interface string `json:"interface"`
	Mode      string `json:"mode"`
	Ingress   string `json:"ingress"` // xdp, tcx or clsact
	// IngressWhy tells, in a line, why that hook was taken.
	IngressWhy string `json:"ingress_why"`
	XDP        string `json:"xdp"`     // native, generic, or none where ingress is not xdp
	Egress     string `json:"egress"`  // tcx or clsact
	Adopted    bool   `json:"adopted"` // what was pinned was taken over
	Policy     string `json:"policy"`  // file, or built-in
	Model      string `json:"model"`   // name and version
}

// Waiting says that an interface is not watched, and will be as soon as it can be.
type Waiting struct {
	Time  time.Time     `json:"time"`
	Event word[waiting] `json:"event"`
	Head
	Interface string `json:"interface"`
	Error     string `json:"error,omitempty"` // why not, where it is there
}

// Endpoints are the two ends of a flow. Of a verdict, Src is the initiator. Of the end of
// a block, which does not know it, Src is the lower of the two.
type Endpoints struct {
	Src       netip.AddrPort `json:"src"`
	Dst       netip.AddrPort `json:"dst"`
	Proto     string         `json:"proto"` // tcp or udp
	VLAN      uint16         `json:"vlan,omitempty"`
	InnerVLAN uint16         `json:"inner_vlan,omitempty"`
}

// Verdict says what a flow is, and what the policy says to it.
type Verdict struct {
	// Time is when the verdict was in the kernel's map, or, of a file, the time of the
	// capture's clock at which the flow would have been handed over.
	Time  time.Time     `json:"time"`
	Event word[verdict] `json:"event"`
	Head
	Interface string `json:"interface,omitempty"` // live
	File      string `json:"file,omitempty"`      // replay: where the flow begins
	Mode      string `json:"mode,omitempty"`      // live
	Endpoints
	Start time.Time `json:"start"` // arrival of the flow's first packet, in UTC

	Class      string  `json:"class"`              // the model's outcome; Naming says what decided
	Confidence float64 `json:"confidence"`         // of the likeliest label
	Scores     Scores  `json:"scores"`             // the probability of each label
	Decision   string  `json:"decision"`           // pass, log, limit, reset or drop, as the policy says
	Enforced   *bool   `json:"enforced,omitempty"` // live: the kernel does it
	Error      string  `json:"error,omitempty"`    // why a drop could not be enforced
	Rule       string  `json:"rule,omitempty"`     // the one that was asked
	Naming
	Reason string `json:"reason"`
	// PolicyLine is the line of the policy file where the rule, or the entry of the allow-list,
	// begins.
	PolicyLine int     `json:"policy_line,omitempty"`
	TTL        float64 `json:"ttl_seconds,omitempty"` // of the block
	Rate       uint64  `json:"rate,omitempty"`        // bytes per second that pass, of a decision to limit
	// Scope is pair where Decision is what becomes of the flow's pair; else it is empty.
	Scope string `json:"scope,omitempty"`
	// EvidenceFlows and EvidenceJudged say, of a rule that asks for evidence, how many flows of
	// the pair it has detected, of how many that were judged.
	EvidenceFlows  int `json:"evidence_flows,omitempty"`
	EvidenceJudged int `json:"evidence_judged,omitempty"`
	// EarlierBlocked is how many flows of the pair that passed before are blocked with it.
	EarlierBlocked int    `json:"earlier_blocked,omitempty"` // live
	Model          string `json:"model"`                     // name and version

	Captured   int    `json:"captured"`             // bytes that the model saw
	Complete   bool   `json:"complete"`             // all 1024 of them
	HandedOver string `json:"handed_over"`          // why then: full, closed, idle, end (of the file)
	Cut        bool   `json:"cut,omitempty"`        // replay: the file lacks bytes of a packet
	Incomplete bool   `json:"incomplete,omitempty"` // replay: too many of them
	MidStream  bool   `json:"mid_stream,omitempty"` // captured from its middle
	Resumed    bool   `json:"resumed,omitempty"`    // UDP that may have been there before
	OneWay     bool   `json:"one_way,omitempty"`    // one direction alone was seen
	// Scant: fewer than 64 bytes of payload were captured. MissingStart: the first bytes of a
	// side are missing.
	Scant        bool `json:"scant,omitempty"`
	MissingStart bool `json:"missing_start,omitempty"`
	// Provisional: more is captured where payload follows, and another verdict made. Revised:
	// the how many-th such verdict it is.
	Provisional bool `json:"provisional,omitempty"`
	Revised     int  `json:"revised,omitempty"`
	// Variant: of a range that came twice, with different bytes, the later ones were judged.
	Variant bool     `json:"variant,omitempty"`
	Signals []string `json:"signals,omitempty"` // what the first packets show that ordinary ones rarely do

	// Packets is how many packets the verdict was made from, and Bytes is their length on
	// the wire, link header included: of the capture, and not of the whole flow.
	Packets int    `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	// FlowPackets and FlowBytes count the whole flow, as far as the file was read.
	FlowPackets uint64 `json:"flow_packets,omitempty"` // replay
	FlowBytes   uint64 `json:"flow_bytes,omitempty"`   // replay

	VerdictMS float64 `json:"verdict_ms,omitempty"` // live: from the flow's first packet
	LatencyUS float64 `json:"latency_us,omitempty"` // live: from the hand-over to the verdict in the map
}

// BlockEnded says that the kernel drops a flow no longer.
type BlockEnded struct {
	Time  time.Time        `json:"time"`
	Event word[blockEnded] `json:"event"`
	Head
	Interface string `json:"interface"`
	Endpoints
	Class          string `json:"class,omitempty"` // the likeliest of the rule's classes; none of a block by hand
	Rule           string `json:"rule,omitempty"`
	Reason         string `json:"reason"` // why it ended
	DroppedPackets uint64 `json:"dropped_packets"`
	DroppedBytes   uint64 `json:"dropped_bytes"`
}

// PairEnds are the initiator and the server of a pair.
type PairEnds struct {
	Initiator netip.Prefix   `json:"initiator"` // an IPv4 address (/32), or an IPv6 network (/64)
	Server    netip.AddrPort `json:"server"`
	Proto     string         `json:"proto"` // tcp
	VLAN      uint16         `json:"vlan,omitempty"`
	InnerVLAN uint16         `json:"inner_vlan,omitempty"`
}

// EndsOf returns the ends of a pair.
func EndsOf(p flow.Pair) PairEnds {
	return PairEnds{p.Initiator, p.Server, flow.TCP.String(), p.VLAN, p.InnerVLAN}
}

// Pair returns the pair.
func (e *PairEnds) Pair() flow.Pair {
	return flow.Pair{Initiator: e.Initiator, Server: e.Server, VLAN: e.VLAN, InnerVLAN: e.InnerVLAN}
}

// PairTreated says that the kernel treats all connections of a pair from now on that begin at
// the interface, from their SYN on; in mode monitor that is suspended.
type PairTreated struct {
	Time  time.Time         `json:"time"`
	Event word[pairTreated] `json:"event"`
	Head
	Interface string `json:"interface"`
	PairEnds
	Class          string    `json:"class"`
	Rule           string    `json:"rule"`
	Action         string    `json:"action"`         // drop, reset or limit
	Rate           uint64    `json:"rate,omitempty"` // bytes per second that pass of each connection, with limit
	Until          time.Time `json:"until"`
	EvidenceFlows  int       `json:"evidence_flows,omitempty"` // as of Verdict
	EvidenceJudged int       `json:"evidence_judged,omitempty"`
}

// PairEnded says that the kernel treats a pair's connections no longer.
type PairEnded struct {
	Time  time.Time       `json:"time"`
	Event word[pairEnded] `json:"event"`
	Head
	Interface string `json:"interface"`
	PairEnds
	Class          string `json:"class"`
	Rule           string `json:"rule"`
	Reason         string `json:"reason"`          // why it ended
	Connections    uint64 `json:"connections"`     // that began meanwhile
	DroppedPackets uint64 `json:"dropped_packets"` // SYNs
	DroppedBytes   uint64 `json:"dropped_bytes"`
}

// LeftOut says how many verdicts on flows that pass undetected were not written since
// the last event of this kind.
type LeftOut struct {
	Time  time.Time     `json:"time"`
	Event word[leftOut] `json:"event"`
	Head
	Interface     string `json:"interface"`
	PassesLeftOut uint64 `json:"passes_left_out"`
}

// LimitReached is an alert: rules treated flows of so many initiators that what they do
// without evidence pauses.
type LimitReached struct {
	Time  time.Time          `json:"time"`
	Event word[limitReached] `json:"event"`
	Head
	Interface string `json:"interface"` // of the flow that was one too many
	Limit     string `json:"limit"`     // flows or share
	// Proven is true where it is about connections whose handshake both ends have made, and
	// false where about others, whose initiators may be forged. Each kind pauses by itself.
	Proven     bool      `json:"proven"`
	Initiators int       `json:"initiators"` // that had flows judged within the last hour
	Treated    int       `json:"treated"`    // of them, that had flows treated
	Until      time.Time `json:"until"`      // the end of the pause
}

// ModeChanged says that somebody changed the mode of an interface. Monitor suspends its
// blocks, enforce takes them up again.
type ModeChanged struct {
	Time  time.Time         `json:"time"`
	Event word[modeChanged] `json:"event"`
	Head
	Interface string `json:"interface"`
	Mode      string `json:"mode"` // since then
}

// Reloaded says that the policy was loaded again, or another model taken over; with Error,
// that it could not be, and nothing has changed.
type Reloaded struct {
	Time  time.Time      `json:"time"`
	Event word[reloaded] `json:"event"`
	Head
	Policy       string          `json:"policy"` // file, or built-in
	Model        string          `json:"model"`  // name and version, since then
	Was          string          `json:"model_was,omitempty"`
	Changes      *policy.Changes `json:"changes,omitempty"`
	BlocksLifted int             `json:"blocks_lifted,omitempty"`
	Error        string          `json:"error,omitempty"`
}

// DeviceFailed is an alert: a device that computes a model failed, and another one does since. No
// verdict is lost for it.
type DeviceFailed struct {
	Time  time.Time          `json:"time"`
	Event word[deviceFailed] `json:"event"`
	Head
	Device  string `json:"device"`
	Instead string `json:"instead"` // the device that computes since
	Model   string `json:"model"`   // name and version
	Error   string `json:"error"`   // of the device
}

// Disagreed says that the second model (attach --shadow) names a flow otherwise than the first,
// or that the policy would treat it otherwise then. Nothing else comes of it. Not every such
// flow has an event.
type Disagreed struct {
	Time  time.Time       `json:"time"`
	Event word[disagreed] `json:"event"`
	Head
	Interface string `json:"interface"`
	Endpoints
	First  Opinion `json:"first"`
	Second Opinion `json:"second"`
}

// Opinion is what a model says of a flow, and what the policy says then to that flow alone.
type Opinion struct {
	Model      string  `json:"model"` // name and version
	Class      string  `json:"class"`
	Confidence float64 `json:"confidence"` // of the likeliest label
	Decision   string  `json:"decision"`   // pass, drop or log
}

// Audit says who asked for a change over the control socket, and what became of it.
type Audit struct {
	Time  time.Time   `json:"time"`
	Event word[audit] `json:"event"`
	Head
	// UID, GID and PID are the kernel's word on who connected, at the time of that.
	UID       uint32 `json:"uid"`
	GID       uint32 `json:"gid"`
	PID       int32  `json:"pid"`
	Action    string `json:"action"`              // blocked_add, blocked_del, pairs_del, reload, mode or model
	Outcome   string `json:"outcome"`             // done, refused (nothing was changed) or failed (something may be)
	Interface string `json:"interface,omitempty"` // the one that was named
	Asked     string `json:"asked,omitempty"`     // what for, in words
	Blocks    int    `json:"blocks,omitempty"`    // that were made or removed
	Pairs     int    `json:"pairs,omitempty"`     // whose treatment was ended
	Error     string `json:"error,omitempty"`     // why it was refused, or failed
}

// Outcomes of what was asked for.
const (
	Done    = "done"
	Refused = "refused"
	Failed  = "failed"
)

// Lost says, in the stream of a reader that was too slow, how many events that reader
// did not get since the last event of this kind. It is in no file.
type Lost struct {
	Time  time.Time  `json:"time"`
	Event word[lost] `json:"event"`
	Head
	EventsLost uint64 `json:"events_lost"`
}

// Ended says that an interface is not watched any more, and what it came to.
type Ended struct {
	Time  time.Time   `json:"time"`
	Event word[ended] `json:"event"`
	Head
	Interface string            `json:"interface"`
	Mode      string            `json:"mode"`
	Classes   map[string]uint64 `json:"classes,omitempty"`  // flows by class
	Counters  map[string]uint64 `json:"counters,omitempty"` // those that are not 0
	Persisted bool              `json:"persisted"`          // the data path stays attached
	Error     string            `json:"error,omitempty"`    // why, although nobody asked for it
}

// NewVerdict returns what live traffic and files say alike of a sample.
func NewVerdict(s *flow.Sample, r *flow.Result, d *policy.Decision) *Verdict {
	return &Verdict{
		Time: s.Start.Add(s.Elapsed), Interface: s.Source.Interface, File: s.Source.File,
		Endpoints: Endpoints{Src: s.Initiator(), Dst: s.Responder(), Proto: s.Key.Proto.String(),
			VLAN: s.Key.VLAN, InnerVLAN: s.Key.InnerVLAN},
		Start: s.Start.UTC(),
		Class: r.Class, Confidence: r.Confidence, Scores: Scores{r.Labels, append([]float64(nil), r.Scores...)},
		Decision: d.Action.String(), Rule: d.Rule, Naming: NameFlow(d), Reason: d.Reason, PolicyLine: d.Line, TTL: d.TTL.Seconds(), Rate: d.Rate,
		Scope: ScopeOf(d.Scope), EvidenceFlows: d.Seen, EvidenceJudged: d.Judged,
		Captured: len(s.Data), Complete: s.Complete(), HandedOver: s.Reason.String(), Cut: s.Cut, Incomplete: s.Incomplete,
		MidStream: s.MidStream, Resumed: s.Resumed, OneWay: s.OneWay, Scant: s.Scant, MissingStart: s.MissingStart,
		Provisional: s.Provisional, Revised: s.Revision, Variant: s.Variant, Signals: s.Signals.Names(),
		Packets: len(s.Packets), Bytes: WireBytes(s),
	}
}

// ScopeOf returns the word for a scope, empty for that of flows.
func ScopeOf(s flow.Scope) string {
	if s == flow.ScopeFlow {
		return ""
	}
	return s.String()
}

// WireBytes returns how long the captured packets of a sample are on the wire together.
func WireBytes(s *flow.Sample) (n uint64) {
	for i := range s.Packets {
		n += uint64(s.Packets[i].WireLen)
	}
	return n
}

// word is the field "event" of a type: it has one value, which no code has to set.
type word[K interface{ kind() string }] struct{}

type (
	attached     struct{}
	waiting      struct{}
	verdict      struct{}
	blockEnded   struct{}
	pairTreated  struct{}
	pairEnded    struct{}
	leftOut      struct{}
	modeChanged  struct{}
	reloaded     struct{}
	deviceFailed struct{}
	disagreed    struct{}
	audit        struct{}
	lost         struct{}
	limitReached struct{}
	ended        struct{}
)

func (attached) kind() string     { return KindAttached }
func (waiting) kind() string      { return KindWaiting }
func (verdict) kind() string      { return KindVerdict }
func (blockEnded) kind() string   { return KindBlockEnded }
func (pairTreated) kind() string  { return KindPairTreated }
func (pairEnded) kind() string    { return KindPairEnded }
func (leftOut) kind() string      { return KindLeftOut }
func (modeChanged) kind() string  { return KindModeChanged }
func (reloaded) kind() string     { return KindReloaded }
func (deviceFailed) kind() string { return KindDevice }
func (disagreed) kind() string    { return KindDisagreed }
func (audit) kind() string        { return KindAudit }
func (lost) kind() string         { return KindLost }
func (limitReached) kind() string { return KindLimit }
func (ended) kind() string        { return KindEnded }

// String returns the word.
func (word[K]) String() string {
	var k K
	return k.kind()
}

// MarshalText is for encoding/json.
func (w word[K]) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText is for encoding/json. Another word is an error.
func (w word[K]) UnmarshalText(text []byte) error {
	if string(text) != w.String() {
		return fmt.Errorf("event %q is no %s", text, w)
	}
	return nil
}

// ErrUnknown is the error of a line whose kind is none of this package.
var ErrUnknown = errors.New("unknown kind of event")

// Decode returns the event of a line. Fields that this package does not know are left
// out: a newer program may write them.
func Decode(line []byte) (Event, error) {
	var head struct{ Event string }
	if err := json.Unmarshal(line, &head); err != nil {
		return nil, fmt.Errorf("not an event: %w", err)
	}
	var e Event
	switch head.Event {
	case KindAttached:
		e = new(Attached)
	case KindWaiting:
		e = new(Waiting)
	case KindVerdict:
		e = new(Verdict)
	case KindBlockEnded:
		e = new(BlockEnded)
	case KindPairTreated:
		e = new(PairTreated)
	case KindPairEnded:
		e = new(PairEnded)
	case KindModeChanged:
		e = new(ModeChanged)
	case KindLeftOut:
		e = new(LeftOut)
	case KindReloaded:
		e = new(Reloaded)
	case KindLimit:
		e = new(LimitReached)
	case KindDevice:
		e = new(DeviceFailed)
	case KindDisagreed:
		e = new(Disagreed)
	case KindAudit:
		e = new(Audit)
	case KindLost:
		e = new(Lost)
	case KindEnded:
		e = new(Ended)
	default:
		return nil, fmt.Errorf("%w: %q", ErrUnknown, head.Event)
	}
	if err := json.Unmarshal(line, e); err != nil {
		return nil, fmt.Errorf("event %s: %w", head.Event, err)
	}
	return e, nil
}

// DecodeAll returns the events of a text, one on each line.
func DecodeAll(text []byte) (events []Event, err error) {
	for d := NewDecoder(bytes.NewReader(text)); ; {
		e, err := d.Next()
		if err == io.EOF {
			return events, nil
		}
		if err != nil {
			return events, err
		}
		events = append(events, e)
	}
}

// Decoder reads events one after another.
type Decoder struct{ json *json.Decoder }

// NewDecoder returns a Decoder of r.
func NewDecoder(r io.Reader) *Decoder { return &Decoder{json.NewDecoder(r)} }

// Next returns the next event, io.EOF after the last one.
func (d *Decoder) Next() (Event, error) {
	var line json.RawMessage
	if err := d.json.Decode(&line); err != nil {
		return nil, err
	}
	return Decode(line)
}
