// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// ranges prints a mask map as the runs of its replaced bytes: "0-11 B" are
// bytes replaced by both recipes, "22 S" one replaced by strict only.
func ranges(mask []uint8) string {
	var out []string
	for i := 0; i < len(mask); {
		j := i
		for j < len(mask) && mask[j] == mask[i] {
			j++
		}
		if mask[i] != MaskKept {
			letter := map[uint8]string{MaskBoth: "B", MaskStrict: "S"}[mask[i]]
			if letter == "" {
				letter = fmt.Sprintf("?%d", mask[i])
			}
			if j-i == 1 {
				out = append(out, fmt.Sprintf("%d %s", i, letter))
			} else {
				out = append(out, fmt.Sprintf("%d-%d %s", i, j-1, letter))
			}
		}
		i = j
	}
	return strings.Join(out, ", ")
}

func TestMaskMapFollowsHeaders(t *testing.T) {
	timestamps := []byte{optionNop, optionNop, optionTimestamps, 10, 1, 2, 3, 4, 5, 6, 7, 8}
	// What an IPv4 and TCP header at 14 without options has replaced.
	const plain = "0-11 B, 18-19 B, 22 S, 24-25 S, 26-37 B, 38-45 S, 50-51 S"
	fragment := func(offset uint16, h []byte) []byte {
		binary.BigEndian.PutUint16(h[6:], offset|0x2000)
		return h
	}
	short := func(h []byte) []byte { h[0] = 4<<4 | 4; return h }
	for _, tt := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"IPv4 TCP, as in the paper's table", join(ether(etherIPv4), ipv4(6, 120, 0), tcp(), text(100)), plain},
		{"IPv4 options", join(ether(etherIPv4), ipv4(6, 30, 8), tcp(), text(10)),
			"0-11 B, 18-19 B, 22 S, 24-25 S, 26-33 B, 42-45 B, 46-53 S, 58-59 S"},
		{"TCP timestamps first, aligned", join(ether(etherIPv4), ipv4(6, 42, 0), tcp(timestamps...), text(10)),
			plain + ", 58-65 S"},
		{"TCP timestamps in the middle of a SYN's options", join(ether(etherIPv4), ipv4(6, 40, 0),
			tcp(2, 4, 5, 180, 4, 2, optionTimestamps, 10, 1, 2, 3, 4, 5, 6, 7, 8, optionNop, 3, 3, 7)),
			plain + ", 62-69 S"},
		{"no timestamps in an option of another length", join(ether(etherIPv4), ipv4(6, 32, 0),
			tcp(optionTimestamps, 6, 1, 2, 3, 4, optionTimestamps, 2)), plain},
		{"nothing behind the end of options", join(ether(etherIPv4), ipv4(6, 32, 0),
			tcp(optionEnd, optionTimestamps, 10, 1, 2, 3, 4, 5, 6, 7, 8)), plain},
		{"nothing behind an option of length 0", join(ether(etherIPv4), ipv4(6, 36, 0),
			tcp(99, 0, optionTimestamps, 10, 1, 2, 3, 4, 5, 6, 7, 8)), plain},
		{"option that claims more than the header", join(ether(etherIPv4), ipv4(6, 24, 0),
			tcp(optionNop, optionNop, optionSACK, 250), text(20)), plain},
		{"SACK edges", join(ether(etherIPv4), ipv4(6, 32, 0),
			tcp(optionNop, optionNop, optionSACK, 10, 1, 2, 3, 4, 5, 6, 7, 8)), plain + ", 58-65 S"},
		{"payload that looks like timestamps", join(ether(etherIPv4), ipv4(6, 32, 0), tcp(), timestamps), plain},
		{"doff < 5", join(ether(etherIPv4), ipv4(6, 20, 0), func() []byte { h := tcp(); h[12] = 4 << 4; return h }()), plain},
		{"IPv4 UDP", join(ether(etherIPv4), ipv4(17, 38, 0), udp(30), text(30)),
			"0-11 B, 18-19 B, 22 S, 24-25 S, 26-37 B, 40-41 S"},
		{"VLAN", join(ether(etherIPv4, 7), ipv4(17, 38, 0), udp(30), text(30)),
			"0-11 B, 14-15 S, 22-23 B, 26 S, 28-29 S, 30-41 B, 44-45 S"},
		{"QinQ", join(ether(etherIPv4, 7, 8), ipv4(17, 38, 0), udp(30), text(30)),
			"0-11 B, 14-15 S, 18-19 S, 26-27 B, 30 S, 32-33 S, 34-45 B, 48-49 S"},
		{"three tags are not parsed", join(ether(etherVLAN, 7, 8), []byte{0, 9, 8, 0}, ipv4(17, 8, 0), udp(0)),
			"0-11 B, 14-15 S, 18-19 S"},
		{"IPv6 TCP", join(ether(etherIPv6), ipv6(6, 32), tcp(timestamps...)),
			"0-11 B, 15-17 B, 21 S, 22-57 B, 58-65 S, 70-71 S, 78-85 S"},
		{"IPv6 VLAN UDP", join(ether(etherIPv6, 7), ipv6(17, 18), udp(10), text(10)),
			"0-11 B, 14-15 S, 19-21 B, 25 S, 26-61 B, 64-65 S"},
		{"IPv6 hop-by-hop and destination options", join(ether(etherIPv6), ipv6(0, 16+8+8),
			[]byte{60, 0, 1, 4, 0, 0, 0, 0}, []byte{17, 0, 1, 4, 0, 0, 0, 0}, udp(8), text(8)),
			"0-11 B, 15-17 B, 21 S, 22-53 B, 70-73 B, 76-77 S"},
		{"IPv6 routing header holds an address", join(ether(etherIPv6), ipv6(43, 24+8),
			[]byte{17, 2, 4, 1, 0, 0, 0, 0}, text(16), udp(0)),
			"0-11 B, 15-17 B, 21 S, 22-53 B, 62-81 B, 84-85 S"},
		{"IPv6 authentication header", join(ether(etherIPv6), ipv6(51, 24+8),
			[]byte{17, 4, 0, 0}, text(20), udp(0)),
			"0-11 B, 15-17 B, 21 S, 22-53 B, 58-77 S, 78-81 B, 84-85 S"},
		{"IPv6 first fragment", join(ether(etherIPv6), ipv6(44, 8+8+8),
			[]byte{17, 0, 0, 1, 1, 2, 3, 4}, udp(100), text(8)),
			"0-11 B, 15-17 B, 21 S, 22-53 B, 58-65 B, 68-69 S"},
		{"IPv6 later fragment has no ports", join(ether(etherIPv6), ipv6(44, 8+8),
			[]byte{17, 0, 0, 9, 1, 2, 3, 4}, text(8)), "0-11 B, 15-17 B, 21 S, 22-53 B, 58-61 B"},
		{"IPv6 chain that does not end", join(ether(etherIPv6), ipv6(0, 64),
			slices.Repeat([]byte{0, 0, 1, 4, 0, 0, 0, 0}, 8)), "0-11 B, 15-17 B, 21 S, 22-53 B"},
		{"IPv4 first fragment", join(ether(etherIPv4), fragment(0, ipv4(17, 16, 0)), udp(100), text(8)),
			"0-11 B, 18-19 B, 22 S, 24-25 S, 26-37 B, 40-41 S"},
		{"IPv4 later fragment has no ports", join(ether(etherIPv4), fragment(100, ipv4(17, 16, 0)), text(16)),
			"0-11 B, 18-19 B, 22 S, 24-25 S, 26-33 B"},
		{"raw IP link: zero addresses in front", join(make([]byte, 12), []byte{8, 0}, ipv4(6, 20, 0), tcp()), plain},
		{"ihl < 5", join(ether(etherIPv4), short(ipv4(6, 20, 0)), tcp()), "0-11 B"},
		{"ARP", join(ether(0x0806), text(28)), "0-11 B"},
		{"ICMP has no ports", join(ether(etherIPv4), ipv4(1, 8, 0), text(8)), "0-11 B, 18-19 B, 22 S, 24-25 S, 26-33 B"},
		{"IPv4 behind the EtherType of IPv6", join(ether(etherIPv6), ipv4(6, 20, 0), tcp()), "0-11 B"},
		{"cut in the addresses", join(ether(etherIPv4), ipv4(6, 20, 0), tcp())[:30], "0-11 B, 18-19 B, 22 S, 24-25 S, 26-29 B"},
		{"cut in front of the protocol", join(ether(etherIPv4), ipv4(6, 20, 0), tcp())[:21], "0-11 B, 18-19 B"},
		{"cut in the ports", join(ether(etherIPv4), ipv4(6, 20, 0), tcp())[:35], "0-11 B, 18-19 B, 22 S, 24-25 S, 26-34 B"},
		{"cut in the timestamps", join(ether(etherIPv4), ipv4(6, 32, 0), tcp(timestamps...))[:60], plain + ", 58-59 S"},
		{"cut in an IPv6 chain", join(ether(etherIPv6), ipv6(0, 24), []byte{17, 0, 1, 4, 0, 0, 0, 0}, udp(0))[:55],
			"0-11 B, 15-17 B, 21 S, 22-53 B"},
		{"cut in the tag", ether(etherIPv4, 7)[:15], "0-11 B, 14 S"},
		{"cut in the MAC addresses", ether(etherIPv4)[:9], "0-8 B"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// The frame stands second, so that offsets are relative to it,
			// and in front of a third, which must not be touched by it.
			other := join(ether(0x0806), text(6))
			s := newSample(packet{frame: other}, packet{frame: tt.frame}, packet{frame: other})
			var mask [flow.CaptureBytes]uint8
			MaskMap(s, &mask)
			at := len(other)
			if diff := cmp.Diff(tt.want, ranges(mask[at:at+len(tt.frame)])); diff != "" {
				t.Errorf("mask (-want +got):\n%s", diff)
			}
			for _, o := range []int{0, at + len(tt.frame)} {
				if got := ranges(mask[o : o+len(other)]); got != "0-11 B" {
					t.Errorf("the frame at %d has %q replaced", o, got)
				}
			}
			if rest := ranges(mask[len(s.Data):]); rest != "" {
				t.Errorf("behind the capture %q is marked", rest)
			}
		})
	}
}

func TestMaskReplacesOnlyWhatTheRecipeNames(t *testing.T) {
	for seed := range uint64(20) {
		s := randomSample(seed)
		before := slices.Clone(s.Data)
		var mask [flow.CaptureBytes]uint8
		MaskMap(s, &mask)
		for _, r := range []Recipe{RecipePaper, RecipeStrict} {
			var got, again [flow.CaptureBytes]uint8
			n := r.Mask(s, &got)
			if n != len(s.Data) {
				t.Fatalf("%s: length is %d, want %d", r, n, len(s.Data))
			}
			if !slices.Equal(s.Data, before) {
				t.Fatalf("%s: the sample was changed", r)
			}
			replaced, differ := 0, 0
			for i := range n {
				if mask[i]&uint8(r) == 0 {
					if got[i] != before[i] {
						t.Fatalf("%s: byte %d, which is not masked, was changed", r, i)
					}
					continue
				}
				replaced++
				if got[i] != before[i] {
					differ++
				}
			}
			// One in 256 random bytes is the original by chance.
			if replaced == 0 || differ < replaced*9/10 {
				t.Errorf("%s: %d of %d masked bytes changed", r, differ, replaced)
			}
			r.Mask(s, &again)
			if got != again {
				t.Errorf("%s: the same capture was masked in two ways", r)
			}
		}
	}
}

// A capture is masked by its content alone: not by who holds it, nor by the
// flow's times, so live and replay agree.
func TestMaskDependsOnContentOnly(t *testing.T) {
	a, b := randomSample(1), randomSample(1)
	b.Start = b.Start.AddDate(1, 0, 0)
	b.Reason = flow.ReasonEnd
	for i := range b.Packets {
		b.Packets[i].Time *= 3
	}
	var x, y [flow.CaptureBytes]uint8
	RecipeStrict.Mask(a, &x)
	RecipeStrict.Mask(b, &y)
	if x != y {
		t.Error("times changed the masked capture")
	}
	b.Data[flow.CaptureBytes-1]++
	RecipeStrict.Mask(b, &y)
	if slices.Equal(x[:12], y[:12]) {
		t.Error("two captures have the same replacement bytes")
	}
}

func TestReplacementBytesAreEvenlySpread(t *testing.T) {
	var counts [256]int
	src, mask, dst := make([]uint8, 1024), slices.Repeat([]uint8{MaskBoth}, 1024), make([]uint8, 1024)
	const rounds = 1024
	for i := range uint64(rounds) {
		RecipePaper.replace(dst, src, mask, i)
		for _, b := range dst {
			counts[b]++
		}
	}
	// 4096 expected for each value; the standard deviation is 64.
	for v, n := range counts {
		if n < 4096-64*6 || n > 4096+64*6 {
			t.Errorf("value %d stands %d times, expected about 4096", v, n)
		}
	}
}

func TestMaskDoesNotAllocate(t *testing.T) {
	s := randomSample(1)
	var dst [flow.CaptureBytes]uint8
	if n := testing.AllocsPerRun(100, func() { RecipeStrict.Mask(s, &dst); MaskMap(s, &dst) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestRecipeNames(t *testing.T) {
	for _, r := range []Recipe{RecipePaper, RecipeStrict} {
		if got, err := ParseRecipe(r.String()); err != nil || got != r {
			t.Errorf("%s is read as %v, %v", r, got, err)
		}
	}
	if _, err := ParseRecipe("Paper"); err == nil || !strings.Contains(err.Error(), `"Paper"`) {
		t.Errorf("got %v", err)
	}
}

// FuzzMask holds for any bytes and any packet records: nothing panics, a byte
// that the map does not name stays, the length stays, the strict recipe names
// all that the paper's does, and masking twice gives the same.
func FuzzMask(f *testing.F) {
	add := func(s *flow.Sample) {
		var records []byte
		for _, p := range s.Packets {
			records = binary.BigEndian.AppendUint16(records, p.Offset)
			records = binary.BigEndian.AppendUint16(records, uint16(p.WireLen))
		}
		f.Add(s.Data, records)
	}
	add(randomSample(1))
	add(newSample(packet{frame: join(ether(etherIPv6, 1, 2), ipv6(0, 16), []byte{6, 0, 0, 0, 0, 0, 0, 0}, tcp(8, 10))}))
	f.Add([]byte{}, []byte{})
	f.Add([]byte{1, 2, 3}, []byte{255, 255, 0, 0, 0, 1, 0, 9, 0, 0, 255, 255})
	f.Fuzz(func(t *testing.T, data, records []byte) {
		s := new(flow.Sample)
		s.Reset()
		s.Data = data
		for ; len(records) >= 4; records = records[4:] {
			s.Packets = append(s.Packets, flow.Packet{
				Offset:        binary.BigEndian.Uint16(records),
				WireLen:       uint32(binary.BigEndian.Uint16(records[2:])) << (records[0] & 16),
				FromInitiator: records[3]&1 == 0,
			})
		}
		n := min(len(data), flow.CaptureBytes)
		before := slices.Clone(data)
		var mask, masked [flow.CaptureBytes]uint8
		MaskMap(s, &mask)
		for i, m := range mask {
			if m != MaskKept && (i >= n || m != MaskStrict && m != MaskBoth) {
				t.Fatalf("byte %d of %d has the mask %d", i, n, m)
			}
		}
		all := []Channel{ChannelByte, ChannelDirection, ChannelPayload, ChannelLength, ChannelTime}
		for _, r := range []Recipe{RecipePaper, RecipeStrict} {
			if got := r.Mask(s, &masked); got != n {
				t.Fatalf("%s: length is %d, want %d", r, got, n)
			}
			for i := range n {
				if mask[i]&uint8(r) == 0 && masked[i] != before[i] {
					t.Fatalf("%s: byte %d changed", r, i)
				}
			}
			image := slices.Repeat([]uint8{7}, len(all)*ImagePixels)
			Render(s, r, all, image)
			if !slices.Equal(image[:n], masked[:n]) {
				t.Fatalf("%s: image and mask differ", r)
			}
			for c := range all {
				for i, v := range image[c*ImagePixels+n : (c+1)*ImagePixels] {
					if v != 0 {
						t.Fatalf("channel %s, pixel %d: %d behind the end", all[c], n+i, v)
					}
				}
			}
		}
		if !slices.Equal(data, before) {
			t.Fatal("the capture was changed")
		}
	})
}
