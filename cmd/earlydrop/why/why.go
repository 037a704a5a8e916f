// SPDX-License-Identifier: Apache-2.0

// Package why has what a gateway answers to the question why flows of an address were treated
// as they were: the decisions that it remembers, each with what has become of its flow, and
// what is known of the address's pairs. The JSON of an Answer is what `why --json` prints and
// what the control socket answers.
package why

import (
	"net/netip"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy/evidence"
)

// MaxDecisions is the most that an answer has.
const MaxDecisions = 1000

// Query says which decisions are asked for.
type Query struct {
	// Network has an end of each flow.
	Network netip.Prefix
	// Port, if it is not 0, is the server's, or that of the end that is in Network.
	Port uint16
	// Most is how many decisions are wanted, the latest ones: 1 to MaxDecisions.
	Most int
}

// Of returns what is asked about, as people write it: 192.0.2.7, [2001:db8::1]:443 or
// 10.0.0.0/8.
func (q *Query) Of() string {
	switch {
	case !q.Network.IsSingleIP():
		return q.Network.String()
	case q.Port != 0:
		return netip.AddrPortFrom(q.Network.Addr(), q.Port).String()
	}
	return q.Network.Addr().String()
}

// Fits reports whether a flow is asked about. Its addresses are not v4-mapped.
func (q *Query) Fits(initiator, server netip.AddrPort) bool {
	isOne := func(end netip.AddrPort) bool {
		return q.Network.Contains(end.Addr()) && (q.Port == 0 || end.Port() == q.Port || server.Port() == q.Port)
	}
	return isOne(server) || isOne(initiator)
}

// FitsPair reports whether a pair is asked about.
func (q *Query) FitsPair(p *flow.Pair) bool {
	return (q.Port == 0 || p.Server.Port() == q.Port) && (q.Network.Contains(p.Server.Addr()) || q.Network.Overlaps(p.Initiator))
}

// Answer says what is known.
type Answer struct {
	Of string `json:"of"` // what was asked about
	// Policy is the file of the policy, or built-in, and PolicySince when it was read.
	Policy      string    `json:"policy"`
	PolicySince time.Time `json:"policy_since"`
	// Remembered is how many decisions are, of whatever flows, and Room how many can be. Since
	// is when the first of them was made; now, if there is none.
	Remembered int       `json:"remembered"`
	Room       int       `json:"room"`
	Since      time.Time `json:"since"`
	// Matched is how many decisions there are about what was asked, and Decisions has the
	// latest of them, the latest first.
	Matched   int        `json:"matched"`
	Decisions []Decision `json:"decisions"`
	// Earlier are decisions from the history, made before those that are remembered, the latest
	// first. What became of their flows is not known. It is nil where the daemon keeps none, or
	// nobody looked.
	Earlier []Decision `json:"earlier,omitempty"`
	// Pairs are those of which a flow was detected, or that are treated.
	Pairs []Pair `json:"pairs"`
}

// Decision is one of them, as the event of its verdict says, and what came of it. The event
// may be in no log.
type Decision struct {
	*event.Verdict
	// BeforeReload: the policy was read again since. Its lines may be others now.
	BeforeReload bool `json:"before_reload,omitempty"`
	// Block is what drops the flow, or limits it, at present, whoever has made it. Only the
	// latest decision about a flow has it.
	Block *status.Block `json:"block,omitempty"`
	// Ended says how the block ended that was made.
	Ended *event.BlockEnded `json:"block_ended,omitempty"`

	fromHistory bool
}

// AddEarlier adds a decision from the history, older than those that are in the answer, if the
// query asks for its flow, and reports whether there is room for more.
func (a *Answer) AddEarlier(q *Query, v *event.Verdict) (more bool) {
	room := func() bool { return len(a.Decisions)+len(a.Earlier) < q.Most }
	if room() && v.Time.Before(a.Since) && q.Fits(v.Src, v.Dst) {
		a.Earlier = append(a.Earlier, Decision{Verdict: v, BeforeReload: v.Time.Before(a.PolicySince), fromHistory: true})
	}
	return room()
}

// Pair is what is known of an initiator and a server.
type Pair struct {
	Initiator netip.Prefix   `json:"initiator"`
	Server    netip.AddrPort `json:"server"`
	VLAN      uint16         `json:"vlan,omitempty"`
	InnerVLAN uint16         `json:"inner_vlan,omitempty"`
	Detected  int            `json:"detected"` // flows, of the latest ones that were judged
	Judged    int            `json:"judged"`
	Last      time.Time      `json:"last"` // verdict on one
	// Rule treats the pair from Since until Until; else these are left out.
	Rule  string    `json:"rule,omitempty"`
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// Kernel is what the kernel does about the pair, on each interface: its connections are
	// dropped as they begin, so that no decision is about them.
	Kernel []status.Pair `json:"kernel,omitempty"`
}

// PairOf tells of a pair.
func PairOf(k *evidence.Known) Pair {
	return Pair{
		Initiator: k.Initiator, Server: k.Server, VLAN: k.VLAN, InnerVLAN: k.InnerVLAN,
		Detected: k.Detected, Judged: k.Judged, Last: k.Last, Rule: k.Rule, Since: k.Since, Until: k.Until,
	}
}
