// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/test/lab"
)

// A custom protocol carries what tunnels carry, encrypted under a framing of
// its own. It is the nearest neighbour that the tunnels have in the background:
// the sizes and turns of its flows are those of the traffic inside, as theirs
// are, and only the framing differs. Each condition draws framings anew.

// framing is one custom protocol. Lengths are in bytes.
type framing struct {
	clientHello, serverHello [2]int // least and most of random bytes before the first frame of each side
	exchange                 bool   // the client waits for the server's hello before its first frame

	lengthSize int  // of the field before a frame: 0 sends no lengths (a bare stream), 2, 3 or 4
	plain      bool // the length is not encrypted
	lengthTag  int  // after the length
	nonce      int  // random, before each frame's content
	tag        int  // after the content
	padding    int  // at most, after the content; its length is in the content's first two bytes
	limit      int  // most content of a frame
	round      int  // content and padding are filled up to a multiple of this

	early int // 0: target and first data in one frame, 1: target in a frame of its own, 2: and wait for an answer
}

// drawFraming draws a framing that none of the tunnels has.
func drawFraming(r *rand.Rand) framing {
	span := func(most int) [2]int {
		switch r.IntN(4) {
		case 0:
			return [2]int{}
		case 1: // a salt or a nonce
			n := pick(r, 8, 12, 16, 20, 24, 32, 48, 64)
			return [2]int{n, n}
		case 2: // a key
			n := pick(r, 32, 33, 56, 65, 96, 97, 128, 256)
			return [2]int{n, n}
		}
		least := 8 + r.IntN(64)
		return [2]int{least, least + logUniform(r, 8, most)}
	}
	f := framing{
		clientHello: span(600), serverHello: span(600), exchange: r.Float64() < 0.35,
		lengthSize: pick(r, 0, 2, 2, 2, 3, 4), plain: r.Float64() < 0.25, lengthTag: pick(r, 0, 0, 0, 4, 8, 10, 12, 16),
		nonce: pick(r, 0, 0, 0, 8, 12, 16, 24), tag: pick(r, 0, 4, 8, 10, 12, 16, 16, 20, 32),
		limit: pick(r, 512, 1024, 1400, 2048, 4096, 8192, 16000), round: pick(r, 1, 1, 1, 1, 4, 8, 16, 32), early: r.IntN(3),
	}
	if r.Float64() < 0.4 {
		f.padding = logUniform(r, 8, 500)
	}
	if f.exchange && f.serverHello[1] == 0 {
		f.serverHello = [2]int{32, 32}
	}
	// Shadowsocks: a salt, encrypted lengths of 2 bytes, 16-byte tags after
	// length and content, no padding.
	if f.lengthSize == 2 && f.lengthTag == 16 && f.tag == 16 && f.nonce == 0 {
		f.lengthTag = 12
	}
	return f
}

// name says what a manifest needs to distinguish framings.
func (f framing) name() string {
	form := "encrypted-length"
	switch {
	case f.lengthSize == 0:
		form = "stream"
	case f.plain:
		form = "plain-length"
	}
	if f.padding > 0 {
		form += "-padded"
	}
	if f.exchange {
		form += "-exchange"
	}
	return form
}

// customConn speaks a framing over a connection. Both sides have the key from
// this process.
type customConn struct {
	net.Conn
	f       framing
	r       *rand.Rand
	mu      sync.Mutex // of writes
	out, in cipher.Stream
	read    *bufio.Reader
	left    []byte // of the last frame

	hello, peer [2]int // sent before the first frame, expected before it
	sent, got   bool
}

func newCustomConn(c net.Conn, f framing, key []byte, client bool, r *rand.Rand) (*customConn, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	iv := make([]byte, 2*aes.BlockSize)
	iv[0] = 1 // the client's direction
	a, b := cipher.NewCTR(block, iv[:aes.BlockSize]), cipher.NewCTR(block, iv[aes.BlockSize:])
	cc := &customConn{Conn: c, f: f, r: r, out: a, in: b, read: bufio.NewReader(c), hello: f.clientHello, peer: f.serverHello}
	if !client {
		cc.out, cc.in, cc.hello, cc.peer = b, a, f.serverHello, f.clientHello
	}
	return cc, nil
}

// sendHello returns the bytes before the first frame, the first time. Where
// their number varies, their first two bytes, encrypted, say it.
func (c *customConn) sendHello() []byte {
	if c.sent || c.hello[1] == 0 {
		c.sent = true
		return nil
	}
	c.sent = true
	n := c.hello[0] + c.r.IntN(c.hello[1]-c.hello[0]+1)
	b := randomBytes(c.r, n)
	if c.hello[0] != c.hello[1] {
		binary.BigEndian.PutUint16(b, uint16(n))
		c.out.XORKeyStream(b[:2], b[:2])
	}
	return b
}

func (c *customConn) readHello() error {
	if c.got || c.peer[1] == 0 {
		c.got = true
		return nil
	}
	c.got = true
	n := c.peer[0]
	if c.peer[0] != c.peer[1] {
		var b [2]byte
		if _, err := io.ReadFull(c.read, b[:]); err != nil {
			return err
		}
		c.in.XORKeyStream(b[:], b[:])
		n = int(binary.BigEndian.Uint16(b[:])) - 2
	}
	_, err := c.read.Discard(n)
	return err
}

// Write sends p in frames, with the hello before the first, in one write.
func (c *customConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.sendHello()
	total := len(p)
	for first := true; first || len(p) > 0; first = false {
		n := min(len(p), c.f.limit)
		b = c.frame(b, p[:n])
		p = p[n:]
	}
	_, err := c.Conn.Write(b)
	return total, err
}

// frame appends one frame with the content.
func (c *customConn) frame(b, content []byte) []byte {
	f := c.f
	if f.lengthSize == 0 {
		at := len(b)
		b = append(b, content...)
		c.out.XORKeyStream(b[at:], b[at:])
		return b
	}
	pad := 0
	if f.padding > 0 {
		pad = c.r.IntN(f.padding + 1)
	}
	size := 2 + len(content) + pad
	if over := size % f.round; over != 0 {
		pad += f.round - over
		size += f.round - over
	}
	body := make([]byte, size)
	binary.BigEndian.PutUint16(body, uint16(pad))
	copy(body[2:], content)
	whole := f.nonce + size + f.tag
	var length [8]byte
	binary.BigEndian.PutUint64(length[:], uint64(whole))
	field := length[8-f.lengthSize:]
	if !f.plain {
		c.out.XORKeyStream(field, field)
	}
	b = append(append(b, field...), randomBytes(c.r, f.lengthTag+f.nonce)...)
	at := len(b)
	b = append(b, body...)
	c.out.XORKeyStream(b[at:], b[at:])
	return append(b, randomBytes(c.r, f.tag)...)
}

func (c *customConn) Read(p []byte) (int, error) {
	if err := c.readHello(); err != nil {
		return 0, err
	}
	for len(c.left) == 0 {
		if err := c.readFrame(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.left)
	c.left = c.left[n:]
	return n, nil
}

func (c *customConn) readFrame() error {
	f := c.f
	if f.lengthSize == 0 {
		if _, err := c.read.Peek(1); err != nil {
			return err
		}
		c.left = make([]byte, c.read.Buffered())
		_, err := io.ReadFull(c.read, c.left)
		c.in.XORKeyStream(c.left, c.left)
		return err
	}
	var length [8]byte
	field := length[8-f.lengthSize:]
	if _, err := io.ReadFull(c.read, field); err != nil {
		return err
	}
	if !f.plain {
		c.in.XORKeyStream(field, field)
	}
	whole := binary.BigEndian.Uint64(length[:])
	if whole > 1<<16 || int(whole) < f.nonce+f.tag+2 {
		return fmt.Errorf("frame of %d bytes", whole)
	}
	if _, err := c.read.Discard(f.lengthTag + f.nonce); err != nil {
		return err
	}
	body := make([]byte, int(whole)-f.nonce-f.tag)
	if _, err := io.ReadFull(c.read, body); err != nil {
		return err
	}
	c.in.XORKeyStream(body, body)
	if _, err := c.read.Discard(f.tag); err != nil {
		return err
	}
	pad := int(binary.BigEndian.Uint16(body))
	if pad > len(body)-2 {
		return fmt.Errorf("padding of %d in a frame of %d bytes", pad, len(body))
	}
	c.left = body[2 : len(body)-pad]
	return nil
}

// CloseWrite ends the direction to the peer.
func (c *customConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Conn.Close()
}

// startCustom starts a custom protocol on both sides.
func (e *env) startCustom(f framing, port uint16) (*lab.Tunnel, error) {
	r := e.draws(fmt.Sprintf("custom-%d", port))
	key := randomBytes(r, 32)
	var mu sync.Mutex
	own := func() *rand.Rand {
		mu.Lock()
		defer mu.Unlock()
		return rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
	}
	// Each connection has a key of its own, made of its client's address.
	fresh := func(addr net.Addr) []byte {
		k := append([]byte(nil), key...)
		binary.BigEndian.PutUint64(k, hash(addr.String())^binary.BigEndian.Uint64(k))
		return k
	}
	at := netip.AddrPortFrom(e.server(), port)
	far, err := e.l.Server.Listen("tcp", at.String())
	if err != nil {
		return nil, err
	}
	near, err := e.l.Client.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, far.Close())
	}
	e.serve(far, func(raw net.Conn) {
		defer raw.Close()
		c, err := newCustomConn(raw, f, fresh(raw.RemoteAddr()), false, own())
		if err != nil {
			return
		}
		if f.exchange {
			if err := c.readHello(); err != nil {
				return
			}
			if _, err := raw.Write(c.sendHello()); err != nil {
				return
			}
		}
		var to [2]byte
		if _, err := io.ReadFull(c, to[:]); err != nil {
			return
		}
		// The rest of the target is its name, which is the server's.
		var n [1]byte
		if _, err := io.ReadFull(c, n[:]); err != nil {
			return
		}
		if _, err := io.CopyN(io.Discard, c, int64(n[0])); err != nil {
			return
		}
		up, err := e.l.Server.Dial(e.ctx, "tcp", netip.AddrPortFrom(e.server(), binary.BigEndian.Uint16(to[:])).String())
		if err != nil {
			return
		}
		if f.early == 2 {
			if _, err := c.Write([]byte{0}); err != nil {
				up.Close()
				return
			}
		}
		lab.Splice(e.ctx, c, up)
	})
	e.serve(near, func(local net.Conn) {
		defer local.Close()
		target, err := lab.AcceptSOCKS(local)
		if err != nil {
			return
		}
		raw, err := e.l.Client.Dial(e.ctx, "tcp", at.String())
		if err != nil {
			return
		}
		defer raw.Close()
		c, err := newCustomConn(raw, f, fresh(raw.LocalAddr()), true, own())
		if err != nil {
			return
		}
		if f.exchange {
			if hello := c.sendHello(); len(hello) > 0 {
				if _, err := raw.Write(hello); err != nil {
					return
				}
			} else if _, err := raw.Write(nil); err != nil {
				return
			}
			if err := c.readHello(); err != nil {
				return
			}
		}
		if err := sendTarget(c, local, target); err != nil {
			return
		}
		lab.Splice(e.ctx, local, c)
	})
	return &lab.Tunnel{SOCKS: near.Addr().(*net.TCPAddr).AddrPort(), Server: at}, nil
}

// sendTarget sends where the connection goes, alone or with the first data.
func sendTarget(c *customConn, local net.Conn, target string) error {
	host, portText, err := net.SplitHostPort(target)
	if err != nil || len(host) > 255 {
		return fmt.Errorf("target %q: %w", target, err)
	}
	var port uint16
	if _, err := fmt.Sscan(portText, &port); err != nil {
		return err
	}
	head := append([]byte{byte(port >> 8), byte(port), byte(len(host))}, host...)
	if c.f.early == 0 { // a server that speaks first must not be waited for
		buf := make([]byte, 16<<10)
		_ = local.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
		n, err := local.Read(buf)
		_ = local.SetReadDeadline(time.Time{})
		if err != nil && !errors.Is(err, io.EOF) {
			var ne net.Error
			if !errors.As(err, &ne) || !ne.Timeout() {
				return err
			}
		}
		head = append(head, buf[:n]...)
	}
	if _, err := c.Write(head); err != nil {
		return err
	}
	if c.f.early == 2 {
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	return nil
}

// customOffers are custom protocols drawn for one condition.
func customOffers(r *rand.Rand, n int) (list []offer) {
	for range n {
		f := drawFraming(r)
		list = append(list, offer{cipher: f.name(), start: func(_ context.Context, e *env, _ *rand.Rand, port uint16) (*lab.Tunnel, error) {
			return e.startCustom(f, port)
		}})
	}
	return list
}
