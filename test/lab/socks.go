// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// DialSOCKS connects to target ("host:port"; a name is left to the far end)
// through a SOCKS5 proxy without authentication inside the namespace.
func (n *Namespace) DialSOCKS(ctx context.Context, proxy netip.AddrPort, target string) (net.Conn, error) {
	return n.DialSOCKSUser(ctx, proxy, target, "", "")
}

// DialSOCKSUser is DialSOCKS with a user name, when that is not empty, and a
// password, each of at most 255 bytes.
func (n *Namespace) DialSOCKSUser(ctx context.Context, proxy netip.AddrPort, target, user, password string) (net.Conn, error) {
	host, portText, err := net.SplitHostPort(target)
	if err != nil {
		return nil, fmt.Errorf("target %q: %w", target, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("target %q: port: %w", target, err)
	}
	c, err := n.Dial(ctx, "tcp", proxy.String())
	if err != nil {
		return nil, fmt.Errorf("connect to proxy: %w", err)
	}
	if d, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(d)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	_, err = socksRequest(c, 1, host, uint16(port), user, password)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("SOCKS request for %s: %w", target, err)
	}
	_ = c.SetDeadline(time.Time{})
	return c, nil
}

// socksRequest does the client's side of RFC 1928 and returns the address that
// the proxy answers with, or the zero value when it answers with a name.
func socksRequest(c io.ReadWriter, command byte, host string, port uint16, user, password string) (netip.AddrPort, error) {
	var none netip.AddrPort
	var method byte // no authentication
	if user != "" {
		method = 2
	}
	if len(user) > 255 || len(password) > 255 {
		return none, fmt.Errorf("user name of %d and password of %d bytes: at most 255 each", len(user), len(password))
	}
	if _, err := c.Write([]byte{5, 1, method}); err != nil {
		return none, err
	}
	var answer [2]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return none, err
	}
	if answer != [2]byte{5, method} {
		return none, fmt.Errorf("proxy answers % x to the greeting", answer)
	}
	if user != "" { // RFC 1929
		b := append([]byte{1, byte(len(user))}, user...)
		if _, err := c.Write(append(append(b, byte(len(password))), password...)); err != nil {
			return none, err
		}
		if _, err := io.ReadFull(c, answer[:]); err != nil {
			return none, err
		}
		if answer[1] != 0 {
			return none, errors.New("proxy refuses the user")
		}
	}
	to, err := socksAddr(host, port)
	if err != nil {
		return none, err
	}
	if _, err := c.Write(append([]byte{5, command, 0}, to...)); err != nil {
		return none, err
	}
	var head [3]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return none, err
	}
	if head[1] != 0 {
		return none, fmt.Errorf("proxy refuses with code %d", head[1])
	}
	return readSOCKSAddr(c)
}

// socksAddr encodes a target as RFC 1928 does: type, address or name, port.
func socksAddr(host string, port uint16) ([]byte, error) {
	var b []byte
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
		b = append([]byte{1}, ip.AsSlice()...)
	} else if err == nil {
		b = append([]byte{4}, ip.AsSlice()...)
	} else if len(host) > 255 {
		return nil, fmt.Errorf("name of %d bytes is too long", len(host))
	} else {
		b = append([]byte{3, byte(len(host))}, host...)
	}
	return append(b, byte(port>>8), byte(port)), nil
}

// readSOCKSAddr reads what socksAddr writes; a name is skipped.
func readSOCKSAddr(r io.Reader) (netip.AddrPort, error) {
	var b [1 + 255 + 2]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return netip.AddrPort{}, err
	}
	size := map[byte]int{1: 4, 4: 16}[b[0]]
	isName := b[0] == 3
	if isName {
		if _, err := io.ReadFull(r, b[:1]); err != nil {
			return netip.AddrPort{}, err
		}
		size = int(b[0])
	} else if size == 0 {
		return netip.AddrPort{}, fmt.Errorf("proxy answers with address type %d", b[0])
	}
	rest := b[1 : 1+size+2]
	if _, err := io.ReadFull(r, rest); err != nil || isName {
		return netip.AddrPort{}, err
	}
	ip, _ := netip.AddrFromSlice(rest[:size]) // 4 or 16 bytes
	return netip.AddrPortFrom(ip, uint16(rest[size])<<8|uint16(rest[size+1])), nil
}

// AcceptSOCKS does the server's side of SOCKS5 without authentication, grants
// a CONNECT and returns its target, "host:port".
func AcceptSOCKS(c io.ReadWriter) (string, error) {
	var b [2 + 255]byte
	if _, err := io.ReadFull(c, b[:2]); err != nil {
		return "", err
	}
	if b[0] != 5 {
		return "", fmt.Errorf("client speaks version %d of SOCKS, want 5", b[0])
	}
	if _, err := io.ReadFull(c, b[:b[1]]); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte{5, 0}); err != nil {
		return "", err
	}
	if _, err := io.ReadFull(c, b[:5]); err != nil {
		return "", err
	}
	command, size := b[1], int(b[4])+2
	switch b[3] {
	case 1:
		size = 3 + 2 // one byte of the address is read
	case 4:
		size = 15 + 2
	case 3:
	default:
		return "", fmt.Errorf("client asks for address type %d", b[3])
	}
	if command != 1 {
		return "", fmt.Errorf("client sends command %d, want CONNECT", command)
	}
	kind, first := b[3], b[4]
	rest := b[:size]
	if _, err := io.ReadFull(c, rest); err != nil {
		return "", err
	}
	port := strconv.Itoa(int(rest[size-2])<<8 | int(rest[size-1]))
	host := string(rest[:size-2])
	if kind != 3 {
		ip, _ := netip.AddrFromSlice(append([]byte{first}, host...)) // 4 or 16 bytes
		host = ip.String()
	}
	_, err := c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	return net.JoinHostPort(host, port), err
}

// socksDatagrams is a UDP association with a SOCKS5 proxy. It is a
// net.PacketConn too, for callers that look whether they talk in datagrams.
type socksDatagrams struct {
	net.Conn          // to the proxy's relay
	control  net.Conn // the association lives as long as it
	head     []byte
	target   net.Addr
}

// DialSOCKSUDP returns a connection that sends datagrams to target, an address
// and port, through a SOCKS5 proxy inside the namespace.
func (n *Namespace) DialSOCKSUDP(ctx context.Context, proxy, target netip.AddrPort) (net.Conn, error) {
	control, err := n.Dial(ctx, "tcp", proxy.String())
	if err != nil {
		return nil, fmt.Errorf("connect to proxy: %w", err)
	}
	if d, ok := ctx.Deadline(); ok {
		_ = control.SetDeadline(d)
	}
	relay, err := socksRequest(control, 3, "0.0.0.0", 0, "", "")
	if err == nil && (!relay.IsValid() || relay.Addr().IsUnspecified()) {
		relay = netip.AddrPortFrom(proxy.Addr(), relay.Port())
	}
	var c net.Conn
	if err == nil {
		c, err = n.Dial(ctx, "udp", relay.String())
	}
	var head []byte
	if err == nil {
		head, err = socksAddr(target.Addr().String(), target.Port())
	}
	if err != nil {
		control.Close()
		return nil, fmt.Errorf("SOCKS association for %v: %w", target, err)
	}
	return &socksDatagrams{Conn: c, control: control, head: append([]byte{0, 0, 0}, head...), target: net.UDPAddrFromAddrPort(target)}, nil
}

func (s *socksDatagrams) Write(p []byte) (int, error) {
	if _, err := s.Conn.Write(append(s.head[:len(s.head):len(s.head)], p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *socksDatagrams) Read(p []byte) (int, error) {
	buf := make([]byte, len(p)+3+258)
	n, err := s.Conn.Read(buf)
	if err != nil {
		return 0, err
	}
	if n < 4 {
		return 0, fmt.Errorf("datagram of %d bytes from the proxy", n)
	}
	r := bytes.NewReader(buf[3:n])
	if _, err := readSOCKSAddr(r); err != nil {
		return 0, fmt.Errorf("datagram from the proxy: %w", err)
	}
	return copy(p, buf[n-r.Len():n]), nil
}

func (s *socksDatagrams) ReadFrom(p []byte) (int, net.Addr, error) {
	n, err := s.Read(p)
	return n, s.target, err
}

func (s *socksDatagrams) WriteTo(p []byte, _ net.Addr) (int, error) { return s.Write(p) }

func (s *socksDatagrams) Close() error { return errors.Join(s.Conn.Close(), s.control.Close()) }

// Forward listens on a free port of the client's loopback and carries every
// connection to target through the tunnel, so that a program which knows no
// SOCKS can use it. It ends with the lab.
func (l *Lab) Forward(t *Tunnel, target string) (netip.AddrPort, error) {
	ln, err := l.Client.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("listen for forwarding: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				up, err := l.Client.DialSOCKS(ctx, t.SOCKS, target)
				if err != nil {
					return
				}
				Splice(ctx, c, up)
			})
		}
	})
	l.onClose(func() error {
		cancel()
		err := ln.Close()
		wg.Wait()
		return err
	})
	return ln.Addr().(*net.TCPAddr).AddrPort(), nil
}

// Splice copies between two connections, half-closing each when the other
// ends, until both directions or ctx end, then closes both.
func Splice(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	var wg sync.WaitGroup
	half := func(dst, src net.Conn) {
		_, err := io.Copy(dst, src)
		if w, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			_ = w.CloseWrite()
			return
		}
		dst.Close()
		if err != nil && !errors.Is(err, net.ErrClosed) {
			src.Close()
		}
	}
	wg.Go(func() { half(a, b) })
	wg.Go(func() { half(b, a) })
	wg.Wait()
	a.Close()
	b.Close()
}
