// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// samplesOf returns what an Assembler makes of packets.
func samplesOf(options Options, packets []at) (samples []*flow.Sample) {
	a := New(options, func(_ *Flow, s *flow.Sample) {
		kept := new(flow.Sample)
		kept.CopyFrom(s)
		samples = append(samples, kept)
	}, nil)
	for _, p := range packets {
		a.PacketFrom(p.side, epoch.Add(time.Duration(p.ms)*time.Millisecond), p.frame, len(p.frame))
	}
	_ = a.Flush()
	return samples
}

// readSamples returns what a File gives, and its error.
func readSamples(data []byte) (samples []*flow.Sample, totals []Totals, err error) {
	f, err := Read("kept", bytes.NewReader(data))
	if err != nil {
		return nil, nil, err
	}
	a := New(Options{}, func(_ *Flow, s *flow.Sample) {
		kept := new(flow.Sample)
		kept.CopyFrom(s)
		samples = append(samples, kept)
	}, func(t Totals) { totals = append(totals, t) })
	err = f.Run(a, nil)
	return samples, totals, err
}

var sameSample = cmp.Options{
	cmpopts.IgnoreUnexported(flow.Sample{}), cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty(),
	cmpopts.IgnoreFields(flow.Meta{}, "Source"), cmpopts.IgnoreFields(flow.Sample{}, "Repeat", "Rest"),
}

// A capture that was kept becomes the same sample again, also where the packets alone would not:
// of a connection without its beginning, of one that was judged before, of addresses that are
// zeros. Several are a file as well. Others read it as the capture that it is.
func TestKeptCapturesComeBackAsTheyWere(t *testing.T) {
	var file []byte
	var want []*flow.Sample
	for _, packets := range [][]at{
		talk(t, ">S <SA >A >A100 <A2000"),
		talk(t, ">S <SA >A >A10 <A5 >FA <FA"),
		{{0, udp4(true, 30), 0}, {1, udp4(false, 60), 0}, {5, udp4(true, 300), 0}},
	} {
		want = append(want, samplesOf(Options{}, packets)...)
	}
	if len(want) != 3 {
		t.Fatalf("%d samples", len(want))
	}
	odd := new(flow.Sample) // nothing in its packets says so
	odd.CopyFrom(want[0])
	none := netip.AddrPortFrom(netip.IPv4Unspecified(), 443)
	odd.Key, odd.InitiatorIsLo = flow.NewKey(none, none, flow.TCP, 5, 6)
	odd.Packets[1].OffCable, odd.Packets[4].Segment = true, 700
	odd.MidStream, odd.OneWay, odd.Revision, odd.Variant, odd.Provisional, odd.Signals = true, true, 2, true, true, flow.SignalGap|flow.SignalOverlap
	odd.Numbers = flow.Numbers{InitiatorISN: 1, ResponderNext: 1 << 31, ISNKnown: true}
	want = append(want, odd)
	for i, s := range want {
		s.Seed = uint64(i+1) << 60
		var one bytes.Buffer
		if err := WriteKept(&one, s, "a verdict", strings.Repeat("long", 1<<15)); err != nil {
			t.Fatal(err)
		}
		got, _, err := readSamples(one.Bytes())
		if diff := cmp.Diff([]*flow.Sample{s}, got, sameSample); err != nil || diff != "" {
			t.Errorf("%d: %v (-kept +read):\n%s", i, err, diff)
		}
		file = append(file, one.Bytes()...)
	}
	got, totals, err := readSamples(file)
	if diff := cmp.Diff(want, got, sameSample); err != nil || diff != "" {
		t.Errorf("several: %v (-kept +read):\n%s", err, diff)
	}
	if len(totals) != len(want) || totals[0].Packets != uint64(len(want[0].Packets)) {
		t.Errorf("totals %+v", totals)
	}
	if got[0].Source.File != "kept" {
		t.Errorf("it is from %v", got[0].Source)
	}

	others, err := pcapgo.NewNgReader(bytes.NewReader(file), pcapgo.NgReaderOptions{WantMixedLinkType: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range want[:1] {
		for i := range s.Packets {
			data, info, err := others.ReadPacketData()
			if err != nil || !bytes.Equal(data, s.Frame(i)) || info.Length != int(s.Packets[i].WireLen) || !info.Timestamp.Equal(s.Start.Add(s.Packets[i].Time)) {
				t.Errorf("packet %d for others: %d bytes of %d at %s, %v", i, len(data), info.Length, info.Timestamp, err)
			}
		}
	}
	if others.SectionInfo().Comment == "" { // one of them
		t.Error("others see no comment")
	}
}

// What is wrong with such a file is an error, after what could be read.
func TestDamagedKeptCapturesAreRefused(t *testing.T) {
	s := samplesOf(Options{}, talk(t, ">S <SA >A >A100 <A2000"))[0]
	s.Seed = 7
	var good bytes.Buffer
	if err := WriteKept(&good, s); err != nil {
		t.Fatal(err)
	}
	// Of the same length, so that the blocks stay what they are.
	change := func(from, to string) []byte {
		if !bytes.Contains(good.Bytes(), []byte(from)) || len(from) != len(to) {
			t.Fatalf("no %q in it", from)
		}
		return append(bytes.Clone(good.Bytes()), bytes.Replace(good.Bytes(), []byte(from), []byte(to), 1)...)
	}
	packet := `{"ns":0,"from_initiator":true}`
	for name, tt := range map[string]struct {
		file []byte
		want error
		n    int // samples
	}{
		"no JSON":       {change(`"proto":6`, `"proto":}`), ErrDamaged, 1},
		"a protocol":    {change(`"proto":6`, `"proto":7`), ErrDamaged, 1},
		"no seed":       {change(`"seed":"7"`, `"seed":"0"`), ErrDamaged, 1},
		"no initiator":  {change(`"initiator":`, `"initiated":`), ErrDamaged, 1},
		"few packets":   {change(packet+",", strings.Repeat(" ", len(packet)+1)), ErrDamaged, 2},
		"cut at packet": {append(bytes.Clone(good.Bytes()), good.Bytes()[:good.Len()-1200]...), ErrTruncated, 1},
	} {
		got, _, err := readSamples(tt.file)
		var fileErr *FileError
		if len(got) != tt.n || !errors.As(err, &fileErr) || !errors.Is(err, tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %d samples, %v", name, len(got), err)
		}
	}
	// A section that has none of its packets, with another one after it.
	begin := bytes.Index(good.Bytes(), []byte{6, 0, 0, 0})
	for begin%4 != 0 {
		begin += 1 + bytes.Index(good.Bytes()[begin+1:], []byte{6, 0, 0, 0})
	}
	got, _, err := readSamples(append(bytes.Clone(good.Bytes()[:begin]), good.Bytes()...))
	if len(got) != 0 || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "there are 0") {
		t.Errorf("without packets: %d samples, %v", len(got), err)
	}
	if got, _, err := readSamples(good.Bytes()[:begin]); len(got) != 0 || !errors.Is(err, ErrDamaged) {
		t.Errorf("without packets, at the end: %d samples, %v", len(got), err)
	}
}

// What others read in a comment is text, whatever it is made from.
func TestCommentsAreText(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "",
		"\x00a\xffb\n":                   "\uFFFDa\uFFFDb\n",
		strings.Repeat("x", 1<<17):       strings.Repeat("x", 65532),
		"x" + strings.Repeat("ä", 1<<16): "x" + strings.Repeat("ä", 32765),
	} {
		if got := commentOf(text); got != want {
			t.Errorf("%.20q... of %d bytes became %.20q... of %d, want %d", text, len(text), got, len(got), len(want))
		}
	}
}
