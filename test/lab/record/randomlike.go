// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"
)

// The random-like background: programs of our own that speak protocols whose
// bytes look random from the start, as an encrypted tunnel's do. Client and
// server play a script that the client draws; the server finds it under the
// client's address, so nothing of it is on the wire.

// step is one write, of the client or of the server. The other side reads it
// whole before it goes on.
type step struct {
	server bool
	data   []byte
	splits []int // writes end at these offsets, besides the end
	pause  time.Duration
}

type script []step

// variants of random-like protocols.
var variants = []string{"raw-random", "server-first", "length-prefixed", "key-exchange", "fixed-records", "encrypted-download",
	"encrypted-upload", "gzip", "zlib", "deflate", "openssl-enc", "zstd-like", "chatter", "one-way",
	"bittorrent-encrypted", "noise", "ssh-like-random", "zstd", "zstd-upload", "encrypted-archive", "http-download"}

// logUniform draws an integer from lo to hi, small ones as likely as large.
func logUniform(r *rand.Rand, lo, hi int) int {
	return int(math.Exp(math.Log(float64(lo)) + r.Float64()*(math.Log(float64(hi)+1)-math.Log(float64(lo)))))
}

// drawScript returns one conversation of a variant.
func drawScript(r *rand.Rand, variant string) script {
	var s script
	say := func(server bool, data []byte) {
		st := step{server: server, data: data}
		if len(data) > 2 && r.Float64() < 0.25 {
			st.splits = []int{1 + r.IntN(len(data)-1)}
		}
		if r.Float64() < 0.2 {
			st.pause = time.Duration(r.IntN(30)) * time.Millisecond
		}
		s = append(s, st)
	}
	random := func(n int) []byte { return randomBytes(r, n) }
	rounds := func(n, lo, hi int, wrap func([]byte) []byte) {
		for range n {
			say(false, wrap(random(logUniform(r, lo, hi))))
			say(true, wrap(random(logUniform(r, lo, hi*4))))
		}
	}
	plain := func(b []byte) []byte { return b }
	switch variant {
	case "raw-random":
		rounds(1+r.IntN(5), 8, 1400, plain)
	case "server-first":
		say(true, random(logUniform(r, 8, 600)))
		rounds(1+r.IntN(4), 8, 1000, plain)
	case "length-prefixed":
		size := pick(r, 2, 4)
		big := r.Float64() < 0.6
		overhead := pick(r, 0, 12, 16, 28)
		rounds(1+r.IntN(6), 8, 900, func(b []byte) []byte {
			b = append(b, random(overhead)...)
			head := make([]byte, size)
			switch {
			case size == 2 && big:
				binary.BigEndian.PutUint16(head, uint16(len(b)))
			case size == 2:
				binary.LittleEndian.PutUint16(head, uint16(len(b)))
			case big:
				binary.BigEndian.PutUint32(head, uint32(len(b)))
			default:
				binary.LittleEndian.PutUint32(head, uint32(len(b)))
			}
			return append(head, b...)
		})
	case "key-exchange": // a public key each way, a third message, then data
		key := pick(r, 32, 48, 56, 65, 96, 133)
		say(false, random(key))
		say(true, random(key+pick(r, 0, 16, 48, 64)))
		say(false, random(pick(r, 16, 48, 64)))
		rounds(1+r.IntN(3), 16, 1200, plain)
	case "fixed-records":
		n := pick(r, 64, 128, 256, 514, 1024)
		for range 2 + r.IntN(6) {
			say(r.Float64() < 0.5, random(n))
		}
	case "encrypted-download":
		say(false, random(logUniform(r, 16, 300)))
		say(true, random(logUniform(r, 2000, 60000)))
	case "encrypted-upload":
		say(false, random(logUniform(r, 1000, 60000)))
		say(true, random(logUniform(r, 4, 64)))
	case "gzip", "zlib", "deflate", "openssl-enc", "zstd-like":
		if r.Float64() < 0.6 {
			say(false, random(logUniform(r, 1, 40)))
			say(true, packed(r, variant))
		} else {
			say(false, packed(r, variant))
			say(true, random(logUniform(r, 1, 40)))
		}
	case "chatter":
		for range 6 + r.IntN(15) {
			say(r.Float64() < 0.5, random(logUniform(r, 4, 160)))
		}
	case "one-way":
		server := r.Float64() < 0.5
		for range 1 + r.IntN(8) {
			say(server, random(logUniform(r, 50, 3000)))
		}
	default:
		return tcpScript(r, variant)
	}
	return s
}

// packed returns some text as a program that compresses or encrypts files
// would send it.
func packed(r *rand.Rand, how string) []byte {
	text := words(r, logUniform(r, 500, 60000))
	var b bytes.Buffer
	var w io.WriteCloser
	switch how {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "zlib":
		w = zlib.NewWriter(&b)
	case "deflate":
		w, _ = flate.NewWriter(&b, flate.DefaultCompression) // fails on bad levels only
	case "openssl-enc": // "Salted__", salt, CBC blocks
		block, _ := aes.NewCipher(randomBytes(r, 32)) // fails on bad lengths only
		b.WriteString("Salted__")
		b.Write(randomBytes(r, 8))
		pad := 16 - len(text)%16
		text = append(text, bytes.Repeat([]byte{byte(pad)}, pad)...)
		cipher.NewCBCEncrypter(block, randomBytes(r, 16)).CryptBlocks(text, text)
		b.Write(text)
		return b.Bytes()
	case "zstd-like": // the frame's magic number and header, then dense bytes
		b.Write([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x04, byte(r.Uint32())})
		b.Write(randomBytes(r, len(text)/3))
		return b.Bytes()
	}
	_, _ = w.Write(text) // to memory
	_ = w.Close()
	return b.Bytes()
}

// words returns about n bytes of something like text.
func words(r *rand.Rand, n int) []byte {
	vocabulary := strings.Fields("the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you were her all she there would their we him been has when who will more no if out so said what up its about into than them can only other new some could time these two may then do first any my now such like our over man me even most made after also did many before must through back years where much your way well down should because each just those people how too little state good very make world still own see men work long get here between both life being under never day same another know while last might us great old year off come since against go came right used take three")
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(vocabulary[int(float64(len(vocabulary))*r.Float64()*r.Float64())])
		b.WriteByte(pick(r, byte(' '), byte(' '), byte(' '), byte(' '), byte('\n')))
	}
	return []byte(b.String()[:n])
}

// play does one side's part of a script.
func (s script) play(c net.Conn, server bool) error {
	buf := make([]byte, 64<<10)
	for _, st := range s {
		if st.server != server {
			for left := len(st.data); left > 0; {
				n, err := c.Read(buf[:min(left, len(buf))])
				left -= n
				if err != nil && left > 0 {
					return fmt.Errorf("read, %d bytes missing: %w", left, err)
				}
			}
			continue
		}
		time.Sleep(st.pause) // part of the script: programs think
		from := 0
		for _, at := range append(st.splits, len(st.data)) {
			if _, err := c.Write(st.data[from:at]); err != nil {
				return err
			}
			from = at
			if at < len(st.data) {
				time.Sleep(time.Millisecond)
			}
		}
	}
	return nil
}

func (e *env) startRandomTCP(ctx context.Context, port uint16) error {
	ln, err := e.l.Server.Listen("tcp", netip.AddrPortFrom(e.server(), port).String())
	if err != nil {
		return err
	}
	context.AfterFunc(e.ctx, func() { ln.Close() })
	e.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			e.wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				s, err := e.takeScript(e.ctx, c.RemoteAddr().String())
				if err == nil {
					_ = s.play(c, true) // the client reports a failure
				}
			})
		}
	})
	return nil
}

// putScript and takeScript hand a script from client to server, by the
// client's address, whoever comes first.
func (e *env) putScript(addr string, s script) {
	ch, _ := e.scripts.LoadOrStore(addr, make(chan script, 1))
	ch.(chan script) <- s
}

func (e *env) takeScript(ctx context.Context, addr string) (script, error) {
	ch, _ := e.scripts.LoadOrStore(addr, make(chan script, 1))
	defer e.scripts.Delete(addr)
	select {
	case s := <-ch.(chan script):
		return s, nil
	case <-time.After(10 * time.Second):
		return nil, errors.New("no script for " + addr)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func randomTCP(variant string) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		c, err := a.e.l.Client.Dial(ctx, "tcp", netip.AddrPortFrom(a.e.server(), a.e.port["random-tcp"]).String())
		if err != nil {
			return err
		}
		defer c.Close()
		if d, ok := ctx.Deadline(); ok {
			_ = c.SetDeadline(d)
		}
		s := drawScript(a.r, variant)
		a.e.putScript(c.LocalAddr().String(), s)
		return s.play(c, false)
	}
}

// startRandomUDP answers each datagram with random ones: the first two bytes
// of the question say how many and how long, under a key both sides have.
func (e *env) startRandomUDP(ctx context.Context, port uint16) error {
	c, err := e.l.Server.ListenPacket("udp", netip.AddrPortFrom(e.server(), port).String())
	if err != nil {
		return err
	}
	context.AfterFunc(e.ctx, func() { c.Close() })
	e.wg.Go(func() {
		buf := make([]byte, 2048)
		r := rand.New(rand.NewPCG(uint64(port), 3))
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if n < 2 {
				continue
			}
			for range buf[0]%3 + 1 {
				_, _ = c.WriteTo(randomBytes(r, 20+int(buf[1])*4), from)
			}
		}
	})
	return nil
}

func randomUDP(ctx context.Context, a *attempt) error {
	c, err := a.e.l.Client.Dial(ctx, "udp", netip.AddrPortFrom(a.e.server(), a.e.port["random-udp"]).String())
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 2048)
	for range 1 + a.r.IntN(6) {
		if _, err := c.Write(randomBytes(a.r, logUniform(a.r, 16, 1150))); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		if _, err := c.Read(buf); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			var ne net.Error
			if !errors.As(err, &ne) || !ne.Timeout() { // a lost datagram is part of the game
				return err
			}
		}
	}
	return nil
}
