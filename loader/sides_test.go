// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// device is a link as netlink tells of it.
func device(kind string, index, parent, master int) netlink.Link {
	a := netlink.LinkAttrs{Index: index, ParentIndex: parent, MasterIndex: master, NetNsID: -1}
	return &netlink.GenericLink{LinkAttrs: a, LinkType: kind}
}

func TestDevicesThatStandOnTheInterface(t *testing.T) {
	elsewhere := device("vlan", 9, 1, 0)
	elsewhere.Attrs().NetNsID = 3
	for _, tt := range []struct {
		name  string
		links []netlink.Link
		want  []int
	}{
		{"alone", []netlink.Link{device("device", 1, 0, 0), device("device", 2, 0, 0)}, []int{1}},
		{"VLAN, QinQ and macvlan", []netlink.Link{device("device", 1, 0, 0), device("vlan", 2, 1, 0), device("vlan", 3, 2, 0), device("macvlan", 4, 1, 0), device("vlan", 5, 6, 0)}, []int{1, 2, 3, 4}},
		{"port of a bridge with a VLAN on it", []netlink.Link{device("vlan", 4, 3, 0), device("bridge", 3, 0, 0), device("device", 1, 0, 3), device("device", 2, 0, 3)}, []int{1, 3, 4}},
		{"member of a bond in a bridge", []netlink.Link{device("device", 1, 0, 2), device("bond", 2, 0, 3), device("bridge", 3, 0, 0)}, []int{1, 2, 3}},
		{"veth, whose parent is its peer", []netlink.Link{device("veth", 1, 2, 0), device("veth", 2, 1, 0)}, []int{1}},
		{"tunnel, whose packets are others", []netlink.Link{device("device", 1, 0, 0), device("gre", 2, 1, 0), device("vxlan", 3, 1, 0), device("sit", 4, 1, 0)}, []int{1}},
		{"VRF, which has both sides", []netlink.Link{device("device", 1, 0, 2), device("vrf", 2, 0, 0)}, []int{1}},
		{"same index in another namespace", []netlink.Link{device("device", 1, 0, 0), elsewhere}, []int{1}},
		{"circle", []netlink.Link{device("vlan", 1, 2, 0), device("vlan", 2, 1, 0)}, []int{1, 2}},
	} {
		got := stackedOn(1, tt.links)
		slices.Sort(got)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// sameSide returns the devices in the map.
func sameSide(t *testing.T, m *ebpf.Map) (got []int) {
	t.Helper()
	var index uint32
	it := m.Iterate()
	for it.Next(&index, new(uint8)) {
		got = append(got, int(index))
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	return got
}

// What is built on the interface, or takes it as a port, after the attach is of its side
// as long as it is there.
func TestSidesFollowTheDevices(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	defer func() {
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
	}()
	m := d.coll.Maps[datapathMapSameSide]
	v0, err := netlink.LinkByName("v0")
	if err != nil {
		t.Fatal(err)
	}
	wait := func(what string, want ...int) {
		t.Helper()
		slices.Sort(want)
		deadline := time.Now().Add(time.Minute)
		for !slices.Equal(sameSide(t, m), want) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v, want %v", what, sameSide(t, m), want)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	self := v0.Attrs().Index
	wait("alone", self)
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "b0"}}
	if err := netlink.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMaster(v0, bridge); err != nil {
		t.Fatal(err)
	}
	wait("port of a bridge", self, bridge.Index)
	if err := netlink.LinkDel(bridge); err != nil {
		t.Fatal(err)
	}
	wait("alone again", self)
}
