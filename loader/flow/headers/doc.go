// SPDX-License-Identifier: Apache-2.0

// Package headers is the one walk over the headers of a packet, for all Go
// code that asks what a frame is, where its payload lies or what a byte of it
// means.
//
//   - Parse tells of a whole frame which flow it belongs to, or why to none. It
//     follows the rules of the kernel program (bpf/packet.h) step by step.
//   - Headers.Walk tells where every header lies. It takes frames that the end
//     of a capture cut, and goes on where Parse gives up: it never refuses.
//   - Headers.Paint and Headers.Fields tell of every byte in front of the payload
//     which header field it belongs to.
//
// Nothing here keeps a frame, panics, whatever the frame holds, or, Fields apart,
// allocates.
package headers
