// SPDX-License-Identifier: Apache-2.0

// Package control is the local API of a running gateway: HTTP and JSON over a unix
// socket, the server that a gateway has, and a client.
//
// Who may do what goes by the kernel's word on who connected (SO_PEERCRED,
// SO_PEERGROUPS), not by the socket's mode alone: members of the socket's group read, and
// edit blocks; root does all. Each change is an event of kind audit.
//
// The paths begin with /v1/. Fields and parameters may be added to a version; where one
// changes its meaning or its type, or goes, there is a new one. Every answer but events and
// captures is one JSON object, also where it is an error:
//
//	GET    /v1/about    which daemon this is, and what its interfaces are called
//	GET    /v1/status   what is attached, what was counted, what is worrying
//	GET    /v1/pairs    treated pairs: the keys of PairFilter, sort, limit
//	DELETE /v1/pairs    their treatment ends, and their evidence is forgotten: the keys of PairFilter but interface, or all=true
//	GET    /v1/top      one look at all that a live view shows: limit
//	GET    /v1/blocks   blocks: the keys of BlockFilter, sort, limit
//	POST   /v1/blocks   AddBlock: a flow is dropped from now on
//	DELETE /v1/blocks   blocks are lifted: the keys of BlockFilter, or all=true
//	POST   /v1/mode     SetMode: what is attached drops, or drops nothing, from now on; root only
//	POST   /v1/reload   the policy file is read again; root only
//	POST   /v1/model    UseModel: another model classifies from now on; root only
//	GET    /v1/history  events that are kept, one JSON object on a line: the keys of HistoryQuery
//	GET    /v1/why      why flows of an address were treated as they were: of, limit
//	GET    /v1/capture  the capture that is kept of an event, as a pcapng file: id
//	GET    /v1/events   events from now on, one JSON object on a line: the keys of EventFilter
package control

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/history"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/why"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// DefaultPath is where a daemon has its socket, and a client looks for it.
const DefaultPath = "/run/earlydrop/control.sock"

// GroupName is the group whose members may read, and edit blocks.
const GroupName = "earlydrop"

// Gateway is what a Server is the door to. Its methods are called concurrently.
type Gateway interface {
	// About returns a report without interfaces, and Interfaces the names of those.
	About() *status.Report
	Interfaces() []string
	// Report tells of the gateway and its interfaces.
	Report() (*status.Report, error)
	TopGateway
	PairGateway
	// Blocks returns the blocks of all interfaces.
	Blocks() ([]status.Block, error)
	// Block drops a flow from now on, until its time to live is over, and reports whether
	// that is suspended, as the interface is in mode monitor. The error wraps
	// loader.ErrNotAttached where the gateway has no such interface, and loader.ErrFull.
	Block(iface string, key flow.Key, ttl time.Duration) (suspended bool, err error)
	// Unblock lifts a block and tells of it as it was. The error wraps
	// loader.ErrNotAttached where the gateway has no such interface, and
	// ebpf.ErrKeyNotExist where the flow is not blocked there.
	Unblock(iface string, key flow.Key) (status.Block, error)
	// SetMode changes the mode of the interfaces that are named, or of all, and returns those
	// that had the other one. Where one is not attached (loader.ErrNotAttached), or must not
	// have it (*loader.MonitorOnlyError), none is changed.
	SetMode(mode policy.Mode, ifaces ...string) (changed []string, err error)
	// Reload has the policy loaded again, and UseModel another model taken over. After an
	// error without a result nothing was changed; with one, a part of what goes with it failed.
	Reload() (*Reloaded, error)
	UseModel(name string) (*Reloaded, error)
	// History returns what keeps the events, nil if nothing does.
	History() *history.History
	// Why says what is remembered of decisions.
	Why(*why.Query) *why.Answer
	// Follow returns events from now on. So many of them may wait.
	Follow(waiting int) *eventlog.Follower
	// Audit tells of what was asked for. It does not wait.
	Audit(*event.Audit)
}

// Flow names one flow. The order of its ends does not matter.
type Flow struct {
	Proto     string            `json:"proto"` // tcp or udp
	Ends      [2]netip.AddrPort `json:"ends"`
	VLAN      uint16            `json:"vlan,omitempty"`
	InnerVLAN uint16            `json:"inner_vlan,omitempty"`
}

// FlowOf names the flow of a key.
func FlowOf(k flow.Key) Flow {
	return Flow{Proto: k.Proto.String(), Ends: [2]netip.AddrPort{k.Lo, k.Hi}, VLAN: k.VLAN, InnerVLAN: k.InnerVLAN}
}

// Key returns the flow's key, or an error that says what is wrong.
func (f *Flow) Key() (flow.Key, error) {
	proto, err := parseProto(f.Proto)
	if err != nil {
		return flow.Key{}, err
	}
	for _, end := range f.Ends {
		switch {
		case !end.IsValid():
			return flow.Key{}, errors.New("a flow has two ends, each as ADDRESS:PORT, IPv6 as [ADDRESS]:PORT")
		case end.Addr().Zone() != "":
			return flow.Key{}, fmt.Errorf("%s: packets carry no zone; name the interface instead", end)
		}
	}
	if f.VLAN > 4095 || f.InnerVLAN > 4095 {
		return flow.Key{}, fmt.Errorf("vlan %d, inner_vlan %d: an ID is at most 4095", f.VLAN, f.InnerVLAN)
	}
	key, _ := flow.NewKey(f.Ends[0], f.Ends[1], proto, f.VLAN, f.InnerVLAN)
	return key, nil
}

func parseProto(word string) (flow.Proto, error) {
	switch word {
	case "tcp":
		return flow.TCP, nil
	case "udp":
		return flow.UDP, nil
	}
	return 0, fmt.Errorf("unknown protocol %q: use tcp or udp", word)
}

// AddBlock asks for a block.
type AddBlock struct {
	// Interface may be left out where the gateway has one only.
	Interface string `json:"interface,omitempty"`
	Flow
	TTL TTL `json:"ttl"`
}

// Added is the answer to AddBlock.
type Added struct {
	AddBlock
	Suspended bool `json:"suspended"` // the mode is monitor: its packets pass
}

// TTL is how long a block lasts. Its JSON is a text such as "10m" or "7d".
type TTL time.Duration

// MarshalText is for encoding/json.
func (t TTL) MarshalText() ([]byte, error) { return []byte(policy.FormatTTL(time.Duration(t))), nil }

// UnmarshalText is for encoding/json.
func (t *TTL) UnmarshalText(text []byte) error {
	d, err := policy.ParseTTL(string(text))
	*t = TTL(d)
	return err
}

// About says which daemon it is.
type About struct {
	PID        int      `json:"pid"`
	Version    string   `json:"version"` // of the program
	Namespace  string   `json:"netns"`   // the network namespace, as /proc/PID/ns/net names it
	Interfaces []string `json:"interfaces"`
}

// Blocks are those that a list was asked for.
type Blocks struct {
	Matched int            `json:"matched"` // how many there are, beyond the limit as well
	Blocks  []status.Block `json:"blocks"`
}

// UseModel asks for another model.
type UseModel struct {
	// File is its absolute path, or the name of one that the program ships.
	File string `json:"file"`
}

// Reloaded says what came of a reload, or of another model.
type Reloaded struct {
	Policy  string          `json:"policy"`            // where it is from
	Model   string          `json:"model"`             // name and version
	Was     string          `json:"was,omitempty"`     // the model before, if there is another one
	Changes *policy.Changes `json:"changes,omitempty"` // of the policy
	Lifted  int             `json:"lifted"`            // blocks that the policy of now would not make
}

// SetMode asks for a mode.
type SetMode struct {
	Mode string `json:"mode"` // monitor or enforce
	// Interface (optional) is the one that is meant; all without it.
	Interface string `json:"interface,omitempty"`
}

// ModeSet is the answer to SetMode.
type ModeSet struct {
	Mode    string   `json:"mode"`
	Changed []string `json:"changed"` // interfaces that had the other mode
}

// Lifted says what became of blocks that were lifted.
type Lifted struct {
	Blocks  int    `json:"blocks"`  // how many
	Packets uint64 `json:"packets"` // dropped by them
	Bytes   uint64 `json:"bytes"`
}

// An Error is a refusal or a failure that the server has told of.
type Error struct {
	Status  int    `json:"-"`     // HTTP's
	Message string `json:"error"` // one line that says what is wrong
}

// IsFull reports whether the table of blocks had no room.
func (e *Error) IsFull() bool { return e.Status == http.StatusInsufficientStorage }

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Is makes the error of an unknown interface or flow match ErrNotFound, and that of
// somebody without the right match ErrForbidden.
func (e *Error) Is(target error) bool {
	return target == ErrNotFound && e.Status == http.StatusNotFound || target == ErrForbidden && e.Status == http.StatusForbidden
}

// Errors of a client, besides *Error.
var (
	// ErrNoDaemon means that nobody listens at the socket.
	ErrNoDaemon = errors.New("no daemon listens")
	// ErrForbidden means that the caller has not the right.
	ErrForbidden = errors.New("forbidden")
	// ErrNotFound means that the daemon has no such interface, or that the flow is not
	// blocked there.
	ErrNotFound = errors.New("not found")
)

func badRequest(format string, args ...any) *Error {
	return &Error{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}
