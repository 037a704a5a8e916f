// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

func blockedCommand() *cli.Command {
	flowFlags := []cli.Flag{
		interfaceFlag(),
		numberFlag("vlan", "the flow's 802.1Q `ID`", "untagged", 0, 4095),
		numberFlag("inner-vlan", "the `ID` of its second tag (QinQ)", "none", 0, 4095),
	}
	return &cli.Command{
		Name:  "blocked",
		Usage: "list, add and remove blocked flows",
		Subcommands: []*cli.Command{
			{
				Name:  "list",
				Usage: "list the flows that the kernel drops, with what it has dropped",
				Description: `Without -i it lists those of every interface. In mode monitor they are suspended:
their packets pass. The same, for machines:
bpftool map dump pinned /sys/fs/bpf/earlydrop/INTERFACE/blocked
(with %2e for each dot in the interface's name; status prints the folder).

Examples:
   earlydrop blocked list -i eth0
   earlydrop blocked list --json`,
				Flags:  []cli.Flag{interfaceFlag(), &cli.BoolFlag{Name: "json", Usage: "print one JSON object per flow"}},
				Action: blockedList,
			},
			{
				Name:      "add",
				Usage:     "drop a flow from now on",
				ArgsUsage: "tcp|udp ADDRESS:PORT ADDRESS:PORT",
				Description: `In mode monitor the block is suspended: it begins to drop when the mode is enforce.
The order of the endpoints does not matter.

Example:
   earlydrop blocked add -i eth0 --ttl 1d tcp 10.0.0.2:40000 192.0.2.7:8388`,
				Flags:  append([]cli.Flag{ttlFlag(10 * time.Minute)}, flowFlags...),
				Action: blockedAdd,
			},
			{
				Name:      "del",
				Usage:     "let a blocked flow pass again",
				ArgsUsage: "tcp|udp ADDRESS:PORT ADDRESS:PORT",
				Description: `Prints what was dropped of it.

Examples:
   earlydrop blocked del -i eth0 tcp 10.0.0.2:40000 192.0.2.7:8388
   earlydrop blocked del -i eth0 --all`,
				Flags:  append([]cli.Flag{&cli.BoolFlag{Name: "all", Usage: "all flows of the interface"}}, flowFlags...),
				Action: blockedDel,
			},
		},
	}
}

func blockedList(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	all, openErr := openChosen(c)
	defer closeAll(all)
	tw := table.NewWriter()
	tw.SetOutputMirror(c.App.Writer)
	tw.SetStyle(table.StyleLight)
	tw.AppendHeader(table.Row{"interface", "flow", "class", "rule", "packets", "dropped", "state", "ends in"})
	for _, t := range all {
		name := t.Interface()
		blocks, err := t.Blocked()
		if err != nil {
			return err
		}
		enforces, err := t.Enforces()
		if err != nil {
			return err
		}
		state := "drops"
		if !enforces {
			state = "suspended"
		}
		slices.SortFunc(blocks, func(a, b loader.Block) int { return a.Since.Compare(b.Since) })
		for _, b := range blocks {
			if c.Bool("json") {
				told := status.NewBlock(name, &b)
				told.Suspended = !enforces
				if err := json.NewEncoder(c.App.Writer).Encode(told); err != nil {
					return err
				}
				continue
			}
			tw.AppendRow(table.Row{name, b.Key, b.Class, b.Rule, b.Packets, event.ByteCount(b.Bytes), state, time.Until(b.Expires).Round(time.Second)})
		}
	}
	switch {
	case c.Bool("json"):
	case tw.Length() > 0:
		tw.Render()
	case openErr == nil:
		fmt.Fprintln(c.App.Writer, "no flow is blocked"+seenFromHere())
	}
	return openErr
}

// openFor opens the tables of the interface that -i names.
func openFor(c *cli.Context) (*loader.Tables, error) {
	if err := requireFlags(c, "interface"); err != nil {
		return nil, err
	}
	t, err := loader.Open(c.String("interface"))
	return t, fromLoader(err)
}

func blockedAdd(c *cli.Context) error {
	key, err := flowFromArgs(c)
	if err != nil {
		return err
	}
	if err := key.Possible(); err != nil {
		return asBadInput(err)
	}
	t, err := openFor(c)
	if err != nil {
		return err
	}
	defer t.Close()
	lasts := ttlOf(c)
	err = t.Apply(key, flow.Treatment{Action: flow.Drop, TTL: lasts, Rule: flow.ByHand})
	if errors.Is(err, loader.ErrFull) {
		return fmt.Errorf("%w (remove some with earlydrop blocked del, or attach with a larger --max-blocked)", err)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "blocked for %s: %s\n", policy.FormatTTL(lasts), key)
	if enforces, err := t.Enforces(); err != nil {
		return err
	} else if !enforces {
		fmt.Fprintf(c.App.Writer, "suspended: %s is in mode monitor, which drops nothing (earlydrop mode enforce -i %[1]s)\n", t.Interface())
	}
	return nil
}

func blockedDel(c *cli.Context) error {
	if c.Bool("all") {
		return blockedDelAll(c)
	}
	key, err := flowFromArgs(c)
	if err != nil {
		return err
	}
	t, err := openFor(c)
	if err != nil {
		return err
	}
	defer t.Close()
	b, err := t.Unblock(key)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return badInput("not blocked on %s: %s (earlydrop blocked list shows what is)", c.String("interface"), key)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "passes again: %s, dropped %d packets, %s\n", key, b.Packets, event.ByteCount(b.Bytes))
	return nil
}

func blockedDelAll(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	t, err := openFor(c)
	if err != nil {
		return err
	}
	defer t.Close()
	n, err := t.UnblockAll()
	if err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "%d flows pass again\n", n)
	return nil
}

// flowFromArgs reads "tcp ADDRESS:PORT ADDRESS:PORT" and the VLAN flags.
func flowFromArgs(c *cli.Context) (flow.Key, error) {
	if err := requireArgs(c, 3, 3, "a protocol and two endpoints, such as tcp 10.0.0.2:40000 192.0.2.7:8388"); err != nil {
		return flow.Key{}, err
	}
	var proto flow.Proto
	switch word := strings.ToLower(c.Args().Get(0)); word {
	case "tcp":
		proto = flow.TCP
	case "udp":
		proto = flow.UDP
	default:
		return flow.Key{}, badInput("unknown protocol %q: use tcp or udp", word)
	}
	var ends [2]netip.AddrPort
	for i := range ends {
		var err error
		if ends[i], err = netip.ParseAddrPort(c.Args().Get(i + 1)); err != nil {
			return flow.Key{}, badInput("%q is no endpoint: write ADDRESS:PORT, IPv6 as [ADDRESS]:PORT", c.Args().Get(i+1))
		}
		// Packets don't carry the zone of a link-local address: it is the interface.
		if zone, name := ends[i].Addr().Zone(), c.String("interface"); zone != "" {
			if name != "" && zone != name {
				return flow.Key{}, badInput("%s is an address on %s, but the interface is %s", ends[i], zone, name)
			}
			ends[i] = netip.AddrPortFrom(ends[i].Addr().WithZone(""), ends[i].Port())
		}
	}
	var tags [2]uint16
	for i, name := range []string{"vlan", "inner-vlan"} {
		tags[i] = uint16(numberOf(c, name))
	}
	key, _ := flow.NewKey(ends[0], ends[1], proto, tags[0], tags[1])
	return key, nil
}
