// SPDX-License-Identifier: Apache-2.0

// Package policy reads the operator's policy file and decides, flow by flow,
// what the classifier's verdict leads to.
//
// The order of a decision is fixed:
//
//  1. The allow-list. A flow that matches one of its entries passes, whatever
//     the rules say.
//  2. The rules, from top to bottom. A rule treats a flow when the flow is one of
//     those that the rule is for (proto, from, to, interface, vlan), the predicted
//     class is one of its classes, the probabilities of its classes add up to
//     at least the rule's min_confidence, and none of its exceptions matches.
//     The first rule that treats the flow decides.
//  3. Otherwise the flow passes.
//
// Probabilities are added because a rule with two classes asks whether the flow is one
// of them, not which: classes that are hard to distinguish share the probability
// between them. Where no class is likely enough to be named, the outcome is
// flow.Unknown, and the likeliest class is compared instead: min_confidence says what is
// enough for a rule. A rule that names flow.Unknown treats every flow with this outcome.
//
// Some flows are treated only by rules that say so:
//
//   - mid_stream: captured from the middle, or resumed. Models know beginnings.
//   - udp_unproven: UDP. Its sender may be forged.
//   - one_way: a connection of which one direction was seen. It may be forged as well.
//
// A rule with signals treats only flows that show one of them. No rule treats an
// incomplete flow, of which a capture file holds too little, or a UDP flow that was
// handed over with fewer than 64 bytes of payload: its verdict is final. That of a TCP flow
// of which more may be captured is provisional, and revised then; with provisional, a rule
// treats these flows alone, or none of them.
//
// A rule with evidence treats more than flows: see Evidence. What a flow is evidence for is
// part of the decision. To count it, and to know what it has come to, is for package
// evidence.
//
// A rule that names the class but does not treat the flow (confidence too low,
// an exception, mid-stream, UDP) is stepped over: a later rule may still treat it. If none
// does, the decision names the first rule that was stepped over, and why.
//
// Whether a drop is carried out is not decided here: in Monitor mode the
// caller logs it and lets the flow pass.
package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy/yamlfile"
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
		yamlfile.Quote(s), yamlfile.DidYouMean(s, []string{"monitor", "enforce"}))
}

// Reasons of a Decision: short, stable words for logs and statistics.
const (
	ReasonRule          = "rule"                 // a rule treats the flow (Drop)
	ReasonAllowList     = "allow-list"           // an entry of the allow-list matched
	ReasonNoRule        = "no rule"              // no rule names the class, for such a flow
	ReasonLowConfidence = "below min_confidence" // the rule wants more confidence
	ReasonException     = "exception"            // an exception of the rule matched
	ReasonUDPUnproven   = "udp not treated"      // a UDP flow, and the rule has no udp_unproven
	ReasonOneWay        = "one-way"              // one direction alone was seen, and the rule has no one_way
	ReasonMidStream     = "mid-stream"           // captured from its middle, and the rule has no mid_stream
	ReasonNoSignal      = "no signal"            // the flow shows none of the signals that the rule asks for
	ReasonProvisional   = "provisional"          // more may be captured, and the rule waits for it
	ReasonFinal         = "final"                // no more is captured, and the rule is for flows where it may be
	ReasonPartial       = "not complete"         // fewer than 1024 bytes are in, and the rule is for complete captures
	ReasonComplete      = "complete"             // all 1024 bytes are in, and the rule is for captures that are not complete
	ReasonMeanwhile     = "meanwhile"            // the rule waits for evidence, to which the flow was added
	ReasonEvidence      = "evidence"             // there is enough evidence for the rule to treat the pair
	ReasonPair          = "pair"                 // the flow began while its pair was treated
	ReasonPaused        = "paused"               // the rule would treat the flow, but a limit was reached
	ReasonExempt        = "exempt"               // somebody has lifted a block of the flow, so that it passes for its life
	ReasonScant         = "scant"                // fewer than 64 payload bytes of a UDP flow, or of a TCP flow without its decoys
	ReasonIncomplete    = "incomplete"           // too little of the flow is in the capture file
)

// Reasons are all of them.
var Reasons = []string{
	ReasonRule, ReasonAllowList, ReasonNoRule, ReasonLowConfidence, ReasonException, ReasonUDPUnproven, ReasonOneWay, ReasonMidStream, ReasonNoSignal,
	ReasonProvisional, ReasonFinal, ReasonPartial, ReasonComplete, ReasonMeanwhile, ReasonEvidence, ReasonPair, ReasonPaused, ReasonExempt, ReasonScant, ReasonIncomplete,
}

// Decision is what becomes of one flow.
type Decision struct {
	Action flow.Action
	// Rule names the rule that detected the flow, or for Pass the first rule that
	// names the class and was stepped over. It is the entry, as Match.String
	// prints it, when the allow-list decided, and empty when no rule names
	// the class.
	Rule string
	// RuleClasses names what Confidence is about: those classes of Rule that
	// nearly all of it comes from, in the rule's order, joined by "|". The
	// classes left out have less than a twentieth of Confidence together. It is
	// empty when no rule was asked.
	RuleClasses string
	// Class is what the flow is called where there is room for one word. For a
	// flow that a rule detected it is the likeliest of the rule's classes, and
	// flow.Unknown only if the rule names that. Otherwise it is the predicted
	// class, or flow.Unknown.
	Class string
	// Likeliest is the model's likeliest label: the predicted class, or the label
	// that was not likely enough to be predicted. It is flow.Unknown only for a
	// result without scores.
	Likeliest string
	// Confidence, 0 to 1, is what was compared with min_confidence: the
	// probability that the flow is of one of the classes of Rule. Where no rule
	// was asked, or one for flow.Unknown, it is that of the likeliest class.
	Confidence float64
	// Detected is true when a rule found enough of its classes in the flow. Such
	// a flow passes only because of an exception or the allow-list, or as it was
	// captured from its middle.
	Detected bool
	// Line is where the policy file has Rule, or the entry of the allow-list: the number of its
	// first line, from 1. It is 0 where neither decided.
	Line   int
	TTL    time.Duration // how long the block is to last; 0 for Pass
	Rate   uint64        // bytes per second that pass, for Limit; else 0
	Reason string        // one of the Reason constants
	// Scope is flow.ScopePair where Action is what becomes of the flow's pair.
	Scope flow.Scope
	// Counts says which rules with evidence the flow is evidence for: bit i is for
	// EvidenceRule(i).
	Counts uint64
	// Seen and Judged say what there is of evidence with this flow, where the rule has
	// evidence and package evidence has counted it: flows of the pair that the rule
	// detected, and all that were judged.
	Seen, Judged int
}

// Treatment returns what the decision asks for.
func (d *Decision) Treatment() flow.Treatment {
	if !d.Action.Blocks() {
		return flow.Treatment{}
	}
	return flow.Treatment{Action: d.Action, TTL: d.TTL, Rate: d.Rate, Class: d.Class, Rule: d.Rule}
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
// prefix or a set, or ports, or both; then both have to fit.
type Match struct {
	// Prefix is compared with the endpoints that Side names. It is masked
	// (no host bits) and never v4-mapped: an IPv4 prefix also matches
	// v4-mapped IPv6 addresses. The zero Prefix fits every flow.
	Prefix netip.Prefix
	Set    *Set // instead of Prefix
	Side   Side
	// Ports are compared with the responder's port. None fit every flow.
	Ports []PortRange
	// Exempt says, of an entry of the allow-list, whether its networks are among those that
	// Policy.Exempt returns. With nil they are if there is room.
	Exempt *bool
	Line   int // of the file, from 1

	text string // String, worked out once
}

// String describes m in the words of the policy file.
func (m *Match) String() string {
	if m.text != "" {
		return m.text
	}
	var parts []string
	if m.Prefix.IsValid() || m.Set != nil {
		if m.Set != nil {
			parts = append(parts, "set "+m.Set.Name)
		} else {
			parts = append(parts, "cidr "+m.Prefix.String())
		}
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
	if m.Exempt != nil {
		parts = append(parts, fmt.Sprintf("exempt %v", *m.Exempt))
	}
	return strings.Join(parts, " ")
}

// Endpoint is one of the ends that a rule is for: a prefix, as of a Match, or a set, and
// the ports of that end, or ports alone.
type Endpoint struct {
	Prefix netip.Prefix
	Set    *Set
	Ports  []PortRange
}

// VLANRange is a range of 802.1Q IDs, both ends included. 0 is a flow without a tag.
type VLANRange struct{ First, Last uint16 }

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
	Action         flow.Action // Drop, Reset, Limit, or Log: only events say that the rule fits
	Rate           uint64      // bytes per second that Limit lets pass; 0 without
	TTL            time.Duration
	// Proto, From, To, Interfaces and VLANs say which flows the rule is for, where they are
	// not zero: only flows of this protocol, from such an initiator, to such a responder,
	// captured on such an interface (flows of files are of none), and with such an outer
	// VLAN ID.
	Proto      flow.Proto
	From, To   []Endpoint
	Interfaces []string
	VLANs      []VLANRange
	// Complete says whether the rule takes only captures of all 1024 bytes (true), or only
	// others (false). With nil it takes both.
	Complete *bool
	// Evidence (optional) has the rule treat pairs, and not only flows.
	Evidence *Evidence
	// Meanwhile is what a rule with evidence does to a flow that is enough for MinConfidence
	// as long as the pair is not treated: Drop, or Log for nothing.
	Meanwhile flow.Action
	// MidStream is true for a rule that also treats flows that were captured from
	// their middle, UDP flows that are resumed, and TCP flows of which the first bytes
	// of a side are missing.
	MidStream bool
	// UDPUnproven is true for a rule that also treats UDP flows. Nothing proves that
	// their packets are from whom they say.
	UDPUnproven bool
	// OneWay is true for a rule that also treats TCP connections of which one direction
	// alone was seen: whoever can send in that direction can forge them.
	OneWay bool
	// Provisional says whether the rule takes flows only whose verdict is provisional
	// (true), or only others (false). With nil it takes both.
	Provisional *bool
	// Signals, if there are any, make it a rule for flows that show one of them.
	Signals flow.Signals
	Except  []Match
	Line    int // of the file, from 1

	from, to *table   // nil: any
	except   *matcher // nil: none
	counts   uint64   // its bit in Decision.Counts; 0 without evidence
}

// Evidence is what a rule waits for before it treats a pair: the flows of an initiator (one
// IPv4 address, or an IPv6 network of 64 bits) to one server address and TCP port. It treats
// the pair once Flows of its flows were detected within Within, and these are at least Share
// of those of its flows that were judged in this time.
//
// Only connections whose handshake both ends have made are evidence, or are judged: nobody
// can make those for another. So UDP flows, and TCP flows of which one direction or no
// beginning was seen, are evidence for nothing.
type Evidence struct {
	Flows  int           // 2 to MaxEvidenceFlows
	Share  float64       // above 0, at most 1
	Within time.Duration // MinTTL to MaxWithin
	// MinConfidence is what a flow needs to be counted as detected, 0 to 1.
	MinConfidence float64
}

// Limits bound what rules do without evidence. The zero value sets none.
type Limits struct {
	// Flows is how many flows may be treated within Per, where an initiator (one IPv4
	// address, or an IPv6 network of 64 bits) counts once an hour; 0: any number.
	Flows int
	Per   time.Duration
	// Share, above 0 and at most 1, is how many of the initiators of an hour may have flows
	// treated, from eight initiators on; 0: all.
	Share float64
}

// PauseTime is how long rules without evidence pause once a limit is reached.
const PauseTime = 10 * time.Minute

// DefaultLimits are those of a policy that says nothing of limits.
var DefaultLimits = Limits{Flows: 200, Per: time.Minute, Share: 0.25}

// Policy is a checked policy. It is made by Load, Parse or Default and must
// not be changed afterwards; then all its methods are safe for concurrent use.
type Policy struct {
	Mode  Mode
	Allow []Match
	Rules []Rule
	// Limits bound what rules without evidence do. Where one is reached, such rules pause.
	Limits Limits
	// Protect has the operator's own networks, of which no server is ever that of a treated
	// pair.
	Protect []Endpoint
	// Sets are those of the policy, in order of their names.
	Sets []*Set
	// OneHook is true where flows may be dropped although both directions come through
	// one hook, so that their numbers alone prove connections.
	OneHook bool
	// Digest is that of the policy file's text, as "sha256:<hex>"; of a Policy that was not
	// parsed it is empty. The files of sets are not in it.
	Digest string

	allow    *matcher
	protect  *table
	evidence []int // the rules that have it
}

// prepare makes what Decide works with.
func (p *Policy) prepare() {
	p.allow, p.protect, p.evidence = newMatcher(p.Allow), newEndpoints(p.Protect), nil
	for i := range p.Rules {
		r := &p.Rules[i]
		r.from, r.to, r.except = newEndpoints(r.From), newEndpoints(r.To), newMatcher(r.Except)
		if r.counts = 0; r.Evidence != nil {
			r.counts = 1 << len(p.evidence)
			p.evidence = append(p.evidence, i)
		}
	}
}

// EvidenceRule returns the rule with evidence number i, from 0, or nil if there are not so many.
func (p *Policy) EvidenceRule(i int) *Rule {
	if i >= len(p.evidence) {
		return nil
	}
	return &p.Rules[p.evidence[i]]
}

// PairRule returns the rule with evidence of that name, or nil if there is none, or if it is
// not for flows such as m.
func (p *Policy) PairRule(name string, m *flow.Meta) *Rule {
	for _, i := range p.evidence {
		rule, initiator, responder := &p.Rules[i], unmapped(m.Initiator()), unmapped(m.Responder())
		if rule.Name == name && rule.isFor(m, initiator, responder) && rule.except.first(initiator.Addr(), responder) < 0 {
			return rule
		}
	}
	return nil
}

// Does reports whether a rule has the action, or has it meanwhile.
func (p *Policy) Does(action flow.Action) bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool {
		return r.Action == action || r.Evidence != nil && r.Meanwhile == action
	})
}

// DropsTCP reports whether a rule may drop or reset TCP flows.
func (p *Policy) DropsTCP() bool {
	drops := func(a flow.Action) bool { return a == flow.Drop || a == flow.Reset }
	return slices.ContainsFunc(p.Rules, func(r Rule) bool {
		return r.Proto != flow.UDP && (drops(r.Action) || r.Evidence != nil && drops(r.Meanwhile))
	})
}

// TreatsPairs reports whether a rule has evidence, so that pairs are treated.
func (p *Policy) TreatsPairs() bool { return len(p.evidence) > 0 }

// WithoutEvidence returns the policy with rules that treat flows alone, for where many hosts are
// one initiator: a rule with evidence does what it does meanwhile, and no more.
func (p *Policy) WithoutEvidence() *Policy {
	alone := *p
	alone.Rules = slices.Clone(p.Rules)
	for i := range alone.Rules {
		if r := &alone.Rules[i]; r.Evidence != nil {
			if r.Action, r.Evidence = r.Meanwhile, nil; r.Action == flow.Log {
				r.TTL = 0
			}
			r.Meanwhile = flow.Pass
		}
	}
	alone.prepare()
	return &alone
}

// Protects reports whether a pair with this server is never treated.
func (p *Policy) Protects(server netip.Addr) bool {
	return p.protect != nil && p.protect.first(server.Unmap(), 0) >= 0
}

// Allows reports whether the allow-list has a flow between the two.
func (p *Policy) Allows(initiator netip.Addr, responder netip.AddrPort) bool {
	return p.allow.first(initiator.Unmap(), netip.AddrPortFrom(responder.Addr().Unmap(), responder.Port())) >= 0
}

// TreatsMidStream reports whether a rule treats flows that were captured from their
// middle. Without one, capturing them has no effect but events.
func (p *Policy) TreatsMidStream() bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool { return r.MidStream })
}

// TreatsUDP reports whether a rule treats UDP flows. Without one they are identified
// and logged, and pass.
func (p *Policy) TreatsUDP() bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool { return r.UDPUnproven })
}

// likeliest returns the likeliest label of r: the predicted class, unless that is
// flow.Unknown.
func likeliest(r *flow.Result) string {
	if r.Class != flow.Unknown || !scored(r) {
		return r.Class
	}
	most := 0
	for i, p := range r.Scores {
		if p > r.Scores[most] {
			most = i
		}
	}
	return r.Labels[most]
}

// scored reports whether r has a probability for each label.
func scored(r *flow.Result) bool { return len(r.Scores) > 0 && len(r.Scores) == len(r.Labels) }

// isFor reports whether the rule is for flows such as m between the two endpoints, whose
// addresses are not v4-mapped.
func (rule *Rule) isFor(m *flow.Meta, initiator, responder netip.AddrPort) bool {
	return (rule.Proto == 0 || rule.Proto == m.Key.Proto) && rule.from.has(initiator) && rule.to.has(responder) &&
		(rule.Interfaces == nil || slices.Contains(rule.Interfaces, m.Source.Interface)) &&
		(rule.VLANs == nil || slices.ContainsFunc(rule.VLANs, func(v VLANRange) bool { return v.First <= m.Key.VLAN && m.Key.VLAN <= v.Last }))
}

// asks reports whether the rule is about flows with this result, whose likeliest
// label is given.
func (rule *Rule) asks(r *flow.Result, likeliest string) bool {
	if rule.Classes[0] == flow.Unknown {
		return r.Class == flow.Unknown
	}
	return slices.Contains(rule.Classes, likeliest)
}

// confidence returns the probability that a flow is of one of the rule's classes,
// at most 1: rounding must not carry a sum over it. A result without scores knows
// the predicted class's only; flow.Unknown has no probability of its own.
func (rule *Rule) confidence(r *flow.Result) float64 {
	if !scored(r) || rule.Classes[0] == flow.Unknown {
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

// enough reports whether confidence suffices for the rule. It never does when it
// is not a number.
func (rule *Rule) enough(confidence float64) bool { return confidence >= rule.MinConfidence }

// named returns the likeliest of the rule's classes, and the names of those that
// make up nearly all of the rule's confidence in r.
func (rule *Rule) named(r *flow.Result) (class, classes string) {
	if len(rule.Classes) == 1 {
		return rule.Classes[0], rule.Classes[0]
	}
	if !scored(r) {
		return r.Class, r.Class
	}
	// left are the rule's classes that are not named yet, by their place among
	// the labels; what they have together is compared with all of it.
	left := make([]int, 0, 16)
	sum := 0.0
	for i, label := range r.Labels {
		if slices.Contains(rule.Classes, label) {
			left = append(left, i)
			sum += r.Scores[i]
		}
	}
	slices.SortStableFunc(left, func(a, b int) int { return cmp.Compare(r.Scores[b], r.Scores[a]) })
	n, rest := 0, sum
	for n < len(left) && (n == 0 || rest > sum/20) {
		rest -= r.Scores[left[n]]
		n++
	}
	class = r.Labels[left[0]]
	if n == 1 {
		return class, class
	}
	names := make([]string, 0, 16)
	for _, c := range rule.Classes {
		if slices.ContainsFunc(left[:n], func(i int) bool { return r.Labels[i] == c }) {
			names = append(names, c)
		}
	}
	return class, strings.Join(names, "|")
}

// counted reports whether confidence suffices for the rule's evidence.
func (rule *Rule) counted(confidence float64) bool {
	return rule.Evidence != nil && confidence >= rule.Evidence.MinConfidence
}

// detects reports whether a rule of p would detect a flow with this result, if it were not
// on the allow-list.
func (p *Policy) detects(m *flow.Meta, initiator, responder netip.AddrPort, r *flow.Result, likeliest string) bool {
	for i := range p.Rules {
		rule := &p.Rules[i]
		if confidence := rule.confidence(r); rule.asks(r, likeliest) && rule.isFor(m, initiator, responder) && (rule.enough(confidence) || rule.counted(confidence)) {
			return true
		}
	}
	return false
}

// RuleOf returns the rule that d, a decision of p, names, or nil if d names none.
func (p *Policy) RuleOf(d *Decision) *Rule {
	if d.RuleClasses == "" {
		return nil
	}
	i := slices.IndexFunc(p.Rules, func(rule Rule) bool { return rule.Name == d.Rule })
	if i < 0 {
		return nil
	}
	return &p.Rules[i]
}

// Decide returns what becomes of a flow that m describes and that the
// classifier gave the result r. It depends on nothing but p and its
// arguments and changes nothing. It allocates no memory, but for RuleClasses where
// that names several classes. Confidence that is not a number never reaches a
// rule's min_confidence.
func (p *Policy) Decide(m *flow.Meta, r flow.Result) Decision {
	likeliest := likeliest(&r)
	d := Decision{Class: r.Class, Likeliest: likeliest, Confidence: r.Confidence, Reason: ReasonNoRule}
	initiator, responder := unmapped(m.Initiator()), unmapped(m.Responder())

	if i := p.allow.first(initiator.Addr(), responder); i >= 0 {
		d.Rule, d.Line, d.Reason, d.Detected = p.Allow[i].String(), p.Allow[i].Line, ReasonAllowList, p.detects(m, initiator, responder, &r, likeliest)
		return d
	}
	if m.Incomplete {
		d.Reason = ReasonIncomplete
		return d
	}
	for i := range p.Rules {
		rule := &p.Rules[i]
		if !rule.asks(&r, likeliest) || !rule.isFor(m, initiator, responder) {
			continue
		}
		confidence, why := rule.confidence(&r), ReasonRule
		enough, counted := rule.enough(confidence), rule.counted(confidence)
		switch {
		case !enough && !counted:
			why = ReasonLowConfidence
		case rule.except.first(initiator.Addr(), responder) >= 0:
			why = ReasonException
		case m.Key.Proto == flow.UDP && !rule.UDPUnproven:
			why = ReasonUDPUnproven
		case m.Scant && (m.Key.Proto == flow.UDP || m.Signals&flow.SignalDecoy != 0):
			why = ReasonScant // of a TCP flow, little but decoys was captured
		case m.OneWay && !rule.OneWay:
			why = ReasonOneWay
		case (m.MidStream || m.Resumed || m.MissingStart) && !rule.MidStream:
			why = ReasonMidStream
		case rule.Provisional != nil && m.Provisional && !*rule.Provisional:
			why = ReasonProvisional
		case rule.Provisional != nil && !m.Provisional && *rule.Provisional:
			why = ReasonFinal
		case rule.Complete != nil && !m.Full && *rule.Complete:
			why = ReasonPartial
		case rule.Complete != nil && m.Full && !*rule.Complete:
			why = ReasonComplete
		case rule.Signals != 0 && m.Signals&rule.Signals == 0:
			why = ReasonNoSignal
		default:
			if counted && m.Proven() {
				d.Counts |= rule.counts
			}
			switch {
			case !enough && d.Counts&rule.counts == 0:
				why = ReasonLowConfidence // and it is no evidence
			case !enough:
				why = ReasonMeanwhile
			}
		}
		if why != ReasonRule && d.RuleClasses != "" {
			d.Detected = d.Detected || why != ReasonLowConfidence
			continue // the first one that was stepped over is named already
		}
		class := d.named(rule, &r, why)
		d.Detected = d.Detected || why != ReasonLowConfidence
		if why != ReasonRule {
			continue
		}
		if d.Class = class; rule.Evidence == nil || rule.Meanwhile == rule.Action {
			d.act(rule, rule.Action, rule.TTL)
		} else {
			d.act(rule, rule.Meanwhile, rule.TTL)
			d.Reason = ReasonMeanwhile
		}
		if d.Action == flow.Log {
			d.TTL = 0
		}
		return d
	}
	return d
}

// named has the decision name the rule, and returns the likeliest of its classes.
func (d *Decision) named(rule *Rule, r *flow.Result, why string) (class string) {
	d.Rule, d.Line, d.Confidence, d.Reason = rule.Name, rule.Line, rule.confidence(r), why
	class, d.RuleClasses = rule.named(r)
	return class
}

// OnPair returns the decision to treat the pair of a flow for which d was made, as there is
// enough evidence for the rule.
func (rule *Rule) OnPair(d Decision, r *flow.Result) Decision {
	d.Class = d.named(rule, r, ReasonEvidence)
	d.Scope, d.Detected = flow.ScopePair, true
	d.act(rule, rule.Action, rule.TTL)
	return d
}

// Pass has the flow pass after all.
func (d *Decision) Pass(reason string) {
	d.Action, d.TTL, d.Rate, d.Scope, d.Reason = flow.Pass, 0, 0, flow.ScopeFlow, reason
}

// Pair has the decision treat a flow as its pair is treated on behalf of the rule, for so long.
func (d *Decision) Pair(rule *Rule, ttl time.Duration) {
	d.Rule, d.Line, d.RuleClasses, d.Scope, d.Reason = rule.Name, rule.Line, "", flow.ScopePair, ReasonPair
	d.act(rule, rule.Action, ttl)
}

// act has the decision do what the rule does.
func (d *Decision) act(rule *Rule, action flow.Action, ttl time.Duration) {
	if d.Action, d.TTL, d.Rate = action, ttl, 0; action == flow.Limit {
		d.Rate = rule.Rate
	}
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
