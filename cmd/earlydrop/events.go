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
		Usage: "print the events of a running attach as they come",
		Description: `Until SIGINT, or the end of attach. What attach --events-pass leaves out is not
among them, and who reads too slowly loses some: a line says how many.

A filter is KEY=VALUE[,VALUE...]. An event is printed if it fits all that are given.
   event       attached, waiting, verdict, block_ended, left_out, mode_changed,
               reloaded, limit_reached, device_failed, audit or ended
   interface   of the event
   class       the model's, or one of those that decided
   rule        the rule that was asked
   decision    pass or drop
   detected    true or false
   proto       tcp or udp
   cidr        a network or an address: of either end
   src, dst    the same: of the initiator of a verdict, of the other end

Examples:
   earlydrop events --follow --filter decision=drop
   earlydrop events --follow --filter event=audit,block_ended --json
   earlydrop events --follow --filter class=shadowsocks --filter src=10.0.0.0/8`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "print what comes from now on; what was before is in the file of attach --events"},
			&cli.StringSliceFlag{Name: "filter", Usage: "print those events only that fit `KEY=VALUE`"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object per event"},
			&cli.BoolFlag{Name: "verbose", Usage: "print more of each verdict: scores, reason, model, latency"},
			controlFlag("ask the daemon at the unix socket `PATH`"),
		},
		Action: runEvents,
	}
}

func runEvents(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	if !c.Bool("follow") {
		return badInput("events needs --follow: what was before is in the file of attach --events (see %s --help)", fullName(c))
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
