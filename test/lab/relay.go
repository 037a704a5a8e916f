// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// RelayConfig makes a leg slow and lossy, the same in both directions. With
// the zero value there is no relay.
type RelayConfig struct {
	// Delay is added to each frame, Jitter at most on top of it. Jitter alone
	// never changes the order.
	Delay, Jitter time.Duration

	// Loss is the share of frames that vanish, 0 to 1.
	Loss float64

	// Reorder is the share of frames that are held back so that later ones
	// overtake them, 0 to 1.
	Reorder float64

	// Rate in bits per second; 0 is unlimited.
	Rate int64

	// Seed of the draws. Which frame meets which draw still depends on
	// timing.
	Seed uint64

	// Shaper decides what becomes of each frame before all of that. Its type
	// must be comparable. (optional)
	Shaper Shaper
}

// Shaper puts frames in the place of those that a leg carries, as a packet
// filter on the host or a box on the cable could.
type Shaper interface {
	// Shape returns what goes on in a frame's place; nothing loses it. The
	// frame is the Shaper's to keep and to change. fromGateway says which end
	// sent it; it is called by one goroutine for each end.
	Shape(fromGateway bool, frame []byte) [][]byte
}

// relayQueue bounds the frames that wait in one direction; more are lost, as
// in a router. With a Shaper there is to be no loss but its own, however late the relay
// gets to run.
const (
	relayQueue  = 1000
	shaperQueue = 1 << 14
)

func (c RelayConfig) queue() int {
	if c.Shaper != nil {
		return shaperQueue
	}
	return relayQueue
}

func (c RelayConfig) enabled() bool {
	c.Seed = 0
	return c != RelayConfig{}
}

func (c RelayConfig) validate() error {
	switch {
	case c.Delay < 0 || c.Jitter < 0:
		return fmt.Errorf("relay delay %v, jitter %v: want 0 or more", c.Delay, c.Jitter)
	case c.Loss < 0 || c.Loss > 1:
		return fmt.Errorf("relay loss %v: want a share from 0 to 1", c.Loss)
	case c.Reorder < 0 || c.Reorder > 1:
		return fmt.Errorf("relay reorder %v: want a share from 0 to 1", c.Reorder)
	case c.Rate < 0:
		return fmt.Errorf("relay rate %d: want bits per second, or 0 for unlimited", c.Rate)
	}
	return nil
}

// relay carries frames between two TAP devices.
type relay struct {
	a, b *os.File
	wg   sync.WaitGroup
}

func startRelay(g leg) (*relay, error) {
	a, err := openTAP(g.near, g.nearDev, g.cfg.NearMAC, g.cfg.MTU, g.cfg.Relay.queue())
	if err != nil {
		return nil, err
	}
	b, err := openTAP(g.far, g.farDev, g.cfg.FarMAC, g.cfg.MTU, g.cfg.Relay.queue())
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	r := &relay{a: a, b: b}
	for i, d := range [][2]*os.File{{a, b}, {b, a}} {
		p := &pipe{cfg: g.cfg.Relay, fromGateway: i == 0, to: d[1], wake: make(chan struct{}, 1), done: make(chan struct{}),
			rng: rand.New(rand.NewPCG(g.cfg.Relay.Seed, uint64(i)))}
		r.wg.Add(2)
		go func() { defer r.wg.Done(); p.read(d[0]) }()
		go func() { defer r.wg.Done(); p.write() }()
	}
	return r, nil
}

// close ends both directions. Closing the files removes the devices.
func (r *relay) close() error {
	err := errors.Join(r.a.Close(), r.b.Close())
	r.wg.Wait()
	return err
}

func openTAP(n *Namespace, name string, mac net.HardwareAddr, mtu, queue int) (*os.File, error) {
	var f *os.File
	err := n.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("make TAP device %s: %w", name, err)
		}
		f = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err != nil {
		return nil, err
	}
	dev, err := n.nl.LinkByName(name)
	if err == nil && mac != nil {
		err = n.nl.LinkSetHardwareAddr(dev, mac)
	}
	if err == nil {
		err = n.nl.LinkSetMTU(dev, mtu)
	}
	if err == nil {
		err = n.nl.LinkSetTxQLen(dev, queue)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up TAP device %s: %w", name, err), f.Close())
	}
	return f, nil
}

// pipe is one direction of a relay.
type pipe struct {
	cfg         RelayConfig
	fromGateway bool
	to          *os.File
	rng         *rand.Rand // of the reading goroutine
	wake        chan struct{}
	done        chan struct{} // closed when no more frames come

	mu    sync.Mutex
	queue frames

	// Of the reading goroutine: when the last frame in order leaves, when the
	// rate limit is free again, and a number that keeps equal times in order.
	last, free time.Time
	seq        uint64
}

type frame struct {
	at   time.Time
	seq  uint64
	data []byte
}

// frames is a heap by leaving time.
type frames []frame

func (f frames) Len() int { return len(f) }
func (f frames) Less(i, j int) bool {
	if f[i].at.Equal(f[j].at) {
		return f[i].seq < f[j].seq
	}
	return f[i].at.Before(f[j].at)
}
func (f frames) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *frames) Push(x any)   { *f = append(*f, x.(frame)) }
func (f *frames) Pop() any {
	old := *f
	x := old[len(old)-1]
	*f = old[:len(old)-1]
	return x
}

func (p *pipe) read(from *os.File) {
	defer close(p.done)
	buf := make([]byte, 1<<16+64)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return // the file was closed
		}
		frames := [][]byte{append([]byte(nil), buf[:n]...)}
		if p.cfg.Shaper != nil {
			frames = p.cfg.Shaper.Shape(p.fromGateway, frames[0])
		}
		for _, f := range frames {
			p.carry(f)
		}
	}
}

// carry queues a frame, to leave when its delay is over.
func (p *pipe) carry(data []byte) {
	if p.rng.Float64() < p.cfg.Loss {
		return
	}
	now := time.Now()
	at := now
	if p.cfg.Rate > 0 {
		if p.free.Before(now) {
			p.free = now
		}
		p.free = p.free.Add(time.Duration(int64(len(data)) * 8 * int64(time.Second) / p.cfg.Rate))
		at = p.free
	}
	at = at.Add(p.cfg.Delay)
	if p.cfg.Jitter > 0 {
		at = at.Add(time.Duration(p.rng.Int64N(int64(p.cfg.Jitter) + 1)))
	}
	if p.rng.Float64() < p.cfg.Reorder {
		// Held back by up to half the delay, at least a millisecond.
		at = at.Add(time.Millisecond + time.Duration(p.rng.Int64N(int64(p.cfg.Delay)/2+1)))
	} else {
		if at.Before(p.last) {
			at = p.last
		}
		p.last = at
	}
	p.seq++
	p.mu.Lock()
	if len(p.queue) < p.cfg.queue() {
		heap.Push(&p.queue, frame{at, p.seq, data})
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pipe) write() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		p.mu.Lock()
		wait := time.Hour
		var due []frame
		for len(p.queue) > 0 {
			if wait = time.Until(p.queue[0].at); wait > 0 {
				break
			}
			due = append(due, heap.Pop(&p.queue).(frame))
			wait = time.Hour
		}
		p.mu.Unlock()
		for _, f := range due {
			if _, err := p.to.Write(f.data); err != nil && errors.Is(err, os.ErrClosed) {
				return
			}
			// Other failures (device not up yet) lose the frame.
		}
		if len(due) > 0 {
			continue
		}
		timer.Reset(wait)
		select {
		case <-p.wake:
		case <-timer.C:
		case <-p.done:
			return
		}
	}
}
