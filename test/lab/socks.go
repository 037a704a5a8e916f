// SPDX-License-Identifier: Apache-2.0

package lab

import (
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
	err = socksConnect(c, host, uint16(port))
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

// socksConnect does the client's side of RFC 1928 for CONNECT.
func socksConnect(c io.ReadWriter, host string, port uint16) error {
	if _, err := c.Write([]byte{5, 1, 0}); err != nil {
		return err
	}
	var method [2]byte
	if _, err := io.ReadFull(c, method[:]); err != nil {
		return err
	}
	if method != [2]byte{5, 0} {
		return fmt.Errorf("proxy answers % x to the greeting", method)
	}
	req := []byte{5, 1, 0}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
		req = append(append(req, 1), ip.AsSlice()...)
	} else if err == nil {
		req = append(append(req, 4), ip.AsSlice()...)
	} else if len(host) > 255 {
		return fmt.Errorf("name of %d bytes is too long", len(host))
	} else {
		req = append(append(req, 3, byte(len(host))), host...)
	}
	if _, err := c.Write(append(req, byte(port>>8), byte(port))); err != nil {
		return err
	}
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	if head[1] != 0 {
		return fmt.Errorf("proxy refuses with code %d", head[1])
	}
	var rest int64
	switch head[3] {
	case 1:
		rest = 4
	case 4:
		rest = 16
	case 3:
		var size [1]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return err
		}
		rest = int64(size[0])
	default:
		return fmt.Errorf("proxy answers with address type %d", head[3])
	}
	_, err := io.CopyN(io.Discard, c, rest+2)
	return err
}

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
