// SPDX-License-Identifier: Apache-2.0

// Package assembly builds flow captures from capture files. It follows the
// same rules as the kernel program, packet by packet, so that a flow replayed
// from a file gives byte for byte the sample that it would have given live:
// Assembler is the life of a flow, Open the reader of capture files. What a
// packet is, package headers says.
//
// A TCP connection is one that both its ends have made, by its numbers and, where
// the file says them, by the sides of its packets; only what is in place in it is
// captured. What is bounded in the kernel is bounded here as well, but there are
// no blocks, and captures never run out.
package assembly
