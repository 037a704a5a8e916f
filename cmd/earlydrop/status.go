// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/loader"
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
		Action: status,
	}
}

// interfaceStatus is what `status --json` prints for one interface.
type interfaceStatus struct {
	Interface string            `json:"interface"`
	Pins      string            `json:"pins"`    // folder
	Running   bool              `json:"running"` // the daemon exists
	PID       int               `json:"pid"`
	Since     time.Time         `json:"since"`
	XDP       string            `json:"xdp"`
	Egress    string            `json:"egress"`
	Mode      string            `json:"mode"`
	OneHook   bool              `json:"one_hook"`
	OneWay    bool              `json:"one_way"`
	Policy    string            `json:"policy"`
	Model     string            `json:"model"`
	Version   string            `json:"version"`
	Flows     loader.Occupancy  `json:"occupancy"`
	Daemon    map[string]uint64 `json:"daemon"`
	Counters  map[string]uint64 `json:"counters"`

	gone bool            // nothing is attached
	rows loader.Counters // Counters and Daemon, in order
}

func status(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	all, openErr := openChosen(c)
	defer closeAll(all)
	if len(all) == 0 && openErr == nil && !c.Bool("json") {
		fmt.Fprintln(c.App.Writer, "earlydrop is attached to no interface"+seenFromHere())
	}
	for i, t := range all {
		s, err := readStatus(t)
		if err != nil {
			return fromLoader(err)
		}
		if c.Bool("json") {
			err = json.NewEncoder(c.App.Writer).Encode(s)
		} else {
			if i > 0 {
				fmt.Fprintln(c.App.Writer)
			}
			err = s.print(c.App.Writer)
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

func readStatus(t *loader.Tables) (*interfaceStatus, error) {
	a, errA := t.Attachment()
	o, errO := t.Occupancy()
	counters, errC := t.Counters()
	daemon, errD := t.DaemonCounters()
	if err := errors.Join(errA, errO, errC, errD); err != nil {
		return nil, err
	}
	s := &interfaceStatus{
		Interface: a.Interface, Pins: t.PinDir(), gone: a.Gone, Running: a.Alive, PID: a.PID, Since: a.Since, XDP: string(a.XDPMode), Egress: a.Egress,
		Mode: a.Mode, OneHook: a.OneHook, OneWay: a.OneWay, Policy: a.Policy, Model: a.Model, Version: a.Version, Flows: o,
		Daemon: daemon.Values(), Counters: counters.Values(), rows: slices.Concat(daemon, counters),
	}
	return s, nil
}

func (s *interfaceStatus) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name string, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	daemon := fmt.Sprintf("running, pid %d", s.PID)
	switch {
	case s.Running:
	case s.gone:
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
		row("one way", "TCP connections of which one direction is seen are captured, too")
	}
	for _, advice := range sidesAdvice(s.Interface, s.Counters, s.OneHook, s.OneWay) {
		row("warning", "%s", advice)
	}
	row("policy", "%s", s.Policy)
	row("model", "%s", s.Model)
	row("version", "%s", s.Version)
	row("flows", "%d known, %d collecting, %d blocked", s.Flows.Flows, s.Flows.Collecting, s.Flows.Blocked)
	for _, c := range s.rows {
		row(c.Name, "%d", c.Value)
	}
	return w.Flush()
}
