// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
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
		askFlag(),
	}
	filterFlags := []cli.Flag{
		&cli.StringFlag{Name: "cidr", Usage: "only flows with an end in `NETWORK`, such as 10.0.0.0/8, or with this address"},
		&cli.StringFlag{Name: "class", Usage: "only blocks of `CLASS`"},
		&cli.StringFlag{Name: "rule", Usage: "only blocks by `RULE`; \"by hand\" are those of blocked add"},
		&cli.StringFlag{Name: "proto", Usage: "only `PROTOCOL` tcp or udp"},
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

Sorted by since, expires, packets, bytes, class, rule, interface or flow; with a minus
in front, as in -bytes, from the largest on.

Examples:
   earlydrop blocked list -i eth0
   earlydrop blocked list --rule tunnels --sort=-bytes --limit 10
   earlydrop blocked list --cidr 10.0.0.0/8 --json`,
				Flags: append([]cli.Flag{
					interfaceFlag(),
					&cli.BoolFlag{Name: "json", Usage: "print one JSON object per flow"},
					&cli.StringFlag{Name: "sort", Value: "since", Usage: "sort by `KEY`"},
					numberFlag("limit", "print the first `N`", "all", 1, 1<<31-1),
					askFlag(),
				}, filterFlags...),
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
				Usage:     "let blocked flows pass again",
				ArgsUsage: "[tcp|udp ADDRESS:PORT ADDRESS:PORT]",
				Description: `One flow, those that --cidr, --class, --rule and --proto choose, or --all. Prints
what was dropped of them. A flow that is open is exempt then: it passes for its life, whatever
verdict comes.

Examples:
   earlydrop blocked del -i eth0 tcp 10.0.0.2:40000 192.0.2.7:8388
   earlydrop blocked del -i eth0 --cidr 10.1.2.0/24
   earlydrop blocked del -i eth0 --rule tunnels
   earlydrop blocked del -i eth0 --all`,
				Flags:  slices.Concat([]cli.Flag{&cli.BoolFlag{Name: "all", Usage: "all flows of the interface"}}, filterFlags, flowFlags),
				Action: blockedDel,
			},
		},
	}
}

// blockFilter reads the flags that choose blocks.
func blockFilter(c *cli.Context) (control.BlockFilter, error) {
	values := url.Values{}
	for _, name := range []string{"cidr", "class", "rule", "proto"} {
		if c.IsSet(name) {
			values.Set(name, c.String(name))
		}
	}
	f, err := control.ParseBlockFilter(values)
	if err != nil {
		return f, badInput("%w (see %s --help)", err, fullName(c))
	}
	f.Interface = c.String("interface")
	return f, nil
}

func blockedList(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	filter, err := blockFilter(c)
	if err != nil {
		return err
	}
	if err := control.SortBlocks(nil, c.String("sort")); err != nil {
		return badInput("--sort: %w", err)
	}
	blocks, openErr := findBlocks(c, &filter)
	_ = control.SortBlocks(blocks, c.String("sort"))
	matched := len(blocks)
	if limit := numberOf(c, "limit"); limit > 0 {
		blocks = blocks[:min(uint64(matched), limit)]
	}
	if c.Bool("json") {
		if err := printLines(c, blocks); err != nil {
			return err
		}
		return openErr
	}
	if matched == 0 {
		switch {
		case openErr != nil:
		case filter != control.BlockFilter{Interface: filter.Interface}:
			fmt.Fprintln(c.App.Writer, "no blocked flow is chosen by this")
		default:
			fmt.Fprintln(c.App.Writer, "no flow is blocked"+seenFromHere())
		}
		return openErr
	}
	tw := table.NewWriter()
	tw.SetOutputMirror(c.App.Writer)
	tw.SetStyle(table.StyleLight)
	tw.AppendHeader(table.Row{"interface", "flow", "class", "rule", "packets", "dropped", "state", "ends in"})
	for i := range blocks {
		b := &blocks[i]
		tw.AppendRow(table.Row{b.Interface, control.KeyOf(b), b.Class, b.Rule, b.Packets, event.ByteCount(b.Bytes), stateOf(b.Action, b.Rate, b.Suspended), time.Until(b.Expires).Round(time.Second)})
	}
	tw.Render()
	if n := matched - len(blocks); n > 0 {
		fmt.Fprintf(c.App.Writer, "%d more\n", n)
	}
	return openErr
}

// stateOf says what is done by an action of a block or a pair.
func stateOf(action string, rate uint64, suspended bool) string {
	switch {
	case suspended:
		return "suspended"
	case action == flow.Reset.String():
		return "resets"
	case action == flow.Limit.String():
		return "limits to " + policy.FormatRate(rate)
	}
	return "drops"
}

// findBlocks returns the blocks that a filter fits, as findInKernel finds them.
func findBlocks(c *cli.Context, filter *control.BlockFilter) ([]status.Block, error) {
	return findInKernel(c, filter.Interface, func(d *asked) ([]status.Block, error) {
		found, err := d.Blocks(c.Context, *filter, "", 0)
		if err != nil {
			return nil, err
		}
		return found.Blocks, nil
	}, (*loader.Tables).Blocked, func(iface string, pinned *loader.Block, suspended bool) (status.Block, bool) {
		b := status.NewBlock(iface, pinned)
		b.Suspended = suspended
		return b, filter.Match(&b)
	})
}

// findInKernel returns what the kernel does to flows or pairs on an interface, on all of them
// where it is empty: what the daemon tells, and of what it does not have what is pinned.
// choose makes that of an entry, and reports whether it is wanted. With an error it returns
// what could be read.
func findInKernel[E, T any](c *cli.Context, iface string, told func(*asked) ([]T, error), pinned func(*loader.Tables) ([]E, error), choose func(iface string, e *E, suspended bool) (T, bool)) (found []T, err error) {
	d := preferDaemon(c)
	if d != nil && (iface == "" || d.has(iface)) {
		if found, err = told(d); err != nil {
			return nil, fromDaemon(err)
		}
		if iface != "" {
			return found, nil
		}
	}
	all, openErr := openChosen(c)
	defer closeAll(all)
	for _, t := range all {
		name := t.Interface()
		if d.has(name) {
			continue
		}
		entries, err := pinned(t)
		if err != nil {
			return found, err
		}
		enforces, err := t.Enforces()
		if err != nil {
			return found, err
		}
		for i := range entries {
			if e, wanted := choose(name, &entries[i], !enforces); wanted {
				found = append(found, e)
			}
		}
	}
	return found, withoutAccess(d, openErr)
}

// printLines prints JSON, a line for each.
func printLines[T any](c *cli.Context, all []T) error {
	enc := json.NewEncoder(c.App.Writer)
	for i := range all {
		if err := enc.Encode(&all[i]); err != nil {
			return err
		}
	}
	return nil
}

// withoutAccess leaves out the error of who may not read what is pinned, if a daemon
// has answered in its place.
func withoutAccess(d *asked, err error) error {
	if d != nil && errors.Is(err, loader.ErrNoAccess) {
		return nil
	}
	return err
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
	if err := requireFlags(c, "interface"); err != nil {
		return err
	}
	lasts, iface, suspended := ttlOf(c), c.String("interface"), false
	if d := preferDaemon(c); d.has(iface) {
		suspended, err = d.Block(c.Context, iface, key, lasts)
	} else {
		suspended, err = blockPinned(c, key, lasts)
	}
	var told *control.Error
	switch {
	case errors.Is(err, loader.ErrFull), errors.As(err, &told) && told.IsFull():
		return fmt.Errorf("%w (remove some with earlydrop blocked del, or attach with a larger --max-blocked)", err)
	case err != nil:
		return fromDaemon(err)
	}
	fmt.Fprintf(c.App.Writer, "blocked for %s: %s\n", policy.FormatTTL(lasts), key)
	if suspended {
		fmt.Fprintf(c.App.Writer, "suspended: %s is in mode monitor, which drops nothing (earlydrop mode enforce -i %[1]s)\n", iface)
	}
	return nil
}

// blockPinned is blockedAdd where no daemon is asked.
func blockPinned(c *cli.Context, key flow.Key, lasts time.Duration) (suspended bool, err error) {
	t, err := openFor(c)
	if err != nil {
		return false, err
	}
	defer t.Close()
	if err := t.Apply(key, flow.Treatment{Action: flow.Drop, TTL: lasts, Rule: flow.ByHand}); err != nil {
		return false, err
	}
	enforces, err := t.Enforces()
	return !enforces, err
}

func blockedDel(c *cli.Context) error {
	filter, err := blockFilter(c)
	if err != nil {
		return err
	}
	all, some := c.Bool("all"), filter != control.BlockFilter{Interface: filter.Interface}
	if all || some {
		if all && some {
			return badInput("--all and a choice of blocks exclude each other: keep one of them")
		}
		if err := requireArgs(c, 0, 0, ""); err != nil {
			return err
		}
	} else {
		key, err := flowFromArgs(c)
		if err != nil {
			return err
		}
		filter.Flow = &key
	}
	if err := requireFlags(c, "interface"); err != nil {
		return err
	}
	var lifted control.Lifted
	if d := preferDaemon(c); d.has(filter.Interface) {
		if all {
			lifted, err = d.LiftAll(c.Context, filter.Interface)
		} else {
			lifted, err = d.Lift(c.Context, filter)
		}
		err = fromDaemon(err)
	} else {
		lifted, err = liftPinned(c, &filter)
	}
	switch {
	case filter.Flow != nil && errors.Is(err, control.ErrNotFound), filter.Flow != nil && err == nil && lifted.Blocks == 0:
		return badInput("not blocked on %s: %s (earlydrop blocked list shows what is)", filter.Interface, filter.Flow)
	case err != nil:
		return err
	case filter.Flow != nil:
		fmt.Fprintf(c.App.Writer, "passes again: %s, dropped %d packets, %s\n", filter.Flow, lifted.Packets, event.ByteCount(lifted.Bytes))
	default:
		fmt.Fprintf(c.App.Writer, "%d flows pass again, dropped %d packets, %s\n", lifted.Blocks, lifted.Packets, event.ByteCount(lifted.Bytes))
	}
	return nil
}

// liftPinned lifts the blocks that a filter fits where no daemon is asked.
func liftPinned(c *cli.Context, filter *control.BlockFilter) (sum control.Lifted, err error) {
	t, err := openFor(c)
	if err != nil {
		return sum, err
	}
	defer t.Close()
	blocks, err := t.Blocked()
	if err != nil {
		return sum, err
	}
	for i := range blocks {
		if b := status.NewBlock(filter.Interface, &blocks[i]); !filter.Match(&b) {
			continue
		}
		b, err := t.Unblock(blocks[i].Key)
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist): // somebody else was faster
			continue
		case err != nil:
			return sum, err
		}
		sum.Blocks++
		sum.Packets += b.Packets
		sum.Bytes += b.Bytes
	}
	if *filter == (control.BlockFilter{Interface: filter.Interface}) {
		_, err = t.UnblockAll() // those as well whose time was over
	}
	return sum, err
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
