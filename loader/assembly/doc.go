// SPDX-License-Identifier: Apache-2.0

// Package assembly builds flow captures from capture files. It follows the
// same rules as the kernel program, packet by packet, so that a flow replayed
// from a file gives byte for byte the sample that it would have given live:
// Assembler is the life of a flow, Open the reader of capture files. What a
// packet is, package headers says.
package assembly
