// SPDX-License-Identifier: Apache-2.0

package scratch

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// AppendAddrPort, AppendTime and AppendFlags append what the Decoder's methods of
// these names read; binary.AppendUvarint and binary.AppendVarint belong to its
// Uvarint and Varint.
func AppendAddrPort(b []byte, a netip.AddrPort) []byte {
	at := len(b)
	b, _ = a.AppendBinary(append(b, 0)) // it has no error
	b[at] = byte(len(b) - at - 1)
	return b
}

// AppendTime is explained at AppendAddrPort.
func AppendTime(b []byte, t time.Time) []byte {
	b = binary.AppendVarint(b, t.Unix())
	return binary.AppendUvarint(b, uint64(t.Nanosecond()))
}

// AppendFlags is explained at AppendAddrPort. There may be eight.
func AppendFlags(b []byte, flags ...bool) []byte {
	var bits byte
	for i, on := range flags {
		if on {
			bits |= 1 << i
		}
	}
	return append(b, bits)
}

// A Decoder reads values one after another. What is missing reads as zero.
type Decoder struct {
	rest []byte
	bad  bool
}

// NewDecoder returns a Decoder of b.
func NewDecoder(b []byte) *Decoder { return &Decoder{rest: b} }

// OK reports whether all values were there and nothing is left.
func (d *Decoder) OK() bool { return !d.bad && len(d.rest) == 0 }

// Bytes returns the next n bytes, nil when there are fewer.
func (d *Decoder) Bytes(n uint64) (b []byte) {
	if n > uint64(len(d.rest)) {
		d.bad = true
		return nil
	}
	b, d.rest = d.rest[:n], d.rest[n:]
	return b
}

// Byte returns the next byte.
func (d *Decoder) Byte() byte {
	if b := d.Bytes(1); b != nil {
		return b[0]
	}
	return 0
}

// Uvarint is the inverse of binary.AppendUvarint.
func (d *Decoder) Uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	d.skip(n)
	return v
}

// Varint is the inverse of binary.AppendVarint.
func (d *Decoder) Varint() int64 {
	v, n := binary.Varint(d.rest)
	d.skip(n)
	return v
}

func (d *Decoder) skip(n int) {
	d.bad = d.bad || n <= 0
	d.Bytes(uint64(max(n, 0)))
}

// AddrPort is the inverse of AppendAddrPort.
func (d *Decoder) AddrPort() (a netip.AddrPort) {
	if err := a.UnmarshalBinary(d.Bytes(uint64(d.Byte()))); err != nil {
		d.bad = true
	}
	return a
}

// Time is the inverse of AppendTime. The zone is UTC.
func (d *Decoder) Time() time.Time {
	sec := d.Varint()
	return time.Unix(sec, int64(d.Uvarint())).UTC()
}

// Flags is the inverse of AppendFlags.
func (d *Decoder) Flags(flags ...*bool) {
	bits := d.Byte()
	for i, on := range flags {
		*on = bits>>i&1 != 0
	}
}
