// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os/signal"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name:  "events",
		Usage: "print events: what was, or what comes",
		Description: `Prints the events that attach --history keeps, the oldest first, each after its id:
all detected flows, and some of those that pass (attach --history-passes). A running
attach is asked over its control socket; without one, the file is read.

With --follow it prints events of a running attach as they come, until SIGINT or the
end of attach. What attach --events-pass leaves out is not among them, and who reads
too slowly loses some: a line says how many.

A filter is KEY=VALUE[,VALUE...]. An event is printed if it fits all that are given.
   event       attached, waiting, verdict, block_ended, pair_treated, pair_ended,
               left_out, mode_changed, reloaded, limit_reached, device_failed, audit or ended
   interface   of the event
   class       the model's, or one of those that decided
   rule        the rule that was asked
   decision    pass or drop
   detected    true or false
   proto       tcp or udp
   cidr        a network or an address: of either end
   src, dst    the same: of the initiator of a verdict, of the other end
   server      address and port that a flow goes to

Examples:
   earlydrop events --since 2h --host 192.0.2.7
   earlydrop events --since 2026-11-24 --until 2026-11-25 --filter decision=drop --csv
   earlydrop events --server 192.0.2.7:8388 --json | jq .scores
   earlydrop events --follow --filter decision=drop
   earlydrop events --follow --filter event=audit,block_ended --json
   earlydrop events --follow --filter class=shadowsocks --filter src=10.0.0.0/8`,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "print what comes from now on"},
			&cli.StringSliceFlag{Name: "filter", Usage: "print those events only that fit `KEY=VALUE`"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object per event"},
			&cli.BoolFlag{Name: "verbose", Usage: "print more of each verdict: scores, reason, model, latency"},
			controlFlag("ask the daemon at the unix socket `PATH`; none: read the file"),
		}, searchFlags()...),
		Action: runEvents,
	}
}

func runEvents(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	if !c.Bool("follow") {
		return pastEvents(c)
	}
	for _, f := range searchFlags() {
		if name := f.Names()[0]; c.IsSet(name) {
			return badInput("--follow is about what comes, and --%s about what was", name)
		}
	}
	filter, err := eventFilter(c.StringSlice("filter"))
	if err != nil {
		return badInput("--filter %w (see %s --help)", err, fullName(c))
	}
	d, err := requireDaemon(c)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM)
	defer stop()
	events, err := d.Events(ctx, filter)
	if err != nil {
		return fromDaemon(err)
	}
	enc := json.NewEncoder(c.App.Writer)
	for e, err := range events {
		if err != nil {
			return err
		}
		if c.Bool("json") {
			err = enc.Encode(e)
		} else {
			_, err = fmt.Fprintln(c.App.Writer, eventText(e, c.Bool("verbose")))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// eventText returns an event as a line for people.
func eventText(e event.Event, verbose bool) string {
	switch e := e.(type) {
	case *event.Verdict:
		return e.Text(verbose)
	case interface{ Text() string }:
		return e.Text()
	}
	return e.Kind()
}

// eventFilter reads KEY=VALUE[,VALUE...] of each; values of one key are alternatives.
func eventFilter(texts []string) (*control.EventFilter, error) {
	values := url.Values{}
	for _, text := range texts {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" || value == "" {
			return nil, fmt.Errorf("%q: use KEY=VALUE, such as decision=drop", text)
		}
		if before := values.Get(key); before != "" {
			value = before + "," + value
		}
		values.Set(key, value)
	}
	return control.ParseEventFilter(values)
}
