// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
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
		fmt.Fprintf(&b, "%srule %s: %s %s for %s %s\n",
			otherwise, rule.Name, rule.Action, OrList(rule.Classes), FormatTTL(rule.TTL), when)
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
	for i, rule := range p.Rules {
		if len(rule.Classes) > 0 && neverDecides(p.Rules[:i], &rule) {
			fmt.Fprintf(&b, "note: rule %s never decides: a rule above it treats all of its flows\n", rule.Name)
		}
	}
	return b.String()
}

// neverDecides reports whether a rule above treats every flow that rule would: it
// has all of its classes, so its probabilities add up to no less, no exception, wants
// no more confidence, and treats flows from their middle, and UDP flows, if rule does.
func neverDecides(above []Rule, rule *Rule) bool {
	return slices.ContainsFunc(above, func(r Rule) bool {
		return len(r.Except) == 0 && r.MinConfidence <= rule.MinConfidence && (r.MidStream || !rule.MidStream) && (r.UDPUnproven || !rule.UDPUnproven) && (r.OneWay || !rule.OneWay) &&
			(r.Provisional == nil || rule.Provisional != nil && *r.Provisional == *rule.Provisional) &&
			(r.Signals == 0 || rule.Signals != 0 && rule.Signals&^r.Signals == 0) &&
			!slices.ContainsFunc(rule.Classes, func(class string) bool { return !slices.Contains(r.Classes, class) })
	})
}

// matchInWords says which flows m fits, to be read after "flows".
func matchInWords(m *Match) string {
	var words []string
	if m.Prefix.IsValid() {
		direction := "from or to"
		switch m.Side {
		case InitiatorSide:
			direction = "from"
		case ResponderSide:
			direction = "to"
		}
		words = append(words, direction+" "+m.Prefix.String())
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
