// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// layoutVersion is LAYOUT_VERSION of bpf/earlydrop.h.
const layoutVersion = 8

// blockLayout is BLOCK_LAYOUT of bpf/earlydrop.h.
const blockLayout = 4

// adoptable opens the pinned maps if a complete set with this layout, and with the
// sizes that were asked for, is there; spec then has the sizes of that set.
// Otherwise why says what is wrong with the set; it is empty if there is none.
func adoptable(spec *ebpf.CollectionSpec, sizes Sizes, folder *os.File) (_ map[string]*ebpf.Map, why string) {
	if !hasOwnPins(inFolder(folder, "")) {
		return nil, ""
	}
	maps := make(map[string]*ebpf.Map)
	asked := spec
	spec = spec.Copy() // what is not adopted must not leave its sizes behind
	defer func() {
		if why != "" {
			closeMaps(maps)
			return
		}
		for name, m := range spec.Maps {
			asked.Maps[name].MaxEntries = m.MaxEntries
		}
	}()
	for name := range spec.Maps {
		if !outlives(name) {
			continue
		}
		m, err := loadPinnedMap(inFolder(folder, pinName(name)))
		if err != nil {
			return nil, fmt.Sprintf("pinned map %s: %v", name, err)
		}
		maps[name] = m
		sizes.follow(spec, name, m)
		if err := spec.Maps[name].Compatible(m); err != nil {
			return nil, fmt.Sprintf("pinned map %s has another layout: %v", name, err)
		}
	}
	var a datapathAttached
	if err := maps[datapathMapAttachment].Lookup(uint32(0), &a); err != nil {
		return nil, fmt.Sprintf("pinned map attachment: %v", err)
	}
	if a.LayoutVersion != layoutVersion {
		return nil, fmt.Sprintf("pinned maps have layout %d, this program has %d", a.LayoutVersion, layoutVersion)
	}
	// The handshakes that are under way stay where they are found.
	if err := asked.Variables[datapathVarCfgHashSecret].Set(a.HashSecret); err != nil {
		return nil, fmt.Sprintf("set %s: %v", datapathVarCfgHashSecret, err)
	}
	// What was new a moment ago is not new because another process took over.
	if err := asked.Variables[datapathVarCfgFirstAttachNs].Set(a.FirstNs); err != nil {
		return nil, fmt.Sprintf("set %s: %v", datapathVarCfgFirstAttachNs, err)
	}
	return maps, ""
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		_ = m.Close()
	}
}

// adoptBlocks looks through the blocks and pairs of an adopted set. Mode monitor removes those by a
// rule.
func (d *DataPath) adoptBlocks(monitor bool) error {
	if monitor {
		removed, err := d.UnblockWhere(func(b *Block) bool { return !b.ByHand() })
		d.Info.BlocksRemoved = len(removed)
		if err != nil {
			return err
		}
	}
	blocks, err := d.Blocked()
	d.Info.BlocksAdopted = len(blocks)
	if err == nil {
		var pairs []Pair
		pairs, err = d.Pairs()
		d.Info.PairsAdopted, d.Info.PairsKnown = len(pairs), true
	}
	if monitor {
		d.Info.BlocksHeld = len(blocks)
	}
	return err
}

// replaceMaps makes the new maps ready, with the blocks and pairs of those that are pinned, and pins
// them in their place. The programs that use the old ones run until theirs are swapped.
func (d *DataPath) replaceMaps(carried []carriedBlock, pairs []carriedPair, monitor bool) error {
	if monitor {
		all := len(carried)
		carried = slices.DeleteFunc(carried, func(c carriedBlock) bool {
			b := fromKernelBlock(&c.key, &c.block)
			return !b.ByHand()
		})
		d.Info.BlocksRemoved = all - len(carried)
	}
	d.Info.BlocksAdopted, d.Info.BlocksLost = d.carryBlocks(carried)
	var err error
	d.Info.PairsAdopted, err = d.carryPairs(pairs)
	d.Info.BlocksLost = errors.Join(d.Info.BlocksLost, err)
	if monitor {
		d.Info.BlocksHeld = d.Info.BlocksAdopted
	}
	// From the first packet on.
	if err := d.writeMode(!monitor); err != nil {
		return err
	}
	d.foreign = false
	if err := errors.Join(renameOldLinks(d.lock), unpinMaps(d.lock)); err != nil {
		return fmt.Errorf("replace what is pinned below %s: %w", d.Info.PinDir, err)
	}
	for name, m := range d.coll.Maps {
		if !outlives(name) {
			continue
		}
		if err := m.Pin(inFolder(d.lock, pinName(name))); err != nil {
			return fmt.Errorf("pin map %s below %s: %w", name, d.Info.PinDir, err)
		}
	}
	return nil
}

// openPinnedLink returns the link that an earlier process pinned, or nil when there
// is none. One that is not attached to this interface is removed: that one is gone.
func (i *iface) openPinnedLink(pin string) (link.Link, error) {
	l, err := openPin(pin)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case errors.Is(err, errForeignPin):
		if err := os.Remove(pin); err != nil {
			return nil, fmt.Errorf("remove what has the name of a pin: %w", err)
		}
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("open pinned link %s: %w", pin, err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read pinned link %s: %w", pin, err), l.Close())
	}
	if ifindexOf(info) == uint32(i.index()) {
		return l, nil
	}
	if err := errors.Join(l.Unpin(), l.Close()); err != nil {
		return nil, fmt.Errorf("remove pinned link %s of an interface that is gone: %w", pin, err)
	}
	return nil, nil
}

// A set of pinned maps with another layout is replaced, but blocks are what people rely
// on: they are read from the old map and written into the new one.

// block2 is a block of layout 2, which had no version of its own.
type block2 struct {
	ExpiresNs, SinceNs, SureUntil, Packets, Bytes uint64
	Class, Rule                                   [16]int8
}

func (b *block2) current() datapathBlock {
	return datapathBlock{ExpiresNs: b.ExpiresNs, SinceNs: b.SinceNs, Packets: b.Packets, Bytes: b.Bytes, Class: b.Class, Rule: b.Rule}
}

// block3 is a block of layout 3.
type block3 struct {
	SureUntil, CandidateNs, Packets, Bytes, ExpiresNs, SinceNs, TTLNs uint64
	ISNLo, ISNHi, NextLo, NextHi                                      uint32
	Known, InitiatorIsLo, Renewed, Mark, Ended                        uint8
	Pad                                                               [3]uint8
	Class, Rule                                                       [16]int8
}

func (b *block3) current() datapathBlock {
	return datapathBlock{
		Packets: b.Packets, Bytes: b.Bytes, ExpiresNs: b.ExpiresNs, SinceNs: b.SinceNs, TtlNs: b.TTLNs,
		IsnLo: b.ISNLo, IsnHi: b.ISNHi, NextLo: b.NextLo, NextHi: b.NextHi,
		Known: b.Known, InitiatorIsLo: b.InitiatorIsLo, Renewed: b.Renewed, Ended: b.Ended, Class: b.Class, Rule: b.Rule,
	}
}

// carriedBlock is one on its way from an old map into a new one.
type carriedBlock struct {
	key   datapathFlowKey
	block datapathBlock
}

// pinnedBlocks reads the blocks with time left that are pinned in a folder, whatever
// layout the other maps have. It returns none where there are none that it understands.
func pinnedBlocks(folder *os.File) ([]carriedBlock, error) {
	att, err := ebpf.LoadPinnedMap(inFolder(folder, pinName(datapathMapAttachment)), nil)
	if err != nil {
		return nil, nil // nobody can tell what is pinned there
	}
	defer att.Close()
	about, err := att.LookupBytes(uint32(0))
	if err != nil || len(about) < 20 {
		return nil, nil
	}
	// The first words are the same in all layouts, see struct attached.
	layout, blocks := binary.NativeEndian.Uint32(about), binary.NativeEndian.Uint32(about[16:])
	if layout <= 2 {
		blocks = layout
	}
	m, err := ebpf.LoadPinnedMap(inFolder(folder, pinName(datapathMapBlocked)), nil)
	if err != nil {
		return nil, nil
	}
	defer m.Close()
	if int(m.KeySize()) != binary.Size(datapathFlowKey{}) {
		return nil, nil
	}
	switch {
	case blocks == blockLayout && int(m.ValueSize()) == binary.Size(datapathBlock{}):
		return readBlocks(m, func(b *datapathBlock) datapathBlock { return *b })
	case blocks == 3 && int(m.ValueSize()) == binary.Size(block3{}):
		return readBlocks(m, (*block3).current)
	case blocks == 2 && int(m.ValueSize()) == binary.Size(block2{}):
		return readBlocks(m, (*block2).current)
	}
	return nil, nil
}

func readBlocks[V any](m *ebpf.Map, current func(*V) datapathBlock) ([]carriedBlock, error) {
	var all []carriedBlock
	now := monotonic()
	err := walk(m, func(k *datapathFlowKey, v *V) {
		b := current(v)
		b.SureUntil, b.CandidateNs, b.Mark = 0, 0, 0 // of candidates that are not carried over
		if b.end(now) == EndNone {
			all = append(all, carriedBlock{*k, b})
		}
	})
	return all, err
}

// carryBlocks writes blocks into the new map. What does not fit is left out.
func (t *Tables) carryBlocks(blocks []carriedBlock) (n int, err error) {
	t.blocking.Lock()
	defer t.blocking.Unlock()
	for i := range blocks {
		if e := t.putBlock(&blocks[i].key, &blocks[i].block); e != nil {
			err = errors.Join(err, fmt.Errorf("carry the block of %s over: %w", fromKernelKey(&blocks[i].key), e))
			continue
		}
		n++
	}
	return n, err
}
