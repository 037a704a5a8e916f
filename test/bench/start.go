// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	startPort  = 10_001
	startEvery = time.Millisecond // a datagram, from the start on
	startTimes = 7                // in each round
)

// starts is how long the program takes from its start until it looks at packets.
type starts struct {
	Ingress string    `json:"ingress"`
	MS      []float64 `json:"ms"` // sorted
}

// runStart is the whole command with -only start.
func runStart(ctx context.Context, out io.Writer, o options) (err error) {
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.end()) }()
	s, err := b.measureStart(ctx)
	if err != nil {
		return err
	}
	if o.json {
		return printJSON(out, s)
	}
	fmt.Fprintln(out, s)
	return nil
}

// measureStart starts the program again and again while datagrams go through the gateway: what it
// has not counted went by before it looked.
func (b *bench) measureStart(ctx context.Context) (*starts, error) {
	s := &starts{}
	for range b.opts.rounds * startTimes {
		if err := b.takeStart(ctx, s); err != nil {
			return nil, err
		}
	}
	slices.Sort(s.MS)
	return s, nil
}

func (b *bench) takeStart(ctx context.Context, s *starts) (err error) {
	server, err := b.rig.Server.ListenPacket("udp4", netip.AddrPortFrom(b.rig.ServerAddr(4), startPort).String())
	if err != nil {
		return err
	}
	defer server.Close()
	client, err := b.rig.Client.Dial(ctx, "udp4", server.LocalAddr().String())
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.Write([]byte{0}); err != nil { // the neighbours are asked for
		return err
	}
	sending, stop := context.WithCancel(ctx)
	sent := make(chan []time.Time)
	begin := time.Now()
	go func() { sent <- sendEvenly(sending, client.Write, begin) }()
	d, err := b.rig.Attach(ctx, "--mode", "monitor", "--policy", b.policyFile)
	stop()
	times := <-sent
	if err != nil {
		return err
	}
	s.Ingress = d.Attached.Ingress
	// The last one has passed the gateway when it is at the server.
	if err := server.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return errors.Join(err, stopDaemon(ctx, d))
	}
	for buf := make([]byte, 16); err == nil; {
		var n int
		if n, _, err = server.ReadFrom(buf); n == len(lastOfStart) {
			break
		}
	}
	ended, stopErr := d.Stop(ctx)
	if err = errors.Join(err, stopErr); err != nil {
		return err
	}
	seen := int(ended.Counters["packets_ingress"])
	if seen < 1 || seen > len(times) {
		return fmt.Errorf("of %d datagrams %d were counted", len(times), seen)
	}
	s.MS = append(s.MS, float64(times[len(times)-seen].Sub(begin).Microseconds())/1e3)
	return nil
}

// lastOfStart is the last datagram.
var lastOfStart = []byte("last")

// sendEvenly writes a datagram every startEvery until ctx ends, and the last one, and returns when
// it did.
func sendEvenly(ctx context.Context, write func([]byte) (int, error), begin time.Time) (times []time.Time) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for ctx.Err() == nil {
		times = append(times, time.Now())
		if _, err := write([]byte{0}); err != nil {
			return times
		}
		next := unix.NsecToTimespec(max(0, time.Until(begin.Add(time.Duration(len(times))*startEvery)).Nanoseconds()))
		_ = unix.Nanosleep(&next, nil) // an interruption sends it early, which is noted
	}
	times = append(times, time.Now())
	_, _ = write(lastOfStart) // whoever waits for it says so
	return times
}

func (s *starts) String() string {
	return fmt.Sprintf("from the start of the program until it looks at packets, at %s, %d times: median %.0f ms, least %.0f ms, most %.0f ms",
		s.Ingress, len(s.MS), percentile(s.MS, 0.5), s.MS[0], s.MS[len(s.MS)-1])
}
