// SPDX-License-Identifier: Apache-2.0

// Command demo shows earlydrop at work on real traffic: in network namespaces of
// its own it runs a client, a gateway with earlydrop attached, and a server, uses
// HTTPS, SSH, DNS, Shadowsocks and VMess through it, and prints what became of
// each. It needs root. The exit code is 1 when no connection of a tunnel
// was cut, or an ordinary flow was.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

//go:embed demo.yaml
var policyText []byte

// limit bounds the whole demonstration.
const limit = 2 * time.Minute

func main() {
	program := flag.String("earlydrop", "", "show this program instead of one built from the source")
	picture := flag.String("svg", "", "write a picture of the end of what is printed to this `file`")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, limit)
	asExpected, err := run(ctx, os.Stdout, *program, *picture)
	if errors.Is(ctx.Err(), context.Canceled) {
		err = errors.New("interrupted")
	}
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	if err != nil || !asExpected {
		os.Exit(1)
	}
}

// run shows everything on out and reports whether all went as it should. program is
// the earlydrop to run; when it is empty, one is built. picture (optional) is a file.
func run(ctx context.Context, out io.Writer, program, picture string) (asExpected bool, err error) {
	if missing := lab.Missing(); missing != "" {
		return false, errors.New(missing)
	}
	for _, name := range []string{"bpftool", "nsenter", "unshare"} {
		if _, err := lab.Program(name); err != nil {
			return false, err
		}
	}
	if picture != "" || !hasColors(out) {
		text.DisableColors()
	}
	out = &wrapped{to: out}
	dir, err := os.MkdirTemp("", "ed-demo-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	policyFile := filepath.Join(dir, "demo.yaml")
	if err := os.WriteFile(policyFile, policyText, 0o644); err != nil {
		return false, err
	}
	if program == "" {
		if program, err = rig.Build(ctx, dir); err != nil {
			return false, err
		}
	}
	// It is started from another folder.
	if program, err = filepath.Abs(program); err != nil {
		return false, err
	}
	if _, err := os.Stat(program); err != nil {
		return false, fmt.Errorf("the program to show: %w", err)
	}

	// A way to the server as it is to a near one on the Internet; the leg that
	// earlydrop watches is a veth, as to a container.
	l, err := lab.New(ctx, lab.Config{ServerLink: lab.LinkConfig{Relay: lab.RelayConfig{Delay: 5 * time.Millisecond, Rate: 100e6}}})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	r, err := rig.New(ctx, l, program)
	if err != nil {
		return false, err
	}
	fmt.Fprintf(out, "client %s -- [%s] gateway -- server %s, 5 ms and 100 Mbit/s away\n\n",
		l.ClientAddr(4), rig.Device, l.ServerAddr(4))
	fmt.Fprintf(out, "$ cat demo.yaml\n%s\n$ earlydrop attach -i %s --policy demo.yaml\n", policyText, rig.Device)
	d, err := r.Attach(ctx, "--policy", policyFile)
	if err != nil {
		return false, err
	}
	// What it says about itself comes at once with the event that Attach waits for.
	if err := rig.Until(ctx, func() (bool, error) { return strings.Contains(d.Stderr(), "maps:"), nil }); err != nil {
		return false, err
	}
	fmt.Fprintf(out, "%s\n", d.Stderr())

	flows, err := useNetwork(ctx, r, d)
	if err != nil {
		return false, err
	}
	printFlows(out, flows)
	fmt.Fprint(out, keys)
	blocks := 0
	for _, v := range rig.Of[*event.Verdict](d.Events()) {
		if v.Enforced != nil && *v.Enforced {
			blocks++
		}
	}
	if err := printKernel(ctx, out, r, blocks); err != nil {
		return false, err
	}
	if _, err := d.Stop(ctx); err != nil {
		return false, err
	}
	asExpected, words := conclude(flows)
	color := text.Colors{text.FgGreen, text.Bold}
	if !asExpected {
		color = text.Colors{text.FgRed, text.Bold}
	}
	fmt.Fprintln(out, color.Sprint(words))
	fmt.Fprint(out, next)
	if picture != "" {
		var shown strings.Builder
		fmt.Fprintln(&shown, "$ sudo make demo")
		printFlows(&shown, flows)
		wrap := &wrapped{to: &shown}
		fmt.Fprintln(wrap, words)
		err = os.WriteFile(picture, svg(shown.String()), 0o644)
	}
	return asExpected, err
}

// next is what to do after the demonstration.
const next = `
What next:
  sudo make run IFACE=eth0      watch your own traffic; nothing is dropped
  bin/earlydrop check -i eth0   see whether all is there for it
  cmd/earlydrop/doc/README.md   the manual; policy.md beside it: from watching to dropping
`

// hasColors reports whether out is a terminal that knows colours and whose user
// doesn't mind them (no-color.org).
func hasColors(out io.Writer) bool {
	f, ok := out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && os.Getenv("TERM") != ""
}

func printFlows(out io.Writer, flows []*flow) {
	tw := table.NewWriter()
	tw.SetOutputMirror(out)
	tw.SetStyle(table.StyleLight)
	tw.Style().Format.Header = text.FormatDefault
	tw.AppendHeader(table.Row{"what it is", "class", "", "ms", "passed", "dropped", ""})
	var right []table.ColumnConfig
	for _, n := range []int{3, 4, 5, 6} {
		right = append(right, table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	tw.SetColumnConfigs(right)
	for i, f := range flows {
		if i > 0 && f.tunnel != flows[i-1].tunnel {
			tw.AppendSeparator()
		}
		v := &f.verdict
		tw.AppendRow(table.Row{
			f.what, v.Called(), fmt.Sprintf("%.3f", v.Deciding(v.Confidence)),
			fmt.Sprintf("%.0f", v.VerdictMS), event.ByteCount(uint64(f.passed)), f.block.Packets, outcome(f),
		})
	}
	tw.Render()
}

// keys says what the columns of printFlows mean.
var keys = fmt.Sprintf(`class: those of the rule's classes that share the probability behind it, or the model's class
where the rule was not asked. ms: from the flow's first packet to the verdict; dns is judged when
it has fallen silent. passed: content that the client got. dropped: packets, by the kernel, of both
directions. A tunnel of which a connection was missed is used again, up to %d times in all.
`, connections)

func outcome(f *flow) string {
	word := "untouched"
	switch {
	case f.tunnel && f.ok:
		word = "cut"
	case f.tunnel:
		word = "MISSED"
	case !f.ok:
		word = "DISTURBED"
	}
	if !f.ok {
		return text.FgRed.Sprint(word)
	}
	return text.FgGreen.Sprint(word)
}

// printKernel shows what the kernel holds while the flows are blocked, through
// bpftool and through the program.
func printKernel(ctx context.Context, out io.Writer, r *rig.Rig, blocks int) error {
	argv := []string{"bpftool", "map", "dump", "pinned", rig.PinDir + "/blocked"}
	dump, err := r.Run(ctx, argv...)
	if err != nil {
		return err
	}
	if dump.Code != 0 {
		return fmt.Errorf("bpftool: %s", strings.TrimSpace(dump.Stderr))
	}
	entry, more := firstEntry(dump.Stdout)
	fmt.Fprintf(out, "\n$ %s\n%s", strings.Join(argv, " "), entry)
	if more > 0 {
		fmt.Fprintf(out, "  ... and %d more\n", more)
	}
	// The daemon writes its own counters down once a second.
	err = rig.Until(ctx, func() (bool, error) {
		now, err := r.Status(ctx)
		return now.Daemon["blocked"] >= uint64(blocks), err
	})
	if err != nil {
		return fmt.Errorf("status with %d blocks: %w", blocks, err)
	}
	status, err := r.Earlydrop(ctx, "status", "-i", rig.Device)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n$ earlydrop status -i %s   # counters that are not zero\n", rig.Device)
	for line := range strings.Lines(status) {
		if fields := strings.Fields(line); len(fields) != 2 || fields[1] != "0" {
			fmt.Fprint(out, line)
		}
	}
	fmt.Fprintln(out)
	return nil
}

// firstEntry cuts what bpftool prints of a map after its first entry and returns
// how many follow.
func firstEntry(dump string) (entry string, more int) {
	more = max(0, strings.Count(dump, `"key":`)-1)
	if more == 0 {
		return dump, 0
	}
	at := strings.Index(dump, "},{")
	if at < 0 {
		return dump, 0
	}
	return dump[:at] + "}\n", more
}
