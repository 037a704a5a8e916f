// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// throughputFlows are how many connections carry an upload at once.
var throughputFlows = []int{1, 4}

// throughput is an upload through the gateway, whose veth pairs have the offloads that the
// kernel gives them: super-packets pass, as between containers.
type throughput struct {
	Attached string `json:"attached"`
	Ingress  string `json:"ingress,omitempty"` // what earlydrop took
	// Gbits is of each round, by throughputFlows.
	Gbits map[int][]float64 `json:"gbit_per_second"`
}

// throughputReport is the whole measurement.
type throughputReport struct {
	CPUs       int          `json:"cpus"`
	LoadBefore string       `json:"load_before"`
	LoadAfter  string       `json:"load_after"`
	Rows       []throughput `json:"rows"` // the first one with nothing attached
}

func measureThroughput(ctx context.Context, o options) (rep throughputReport, err error) {
	rep.CPUs, rep.LoadBefore = runtime.NumCPU(), load()
	l, err := lab.New(ctx, lab.Config{})
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	r, err := rig.New(ctx, l, o.program)
	if err != nil {
		return rep, err
	}
	b := &bench{rig: r, opts: o}
	if err := b.startIperf(ctx); err != nil {
		return rep, err
	}
	candidates := []struct {
		name string
		args []string // of attach; nil: nothing is attached
	}{
		{nothing, nil},
		{"earlydrop", []string{"--mode", "enforce"}},
		{"earlydrop, XDP native", []string{"--mode", "enforce", "--xdp", "native"}},
		{"earlydrop, XDP generic", []string{"--mode", "enforce", "--xdp", "generic"}},
	}
	for _, c := range candidates {
		rep.Rows = append(rep.Rows, throughput{Attached: c.name, Gbits: map[int][]float64{}})
	}
	for round := range o.rounds {
		for i := range candidates {
			n := (i + round) % len(candidates)
			if err := b.upload(ctx, candidates[n].args, &rep.Rows[n]); err != nil {
				return rep, fmt.Errorf("%s, round %d: %w", candidates[n].name, round+1, err)
			}
		}
	}
	rep.LoadAfter = load()
	return rep, nil
}

// upload measures one candidate once.
func (b *bench) upload(ctx context.Context, attach []string, row *throughput) error {
	if attach != nil {
		d, err := b.rig.Attach(ctx, attach...)
		if err != nil {
			return err
		}
		defer d.Kill()
		row.Ingress = d.Attached.Ingress
		defer func() { _, _ = d.Stop(ctx) }()
	}
	for _, flows := range throughputFlows {
		m, err := b.bulk(ctx, flows)
		if err != nil {
			return err
		}
		row.Gbits[flows] = append(row.Gbits[flows], m.gbits())
	}
	return nil
}

func runThroughput(ctx context.Context, out io.Writer, o options) error {
	if err := missing(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "ed-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.program == "" {
		if o.program, err = rig.Build(ctx, dir); err != nil {
			return err
		}
	}
	if o.program, err = filepath.Abs(o.program); err != nil {
		return err
	}
	rep, err := measureThroughput(ctx, o)
	if err != nil {
		return err
	}
	if o.json {
		return printJSON(out, rep)
	}
	rep.print(out, o)
	return nil
}

func (rep *throughputReport) print(out io.Writer, o options) {
	fmt.Fprintf(out, "Upload through the gateway on veth pairs with their offloads; %d CPUs; load %s before, %s after\nmedians of %d round(s) in turn, %g s each; x: ratio to %s\n\n",
		rep.CPUs, rep.LoadBefore, rep.LoadAfter, o.rounds, o.length.Seconds(), nothing)
	t := table.NewWriter()
	t.SetOutputMirror(out)
	header, columns := table.Row{"", "ingress"}, []table.ColumnConfig{}
	for _, flows := range throughputFlows {
		header = append(header, fmt.Sprintf("%d flow(s), Gbit/s", flows), "x")
	}
	for i := range header {
		if i > 1 {
			columns = append(columns, table.ColumnConfig{Number: i + 1, Align: text.AlignRight})
		}
	}
	t.SetColumnConfigs(columns)
	t.AppendHeader(header)
	for _, row := range rep.Rows {
		cells := table.Row{row.Attached, row.Ingress}
		for _, flows := range throughputFlows {
			is := median(row.Gbits[flows])
			cells = append(cells, fmt.Sprintf("%.1f", is), fmt.Sprintf("%.2f", is/median(rep.Rows[0].Gbits[flows])))
		}
		t.AppendRow(cells)
	}
	t.Render()
}
