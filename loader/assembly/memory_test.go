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

// tiny feeds a datagram of each of n flows, one every step.
func tiny(a *Assembler, n int, step time.Duration) {
	for i := range n {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 24), byte(i >> 16), byte(i >> 8)}), uint16(1024+i&0xff))
		a.Packet(epoch.Add(time.Duration(i)*step), eth(ip(src, server4, 17, udpDgram(src, server4, payload(20)))), 62)
	}
}

// heap returns the bytes that are in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestMemoryPerFlowIsSmall(t *testing.T) {
	const flows, perFlow, fixed = 400_000, 64, 8 << 20
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
				if len(s.Data) != 62 || s.Key != f.Key {
					t.Fatalf("flow %d: %s", f.Seq, describe(s))
				}
				samples++
			}, func(f Totals) {
				if f.Seq != uint64(ends) || f.Packets != 1 || f.Bytes != 62 {
					t.Fatalf("totals %+v of flow %d", f, ends)
				}
				ends++
			})
			before := heap()
			tiny(a, flows, tt.step)
			if used := heap() - before; used > flows*perFlow+fixed {
				t.Errorf("%d bytes in use, %d per flow, want at most %d and %d in all", used, used/flows, perFlow, fixed)
			}
			if want := flows - tt.open; samples != want {
				t.Errorf("%d samples before the end, want %d", samples, want)
			}
			if err := a.Flush(); err != nil || samples != flows || ends != flows {
				t.Errorf("%d samples, %d ends, %v", samples, ends, err)
			}
			if used := heap() - before; used > fixed {
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
		f.stage = collecting
		f.sample = a.takeSample()
		f.sample.Packets = append(f.sample.Packets, flow.Packet{WireLen: 7, FromInitiator: true}, flow.Packet{Offset: 7, WireLen: 9, Time: time.Hour})
		f.sample.Data = append(f.sample.Data, "the frames"...)
		f.Seq = a.ledger.add(a.ledger.hash(f.Key), f.Start)
		if err := a.pages.write(a.ledger, &f); err != nil {
			t.Fatal(err)
		}
		got := a.unpage(f.Seq, f.Key)
		if got == nil {
			t.Fatal(a.Err())
		}
		got.leave()
		diff := cmp.Diff(&f, got, cmp.AllowUnexported(Flow{}), cmpopts.IgnoreFields(Flow{}, "ring", "prev", "next"),
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
