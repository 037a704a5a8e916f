// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/gateway"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/term"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/top"
	"github.com/earlydrop/earlydrop/loader"
)

func topCommand() *cli.Command {
	return &cli.Command{
		Name:  "top",
		Usage: "watch live: rates, who is detected and dropped, the latest verdicts",
		Description: `A view of a running attach that changes as it works. ? lists the keys: another list, sort,
filter, stand still, what is known of a row, unblock. It goes on when attach is started
again.

It takes a terminal. --looks prints plain text instead, wherever standard output goes; so
does a terminal that can't place text (TERM=dumb). NO_COLOR, if set, has it do without
colours, which say nothing that the text does not say as well.

Examples:
   earlydrop top
   earlydrop top -i eth0 --interval 5s
   earlydrop top --looks 1
   earlydrop top --looks 1 --json | jq '.pairs[0]'`,
		Flags: []cli.Flag{
			interfaceFlag(),
			spanFlag("interval", "look again after `TIME`", 2*time.Second, 200*time.Millisecond),
			numberFlag("looks", "print `N` looks as plain text, and end", "a live view", 1, 1<<31-1),
			&cli.BoolFlag{Name: "json", Usage: "print them as one JSON object each (GET /v1/top of the control socket)"},
			controlFlag("ask the daemon at the unix socket `PATH`"),
		},
		Action: runTop,
	}
}

func runTop(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	looks, asJSON := int(numberOf(c, "looks")), c.Bool("json")
	if asJSON && looks == 0 {
		return badInput("--json needs --looks: a live view is no JSON")
	}
	out, isFile := c.App.Writer.(*os.File)
	live := looks == 0 && term.Places(c.App.Writer)
	if looks == 0 && !term.Is(c.App.Writer) {
		return badInput("top needs a terminal; --looks 1 prints one look as plain text")
	}
	d, err := requireDaemon(c)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM)
	defer stop()
	config := top.Config{
		Source: d, Every: spanOf(c, "interval"), Interface: c.String("interface"), JSON: asJSON, Counters: slices.Concat(gateway.KnownCounters(), loader.KnownCounters()), Colors: term.HasColors(c.App.Writer),
	}
	if c.IsSet("interface") {
		if err := config.Check(ctx); err != nil {
			return fromDaemon(asBadInput(err))
		}
	}
	if live && isFile {
		return fromDaemon(top.Run(ctx, config, os.Stdin, out))
	}
	return fromDaemon(top.Print(ctx, config, looks, term.Width(c.App.Writer), c.App.Writer))
}
