// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/history"
)

func captureCommand() *cli.Command {
	return &cli.Command{
		Name:      "capture",
		Usage:     "write what was captured of a flow, as a file for explain, replay and Wireshark",
		ArgsUsage: "EVENT",
		Description: `EVENT is the id of a verdict, as events and the field "id" of events have it. With
attach --history-captures, the captures of treated flows are kept. The file is pcapng;
its comments say what the verdict was, and why. explain and replay come to the same
verdict from it.

Examples:
   earlydrop events --since 1d --filter decision=drop --host 192.0.2.7
   earlydrop capture hdwn8ksmeo > why.pcapng
   earlydrop capture hdwn8ksmeo | earlydrop explain -`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "history", Usage: "read `FILE`, where no daemon answers", Value: historyFile, TakesFile: true},
			controlFlag("ask the daemon at the unix socket `PATH`; none: read the file"),
		},
		Action: runCapture,
	}
}

func runCapture(c *cli.Context) error {
	if err := requireArgs(c, 1, 1, "EVENT"); err != nil {
		return err
	}
	id, err := event.ParseID(c.Args().First())
	if err != nil {
		return asBadInput(err)
	}
	if f, ok := c.App.Writer.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return badInput("a capture is no text: send it to a file (earlydrop capture %s > why.pcapng), or to explain", id)
	}
	from, err := openPast(c)
	if err != nil {
		return err
	}
	defer from.close()
	file, err := from.capture(c.Context, id)
	if err != nil {
		if errors.Is(err, history.ErrNotFound) || errors.Is(err, control.ErrNotFound) {
			return badInput("%w: attach --history-captures keeps those of treated flows, for a while", err)
		}
		return fromDaemon(err)
	}
	_, err = c.App.Writer.Write(file)
	return err
}
