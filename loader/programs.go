// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
)

// What Prepare has begun, and no Attach has taken.
var (
	readAhead atomic.Pointer[func() (*ebpf.CollectionSpec, error)]
	madeAhead atomic.Pointer[func() map[string]*ebpf.Map]
)

// Prepare begins what takes longest of an [Attach] with these options, so that it goes on while the
// caller does something else: it reads the programs, and makes the tables, unless something is
// pinned for the interface. The next Attach takes both, and throws away what does not fit its
// options; until then they keep their memory. It is safe for concurrent use.
func Prepare(opts Options) {
	ifc, err := findInterface(opts.Interface)
	wanted := err == nil && !ifc.hasPins() && opts.Sizes.check() == nil // else Attach says why
	var tables *ebpf.CollectionSpec
	read := sync.OnceValues(func() (*ebpf.CollectionSpec, error) {
		spec, err := readObject()
		if err == nil && wanted {
			tables = &ebpf.CollectionSpec{Maps: make(map[string]*ebpf.MapSpec), Types: spec.Types, ByteOrder: spec.ByteOrder}
			for name, table := range spec.Maps {
				tables.Maps[name] = table.Copy() // Attach changes its own
			}
			shapeTables(tables, opts.Sizes)
		}
		return spec, err
	})
	made := sync.OnceValue(func() map[string]*ebpf.Map {
		if _, err := read(); err != nil || !wanted {
			return nil
		}
		return makeTables(tables)
	})
	readAhead.Store(&read)
	if before := madeAhead.Swap(&made); before != nil {
		closeMaps((*before)())
	}
	go made()
}

// makeTables makes all of them but those with a program's constants. What can't be made is left
// out.
func makeTables(spec *ebpf.CollectionSpec) map[string]*ebpf.Map {
	made := make(map[string]*ebpf.Map)
	var parts []part
	for name, table := range spec.Maps {
		if outlives(name) {
			parts = append(parts, part{spec: tableSpec(spec, name), work: mapMemory(table)})
		}
	}
	_ = loadParts(parts, func(c *ebpf.Collection) {
		maps.Copy(made, c.Maps)
		c.Maps = nil // not to be closed
	})
	return made
}

// tableSpec is the part of spec that is one table.
func tableSpec(spec *ebpf.CollectionSpec, name string) *ebpf.CollectionSpec {
	return &ebpf.CollectionSpec{Maps: map[string]*ebpf.MapSpec{name: spec.Maps[name]}, Types: spec.Types, ByteOrder: spec.ByteOrder}
}

// takeTables returns the tables that Prepare has made, which are the caller's to close.
func takeTables() map[string]*ebpf.Map {
	if made := madeAhead.Swap(nil); made != nil {
		return (*made)()
	}
	return nil
}

// readPrograms returns the objects as they were compiled, for the caller to change.
func readPrograms() (*ebpf.CollectionSpec, error) {
	if read := readAhead.Swap(nil); read != nil {
		return (*read)()
	}
	return readObject()
}

// newCollection makes what is specified, but for the maps that are replaced, and empty tables that
// were made before and fit: tables and then programs, as many at once as there are cores. It takes
// its time: the kernel clears the memory of tables and checks programs. Where no maps are replaced,
// the slots are free. What it is handed stays the caller's. The laterPrograms are left out.
func newCollection(spec *ebpf.CollectionSpec, replacements, made map[string]*ebpf.Map) (*ebpf.Collection, error) {
	coll := &ebpf.Collection{Programs: make(map[string]*ebpf.Program), Maps: make(map[string]*ebpf.Map), Variables: make(map[string]*ebpf.Variable)}
	var tables, programs []part
	for name, table := range spec.Maps {
		one := tableSpec(spec, name)
		one.Variables = maps.Clone(spec.Variables)
		maps.DeleteFunc(one.Variables, func(_ string, v *ebpf.VariableSpec) bool { return v.SectionName != name })
		of := part{spec: one, work: mapMemory(table)}
		if there := replacements[name]; there != nil {
			of.maps = map[string]*ebpf.Map{name: there}
		} else if there := made[name]; there != nil && table.Compatible(there) == nil {
			of.maps = map[string]*ebpf.Map{name: there}
		}
		tables = append(tables, of)
	}
	err := loadParts(tables, func(c *ebpf.Collection) {
		maps.Copy(coll.Maps, c.Maps)
		maps.Copy(coll.Variables, c.Variables)
		c.Maps = nil // not to be closed
	})
	for name := range spec.Programs {
		if !slices.Contains(laterPrograms, name) && (name != datapathProgEdFreeSlots || replacements == nil) {
			programs = append(programs, programPart(spec, name, coll.Maps))
		}
	}
	if err == nil {
		err = loadParts(programs, takePrograms(coll))
	}
	if once := coll.Programs[datapathProgEdFreeSlots]; err == nil && once != nil {
		err = freeSlots(once)
		delete(coll.Programs, datapathProgEdFreeSlots)
		err = errors.Join(err, once.Close())
	}
	if err != nil {
		coll.Close()
		return nil, err
	}
	return coll, nil
}

// laterPrograms are wanted a moment after the programs that look at packets.
var laterPrograms = []string{datapathProgEdSweep, datapathProgEdPassed}

// loadLater adds the laterPrograms of spec to a collection.
func loadLater(spec *ebpf.CollectionSpec, coll *ebpf.Collection) error {
	var programs []part
	for _, name := range laterPrograms {
		programs = append(programs, programPart(spec, name, coll.Maps))
	}
	return loadParts(programs, takePrograms(coll))
}

func programPart(spec *ebpf.CollectionSpec, name string, tables map[string]*ebpf.Map) part {
	one := &ebpf.CollectionSpec{Maps: spec.Maps, Programs: map[string]*ebpf.ProgramSpec{name: spec.Programs[name]}, Types: spec.Types, ByteOrder: spec.ByteOrder}
	return part{spec: one, maps: tables, work: uint64(len(spec.Programs[name].Instructions))}
}

func takePrograms(coll *ebpf.Collection) func(*ebpf.Collection) {
	return func(c *ebpf.Collection) { maps.Copy(coll.Programs, c.Programs); c.Programs = nil }
}

// part is what is loaded by itself, with these maps in place of its own.
type part struct {
	spec *ebpf.CollectionSpec
	maps map[string]*ebpf.Map
	work uint64 // of the kernel, to compare with that of the others
}

// loadParts loads all of them, those first that take longest, so that no core is left with the
// greatest one in the end. What take does not take out of one is closed.
func loadParts(parts []part, take func(*ebpf.Collection)) error {
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(b.work, a.work) })
	var mu sync.Mutex // one take at a time
	var all errgroup.Group
	all.SetLimit(runtime.GOMAXPROCS(0))
	for _, p := range parts {
		all.Go(func() error {
			c, err := ebpf.NewCollectionWithOptions(p.spec, ebpf.CollectionOptions{MapReplacements: p.maps})
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			take(c)
			c.Close()
			return nil
		})
	}
	return all.Wait()
}

// readObject is loadDatapath without the lines of C that instructions come from. They are a third of
// what there is to read and to hand to the kernel, which quotes them where it refuses a program;
// tests load them.
func readObject() (*ebpf.CollectionSpec, error) {
	object, err := withoutLines(_DatapathBytes)
	if err != nil {
		return nil, err
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(object)
	if err != nil {
		return nil, fmt.Errorf("read the programs: %w", err)
	}
	return spec, nil
}

// Of the header of .BTF.ext, see Documentation/bpf/btf.rst of the kernel.
const (
	lineInfoLen = 20 // where it has the length of what it says of lines
	recordSize  = 4  // of that, the part that is always there
)

// withoutLines returns an object whose .BTF.ext says of no line where it is from.
func withoutLines(object []byte) (io.ReaderAt, error) {
	file, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		return nil, fmt.Errorf("read the programs: %w", err)
	}
	ext := file.Section(".BTF.ext")
	if ext == nil {
		return nil, errors.New("read the programs: they have no section .BTF.ext")
	}
	return &patched{bytes.NewReader(object), int64(ext.Offset) + lineInfoLen, binary.LittleEndian.AppendUint32(nil, recordSize)}, nil
}

// patched is what is read of, with these bytes there.
type patched struct {
	io.ReaderAt
	at    int64
	bytes []byte
}

// ReadAt implements io.ReaderAt.
func (p *patched) ReadAt(to []byte, off int64) (int, error) {
	n, err := p.ReaderAt.ReadAt(to, off)
	for i, b := range p.bytes {
		if at := p.at + int64(i) - off; at >= 0 && at < int64(n) {
			to[at] = b
		}
	}
	return n, err
}
