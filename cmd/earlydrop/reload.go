// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

func reloadCommand() *cli.Command {
	return &cli.Command{
		Name:  "reload",
		Usage: "have the daemon read its policy file again",
		Description: `The policy is checked whole. If something is wrong with it the old one stays in force,
and the daemon prints the mistake as policy check does, FILE:LINE:COLUMN. Otherwise it
says what has changed. Blocks that the new policy would not make are lifted: of clients
that are allowed since, of rules that are gone. Those by hand stay. The mode changes
only if it is another one in the file, and attach was not given --mode. Each reload is an
event: reloaded.

SIGHUP does the same, and opens the event file again. Without -i it is about every
daemon.

Examples:
   earlydrop policy check /etc/earlydrop/policy.yaml && earlydrop reload
   earlydrop reload -i eth0`,
		Flags:  []cli.Flag{interfaceFlag()},
		Action: runReload,
	}
}

func runReload(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	all, openErr := openChosen(c)
	defer closeAll(all)
	if len(all) == 0 && openErr == nil {
		return badInput("earlydrop is attached to no interface%s", seenFromHere())
	}
	asked := make(map[int]bool)
	for _, t := range all {
		a, err := t.Attachment()
		if err != nil {
			return err
		}
		if asked[a.PID] || !a.Alive && !c.IsSet("interface") {
			continue
		}
		pid, err := t.HangUp()
		if err != nil {
			return fromLoader(err)
		}
		asked[pid] = true
		fmt.Fprintf(c.App.Writer, "the daemon of %s, pid %d, was told: what it prints, and its event reloaded, say what came of it\n", t.Interface(), pid)
	}
	if len(asked) == 0 && openErr == nil {
		return badInput("no daemon runs: the next attach reads its policy")
	}
	return openErr
}
