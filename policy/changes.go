// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"reflect"
	"slices"
	"strings"
)

// Changes is how a policy differs from the one before it.
type Changes struct {
	Mode         string   `json:"mode,omitempty"` // the new one, if it is another
	RulesAdded   []string `json:"rules_added,omitempty"`
	RulesRemoved []string `json:"rules_removed,omitempty"`
	RulesChanged []string `json:"rules_changed,omitempty"` // another text under the same name
	// Reordered: rules that both have are in another order.
	Reordered    bool     `json:"rules_reordered,omitempty"`
	AllowAdded   []string `json:"allow_added,omitempty"` // entries, as Match.String prints them
	AllowRemoved []string `json:"allow_removed,omitempty"`
	// Other: something else is different.
	Other bool `json:"other,omitempty"`
}

// ChangesFrom returns how p differs from the policy before it.
func (p *Policy) ChangesFrom(before *Policy) *Changes {
	c := new(Changes)
	if p.Mode != before.Mode {
		c.Mode = p.Mode.String()
	}
	was, is := ruleNames(before), ruleNames(p)
	c.RulesAdded, c.RulesRemoved = without(is, was), without(was, is)
	common, commonWas := without(is, c.RulesAdded), without(was, c.RulesRemoved)
	c.Reordered = !slices.Equal(common, commonWas)
	for _, name := range common {
		a, b := before.rule(name), p.rule(name)
		if !reflect.DeepEqual(a, b) {
			c.RulesChanged = append(c.RulesChanged, name)
		}
	}
	was, is = allowNames(before), allowNames(p)
	c.AllowAdded, c.AllowRemoved = without(is, was), without(was, is)
	c.Other = p.OneHook != before.OneHook
	return c
}

// None reports whether nothing is different.
func (c *Changes) None() bool { return reflect.DeepEqual(c, new(Changes)) }

// String says it in one line: "rules added: a, b; allow: 1 entry removed".
func (c *Changes) String() string {
	var parts []string
	say := func(what string, list []string) {
		if len(list) > 0 {
			parts = append(parts, what+": "+someOf(list))
		}
	}
	if c.Mode != "" {
		parts = append(parts, "mode "+c.Mode)
	}
	say("rules added", c.RulesAdded)
	say("rules removed", c.RulesRemoved)
	say("rules changed", c.RulesChanged)
	if c.Reordered {
		parts = append(parts, "rules in another order")
	}
	say("allowed now", c.AllowAdded)
	say("allowed no longer", c.AllowRemoved)
	if c.Other {
		parts = append(parts, "other keys changed")
	}
	if len(parts) == 0 {
		return "nothing changed"
	}
	return strings.Join(parts, "; ")
}

func (p *Policy) rule(name string) *Rule {
	i := slices.IndexFunc(p.Rules, func(r Rule) bool { return r.Name == name })
	if i < 0 {
		return nil
	}
	return &p.Rules[i]
}

func ruleNames(p *Policy) []string {
	names := make([]string, len(p.Rules))
	for i := range p.Rules {
		names[i] = p.Rules[i].Name
	}
	return names
}

func allowNames(p *Policy) []string {
	names := make([]string, len(p.Allow))
	for i := range p.Allow {
		names[i] = p.Allow[i].String()
	}
	return names
}

// without returns those of list that others has not, each once.
func without(list, others []string) []string {
	has := make(map[string]bool, len(others))
	for _, o := range others {
		has[o] = true
	}
	var left []string
	for _, s := range list {
		if !has[s] {
			has[s] = true
			left = append(left, s)
		}
	}
	return left
}
