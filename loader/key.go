// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// toKernelKey returns the key as the maps have it: IPv4 addresses v4-mapped,
// ports in host order.
func toKernelKey(k flow.Key) datapathFlowKey {
	return datapathFlowKey{
		LoAddr:    k.Lo.Addr().As16(),
		HiAddr:    k.Hi.Addr().As16(),
		LoPort:    k.Lo.Port(),
		HiPort:    k.Hi.Port(),
		Vlan:      k.VLAN,
		InnerVlan: k.InnerVLAN,
		Proto:     uint8(k.Proto),
	}
}

func fromKernelKey(k *datapathFlowKey) flow.Key {
	return flow.Key{
		Lo:        netip.AddrPortFrom(netip.AddrFrom16(k.LoAddr).Unmap(), k.LoPort),
		Hi:        netip.AddrPortFrom(netip.AddrFrom16(k.HiAddr).Unmap(), k.HiPort),
		Proto:     flow.Proto(k.Proto),
		VLAN:      k.Vlan,
		InnerVLAN: k.InnerVlan,
	}
}

// fixed copies s into a C string of the size of dst, cut and NUL-terminated.
func fixed(dst []int8, s string) {
	clear(dst)
	for i := 0; i < len(s) && i < len(dst)-1; i++ {
		dst[i] = int8(s[i])
	}
}

func fromFixed(src []int8) string {
	b := make([]byte, 0, len(src))
	for _, c := range src {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}
