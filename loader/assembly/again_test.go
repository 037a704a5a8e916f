// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// tell says what matters of a capture that may go on: "provisional 1 full, 3 packets: 600
// [tiny]" for revision 1, in which three packets, of 600 bytes of payload at least one, are
// whole but for the last.
func tell(s *flow.Sample) string {
	words := []string{fmt.Sprintf("%d %s:", s.Revision, s.Reason)}
	if s.Provisional {
		words = append([]string{"provisional"}, words...)
	}
	for i, p := range s.Packets {
		if n := int(p.WireLen) - 54; n > 0 {
			mark := ">"
			if !p.FromInitiator {
				mark = "<"
			}
			word := fmt.Sprintf("%s%d", mark, n)
			if len(s.Frame(i)) < int(p.WireLen) {
				word += "~"
			}
			words = append(words, word)
		}
	}
	return strings.Join(append(words, s.Signals.Names()...), " ")
}

// What begins slowly or in tiny segments is next to no beginning: its capture goes on though
// it is full, and what was left out of it by the tricks comes in.
func TestBeginningsThatGoOn(t *testing.T) {
	const open = ">S <SA >A "
	for _, tt := range []struct {
		name, words string
		want        []string
	}{
		{"an ordinary one", open + ">A500 <A <A1400", []string{"0 full: >500 <1400~"}},
		{
			"three tiny ones, then the rest", open + ">A1 <A >A1 <A >A1 <A >A500 <A <A1400 >A300 <A1400 <A1400",
			[]string{"provisional 0 full: >1 >1 >1 >500~ tiny", "1 full: >503 <1400~ tiny"},
		},
		{
			"two tiny ones are no signal", open + ">A1 <A >A1 <A >A500 <A <A1400 >A300 <A1400",
			[]string{"provisional 0 full: >1 >1 >500 <1400~", "1 full: >502 <1400~"},
		},
		{
			"two with an answer between are none", open + ">A3 <A2 >A10 <A10 >A500 <A1400 >A900",
			[]string{"0 full: >3 <2 >10 <10 >500 <1400~"},
		},
		{
			"one tiny one is nothing", open + ">A1 <A >A500 <A <A1400 >A300 <A1400",
			[]string{"0 full: >1 >500 <1400~"},
		},
		{
			"two tiny ones that fit with what follows stay two", open + ">A1 >A1 >FA0,lost @9 >A300 <A100 >RA0",
			[]string{"provisional 0 closed: >1 >1", "provisional 1 closed: >1 >1 >300 <100 fin_then_data"},
		},
		{
			"two, and a third in the next part", open + ">A1 >A1 >FA0,lost @9 >A1 >A500 <A1400",
			[]string{"provisional 0 closed: >1 >1", "provisional 1 full: >2 >501 <1400~ tiny fin_then_data"},
		},
		{
			"sixteen bytes are not tiny", open + ">A16 <A >A16 <A >A16 <A >A16 <A >A16 <A >A500 <A1400",
			[]string{"0 full: >16 >16 >16 >16 >16 >500~"},
		},
		{
			"fifteen are", open + ">A15 <A >A15 <A >A15 <A >A500 <A1400 <A1400",
			[]string{"provisional 0 full: >15 >15 >15 >500~ tiny", "1 full: >545 <1400~ tiny"},
		},
		{
			"as many as fill several captures", open + strings.Repeat(">A1 <A ", 18) + ">A500 <A <A1400 <A1400",
			[]string{"provisional 0 full:" + strings.Repeat(" >1", 9) + "~ tiny", "provisional 1 full: >518 tiny", "2 full: >518 <1400~ tiny"},
		},
		{
			"tiny ones of the responder", open + ">A100 <A1 <A1 <A1 <A900 >A100 <A900",
			[]string{"provisional 0 full: >100 <1 <1 <1 <900~ tiny", "1 full: >100 <903~ tiny"},
		},
		{
			"an answer to each keeps them apart", open + ">A1 <A9 >A1 <A9 >A1 <A9 >A900 <A9 <A900 >A900",
			[]string{"provisional 0 full: >1 <9 >1 <9 >1 <9 >900~ tiny", "provisional 1 full: >1 <9 >1 <9 >1 <9 >900~ tiny"},
		},
		{
			"a tiny one behind the rest is its own", open + ">A1 >A1 >A1 >A300 >A9 <A9 >A1000 >A1000",
			[]string{"provisional 0 full: >1 >1 >1 >300 >9 <9 >1000~ tiny", "1 full: >303 >9 <9 >1000~ tiny"},
		},
		{
			"one that is missing", open + ">A1 >A1,seq+1 >A1 >A500 <A1400 <A1400",
			[]string{"provisional 0 full: >1 >1 >1 >500 <1400~ gap tiny", "1 full: >1 >502 <1400~ gap tiny"},
		},
		{
			"a FIN stays where it was", open + ">A1 >A1 >FA1,lost @9 >A1 >A500 <A1400",
			[]string{"provisional 0 closed: >1 >1 >1 tiny", "1 full: >3 >500 <1400~ tiny fin_then_data"},
		},
		{"slow", open + "@10 >A40 <A @2011 >A40 <A >A900 >A900 >A900", []string{"provisional 0 full: >40 >40 >900~ slow", "1 full: >40 >40 >900~ slow"}},
		{"slow by both sides", open + "@10 >A40 @1500 <A20 @2011 >A10 >A900 >A900 >A900", []string{"provisional 0 full: >40 <20 >10 >900~ slow", "1 full: >40 <20 >10 >900~ slow"}},
		{"2 s are not slow", open + "@10 >A40 <A @2010 >A40 <A >A900 >A900", []string{"0 full: >40 >40 >900~"}},
		{"64 bytes at once are not slow", open + "@10 >A64 <A @2011 >A40 <A >A900 >A900", []string{"0 full: >64 >40 >900~"}},
		{"silence in front of the first byte is not slow", open + "@4000 >A40 >A40 <A >A900 >A900", []string{"0 full: >40 >40 >900~"}},
		{"slow, with many header-only packets", open + "@10 >A20 <A >A <A @2011 >A20 <A >A <A >A30 >A500 <A >A900 >A900",
			[]string{"provisional 0 full: >20 >20 >30 >500~ slow", "1 full: >20 >20 >30 >500 >900~ slow"}},
		{
			"slow and tiny", open + "@10 >A9 @700 >A9 @1400 >A9 @2100 >A9 @2800 >A9 @3000 >A9 >A900 >A900 >A900",
			[]string{"provisional 0 full: >9 >9 >9 >9 >9 >9 >900~ tiny slow", "1 full: >954~ tiny slow"},
		},
		{"the middle of a stream does not go on", ">A1 <A1 >A1 <A1 >A1 <A1 >A1400 >A1400", []string{"0 full: >1 <1 >1 <1 >1 <1 >1400~ tiny"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			a := New(Options{IdleTimeout: time.Hour, MidStream: true}, func(_ *Flow, s *flow.Sample) {
				got = append(got, tell(s))
			}, nil)
			for _, p := range talk(t, tt.words) {
				a.Packet(epoch.Add(time.Duration(p.ms)*time.Millisecond), p.frame, len(p.frame))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Merged segments are, byte by byte, what their sender would have sent at once, but for what
// no model sees.
func TestMergedSegmentsAreThoseOfAnOrdinarySender(t *testing.T) {
	last := func(words string) (s *flow.Sample) {
		t.Helper()
		a := New(Options{IdleTimeout: time.Hour}, func(_ *Flow, got *flow.Sample) {
			s = new(flow.Sample)
			s.CopyFrom(got)
		}, nil)
		for _, p := range talk(t, words) {
			a.Packet(epoch.Add(time.Duration(p.ms)*time.Millisecond), p.frame, len(p.frame))
		}
		return s
	}
	ordinary := last(">S <SA >A >A503 <A1400")
	tiny := last(">S <SA >A >A1 <A >A1 <A >A1 <A >A500 <A <A1400 <A1400")
	if ordinary == nil || tiny == nil || tiny.Signals != flow.SignalTiny || tiny.Revision != 1 {
		t.Fatalf("signals %v, revision %d", tiny.Signals.Names(), tiny.Revision)
	}
	if len(ordinary.Packets) != len(tiny.Packets) {
		t.Fatalf("%d packets instead of %d", len(tiny.Packets), len(ordinary.Packets))
	}
	for i := range ordinary.Packets {
		want, got := ordinary.Frame(i), tiny.Frame(i)
		copy(got[50:52], want[50:52]) // the TCP checksum
		if i < 4 && len(want) != len(got) || string(want[:54]) != string(got[:54]) {
			t.Errorf("packet %d\n got %x\nwant %x", i, got, want)
		}
	}
}
