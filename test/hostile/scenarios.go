// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
	"github.com/earlydrop/earlydrop/test/lab/flood"
)

// options of a scenario.
type options struct {
	binary     string
	duration   time.Duration
	rtt        time.Duration
	rate       int // frames per second, 0: all that goes
	handshakes int // 0: the default
	cycles     int
	logf       func(format string, args ...any)
}

func (o options) attachArgs() []string {
	if o.handshakes == 0 {
		return nil
	}
	return []string{"--max-handshakes", fmt.Sprint(o.handshakes)}
}

// floodResult is what a flood of forged TCP segments came to.
type floodResult struct {
	sent, seen     uint64 // frames sent, SYNs that the ingress program saw
	opened, failed int    // connections through the tunnel
	identified     int
	cut, strays    int
	midStream      uint64
}

func (r floodResult) share() float64 {
	return float64(min(r.identified, r.opened)) / float64(max(1, r.opened))
}

// tcpFloods are the floods that one side alone can send, and how many frames each of
// their flows has.
var tcpFloods = map[string]struct {
	what   string
	frames func() ([]flood.Frame, error)
}{
	"flood":      {"SYNs", synFrames},
	"forged":     {"SYNs, each followed by a byte", synByteFrames},
	"handshakes": {"whole connections", handshakeFrames},
}

// tcpFlood sends segments from spoofed sources while connections open through the tunnel.
func tcpFlood(ctx context.Context, o options, kind string) (r floodResult, err error) {
	g, err := newGateway(ctx, o.binary, o.rtt, o.attachArgs()...)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, g.close(ctx)) }()
	f := tcpFloods[kind]
	frames, err := f.frames()
	if err != nil {
		return r, err
	}
	stop, err := g.flood(ctx, frames, o.rate*len(frames))
	if err != nil {
		return r, err
	}
	start := time.Now()
	r.opened, r.failed = g.tunnelled(ctx, o.duration, 50*time.Millisecond)
	if r.sent, err = stop(); err != nil {
		return r, err
	}
	took := time.Since(start)
	if err := g.settle(ctx); err != nil {
		return r, err
	}
	s, err := g.Status(ctx)
	if err != nil {
		return r, err
	}
	r.seen, r.midStream = s.Counters["syns"], s.Counters["mid_stream"]
	r.identified, r.cut = g.identified()
	r.strays = g.strays()
	o.logf("flood of %s, %s, round trip +%s: %d frames sent, %d SYNs seen (%.2f million per second); of %d connections through the tunnel %d were identified (%.1f %%), %d failed; %d mid-stream; %d verdicts about flows of the flood",
		f.what, took.Round(time.Second), o.rtt, r.sent, r.seen, float64(r.seen)/took.Seconds()/1e6, r.opened, r.identified, 100*r.share(), r.failed, r.midStream, r.strays)
	return r, nil
}

// oneByteResult is what real connections of one byte, from one host, came to.
type oneByteResult struct {
	made           int // of the flood
	opened, failed int // connections through the tunnel, from another host
	identified     int
	refused        uint64 // captures that the host was refused as it had too many
}

func (r oneByteResult) share() float64 {
	return float64(min(r.identified, r.opened)) / float64(max(1, r.opened))
}

// oneByte has one host open real connections that carry one byte and stay open, so that
// each holds a capture until it is idle, while connections open through the tunnel.
func oneByte(ctx context.Context, o options) (r oneByteResult, err error) {
	// As many captures as such a host can fill.
	g, err := newGateway(ctx, o.binary, o.rtt, "--max-collecting", fmt.Sprint(max(64, o.rate)))
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, g.close(ctx)) }()
	host, server, err := g.oneByteHosts()
	if err != nil {
		return r, err
	}
	defer server.Close()

	var wg sync.WaitGroup
	defer wg.Wait()
	flooding, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { r.made = g.sendOneByte(flooding, host, server.Addr().String(), o.rate) })
	r.opened, r.failed = g.tunnelled(ctx, o.duration, 50*time.Millisecond)
	stop()
	wg.Wait()
	if err := g.settle(ctx); err != nil {
		return r, err
	}
	s, err := g.Status(ctx)
	if err != nil {
		return r, err
	}
	r.identified, _ = g.identified()
	r.refused = s.Counters["initiator_slots"]
	o.logf("connections of one byte, %s, round trip +%s: %d from one host (%.0f per second), %d of them refused a capture; of %d connections through the tunnel %d were identified (%.1f %%), %d failed",
		o.duration, o.rtt, r.made, float64(r.made)/o.duration.Seconds(), r.refused, r.opened, r.identified, 100*r.share(), r.failed)
	return r, nil
}

// oneByteHosts gives the client a second address and starts a server that reads and never
// answers.
func (g *gateway) oneByteHosts() (host netip.Addr, server net.Listener, err error) {
	host = g.ClientAddr(4).Next()
	link, err := g.Client.Netlink().LinkByName(lab.ClientDev)
	if err != nil {
		return host, nil, err
	}
	if err := g.Client.Netlink().AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: host.AsSlice(), Mask: net.CIDRMask(24, 32)}}); err != nil {
		return host, nil, fmt.Errorf("add address %s: %w", host, err)
	}
	server, err = g.Server.Listen("tcp", netip.AddrPortFrom(g.ServerAddr(4), 0).String())
	if err != nil {
		return host, nil, err
	}
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c); c.Close() }()
		}
	}()
	return host, server, nil
}

// sendOneByte opens connections until ctx ends, that many per second, each of which sends
// a byte and is reset after three seconds. It returns how many were made.
func (g *gateway) sendOneByte(ctx context.Context, host netip.Addr, server string, rate int) int {
	// A connection takes a round trip to be made: as many workers as make it up.
	workers := max(1, rate/20)
	var wg sync.WaitGroup
	var made atomic.Int64
	for range workers {
		wg.Go(func() {
			_ = g.Client.Do(func() error {
				made.Add(int64(sendOneByte(ctx, host, server, float64(rate)/float64(workers))))
				return nil
			})
		})
	}
	wg.Wait()
	return int(made.Load())
}

// sendOneByte is one worker, in the namespace that its thread is in.
func sendOneByte(ctx context.Context, host netip.Addr, server string, rate float64) (made int) {
	type conn struct {
		*net.TCPConn
		at time.Time
	}
	var conns []conn
	closeOlder := func(than time.Time) {
		for len(conns) > 0 && conns[0].at.Before(than) {
			_ = conns[0].Close()
			conns = conns[1:]
		}
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: host.AsSlice()}, Timeout: 5 * time.Second}
	start := time.Now()
	for ctx.Err() == nil {
		if ahead := time.Duration(float64(made)/rate*1e9) - time.Since(start); ahead > 0 {
			time.Sleep(ahead)
		}
		c, err := d.DialContext(ctx, "tcp4", server)
		if err != nil {
			continue
		}
		tcp := c.(*net.TCPConn)
		_ = tcp.SetLinger(0)
		_, _ = tcp.Write([]byte{'x'})
		made++
		now := time.Now()
		conns = append(conns, conn{tcp, now})
		closeOlder(now.Add(-3 * time.Second))
	}
	closeOlder(time.Now().Add(time.Second))
	return made
}

// udpResult is what a flood of one-packet UDP flows came to.
type udpResult struct {
	sent, waiting         uint64 // of the flood; flows of it that earlydrop saw
	asked, answered       int    // UDP flows of others in it, and those of them that were identified
	held, complete        int    // flows that were collecting before
	fresh, freshCompleted int    // TCP flows that opened during the flood
	most, slots           int    // flows collecting at once
	slotsFull, ringFull   uint64
	queueFull             uint64
	early                 int           // packets that passed before a block's end
	late                  time.Duration // from a block's end to the first packet that passed
}

// udpFlood sends one-packet UDP flows while others are collecting, others open, and
// one is blocked for three seconds.
func udpFlood(ctx context.Context, o options) (r udpResult, err error) {
	g, err := newGateway(ctx, o.binary, o.rtt)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, g.close(ctx)) }()
	r.slots = 8192
	var held []request
	defer func() {
		for _, h := range held {
			h.Close()
		}
	}()
	// All at once, so that with a long round trip the first is not idle when the last is
	// there.
	var opening errgroup.Group
	opening.SetLimit(50)
	var mu sync.Mutex
	for range 200 {
		opening.Go(func() error {
			h, err := g.request(ctx)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			held = append(held, h)
			return nil
		})
	}
	if err := opening.Wait(); err != nil {
		return r, err
	}
	r.held = len(held)
	frames, err := udpFrames(100)
	if err != nil {
		return r, err
	}
	stop, err := g.flood(ctx, frames, o.rate)
	if err != nil {
		return r, err
	}
	defer stop()
	ended := make(chan error, 1)
	go func() {
		var err error
		r.early, r.late, err = g.blockEnds(ctx)
		ended <- err
	}()
	time.Sleep(time.Second) // the flood has gone through its table many times
	var finishing sync.WaitGroup
	for _, h := range held {
		finishing.Go(func() {
			if err := h.finish(); err != nil {
				o.logf("a held connection failed: %v", err)
			}
		})
	}
	finishing.Wait()
	var fresh []request
	var asked []netip.AddrPort
	server, err := g.echo(ctx)
	if err != nil {
		return r, err
	}
	defer server.Close()
	for end := time.Now().Add(o.duration - time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		h, err := g.request(ctx)
		if err != nil {
			return r, err
		}
		if err := h.finish(); err != nil {
			o.logf("a connection failed: %v", err)
		}
		fresh = append(fresh, h)
		u, err := g.askUDP(ctx, server, 1, 100)
		if err != nil {
			return r, err
		}
		asked = append(asked, u...)
		if len(fresh)%20 == 1 {
			s, err := g.Status(ctx)
			if err != nil {
				return r, err
			}
			r.most = max(r.most, s.Flows.Collecting)
		}
	}
	if err := <-ended; err != nil {
		return r, err
	}
	if r.sent, err = stop(); err != nil {
		return r, err
	}
	if err := g.settle(ctx); err != nil {
		return r, err
	}
	s, err := g.Status(ctx)
	if err != nil {
		return r, err
	}
	r.complete = g.verdictsOf(held)
	r.fresh, r.freshCompleted = len(fresh), g.verdictsOf(fresh)
	r.asked, r.answered = len(asked), g.verdictsFrom(server, asked)
	r.waiting = s.Counters["udp_waiting"]
	r.slotsFull, r.ringFull, r.queueFull = s.Counters["slots_full"], s.Counters["ring_full"], s.Daemon["queue_full"]
	o.logf("UDP flood, %s: %d sent, %d of %d UDP flows of others in it were identified (%.1f %%)", o.duration, r.sent, r.answered, r.asked,
		100*float64(r.answered)/float64(max(1, r.asked)))
	o.logf("UDP flood, %s: %d flows seen, %d at most of %d slots taken, %d refused, %d ring full, %d queue full; %d of %d flows that were collecting before completed (%.1f %%), %d of %d TCP flows that opened in it (%.1f %%)",
		o.duration, r.waiting, r.most, r.slots, r.slotsFull, r.ringFull, r.queueFull, r.complete, r.held, 100*float64(r.complete)/float64(r.held),
		r.freshCompleted, r.fresh, 100*float64(r.freshCompleted)/float64(max(1, r.fresh)))
	o.logf("a block of 3 s under the flood: %d packets passed early, the first passed %.2f ms after its end", r.early, float64(r.late.Microseconds())/1e3)
	return r, nil
}

// blockEnds blocks a UDP flow of one datagram per half millisecond for three seconds,
// and tells when the first arrives again.
func (g *gateway) blockEnds(ctx context.Context) (early int, late time.Duration, err error) {
	server, err := g.Server.ListenPacket("udp", netip.AddrPortFrom(g.ServerAddr(4), 0).String())
	if err != nil {
		return 0, 0, err
	}
	defer server.Close()
	c, err := g.Client.Dial(ctx, "udp", server.LocalAddr().String())
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	src, dst := c.LocalAddr().(*net.UDPAddr).AddrPort(), server.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := g.Earlydrop(ctx, "mode", "enforce", "-i", rig.Device); err != nil {
		return 0, 0, err
	}
	if _, err := g.Earlydrop(ctx, "blocked", "add", "-i", rig.Device, "--ttl", "3s", "udp", src.String(), dst.String()); err != nil {
		return 0, 0, err
	}
	block, ok, err := g.Block(ctx, src, dst)
	if err != nil || !ok {
		return 0, 0, fmt.Errorf("the block of %s is not there: %w", src, err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				_, _ = c.Write([]byte("still there?"))
				time.Sleep(500 * time.Microsecond)
			}
		}
	})
	defer wg.Wait()
	defer close(done)
	buf := make([]byte, 64)
	_ = server.SetReadDeadline(block.Expires.Add(time.Minute))
	for {
		if _, _, err := server.ReadFrom(buf); err != nil {
			return early, 0, fmt.Errorf("nothing passes after the block's end: %w", err)
		}
		at := time.Now()
		if !at.Before(block.Expires) {
			return early, at.Sub(block.Expires), nil
		}
		early++
	}
}

// readerResult is what a stopped reader came to.
type readerResult struct {
	ringFull   uint64
	passed     bool          // traffic, while the reader was stopped
	identified time.Duration // from SIGCONT to the verdict about the next connection
}

// stoppedReader stops the daemon until the ring buffer is full, and lets it go on.
func stoppedReader(ctx context.Context, o options) (r readerResult, err error) {
	g, err := newGateway(ctx, o.binary, o.rtt)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, g.close(ctx)) }()
	if err := g.daemon.Signal(syscall.SIGSTOP); err != nil {
		return r, err
	}
	goOn := sync.OnceValue(func() error { return g.daemon.Signal(syscall.SIGCONT) })
	defer goOn()
	server, err := g.echo(ctx)
	if err != nil {
		return r, err
	}
	defer server.Close()
	for r.ringFull == 0 {
		if _, err := g.askUDP(ctx, server, 500, 1200); err != nil { // each of them a whole capture
			return r, err
		}
		s, err := g.Status(ctx)
		if err != nil {
			return r, err
		}
		r.ringFull = s.Counters["ring_full"]
	}
	opened, failed := g.tunnelled(ctx, 500*time.Millisecond, 100*time.Millisecond)
	r.passed = opened > 0 && failed == 0
	if err := goOn(); err != nil {
		return r, err
	}
	start := time.Now()
	var next []request
	for r.identified == 0 {
		h, err := g.request(ctx)
		if err != nil {
			return r, err
		}
		if err := h.finish(); err != nil {
			return r, err
		}
		next = append(next, h)
		time.Sleep(20 * time.Millisecond)
		if g.verdictsOf(next) > 0 {
			r.identified = time.Since(start)
		}
	}
	o.logf("reader stopped: %d captures found the ring full; traffic passed: %v; back, the first verdict about a new connection came after %d ms (connection %d)",
		r.ringFull, r.passed, r.identified.Milliseconds(), len(next))
	return r, nil
}

// cyclesResult is what attaching and detaching over and over came to.
type cyclesResult struct {
	cycles     int
	left       int   // programs, maps and links that outlived their daemon
	memory     int64 // kernel memory after less before, bytes
	identified [2]int
}

// cycles runs two daemons on the two devices of the gateway, and attaches and detaches
// a third program's worth of times under traffic.
func cycles(ctx context.Context, o options) (r cyclesResult, err error) {
	g, err := newGateway(ctx, o.binary, o.rtt)
	if err != nil {
		return r, err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, g.close(ctx))
		}
	}()
	// Two at once: each sees the same connections, with tables of its own.
	other, err := g.Attach(ctx, "-i", "gw-s", "--mode", "monitor")
	if err != nil {
		return r, err
	}
	if opened, failed := g.tunnelled(ctx, time.Second, 100*time.Millisecond); failed > 0 {
		return r, fmt.Errorf("%d of %d connections failed", failed, opened+failed)
	}
	if err := g.settle(ctx); err != nil {
		return r, err
	}
	r.identified = [2]int{len(g.daemon.Verdicts(g.tunnel.Server)), len(other.Verdicts(g.tunnel.Server))}
	a, errA := g.daemon.Objects()
	b, errB := other.Objects()
	if err := errors.Join(errA, errB); err != nil {
		return r, err
	}
	for _, id := range a.Maps {
		for _, id2 := range b.Maps {
			if id == id2 {
				return r, fmt.Errorf("the two daemons share map %d", id)
			}
		}
	}
	if _, err := other.Stop(ctx); err != nil {
		return r, err
	}

	traffic, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { g.tunnelled(traffic, time.Hour, 100*time.Millisecond) })
	defer wg.Wait()
	defer end()
	var all rig.Objects
	before := int64(0)
	for r.cycles = 0; r.cycles < o.cycles && ctx.Err() == nil; r.cycles++ {
		objects, err := g.daemon.Objects()
		if err != nil {
			return r, err
		}
		all.Progs, all.Maps, all.Links = append(all.Progs, objects.Progs...), append(all.Maps, objects.Maps...), append(all.Links, objects.Links...)
		if _, err := g.daemon.Stop(ctx); err != nil {
			return r, err
		}
		if pins, err := g.Pins(); err != nil || len(pins) > 0 {
			return r, fmt.Errorf("pins are left: %v, %w", pins, err)
		}
		if r.cycles == 0 { // the first has the kernel's caches filled
			if before, err = kernelMemory(); err != nil {
				return r, err
			}
		} else if after, err := kernelMemory(); err == nil {
			r.memory = after - before
		}
		if g.daemon, err = g.Attach(ctx, "--mode", "monitor"); err != nil {
			return r, err
		}
	}
	// Maps are freed some time after the last reference is gone.
	gone, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = rig.Until(gone, func() (bool, error) {
		present, err := all.Present()
		r.left = len(present.Progs) + len(present.Maps) + len(present.Links)
		return r.left == 0, err
	})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) { // what is left is in r
		return r, err
	}
	end()
	wg.Wait()
	closed = true
	err = g.close(ctx)
	o.logf("two interfaces at once: %d and %d verdicts about the same connections; %d times attached and detached under traffic: %d programs, maps, links left of %d; kernel memory of maps %+.1f MiB",
		r.identified[0], r.identified[1], r.cycles, r.left, len(all.Progs)+len(all.Maps)+len(all.Links), float64(r.memory)/(1<<20))
	return r, err
}

// kernelMemory returns what the kernel has allocated for itself, in bytes: slabs and
// the pages behind vmalloc, which is where maps are.
func kernelMemory() (sum int64, err error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return 0, err
	}
	m, err := fs.Meminfo()
	if err != nil {
		return 0, err
	}
	for _, part := range []*uint64{m.SUnreclaimBytes, m.VmallocUsedBytes, m.PercpuBytes} {
		if part != nil { // old kernels lack some
			sum += int64(*part)
		}
	}
	return sum, nil
}
