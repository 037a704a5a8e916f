// SPDX-License-Identifier: Apache-2.0

package main

import "github.com/urfave/cli/v2"

func policyCommand() *cli.Command {
	return &cli.Command{
		Name:  "policy",
		Usage: "check policy files",
		Subcommands: []*cli.Command{{
			Name:        "check",
			Usage:       "check a policy file and say in words what it does",
			Description: "Example:\n   earlydrop policy check FILE",
			ArgsUsage:   "FILE",
			Action: func(c *cli.Context) error {
				return requireArgs(c, 1, 1, "FILE")
			},
		}},
	}
}
