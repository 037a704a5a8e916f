// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	f "github.com/earlydrop/earlydrop/loader/internal/frames"

	"github.com/earlydrop/earlydrop/loader/flow"
)

var (
	forgedClient = netip.MustParseAddrPort("10.1.0.2:5000")
	forgedServer = netip.MustParseAddrPort("10.2.0.2:4500")
)

// reflectedUDP forges, from the client's side, both directions of UDP flows between
// client and server, each of them first once. What is to the client is sent back there. Fails if
// that counts as the other side's answer.
func (n *network) reflectedUDP(d *tap, host, dev, gateway, near string) {
	n.t.Helper()
	var frames [][]byte
	for i, clientFirst := range []bool{true, false} {
		client, server := netip.AddrPortFrom(forgedClient.Addr(), forgedClient.Port()+uint16(i)), forgedServer
		for j := range 6 {
			from, to := client, server
			if clientFirst == (j%2 == 1) {
				from, to = to, from
			}
			frames = append(frames, f.Ethernet(f.IP(from, to, f.UDP, f.Datagram(from, to, f.Payload(100+250*j)))))
		}
	}
	n.returned(d, func() { n.inject(host, dev, gateway, near, frames...) })
	d.noUDP()
	o, err := d.Occupancy()
	if err != nil || o.Flows != 0 || o.Collecting != 0 {
		n.t.Errorf("known: %+v, %v", o, err)
	}
}

// noUDP fails if a UDP flow began, or is captured.
func (d *tap) noUDP() {
	d.t.Helper()
	time.Sleep(d.idle() + 50*time.Millisecond)
	if _, err := d.Sweep(); err != nil {
		d.t.Fatal(err)
	}
	c, err := d.Counters()
	if err != nil || c.Values()["udp_opened"] != 0 || c.Values()["udp_waiting"] == 0 {
		d.t.Errorf("%v; counters:%s", err, nonZero(c))
	}
	select {
	case s := <-d.samples:
		d.t.Errorf("captured: %s %s > %s, %d bytes", s.Key.Proto, s.Initiator(), s.Responder(), len(s.Data))
	case <-time.After(100 * time.Millisecond):
	}
}

// A plain route, a bridge and what stands on the interface send forged datagrams back out
// of the interface that they came in through. They are no answer of the other side.
func TestReflectedDatagramsAreNoAnswer(t *testing.T) {
	options := Options{Idle: 200 * time.Millisecond, UDPWarmup: -1}
	bridged := func(t *testing.T) *network {
		n := newNetwork(t, "client", "gateway", "server")
		n.cable("client", "c0", "gateway", "lan")
		n.cable("server", "s0", "gateway", "wan")
		n.address("client", "c0", "10.1.0.2/24")
		n.address("gateway", "wan", "10.2.0.1/24")
		n.address("server", "s0", "10.2.0.2/24")
		return n
	}
	for _, tt := range []struct {
		name, near string
		network    func(t *testing.T) *network
	}{
		{"route", "lan", routed},
		{"route through a bridge", "br0", func(t *testing.T) *network {
			n := bridged(t)
			n.add("gateway", &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}, "lan")
			n.address("gateway", "br0", "10.1.0.1/24")
			return n
		}},
		{"bridge whose port sends back (hairpin)", "elsewhere", func(t *testing.T) *network {
			n := bridged(t)
			n.add("gateway", &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}, "lan")
			n.cable("gateway", "elsewhere", "server", "nobody") // a hardware address that the bridge does not know
			n.in("gateway", func() error {
				l, err := netlink.LinkByName("lan")
				if err != nil {
					return err
				}
				return netlink.LinkSetHairpin(l, true)
			})
			return n
		}},
		{"macvlan", "mv0", func(t *testing.T) *network {
			n := bridged(t)
			n.in("gateway", func() error {
				l, err := netlink.LinkByName("lan")
				if err != nil {
					return err
				}
				return netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "mv0", ParentIndex: l.Attrs().Index}, Mode: netlink.MACVLAN_MODE_BRIDGE})
			})
			n.up("gateway", "mv0")
			n.address("gateway", "mv0", "10.1.0.1/24")
			return n
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := tt.network(t)
			d := n.attach("gateway", "lan", options)
			n.reflectedUDP(d, "client", "c0", "gateway", tt.near)
		})
	}
}

// talkUDP has a client and a server exchange datagrams, more than a capture holds, and
// returns their addresses.
func (n *network) talkUDP(client, server string, at netip.Addr) (netip.AddrPort, netip.AddrPort) {
	n.t.Helper()
	var pc net.PacketConn
	n.in(server, func() (err error) {
		pc, err = net.ListenPacket("udp4", netip.AddrPortFrom(at, 0).String())
		return err
	})
	defer pc.Close()
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	var from netip.AddrPort
	n.in(client, func() error {
		c, err := net.DialTimeout("udp4", pc.LocalAddr().String(), time.Minute)
		if err != nil {
			return err
		}
		defer c.Close()
		from = c.LocalAddr().(*net.UDPAddr).AddrPort()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		for range 4 {
			if _, err := c.Write(make([]byte, 300)); err != nil {
				return err
			}
			if _, err := c.Read(make([]byte, 2048)); err != nil {
				return err
			}
		}
		return nil
	})
	return from, pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

// identifiesUDP fails unless the flow is captured once, with its ends as they are, each
// datagram so many times.
func (d *tap) identifiesUDP(from, to netip.AddrPort, times int) {
	d.t.Helper()
	var s *flow.Sample
	select {
	case s = <-d.samples:
	case <-time.After(time.Minute):
		c, err := d.Counters()
		d.t.Fatalf("no capture within a minute; %v; counters:%s", err, nonZero(c))
	}
	if s.Key.Proto != flow.UDP || s.Initiator() != from || s.Responder() != to || !s.Complete() || s.Resumed {
		d.t.Errorf("captured %s %s > %s, want %s > %s; %+v", s.Key.Proto, s.Initiator(), s.Responder(), from, to, s)
	}
	for i, p := range s.Packets {
		if fromInitiator := i/times%2 == 0; p.FromInitiator != fromInitiator {
			d.t.Errorf("packet %d is from the initiator: %v", i, p.FromInitiator)
		}
	}
}

// Where both directions come through one hook, nothing tells who has answered: UDP flows
// are captured only if the operator says so. A one-armed gateway shows each datagram
// as it comes and as it goes, and nothing tells the second from another one.
func TestUDPThroughOneHook(t *testing.T) {
	for _, tt := range []struct {
		name, host, dev string
		network         func(t *testing.T) *network
		times           int // that each datagram is seen
	}{
		{"one-armed gateway", "gateway", "e0", oneArmed, 2},
		{"mirror port", "server", "monitor", func(t *testing.T) *network {
			n := routed(t)
			n.cable("gateway", "mirror", "server", "monitor")
			n.in("gateway", func() error { return mirror("wan", "mirror") })
			return n
		}, 1},
	} {
		for _, oneHook := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, --one-hook %v", tt.name, oneHook), func(t *testing.T) {
				n := tt.network(t)
				d := n.attach(tt.host, tt.dev, Options{Idle: 200 * time.Millisecond, UDPWarmup: -1, OneHook: oneHook})
				from, to := n.talkUDP("client", "server", topologyServer.Addr())
				if oneHook {
					d.identifiesUDP(from, to, tt.times)
				} else {
					d.noUDP()
				}
			})
		}
	}
}
