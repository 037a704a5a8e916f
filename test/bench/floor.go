// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
)

// floorKey is a flow as any program has it that knows IPv6: 40 bytes.
type floorKey struct {
	From, To         [16]byte
	FromPort, ToPort [2]byte // in network order
	Proto            uint8
	_                [3]uint8
}

// attachFloor attaches the least that can drop single flows: it reads the headers of an IPv4
// datagram, makes a key, looks it up in a hash table that has the flows to droppedPort, and
// drops what it finds. It counts nothing.
func attachFloor(_ context.Context, b *bench) (*attached, error) {
	flows, err := ebpf.NewMap(&ebpf.MapSpec{Name: "bench_flows", Type: ebpf.Hash, KeySize: 40, ValueSize: 8, MaxEntries: flowCount})
	if err != nil {
		return nil, fmt.Errorf("make a table of flows: %w", err)
	}
	defer flows.Close() // the program has it
	for i := range flowCount {
		key := floorKey{Proto: unix.IPPROTO_UDP}
		from, to := b.rig.ClientAddr(4), b.rig.ServerAddr(4)
		copy(key.From[12:], from.AsSlice())
		copy(key.To[12:], to.AsSlice())
		binary.BigEndian.PutUint16(key.FromPort[:], uint16(firstPort+i))
		binary.BigEndian.PutUint16(key.ToPort[:], droppedPort)
		if err := flows.Put(key, uint64(0)); err != nil {
			return nil, fmt.Errorf("add flow %d: %w", i, err)
		}
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bench_floor", Type: ebpf.XDP, Flags: unix.BPF_F_XDP_HAS_FRAGS, License: "Apache-2.0",
		Instructions: floorInstructions(flows.FD()),
	})
	if err != nil {
		return nil, fmt.Errorf("load the program that looks a flow up: %w", err)
	}
	defer prog.Close() // the link has it
	lk, err := attachXDP(b.rig.Gateway, rig.Device, prog)
	if err != nil {
		return nil, err
	}
	return &attached{stop: func(context.Context) error { return lk.Close() }}, nil
}

func floorInstructions(flows int) asm.Instructions {
	const (
		typeAt, protoAt, fromAt, toAt, portsAt = 12, 23, 26, 30, 34 // in a frame without options
		headers                                = 42
		key                                    = -40 // on the stack
	)
	code := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // struct xdp_md: data, data_end
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, headers),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
		asm.LoadMem(asm.R4, asm.R2, typeAt, asm.Half),
		asm.JNE.Imm(asm.R4, networkOrder(unix.ETH_P_IP), "pass"),
		asm.LoadMem(asm.R5, asm.R2, protoAt, asm.Byte),
		asm.JNE.Imm(asm.R5, unix.IPPROTO_UDP, "pass"),
		asm.Mov.Imm(asm.R0, 0),
	}
	for at := int16(key); at < 0; at += 8 {
		code = append(code, asm.StoreMem(asm.R10, at, asm.R0, asm.DWord))
	}
	for _, field := range []struct{ from, to int16 }{{fromAt, key + 12}, {toAt, key + 28}, {portsAt, key + 32}} {
		// They begin at no multiple of 4 in a frame; XDP reads a word there all the same.
		code = append(code, asm.LoadMem(asm.R4, asm.R2, field.from, asm.Word), asm.StoreMem(asm.R10, field.to, asm.R4, asm.Word))
	}
	return append(code,
		asm.StoreMem(asm.R10, key+36, asm.R5, asm.Byte),
		asm.LoadMapPtr(asm.R1, flows),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Imm(asm.R0, xdpDrop),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("pass"),
		asm.Return(),
	)
}
