// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
)

// counter is an egress program of somebody else's: it counts IPv4 UDP packets, and
// lets the next program decide.
type counter struct {
	m    *ebpf.Map
	prog *ebpf.Program
}

func newCounter(t *testing.T) *counter {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	const next = -1 // TCX_NEXT
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebody_elses", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 76, asm.Word), // data
			asm.LoadMem(asm.R3, asm.R1, 80, asm.Word), // data_end
			asm.Mov.Reg(asm.R4, asm.R2),
			asm.Add.Imm(asm.R4, 34),
			asm.JGT.Reg(asm.R4, asm.R3, "out"),
			asm.LoadMem(asm.R5, asm.R2, 23, asm.Byte), // protocol
			asm.JNE.Imm(asm.R5, 17, "out"),
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
			asm.Mov.Imm(asm.R0, next).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return &counter{m, prog}
}

func (c *counter) count(t *testing.T) (n uint64) {
	t.Helper()
	if err := c.m.Lookup(uint32(0), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Programs of others stand before and behind earlydrop's in the egress chain: all see
// what passes, and the one behind sees nothing of what earlydrop drops.
func TestOthersInTheEgressChainKeepWorking(t *testing.T) {
	ctx, o := short(t)
	g, err := newGateway(ctx, o.binary, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.close(ctx); err != nil {
			t.Error(err)
		}
	}()
	if g.daemon.Attached.Egress != "tcx" {
		t.Skipf("this kernel has no TCX: egress is %s", g.daemon.Attached.Egress)
	}
	dev, err := g.Gateway.Netlink().LinkByName(rig.Device)
	if err != nil {
		t.Fatal(err)
	}
	before, behind := newCounter(t), newCounter(t)
	for _, at := range []struct {
		c      *counter
		anchor link.Anchor
	}{{before, link.Head()}, {behind, link.Tail()}} {
		err := g.Gateway.Do(func() error {
			l, err := link.AttachTCX(link.TCXOptions{Interface: dev.Attrs().Index, Program: at.c.prog, Attach: ebpf.AttachTCXEgress, Anchor: at.anchor})
			if err == nil {
				defer func() { t.Cleanup(func() { l.Close() }) }()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// From server to client, which is egress on the device.
	server, err := g.Server.ListenPacket("udp", netip.AddrPortFrom(g.ServerAddr(4), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := g.Client.ListenPacket("udp", netip.AddrPortFrom(g.ClientAddr(4), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	const n = 20
	send := func() (arrived int) {
		for range n {
			if _, err := server.WriteTo([]byte("to the client"), client.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 64)
		for {
			_ = client.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			_, _, err := client.ReadFrom(buf)
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				return arrived
			}
			if err != nil {
				t.Fatal(err)
			}
			arrived++
		}
	}
	if arrived := send(); arrived != n || before.count(t) != n || behind.count(t) != n {
		t.Fatalf("passed: %d of %d arrived, the program before saw %d, the one behind %d", arrived, n, before.count(t), behind.count(t))
	}
	// Swapping earlydrop's program must leave the order as it is.
	if _, err := g.Earlydrop(ctx, "blocked", "add", "-i", rig.Device, "--ttl", "1h", "udp", server.LocalAddr().String(), client.LocalAddr().String()); err != nil {
		t.Fatal(err)
	}
	g.daemon.Kill()
	if g.daemon, err = g.Attach(ctx, "--mode", "enforce"); err != nil {
		t.Fatal(err)
	}
	if !g.daemon.Attached.Adopted {
		t.Error("not adopted")
	}
	if arrived := send(); arrived != 0 || before.count(t) != 2*n || behind.count(t) != n {
		t.Errorf("blocked: %d arrived, the program before saw %d, the one behind %d; want 0, %d, %d", arrived, before.count(t), behind.count(t), 2*n, n)
	}
}
