// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/guptarohit/asciigraph"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
)

// verdictRate is how many flows a second begin while the time to their verdicts is
// taken, and verdictPort the port that they go to.
const (
	verdictRate = 1000
	verdictPort = 10_000
	// firstVerdictPort is the first flow's port at the client; each has its own.
	firstVerdictPort = 20_000
	mostVerdictFlows = 40_000
)

// readers are the ways in which captures are read: by a thread that comes before ordinary
// ones, and by one of those, as the program does where it may not have the other.
var readers = []struct {
	name string
	argv []string // in front of the command line
}{
	{"real-time", nil},
	{"ordinary", []string{"setpriv", "--bounding-set=-sys_nice,-sys_resource"}},
}

// latency is the time from the hand-over of full captures to the verdict in the map.
type latency struct {
	Reader   string  `json:"reader"`
	Model    string  `json:"model"`
	Rate     float64 `json:"flows_per_second"`
	Flows    int     `json:"flows"`
	Verdicts int     `json:"verdicts"` // the others passed without one
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	Max      float64 `json:"max_us"`
	// How late an ordinary thread was, meanwhile, that slept for a millisecond: of the
	// verdicts' delay, the machine's own part.
	Late50 float64 `json:"wakeup_p50_us"`
	Late99 float64 `json:"wakeup_p99_us"`

	seconds     float64
	times, late []float64
}

// runLatency is the whole command with -only latency.
func runLatency(ctx context.Context, out io.Writer, o options) (err error) {
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.end()) }()
	all, err := b.measureLatency(ctx)
	if err != nil {
		return err
	}
	if o.json {
		return printJSON(out, all)
	}
	printLatency(out, all)
	return nil
}

func printLatency(out io.Writer, all []latency) {
	for _, l := range all {
		fmt.Fprintln(out, l)
	}
	if len(all) > 0 {
		fmt.Fprint(out, distribution(all))
	}
}

// measureLatency takes the figures of each way to read, in turn, a few times.
func (b *bench) measureLatency(ctx context.Context) ([]latency, error) {
	all := make([]latency, len(readers))
	for range b.opts.rounds {
		for i, r := range readers {
			all[i].Reader = r.name
			if err := b.takeLatency(ctx, &all[i], r.argv); err != nil {
				return nil, err
			}
		}
	}
	for i := range all {
		all[i].finish()
	}
	return all, nil
}

// takeLatency opens UDP flows whose first datagram fills the capture, which the answer
// to it hands over, at an even pace.
func (b *bench) takeLatency(ctx context.Context, l *latency, argv []string) (err error) {
	d, err := b.rig.Daemon(ctx, append(argv[:len(argv):len(argv)], b.opts.program, "attach", "--json", "-i", rig.Device,
		"--xdp", "native", "--mode", "enforce", "--policy", b.policyFile)...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopDaemon(ctx, d)) }()
	late := lateness(ctx)
	defer func() { l.late = append(l.late, late()...) }()
	// A flow begins with its answer.
	server, err := b.rig.Server.ListenPacket("udp4", netip.AddrPortFrom(b.rig.ServerAddr(4), verdictPort).String())
	if err != nil {
		return err
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 2048)
		for {
			_, from, err := server.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = server.WriteTo(buf[:1], from)
			}
		}
	}()

	flows := min(mostVerdictFlows, int(b.opts.length.Seconds()*verdictRate))
	var last netip.AddrPort
	answer := make([]byte, 1)
	random := rand.NewChaCha8([32]byte{})
	payload := make([]byte, 1200) // fills a capture, fits any link
	start := time.Now()
	for i := range flows {
		if _, err := random.Read(payload); err != nil {
			return err
		}
		if wait := time.Until(start.Add(time.Duration(i) * time.Second / verdictRate)); wait > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(wait):
			}
		}
		// Ports in order: one that the system draws may be that of a flow before.
		last = netip.AddrPortFrom(b.rig.ClientAddr(4), uint16(firstVerdictPort+i))
		c, err := b.rig.Client.ListenPacket("udp4", last.String())
		if err != nil {
			return err
		}
		err = c.SetDeadline(time.Now().Add(time.Second))
		if err == nil {
			_, err = c.WriteTo(payload, server.LocalAddr())
		}
		if err == nil {
			_, _, err = c.ReadFrom(answer)
		}
		if err = errors.Join(err, c.Close()); err != nil {
			return err
		}
	}
	l.Flows += flows
	l.seconds += time.Since(start).Seconds()
	// Verdicts come in the order of their flows, but for those that have none.
	if _, err := rig.Wait(ctx, d, "the verdict about the last flow", func(e *event.Verdict) bool { return ours(e) && e.Src == last }); err != nil {
		return err
	}
	for _, e := range rig.Of[*event.Verdict](d.Events()) {
		if ours(e) {
			l.times = append(l.times, e.LatencyUS)
			l.Model = e.Model
		}
	}
	return nil
}

// stopDaemon ends a daemon, even if ctx has ended.
func stopDaemon(ctx context.Context, d *rig.Daemon) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err := d.Stop(ctx)
	return err
}

// lateness begins to measure how late, in microseconds, a thread is that sleeps for a
// millisecond again and again. What it returns ends that.
func lateness(ctx context.Context) func() []float64 {
	ctx, stop := context.WithCancel(ctx)
	done := make(chan []float64)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		const sleep = time.Millisecond
		ts := unix.NsecToTimespec(sleep.Nanoseconds())
		var all []float64
		for ctx.Err() == nil {
			start := time.Now()
			if unix.Nanosleep(&ts, nil) == nil { // not interrupted
				all = append(all, float64((time.Since(start)-sleep).Nanoseconds())/1e3)
			}
		}
		done <- all
	}()
	return func() []float64 {
		stop()
		return <-done
	}
}

// ours reports whether e is the verdict about one of measureLatency's flows.
func ours(e *event.Verdict) bool {
	return e.Proto == "udp" && e.HandedOver == "full" && e.Dst.Port() == verdictPort
}

// finish makes the figures of what was measured.
func (l *latency) finish() {
	l.Verdicts = len(l.times)
	l.Rate = float64(l.Flows) / l.seconds
	slices.Sort(l.times)
	slices.Sort(l.late)
	l.P50, l.P99, l.Max = percentile(l.times, 0.5), percentile(l.times, 0.99), percentile(l.times, 1)
	l.Late50, l.Late99 = percentile(l.late, 0.5), percentile(l.late, 0.99)
}

// percentile returns the least of the sorted values that so large a share of them does not
// exceed, and 0 where there are none.
func percentile(sorted []float64, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, max(0, int(math.Ceil(share*float64(len(sorted))))-1))]
}

// decade is how many columns of a distribution's picture have the next nine tenths of what is left.
const decade = 24

// distribution is a picture of how long verdicts take and how late an ordinary thread is, by
// the share of them that takes no longer: 0, 90, 99 and 99.9 % are equally far apart.
func distribution(all []latency) string {
	var lines [][]float64
	var chars []asciigraph.CharSet
	var names []string
	add := func(name, char string, sorted []float64) {
		line := make([]float64, 3*decade+1)
		for i := range line {
			line[i] = percentile(sorted, 1-math.Pow(10, -float64(i)/decade))
		}
		lines, chars, names = append(lines, line), append(chars, asciigraph.CreateCharSet(char)), append(names, char+" "+name)
	}
	for i, l := range all {
		add(l.Reader+" reader", [...]string{"*", "o"}[i], l.times)
	}
	add("an ordinary thread that wakes up late, beside the "+all[0].Reader+" reader", "·", all[0].late)
	graph := asciigraph.PlotMany(lines, asciigraph.Height(16), asciigraph.Precision(0), asciigraph.LowerBound(0), asciigraph.SeriesChars(chars...))
	label, _, _ := strings.Cut(graph, "┤")
	margin := strings.Repeat(" ", len(label)+1)
	axis := fmt.Sprintf("%-*s%-*s%-*s%s", decade, "least", decade, "90 %", decade, "99 %", "99.9 %")
	return fmt.Sprintf("%s\n%s%s\n%sus within which so many have it: %s\n", graph, margin, axis, margin, strings.Join(names, ", "))
}

func (l latency) String() string {
	return fmt.Sprintf("from the 1024th byte to the verdict in the map, %s reader, %.0f new flows/s, model %s: p50 %.0f us, p99 %.0f us, most %.0f us; %d of %d flows had a verdict; an ordinary thread wakes up late by %.0f us (p50) and %.0f us (p99)",
		l.Reader, l.Rate, l.Model, l.P50, l.P99, l.Max, l.Verdicts, l.Flows, l.Late50, l.Late99)
}
