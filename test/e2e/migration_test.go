// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// secondDevice is another interface of the gateway towards the client.
const secondDevice = "gw-d"

// secondLink connects client and gateway once more. moveThere has all packets between
// client and server go that way.
func (s *scene) secondLink() (moveThere func()) {
	s.t.Helper()
	ip := func(ns *lab.Namespace, args string) {
		if _, err := s.Exec(s.ctx, ns, append([]string{"ip"}, strings.Fields(args)...)...); err != nil {
			s.t.Fatal(err)
		}
	}
	ip(s.Gateway, "link add "+secondDevice+" type veth peer name cl1 netns "+s.Client.Name)
	ip(s.Gateway, "addr add 10.77.3.1/24 dev "+secondDevice)
	ip(s.Gateway, "link set "+secondDevice+" up")
	ip(s.Client, "addr add 10.77.3.2/24 dev cl1")
	ip(s.Client, "link set cl1 up")
	return func() {
		ip(s.Gateway, fmt.Sprintf("route replace %s/32 via 10.77.3.2", s.ClientAddr(4)))
		ip(s.Client, fmt.Sprintf("route replace %s/32 via 10.77.3.1", s.ServerAddr(4)))
	}
}

// nat stands between a QUIC client and its server, as a NAT that may forget a flow: what it
// sends comes from another port then.
type nat struct {
	s      *scene
	inside net.PacketConn
	server netip.AddrPort

	mu      sync.Mutex
	client  net.Addr
	outside net.PacketConn
}

func (s *scene) nat(server netip.AddrPort) *nat {
	s.t.Helper()
	n := &nat{s: s, inside: s.socket(s.Client, netip.MustParseAddr("127.0.0.1")), server: server}
	n.forget()
	go func() {
		buf := make([]byte, 2048)
		for {
			size, from, err := n.inside.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			n.mu.Lock()
			n.client = from
			_, _ = n.outside.WriteTo(buf[:size], net.UDPAddrFromAddrPort(server))
			n.mu.Unlock()
		}
	}()
	return n
}

// forget has the flow come from another port from now on, and returns it. The old one stays taken,
// so that no other flow comes from there again.
func (n *nat) forget() netip.AddrPort {
	outside := n.s.socket(n.s.Client, n.s.ClientAddr(4))
	n.mu.Lock()
	n.outside = outside
	n.mu.Unlock()
	go func() {
		buf := make([]byte, 2048)
		for {
			size, _, err := outside.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			n.mu.Lock()
			if n.client != nil && n.outside == outside {
				_, _ = n.inside.WriteTo(buf[:size], n.client)
			}
			n.mu.Unlock()
		}
	}()
	return portOf(outside)
}

// quicTransport has connections by whose ids they are known again.
func quicTransport(socket net.PacketConn) *quic.Transport {
	return &quic.Transport{Conn: socket, ConnectionIDLength: 8}
}

// quicFlow is a QUIC connection whose client asks the server of quicServer again and
// again, through a NAT if there is one.
func (s *scene) quicFlow(server netip.AddrPort, through *nat) (*udpFlow, *quic.Conn) {
	s.t.Helper()
	socket, to := s.socket(s.Client, s.ClientAddr(4)), server
	f := &udpFlow{kind: "quic", src: portOf(socket), dst: server}
	if through != nil {
		socket, to, f.src = s.socket(s.Client, netip.MustParseAddr("127.0.0.1")), portOf(through.inside), portOf(through.outside)
	}
	c := must(quicTransport(socket).Dial(s.ctx, net.UDPAddrFromAddrPort(to), quicClientTLS(), &quic.Config{DisablePathMTUDiscovery: true}))(s.t)
	stream := must(c.OpenStream())(s.t)
	f.talk = func() error {
		_ = stream.SetDeadline(time.Now().Add(talkLimit))
		if _, err := stream.Write([]byte{1}); err != nil {
			return err
		}
		_, err := io.CopyN(io.Discard, stream, quicAnswer)
		return err
	}
	return f, c
}

// movedTo says that the client has another port.
func (f *udpFlow) movedTo(src netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.src = src
}

// A flow that gets other ports, or comes through another interface, is a new one to the
// data path: nothing says that it is the old one, and its middle is judged as a
// beginning. How many are cut is told.
func TestUDPFlowsThatMoveAreNewOnes(t *testing.T) {
	t.Parallel()
	const flows = 10
	for _, tt := range []struct {
		name, model, class string
		all                bool // are cut
	}{
		{"the model takes everything for a tunnel", suspicious, "[shadowsocks, v2ray], min_confidence: 0.01", true},
		{"built-in policy, with udp_unproven", "", "[" + strings.Join(tunnelClasses, ", ") + "]", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, lab.Config{})
			defer s.hush()
			moveThere := s.secondLink()
			server := s.quicServer()
			args := []string{"--udp-warmup", udpWarmup.String(), "--policy", s.file("rule.yaml", fmt.Sprintf(
				"mode: enforce\nrules: [{name: rule, class: %s, action: drop, ttl: %s, udp_unproven: true}]\n", tt.class, udpTTL))}
			if tt.model != "" {
				args = append(args, "--model", tt.model)
			}
			var migrating, rebound, moving []*udpFlow
			var conns []*quic.Conn
			var nats []*nat
			for range flows {
				f, c := s.quicFlow(server, nil)
				migrating, conns = append(migrating, f.run(s)), append(conns, c)
				n := s.nat(server)
				f, _ = s.quicFlow(server, n)
				rebound, nats = append(rebound, f.run(s)), append(nats, n)
				f, _ = s.quicFlow(server, nil)
				moving = append(moving, f.run(s))
			}
			u := &udpTrial{scene: s, counts: map[string]map[string][2]int{}}
			d := s.attach(args...)
			u.resumed("before", d, append(append(migrating, rebound...), moving...), nil)
			other := s.attach(append(args, "-i", secondDevice)...)
			time.Sleep(time.Until(other.Attached.Time.Add(udpWarmup)))

			for i, f := range migrating {
				socket := s.socket(s.Client, s.ClientAddr(4))
				path := must(conns[i].AddPath(quicTransport(socket)))(t)
				ctx, cancel := context.WithTimeout(s.ctx, talkLimit)
				err := path.Probe(ctx)
				cancel()
				if err == nil {
					err = path.Switch()
				}
				if err != nil {
					t.Fatalf("migrate: %v", err)
				}
				f.movedTo(portOf(socket))
			}
			for i, f := range rebound {
				f.movedTo(nats[i].forget())
			}
			changed := func(what string, d *rig.Daemon, flows []*udpFlow) {
				began, cut := 0, 0
				for _, f := range flows {
					v := must(rig.Wait(s.ctx, d, "the verdict about a flow that is new for "+what, func(e *event.Verdict) bool { return f.of(e.Endpoints) }))(t)
					if !v.Resumed {
						began++
					}
					if v.Decision == "drop" {
						cut++
					}
				}
				t.Logf("%s: of %d QUIC connections %d were captured as new flows, %d cut", what, len(flows), began, cut)
				if began != len(flows) || tt.all && cut != len(flows) {
					t.Errorf("%s: %d of %d captured as new flows, %d cut", what, began, len(flows), cut)
				}
				u.goesOn(what+", and the end of a block", flows)
			}
			changed("migration", d, migrating)
			changed("NAT rebinding", d, rebound)
			moveThere()
			changed("another interface", other, moving)
			if _, err := other.Stop(s.ctx); err != nil {
				t.Fatal(err)
			}
			s.stop(d)
		})
	}
}
