// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/lab"
)

// attacker sends frames of any content towards the gateway from one of its two legs. It
// sees nothing of what the other leg sends, and nothing that it is not told.
type attacker struct {
	fd       int
	src, dst net.HardwareAddr
	sent     int
}

// The two legs. Frames from the client's side come in through the interface that
// earlydrop is attached to; frames from the server's side go out through it.
const (
	clientSide = "client's side"
	serverSide = "server's side"
)

func (g *gateway) attacker(side string) (*attacker, error) {
	ns, dev, near := g.Client, lab.ClientDev, lab.GatewayClientDev
	if side == serverSide {
		ns, dev, near = g.Server, lab.ServerDev, lab.GatewayServerDev
	}
	own, err := ns.Netlink().LinkByName(dev)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", dev, err)
	}
	gw, err := g.Gateway.Netlink().LinkByName(near)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", near, err)
	}
	a := &attacker{fd: -1, src: own.Attrs().HardwareAddr, dst: gw.Attrs().HardwareAddr}
	err = ns.Do(func() error {
		if a.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(a.fd, &unix.SockaddrLinklayer{Ifindex: own.Attrs().Index})
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the attacker's socket on %s: %w", dev, err), a.close())
	}
	return a, nil
}

func (a *attacker) close() error {
	if a.fd < 0 {
		return nil
	}
	return unix.Close(a.fd)
}

// forged is a TCP segment from nobody. A zero Seq or Ack is drawn at random: whoever does
// not see a connection can't know its numbers.
type forged struct {
	flags    uint8
	seq, ack uint32
	payload  []byte
	goodSum  bool  // the checksum is right; by default no host accepts it
	ttl      uint8 // (optional: 64)
}

const (
	fin = 1 << iota
	syn
	rst
	psh
	ack
)

// send puts segments from src to dst on the wire.
func (a *attacker) send(src, dst netip.AddrPort, segments ...forged) error {
	for _, s := range segments {
		frame, err := s.frame(a.src, a.dst, src, dst)
		if err != nil {
			return err
		}
		if _, err := unix.Write(a.fd, frame); err != nil {
			return fmt.Errorf("send a forged segment: %w", err)
		}
		a.sent++
	}
	return nil
}

func (s forged) frame(srcMAC, dstMAC net.HardwareAddr, src, dst netip.AddrPort) ([]byte, error) {
	number := func(n uint32) uint32 {
		if n == 0 {
			return rand.Uint32()
		}
		return n
	}
	ttl := s.ttl
	if ttl == 0 {
		ttl = 64
	}
	eth := &layers.Ethernet{SrcMAC: srcMAC, DstMAC: dstMAC, EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{Version: 4, TTL: ttl, Protocol: layers.IPProtocolTCP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	tcp := &layers.TCP{
		SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), Seq: number(s.seq), Window: 64240,
		FIN: s.flags&fin != 0, SYN: s.flags&syn != 0, RST: s.flags&rst != 0, PSH: s.flags&psh != 0, ACK: s.flags&ack != 0,
	}
	if tcp.ACK {
		tcp.Ack = number(s.ack)
	}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		return nil, err
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, tcp, gopacket.Payload(s.payload))
	if err != nil {
		return nil, fmt.Errorf("build a forged segment: %w", err)
	}
	frame := buf.Bytes()
	if !s.goodSum {
		frame[14+20+16] ^= 0x55
	}
	return frame, nil
}

// isn returns the initial sequence number of the connection from src to dst, as its own
// host can see it: an attack in which the client takes part.
func isn(s *lab.Sniffer, src, dst netip.AddrPort) (uint32, error) {
	for {
		f, err := s.Read()
		if err != nil {
			return 0, err
		}
		p := gopacket.NewPacket(f.Data, layers.LayerTypeEthernet, gopacket.NoCopy)
		ip, _ := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
		tcp, _ := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
		if ip == nil || tcp == nil || !tcp.SYN || tcp.ACK {
			continue
		}
		from, _ := netip.AddrFromSlice(ip.SrcIP)
		to, _ := netip.AddrFromSlice(ip.DstIP)
		if netip.AddrPortFrom(from, uint16(tcp.SrcPort)) == src && netip.AddrPortFrom(to, uint16(tcp.DstPort)) == dst {
			return tcp.Seq, nil
		}
	}
}
