// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// packetSocket opens a raw socket on a device of the test's namespace. protocol 0
// receives nothing.
func packetSocket(t *testing.T, device string, protocol uint16) int {
	t.Helper()
	l, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	// Short enough to notice that the test is over.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20); err != nil {
		t.Fatal(err)
	}
	network := protocol<<8 | protocol>>8
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network, Ifindex: l.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	return fd
}

// traffic sends frames of a blocked and of a passed flow into v1 until stop is
// closed and counts what of each gets through the data path on v0.
type traffic struct {
	sent, blocked, passed atomic.Uint64
	receiver              int // its socket
	stop                  chan struct{}
	wg                    sync.WaitGroup
}

func startTraffic(t *testing.T, blocked, passed []byte) *traffic {
	t.Helper()
	for _, name := range []string{"v0", "v1"} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	in, out := packetSocket(t, "v1", 0), packetSocket(t, "v0", unix.ETH_P_IP)
	tr := &traffic{receiver: out, stop: make(chan struct{})}
	tr.wg.Add(2)
	go func() {
		defer tr.wg.Done()
		for {
			select {
			case <-tr.stop:
				return
			default:
			}
			for _, frame := range [][]byte{blocked, passed} {
				if _, err := unix.Write(in, frame); err != nil && !errors.Is(err, unix.ENOBUFS) {
					t.Errorf("send: %v", err)
					return
				}
			}
			tr.sent.Add(1)
		}
	}()
	go func() {
		defer tr.wg.Done()
		buf := make([]byte, 2048)
		for {
			n, err := unix.Read(out, buf)
			switch {
			case errors.Is(err, unix.EAGAIN):
				select {
				case <-tr.stop:
					return
				default:
				}
			case errors.Is(err, unix.EINTR):
			case err != nil:
				t.Errorf("receive: %v", err)
				return
			case string(buf[:n]) == string(blocked):
				tr.blocked.Add(1)
			case string(buf[:n]) == string(passed):
				tr.passed.Add(1)
			}
		}
	}()
	t.Cleanup(tr.end)
	return tr
}

func (tr *traffic) end() {
	select {
	case <-tr.stop:
	default:
		close(tr.stop)
	}
	tr.wg.Wait()
}

// delivered returns how many packets came to the receiver's socket, whether it has read them or
// not.
func (tr *traffic) delivered(t *testing.T) uint64 {
	t.Helper()
	stats, err := unix.GetsockoptTpacketStats(tr.receiver, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(stats.Packets)
}

// waitFor waits until n more pairs of frames were sent.
func (tr *traffic) waitFor(t *testing.T, n uint64) {
	t.Helper()
	target := tr.sent.Load() + n
	for deadline := time.Now().Add(time.Minute); tr.sent.Load() < target; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no traffic")
		}
	}
}

// An upgrade, a restart or a crash of the daemon: while programs are swapped under
// traffic, not one packet of a blocked flow passes, and other flows go on.
func TestSwapUnderTrafficPassesNothingBlocked(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	key, _ := flow.NewKey(client, server, flow.UDP, 0, 0)
	if err := d.Apply(key, drop(time.Hour, "shadowsocks", "r")); err != nil {
		t.Fatal(err)
	}
	tr := startTraffic(t, udp(true, 100), up(f.ACK, 100))
	tr.waitFor(t, 100)
	for range 15 {
		before := tr.passed.Load()
		if err := d.Release(); err != nil {
			t.Fatal(err)
		}
		d = attach(t, Options{})
		if !d.Info.Adopted {
			t.Fatalf("not adopted: %+v", d.Info)
		}
		tr.waitFor(t, 50)
		// What was sent may still be on its way to the one who counts it.
		for deadline := time.Now().Add(time.Minute); tr.passed.Load() == before; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the passed flow stands still")
			}
		}
	}
	tr.end()
	blocks, err := d.Blocked()
	if err != nil || len(blocks) != 1 {
		t.Fatalf("blocked: %v, %v", blocks, err)
	}
	if n := tr.blocked.Load(); n != 0 {
		t.Errorf("%d packets of the blocked flow passed", n)
	}
	if b, sent := blocks[0], tr.sent.Load(); b.Packets == 0 || b.Packets > sent {
		t.Errorf("%d packets dropped of %d sent", b.Packets, sent)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}

func self(t *testing.T) procfs.Proc {
	t.Helper()
	p, err := procfs.Self()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// openFiles returns how many descriptors this process has.
func openFiles(t *testing.T) int {
	t.Helper()
	n, err := self(t).FileDescriptorsLen()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// resident returns the bytes of memory that this process has, garbage left out.
func resident(t *testing.T) int64 {
	t.Helper()
	debug.FreeOSMemory()
	stat, err := self(t).Stat()
	if err != nil {
		t.Fatal(err)
	}
	return int64(stat.ResidentMemory())
}

func TestAttachAndDetachAgainAndAgainLeaksNothing(t *testing.T) {
	inNamespace(t)
	tr := startTraffic(t, udp(true, 100), up(f.ACK, 100))
	tr.waitFor(t, 10)
	cycle := func() {
		d := attach(t, Options{})
		tr.waitFor(t, 10)
		if err := d.Detach(); err != nil {
			t.Fatal(err)
		}
	}
	cycle() // what is opened once stays open: probes, pollers
	before, memory := openFiles(t), resident(t)
	for range 25 {
		cycle()
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d open files after 25 cycles, %d before", after, before)
	}
	nothingLeft(t)
	t.Run("memory", func(t *testing.T) { // by itself: the race detector has memory of its own
		// The objects' bytes alone, which each cycle parses, are more than 256 KiB.
		grown := resident(t) - memory
		if t.Logf("the process has grown by %d KiB in 25 cycles", grown>>10); grown > 25*256<<10 {
			t.Error("that is more than a quarter of a MiB for each")
		}
	})
}
