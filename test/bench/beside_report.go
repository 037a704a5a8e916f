// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/earlydrop/earlydrop/test/lab"
)

// offlineReaders read a capture file. Each is a row of its own.
var offlineReaders = []struct {
	name, program string
	argv          func(program, capture string) []string
}{
	{"earlydrop replay", "", func(program, capture string) []string { return []string{program, "replay", capture} }},
	{"nDPI, ndpiReader", "ndpiReader", func(program, capture string) []string { return []string{program, "-q", "-i", capture} }},
}

// readOffline measures the CPU time that programs take for each flow of a capture file, without
// what they take for their start.
func (rep *besideReport) readOffline(ctx context.Context, o options, dir string) error {
	for _, reader := range offlineReaders {
		row := besideRow{Name: reader.name + ", a file"}
		program := o.program
		if reader.program != "" {
			var err error
			if program, err = lab.Program(reader.program); err != nil {
				row.Absent = err.Error()
			}
		}
		if row.Absent == "" {
			var spent [2]float64 // in us
			for i, name := range []string{oneFlow, allFlows} {
				var times []float64
				for range 5 {
					argv := reader.argv(program, filepath.Join(dir, name))
					cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
					if out, err := cmd.CombinedOutput(); err != nil {
						return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
					}
					times = append(times, float64(cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())/float64(time.Microsecond))
				}
				spent[i] = median(times)
			}
			row.Offline = (spent[1] - spent[0]) / offlineWeb
		}
		rep.Rows = append(rep.Rows, row)
	}
	return nil
}

// of returns the median over the rounds.
func (r *besideRow) of(f func(*besideFigures) float64) float64 {
	var values []float64
	for i := range r.Rounds {
		values = append(values, f(&r.Rounds[i]))
	}
	return median(values)
}

// besideNames name the figures of the table, as besideRow.cells has them.
func besideNames() []string {
	names := []string{"upload, 1 flow, Gbit/s", "upload, 4 flows, Gbit/s", "upload, 1 flow, CPU s/GiB",
		"HTTPS connections/s", "HTTPS, CPU s/1000", "HTTPS opens, ms p50 / p99", "HTTPS failed"}
	for _, trip := range tunnelTrips {
		names = append(names, fmt.Sprintf("tunnels cut, round trip %v", trip), "  after ms, p50", "  bytes passed, p50 / most")
	}
	return append(names, "RSS, MB", "start-up, ms", "offline, us/flow")
}

// cells are what the table shows of a peer.
func (r *besideRow) cells() (row []any) {
	put := func(there bool, format string, args ...any) {
		cell := "-"
		if there {
			cell = fmt.Sprintf(format, args...)
		}
		row = append(row, cell)
	}
	live := len(r.Rounds) > 0
	runs := live && r.Name != nothing
	put(live, "%.1f", r.of(func(f *besideFigures) float64 { return f.One.gbits() }))
	put(live, "%.1f", r.of(func(f *besideFigures) float64 { return f.Four.gbits() }))
	put(live, "%.2f", r.of(func(f *besideFigures) float64 { return f.One.perGiB() }))
	put(live, "%.0f", r.of(func(f *besideFigures) float64 { return f.Web.rate() }))
	put(live, "%.2f", r.of(func(f *besideFigures) float64 { return f.Web.perThousand() }))
	put(live, "%.1f / %.1f", r.of(func(f *besideFigures) float64 { return share(f.Web.Times, 0.5) }),
		r.of(func(f *besideFigures) float64 { return share(f.Web.Times, 0.99) }))
	failed, opened := 0, 0
	for i := range r.Rounds {
		w := &r.Rounds[i].Web
		failed, opened = failed+w.Failed, opened+w.Failed+len(w.Times)
	}
	put(live, "%d of %d", failed, opened)
	for i := range tunnelTrips {
		there := i < len(r.Cut)
		var c cut
		if there {
			c = r.Cut[i]
		}
		put(there, "%d of %d", len(c.Bytes), c.Opened)
		put(there && len(c.Bytes) > 0, "%.0f", share(c.Times, 0.5))
		put(there && len(c.Bytes) > 0, "%s / %s", bytesInWords(uint64(share(c.Bytes, 0.5))), bytesInWords(uint64(share(c.Bytes, 1))))
	}
	put(runs, "%.0f", r.of(func(f *besideFigures) float64 { return float64(f.Memory) / 1e6 }))
	put(runs, "%.0f", r.of(func(f *besideFigures) float64 { return f.StartUp }))
	put(r.Offline > 0, "%.0f", r.Offline)
	return row
}

// share returns the least of the sorted values that so large a share of them does not exceed,
// 0 of none.
func share(sorted []float64, of float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(of*float64(len(sorted)-1)+0.5))]
}

func (rep *besideReport) print(out io.Writer) {
	fmt.Fprintf(out, "client -- gateway -- server on veth, offloads as they are; Linux %s, %d CPUs; load %s before, %s after\n\n",
		rep.Kernel, rep.CPUs, rep.LoadBefore, rep.LoadAfter)
	tw := table.NewWriter()
	tw.SetOutputMirror(out)
	tw.SetStyle(table.StyleLight)
	tw.Style().Format.Header = text.FormatDefault
	head, configs := table.Row{""}, []table.ColumnConfig(nil)
	cells := make([][]any, len(rep.Rows))
	for i := range rep.Rows {
		head, cells[i] = append(head, strings.ReplaceAll(rep.Rows[i].Name, ", ", "\n")), rep.Rows[i].cells()
		configs = append(configs, table.ColumnConfig{Number: i + 2, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	tw.AppendHeader(head)
	tw.SetColumnConfigs(configs)
	for n, name := range besideNames() {
		row := table.Row{name}
		for i := range cells {
			row = append(row, cells[i][n])
		}
		tw.AppendRow(row)
	}
	tw.Render()
	if slices.ContainsFunc(rep.Rows, func(r besideRow) bool { return r.Absent != "" }) {
		fmt.Fprintln(out)
	}
	for _, r := range rep.Rows {
		if r.Absent != "" {
			fmt.Fprintf(out, "%s was not measured: %s\n", r.Name, r.Absent)
		}
	}
	fmt.Fprintf(out, `
Medians of rounds of %g s each, in turn. CPU: busy time of all CPUs, both ends included. HTTPS: new connections with TLS
1.3, one after another by each of %d clients; the time is that from the SYN to the end of the handshake. Tunnel: uploads
that begin like Shadowsocks and are random from there on, %d MiB if nobody cuts them; after: from the SYN to the last
byte that reached the server. What is told to cut: earlydrop the policy's classes, OpenGFW fully encrypted traffic.
RSS: after all that. Offline: CPU time for each of %d HTTPS connections of a capture file, without the program's start.
Other work on the machine is in every figure.
`, rep.Seconds, webWorkers, uploadMost>>20, offlineWeb)
}
