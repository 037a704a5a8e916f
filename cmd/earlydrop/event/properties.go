// SPDX-License-Identifier: Apache-2.0

package event

import (
	"net/netip"
	"strconv"
)

// Properties are those of an event that it can be searched by. What an event does not have is
// empty.
type Properties struct {
	Kind      string
	Interface string
	Classes   []string // of a verdict: its class, and those that decided
	Rule      string
	Decision  string
	Detected  string // true or false
	Proto     string
	Src, Dst  netip.AddrPort
	// Directed says that Src is the initiator.
	Directed bool
}

// PropertiesOf returns those of an event.
func PropertiesOf(e Event) Properties {
	p := Properties{Kind: e.Kind()}
	ends := func(e *Endpoints) { p.Src, p.Dst, p.Proto = e.Src, e.Dst, e.Proto }
	switch e := e.(type) {
	case *Verdict:
		p.Interface, p.Rule, p.Decision, p.Detected, p.Directed = e.Interface, e.Rule, e.Decision, strconv.FormatBool(e.Detected), true
		p.Classes = append(append(make([]string, 0, 1+len(e.RuleClasses)), e.Class), e.RuleClasses...)
		ends(&e.Endpoints)
	case *BlockEnded:
		p.Interface, p.Rule = e.Interface, e.Rule
		if e.Class != "" {
			p.Classes = []string{e.Class}
		}
		ends(&e.Endpoints)
	case *PairTreated:
		p.Interface, p.Rule, p.Classes, p.Directed = e.Interface, e.Rule, []string{e.Class}, true
		ends(e.PairEnds.endpoints())
	case *PairEnded:
		p.Interface, p.Rule, p.Classes, p.Directed = e.Interface, e.Rule, []string{e.Class}, true
		ends(e.PairEnds.endpoints())
	case *Disagreed:
		p.Interface, p.Classes, p.Directed = e.Interface, []string{e.First.Class, e.Second.Class}, true
		ends(&e.Endpoints)
	case *Attached:
		p.Interface = e.Interface
	case *Waiting:
		p.Interface = e.Interface
	case *LeftOut:
		p.Interface = e.Interface
	case *ModeChanged:
		p.Interface = e.Interface
	case *LimitReached:
		p.Interface = e.Interface
	case *Audit:
		p.Interface = e.Interface
	case *Ended:
		p.Interface = e.Interface
	}
	return p
}

// endpoints returns the ends of a pair as those of a flow from port 0.
func (p *PairEnds) endpoints() *Endpoints {
	return &Endpoints{Src: netip.AddrPortFrom(p.Initiator.Addr(), 0), Dst: p.Server, Proto: p.Proto}
}
