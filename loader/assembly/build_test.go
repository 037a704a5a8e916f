// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/loader/flow/headers"
	"github.com/earlydrop/earlydrop/loader/internal/frames"
)

// Short names for building packets layer by layer, from the inside out.
var (
	payload  = frames.Payload
	udpDgram = frames.Datagram
	ip       = frames.IP
	eth      = frames.Ethernet
	with     = frames.With
	right    = frames.Checksum
	client4  = netip.MustParseAddrPort("10.0.0.2:40000")
	server4  = netip.MustParseAddrPort("192.0.2.7:443")
	client6  = netip.MustParseAddrPort("[fd00::2]:40000")
	server6  = netip.MustParseAddrPort("[2001:db8::7]:443")
)

// Names of package headers that the tests use all the time.
const (
	FIN = headers.FIN
	SYN = headers.SYN
	RST = headers.RST
	ACK = headers.ACK

	etherIPv4   = headers.TypeIPv4
	etherIPv6   = headers.TypeIPv6
	etherVLAN   = headers.TypeVLAN
	etherQinQ   = headers.TypeQinQ
	extDestOpts = headers.DestOptions
)

func be16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

func tcpSeg(src, dst netip.AddrPort, flags headers.Flags, options, body []byte) []byte {
	return frames.Segment(src, dst, byte(flags), options, body)
}

func udp4(fromClient bool, n int) []byte {
	src, dst := client4, server4
	if !fromClient {
		src, dst = dst, src
	}
	return eth(ip(src, dst, frames.UDP, udpDgram(src, dst, payload(n))))
}

// at is a frame, its time after epoch in milliseconds and the side that it came from.
type at struct {
	ms    int
	frame []byte
	side  Side
}

// talk builds the packets of a connection between client4 and server4 from words:
//
//	>S  <SA  >A  >A100  <FA5   a segment of the client or of the server, with flags
//	                           (S, A, F, R, P) and bytes of payload
//	@2000                      the next packet comes at that millisecond; else each comes
//	                           one after the packet before
//	new                        both ends have other initial numbers from here on
//	sides                      the packets say which side they are from: the client's
//	                           are outbound
//
// A segment has the numbers that its sender's stack would give it. After a comma may
// follow what is different:
//
//	,seq+5 ,ack-1              numbers
//	,lost                      it does not move its sender on: forged, or sent again
//	,x+9                       its sender has this other initial number
//	,tfo                       of a SYN: its payload is acknowledged, and not sent again
//	,in ,out                   the side that it is from
//	,join                      the option MP_JOIN
//	,options40                 bytes of options
func talk(t testing.TB, words string) (packets []at) {
	t.Helper()
	isn := [2]uint32{0xffffff80, 0x7ffffff0} // both wrap soon, as signed or unsigned
	next := isn
	ms, sides := 0, false
	for _, word := range strings.Fields(words) {
		switch {
		case word == "new":
			isn[0], isn[1] = isn[0]+1000003, isn[1]+5000011
			next = isn
			continue
		case word == "sides":
			sides = true
			continue
		case word[0] == '@':
			ms = number(t, word[1:])
			continue
		}
		what, changes, _ := strings.Cut(word[1:], ",")
		from := strings.IndexByte("><", word[0])
		if from < 0 {
			t.Fatalf("%q begins with no direction", word)
		}
		digits := strings.IndexAny(what+"0", "0123456789")
		var flags headers.Flags
		for _, c := range what[:digits] {
			flags |= map[rune]headers.Flags{'S': SYN, 'A': ACK, 'F': FIN, 'R': RST, 'P': 8}[c]
		}
		n := 0
		if digits < len(what) {
			n = number(t, what[digits:])
		}
		seq, ack, other, moves := next[from], next[1-from], uint32(0), true
		if flags&SYN != 0 {
			seq = isn[from]
		}
		if flags&ACK == 0 {
			ack = 0
		}
		side, options := SideUnknown, []byte(nil)
		if sides {
			side = []Side{SideOutbound, SideInbound}[from]
		}
		end := seq + uint32(n)
		if flags&SYN != 0 {
			end = seq + 1
		}
		if flags&FIN != 0 {
			end++
		}
		for change := range strings.SplitSeq(changes, ",") {
			switch {
			case change == "":
			case change == "lost":
				moves = false
			case change == "tfo":
				end += uint32(n)
			case change == "in":
				side = SideInbound
			case change == "out":
				side = SideOutbound
			case change == "join":
				options = []byte{30, 12, 0x10, 1, 1, 2, 3, 4, 5, 6, 7, 8}
			case strings.HasPrefix(change, "options"):
				options = bytes.Repeat([]byte{1}, number(t, change[7:]))
			case strings.HasPrefix(change, "seq"):
				seq += uint32(number(t, change[3:]))
				end += uint32(number(t, change[3:]))
			case strings.HasPrefix(change, "ack"):
				ack += uint32(number(t, change[3:]))
			case strings.HasPrefix(change, "x"):
				other = uint32(number(t, change[1:]))
				seq, end = seq+other, end+other
			default:
				t.Fatalf("%q: what is %q?", word, change)
			}
		}
		src, dst := client4, server4
		if from == 1 {
			src, dst = dst, src
		}
		segment := frames.Numbered(tcpSeg(src, dst, flags, options, payload(n)), seq, ack)
		packets = append(packets, at{ms, eth(ip(src, dst, frames.TCP, segment)), side})
		if moves {
			isn[from] += other
			next[from] = end
		}
		ms++
	}
	return packets
}

func number(t testing.TB, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
