// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// UDPNotTreated says what becomes of UDP flows under a policy of which TreatsUDP is
// false.
const UDPNotTreated = "UDP flows, tunnels as well, are identified and logged, not treated: no rule says udp_unproven: true"

// Describe says in words what p does, one line for each entry.
func (p *Policy) Describe() string {
	var b strings.Builder
	meaning := "decides and logs, drops nothing"
	if p.Mode == Enforce {
		meaning = "drops what the rules say"
	}
	fmt.Fprintf(&b, "mode %s: %s\n", p.Mode, meaning)
	if len(p.Allow) > 0 {
		b.WriteString("no rule blocks flows\n")
	}
	for i := range p.Allow {
		fmt.Fprintf(&b, "  %s\n", matchInWords(&p.Allow[i]))
	}
	if len(p.Protect) > 0 {
		fmt.Fprintf(&b, "no pair is treated whose server is in %s\n", endpointsInWords(p.Protect))
	}
	for i := range p.Rules {
		rule := &p.Rules[i]
		otherwise := "otherwise "
		if i == 0 {
			otherwise = ""
		}
		when := "when the confidence is at least " + strconv.FormatFloat(rule.MinConfidence, 'f', -1, 64)
		switch {
		case rule.Classes[0] == flow.Unknown:
			when = "whatever is the likeliest class"
		case rule.ModelThreshold:
			when += " (the model's threshold)"
		}
		if rule.MidStream {
			when += ", flows captured from their middle as well"
		}
		if rule.UDPUnproven {
			when += ", UDP flows as well"
		}
		if rule.OneWay {
			when += ", connections of which one direction alone was seen as well"
		}
		if rule.Complete != nil {
			if *rule.Complete {
				when += ", and all 1024 bytes are in"
			} else {
				when += ", and fewer than 1024 bytes are in"
			}
		}
		if rule.Provisional != nil {
			if *rule.Provisional {
				when += ", and the verdict is provisional"
			} else {
				when += ", and the verdict is not provisional"
			}
		}
		if names := rule.Signals.Names(); names != nil {
			when += ", and the flow shows " + OrList(names)
		}
		lasts := ""
		if rule.Action != flow.Log && rule.Evidence == nil {
			lasts = " for " + FormatTTL(rule.TTL)
		}
		fmt.Fprintf(&b, "%srule %s: %s %s%s%s%s %s\n", otherwise, rule.Name, rule.Action, OrList(rule.Classes), rule.rateInWords(rule.Action), lasts, rule.scopeInWords(), when)
		if e := rule.Evidence; e != nil {
			fmt.Fprintf(&b, "  %s the pair (initiator and server) for %s when %d of its flows within %s are detected%s, and at least %s of those judged",
				rule.Action, FormatTTL(rule.TTL), e.Flows, FormatTTL(e.Within), rule.countedInWords(), percent(e.Share))
			if rule.Meanwhile != rule.Action {
				fmt.Fprintf(&b, "; meanwhile %s%s", rule.Meanwhile, rule.rateInWords(rule.Meanwhile))
			}
			b.WriteString("\n")
		}
		for j := range rule.Except {
			fmt.Fprintf(&b, "  except %s\n", matchInWords(&rule.Except[j]))
		}
	}
	if len(p.Rules) == 0 {
		b.WriteString("no rules: everything passes\n")
	} else {
		b.WriteString("everything else passes\n")
		if !p.TreatsUDP() {
			b.WriteString(UDPNotTreated + "\n")
		}
	}
	if p.treatsOnFlow() {
		b.WriteString(p.Limits.inWords() + "\n")
	}
	var never []string
	for i := range p.Rules {
		if why := p.NeverActs(i); why != "" {
			never = append(never, fmt.Sprintf("note: rule %s never acts: %s\n", p.Rules[i].Name, why))
		}
	}
	for _, note := range never {
		b.WriteString(note)
	}
	for i := range p.Rules {
		if r := &p.Rules[i]; r.Evidence != nil && len(p.Protect) > 0 && hasAll(p.Protect, r.To) {
			fmt.Fprintf(&b, "note: rule %s never treats a pair: protect has all of its servers\n", r.Name)
		}
	}
	switch {
	case len(p.Rules) > 1 && len(never) == 0:
		b.WriteString("each rule can act\n")
	case len(p.Rules) == 1 && len(never) == 0:
		b.WriteString("the rule can act\n")
	case len(never) < len(p.Rules):
		b.WriteString("each other rule can act\n")
	}
	for _, s := range p.Sets {
		if !p.uses(s) {
			fmt.Fprintf(&b, "note: set %s is not used\n", s.Name)
		}
	}
	return b.String()
}

// treatsOnFlow reports whether a rule treats flows without evidence, so that limits bound it.
func (p *Policy) treatsOnFlow() bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool {
		return r.Action != flow.Log && (r.Evidence == nil || r.Meanwhile != flow.Log)
	})
}

// uses reports whether anything in the policy names the set.
func (p *Policy) uses(s *Set) bool {
	match := func(m Match) bool { return m.Set == s }
	end := func(e Endpoint) bool { return e.Set == s }
	return slices.ContainsFunc(p.Allow, match) || slices.ContainsFunc(p.Protect, end) || slices.ContainsFunc(p.Rules, func(r Rule) bool {
		return slices.ContainsFunc(r.Except, match) || slices.ContainsFunc(r.From, end) || slices.ContainsFunc(r.To, end)
	})
}

// inWords says what the limits do.
func (l *Limits) inWords() string {
	var limits []string
	if l.Flows > 0 {
		limits = append(limits, fmt.Sprintf("%d flows in %s (an initiator counts once an hour)", l.Flows, FormatTTL(l.Per)))
	}
	if l.Share > 0 {
		limits = append(limits, percent(l.Share)+" of the initiators of an hour")
	}
	if limits == nil {
		return "no limits: nothing bounds how many flows are treated"
	}
	return "limits: above " + OrList(limits) + ", what is done without evidence pauses for " + FormatTTL(PauseTime)
}

func percent(share float64) string {
	return strconv.FormatFloat(math.Round(share*1e6)/1e4, 'f', -1, 64) + " %"
}

// rateInWords says how much passes where the action is limit.
func (r *Rule) rateInWords(action flow.Action) string {
	if action != flow.Limit {
		return ""
	}
	return " to " + FormatRate(r.Rate)
}

// countedInWords says what a flow needs to be evidence, where that is another confidence
// than the rule asks for.
func (r *Rule) countedInWords() string {
	if r.Evidence.MinConfidence == r.MinConfidence {
		return ""
	}
	return " with a confidence of at least " + strconv.FormatFloat(r.Evidence.MinConfidence, 'f', -1, 64)
}

// scopeInWords says which flows the rule is for.
func (r *Rule) scopeInWords() string {
	var words string
	if r.Proto != 0 {
		words += " over " + strings.ToUpper(r.Proto.String())
	}
	if len(r.From) > 0 {
		words += " from " + endpointsInWords(r.From)
	}
	if len(r.To) > 0 {
		words += " to " + endpointsInWords(r.To)
	}
	if len(r.Interfaces) > 0 {
		words += " on " + OrList(r.Interfaces)
	}
	if len(r.VLANs) > 0 {
		var ids []string
		for _, v := range r.VLANs {
			switch {
			case v == VLANRange{}:
				ids = append(ids, "none")
			default:
				ids = append(ids, (PortRange)(v).String())
			}
		}
		words += " with VLAN ID " + OrList(ids)
	}
	return words
}

// endpointsInWords lists ends, the first few of them.
func endpointsInWords(ends []Endpoint) string {
	const most = 8
	var words []string
	for _, e := range ends[:min(len(ends), most)] {
		var parts []string
		switch {
		case e.Set != nil:
			parts = append(parts, fmt.Sprintf("set %s (%d networks)", e.Set.Name, e.Set.Len()))
		case e.Prefix.IsValid() && e.Prefix.IsSingleIP():
			parts = append(parts, e.Prefix.Addr().String())
		case e.Prefix.IsValid():
			parts = append(parts, e.Prefix.String())
		}
		if len(e.Ports) > 0 {
			ports := make([]string, len(e.Ports))
			for i, r := range e.Ports {
				ports[i] = r.String()
			}
			parts = append(parts, "port "+strings.Join(ports, ","))
		}
		words = append(words, strings.Join(parts, " "))
	}
	if more := len(ends) - most; more > 0 {
		words = append(words, fmt.Sprintf("%d more", more))
	}
	return OrList(words)
}

// matchInWords says which flows m fits, to be read after "flows".
func matchInWords(m *Match) string {
	var words []string
	if m.Prefix.IsValid() || m.Set != nil {
		direction := "from or to"
		switch m.Side {
		case InitiatorSide:
			direction = "from"
		case ResponderSide:
			direction = "to"
		}
		network := m.Prefix.String()
		if m.Set != nil {
			network = fmt.Sprintf("set %s (%d networks)", m.Set.Name, m.Set.Len())
		}
		words = append(words, direction+" "+network)
	}
	if len(m.Ports) > 0 {
		ports := make([]string, len(m.Ports))
		for i, r := range m.Ports {
			ports[i] = r.String()
		}
		words = append(words, "to port "+OrList(ports))
	}
	return strings.Join(words, ", ")
}

// OrList joins words as a sentence does: "a", "a or b", "a, b or c".
func OrList(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// FormatTTL prints d, as ParseTTL reads it, in days, hours and so on, without the zero units that
// Duration.String ends in: 1d12h, 10m.
func FormatTTL(d time.Duration) string {
	if d >= day {
		s := strconv.Itoa(int(d/day)) + "d"
		if rest := d % day; rest > 0 {
			s += FormatTTL(rest)
		}
		return s
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
