// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Lengths in pcap files, in bytes.
const (
	pcapFileHeader   = 24
	pcapRecordHeader = 16
	// Kuznetzov's patch of libpcap writes the interface, the protocol and the
	// packet's type after the usual record header.
	pcapPatchedHeader = 24
	// saneCaptured is the longest record that every program writes and reads
	// (MAXIMUM_SNAPLEN of tcpdump); a file with a larger snap length, up to
	// maxCaptured, may have longer ones.
	saneCaptured = 1 << 18
	maxCaptured  = 1 << 24
)

// pcapKind is what the magic number of a pcap file says.
type pcapKind struct {
	magic        uint32
	unit         time.Duration // of the second half of a time
	recordHeader int           // its length in bytes
}

var pcapKinds = []pcapKind{
	{0xa1b2c3d4, time.Microsecond, pcapRecordHeader},
	{0xa1b23c4d, time.Nanosecond, pcapRecordHeader},
	{0xa1b2cd34, time.Microsecond, pcapPatchedHeader},
}

// pcapMagic returns the byte order and the kind of a pcap file that begins with
// these four bytes, nil if they begin another file.
func pcapMagic(magic []byte) (binary.ByteOrder, *pcapKind) {
	if len(magic) < 4 {
		return nil, nil
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		for i := range pcapKinds {
			if order.Uint32(magic) == pcapKinds[i].magic {
				return order, &pcapKinds[i]
			}
		}
	}
	return nil, nil
}

// pcapReader reads the records of a pcap file.
type pcapReader struct {
	f       *File
	order   binary.ByteOrder
	kind    *pcapKind
	link    LinkType
	lengths lengthOrder
	longest uint32
}

// lengthOrder is the order of the two lengths in a record. Up to version 2.2 of
// the format the original length came first; files of version 2.3 have either.
type lengthOrder uint8

const (
	capturedFirst lengthOrder = iota
	originalFirst
	smallerIsCaptured
)

// newPcap reads the file header.
func newPcap(f *File, order binary.ByteOrder, kind *pcapKind) (*pcapReader, error) {
	header, err := f.take(pcapFileHeader)
	if err != nil {
		return nil, err
	}
	p := &pcapReader{f: f, order: order, kind: kind}
	major, minor := order.Uint16(header[4:]), order.Uint16(header[6:])
	switch {
	case major == 2 && minor == 4:
		p.lengths = capturedFirst
	case major == 2 && minor == 3:
		p.lengths = smallerIsCaptured
	case major == 2 && minor < 3 || major == 543 && minor == 0: // 543.0 is of DG/UX
		p.lengths = originalFirst
	default:
		return nil, fmt.Errorf("pcap version %d.%d", major, minor)
	}
	p.longest = max(saneCaptured, min(order.Uint32(header[16:]), maxCaptured))
	// The upper six bits tell the length of the frame check sequence. It comes
	// after the IP packet, where nothing is read.
	p.link = LinkType(order.Uint32(header[20:]) & 0x03ff_ffff)
	return p, nil
}

// next implements records.
func (p *pcapReader) next(r *record) error {
	header, err := p.f.take(p.kind.recordHeader)
	if err != nil {
		return err
	}
	r.time = time.Unix(int64(p.order.Uint32(header)), int64(p.order.Uint32(header[4:]))*int64(p.kind.unit)).UTC()
	r.captured, r.original = p.order.Uint32(header[8:]), p.order.Uint32(header[12:])
	if p.lengths == originalFirst || p.lengths == smallerIsCaptured && r.captured > r.original {
		r.captured, r.original = r.original, r.captured
	}
	// A record may be longer than the file's snap length, which some programs
	// write without keeping to it, and longer than the packet's own length.
	if r.captured > p.longest {
		return fmt.Errorf("%w: a record of %d bytes, but the longest can have %d", ErrDamaged, r.captured, p.longest)
	}
	r.link, r.order = p.link, p.order
	r.data, _, err = p.f.takeBody(int64(r.captured), 0)
	return err
}
