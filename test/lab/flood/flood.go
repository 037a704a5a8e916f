// SPDX-License-Identifier: Apache-2.0

// Package flood sends frames of very many flows, much faster than a program that sends packets
// could.
package flood

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/lab"
)

// Generator sends a sequence of frames over and over out of a device, each time for
// another flow, whose initiator's address and port are its own: the kernel runs a small
// XDP program on frames of its own ("live frames"), which fills them in and redirects them.
type Generator struct {
	prog  *ebpf.Program
	count *ebpf.Map // of the frames so far
	size  int       // of each frame
	ns    *lab.Namespace

	parking netlink.Link // a device that is used for nothing else
	parked  link.Link    // the program on it
}

// Frame is one frame of a flood's sequence: Ethernet, IPv4 without options, TCP or
// UDP. The initiator's address and port are filled in for each flow, and the checksum of
// the IP header, since earlydrop leaves frames alone that no host would accept.
type Frame struct {
	Bytes []byte
	Reply bool // the initiator is the destination
}

// Where the fields stand in an IPv4 frame without tags and options.
const (
	offChecksum = 14 + 10
	offSource   = 14 + 12
	offDest     = 14 + 16
	offPorts    = 14 + 20
)

// strayMAC is nobody's address: the host that receives such a frame drops it right
// after XDP, so that the flood is earlydrop's burden and not the routing code's.
var strayMAC = []byte{2, 0, 0, 0, 0xde, 0xad}

// New prepares a flood out of a device of the namespace. The device at the
// other end of the veth pair must have an XDP program in its driver. 2^32 flows
// have addresses of their own.
func New(n *lab.Namespace, device string, frames ...Frame) (_ *Generator, err error) {
	out, err := n.Netlink().LinkByName(device)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", device, err)
	}
	g := &Generator{ns: n}
	for _, f := range frames {
		g.size = max(g.size, (len(f.Bytes)+3)&^3) // what is behind the IP packet is padding
	}
	g.count, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return nil, fmt.Errorf("make the flood's counter: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.count.Close())
		}
	}()
	code := asm.Instructions{
		asm.LoadMem(asm.R7, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, int32(g.size)),
		asm.JGT.Reg(asm.R2, asm.R3, "drop"),
		asm.LoadMapValue(asm.R1, g.count.FD(), 0),
		asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord),
		asm.Mov.Reg(asm.R2, asm.R6),
		asm.Add.Imm(asm.R2, 1),
		asm.StoreMem(asm.R1, 0, asm.R2, asm.DWord), // one run at a time
		// R6: number of the flow; R8: of the frame in its sequence.
		asm.Mov.Reg(asm.R8, asm.R6),
		asm.Mod.Imm(asm.R8, int32(len(frames))),
		asm.Div.Imm(asm.R6, int32(len(frames))),
		// An odd factor: each of 2^32 flows has an address of its own.
		asm.Mov.Reg(asm.R9, asm.R6),
		asm.Mul.Imm32(asm.R9, 0x1e3779b1),
		asm.Add.Imm(asm.R6, 1024),
		asm.And.Imm(asm.R6, 0xffff),
	}
	for i, f := range frames {
		sum, err := headerSum(f)
		if err != nil {
			return nil, err
		}
		next := fmt.Sprintf("not-%d", i)
		code = append(code, asm.JNE.Imm(asm.R8, int32(i), next))
		// A page comes back with what the other side made of it, so that all is
		// written each time.
		padded := append(bytes.Clone(f.Bytes), make([]byte, g.size-len(f.Bytes))...)
		for at := 0; at < g.size; at += 4 {
			code = append(code, asm.StoreImm(asm.R7, int16(at), int64(int32(binary.NativeEndian.Uint32(padded[at:]))), asm.Word))
		}
		addr, port := int16(offSource), int16(offPorts)
		if f.Reply {
			addr, port = offDest, offPorts+2
		}
		code = append(code,
			asm.StoreMem(asm.R7, addr, asm.R9, asm.Word),
			asm.StoreMem(asm.R7, port, asm.R6, asm.Half),
			asm.Mov.Imm(asm.R5, int32(sum)),
			asm.Ja.Label("sum"),
			asm.Mov.Imm(asm.R0, 0).WithSymbol(next),
		)
	}
	code = append(code,
		asm.Ja.Label("drop"),
		// The ones' complement sum does not depend on the order of bytes.
		asm.Mov.Reg(asm.R4, asm.R9).WithSymbol("sum"),
		asm.And.Imm(asm.R4, 0xffff),
		asm.Add.Reg(asm.R5, asm.R4),
		asm.Mov.Reg32(asm.R4, asm.R9),
		asm.RSh.Imm(asm.R4, 16),
		asm.Add.Reg(asm.R5, asm.R4),
	)
	for range 2 { // what is carried is added again
		code = append(code,
			asm.Mov.Reg(asm.R4, asm.R5),
			asm.RSh.Imm(asm.R4, 16),
			asm.And.Imm(asm.R5, 0xffff),
			asm.Add.Reg(asm.R5, asm.R4),
		)
	}
	code = append(code,
		asm.Xor.Imm(asm.R5, 0xffff),
		asm.StoreMem(asm.R7, offChecksum, asm.R5, asm.Half),
		asm.Mov.Imm(asm.R1, int32(out.Attrs().Index)),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpDrop).WithSymbol("drop"),
		asm.Return(),
	)
	g.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{Name: "ed_flood", Type: ebpf.XDP, License: "GPL", Instructions: code})
	if err != nil {
		return nil, fmt.Errorf("load the flood's program: %w", err)
	}
	if err := g.park(); err != nil {
		return nil, errors.Join(err, g.prog.Close())
	}
	return g, nil
}

// floods numbers the devices that programs are parked on.
var floods atomic.Int64

// park attaches the program to a device without packets. Each call that sends live frames enters
// the program in the kernel's table of direct calls, and takes it out again, unless it is there
// anyway: that waits for two of RCU's grace periods, some 24 ms, and calls side by side wait for
// one another.
func (g *Generator) park() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("flood%d", floods.Add(1))
	parking := &netlink.Veth{LinkAttrs: attrs, PeerName: attrs.Name + "p"}
	if err := g.ns.Netlink().LinkAdd(parking); err != nil {
		return fmt.Errorf("add %s to park the flood's program on: %w", attrs.Name, err)
	}
	g.parking = parking
	err := g.ns.Do(func() (err error) {
		g.parked, err = link.AttachXDP(link.XDPOptions{Program: g.prog, Interface: parking.Index, Flags: link.XDPDriverMode})
		return err
	})
	if err != nil {
		return errors.Join(fmt.Errorf("park the flood's program on %s: %w", attrs.Name, err), g.unpark())
	}
	return nil
}

func (g *Generator) unpark() (err error) {
	if g.parked != nil {
		err = g.parked.Close()
	}
	return errors.Join(err, g.ns.Netlink().LinkDel(g.parking))
}

const xdpDrop = 1

// headerSum is the sum of the IP header's words, as they lie in memory, without its
// checksum and the address that is filled in.
func headerSum(f Frame) (uint32, error) {
	if len(f.Bytes) < offPorts+4 || f.Bytes[14] != 0x45 {
		return 0, fmt.Errorf("a flood's frame of %d bytes is no IPv4 without options", len(f.Bytes))
	}
	header := bytes.Clone(f.Bytes[14:34])
	clear(header[10:12])
	if f.Reply {
		clear(header[16:20])
	} else {
		clear(header[12:16])
	}
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.NativeEndian.Uint16(header[i:]))
	}
	return sum, nil
}

// Close frees what the generator takes.
func (g *Generator) Close() error { return errors.Join(g.unpark(), g.prog.Close(), g.count.Close()) }

// testLiveFrames is BPF_F_TEST_XDP_LIVE_FRAMES.
const testLiveFrames = 1 << 1

// Run sends until ctx ends, as fast as it goes or, with a rate, that many frames per
// second, and returns how many were sent.
func (g *Generator) Run(ctx context.Context, rate int) (sent uint64, err error) {
	burst := uint32(16384)
	if rate > 0 {
		burst = uint32(max(64, rate/200))
	}
	start := time.Now()
	err = g.ns.Do(func() error {
		for ctx.Err() == nil {
			if rate > 0 {
				ahead := time.Duration(float64(sent)/float64(rate)*1e9) - time.Since(start)
				if ahead > 0 {
					time.Sleep(min(ahead, 100*time.Millisecond))
					continue
				}
			}
			_, err := g.prog.Run(&ebpf.RunOptions{Data: make([]byte, g.size), Repeat: burst, Flags: testLiveFrames})
			if err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("send live frames: %w", err)
			}
			sent += uint64(burst)
		}
		return nil
	})
	return sent, err
}

// Ethernet returns a frame of layers, whose lengths are filled in, to nobody's address: the host
// that receives it drops it right after XDP.
func Ethernet(parts ...gopacket.SerializableLayer) ([]byte, error) {
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: strayMAC, EthernetType: layers.EthernetTypeIPv4}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, append([]gopacket.SerializableLayer{eth}, parts...)...)
	if err != nil {
		return nil, fmt.Errorf("build a frame of the flood: %w", err)
	}
	return buf.Bytes(), nil
}
