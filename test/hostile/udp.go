// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// echo starts a server behind the gateway that sends each datagram back. It ends when it
// is closed.
func (g *gateway) echo(_ context.Context) (net.PacketConn, error) {
	server, err := g.Server.ListenPacket("udp", netip.AddrPortFrom(g.ServerAddr(4), 0).String())
	if err != nil {
		return nil, err
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := server.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = server.WriteTo(buf[:n], from)
			}
		}
	}()
	return server, nil
}

// askUDP opens n UDP flows to the server, one after another, with a datagram of so many
// bytes and its echo, and returns their clients. One that gets no answer is none of them.
func (g *gateway) askUDP(ctx context.Context, server net.PacketConn, n, bytes int) (clients []netip.AddrPort, err error) {
	question, answer := make([]byte, bytes), make([]byte, bytes)
	for range n {
		c, err := g.Client.Dial(ctx, "udp", server.LocalAddr().String())
		if err != nil {
			return clients, fmt.Errorf("open a udp flow: %w", err)
		}
		err = c.SetDeadline(time.Now().Add(time.Second))
		if err == nil {
			_, err = c.Write(question)
		}
		if err == nil {
			_, err = c.Read(answer)
		}
		if err == nil {
			clients = append(clients, c.LocalAddr().(*net.UDPAddr).AddrPort())
		}
		_ = c.Close()
	}
	return clients, nil
}

// verdictsFrom counts those of the clients of the server that a verdict was given about.
func (g *gateway) verdictsFrom(server net.PacketConn, clients []netip.AddrPort) (n int) {
	seen := map[netip.AddrPort]bool{}
	for _, e := range g.daemon.Verdicts(server.LocalAddr().(*net.UDPAddr).AddrPort()) {
		seen[e.Src] = true
	}
	for _, c := range clients {
		if seen[c] {
			n++
		}
	}
	return n
}
