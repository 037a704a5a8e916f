// SPDX-License-Identifier: Apache-2.0

package history

import (
	"math/bits"
	"net/netip"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Key is something that an event may have, such as a class or an address.
type Key uint64

// Kinds of keys. Their numbers are part of the file's form.
const (
	keyKind = iota + 1
	keyInterface
	keyClass
	keyRule
	keyDecision
	keyAddress
	keyServer
	keyNetwork // and those that follow: networks of as many bits as networkBits says
)

func keyOf(kind byte, value string) Key { return Key(xxhash.Sum64String(string(kind) + value)) }

// EventKey is the key of events of a kind; the others that follow are of what they are named by.
func EventKey(kind string) Key { return keyOf(keyKind, kind) }

// InterfaceKey is explained at EventKey.
func InterfaceKey(name string) Key { return keyOf(keyInterface, name) }

// ClassKey is explained at EventKey.
func ClassKey(class string) Key { return keyOf(keyClass, class) }

// RuleKey is explained at EventKey.
func RuleKey(rule string) Key { return keyOf(keyRule, rule) }

// DecisionKey is explained at EventKey.
func DecisionKey(decision string) Key { return keyOf(keyDecision, decision) }

// ServerKey is explained at EventKey.
func ServerKey(server netip.AddrPort) Key {
	var b [1 + endBytes]byte
	return Key(xxhash.Sum64(appendEnd(append(b[:0], keyServer), server)))
}

// networkBits are the lengths of the networks of an address that events have keys of.
func networkBits(addr netip.Addr) [3]int {
	if addr.Is4() {
		return [3]int{24, 16, 8}
	}
	return [3]int{64, 48, 32}
}

func addressKey(kind byte, addr netip.Addr, bits int) Key {
	p, err := addr.Prefix(bits)
	if err != nil {
		return 0
	}
	var b [1 + 16]byte
	as16 := p.Addr().As16()
	return Key(xxhash.Sum64(append(append(b[:0], kind), as16[:]...)))
}

// NetworkKey is the key of events with an end in a network. ok is false where that is so wide
// that events have none of it.
func NetworkKey(p netip.Prefix) (k Key, ok bool) {
	if p.Bits() == p.Addr().BitLen() {
		return addressKey(keyAddress, p.Addr(), p.Bits()), true
	}
	for i, bits := range networkBits(p.Addr()) {
		if p.Bits() >= bits {
			return addressKey(keyNetwork+byte(i), p.Addr(), bits), true
		}
	}
	return 0, false
}

// appendKeys appends the keys of words.
func (w *words) appendKeys(all []uint64) []uint64 {
	add := func(k Key) { all = append(all, uint64(k)) }
	add(EventKey(w.kind))
	add(InterfaceKey(w.iface))
	add(RuleKey(w.rule))
	add(DecisionKey(w.decision))
	for _, class := range w.classes {
		add(ClassKey(class))
	}
	return all
}

// appendEndKeys appends the keys of a flow's ends. Where it is not directed, either may be the
// server.
func appendEndKeys(all []uint64, src, dst netip.AddrPort, directed bool) []uint64 {
	for i, end := range [2]netip.AddrPort{src, dst} {
		addr := end.Addr()
		if !addr.IsValid() {
			continue
		}
		all = append(all, uint64(addressKey(keyAddress, addr, addr.BitLen())))
		for i, bits := range networkBits(addr) {
			all = append(all, uint64(addressKey(keyNetwork+byte(i), addr, bits)))
		}
		if i == 1 || !directed {
			all = append(all, uint64(ServerKey(end)))
		}
	}
	return all
}

// filter says which keys are not in a block, and of one in a thousand others that it may be
// though it is not: a Bloom filter.
type filter []byte

const (
	filterBits   = 14 // for each key
	filterHashes = 9
)

// newFilter returns a filter of keys, in memory of an earlier one.
func newFilter(memory filter, keys []uint64) filter {
	slices.Sort(keys)
	keys = slices.Compact(keys)
	f := slices.Grow(memory[:0], (filterBits*len(keys)+7)/8)[:(filterBits*len(keys)+7)/8]
	clear(f)
	for _, k := range keys {
		f.each(k, func(bit uint64) bool { f[bit/8] |= 1 << (bit % 8); return true })
	}
	return f
}

// each calls do for the bits of a key, until it returns false.
func (f filter) each(k uint64, do func(bit uint64) bool) bool {
	n := uint64(len(f)) * 8
	step := bits.RotateLeft64(k, 32) | 1
	for range filterHashes {
		at, _ := bits.Mul64(k, n)
		if !do(at) {
			return false
		}
		k += step
	}
	return true
}

// may reports whether a key may be in the block.
func (f filter) may(k Key) bool {
	return len(f) > 0 && f.each(uint64(k), func(bit uint64) bool { return f[bit/8]&(1<<(bit%8)) != 0 })
}
