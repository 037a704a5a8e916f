// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"os"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// variant is a file of an unusual form and what is to be read of it.
type variant struct {
	name  string
	bytes []byte
	want  []packetRead
}

// pcapRecord is a record with its header's fields as they are written.
type pcapRecord struct {
	seconds, fraction, first, second uint32
	rest                             []byte // of the header
	data                             []byte
}

// rawPcap returns a pcap file of Ethernet packets.
func rawPcap(order binary.AppendByteOrder, magic uint32, major, minor uint16, snap uint32, records ...pcapRecord) []byte {
	b := order.AppendUint32(nil, magic)
	b = order.AppendUint16(order.AppendUint16(b, major), minor)
	for _, v := range []uint32{0, 0, snap, uint32(LinkEthernet)} {
		b = order.AppendUint32(b, v)
	}
	for _, r := range records {
		for _, v := range []uint32{r.seconds, r.fraction, r.first, r.second} {
			b = order.AppendUint32(b, v)
		}
		b = append(append(b, r.rest...), r.data...)
	}
	return b
}

func pcapVariants() []variant {
	const magic = 0xa1b2c3d4
	le, be := binary.LittleEndian, binary.BigEndian
	a, b := udp4(true, 11), udp4(false, 2)
	n, m := uint32(len(a)), uint32(len(b))
	start := uint32(epoch.Unix())
	zero := time.Unix(int64(start), 0).Sub(epoch)
	next := packetRead{zero + time.Second, b, len(b)}
	of := func(wireLen int) []packetRead { return []packetRead{{zero, a, wireLen}, next} }
	records := func(first, second uint32) []pcapRecord {
		return []pcapRecord{{start, 0, first, second, nil, a}, {start + 1, 0, m, m, nil, b}}
	}
	patched := func(n, m uint32) []pcapRecord {
		return []pcapRecord{{start, 0, n, n, []byte{2, 0, 0, 0, 8, 0, 4, 0}, a}, {start + 1, 0, m, m, make([]byte, 8), b}}
	}
	huge := slices.Concat(a, make([]byte, 300_000))
	return []variant{
		{"original length 0", rawPcap(le, magic, 2, 4, 65535, records(n, 0)...), of(len(a))},
		{"captured more than the original length", rawPcap(le, magic, 2, 4, 65535, records(n, 20)...), of(len(a))},
		{"captured less", rawPcap(le, magic, 2, 4, 65535, records(n, 9000)...), of(9000)},
		{"original length beyond reason", rawPcap(le, magic, 2, 4, 65535, records(n, math.MaxUint32)...), of(maxWireLen)},
		{"snap length smaller than the records", rawPcap(le, magic, 2, 4, 20, records(n, n)...), of(len(a))},
		{"snap length 0", rawPcap(le, magic, 2, 4, 0, records(n, n)...), of(len(a))},
		{"snap length beyond reason", rawPcap(le, magic, 2, 4, math.MaxUint32, records(n, n)...), of(len(a))},
		{"a packet of nothing", rawPcap(le, magic, 2, 4, 65535, pcapRecord{start, 0, 0, 60, nil, nil}, records(n, n)[1]),
			[]packetRead{{zero, []byte{}, 60}, next}},
		{"version 2.2, original length first", rawPcap(le, magic, 2, 2, 65535, records(9000, n)...), of(9000)},
		{"version 543.0, big endian", rawPcap(be, magic, 543, 0, 65535, records(9000, n)...), of(9000)},
		{"version 2.3, original length first", rawPcap(le, magic, 2, 3, 65535, records(9000, n)...), of(9000)},
		{"version 2.3, captured length first", rawPcap(le, magic, 2, 3, 65535, records(n, 9000)...), of(9000)},
		{"modified by Kuznetzov", rawPcap(le, 0xa1b2cd34, 2, 4, 65535, patched(n, m)...), of(len(a))},
		{"modified by Kuznetzov, big endian", rawPcap(be, 0xa1b2cd34, 2, 4, 65535, patched(n, m)...), of(len(a))},
		{"fraction of more than a second", rawPcap(le, magic, 2, 4, 65535, pcapRecord{start, 5_000_001, n, n, nil, a}),
			[]packetRead{{zero + 5*time.Second + time.Microsecond, a, len(a)}}},
		{"year 2106", rawPcap(le, magic, 2, 4, 65535, pcapRecord{math.MaxUint32, 0, n, n, nil, a}),
			[]packetRead{{time.Unix(math.MaxUint32, 0).Sub(epoch), a, len(a)}}},
		{"a record of 300 KB", rawPcap(le, magic, 2, 4, 1<<19, pcapRecord{start, 0, uint32(len(huge)), uint32(len(huge)), nil, huge}, records(n, n)[1]),
			[]packetRead{{zero, huge[:keptBytes], len(huge)}, next}},
	}
}

func TestPcapVariants(t *testing.T) {
	for _, tt := range pcapVariants() {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readBytes(tt.bytes)
			if err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("packets (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPcapVersionsThatDoNotExist(t *testing.T) {
	for _, version := range [][2]uint16{{1, 0}, {2, 5}, {3, 4}, {543, 1}} {
		_, err := readBytes(rawPcap(binary.LittleEndian, 0xa1b2c3d4, version[0], version[1], 65535))
		if err == nil {
			t.Errorf("version %d.%d was read", version[0], version[1])
		}
	}
}

// A pipe gives what was written to it, however little, and a packet is delivered
// before the next one is there.
func TestReadFromAPipe(t *testing.T) {
	a, b := udp4(true, 11), udp4(false, 22)
	for name, whole := range map[string][]byte{
		"pcap": pcapFile(binary.LittleEndian, false, 1, a, b), "pcapng": pcapngFile(t, ngPacket{1, a}, ngPacket{1, b}),
	} {
		t.Run(name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			written := make(chan error, 1)
			second := bytes.LastIndex(whole, b) - 16 // in the header of the second record
			go func() {
				_, err := w.Write(whole[:second])
				written <- err
			}()
			f, err := Read("pipe", r)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			_, frame, _, err := f.Next()
			if err != nil || !slices.Equal(frame, a) {
				t.Fatalf("frame %x, error %v", frame, err)
			}
			if err := <-written; err != nil {
				t.Fatal(err)
			}
			go func() {
				_, err := w.Write(whole[second:])
				w.Close()
				written <- err
			}()
			if _, frame, _, err = f.Next(); err != nil || !slices.Equal(frame, b) {
				t.Errorf("frame %x, error %v", frame, err)
			}
			if _, _, _, err := f.Next(); err != io.EOF {
				t.Errorf("error %v at the end", err)
			}
			if err := <-written; err != nil || f.Size() != 0 || f.Pos() != int64(len(whole)) {
				t.Errorf("error %v, size %d, position %d of %d", err, f.Size(), f.Pos(), len(whole))
			}
		})
	}
}

// What is read must not depend on how the bytes come.
func TestReadByteByByte(t *testing.T) {
	for _, tt := range append(pcapVariants(), pcapngVariants()...) {
		f, err := Read(tt.name, iotest.OneByteReader(bytes.NewReader(tt.bytes)))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		got, _ := packetsOf(f)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: packets (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestFirstTimeTakesNoPacketAway(t *testing.T) {
	a, b := udp4(true, 11), udp4(false, 22)
	f, err := Open(write(t, pcapFile(binary.LittleEndian, false, 1, a, b)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 2 {
		if ts, err := f.FirstTime(); err != nil || !ts.Equal(epoch) {
			t.Fatalf("first time %v, error %v", ts, err)
		}
	}
	got, err := packetsOf(f)
	want := []packetRead{{0, a, len(a)}, {1500 * time.Microsecond, b, len(b)}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("error %v, packets (-want +got):\n%s", err, diff)
	}
	empty, err := Open(write(t, pcapFile(binary.LittleEndian, false, 1)))
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	if _, err := empty.FirstTime(); err != io.EOF {
		t.Errorf("error %v of a file without packets", err)
	}
}
