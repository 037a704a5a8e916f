// SPDX-License-Identifier: Apache-2.0

package parts_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
	"github.com/earlydrop/earlydrop/loader/flow/parts"
	"github.com/earlydrop/earlydrop/loader/flow/signals"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

var (
	client = netip.MustParseAddrPort("10.0.0.2:40000")
	server = netip.MustParseAddrPort("192.0.2.7:443")
)

// up is a segment of the client, down one of the server.
func up(seq uint32, flags byte, payload string) []byte {
	return segment(client, server, seq, flags, payload)
}
func down(seq uint32, flags byte, payload string) []byte {
	return segment(server, client, seq, flags, payload)
}

func segment(src, dst netip.AddrPort, seq uint32, flags byte, payload string) []byte {
	return f.Ethernet(f.IP(src, dst, f.TCP, f.Numbered(f.Segment(src, dst, flags, nil, []byte(payload)), seq, 2)))
}

// sample is a capture of these frames, a millisecond apart, cut at 1024 bytes.
func sample(revision int, provisional bool, frames ...[]byte) *flow.Sample {
	s := new(flow.Sample)
	s.Reset()
	s.Key, s.InitiatorIsLo = flow.NewKey(client, server, flow.TCP, 0, 0)
	s.Revision, s.Provisional = revision, provisional
	s.Numbers = flow.Numbers{ISNKnown: true, InitiatorISN: 1, ResponderISN: 1}
	s.Start = time.Unix(1000, int64(revision)*int64(time.Minute))
	for i, frame := range frames {
		h, _ := headers.Parse(frame, len(frame))
		s.Packets = append(s.Packets, flow.Packet{Offset: uint16(len(s.Data)), WireLen: uint32(len(frame)), FromInitiator: h.Key.Lo == client && h.SrcIsLo, Time: time.Duration(i) * time.Millisecond})
		s.Data = append(s.Data, frame[:min(len(frame), flow.CaptureBytes-len(s.Data))]...)
	}
	return s
}

func frames(s *flow.Sample) (all [][]byte) {
	for i := range s.Packets {
		all = append(all, s.Frame(i))
	}
	return all
}

func TestPartsAreOneCapture(t *testing.T) {
	st := parts.NewStore(8)
	first := [][]byte{up(1, f.SYN, ""), down(1, f.SYN|f.ACK, ""), up(2, f.ACK, "hello")}
	rest := [][]byte{up(7, f.ACK, string(f.Payload(100))), down(2, f.ACK, "answer")}
	st.Join(sample(0, true, first...))
	s := sample(1, false, rest...)
	st.Join(s)
	if !slices.EqualFunc(frames(s), slices.Concat(first, rest), bytes.Equal) || s.MidStream || st.Len() != 0 {
		t.Errorf("%d packets, mid-stream %v, %d are kept", len(s.Packets), s.MidStream, st.Len())
	}
	// The second part began a minute later.
	if p := s.Packets[3]; p.Time != time.Minute || s.Start.Unix() != 1000 || s.Elapsed != time.Minute || s.Revision != 1 {
		t.Errorf("time %v, start %v, elapsed %v, revision %d", p.Time, s.Start, s.Elapsed, s.Revision)
	}
}

// What is not there any more, or is of another connection, is not put together.
func TestPartsThatDoNotBelongTogether(t *testing.T) {
	for name, change := range map[string]func(first *flow.Sample){
		"another connection": func(first *flow.Sample) { first.Numbers.InitiatorISN = 9 },
		"another part":       func(first *flow.Sample) { first.Revision = 2 },
		"not provisional":    func(first *flow.Sample) { first.Provisional = false },
		"another flow":       func(first *flow.Sample) { first.Key.VLAN = 7 },
	} {
		st := parts.NewStore(8)
		first := sample(0, true, up(1, f.SYN, ""), up(2, f.ACK, "hello"))
		change(first)
		if first.Revision > 0 { // it is kept as its own second part would be
			first.Revision = 0
			st.Join(first)
			second := sample(2, true, up(7, f.ACK, "more"))
			st.Join(second)
			if !second.MidStream || second.Provisional || len(second.Packets) != 1 {
				t.Errorf("%s: %d packets, mid-stream %v, provisional %v", name, len(second.Packets), second.MidStream, second.Provisional)
			}
			continue
		}
		st.Join(first)
		s := sample(1, true, up(7, f.ACK, "more"))
		st.Join(s)
		if !s.MidStream || s.Provisional || len(s.Packets) != 1 {
			t.Errorf("%s: %d packets, mid-stream %v, provisional %v", name, len(s.Packets), s.MidStream, s.Provisional)
		}
	}
}

// One initiator has an eighth of the room; of all, the oldest gives way.
func TestPartsAreBounded(t *testing.T) {
	st := parts.NewStore(16)
	of := func(addr string, port int) *flow.Sample {
		s := sample(0, true, up(1, f.SYN, ""))
		s.Key, s.InitiatorIsLo = flow.NewKey(netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port)), netip.MustParseAddrPort("255.0.0.1:443"), flow.TCP, 0, 0)
		return s
	}
	for port := range 100 {
		st.Join(of("10.0.0.1", 1000+port))
	}
	if st.Len() != 2 {
		t.Errorf("one initiator has %d", st.Len())
	}
	for host := range 100 {
		st.Join(of(fmt.Sprintf("10.0.1.%d", host), 1000))
	}
	if st.Len() != 16 {
		t.Errorf("%d are kept", st.Len())
	}
	for i, want := range map[string]bool{"10.0.0.1": true, "10.0.1.83": true, "10.0.1.84": false, "10.0.1.99": false} {
		s := of(i, 1000)
		s.Revision, s.Provisional = 1, false
		if st.Join(s); s.MidStream != want {
			t.Errorf("%s: mid-stream %v", i, s.MidStream)
		}
	}
}

// A capture of tiny segments becomes what their sender would have sent without them.
func TestTinySegmentsBecomeOne(t *testing.T) {
	st := parts.NewStore(8)
	first := [][]byte{up(1, f.SYN, ""), down(1, f.SYN|f.ACK, ""), up(2, f.ACK, "")}
	for i, c := range "abcdefgh" {
		first = append(first, up(uint32(2+i), f.ACK, string(c)), down(2, f.ACK, ""))
	}
	st.Join(sample(0, true, first...))
	s := sample(1, false, up(10, f.ACK, string(f.Payload(900))), down(2, f.ACK, ""), down(2, f.ACK, "answer"))
	st.Join(s)
	want := [][]byte{first[0], first[1], first[2], up(2, f.ACK, "abcdefgh"+string(f.Payload(900)))}
	got := frames(s)
	if len(got) != len(want) {
		t.Fatalf("%d packets instead of %d", len(got), len(want))
	}
	for i, frame := range got {
		// But for the TCP checksum, which no model sees and nobody has made anew.
		if i == 3 {
			frame, want[i] = slices.Clone(frame), want[i][:len(frame)]
			copy(frame[50:52], want[i][50:52])
		}
		if !bytes.Equal(frame, want[i]) {
			t.Errorf("packet %d\n got %x\nwant %x", i, frame, want[i])
		}
	}
	// The second part began a minute later.
	if signals.Note(s, signals.Live); s.Signals != flow.SignalTiny|flow.SignalSlow || !s.Complete() {
		t.Errorf("signals %v, %d bytes", s.Signals.Names(), len(s.Data))
	}
}

// Segments become one only where a host takes the second just as it takes the first: no signal
// is lost, and no decoy gets into what is judged.
func TestOnlyLikeSegmentsBecomeOne(t *testing.T) {
	stamp := func(value byte) []byte { return []byte{1, 1, 8, 10, 0, 0, 0, value, 0, 0, 0, 0} }
	signed := append([]byte{1, 1, 19, 18}, make([]byte, 16)...)
	made := func(seq uint32, flags byte, options []byte, payload string) []byte {
		return f.Ethernet(f.IP(client, server, f.TCP, f.Numbered(f.Segment(client, server, flags, options, []byte(payload)), seq, 2)))
	}
	withTTL := func(frame []byte, ttl byte) []byte {
		frame = f.With(frame, 22, ttl)
		f.SetChecksum(frame[14:])
		return frame
	}
	const push = f.ACK | f.PSH
	plain := func(seq uint32, payload string) []byte { return made(seq, push, stamp(9), payload) }
	rest := string(f.Payload(900))
	for _, tt := range []struct {
		name   string
		second []byte
		merged bool // with those around it
	}{
		{"the same", plain(3, "b"), true},
		{"a later timestamp", made(3, push, stamp(10), "b"), true},
		{"nearly the same time to live", withTTL(plain(3, "b"), 64-2), true},
		{"an earlier timestamp", made(3, push, stamp(8), "b"), false},
		{"no timestamp", made(3, push, nil, "b"), false},
		{"a signature", made(3, push, signed, "b"), false},
		{"another time to live", withTTL(plain(3, "b"), 64-3), false},
		{"urgent, without a pointer", made(3, push|0x20, stamp(9), "b"), false},
		{"a RST", made(3, push|f.RST, stamp(9), "b"), false},
		{"a first fragment", f.Ethernet(f.Fragments(f.IP(client, server, f.TCP, f.Numbered(f.Segment(client, server, push, stamp(9), f.Payload(9)), 3, 2)), 7, f.Piece{From: 0, To: 40}, f.Piece{From: 40, To: 41})[0]), false},
		{"behind a hole", plain(4, "b"), false},
		{"sent again with the one before", plain(2, "ab"), true},
		{"sent again with another byte", plain(2, "xb"), false},
		{"of the other side", down(2, push, "b"), false},
	} {
		st := parts.NewStore(8)
		st.Join(sample(0, true, up(1, f.SYN, ""), down(1, f.SYN|f.ACK, ""), plain(2, "a"), tt.second, plain(4, "c"), plain(5, "d")))
		s := sample(1, false, plain(6, rest))
		st.Join(s)
		payloads := 0
		for _, frame := range frames(s) {
			if h, _ := headers.Parse(frame, len(frame)); h.PayloadLen > 0 || len(frame) > 100 {
				payloads++
			}
		}
		if (payloads == 1) != tt.merged {
			t.Errorf("%s: %d packets with payload", tt.name, payloads)
		}
	}
}

// An urgent byte, which programs do not get, is left out of what is put together, wherever in
// its segment it is.
func TestUrgentBytesAreLeftOut(t *testing.T) {
	const urg = 0x20
	urgent := func(seq uint32, pointer byte, payload string) []byte {
		return f.With(up(seq, f.ACK|urg, payload), 53, pointer)
	}
	rest := string(f.Payload(900))
	for _, tt := range []struct {
		name    string
		second  []byte
		next    uint32 // the sequence number behind it
		want    string // all payload
		urgent  bool   // it is said so, as it is not in the segment any more
		packets int    // with payload
	}{
		{"alone", urgent(3, 1, "X"), 4, "a" + "c" + rest, true, 1},
		{"at the end", urgent(3, 3, "bbX"), 6, "abb" + "c" + rest, true, 1},
		{"at the beginning", urgent(3, 1, "Xbb"), 6, "abb" + "c" + rest, true, 1},
		{"behind the segment", urgent(3, 4, "bbb"), 6, "", false, 3},
		{"nowhere", urgent(3, 0, "bbb"), 6, "", false, 3},
	} {
		st := parts.NewStore(8)
		st.Join(sample(0, true, up(1, f.SYN, ""), down(1, f.SYN|f.ACK, ""), up(2, f.ACK, "a"), tt.second))
		s := sample(1, false, up(tt.next, f.ACK, "c"), up(tt.next+1, f.ACK, rest))
		s.Start = time.Unix(1000, 0)
		st.Join(s)
		payload, packets := "", 0
		for _, frame := range frames(s)[2:] {
			payload += string(frame[54:])
			packets++
		}
		if packets == 1 && payload != tt.want[:min(len(tt.want), len(payload))] || packets != tt.packets || (s.Signals&flow.SignalUrgent != 0) != tt.urgent {
			t.Errorf("%s: %d packets, signals %v, payload %.20q", tt.name, packets, s.Signals.Names(), payload)
		}
		if signals.Note(s, signals.Live); s.Signals&flow.SignalUrgent == 0 || s.Signals&flow.SignalGap != 0 || s.MissingStart {
			t.Errorf("%s: signals %v, missing start %v", tt.name, s.Signals.Names(), s.MissingStart)
		}
	}
}

// What of a packet did not fit into a part, and was kept beside, is in its place.
func TestTheRestOfAPacketIsInItsPlace(t *testing.T) {
	whole := up(5, f.ACK, string(f.Payload(700)))
	st := parts.NewStore(8)
	first := sample(0, true, up(1, f.SYN, ""), down(1, f.SYN|f.ACK, ""), up(2, f.ACK, "a"), up(3, f.ACK, "b"), up(4, f.ACK, "c"), whole[:200])
	first.Packets[5].WireLen = uint32(len(whole))
	first.KeepRest(whole[200:])
	st.Join(first)
	s := sample(1, false, down(2, f.ACK, string(f.Payload(900))))
	st.Join(s)
	want := up(2, f.ACK, "abc"+string(f.Payload(700)))
	got := s.Frame(2)
	copy(got[50:52], want[50:52]) // the TCP checksum
	if !bytes.Equal(got, want) || len(s.Packets) != 4 || len(s.Rest) != 0 {
		t.Errorf("%d packets, a rest of %d bytes\n got %x\nwant %x", len(s.Packets), len(s.Rest), got, want)
	}
}

// The packet that fills a capture, and reaches beyond it, is no hole in what goes on,
// wherever in it the capture ends.
func TestPacketsAcrossTheEndOfPartsLeaveNoGap(t *testing.T) {
	const bare = 54 // bytes of a segment without payload
	payload, tried := string(f.Payload(600)), 0
	for there := 1; there < bare+signals.ScantBytes; there++ {
		// Twelve tiny segments, and as many bare ones as there is room for.
		tiny := flow.CaptureBytes - there - (3+12)*bare
		acks := (tiny - 12) / bare
		if tiny -= acks * bare; tiny+max(0, there-bare) >= signals.ScantBytes {
			continue
		}
		tried++
		first, next := [][]byte{up(1, f.SYN, ""), down(1, f.SYN|f.ACK, ""), up(2, f.ACK, "")}, uint32(2)
		for i := range 12 {
			n := (tiny + i) / 12
			first, next = append(first, up(next, f.ACK, payload[:n])), next+uint32(n)
		}
		for range acks {
			first = append(first, down(2, f.ACK, ""))
		}
		for name, tt := range map[string][3][]byte{
			"client": {up(next, f.ACK, payload), up(next+600, f.ACK, payload[:200]), down(2, f.ACK, payload)},
			"server": {down(2, f.ACK, payload), up(next, f.ACK, payload[:200]), down(602, f.ACK, payload)},
		} {
			st := parts.NewStore(8)
			part := sample(0, true, append(slices.Clip(first), tt[0])...)
			if n := len(part.Packets) - 1; !part.Complete() || len(part.Frame(n)) != there {
				t.Fatalf("%d of %d bytes are there of the last packet", len(part.Frame(n)), there)
			}
			st.Join(part)
			s := sample(1, false, tt[1], tt[2])
			s.Start = part.Start
			st.Join(s)
			if signals.Note(s, signals.Live); s.Signals != flow.SignalTiny || s.MissingStart || !s.Complete() {
				t.Errorf("%d bytes of the %s's packet are there: signals %v, missing start %v, %d bytes in %d packets",
					there, name, s.Signals.Names(), s.MissingStart, len(s.Data), len(s.Packets))
			}
		}
	}
	if tried < 40 {
		t.Errorf("only %d places were tried", tried)
	}
}

// FuzzJoin: whatever the two parts hold, the capture is one that others can rely on.
func FuzzJoin(fz *testing.F) {
	fz.Add(bytes.Join([][]byte{up(1, f.SYN, ""), up(2, f.ACK, "a"), up(3, f.ACK, "b")}, nil), bytes.Join([][]byte{up(4, f.ACK, "c")}, nil), uint8(60))
	fz.Add(up(2, f.ACK, string(f.Payload(1000))), up(1002, f.ACK, "d"), uint8(255))
	fz.Fuzz(func(t *testing.T, first, second []byte, size uint8) {
		cut := func(revision int, b []byte) *flow.Sample {
			s := sample(revision, true)
			for i := 0; len(b) > 0 && i < flow.MaxPackets && len(s.Data) < flow.CaptureBytes; i++ {
				n := min(len(b), int(size)+1, flow.CaptureBytes-len(s.Data))
				s.Packets = append(s.Packets, flow.Packet{Offset: uint16(len(s.Data)), WireLen: uint32(n), FromInitiator: b[0]&1 == 0})
				s.Data = append(s.Data, b[:n]...)
				b = b[n:]
			}
			return s
		}
		st := parts.NewStore(8)
		before := cut(0, first)
		before.KeepRest(second)
		st.Join(before)
		s := cut(1, second)
		st.Join(s)
		end := 0
		for i, p := range s.Packets {
			if int(p.Offset) != end || len(s.Frame(i)) == 0 || len(s.Frame(i)) > int(p.WireLen) {
				t.Fatalf("packet %d at %d, behind %d, has %d of %d bytes", i, p.Offset, end, len(s.Frame(i)), p.WireLen)
			}
			end += len(s.Frame(i))
		}
		if end != len(s.Data) || len(s.Data) > flow.CaptureBytes || len(s.Packets) > flow.MaxPackets {
			t.Fatalf("%d packets of %d bytes, %d in all", len(s.Packets), end, len(s.Data))
		}
		signals.Note(s, signals.Live)
	})
}
