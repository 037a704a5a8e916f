// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Each row is a rule, many of them with the attack that it stops: somebody who can
// send any packet from one side of the interface, and sees nothing of the other.
func TestConnections(t *testing.T) {
	tests := []struct {
		name     string
		options  Options
		words    string // of talk
		samples  []string
		counters string
	}{
		// Beginnings.
		{
			name:     "a SYN alone is no flow",
			words:    ">S",
			counters: "syns 1, header_only 1",
		},
		{
			name:     "a handshake alone is no flow",
			words:    ">S <SA >A <A >A",
			counters: "syns 1, tcp_opened 1, header_only 1",
		},
		{
			name:     "payload that proves the connection",
			words:    ">S <SA >A5 <A6",
			samples:  []string{"40000 end 227 3ms: >54@0 <54@1 >59@2 <60@3"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "payload of the server alone",
			words:    ">S <SA >A <A6",
			samples:  []string{"40000 end 222 3ms: >54@0 <54@1 >54@2 <60@3"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "the bare ACK and the first data are lost",
			words:    ">S <SA >A,lost,seq+4096",
			counters: "syns 1, tcp_opened 1, header_only 1",
		},
		{
			name:     "so much is lost that nothing can be said but that",
			words:    ">S <SA >A,lost,seq+16384 >A5",
			samples:  []string{"40000 closed 162 2ms: >54@0 <54@1 >54@2"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "the other side acknowledges what nobody could read, and ends it",
			words:    ">S <SA >A <FA,lost,ack+4097 >A5,seq+4097",
			samples:  []string{"40000 closed 216 3ms: >54@0 <54@1 >54@2 <54@3"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "data far ahead proves nothing",
			words:    ">S <SA >A5,seq+16385,lost >A5",
			samples:  []string{"40000 end 167 3ms: >54@0 <54@1 >59@3"},
			counters: "syns 1, tcp_opened 1, out_of_place 1",
		},
		{
			name:     "a SYN sent again changes nothing",
			words:    ">S @1000 >S <SA >A >A1",
			samples:  []string{"40000 end 217 1003ms: >54@0 <54@1001 >54@1002 >55@1003"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:  "a SYN+ACK sent again changes nothing",
			words: ">S <SA <SA >A <SA >A1 <SA >A1",
			// The last one came for a connection that was being captured, and stays alone.
			samples:  []string{"40000 end 272 7ms: >54@0 <54@1 >54@3 >55@5 >55@7"},
			counters: "syns 1, tcp_opened 1, header_only 1",
		},
		{
			name:     "a handshake sent again in whole is the same connection",
			words:    ">S <SA >A >A1 >S <SA >A1 >A,seq-2,lost >A1",
			samples:  []string{"40000 end 326 8ms: >54@0 <54@1 >54@2 >55@3 >54@7 >55@8"},
			counters: "syns 2, tcp_opened 1, behind 1",
		},
		{
			name:     "two SYNs, the first is answered",
			words:    ">S >S,x7,lost <SA >A1",
			samples:  []string{"40000 end 163 3ms: >54@0 <54@2 >55@3"},
			counters: "syns 2, tcp_opened 1",
		},
		{
			name:     "two SYNs, the latest is answered",
			words:    ">S >S,x7 <SA >A1",
			samples:  []string{"40000 end 163 2ms: >54@0 <54@1 >55@2"},
			counters: "syns 2, tcp_opened 1",
		},
		{
			name:     "of three SYNs the second is forgotten",
			words:    ">S >S,x7,lost >S,x9,lost <SA,ack+7,lost >A1,seq+7,lost >S,x9,lost <SA,ack+9 >A1,seq+9",
			samples:  []string{"40000 end 163 5ms: >54@0 <54@4 >55@5"},
			counters: "syns 3, tcp_opened 1, out_of_place 1",
		},
		{
			name:     "simultaneous open",
			words:    ">S <S >SA <SA >A <A >A3 <A4",
			samples:  []string{"40000 end 331 7ms: >54@0 <54@3 >54@4 <54@5 >57@6 <58@7"},
			counters: "syns 2, tcp_opened 1",
		},
		{
			name:     "SYN+ACK alone: the SYN came in fragments",
			words:    "<SA >A >A3",
			samples:  []string{"40000 end 165 2ms: <54@0 >54@1 >57@2"},
			counters: "tcp_opened 1",
		},
		{
			name:     "SYN+ACK alone asks for exact numbers",
			words:    "<SA >A3,seq+1,lost >A3,seq-1,lost >A3,ack+1,lost >A3,ack-1,lost >A3",
			samples:  []string{"40000 end 111 5ms: <54@0 >57@5"},
			counters: "tcp_opened 1, out_of_place 4",
		},
		{
			name:     "an ACK before a SYN in fragments hides nothing",
			words:    ">A,lost,seq+99 <SA >A3",
			samples:  []string{"40000 end 111 1ms: <54@0 >57@1"},
			counters: "mid_stream 1, tcp_opened 1",
		},
		{
			name:     "a server that speaks before it is answered",
			words:    ">S <SA <FA85 >A >A409 <A5,lost",
			samples:  []string{"40000 end 684 5ms: >54@0 <54@1 >54@3 >463@4 <59@5"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "what is after a gap of the server's early data",
			words:    ">S <SA <A100,lost >A >A3 <A100",
			samples:  []string{"40000 end 219 4ms: >54@0 <54@1 >54@3 >57@4"},
			counters: "syns 1, tcp_opened 1, behind 1",
		},

		// Data in the SYN.
		{
			name:     "TCP Fast Open",
			words:    ">S20,tfo <SA >A <A6",
			samples:  []string{"40000 end 242 3ms: >74@0 <54@1 >54@2 <60@3"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "TCP Fast Open opens the capture with the proof",
			words:    ">S20,tfo <SA >A @2002 <A6",
			samples:  []string{"40000 idle 182 2002ms: >74@0 <54@1 >54@2", "40000 end 242 2002ms: >74@0 <54@1 >54@2 <60@2002"},
			counters: "syns 1, tcp_opened 1, again 1",
		},
		{
			name:     "TCP Fast Open that is not accepted",
			words:    ">S20 <SA >A >A20",
			samples:  []string{"40000 end 236 3ms: >54@0 <54@1 >54@2 >74@3"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "TCP Fast Open that is accepted in part",
			words:    ">S20,tfo <SA,ack-10 >A,seq-10,lost >A10,seq-10,lost",
			samples:  []string{"40000 end 226 3ms: >54@0 <54@1 >54@2 >64@3"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "TCP Fast Open of more than 160 bytes",
			words:    ">S107,tfo <SA >A @9000 <A6",
			samples:  []string{"40000 end 222 9000ms: >54@0 <54@1 >54@2 <60@9000"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "TCP Fast Open of 160 bytes",
			words:    ">S106,tfo <SA >A",
			samples:  []string{"40000 end 268 2ms: >160@0 <54@1 >54@2"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "more is acknowledged than the SYN had",
			words:    ">S20,tfo <SA,ack+1 >A5",
			counters: "syns 1, out_of_place 1, header_only 1",
		},
		{
			name:     "data of a SYN+ACK comes again",
			words:    ">S <SA9 >A3 <A9",
			samples:  []string{"40000 end 228 3ms: >54@0 <54@1 >57@2 <63@3"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "the payload of a forged SYN is never captured",
			words:    ">S20,lost,x1 >S <SA >A3",
			samples:  []string{"40000 end 165 2ms: >54@0 <54@1 >57@2"},
			counters: "syns 2, tcp_opened 1",
		},
		{
			name:     "MP_JOIN is the middle of a stream",
			words:    ">S,join <SA >A >A100 <A1000",
			samples:  []string{"40000 closed 120 2ms: >66@0 <54@1"},
			counters: "syns 1, tcp_opened 1, mptcp_join 1",
		},
		{
			name: "MP_JOIN is the middle of a stream, when those are captured as well", options: Options{MidStream: true},
			words:    ">S,join <SA >A >A100 <A1000",
			samples:  []string{"40000 closed 120 2ms: >66@0 <54@1"},
			counters: "syns 1, tcp_opened 1, mptcp_join 1",
		},

		// What is forged on a flow that runs.
		{
			name:     "a SYN inside a capture",
			words:    ">S <SA >A >A5 >S,x99,lost >S30,x199,lost >A5",
			samples:  []string{"40000 end 280 6ms: >54@0 <54@1 >54@2 >59@3 >59@6"},
			counters: "syns 3, tcp_opened 1, header_only 1",
		},
		{
			name:     "a SYN of the other end inside a capture swaps no roles",
			words:    ">S <SA >A >A5 <S,x99,lost <A5 >A5",
			samples:  []string{"40000 end 339 6ms: >54@0 <54@1 >54@2 >59@3 <59@5 >59@6"},
			counters: "syns 2, tcp_opened 1, header_only 1",
		},
		{
			name:     "a SYN+ACK inside a capture",
			words:    ">S <SA >A >A5 <SA,x99,lost >SA,lost >A5",
			samples:  []string{"40000 end 280 6ms: >54@0 <54@1 >54@2 >59@3 >59@6"},
			counters: "syns 1, tcp_opened 1, header_only 2",
		},
		{
			name:     "the handshake of a decided flow comes again",
			words:    ">S <SA >A >A1000 <A >S,lost <SA,lost,ack-1000 >A5 >A5",
			samples:  []string{"40000 full 1024 3ms: >54@0 <54@1 >54@2 >862/1054@3"},
			counters: "syns 2, tcp_opened 1",
		},
		{
			name:     "a SYN and what follows on a decided flow",
			words:    ">S <SA >A >A1000 >S,x99,lost >A1,seq+100,lost >A1",
			samples:  []string{"40000 full 1024 3ms: >54@0 <54@1 >54@2 >862/1054@3"},
			counters: "syns 2, tcp_opened 1, header_only 1",
		},
		{
			name:     "a forged handshake from one side",
			words:    ">S <SA >A >A5 >S,x99,lost <SA,lost,x55,ack+94 >A,lost,seq+94 >A,lost,seq+94,ack+56 >A5",
			samples:  []string{"40000 end 388 8ms: >54@0 <54@1 >54@2 >59@3 >54@6 >54@7 >59@8"},
			counters: "syns 2, tcp_opened 1, header_only 1",
		},
		{
			name:     "SYN with RST or FIN",
			words:    ">SF,lost >SR,lost <SAR,lost >S <SA >SAF,lost >A5 >SR5,lost >A5",
			samples:  []string{"40000 end 226 5ms: >54@0 <54@1 >59@3 >59@5"},
			counters: "syns 1, tcp_opened 1, bad_flags 5",
		},
		{
			name:     "a RST before payload",
			words:    ">S <SA >A >RA,lost <A9 >A5",
			samples:  []string{"40000 end 338 5ms: >54@0 <54@1 >54@2 >54@3 <63@4 >59@5"},
			counters: "syns 1, tcp_opened 1, header_only 1",
		},
		{
			name:     "a FIN before payload",
			words:    ">S <SA >A >FA,lost >A5",
			samples:  []string{"40000 end 275 4ms: >54@0 <54@1 >54@2 >54@3 >59@4"},
			counters: "syns 1, tcp_opened 1, header_only 1",
		},
		{
			name:     "a RST before the SYN+ACK is answered",
			words:    ">S <SA >R,lost <RA,lost >A >A5",
			samples:  []string{"40000 end 221 5ms: >54@0 <54@1 >54@4 >59@5"},
			counters: "syns 1, tcp_opened 1, out_of_place 1",
		},
		{
			name:     "a RST before the SYN+ACK",
			words:    ">S <R,lost <RA,lost >R,lost <SA >A5",
			samples:  []string{"40000 end 167 5ms: >54@0 <54@4 >59@5"},
			counters: "mid_stream 1, syns 1, tcp_opened 1",
		},
		{
			name:     "a RST of wrong numbers inside a capture",
			words:    ">S <SA >A >A5 >R,seq+1,lost >R,seq-1,lost <RA,seq+16385,lost <RA,seq-1,lost <RA,ack+16385,lost >A5",
			samples:  []string{"40000 end 280 9ms: >54@0 <54@1 >54@2 >59@3 >59@9"},
			counters: "syns 1, tcp_opened 1, out_of_place 5",
		},
		{
			name:     "a RST ahead inside a capture",
			words:    ">S <SA >A >A5 <RA,seq+16384",
			samples:  []string{"40000 closed 275 4ms: >54@0 <54@1 >54@2 >59@3 <54@4"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "a FIN of wrong numbers inside a capture",
			words:    ">S <SA >A >A5 >FA,seq+1,lost >FA,seq-1,lost <FA,seq+16385,lost >A5 >FA",
			samples:  []string{"40000 closed 442 8ms: >54@0 <54@1 >54@2 >59@3 >54@4 >54@5 >59@7 >54@8"},
			counters: "syns 1, tcp_opened 1, out_of_place 1",
		},
		{
			name:     "a FIN with payload ahead ends nothing",
			words:    ">S <SA >A >A5 >FA5,seq+5,lost >A5 <FA5",
			samples:  []string{"40000 closed 398 6ms: >54@0 <54@1 >54@2 >59@3 >59@4 >59@5 <59@6"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "acknowledgements that can't be",
			words:    ">S <SA >A >A5 >A5,ack+16385,lost >A5,ack+16384,lost <A9,lost >A5,seq+5,ack+0,lost >A5,seq+10,ack-1,lost >5,seq+10,lost",
			samples:  []string{"40000 end 402 7ms: >54@0 <54@1 >54@2 >59@3 >59@5 <63@6 >59@7"},
			counters: "syns 1, tcp_opened 1, out_of_place 3",
		},

		// Segments that are not in order.
		{
			name:     "a retransmission is not captured",
			words:    ">S <SA >A >A10 >A10,seq-10,lost >A5,seq-10,lost >A",
			samples:  []string{"40000 end 280 6ms: >54@0 <54@1 >54@2 >64@3 >54@6"},
			counters: "syns 1, tcp_opened 1, behind 2",
		},
		{
			name:     "forged payload ahead of the real one does not end the flow",
			words:    ">S <SA >A >A517,lost >A231 <A700 >A120,ack+1",
			samples:  []string{"40000 full 1024 5ms: >54@0 <54@1 >54@2 >571@3 <291/754@5"},
			counters: "syns 1, tcp_opened 1, behind 1",
		},
		{
			name:     "new bytes behind old ones",
			words:    ">S <SA >A >A10 >A11,seq-10",
			samples:  []string{"40000 end 291 4ms: >54@0 <54@1 >54@2 >64@3 >65@4"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "a keep-alive",
			words:    ">S <SA >A >A10 >A,seq-1,lost >A1,seq-1,lost <A",
			samples:  []string{"40000 end 334 6ms: >54@0 <54@1 >54@2 >64@3 >54@4 <54@6"},
			counters: "syns 1, tcp_opened 1, behind 1",
		},
		{
			name:     "reordered",
			words:    ">S <SA >A >A10,seq+10,lost >A10 >A10,seq+10",
			samples:  []string{"40000 end 354 5ms: >54@0 <54@1 >54@2 >64@3 >64@4 >64@5"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "a hole that is filled once",
			words:    ">S <SA >A >A10,seq+10,lost >A5 >A5 >A5,seq-5,lost >A10,seq+10",
			samples:  []string{"40000 end 408 7ms: >54@0 <54@1 >54@2 >59@3 >59@4 >64@5 >64@7"},
			counters: "syns 1, tcp_opened 1, behind 1",
		},
		{
			name:     "a hole that is filled from its end",
			words:    ">S <SA >A >A10,seq+10,lost >A4,seq+6,lost >A4,seq+6,lost >A6",
			samples:  []string{"40000 end 344 6ms: >54@0 <54@1 >54@2 >60@3 >58@4 >64@6"},
			counters: "syns 1, tcp_opened 1, behind 1",
		},
		{
			name:     "a second hole is not filled",
			words:    ">S <SA >A >A10,seq+10,lost >A10,seq+30,lost >A10,seq+20,lost >A10",
			samples:  []string{"40000 end 354 6ms: >54@0 <54@1 >54@2 >64@3 >64@4 >64@6"},
			counters: "syns 1, tcp_opened 1, behind 1",
		},
		{
			name:     "a filler that reaches beyond",
			words:    ">S <SA >A >A10,seq+10,lost >A30 >A5",
			samples:  []string{"40000 end 369 5ms: >54@0 <54@1 >54@2 >84@3 >64@4 >59@5"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "a window ahead",
			words:    ">S <SA >A >A5 >A5,seq+16385,lost >A5,seq+16384",
			samples:  []string{"40000 end 280 5ms: >54@0 <54@1 >54@2 >59@3 >59@5"},
			counters: "syns 1, tcp_opened 1, out_of_place 1",
		},
		{
			name:     "a window behind",
			words:    ">S <SA >A >A5 <A1 >A,seq-16384,lost >A,seq-16385,lost >A1,seq-16384,lost >A1,seq-16385,lost",
			samples:  []string{"40000 end 330 5ms: >54@0 <54@1 >54@2 >59@3 <55@4 >54@5"},
			counters: "syns 1, tcp_opened 1, out_of_place 2, behind 1",
		},

		// The next connection on the same ports.
		{
			name:     "port reuse after a decided flow",
			words:    ">S <SA >A >A1000 new @9000 >S <SA >A >A5",
			samples:  []string{"40000 full 1024 3ms: >54@0 <54@1 >54@2 >862/1054@3", "40000 end 221 3ms: >54@0 <54@1 >54@2 >59@3"},
			counters: "syns 2, tcp_opened 2",
		},
		{
			name:     "port reuse in a capture",
			words:    ">S <SA >A >A5 new >S <SA >A >A5",
			samples:  []string{"40000 end 221 3ms: >54@0 <54@1 >54@2 >59@3"},
			counters: "syns 2, tcp_opened 2, restarted 1",
		},
		{
			name:     "port reuse after a connection without payload",
			words:    ">S <SA >A >RA new >S <SA >A >A5",
			samples:  []string{"40000 end 221 3ms: >54@0 <54@1 >54@2 >59@3"},
			counters: "syns 2, tcp_opened 2, header_only 1",
		},
		{
			name:     "port reuse the other way round",
			words:    ">S <SA >A >A1000 new @9000 <S >SA <A <A5",
			samples:  []string{"40000 full 1024 3ms: >54@0 <54@1 >54@2 >862/1054@3", "443 end 221 3ms: >54@0 <54@1 >54@2 >59@3"},
			counters: "syns 2, tcp_opened 2",
		},
		{
			name:     "the old connection goes on while the next one is made",
			words:    ">S <SA >A >A5 >S,x99,lost <SA,ack+94,x55,lost >A5 <A5 >FA <FA",
			samples:  []string{"40000 closed 393 8ms: >54@0 <54@1 >54@2 >59@3 >59@6 <59@7 >54@8"},
			counters: "syns 2, tcp_opened 1, header_only 1",
		},
		{
			name:     "a SYN+ACK alone on a decided flow begins nothing",
			words:    ">S <SA >A >A1000 new <SA >A >A5",
			samples:  []string{"40000 full 1024 3ms: >54@0 <54@1 >54@2 >862/1054@3"},
			counters: "syns 1, tcp_opened 1, header_only 1",
		},
		{
			name:     "port reuse on a mid-stream connection",
			words:    ">A10 <A10 new >S <SA >A >A3",
			samples:  []string{"40000 end 219 3ms: >54@0 <54@1 >54@2 >57@3"},
			counters: "mid_stream 1, syns 1, tcp_opened 1",
		},

		// How old a candidate may be.
		{
			name:     "a forged SYN+ACK does not replace a connection without payload",
			words:    ">S <SA >A @99000 <SA,x99,ack+5,lost >A5",
			samples:  []string{"40000 end 221 99001ms: >54@0 <54@1 >54@2 >59@99001"},
			counters: "syns 1, tcp_opened 1, out_of_place 1",
		},
		{
			name:     "a forged SYN+ACK does not replace one that is to be answered",
			words:    ">S <SA <SA,x99,lost,ack+5 >A5",
			samples:  []string{"40000 end 167 3ms: >54@0 <54@1 >59@3"},
			counters: "syns 1, tcp_opened 1, out_of_place 1",
		},
		{
			name:     "but one that is old",
			words:    ">S <SA @60002 <SA,x99,ack+5 >A5,seq+5",
			samples:  []string{"40000 end 113 1ms: <54@0 >59@1"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "or closed",
			words:    ">S <SA >A >FA <FA new <SA >A5",
			samples:  []string{"40000 end 113 1ms: <54@0 >59@1"},
			counters: "syns 1, tcp_opened 2, header_only 1",
		},
		{
			name:     "a first SYN that is old gives way",
			words:    ">S @60001 >S,x9,lost >S,x8,lost <SA,lost >A5,lost <SA,ack+9 >A5,seq+9",
			samples:  []string{"40000 end 167 5ms: >54@0 <54@4 >59@5"},
			counters: "syns 3, tcp_opened 1, out_of_place 1",
		},
		{
			name:     "a mark that is old is forgotten",
			words:    ">S <SA >A >A1000 new >S <SA @60006 >A >A5",
			samples:  []string{"40000 full 1024 3ms: >54@0 <54@1 >54@2 >862/1054@3"},
			counters: "syns 2, tcp_opened 1, header_only 1",
		},

		// Mid-stream.
		{
			name:     "mid-stream",
			words:    ">A10 <A2000 >FA >A",
			counters: "mid_stream 1",
		},
		{
			name: "mid-stream, captured", options: Options{MidStream: true},
			words:    ">A >FA,lost >10,lost <A10 >A >FA1 >A2000",
			samples:  []string{"443 closed 173 2ms: >64@0 <54@1 <55@2"},
			counters: "mid_stream 1",
		},
		{
			name: "mid-stream, captured, in place", options: Options{MidStream: true},
			words:    ">A10 >A10,seq-10,lost >A10,seq+99999,lost <A10,seq+99999,lost <A7 >RA,seq-1,lost",
			samples:  []string{"40000 end 125 4ms: >64@0 <61@4"},
			counters: "mid_stream 1, out_of_place 3, behind 1",
		},
		{
			name:     "RST first",
			words:    ">R >A10",
			counters: "mid_stream 1",
		},

		// One direction alone.
		{
			name:     "one way is counted",
			words:    ">S >A >A5 >A500",
			counters: "mid_stream 1, syns 1, one_way 1, header_only 1",
		},
		{
			name:     "one way, the server's, is counted",
			words:    "<SA <A5 <A500",
			counters: "mid_stream 1, one_way 1, header_only 1",
		},
		{
			name: "one way", options: Options{OneWay: true},
			words:    ">S >A >A5 >A,ack+100000,lost >A500,ack+100000 >A5,seq-5,lost",
			samples:  []string{"40000 end 775 4ms: >54@0 >54@1 >59@2 >54@3 >554@4"},
			counters: "syns 1, tcp_opened 1, one_way 1, behind 1",
		},
		{
			name: "one way, the server's", options: Options{OneWay: true},
			words:    "<SA <A5 <A,ack+100000,lost <A500,ack+100000",
			samples:  []string{"40000 end 721 3ms: <54@0 <59@1 <54@2 <554@3"},
			counters: "tcp_opened 1, one_way 1",
		},
		{
			name: "one way, both directions after all", options: Options{OneWay: true},
			words:    ">S >A >A5 <A6",
			samples:  []string{"40000 end 227 3ms: >54@0 >54@1 >59@2 <60@3"},
			counters: "syns 1, tcp_opened 1, one_way 1",
		},
		{
			name: "one way with payload in its SYN", options: Options{OneWay: true},
			words:    ">S20 >A20",
			samples:  []string{"40000 end 128 1ms: >54@0 >74@1"},
			counters: "syns 1, tcp_opened 1, one_way 1",
		},
		{
			name: "a forged one way ends no handshake", options: Options{OneWay: true},
			words:    ">S >S,x9,lost <SA >A5,seq+9,ack+3,lost >A5",
			samples:  []string{"40000 end 167 4ms: >54@0 <54@2 >59@4"},
			counters: "syns 2, tcp_opened 1, out_of_place 1",
		},

		// Sides.
		{
			name:     "sides",
			words:    "sides >S <SA >A >A5 <A6",
			samples:  []string{"40000 end 281 4ms: >54@0 <54@1 >54@2 >59@3 <60@4"},
			counters: "syns 1, tcp_opened 1",
		},
		{
			name:     "all from one side",
			words:    "sides >S,in <SA,in >A,in >A5,in <A6,in",
			counters: "mid_stream 1, syns 1, one_way 1, reflected 1, header_only 1",
		},
		{
			name:     "SYN and ACK from one side, the SYN+ACK from there as well",
			words:    "sides >S,in <SA >A,in >A5,in",
			counters: "mid_stream 1, syns 1, one_way 1, reflected 1, header_only 1",
		},
		{
			name:     "forged packets that are sent out again",
			words:    "sides >S,in >S,out <SA,in <SA,out >A,in >A,out >A5,in >A5,out",
			counters: "mid_stream 1, syns 1, reflected 3, header_only 1",
		},
		{
			name:     "forged packets that are sent out again more than once",
			words:    "sides >S,in >S,out >S,out <SA,in <SA,in <SA,out <SA,out >A,in >A,out >A,in >A5,in >A5,out",
			counters: "mid_stream 1, syns 1, reflected 5, header_only 1",
		},
		{
			name:     "a SYN that is sent again and goes out at once",
			words:    "sides >S,in @2000 >S,in >S,out <SA,in >A,in >A5,in",
			counters: "mid_stream 1, syns 1, one_way 1, reflected 2, header_only 1",
		},
		{
			name:     "from the wrong side inside a capture",
			words:    "sides >S <SA >A >A5 >A5,in,lost >FA,in,lost <A5,out,lost >A5",
			samples:  []string{"40000 end 280 7ms: >54@0 <54@1 >54@2 >59@3 >59@7"},
			counters: "syns 1, tcp_opened 1, wrong_side 3",
		},
		{
			name:     "the SYN of the other side is another candidate",
			words:    "sides >S >S,x9,in,lost <SA >A5,seq+9,ack+3,in,lost >A5",
			samples:  []string{"40000 end 167 4ms: >54@0 <54@2 >59@4"},
			counters: "syns 2, tcp_opened 1, out_of_place 1, header_only 1",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			samples, counters := run(t, tt.options, talk(t, tt.words))
			if diff := cmp.Diff(tt.samples, samples); diff != "" {
				t.Errorf("samples (-want +got):\n%s", diff)
			}
			if counters != tt.counters {
				t.Errorf("counters %q, want %q", counters, tt.counters)
			}
		})
	}
}

func TestSamplesSayTheirNumbers(t *testing.T) {
	const x, y = 0xffffff80, 0x7ffffff0 // of talk
	known := flow.Numbers{InitiatorISN: x, ResponderISN: y, ISNKnown: true, InitiatorNextKnown: true, ResponderNextKnown: true}
	with := func(n flow.Numbers, initiator, responder uint32) flow.Numbers {
		n.InitiatorNext, n.ResponderNext = initiator, responder
		return n
	}
	for _, tt := range []struct {
		name    string
		options Options
		words   string
		want    flow.Meta
	}{
		{name: "both ways", words: ">S <SA >A >A5 >A9,seq+200,lost <A6 <A6", want: flow.Meta{Numbers: with(known, 0x57, y+13)}},
		{name: "of the higher end", words: "new <S >SA <A5 >A6", want: flow.Meta{Numbers: flow.Numbers{
			InitiatorISN: 0x804c4b3b, ResponderISN: 0x000f41c3, InitiatorNext: 0x804c4b41, ResponderNext: 0x000f41ca,
			ISNKnown: true, InitiatorNextKnown: true, ResponderNextKnown: true}}},
		{name: "one way", options: Options{OneWay: true}, words: ">S >A5,ack+1", want: flow.Meta{OneWay: true, Numbers: with(known, x+6, y+1)}},
		{name: "one way, of the responder", options: Options{OneWay: true}, words: "<SA,ack+1 <A5,ack+1", want: flow.Meta{OneWay: true, Numbers: with(known, x+1, y+6)}},
		{name: "mid-stream", options: Options{MidStream: true}, words: ">A5", want: flow.Meta{MidStream: true, Numbers: flow.Numbers{
			InitiatorNext: x + 5, ResponderNext: y, InitiatorNextKnown: true, ResponderNextKnown: true}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []flow.Meta
			a := New(tt.options, func(_ *Flow, s *flow.Sample) {
				got = append(got, flow.Meta{OneWay: s.OneWay, MidStream: s.MidStream, Numbers: s.Numbers})
			}, nil)
			for _, p := range talk(t, tt.words) {
				a.Packet(epoch, p.frame, len(p.frame))
			}
			a.Flush()
			if diff := cmp.Diff([]flow.Meta{tt.want}, got, cmp.Comparer(func(a, b flow.Key) bool { return a == b })); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A flood pushes out its like: what both ends have made gives way last.
func TestFloodsAreBounded(t *testing.T) {
	var samples []string
	a := New(Options{}, func(_ *Flow, s *flow.Sample) { samples = append(samples, describe(s)) }, nil)
	feed := func(words string) {
		for _, p := range talk(t, words) {
			a.Packet(epoch.Add(time.Duration(p.ms)*time.Millisecond), p.frame, len(p.frame))
		}
	}
	feed(">S <SA >A")
	const n = 3 * maxCandidates
	for _, p := range talk(t, ">S >A <SA") {
		for i := range uint32(n) { // of strangers, each another
			binary.BigEndian.PutUint32(p.frame[26:], 0x0b000000+i)
			frame := right(p.frame)
			a.Packet(epoch.Add(time.Second), frame, len(frame))
		}
	}
	feed("@2000 >A5,seq+1,ack+1")
	if h := &a.handshakes; len(h.of) > maxCandidates || h.n > maxCandidates || len(h.midStream.young)+len(h.midStream.old) > 2*maxRemembered {
		t.Errorf("%d candidates of %d keys, %d and %d mid-stream connections", h.n, len(h.of), len(h.midStream.young), len(h.midStream.old))
	}
	a.Flush()
	if diff := cmp.Diff([]string{"40000 end 221 2000ms: >54@0 <54@1 >54@2 >59@2000"}, samples); diff != "" {
		t.Errorf("samples (-want +got):\n%s", diff)
	}
	c := a.Counters()
	if c[SYNs] != 1+n || c[MidStream] != n || c[HeaderOnly] != 2*n {
		t.Errorf("counters %v", c)
	}
	if len(a.handshakes.of)+a.handshakes.n+len(a.handshakes.midStream.young) != 0 {
		t.Error("something is left after the flush")
	}
}
