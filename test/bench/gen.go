// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/lab"
)

// The small packets are UDP datagrams in Ethernet frames of 60 bytes (64 with the
// checksum of a cable), of flowCount flows to one port each of the server.
const (
	frameLen   = 60
	flowCount  = 16 // a power of two that fits into the low byte of firstPort
	firstPort  = 0x4e00
	passedPort = 9000
	// droppedPort is what each candidate that can drop is told to drop.
	droppedPort = 9001
)

// chunk is how many packets one call of BPF_PROG_RUN makes: a few tens of
// milliseconds, so that a run ends in time.
const chunk = 1 << 16

// XDP's return values, from <linux/bpf.h>.
const (
	xdpAborted = 0
	xdpDrop    = 1
	xdpPass    = 2
	xdpTX      = 3
)

// xdpMD is struct xdp_md of <linux/bpf.h>.
type xdpMD struct {
	Data, DataEnd, DataMeta, IngressIfindex, RxQueueIndex, EgressIfindex uint32
}

// buildFrame returns the first frame to a port: Ethernet, IPv4, UDP without a
// checksum, zeros.
func buildFrame(srcMAC, dstMAC net.HardwareAddr, src, dst netip.Addr, port uint16) ([]byte, error) {
	if len(srcMAC) != 6 || len(dstMAC) != 6 || !src.Is4() || !dst.Is4() {
		return nil, fmt.Errorf("frame from %v %v to %v %v: want Ethernet and IPv4 addresses", srcMAC, src, dstMAC, dst)
	}
	f := make([]byte, frameLen)
	copy(f[0:], dstMAC)
	copy(f[6:], srcMAC)
	binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IP)
	ip := f[14:34]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], frameLen-14)
	ip[6] = 0x40 // don't fragment
	ip[8] = 64
	ip[9] = unix.IPPROTO_UDP
	copy(ip[12:], src.AsSlice())
	copy(ip[16:], dst.AsSlice())
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(f[34:], firstPort)
	binary.BigEndian.PutUint16(f[36:], port)
	binary.BigEndian.PutUint16(f[38:], frameLen-34)
	return f, nil
}

// generator sends frames from the client as fast as the kernel makes them: XDP
// live frames, which BPF_PROG_RUN hands to the client's device.
type generator struct {
	lab     *lab.Lab
	prog    *ebpf.Program
	frame   []byte
	ifindex int
}

func newGenerator(l *lab.Lab, port uint16) (*generator, error) {
	client, err := l.Client.Netlink().LinkByName(lab.ClientDev)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", lab.ClientDev, err)
	}
	gateway, err := l.Gateway.Netlink().LinkByName(lab.GatewayClientDev)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", lab.GatewayClientDev, err)
	}
	frame, err := buildFrame(client.Attrs().HardwareAddr, gateway.Attrs().HardwareAddr, l.ClientAddr(4), l.ServerAddr(4), port)
	if err != nil {
		return nil, err
	}
	// A page comes back with what the gateway made of it (addresses, time to
	// live), so the headers are written each time.
	code := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetPrandomU32.Call(),
		asm.And.Imm(asm.R0, flowCount-1),
		asm.LoadMem(asm.R1, asm.R6, 0, asm.Word),
		asm.LoadMem(asm.R2, asm.R6, 4, asm.Word),
		asm.Mov.Reg(asm.R3, asm.R1),
		asm.Add.Imm(asm.R3, frameLen),
		asm.JGT.Reg(asm.R3, asm.R2, "short"),
	}
	for at := 0; at < 44; at += 4 {
		word := int64(int32(binary.NativeEndian.Uint32(frame[at:])))
		code = append(code, asm.StoreImm(asm.R1, int16(at), word, asm.Word))
	}
	code = append(code,
		asm.StoreMem(asm.R1, 35, asm.R0, asm.Byte), // low byte of the source port
		asm.Mov.Imm(asm.R0, xdpTX),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpAborted).WithSymbol("short"),
		asm.Return(),
	)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "bench_generator", Type: ebpf.XDP, Instructions: code, License: "Apache-2.0"})
	if err != nil {
		return nil, fmt.Errorf("load the packet generator: %w", err)
	}
	return &generator{lab: l, prog: prog, frame: frame, ifindex: client.Attrs().Index}, nil
}

func (g *generator) close() error { return g.prog.Close() }

// send sends n packets, n > 0.
func (g *generator) send(n uint32) error {
	err := g.lab.Client.Do(func() error {
		_, err := g.prog.Run(&ebpf.RunOptions{
			Data:    g.frame,
			Context: xdpMD{DataEnd: frameLen, IngressIfindex: uint32(g.ifindex)},
			Repeat:  n,
			Flags:   unix.BPF_F_TEST_XDP_LIVE_FRAMES,
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("send %d packets as XDP live frames (needs Linux 5.18): %w", n, err)
	}
	return nil
}

// sendFor sends packets for about d and returns how many and how long it took.
func (g *generator) sendFor(ctx context.Context, d time.Duration) (uint64, time.Duration, error) {
	var n uint64
	start := time.Now()
	for time.Since(start) < d {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		if err := g.send(chunk); err != nil {
			return 0, 0, err
		}
		n += chunk
	}
	return n, time.Since(start), nil
}

// sink counts and drops the small packets where they reach the server.
type sink struct {
	counts *ebpf.Map
	prog   *ebpf.Program
}

func newSink() (*sink, error) {
	counts, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "bench_arrived", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 2,
	})
	if err != nil {
		return nil, fmt.Errorf("make the map of arrived packets: %w", err)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "bench_sink", Type: ebpf.XDP, License: "Apache-2.0", Instructions: asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, 42),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
		asm.LoadMem(asm.R4, asm.R2, 12, asm.Half),
		asm.JNE.Imm(asm.R4, networkOrder(unix.ETH_P_IP), "pass"),
		asm.LoadMem(asm.R4, asm.R2, 23, asm.Byte),
		asm.JNE.Imm(asm.R4, unix.IPPROTO_UDP, "pass"),
		asm.LoadMem(asm.R4, asm.R2, 36, asm.Half),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.JEq.Imm(asm.R4, networkOrder(passedPort), "count"),
		asm.StoreImm(asm.RFP, -4, 1, asm.Word),
		asm.JNE.Imm(asm.R4, networkOrder(droppedPort), "pass"),
		asm.LoadMapPtr(asm.R1, counts.FD()).WithSymbol("count"),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, xdpDrop),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("pass"),
		asm.Return(),
	}})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("load the packet counter: %w", err), counts.Close())
	}
	return &sink{counts, prog}, nil
}

func (s *sink) close() error { return errors.Join(s.prog.Close(), s.counts.Close()) }

// arrived returns how many packets to the port have come since the start.
func (s *sink) arrived(port uint16) (uint64, error) {
	var perCPU []uint64
	if err := s.counts.Lookup(uint32(port-passedPort), &perCPU); err != nil {
		return 0, fmt.Errorf("read the count of arrived packets: %w", err)
	}
	var n uint64
	for _, c := range perCPU {
		n += c
	}
	return n, nil
}

// networkOrder is what a 16-bit load of a value that lies in network order yields.
func networkOrder(v uint16) int32 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return int32(binary.NativeEndian.Uint16(b[:]))
}

// newPass makes an XDP program that lets everything pass, large frames too.
func newPass() (*ebpf.Program, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bench_pass", Type: ebpf.XDP, Flags: unix.BPF_F_XDP_HAS_FRAGS, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	})
	if err != nil {
		return nil, fmt.Errorf("load the passing program: %w", err)
	}
	return p, nil
}

// attachXDP attaches a program to a device in the driver (native).
func attachXDP(n *lab.Namespace, dev string, p *ebpf.Program) (link.Link, error) {
	d, err := n.Netlink().LinkByName(dev)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", dev, err)
	}
	var lk link.Link
	err = n.Do(func() error {
		lk, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: d.Attrs().Index, Flags: link.XDPDriverMode})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach XDP to %s: %w", dev, err)
	}
	return lk, nil
}
