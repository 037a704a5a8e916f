// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

// A first fragment is a packet as any other. A later one has no ports, and follows its
// first: it belongs to its flow, and changes nothing else that is known of it.
//
// The kernel programs follow the same rules (bpf/fragments.h).

// fragmentAge is how long later fragments follow their first.
const fragmentAge = 2 * time.Second

// fragmentKey is what the fragments of one packet share.
type fragmentKey struct {
	src, dst    netip.Addr
	id          uint32
	vlan, inner uint16
	proto       uint8 // of an IPv4 header; 0: IPv6, where fragments of one packet may differ in it
	side        Side
}

// firstFragment is what a first fragment tells.
type firstFragment struct {
	at               time.Time
	srcPort, dstPort uint16
	proto            flow.Proto
	headers          int  // how far they reach into the packet that is put together
	unsure           bool // first fragments that differ had the id: none is followed
}

func (s *segment) fragmentKey(frame []byte) fragmentKey {
	src, dst := s.Addresses(frame)
	key := fragmentKey{src: src, dst: dst, id: s.Fragment.ID, vlan: s.VLAN, inner: s.InnerVLAN, side: s.side}
	if s.IP == 4 {
		key.proto = s.Fragment.Proto
	}
	return key
}

// noteFirst notes what a first fragment tells.
func (a *Assembler) noteFirst(s *segment) {
	key := s.fragmentKey(s.frame)
	src, dst := s.Key.Lo, s.Key.Hi
	if !s.SrcIsLo {
		src, dst = dst, src
	}
	first := firstFragment{srcPort: src.Port(), dstPort: dst.Port(), proto: s.Proto, headers: s.Payload - s.Fragment.Start}
	if known, ok := a.fragments.get(key); ok && s.ts.Sub(known.at) < fragmentAge {
		// Once more, or somebody forges one of the two.
		first.unsure = known.unsure
		known.at, known.unsure = first.at, first.unsure
		first.unsure = first.unsure || known != first
	}
	first.at = s.ts
	a.fragments.set(key, first)
}

// follow has a later fragment follow its first, if that is known, and returns the
// verdict on it.
func (a *Assembler) follow(s *segment, frame []byte) headers.Verdict {
	key := s.fragmentKey(frame)
	first, ok := a.fragments.get(key)
	if !ok || first.unsure || s.ts.Sub(first.at) >= fragmentAge {
		return headers.LaterFragment
	}
	if s.Fragment.Offset < first.headers {
		return headers.BadFragment
	}
	a.counters[FollowedFragment]++
	of, _ := flow.NewKey(netip.AddrPortFrom(key.src, first.srcPort), netip.AddrPortFrom(key.dst, first.dstPort), first.proto, key.vlan, key.inner)
	if f := a.find(of); f != nil {
		f.Packets++
		f.Bytes += uint64(s.WireLen)
		a.settle(f)
	}
	return headers.LaterFragment
}

// noteHidden takes a malformed fragment. A first one that has no more of TCP than ports and
// sequence number shows on its flow if it is what its side is to send next: who does not know
// that number can't forge it.
func (a *Assembler) noteHidden(s *segment, frame []byte) {
	nested := slices.ContainsFunc(s.Ext[:s.Exts], func(e headers.Extension) bool {
		return e.Kind == headers.Fragment && int(e.Off) >= s.Fragment.Start
	})
	if s.Proto != flow.TCP || !s.MoreFragments || nested || s.L4+8 > min(s.WireLen, len(frame)) {
		return
	}
	src, dst := s.Addresses(frame)
	s.Key, s.SrcIsLo = flow.NewKey(
		netip.AddrPortFrom(src, binary.BigEndian.Uint16(frame[s.L4:])),
		netip.AddrPortFrom(dst, binary.BigEndian.Uint16(frame[s.L4+2:])), flow.TCP, s.VLAN, s.InnerVLAN)
	s.Seq = binary.BigEndian.Uint32(frame[s.L4+4:])
	if f := a.find(s.Key); f != nil && f.stage == collecting {
		f.fragmented = f.fragmented || f.stream.awaits(s, direction(&s.Packet, f.InitiatorIsLo))
		return
	}
	if pair := a.handshakes.of[s.Key]; pair != nil {
		for _, c := range pair {
			if c != nil && c.state == proven {
				c.fragmented = c.fragmented || c.stream.awaits(s, direction(&s.Packet, c.initiatorIsLo))
			}
		}
	}
}

// awaits reports whether the segment begins with what its sender, of a direction, is to send
// next.
func (st *stream) awaits(s *segment, dir int) bool { return s.Seq == st.next[dir] && st.isFrom(s, dir) }

// isFrom reports whether the segment is from the side where its sender is, of a direction.
func (st *stream) isFrom(s *segment, dir int) bool {
	side := st.side
	if dir == 1 {
		side = side.other()
	}
	return s.side == SideUnknown || side == SideUnknown || s.side == side
}
