// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf"
)

// idsOf returns the ids of maps.
func idsOf(t *testing.T, tables map[string]*ebpf.Map) map[string]ebpf.MapID {
	t.Helper()
	ids := make(map[string]ebpf.MapID)
	for name, m := range tables {
		id, err := mapID(m)
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = id
	}
	return ids
}

func TestAttachTakesPreparedTablesThatFit(t *testing.T) {
	small := Sizes{Flows: 1024, Blocked: 16, Handshakes: 2048, Collecting: 16, RingBytes: 64 << 10}
	larger, rounded, wrong := small, small, small
	larger.Flows, rounded.Handshakes, wrong.Flows = 2048, 2000, 1
	for _, tt := range []struct {
		name          string
		prepare, then Sizes
		attached      bool   // before
		prepared      bool   // tables are
		other         string // the table that does not fit
	}{
		{"all", small, small, false, true, ""},
		{"rounded up", rounded, small, false, true, ""},
		{"another size", small, larger, false, true, datapathMapFlows},
		{"no such size", wrong, small, false, false, ""},
		{"adopted", small, small, true, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			if tt.attached {
				if err := attach(t, Options{Sizes: tt.then}).Release(); err != nil {
					t.Fatal(err)
				}
			}
			Prepare(Options{Interface: "v0", Sizes: tt.prepare})
			prepared := idsOf(t, (*madeAhead.Load())())
			if (len(prepared) > 0) != tt.prepared {
				t.Errorf("%d tables were prepared", len(prepared))
			}
			d := attach(t, Options{Sizes: tt.then})
			if d.Info.Sizes != tt.then || d.Info.Adopted != tt.attached {
				t.Errorf("sizes %+v, want %+v; adopted %v", d.Info.Sizes, tt.then, d.Info.Adopted)
			}
			taken := idsOf(t, d.coll.Maps)
			for name := range d.coll.Maps {
				id, is := prepared[name]
				if is != (tt.prepared && outlives(name)) || is && (taken[name] == id) == (name == tt.other) {
					t.Errorf("map %s is %d; %d was prepared: %v", name, taken[name], id, is)
				}
			}
			if tt.other != "" {
				if m, err := ebpf.NewMapFromID(prepared[tt.other]); err == nil {
					m.Close()
					t.Errorf("map %s, which was not taken, is still there", tt.other)
				} else if !errors.Is(err, os.ErrNotExist) {
					t.Error(err)
				}
			}
			if takeTables() != nil {
				t.Error("what was prepared can be taken twice")
			}
			if err := d.Detach(); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t)
		})
	}
}
