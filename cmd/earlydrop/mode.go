// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/policy"
)

func modeCommand() *cli.Command {
	return &cli.Command{
		Name:      "mode",
		Usage:     "let what is attached drop, or stop it at once from dropping",
		ArgsUsage: "monitor|enforce",
		Description: `Changes the mode from the next packet on, whether a daemon runs or not. In mode
monitor nothing is dropped: all blocks are suspended, those by hand as well. They stay,
their time goes on, and mode enforce takes them up again. Without -i it is about every
interface.

The mode is refused where attach refuses it: with --mid-stream capture or --one-hook and
a policy that does not allow these. Then no interface is changed. The next attach sets the
mode as its policy or --mode says.

Examples:
   earlydrop mode monitor
   earlydrop mode enforce -i eth0`,
		Flags:  []cli.Flag{interfaceFlag(), askFlag()},
		Action: runMode,
	}
}

func runMode(c *cli.Context) error {
	if err := requireArgs(c, 1, 1, "monitor or enforce"); err != nil {
		return err
	}
	mode, err := policy.ParseMode(c.Args().First())
	if err != nil {
		return asBadInput(err)
	}
	if d := preferDaemon(c); d.has(c.String("interface")) || d != nil && !c.IsSet("interface") && d.hasAll() {
		return askMode(c, d, mode)
	}
	all, openErr := openChosen(c)
	defer closeAll(all)
	if len(all) == 0 && openErr == nil {
		return badInput("earlydrop is attached to no interface%s", seenFromHere())
	}
	changed, err := loader.SetModes(all, mode == policy.Enforce)
	var only *loader.MonitorOnlyError
	if errors.As(err, &only) {
		return asBadInput(err)
	}
	if err != nil {
		return err
	}
	for _, t := range all {
		fmt.Fprintln(c.App.Writer, modeText(t.Interface(), mode, slices.Contains(changed, t)))
	}
	return openErr
}

// askMode is runMode where a daemon has all interfaces that are meant.
func askMode(c *cli.Context, d *asked, mode policy.Mode) error {
	iface := c.String("interface")
	changed, err := d.SetMode(c.Context, mode, iface)
	if err != nil {
		return fromDaemon(err)
	}
	for _, name := range d.about.Interfaces {
		if iface == "" || name == iface {
			fmt.Fprintln(c.App.Writer, modeText(name, mode, slices.Contains(changed, name)))
		}
	}
	return nil
}

func modeText(iface string, mode policy.Mode, changed bool) string {
	when := "already"
	if changed {
		when = "now"
	}
	return fmt.Sprintf("%s is in mode %s %s", iface, mode, when)
}

// monitorOnly says why an interface that is attached so must not be in mode enforce with a
// policy: that one does not say what is to become of flows that prove little. It is empty if
// it may.
func monitorOnly(o *loader.Options, p *policy.Policy) string {
	switch {
	case o.MidStream && !p.TreatsMidStream():
		return "--mid-stream capture in mode enforce needs a rule with \"mid_stream: true\", and the policy has none: models know the beginnings of flows, and mistake many ordinary ones for tunnels from their middle on; add the key to a rule, or leave --mid-stream out"
	case o.OneHook && p.TreatsPairs():
		return "--one-hook in mode enforce does not go with a rule that has evidence: where both directions come through one hook, whoever can send both can make evidence against others; remove evidence from the rule"
	case o.OneHook && !p.OneHook:
		return "--one-hook in mode enforce needs \"one_hook: true\" in the policy: where both directions come through one hook, whoever can send both can have a flow of others dropped"
	}
	return ""
}
