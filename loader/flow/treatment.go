// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"fmt"
	"time"
)

// Action is what is done to the packets of a flow.
type Action uint8

// The actions. The zero value lets the flow pass.
const (
	Pass Action = iota
	Drop
	// Log lets the flow pass. Only events say that a rule was about it; no data path knows it.
	Log
	// Reset is Drop, and tells the ends of a TCP connection with a RST, where that can be
	// sent.
	Reset
	// Limit drops what is more than Treatment.Rate.
	Limit
)

// Blocks reports whether packets are dropped: not with Pass and Log.
func (a Action) Blocks() bool { return a == Drop || a == Reset || a == Limit }

// String returns "pass", "drop", "log", "reset", "limit" or the number.
func (a Action) String() string {
	switch a {
	case Pass:
		return "pass"
	case Drop:
		return "drop"
	case Log:
		return "log"
	case Reset:
		return "reset"
	case Limit:
		return "limit"
	}
	return fmt.Sprintf("action-%d", uint8(a))
}

// Scope is which packets a treatment is of.
type Scope uint8

// The scopes.
const (
	// ScopeFlow is one flow, both directions; of TCP one connection.
	ScopeFlow Scope = iota
	// ScopePair is all TCP flows of an initiator, or of an IPv6 network of 64 bits, to one
	// server address and port.
	ScopePair
)

// String returns "flow", "pair" or the number.
func (s Scope) String() string {
	switch s {
	case ScopeFlow:
		return "flow"
	case ScopePair:
		return "pair"
	}
	return fmt.Sprintf("scope-%d", uint8(s))
}

// Treatment is what is to be done to a flow, and why. The zero value lets it pass. What a
// data path can do may be less than can be asked for here: it refuses the rest.
type Treatment struct {
	Action Action
	Scope  Scope
	TTL    time.Duration // how long; 0 for Pass
	Rate   uint64        // with Limit, bytes per second that pass, both directions together; else 0
	Class  string        // what the flow was named
	Rule   string        // who says so: a rule of the policy, or ByHand
}

// ByHand is the Rule of a treatment that a person asked for. No rule can be called so.
const ByHand = "by hand"
