// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	f "github.com/earlydrop/earlydrop/loader/internal/frames"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// network is hosts and the cables between them, in namespaces that end with the test.
type network struct {
	t     *testing.T
	hosts map[string]netns.NsHandle
}

// newNetwork makes the hosts. Pins go into a BPF file system of the test's own.
func newNetwork(t *testing.T, hosts ...string) *network {
	t.Helper()
	inNamespace(t)
	n := &network{t, map[string]netns.NsHandle{}}
	for _, host := range hosts {
		n.onThread(netns.None(), func() error {
			h, err := netns.New()
			n.hosts[host] = h
			return err
		})
		t.Cleanup(func() { h := n.hosts[host]; _ = h.Close() })
		n.in(host, func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return errors.Join(netlink.LinkSetUp(lo), sysctl("net/ipv4/ip_forward", "1"), sysctl("net/ipv4/conf/all/rp_filter", "0"),
				sysctl("net/ipv4/conf/default/rp_filter", "0"), sysctl("net/ipv4/conf/all/send_redirects", "0"), sysctl("net/ipv4/conf/default/send_redirects", "0"))
		})
	}
	return n
}

func sysctl(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
}

// onThread runs fn on a thread of its own, in the namespace if there is one. The thread
// ends with fn.
func (n *network) onThread(ns netns.NsHandle, fn func() error) {
	n.t.Helper()
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock
		if ns.IsOpen() {
			if err := netns.Set(ns); err != nil {
				errc <- err
				return
			}
		}
		errc <- fn()
	}()
	if err := <-errc; err != nil {
		n.t.Fatal(err)
	}
}

// in runs fn on a host.
func (n *network) in(host string, fn func() error) {
	n.t.Helper()
	n.onThread(n.hosts[host], fn)
}

// cable connects two hosts by a veth pair.
func (n *network) cable(hostA, devA, hostB, devB string) {
	n.t.Helper()
	n.in(hostA, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: devA}, PeerName: devB, PeerNamespace: netlink.NsFd(n.hosts[hostB])})
	})
	n.up(hostA, devA)
	n.up(hostB, devB)
}

func (n *network) up(host, dev string) {
	n.t.Helper()
	n.in(host, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
}

// add makes a device on a host, brings it up and makes the others its ports.
func (n *network) add(host string, l netlink.Link, ports ...string) {
	n.t.Helper()
	n.in(host, func() error {
		if err := netlink.LinkAdd(l); err != nil {
			return fmt.Errorf("add %s %s: %w", l.Type(), l.Attrs().Name, err)
		}
		for _, name := range ports {
			port, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetMaster(port, l)
			}
			if err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	})
}

// address gives a device an address, as "10.0.0.1/24".
func (n *network) address(host, dev, cidr string) {
	n.t.Helper()
	n.in(host, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, a)
	})
}

// route sends a network ("default" or a prefix) to a gateway.
func (n *network) route(host, to, via string) {
	n.t.Helper()
	n.in(host, func() error {
		r := &netlink.Route{Gw: net.ParseIP(via)}
		if to != "default" {
			_, dst, err := net.ParseCIDR(to)
			if err != nil {
				return err
			}
			r.Dst = dst
		}
		return netlink.RouteAdd(r)
	})
}

// tap is a data path on a host's device, whose captures are read.
type tap struct {
	*DataPath
	t       *testing.T
	reader  *Reader
	samples chan *flow.Sample
}

func (n *network) attach(host, dev string, opts Options) *tap {
	n.t.Helper()
	d := &tap{t: n.t, samples: make(chan *flow.Sample, 64)}
	n.in(host, func() (err error) {
		opts.Interface = dev
		if d.DataPath, err = Attach(opts); err != nil {
			return err
		}
		d.reader, err = d.NewReader()
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			s := new(flow.Sample)
			if d.reader.Read(s) != nil {
				return
			}
			d.samples <- s
		}
	}()
	n.t.Cleanup(func() {
		_ = d.reader.Close()
		<-done
		n.in(host, d.Detach)
	})
	return d
}

// next returns the next capture of a TCP flow.
func (d *tap) next() *flow.Sample {
	d.t.Helper()
	for {
		select {
		case s := <-d.samples:
			if s.Key.Proto == flow.TCP {
				return s
			}
		case <-time.After(time.Minute):
			c, err := d.Counters()
			d.t.Fatalf("no capture within a minute; %v; counters: %s", err, nonZero(c))
		}
	}
}

// none fails if there is a capture of a TCP flow, also of one that would be handed over
// as it is idle.
func (d *tap) none() {
	d.t.Helper()
	time.Sleep(d.idle() + 50*time.Millisecond)
	if _, err := d.Sweep(); err != nil {
		d.t.Fatal(err)
	}
	for {
		select {
		case s := <-d.samples:
			if s.Key.Proto == flow.TCP {
				d.t.Errorf("captured: %s > %s, %d bytes", s.Initiator(), s.Responder(), len(s.Data))
			}
		case <-time.After(100 * time.Millisecond):
			return
		}
	}
}

// idle is the time that the tests of this file set.
func (d *tap) idle() time.Duration { return 200 * time.Millisecond }

func nonZero(c Counters) (text string) {
	for _, one := range c {
		if one.Value != 0 {
			text += fmt.Sprintf(" %s %d", one.Name, one.Value)
		}
	}
	return text
}

// talk has a client and a server exchange more than a capture holds, and returns the
// client's and the server's address.
func (n *network) talk(client, server string, at netip.AddrPort) (netip.AddrPort, netip.AddrPort) {
	n.t.Helper()
	var ln net.Listener
	n.in(server, func() (err error) {
		ln, err = net.Listen("tcp4", netip.AddrPortFrom(at.Addr(), 0).String())
		return err
	})
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 700)
		if _, err := io.ReadFull(c, buf); err == nil {
			_, _ = c.Write(buf)
		}
		_, _ = io.Copy(io.Discard, c)
	}()
	var from netip.AddrPort
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	n.in(client, func() error {
		c, err := net.DialTimeout("tcp4", ln.Addr().String(), time.Minute)
		if err != nil {
			return err
		}
		defer c.Close()
		from = c.LocalAddr().(*net.TCPAddr).AddrPort()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := c.Write(make([]byte, 700)); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 700))
		return err
	})
	return from, to
}

// identifies fails unless the connection is captured once, whole, with its ends as they
// are. from is the client's address as the interface sees it, without port where the
// gateway changes it.
func (d *tap) identifies(from, to netip.AddrPort) {
	d.t.Helper()
	s := d.next()
	if s.Initiator().Addr() != from.Addr() || from.Port() != 0 && s.Initiator() != from || s.Responder() != to {
		d.t.Errorf("captured %s > %s, want %s > %s", s.Initiator(), s.Responder(), from, to)
	}
	if !s.Complete() || len(s.Packets) < 4 {
		d.t.Errorf("captured %d bytes in %d packets, handed over as %s", len(s.Data), len(s.Packets), s.Reason)
	}
}

// routed is a client and a server with a gateway between them.
func routed(t *testing.T) *network {
	n := newNetwork(t, "client", "gateway", "server")
	n.cable("client", "c0", "gateway", "lan")
	n.cable("server", "s0", "gateway", "wan")
	n.address("client", "c0", "10.1.0.2/24")
	n.address("gateway", "lan", "10.1.0.1/24")
	n.address("gateway", "wan", "10.2.0.1/24")
	n.address("server", "s0", "10.2.0.2/24")
	n.route("client", "default", "10.1.0.1")
	n.route("server", "default", "10.2.0.1")
	return n
}

var topologyServer = netip.MustParseAddrPort("10.2.0.2:0")

func TestTopologyRouted(t *testing.T) {
	for _, dev := range []string{"lan", "wan"} {
		n := routed(t)
		d := n.attach("gateway", dev, Options{Idle: 200 * time.Millisecond})
		d.identifies(n.talk("client", "server", topologyServer))
		// The other way round, a server on the client's side.
		d.identifies(n.talk("server", "client", netip.MustParseAddrPort("10.1.0.2:0")))
	}
}

// On the far side of a gateway that masquerades, flows have the gateway's own address, the
// same in both directions.
func TestTopologyMasquerade(t *testing.T) {
	n := routed(t)
	n.in("gateway", func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
		chain := c.AddChain(&nftables.Chain{Name: "post", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		name := append([]byte("wan"), make([]byte, 13)...)
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name}, &expr.Masq{}}})
		return c.Flush()
	})
	n.in("gateway", func() error {
		for _, tt := range []struct {
			iface string
			found bool
			want  Masquerade
		}{{"wan", true, Masquerade{Table: "ip nat", Inside: []string{"lan"}}}, {"lan", false, Masquerade{}}, {"none", false, Masquerade{}}} {
			m, found := FindMasquerade(tt.iface)
			if found != tt.found || !cmp.Equal(m, tt.want) {
				t.Errorf("%s: %+v, %v, want %+v", tt.iface, m, found, tt.want)
			}
		}
		return nil
	})
	d := n.attach("gateway", "wan", Options{Idle: 200 * time.Millisecond})
	_, to := n.talk("client", "server", topologyServer)
	d.identifies(netip.MustParseAddrPort("10.2.0.1:0"), to)
}

// The attached interface is the host's own: frames with partial checksums, super-packets.
func TestTopologyLocalClientAndServer(t *testing.T) {
	n := routed(t)
	d := n.attach("client", "c0", Options{Idle: 200 * time.Millisecond})
	d.identifies(n.talk("client", "server", topologyServer))
	d.identifies(n.talk("server", "client", netip.MustParseAddrPort("10.1.0.2:0")))
}

func TestTopologyBridgePort(t *testing.T) {
	n := newNetwork(t, "client", "gateway", "server")
	n.cable("client", "c0", "gateway", "p0")
	n.cable("server", "s0", "gateway", "p1")
	n.add("gateway", &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}, "p0", "p1")
	n.address("client", "c0", "10.2.0.3/24")
	n.address("server", "s0", "10.2.0.2/24")
	n.address("gateway", "br0", "10.2.0.1/24")
	d := n.attach("gateway", "p0", Options{Idle: 200 * time.Millisecond})
	d.identifies(n.talk("client", "server", topologyServer))
	// The bridge's own address: it goes up through the bridge and comes back from it.
	d.identifies(n.talk("client", "gateway", netip.MustParseAddrPort("10.2.0.1:0")))
	d.identifies(n.talk("gateway", "client", netip.MustParseAddrPort("10.2.0.3:0")))
}

// A device stacked on the attached interface, which frames come up through.
func TestTopologyStackedDevice(t *testing.T) {
	n := newNetwork(t, "client", "gateway", "server")
	n.cable("client", "c0", "gateway", "lan")
	n.cable("server", "s0", "gateway", "wan")
	n.in("gateway", func() error {
		l, err := netlink.LinkByName("lan")
		if err != nil {
			return err
		}
		return netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "mv0", ParentIndex: l.Attrs().Index}, Mode: netlink.MACVLAN_MODE_BRIDGE})
	})
	n.up("gateway", "mv0")
	n.address("client", "c0", "10.1.0.2/24")
	n.address("gateway", "mv0", "10.1.0.1/24")
	n.address("gateway", "wan", "10.2.0.1/24")
	n.address("server", "s0", "10.2.0.2/24")
	n.route("client", "default", "10.1.0.1")
	n.route("server", "default", "10.2.0.1")
	d := n.attach("gateway", "lan", Options{Idle: 200 * time.Millisecond})
	d.identifies(n.talk("client", "server", topologyServer))
	n.reflected(d, "client", "c0", "gateway", "mv0", netip.MustParseAddrPort("10.1.0.2:5000"), netip.MustParseAddrPort("10.2.0.2:443"))
}

// oneArmed is a gateway with one interface, through which all packets come and go.
func oneArmed(t *testing.T) *network {
	n := newNetwork(t, "client", "gateway", "server", "switch")
	for _, host := range []string{"client", "gateway", "server"} {
		n.cable(host, "e0", "switch", host)
	}
	n.add("switch", &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}, "client", "gateway", "server")
	n.address("client", "e0", "10.1.0.2/24")
	n.address("gateway", "e0", "10.1.0.1/24")
	n.address("gateway", "e0", "10.2.0.1/24")
	n.address("server", "e0", "10.2.0.2/24")
	n.route("client", "default", "10.1.0.1")
	n.route("server", "default", "10.2.0.1")
	return n
}

// Each packet crosses a one-armed gateway's interface twice, in both hooks: which side it
// is from can't be told, so that nothing is captured unless the operator says so.
func TestTopologyOneArmed(t *testing.T) {
	n := oneArmed(t)
	d := n.attach("gateway", "e0", Options{Idle: 200 * time.Millisecond})
	n.talk("client", "server", topologyServer)
	d.none()
	c, err := d.Counters()
	if err != nil || c.Values()["reflected"] == 0 {
		t.Errorf("not counted: %v,%s", err, nonZero(c))
	}

	n = oneArmed(t)
	d = n.attach("gateway", "e0", Options{Idle: 200 * time.Millisecond, OneHook: true})
	d.identifies(n.talk("client", "server", topologyServer))
}

// A mirror port brings both directions in through one hook.
func TestTopologyMirrorPort(t *testing.T) {
	for _, oneHook := range []bool{false, true} {
		n := routed(t)
		n.cable("gateway", "mirror", "server", "monitor")
		n.in("gateway", func() error { return mirror("wan", "mirror") })
		d := n.attach("server", "monitor", Options{Idle: 200 * time.Millisecond, OneHook: oneHook})
		from, to := n.talk("client", "server", topologyServer)
		if oneHook {
			d.identifies(from, to)
		} else {
			d.none()
		}
	}
}

// mirror copies all frames of a device, in and out, to another, as a switch's mirror port
// does.
func mirror(from, to string) error {
	src, err := netlink.LinkByName(from)
	if err != nil {
		return err
	}
	dst, err := netlink.LinkByName(to)
	if err != nil {
		return err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "mirror", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R2, int32(dst.Attrs().Index)),
		asm.Mov.Imm(asm.R3, 0), // out of it
		asm.FnCloneRedirect.Call(),
		asm.Mov.Imm(asm.R0, -1), // TC_ACT_UNSPEC
		asm.Return(),
	}})
	if err != nil {
		return err
	}
	defer prog.Close() // the filters hold it
	if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: src.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}); err != nil {
		return fmt.Errorf("add clsact: %w", err)
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		err := netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: src.Attrs().Index, Parent: parent, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
			Fd:          prog.FD(), Name: "mirror", DirectAction: true,
		})
		if err != nil {
			return fmt.Errorf("mirror %s to %s: %w", from, to, err)
		}
	}
	return nil
}

// Two uplinks: what goes out through one and comes back through the other is seen from
// one side only on each. It is not judged unless the operator says so.
func TestTopologyTwoUplinks(t *testing.T) {
	for _, oneWay := range []bool{false, true} {
		n := newNetwork(t, "client", "gateway", "router", "server")
		n.cable("client", "c0", "gateway", "lan")
		n.cable("gateway", "up1", "router", "r1")
		n.cable("gateway", "up2", "router", "r2")
		n.cable("router", "r3", "server", "s0")
		n.address("client", "c0", "10.1.0.2/24")
		n.address("gateway", "lan", "10.1.0.1/24")
		n.address("gateway", "up1", "10.3.1.1/24")
		n.address("router", "r1", "10.3.1.2/24")
		n.address("gateway", "up2", "10.3.2.1/24")
		n.address("router", "r2", "10.3.2.2/24")
		n.address("router", "r3", "10.2.0.1/24")
		n.address("server", "s0", "10.2.0.2/24")
		n.route("client", "default", "10.1.0.1")
		n.route("server", "default", "10.2.0.1")
		n.route("gateway", "10.2.0.0/24", "10.3.1.2")
		n.route("router", "10.1.0.0/24", "10.3.2.1")
		out := n.attach("gateway", "up1", Options{Idle: 200 * time.Millisecond, OneWay: oneWay})
		from, to := n.talk("client", "server", topologyServer)
		if !oneWay {
			out.none()
			c, err := out.Counters()
			if err != nil || c.Values()["one_way"] == 0 {
				t.Errorf("not counted: %v,%s", err, nonZero(c))
			}
			continue
		}
		time.Sleep(out.idle() + 50*time.Millisecond) // one direction has fewer than 1024 bytes
		if _, err := out.Sweep(); err != nil {
			t.Fatal(err)
		}
		s := out.next()
		if !s.OneWay || s.Initiator() != from || s.Responder() != to {
			t.Errorf("captured %s > %s, one-way %v", s.Initiator(), s.Responder(), s.OneWay)
		}
	}
}

// A plain route and a bridge send forged frames back out of the interface that they came
// in through: they count as what they are, frames of that side.
func TestReflectedFramesProveNothing(t *testing.T) {
	t.Run("route", func(t *testing.T) {
		n := routed(t)
		d := n.attach("gateway", "lan", Options{Idle: 200 * time.Millisecond})
		n.reflected(d, "client", "c0", "gateway", "lan", netip.MustParseAddrPort("10.1.0.2:5000"), netip.MustParseAddrPort("10.2.0.2:443"))
	})
	t.Run("bridge", func(t *testing.T) {
		n := newNetwork(t, "client", "gateway", "server")
		n.cable("client", "c0", "gateway", "lan")
		n.cable("server", "s0", "gateway", "wan")
		n.add("gateway", &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}, "lan")
		n.address("client", "c0", "10.1.0.2/24")
		n.address("gateway", "br0", "10.1.0.1/24")
		n.address("gateway", "wan", "10.2.0.1/24")
		n.address("server", "s0", "10.2.0.2/24")
		d := n.attach("gateway", "lan", Options{Idle: 200 * time.Millisecond})
		n.reflected(d, "client", "c0", "gateway", "br0", netip.MustParseAddrPort("10.1.0.2:5000"), netip.MustParseAddrPort("10.2.0.2:443"))
	})
}

// reflected forges a connection between client and server from the client's side. What
// is of the server is routed back there. Fails if that is captured.
func (n *network) reflected(d *tap, host, dev, gateway, near string, client, server netip.AddrPort) {
	n.t.Helper()
	const x, y = 1000, 900000
	var frames [][]byte
	for _, p := range []struct {
		src, dst netip.AddrPort
		flags    byte
		seq, ack uint32
		payload  int
	}{
		{client, server, f.SYN, x, 0, 0},
		{server, client, f.SYN | f.ACK, y, x + 1, 0},
		{client, server, f.ACK, x + 1, y + 1, 0},
		{client, server, f.ACK | f.PSH, x + 1, y + 1, 700},
		{server, client, f.ACK | f.PSH, y + 1, x + 701, 700},
	} {
		frames = append(frames, f.Ethernet(f.IP(p.src, p.dst, f.TCP, f.Numbered(f.Segment(p.src, p.dst, p.flags, nil, make([]byte, p.payload)), p.seq, p.ack))))
	}
	n.returned(d, func() { n.inject(host, dev, gateway, near, frames...) })
	d.none()
}

// inject has a host send frames out of a device to a gateway's device near.
func (n *network) inject(host, dev, gateway, near string, frames ...[]byte) {
	n.t.Helper()
	var gw net.HardwareAddr
	n.in(gateway, func() error {
		l, err := netlink.LinkByName(near)
		if err == nil {
			gw = l.Attrs().HardwareAddr
		}
		return err
	})
	n.in(host, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index}); err != nil {
			return err
		}
		for _, frame := range frames {
			copy(frame, gw)
			copy(frame[6:], l.Attrs().HardwareAddr)
			if _, err := unix.Write(fd, frame); err != nil {
				return err
			}
		}
		return nil
	})
}

// returned runs send and fails unless something leaves the interface for it.
func (n *network) returned(d *tap, send func()) {
	n.t.Helper()
	before, err := d.Counters()
	if err != nil {
		n.t.Fatal(err)
	}
	send()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		after, err := d.Counters()
		if err != nil {
			n.t.Fatal(err)
		}
		if after.Values()["packets_egress"] > before.Values()["packets_egress"] {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatal("nothing was reflected: the test shows nothing")
		}
	}
}
