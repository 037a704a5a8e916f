// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// packets is one run of small packets.
type packets struct {
	Sent    uint64  `json:"sent"`
	Arrived uint64  `json:"arrived"` // at the server
	Seconds float64 `json:"seconds"`
	// SoftIRQ is the time in seconds that all CPUs spent in interrupts: the
	// gateway's work and the counting at the server, but not the generator's.
	SoftIRQ float64 `json:"softirq_seconds"`

	drops bool
}

// handled is how many packets were done with: forwarded, or else dropped.
func (p packets) handled() float64 {
	if p.drops {
		return float64(p.Sent)
	}
	return float64(p.Arrived)
}

func (p packets) rate() float64 { return p.handled() / p.Seconds }
func (p packets) ns() float64   { return p.SoftIRQ * 1e9 / p.handled() }
func (p packets) lost() float64 { return 1 - float64(p.Arrived)/float64(p.Sent) }

// bulk is one run of iperf3.
type bulk struct {
	Bytes   float64 `json:"bytes"`
	Seconds float64 `json:"seconds"`
	Busy    float64 `json:"busy_seconds"` // of all CPUs, the two hosts' work included
}

func (b bulk) gbits() float64  { return b.Bytes * 8 / b.Seconds / 1e9 }
func (b bulk) perGiB() float64 { return b.Busy / (b.Bytes / (1 << 30)) }

// measurement is all of one candidate in one round.
type measurement struct {
	Passed    packets `json:"passed"`
	Dropped   packets `json:"dropped"`
	Bulk      bulk    `json:"iperf3"`
	DaemonCPU float64 `json:"daemon_cpu"` // CPUs that earlydrop's own process used
}

// medians are what the table shows.
type medians struct {
	PassedRate  float64 `json:"passed_packets_per_second"`
	PassedNS    float64 `json:"passed_softirq_ns_per_packet"`
	PassedLost  float64 `json:"passed_lost"` // 0 to 1
	DroppedRate float64 `json:"dropped_packets_per_second"`
	DroppedNS   float64 `json:"dropped_softirq_ns_per_packet"`
	BulkGbits   float64 `json:"iperf3_gbit_per_second"`
	BulkPerGiB  float64 `json:"iperf3_cpu_seconds_per_gib"`
	DaemonCPU   float64 `json:"daemon_cpu"`
}

type row struct {
	Name   string        `json:"name"`
	Drops  bool          `json:"drops"`
	Rounds []measurement `json:"rounds"`
	Median medians       `json:"median"`
	// Ratio is Median over that of nothing attached.
	Ratio struct {
		PassedRate  float64 `json:"passed_packets_per_second"`
		PassedNS    float64 `json:"passed_softirq_ns_per_packet"`
		DroppedRate float64 `json:"dropped_packets_per_second"`
		DroppedNS   float64 `json:"dropped_softirq_ns_per_packet"`
		BulkGbits   float64 `json:"iperf3_gbit_per_second"`
		BulkPerGiB  float64 `json:"iperf3_cpu_seconds_per_gib"`
	} `json:"ratio"`
}

// report is the whole run.
type report struct {
	Kernel     string    `json:"kernel"`
	CPUs       int       `json:"cpus"`
	LoadBefore string    `json:"load_before"` // of 1, 5 and 15 minutes
	LoadAfter  string    `json:"load_after"`
	Seconds    float64   `json:"seconds"` // length of each measurement
	Candidates []row     `json:"candidates"`
	Latency    []latency `json:"latency"`
	Start      *starts   `json:"start"`
}

func newReport(o options) *report {
	rep := &report{Kernel: "?", CPUs: runtime.NumCPU(), LoadBefore: load(), Seconds: o.length.Seconds()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		rep.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	for _, c := range candidates {
		rep.Candidates = append(rep.Candidates, row{Name: c.Name, Drops: c.Drops})
	}
	return rep
}

// load returns the load averages, which tell whether the machine did other work.
func load() string {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return "?"
	}
	l, err := fs.LoadAvg()
	if err != nil {
		return "?"
	}
	return fmt.Sprintf("%.2f %.2f %.2f", l.Load1, l.Load5, l.Load15)
}

// finish computes medians and ratios.
func (rep *report) finish() {
	rep.LoadAfter = load()
	for i := range rep.Candidates {
		r := &rep.Candidates[i]
		of := func(f func(measurement) float64) float64 {
			var values []float64
			for _, m := range r.Rounds {
				values = append(values, f(m))
			}
			return median(values)
		}
		r.Median = medians{
			PassedRate:  of(func(m measurement) float64 { return m.Passed.rate() }),
			PassedNS:    of(func(m measurement) float64 { return m.Passed.ns() }),
			PassedLost:  of(func(m measurement) float64 { return m.Passed.lost() }),
			DroppedRate: of(func(m measurement) float64 { return m.Dropped.rate() }),
			DroppedNS:   of(func(m measurement) float64 { return m.Dropped.ns() }),
			BulkGbits:   of(func(m measurement) float64 { return m.Bulk.gbits() }),
			BulkPerGiB:  of(func(m measurement) float64 { return m.Bulk.perGiB() }),
			DaemonCPU:   of(func(m measurement) float64 { return m.DaemonCPU }),
		}
		m, base := r.Median, rep.Candidates[0].Median
		r.Ratio.PassedRate = ratio(m.PassedRate, base.PassedRate)
		r.Ratio.PassedNS = ratio(m.PassedNS, base.PassedNS)
		r.Ratio.DroppedRate = ratio(m.DroppedRate, base.DroppedRate)
		r.Ratio.DroppedNS = ratio(m.DroppedNS, base.DroppedNS)
		r.Ratio.BulkGbits = ratio(m.BulkGbits, base.BulkGbits)
		r.Ratio.BulkPerGiB = ratio(m.BulkPerGiB, base.BulkPerGiB)
	}
}

// ratio is a/b, 0 when b is too short to have been measured.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

func (rep *report) print(out io.Writer) {
	rounds := len(rep.Candidates[0].Rounds)
	fmt.Fprintf(out, "client -- gateway -- server on veth, native XDP; Linux %s, %d CPUs; load %s before, %s after\nmedians of %d round(s) in turn, %g s each; x: ratio to %s\n\n",
		rep.Kernel, rep.CPUs, rep.LoadBefore, rep.LoadAfter, rounds, rep.Seconds, nothing)
	tw := table.NewWriter()
	tw.SetOutputMirror(out)
	tw.SetStyle(table.StyleLight)
	tw.Style().Format.Header = text.FormatDefault
	merge := table.RowConfig{AutoMerge: true, AutoMergeAlign: text.AlignLeft}
	tw.AppendHeader(table.Row{"", "port that passes", "port that passes", "port that passes", "port that passes", "port that passes",
		"port to drop", "port to drop", "port to drop", "port to drop", "iperf3", "iperf3", "iperf3", "iperf3", "daemon"}, merge)
	tw.AppendHeader(table.Row{"attached to the gateway", "Mpps", "x", "ns/pkt", "x", "lost", "Mpps", "x", "ns/pkt", "x", "Gbit/s", "x", "CPU s/GiB", "x", "CPU"})
	var right []table.ColumnConfig
	for n := 2; n <= 15; n++ {
		right = append(right, table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	tw.SetColumnConfigs(right)
	for _, r := range rep.Candidates {
		m, x := r.Median, r.Ratio
		daemon := ""
		if r.Name == monitor || r.Name == enforce {
			daemon = fmt.Sprintf("%.1f %%", m.DaemonCPU*100)
		}
		tw.AppendRow(table.Row{
			r.Name,
			fmt.Sprintf("%.3f", m.PassedRate/1e6), fmt.Sprintf("%.2f", x.PassedRate),
			fmt.Sprintf("%.0f", m.PassedNS), fmt.Sprintf("%.2f", x.PassedNS), fmt.Sprintf("%.1f %%", m.PassedLost*100),
			fmt.Sprintf("%.3f", m.DroppedRate/1e6), fmt.Sprintf("%.2f", x.DroppedRate),
			fmt.Sprintf("%.0f", m.DroppedNS), fmt.Sprintf("%.2f", x.DroppedNS),
			fmt.Sprintf("%.2f", m.BulkGbits), fmt.Sprintf("%.2f", x.BulkGbits),
			fmt.Sprintf("%.2f", m.BulkPerGiB), fmt.Sprintf("%.2f", x.BulkPerGiB), daemon,
		})
	}
	tw.Render()
	fmt.Fprintf(out, `Small packets: UDP in 64-byte frames of %d flows, decided before; XDP live frames from one CPU, as fast as
it goes, so that the generator's own time bounds the rate. Mpps: forwarded, counted where they reach the
server; of what drops the port (%s): sent.
ns/pkt: time in soft and hard interrupts of all CPUs (/proc/stat) per such packet: the gateway's work and
the counting, without the generator. lost: sent, but never at the server (a full receive queue).
iperf3: one TCP connection of MTU-sized frames, GRO on; CPU: busy time of all CPUs, both ends included.
daemon: CPU of earlydrop's own process. Other work on the machine is in every figure.
Between rounds, one candidate's Mpps differed by up to %.0f %% of its median, its Gbit/s by up to %.0f %%.
`, flowCount, strings.Join(rep.droppers(), "; "),
		100*max(rep.spread(func(m measurement) float64 { return m.Passed.rate() }), rep.spread(func(m measurement) float64 { return m.Dropped.rate() })),
		100*rep.spread(func(m measurement) float64 { return m.Bulk.gbits() }))
	fmt.Fprintln(out)
	printLatency(out, rep.Latency)
	if rep.Start != nil {
		fmt.Fprintln(out, rep.Start)
	}
}

// spread is the greatest difference between rounds of one candidate, relative to
// its median.
func (rep *report) spread(of func(measurement) float64) float64 {
	var most float64
	for _, r := range rep.Candidates {
		var values []float64
		for _, m := range r.Rounds {
			values = append(values, of(m))
		}
		if len(values) > 0 {
			most = max(most, ratio(slices.Max(values)-slices.Min(values), median(values)))
		}
	}
	return most
}

func (rep *report) droppers() []string {
	var names []string
	for _, r := range rep.Candidates {
		if r.Drops {
			names = append(names, r.Name)
		}
	}
	return names
}
