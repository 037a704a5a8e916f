// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Pair is an initiator and a server whose connections the kernel treats as they begin.
type Pair struct {
	flow.Pair
	Since   time.Time
	Expires time.Time
	Action  flow.Action
	Rate    uint64    // bytes per second that pass of each connection, with flow.Limit
	Class   string    // cut to 15 bytes
	Rule    string    // cut to 15 bytes
	Flows   uint64    // that began meanwhile and were treated
	Packets uint64    // SYNs that were dropped
	Bytes   uint64    // of them, L2 headers included
	Last    time.Time // of the last flow; zero if there was none
}

func toKernelPair(p flow.Pair) datapathPairKey {
	return datapathPairKey{
		Initiator: p.Initiator.Addr().As16(), Server: p.Server.Addr().As16(), Port: p.Server.Port(),
		Vlan: p.VLAN, InnerVlan: p.InnerVLAN, Proto: uint8(flow.TCP),
	}
}

func fromKernelPair(k *datapathPairKey, v *datapathPair) Pair {
	p := Pair{
		Pair: flow.Pair{
			Initiator: flow.Household(netip.AddrFrom16(k.Initiator)), Server: netip.AddrPortFrom(netip.AddrFrom16(k.Server).Unmap(), k.Port),
			VLAN: k.Vlan, InnerVLAN: k.InnerVlan,
		},
		Since: wallClock(v.SinceNs), Expires: wallClock(v.ExpiresNs), Action: actionOf(v.Action), Rate: v.Rate,
		Class: fromFixed(v.Class[:]), Rule: fromFixed(v.Rule[:]), Flows: v.Flows, Packets: v.Packets, Bytes: v.Bytes,
	}
	if v.LastNs != 0 {
		p.Last = wallClock(v.LastNs)
	}
	return p
}

// TreatPair has the kernel treat the connections of a pair that begin from now on, for the
// treatment's time: with [flow.Drop] and [flow.Reset] it drops their SYNs, and with the latter
// tells who sent them, where [Info.NoResets] is empty; with [flow.Limit] each of them is
// limited by itself. Nothing of them is captured. Connections that are there already, and UDP,
// are left alone. A pair that is treated already gets the new treatment and time, and keeps
// its counters. The error wraps [ErrFull] when there is no room: then flows of the pair are
// captured as others are.
func (t *Tables) TreatPair(p flow.Pair, treatment flow.Treatment) error {
	treatment.Scope = flow.ScopeFlow
	if err := errors.Join(p.Check(), checkTreatment(treatment)); err != nil {
		return fmt.Errorf("treat %s: %w", p, err)
	}
	t.blocking.Lock()
	defer t.blocking.Unlock()
	k := toKernelPair(p)
	now := monotonic()
	v := datapathPair{SinceNs: now}
	err := t.pairs.Lookup(&k, &v)
	if err == nil && now >= v.ExpiresNs {
		v = datapathPair{SinceNs: now} // that was another time
	}
	if err == nil || errors.Is(err, ebpf.ErrKeyNotExist) {
		v.ExpiresNs, v.Rate = now+uint64(treatment.TTL), treatment.Rate
		v.Action = uint8(slices.Index(blockActions[:], treatment.Action))
		fixed(v.Class[:], treatment.Class)
		fixed(v.Rule[:], treatment.Rule)
		err = t.putPair(&k, &v)
	}
	if err != nil {
		return fmt.Errorf("treat %s: %w", p, err)
	}
	return nil
}

// putPair writes a pair. What the kernel counts for one that is there, between reading and
// writing it, is lost. The caller has t.blocking.
func (t *Tables) putPair(k *datapathPairKey, v *datapathPair) error {
	// The count first: without one nothing is looked up.
	t.filter.addPair(k, 1)
	for {
		err := t.pairs.Update(k, v, ebpf.UpdateNoExist)
		if err == nil {
			return nil
		}
		if errors.Is(err, ebpf.ErrKeyExist) {
			// As in putBlock().
			if err = t.pairs.Update(k, v, ebpf.UpdateExist); errors.Is(err, ebpf.ErrKeyNotExist) {
				continue
			}
		}
		t.filter.addPair(k, -1)
		if errors.Is(err, unix.E2BIG) {
			err = fmt.Errorf("the table of treated pairs is %w: it holds %d", ErrFull, t.pairs.MaxEntries())
		}
		return err
	}
}

// Pairs returns the pairs that have time left.
func (t *Tables) Pairs() ([]Pair, error) {
	now := monotonic()
	var all []Pair
	err := walk(t.pairs, func(k *datapathPairKey, v *datapathPair) {
		if now < v.ExpiresNs {
			all = append(all, fromKernelPair(k, v))
		}
	})
	return all, err
}

// ForgetPair ends the treatment of a pair and returns what it came to. Blocks of its flows
// stay. The error wraps [ebpf.ErrKeyNotExist] when the pair is not treated.
func (t *Tables) ForgetPair(p flow.Pair) (Pair, error) {
	t.blocking.Lock()
	defer t.blocking.Unlock()
	k := toKernelPair(p)
	v, err := t.deletePair(&k)
	if err != nil {
		return Pair{}, fmt.Errorf("end the treatment of %s: %w", p, err)
	}
	return fromKernelPair(&k, &v), nil
}

// deletePair removes a pair. The caller has t.blocking.
func (t *Tables) deletePair(k *datapathPairKey) (v datapathPair, err error) {
	if err = t.pairs.LookupAndDelete(k, &v); err == nil {
		t.filter.addPair(k, -1)
	}
	return v, err
}

// ExpirePairs removes the pairs whose time is over, and returns them; the kernel lets their
// connections begin already.
func (t *Tables) ExpirePairs() (ended []Pair, err error) {
	now := monotonic()
	var keys []datapathPairKey
	if err := walk(t.pairs, func(k *datapathPairKey, v *datapathPair) {
		if now >= v.ExpiresNs {
			keys = append(keys, *k)
		}
	}); err != nil {
		return nil, err
	}
	t.blocking.Lock()
	defer t.blocking.Unlock()
	for i := range keys {
		var v datapathPair
		// Once more, singly: it may have got more time.
		if err := t.pairs.Lookup(&keys[i], &v); err != nil || now < v.ExpiresNs {
			continue
		}
		if v, err := t.deletePair(&keys[i]); err == nil {
			ended = append(ended, fromKernelPair(&keys[i], &v))
		}
	}
	return ended, nil
}

// carriedPair is one on its way from an old map into a new one.
type carriedPair struct {
	key  datapathPairKey
	pair datapathPair
}

// pinnedPairs reads the pairs with time left that are pinned in a folder, and reports whether
// there is a table of them that it understands.
func pinnedPairs(folder *os.File) (all []carriedPair, known bool, err error) {
	m, err := loadPinnedMap(inFolder(folder, pinName(datapathMapPairs)))
	if err != nil {
		return nil, false, nil // an earlier version had none
	}
	defer m.Close()
	// Another layout has another size.
	if int(m.KeySize()) != binary.Size(datapathPairKey{}) || int(m.ValueSize()) != binary.Size(datapathPair{}) {
		return nil, false, nil
	}
	now := monotonic()
	err = walk(m, func(k *datapathPairKey, v *datapathPair) {
		if now < v.ExpiresNs {
			all = append(all, carriedPair{*k, *v})
		}
	})
	return all, err == nil, err
}

// carryPairs writes pairs into the new map. What does not fit is left out.
func (d *DataPath) carryPairs(pairs []carriedPair) (n int, err error) {
	d.blocking.Lock()
	defer d.blocking.Unlock()
	for i := range pairs {
		if e := d.putPair(&pairs[i].key, &pairs[i].pair); e != nil {
			p := fromKernelPair(&pairs[i].key, &pairs[i].pair)
			err = errors.Join(err, fmt.Errorf("carry the treatment of %s over: %w", p.Pair, e))
			continue
		}
		n++
	}
	d.Info.PairsKnown = d.Info.PairsKnown && err == nil
	return n, err
}
