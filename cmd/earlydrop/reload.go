// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/gateway"
)

func reloadCommand() *cli.Command {
	return &cli.Command{
		Name:  "reload",
		Usage: "have the daemon read its policy file again",
		Description: `The policy is checked whole. If something is wrong with it the old one stays in force,
and the mistake is printed as policy check does, FILE:LINE:COLUMN. Otherwise it is said
what has changed. Blocks that the new policy would not make are lifted: of clients
that are allowed since, of rules that are gone. Those by hand stay. The mode changes
only if it is another one in the file, and attach was not given --mode. Each reload is an
event: reloaded.

SIGHUP does the same. Both open the event file again. Without -i it is about every
daemon. One that answers at no control socket is sent SIGHUP, and prints itself what
came of it.

Examples:
   earlydrop policy check /etc/earlydrop/policy.yaml && earlydrop reload
   earlydrop reload -i eth0`,
		Flags:  []cli.Flag{interfaceFlag(), askFlag()},
		Action: runReload,
	}
}

func runReload(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	if d := preferDaemon(c); d.has(c.String("interface")) || d != nil && !c.IsSet("interface") && d.hasAll() {
		r, err := d.Reload(c.Context)
		if err != nil {
			return fromDaemon(err)
		}
		fmt.Fprintln(c.App.Writer, (*gateway.Reloaded)(r))
		return nil
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
