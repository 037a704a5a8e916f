// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"

	"golang.org/x/sys/unix"
)

// What a strategy takes.
const (
	network  = "network"   // nobody: networks do it by themselves
	nothing  = "nothing"   // any program can do it, at its socket
	root     = "root"      // raw packets at the client
	server   = "server"    // raw packets at the server; the client has no part in it
	bothEnds = "both ends" // raw packets at both
	outsider = "outsider"  // no end: somebody behind the server's side who knows addresses and ports
)

// strategy is one way to shape a connection's beginning.
type strategy struct {
	name   string
	what   string
	needs  string
	source string // who has published it (optional)
	ipv6   bool   // it is one of IPv6
	// malformed: it sends handshakes in malformed fragments alone, which mode enforce drops.
	malformed bool

	// At the client's socket: before it connects, and in place of its first write. (optional)
	control func(fd int) error
	write   func(ctx context.Context, f *flow, c *net.TCPConn, first []byte) error
	mptcp   bool

	// At the relays. (optional)
	fromClient, toClient, fromServer, toServer hook
}

// outside tells whether nobody at the connection's ends takes part.
func (s *strategy) outside() bool { return s.needs == outsider }

// untouched tells whether it is none: packets are as the programs make them.
func (s *strategy) untouched() bool {
	return s.control == nil && s.write == nil && !s.mptcp && s.fromClient == nil && s.toClient == nil && s.fromServer == nil && s.toServer == nil
}

// strategies are all of them, those that take less first.
var strategies = slices.Concat(atTheSocket, decoys, endings, segments, acks, handshakes, options, fragmented, ofIPv6, atTheServer, atBothEnds, byOutsiders)

var atTheSocket = []strategy{
	{name: "plain", what: "nothing is done", needs: nothing},
	{name: "loss", what: "the network loses the first segment with payload, once", needs: network, fromClient: onFirst(func(*packet) [][]byte { return nil })},
	{name: "reordered", what: "the network swaps the first two segments with payload", needs: network, fromClient: swapFirst},
	{name: "tiny-1", what: "a write of a byte, then the rest", needs: nothing, source: "tpws --split-pos", write: pieces(1, 1, nil)},
	{name: "tiny-2", what: "two writes of a byte, then the rest", needs: nothing, write: pieces(1, 2, nil)},
	{name: "tiny-3", what: "three writes of a byte, then the rest", needs: nothing, write: pieces(1, 3, nil)},
	{name: "tiny-8", what: "eight writes of a byte, then the rest", needs: nothing, source: "zapret multisplit; tpws --split-pos", write: pieces(1, 8, nil)},
	{name: "tiny-30", what: "thirty writes of a byte, then the rest", needs: nothing, write: pieces(1, 30, nil)},
	{name: "small-16", what: "eight writes of 16 bytes, then the rest", needs: nothing, write: pieces(16, 8, nil)},
	{name: "small-60", what: "eight writes of 60 bytes, then the rest", needs: nothing, write: pieces(60, 8, nil)},
	{name: "byte-pause", what: "a byte, 2.4 s of silence, the rest", needs: nothing, write: pieces(1, 1, pause)},
	{name: "pause-100", what: "100 bytes, 2.4 s of silence, the rest", needs: nothing, write: pieces(100, 1, pause)},
	{name: "drip", what: "eight writes of 8 bytes, 0.3 s apart, then the rest", needs: nothing, write: pieces(8, 8, shortPause)},
	{name: "late", what: "2.4 s of silence between handshake and first byte", needs: nothing, write: pieces(0, 1, pause)},
	{name: "split-50", what: "50 bytes, then the rest", needs: nothing, source: "tpws --split-pos; Geneva segmentation", write: pieces(50, 1, nil)},
	{name: "mss-88", what: "the client announces segments of 88 bytes", needs: nothing, source: "tpws --mss", control: setInt(unix.IPPROTO_TCP, unix.TCP_MAXSEG, 88)},
	{name: "small-buffer", what: "the client takes in little at a time", needs: nothing, control: setInt(unix.SOL_SOCKET, unix.SO_RCVBUF, 1)},
	{name: "urgent", what: "an urgent byte, which the server's program does not get, after the first", needs: nothing, source: "tpws --oob", write: urgentByte},
	{name: "ttl-change", what: "time to live 40 after the handshake, 64 in it", needs: nothing, source: "zapret --orig-ttl", write: withTTL(40)},
	{name: "ttl-disorder", what: "the first 100 bytes with time to live 1, lost at the gateway and sent again after the rest", needs: nothing, source: "tpws --disorder", write: lostFirst},
	{name: "ttl-swap", what: "other bytes, lost at the gateway by time to live 1; the kernel sends the page again, with the real ones", needs: nothing, source: "byedpi --fake", write: swappedPage},
	{name: "fast-open", what: "the first bytes in the SYN, with a cookie (TCP Fast Open)", needs: nothing, control: setInt(unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)},
	{name: "mptcp", what: "a SYN of Multipath TCP, which the server does not answer", needs: nothing, mptcp: true},
}

var decoys = []strategy{
	{name: "decoy-checksum", what: "a ClientHello with a wrong checksum before the first bytes", needs: root, source: "zapret fake, badsum; Geneva TCB desync, load and chksum", fromClient: before(decoy(hello, wrongSum))},
	{name: "decoy-checksum-http", what: "a request of HTTP with a wrong checksum", needs: root, source: "zapret fake, badsum", fromClient: before(decoy(request, wrongSum))},
	{name: "decoy-checksum-short", what: "the first 120 bytes of a request of HTTP with a wrong checksum", needs: root, source: "zapret fake, badsum", fromClient: before(decoy(request[:120], wrongSum))},
	{name: "decoy-checksum-x6", what: "120 bytes six times, each behind the last, with wrong checksums", needs: root, source: "zapret --dpi-desync-repeats, fake-tcp-mod seq",
		fromClient: before(decoy(hello[:120], wrongSum), decoy(hello[120:240], wrongSum, seqBy(120)), decoy(hello[240:360], wrongSum, seqBy(240)),
			decoy(hello[360:480], wrongSum, seqBy(360)), decoy(hello[480:600], wrongSum, seqBy(480)), decoy(hello[600:720], wrongSum, seqBy(600)))},
	{name: "decoy-ttl", what: "a ClientHello with time to live 1", needs: root, source: "zapret fake, ttl; Geneva TCB desync, ttl", fromClient: before(decoy(hello, ttl1))},
	{name: "decoy-ttl-http", what: "a request of HTTP with time to live 1", needs: root, source: "zapret fake, ttl", fromClient: before(decoy(request, ttl1))},
	{name: "decoy-seq", what: "a ClientHello 10 000 behind in sequence", needs: root, source: "zapret fake, badseq", fromClient: before(decoy(hello, seqBy(-10000)))},
	{name: "decoy-seq-random", what: "a ClientHello with a random sequence number", needs: root, source: "zapret fake, badseq", fromClient: before(decoy(hello, seqRandom))},
	{name: "decoy-ack", what: "a ClientHello that acknowledges 66 000 too little", needs: root, source: "zapret fake, badack; Geneva TCB desync, ack", fromClient: before(decoy(hello, ackBy(-66000)))},
	{name: "decoy-ack-ahead", what: "a ClientHello that acknowledges 5000 bytes that were never sent", needs: root, source: "Geneva TCB desync, ack", fromClient: before(decoy(hello, ackBy(5000)))},
	{name: "decoy-md5", what: "a ClientHello with an MD5 signature (RFC 2385) that nobody asked for", needs: root, source: "zapret fake, md5sig", fromClient: before(decoy(hello, signed))},
	{name: "decoy-paws", what: "a ClientHello with a timestamp of the past", needs: root, source: "zapret fake, ts", fromClient: before(decoy(hello, stale))},
	{name: "decoy-no-ack", what: "a ClientHello without the flag ACK", needs: root, source: "zapret fake, datanoack", fromClient: before(decoy(hello, flagged(psh)))},
	{name: "decoy-all-flags", what: "a ClientHello with FIN, RST, PSH, ACK, URG and a wrong checksum", needs: root, source: "Geneva TCB desync and teardown, FRAPUN", fromClient: before(decoy(hello, wrongSum, flagged(fin|rst|psh|ack|urg)))},
	{name: "decoy-offset", what: "a ClientHello with a TCP header two words too long and a wrong checksum", needs: root, source: "Geneva TCB desync, dataofs", fromClient: before(decoy(hello, wrongSum, func(p *packet) { p.offset = 2 }))},
	{name: "short-length", what: "the first segment, cut to 12 bytes by its IP header, before the first segment", needs: root, source: "Geneva IP length", fromClient: before(func(_ *flow, p *packet) *packet {
		d := p.clone()
		d.cut = max(0, len(d.payload)-12)
		return d
	})},
}

var endings = []strategy{
	{name: "rst-checksum", what: "a RST with a wrong checksum after the handshake", needs: root, source: "Geneva TCB teardown; zapret rst, badsum", fromClient: before(bare(rst, wrongSum))},
	{name: "rst-ttl", what: "a RST with time to live 1", needs: root, source: "Geneva TCB teardown; zapret rst, ttl", fromClient: before(bare(rst, ttl1))},
	{name: "rst-md5", what: "a RST with an MD5 signature", needs: root, source: "Geneva TCB teardown; zapret rst, md5sig", fromClient: before(bare(rst, signed))},
	{name: "rst-seq", what: "a RST with a random number", needs: root, source: "zapret rst, badseq", fromClient: before(bare(rst, seqRandom))},
	{name: "rstack-checksum", what: "a RST with ACK and a wrong checksum", needs: root, source: "Geneva TCB teardown; zapret rstack, badsum", fromClient: before(bare(rst|ack, wrongSum))},
	{name: "rstack-ack", what: "a RST with ACK of a wrong number, 100 000 behind in sequence", needs: root, source: "Geneva TCB teardown, ack", fromClient: before(bare(rst|ack, ackBy(-66000), seqBy(-100000)))},
	{name: "fin-checksum", what: "a FIN with a wrong checksum", needs: root, fromClient: before(bare(fin|ack, wrongSum))},
	{name: "fin-ttl", what: "a FIN with time to live 1", needs: root, fromClient: before(bare(fin|ack, ttl1))},
	{name: "fin-data-length", what: "the first segment with FIN, cut to 12 bytes by its IP header", needs: root, source: "Geneva hybrid", fromClient: before(func(_ *flow, p *packet) *packet {
		d := p.clone()
		d.setFlags(fin)
		d.cut = max(0, len(d.payload)-12)
		return d
	})},
	{name: "rst-after-byte", what: "a byte, a RST with a wrong checksum, the rest", needs: root, write: pieces(1, 1, nil), fromClient: behind(bare(rst, wrongSum, seqBy(1)))},
	{name: "decoy-rst", what: "a byte and a RST, both with wrong checksums, before the first bytes", needs: root, fromClient: before(decoy(request[:1], wrongSum), bare(rst, wrongSum, seqBy(1)))},
	{name: "rst-twice", what: "300 bytes, a SYN with RST and a RST, the rest", needs: root, write: pieces(300, 1, nil), fromClient: behind(bare(syn|rst, wrongSum), bare(rst, wrongSum))},
}

var segments = []strategy{
	{name: "multisplit", what: "segments of 2, 48 and 50 bytes, then the rest", needs: root, source: "zapret multisplit", fromClient: cutAt(false, 2, 50, 100)},
	{name: "disorder", what: "segments of 2, 48 and 50 bytes and the rest, the last first", needs: root, source: "zapret multidisorder; Geneva segmentation", fromClient: cutAt(true, 2, 50, 100)},
	{name: "fakedsplit", what: "two segments, each between two decoys of its place with wrong checksums", needs: root, source: "zapret fakedsplit", fromClient: fakedSplit(false)},
	{name: "fakeddisorder", what: "two segments, the second half first, each between two decoys of its place with wrong checksums", needs: root, source: "zapret fakeddisorder", fromClient: fakedSplit(true)},
	{name: "overlap-left", what: "the first segment begins with 500 other bytes, of before the connection", needs: root, source: "zapret multisplit, split-seqovl", fromClient: overlapLeft},
	{name: "overlap-new", what: "the second half first, with other bytes in the first's place, which the server takes from the first", needs: root, source: "zapret multidisorder, split-seqovl", fromClient: overlapNew},
	{name: "overlap-old", what: "the first half, then the whole with other bytes in the first half's place", needs: root, fromClient: overlapOld},
	{name: "stutter", what: "the first half, then the whole", needs: root, source: "Geneva segmentation with overlap", fromClient: stutter},
	{name: "duplicates", what: "each segment with payload three times", needs: root, source: "zapret --dup", fromClient: func(_ *flow, p *packet) [][]byte {
		if len(p.payload) == 0 {
			return send(p)
		}
		return send(p, p, p)
	}},
	{name: "keep-alives", what: "18 keep-alives with a byte, of the number before the first", needs: root, fromClient: before(slices.Repeat([]maker{decoy(request[:1], seqBy(-1))}, 18)...)},
}

var acks = []strategy{
	{name: "acks-18", what: "18 bare ACKs, in place, before the first bytes", needs: root, fromClient: before(slices.Repeat([]maker{bare(ack)}, 18)...)},
	{name: "acks-18-after", what: "a byte, 18 bare ACKs with random numbers and wrong checksums, the rest", needs: root, write: pieces(1, 1, nil),
		fromClient: behind(slices.Repeat([]maker{bare(ack, wrongSum, seqRandom)}, 18)...)},
	{name: "acks-18-in-place", what: "a byte, 18 bare ACKs in place, the rest", needs: root, write: pieces(1, 1, nil), fromClient: behind(slices.Repeat([]maker{bare(ack, seqBy(1))}, 18)...)},
	{name: "acks-64", what: "64 bare ACKs, in place, before the first bytes", needs: root, fromClient: before(slices.Repeat([]maker{bare(ack)}, 64)...)},
	{name: "acks-long", what: "seven bare ACKs with 20 more bytes of padding", needs: root, fromClient: before(slices.Repeat([]maker{bare(ack, padded)}, 7)...)},
}

var handshakes = []strategy{
	{name: "syn-data", what: "a request of HTTP in the SYN, which the server leaves out", needs: root, source: "zapret syndata", fromClient: onSYN(func(_ *flow, p *packet) [][]byte {
		p.payload = request[:800]
		return send(p)
	})},
	{name: "syn-data-again", what: "the SYN, then once more with 800 bytes", needs: root, source: "Geneva desync, load on second SYN", fromClient: onSYN(func(_ *flow, p *packet) [][]byte {
		again := p.clone()
		again.payload = request[:800]
		return send(p, again)
	})},
	{name: "syn-between", what: "300 bytes, a SYN of another number with a wrong checksum, the rest", needs: root, write: pieces(300, 1, nil), fromClient: behind(bare(syn, wrongSum, seqRandom))},
	{name: "turnaround", what: "a SYN+ACK of the client before its SYN", needs: root, source: "Geneva TCB turnaround; zapret synack", fromClient: onSYN(func(_ *flow, p *packet) [][]byte {
		answer := p.clone()
		answer.setFlags(syn | ack)
		answer.setAck(rand.Uint32())
		return send(answer, p)
	})},
	{name: "synack-answer", what: "the client answers the SYN+ACK by a SYN+ACK, then by its ACK (half of a simultaneous open)", needs: root, fromClient: onAnswer(func(f *flow, p *packet) [][]byte {
		answer := p.clone()
		answer.setFlags(syn | ack)
		answer.setSeq(f.x)
		answer.payload = nil
		return send(answer, p)
	})},
	{name: "piggyback", what: "no bare ACK: the first bytes end the handshake", needs: root, fromClient: func(f *flow, p *packet) [][]byte {
		if !f.shaped && p.is(ack) && len(p.payload) == 0 {
			return nil
		}
		return send(p)
	}},
	{name: "early-data", what: "a ClientHello without ACK right behind the SYN", needs: root, fromClient: onSYN(func(_ *flow, p *packet) [][]byte {
		return send(p, early(p, psh))
	})},
	{name: "early-data-ack", what: "a ClientHello that acknowledges a random number right behind the SYN", needs: root, fromClient: onSYN(func(_ *flow, p *packet) [][]byte {
		d := early(p, psh|ack)
		d.setAck(rand.Uint32())
		return send(p, d)
	})},
}

var options = []strategy{
	{name: "mp-join", what: "a SYN that claims to join a connection of Multipath TCP", needs: root, fromClient: onSYN(func(_ *flow, p *packet) [][]byte {
		p.addOption(optMPTCP, append([]byte{0x10, 1}, randomBytes(8)...)) // MP_JOIN, address 1; token, nonce
		return send(p)
	})},
	{name: "tcp-options", what: "the option User Timeout in each segment", needs: root, source: "Geneva invalid options, uto", fromClient: func(_ *flow, p *packet) [][]byte {
		if p.is(ack) && len(p.payload) < 1400 {
			p.addOption(optUserTimeout, []byte{0x80, 60})
		}
		return send(p)
	}},
	{name: "ip-options", what: "40 bytes of options in each IPv4 header", needs: root, fromClient: func(_ *flow, p *packet) [][]byte {
		if !p.v6() && len(p.payload) < 1400 {
			p.ip = append(p.ip, slices.Repeat([]byte{1}, 40)...) // no operation
		}
		return send(p)
	}},
}

var fragmented = []strategy{
	{name: "fragments", what: "the first segment in fragments of 160 bytes", needs: root, source: "zapret ipfrag2", fromClient: firstInPieces(even(160)...)},
	{name: "fragments-reverse", what: "the first segment in fragments of 160 bytes, the last first", needs: root, source: "zapret ipfrag2", fromClient: firstInPieces(reversed(even(160))...)},
	{name: "fragments-tiny", what: "the first segment in fragments, of 8 bytes the first", needs: root, source: "zapret ipfrag2, ipfrag-pos-tcp 8", fromClient: firstInPieces(tinyFirst...)},
	{name: "fragments-overlap", what: "the first segment in fragments, with a range that comes twice with other bytes; hosts throw it away and the client sends again", needs: root,
		fromClient: firstInPieces(piece{from: 0, to: 48}, piece{from: 40, to: 440, data: hello}, piece{from: 48, to: 1 << 16})},
	{name: "fragments-all", what: "each segment with payload of the client in fragments", needs: root, source: "zapret ipfrag2", fromClient: func(_ *flow, p *packet) [][]byte {
		if len(p.payload) == 0 {
			return send(p)
		}
		return p.fragments(even(160)...)
	}},
	{name: "fragments-syn", what: "the SYN in two fragments, of which the first ends in the TCP header", needs: root, malformed: true, fromClient: onSYN(func(_ *flow, p *packet) [][]byte { return p.fragments(even(24)...) })},
	{name: "fragments-syn-all", what: "every packet of the client in fragments, of 8 bytes the first", needs: root, malformed: true, fromClient: allTiny},
}

var ofIPv6 = []strategy{
	{name: "ipv6", what: "nothing is done, over IPv6", needs: nothing, ipv6: true},
	{name: "ipv6-loss", what: "the network loses the first segment with payload, once", needs: network, ipv6: true, fromClient: onFirst(func(*packet) [][]byte { return nil })},
	{name: "ipv6-reordered", what: "the network swaps the first two segments with payload", needs: network, ipv6: true, fromClient: swapFirst},
	{name: "ipv6-hop-by-hop", what: "a hop-by-hop header in each packet", needs: root, source: "zapret hopbyhop", ipv6: true, fromClient: extended(1, protoHopByHop)},
	{name: "ipv6-destination", what: "a header of destination options in each packet", needs: root, source: "zapret destopt", ipv6: true, fromClient: extended(1, protoDestOpts)},
	{name: "ipv6-destination-10", what: "ten headers of destination options in each packet", needs: root, ipv6: true, fromClient: extended(10, protoDestOpts)},
	{name: "ipv6-atomic", what: "the first segment in a fragment that is all", needs: root, source: "zapret ipfrag1", ipv6: true, fromClient: firstInPieces(piece{from: 0, to: 1 << 16})},
	{name: "ipv6-fragments", what: "the first segment in fragments of 160 bytes", needs: root, source: "zapret ipfrag2", ipv6: true, fromClient: firstInPieces(even(160)...)},
	{name: "ipv6-fragments-tiny", what: "the first segment in fragments, of 8 bytes the first", needs: root, source: "zapret ipfrag2", ipv6: true, fromClient: firstInPieces(tinyFirst...)},
	{name: "ipv6-decoy", what: "a ClientHello with a wrong checksum before the first bytes", needs: root, source: "zapret fake, badsum", ipv6: true, fromClient: before(decoy(hello, wrongSum))},
}

var atTheServer = []strategy{
	{name: "server-sim-open-rst", what: "a RST and a SYN in place of the SYN+ACK (simultaneous open)", needs: server, source: "Geneva server-side 1", fromServer: onSYNACK(func(p *packet) [][]byte {
		return send(with(p, flagged(rst)), with(p, flagged(syn)))
	})},
	{name: "server-sim-open-load", what: "a SYN, and a SYN with a load, in place of the SYN+ACK", needs: server, source: "Geneva server-side 2", fromServer: onSYNACK(func(p *packet) [][]byte {
		return send(with(p, flagged(syn)), with(p, flagged(syn), loaded))
	})},
	{name: "server-bad-ack-open", what: "a SYN+ACK of a wrong number and a SYN", needs: server, source: "Geneva server-side 3", fromServer: onSYNACK(func(p *packet) [][]byte {
		return send(with(p, ackBy(100000)), with(p, flagged(syn)))
	})},
	{name: "server-bad-ack", what: "a SYN+ACK of a wrong number before the SYN+ACK", needs: server, source: "Geneva server-side 4", fromServer: onSYNACK(func(p *packet) [][]byte {
		return send(with(p, ackBy(100000)), p)
	})},
	{name: "server-bad-ack-load", what: "a SYN+ACK of a wrong number, and the SYN+ACK with a load", needs: server, source: "Geneva server-side 5", fromServer: onSYNACK(func(p *packet) [][]byte {
		return send(with(p, ackBy(100000)), with(p, loaded))
	})},
	{name: "server-fin-load", what: "a FIN with a load, a SYN+ACK of a wrong number, the SYN+ACK", needs: server, source: "Geneva server-side 6", fromServer: onSYNACK(func(p *packet) [][]byte {
		return send(with(p, flagged(fin), loaded), with(p, ackBy(100000)), p)
	})},
	{name: "server-rst", what: "a RST, a SYN+ACK of a wrong number, the SYN+ACK", needs: server, source: "Geneva server-side 7", fromServer: onSYNACK(func(p *packet) [][]byte {
		return send(with(p, flagged(rst)), with(p, ackBy(100000)), p)
	})},
	{name: "server-window", what: "a window of 10 bytes and no scaling in the SYN+ACK: the client sends in small pieces", needs: server, source: "Geneva server-side 8; brdgrd; zapret --wsize", fromServer: onSYNACK(func(p *packet) [][]byte {
		p.setWindow(10)
		p.removeOption(optWindowScale)
		return send(p)
	})},
	{name: "server-load-3", what: "the SYN+ACK three times, with a request of HTTP in each", needs: server, source: "Geneva server-side 9 and 10", fromServer: onSYNACK(func(p *packet) [][]byte {
		load := with(p, loaded)
		return send(load, load, load)
	})},
	{name: "server-decoy", what: "a segment of HTTP with a wrong checksum behind the SYN+ACK", needs: server, fromServer: onSYNACK(func(p *packet) [][]byte {
		return send(p, with(p, flagged(psh|ack), loaded, wrongSum, seqBy(1)))
	})},
	{name: "server-null-flags", what: "a segment without flags before the SYN+ACK", needs: server, source: "Geneva server-side 11", fromServer: onSYNACK(func(p *packet) [][]byte {
		return send(with(p, flagged(0)), p)
	})},
	{name: "server-early-data", what: "a load in the SYN+ACK, which the client leaves out", needs: server, source: "Geneva server-side, injected load", fromServer: onSYNACK(func(p *packet) [][]byte {
		return send(with(p, loaded))
	})},
	{name: "server-split", what: "an ACK and a SYN in place of the SYN+ACK (split handshake)", needs: server, source: "zapret --synack-split=acksyn", fromServer: onSYNACK(func(p *packet) [][]byte {
		return send(with(p, flagged(ack)), with(p, flagged(syn)))
	})},
	{name: "server-syn", what: "a SYN alone in place of the SYN+ACK", needs: server, source: "zapret --synack-split=syn", fromServer: onSYNACK(func(p *packet) [][]byte {
		return send(with(p, flagged(syn)))
	})},
	{name: "server-syn-synack", what: "a SYN, then the SYN+ACK", needs: server, source: "zapret --synack-split=synack", fromServer: onSYNACK(func(p *packet) [][]byte {
		return send(with(p, flagged(syn)), p)
	})},
}

var atBothEnds = []strategy{
	{name: "both-rst", what: "a RST in place after the handshake, which the server does not get", needs: bothEnds, fromClient: before(bare(rst)), toServer: without(rst)},
	{name: "both-fin", what: "a FIN in place after the handshake, which the server does not get", needs: bothEnds, fromClient: before(bare(fin | ack)), toServer: without(fin)},
	{name: "both-decoy", what: "a ClientHello in place, in order and whole, which the server does not get", needs: bothEnds, fromClient: before(decoy(hello)),
		toServer: func(_ *flow, p *packet) [][]byte {
			if slices.Equal(p.payload, hello) {
				return nil
			}
			return send(p)
		}},
	{name: "both-checksums", what: "wrong checksums in all segments with payload, put right at the other end", needs: bothEnds,
		fromClient: spoilt, toServer: repaired, fromServer: spoilt, toClient: repaired},
	{name: "both-numbers", what: "numbers that jump by a million after the handshake, put right at the other end", needs: bothEnds,
		fromClient: jump(1), toServer: jump(-1), fromServer: jump(1), toClient: jump(-1)},
	{name: "both-no-syn", what: "a handshake without the flag SYN on the wire", needs: bothEnds, fromClient: hideSYN, toServer: showSYN, fromServer: hideSYN, toClient: showSYN},
	{name: "both-fragments", what: "every packet of both in fragments, of 8 bytes the first", needs: bothEnds, malformed: true, fromClient: allTiny, fromServer: allTiny},
	{name: "both-protocol", what: "another number of protocol in the IP header", needs: bothEnds,
		fromClient: asProtocol(protoTest), toServer: asProtocol(protoTCP), fromServer: asProtocol(protoTest), toClient: asProtocol(protoTCP)},
}

// byOutsiders are by somebody who knows the addresses and ports, not the numbers, and
// can send from the server's side: none of them may cause a signal.
var byOutsiders = []strategy{
	{name: "outsider-decoys", what: "segments of the server and of the client with random numbers", needs: outsider, fromServer: forging(
		bare(psh|ack, loaded, seqRandom, ackRandom), bare(psh|ack, loaded, seqRandom, ackRandom, turned))},
	{name: "outsider-checksums", what: "segments of the server and of the client with random numbers and wrong checksums", needs: outsider, fromServer: forging(
		bare(psh|ack, loaded, seqRandom, ackRandom, wrongSum), bare(psh|ack, loaded, seqRandom, ackRandom, wrongSum, turned))},
	{name: "outsider-ttl", what: "segments of the server and of the client with random numbers and another time to live", needs: outsider, fromServer: forging(
		bare(psh|ack, loaded, seqRandom, ackRandom, ttl(9)), bare(psh|ack, loaded, seqRandom, ackRandom, ttl(9), turned))},
	{name: "outsider-endings", what: "SYN, SYN+ACK, FIN and RST of both with random numbers", needs: outsider, fromServer: forging(
		bare(syn, seqRandom), bare(syn|ack, seqRandom, ackRandom), bare(fin|ack, seqRandom, ackRandom), bare(rst, seqRandom),
		bare(syn, seqRandom, turned), bare(syn|ack, seqRandom, ackRandom, turned), bare(fin|ack, seqRandom, ackRandom, turned), bare(rst, seqRandom, turned))},
	{name: "outsider-tiny", what: "five segments of a byte of both, and a SYN with data", needs: outsider, fromServer: forging(slices.Concat(
		slices.Repeat([]maker{bare(psh|ack, bytesOf(1), seqRandom, ackRandom), bare(psh|ack, bytesOf(1), seqRandom, ackRandom, turned)}, 5),
		[]maker{bare(syn, loaded, seqRandom), bare(syn, loaded, seqRandom, turned)})...)},
	{name: "outsider-fragments", what: "fragments, of 8 bytes the first, of both with random numbers", needs: outsider, fromServer: forgingFragments},
}
