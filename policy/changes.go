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
	RulesChanged []string `json:"rules_changed,omitempty"` // other keys under the same name
	// Reordered: rules that both have are in another order.
	Reordered    bool     `json:"rules_reordered,omitempty"`
	AllowAdded   []string `json:"allow_added,omitempty"` // entries, as Match.String prints them
	AllowRemoved []string `json:"allow_removed,omitempty"`
	SetsChanged  []string `json:"sets_changed,omitempty"` // other networks under the same name
	// Other: another key of the policy is different, such as limits.
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
		if !reflect.DeepEqual(before.rule(name).comparable(), p.rule(name).comparable()) {
			c.RulesChanged = append(c.RulesChanged, name)
		}
	}
	was, is = allowNames(before), allowNames(p)
	c.AllowAdded, c.AllowRemoved = without(is, was), without(was, is)
	for _, set := range p.Sets {
		i := slices.IndexFunc(before.Sets, func(s *Set) bool { return s.Name == set.Name })
		if i >= 0 && !before.Sets[i].tree.Equal(&set.tree) {
			c.SetsChanged = append(c.SetsChanged, set.Name)
		}
	}
	c.Other = p.OneHook != before.OneHook || p.Limits != before.Limits ||
		!reflect.DeepEqual(comparableEnds(p.Protect), comparableEnds(before.Protect))
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
	say("sets changed", c.SetsChanged)
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

// comparable returns the rule without what is worked out from it, and with the names of sets
// instead of their networks.
func (rule *Rule) comparable() *Rule {
	r := *rule
	r.from, r.to, r.except, r.counts, r.Line = nil, nil, nil, 0, 0
	r.From, r.To, r.Except = comparableEnds(r.From), comparableEnds(r.To), slices.Clone(r.Except)
	for i := range r.Except {
		r.Except[i].Set, r.Except[i].Line = nameOnly(r.Except[i].Set), 0
	}
	return &r
}

func comparableEnds(list []Endpoint) []Endpoint {
	list = slices.Clone(list)
	for i := range list {
		list[i].Set = nameOnly(list[i].Set)
	}
	return list
}

func nameOnly(s *Set) *Set {
	if s == nil {
		return nil
	}
	return &Set{Name: s.Name}
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
