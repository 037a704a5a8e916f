// SPDX-License-Identifier: Apache-2.0

package headers

import "encoding/binary"

// SetLength writes into the IP header of frame, whose headers are h, that the packet ends
// at wireLen, and makes the IPv4 checksum right again. It does not change h.
func (h *Headers) SetLength(frame []byte, wireLen int) {
	const ipv6Header = 40
	if h.IP == 6 {
		binary.BigEndian.PutUint16(frame[h.L3+4:], uint16(wireLen-h.L3-ipv6Header))
		return
	}
	ip := frame[h.L3:]
	ip = ip[:int(ip[0]&15)*4]
	binary.BigEndian.PutUint16(ip[2:], uint16(wireLen-h.L3))
	clear(ip[10:12])
	binary.BigEndian.PutUint16(ip[10:], ^wordSum(ip))
}
