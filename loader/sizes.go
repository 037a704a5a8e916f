// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"math/bits"
	"os"
	"runtime"

	"github.com/cilium/ebpf"
)

// Sizes are how much the tables of one interface hold. They take their memory at
// attach, full or not.
type Sizes struct {
	Flows      uint32 // flows handed over or decided; the least recently used make room
	Blocked    uint32 // flows that are dropped; a block that does not fit is refused
	Handshakes uint32 // TCP flows without payload so far, a power of two; old ones make room
	Collecting uint32 // flows being captured; a flow that does not fit passes unseen
	RingBytes  uint32 // captures on their way to user space; a power of two of pages
}

// sizeOption ties a field of Sizes to the maps that it sizes.
type sizeOption struct {
	name       string
	field      func(*Sizes) *uint32
	maps       []sizedMap
	least, max uint32
}

// sizedMap is a map that has one entry for so many of what its option counts.
type sizedMap struct {
	name string
	per  uint32
}

// handshakeWays is HANDSHAKE_WAYS of bpf/maps.h.
const handshakeWays = 16

var sizeOptions = []sizeOption{
	{"flows", func(s *Sizes) *uint32 { return &s.Flows }, []sizedMap{{datapathMapFlows, 1}}, 1024, 1 << 26},
	{"blocked", func(s *Sizes) *uint32 { return &s.Blocked }, []sizedMap{{datapathMapBlocked, 1}}, 16, 1 << 24},
	{"handshakes", func(s *Sizes) *uint32 { return &s.Handshakes },
		[]sizedMap{{datapathMapHandshakes, 1}, {datapathMapSyns, 1}, {datapathMapHandshakeTags, handshakeWays}}, 1024, 1 << 22},
	{"collecting", func(s *Sizes) *uint32 { return &s.Collecting },
		[]sizedMap{{datapathMapSlots, 1}, {datapathMapCollecting, 1}, {datapathMapFreeSlots, 1}, {datapathMapFreeTcpSlots, 1}}, 16, 1 << 20},
	{"ring bytes", func(s *Sizes) *uint32 { return &s.RingBytes }, []sizedMap{{datapathMapSamples, 1}}, 64 << 10, 1 << 30},
}

// SizeBounds returns the smallest and the largest sizes that [Attach] accepts.
func SizeBounds() (least, most Sizes) {
	for _, o := range sizeOptions {
		*o.field(&least), *o.field(&most) = o.least, o.max
	}
	return least, most
}

// check refuses sizes that are out of bounds and rounds up what has to be a power of
// two, for the programs' mask and for the kernel's ring. 0 stays 0, the default.
func (s *Sizes) check() error {
	for _, o := range sizeOptions {
		v := o.field(s)
		if *v != 0 && (*v < o.least || *v > o.max) {
			return refused(nil, "size of %s is %d: use %d to %d", o.name, *v, o.least, o.max)
		}
	}
	for _, n := range []*uint32{&s.Handshakes, &s.RingBytes} {
		if *n != 0 {
			*n = 1 << bits.Len32(*n-1)
		}
	}
	return nil
}

// apply writes the sizes that were asked for into the objects.
func (s *Sizes) apply(spec *ebpf.CollectionSpec) {
	for _, o := range sizeOptions {
		if n := *o.field(s); n != 0 {
			for _, m := range o.maps {
				spec.Maps[m.name].MaxEntries = n / m.per
			}
		}
	}
}

// follow takes the size of a pinned map over into the objects where no other was
// asked for.
func (s *Sizes) follow(spec *ebpf.CollectionSpec, name string, pinned *ebpf.Map) {
	for _, o := range sizeOptions {
		for _, sized := range o.maps {
			if sized.name == name && *o.field(s) == 0 {
				spec.Maps[name].MaxEntries = pinned.MaxEntries()
			}
		}
	}
}

// setSizes tells the programs those sizes that they reckon with.
func setSizes(spec *ebpf.CollectionSpec) error {
	buckets := spec.Maps[datapathMapHandshakeTags].MaxEntries
	if buckets == 0 || buckets&(buckets-1) != 0 {
		return fmt.Errorf("size of map handshake_tags is %d, not a power of two", buckets)
	}
	for name, value := range map[string]uint32{
		datapathVarCfgBucketMask: buckets - 1,
		datapathVarCfgBlocked:    spec.Maps[datapathMapBlocked].MaxEntries,
		datapathVarCfgSlots:      spec.Maps[datapathMapSlots].MaxEntries,
		datapathVarCfgTcpSlots:   tcpSlots(spec.Maps[datapathMapSlots].MaxEntries),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// tcpSlots is how many of the slots UDP flows don't get.
func tcpSlots(slots uint32) uint32 { return slots / 4 }

// freeSlots runs ed_free_slots, which tells the kernel that all slots of new tables are free.
func freeSlots(program *ebpf.Program) error {
	failed, err := program.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err == nil && failed != 0 {
		err = fmt.Errorf("%d do not fit", failed)
	}
	if err != nil {
		return fmt.Errorf("fill map %s: %w", datapathMapFreeSlots, err)
	}
	return nil
}

// sizesOf reads the sizes out of the objects.
func sizesOf(spec *ebpf.CollectionSpec) (s Sizes) {
	for _, o := range sizeOptions {
		*o.field(&s) = spec.Maps[o.maps[0].name].MaxEntries
	}
	return s
}

// What the kernel adds to the entries of a hash map, LRU or not, on 64-bit machines.
const (
	hashElement = 48 // struct htab_elem, in front of key and value
	hashBucket  = 16 // struct bucket; as many as the next power of two of entries
)

// mapMemory estimates the bytes of kernel memory that a map takes.
func mapMemory(m *ebpf.MapSpec) uint64 {
	round8 := func(n uint32) uint64 { return (uint64(n) + 7) &^ 7 }
	entries := uint64(m.MaxEntries)
	switch m.Type {
	case ebpf.Hash, ebpf.LRUHash:
		buckets := uint64(1) << bits.Len64(entries-1)
		return entries*(hashElement+round8(m.KeySize)+round8(m.ValueSize)) + buckets*hashBucket
	case ebpf.LPMTrie: // as it fills
		return 0
	case ebpf.PerCPUArray:
		return entries * round8(m.ValueSize) * uint64(runtime.NumCPU())
	case ebpf.RingBuf:
		// Its producer and consumer pages, and those in front of them.
		return entries + 3*uint64(os.Getpagesize())
	case ebpf.Queue:
		return entries * uint64(m.ValueSize)
	default: // array
		return entries * round8(m.ValueSize)
	}
}

// tablesMemory is the sum of mapMemory over all maps, or over those that an interface of a
// group has for itself.
func tablesMemory(spec *ebpf.CollectionSpec, own bool) (sum uint64) {
	for name, m := range spec.Maps {
		if m.MaxEntries > 0 && !(own && isShared(name)) {
			sum += mapMemory(m)
		}
	}
	return sum
}

// String is one line of figures.
func (s Sizes) String() string {
	return fmt.Sprintf("%d flows, %d blocked, %d handshakes, %d collecting, ring of %d KiB",
		s.Flows, s.Blocked, s.Handshakes, s.Collecting, s.RingBytes>>10)
}
