// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// ng builds the blocks of a pcapng file in its byte order.
type ng struct{ binary.AppendByteOrder }

var (
	ngLittle = ng{binary.LittleEndian}
	ngBig    = ng{binary.BigEndian}
)

func (o ng) u16(v ...uint16) (b []byte) {
	for _, v := range v {
		b = o.AppendUint16(b, v)
	}
	return b
}

func (o ng) u32(v ...uint32) (b []byte) {
	for _, v := range v {
		b = o.AppendUint32(b, v)
	}
	return b
}

func padded(b []byte) []byte { return append(slices.Clone(b), make([]byte, -len(b)&3)...) }

func (o ng) block(kind uint32, body ...[]byte) []byte {
	b := slices.Concat(body...)
	n := uint32(len(b) + shortestBlock)
	return slices.Concat(o.u32(kind, n), b, o.u32(n))
}

func (o ng) section(major, minor uint16) []byte {
	return o.block(blockSection, o.u32(byteOrderMagic), o.u16(major, minor), o.u32(math.MaxUint32, math.MaxUint32))
}

func (o ng) option(code uint16, value []byte) []byte {
	return slices.Concat(o.u16(code, uint16(len(value))), padded(value))
}

func (o ng) iface(link uint16, snap uint32, options ...[]byte) []byte {
	return o.block(blockInterface, o.u16(link, 0), o.u32(snap), slices.Concat(options...))
}

func (o ng) enhanced(iface uint32, stamp uint64, original uint32, data []byte, options ...[]byte) []byte {
	return o.block(blockEnhanced, o.u32(iface, uint32(stamp>>32), uint32(stamp), uint32(len(data)), original), padded(data), slices.Concat(options...))
}

func (o ng) simple(original uint32, data []byte) []byte {
	return o.block(blockSimple, o.u32(original), padded(data))
}

func (o ng) obsolete(iface uint16, stamp uint64, data []byte) []byte {
	n := uint32(len(data))
	return o.block(blockPacket, o.u16(iface, 0xffff), o.u32(uint32(stamp>>32), uint32(stamp), n, n), padded(data))
}

// pcapngVariants returns files that are read whole, whatever is unusual about
// them.
func pcapngVariants() []variant {
	l, b := ngLittle, ngBig
	p, q := udp4(true, 11), udp4(false, 2)
	n, m := uint32(len(p)), uint32(len(q))
	join := slices.Concat[[]byte]
	// A second and two microseconds after epoch, in units of 10^-6 s.
	micros := uint64(epoch.UnixMicro()) + 1_000_002
	step := time.Second + 2*time.Microsecond
	seconds := uint64(epoch.Unix())
	one := []packetRead{{step, p, len(p)}}
	two := []packetRead{{step, p, len(p)}, {step, q, len(q)}}
	file := func(o ng, blocks ...[]byte) []byte { return join(append([][]byte{o.section(1, 0)}, blocks...)...) }
	plain := func(o ng) []byte {
		return join(o.iface(1, 0), o.enhanced(0, micros, n, p), o.enhanced(0, micros, m, q))
	}
	resolution := func(v byte) []byte { return l.option(optionResolution, []byte{v}) }
	stamped := func(name string, precision byte, stamp uint64, want time.Duration) variant {
		return variant{name, file(l, l.iface(1, 0, resolution(precision)), l.enhanced(0, stamp, n, p)), []packetRead{{want, p, len(p)}}}
	}
	nrb := l.block(4, l.u16(1, 8), []byte{192, 0, 2, 7, 'a', 0, 0, 0}, l.u32(0))
	variants := []variant{
		{"minor version 2", join(l.section(1, 2), plain(l)), two},
		{"minor version 2, big endian", join(b.section(1, 2), plain(b)), two},
		{"sections of different byte order", join(file(l, plain(l)), file(b, plain(b))), append(slices.Clone(two), two...)},
		{"a section without interface", join(l.section(1, 0), file(l, plain(l))), two},
		{"a section at the end", join(file(l, plain(l)), b.section(1, 0)), two},
		{"statistics of an unknown interface", file(l, l.block(5, l.u32(77, 0, 0)), plain(l), l.block(5, l.u32(1, 0, 0))), two},
		{"blocks that are not read", file(l, l.block(0xbad, l.u32(1)), nrb, plain(l), l.block(0x8000_0001), l.block(10, l.u32(1, 2), make([]byte, 100_000))), two},
		{"a block of 300 KB between packets", file(l, l.iface(1, 0), l.enhanced(0, micros, n, p), l.block(77, make([]byte, 300_000)), l.enhanced(0, micros, m, q)), two},
		{"a packet's block that fills the buffer", file(l, l.iface(1, 0), l.enhanced(0, micros, n, p, make([]byte, bufferBytes-32-len(padded(p)))),
			l.enhanced(0, micros, m, q)), two},
		{"a packet's block that fills the buffer but for its trailer", file(l, l.iface(1, 0), l.enhanced(0, micros, n, p, make([]byte, bufferBytes-28-len(padded(p)))),
			l.enhanced(0, micros, m, q)), two},
		{"a packet's block of 200 KB", file(l, l.iface(1, 0), l.enhanced(0, micros, n, p, make([]byte, 200_000)), l.enhanced(0, micros, m, q)), two},
		{"options of a packet", file(l, l.iface(1, 0), l.enhanced(0, micros, n, p, l.option(2, l.u32(1)), l.option(1, []byte("hello"))), l.enhanced(0, micros, m, q)), two},
		{"obsolete packets", file(b, b.iface(1, 0), b.obsolete(0, micros, p), b.obsolete(0, micros, q)), two},
		{"captured more than the original length", file(l, l.iface(1, 0), l.enhanced(0, micros, 3, p)), one},
		{"original length 0", file(l, l.iface(1, 0), l.enhanced(0, micros, 0, p)), one},
		{"snap length smaller than the packet", file(l, l.iface(1, 20), l.enhanced(0, micros, n, p)), one},
		{"simple packets", file(l, l.iface(1, 0), l.simple(n, p), l.simple(m, q)),
			[]packetRead{{time.Unix(0, 0).Sub(epoch), p, len(p)}, {time.Unix(0, 0).Sub(epoch), q, len(q)}}},
		{"a simple packet after another", file(l, l.iface(1, 0), l.enhanced(0, micros, n, p), l.simple(m, q)), two},
		{"a simple packet, cut by the snap length", file(l, l.iface(1, 21), l.simple(n, p[:21])),
			[]packetRead{{time.Unix(0, 0).Sub(epoch), p[:21], len(p)}}},
		{"a simple packet, cut without a word", file(l, l.iface(1, 0), l.simple(n, p[:20])),
			[]packetRead{{time.Unix(0, 0).Sub(epoch), p[:20], len(p)}}},
		{"options of an interface", file(l, l.iface(1, 0, l.option(optionName, []byte("eth0\x00")), l.option(12, []byte("Linux")), l.option(optionEnd, nil), resolution(0)),
			l.enhanced(0, micros, n, p)), one},
		{"options that make no sense", file(l, l.iface(1, 0, l.option(optionResolution, []byte{9, 9}), l.option(optionOffset, []byte{9}), l.u16(7, 9999)), l.enhanced(0, micros, n, p)), one},
		{"an option cut off", file(l, l.iface(1, 0, l.u16(7, 3)), l.enhanced(0, micros, n, p)), one},
		{"time offset", file(l, l.iface(1, 0, l.option(optionOffset, binary.LittleEndian.AppendUint64(nil, seconds-1000))), l.enhanced(0, 1001_000_002, n, p)), one},
		{"negative time offset, big endian", file(b, b.iface(1, 0, b.option(optionOffset, binary.BigEndian.AppendUint64(nil, ^uint64(999)))), b.enhanced(0, micros+1000_000_000, n, p)), one},
		{"time offset beyond reason", file(l, l.iface(1, 0, l.option(optionOffset, binary.LittleEndian.AppendUint64(nil, math.MaxInt64))), l.enhanced(0, micros, n, p)),
			[]packetRead{{math.MaxInt64, p, len(p)}}},
		{"negative time offset beyond reason", file(l, l.iface(1, 0, l.option(optionOffset, binary.LittleEndian.AppendUint64(nil, 1<<63))), l.enhanced(0, micros, n, p)),
			[]packetRead{{math.MinInt64, p, len(p)}}},
		stamped("units of a second", 0, seconds+1, time.Second),
		stamped("units of 10^-1 s", 1, seconds*10+15, 1500*time.Millisecond),
		stamped("units of 10^-9 s", 9, uint64(epoch.UnixNano())+7, 7),
		stamped("units of 10^-10 s", 10, uint64(epoch.UnixNano())*10+79, 7),
		stamped("units of 10^-19 s", 19, 15_000_000_000_000_000_000, time.Unix(1, 500_000_000).Sub(epoch)),
		stamped("units of 2^0 s", 0x80, seconds, 0),
		stamped("units of 2^-10 s", 0x8a, seconds<<10+512, 500*time.Millisecond),
		stamped("units of 2^-32 s", 0x80+32, seconds<<32+1<<31, 500*time.Millisecond),
		stamped("units of 2^-63 s", 0x80+63, 3<<62, time.Unix(1, 500_000_000).Sub(epoch)),
		stamped("the last second there is", 0, math.MaxUint64, math.MaxInt64),
	}
	for _, o := range []ng{l, b} {
		variants = append(variants, variant{"two interfaces", file(o, o.iface(101, 0), o.iface(1, 0, o.option(optionResolution, []byte{9})),
			o.enhanced(1, micros*1000, n, p), o.enhanced(0, micros, m-14, q[14:])), []packetRead{one[0], {step, with(q, 0, make([]byte, 12)...), len(q)}}})
	}
	return variants
}

func TestPcapngVariants(t *testing.T) {
	for _, tt := range pcapngVariants() {
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

// Times that can be neither printed nor read would stop what prints them.
func TestTimesStayWithinYearsOfFourDigits(t *testing.T) {
	for _, i := range []ngInterface{{offset: math.MaxInt64}, {offset: math.MinInt64}, {precision: 0x80}} {
		for _, stamp := range []uint64{0, 1, math.MaxInt64, math.MaxUint64} {
			ts, ok := i.time(stamp)
			if _, err := time.Parse(time.RFC3339Nano, ts.Format(time.RFC3339Nano)); err != nil || !ok {
				t.Errorf("stamp %d of %+v: %v, %v", stamp, i, ts, err)
			}
		}
	}
}

func TestUnreadableInterfacesAreSkippedAndCounted(t *testing.T) {
	l, b := ngLittle, ngBig
	p, q := udp4(true, 11), udp4(false, 2)
	n := uint32(len(p))
	enhanced := func(iface uint32) []byte { return l.enhanced(iface, 0, n, p) }
	good := func(iface uint32) []byte { return l.enhanced(iface, 0, uint32(len(q)), q) }
	name := func(s string) []byte { return l.option(optionName, []byte(s)) }
	resolution := func(v byte) []byte { return l.option(optionResolution, []byte{v}) }
	var manyInterfaces, ofMany [][]byte
	for i := range 100 {
		manyInterfaces = append(manyInterfaces, l.iface(249, 0))
		ofMany = append(ofMany, enhanced(uint32(i)))
	}
	tests := []struct {
		name    string
		blocks  [][]byte
		want    string
		is      error
		packets int
	}{
		{"link type", [][]byte{l.iface(1, 0), l.iface(220, 0, name("usbmon0")), good(0), enhanced(1), enhanced(1), good(0)},
			"2 packets skipped: interface 1 (usbmon0): unsupported link type 220 (Linux USB, memory-mapped)", ErrLinkType, 2},
		{"link type of the first interface", [][]byte{l.iface(220, 0), l.iface(1, 0), enhanced(0), good(1)},
			"1 packet skipped: interface 0: unsupported link type 220 (Linux USB, memory-mapped)", ErrLinkType, 1},
		{"two interfaces", [][]byte{l.iface(187, 0), l.iface(1, 0), l.iface(220, 0, name("usb\x1b[2J\n")), enhanced(2), enhanced(0), good(1), enhanced(2)},
			"3 packets skipped: interface 2 (usb?[2J?): unsupported link type 220 (Linux USB, memory-mapped), 2; " +
				"interface 0: unsupported link type 187 (Bluetooth HCI), 1", ErrLinkType, 1},
		{"interface that is not described", [][]byte{l.iface(1, 0), enhanced(1), l.obsolete(9, 0, p), good(0)},
			"2 packets skipped: interface 1: not described in the file, 1; interface 9: not described in the file, 1", ErrInterface, 1},
		{"no interface", [][]byte{l.simple(n, p)}, "1 packet skipped: interface 0: not described in the file", ErrInterface, 0},
		{"resolution of a decimal power", [][]byte{l.iface(1, 0, resolution(20)), l.iface(1, 0), enhanced(0), good(1)},
			"1 packet skipped: interface 0: times in units of 10^-20 s", ErrInterface, 1},
		{"resolution of a binary power", [][]byte{l.iface(1, 0, resolution(0xff)), l.iface(1, 0), enhanced(0), good(1)},
			"1 packet skipped: interface 0: times in units of 2^-127 s", ErrInterface, 1},
		{"in the second section", [][]byte{l.iface(1, 0), good(0), b.section(1, 0), b.iface(220, 0), b.enhanced(0, 0, n, p), l.section(1, 0), l.iface(1, 0), good(0)},
			"1 packet skipped: interface 0 of section 2: unsupported link type 220 (Linux USB, memory-mapped)", ErrLinkType, 2},
		{"a section of another version", [][]byte{l.iface(1, 0), good(0), l.section(3, 0), l.iface(1, 0), enhanced(0), enhanced(0), l.section(1, 0), l.iface(1, 0), good(0)},
			"2 packets skipped: section 2: pcapng version 3.0 can't be read", ErrInterface, 2},
		{"more interfaces than are named", append(manyInterfaces, ofMany...), "100 packets skipped: " +
			"interface 0: unsupported link type 249 (USBPcap), 1; interface 1: unsupported link type 249 (USBPcap), 1; " +
			"interface 2: unsupported link type 249 (USBPcap), 1; interface 3: unsupported link type 249 (USBPcap), 1; others, 96", ErrLinkType, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readBytes(append(l.section(1, 0), slices.Concat(tt.blocks...)...))
			if len(got) != tt.packets {
				t.Errorf("%d packets, want %d", len(got), tt.packets)
			}
			for _, r := range got {
				if !slices.Equal(r.Frame, q) {
					t.Errorf("frame %x", r.Frame)
				}
			}
			var skipped *SkippedError
			if !errors.As(err, &skipped) || !errors.Is(err, tt.is) || errors.Is(err, ErrTruncated) {
				t.Fatalf("error %v, want a *SkippedError", err)
			}
			if _, text, _ := strings.Cut(err.Error(), ": "); text != tt.want {
				t.Errorf("error\n got %q\nwant %q", text, tt.want)
			}
			if len(skipped.Skipped) > maxSkipped {
				t.Errorf("%d causes are kept", len(skipped.Skipped))
			}
		})
	}
}

func TestDamagedPcapng(t *testing.T) {
	l := ngLittle
	p := udp4(true, 11)
	good := l.enhanced(0, 0, uint32(len(p)), p)
	changed := func(block []byte, off int, v uint32) []byte {
		block = slices.Clone(block)
		binary.LittleEndian.PutUint32(block[off:], v)
		return block
	}
	for name, block := range map[string][]byte{
		"a block of 8 bytes":                  changed(good, 4, 8),
		"a block of an odd length":            changed(good, 4, uint32(len(good)+2)),
		"a block of 4 GiB":                    changed(good, 4, math.MaxUint32-3),
		"lengths that differ":                 changed(good, len(good)-4, uint32(len(good)+4)),
		"lengths that differ, not read":       changed(l.block(77, l.u32(1)), 12, 20),
		"a packet longer than its block":      changed(good, 20, uint32(len(p)+4)),
		"a packet's block without its header": l.block(blockEnhanced, l.u32(0, 0)),
		"a simple packet without its header":  l.block(blockSimple),
		"an interface without its header":     l.block(blockInterface, l.u32(1)),
		"a section without byte order":        changed(l.section(1, 0), 8, 0),
		"a section of 24 bytes":               l.block(blockSection, l.u32(byteOrderMagic), l.u16(1, 0)),
	} {
		got, err := readBytes(slices.Concat(l.section(1, 0), l.iface(1, 0), good, block, good))
		if !errors.Is(err, ErrDamaged) || len(got) != 1 {
			t.Errorf("%s: %d packets, error %v, want 1 and %v", name, len(got), err, ErrDamaged)
		}
	}
	for name, file := range map[string][]byte{
		"version 9":     l.section(9, 0),
		"magic missing": changed(l.section(1, 0), 8, 1),
	} {
		if _, err := Open(write(t, file)); !errors.Is(err, ErrNotCapture) {
			t.Errorf("%s: error %v, want %v", name, err, ErrNotCapture)
		}
	}
}

// repeated reads a beginning, and then the same bytes again and again.
type repeated struct {
	begin, again []byte
	left         int64 // bytes of the repetition
	off          int
}

func (r *repeated) Read(p []byte) (int, error) {
	if len(r.begin) > 0 {
		n := copy(p, r.begin)
		r.begin = r.begin[n:]
		return n, nil
	}
	if r.left <= 0 {
		return 0, io.EOF
	}
	n := copy(p, r.again[r.off:])
	r.off = (r.off + n) % len(r.again)
	r.left -= int64(n)
	return n, nil
}

// Whatever a file describes before its packets, or between them, little of it is
// kept.
func TestMemoryDoesNotGrowWithAFile(t *testing.T) {
	l := ngLittle
	p := udp4(true, 11)
	name := strings.Repeat("n", 4000)
	cases := map[string][]byte{
		"interfaces":                    bytes.Repeat(l.iface(249, 0), 100),
		"interfaces with long names":    l.iface(249, 0, l.option(optionName, []byte(name))),
		"names":                         l.block(4, l.u16(1, 8), []byte{192, 0, 2, 7, 'a', 0, 0, 0}, l.u32(0)),
		"secrets":                       l.block(10, l.u32(0x544c534b, 8000), make([]byte, 8000)),
		"sections":                      slices.Concat(l.section(1, 0), l.iface(249, 0, l.option(optionName, []byte(name))), l.enhanced(0, 0, 4, make([]byte, 4))),
		"packets of unknown interfaces": l.enhanced(1<<20, 0, uint32(len(p)), p),
	}
	for what, again := range cases {
		const size = 40 << 20
		left := int64(size / len(again) * len(again))
		f, err := Read(what, &repeated{begin: slices.Concat(l.section(1, 0), l.iface(1, 0)), again: again, left: left})
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		_, err = packetsOf(f)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
			t.Errorf("%s: 40 MB of them leave %d bytes in memory", what, grown)
		}
		if _, ok := map[string]bool{"sections": true, "packets of unknown interfaces": true}[what]; ok != errors.Is(err, ErrInterface) && ok != errors.Is(err, ErrLinkType) {
			t.Errorf("%s: error %v", what, err)
		}
		runtime.KeepAlive(f)
	}
}

// An interface beyond those that are kept is named as such.
func TestInterfacesAreBounded(t *testing.T) {
	l := ngLittle
	p := udp4(true, 11)
	n := uint32(len(p))
	file := slices.Concat(l.section(1, 0), bytes.Repeat(l.iface(1, 0), maxInterfaces+1),
		l.enhanced(maxInterfaces, 0, n, p), l.enhanced(maxInterfaces-1, 0, n, p))
	got, err := readBytes(file)
	want := "1 packet skipped: interface 65536: beyond the first 65536 of its section"
	if len(got) != 1 || err == nil || !strings.HasSuffix(err.Error(), want) || !errors.Is(err, ErrInterface) {
		t.Errorf("%d packets, error %v, want 1 and %q", len(got), err, want)
	}
}
