// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
)

// Of so many new flows a second, so many are random bytes, which the policy treats: their
// events are always kept, and their captures.
const (
	lookBackRate    = 20_000
	lookBackTreated = 200
	// They go to another port: the two floods' initiators have the same addresses.
	treatedPort = verdictPort + 1
)

// lookBackPolicy treats the flows to a port: random bytes are no background.
const lookBackPolicy = `rules:
  - name: treated
    class: [shadowsocks, v2ray, vless, obfs4, openvpn, wireguard]
    min_confidence: 0.01
    to: [{port: %d}]
    udp_unproven: true
    action: drop
    ttl: 10m
`

// metricsAddress is the gateway's own, in its namespace.
const metricsAddress = "127.0.0.1:9417"

// lookBackReport is what it costs to count and keep what happens.
type lookBackReport struct {
	CPUs       int        `json:"cpus"`
	LoadBefore string     `json:"load_before"` // of 1, 5 and 15 minutes
	LoadAfter  string     `json:"load_after"`
	Without    []overload `json:"without"` // by round
	With       []overload `json:"with"`
	Scrapes    int        `json:"scrapes"`
	Kept       uint64     `json:"events_kept"`
	Lost       uint64     `json:"lost"`                // captures as well
	Ratio      float64    `json:"cpu_with_to_without"` // of the medians
}

// runLookBack takes the daemon's CPU time per verdict without metrics, history and kept captures
// and with them, in turn, while the same flows begin.
func runLookBack(ctx context.Context, out io.Writer, o options) (err error) {
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.end()) }()
	b.policyFile = filepath.Join(b.dir, "lookback.yaml")
	if err := os.WriteFile(b.policyFile, fmt.Appendf(nil, lookBackPolicy, treatedPort), 0o600); err != nil {
		return err
	}
	var streams []stream
	random := make([]byte, 1100)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	for _, s := range []struct {
		port    uint16
		payload []byte
		rate    int
	}{{verdictPort, make([]byte, 1100), lookBackRate - lookBackTreated}, {treatedPort, random, lookBackTreated}} {
		gen, made := b.wholeFlows(s.port, s.payload)
		if made != nil {
			return made
		}
		defer func() { err = errors.Join(err, gen.Close()) }()
		streams = append(streams, stream{gen, s.rate})
	}
	rep := lookBackReport{CPUs: runtime.NumCPU(), LoadBefore: load()}
	for round := range o.rounds {
		without, err := b.lookBack(ctx, &rep, streams)
		if err != nil {
			return err
		}
		with, err := b.lookBack(ctx, &rep, streams, "--metrics", metricsAddress,
			"--history", filepath.Join(b.dir, fmt.Sprintf("history-%d.db", round)), "--history-captures")
		if err != nil {
			return err
		}
		rep.Without, rep.With = append(rep.Without, without), append(rep.With, with)
	}
	rep.Ratio = medianCPU(rep.With) / medianCPU(rep.Without)
	rep.LoadAfter = load()
	if o.json {
		return printJSON(out, rep)
	}
	rep.print(out)
	return nil
}

func medianCPU(rounds []overload) float64 {
	var all []float64
	for _, o := range rounds {
		all = append(all, o.CPU)
	}
	return median(all)
}

// lookBack is one daemon's part. Verdicts on undetected flows are no events: beside these,
// the history would seem to cost less.
func (b *bench) lookBack(ctx context.Context, rep *lookBackReport, streams []stream, with ...string) (o overload, err error) {
	d, err := b.rig.Attach(ctx, append([]string{"--xdp", "native", "--mode", "monitor", "--one-hook", "--events-pass", "none", "--policy", b.policyFile}, with...)...)
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, stopDaemon(ctx, d)) }()
	// What is done once, for the first flows, is no part of it.
	if _, err := b.offer(ctx, d.PID(), time.Second, streams...); err != nil {
		return o, err
	}
	scraping, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		if len(with) == 0 {
			done <- nil
			return
		}
		done <- b.scrape(scraping, &rep.Scrapes)
	}()
	o, err = b.offer(ctx, d.PID(), 10*b.opts.length, streams...)
	stop()
	if err := errors.Join(err, <-done); err != nil {
		return o, err
	}
	api := control.NewClient(b.rig.Control())
	defer api.Close()
	st, err := api.Status(ctx)
	if err == nil && st.History != nil {
		rep.Kept += st.History.Events
		rep.Lost += st.History.Lost + st.History.CapturesLost
	}
	return o, err
}

// scrapeEvery is how often the metrics are asked for: three times as often as is usual. Each time the
// daemon counts what its tables hold.
const scrapeEvery = 5 * time.Second

// scrape asks for the metrics again and again, until ctx ends.
func (b *bench) scrape(ctx context.Context, n *int) error {
	client := http.Client{Transport: &http.Transport{DialContext: b.rig.Gateway.Dial, DisableKeepAlives: true}}
	tick := time.NewTicker(scrapeEvery)
	defer tick.Stop()
	for {
		resp, err := client.Get("http://" + metricsAddress + "/metrics")
		if err != nil {
			return fmt.Errorf("ask for the metrics: %w", err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return fmt.Errorf("read the metrics: %w", err)
		}
		*n++
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (rep lookBackReport) print(out io.Writer) {
	fmt.Fprintf(out, "%d new UDP flows a second, %d of them treated; events of treated flows alone. Load before %s, after %s.\n\n", lookBackRate, lookBackTreated, rep.LoadBefore, rep.LoadAfter)
	t := table.NewWriter()
	t.SetOutputMirror(out)
	t.AppendHeader(table.Row{"metrics, history, captures", "offered/s", "verdicts/s", "gave way/s", "ring full/s", "no slot/s", "daemon us/verdict"})
	for _, side := range []struct {
		name   string
		rounds []overload
	}{{"without", rep.Without}, {"with", rep.With}} {
		for _, o := range side.rounds {
			t.AppendRow(append(table.Row{side.name}, o.cells()...))
		}
	}
	t.SetColumnConfigs(rightAligned(2, 7))
	t.Render()
	fmt.Fprintf(out, "\nCPU time per verdict with them: %.2f x without (medians); %d events kept, %d lost, %d times the metrics\n", rep.Ratio, rep.Kept, rep.Lost, rep.Scrapes)
}
