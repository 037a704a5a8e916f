// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// MaxExempt is how many networks can be exempt.
const MaxExempt = 100_000

// mappedIPv4 is where IPv6 has IPv4's addresses.
var mappedIPv4 = datapathExemptKey{Prefixlen: 96, Addr: netip.AddrFrom4([4]byte{}).As16()}

func toKernelNetwork(p netip.Prefix) datapathExemptKey {
	p = p.Masked()
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return datapathExemptKey{Prefixlen: uint32(bits), Addr: p.Addr().As16()}
}

// SetExempt makes networks, and no others, those whose flows are exempt: a flow that begins with
// an end in one of them passes, and no byte of its payload is captured. It adds before it
// removes: what is in both lists stays exempt throughout. An IPv6 network is not about IPv4, however
// short its prefix is. More than MaxExempt networks are refused, and nothing is changed.
func (t *Tables) SetExempt(networks []netip.Prefix) error {
	t.blocking.Lock()
	defer t.blocking.Unlock()
	want := make(map[datapathExemptKey]datapathExemptNetwork, len(networks))
	hole := false
	for _, p := range networks {
		if !p.IsValid() {
			return errors.New("exempt networks: one is no network")
		}
		want[toKernelNetwork(p)] = datapathExemptNetwork{Exempt: 1}
		hole = hole || p.Addr().Is6() && p.Contains(netip.AddrFrom16(mappedIPv4.Addr))
	}
	if len(want) > MaxExempt {
		return fmt.Errorf("%d networks are to be exempt: there is room for %d", len(want), MaxExempt)
	}
	if _, all := want[mappedIPv4]; hole && !all {
		want[mappedIPv4] = datapathExemptNetwork{}
	}
	var gone []datapathExemptKey
	err := walk(t.exempt, func(k *datapathExemptKey, v *datapathExemptNetwork) {
		switch is, ok := want[*k]; {
		case !ok:
			gone = append(gone, *k)
		case is == *v:
			delete(want, *k) // it is there
		}
	})
	if err != nil {
		return err
	}
	keys, values := make([]datapathExemptKey, 0, len(want)), make([]datapathExemptNetwork, 0, len(want))
	for k, v := range want {
		keys, values = append(keys, k), append(values, v)
	}
	// What takes IPv4 out of wider networks is there before those, and goes after them.
	if i := slices.Index(keys, mappedIPv4); i > 0 {
		keys[0], keys[i], values[0], values[i] = keys[i], keys[0], values[i], values[0]
	}
	if i := slices.Index(gone, mappedIPv4); i >= 0 {
		last := len(gone) - 1
		gone[i], gone[last] = gone[last], gone[i]
	}
	if len(keys) > 0 {
		if _, err := t.exempt.BatchUpdate(keys, values, nil); err != nil {
			return fmt.Errorf("write map exempt: %w", err)
		}
	}
	for i := range gone {
		if err := t.exempt.Delete(&gone[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("write map exempt: %w", err)
		}
	}
	return nil
}
