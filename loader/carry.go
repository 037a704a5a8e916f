// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
)

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
