// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/internal/frames"
)

// lab gives an example an interface v0 in a network namespace of its own.
func lab() (leave func()) {
	mount, err := os.MkdirTemp("", "earlydrop-example-")
	if err != nil {
		panic(err)
	}
	end, err := loader.EnterNamespace(mount)
	if err != nil {
		panic(err)
	}
	return func() {
		if err := errors.Join(end(), os.Remove(mount)); err != nil {
			panic(err)
		}
	}
}

var (
	client = netip.MustParseAddrPort("10.0.0.1:40000")
	server = netip.MustParseAddrPort("10.9.0.1:443")
)

// exchange has client and server exchange datagrams through v0.
func exchange() error {
	for _, name := range []string{"v0", "v1"} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			return err
		}
	}
	for _, p := range []struct {
		device   string // v1 sends to v0
		from, to netip.AddrPort
	}{{"v1", client, server}, {"v0", server, client}, {"v1", client, server}} {
		frame := frames.Ethernet(frames.IP(p.from, p.to, frames.UDP, frames.Datagram(p.from, p.to, frames.Payload(400))))
		if err := send(p.device, frame); err != nil {
			return err
		}
	}
	return nil
}

func send(device string, frame []byte) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index}), unix.Close(fd))
}

// A data path captures what flows exchange first, and is told what becomes of them.
func Example() {
	defer lab()()
	dp, err := loader.Attach(loader.Options{Interface: "v0", UDPWarmup: -1})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer dp.Detach() // dp.Release leaves it attached
	reader, err := dp.NewReader()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer reader.Close()

	if err := exchange(); err != nil {
		fmt.Println(err)
		return
	}
	var s flow.Sample // the same for all captures
	if err := reader.Read(&s); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("on %s: %s %s > %s, %d bytes of %d packets, %s\n", s.Source, s.Key.Proto, s.Initiator(), s.Responder(), len(s.Data), len(s.Packets), s.Reason)

	// A classifier and a policy would say what is to be done.
	err = dp.ApplyFlow(&s.Meta, flow.Treatment{Action: flow.Drop, TTL: 10 * time.Minute, Class: "shadowsocks", Rule: "tunnels"})
	if err != nil {
		fmt.Println(err)
		return
	}
	blocks, err := dp.Blocked()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, b := range blocks {
		fmt.Printf("blocked: %s, %s by rule %s\n", b.Key, b.Class, b.Rule) // and b.Packets, b.Bytes
	}
	// Output:
	// on v0: udp 10.0.0.1:40000 > 10.9.0.1:443, 1024 bytes of 3 packets, full
	// blocked: udp 10.0.0.1:40000 <> 10.9.0.1:443, shadowsocks by rule tunnels
}

// Any process with the rights can look at what is attached, and block flows by hand.
func ExampleOpen() {
	defer lab()()
	daemon, err := loader.Attach(loader.Options{Interface: "v0", Version: "1.0"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer daemon.Detach()

	tables, err := loader.Open("v0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer tables.Close()
	key, _ := flow.NewKey(client, server, flow.TCP, 0, 0)
	if err := tables.Apply(key, flow.Treatment{Action: flow.Drop, TTL: time.Hour, Rule: flow.ByHand}); err != nil {
		fmt.Println(err)
		return
	}
	a, err := tables.Attachment()
	if err != nil {
		fmt.Println(err)
		return
	}
	occupancy, err := tables.Occupancy()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s: %s, version %s, %d blocked\n", a.Interface, a.Mode, a.Version, occupancy.Blocked)
	// What the data path can't do is refused.
	err = tables.Apply(key, flow.Treatment{Action: flow.Drop, TTL: time.Hour, Rate: 1000})
	var unsupported *loader.UnsupportedError
	fmt.Println(errors.As(err, &unsupported))
	// Output:
	// v0: enforce, version 1.0, 1 blocked
	// true
}
