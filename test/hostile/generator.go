// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/lab"
)

// generator sends one frame over and over out of a device, each time with another
// source address and port: the kernel runs a small XDP program on frames of its own
// ("live frames"), which draws them and redirects the frame.
type generator struct {
	prog  *ebpf.Program
	frame []byte
	ns    *lab.Namespace
}

// Where the fields stand in an IPv4 frame without tags and options.
const (
	offSource = 14 + 12
	offPort   = 14 + 20
)

// strayMAC is nobody's address: the host that receives such a frame drops it right
// behind XDP, so that the flood is earlydrop's burden and not the routing code's.
var strayMAC = []byte{2, 0, 0, 0, 0xde, 0xad}

// newGenerator prepares a flood out of a device of the namespace. The device at the
// other end of the veth pair must have an XDP program in its driver.
func newGenerator(n *lab.Namespace, device string, frame []byte) (*generator, error) {
	link, err := n.Netlink().LinkByName(device)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", device, err)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "ed_flood", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R7, asm.R1, 0, asm.Word), // data
			asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
			asm.Mov.Reg(asm.R2, asm.R7),
			asm.Add.Imm(asm.R2, offPort+4),
			asm.JGT.Reg(asm.R2, asm.R3, "drop"),
			asm.FnGetPrandomU32.Call(),
			// Any address will do for a frame that nobody answers.
			asm.StoreMem(asm.R7, offSource, asm.R0, asm.Word),
			asm.FnGetPrandomU32.Call(),
			asm.StoreMem(asm.R7, offPort, asm.R0, asm.Half),
			asm.Mov.Imm(asm.R1, int32(link.Attrs().Index)),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirect.Call(),
			asm.Return(),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("drop"),
			asm.Return(),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("load the flood's program: %w", err)
	}
	return &generator{prog: prog, frame: frame, ns: n}, nil
}

func (g *generator) close() error { return g.prog.Close() }

// testLiveFrames is BPF_F_TEST_XDP_LIVE_FRAMES.
const testLiveFrames = 1 << 1

// run sends until ctx ends, as fast as it goes or, with a rate, that many frames per
// second, and returns how many were sent.
func (g *generator) run(ctx context.Context, rate int) (sent uint64, err error) {
	burst := uint32(16384)
	if rate > 0 {
		burst = uint32(max(64, rate/20)) // each burst costs milliseconds to set up
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
			_, err := g.prog.Run(&ebpf.RunOptions{Data: g.frame, Repeat: burst, Flags: testLiveFrames})
			if err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("send live frames: %w", err)
			}
			sent += uint64(burst)
		}
		return nil
	})
	return sent, err
}

// nowhere is where a flood goes; source address and port are overwritten.
const nowhere = "198.51.100.1:443"

// synFrame is a SYN as Linux sends it: 20 bytes of options, 74 bytes in all.
func synFrame() ([]byte, error) {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{11, 0, 0, 1}, DstIP: net.IP{198, 51, 100, 1}}
	tcp := &layers.TCP{SrcPort: 1, DstPort: 443, Seq: 1, SYN: true, Window: 64240, Options: []layers.TCPOption{
		{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}},
		{OptionType: layers.TCPOptionKindSACKPermitted, OptionLength: 2},
		{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: make([]byte, 8)},
		{OptionType: layers.TCPOptionKindNop},
		{OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3, OptionData: []byte{7}},
	}}
	return serialize(ip, tcp)
}

// udpFrame is a datagram with n bytes of payload.
func udpFrame(n int) ([]byte, error) {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{11, 0, 0, 1}, DstIP: net.IP{198, 51, 100, 1}}
	return serialize(ip, &layers.UDP{SrcPort: 1, DstPort: 443}, gopacket.Payload(make([]byte, n)))
}

func serialize(parts ...gopacket.SerializableLayer) ([]byte, error) {
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: strayMAC, EthernetType: layers.EthernetTypeIPv4}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, append([]gopacket.SerializableLayer{eth}, parts...)...)
	if err != nil {
		return nil, fmt.Errorf("build a frame of the flood: %w", err)
	}
	return buf.Bytes(), nil
}
