// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// tiny feeds two datagrams of each of n flows, one flow every step.
func tiny(a *Assembler, n int, step time.Duration) {
	for i := range n {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 24), byte(i >> 16), byte(i >> 8)}), uint16(1024+i&0xff))
		at := epoch.Add(time.Duration(i) * step)
		a.Packet(at, eth(ip(src, server4, 17, udpDgram(src, server4, payload(20)))), 62)
		a.Packet(at, eth(ip(server4, src, 17, udpDgram(server4, src, payload(20)))), 62)
	}
}

// inUse returns the bytes that are in use.
func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestMemoryPerFlowIsSmall(t *testing.T) {
	const flows, perFlow, fixed = 400_000, 72, 8 << 20
	for _, tt := range []struct {
		name string
		step time.Duration
		open int // flows that still collect at the end
	}{
		{"decided", time.Millisecond, 2000},
		{"all open at once", time.Nanosecond, flows},
	} {
		t.Run(tt.name, func(t *testing.T) {
			samples, ends := 0, 0
			a := New(Options{TempDir: t.TempDir(), MaxOpen: 1000}, func(f *Flow, s *flow.Sample) {
				checkSample(t, s)
				if len(s.Data) != 2*62 || s.Key != f.Key {
					t.Fatalf("flow %d: %s", f.Seq, describe(s))
				}
				samples++
			}, func(f Totals) {
				if f.Seq != uint64(ends) || f.Packets != 2 || f.Bytes != 2*62 {
					t.Fatalf("totals %+v of flow %d", f, ends)
				}
				ends++
			})
			before := inUse()
			tiny(a, flows, tt.step)
			if used := inUse() - before; used > flows*perFlow+fixed {
				t.Errorf("%d bytes in use, %d per flow, want at most %d and %d in all", used, used/flows, perFlow, fixed)
			}
			if want := flows - tt.open; samples != want {
				t.Errorf("%d samples before the end, want %d", samples, want)
			}
			if err := a.Flush(); err != nil || samples != flows || ends != flows {
				t.Errorf("%d samples, %d ends, %v", samples, ends, err)
			}
			if used := inUse() - before; used > fixed {
				t.Errorf("%d bytes in use after the end", used)
			}
			runtime.KeepAlive(a)
		})
	}
}

// What a page lacks would change flows that have to leave memory: whoever gives Flow
// a field has to look at Flow.encode.
func TestPageHoldsEveryFieldOfAFlow(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var fill func(v reflect.Value)
	fill = func(v reflect.Value) {
		v = reflect.NewAt(v.Type(), v.Addr().UnsafePointer()).Elem() // private fields, too
		switch v.Kind() {
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
			v.SetInt(1 + rnd.Int64N(100))
		case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
			v.SetUint(1 + rnd.Uint64N(100))
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 3, 3))
			for i := range v.Len() {
				fill(v.Index(i))
			}
		case reflect.Array:
			for i := range v.Len() {
				fill(v.Index(i))
			}
		case reflect.Struct:
			switch v.Type() {
			case reflect.TypeFor[time.Time]():
				v.Set(reflect.ValueOf(epoch.Add(time.Duration(rnd.Int64N(1e15)))))
			case reflect.TypeFor[netip.AddrPort]():
				v.Set(reflect.ValueOf([]netip.AddrPort{client4, server4, client6, server6}[rnd.IntN(4)]))
			default:
				for i := range v.NumField() {
					fill(v.Field(i))
				}
			}
		case reflect.Pointer: // where the flow is in memory
		default:
			t.Fatalf("no way to fill a %v", v.Type())
		}
	}
	for range 20 {
		a := New(Options{TempDir: t.TempDir()}, nil, nil)
		var f Flow
		fill(reflect.ValueOf(&f).Elem())
		f.stage, f.stream = collecting, new(stream)
		fill(reflect.ValueOf(f.stream).Elem())
		f.sample = a.takeSample()
		f.sample.Packets = append(f.sample.Packets, flow.Packet{WireLen: 7, FromInitiator: true}, flow.Packet{Offset: 7, WireLen: 9, Time: time.Hour})
		f.sample.Data = append(f.sample.Data, "the frames"...)
		f.Seq = a.ledger.reserve(f.Start)
		a.ledger.start(f.Seq, a.ledger.hash(f.Key))
		if err := a.pages.write(a.ledger, &f, rnd.IntN(2) == 0); err != nil {
			t.Fatal(err)
		}
		got := a.unpage(f.Seq, f.Key)
		if got == nil {
			t.Fatal(a.Err())
		}
		diff := cmp.Diff(&f, got, cmp.AllowUnexported(Flow{}, stream{}, lack{}, hole{}), cmpopts.IgnoreFields(Flow{}, "ring", "prev", "next"),
			cmp.Comparer(func(x, y flow.Key) bool { return x == y }), cmpopts.IgnoreUnexported(flow.Sample{}))
		if diff != "" {
			t.Fatalf("written and read (-want +got):\n%s", diff)
		}
		page := a.pages.page[pageHeadSize:]
		for n := range page {
			if (&Flow{sample: a.takeSample()}).decode(page[:n]) {
				t.Fatalf("%d of %d bytes of a page are taken for a flow", n, len(page))
			}
		}
	}
}

func TestTemporaryFileThatCannotBeWrittenIsAnError(t *testing.T) {
	a := New(Options{TempDir: filepath.Join(t.TempDir(), "none"), MaxOpen: 10}, func(*Flow, *flow.Sample) {}, nil)
	tiny(a, 100, 0)
	if a.Err() != nil {
		t.Errorf("error %v while all fits into the buffer", a.Err())
	}
	tiny(a, 10_000, 0)
	if err := a.Err(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want %v", err, fs.ErrNotExist)
	}
	if err := a.Flush(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("flush returns %v, want %v", err, fs.ErrNotExist)
	}
	// Another file, another chance.
	tiny(a, 5, 0)
	if err := a.Flush(); err != nil {
		t.Errorf("error %v of a later file", err)
	}
}

// What the ledger lacks would change flows that go on after their verdict.
func TestLedgerHoldsWhatMattersOfADecidedFlow(t *testing.T) {
	key, _ := flow.NewKey(client4, server4, flow.TCP, 7, 8)
	for bits := range 16 {
		a := New(Options{}, nil, nil)
		a.now = epoch
		a.order() // of another flow
		f := a.start(key, bits&1 != 0, epoch, a.order())
		f.stage, f.silent, f.marked, f.hasNumbers = decided, bits&2 != 0, bits&4 != 0, bits&8 != 0
		f.Last, f.Packets, f.Bytes, f.numbers = epoch.Add(time.Hour), 5, 1<<40, [2]uint32{1 << 31, 7}
		a.settle(f)
		if len(a.flows) != 0 {
			t.Fatalf("%d flows are in memory", len(a.flows))
		}
		got := a.find(key)
		if got == nil {
			t.Fatalf("flow %04b is gone", bits)
		}
		want := *f
		want.Start = time.Time{}
		if diff := cmp.Diff(&want, got, cmp.AllowUnexported(Flow{}, lack{}), cmp.Comparer(func(x, y flow.Key) bool { return x == y })); diff != "" {
			t.Errorf("flow %04b (-want +got):\n%s", bits, diff)
		}
		a.restart(got)
		if f := a.find(key); f != nil {
			t.Errorf("flow %04b is over, but found: %+v", bits, f)
		}
		ends := 0
		a.ledger.totals(func(total Totals) {
			ends++
			if total != (Totals{Seq: 1, Packets: 5, Bytes: 1 << 40}) {
				t.Errorf("flow %04b: totals %+v", bits, total)
			}
		})
		if handedOver := 1 - bits>>1&1; ends != handedOver {
			t.Errorf("flow %04b: %d totals, want %d", bits, ends, handedOver)
		}
	}
}
