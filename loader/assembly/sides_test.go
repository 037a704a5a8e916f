// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// cookedPackets returns the packets with a header of Linux's cooked mode, of a device of
// that kind. Its version 2 names the device by its number.
func cookedPackets(version, kind, device int, packets []at) (cooked [][]byte) {
	for _, p := range packets {
		how := map[Side]int{SideInbound: 0, SideOutbound: 4, SideUnknown: 3}[p.side]
		header := slices.Concat(be16(how), be16(kind), make([]byte, 10), p.frame[12:14])
		if version == 2 {
			header = slices.Concat(p.frame[12:14], be16(0), be32(device), be16(kind), []byte{byte(how), 0}, make([]byte, 8))
		}
		cooked = append(cooked, append(header, p.frame[14:]...))
	}
	return cooked
}

// flagged returns the packets as blocks of an interface, with their direction.
func (o ng) flagged(iface uint32, packets []at) (blocks []byte) {
	for i, p := range packets {
		flags := map[Side]uint32{SideInbound: 1, SideOutbound: 2}[p.side]
		// Reception type and the like are in the same option.
		blocks = append(blocks, o.enhanced(iface, uint64(i), uint32(len(p.frame)), p.frame, o.option(1, []byte("comment")), o.option(2, o.u32(flags|1<<2)))...)
	}
	return blocks
}

// A file's packets may say which side of the interface they are from. Where they do, a
// connection's ends are on different sides, and what was forged from one is none.
func TestSidesOfFiles(t *testing.T) {
	const (
		ethernet, loopback = 1, 772
		right              = "sides >S <SA >A >A5 <A6"
		forged             = "sides >S,in <SA,in >A,in >A5,in <A6,in"
	)
	little := binary.LittleEndian
	// What a router has of a connection: each packet comes in and goes out.
	var routed [2][]at
	var forwarded []at
	for _, p := range talk(t, right) {
		in, out := p, p
		in.side, out.side = SideInbound, SideOutbound
		forwarded = append(forwarded, in, out)
		device := 0
		if p.side == SideInbound {
			device = 1
		}
		routed[device], routed[1-device] = append(routed[device], in), append(routed[1-device], out)
	}
	router := func(version int) (packets [][]byte) {
		for i, p := range forwarded {
			device := 1
			if slices.ContainsFunc(routed[0], func(q at) bool { return &q.frame[0] == &p.frame[0] && q.side == p.side }) {
				device = 0
			}
			packets = append(packets, cookedPackets(version, ethernet, device, forwarded[i:i+1])...)
		}
		return packets
	}
	ngFile := func(o ng, blocks ...[]byte) []byte {
		return slices.Concat(append([][]byte{o.section(1, 0), o.iface(1, 0), o.iface(1, 0)}, blocks...)...)
	}
	all := []string{"54 54 54 59 60"}
	for _, tt := range []struct {
		name string
		file []byte
		want []string // lengths of the packets of each sample
	}{
		{"cooked", pcapFile(little, false, 113, cookedPackets(1, ethernet, 0, talk(t, right))...), all},
		{"cooked, forged", pcapFile(little, false, 113, cookedPackets(1, ethernet, 0, talk(t, forged))...), nil},
		{"cooked, loopback", pcapFile(little, false, 113, cookedPackets(1, loopback, 0, talk(t, forged))...), all},
		{"cooked, mirrored", pcapFile(little, false, 113, cookedPackets(1, ethernet, 0, talk(t, ">S <SA >A >A5 <A6"))...), all},
		// The copy of the bare ACK can't be told from another one.
		{"cooked, a router", pcapFile(little, false, 113, router(1)...), []string{"54 54 54 54 59 60"}},
		// Nor can the copy of the answer.
		{"cooked, a router, datagrams", pcapFile(little, false, 113, cookedPackets(1, ethernet, 0, dgrams(t, ">10,in >10,out <20,in <20,out >11,in >11,out"))...), []string{"52 62 62 53 53"}},
		{"cooked 2", pcapFile(little, false, 276, cookedPackets(2, ethernet, 3, talk(t, right))...), all},
		{"cooked 2, forged", pcapFile(little, false, 276, cookedPackets(2, ethernet, 3, talk(t, forged))...), nil},
		{"cooked 2, loopback", pcapFile(little, false, 276, cookedPackets(2, loopback, 1, talk(t, forged))...), all},
		{"cooked 2, a router", pcapFile(little, false, 276, router(2)...), []string{"54 54 54 54 59 60"}},
		{"pcapng", ngFile(ngLittle, ngLittle.flagged(0, talk(t, right))), all},
		{"pcapng, big endian", ngFile(ngBig, ngBig.flagged(0, talk(t, right))), all},
		{"pcapng, forged", ngFile(ngLittle, ngLittle.flagged(0, talk(t, forged))), nil},
		{"pcapng, big endian, forged", ngFile(ngBig, ngBig.flagged(1, talk(t, forged))), nil},
		{"pcapng, no direction", ngFile(ngLittle, ngLittle.flagged(0, talk(t, ">S <SA >A >A5 <A6"))), all},
		{"pcapng, forged and sent out again", ngFile(ngLittle, ngLittle.flagged(0, talk(t, "sides >S,in >S,out <SA,in <SA,out >A,in >A,out >A5,in >A5,out"))), nil},
		{"pcapng, two interfaces", ngFile(ngLittle, ngLittle.flagged(0, forwarded[:1]), ngLittle.flagged(1, forwarded[1:2]), ngLittle.flagged(0, forwarded[2:])), []string{"54 54 54 54 59 60"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Read(tt.name, bytes.NewReader(tt.file))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.FirstTime(); err != nil { // and its side is not lost
				t.Fatal(err)
			}
			var got []string
			if err := f.Run(New(Options{}, func(_ *Flow, s *flow.Sample) { got = append(got, wireLens(s)) }, nil), nil); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("samples (-want +got):\n%s", diff)
			}
		})
	}
}

func wireLens(s *flow.Sample) string {
	var b bytes.Buffer
	for i, p := range s.Packets {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprint(&b, p.WireLen)
	}
	return b.String()
}
