// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
)

func TestSizesOutOfBoundsAreRefused(t *testing.T) {
	for _, tt := range []struct {
		sizes Sizes
		want  string // empty: taken
	}{
		{Sizes{}, ""},
		{Sizes{Flows: 1024, Blocked: 16, Handshakes: 1024, Collecting: 16, RingBytes: 64 << 10}, ""},
		{Sizes{Flows: 1 << 26, Blocked: 1 << 24, Handshakes: 1 << 22, Collecting: 1 << 20, RingBytes: 1 << 30}, ""},
		{Sizes{Flows: 1023}, "size of flows is 1023: use 1024 to 67108864"},
		{Sizes{Flows: 1<<26 + 1}, "size of flows is 67108865"},
		{Sizes{Blocked: 15}, "size of blocked is 15"},
		{Sizes{Handshakes: 1<<22 + 1}, "size of handshakes is 4194305"},
		{Sizes{Collecting: 1<<20 + 1}, "size of collecting is 1048577"},
		{Sizes{RingBytes: 1<<30 + 1}, "size of ring bytes is 1073741825"},
	} {
		_, err := Attach(Options{Interface: "no-such-device", Sizes: tt.sizes})
		var refused *RefusedError
		if !errors.As(err, &refused) {
			t.Fatalf("%+v: %v", tt.sizes, err)
		}
		if tt.want == "" {
			tt.want = "no such interface"
		}
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.sizes, err, tt.want)
		}
	}
}

func TestSizesAreRoundedUpToPowersOfTwo(t *testing.T) {
	for from, want := range map[uint32]uint32{0: 0, 65536: 65536, 65537: 131072, 100000: 131072, 1<<22 - 1: 1 << 22} {
		s := Sizes{RingBytes: from, Handshakes: from}
		if err := s.check(); err != nil || s != (Sizes{RingBytes: want, Handshakes: want}) {
			t.Errorf("%d becomes %+v, want %d (%v)", from, s, want, err)
		}
	}
}

func TestSizesAreAdoptedOrReplaceWhatIsPinned(t *testing.T) {
	small := Sizes{Flows: 2000, Blocked: 20, Handshakes: 1024, Collecting: 30, RingBytes: 64 << 10}
	larger := small
	larger.Blocked = 21
	defaults := Sizes{Flows: 262144, Blocked: 65536, Handshakes: 65536, Collecting: 8192, RingBytes: 4 << 20}
	for _, tt := range []struct {
		name             string
		first, then, end Sizes
		adopted          bool
	}{
		{"the same", small, small, small, true},
		{"not asked for", small, Sizes{}, small, true},
		{"one asked for, the same", small, Sizes{Blocked: 20}, small, true},
		{"others", small, larger, larger, false},
		{"one asked for, another", small, Sizes{Collecting: 31}, Sizes{Flows: defaults.Flows, Blocked: defaults.Blocked,
			Handshakes: defaults.Handshakes, Collecting: 31, RingBytes: defaults.RingBytes}, false},
		{"defaults", Sizes{}, Sizes{}, defaults, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			d := attach(t, Options{Sizes: tt.first})
			if err := d.Release(); err != nil {
				t.Fatal(err)
			}
			d = attach(t, Options{Sizes: tt.then})
			if d.Info.Adopted != tt.adopted || (d.Info.Replaced == "") != tt.adopted {
				t.Errorf("adopted %v, replaced %q", d.Info.Adopted, d.Info.Replaced)
			}
			if !tt.adopted && !strings.Contains(d.Info.Replaced, "MaxEntries") {
				t.Errorf("replaced without saying that a size changed: %q", d.Info.Replaced)
			}
			v := d.coll.Variables[datapathVarCfgBucketMask]
			var mask uint32
			if err := v.Get(&mask); err != nil || mask != tt.end.Handshakes/handshakeWays-1 {
				t.Errorf("mask %d of %d handshakes, %v", mask, tt.end.Handshakes, err)
			}
			for _, o := range sizeOptions {
				for _, m := range o.maps {
					if got, want := d.coll.Maps[m.name].MaxEntries(), *o.field(&tt.end)/m.per; got != want {
						t.Errorf("map %s has %d entries, want %d", m.name, got, want)
					}
				}
			}
			if d.Info.Sizes != tt.end {
				t.Errorf("info says %+v, want %+v", d.Info.Sizes, tt.end)
			}
			if err := d.Detach(); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t)
		})
	}
}

// What is printed at attach is what the kernel itself accounts for. Of a ring buffer
// it counts the page pointers only, not the pages, so that one is left out.
func TestMemoryOfTheTablesIsWhatTheKernelAccounts(t *testing.T) {
	version, err := features.LinuxVersionCode()
	if err != nil {
		t.Fatal(err)
	}
	if version < 6<<16|4<<8 {
		t.Skip("before Linux 6.4 the kernel tells the bytes of keys and values, not what a map takes")
	}
	for _, sizes := range []Sizes{{}, {Flows: 1 << 20, Blocked: 100_000, Handshakes: 1 << 17, Collecting: 10_000}} {
		spec, err := loadDatapath()
		if err != nil {
			t.Fatal(err)
		}
		sizes.apply(spec)
		checked := 0
		for name, m := range spec.Maps {
			if m.Type == ebpf.RingBuf || m.MaxEntries < 1000 {
				continue
			}
			got, ok := memlock(t, m.Copy())
			if !ok {
				t.Skip("this kernel does not tell the memory of maps")
			}
			estimate := mapMemory(m)
			t.Logf("%s: %d entries, %.1f MiB, %.1f bytes each", name, m.MaxEntries, float64(got)/(1<<20), float64(got)/float64(m.MaxEntries))
			if r := float64(estimate) / float64(got); r < 0.9 || r > 1.1 {
				t.Errorf("%s: estimate %d, the kernel accounts for %d", name, estimate, got)
			}
			checked++
		}
		if checked < 6 {
			t.Errorf("%d maps were checked", checked)
		}
	}
}

func memlock(t *testing.T, spec *ebpf.MapSpec) (uint64, bool) {
	t.Helper()
	spec.Contents = nil
	m, err := ebpf.NewMap(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.Memlock()
}

// A million flows, each opened and handed over by the program itself, in a table that is
// made for a million. The LRU gives up a few before it is full.
func TestAMillionFlowsAreKnown(t *testing.T) {
	const million = 1_000_000
	k := loadKernel(t, config{flows: million, oneHook: true})
	frame, answer := udp(true, 1000), udp(false, 0)
	for i := range million { // nobody reads the ring: most of them pass
		from(frame, 0x0b000000+i)
		to(answer, 0x0b000000+i)
		k.run(ingress, frame)
		k.run(ingress, answer)
	}
	known := 0
	if err := walk(k.flows, func(key *datapathFlowKey, v *datapathFlow) { known++ }); err != nil {
		t.Fatal(err)
	}
	if c := k.counts(); c["udp_opened"] != million || c["handed_full"] != million {
		t.Errorf("counters %v", c)
	}
	info, err := k.flows.Info()
	if err != nil {
		t.Fatal(err)
	}
	if known < million*95/100 {
		t.Errorf("%d of %d flows are still known", known, million)
	}
	bytes, ok := info.Memlock()
	if !ok {
		t.Skip("this kernel does not tell the memory of maps")
	}
	each := float64(bytes) / float64(known)
	t.Logf("%d of %d flows known, %.1f MiB, %.1f bytes per flow", known, million, float64(bytes)/(1<<20), each)
	if each > 160 {
		t.Errorf("%.1f bytes per flow, want 160 at most", each)
	}
}
