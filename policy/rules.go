// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy/yamlfile"
)

// rules reads the list of rules.
func (d *decoder) rules(e entry) ([]Rule, error) {
	nodes, err := d.list(e, "rules")
	if err != nil {
		return nil, err
	}
	var rules []Rule
	places := make(map[string]*token.Token)
	for i, n := range nodes {
		rule, at, err := d.rule(n, i+1)
		if err != nil {
			return nil, err
		}
		if first, twice := places[rule.Name]; twice {
			return nil, d.On(at, "the name %s is already that of the rule in line %d; give this rule another name",
				yamlfile.Quote(rule.Name), first.Position.Line)
		}
		places[rule.Name] = at
		rules = append(rules, rule)
	}
	return rules, nil
}

// ruleName keeps names to what needs no quoting in logs, JSON and shells.
var ruleName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// ruleKeys are the keys of a rule.
var ruleKeys = []string{"name", "class", "min_confidence", "proto", "from", "to", "interface", "vlan", "action", "rate", "ttl", "scope", "evidence", "meanwhile",
	"mid_stream", "udp_unproven", "one_way", "provisional", "complete", "signal", "except"}

// rule returns the rule number i (from 1) and the place of its name.
func (d *decoder) rule(n ast.Node, i int) (r Rule, at *token.Token, err error) {
	what := "rule " + strconv.Itoa(i)
	keys, err := d.mapping(n, what, ruleKeys...)
	if err != nil {
		return r, nil, err
	}
	r.Name, at, r.Line = "rule-"+strconv.Itoa(i), yamlfile.Start(n), yamlfile.LineOf(n)
	if e, ok := keys["name"]; ok {
		at = e.Place()
		if r.Name, err = d.text(at, e.Value, "name", "tunnels"); err != nil {
			return r, at, err
		}
		if !ruleName.MatchString(r.Name) {
			return r, at, d.On(at, "name %s has to be 1 to 64 letters, digits, \".\", \"_\" or \"-\", the first a letter or digit", yamlfile.Quote(r.Name))
		}
		what = "rule " + r.Name
	}
	_, hasEvidence := keys["evidence"]
	if e, ok := keys["action"]; ok {
		if r.Action, err = d.action(e, "action"); err != nil {
			return r, at, err
		}
	}
	for _, required := range []struct{ key, example string }{
		{"class", "shadowsocks"}, {"action", "drop"}, {"ttl", "10m"},
	} {
		if _, ok := keys[required.key]; !ok {
			if required.key == "ttl" && r.Action == flow.Log && !hasEvidence {
				continue
			}
			return r, at, d.In(n, "%s has no %s; add one, for example \"%s: %s\"", what, required.key, required.key, required.example)
		}
	}
	if r.Classes, err = d.classes(keys["class"]); err != nil {
		return r, at, err
	}
	confidence, hasConfidence := keys["min_confidence"]
	switch unknown := r.Classes[0] == flow.Unknown; {
	case unknown && hasConfidence:
		err = d.On(confidence.Key, "class %s is the outcome when no class is likely enough, so there is no confidence in it; remove min_confidence", yamlfile.Quote(flow.Unknown))
	case unknown:
	case hasConfidence:
		r.MinConfidence, err = d.confidence(confidence)
	case d.model == nil:
		err = d.In(n, "%s has no min_confidence, and no model is known whose threshold would be used; add one, for example \"min_confidence: 0.9\"", what)
	default:
		r.MinConfidence, r.ModelThreshold = d.model.threshold(r.Classes), true
	}
	if err != nil {
		return r, at, err
	}
	if e, ok := keys["ttl"]; ok {
		if r.Action == flow.Log && !hasEvidence {
			return r, at, d.On(e.Key, "%s treats no flow, as its action is log, so that there is nothing that could last; remove ttl", what)
		}
		if r.TTL, err = d.ttl(e); err != nil {
			return r, at, err
		}
	}
	for _, flag := range []struct {
		key string
		dst *bool
	}{{"mid_stream", &r.MidStream}, {"udp_unproven", &r.UDPUnproven}, {"one_way", &r.OneWay}} {
		if e, ok := keys[flag.key]; ok {
			if *flag.dst, err = d.boolean(e, flag.key); err != nil {
				return r, at, err
			}
		}
	}
	for _, choice := range []struct {
		key string
		dst **bool
	}{{"provisional", &r.Provisional}, {"complete", &r.Complete}} {
		if e, ok := keys[choice.key]; ok {
			is, err := d.boolean(e, choice.key)
			if err != nil {
				return r, at, err
			}
			*choice.dst = &is
		}
	}
	if e, ok := keys["signal"]; ok {
		if r.Signals, err = d.signals(e); err != nil {
			return r, at, err
		}
	}
	if e, ok := keys["except"]; ok {
		if r.Except, err = d.matches(e, "except"); err != nil {
			return r, at, err
		}
	}
	if err := d.scope(&r, what, keys); err != nil {
		return r, at, err
	}
	if err := d.evidence(&r, what, n, keys); err != nil {
		return r, at, err
	}
	return r, at, d.rate(&r, what, n, keys)
}

// scope reads which flows a rule is for.
func (d *decoder) scope(r *Rule, what string, keys map[string]entry) (err error) {
	if e, ok := keys["proto"]; ok {
		word, err := d.text(e.Place(), e.Value, "proto", "tcp")
		if err != nil {
			return err
		}
		switch word {
		case "tcp":
			r.Proto = flow.TCP
		case "udp":
			r.Proto = flow.UDP
		default:
			return d.On(e.Place(), "unknown proto %s%s; write tcp or udp", yamlfile.Quote(word), yamlfile.DidYouMean(word, []string{"tcp", "udp"}))
		}
	}
	if e, ok := keys["from"]; ok {
		if r.From, err = d.endpoints(e, "from", true); err != nil {
			return err
		}
	}
	if e, ok := keys["to"]; ok {
		if r.To, err = d.endpoints(e, "to", true); err != nil {
			return err
		}
	}
	if e, ok := keys["interface"]; ok {
		nodes, err := d.oneOrMore(e, "interface")
		if err != nil {
			return err
		}
		for _, n := range nodes {
			at := placeOf(e, n)
			name, err := d.text(at, n, "interface", "eth0")
			switch {
			case err != nil:
				return err
			case name == "" || len(name) > 15 || strings.ContainsAny(name, "/: \t\n"):
				return d.On(at, "interface %s can't be the name of one: it has 1 to 15 characters, no space, \"/\" or \":\"", yamlfile.Quote(name))
			case slices.Contains(r.Interfaces, name):
				return d.On(at, "interface %s is named twice; keep one of them", yamlfile.Quote(name))
			}
			r.Interfaces = append(r.Interfaces, name)
		}
	}
	if e, ok := keys["vlan"]; ok {
		ids, err := d.ranges(e, &vlanNumbers)
		if err != nil {
			return err
		}
		for _, id := range ids {
			r.VLANs = append(r.VLANs, VLANRange(id))
		}
	}
	return nil
}

// classes reads the classes of a rule.
func (d *decoder) classes(e entry) ([]string, error) {
	nodes, err := d.oneOrMore(e, "class")
	if err != nil {
		return nil, err
	}
	var classes []string
	for _, n := range nodes {
		at := placeOf(e, n)
		class, err := d.text(at, n, "class", "shadowsocks")
		if err != nil {
			return nil, err
		}
		switch {
		case class == flow.Background:
			return nil, d.On(at, "class %s is everything that is not a wanted class and can't be named in a rule; remove it", yamlfile.Quote(class))
		case class == "":
			return nil, d.On(at, "class is empty; name a class of the model")
		case class == flow.Unknown && len(nodes) > 1:
			return nil, d.On(at, "class %s is the outcome when no class is likely enough and can't be named beside others; give it a rule of its own", yamlfile.Quote(class))
		case class == flow.Unknown && d.model != nil && !d.model.Unknown:
			return nil, d.On(at, "class %s never comes: this model always decides for one of its classes, which are %s; remove the rule", yamlfile.Quote(class), someOf(d.model.classes()))
		case class != flow.Unknown && d.model != nil && !slices.Contains(d.model.Labels, class):
			known := d.model.classes()
			words := known
			if d.model.Unknown {
				words = append(words, flow.Unknown)
			}
			return nil, d.On(at, "the model has no class %s%s; it has %s", yamlfile.Quote(class), yamlfile.DidYouMean(class, words), someOf(known))
		case slices.Contains(classes, class):
			return nil, d.On(at, "class %s is named twice; keep one of them", yamlfile.Quote(class))
		}
		classes = append(classes, class)
	}
	return classes, nil
}

// signals reads the signals of a rule.
func (d *decoder) signals(e entry) (all flow.Signals, err error) {
	nodes, err := d.oneOrMore(e, "signal")
	if err != nil {
		return 0, err
	}
	for _, n := range nodes {
		at := placeOf(e, n)
		name, err := d.text(at, n, "signal", "decoy")
		if err != nil {
			return 0, err
		}
		signal, ok := flow.ParseSignal(name)
		switch {
		case !ok:
			return 0, d.On(at, "there is no signal %s%s; there are %s", yamlfile.Quote(name), yamlfile.DidYouMean(name, flow.SignalNames()), someOf(flow.SignalNames()))
		case all&signal != 0:
			return 0, d.On(at, "signal %s is named twice; keep one of them", yamlfile.Quote(name))
		}
		all |= signal
	}
	return all, nil
}

// confidence reads a min_confidence.
func (d *decoder) confidence(e entry) (float64, error) { return d.fraction(e, "min_confidence", "0.9") }

// fraction reads a number above 0 and at most 1.
func (d *decoder) fraction(e entry, what, example string) (float64, error) {
	at := e.Place()
	switch e.Value.(type) {
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
	default:
		return 0, d.On(at, "%s has to be a number such as %s, but is %s", what, example, yamlfile.TypeName(e.Value))
	}
	rule := "write a number above 0 and at most 1, such as " + example
	// ParseFloat knows hexadecimal, underscores and words; a policy does not.
	if strings.Trim(at.Value, "0123456789.eE+-") != "" {
		return 0, d.On(at, "%s %s is out of range; %s", what, yamlfile.Quote(at.Value), rule)
	}
	f, err := strconv.ParseFloat(at.Value, 64)
	if err != nil || math.IsNaN(f) || f <= 0 || f > 1 {
		return 0, d.On(at, "%s %s is out of range; %s", what, yamlfile.Quote(at.Value), rule)
	}
	return f, nil
}

// actions are those of a rule, the one that does least first.
var actions = []flow.Action{flow.Log, flow.Limit, flow.Reset, flow.Drop}

// action reads an action.
func (d *decoder) action(e entry, what string) (flow.Action, error) {
	word, err := d.text(e.Place(), e.Value, what, "drop")
	if err != nil {
		return flow.Pass, err
	}
	known := make([]string, len(actions))
	for i, a := range actions {
		if known[i] = a.String(); known[i] == word {
			return a, nil
		}
	}
	slices.Reverse(known)
	return flow.Pass, d.On(e.Place(), "unknown %s %s%s; write %s (what no rule treats passes)", what, yamlfile.Quote(word), yamlfile.DidYouMean(word, known), OrList(known))
}

// ttl reads how long a block lasts.
func (d *decoder) ttl(e entry) (time.Duration, error) { return d.duration(e, "ttl") }

// duration reads a time to live, or another time within its bounds.
func (d *decoder) duration(e entry, what string) (time.Duration, error) {
	at := e.Place()
	text := at.Value // of a bare number, as it was written
	if _, bare := e.Value.(*ast.IntegerNode); !bare {
		var err error
		if text, err = d.text(at, e.Value, what, "10m"); err != nil {
			return 0, err
		}
	}
	ttl, err := ParseTTL(text)
	if err != nil {
		return 0, d.On(at, "%s %v", what, err)
	}
	return ttl, nil
}
