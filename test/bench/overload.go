// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
	"github.com/earlydrop/earlydrop/test/lab/flood"
)

// offers are how many new flows a second are offered to find out how many get a verdict, until
// that is less than two in three twice in a row.
var offers = []int{2000, 10_000, 20_000, 30_000, 40_000, 50_000, 60_000, 70_000, 80_000, 100_000, 120_000, 160_000, 200_000, 250_000, 300_000, 350_000, 400_000, 500_000, 600_000}

// generatorRate is how many new flows a second one core is asked for where others can make the
// rest. With the data path's work for them it makes some 130 000.
const generatorRate = 80_000

// overload is what became of the flows of one offer.
type overload struct {
	Offered  float64 `json:"offered_flows_per_second"`
	Verdicts float64 `json:"verdicts_per_second"`
	// Of those without a verdict, per second: passed over unread, or no room in the ring
	// buffer, or no slot to capture in.
	GaveWay   float64 `json:"gave_way_per_second"`
	RingFull  float64 `json:"ring_full_per_second"`
	SlotsFull float64 `json:"slots_full_per_second"`
	CPU       float64 `json:"daemon_cpu_us_per_verdict"`
}

// overloadReport is the whole measurement.
type overloadReport struct {
	CPUs       int        `json:"cpus"`
	Cores      int        `json:"daemon_cores"`
	Device     string     `json:"device"`
	Model      string     `json:"model,omitempty"` // empty: the default one
	LoadBefore string     `json:"load_before"`     // of 1, 5 and 15 minutes
	LoadAfter  string     `json:"load_after"`
	Offers     []overload `json:"offers"`
	Best       float64    `json:"best_verdicts_per_second"`
	Twice      overload   `json:"twice_the_best"`
}

func runOverload(ctx context.Context, out io.Writer, o options) (err error) {
	spare := runtime.NumCPU() - o.cores
	if spare < 1 {
		return fmt.Errorf("there are %d cores: the daemon can't have %d of them, as the flows need one", runtime.NumCPU(), o.cores)
	}
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.end()) }()
	// The daemon has the first cores for itself. What makes the flows, and the kernel's work for
	// them, is on the others.
	if err := leaveCPUs(o.cores); err != nil {
		return err
	}
	rep := overloadReport{CPUs: runtime.NumCPU(), Cores: o.cores, Device: o.device, Model: o.model, LoadBefore: load()}
	argv := []string{"taskset", "-c", fmt.Sprintf("0-%d", o.cores-1), b.opts.program, "attach", "--json", "-i", rig.Device,
		"--xdp", "native", "--mode", "monitor", "--one-hook", "--policy", b.policyFile, "--device", o.device}
	if o.model != "" {
		model, err := filepath.Abs(o.model) // it is started from another folder
		if err != nil {
			return err
		}
		argv = append(argv, "--model", model)
	}
	d, err := b.rig.Daemon(ctx, argv...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopDaemon(ctx, d)) }()
	gens := make([]*flood.Generator, min(spare, offers[len(offers)-1]/generatorRate+1))
	for i := range gens {
		// Of zeros, which no rule detects: events of detected flows are never left out.
		if gens[i], err = b.wholeFlows(verdictPort+uint16(i), make([]byte, 1100)); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, gens[i].Close()) }()
	}
	offer := func(rate int, length time.Duration) (overload, error) {
		n := min(len(gens), 1+rate/generatorRate)
		streams := make([]stream, n)
		for i := range streams {
			streams[i] = stream{gens[i], rate / n}
		}
		return b.offer(ctx, d.PID(), length, streams...)
	}
	tooMany := 0
	for _, rate := range offers {
		got, err := offer(rate, 2*o.length)
		if err != nil {
			return err
		}
		rep.Offers = append(rep.Offers, got)
		rep.Best = max(rep.Best, got.Verdicts)
		if got.Verdicts >= got.Offered*2/3 {
			tooMany = 0
		} else if tooMany++; tooMany == 2 {
			break
		}
	}
	if rep.Twice, err = offer(int(2*rep.Best), 20*o.length); err != nil {
		return err
	}
	rep.LoadAfter = load()
	if o.json {
		return printJSON(out, rep)
	}
	rep.print(out)
	return nil
}

// wholeFlows sends flows over UDP: a datagram that fills the capture, and its answer, which hands
// it over.
func (b *bench) wholeFlows(port uint16, payload []byte) (*flood.Generator, error) {
	frame := func(reply bool, payload []byte) ([]byte, error) {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{11, 0, 0, 1}, DstIP: net.IP{198, 51, 100, 1}}
		udp := &layers.UDP{SrcPort: 1, DstPort: layers.UDPPort(port)}
		if reply {
			ip.SrcIP, ip.DstIP = ip.DstIP, ip.SrcIP
			udp.SrcPort, udp.DstPort = udp.DstPort, udp.SrcPort
		}
		return flood.Ethernet(ip, udp, gopacket.Payload(payload))
	}
	request, err1 := frame(false, payload)
	answer, err2 := frame(true, payload[:16])
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return flood.New(b.rig.Client, lab.ClientDev, flood.Frame{Bytes: request}, flood.Frame{Bytes: answer, Reply: true})
}

// stream is so many new flows a second, each of two frames.
type stream struct {
	gen  *flood.Generator
	rate int
}

// offer sends new flows for a while, and tells what became of them.
func (b *bench) offer(ctx context.Context, pid int, length time.Duration, streams ...stream) (o overload, err error) {
	before, err := b.rig.Status(ctx)
	if err != nil {
		return o, err
	}
	cpu, err := readProcessTime(pid)
	if err != nil {
		return o, err
	}
	start := time.Now()
	sending, stop := context.WithTimeout(ctx, length)
	defer stop()
	var sent atomic.Uint64
	all, sending := errgroup.WithContext(sending)
	for _, s := range streams {
		all.Go(func() error {
			n, err := s.gen.Run(sending, 2*s.rate)
			sent.Add(n)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return o, err
	}
	took := time.Since(start).Seconds()
	used, err := readProcessTime(pid)
	if err != nil {
		return o, err
	}
	after, err := b.rig.Status(ctx)
	if err != nil {
		return o, err
	}
	daemon := func(name string) float64 { return float64(after.Daemon[name] - before.Daemon[name]) }
	kernel := func(name string) float64 { return float64(after.Counters[name] - before.Counters[name]) }
	return overload{
		Offered: float64(sent.Load()) / 2 / took, Verdicts: daemon("classified") / took,
		GaveWay: daemon("queue_full") / took, RingFull: kernel("ring_full") / took, SlotsFull: kernel("slots_full") / took,
		CPU: (used - cpu).Seconds() * 1e6 / max(1, daemon("classified")),
	}, nil
}

// leaveCPUs moves all threads of this process, and what they start, off the first n cores.
func leaveCPUs(n int) error {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return fmt.Errorf("read which cores may be used: %w", err)
	}
	for cpu := range n {
		set.Clear(cpu)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err == nil {
			err = unix.SchedSetaffinity(tid, &set)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("leave %d cores to the daemon: %w", n, err)
		}
	}
	return nil
}

func (o overload) cells() table.Row {
	return table.Row{
		fmt.Sprintf("%.0f", o.Offered), fmt.Sprintf("%.0f", o.Verdicts), fmt.Sprintf("%.0f", o.GaveWay),
		fmt.Sprintf("%.0f", o.RingFull), fmt.Sprintf("%.0f", o.SlotsFull), fmt.Sprintf("%.1f", o.CPU),
	}
}

// rightAligned are columns of figures, counted from 1.
func rightAligned(from, to int) (columns []table.ColumnConfig) {
	for i := from; i <= to; i++ {
		columns = append(columns, table.ColumnConfig{Number: i, Align: text.AlignRight})
	}
	return columns
}

func (rep overloadReport) print(out io.Writer) {
	fmt.Fprintf(out, "New UDP flows, each a datagram of 1100 bytes and its answer; the daemon has %d of %d cores for itself and classifies with %s on %s. Load before %s, after %s.\n\n",
		rep.Cores, rep.CPUs, cmp.Or(rep.Model, "the default model"), rep.Device, rep.LoadBefore, rep.LoadAfter)
	t := table.NewWriter()
	t.SetOutputMirror(out)
	t.AppendHeader(table.Row{"offered/s", "verdicts/s", "gave way/s", "ring full/s", "no slot/s", "daemon us/verdict"})
	for _, o := range append(rep.Offers, rep.Twice) {
		t.AppendRow(o.cells())
	}
	t.SetColumnConfigs(rightAligned(1, 6))
	t.Render()
	fmt.Fprintf(out, "\nbest: %.0f verdicts/s; offered %.1f times that: %.0f verdicts/s, %.0f %% of it\n",
		rep.Best, rep.Twice.Offered/rep.Best, rep.Twice.Verdicts, 100*rep.Twice.Verdicts/rep.Best)
}
