// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/test/lab"
)

func TestAcceptSOCKSReturnsTheTarget(t *testing.T) {
	for _, c := range []struct {
		name   string
		client []byte
		want   string
		fails  string
	}{
		{"name", []byte("\x05\x01\x00\x05\x01\x00\x03\x07example\x01\xbb"), "example:443", ""},
		{"IPv4", []byte("\x05\x02\x00\x02\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50"), "10.0.0.1:80", ""},
		{"IPv6", append([]byte("\x05\x01\x00\x05\x01\x00\x04"), append(netip.MustParseAddr("2001:db8::1").AsSlice(), 0, 22)...), "[2001:db8::1]:22", ""},
		{"version 4", []byte("\x04\x01"), "", "version 4"},
		{"bind", []byte("\x05\x01\x00\x05\x02\x00\x01\x0a\x00\x00\x01\x00\x50"), "", "command 2"},
		{"type 9", []byte("\x05\x01\x00\x05\x01\x00\x09\x0a\x00"), "", "address type 9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := net.Pipe()
			deadline := time.Now().Add(time.Minute)
			if err := errors.Join(a.SetDeadline(deadline), b.SetDeadline(deadline)); err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _ = a.Write(c.client) // cut off where the server refuses
				a.Close()
			}()
			buf := make(chan struct{})
			go func() {
				defer close(buf)
				for {
					if _, err := a.Read(make([]byte, 64)); err != nil {
						return
					}
				}
			}()
			got, err := lab.AcceptSOCKS(b)
			b.Close()
			<-buf
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("error %v, want one that names %q", err, c.fails)
				}
			} else if got != c.want {
				t.Errorf("target %q (%v), want %q", got, err, c.want)
			}
		})
	}
}

// A tunnel that relays datagrams answers a name query, and the resolver takes
// the connection for one of datagrams.
func TestDatagramsGoThroughShadowsocks(t *testing.T) {
	l, ctx := start(t, lab.Config{})
	dns, err := l.StartDNS(ctx, lab.DNSConfig{})
	if err != nil {
		t.Fatal(err)
	}
	tun, err := l.StartShadowsocks(ctx, lab.ShadowsocksConfig{UDP: true})
	if err != nil {
		t.Fatal(err)
	}
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return l.Client.DialSOCKSUDP(ctx, tun.SOCKS, netip.AddrPortFrom(l.ServerAddr(4), dns.Port))
	}}
	got, err := r.LookupNetIP(ctx, "ip4", "www.lab.example.")
	if err != nil || len(got) != 1 || got[0].Unmap() != l.ServerAddr(4) {
		t.Errorf("got %v (%v), want %v", got, err, l.ServerAddr(4))
	}
}
