// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

func policyCommand() *cli.Command {
	return &cli.Command{
		Name:  "policy",
		Usage: "check policy files",
		Subcommands: []*cli.Command{
			{
				Name:      "check",
				Usage:     "check a policy file and say in words what it does",
				ArgsUsage: "FILE",
				Description: `Reads FILE as attach and replay do. A mistake is shown as one line,
FILE:LINE:COLUMN, and the exit code is 2. The classes have to be labels of the
shipped model, or of the one that --model names. A rule without min_confidence
asks for the model's own threshold: that of its class or, when it names several,
the any_threshold, which is about the sum of their probabilities. A rule may
name the class unknown, alone, for flows of which no class is likely enough.
TCP flows that were captured from their middle (attach --mid-stream capture) are
taken only by rules that say mid_stream: true. UDP flows are taken only by rules that
say udp_unproven: true.

Examples:
   earlydrop policy check /etc/earlydrop/policy.yaml
   earlydrop policy check policy.yaml --model paper
   earlydrop policy default > policy.yaml && earlydrop policy check policy.yaml`,
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "model", Usage: "check the classes against the labels of the model `FILE`, or of the shipped \"paper\", instead of the default"},
				},
				Action: checkPolicy,
			},
			{
				Name:  "default",
				Usage: "print the policy that is used when none is given",
				Description: `The text is a commented policy file to start one's own from.

Example:
   earlydrop policy default > policy.yaml`,
				Action: func(c *cli.Context) error {
					if err := requireArgs(c, 0, 0, ""); err != nil {
						return err
					}
					model, err := readPolicyModel("")
					if err != nil {
						return err
					}
					_, err = io.WriteString(c.App.Writer, policy.DefaultYAML(model.Labels))
					return err
				},
			},
		},
	}
}

func checkPolicy(c *cli.Context) error {
	if err := requireArgs(c, 1, 1, "FILE"); err != nil {
		return err
	}
	path := c.Args().First()
	model, err := readPolicyModel(c.String("model"))
	if err != nil {
		return err
	}
	if path == "" {
		return badInput("policy check needs FILE, but its name is empty")
	}
	p, err := loadPolicy(path, model)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "%sok\n", describePolicy(p))
	return err
}

// policyModel returns what a policy has to know of a model.
func policyModel(m *classifier.Manifest) *policy.Model {
	return &policy.Model{Labels: m.Labels, Thresholds: m.Thresholds, AnyThreshold: m.AnyThreshold, Unknown: m.Unknown > 0}
}

// readPolicyModel is policyModel of the model that readModel reads. It needs no
// ONNX Runtime. Every error is bad input.
func readPolicyModel(path string) (*policy.Model, error) {
	name, onnx, err := readModel(path)
	if err != nil {
		return nil, err
	}
	manifest, err := classifier.ReadManifest(name, onnx)
	if err != nil {
		return nil, asBadInput(err)
	}
	return policyModel(manifest), nil
}

// loadPolicy reads the policy file at path, or the embedded one when path is
// empty. Every error is bad input.
func loadPolicy(path string, model *policy.Model) (*policy.Policy, error) {
	if path == "" {
		p, err := policy.Default(model)
		return p, asBadInput(err)
	}
	p, err := policy.Load(path, model)
	return p, asBadInput(err)
}

// udpNotTreated says what becomes of UDP flows under a policy of which no rule takes any.
const udpNotTreated = "UDP flows, tunnels as well, are identified and logged, not treated: no rule says udp_unproven: true"

// describePolicy says in words what p does, one line for each entry.
func describePolicy(p *policy.Policy) string {
	var b strings.Builder
	meaning := "decides and logs, drops nothing"
	if p.Mode == policy.Enforce {
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
			when += ", and the flow shows " + orList(names)
		}
		fmt.Fprintf(&b, "%srule %s: %s %s for %s %s\n",
			otherwise, rule.Name, rule.Action, orList(rule.Classes), shortDuration(rule.TTL), when)
		for j := range rule.Except {
			fmt.Fprintf(&b, "  except %s\n", matchInWords(&rule.Except[j]))
		}
	}
	if len(p.Rules) == 0 {
		b.WriteString("no rules: everything passes\n")
	} else {
		b.WriteString("everything else passes\n")
		if !p.TreatsUDP() {
			b.WriteString(udpNotTreated + "\n")
		}
	}
	for i, rule := range p.Rules {
		if len(rule.Classes) > 0 && neverDecides(p.Rules[:i], &rule) {
			fmt.Fprintf(&b, "note: rule %s never decides: a rule above it takes all of its flows\n", rule.Name)
		}
	}
	return b.String()
}

// neverDecides reports whether a rule above takes every flow that rule would: it
// has all of its classes, so its probabilities add up to no less, no exception, wants
// no more confidence, and takes flows from their middle, and UDP flows, if rule does.
func neverDecides(above []policy.Rule, rule *policy.Rule) bool {
	return slices.ContainsFunc(above, func(r policy.Rule) bool {
		return len(r.Except) == 0 && r.MinConfidence <= rule.MinConfidence && (r.MidStream || !rule.MidStream) && (r.UDPUnproven || !rule.UDPUnproven) && (r.OneWay || !rule.OneWay) &&
			(r.Provisional == nil || rule.Provisional != nil && *r.Provisional == *rule.Provisional) &&
			(r.Signals == 0 || rule.Signals != 0 && rule.Signals&^r.Signals == 0) &&
			!slices.ContainsFunc(rule.Classes, func(class string) bool { return !slices.Contains(r.Classes, class) })
	})
}

// matchInWords says which flows m fits, to be read after "flows".
func matchInWords(m *policy.Match) string {
	var words []string
	if m.Prefix.IsValid() {
		direction := "from or to"
		switch m.Side {
		case policy.InitiatorSide:
			direction = "from"
		case policy.ResponderSide:
			direction = "to"
		}
		words = append(words, direction+" "+m.Prefix.String())
	}
	if len(m.Ports) > 0 {
		ports := make([]string, len(m.Ports))
		for i, r := range m.Ports {
			ports[i] = r.String()
		}
		words = append(words, "to port "+orList(ports))
	}
	return strings.Join(words, ", ")
}

// orList joins words as a sentence does: "a", "a or b", "a, b or c".
func orList(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// shortDuration prints d in days, hours and so on, without the zero units that
// Duration.String ends in: 1d12h, 10m.
func shortDuration(d time.Duration) string {
	const day = 24 * time.Hour
	if d >= day {
		s := strconv.Itoa(int(d/day)) + "d"
		if rest := d % day; rest > 0 {
			s += shortDuration(rest)
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
