// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"encoding/binary"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// noteCut notes what the capture file lacks of a packet of which room bytes fit
// into the flow's capture: what the wire had and a live capture would have taken.
// A packet is as long as its IP header says, since programs that cut files may
// write the length that they left as the length on the wire.
func (f *Flow) noteCut(p *Packet, frame []byte, room int) {
	wire := max(p.WireLen, ipEnd(p, frame))
	if len(frame) >= min(wire, room) {
		return
	}
	f.cut = true
	length := p.PayloadLen + wire - p.WireLen
	if length > 0 && len(frame)-payloadStart(p) < min(length, flow.IncompleteBytes) {
		f.incomplete = true
	}
}

// payloadStart returns where the transport payload begins.
func payloadStart(p *Packet) int {
	if p.Key.Proto == flow.UDP {
		return p.L4 + udpHeader
	}
	return p.WireLen - p.PayloadLen
}

// ipEnd returns where the packet ends as its IP header says, 0 where that says
// nothing (as in a super-packet that is longer than the field can say).
func ipEnd(p *Packet, frame []byte) int {
	switch ip := frame[p.L3:]; ip[0] >> 4 {
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
