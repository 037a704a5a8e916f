// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/lab"
)

// Headers as Linux sends them: a SYN and its answer carry 20 bytes of TCP options,
// all others 12 of timestamps.
const (
	ethernetHeader = 14
	tcpSYN         = 40
	tcpHeader      = 32
)

// exchange opens a connection to a listener of the gateway's, has each side send
// random bytes, the client first, and makes sure that they arrive. It returns the
// listener's address.
func (s *scene) exchange(addr netip.Addr, fromClient, fromServer int) netip.AddrPort {
	s.t.Helper()
	l, err := s.Gateway.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer l.Close()
	server := l.Addr().(*net.TCPAddr).AddrPort()
	random := rand.NewChaCha8([32]byte{byte(fromClient), byte(fromServer)})
	up, down := make([]byte, fromClient), make([]byte, fromServer)
	_, _ = random.Read(up)
	_, _ = random.Read(down)
	served := make(chan error, 1)
	go func() {
		served <- func() error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(limit))
			got := make([]byte, len(up))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, up) {
				return fmt.Errorf("the client's bytes did not arrive: %w", err)
			}
			_, err = c.Write(down)
			return err
		}()
	}()
	c, err := s.Client.Dial(s.ctx, "tcp", server.String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write(up); err != nil {
		s.t.Fatal(err)
	}
	got := make([]byte, len(down))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, down) {
		s.t.Fatalf("the server's bytes did not arrive: %v", err)
	}
	if err := <-served; err != nil {
		s.t.Fatal(err)
	}
	return server
}

// gatewayAddr is the gateway's address on the client's leg.
func (s *scene) gatewayAddr(version int) netip.Addr { return s.ClientAddr(version).Prev() }

func ipHeader(addr netip.Addr) int {
	if addr.Is4() {
		return 20
	}
	return 40
}

// handshakeBytes is the length on the wire of SYN, SYN with ACK, and ACK, each with
// l2 bytes in front of the IP header.
func handshakeBytes(addr netip.Addr, l2 int) int {
	return 3*(l2+ipHeader(addr)) + 2*tcpSYN + tcpHeader
}

// captured checks what a verdict says of its capture.
func (s *scene) captured(server netip.AddrPort, packets int, wire uint64, vlan, inner uint16) {
	s.t.Helper()
	v, err := s.daemon.Verdict(s.ctx, server, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	if v.Captured != 1024 || !v.Complete || v.HandedOver != "full" || v.Packets != packets || v.Bytes != wire || v.VLAN != vlan || v.InnerVLAN != inner {
		s.t.Errorf("flow %s > %s vlan %d.%d: %d bytes captured of %d packets, %d bytes, handed over %s; want vlan %d.%d, 1024 bytes of %d packets, %d bytes, full",
			v.Src, v.Dst, v.VLAN, v.InnerVLAN, v.Captured, v.Packets, v.Bytes, v.HandedOver, vlan, inner, packets, wire)
	}
}

// A packet that is larger than a page reaches XDP in fragments, in native mode; the capture knows its length on the wire.
func TestJumboFramesAreCaptured(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"native", "generic", "none"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, lab.Config{ClientLink: lab.LinkConfig{MTU: 9000}})
			s.daemon = s.attach(ingressIn(mode)...)
			if s.daemon.Attached.XDP != mode {
				t.Errorf("xdp %s, want %s", s.daemon.Attached.XDP, mode)
			}
			for _, version := range []int{4, 6} {
				addr := s.gatewayAddr(version)
				const payload = 8800
				server := s.exchange(addr, payload, 10)
				s.captured(server, 4, uint64(handshakeBytes(addr, ethernetHeader)+ethernetHeader+ipHeader(addr)+tcpHeader+payload), 0, 0)
			}
			s.stop(s.daemon)
		})
	}
}

// What the stack sends as one packet of up to 64 KiB, to be cut up later, is one
// packet to the egress program, with a length far beyond the MTU.
func TestSuperPacketsAreCaptured(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	// Both sides trust each other with a large window from the start, so that the
	// first data is as large as a super-packet gets.
	for _, n := range []*lab.Namespace{s.Client, s.Gateway} {
		routes, err := n.Netlink().RouteList(nil, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			r.InitCwnd, r.InitRwnd = 100, 100
			if err := n.Netlink().RouteReplace(&r); err != nil {
				t.Fatal(err)
			}
		}
		for name, value := range map[string]string{"net.ipv4.tcp_rmem": "4096 4194304 8388608", "net.ipv4.tcp_wmem": "4096 4194304 8388608"} {
			if err := n.Sysctl(name, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.daemon = s.attach()
	addr := s.gatewayAddr(4)
	const first = 10 // less than a capture, so that it is filled by the answer
	server := s.exchange(addr, first, 1<<20)
	v := must(s.daemon.Verdict(s.ctx, server, 0))(t)
	before := handshakeBytes(addr, ethernetHeader) + 2*(ethernetHeader+ipHeader(addr)+tcpHeader) + first
	super := int(v.Bytes) - before
	t.Logf("%d packets, %d bytes: the last one carries %d", v.Packets, v.Bytes, super)
	// SYN, SYN with ACK, ACK, request, perhaps its ACK alone, and the first answer.
	if v.Packets < 5 || v.Packets > 6 || v.Captured != 1024 || super < 60000 {
		t.Errorf("captured %d bytes of %d packets, %d bytes on the wire; want a super-packet at the end", v.Captured, v.Packets, v.Bytes)
	}
	s.stop(s.daemon)
}

// qinq has both ends of the client's leg speak two tags.
func (s *scene) qinq(outer, inner uint16) {
	s.t.Helper()
	push := func(proto, id uint16) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, int32(proto>>8|proto<<8)), // network order, on a little-endian host
			asm.Mov.Imm(asm.R3, int32(id)),
			asm.FnSkbVlanPush.Call(),
			asm.JNE.Imm(asm.R0, 0, "drop"),
		}
	}
	pop := func(id uint16) asm.Instructions {
		return asm.Instructions{
			asm.LoadMem(asm.R2, asm.R6, 24, asm.Word), // vlan_tci
			asm.And.Imm(asm.R2, 0x0fff),
			asm.JNE.Imm(asm.R2, int32(id), "drop"),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.FnSkbVlanPop.Call(),
			asm.JNE.Imm(asm.R0, 0, "drop"),
		}
	}
	program := func(parts ...asm.Instructions) (code asm.Instructions) {
		code = append(code, asm.Mov.Reg(asm.R6, asm.R1))
		for _, part := range parts {
			code = append(code, part...)
		}
		return append(code,
			asm.Mov.Imm(asm.R0, -1), asm.Return(), // TCX_NEXT
			asm.Mov.Imm(asm.R0, 2).WithSymbol("drop"), asm.Return()) // TCX_DROP
	}
	for _, end := range []struct {
		n   *lab.Namespace
		dev string
	}{{s.Client, lab.ClientDev}, {s.Gateway, lab.GatewayClientDev}} {
		// A veth hands tags on beside the frame; on a cable they are in it.
		if out, err := s.Exec(s.ctx, end.n, "ethtool", "-K", end.dev, "txvlan", "off", "tx-vlan-stag-hw-insert", "off"); err != nil {
			s.t.Fatalf("%v: %s", err, out)
		}
		dev, err := end.n.Netlink().LinkByName(end.dev)
		if err != nil {
			s.t.Fatal(err)
		}
		for at, code := range map[ebpf.AttachType]asm.Instructions{
			ebpf.AttachTCXEgress:  program(push(unix.ETH_P_8021Q, inner), push(unix.ETH_P_8021AD, outer)),
			ebpf.AttachTCXIngress: program(pop(outer), pop(inner)),
		} {
			err := end.n.Do(func() error {
				prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "qinq", Type: ebpf.SchedCLS, AttachType: at, Instructions: code, License: "Apache-2.0"})
				if err != nil {
					return err
				}
				l, err := link.AttachTCX(link.TCXOptions{Interface: dev.Attrs().Index, Program: prog, Attach: at})
				if err == nil {
					s.t.Cleanup(func() { l.Close() })
				}
				return errors.Join(err, prog.Close())
			})
			if err != nil {
				s.t.Fatal(err)
			}
		}
	}
	s.ownTCX++
}

// ingressIn asks for XDP in a mode, or for TCX where it is none.
func ingressIn(mode string) []string {
	if mode == "none" {
		return []string{"--ingress", "tcx"}
	}
	return []string{"--xdp", mode}
}

// Both directions of a flow in two VLANs have one key: to XDP both tags are in the frame, at
// TCX ingress and at egress the outer one is beside it, as with hardware that inserts it.
func TestQinQIsOneFlow(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"native", "generic", "none"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, lab.Config{})
			s.qinq(7, 4094)
			s.daemon = s.attach(ingressIn(mode)...)
			addr := s.gatewayAddr(4)
			const l2, payload = ethernetHeader + 8, 1000
			server := s.exchange(addr, payload, 10)
			s.captured(server, 4, uint64(handshakeBytes(addr, l2)+l2+ipHeader(addr)+tcpHeader+payload), 7, 4094)
			s.stop(s.daemon)
		})
	}
}

// tunnelDevices makes a device without Ethernet header in the client's and in the
// gateway's namespace and carries packets between them.
func (s *scene) tunnelDevices(name string, near, far []netip.Prefix) {
	s.t.Helper()
	var files []*os.File
	for _, end := range []struct {
		n     *lab.Namespace
		addrs []netip.Prefix
	}{{s.Gateway, near}, {s.Client, far}} {
		err := end.n.Do(func() error {
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return fmt.Errorf("open /dev/net/tun: %w", err)
			}
			req, err := unix.NewIfreq(name)
			if err == nil {
				req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
				err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
			}
			if err != nil {
				return errors.Join(err, unix.Close(fd))
			}
			files = append(files, os.NewFile(uintptr(fd), name))
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
		nl := end.n.Netlink()
		dev, err := nl.LinkByName(name)
		for _, a := range end.addrs {
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}, Flags: unix.IFA_F_NODAD}
			if err == nil {
				err = nl.AddrAdd(dev, addr)
			}
		}
		if err == nil {
			err = nl.LinkSetUp(dev)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	var pumps sync.WaitGroup
	for i, from := range files {
		to := files[1-i]
		pumps.Go(func() {
			buf := make([]byte, 1<<16)
			for {
				n, err := from.Read(buf)
				if err != nil {
					return // closed
				}
				_, _ = to.Write(buf[:n]) // a queue that is full loses packets, as a wire does
			}
		})
	}
	s.t.Cleanup(func() {
		for _, f := range files {
			f.Close()
		}
		pumps.Wait()
	})
}

// On a device whose packets begin with the IP header, flows are known in both
// directions, and their packets are counted with a header of zeros. The tun driver
// runs XDP on frames with Ethernet header only, so it is TCX or the generic mode.
func TestDeviceWithoutEthernetHeader(t *testing.T) {
	t.Parallel()
	for mode, xdp := range map[string]string{"auto": "none", "generic": "generic"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, lab.Config{})
			addrs := [][]netip.Prefix{
				{netip.MustParsePrefix("10.99.0.1/24"), netip.MustParsePrefix("fd99::1/64")},
				{netip.MustParsePrefix("10.99.0.2/24"), netip.MustParsePrefix("fd99::2/64")},
			}
			s.tunnelDevices("tun0", addrs[0], addrs[1])
			s.refused(t, []string{s.Binary(), "attach", "-i", "tun0", "--xdp", "native"}, nil, []string{"tun0", "native", "generic"})
			// No rule: the random bytes are judged before the answer is sent.
			s.daemon = s.attach("-i", "tun0", "--xdp", mode, "--policy", s.file("none.yaml", "mode: enforce\n"))
			if a := s.daemon.Attached; a.XDP != xdp || a.Egress != "tcx" {
				t.Errorf("xdp %s, egress %s", a.XDP, a.Egress)
			}
			for _, prefix := range addrs[0] {
				addr := prefix.Addr()
				const payload = 1000
				server := s.exchange(addr, payload, 10)
				s.captured(server, 4, uint64(handshakeBytes(addr, ethernetHeader)+ethernetHeader+ipHeader(addr)+tcpHeader+payload), 0, 0)
				v := must(s.daemon.Verdict(s.ctx, server, 0))(t)
				if v.Src.Addr() != prefix.Addr().Next() {
					t.Errorf("the initiator is %s, want %s", v.Src.Addr(), prefix.Addr().Next())
				}
				// A blocked one is dropped here, too.
				s.blockedExchange("tun0", addr)
			}
			s.stop(s.daemon)
		})
	}
}

// blockedExchange makes sure that a connection's bytes arrive until it is blocked and
// not any more from then on.
func (s *scene) blockedExchange(dev string, addr netip.Addr) {
	s.t.Helper()
	l, err := s.Gateway.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer l.Close()
	c, err := s.Client.Dial(s.ctx, "tcp", l.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	served, err := l.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	defer served.Close()
	buf := make([]byte, 10)
	for range 2 {
		if _, err := c.Write([]byte("passes")); err != nil {
			s.t.Fatal(err)
		}
		_ = served.SetReadDeadline(time.Now().Add(limit))
		if n, err := served.Read(buf); err != nil || string(buf[:n]) != "passes" {
			s.t.Fatalf("read %q, %v before the block", buf[:n], err)
		}
	}
	if _, err := s.Earlydrop(s.ctx, "blocked", "add", "-i", dev, "tcp", c.LocalAddr().String(), l.Addr().String()); err != nil {
		s.t.Fatal(err)
	}
	if _, err := c.Write([]byte("must not")); err != nil {
		s.t.Fatal(err)
	}
	_ = served.SetReadDeadline(time.Now().Add(time.Second)) // several retransmissions
	if n, err := served.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Errorf("read %q, %v after the block", buf[:n], err)
	}
	if _, err := s.Earlydrop(s.ctx, "blocked", "del", "-i", dev, "tcp", c.LocalAddr().String(), l.Addr().String()); err != nil {
		s.t.Fatal(err)
	}
	_ = served.SetReadDeadline(time.Now().Add(limit))
	if n, err := served.Read(buf); err != nil || string(buf[:n]) != "must not" {
		s.t.Errorf("read %q, %v after the block was removed", buf[:n], err)
	}
}
