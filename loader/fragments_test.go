// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// fragmentAge is FRAGMENT_NS of bpf/fragments.h.
const fragmentAge = 2 * time.Second

// ageFragments makes all first fragments that are known as much older.
func (k *kernel) ageFragments(d time.Duration) {
	k.t.Helper()
	m := k.coll.Maps[datapathMapFragments]
	all := map[datapathFragmentKey]datapathFragment{} // an update may move an entry
	var key datapathFragmentKey
	var first datapathFragment
	for entries := m.Iterate(); entries.Next(&key, &first); {
		all[key] = first
	}
	for key, first := range all {
		first.TimeNs -= uint64(d)
		if err := m.Update(&key, &first, ebpf.UpdateExist); err != nil {
			k.t.Fatal(err)
		}
	}
}

// enforce sets the mode.
func (k *kernel) enforce(on bool) {
	k.t.Helper()
	if err := k.writeMode(on); err != nil {
		k.t.Fatal(err)
	}
}

// pieces are those of a packet that is cut up at these bytes.
func pieces(cuts ...int) (all []f.Piece) {
	from := 0
	for _, to := range append(cuts, 1<<16) {
		all = append(all, f.Piece{From: from, To: to})
		from = to
	}
	return all
}

// tagging is what is in front of the IP header.
type tagging struct {
	name string
	tags []int
}

var taggings = []tagging{{"untagged", nil}, {"VLAN", []int{f.TypeVLAN, 7}}, {"QinQ", []int{f.TypeQinQ, 7, f.TypeVLAN, 8}}}

// ends are two ends of each version of IP.
var ends = map[int][2]netip.AddrPort{4: {client, server}, 6: {peer6, host6}}

// fragmentScene is one row's data path, hook, link and addresses.
type fragmentScene struct {
	*kernel
	hook     entry
	tagging  tagging
	src, dst netip.AddrPort
}

func (s *fragmentScene) key(proto flow.Proto) flow.Key {
	var vlan, inner uint16
	if len(s.tagging.tags) > 0 {
		vlan = uint16(s.tagging.tags[1])
	}
	if len(s.tagging.tags) > 2 {
		inner = uint16(s.tagging.tags[3])
	}
	key, _ := flow.NewKey(s.src, s.dst, proto, vlan, inner)
	return key
}

// block blocks its flow, in mode enforce.
func (s *fragmentScene) block(proto flow.Proto) {
	s.t.Helper()
	s.enforce(true)
	if err := s.Apply(s.key(proto), drop(time.Hour, "v2ray", "tunnels")); err != nil {
		s.t.Fatal(err)
	}
}

// tcp and udp are a packet of the source with n bytes of payload.
func (s *fragmentScene) tcp(options []byte, n int) []byte {
	return f.IP(s.src, s.dst, f.TCP, segment(s.src, s.dst, f.ACK, options, n))
}

func (s *fragmentScene) udp(n int) []byte {
	return f.IP(s.src, s.dst, f.UDP, f.Datagram(s.src, s.dst, f.Payload(n)))
}

// send passes fragments through the hook and returns a letter for each: p passed, d dropped.
func (s *fragmentScene) send(packets ...[]byte) string {
	s.t.Helper()
	var b strings.Builder
	for _, packet := range packets {
		if frame := f.Ethernet(packet, s.tagging.tags...); s.run(s.hook, frame) {
			b.WriteByte('d')
		} else {
			b.WriteByte('p')
		}
	}
	return b.String()
}

// numbered is an address with another last half.
func numbered(addr netip.Addr, n uint16) netip.Addr {
	b := addr.AsSlice()
	binary.BigEndian.PutUint16(b[len(b)-2:], n)
	numbered, _ := netip.AddrFromSlice(b)
	return numbered
}

// TestFragments runs each row on both hooks, for both versions of IP, with and without tags,
// and looks at what is dropped and counted.
func TestFragments(t *testing.T) {
	timestamps := []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
	type counts = map[string]uint64
	k, number := loadKernel(t, config{}), uint16(0)
	other := func(s *fragmentScene) []byte { // a datagram of another port
		packet := s.udp(400)
		packet[len(packet)-407] ^= 1
		return packet
	}
	for _, tt := range []struct {
		name   string
		do     func(s *fragmentScene) string
		want   string
		counts counts // without those of flows
	}{
		{"later ones follow their first", func(s *fragmentScene) string {
			return s.send(f.Fragments(s.udp(400), 7, pieces(104, 208)...)...)
		}, "ppp", counts{"later_fragment": 2, "followed_fragment": 2}},
		{"of TCP", func(s *fragmentScene) string {
			return s.send(f.Fragments(s.tcp(timestamps, 400), 7, pieces(32, 208)...)...)
		}, "ppp", counts{"later_fragment": 2, "followed_fragment": 2}},
		{"of ICMP have none to follow", func(s *fragmentScene) string {
			return s.send(f.Fragments(f.IP(s.src, s.dst, 1, f.Payload(400)), 7, pieces(104)...)...)
		}, "pp", counts{"other_proto": 1, "later_fragment": 1}},
		{"of a blocked flow are dropped, first and later ones", func(s *fragmentScene) string {
			s.block(flow.UDP)
			return s.send(f.Fragments(s.udp(400), 7, pieces(104, 208)...)...)
		}, "ddd", counts{"later_fragment": 2, "followed_fragment": 2, "dropped_packets": 3}},
		{"of a blocked TCP flow are dropped", func(s *fragmentScene) string {
			s.block(flow.TCP)
			return s.send(f.Fragments(s.tcp(nil, 400), 7, pieces(104, 208)...)...)
		}, "ddd", counts{"later_fragment": 2, "followed_fragment": 2, "dropped_packets": 3}},
		{"of a flow that is blocked behind the first", func(s *fragmentScene) string {
			all := f.Fragments(s.udp(400), 7, pieces(104, 208)...)
			got := s.send(all[0])
			s.block(flow.UDP)
			return got + s.send(all[1:]...)
		}, "pdd", counts{"later_fragment": 2, "followed_fragment": 2, "dropped_packets": 2}},
		{"of a flow whose block was removed pass", func(s *fragmentScene) string {
			all := f.Fragments(s.udp(400), 7, pieces(104, 208)...)
			s.block(flow.UDP)
			got := s.send(all[0])
			if _, err := s.Unblock(s.key(flow.UDP)); err != nil {
				s.t.Fatal(err)
			}
			return got + s.send(all[1:]...)
		}, "dpp", counts{"later_fragment": 2, "followed_fragment": 2, "dropped_packets": 1}},
		{"before their first pass", func(s *fragmentScene) string {
			s.block(flow.UDP)
			all := f.Fragments(s.udp(400), 7, pieces(104, 208)...)
			return s.send(all[2], all[0], all[1])
		}, "pdd", counts{"later_fragment": 2, "followed_fragment": 1, "dropped_packets": 2}},
		{"of another id pass", func(s *fragmentScene) string {
			s.block(flow.UDP)
			return s.send(f.Fragments(s.udp(400), 7, pieces(104)...)[0], f.Fragments(s.udp(400), 8, pieces(104)...)[1])
		}, "dp", counts{"later_fragment": 1, "dropped_packets": 1}},
		{"behind the time of their first pass", func(s *fragmentScene) string {
			s.block(flow.UDP)
			all := f.Fragments(s.udp(400), 7, pieces(104, 208)...)
			got := s.send(all[0])
			s.ageFragments(fragmentAge - time.Second)
			got += s.send(all[1])
			s.ageFragments(time.Second)
			return got + s.send(all[2])
		}, "ddp", counts{"later_fragment": 2, "followed_fragment": 1, "dropped_packets": 2}},
		{"the other way have an id of their own", func(s *fragmentScene) string {
			s.block(flow.UDP)
			got := s.send(f.Fragments(s.udp(400), 7, pieces(104)...)[0])
			s.src, s.dst = s.dst, s.src
			return got + s.send(f.Fragments(s.udp(400), 7, pieces(104)...)[1])
		}, "dp", counts{"later_fragment": 1, "dropped_packets": 1}},
		{"of another VLAN have an id of their own", func(s *fragmentScene) string {
			s.block(flow.UDP)
			got := s.send(f.Fragments(s.udp(400), 7, pieces(104)...)[0])
			if s.tagging.tags = slices.Clone(s.tagging.tags); len(s.tagging.tags) == 4 {
				s.tagging.tags[3] = 9
			} else {
				s.tagging.tags = append(s.tagging.tags, f.TypeVLAN, 9)
			}
			return got + s.send(f.Fragments(s.udp(400), 7, pieces(104)...)[1])
		}, "dp", counts{"later_fragment": 1, "dropped_packets": 1}},
		{"of an id that two flows have follow none", func(s *fragmentScene) string {
			s.block(flow.UDP)
			got := s.send(f.Fragments(s.udp(400), 7, pieces(104)...)[0], f.Fragments(other(s), 7, pieces(104)...)[0])
			return got + s.send(f.Fragments(s.udp(400), 7, pieces(104)...)[1])
		}, "dpp", counts{"later_fragment": 1, "dropped_packets": 1}},
		{"of an id that another flow had before follow the one that has it now", func(s *fragmentScene) string {
			s.block(flow.UDP)
			got := s.send(f.Fragments(other(s), 7, pieces(104)...)[0])
			s.ageFragments(fragmentAge)
			return got + s.send(f.Fragments(s.udp(400), 7, pieces(104)...)...)
		}, "pdd", counts{"later_fragment": 1, "followed_fragment": 1, "dropped_packets": 2}},
		{"a first one that comes twice is one", func(s *fragmentScene) string {
			s.block(flow.UDP)
			all := f.Fragments(s.udp(400), 7, pieces(104)...)
			return s.send(all[0], all[0], all[1])
		}, "ddd", counts{"later_fragment": 1, "followed_fragment": 1, "dropped_packets": 3}},
		{"with the ports alone pass in monitor", func(s *fragmentScene) string {
			return s.send(f.Fragments(s.tcp(nil, 400), 7, pieces(8)...)...)
		}, "pp", counts{"bad_fragment": 2}},
		{"with the ports alone, of a blocked flow", func(s *fragmentScene) string {
			s.block(flow.TCP)
			return s.send(f.Fragments(s.tcp(nil, 400), 7, pieces(8)...)...) + s.send(f.Fragments(s.tcp(timestamps, 400), 8, pieces(24)...)...)
		}, "dddp", counts{"bad_fragment": 1, "bad_fragment_dropped": 1, "later_fragment": 1, "dropped_packets": 2}},
		{"of a flow whose block is suspended", func(s *fragmentScene) string {
			s.block(flow.TCP)
			s.block(flow.UDP)
			s.enforce(false)
			return s.send(f.Fragments(s.tcp(nil, 400), 7, pieces(104)...)...) + s.send(f.Fragments(s.tcp(nil, 400), 8, pieces(8)...)...) +
				s.send(f.Fragments(s.udp(400), 9, pieces(104)...)...)
		}, "pppppp", counts{"bad_fragment": 2, "later_fragment": 2, "followed_fragment": 2}},
		{"with the ports alone are dropped in enforce", func(s *fragmentScene) string {
			s.enforce(true)
			return s.send(f.Fragments(s.tcp(nil, 400), 7, pieces(8)...)...)
		}, "dd", counts{"bad_fragment": 2, "bad_fragment_dropped": 2}},
		{"that end in the TCP header are dropped", func(s *fragmentScene) string {
			s.enforce(true)
			return s.send(f.Fragments(s.tcp(nil, 400), 7, pieces(16)...)...)
		}, "dd", counts{"bad_fragment": 2, "bad_fragment_dropped": 2}},
		{"that end in the TCP options are dropped; what is behind has none to follow", func(s *fragmentScene) string {
			s.enforce(true)
			return s.send(f.Fragments(s.tcp(timestamps, 400), 7, pieces(24)...)...)
		}, "dp", counts{"bad_fragment": 1, "bad_fragment_dropped": 1, "later_fragment": 1}},
		{"that begin with the TCP flags are dropped, behind a first one that is whole", func(s *fragmentScene) string {
			s.enforce(true)
			return s.send(f.Fragments(s.tcp(nil, 400), 7, f.Piece{From: 0, To: 104}, f.Piece{From: 8, To: 104}, f.Piece{From: 104, To: 1 << 16})...)
		}, "pdp", counts{"bad_fragment": 1, "bad_fragment_dropped": 1, "later_fragment": 1, "followed_fragment": 1}},
		{"that begin with the TCP flags are dropped, before any first one", func(s *fragmentScene) string {
			s.enforce(true)
			return s.send(f.Fragments(s.tcp(nil, 400), 7, f.Piece{From: 8, To: 104}, f.Piece{From: 16, To: 104})...)
		}, "dd", counts{"bad_fragment": 2, "bad_fragment_dropped": 2}},
		{"that begin in the TCP options are dropped", func(s *fragmentScene) string {
			s.enforce(true)
			return s.send(f.Fragments(s.tcp(timestamps, 400), 7, f.Piece{From: 0, To: 104}, f.Piece{From: 24, To: 104}, f.Piece{From: 32, To: 104})...)
		}, "pdp", counts{"bad_fragment": 1, "bad_fragment_dropped": 1, "later_fragment": 1, "followed_fragment": 1}},
		{"with the UDP header alone are good", func(s *fragmentScene) string {
			s.enforce(true)
			return s.send(f.Fragments(s.udp(400), 7, pieces(8)...)...)
		}, "pp", counts{"later_fragment": 1, "followed_fragment": 1}},
		{"mode monitor again", func(s *fragmentScene) string {
			s.enforce(true)
			s.enforce(false)
			return s.send(f.Fragments(s.tcp(nil, 400), 7, pieces(8)...)...)
		}, "pp", counts{"bad_fragment": 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, hook := range []entry{ingress, egress} {
				for _, version := range []int{4, 6} {
					for _, tags := range taggings {
						s := &fragmentScene{kernel: k, hook: hook, tagging: tags, src: ends[version][0], dst: ends[version][1]}
						s.t = t
						s.enforce(false)
						number++ // emptying all tables takes longer
						s.src = netip.AddrPortFrom(numbered(s.src.Addr(), number), s.src.Port())
						before := s.counts()
						what := fmt.Sprintf("%s, IPv%d, %s", hook, version, tags.name)
						if got := tt.do(s); got != tt.want {
							t.Errorf("%s: %s, want %s", what, got, tt.want)
						}
						got, after := counts{}, s.counts()
						for _, name := range []string{"later_fragment", "followed_fragment", "bad_fragment", "bad_fragment_dropped", "dropped_packets", "malformed", "other_proto", "load_failed"} {
							if n := after[name] - before[name]; n > 0 {
								got[name] = n
							}
						}
						if diff := cmp.Diff(tt.counts, got); diff != "" {
							t.Errorf("%s: counters (-want +got):\n%s", what, diff)
						}
					}
				}
			}
		})
	}
}

// Blocks count the bytes of all fragments, as they are on the wire.
func TestBlocksCountLaterFragments(t *testing.T) {
	for version, of := range ends {
		s := &fragmentScene{kernel: loadKernel(t, config{}), hook: ingress, src: of[0], dst: of[1]}
		s.block(flow.UDP)
		var bytes uint64
		fragments := f.Fragments(s.udp(400), 7, pieces(104, 208)...)
		for _, packet := range fragments {
			bytes += uint64(14 + len(packet))
		}
		if got := s.send(fragments...); got != "ddd" {
			t.Fatalf("IPv%d: %s", version, got)
		}
		// A frame that is padded is no longer for that.
		if !s.run(ingress, append(f.Ethernet(fragments[1]), 0, 0, 0, 0)) {
			t.Fatal("a padded fragment passed")
		}
		bytes += uint64(14 + len(fragments[1]))
		blocks, err := s.Blocked()
		if err != nil || len(blocks) != 1 || blocks[0].Packets != 4 || blocks[0].Bytes != bytes {
			t.Errorf("IPv%d: blocks %+v, %v; want 4 packets, %d bytes", version, blocks, err, bytes)
		}
		if c := s.counts(); c["dropped_bytes"] != bytes {
			t.Errorf("IPv%d: counters %v, want %d bytes dropped", version, c, bytes)
		}
	}
}

// Two IPv6 fragment headers in one packet, and headers that a first fragment lacks.
func TestIPv6HeadersAreInTheFirstFragment(t *testing.T) {
	k := loadKernel(t, config{})
	k.enforce(false)
	tcp := segment(peer6, host6, f.ACK, nil, 100)
	ip6 := func(next byte, parts ...[]byte) []byte {
		return f.Ethernet(f.IP(peer6, host6, next, slices.Concat(parts...)))
	}
	first, later := f.FragmentHeader(f.TCP, 0, true, 7), f.FragmentHeader(f.TCP, 24, true, 7)
	atomic := f.FragmentHeader(44, 0, false, 9)
	for _, tt := range []struct {
		name    string
		frame   []byte
		dropped bool
	}{
		{"whole header chain", ip6(0, f.Extension(44, 0), f.FragmentHeader(60, 0, true, 7), f.Extension(f.TCP, 1), tcp), false},
		{"extension header without its end", ip6(44, f.FragmentHeader(60, 0, true, 7), f.Extension(f.TCP, 1)[:12]), true},
		{"extension header alone", ip6(44, f.FragmentHeader(60, 0, true, 7), f.Extension(f.TCP, 0)), true},
		{"extension header that is in the next one", ip6(44, f.FragmentHeader(60, 0, true, 7)), true},
		{"fragment header alone", ip6(44, first), true},
		{"a first fragment in a first fragment", ip6(44, f.FragmentHeader(44, 0, true, 8), first, tcp), true},
		{"a later one in a first fragment", ip6(44, f.FragmentHeader(44, 0, true, 8), later, tcp), true},
		{"a whole packet in a first fragment", ip6(44, f.FragmentHeader(44, 0, true, 8), f.FragmentHeader(f.TCP, 0, false, 9), tcp), true},
		{"a first fragment in a whole packet", ip6(44, atomic, first, tcp), false},
		{"a later one in a whole packet", ip6(44, atomic, later, tcp), false},
		{"a first fragment of another id", ip6(44, f.FragmentHeader(f.TCP, 0, true, 70), tcp), false},
		{"a later one that says it is UDP, and has TCP's flags", ip6(44, f.FragmentHeader(f.UDP, 8, true, 70), tcp), true},
	} {
		if got := k.run(ingress, tt.frame); got {
			t.Errorf("%s: dropped in monitor", tt.name)
		}
		k.enforce(true)
		if got := k.run(ingress, tt.frame); got != tt.dropped {
			t.Errorf("%s: dropped %v, want %v", tt.name, got, tt.dropped)
		}
		k.enforce(false)
	}
}

// Whoever floods with fragments pushes out his own: what was seen lately is found again, and
// where it is not, later fragments pass.
func TestFloodOfFragmentsPushesOutItsLike(t *testing.T) {
	s := &fragmentScene{kernel: loadKernel(t, config{}), hook: ingress, src: client, dst: server}
	s.block(flow.UDP)
	all := f.Fragments(s.udp(400), 7, pieces(104, 208)...)
	if got := s.send(all[:2]...); got != "dd" {
		t.Fatal(got)
	}
	max := int(s.coll.Maps[datapathMapFragments].MaxEntries())
	flood := f.Fragments(s.udp(400), 7, pieces(104)...)[0]
	for i := range 2 * max {
		binary.BigEndian.PutUint32(flood[12:], 0x0b000000+uint32(i))
		f.SetChecksum(flood)
		if s.send(flood) != "p" {
			t.Fatal("a stranger's fragment was dropped")
		}
		if i%64 == 0 { // what goes on is not the least recently used
			if got := s.send(all[1]); got != "d" {
				t.Fatalf("behind %d fragments of strangers a later one of the blocked flow passed", i)
			}
		}
	}
	entries := 0
	var key datapathFragmentKey
	var first datapathFragment
	for it := s.coll.Maps[datapathMapFragments].Iterate(); it.Next(&key, &first); {
		entries++
	}
	if entries > max {
		t.Errorf("%d entries in a table of %d", entries, max)
	}
	if got := s.send(all[0], all[2]); got != "dd" {
		t.Errorf("behind the flood: %s, want dd", got)
	}
}

// Whoever sends fragments with a pair's addresses and ports, but knows neither ids nor numbers,
// changes nothing that is known of the pair's flows: no signal, no end, no drop.
func TestForgedFragmentsChangeNothing(t *testing.T) {
	for version, of := range ends {
		for _, hook := range []entry{ingress, egress} {
			t.Run(fmt.Sprintf("IPv%d/%s", version, hook), func(t *testing.T) {
				k := loadKernel(t, config{})
				forge := func() {
					for i, pair := range [][2]netip.AddrPort{of, {of[1], of[0]}} {
						s := &fragmentScene{kernel: k, hook: hook, src: pair[0], dst: pair[1]}
						for j, pieces := range [][]f.Piece{pieces(104, 208), pieces(24), pieces(32, 40), pieces(8), pieces(16)} {
							forged := f.IP(s.src, s.dst, f.TCP, f.Numbered(f.Segment(s.src, s.dst, f.ACK|f.FIN, nil, f.Payload(300)), 0x7000_0000, 0x7000_0000))
							s.send(f.Fragments(forged, uint32(10*i+j), pieces...)...)
							s.send(f.Fragments(forged, uint32(100+10*i+j), pieces[1:]...)...)
						}
					}
				}
				packet := func(from int, flags byte, seq, ack uint32, n int) {
					src, dst := of[from], of[1-from]
					hook := []entry{ingress, egress}[from]
					if k.run(hook, f.Ethernet(f.IP(src, dst, f.TCP, f.Numbered(f.Segment(src, dst, flags, nil, f.Payload(n)), seq, ack)))) {
						t.Fatal("a packet of the flow was dropped")
					}
					forge()
				}
				forge()
				packet(0, f.SYN, 1, 0, 0)
				packet(1, f.SYN|f.ACK, 1, 2, 0)
				packet(0, f.ACK, 2, 2, 0)
				packet(0, f.ACK, 2, 2, 300)
				packet(1, f.ACK, 2, 302, 100)
				packet(0, f.ACK, 302, 102, 700)
				got := k.samples()
				if len(got) != 1 || got[0].Signals != 0 || got[0].MidStream || len(got[0].Packets) != 6 || got[0].Reason != flow.ReasonFull {
					t.Errorf("%d samples, want one of 6 packets without signals: %+v", len(got), got)
				}
			})
		}
	}
}

// A beginning of which all payload comes in later fragments is captured, and says so.
func TestBeginningInLaterFragmentsIsSignalled(t *testing.T) {
	options := []byte{1, 1, 1, 1} // 24 bytes of header, so that a fragment may end there
	for version, of := range ends {
		at := func(from int) *fragmentScene {
			return &fragmentScene{src: of[from], dst: of[1-from]}
		}
		segment := func(from int, flags byte, seq, ack uint32, options []byte, n int) []byte {
			s := at(from)
			return f.IP(s.src, s.dst, f.TCP, f.Numbered(f.Segment(s.src, s.dst, flags, options, f.Payload(n)), seq, ack))
		}
		for _, tt := range []struct {
			name    string
			packets []struct {
				from   int
				packet [][]byte
			}
		}{
			{"TCP", []struct {
				from   int
				packet [][]byte
			}{
				{0, [][]byte{segment(0, f.SYN, 1, 0, nil, 0)}}, {1, [][]byte{segment(1, f.SYN|f.ACK, 1, 2, nil, 0)}}, {0, [][]byte{segment(0, f.ACK, 2, 2, nil, 0)}},
				{0, f.Fragments(segment(0, f.ACK, 2, 2, options, 400), 7, pieces(24)...)},
				{1, f.Fragments(segment(1, f.ACK, 2, 402, options, 400), 7, pieces(24)...)},
			}},
			{"UDP", []struct {
				from   int
				packet [][]byte
			}{{0, f.Fragments(at(0).udp(400), 7, pieces(8)...)}, {1, f.Fragments(at(1).udp(400), 7, pieces(8)...)}}},
			{"UDP, the answer alone", []struct {
				from   int
				packet [][]byte
			}{{0, [][]byte{at(0).udp(100)}}, {1, f.Fragments(at(1).udp(400), 7, pieces(8)...)}}},
		} {
			t.Run(fmt.Sprintf("%s/IPv%d", tt.name, version), func(t *testing.T) {
				k := loadKernel(t, config{idle: 1})
				for _, p := range tt.packets {
					for _, packet := range p.packet {
						if k.run([]entry{ingress, egress}[p.from], f.Ethernet(packet)) {
							t.Fatal("a packet was dropped")
						}
					}
				}
				k.sweep()
				got := k.samples()
				if len(got) != 1 || !slices.Contains(got[0].Signals.Names(), "fragmented") {
					t.Errorf("%d samples, want one that is fragmented: %+v", len(got), got)
				}
			})
		}
	}
}

// What the capture ends in is noted even where its headers are cut off.
func TestFragmentAtTheEndOfTheCaptureIsSignalled(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	first := f.Ethernet(f.Fragments(f.IP(client, server, f.TCP, f.Numbered(f.Segment(client, server, f.ACK, nil, f.Payload(300)), 800, 2)), 7, pieces(104)...)[0])
	for _, frame := range after(handshake(), up(f.ACK, 798), first) { // 1014 bytes, and 10 of the fragment
		k.run(ingress, frame)
	}
	got := k.samples()
	if len(got) != 1 || len(got[0].Packets) != 5 || got[0].Signals != flow.SignalFragmented {
		t.Errorf("%d samples: %+v", len(got), got)
	}
}

// The programs go by the mode of whoever attached last, also when he is gone.
func TestModeOutlivesTheDaemon(t *testing.T) {
	inNamespace(t)
	for _, monitor := range []bool{false, true, false, true} {
		d := attach(t, Options{Monitor: monitor})
		want := "enforce"
		if monitor {
			want = "monitor"
		}
		modeIs(t, want)
		if err := d.Release(); err != nil {
			t.Fatal(err)
		}
		modeIs(t, want)
	}
	if err := Detach("v0", false); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}

// A segment whose first fragment keeps TCP's flags back is not captured. It shows on its flow
// if it has the number that its side is to send next, and comes from that side.
func TestHiddenHeadersInPlaceAreSignalled(t *testing.T) {
	k := loadKernel(t, config{})
	type packet struct {
		hook  entry
		from  int
		flags byte
		seq   uint32
		n     int
		parts []f.Piece // none: whole
	}
	handshake := []packet{{ingress, 0, f.SYN, 1, 0, nil}, {egress, 1, f.SYN | f.ACK, 1, 0, nil}, {ingress, 0, f.ACK, 2, 0, nil}}
	end := []packet{{ingress, 0, f.ACK, 2, 300, nil}, {egress, 1, f.ACK, 2, 1000, nil}}
	hidden := func(hook entry, from int, seq uint32, first int) packet {
		return packet{hook, from, f.ACK | f.PSH, seq, 300, pieces(first)}
	}
	for _, tt := range []struct {
		name   string
		before []packet // the first payload
		behind []packet // the first payload of the client
		want   flow.Signals
	}{
		{"none", nil, nil, 0},
		{"first payload of the client", []packet{hidden(ingress, 0, 2, 8)}, nil, flow.SignalFragmented},
		{"first payload of the server", []packet{hidden(egress, 1, 2, 16)}, nil, flow.SignalFragmented},
		{"next payload of the client", nil, []packet{hidden(ingress, 0, 302, 8)}, flow.SignalFragmented},
		{"next payload of the server", nil, []packet{hidden(egress, 1, 2, 8)}, flow.SignalFragmented},
		{"another number", []packet{hidden(ingress, 0, 3, 8), hidden(ingress, 0, 1, 8)}, []packet{hidden(ingress, 0, 301, 8), hidden(egress, 1, 303, 16)}, 0},
		{"the other side", []packet{hidden(egress, 0, 2, 8)}, []packet{hidden(egress, 0, 302, 8), hidden(ingress, 1, 2, 8)}, 0},
	} {
		for version, of := range ends {
			t.Run(fmt.Sprintf("%s/IPv%d", tt.name, version), func(t *testing.T) {
				k := k.emptied(t)
				k.enforce(false)
				var steps []step
				for _, p := range slices.Concat(handshake, tt.before, end[:1], tt.behind, end[1:]) {
					ack := uint32(2)
					if p.from == 1 && p.n == 1000 {
						ack = 302
					}
					whole := f.IP(of[p.from], of[1-p.from], f.TCP, f.Numbered(f.Segment(of[p.from], of[1-p.from], p.flags, nil, f.Payload(p.n)), p.seq, ack))
					all := [][]byte{whole}
					if p.parts != nil {
						all = f.Fragments(whole, 7, p.parts...)
					}
					for _, packet := range all {
						steps = append(steps, step{hook: p.hook, frame: f.Ethernet(packet)})
					}
				}
				for _, s := range steps {
					if k.run(s.hook, s.frame) {
						t.Fatal("a packet was dropped in monitor")
					}
				}
				got := k.samples()
				if len(got) != 1 || got[0].Signals != tt.want {
					t.Fatalf("%d samples, want one with signals %v: %+v", len(got), tt.want.Names(), got)
				}
				want, _ := assembled(steps, config{})
				if diff := cmp.Diff(want.HandedOver, []seen{look(got[0])}); diff != "" {
					t.Errorf("assembly and kernel differ (-assembly +kernel):\n%s", diff)
				}
			})
		}
	}
}
