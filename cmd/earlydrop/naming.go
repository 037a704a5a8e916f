// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// naming is what is said of a flow's class, wherever a flow is reported: by attach,
// replay and explain, to people and to machines.
type naming struct {
	// RuleClasses are those of the rule's classes that its confidence comes
	// from, in the rule's order. There are none when no rule was asked.
	RuleClasses []string `json:"rule_classes,omitempty"`
	// RuleConfidence is what was compared with the rule's min_confidence: the
	// probability that the flow is of one of the rule's classes.
	RuleConfidence *float64 `json:"rule_confidence,omitempty"`
	// Likeliest is the model's likeliest label, whose probability is the
	// confidence, also where that is not enough to call the flow by it.
	Likeliest string `json:"likeliest,omitempty"`
	// Detected is true when a rule found enough of its classes in the flow,
	// whether it is dropped or passes by an exception, by the allow-list or as it was
	// captured from its middle.
	Detected *bool `json:"detected,omitempty"`
}

// nameFlow says of a flow what policy d says.
func nameFlow(d *policy.Decision) naming {
	n := naming{Likeliest: d.Likeliest, Detected: &d.Detected}
	if d.RuleClasses != "" {
		n.RuleClasses = strings.Split(d.RuleClasses, "|")
		n.RuleConfidence = &d.Confidence
	}
	return n
}

// name is what the flow is called, given the model's outcome: the classes that
// decided, or the outcome where no rule was asked.
func (n *naming) name(class string) string {
	if len(n.RuleClasses) > 0 {
		return strings.Join(n.RuleClasses, "|")
	}
	return class
}

// table returns name and probability for the columns of a table, with the likeliest
// label in brackets where it is not the name.
func (n *naming) table(class string, confidence float64) (name, probability string) {
	name = n.name(class)
	if n.Likeliest != name && n.Likeliest != "" {
		name += " (" + n.Likeliest + ")"
	}
	if n.RuleConfidence != nil {
		confidence = *n.RuleConfidence
	}
	return name, fmt.Sprintf("%.4f", confidence)
}

// line returns the same for a line of a log: "shadowsocks|v2ray 0.950 (shadowsocks
// 0.551)". An outcome that has no probability of its own goes without.
func (n *naming) line(class string, confidence float64) string {
	name := n.name(class)
	text := name
	switch {
	case name == flow.Unknown:
	case n.RuleConfidence != nil:
		text += fmt.Sprintf(" %.3f", *n.RuleConfidence)
	default:
		text += fmt.Sprintf(" %.3f", confidence)
	}
	if n.Likeliest != name && n.Likeliest != "" {
		text += fmt.Sprintf(" (%s %.3f)", n.Likeliest, confidence)
	}
	return text
}
