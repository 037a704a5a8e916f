// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// What a process keeps to attach again is what it goes by now.
func TestCapabilitiesThatAttachingTakes(t *testing.T) {
	mask := func(caps ...int) (m uint64) {
		for _, c := range caps {
			m |= 1 << c
		}
		return m
	}
	three := []int{unix.CAP_NET_ADMIN, unix.CAP_BPF, unix.CAP_PERFMON}
	for _, tt := range []struct {
		name string
		has  uint64
		want []int
	}{
		{"all", ^uint64(0), three},
		{"the three", mask(three...), three},
		{"CAP_SYS_ADMIN stands for two", mask(unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN), []int{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN}},
		{"and for one", mask(unix.CAP_NET_ADMIN, unix.CAP_BPF, unix.CAP_SYS_ADMIN), []int{unix.CAP_NET_ADMIN, unix.CAP_BPF, unix.CAP_SYS_ADMIN}},
		{"none", mask(unix.CAP_CHOWN), nil},
	} {
		if got := capabilitiesOf(tt.has); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Counters that come by name are told of in the order of those that are known; what is not
// known, of another version, comes last.
func TestCountersInOrder(t *testing.T) {
	known := Counters{{Name: "b", Help: "first"}, {Name: "a", Help: "second"}, {Name: "c", Help: "not there"}}
	got := known.Ordered(map[string]uint64{"a": 1, "b": 2, "z": 3, "y": 4})
	want := Counters{{"b", "first", 2}, {"a", "second", 1}, {"y", "", 4}, {"z", "", 3}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	kernel := KnownCounters()
	if len(kernel) != len(countsHelp) {
		t.Errorf("%d counters are known, %d have help", len(kernel), len(countsHelp))
	}
	for _, c := range kernel {
		if c.Help == "" || c.Value != 0 {
			t.Errorf("%+v", c)
		}
	}
}
