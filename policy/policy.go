// SPDX-License-Identifier: Apache-2.0

// Package policy reads the operator's policy file and decides, flow by flow,
// what the classifier's verdict leads to.
//
// The order of a decision is fixed:
//
//  1. The allow-list. A flow that matches one of its entries passes, whatever
//     the rules say.
//  2. The rules, from top to bottom. A rule takes a flow when the predicted
//     class is one of its classes, the probabilities of its classes add up to
//     at least the rule's min_confidence, and none of its exceptions matches.
//     The first rule that takes the flow decides. They are added because a rule
//     with two classes asks whether the flow is one of them, not which: classes
//     that are hard to tell apart share the probability between them. Where the
//     outcome is flow.Unknown, as no class is likely enough to be named, the
//     likeliest stands for it: what is enough for a rule is its min_confidence. A
//     rule that names flow.Unknown takes every flow with this outcome. A flow that
//     was captured from its middle, or is resumed, is taken only by a rule with mid_stream, since
//     models know beginnings, and a UDP flow only by a rule with udp_unproven,
//     since its sender may be forged.
//  3. Otherwise the flow passes.
//
// A rule that names the class but does not take the flow (confidence too low,
// an exception, mid-stream, UDP) is stepped over: a later rule may still take it. If none
// does, the decision names the first rule that was stepped over, and why.
//
// Whether a drop is carried out is not decided here: in Monitor mode the
// caller logs it and lets the flow pass.
package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Mode says what the caller does with decisions.
type Mode uint8

// The modes. The zero value is the harmless one.
const (
	// Monitor decides and logs everything and drops nothing.
	Monitor Mode = iota
	// Enforce carries drops out.
	Enforce
)

// String returns the word of the policy file.
func (m Mode) String() string {
	if m == Enforce {
		return "enforce"
	}
	return "monitor"
}

// ParseMode is the inverse of String. The error names the word and the two
// that are known.
func ParseMode(s string) (Mode, error) {
	switch s {
	case "monitor":
		return Monitor, nil
	case "enforce":
		return Enforce, nil
	}
	return Monitor, fmt.Errorf("unknown mode %s%s; write monitor or enforce",
		quote(s), didYouMean(s, []string{"monitor", "enforce"}))
}

// Action is what a decision asks for.
type Action uint8

// The actions. The zero value lets the flow pass.
const (
	Pass Action = iota
	Drop
)

// String returns "pass" or "drop".
func (a Action) String() string {
	if a == Drop {
		return "drop"
	}
	return "pass"
}

// Reasons of a Decision: short, stable words for logs and statistics.
const (
	ReasonRule          = "rule"                 // a rule took the flow (Drop)
	ReasonAllowList     = "allow-list"           // an entry of the allow-list matched
	ReasonNoRule        = "no rule"              // no rule names the class
	ReasonLowConfidence = "below min_confidence" // the rule wants more confidence
	ReasonException     = "exception"            // an exception of the rule matched
	ReasonUDPUnproven   = "udp not treated"      // a UDP flow, and the rule has no udp_unproven
	ReasonMidStream     = "mid-stream"           // captured from its middle, and the rule has no mid_stream
)

// Decision is what becomes of one flow.
type Decision struct {
	Action Action
	// Rule names the rule that took the flow, or for Pass the first rule that
	// names the class and was stepped over. It is the entry, as Match.String
	// prints it, when the allow-list decided, and empty when no rule names
	// the class.
	Rule  string
	Class string // the predicted class, or flow.Unknown
	// Confidence, 0 to 1, is what was compared with min_confidence: the
	// probability that the flow is of one of the classes of Rule. Where no rule
	// was asked, or one for flow.Unknown, it is that of the likeliest class.
	Confidence float64
	TTL        time.Duration // how long the block is to last; 0 for Pass
	Reason     string        // one of the Reason constants
}

// Side says which endpoint of a flow the CIDR of a Match is compared with.
type Side uint8

// The sides.
const (
	AnySide       Side = iota // initiator or responder
	InitiatorSide             // the endpoint that opened the flow
	ResponderSide             // the endpoint that the flow was opened to
)

// String returns the word of the policy file.
func (s Side) String() string {
	switch s {
	case InitiatorSide:
		return "initiator"
	case ResponderSide:
		return "responder"
	}
	return "any"
}

// PortRange is a range of ports, both ends included, 1 to 65535.
type PortRange struct{ First, Last uint16 }

// String returns "443" or "8000-8100".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Match is an entry of the allow-list or an exception of a rule. It has a
// prefix, or ports, or both; then both have to fit.
type Match struct {
	// Prefix is compared with the endpoints that Side names. It is masked
	// (no host bits) and never v4-mapped: an IPv4 prefix also matches
	// v4-mapped IPv6 addresses. The zero Prefix fits every flow.
	Prefix netip.Prefix
	Side   Side
	// Ports are compared with the responder's port. None fit every flow.
	Ports []PortRange

	text string // String, worked out once
}

// String describes m in the words of the policy file.
func (m *Match) String() string {
	if m.text != "" {
		return m.text
	}
	var parts []string
	if m.Prefix.IsValid() {
		parts = append(parts, "cidr "+m.Prefix.String())
		if m.Side != AnySide {
			parts = append(parts, "side "+m.Side.String())
		}
	}
	if len(m.Ports) > 0 {
		ports := make([]string, len(m.Ports))
		for i, r := range m.Ports {
			ports[i] = r.String()
		}
		parts = append(parts, "port "+strings.Join(ports, ","))
	}
	return strings.Join(parts, " ")
}

// matches reports whether m fits a flow between the two endpoints, whose
// addresses are not v4-mapped.
func (m *Match) matches(initiator netip.Addr, responder netip.AddrPort) bool {
	if m.Prefix.IsValid() {
		in := m.Side != ResponderSide && m.Prefix.Contains(initiator) ||
			m.Side != InitiatorSide && m.Prefix.Contains(responder.Addr())
		if !in {
			return false
		}
	}
	if len(m.Ports) == 0 {
		return true
	}
	port := responder.Port()
	for _, r := range m.Ports {
		if r.First <= port && port <= r.Last {
			return true
		}
	}
	return false
}

func matchesAny(list []Match, initiator netip.Addr, responder netip.AddrPort) int {
	for i := range list {
		if list[i].matches(initiator, responder) {
			return i
		}
	}
	return -1
}

// Rule is one rule of a policy.
type Rule struct {
	Name string // unique in its policy
	// Classes are labels of the model, at least one, no duplicate; or
	// flow.Unknown alone.
	Classes       []string
	MinConfidence float64 // 0 to 1; 0 for flow.Unknown
	// ModelThreshold is true where MinConfidence is the model's threshold, as
	// the rule has none of its own.
	ModelThreshold bool
	Action         Action // always Drop: what no rule takes passes anyway
	TTL            time.Duration
	// MidStream is true for a rule that also takes flows that were captured from
	// their middle, and UDP flows that are resumed.
	MidStream bool
	// UDPUnproven is true for a rule that also takes UDP flows. Nothing proves that
	// their packets are from whom they say.
	UDPUnproven bool
	Except      []Match
}

// Policy is a checked policy. It is made by Load, Parse or Default and must
// not be changed afterwards; then all its methods are safe for concurrent use.
type Policy struct {
	Mode  Mode
	Allow []Match
	Rules []Rule
}

// TreatsMidStream reports whether a rule takes flows that were captured from their
// middle. Without one, capturing them has no effect but events.
func (p *Policy) TreatsMidStream() bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool { return r.MidStream })
}

// TreatsUDP reports whether a rule takes UDP flows. Without one they are identified
// and logged, and pass.
func (p *Policy) TreatsUDP() bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool { return r.UDPUnproven })
}

// asks reports whether the rule is about flows with this result.
func (rule *Rule) asks(r *flow.Result) bool {
	if r.Class == flow.Unknown && rule.Classes[0] != flow.Unknown && len(r.Scores) > 0 && len(r.Scores) == len(r.Labels) {
		likeliest := 0
		for i, p := range r.Scores {
			if p > r.Scores[likeliest] {
				likeliest = i
			}
		}
		return slices.Contains(rule.Classes, r.Labels[likeliest])
	}
	return slices.Contains(rule.Classes, r.Class)
}

// confidence returns the probability that a flow is of one of the rule's classes,
// at most 1: rounding must not carry a sum over it. A result without scores knows
// the predicted class's only; flow.Unknown has no probability of its own.
func (rule *Rule) confidence(r *flow.Result) float64 {
	if len(r.Scores) == 0 || len(r.Scores) != len(r.Labels) || rule.Classes[0] == flow.Unknown {
		return r.Confidence
	}
	var sum float64
	for i, label := range r.Labels {
		if slices.Contains(rule.Classes, label) {
			sum += r.Scores[i]
		}
	}
	if sum > 1 { // not min(): a sum that is no number has to stay one that is not
		return 1
	}
	return sum
}

// Decide returns what becomes of a flow that m describes and that the
// classifier gave the result r. It depends on nothing but p and its
// arguments, changes nothing, and does not allocate. Confidence that is not a
// number never reaches a rule's min_confidence.
func (p *Policy) Decide(m *flow.Meta, r flow.Result) Decision {
	d := Decision{Class: r.Class, Confidence: r.Confidence, Reason: ReasonNoRule}
	initiator, responder := m.Initiator().Addr().Unmap(), m.Responder()
	responder = netip.AddrPortFrom(responder.Addr().Unmap(), responder.Port())

	if i := matchesAny(p.Allow, initiator, responder); i >= 0 {
		d.Rule, d.Reason = p.Allow[i].String(), ReasonAllowList
		return d
	}
	for i := range p.Rules {
		rule := &p.Rules[i]
		if !rule.asks(&r) {
			continue
		}
		confidence, why := rule.confidence(&r), ReasonRule
		switch {
		// Not "<": it has to hold for a confidence that is not a number.
		case !(confidence >= rule.MinConfidence):
			why = ReasonLowConfidence
		case matchesAny(rule.Except, initiator, responder) >= 0:
			why = ReasonException
		case m.Key.Proto == flow.UDP && !rule.UDPUnproven:
			why = ReasonUDPUnproven
		case (m.MidStream || m.Resumed) && !rule.MidStream:
			why = ReasonMidStream
		default:
			d.Action, d.Rule, d.Reason, d.TTL = rule.Action, rule.Name, why, rule.TTL
			d.Confidence = confidence
			return d
		}
		if d.Rule == "" {
			d.Rule, d.Reason, d.Confidence = rule.Name, why, confidence
		}
	}
	return d
}
