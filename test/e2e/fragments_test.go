// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// echo starts a UDP server that sends each datagram back, in as many fragments. It ends with
// the test.
func (s *scene) echo(addr netip.Addr) netip.AddrPort {
	s.t.Helper()
	server := s.socket(s.Server, addr)
	go func() {
		buf := make([]byte, 1<<16)
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
	return portOf(server)
}

// isEchoed sends a datagram until it comes back whole, or for a while.
func isEchoed(c net.PacketConn, server netip.AddrPort, n int, wait time.Duration) error {
	sent, got := bytes.Repeat([]byte{byte(n)}, n), make([]byte, 1<<16)
	for begin := time.Now(); time.Since(begin) < wait; {
		if _, err := c.WriteTo(sent, net.UDPAddrFromAddrPort(server)); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(wait / 5)); err != nil {
			return err
		}
		switch m, _, err := c.ReadFrom(got); {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			return err
		case bytes.Equal(got[:m], sent):
			return nil
		}
	}
	return fmt.Errorf("a datagram of %d bytes did not come back", n)
}

// Ordinary fragments go on in mode enforce: answers of DNS, NFS over UDP, TCP whose segments a
// router with a smaller MTU cuts up. Each of them follows its first.
func TestOrdinaryFragmentsPass(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	d := s.enforce()
	for _, version := range []int{4, 6} {
		server, client := s.echo(s.ServerAddr(version)), s.socket(s.Client, s.ClientAddr(version))
		for _, n := range []int{1600, 4000, 32 << 10, 60_000} {
			if err := isEchoed(client, server, n, 30*time.Second); err != nil {
				t.Errorf("IPv%d: %v", version, err)
			}
		}
	}
	udp := must(s.Status(s.ctx))(t).Counters

	// The server lets routers cut its packets up, and the router has to.
	if err := s.Server.Sysctl("net.ipv4.ip_no_pmtu_disc", "1"); err != nil {
		t.Fatal(err)
	}
	if out := must(s.Run(s.ctx, "ip", "link", "set", rig.Device, "mtu", "600"))(t); out.Code != 0 {
		t.Fatal(out.Stderr)
	}
	listener := must(s.Server.Listen("tcp", netip.AddrPortFrom(s.ServerAddr(4), 0).String()))(t)
	defer listener.Close()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	served := make(chan error, 1)
	go func() {
		c, err := listener.Accept()
		if err == nil {
			_, err = c.Write(sent)
			err = errors.Join(err, c.Close())
		}
		served <- err
	}()
	c := must(s.Client.Dial(s.ctx, "tcp", listener.Addr().String()))(t)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes arrived: %v", len(got), len(sent), err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	all := must(s.Status(s.ctx))(t)
	if all.Mode != "enforce" || all.Counters["bad_fragment"] != 0 || all.Counters["dropped_packets"] != 0 || all.Counters["later_fragment"] != all.Counters["followed_fragment"] {
		t.Errorf("mode %s, counters %v", all.Mode, all.Counters)
	}
	// Of each 1500 bytes two, of the router's, if not more.
	if n := all.Counters["followed_fragment"] - udp["followed_fragment"]; udp["followed_fragment"] < 2*2*(1+2+22+40) || n < uint64(len(sent)/1500*2) {
		t.Errorf("%d later fragments of UDP, %d of TCP", udp["followed_fragment"], n)
	}
	s.stop(d)
}

// No fragment of a blocked flow passes, the first one or later ones.
func TestFragmentsOfABlockedFlowAreDropped(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	d := s.enforce()
	for _, version := range []int{4, 6} {
		server, client := s.echo(s.ServerAddr(version)), s.socket(s.Client, s.ClientAddr(version))
		if err := isEchoed(client, server, 4000, 30*time.Second); err != nil {
			t.Fatalf("IPv%d: %v", version, err)
		}
		ends := []string{"udp", portOf(client).String(), server.String()}
		must(s.Earlydrop(s.ctx, append([]string{"blocked", "add", "-i", rig.Device}, ends...)...))(t)
		if err := isEchoed(client, server, 4000, time.Second); err == nil {
			t.Errorf("IPv%d: a datagram of a blocked flow passed", version)
		}
		block, ok, err := s.Block(s.ctx, portOf(client), server)
		if err != nil || !ok {
			t.Fatalf("IPv%d: %v, %v", version, ok, err)
		}
		// Five datagrams of three fragments each.
		header := uint64(14 + 20)
		if version == 6 {
			header = 14 + 40 + 8
		}
		if want := 5 * (8 + 4000 + 3*header); block.Packets != 15 || block.Bytes != want {
			t.Errorf("IPv%d: %d packets, %d bytes were dropped, want 15 and %d", version, block.Packets, block.Bytes, want)
		}
		must(s.Earlydrop(s.ctx, append([]string{"blocked", "del", "-i", rig.Device}, ends...)...))(t)
		if err := isEchoed(client, server, 4000, 30*time.Second); err != nil {
			t.Errorf("IPv%d: after the block: %v", version, err)
		}
	}
	s.stop(d)
}
