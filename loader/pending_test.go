// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// attend has the kernel believe that somebody gives verdicts, from so long ago on.
func (k *kernel) attend(ago time.Duration) {
	k.t.Helper()
	k.beat(heartbeatLast, monotonic()-uint64(ago))
}

func (k *kernel) beat(which uint32, ns uint64) {
	k.t.Helper()
	if err := k.coll.Maps[datapathMapHeartbeat].Update(which, &datapathHeartbeat{Ns: ns}, ebpf.UpdateAny); err != nil {
		k.t.Fatal(err)
	}
}

// heartbeatLate is HEARTBEAT_LATE of bpf/pending.h.
const heartbeatLate = uint32(1)

// randomBytes are the same in each run.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b)
	return b
}

// pendingPaths have each hook on the client's side.
var pendingPaths = []path{{ingress, egress}, {tcxIngress, egress}, {egress, ingress}}

// connect makes a connection of a client of another address or port.
func (k *kernel) connect(from netip.AddrPort) {
	k.t.Helper()
	k.run(ingress, payloadFrame(from, server, 1, 0, f.SYN, nil))
	k.run(egress, payloadFrame(server, from, 1, 2, f.SYN|f.ACK, nil))
	k.run(ingress, payloadFrame(from, server, 2, 2, f.ACK, nil))
}

// talker sends the segments of a connection through the hooks.
type talker struct {
	k        *kernel
	path     path
	up, down uint32 // next
	key      flow.Key
}

// open makes the connection between the two, whose initial numbers are 1.
func (k *kernel) open(p path) *talker {
	t := &talker{k: k, path: p, up: 2, down: 2, key: tcpKey()}
	for i, frame := range handshake() {
		if i == 1 {
			k.run(p.server, frame)
		} else {
			k.run(p.client, frame)
		}
	}
	return t
}

func payloadFrame(src, dst netip.AddrPort, seq, ack uint32, flags byte, payload []byte) []byte {
	return f.Ethernet(f.IP(src, dst, f.TCP, f.Numbered(f.Segment(src, dst, flags, nil, payload), seq, ack)))
}

// send passes a segment of the client, and answer one of the server. They report whether it was
// dropped; what was is to be sent again.
func (t *talker) send(payload []byte) (dropped bool) {
	t.k.t.Helper()
	dropped = t.k.run(t.path.client, payloadFrame(client, server, t.up, t.down, f.ACK|f.PSH, payload))
	if !dropped {
		t.up += uint32(len(payload))
	}
	return dropped
}

func (t *talker) answer(payload []byte) (dropped bool) {
	t.k.t.Helper()
	dropped = t.k.run(t.path.server, payloadFrame(server, client, t.down, t.up, f.ACK|f.PSH, payload))
	if !dropped {
		t.down += uint32(len(payload))
	}
	return dropped
}

// entry returns what the kernel knows of the connection.
func (t *talker) entry() (v datapathFlow) {
	t.k.t.Helper()
	key := toKernelKey(t.key)
	if err := t.k.flows.Lookup(&key, &v); err != nil {
		t.k.t.Fatal(err)
	}
	return v
}

// until sets when the connection's time to wait is over, from now on.
func (t *talker) until(d time.Duration) {
	t.k.t.Helper()
	v, key := t.entry(), toKernelKey(t.key)
	v.LastNs = uint64(int64(monotonic()) + int64(d))
	if err := t.k.flows.Update(&key, &v, ebpf.UpdateExist); err != nil {
		t.k.t.Fatal(err)
	}
}

func (t *talker) waits() bool { return t.entry().Verdict == datapathVerdictVERDICT_WAITS }

// begun is a connection that waits, as long as the test takes, and may send so many bytes more.
func (k *kernel) begun(p path) (_ *talker, left int) {
	k.t.Helper()
	k.attend(-time.Hour)
	t := k.open(p)
	if t.send(randomBytes(1000)) {
		k.t.Fatal("what fills the capture was dropped")
	}
	if !t.waits() {
		k.t.Fatalf("the connection does not wait: %v", k.counts())
	}
	t.until(time.Hour)
	return t, DefaultPending - 1054
}

func TestPendingBoundsWhatPasses(t *testing.T) {
	for _, p := range pendingPaths {
		t.Run(string(p.client), func(t *testing.T) {
			k := loadKernel(t, config{})
			c, left := k.begun(p)
			// Both directions together, to the byte.
			passed, first := 0, c.up
			for i := 0; ; i++ {
				n := 1000
				if c.waits(); i%2 == 0 {
					if c.send(randomBytes(n)) {
						break
					}
				} else if c.answer(f.Payload(n)) {
					break
				}
				passed += n
			}
			if want := left / 1000 * 1000; passed != want {
				t.Errorf("%d bytes passed, want %d", passed, want)
			}
			if c.send(randomBytes(left - passed)) {
				t.Error("what is left did not pass")
			}
			if !c.send([]byte{1}) || !c.answer([]byte{1}) {
				t.Error("a byte more passed")
			}
			// What came before passes again, and so does what has no payload.
			for what, frame := range map[string][]byte{
				"retransmission":  payloadFrame(client, server, first, c.down, f.ACK, randomBytes(1000)),
				"acknowledgement": payloadFrame(client, server, c.up, c.down, f.ACK, nil),
				"FIN":             payloadFrame(client, server, c.up, c.down, f.FIN|f.ACK, nil),
				"RST":             payloadFrame(client, server, c.up, c.down, f.RST|f.ACK, nil),
				"RST with text":   payloadFrame(client, server, c.up, c.down, f.RST|f.ACK, []byte("so it ends")),
				"SYN":             payloadFrame(client, server, 9000, 0, f.SYN, nil),
			} {
				if k.run(p.client, frame) {
					t.Errorf("%s: dropped", what)
				}
			}
			if n := k.counts(); n["pending_flows"] != 1 || n["pending_packets"] != 3 || n["pending_bytes"] != 1054+2*55 || n["pending_late"] != 0 || n["dropped_packets"] != 0 {
				t.Errorf("counted %v", n)
			}
		})
	}
}

// TestPendingEnds has a row for all that ends the wait.
func TestPendingEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(k *kernel, c *talker)
		late uint64
	}{
		{"a verdict that it passes", func(k *kernel, c *talker) {
			if err := k.Pass(c.key); err != nil {
				k.t.Fatal(err)
			}
		}, 0},
		{"somebody lifts a block of it", func(k *kernel, c *talker) {
			if err := k.Apply(c.key, drop(time.Hour, "", "")); err != nil {
				k.t.Fatal(err)
			}
			if _, err := k.Unblock(c.key); err != nil {
				k.t.Fatal(err)
			}
		}, 0},
		{"time", func(k *kernel, c *talker) { c.until(-time.Nanosecond) }, 1},
		{"mode monitor", func(k *kernel, c *talker) { k.enforce(false) }, 0},
		{"nobody is there", func(k *kernel, c *talker) { k.beat(heartbeatLast, 0) }, 0},
		{"nobody was there for a second", func(k *kernel, c *talker) { k.attend(time.Second) }, 0},
		{"the verdict on another one is late", func(k *kernel, c *talker) { k.beat(heartbeatLate, monotonic()) }, 0},
		{"a SYN of its key is acknowledged", func(k *kernel, c *talker) {
			k.run(c.path.client, upAt(70_000, 0, f.SYN, 0))
			k.run(c.path.server, downAt(90_000, 70_001, f.SYN|f.ACK, 0))
		}, 0},
		{"it was forgotten", func(k *kernel, c *talker) {
			key := toKernelKey(c.key)
			if err := k.flows.Delete(&key); err != nil {
				k.t.Fatal(err)
			}
		}, 0},
	} {
		for _, p := range pendingPaths {
			t.Run(tt.name+"/"+string(p.client), func(t *testing.T) {
				k := loadKernel(t, config{})
				c, left := k.begun(p)
				if !c.send(randomBytes(1400)[:1]) { // one byte, so that it has passed a packet
					left--
				}
				for range left / 1000 {
					c.answer(f.Payload(1000))
				}
				if !c.send(randomBytes(1000)) {
					t.Fatal("it is not held")
				}
				tt.end(k, c)
				for range 5 {
					if c.send(randomBytes(1000)) || c.answer(f.Payload(1000)) {
						t.Fatal("it is held")
					}
				}
				if n := k.counts(); n["pending_late"] != tt.late || n["pending_packets"] != 1 {
					t.Errorf("counted %v", n)
				}
			})
		}
	}
}

// A block counts, whether or not the connection waits.
func TestPendingConnectionsAreBlocked(t *testing.T) {
	k := loadKernel(t, config{})
	c, _ := k.begun(pendingPaths[0])
	if err := k.ApplyFlow(&k.samples()[0].Meta, drop(time.Hour, "shadowsocks", "tunnels")); err != nil {
		t.Fatal(err)
	}
	if !c.send(randomBytes(10)) {
		t.Error("a packet of a blocked connection passed")
	}
	if n := k.counts(); n["dropped_packets"] != 1 || n["pending_packets"] != 0 {
		t.Errorf("counted %v", n)
	}
}

// TestPendingIsRare has a row for all connections that do not wait.
func TestPendingIsRare(t *testing.T) {
	random := randomBytes(1000)
	full := func(c *talker) { c.send(random) }
	none := func(*kernel) {}
	for _, tt := range []struct {
		name   string
		config config
		before func(k *kernel)
		talk   func(c *talker) // until the capture is handed over
		waits  bool
	}{
		{"it looks random", config{}, none, full, true},
		{"the server speaks first", config{}, none, func(c *talker) { c.answer(f.Payload(300)); c.send(random) }, true},
		{"its first payload is short, and others follow", config{}, none, func(c *talker) { c.send(random[:32]); c.send(f.Payload(900)) }, true},
		{"its first payload is too short to tell", config{}, none, func(c *talker) { c.send(random[:31]); c.send(random) }, false},
		{"text", config{}, none, func(c *talker) { c.send(bytes.Repeat([]byte("EHLO mail.example\r\n"), 53)) }, false},
		{"TLS", config{}, none, func(c *talker) { c.send(slices.Concat([]byte{0x16, 3, 1}, random)) }, false},
		{"SSH", config{}, none, func(c *talker) { c.send(slices.Concat([]byte("SSH-2.0-"), random)) }, false},
		{"HTTP", config{}, none, func(c *talker) { c.send(slices.Concat([]byte("GET "), random)) }, false},
		{"its own length first", config{}, none, func(c *talker) { c.send(slices.Concat([]byte{3, 0xe8}, random)) }, false},
		{"what the server sends looks random", config{}, none, func(c *talker) { c.answer(random) }, false},
		{"the first segment is missing", config{}, none, func(c *talker) { c.up += 100; c.send(random) }, false},
		{"mode monitor", config{}, func(k *kernel) { k.enforce(false) }, full, false},
		{"nobody is there", config{}, func(k *kernel) { k.beat(heartbeatLast, 0) }, full, false},
		{"somebody was there a second ago", config{}, func(k *kernel) { k.attend(time.Second) }, full, false},
		{"a verdict was late a moment ago", config{}, func(k *kernel) { k.beat(heartbeatLate, monotonic()) }, full, false},
		{"a verdict was late a second ago", config{}, func(k *kernel) { k.beat(heartbeatLate, monotonic()-uint64(time.Second)) }, full, true},
		{"it is switched off", config{pending: -1}, none, full, false},
		{"sides are not known", config{oneHook: true}, none, full, false},
		{"the ring is full", config{ring: 4096}, fillRing, full, false},
		{"captures queue up", config{ring: 256 << 10}, queueUp, full, false},
		{"it ends before its capture is full", config{}, none, func(c *talker) {
			c.send(random[:200])
			c.k.run(c.path.client, payloadFrame(client, server, c.up, c.down, f.FIN|f.ACK, nil))
		}, false},
		{"its capture goes on", config{}, none, func(c *talker) {
			c.send(random[:200])
			c.k.run(c.path.server, payloadFrame(server, client, c.down, c.up, f.FIN|f.ACK, nil))
			c.send(random)
		}, false},
		{"tiny segments", config{}, none, func(c *talker) {
			for range 12 {
				c.send(random[:1])
			}
			c.send(random)
		}, false},
		{"an exempt network", config{}, func(k *kernel) {
			if err := k.SetExempt([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}); err != nil {
				k.t.Fatal(err)
			}
		}, full, false},
		{"no slot is free", config{}, (*kernel).takeSlots, full, false},
	} {
		for _, p := range pendingPaths {
			t.Run(tt.name+"/"+string(p.client), func(t *testing.T) {
				k := loadKernel(t, tt.config)
				k.attend(-time.Hour)
				tt.before(k)
				c := k.open(p)
				tt.talk(c)
				if got := c.waits(); got != tt.waits {
					t.Fatalf("waits: %v, want %v; %v", got, tt.waits, k.counts())
				}
				if n := k.counts()["pending_flows"]; n != uint64(bit(tt.waits)) {
					t.Errorf("counted %v", k.counts())
				}
				if tt.waits {
					return
				}
				for range 30 {
					if c.send(random) || c.answer(random) {
						t.Fatal("a packet was dropped")
					}
				}
			})
		}
	}
}

// fillRing leaves no room for a capture, and queueUp has many wait.
func fillRing(k *kernel) { k.queue(2) }

func queueUp(k *kernel) { k.queue(80) }

// queue hands over n captures of other connections.
func (k *kernel) queue(n int) {
	k.t.Helper()
	for i := range n {
		from := netip.AddrPortFrom(client.Addr(), uint16(1000+i))
		k.connect(from)
		k.run(ingress, payloadFrame(from, server, 2, 2, f.ACK, f.Payload(1400)))
	}
}

// takeSlots leaves no slot free.
func (k *kernel) takeSlots() {
	k.t.Helper()
	for _, name := range []string{datapathMapFreeSlots, datapathMapFreeTcpSlots} {
		var id uint32
		for k.coll.Maps[name].LookupAndDelete(nil, &id) == nil { // an empty queue is an error
		}
	}
}

// Connections that nobody has proven do not wait, nor do datagrams.
func TestPendingIsForProvenConnectionsOnly(t *testing.T) {
	random := randomBytes(1000)
	datagram := func(src, dst netip.AddrPort) []byte {
		return f.Ethernet(f.IP(src, dst, f.UDP, f.Datagram(src, dst, random)))
	}
	for _, tt := range []struct {
		name   string
		config config
		talk   func(k *kernel, p path)
		proto  flow.Proto
	}{
		{"mid-stream", config{midStream: true}, func(k *kernel, p path) {
			k.run(p.client, payloadFrame(client, server, 2, 2, f.ACK, random))
			k.run(p.client, payloadFrame(client, server, 1002, 2, f.ACK, random))
		}, flow.TCP},
		{"one way", config{oneWay: true}, func(k *kernel, p path) {
			k.run(p.client, upAt(1, 0, f.SYN, 0))
			k.run(p.client, payloadFrame(client, server, 2, 2, f.ACK, random))
		}, flow.TCP},
		{"UDP", config{}, func(k *kernel, p path) {
			k.run(p.client, datagram(client, server))
			k.run(p.server, datagram(server, client))
		}, flow.UDP},
	} {
		for _, p := range pendingPaths {
			t.Run(tt.name+"/"+string(p.client), func(t *testing.T) {
				k := loadKernel(t, tt.config)
				k.attend(-time.Hour)
				tt.talk(k, p)
				key, _ := flow.NewKey(client, server, tt.proto, 0, 0)
				c := &talker{k: k, path: p, key: key}
				if n := k.counts(); c.entry().Verdict != datapathVerdictVERDICT_PENDING || n["handed_full"] != 1 || n["pending_flows"] != 0 {
					t.Errorf("verdict %d; %v", c.entry().Verdict, n)
				}
				for i := range uint32(30) {
					frame := payloadFrame(client, server, 2002+1000*i, 2, f.ACK, random)
					if tt.proto == flow.UDP {
						frame = datagram(client, server)
					}
					if k.run(p.client, frame) {
						t.Fatal("a packet was dropped")
					}
				}
			})
		}
	}
}

// Somebody who sees nothing of the connection can't use up what it may send: what has other
// numbers, or comes from the wrong side, does not count, and what is dropped does not either.
func TestPendingCountsNothingThatIsForged(t *testing.T) {
	for _, p := range pendingPaths {
		t.Run(string(p.client), func(t *testing.T) {
			k := loadKernel(t, config{})
			c, left := k.begun(p)
			forged := randomBytes(1400)
			for i := range uint32(64) {
				for _, seq := range []uint32{c.up + 1<<14 + i<<20, c.up - 2000 - i<<26, c.up + 1<<26 + i<<24} {
					k.run(p.client, payloadFrame(client, server, seq, c.down, f.ACK, forged))
				}
				// From the server's side, with numbers that somebody has guessed.
				if k.run(p.server, payloadFrame(client, server, c.up, c.down, f.ACK, forged)) {
					t.Fatal("a packet from the wrong side was dropped for the connection's sake")
				}
			}
			passed := 0
			for !c.send(randomBytes(1000)) {
				passed += 1000
			}
			if want := left / 1000 * 1000; passed != want {
				t.Errorf("%d bytes passed, want %d", passed, want)
			}
		})
	}
}

// A packet that the kernel has put together (GSO, GRO) passes whole, or not at all.
func TestPendingTakesPacketsWhole(t *testing.T) {
	for _, tt := range []struct {
		path path
		size int // what BPF_PROG_RUN takes there
	}{{pendingPaths[0], 60_000}, {pendingPaths[1], 3000}, {pendingPaths[2], 3000}} {
		k := loadKernel(t, config{pending: 4000})
		k.attend(-time.Hour)
		c := k.open(tt.path)
		if c.send(randomBytes(1000)) || !c.waits() {
			t.Fatal("it does not wait")
		}
		c.until(time.Hour)
		if !c.send(randomBytes(tt.size)) {
			t.Errorf("%s: %d bytes passed of %d", tt.path.client, tt.size, 4000-1054)
		}
		if c.send(randomBytes(4000 - 1054)[:2900]) {
			t.Errorf("%s: 2900 bytes did not pass", tt.path.client)
		}
	}
	// One that fills the capture passes, and leaves nothing.
	k := loadKernel(t, config{pending: 4000})
	k.attend(-time.Hour)
	c := k.open(pendingPaths[0])
	if c.send(randomBytes(60_000)) || !c.waits() {
		t.Fatal("it does not wait")
	}
	if c.until(time.Hour); !c.send([]byte{1}) {
		t.Error("a byte passed behind the packet that has used up all")
	}
}

func TestPendingTakesFiveMilliseconds(t *testing.T) {
	k := loadKernel(t, config{})
	k.attend(-time.Hour)
	c := k.open(pendingPaths[0])
	before := monotonic()
	c.send(randomBytes(1000))
	after := monotonic()
	const wait = uint64(5 * time.Millisecond)
	if end := c.entry().LastNs; end < before+wait || end > after+wait {
		t.Errorf("it waits until %d ns behind the hand-over, want %d", end-before, wait)
	}
	waitUntil(after + wait)
	for range 30 {
		if c.send(randomBytes(1000)) {
			t.Fatal("it is held")
		}
	}
	// A second connection does not wait, as that one has done in vain.
	from := netip.AddrPortFrom(client.Addr(), 7)
	late := monotonic()
	k.connect(from)
	k.run(ingress, payloadFrame(from, server, 2, 2, f.ACK, randomBytes(1000)))
	if n := k.counts(); monotonic()-late < uint64(time.Second)/2 && n["pending_flows"] != 1 || n["pending_late"] != 1 {
		t.Errorf("counted %v", n)
	}
}

// FuzzLooksRandom compares the kernel's test of a first payload with flow.LooksRandom.
func FuzzLooksRandom(fz *testing.F) {
	random := randomBytes(800)
	for _, seed := range [][]byte{
		nil, random, random[:31], random[:32], random[:39], random[:255], random[:300], make([]byte, 300), bytes.Repeat([]byte{0x55}, 100),
		slices.Concat([]byte{0x16, 3}, random), slices.Concat([]byte("SSH-"), random), slices.Concat([]byte("PRI "), random), slices.Concat([]byte("TRACE"), random),
		slices.Concat([]byte{0x00, 0x2a}, random[:42]), slices.Concat([]byte{0x00, 0x2c}, random[:42]), slices.Concat(random[:5], []byte{0, 0}, random),
		slices.Concat([]byte(" ~text~ "), random), slices.Concat(bytes.Repeat([]byte{0xff}, 7), random),
	} {
		fz.Add(seed, false)
		fz.Add(seed, true)
	}
	k := loadKernel(fz, config{})
	fz.Fuzz(func(t *testing.T, payload []byte, serverFirst bool) {
		if len(payload) > 1400 {
			return
		}
		k.t = t
		k.samples()
		key := toKernelKey(tcpKey())
		for _, m := range []*ebpf.Map{k.flows, k.collecting} {
			if err := m.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				t.Fatal(err)
			}
		}
		k.attend(-time.Hour)
		c := k.open(pendingPaths[0])
		room := 1024 - 3*54
		if serverFirst {
			c.answer(f.Payload(500))
			room -= 554
		}
		if len(payload) > 0 {
			c.send(payload)
		}
		captured := payload[:min(len(payload), room-54)]
		if 54+len(payload) < room {
			c.answer(f.Payload(1400))
		}
		v := c.entry()
		if v.Again != 0 { // next to no payload, or tiny segments
			return
		}
		if want := flow.LooksRandom(captured, len(payload)); c.waits() != want {
			t.Errorf("the kernel says %v, want %v: % x", c.waits(), want, payload)
		}
	})
}
