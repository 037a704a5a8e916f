// SPDX-License-Identifier: Apache-2.0

package signals

import (
	"encoding/binary"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

// options is what the TCP options of a segment say of whether a host accepts it.
type options struct {
	signed    bool // an MD5 signature (RFC 2385)
	hasStamp  bool
	timestamp uint32 // RFC 7323
}

func readOptions(h *headers.Headers, frame []byte) (o options) {
	const (
		end, pad, timestamps, md5 = 0, 1, 8, 19
		header                    = 20
	)
	if h.L4+header > len(frame) {
		return o
	}
	for rest := frame[h.L4+header : max(h.L4+header, min(h.Payload, len(frame)))]; len(rest) > 0; {
		switch {
		case rest[0] == end:
			return o
		case rest[0] == pad:
			rest = rest[1:]
			continue
		case len(rest) < 2 || rest[1] < 2 || int(rest[1]) > len(rest):
			return o
		case rest[0] == md5:
			o.signed = true
		case rest[0] == timestamps && rest[1] == 10:
			o.hasStamp, o.timestamp = true, binary.BigEndian.Uint32(rest[2:])
		}
		rest = rest[rest[1]:]
	}
	return o
}

// Continues reports whether a segment with payload is like the one before it of its sender
// in all that says whether a host accepts it, and ends nothing before its own end: the two may
// be taken for one. The second may be cut behind its headers.
func Continues(h *headers.Headers, frame []byte, next *headers.Headers, nextFrame []byte) bool {
	const push = headers.Flags(0x08)
	const plain, last = headers.ACK | push, headers.FIN
	a, b := readOptions(h, frame), readOptions(next, nextFrame)
	return h.Flags&^plain == 0 && next.Flags&^(plain|last) == 0 && !h.MoreFragments && !next.MoreFragments &&
		max(h.TTL, next.TTL)-min(h.TTL, next.TTL) <= TTLSlack &&
		!a.signed && !b.signed && a.hasStamp == b.hasStamp && int32(b.timestamp-a.timestamp) >= 0
}

// findRefused returns a bit for each segment with payload that no host accepts for its
// options: with a signature, where the side's SYN had none, or with a timestamp of before
// that SYN (PAWS, RFC 7323, 5.3).
func findRefused(s *flow.Sample, all *walked) (refused uint32) {
	var begun [2]bool
	var syn [2]options
	for i, p := range s.Packets {
		h, side := &all[i], which(p)
		if !h.ok || h.Proto != flow.TCP {
			continue
		}
		o := readOptions(&h.Headers, s.Frame(i))
		if h.Flags&headers.SYN != 0 {
			if !begun[side] {
				begun[side], syn[side] = true, o
			}
			continue
		}
		if h.PayloadLen == 0 || !begun[side] {
			continue
		}
		if o.signed && !syn[side].signed || o.hasStamp && syn[side].hasStamp && int32(o.timestamp-syn[side].timestamp) < 0 {
			refused |= 1 << i
		}
	}
	return refused
}
