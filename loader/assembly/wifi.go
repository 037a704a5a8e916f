// SPDX-License-Identifier: Apache-2.0

package assembly

import "encoding/binary"

// The first two bytes of an 802.11 frame, as a little-endian number
// (IEEE 802.11-2020, 9.2.4.1).
const (
	wifiTypeMask  = 0x000c
	wifiData      = 0x0008
	wifiNoData    = 0x0040 // a data frame that carries none
	wifiQoS       = 0x0080
	wifiToDS      = 0x0100
	wifiFromDS    = 0x0200
	wifiProtected = 0x4000
	wifiOrder     = 0x8000

	wifiHeader     = 24 // three addresses
	wifiAddress    = 6  // the fourth one
	wifiQoSControl = 2
	wifiHTControl  = 4
	wifiAggregate  = 0x80 // in the QoS control field: several packets in one frame
	wifiFragment   = 0x0f // in the sequence field
)

// wifi takes an 802.11 header off, and the LLC header after it. Only data frames
// in the clear that hold one packet have something to read; the others count as
// another protocol than IP. With padded, the header is padded to four bytes.
func (p *packet) wifi(padded bool) error {
	if len(p.data) < 2 {
		return errShort
	}
	control := binary.LittleEndian.Uint16(p.data)
	if control&wifiTypeMask != wifiData || control&(wifiNoData|wifiProtected) != 0 {
		return nil
	}
	length := wifiHeader
	if control&(wifiToDS|wifiFromDS) == wifiToDS|wifiFromDS {
		length += wifiAddress
	}
	qos := length
	if control&wifiQoS != 0 {
		length += wifiQoSControl
		if control&wifiOrder != 0 {
			length += wifiHTControl
		}
	}
	if len(p.data) < length {
		return errShort
	}
	if p.data[22]&wifiFragment != 0 || control&wifiQoS != 0 && p.data[qos]&wifiAggregate != 0 {
		return nil
	}
	if padded {
		length = (length + 3) &^ 3
	}
	if err := p.cut(length); err != nil {
		return err
	}
	return p.llc()
}

// Fields of a radiotap header, as bits of its first word, and the flags that
// matter (https://www.radiotap.org).
const (
	radiotapTSFT  = 1 << 0 // 8 bytes, aligned
	radiotapFlags = 1 << 1
	radiotapMore  = 1 << 31 // another word of bits follows

	radiotapPadded   = 0x20
	radiotapBadCheck = 0x40
	radiotapFixed    = 8
)

// radiotap takes a radiotap header off, and what follows it. A frame that failed
// its check was never received; it counts as malformed.
func (p *packet) radiotap() error {
	if len(p.data) < radiotapFixed {
		return errShort
	}
	length := int(binary.LittleEndian.Uint16(p.data[2:]))
	if length < radiotapFixed || length > len(p.data) {
		return errShort
	}
	flags := radiotapFlagsOf(p.data[:length])
	if flags&radiotapBadCheck != 0 {
		return errShort
	}
	if err := p.cut(length); err != nil {
		return err
	}
	return p.wifi(flags&radiotapPadded != 0)
}

// radiotapFlagsOf returns the flags of a radiotap header, 0 where it has none. Its
// fields come in the order of their bits.
func radiotapFlagsOf(header []byte) byte {
	bits := binary.LittleEndian.Uint32(header[4:])
	if bits&radiotapFlags == 0 {
		return 0
	}
	field := radiotapFixed
	for word := bits; word&radiotapMore != 0; field += 4 {
		if field+4 > len(header) {
			return 0
		}
		word = binary.LittleEndian.Uint32(header[field:])
	}
	if bits&radiotapTSFT != 0 {
		field = (field+7)&^7 + 8
	}
	if field >= len(header) {
		return 0
	}
	return header[field]
}

// The headers that came before radiotap.
const (
	prismHeader = 144
	avsMagic    = 0x80211000 // its last digits are the version; big endian
	avsShortest = 8
)

// prism takes a Prism or an AVS header off, and what follows it. Link type 119
// may have either.
func (p *packet) prism() error {
	if len(p.data) < avsShortest {
		return errShort
	}
	length := prismHeader
	if binary.BigEndian.Uint32(p.data)&^0xfff == avsMagic&^0xfff {
		length = int(min(binary.BigEndian.Uint32(p.data[4:]), keptBytes))
	}
	if length < avsShortest {
		return errShort
	}
	if err := p.cut(length); err != nil {
		return err
	}
	return p.wifi(false)
}
