// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"
)

// Types of pcapng blocks that are read. All others are read over: statistics,
// names, secrets, comments, whatever comes.
const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockPacket    = 2 // the obsolete one
	blockSimple    = 3
	blockEnhanced  = 6
)

// Options that are read: of a section's block, of an interface's, and of a packet's.
const (
	optionEnd        = 0
	optionComment    = 1
	optionName       = 2
	optionResolution = 9
	optionOffset     = 14

	optionFlags = 2 // their lowest two bits are the direction
)

// Lengths in pcapng files, in bytes.
const (
	blockHeader      = 8 // type and length
	blockTrailer     = 4 // the length again
	shortestBlock    = blockHeader + blockTrailer
	longestBlock     = 1 << 27
	sectionBody      = 16
	interfaceBody    = 8
	packetBody       = 20
	byteOrderMagic   = 0x1a2b3c4d
	maxInterfaces    = 1 << 16 // of a section; more are not remembered
	maxNameBytes     = 64      // of an interface
	defaultPrecision = 6       // times are in 10^-6 s, unless the interface says otherwise
	binaryPrecision  = 0x80    // they are in powers of 2
)

// pcapngReader reads the blocks of a pcapng file.
type pcapngReader struct {
	f       *File
	order   binary.ByteOrder
	section int // from 1
	// skip is why nothing of this section can be read, or nil.
	skip       error
	interfaces []ngInterface
	described  int       // interfaces of the section, those beyond maxInterfaces included
	last       time.Time // of the latest packet
}

// ngInterface is what an interface block says.
type ngInterface struct {
	link      LinkType
	snap      uint32 // longest capture of a packet in bytes, 0 without bound
	precision uint8  // as the file has it: 10^-n s, with its upper bit 2^-n s
	offset    int64  // in seconds, to add to each time
	name      string
}

// newPcapng reads the first section header.
func newPcapng(f *File) (*pcapngReader, error) {
	p := &pcapngReader{f: f}
	kind, length, err := p.blockStart()
	if err != nil {
		return nil, err
	}
	body, err := p.body(length)
	if err != nil {
		return nil, err
	}
	if kind != blockSection {
		return nil, fmt.Errorf("it begins with a block of type %#x", kind)
	}
	if err := p.startSection(body); err != nil {
		return nil, err
	}
	return p, p.skip
}

// next implements records.
func (p *pcapngReader) next(r *record) error {
	for {
		kind, length, err := p.blockStart()
		if err != nil {
			return err
		}
		if !p.reads(kind) {
			if err := p.readOver(length); err != nil {
				return err
			}
			continue
		}
		body, err := p.body(length)
		if err != nil {
			return err
		}
		switch kind {
		case blockSection:
			err = p.startSection(body)
		case blockInterface:
			err = p.addInterface(body)
		default:
			return p.packet(r, kind, body, length-shortestBlock)
		}
		if err != nil {
			return err
		}
	}
}

// reads reports whether blocks of this type are read.
func (p *pcapngReader) reads(kind uint32) bool {
	switch kind {
	case blockSection, blockPacket, blockSimple, blockEnhanced:
		return true
	case blockInterface:
		return p.skip == nil
	}
	return false
}

// blockStart reads type and length of the next block. A section's header has the
// byte order of what follows, its own length included.
func (p *pcapngReader) blockStart() (kind uint32, length int64, err error) {
	header, err := p.f.take(blockHeader)
	if err != nil {
		return 0, 0, err
	}
	// The type of a section's header reads the same in both byte orders.
	if binary.BigEndian.Uint32(header) == blockSection {
		lengthBytes := [4]byte(header[4:])
		magic, err := p.f.buf.Peek(4)
		if err != nil {
			return 0, 0, noEOF(err)
		}
		switch uint32(byteOrderMagic) {
		case binary.LittleEndian.Uint32(magic):
			p.order = binary.LittleEndian
		case binary.BigEndian.Uint32(magic):
			p.order = binary.BigEndian
		default:
			return 0, 0, fmt.Errorf("%w: a section without its byte-order magic", ErrDamaged)
		}
		kind, length = blockSection, int64(p.order.Uint32(lengthBytes[:]))
	} else {
		if p.order == nil {
			return 0, 0, fmt.Errorf("it does not begin with a section")
		}
		kind, length = p.order.Uint32(header), int64(p.order.Uint32(header[4:]))
	}
	if length < shortestBlock || length%4 != 0 || length > longestBlock {
		return 0, 0, fmt.Errorf("%w: a block of %d bytes", ErrDamaged, length)
	}
	return kind, length, nil
}

// body reads the rest of a block; see takeBody about long ones.
func (p *pcapngReader) body(length int64) ([]byte, error) {
	body, trailer, err := p.f.takeBody(length-shortestBlock, blockTrailer)
	if err != nil {
		return nil, err
	}
	return body, p.checkTrailer(trailer, length)
}

// readOver reads the rest of a block without looking.
func (p *pcapngReader) readOver(length int64) error {
	if err := p.f.discard(length - shortestBlock); err != nil {
		return err
	}
	trailer, err := p.f.take(blockTrailer)
	if err != nil {
		return noEOF(err)
	}
	return p.checkTrailer(trailer, length)
}

func (p *pcapngReader) checkTrailer(trailer []byte, length int64) error {
	if got := int64(p.order.Uint32(trailer)); got != length {
		return fmt.Errorf("%w: a block of %d bytes that ends as one of %d", ErrDamaged, length, got)
	}
	return nil
}

// startSection reads a section's header. Minor versions change nothing that is
// read here: 1.2 is written by some programs, and the same as 1.0.
func (p *pcapngReader) startSection(body []byte) error {
	if len(body) < sectionBody {
		return fmt.Errorf("%w: a section header of %d bytes", ErrDamaged, len(body))
	}
	p.section++
	p.interfaces, p.described = p.interfaces[:0], 0
	p.skip = nil
	if err := p.f.kept.unfinished(); err != nil {
		return err
	}
	p.f.kept = nil
	var wrong error
	p.options(body[sectionBody:], func(code uint16, value []byte) {
		if code == optionComment && p.f.kept == nil && wrong == nil {
			p.f.kept, wrong = parseKept(value)
		}
	})
	if wrong != nil {
		return wrong
	}
	if major := p.order.Uint16(body[4:]); major != 1 {
		p.skip = interfaceError(fmt.Sprintf("pcapng version %d.%d can't be read", major, p.order.Uint16(body[6:])))
	}
	return nil
}

// addInterface reads an interface's description.
func (p *pcapngReader) addInterface(body []byte) error {
	if len(body) < interfaceBody {
		return fmt.Errorf("%w: an interface of %d bytes", ErrDamaged, len(body))
	}
	p.described++
	if len(p.interfaces) == maxInterfaces {
		return nil
	}
	i := ngInterface{link: LinkType(p.order.Uint16(body)), snap: p.order.Uint32(body[4:]), precision: defaultPrecision}
	p.options(body[interfaceBody:], func(code uint16, value []byte) {
		switch {
		case code == optionName:
			i.name = string(bytes.TrimRight(value[:min(len(value), maxNameBytes)], "\x00"))
		case code == optionResolution && len(value) == 1:
			i.precision = value[0]
		case code == optionOffset && len(value) == 8:
			i.offset = int64(p.order.Uint64(value))
		}
	})
	p.interfaces = append(p.interfaces, i)
	return nil
}

// options calls f for each option of a block. Options that make no sense end their
// list; the rest of the file can be read all the same.
func (p *pcapngReader) options(options []byte, f func(code uint16, value []byte)) {
	for len(options) >= 4 {
		code, length := p.order.Uint16(options), int(p.order.Uint16(options[2:]))
		options = options[4:]
		if code == optionEnd || length > len(options) {
			return
		}
		f(code, options[:length])
		options = options[min((length+3)&^3, len(options)):]
	}
}

// packet reads a packet's block, whose body has length bytes in the file.
func (p *pcapngReader) packet(r *record, kind uint32, body []byte, length int64) error {
	if p.skip != nil {
		r.skip = p.skip
		r.from = source{section: p.section, whole: true}
		return nil
	}
	header := packetBody
	if kind == blockSimple {
		header = 4
	}
	if len(body) < header {
		return fmt.Errorf("%w: a packet's block of %d bytes", ErrDamaged, len(body))
	}
	r.from = source{section: p.section}
	switch kind {
	case blockPacket:
		r.from.number = uint32(p.order.Uint16(body))
	case blockEnhanced:
		r.from.number = p.order.Uint32(body)
	}
	if int64(r.from.number) >= int64(len(p.interfaces)) {
		r.skip = interfaceError("not described in the file")
		if int64(r.from.number) < int64(p.described) {
			r.skip = interfaceError(fmt.Sprintf("beyond the first %d of its section", maxInterfaces))
		}
		return nil
	}
	i := &p.interfaces[r.from.number]
	r.from.name, r.link, r.order = i.name, i.link, p.order

	if kind == blockSimple {
		// It has no time, so it counts as simultaneous with the packet before it,
		// and no captured length: that is bounded by the interface's.
		r.time, r.original = p.last, p.order.Uint32(body)
		if p.last.IsZero() {
			r.time = time.Unix(0, 0).UTC()
		}
		r.captured = r.original
		if i.snap > 0 {
			r.captured = min(r.captured, i.snap)
		}
		r.captured = uint32(min(int64(r.captured), length-int64(header)))
	} else {
		stamp := uint64(p.order.Uint32(body[4:]))<<32 | uint64(p.order.Uint32(body[8:]))
		var ok bool
		if r.time, ok = i.time(stamp); !ok {
			r.skip = interfaceError(fmt.Sprintf("times in units of %s", i.unit()))
			return nil
		}
		p.last = r.time
		r.captured, r.original = p.order.Uint32(body[12:]), p.order.Uint32(body[16:])
		if int64(r.captured) > length-int64(header) {
			return fmt.Errorf("%w: a packet of %d bytes in a block of %d", ErrDamaged, r.captured, length+shortestBlock)
		}
	}
	r.data = body[header:]
	r.data = r.data[:min(int64(len(r.data)), int64(r.captured))]
	if options := int64(header) + (int64(r.captured)+3)&^3; kind != blockSimple && options < int64(len(body)) {
		p.options(body[options:], func(code uint16, value []byte) {
			if code == optionFlags && len(value) == 4 {
				r.side = [...]Side{0: SideUnknown, 1: SideInbound, 2: SideOutbound, 3: SideUnknown}[p.order.Uint32(value)&3]
			}
		})
	}
	return nil
}

// unit names the unit of the interface's times.
func (i *ngInterface) unit() string {
	if i.precision&binaryPrecision != 0 {
		return fmt.Sprintf("2^-%d s", i.precision&^binaryPrecision)
	}
	return fmt.Sprintf("10^-%d s", i.precision)
}

// time returns the time that a stamp stands for, cut to nanoseconds. ok is false
// where the number of units in a second exceeds 64 bits: then no stamp can reach
// past the first second.
func (i *ngInterface) time(stamp uint64) (t time.Time, ok bool) {
	units := uint64(1) // in a second
	if n := i.precision &^ binaryPrecision; i.precision&binaryPrecision != 0 {
		if n > 63 {
			return time.Time{}, false
		}
		units <<= n
	} else {
		if n > 19 {
			return time.Time{}, false
		}
		for range n {
			units *= 10
		}
	}
	hi, lo := bits.Mul64(stamp%units, uint64(time.Second))
	nanos, _ := bits.Div64(hi, lo, units)
	// Years 1 to 9999 can be printed and read. A damaged offset, or seconds as
	// the unit, lead anywhere.
	const first, last, far = -62135596800, 253402300799, 1 << 40
	seconds := int64(min(stamp/units, far)) + max(min(i.offset, far), -far)
	return time.Unix(max(min(seconds, last), first), int64(nanos)).UTC(), true
}
