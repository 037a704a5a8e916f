// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"encoding/binary"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

// lack is what the capture file lacks of a flow's capture, as explained at
// flow.Meta.Cut and flow.Meta.Incomplete.
type lack struct{ cut, incomplete bool }

// add adds what another packet lacks.
func (l *lack) add(other lack) {
	l.cut = l.cut || other.cut
	l.incomplete = l.incomplete || other.incomplete
}

// lacks returns what the capture file lacks of a packet of which room bytes fit into
// the flow's capture: what the wire had and a live capture would have held. A packet
// is as long as its IP header says, since programs that cut files may write the
// length that they left as the length on the wire.
func lacks(p *headers.Packet, frame []byte, room int) lack {
	wire := max(p.WireLen, ipEnd(p, frame))
	if len(frame) >= min(wire, room) {
		return lack{}
	}
	length := p.PayloadLen + wire - p.WireLen
	return lack{cut: true, incomplete: length > 0 && len(frame)-p.Payload < min(length, flow.IncompleteBytes)}
}

// lacksHeaders is lacks for a packet of which the headers alone are captured.
func lacksHeaders(p *headers.Packet, frame []byte) lack { return lack{cut: len(frame) < p.Payload} }

// ipEnd returns where the packet ends as its IP header says, 0 where that says
// nothing (as in a super-packet that is longer than the field can say).
func ipEnd(p *headers.Packet, frame []byte) int {
	const ipv6Header = 40
	switch ip := frame[p.L3:]; p.IP {
	case 4:
		if total := int(binary.BigEndian.Uint16(ip[2:])); total > 0 {
			return p.L3 + total
		}
	case 6:
		if payload := int(binary.BigEndian.Uint16(ip[4:])); payload > 0 {
			return p.L3 + ipv6Header + payload
		}
	}
	return 0
}
