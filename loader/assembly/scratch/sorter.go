// SPDX-License-Identifier: Apache-2.0

package scratch

import (
	"bufio"
	"container/heap"
	"encoding/binary"
	"io"
	"slices"
)

// DefaultSorterBytes is how much a Sorter holds in memory unless it is told
// otherwise.
const DefaultSorterBytes = 16 << 20

const (
	itemHead   = 12 // key and size
	indexEntry = 16 // what sorting takes beside an item
	runBuffer  = 64 << 10
)

// A Sorter sorts items by their key. Those that it has no room for in memory are
// in a File, as runs that are sorted each and merged at the end. First come all
// calls of Add, then all of Next. It is not safe for concurrent use. Its methods
// return *Error.
type Sorter struct {
	file  *File
	max   int
	items []byte // each with its head
	index []item
	runs  []span
	merge merge
	done  bool // Next was called
}

// item is where an item is in Sorter.items.
type item struct {
	key uint64
	at  int
}

// span is where a run is in the file.
type span struct{ off, end int64 }

// NewSorter returns an empty Sorter that has its file in the folder dir (optional,
// os.TempDir()) and holds max bytes in memory (optional, DefaultSorterBytes).
func NewSorter(dir string, max int) *Sorter {
	if max <= 0 {
		max = DefaultSorterBytes
	}
	return &Sorter{file: New(dir), max: max}
}

// Add takes an item. Data may be used again afterwards.
func (s *Sorter) Add(key uint64, data []byte) error {
	if len(s.index) > 0 && len(s.items)+itemHead+len(data)+indexEntry*(len(s.index)+1) > s.max {
		if err := s.spill(); err != nil {
			return err
		}
	}
	s.index = append(s.index, item{key, len(s.items)})
	s.items = binary.LittleEndian.AppendUint64(s.items, key)
	s.items = binary.LittleEndian.AppendUint32(s.items, uint32(len(data)))
	s.items = append(s.items, data...)
	return nil
}

// get returns the item at, with its head.
func (s *Sorter) get(at int) []byte {
	return s.items[at:][:itemHead+binary.LittleEndian.Uint32(s.items[at+8:])]
}

func (s *Sorter) sort() {
	slices.SortStableFunc(s.index, func(a, b item) int {
		switch {
		case a.key < b.key:
			return -1
		case a.key > b.key:
			return 1
		}
		return 0
	})
}

// spill writes what is in memory as a run.
func (s *Sorter) spill() error {
	s.sort()
	run := span{off: s.file.Size()}
	for _, i := range s.index {
		if err := s.file.Append(s.get(i.at)); err != nil {
			return err
		}
	}
	run.end = s.file.Size()
	s.runs = append(s.runs, run)
	s.items, s.index = s.items[:0], s.index[:0]
	return nil
}

// Next returns the items in the order of their keys, those with the same key in
// the order in which they were added, and io.EOF behind the last. Data is valid
// until the next call.
func (s *Sorter) Next() (key uint64, data []byte, err error) {
	if !s.done {
		s.done = true
		s.sort()
		for i, run := range s.runs {
			in := io.NewSectionReader(s.file, run.off, run.end-run.off)
			err = s.merge.start(&source{number: i, run: bufio.NewReaderSize(in, runBuffer)})
			if err != nil {
				return 0, nil, err
			}
		}
		err = s.merge.start(&source{number: len(s.runs), memory: s})
	} else {
		err = s.merge.next()
	}
	if err != nil {
		return 0, nil, err
	}
	if len(s.merge) == 0 {
		return 0, nil, io.EOF
	}
	return s.merge[0].key, s.merge[0].data, nil
}

// Close gives the memory and the space on the disk back.
func (s *Sorter) Close() error {
	s.items, s.index, s.merge = nil, nil, nil
	return s.file.Close()
}

// source is a sorted run that is read item by item, or the items in memory.
type source struct {
	number int // in the order of adding
	run    io.Reader
	memory *Sorter // in place of run
	at     int     // in memory.index
	key    uint64
	data   []byte
}

// read moves to the next item; the error is io.EOF behind the last.
func (s *source) read() error {
	if s.memory != nil {
		if s.at == len(s.memory.index) {
			return io.EOF
		}
		i := s.memory.index[s.at]
		s.key, s.data = i.key, s.memory.get(i.at)[itemHead:]
		s.at++
		return nil
	}
	var head [itemHead]byte
	if _, err := io.ReadFull(s.run, head[:]); err != nil {
		return err
	}
	s.key = binary.LittleEndian.Uint64(head[:])
	size := int(binary.LittleEndian.Uint32(head[8:]))
	s.data = slices.Grow(s.data[:0], size)[:size]
	_, err := io.ReadFull(s.run, s.data)
	return err
}

// merge is a heap of the sources that have an item.
type merge []*source

func (m *merge) start(s *source) error {
	err := s.read()
	if err == nil {
		heap.Push(m, s)
	}
	return skipEOF(err)
}

// next moves the first source on.
func (m *merge) next() error {
	if len(*m) == 0 {
		return nil
	}
	err := (*m)[0].read()
	if err == nil {
		heap.Fix(m, 0)
	} else {
		heap.Pop(m)
	}
	return skipEOF(err)
}

func skipEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

func (m merge) Len() int { return len(m) }

func (m merge) Less(i, j int) bool {
	return m[i].key < m[j].key || m[i].key == m[j].key && m[i].number < m[j].number
}

func (m merge) Swap(i, j int) { m[i], m[j] = m[j], m[i] }

// Push and Pop are for container/heap.
func (m *merge) Push(x any) { *m = append(*m, x.(*source)) }

// Pop is explained at Push.
func (m *merge) Pop() any {
	last := (*m)[len(*m)-1]
	*m = (*m)[:len(*m)-1]
	return last
}
