// SPDX-License-Identifier: Apache-2.0

package signals

import "github.com/earlydrop/earlydrop/loader/flow"

// inOrder puts what each side of a TCP connection sent in the order of its sequence
// numbers, in the places of the side's packets with payload. Captures have what is ahead
// as it came, so that a segment which the network lost or held back comes after the
// ones after it. A model knows how streams begin: the second half of a long ClientHello
// in front of the first looks like ciphertext. Times stay with the places. It does not
// allocate.
func inOrder(s *flow.Sample, all *walked) {
	var (
		order [flow.MaxPackets]int // the packet that goes into each place
		seq   [flow.MaxPackets]uint32
		moved bool
		spots [2][flow.MaxPackets]int // of each side, its packets with payload
		n     [2]int
	)
	for i, p := range s.Packets {
		order[i] = i
		h := &all[i]
		if !h.ok || h.Proto != flow.TCP || h.PayloadLen == 0 {
			continue
		}
		seq[i] = h.Seq
		side := which(p)
		mine := &spots[side]
		mine[n[side]] = i
		n[side]++
		for k := n[side] - 1; k > 0; k-- {
			before, at := mine[k-1], mine[k]
			if int32(seq[order[before]]-seq[order[at]]) <= 0 {
				break
			}
			order[before], order[at] = order[at], order[before]
			moved = true
		}
	}
	if !moved {
		return
	}
	var data [flow.CaptureBytes]byte
	var packets [flow.MaxPackets]flow.Packet
	end := 0
	for i := range s.Packets {
		from := order[i]
		p := s.Packets[from]
		p.Offset, p.Time = uint16(end), s.Packets[i].Time
		packets[i] = p
		end += copy(data[end:], s.Frame(from))
	}
	copy(s.Packets, packets[:len(s.Packets)])
	copy(s.Data, data[:end])
}
