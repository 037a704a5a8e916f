// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// later has what follows come so much later.
func (k *kernel) later(by time.Duration) {
	k.t.Helper()
	m := k.coll.Maps[datapathMapSlots]
	for id := range m.MaxEntries() {
		var slot datapathSlot
		if err := m.Lookup(id, &slot); err != nil {
			k.t.Fatal(err)
		}
		slot.Sample.StartNs -= uint64(by)
		if err := m.Update(id, &slot, ebpf.UpdateExist); err != nil {
			k.t.Fatal(err)
		}
	}
}

// TestBeginningsThatGoOn: what begins in tiny segments or slowly goes on though its capture is
// full, once it has, and nothing else does. Each row is run with the client on either side,
// and through the assembly.
func TestBeginningsThatGoOn(t *testing.T) {
	const data = f.ACK | f.PSH
	const pause = 2500 * time.Millisecond
	all := loadKernel(t, config{})
	for _, p := range paths {
		// says and answers are segments one behind the other; the other side says nothing
		// or acknowledges each.
		says := func(seq uint32, sizes ...int) (hops []hop) {
			for _, n := range sizes {
				hops = append(hops, p.up(seq, 2, data, n))
				seq += uint32(n)
			}
			return hops
		}
		acknowledged := func(seq uint32, sizes ...int) (hops []hop) {
			for _, h := range says(seq, sizes...) {
				n := uint32(len(h.frame) - 54)
				seq += n
				hops = append(hops, h, p.down(2, seq, f.ACK, 0))
			}
			return hops
		}
		answers := func(seq, ack uint32, sizes ...int) (hops []hop) {
			for _, n := range sizes {
				hops = append(hops, p.down(seq, ack, data, n))
				seq += uint32(n)
			}
			return hops
		}
		for _, tt := range []struct {
			name   string
			hops   []hop
			pauses []int // in front of these hops
			want   []string
		}{
			{"an ordinary one", slices.Concat(says(2, 500), answers(2, 502, 1400, 1400)), nil, []string{"0 full: >500 <1400~"}},
			{
				"three tiny ones, then the rest", slices.Concat(acknowledged(2, 1, 1, 1, 500), answers(2, 505, 1400, 1400)), nil,
				[]string{"provisional 0 full: >1 >1 >1 >500~ tiny", "1 full: >503 <1400~ tiny"},
			},
			{
				"the rest begins where the capture ends in its headers", slices.Concat(acknowledged(2, 1, 1, 1, 1, 1, 1, 1), says(9, 15, 500), answers(2, 524, 1400, 1400)), nil,
				[]string{"provisional 0 full: >1 >1 >1 >1 >1 >1 >1 >15 >500~ tiny", "1 full: >522 <1400~ tiny"},
			},
			{
				"two tiny ones are no signal", slices.Concat(acknowledged(2, 1, 1, 500), answers(2, 504, 1400, 1400)), nil,
				[]string{"provisional 0 full: >1 >1 >500 <1400~", "1 full: >502 <1400~"},
			},
			{"two with an answer between are none", slices.Concat(says(2, 3), answers(2, 5, 2), says(5, 10), answers(4, 15, 10), says(15, 500), answers(14, 515, 1400)), nil, []string{"0 full: >3 <2 >10 <10 >500 <1400~"}},
			{"one tiny one is nothing", slices.Concat(acknowledged(2, 1, 500), answers(2, 503, 1400, 1400)), nil, []string{"0 full: >1 >500 <1400~"}},
			{
				"sixteen bytes are not tiny", slices.Concat(says(2, 16, 16, 16, 500), answers(2, 550, 1400, 1400)), nil,
				[]string{"0 full: >16 >16 >16 >500 <1400~"},
			},
			{
				"as many as fill several captures", slices.Concat(acknowledged(2, slices.Repeat([]int{1}, 18)...), says(20, 500), answers(2, 520, 1400, 1400)), nil,
				[]string{"provisional 0 full:" + strings.Repeat(" >1", 9) + "~ tiny", "provisional 1 full: >518 tiny", "2 full: >518 <1400~ tiny"},
			},
			{
				"it goes on four times", slices.Concat(acknowledged(2, slices.Repeat([]int{1}, 99)...)), nil,
				[]string{"provisional 0 full:" + strings.Repeat(" >1", 9) + "~ tiny", "provisional 1 full: >21 tiny", "provisional 2 full: >33 tiny",
					"provisional 3 full: >45 tiny", "4 full: >57 tiny"},
			},
			{
				"tiny ones of the responder", slices.Concat(says(2, 100), answers(2, 102, 1, 1, 1, 900, 1400, 1400)), nil,
				[]string{"provisional 0 full: >100 <1 <1 <1 <900~ tiny", "1 full: >100 <903~ tiny"},
			},
			{"slow", slices.Concat(says(2, 40, 40, 900), answers(2, 982, 1400)), []int{1}, []string{"provisional 0 full: >40 >40 >900~ slow", "1 full: >40 >40 >900~ slow"}},
			{"slow behind its beginning", slices.Concat(says(2, 64, 40, 900), answers(2, 1006, 1400)), []int{1, 2}, []string{"0 full: >64 >40 >900~"}},
			{"silence in front of the first byte", slices.Concat(says(2, 40, 40, 900), answers(2, 982, 1400)), []int{0}, []string{"0 full: >40 >40 >900~"}},
			{
				"a retransmission is no piece", slices.Concat(says(2, 1), says(2, 1), says(2, 1), says(3, 900), answers(2, 903, 1400)), nil,
				[]string{"0 full: >1 >900~"},
			},
		} {
			t.Run(tt.name+"/client by "+string(p.client), func(t *testing.T) {
				k := all.emptied(t)
				var want, got []seen
				var words []string
				a := assembly.New(assembly.Options{IdleTimeout: time.Hour, StrictChecksums: true}, func(_ *assembly.Flow, s *flow.Sample) { want = append(want, look(s)) }, nil)
				at := time.Unix(1, 0)
				for i, h := range slices.Concat(p.handshake(1, 1), tt.hops) {
					if slices.Contains(tt.pauses, i-3) {
						k.later(pause)
						at = at.Add(pause)
					}
					at = at.Add(time.Microsecond)
					k.run(h.hook, h.frame)
					a.PacketFrom(step{hook: h.hook}.side(false), at, h.frame, len(h.frame))
				}
				for _, s := range k.samples() {
					v := look(s)
					got = append(got, v)
					words = append(words, v.tell())
				}
				if diff := cmp.Diff(tt.want, words); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("assembly and kernel differ (-assembly +kernel):\n%s", diff)
				}
				if o, err := k.Occupancy(); err != nil || o.Collecting > 1 {
					t.Errorf("occupancy %+v, %v", o, err)
				}
			})
		}
	}
}

// tell is the revision, the reason, the packets with payload, of which "~" is cut, and the
// signals.
func (v seen) tell() string {
	words := []string{fmt.Sprintf("%d %s:", v.Revision, v.Reason)}
	if v.Provisional {
		words = slices.Insert(words, 0, "provisional")
	}
	for i, wire := range v.WireLens {
		if wire == 54 {
			continue
		}
		mark, end, cut := "<", len(v.Data), ""
		if v.FromInitiator[i] {
			mark = ">"
		}
		if i+1 < len(v.Offsets) {
			end = int(v.Offsets[i+1])
		}
		if end-int(v.Offsets[i]) < int(wire) {
			cut = "~"
		}
		words = append(words, fmt.Sprintf("%s%d%s", mark, wire-54, cut))
	}
	return strings.Join(append(words, v.Signals...), " ")
}

// Wherever in the packet behind them a capture of tiny segments ends, what follows is whole.
func TestTinySegmentsAreWholeWhereverTheCaptureEnds(t *testing.T) {
	const data, total = f.ACK | f.PSH, 1024
	all := loadKernel(t, config{oneHook: true})
	for room := 1; room < 70; room += 3 { // of the packet that fills the capture
		k := all.emptied(t)
		frames, seq := handshake(), uint32(2)
		left := total - room - 3*54
		segments := (left + 68) / 69 // of at most 15 bytes of payload
		for i := range segments {
			n := (left - 54*segments + i) / segments
			frames = append(frames, upAt(seq, 2, data, n))
			seq += uint32(n)
		}
		frames = append(frames, upAt(seq, 2, data, 300), downAt(2, seq+300, data, 1400), downAt(1402, seq+300, data, 1400))
		for _, frame := range frames {
			k.run(ingress, frame)
		}
		var got []seen
		var words []string
		for _, s := range k.samples() {
			got = append(got, look(s))
			words = append(words, look(s).tell())
		}
		if diff := cmp.Diff(assemble(frames, false), got); diff != "" {
			t.Errorf("%d bytes fit: assembly and kernel differ (-assembly +kernel):\n%s", room, diff)
		}
		if want := fmt.Sprintf("1 full: >%d <1400~ tiny", seq-2+300); len(words) != 2 || words[1] != want {
			t.Errorf("%d bytes fit: %q, want the second to be %q", room, words, want)
		}
	}
}
