// SPDX-License-Identifier: Apache-2.0

// Package wire reads messages of protocol buffers, as model files are, from their wire format.
package wire

import "google.golang.org/protobuf/encoding/protowire"

// Field is one field of a message. Of Bytes, Varint and Fixed (of 32 or 64 bits) the one that
// Type says has the value; groups have none.
type Field struct {
	Num    protowire.Number
	Type   protowire.Type
	Bytes  []byte
	Varint uint64
	Fixed  uint64
}

// Each calls f for each field of a message, in their order. The bytes are not copied. It fails
// where the message is cut short or damaged, or with what f returns.
func Each(message []byte, f func(Field) error) error {
	for len(message) > 0 {
		num, typ, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		field := Field{Num: num, Type: typ}
		switch typ {
		case protowire.BytesType:
			field.Bytes, n = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			field.Varint, n = protowire.ConsumeVarint(message)
		case protowire.Fixed32Type:
			var v uint32
			v, n = protowire.ConsumeFixed32(message)
			field.Fixed = uint64(v)
		case protowire.Fixed64Type:
			field.Fixed, n = protowire.ConsumeFixed64(message)
		default:
			n = protowire.ConsumeFieldValue(num, typ, message)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if err := f(field); err != nil {
			return err
		}
	}
	return nil
}
