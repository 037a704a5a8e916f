// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy/yamlfile"
)

// evidence reads the keys scope, evidence and meanwhile of a rule, whose other keys are read.
func (d *decoder) evidence(r *Rule, what string, n ast.Node, keys map[string]entry) (err error) {
	scope, hasScope := keys["scope"]
	e, hasEvidence := keys["evidence"]
	meanwhile, hasMeanwhile := keys["meanwhile"]
	if hasScope {
		word, err := d.text(scope.Place(), scope.Value, "scope", "pair")
		switch {
		case err != nil:
			return err
		case word == "flow" && hasEvidence:
			return d.On(scope.Place(), "%s has evidence, which is of a pair (an initiator and a server); write scope: pair, or remove evidence", what)
		case word == "pair" && !hasEvidence:
			return d.On(scope.Place(), "%s treats a pair after one flow, and a verdict on one flow is too little for that; add evidence, for example \"evidence: {flows: 3, share: 0.6, within: 1h}\"", what)
		case word == "server":
			return d.On(scope.Place(), "scope server is refused: whoever can open connections to a server could have it cut for everybody; write pair, which cuts off only those whose flows were detected")
		case word != "flow" && word != "pair":
			return d.On(scope.Place(), "unknown scope %s%s; write flow or pair", yamlfile.Quote(word), yamlfile.DidYouMean(word, []string{"flow", "pair"}))
		}
	}
	if !hasEvidence {
		if hasMeanwhile {
			return d.On(meanwhile.Key, "meanwhile says what is done until there is enough evidence, and %s has none; remove it or add evidence", what)
		}
		return nil
	}
	if r.Proto == flow.UDP {
		return d.On(e.Key, "%s is for UDP flows, which are evidence for nothing: anybody can forge datagrams; write proto: tcp, or remove evidence", what)
	}
	if r.UDPUnproven {
		return d.On(e.Key, "%s has evidence and udp_unproven: true, but UDP flows are evidence for nothing: anybody can forge datagrams; give them a rule of their own", what)
	}
	if r.OneWay {
		return d.On(e.Key, "%s has evidence and one_way: true, but connections of which one direction was seen are evidence for nothing, as they may be forged; give them a rule of their own", what)
	}
	if d.with++; d.with > maxEvidenceRules {
		return d.On(e.Key, "more than %d rules have evidence; join some of them", maxEvidenceRules)
	}
	r.Meanwhile = r.Action
	if hasMeanwhile {
		if r.Meanwhile, err = d.action(meanwhile, "meanwhile"); err != nil {
			return err
		}
		if slices.Index(actions, r.Meanwhile) > slices.Index(actions, r.Action) && (r.Action == flow.Log || r.Action == flow.Limit) {
			return d.On(meanwhile.Place(), "%s would %s flows while it waits for evidence, and only %s then; write meanwhile: %[3]s", what, r.Meanwhile, r.Action)
		}
	}
	inner := "evidence of " + what
	ev, err := d.mapping(e.Value, inner, "flows", "share", "within", "min_confidence")
	if err != nil {
		return err
	}
	for _, required := range []struct{ key, example string }{{"flows", "3"}, {"share", "0.6"}, {"within", "1h"}} {
		if _, ok := ev[required.key]; !ok {
			return d.In(e.Value, "%s has no %s; add one, for example \"%s: %s\"", inner, required.key, required.key, required.example)
		}
	}
	r.Evidence = &Evidence{MinConfidence: r.MinConfidence}
	flows := ev["flows"].Place()
	_, isNumber := ev["flows"].Value.(*ast.IntegerNode)
	if r.Evidence.Flows, err = strconv.Atoi(flows.Value); err != nil || !isNumber || r.Evidence.Flows < 2 || r.Evidence.Flows > MaxEvidenceFlows {
		return d.On(flows, "flows %s is not a number of flows that are evidence; write 2 to %d", yamlfile.Quote(flows.Value), MaxEvidenceFlows)
	}
	if r.Evidence.Share, err = d.fraction(ev["share"], "share", "0.6"); err != nil {
		return err
	}
	if r.Evidence.Within, err = d.duration(ev["within"], "within"); err != nil {
		return err
	}
	if r.Evidence.Within > MaxWithin {
		return d.On(ev["within"].Place(), "within is longer than %s; flows that are so far apart say little together", FormatTTL(MaxWithin))
	}
	if c, ok := ev["min_confidence"]; ok {
		if r.Classes[0] == flow.Unknown {
			return d.On(c.Key, "there is no confidence in class %s; remove min_confidence", yamlfile.Quote(flow.Unknown))
		}
		if r.Evidence.MinConfidence, err = d.confidence(c); err != nil {
			return err
		}
	}
	return nil
}

// limits reads what rules without evidence may do.
func (d *decoder) limits(e entry) (l Limits, err error) {
	if s, ok := e.Value.(*ast.StringNode); ok {
		if s.Value == "none" {
			return Limits{}, nil
		}
		return l, d.On(e.Place(), "limits %s%s; write none, or a mapping such as {flows: 200/min, share: 0.25}", yamlfile.Quote(s.Value), yamlfile.DidYouMean(s.Value, []string{"none"}))
	}
	keys, err := d.mapping(e.Value, "limits", "flows", "share")
	if err != nil {
		return l, err
	}
	if len(keys) == 0 {
		return l, d.On(e.Place(), "limits names no limit; remove it for flows: 200/min and share: 0.25, or write limits: none")
	}
	if flows, ok := keys["flows"]; ok {
		at := flows.Place()
		text, err := d.text(at, flows.Value, "flows", "200/min")
		if err != nil {
			return l, err
		}
		number, unit, _ := strings.Cut(text, "/")
		l.Flows, err = strconv.Atoi(number)
		l.Per = map[string]time.Duration{"s": time.Second, "min": time.Minute, "h": time.Hour}[unit]
		const most = 1_000_000
		if err != nil || l.Flows < 1 || l.Flows > most || l.Per == 0 || strings.TrimLeft(number, "0123456789") != "" {
			return l, d.On(at, "flows %s is not a number of flows in a time; write 1 to %d, and /s, /min or /h, such as 200/min", yamlfile.Quote(text), most)
		}
	}
	if share, ok := keys["share"]; ok {
		if l.Share, err = d.fraction(share, "share", "0.25"); err != nil {
			return l, err
		}
	}
	return l, nil
}
