// SPDX-License-Identifier: Apache-2.0

// Command bench measures what forwarding through a gateway costs with earlydrop
// attached, beside nothing, an XDP program that only passes, xdp-filter and
// nftables, all in one run, and prints one table; or, with -only passed, how many bytes of
// a tunnel pass before it is cut, or one of the other measurements. It works in network namespaces of its own, on veth
// pairs with XDP in the driver, and needs root.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

const iperfPort = 5201

// packages maps the programs that are used to the Debian packages that hold them.
var packages = map[string]string{
	"ethtool":    "ethtool",
	"iperf3":     "iperf3",
	"nft":        "nftables",
	"nsenter":    "util-linux",
	"setpriv":    "util-linux",
	"taskset":    "util-linux",
	"unshare":    "util-linux",
	"xdp-filter": "xdp-tools",
}

// options are what the command line says.
type options struct {
	program     string
	rounds      int
	length      time.Duration
	json        bool
	only        string // of the measurements; empty: all but the longest
	connections int
	// Of overload.
	device, model string
	cores         int
	// Of peers.
	openGFWProgram, suricataProgram string
	suricataRules                   string
}

// measurements are what there is to measure, by the option's name.
var measurements = map[string]func(context.Context, io.Writer, options) error{
	"": run, "passed": runPassed, "latency": runLatency, "start": runStart, "overload": runOverload, "lookback": runLookBack, "peers": runPeers,
}

func main() {
	var o options
	flag.StringVar(&o.program, "earlydrop", "", "measure this program instead of one built from the source")
	flag.IntVar(&o.rounds, "rounds", 3, "measure everything this many times, in turn, and take the medians")
	flag.DurationVar(&o.length, "time", 1500*time.Millisecond, "length of each measurement")
	flag.BoolVar(&o.json, "json", false, "print one JSON object, each round's figures included")
	flag.StringVar(&o.only, "only", "", "measure nothing else: passed, how many bytes pass before a connection is cut; latency, of verdicts; start, how long the program takes to look at packets; overload, verdicts with more new flows than can have one; lookback, what metrics, history and kept captures cost; peers, other programs beside this one")
	flag.IntVar(&o.connections, "connections", 50, "with -only passed: how many of each tunnel, direction and round trip; with -only peers: at each round trip")
	flag.StringVar(&o.device, "device", "cpu", "with -only overload: what classifies, as earlydrop's option has it")
	flag.StringVar(&o.model, "model", "", "with -only overload: the model, instead of the default one")
	flag.IntVar(&o.cores, "cores", 1, "with -only overload: how many cores the program has for itself; the flows are made on the others")
	flag.StringVar(&o.openGFWProgram, "opengfw", "", "with -only peers: OpenGFW's program")
	flag.StringVar(&o.suricataProgram, "suricata", "", "with -only peers: Suricata's program")
	flag.StringVar(&o.suricataRules, "suricata-rules", "", "with -only peers: a file of rules that have Suricata cut tunnels")
	flag.Parse()
	if err := o.check(flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, o.limit())
	err := measurements[o.only](ctx, os.Stdout, o)
	if errors.Is(ctx.Err(), context.Canceled) {
		err = errors.New("interrupted")
	}
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (o options) check(args []string) error {
	switch {
	case len(args) > 0:
		return fmt.Errorf("unexpected argument %q", args[0])
	case measurements[o.only] == nil:
		return fmt.Errorf("only %q: want passed, latency, start, overload, lookback or peers", o.only)
	case o.rounds < 1 || o.rounds > 100:
		return fmt.Errorf("rounds %d: want 1 to 100", o.rounds)
	case o.length < 100*time.Millisecond || o.length > time.Minute:
		return fmt.Errorf("time %v: want 100ms to 1m", o.length)
	case o.cores < 1:
		return fmt.Errorf("cores %d: want at least 1", o.cores)
	case o.connections < 1 || o.connections > 10_000:
		return fmt.Errorf("connections %d: want 1 to 10000", o.connections)
	}
	return nil
}

// queues are as many as cores where several may make packets.
func (o options) queues() int {
	if o.only == "overload" {
		return runtime.NumCPU()
	}
	return 1
}

// limit bounds the whole run, generously.
func (o options) limit() time.Duration {
	if o.only == "passed" {
		return time.Minute + time.Duration(o.connections)*time.Minute
	}
	if o.only == "peers" {
		const programs = 7
		return 5*time.Minute + programs*(time.Duration(o.rounds)*(3*o.length+time.Minute)+time.Duration(o.connections)*10*time.Second)
	}
	return time.Minute + time.Duration(o.rounds*len(candidates))*(3*o.length+5*time.Second)
}

// missing says which programs are lacking, and from which packages they come.
func missing() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it makes network namespaces and loads programs into the kernel")
	}
	var names []string
	for name, pkg := range packages {
		if _, err := lab.Program(name); err != nil {
			names = append(names, fmt.Sprintf("%s (Debian package %s)", name, pkg))
		}
	}
	if len(names) > 0 {
		slices.Sort(names)
		return fmt.Errorf("missing programs: %s", strings.Join(names, ", "))
	}
	return nil
}

// bench is what all measurements share.
type bench struct {
	rig        *rig.Rig
	opts       options
	dir        string // of temporary files
	policyFile string

	generators map[uint16]*generator // by destination port
	sink       *sink
	pass       *ebpf.Program
}

// newBench makes the lab. After an error there is nothing to end.
func newBench(ctx context.Context, o options) (_ *bench, err error) {
	if err := missing(); err != nil {
		return nil, err
	}
	b := &bench{opts: o, generators: map[uint16]*generator{}}
	if b.dir, err = os.MkdirTemp("", "ed-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.end())
		}
	}()
	if b.opts.program, err = program(ctx, o.program, b.dir); err != nil {
		return nil, err
	}
	l, err := lab.New(ctx, lab.Config{ClientLink: lab.LinkConfig{Queues: o.queues()}})
	if err != nil {
		return nil, err
	}
	b.policyFile = filepath.Join(b.dir, "policy.yaml")
	policy := fmt.Sprintf(policyText, netip.PrefixFrom(l.ServerAddr(4), 32), passedPort, iperfPort)
	if err := os.WriteFile(b.policyFile, []byte(policy), 0o644); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if b.rig, err = rig.New(ctx, l, b.opts.program); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return b, nil
}

// program returns the absolute path of the program to measure, which is built where none is
// named: it is started from another folder.
func program(ctx context.Context, name, dir string) (path string, err error) {
	if name == "" {
		if name, err = rig.Build(ctx, dir); err != nil {
			return "", err
		}
	}
	if path, err = filepath.Abs(name); err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the program to measure: %w", err)
	}
	return path, nil
}

// end removes the lab.
func (b *bench) end() error {
	err := b.close()
	if b.rig != nil {
		err = errors.Join(err, b.rig.Lab.Close())
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

func run(ctx context.Context, out io.Writer, o options) (err error) {
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.end()) }()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	rep, err := b.measureAll(ctx)
	if err != nil {
		return err
	}
	if rep.Latency, err = b.measureLatency(ctx); err != nil {
		return fmt.Errorf("latency of verdicts: %w", err)
	}
	if rep.Start, err = b.measureStart(ctx); err != nil {
		return fmt.Errorf("start of the program: %w", err)
	}
	if o.json {
		return printJSON(out, rep)
	}
	rep.print(out)
	return nil
}

func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// prepare makes the veth pairs behave as NICs on cables do: hosts send frames no
// longer than the MTU, and receivers join those of one TCP flow (GRO). On a veth
// GRO also is what lets a device without XDP receive in batches, as a driver does.
func (b *bench) prepare(ctx context.Context) error {
	for _, d := range []struct {
		ns   *lab.Namespace
		argv []string
	}{
		{b.rig.Client, []string{lab.ClientDev, "gro", "on", "gso", "off", "tso", "off"}},
		{b.rig.Server, []string{lab.ServerDev, "gro", "on", "gso", "off", "tso", "off"}},
		{b.rig.Gateway, []string{lab.GatewayClientDev, "gro", "on"}},
		{b.rig.Gateway, []string{lab.GatewayServerDev, "gro", "on"}},
	} {
		if _, err := b.rig.Exec(ctx, d.ns, append([]string{"ethtool", "-K"}, d.argv...)...); err != nil {
			return fmt.Errorf("set offloads of %s: %w", d.argv[0], err)
		}
	}
	var err error
	if b.sink, err = newSink(); err != nil {
		return err
	}
	if b.pass, err = newPass(); err != nil {
		return err
	}
	for _, port := range []uint16{passedPort, droppedPort} {
		if b.generators[port], err = newGenerator(b.rig.Lab, port); err != nil {
			delete(b.generators, port)
			return err
		}
	}
	addr := netip.AddrPortFrom(b.rig.ServerAddr(4), iperfPort)
	server, err := b.rig.Lab.Start(b.rig.Server, "iperf3", "iperf3", "--server", "--port", fmt.Sprint(iperfPort))
	if err == nil {
		err = b.rig.WaitReady(ctx, b.rig.Server, addr, server)
	}
	if err != nil {
		return err
	}
	return nil
}

func (b *bench) close() error {
	var errs []error
	for _, g := range b.generators {
		errs = append(errs, g.close())
	}
	if b.pass != nil {
		errs = append(errs, b.pass.Close())
	}
	if b.sink != nil {
		errs = append(errs, b.sink.close())
	}
	return errors.Join(errs...)
}

// measureAll measures each candidate once a round. A round starts with another
// candidate than the one before, so that none has the same place each time.
func (b *bench) measureAll(ctx context.Context) (*report, error) {
	rep := newReport(b.opts)
	for round := range b.opts.rounds {
		for i := range candidates {
			n := (i + round) % len(candidates)
			c := candidates[n]
			m, err := b.measure(ctx, c)
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", c.Name, round+1, err)
			}
			rep.Candidates[n].Rounds = append(rep.Candidates[n].Rounds, m)
		}
	}
	rep.finish()
	return rep, nil
}

// measure takes all figures of one candidate.
func (b *bench) measure(ctx context.Context, c candidate) (m measurement, err error) {
	// XDP on both hosts is for the small packets alone: the client's device sends
	// XDP frames only when it could receive some, and the server counts.
	var links []link.Link
	closeLinks := func() error {
		var errs []error
		for _, lk := range links {
			errs = append(errs, lk.Close())
		}
		links = nil
		return errors.Join(errs...)
	}
	defer func() { err = errors.Join(err, closeLinks()) }()
	for _, at := range []struct {
		ns   *lab.Namespace
		dev  string
		prog *ebpf.Program
	}{{b.rig.Client, lab.ClientDev, b.pass}, {b.rig.Server, lab.ServerDev, b.sink.prog}} {
		lk, err := attachXDP(at.ns, at.dev, at.prog)
		if err != nil {
			return m, err
		}
		links = append(links, lk)
	}
	a, err := c.attach(ctx, b)
	if err != nil {
		return m, err
	}
	defer func() {
		// Taken off even when the run was interrupted.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = errors.Join(err, a.stop(ctx))
	}()
	daemon := func() (time.Duration, error) {
		if a.daemon == nil {
			return 0, nil
		}
		return readProcessTime(a.daemon.PID())
	}
	before, err := daemon()
	if err != nil {
		return m, err
	}
	start := time.Now()
	if m.Passed, err = b.small(ctx, passedPort, false); err != nil {
		return m, err
	}
	if m.Dropped, err = b.small(ctx, droppedPort, c.Drops); err != nil {
		return m, err
	}
	if err := closeLinks(); err != nil {
		return m, err
	}
	if m.Bulk, err = b.bulk(ctx); err != nil {
		return m, err
	}
	after, err := daemon()
	m.DaemonCPU = (after - before).Seconds() / time.Since(start).Seconds()
	return m, err
}

// small measures small packets to a port. drops says that none may get through.
func (b *bench) small(ctx context.Context, port uint16, drops bool) (r packets, err error) {
	g := b.generators[port]
	if err := g.send(warmUp); err != nil {
		return r, err
	}
	first, err := b.settled(ctx, port)
	if err != nil {
		return r, err
	}
	cpu, err := readCPUTime()
	if err != nil {
		return r, err
	}
	sent, d, err := g.sendFor(ctx, b.opts.length)
	if err != nil {
		return r, err
	}
	cpuEnd, err := readCPUTime()
	if err != nil {
		return r, err
	}
	last, err := b.settled(ctx, port)
	if err != nil {
		return r, err
	}
	r = packets{Sent: sent, Arrived: last - first, Seconds: d.Seconds(), SoftIRQ: cpuEnd.sub(cpu).SoftIRQ.Seconds()}
	switch {
	case drops && r.Arrived > 0:
		return r, fmt.Errorf("%d of %d packets to port %d came through, but are to be dropped", r.Arrived, sent, port)
	case !drops && r.Arrived < sent/2:
		return r, fmt.Errorf("only %d of %d packets to port %d came through", r.Arrived, sent, port)
	}
	r.drops = drops
	return r, nil
}

// settled returns the count of arrived packets once it has stopped moving.
func (b *bench) settled(ctx context.Context, port uint16) (uint64, error) {
	for last, first := uint64(0), true; ; {
		n, err := b.sink.arrived(port)
		if err != nil {
			return 0, err
		}
		if !first && n == last {
			return n, nil
		}
		last, first = n, false
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// bulk measures one TCP connection that sends all it can.
func (b *bench) bulk(ctx context.Context) (bulk, error) {
	return iperfTo(ctx, b.rig.Lab, b.opts.length)
}

// iperfTo has iperf3 send from the client all it can, for a whole number of seconds.
func iperfTo(ctx context.Context, l *lab.Lab, length time.Duration, args ...string) (r bulk, err error) {
	cpu, err := readCPUTime()
	if err != nil {
		return r, err
	}
	seconds := max(1, int((length+time.Second-1)/time.Second))
	out, err := l.Exec(ctx, l.Client, append([]string{"iperf3", "--client", l.ServerAddr(4).String(),
		"--port", fmt.Sprint(iperfPort), "--time", fmt.Sprint(seconds), "--json"}, args...)...)
	if err != nil {
		return r, fmt.Errorf("%w: %s", err, out)
	}
	cpuEnd, err := readCPUTime()
	if err != nil {
		return r, err
	}
	bytes, d, err := parseIperf(out)
	return bulk{Bytes: bytes, Seconds: d.Seconds(), Busy: cpuEnd.sub(cpu).Busy.Seconds()}, err
}
