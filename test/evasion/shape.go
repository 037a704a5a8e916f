// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// What decoys carry: innocent first bytes, whole segments of them.
var (
	hello   = clientHello(1200)
	request = []byte("GET /index.html HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\nCookie: " +
		string(bytes.Repeat([]byte{'a'}, 900)) + "\r\n\r\n")
)

// clientHello returns the first n bytes of a TLS client.
func clientHello(n int) []byte {
	client, peer := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(client, &tls.Config{ServerName: "www.example.com", NextProtos: []string{"h2", "http/1.1"}}).Handshake()
	}()
	first := make([]byte, n)
	if _, err := io.ReadFull(peer, first); err != nil {
		panic(fmt.Sprintf("a ClientHello has fewer than %d bytes: %v", n, err))
	}
	client.Close()
	peer.Close()
	<-done
	return first
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = crand.Read(b) // never fails
	return b
}

// At the socket.

const longPause = 2400 * time.Millisecond // longer than a capture waits

func pause(ctx context.Context) error      { return sleep(ctx, longPause) }
func shortPause(ctx context.Context) error { return sleep(ctx, 300*time.Millisecond) }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pieces writes n pieces of some size, each once the one before has left, with a pause
// after each (optional), and then the rest.
func pieces(size, n int, pause func(context.Context) error) func(context.Context, *flow, *net.TCPConn, []byte) error {
	return func(ctx context.Context, f *flow, c *net.TCPConn, first []byte) error {
		at := 0
		for ; n*size > at || size == 0 && at == 0; at += size {
			end := min(at+size, len(first))
			if _, err := c.Write(first[min(at, end):end]); err != nil {
				return err
			}
			if err := f.wait(ctx, end); err != nil {
				return err
			}
			if pause != nil {
				if err := pause(ctx); err != nil {
					return err
				}
			}
			if size == 0 {
				break
			}
		}
		_, err := c.Write(first[min(at, len(first)):])
		return err
	}
}

func setInt(level, option, value int) func(fd int) error {
	return func(fd int) error {
		if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
			return fmt.Errorf("set socket option %d of level %d to %d: %w", option, level, value, err)
		}
		return nil
	}
}

// onFD runs fn on a connection's socket.
func onFD(c *net.TCPConn, fn func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	return errors.Join(raw.Control(func(fd uintptr) { inner = fn(int(fd)) }), inner)
}

func setSocketTTL(c *net.TCPConn, ttl int) error {
	return onFD(c, func(fd int) error {
		if c.LocalAddr().(*net.TCPAddr).IP.To4() == nil {
			return setInt(unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl)(fd)
		}
		return setInt(unix.IPPROTO_IP, unix.IP_TTL, ttl)(fd)
	})
}

func withTTL(ttl int) func(context.Context, *flow, *net.TCPConn, []byte) error {
	return func(_ context.Context, _ *flow, c *net.TCPConn, first []byte) error {
		if err := setSocketTTL(c, ttl); err != nil {
			return err
		}
		_, err := c.Write(first)
		return err
	}
}

const usualTTL = 64

// lostFirst has the first bytes expire at the gateway.
func lostFirst(ctx context.Context, f *flow, c *net.TCPConn, first []byte) error {
	n := min(100, len(first)/2)
	if err := withTTL(1)(ctx, f, c, first[:n]); err != nil {
		return err
	}
	if err := f.wait(ctx, n); err != nil {
		return err
	}
	return withTTL(usualTTL)(ctx, f, c, first[n:])
}

// swappedPage gives the kernel a page of innocent bytes to send, which expire at the
// gateway, and changes the page: what the kernel sends again are the real bytes.
func swappedPage(ctx context.Context, f *flow, c *net.TCPConn, first []byte) error {
	n := min(len(first), len(hello))
	fd, err := unix.MemfdCreate("first", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make a file in memory: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, hello[:n], 0); err != nil {
		return err
	}
	if err := setSocketTTL(c, 1); err != nil {
		return err
	}
	err = onFD(c, func(socket int) error {
		sent, err := unix.Sendfile(socket, fd, new(int64), n)
		if err == nil && sent != n {
			err = fmt.Errorf("%d of %d bytes were sent", sent, n)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := f.wait(ctx, n); err != nil {
		return err
	}
	if _, err := unix.Pwrite(fd, first[:n], 0); err != nil {
		return err
	}
	return withTTL(usualTTL)(ctx, f, c, first[n:])
}

// urgentByte sends a byte out of band after the first. A program that does not ask for it
// never gets it.
func urgentByte(ctx context.Context, f *flow, c *net.TCPConn, first []byte) error {
	if _, err := c.Write(first[:1]); err != nil {
		return err
	}
	if err := f.wait(ctx, 1); err != nil {
		return err
	}
	if err := onFD(c, func(fd int) error { return unix.Send(fd, []byte{'!'}, unix.MSG_OOB) }); err != nil {
		return err
	}
	_, err := c.Write(first[1:])
	return err
}

// At the relays.

func send(packets ...*packet) (frames [][]byte) {
	for _, p := range packets {
		frames = append(frames, p.frame())
	}
	return frames
}

// maker makes a packet out of another one.
type maker func(f *flow, p *packet) *packet

// change changes a packet.
type change func(p *packet)

func with(p *packet, changes ...change) *packet {
	c := p.clone()
	for _, ch := range changes {
		ch(c)
	}
	return c
}

// decoy is a segment in the place of p with other bytes.
func decoy(payload []byte, changes ...change) maker {
	return func(_ *flow, p *packet) *packet {
		d := p.clone()
		d.payload = payload
		d.setFlags(psh | ack)
		return with(d, changes...)
	}
}

// bare is a segment in the place of p without payload, with some flags.
func bare(flags byte, changes ...change) maker {
	return func(_ *flow, p *packet) *packet {
		d := p.clone()
		d.payload = nil
		d.setFlags(flags)
		return with(d, changes...)
	}
}

func wrongSum(p *packet)  { p.badSum = true }
func ttl1(p *packet)      { p.setTTL(1) }
func seqRandom(p *packet) { p.setSeq(rand.Uint32()) }
func ackRandom(p *packet) { p.setAck(rand.Uint32()) }
func turned(p *packet)    { p.turn() }
func loaded(p *packet)    { p.payload = request[:800] }
func signed(p *packet)    { p.addOption(optMD5, randomBytes(16)) }

func ttl(v byte) change     { return func(p *packet) { p.setTTL(v) } }
func flagged(v byte) change { return func(p *packet) { p.setFlags(v) } }
func seqBy(n int) change    { return func(p *packet) { p.setSeq(p.seq() + uint32(n)) } }
func ackBy(n int) change    { return func(p *packet) { p.setAck(p.ack() + uint32(n)) } }
func bytesOf(n int) change  { return func(p *packet) { p.payload = request[:n] } }
func inProto(v byte) change { return func(p *packet) { p.setProto(v) } }
func padded(p *packet)      { p.tcp = append(p.tcp, slices.Repeat([]byte{optNOP}, 20)...) }

// stale has the packet come from ten minutes ago, by its timestamp (RFC 7323, PAWS).
func stale(p *packet) {
	if at, n := p.findOption(optTimestamps); n == 10 {
		value := p.tcp[at+2:]
		binary.BigEndian.PutUint32(value, binary.BigEndian.Uint32(value)-600_000)
	}
}

// before puts packets in front of the client's first payload.
func before(makers ...maker) hook { return around(makers, true) }

// behind puts packets behind the client's first payload.
func behind(makers ...maker) hook { return around(makers, false) }

func around(makers []maker, front bool) hook {
	return func(f *flow, p *packet) [][]byte {
		if !f.first(p) {
			return send(p)
		}
		var made []*packet
		for _, m := range makers {
			made = append(made, m(f, p))
		}
		if front {
			return send(append(made, p)...)
		}
		return send(append([]*packet{p}, made...)...)
	}
}

// onFirst does something to the segment with the client's first payload.
func onFirst(do func(p *packet) [][]byte) hook {
	return func(f *flow, p *packet) [][]byte {
		if f.first(p) {
			return do(p)
		}
		return send(p)
	}
}

func onSYN(do hook) hook {
	return func(f *flow, p *packet) [][]byte {
		if p.is(syn) {
			return do(f, p)
		}
		return send(p)
	}
}

// onAnswer does something to the packet with which the client answers the SYN+ACK.
func onAnswer(do hook) hook {
	return func(f *flow, p *packet) [][]byte {
		if p.is(ack) && !f.answered {
			return do(f, p)
		}
		return send(p)
	}
}

func onSYNACK(do func(p *packet) [][]byte) hook {
	return func(_ *flow, p *packet) [][]byte {
		if p.is(syn | ack) {
			return do(p)
		}
		return send(p)
	}
}

// swapFirst holds the first segment with payload back until the next one has left. What
// has none after it comes again by itself.
func swapFirst(f *flow, p *packet) [][]byte {
	if f.first(p) {
		f.held = p.frame()
		return nil
	}
	if f.held != nil && len(p.payload) > 0 && !f.atStart(p) {
		frames := append(send(p), f.held)
		f.held = nil
		return frames
	}
	return send(p)
}

// early is a segment right behind a SYN.
func early(synPacket *packet, flags byte) *packet {
	return with(synPacket, flagged(flags), seqBy(1), func(p *packet) { p.payload = hello })
}

// part is the range of a segment's payload from one byte up to another.
func part(p *packet, from, to int) *packet {
	c := p.clone()
	c.payload = c.payload[from:to]
	c.setSeq(p.seq() + uint32(from))
	return c
}

// cutAt cuts the first segment at some bytes; backwards: the last piece is sent first.
func cutAt(backwards bool, at ...int) hook {
	return onFirst(func(p *packet) [][]byte {
		var parts []*packet
		from := 0
		for _, to := range append(slices.Clone(at), len(p.payload)) {
			if to = min(to, len(p.payload)); to > from {
				parts = append(parts, part(p, from, to))
				from = to
			}
		}
		if backwards {
			slices.Reverse(parts)
		}
		return send(parts...)
	})
}

// middle is where a first segment is cut in two.
func middle(p *packet) int { return min(300, len(p.payload)/2) }

// instead is a segment with innocent bytes in place of its own.
func instead(p *packet) *packet {
	c := p.clone()
	c.payload = append(bytes.Clone(hello), hello...)[:len(p.payload)]
	return c
}

func fakedSplit(backwards bool) hook {
	return onFirst(func(p *packet) [][]byte {
		var frames [][]byte
		halves := []*packet{part(p, 0, middle(p)), part(p, middle(p), len(p.payload))}
		if backwards {
			slices.Reverse(halves)
		}
		for _, half := range halves {
			fake := with(instead(half), wrongSum)
			frames = append(frames, send(fake, half, fake)...)
		}
		return frames
	})
}

var overlapLeft = onFirst(func(p *packet) [][]byte {
	m := middle(p)
	first := part(p, 0, m)
	first.payload = append(bytes.Clone(hello[:500]), first.payload...)
	first.setSeq(p.seq() - 500)
	return send(first, part(p, m, len(p.payload)))
})

var overlapNew = onFirst(func(p *packet) [][]byte {
	m := middle(p)
	second := p.clone()
	copy(second.payload[1:m], hello)
	return send(part(second, 1, len(p.payload)), part(p, 0, m))
})

var overlapOld = onFirst(func(p *packet) [][]byte {
	m := middle(p)
	whole := p.clone()
	copy(whole.payload[:m], hello)
	return send(part(p, 0, m), whole)
})

var stutter = onFirst(func(p *packet) [][]byte { return send(part(p, 0, middle(p)), p) })

// even are pieces of one size.
func even(size int) (all []piece) {
	for from := 0; from < 2000; from += size {
		all = append(all, piece{from: from, to: from + size})
	}
	return all
}

func reversed(all []piece) []piece {
	slices.Reverse(all)
	return all
}

func firstInPieces(pieces ...piece) hook {
	return onFirst(func(p *packet) [][]byte { return p.fragments(pieces...) })
}

// tinyFirst are two fragments, of which the first has the ports and no more of TCP.
var tinyFirst = []piece{{from: 0, to: 8}, {from: 8, to: 1 << 16}}

func allTiny(_ *flow, p *packet) [][]byte { return p.fragments(tinyFirst...) }

// extended puts IPv6 extension headers of 8 bytes, filled up by padding, into each packet
// that has room.
func extended(n int, proto byte) hook {
	return func(_ *flow, p *packet) [][]byte {
		for range n {
			if p.v6() && len(p.payload) < 1300 {
				p.extend(proto, []byte{0, 0, 1, 4, 0, 0, 0, 0})
			}
		}
		return send(p)
	}
}

// without loses what has a flag. A client's own FIN comes after its payload.
func without(flag byte) hook {
	return func(f *flow, p *packet) [][]byte {
		if p.flags()&flag != 0 && f.atStart(p) {
			return nil
		}
		return send(p)
	}
}

func spoilt(_ *flow, p *packet) [][]byte {
	p.badSum = len(p.payload) > 0
	return send(p)
}

func repaired(_ *flow, p *packet) [][]byte { return send(p) }

// jump shifts both numbers of all that follows the handshake, on the wire alone.
func jump(times int) hook {
	return func(_ *flow, p *packet) [][]byte {
		if p.flags()&syn == 0 {
			seqBy(times * 1 << 20)(p)
			ackBy(times * 1 << 20)(p)
			p.removeOption(optSACK)
		}
		return send(p)
	}
}

// hideSYN marks the SYN by the window's lowest bits instead of by its flag.
func hideSYN(_ *flow, p *packet) [][]byte {
	window := binary.BigEndian.Uint16(p.tcp[14:]) &^ 1
	if p.flags()&syn != 0 {
		p.setFlags(p.flags()&^syn | ack)
		window |= 1
	}
	p.setWindow(window)
	return send(p)
}

// showSYN is the reverse. A SYN without ACK acknowledges nothing.
func showSYN(_ *flow, p *packet) [][]byte {
	if window := binary.BigEndian.Uint16(p.tcp[14:]); window&1 != 0 {
		flags := p.flags() | syn
		if p.ack() == 0 {
			flags &^= ack
		}
		p.setFlags(flags)
	}
	return send(p)
}

func asProtocol(proto byte) hook {
	return func(_ *flow, p *packet) [][]byte { return send(with(p, inProto(proto))) }
}

// forging sends forged packets from the server's side behind the SYN+ACK, and again behind
// the server's first segments with payload: not behind what the ends make of them.
func forging(makers ...maker) hook {
	return func(f *flow, p *packet) [][]byte {
		frames := send(p)
		if f.forge(p) {
			for _, m := range makers {
				frames = append(frames, m(f, p).frame())
			}
		}
		return frames
	}
}

func forgingFragments(f *flow, p *packet) [][]byte {
	frames := send(p)
	if f.forge(p) {
		for _, m := range []maker{bare(psh|ack, loaded, seqRandom, ackRandom), bare(psh|ack, loaded, seqRandom, ackRandom, turned)} {
			frames = append(frames, m(f, p).fragments(tinyFirst...)...)
		}
	}
	return frames
}

// forge tells whether it is time for forged packets.
func (f *flow) forge(p *packet) bool {
	if p.is(syn|ack) || p.is(ack) && len(p.payload) > 0 {
		f.forged++
		return f.forged <= 3
	}
	return false
}
