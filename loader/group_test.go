// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// inGroup attaches to interfaces that share flows, and to those that don't.
func inGroup(t *testing.T, grouped, single []string) []*DataPath {
	t.Helper()
	g := NewGroup(grouped...)
	var opts []Options
	for _, name := range grouped {
		opts = append(opts, Options{Interface: name, Group: g})
	}
	for _, name := range single {
		opts = append(opts, Options{Interface: name})
	}
	all, err := AttachAll(opts)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// sameTables says which maps two data paths have in common.
func sameTables(t *testing.T, a, b *DataPath) (names []string) {
	t.Helper()
	for name, m := range a.coll.Maps {
		x, errX := mapID(m)
		y, errY := mapID(b.coll.Maps[name])
		if errX != nil || errY != nil {
			t.Fatal(errX, errY)
		}
		if x == y {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func sharedNames() (names []string) {
	for _, name := range ownPins {
		if name == datapathVarBlockFilter {
			name = mapBlockFilter
		}
		if !slices.Contains(formerPins, name) && !slices.Contains([]string{pinXDP, pinTCXIngress, pinClsact, pinTCX}, name) && isShared(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// keysOf returns the indexes in the map same_side.
func keysOf(t *testing.T, m *ebpf.Map) (all []uint32) {
	t.Helper()
	var index uint32
	var one uint8
	it := m.Iterate()
	for it.Next(&index, &one) {
		all = append(all, index)
	}
	if it.Err() != nil {
		t.Fatal(it.Err())
	}
	slices.Sort(all)
	return all
}

func releaseAll(t *testing.T, all []*DataPath) {
	t.Helper()
	for _, d := range all {
		if err := d.Release(); err != nil {
			t.Fatal(err)
		}
	}
}

func blockedAt(t *testing.T, d *DataPath) int {
	t.Helper()
	blocks, err := d.Blocked()
	if err != nil {
		t.Fatal(err)
	}
	return len(blocks)
}

// The interfaces of a group have flows and blocks in common, also after they were adopted, and
// no other interface has them.
func TestInterfacesOfAGroupShareTheirFlows(t *testing.T) {
	inNamespace(t)
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "d0"}, PeerName: "d1"}); err != nil {
		t.Fatal(err)
	}
	all := inGroup(t, []string{"v0", "v1"}, []string{"d0"})
	want := sharedNames()
	if got := sameTables(t, all[0], all[1]); !slices.Equal(got, want) || len(want) < 10 {
		t.Fatalf("shared are %q, want %q", got, want)
	}
	if got := sameTables(t, all[0], all[2]); got != nil {
		t.Errorf("another interface shares %q", got)
	}
	if all[0].Info.SharesWith != "" || all[1].Info.SharesWith != "v0" || all[1].Info.Memory > all[0].Info.Memory/4 || all[2].Info.SharesWith != "" {
		t.Errorf("told: %+v, %+v", all[0].Info, all[1].Info)
	}
	indexes := []uint32{uint32(all[0].index.Load()), uint32(all[1].index.Load())}
	slices.Sort(indexes)
	if got := keysOf(t, all[0].coll.Maps[datapathMapSameSide]); !slices.Equal(got, indexes) {
		t.Errorf("one side are %d, want %d", got, indexes)
	}
	if err := all[1].Apply(tcpKey(), drop(time.Hour, "shadowsocks", "r")); err != nil {
		t.Fatal(err)
	}
	if a, b, other := blockedAt(t, all[0]), blockedAt(t, all[1]), blockedAt(t, all[2]); a != 1 || b != 1 || other != 0 {
		t.Errorf("%d, %d and %d blocks", a, b, other)
	}
	releaseAll(t, all)

	// The next process adopts them, as one.
	all = inGroup(t, []string{"v1", "v0"}, []string{"d0"})
	for i, d := range all {
		if !d.Info.Adopted || d.Info.BlocksAdopted != []int{1, 1, 0}[i] {
			t.Errorf("%s: %+v", d.Interface(), d.Info)
		}
	}
	if got := sameTables(t, all[0], all[1]); !slices.Equal(got, want) {
		t.Errorf("shared are %q after the adoption", got)
	}

	// One goes, the other stays, with the blocks; it returns into the group.
	g := all[0].group
	if err := all[0].Detach(); err != nil {
		t.Fatal(err)
	}
	if got := keysOf(t, all[1].coll.Maps[datapathMapSameSide]); !slices.Equal(got, []uint32{uint32(all[1].index.Load())}) {
		t.Errorf("one side are %d without v1", got)
	}
	again, err := Attach(Options{Interface: "v1", Group: g})
	if err != nil {
		t.Fatal(err)
	}
	all[0] = again
	if got := sameTables(t, all[0], all[1]); !slices.Equal(got, want) || again.Info.SharesWith != "v0" || again.Info.Adopted || blockedAt(t, again) != 1 {
		t.Errorf("shared are %q after the return, %+v", got, again.Info)
	}
	for _, d := range all {
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
	}
	nothingLeft(t)
}

// Where a group is made or given up, the tables are replaced, and blocks are carried over.
func TestGroupsAreMadeAndGivenUp(t *testing.T) {
	inNamespace(t)
	all := inGroup(t, nil, []string{"v0", "v1"})
	if err := all[1].Apply(tcpKey(), drop(time.Hour, "shadowsocks", "r")); err != nil {
		t.Fatal(err)
	}
	releaseAll(t, all)

	all = inGroup(t, []string{"v0", "v1"}, nil)
	if !all[0].Info.Adopted || !strings.Contains(all[1].Info.Replaced, "shared with v0 from now on") || all[1].Info.BlocksAdopted != 1 {
		t.Errorf("a group is made: %+v, %+v", all[0].Info, all[1].Info)
	}
	if a, b := blockedAt(t, all[0]), blockedAt(t, all[1]); a != 1 || b != 1 {
		t.Errorf("%d and %d blocks in the group", a, b)
	}
	releaseAll(t, all)

	// One of them is not there at first.
	one := inGroup(t, []string{"v0"}, nil)
	if one[0].Info.Adopted || !strings.Contains(one[0].Info.Replaced, "were shared with v1") || blockedAt(t, one[0]) != 1 {
		t.Errorf("v0 alone: %+v", one[0].Info)
	}
	releaseAll(t, one)

	all = inGroup(t, nil, []string{"v0", "v1"})
	if !all[0].Info.Adopted || !all[1].Info.Adopted || sameTables(t, all[0], all[1]) != nil || blockedAt(t, all[0]) != 1 || blockedAt(t, all[1]) != 1 {
		t.Errorf("two of their own: %+v, %+v", all[0].Info, all[1].Info)
	}
	for _, d := range all {
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
	}
	nothingLeft(t)
}
