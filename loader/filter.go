// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// mapBlockFilter is the map behind block_filter, the C variable, which has a
// section of its own.
const mapBlockFilter = ".data.filter"

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

// add counts blocks of the key's bucket: 1 before one is added, -1 after one was
// deleted.
func (f *blockFilter) add(k *datapathFlowKey, delta int) {
	// flow_bucket() of bpf/maps.h.
	atomic.AddUint32(&f.buckets[k.LoPort^k.HiPort], uint32(delta))
}

func (f *blockFilter) close() error {
	f.buckets = nil
	return unix.Munmap(f.memory)
}
