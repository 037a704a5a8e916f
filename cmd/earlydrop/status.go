// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/policy"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show what is attached where, and what it has counted",
		Description: `Without -i it is about every interface that something is pinned for, whether or
not the process that attached it still runs.

Examples:
   earlydrop status
   earlydrop status -i eth0 --json | jq .counters.ring_full`,
		Flags: []cli.Flag{
			interfaceFlag(),
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object per interface"},
		},
		Action: runStatus,
	}
}

func runStatus(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	all, openErr := openChosen(c)
	defer closeAll(all)
	if len(all) == 0 && openErr == nil && !c.Bool("json") {
		fmt.Fprintln(c.App.Writer, "earlydrop is attached to no interface"+seenFromHere())
	}
	for i, t := range all {
		s, err := status.Read(t)
		if err != nil {
			return fromLoader(err)
		}
		if c.Bool("json") {
			err = json.NewEncoder(c.App.Writer).Encode(s)
		} else {
			if i > 0 {
				fmt.Fprintln(c.App.Writer)
			}
			err = printStatus(c.App.Writer, s)
		}
		if err != nil {
			return err
		}
	}
	return openErr
}

// openChosen opens the tables of the interface that -i names, else of all that something
// is pinned for. With an error it returns those that could be opened.
func openChosen(c *cli.Context) ([]*loader.Tables, error) {
	if !c.IsSet("interface") {
		all, err := loader.OpenAll()
		return all, fromLoader(err)
	}
	t, err := loader.Open(c.String("interface"))
	if err != nil {
		return nil, fromLoader(err)
	}
	return []*loader.Tables{t}, nil
}

func closeAll(all []*loader.Tables) {
	for _, t := range all {
		_ = t.Close()
	}
}

// printStatus prints it for people.
func printStatus(out io.Writer, s *status.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name string, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	daemon := fmt.Sprintf("running, pid %d", s.PID)
	switch {
	case s.Running:
	case s.Gone:
		daemon = "not running, and nothing is attached: the interface was removed, or its programs were detached by force"
	default:
		daemon = "not running: blocked flows stay blocked, new flows pass"
	}
	row("interface", "%s", s.Interface)
	row("pins", "%s", s.Pins)
	row("daemon", "%s", daemon)
	row("attached", "%s, xdp %s, egress %s", s.Since.Format(time.DateTime), s.XDP, s.Egress)
	row("mode", "%s", s.Mode)
	if s.OneHook {
		row("one hook", "%s", oneHookProof)
	}
	if s.OneWay {
		row("one way", "TCP connections of which one direction is seen are captured as well")
	}
	for _, advice := range sidesAdvice(s.Interface, s.Counters, s.OneHook, s.OneWay) {
		row("warning", "%s", advice)
	}
	row("policy", "%s", s.Policy)
	row("model", "%s", s.Model)
	row("version", "%s", s.Version)
	suspended := ""
	if s.Mode == policy.Monitor.String() && s.Flows.Blocked > 0 {
		suspended = " (suspended: mode monitor drops nothing)"
	}
	row("flows", "%d known, %d collecting, %d blocked%s", s.Flows.Flows, s.Flows.Collecting, s.Flows.Blocked, suspended)
	for _, c := range s.Rows {
		row(c.Name, "%d", c.Value)
	}
	return w.Flush()
}
