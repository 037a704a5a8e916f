// SPDX-License-Identifier: Apache-2.0

// Command evasion shapes the first bytes of real Shadowsocks, VMess and HTTPS connections
// as programs do that are to get past a filter, one strategy at a time, and prints what
// earlydrop makes of each. It needs root and the programs of package lab; all of it
// happens in network namespaces of its own.
//
//	go run ./test/evasion                    # all strategies, ten connections of each
//	go run ./test/evasion -run tiny-8 -v     # those whose name fits, each connection
//	go run ./test/evasion -list              # what they do, what they take, who published them
//	go run ./test/evasion -page OLD NEW      # the manual's page, of what -json printed twice
//
// A relay at the client's end and one at the server's change packets; what an ordinary
// program could do is done at its socket. Each connection fetches a page of 16 KiB
// through the tunnel or over HTTPS. All are made three times: with nothing attached, with
// earlydrop in mode monitor, and (HTTPS) in mode enforce, with a rule over every class of
// tunnels.
//
// The exit code is 1 when HTTPS does not survive a strategy with earlydrop in mode enforce
// that it survives with nothing attached, and when connections to which neither end does
// anything, whatever an outsider does, are not identified or have signals.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	code, err := run(ctx, os.Stdout, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "evasion:", err)
	}
	os.Exit(code)
}

func run(ctx context.Context, out io.Writer, args []string) (code int, err error) {
	flags := flag.NewFlagSet("evasion", flag.ContinueOnError)
	n := flags.Int("n", 10, "`connections` of each strategy in each protocol")
	pattern := flags.String("run", "", "only strategies whose whole name fits this regular `expression`")
	verbose := flags.Bool("v", false, "print each connection, too")
	asJSON := flags.Bool("json", false, "print one JSON object per strategy")
	list := flags.Bool("list", false, "print what the strategies do, and try none")
	page := flags.Bool("page", false, "print the manual's page of two files that -json printed, an earlier one and a present one, and try none")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0, nil
	} else if err != nil {
		return 2, nil // the package has said why
	}
	if *page {
		return pageOf(out, flags.Args())
	}
	chosen, err := choose(*pattern)
	if err != nil {
		return 2, err
	}
	// Each connection has a port of its own, from 10000 on.
	if most := 50_000 / (len(strategies) * 7); *n < 1 || *n > most || flags.NArg() > 0 {
		return 2, fmt.Errorf("-n %d, %q: there are 1 to %d connections of each strategy, and no argument", *n, flags.Args(), most)
	}
	if *list {
		return 0, printList(out, chosen)
	}
	var each io.Writer
	if *verbose {
		each = out
	}
	if *verbose && *asJSON {
		each = os.Stderr
	}
	err = rig.WithProgram(ctx, "evasion", func(_, binary string) error {
		rows, err := try(ctx, binary, chosen, *n, each)
		if err != nil {
			return err
		}
		if *asJSON {
			enc := json.NewEncoder(out)
			for _, r := range rows {
				if err := enc.Encode(r); err != nil {
					return err
				}
			}
		} else if err := printTable(out, rows); err != nil {
			return err
		}
		return check(rows)
	})
	if err != nil {
		return 1, err
	}
	return 0, nil
}

func pageOf(out io.Writer, files []string) (code int, err error) {
	if len(files) != 2 {
		return 2, fmt.Errorf("-page takes two files that -json printed, not %d: name the earlier one first", len(files))
	}
	before, err := readRows(files[0])
	if err != nil {
		return 2, err
	}
	now, err := readRows(files[1])
	if err != nil {
		return 2, err
	}
	if err := printPage(out, before, now); err != nil {
		return 1, err
	}
	return 0, nil
}

// choose returns the strategies whose whole name fits a regular expression: all for "".
func choose(pattern string) ([]*strategy, error) {
	expr, err := regexp.Compile("^(?:" + pattern + ")$")
	if err != nil {
		return nil, fmt.Errorf("-run %q: %w", pattern, err)
	}
	var chosen []*strategy
	for i := range strategies {
		if pattern == "" || expr.MatchString(strategies[i].name) {
			chosen = append(chosen, &strategies[i])
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("-run %q: no strategy has such a name; -list prints them", pattern)
	}
	return chosen, nil
}

func printList(out io.Writer, chosen []*strategy) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "strategy\ttakes\twhat it does\tpublished as")
	for _, s := range chosen {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.name, s.needs, s.what, s.source)
	}
	return w.Flush()
}
