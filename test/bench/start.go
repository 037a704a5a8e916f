// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
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
	if err := tablesFreed(ctx); err != nil {
		return err
	}
	client, server, err := b.datagrams(ctx, startPort)
	if err != nil {
		return err
	}
	defer client.Close()
	defer server.Close() // nobody reads there, which would take time of the program's
	lastClient, lastServer, err := b.datagrams(ctx, startPort+1)
	if err != nil {
		return err
	}
	defer lastClient.Close()
	defer lastServer.Close()
	if _, err := client.Write([]byte{0}); err != nil { // the neighbours are asked for
		return err
	}
	dir, err := b.rig.Subdir("start")
	if err != nil {
		return err
	}
	// The lab enters a namespace first, which is no part of the program's start.
	began := filepath.Join(dir, "began")
	sending, stop := context.WithCancel(ctx)
	sent := make(chan []time.Time)
	go func() { sent <- sendEvenly(sending, client.Write) }()
	d, err := b.rig.Daemon(ctx, "bash", "-c", `echo "$EPOCHREALTIME" >"$0"; exec "$@"`, began,
		b.opts.program, "attach", "--json", "-i", rig.Device, "--mode", "monitor", "--policy", b.policyFile)
	stop()
	times := <-sent
	if err != nil {
		return err
	}
	begin, err := readEpoch(began)
	if err != nil {
		return errors.Join(err, stopDaemon(ctx, d))
	}
	s.Ingress = d.Attached.Ingress
	// All have passed the gateway when one behind them is at the server.
	times = append(times, time.Now())
	_, err = lastClient.Write([]byte{0})
	if err == nil {
		err = lastServer.SetReadDeadline(time.Now().Add(5 * time.Second))
	}
	if err == nil {
		_, _, err = lastServer.ReadFrom(make([]byte, 16))
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

// tablesFreed waits until the kernel has given back the memory of tables that are gone, which it
// does behind the back of whoever ended, on a core that the next start would want.
func tablesFreed(ctx context.Context) error {
	const same = 10 // looks
	before, seen := "", 0
	return rig.Until(ctx, func() (bool, error) {
		info, err := os.ReadFile("/proc/meminfo")
		if err != nil {
			return false, err
		}
		for line := range strings.Lines(string(info)) {
			if !strings.HasPrefix(line, "VmallocUsed:") {
				continue
			}
			if line == before {
				seen++
			} else {
				before, seen = line, 0
			}
		}
		return seen >= same, nil
	})
}

// datagrams returns both ends of a way through the gateway to a port.
func (b *bench) datagrams(ctx context.Context, port uint16) (client net.Conn, server net.PacketConn, err error) {
	server, err = b.rig.Server.ListenPacket("udp4", netip.AddrPortFrom(b.rig.ServerAddr(4), port).String())
	if err != nil {
		return nil, nil, err
	}
	client, err = b.rig.Client.Dial(ctx, "udp4", server.LocalAddr().String())
	if err != nil {
		return nil, nil, errors.Join(err, server.Close())
	}
	return client, server, nil
}

// readEpoch reads what bash's EPOCHREALTIME was: seconds, and behind a point microseconds.
func readEpoch(file string) (time.Time, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return time.Time{}, err
	}
	us, err := strconv.ParseInt(strings.Replace(strings.TrimSpace(string(text)), ".", "", 1), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("when the program was started: %w", err)
	}
	return time.UnixMicro(us), nil
}

// sendEvenly writes a datagram every startEvery until ctx ends, and returns when it did.
func sendEvenly(ctx context.Context, write func([]byte) (int, error)) (times []time.Time) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin := time.Now()
	for ctx.Err() == nil {
		times = append(times, time.Now())
		if _, err := write([]byte{0}); err != nil {
			return times
		}
		next := unix.NsecToTimespec(max(0, time.Until(begin.Add(time.Duration(len(times))*startEvery)).Nanoseconds()))
		_ = unix.Nanosleep(&next, nil) // an interruption sends it early, which is noted
	}
	return times
}

func (s *starts) String() string {
	return fmt.Sprintf("from the start of the program until it looks at packets, at %s, %d times: median %.0f ms, least %.0f ms, most %.0f ms",
		s.Ingress, len(s.MS), percentile(s.MS, 0.5), s.MS[0], s.MS[len(s.MS)-1])
}
