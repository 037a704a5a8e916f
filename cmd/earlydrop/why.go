// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/why"
)

func whyCommand() *cli.Command {
	limit := numberFlag("limit", "print the latest `N` decisions", "20", 1, why.MaxDecisions).(*cli.GenericFlag)
	limit.Aliases = []string{"n"}
	return &cli.Command{
		Name:      "why",
		Usage:     "say why flows of an address were dropped, or passed",
		ArgsUsage: "ADDRESS[:PORT]|NETWORK",
		Description: `Asks the running attach what it remembers of flows with an end at the address: its last
10 000 decisions, those that no event tells of as well. For each it says what became of the
flow, what the flow is called and how sure that is, the rule or the entry of the allow-list
that decided, with its line in the policy file, the evidence, and whether the flow is
blocked now. The latest decision comes first. What is known of the pairs of the address
(see the manual's page about policies, "Evidence") comes before them.

A port is that of the address, or of the server. IPv6 with a port takes brackets.
Memory begins anew with each attach; what is older comes from the history, where the daemon
keeps one (attach --history).

Examples:
   earlydrop why 192.0.2.7
   earlydrop why 192.0.2.7:8388 -n 1
   earlydrop why [2001:db8::7]:443
   earlydrop why 10.1.0.0/16 --json`,
		Flags: []cli.Flag{
			limit,
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object"},
			controlFlag("ask the daemon at the unix socket `PATH`"),
		},
		Action: runWhy,
	}
}

func runWhy(c *cli.Context) error {
	if err := requireArgs(c, 1, 1, "an address, such as 192.0.2.7, 192.0.2.7:443 or [2001:db8::1]:443"); err != nil {
		return err
	}
	q, err := control.ParseWhy(c.Args().First())
	if err != nil {
		return badInput("%w (see %s --help)", err, fullName(c))
	}
	if n := numberOf(c, "limit"); n > 0 {
		q.Most = int(n)
	}
	d, err := requireDaemon(c)
	if err != nil {
		return err
	}
	answer, err := d.Why(c.Context, &q)
	if err != nil {
		return fromDaemon(err)
	}
	if err := addEarlier(c.Context, d, &q, answer); err != nil {
		return fromDaemon(err)
	}
	if c.Bool("json") {
		return json.NewEncoder(c.App.Writer).Encode(answer)
	}
	_, err = io.WriteString(c.App.Writer, answer.Text(time.Now()))
	return err
}

// addEarlier adds what the daemon's history has, if it keeps one, from before its memory.
func addEarlier(ctx context.Context, d *asked, q *why.Query, answer *why.Answer) error {
	if len(answer.Decisions) >= q.Most {
		return nil
	}
	events, err := d.History(ctx, &control.HistoryQuery{
		EventFilter: control.EventFilter{Event: []string{"verdict"}, CIDR: []netip.Prefix{q.Network}},
		Until:       answer.Since, Limit: control.MaxHistory,
	})
	if errors.Is(err, control.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for line, err := range events {
		if errors.Is(err, control.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		e, err := event.Decode(line)
		if err != nil {
			return fmt.Errorf("an event of the history: %w", err)
		}
		if v, ok := e.(*event.Verdict); ok && !answer.AddEarlier(q, v) {
			return nil
		}
	}
	return nil
}
