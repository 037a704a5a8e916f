// SPDX-License-Identifier: Apache-2.0

package headers

// Field is a kind of header field.
type Field uint8

// Kinds of what stands in place of a payload.
const (
	fieldCut Field = iota + 1
	fieldNotIP
	fieldBadIPv4
	fieldBadIPv6
	fieldFragment
	fieldOtherProto
	fieldBadTCP
)
