// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
)

func pairsCommand() *cli.Command {
	filterFlags := []cli.Flag{
		&cli.StringFlag{Name: "cidr", Usage: "only pairs with an end in `NETWORK`, such as 10.0.0.0/8, or with this address"},
		&cli.StringFlag{Name: "class", Usage: "only pairs of `CLASS`"},
		&cli.StringFlag{Name: "rule", Usage: "only pairs by `RULE`"},
	}
	return &cli.Command{
		Name:  "pairs",
		Usage: "list and end treatments of pairs: an initiator and a server",
		Description: `A rule with evidence treats a pair once enough of its flows were detected. From then on
the kernel treats each of its connections as it begins, and captures nothing of it.`,
		Subcommands: []*cli.Command{
			{
				Name:  "list",
				Usage: "list the pairs that the kernel treats, with what came of it",
				Description: `Without -i it lists those of every interface. In mode monitor they are suspended:
their connections pass. The same, for machines:
bpftool map dump pinned /sys/fs/bpf/earlydrop/INTERFACE/pairs
(with %2e for each dot in the interface's name; status prints the folder).

Examples:
   earlydrop pairs list -i eth0
   earlydrop pairs list --cidr 10.0.0.0/8 --json`,
				Flags:  append([]cli.Flag{interfaceFlag(), &cli.BoolFlag{Name: "json", Usage: "print one JSON object per pair"}, askFlag()}, filterFlags...),
				Action: pairsList,
			},
			{
				Name:      "del",
				Usage:     "let pairs connect again",
				ArgsUsage: "[INITIATOR SERVER:PORT]",
				Description: `One pair, those that --cidr, --class and --rule choose, or --all; on all interfaces. What was
known of its flows is forgotten: it is treated again when there is as much evidence anew. Flows
that are blocked stay so (earlydrop blocked del).

Examples:
   earlydrop pairs del 10.0.0.2 192.0.2.7:8388
   earlydrop pairs del 2001:db8:1::/64 [2001:db8::7]:8388
   earlydrop pairs del --rule tunnels
   earlydrop pairs del --all`,
				Flags: slices.Concat([]cli.Flag{&cli.BoolFlag{Name: "all", Usage: "all pairs"}}, filterFlags, []cli.Flag{
					numberFlag("vlan", "the pair's 802.1Q `ID`", "untagged", 0, 4095),
					numberFlag("inner-vlan", "the `ID` of its second tag (QinQ)", "none", 0, 4095),
					askFlag(),
				}),
				Action: pairsDel,
			},
		},
	}
}

// pairFilter reads the flags that choose pairs.
func pairFilter(c *cli.Context) (control.PairFilter, error) {
	values := url.Values{}
	for _, name := range []string{"cidr", "class", "rule"} {
		if c.IsSet(name) {
			values.Set(name, c.String(name))
		}
	}
	f, err := control.ParsePairFilter(values)
	if err != nil {
		return f, badInput("%w (see %s --help)", err, fullName(c))
	}
	return f, nil
}

func pairsList(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	filter, err := pairFilter(c)
	if err != nil {
		return err
	}
	chosen := !filter.Everything()
	filter.Interface = c.String("interface")
	pairs, openErr := findPairs(c, &filter)
	_ = control.SortPairs(pairs, "pair")
	if c.Bool("json") {
		if err := printLines(c, pairs); err != nil {
			return err
		}
		return openErr
	}
	if len(pairs) == 0 {
		switch {
		case openErr != nil:
		case chosen:
			fmt.Fprintln(c.App.Writer, "no treated pair is chosen by this")
		default:
			fmt.Fprintln(c.App.Writer, "no pair is treated"+seenFromHere())
		}
		return openErr
	}
	tw := table.NewWriter()
	tw.SetOutputMirror(c.App.Writer)
	tw.SetStyle(table.StyleLight)
	tw.AppendHeader(table.Row{"interface", "pair", "class", "rule", "connections", "packets", "dropped", "state", "ends in"})
	for i := range pairs {
		p := &pairs[i]
		tw.AppendRow(table.Row{p.Interface, p.Pair(), p.Class, p.Rule, p.Connections, p.Packets, event.ByteCount(p.Bytes), stateOf(p.Action, p.Rate, p.Suspended),
			time.Until(p.Expires).Round(time.Second)})
	}
	tw.Render()
	return openErr
}

// findPairs returns the pairs that a filter fits, as findInKernel finds them.
func findPairs(c *cli.Context, filter *control.PairFilter) ([]status.Pair, error) {
	return findInKernel(c, filter.Interface, func(d *asked) ([]status.Pair, error) {
		found, err := d.Pairs(c.Context, *filter, "", 0)
		if err != nil {
			return nil, err
		}
		return found.Pairs, nil
	}, (*loader.Tables).Pairs, func(iface string, pinned *loader.Pair, suspended bool) (status.Pair, bool) {
		p := status.NewPair(iface, pinned)
		p.Suspended = suspended
		return p, filter.Match(&p)
	})
}

func pairsDel(c *cli.Context) error {
	filter, err := pairFilter(c)
	if err != nil {
		return err
	}
	all, some := c.Bool("all"), !filter.Everything()
	switch {
	case all && some:
		return badInput("--all and a choice of pairs exclude each other: keep one of them")
	case all || some:
		if err := requireArgs(c, 0, 0, ""); err != nil {
			return err
		}
	default:
		if err := requireArgs(c, 2, 2, "an initiator and a server, such as 10.0.0.2 192.0.2.7:8388"); err != nil {
			return err
		}
		p, err := control.ParsePair(c.Args().Get(0), c.Args().Get(1), uint16(numberOf(c, "vlan")), uint16(numberOf(c, "inner-vlan")))
		if err != nil {
			return asBadInput(err)
		}
		filter.Pair = &p
	}
	var sum control.Forgotten
	d := preferDaemon(c)
	if d != nil {
		sum, err = d.ForgetPairs(c.Context, filter)
		if err = fromDaemon(err); filter.Pair != nil && errors.Is(err, control.ErrNotFound) {
			err = nil // it may be pinned for another interface
		}
		if err != nil {
			return err
		}
	}
	// What the daemon does not have. A later one finds that these were ended.
	tables, openErr := loader.OpenAll()
	defer closeAll(tables)
	ended := map[flow.Pair]bool{}
	for _, t := range tables {
		if d.has(t.Interface()) {
			continue
		}
		if err := forgetPinned(t, &filter, &sum, ended); err != nil {
			return err
		}
	}
	sum.Pairs += len(ended)
	switch openErr = withoutAccess(d, fromLoader(openErr)); {
	case openErr != nil:
		return openErr
	case filter.Pair != nil && sum.Pairs == 0:
		return badInput("not treated: %s (earlydrop pairs list shows what is)", filter.Pair)
	}
	fmt.Fprintf(c.App.Writer, "%d pairs may connect again, dropped %d packets of %d connections, %s\n", sum.Pairs, sum.Packets, sum.Connections, event.ByteCount(sum.Bytes))
	return nil
}

// forgetPinned ends the treatment of the pairs of an interface that a filter fits.
func forgetPinned(t *loader.Tables, filter *control.PairFilter, sum *control.Forgotten, ended map[flow.Pair]bool) error {
	pairs, err := t.Pairs()
	if err != nil {
		return err
	}
	for i := range pairs {
		if p := status.NewPair(t.Interface(), &pairs[i]); !filter.Match(&p) {
			continue
		}
		was, err := t.ForgetPair(pairs[i].Pair)
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist): // somebody else was faster
			continue
		case err != nil:
			return err
		}
		p := status.NewPair(t.Interface(), &was)
		sum.Add(&p)
		ended[was.Pair] = true
	}
	return nil
}
