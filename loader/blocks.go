// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Block is a flow that the kernel drops, or limits.
type Block struct {
	Key     flow.Key
	Since   time.Time
	Expires time.Time
	Packets uint64 // dropped so far, both directions
	Bytes   uint64 // dropped so far, L2 headers included
	Action  flow.Action
	Rate    uint64 // bytes per second that pass, with flow.Limit
	Class   string // cut to 15 bytes
	Rule    string // cut to 15 bytes
	Renewed int    // how often its connection outlived its time
	Ended   BlockEnd
	// InitiatorIsLo says which endpoint opened the flow; false for a block by hand, which
	// does not know.
	InitiatorIsLo bool
}

// ByHand reports whether a person asked for the block, and no rule.
func (b *Block) ByHand() bool { return b.Rule == flow.ByHand }

// BlockEnd says why a block ended.
type BlockEnd string

// Ends of blocks.
const (
	EndNone          BlockEnd = ""               // it goes on, or was removed by somebody
	EndTime          BlockEnd = "time"           // its time to live is over
	EndNewConnection BlockEnd = "new_connection" // its connection ended, another one has the same addresses and ports
	EndPolicy        BlockEnd = "policy"         // the policy was changed and would not make it
	EndRoom          BlockEnd = "room"           // it had dropped nothing and made room for another
)

// ErrFlowGone means that the flow to be blocked is not what the kernel knows of its
// addresses and ports any more.
var ErrFlowGone = errors.New("the flow is gone")

// ErrExempt means that a block of the flow was lifted by [Tables.Unblock].
var ErrExempt = errors.New("the flow is exempt, as its block was lifted")

// Unblock lets the flow's packets pass again and returns what was dropped. As long as the
// flow lives, [Tables.ApplyFlow] does not block it, and nothing of it is captured; a UDP flow
// lives until it was silent for so long that it is captured again. The
// error wraps [ebpf.ErrKeyNotExist] when the flow is not blocked.
func (t *Tables) Unblock(key flow.Key) (Block, error) {
	t.blocking.Lock()
	defer t.blocking.Unlock()
	k := toKernelKey(key)
	b, err := t.lift(&k)
	if err != nil {
		return Block{}, fmt.Errorf("unblock %s: %w", key, err)
	}
	return fromKernelBlock(&k, &b), nil
}

// lift removes a block, and exempts its flow, unless that is over.
func (t *Tables) lift(k *datapathFlowKey) (b datapathBlock, err error) {
	// The flow first: from then on no verdict blocks it.
	if err = t.blocked.Lookup(k, &b); err == nil && b.Ended == 0 {
		err = t.exemptFlow(k, &b)
	}
	if err != nil {
		return b, err
	}
	return t.unblock(k)
}

// exemptFlow notes in the kernel that a flow is decided, whatever verdicts come.
func (t *Tables) exemptFlow(k *datapathFlowKey, b *datapathBlock) error {
	v := datapathFlow{IsnLo: b.IsnLo, IsnHi: b.IsnHi, Known: b.Known & knownISN}
	err := t.flows.Lookup(k, &v)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("read map flows: %w", err)
	}
	if b.Known&v.Known&knownISN != 0 && (v.IsnLo != b.IsnLo || v.IsnHi != b.IsnHi) {
		return nil // another connection has the key by now
	}
	// As in pass(), but for a capture that was to go on.
	v.LastNs, v.Verdict, v.Again = monotonic(), datapathVerdictVERDICT_EXEMPT, 0
	if err := t.flows.Update(k, &v, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write map flows: %w", err)
	}
	return nil
}

func (t *Tables) unblock(k *datapathFlowKey) (b datapathBlock, err error) {
	if err = t.blocked.LookupAndDelete(k, &b); err == nil {
		t.filter.add(k, -1)
	}
	return b, err
}

func fromKernelBlock(k *datapathFlowKey, b *datapathBlock) Block {
	return Block{
		Action: actionOf(b.Action), Rate: b.Rate,
		Key:     fromKernelKey(k),
		Since:   wallClock(b.SinceNs),
		Expires: wallClock(b.ExpiresNs),
		Packets: b.Packets,
		Bytes:   b.Bytes,
		Class:   fromFixed(b.Class[:]),
		Rule:    fromFixed(b.Rule[:]),
		Renewed: int(b.Renewed),

		InitiatorIsLo: b.InitiatorIsLo != 0,
	}
}

// blockRenewals is BLOCK_RENEWALS of bpf/tcp.h.
const blockRenewals = 5

// renewalWait is how long a block may wait for its connection to go on: longer than
// TCP waits before it sends again (120 s at most, in Linux).
const renewalWait = 130 * time.Second

// end says whether, and why, a block has ended.
func (b *datapathBlock) end(now uint64) BlockEnd {
	switch {
	case b.Ended != 0:
		return EndNewConnection
	case now < b.ExpiresNs:
		return EndNone
	case b.TtlNs != 0 && b.Packets > 0 && b.Renewed < blockRenewals && now < b.ExpiresNs+uint64(renewalWait):
		return EndNone // its next packet may renew it
	}
	return EndTime
}

// Blocked returns all blocks that have time left.
func (t *Tables) Blocked() ([]Block, error) {
	now := monotonic()
	var blocks []Block
	err := walk(t.blocked, func(k *datapathFlowKey, b *datapathBlock) {
		if now < b.ExpiresNs && b.Ended == 0 {
			blocks = append(blocks, fromKernelBlock(k, b))
		}
	})
	return blocks, err
}

// FindBlock returns the block of a flow that has time left. The error wraps
// [ebpf.ErrKeyNotExist] when there is none.
func (t *Tables) FindBlock(key flow.Key) (Block, error) {
	k := toKernelKey(key)
	var b datapathBlock
	err := t.blocked.Lookup(&k, &b)
	if err == nil && (b.Ended != 0 || monotonic() >= b.ExpiresNs) {
		err = ebpf.ErrKeyNotExist
	}
	if err != nil {
		return Block{}, fmt.Errorf("block of %s: %w", key, err)
	}
	return fromKernelBlock(&k, &b), nil
}

// ExpireBlocks removes the blocks that have ended (the kernel passes their packets
// already) and returns them with their final counters, together with those that made
// room since the last call. A block that may be renewed stays for 130 s.
func (t *Tables) ExpireBlocks() ([]Block, error) {
	now := monotonic()
	var keys []datapathFlowKey
	err := walk(t.blocked, func(k *datapathFlowKey, b *datapathBlock) {
		if b.end(now) != EndNone {
			keys = append(keys, *k)
		}
	})
	if err != nil {
		return nil, err
	}
	t.blocking.Lock()
	defer t.blocking.Unlock()
	ended := t.evicted
	t.evicted = nil
	for i := range keys {
		var b datapathBlock
		// Once more, singly: it may have been renewed in the meantime.
		if err := t.blocked.Lookup(&keys[i], &b); err != nil || b.end(now) == EndNone {
			continue
		}
		if err := t.resume(&keys[i], &b); err != nil {
			return ended, err
		}
		if b, err := t.unblock(&keys[i]); err == nil {
			block := fromKernelBlock(&keys[i], &b)
			block.Ended = b.end(now)
			ended = append(ended, block)
		}
	}
	return ended, nil
}

// UnblockAll removes every block and returns how many there were.
func (t *Tables) UnblockAll() (int, error) {
	removed, err := t.UnblockWhere(func(*Block) bool { return true })
	return len(removed), err
}

// UnblockWhere removes the blocks for which gone returns true, those without time left
// included, and returns them with their final counters. Nobody else in this process can
// write a block meanwhile, so gone must not, either. It may be asked about a block twice.
func (t *Tables) UnblockWhere(gone func(*Block) bool) ([]Block, error) {
	t.blocking.Lock()
	defer t.blocking.Unlock()
	var keys []datapathFlowKey
	err := walk(t.blocked, func(k *datapathFlowKey, b *datapathBlock) {
		block := fromKernelBlock(k, b)
		if gone(&block) {
			keys = append(keys, *k)
		}
	})
	if err != nil {
		return nil, err
	}
	removed := make([]Block, 0, len(keys))
	for i := range keys {
		var b datapathBlock
		// Once more, singly: another process may have written another block.
		err := t.blocked.Lookup(&keys[i], &b)
		if err == nil {
			if block := fromKernelBlock(&keys[i], &b); !gone(&block) {
				continue
			}
			b, err = t.unblock(&keys[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return removed, fmt.Errorf("remove block: %w", err)
		}
		removed = append(removed, fromKernelBlock(&keys[i], &b))
	}
	return removed, nil
}

// resume has the next datagram of a UDP flow captured again, as a resumed flow, whose
// block's time is over: the middle of a flow is no beginning. Without it, the flow would
// pass as decided, or, if the kernel has forgotten it, begin. The kernel does the same
// as long as it finds the block.
func (t *Tables) resume(k *datapathFlowKey, b *datapathBlock) error {
	if flow.Proto(k.Proto) != flow.UDP {
		return nil
	}
	v := datapathFlow{LastNs: monotonic(), Verdict: datapathVerdictVERDICT_RESUMED}
	err := t.flows.Update(k, &v, ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		var was datapathFlow
		err = t.flows.Lookup(k, &was)
		if err == nil && was.LastNs < b.ExpiresNs { // since when it may have been captured
			err = t.flows.Update(k, &v, ebpf.UpdateExist)
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil // forgotten this very moment
		}
	}
	if err != nil {
		return fmt.Errorf("write map flows: %w", err)
	}
	return nil
}

// mapBlockFilter is the map behind block_filter, the C variable: no other one may be in that
// section.
const mapBlockFilter = ".bss"

// blockFilter counts blocked flows per bucket, in memory that all processes and
// the kernel programs share. See block_filter in bpf/maps.h.
type blockFilter struct {
	m       *ebpf.Map
	memory  []byte
	buckets []uint32
}

func openBlockFilter(m *ebpf.Map) (*blockFilter, error) {
	size := int(m.ValueSize())
	memory, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map block_filter into memory: %w", err)
	}
	return &blockFilter{m: m, memory: memory, buckets: unsafe.Slice((*uint32)(unsafe.Pointer(&memory[0])), size/4)}, nil
}

// Where block_filter counts what else it does but blocks of buckets, as bpf/maps.h has it.
const (
	pairBuckets = 65536 // from here on
	blocksInUse = 2 * 65536
	pairsInUse  = blocksInUse + 1
)

// add counts blocks of the key's bucket: 1 before one is added, -1 after one was
// deleted.
func (f *blockFilter) add(k *datapathFlowKey, delta int) {
	// flow_bucket() of bpf/maps.h.
	atomic.AddUint32(&f.buckets[k.LoPort^k.HiPort], uint32(delta))
	atomic.AddUint32(&f.buckets[blocksInUse], uint32(delta))
}

// addPair does the same for treated pairs.
func (f *blockFilter) addPair(k *datapathPairKey, delta int) {
	// pair_bucket() of bpf/pairs.h.
	word := func(addr *[16]uint8, i int) uint32 { return binary.NativeEndian.Uint32(addr[4*i:]) }
	initiator := word(&k.Initiator, 0) ^ word(&k.Initiator, 1) ^ word(&k.Initiator, 3)
	bucket := (initiator + word(&k.Server, 3)*31 + uint32(k.Port)) * 0x9e3779b1 >> 16
	atomic.AddUint32(&f.buckets[pairBuckets+bucket], uint32(delta))
	atomic.AddUint32(&f.buckets[pairsInUse], uint32(delta))
}

func (f *blockFilter) close() error {
	f.buckets = nil
	return unix.Munmap(f.memory)
}
