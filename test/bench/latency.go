// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

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

// latency is the time from the hand-over of full captures to the verdict in the map.
type latency struct {
	Model    string  `json:"model"`
	Rate     float64 `json:"flows_per_second"`
	Flows    int     `json:"flows"`
	Verdicts int     `json:"verdicts"` // the others passed without one
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	Max      float64 `json:"max_us"`
}

// measureLatency opens UDP flows whose first datagram fills the capture, which the answer
// to it hands over, at an even pace, each for a round, in one go.
func (b *bench) measureLatency(ctx context.Context) (l latency, err error) {
	d, err := b.rig.Attach(ctx, "--xdp", "native", "--mode", "enforce", "--policy", b.policyFile)
	if err != nil {
		return l, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_, stopErr := d.Stop(ctx)
		err = errors.Join(err, stopErr)
	}()
	// A flow begins with its answer.
	server, err := b.rig.Server.ListenPacket("udp4", netip.AddrPortFrom(b.rig.ServerAddr(4), verdictPort).String())
	if err != nil {
		return l, err
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

	l.Flows = min(mostVerdictFlows, int(b.opts.length.Seconds()*verdictRate*float64(b.opts.rounds)))
	var last netip.AddrPort
	answer := make([]byte, 1)
	random := rand.NewChaCha8([32]byte{})
	payload := make([]byte, 1200) // fills a capture, fits any link
	start := time.Now()
	for i := range l.Flows {
		if _, err := random.Read(payload); err != nil {
			return l, err
		}
		if wait := time.Until(start.Add(time.Duration(i) * time.Second / verdictRate)); wait > 0 {
			select {
			case <-ctx.Done():
				return l, ctx.Err()
			case <-time.After(wait):
			}
		}
		// Ports in order: one that the system draws may be that of a flow before.
		last = netip.AddrPortFrom(b.rig.ClientAddr(4), uint16(firstVerdictPort+i))
		c, err := b.rig.Client.ListenPacket("udp4", last.String())
		if err != nil {
			return l, err
		}
		err = c.SetDeadline(time.Now().Add(time.Second))
		if err == nil {
			_, err = c.WriteTo(payload, server.LocalAddr())
		}
		if err == nil {
			_, _, err = c.ReadFrom(answer)
		}
		if err = errors.Join(err, c.Close()); err != nil {
			return l, err
		}
	}
	l.Rate = float64(l.Flows) / time.Since(start).Seconds()
	// Verdicts come in the order of their flows, but for those that have none.
	if _, err := rig.Wait(ctx, d, "the verdict about the last flow", func(e *event.Verdict) bool { return ours(e) && e.Src == last }); err != nil {
		return l, err
	}
	var times []float64
	for _, e := range rig.Of[*event.Verdict](d.Events()) {
		if ours(e) {
			times = append(times, e.LatencyUS)
			l.Model = e.Model
		}
	}
	l.set(times)
	return l, nil
}

// ours reports whether e is the verdict about one of measureLatency's flows.
func ours(e *event.Verdict) bool {
	return e.Proto == "udp" && e.HandedOver == "full" && e.Dst.Port() == verdictPort
}

// set takes the figures of times in microseconds.
func (l *latency) set(times []float64) {
	slices.Sort(times)
	l.Verdicts = len(times)
	if len(times) == 0 {
		return
	}
	// The least value that so large a share of the values does not exceed.
	percentile := func(share float64) float64 {
		return times[min(len(times)-1, int(math.Ceil(share*float64(len(times))))-1)]
	}
	l.P50, l.P99, l.Max = percentile(0.5), percentile(0.99), times[len(times)-1]
}

func (l latency) String() string {
	return fmt.Sprintf("from the 1024th byte to the verdict in the map, %.0f new flows/s, model %s: p50 %.0f us, p99 %.0f us, most %.0f us; %d of %d flows had a verdict",
		l.Rate, l.Model, l.P50, l.P99, l.Max, l.Verdicts, l.Flows)
}
