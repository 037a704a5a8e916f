// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// So many bytes of a payload are looked at, in words of eight; fewer than the least say nothing.
const (
	randomLeast = 32
	randomMost  = 256
)

// plainWords are what SSH, and requests of HTTP, begin with.
var plainWords = []string{"SSH-", "GET ", "POST", "PUT ", "HEAD", "DELE", "OPTI", "CONN", "PATC", "TRAC", "PRI "}

// LooksRandom reports whether a payload, of which these bytes were captured and that has this
// length, looks random. That is so if the numbers of bits that are set, and of bytes that are
// printable, are within four standard deviations of what random bytes have, and if it does not
// begin with a header: as TLS, SSH or HTTP do, with its own length (16 bits, big-endian), or with
// eight bytes that are all text, of which two are zero, or more than 52 bits are set.
//
// Nothing is identified by that: a connection whose initiator begins so may wait for its
// verdict (loader.Options). The kernel's programs have the same rules (bpf/pending.h).
func LooksRandom(captured []byte, length int) bool {
	n := min(len(captured), randomMost) &^ 7
	if n < randomLeast || beginsPlainly(captured[:8], length) {
		return false
	}
	set, printable := 0, 0
	for _, b := range captured[:n] {
		set += bits.OnesCount8(b)
		if isPrintable(b) {
			printable++
		}
	}
	// The squares are compared. 4 of 8 bits are set, with a variance of 2; 95 of 256 values are
	// printable.
	excess, text := set-4*n, 256*printable-95*n
	return excess*excess <= 16*2*n && text*text <= 16*95*(256-95)*n
}

func isPrintable(b byte) bool { return b >= 0x20 && b <= 0x7e }

// beginsPlainly reports whether a payload begins with a header.
func beginsPlainly(first []byte, length int) bool {
	printable, zeros, set := 0, 0, 0
	for _, b := range first {
		set += bits.OnesCount8(b)
		if isPrintable(b) {
			printable++
		}
		if b == 0 {
			zeros++
		}
	}
	said, is := binary.BigEndian.Uint16(first), uint16(length)
	return first[0] == 0x16 && first[1] == 3 || printable == len(first) || zeros >= 2 || set > 52 ||
		said == is || said == is-2 || slices.Contains(plainWords, string(first[:4]))
}
