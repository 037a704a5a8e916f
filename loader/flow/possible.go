// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"fmt"
	"net/netip"
)

// Possible returns an error, which says why, if no packet of a flow with this key can come
// by: a block of it would lie in the table for nothing, and whoever asked for it would
// believe that something is blocked.
func (k Key) Possible() error {
	ends := [2]netip.AddrPort{k.Lo, k.Hi}
	for i, end := range ends {
		addr, peer := end.Addr(), ends[1-i].Addr()
		switch {
		case end.Port() == 0:
			return fmt.Errorf("%s: no connection uses port 0; a block is of one flow, so give the port of each end", end)
		case addr.Is4() != peer.Is4():
			return fmt.Errorf("%s and %s: a flow is either IPv4 or IPv6 at both ends", ends[0], ends[1])
		case toMany(addr) && k.Proto == TCP:
			return fmt.Errorf("%s: TCP does not go to a multicast or broadcast address", end)
		case toMany(addr) && toMany(peer):
			return fmt.Errorf("%s and %s: no packet comes from a multicast or broadcast address, so one end has to have another", ends[0], ends[1])
		// A client that has no address yet asks everybody for one.
		case addr.IsUnspecified() && (k.Proto == TCP || !toMany(peer)):
			return fmt.Errorf("%s: no connection uses the unspecified address; a block is of one flow, so give the address of each end", end)
		}
	}
	return nil
}

// toMany reports whether packets to the address go to more than one host.
func toMany(a netip.Addr) bool {
	return a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
