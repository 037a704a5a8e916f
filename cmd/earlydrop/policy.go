// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/policy"
)

func policyCommand() *cli.Command {
	return &cli.Command{
		Name:  "policy",
		Usage: "check and compare policy files",
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
treated only by rules that say mid_stream: true. UDP flows are treated only by rules that
say udp_unproven: true. The files of sets are read as well, and each rule that can never
act is named, with the reason.

Examples:
   earlydrop policy check /etc/earlydrop/policy.yaml
   earlydrop policy check policy.yaml --model paper
   earlydrop policy default > policy.yaml && earlydrop policy check policy.yaml`,
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "model", Usage: "check the classes against the labels of the model `FILE`, or of the shipped \"paper\", instead of the default", TakesFile: true},
				},
				Action: checkPolicy,
			},
			policyDiffCommand(),
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
	_, err = fmt.Fprintf(c.App.Writer, "%sok\n", p.Describe())
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
