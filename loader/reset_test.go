// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// fate is what became of a packet.
type fate string

const (
	passes   fate = "passes"
	dropped  fate = "dropped"
	answered fate = "answered" // it is sent back
	told     fate = "told"     // it goes on as a RST
)

// become runs a frame through a hook and returns what became of it, and the frame then.
func (k *kernel) become(e entry, frame []byte) (fate, []byte) {
	k.t.Helper()
	opts := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, 4096)}
	ret, err := k.program(e).Run(opts)
	if err != nil {
		k.t.Fatalf("run %s on %d bytes: %v", e, len(frame), err)
	}
	const xdpTX, tcRedirect = 3, 7
	switch out := opts.DataOut; {
	case e == ingress && ret == xdpDrop, e != ingress && ret == tcShot:
		return dropped, out
	case e == ingress && ret == xdpTX, e != ingress && ret == tcRedirect:
		return answered, out
	case e == ingress && ret == xdpPass, e != ingress && ret == tcUnspec:
		if bytes.Equal(out, frame) {
			return passes, out
		}
		return told, out
	}
	k.t.Fatalf("%s returned %d", e, ret)
	return "", nil
}

// peers are the ends of a flow, and how frames between them look.
type peers struct {
	name           string
	client, server netip.AddrPort
	tags           []int
	options        []byte // of TCP
}

func (l *peers) segment(up bool, seq, ack uint32, flags byte, n int) []byte {
	src, dst := l.client, l.server
	if !up {
		src, dst = dst, src
	}
	return f.Ethernet(f.IP(src, dst, f.TCP, f.Numbered(f.Segment(src, dst, flags, l.options, f.Payload(n)), seq, ack)), l.tags...)
}

// isReset says what is wrong with a RST that was made of a packet.
func (l *peers) isReset(t *testing.T, rst, packet []byte, toClient, answer bool, seq uint32) {
	t.Helper()
	at := 14 + 2*len(l.tags)
	head := 20
	if l.client.Addr().Is6() {
		head = 40
	}
	if len(rst) < at+head+20 {
		t.Fatalf("a RST of %d bytes: % x", len(rst), rst)
	}
	macs := slices.Clone(packet[:12])
	if answer {
		macs = slices.Concat(packet[6:12], packet[:6])
	}
	if !bytes.Equal(rst[:12], macs) || !bytes.Equal(rst[12:at], packet[12:at]) {
		t.Errorf("the frame begins with % x, the packet with % x", rst[:at], packet[:at])
	}
	if rest := rst[at+head+20:]; len(rest) > 6 || len(rest) > 0 && len(rst) != 60 || bytes.ContainsFunc(rest, func(r rune) bool { return r != 0 }) {
		t.Errorf("%d bytes behind the headers: % x", len(rest), rest)
	}
	ip := rst[at : at+head+20]
	right := slices.Clone(ip)
	if head == 20 {
		if n := binary.BigEndian.Uint16(ip[2:]); n != 40 {
			t.Errorf("length %d", n)
		}
		f.SetChecksum(right)
		if !bytes.Equal(right, ip) {
			t.Errorf("wrong checksum of IP: % x", ip)
		}
	} else if n := binary.BigEndian.Uint16(ip[4:]); n != 20 {
		t.Errorf("length %d", n)
	}
	src, dst := l.server, l.client
	if !toClient {
		src, dst = dst, src
	}
	if addrs := ip[head-2*len(src.Addr().AsSlice()) : head]; !bytes.Equal(addrs, slices.Concat(src.Addr().AsSlice(), dst.Addr().AsSlice())) {
		t.Errorf("addresses % x", addrs)
	}
	tcp := ip[head:]
	if s, d := binary.BigEndian.Uint16(tcp), binary.BigEndian.Uint16(tcp[2:]); s != src.Port() || d != dst.Port() {
		t.Errorf("ports %d > %d", s, d)
	}
	if s := binary.BigEndian.Uint32(tcp[4:]); s != seq {
		t.Errorf("sequence number %d, want %d", s, seq)
	}
	flags := byte(f.RST | f.ACK)
	switch refused := packet[at+head:]; {
	case refused[13]&f.SYN != 0: // and its payload
		want := binary.BigEndian.Uint32(refused[4:]) + 1 + uint32(len(refused)-int(refused[12]>>4)*4)
		if n := binary.BigEndian.Uint32(tcp[8:]); n != want {
			t.Errorf("it acknowledges %d, want %d", n, want)
		}
	case answer:
		flags = f.RST
	}
	if tcp[12] != 5<<4 || tcp[13] != flags {
		t.Errorf("offset and flags % x", tcp[12:14])
	}
	// Right as it is, and what a network card makes of it.
	f.SetTCPChecksum(right)
	if !bytes.Equal(right, ip) {
		t.Errorf("wrong checksum: % x, want % x", ip[head:], right[head:])
	}
	if sum := binary.BigEndian.Uint16(tcp[16:]); sum != f.PseudoSum(src, dst, f.TCP, 20) {
		t.Errorf("checksum %#x is not the sum of the pseudo-header, %#x", sum, f.PseudoSum(src, dst, f.TCP, 20))
	}
}

var resets = flow.Treatment{Action: flow.Reset, TTL: time.Hour, Class: "obfs4", Rule: "r"}

// reset has the flow between the link's ends judged and reset.
func (k *kernel) reset(l *peers, t flow.Treatment) {
	k.t.Helper()
	for _, p := range [][]byte{l.segment(true, 1, 0, f.SYN, 0), l.segment(false, 1, 2, f.SYN|f.ACK, 0), l.segment(true, 2, 2, f.ACK, 1400)} {
		k.run(ingress, p)
	}
	got := k.samples()
	if len(got) != 1 {
		k.t.Fatalf("%d samples", len(got))
	}
	if err := k.ApplyFlow(&got[0].Meta, t); err != nil {
		k.t.Fatal(err)
	}
}

func TestResetTellsTheEnds(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	timestamps := []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
	low := netip.MustParseAddrPort("10.0.0.2:40000")
	high := netip.MustParseAddrPort("203.0.113.9:40001")
	for _, l := range []peers{
		{"ipv4", low, server, nil, nil},
		{"the client is the higher end", high, server, nil, nil},
		{"options", low, server, nil, timestamps},
		{"vlan", low, server, []int{f.TypeVLAN, 77}, nil},
		{"qinq", low, server, []int{f.TypeQinQ, 7, f.TypeVLAN, 77}, timestamps},
		{"ipv6", peer6, host6, nil, nil},
		{"ipv6 vlan", peer6, host6, []int{f.TypeVLAN, 4094}, timestamps},
	} {
		for _, e := range hooks {
			t.Run(l.name+"/"+string(e), func(t *testing.T) {
				k := k.emptied(t)
				k.reset(&l, resets)
				var sent uint64
				for i, p := range []struct {
					what     string
					frame    []byte
					want     fate
					toClient bool
					seq      uint32
				}{
					{"payload of the client", l.segment(true, 1402, 2, f.ACK, 100), answered, true, 2},
					{"an acknowledgement of the server", l.segment(false, 2, 1402, f.ACK, 0), answered, false, 1402},
					{"payload of the server, of which the client was told", l.segment(false, 2, 1402, f.ACK, 1000), answered, false, 1402},
					{"a FIN of the client", l.segment(true, 1402, 2, f.FIN|f.ACK, 0), answered, true, 2},
					{"a bare RST", l.segment(true, 1402, 0, f.RST, 0), passes, false, 0},
					{"a bare RST of the server", l.segment(false, 2, 1402, f.RST|f.ACK, 0), passes, false, 0},
					{"a RST with payload", l.segment(true, 1402, 2, f.RST|f.ACK, 10), dropped, false, 0},
					{"numbers of nobody", l.segment(true, 1<<30, 2, f.ACK, 10), dropped, false, 0},
					{"an acknowledgement of nobody", l.segment(true, 1402, 1<<30, f.ACK, 10), dropped, false, 0},
					{"no acknowledgement", l.segment(true, 1402, 2, 0, 10), dropped, false, 0},
					{"the third of the client", l.segment(true, 1402, 2, f.ACK, 1), answered, true, 2},
					{"the fourth of the client", l.segment(true, 1402, 2, f.ACK, 1), dropped, false, 0},
					{"the third of the server", l.segment(false, 2, 1402, f.ACK, 1400), answered, false, 1402},
					{"the fourth of the server", l.segment(false, 2, 1402, f.ACK, 1400), dropped, false, 0},
				} {
					got, out := k.become(e, p.frame)
					if got != p.want {
						t.Fatalf("%d, %s: %s, want %s", i, p.what, got, p.want)
					}
					if got == answered {
						sent++
						l.isReset(t, out, p.frame, p.toClient, true, p.seq)
					}
				}
				if c := k.counts(); c["resets"] != sent || c["dropped_packets"] != sent+6 || c["resets_refused"] != 0 {
					t.Errorf("counters %v after %d resets", c, sent)
				}
			})
		}
	}
}

// Who waits for an answer sends nothing: it is told with the answer.
func TestResetTellsAnInitiatorThatWaits(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	unable := loadKernel(t, config{oneHook: true, noAnswers: true})
	for _, l := range []peers{{"ipv4", client, server, nil, nil}, {"ipv6 vlan", peer6, host6, []int{f.TypeVLAN, 7}, nil}} {
		for _, e := range hooks {
			for _, able := range []bool{true, false} {
				k, then := k.emptied(t), answered
				if !able {
					k, then = unable.emptied(t), dropped
				}
				k.reset(&l, resets)
				frame := l.segment(false, 2, 1402, f.ACK, 1000)
				got, out := k.become(e, frame)
				if got != told {
					t.Fatalf("%s, %s: payload of the server: %s", l.name, e, got)
				}
				l.isReset(t, out, frame, true, false, 2)
				if got, _ := k.become(e, frame); got != then {
					t.Errorf("%s, %s: payload of the server again: %s, want %s", l.name, e, got, then)
				}
				if got, _ := k.become(e, l.segment(true, 1402, 2, f.ACK, 0)); got != then {
					t.Errorf("%s, %s: an acknowledgement of the client: %s, want %s", l.name, e, got, then)
				}
			}
		}
	}
}

// Of these, nobody is told.
func TestResetDropsAlone(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	data := f.Numbered(f.Segment(client, server, f.ACK, nil, f.Payload(1000)), 1402, 2)
	data6 := f.Numbered(f.Segment(peer6, host6, f.ACK, nil, f.Payload(1000)), 1402, 2)
	v4, v6 := peers{"", client, server, nil, nil}, peers{"", peer6, host6, nil, nil}
	for _, tt := range []struct {
		name  string
		link  peers
		frame []byte
	}{
		{"options of IPv4", v4, f.Ethernet(f.WithOptions(client, server, 1, f.TCP, data))},
		{"as many options as IPv6 has words", v4, f.Ethernet(f.WithOptions(client, server, 5, f.TCP, data))},
		{"an extension header", v6, f.Ethernet(f.IP(peer6, host6, 60, slices.Concat(f.Extension(f.TCP, 0), data6)))},
		{"a first fragment", v4, f.Ethernet(f.Fragments(f.IP(client, server, f.TCP, data), 1, f.Piece{From: 0, To: 512})[0])},
		{"a first fragment of IPv6", v6, f.Ethernet(f.Fragments(f.IP(peer6, host6, f.TCP, data6), 1, f.Piece{From: 0, To: 512})[0])},
		{"a SYN with payload", v4, v4.segment(true, 900, 0, f.SYN, 10)},
		{"a SYN+ACK", v4, v4.segment(false, 900, 2, f.SYN|f.ACK, 0)},
	} {
		for _, e := range hooks {
			k := k.emptied(t)
			k.reset(&tt.link, resets)
			if got, _ := k.become(e, tt.frame); got != dropped {
				t.Errorf("%s, %s: %s", tt.name, e, got)
			}
			if c := k.counts(); c["resets"] != 0 || c["dropped_packets"] != 1 {
				t.Errorf("%s, %s: counters %v", tt.name, e, c)
			}
		}
	}
	for _, e := range hooks {
		raw := loadKernel(t, config{oneHook: true, rawIP: true})
		for _, p := range after(handshake(), up(f.ACK, 1400)) {
			raw.run(e, p[14:])
		}
		if err := raw.ApplyFlow(&raw.samples()[0].Meta, resets); err != nil {
			t.Fatal(err)
		}
		if got, _ := raw.become(e, upAt(1402, 2, f.ACK, 100)[14:]); got != dropped {
			t.Errorf("no Ethernet header, %s: %s", e, got)
		}
	}
	// UDP knows no RST.
	k = k.emptied(t)
	if err := k.Apply(udpKey(), resets); err != nil {
		t.Fatal(err)
	}
	if got, _ := k.become(ingress, udp(true, 10)); got != dropped {
		t.Errorf("a datagram: %s", got)
	}
	// Mode monitor suspends it.
	k = k.emptied(t)
	k.reset(&v4, resets)
	k.enforce(false)
	if got, _ := k.become(egress, v4.segment(true, 1402, 2, f.ACK, 100)); got != passes {
		t.Errorf("in mode monitor: %s", got)
	}
}

// However many flows are reset, an interface sends 200 RSTs at once, and then 200 a second.
func TestResetsAreBounded(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	begun := monotonic()
	var sent uint64
	for i := range 300 {
		l := peers{"", netip.AddrPortFrom(client.Addr(), uint16(10000+i)), server, nil, nil}
		key, _ := flow.NewKey(l.client, l.server, flow.TCP, 0, 0)
		if err := k.Apply(key, resets); err != nil {
			t.Fatal(err)
		}
		if got, _ := k.become(ingress, l.segment(true, 1402, 2, f.ACK, 100)); got == answered {
			sent++
		}
	}
	most := 200 + (monotonic()-begun)/uint64(5*time.Millisecond) + 1
	if sent < 200 || sent > most {
		t.Errorf("%d RSTs, want 200 to %d", sent, most)
	}
	if c := k.counts(); c["resets"] != sent || c["resets_refused"] != 300-sent {
		t.Errorf("counters %v after %d resets", c, sent)
	}
}

// Of any time t, no more passes than the rate * t and the burst, of both directions together.
func TestLimitBoundsWhatPasses(t *testing.T) {
	for _, e := range hooks {
		k := loadKernel(t, config{oneHook: true})
		const rate = 1 << 20
		limit := flow.Treatment{Action: flow.Limit, Rate: rate, TTL: time.Hour, Class: "openvpn", Rule: "slow"}
		for _, key := range []flow.Key{tcpKey(), udpKey()} {
			for _, p := range after(handshake(), up(f.ACK, 1400)) {
				k.run(e, p)
			}
			k.run(e, udp(true, 1100))
			k.run(e, udp(false, 1100))
			begun := monotonic()
			if err := k.Apply(key, limit); err != nil {
				t.Fatal(err)
			}
			var passed, bytes uint64
			for range 100 {
				for _, p := range [][]byte{up(f.ACK, 1400), down(f.ACK, 1400)} {
					if key.Proto == flow.UDP {
						p = udp(p[26] == 10, 1400)
					}
					if bytes += uint64(len(p)); !k.run(e, p) {
						passed += uint64(len(p))
					}
				}
			}
			if most := LimitBurst + rate*(monotonic()-begun)/uint64(time.Second) + 1500; passed < LimitBurst-1500 || passed > most {
				t.Errorf("%s: %d bytes passed, want %d to %d", key, passed, LimitBurst-1500, most)
			}
			blocks, err := k.Blocked()
			if err != nil || len(blocks) != 1 {
				t.Fatalf("blocks %+v, %v", blocks, err)
			}
			if b := blocks[0]; b.Action != flow.Limit || b.Rate != rate || b.Bytes != bytes-passed {
				t.Errorf("%d bytes of %d passed, block %+v", passed, bytes, b)
			}
			if _, err := k.Unblock(key); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// It flows in again at the rate.
func TestLimitLetsTheRatePass(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	if err := k.Apply(tcpKey(), flow.Treatment{Action: flow.Limit, Rate: 100_000, TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	for !k.run(ingress, up(f.ACK, 1400)) { // the burst
	}
	begun, passed := monotonic(), 0
	for passed < 20 {
		if !k.run(ingress, up(f.ACK, 1400)) {
			passed++
		}
	}
	if took := time.Duration(monotonic() - begun); took < 19*14540*time.Microsecond {
		t.Errorf("20 packets of 1454 bytes passed in %s", took)
	}
}
