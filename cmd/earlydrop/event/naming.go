// SPDX-License-Identifier: Apache-2.0

package event

import (
	"fmt"
	"strings"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// Naming is what is said of a flow's class, wherever a flow is reported: live, of files
// and in explanations, to people and to machines.
type Naming struct {
	// RuleClasses are those of the rule's classes that its confidence comes
	// from, in the rule's order. There are none when no rule was asked.
	RuleClasses []string `json:"rule_classes,omitempty"`
	// RuleConfidence is what was compared with the rule's min_confidence: the
	// probability that the flow is of one of the rule's classes.
	RuleConfidence *float64 `json:"rule_confidence,omitempty"`
	// Likeliest is the model's likeliest label, whose probability is the
	// confidence, also where that is not enough to call the flow by it.
	Likeliest string `json:"likeliest"`
	// Detected is true when a rule found enough of its classes in the flow,
	// whether it is dropped or passes by an exception, by the allow-list or as it was
	// captured from its middle.
	Detected bool `json:"detected"`
}

// NameFlow says of a flow what policy d says.
func NameFlow(d *policy.Decision) Naming {
	n := Naming{Likeliest: d.Likeliest, Detected: d.Detected}
	if d.RuleClasses != "" {
		n.RuleClasses = strings.Split(d.RuleClasses, "|")
		confidence := d.Confidence
		n.RuleConfidence = &confidence
	}
	return n
}

// Name is what the flow is called, given the model's outcome: the classes that
// decided, or the outcome where no rule was asked.
func (n *Naming) Name(class string) string {
	if len(n.RuleClasses) > 0 {
		return strings.Join(n.RuleClasses, "|")
	}
	return class
}

// Deciding is the probability that decided, given that of the likeliest label: the
// rule's, or that one where no rule was asked.
func (n *Naming) Deciding(confidence float64) float64 {
	if n.RuleConfidence != nil {
		return *n.RuleConfidence
	}
	return confidence
}

// Columns returns name and probability for the columns of a table, with the likeliest
// label in brackets where it is not the name.
func (n *Naming) Columns(class string, confidence float64) (name, probability string) {
	name = n.Name(class)
	if n.Likeliest != name && n.Likeliest != "" {
		name += " (" + n.Likeliest + ")"
	}
	return name, fmt.Sprintf("%.4f", n.Deciding(confidence))
}

// Line returns the same for a line of a log: "shadowsocks|v2ray 0.950 (shadowsocks
// 0.551)". An outcome that has no probability of its own goes without.
func (n *Naming) Line(class string, confidence float64) string {
	name := n.Name(class)
	text := name
	if name != flow.Unknown {
		text += fmt.Sprintf(" %.3f", n.Deciding(confidence))
	}
	if n.Likeliest != name && n.Likeliest != "" {
		text += fmt.Sprintf(" (%s %.3f)", n.Likeliest, confidence)
	}
	return text
}
