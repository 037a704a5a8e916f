// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// pinnedFor returns the names of the interfaces that something is pinned for.
func pinnedFor(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir(pinRoot)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// Several interfaces are attached to by one process, each with tables of its own.
func TestAttachAllHasTablesForEachInterface(t *testing.T) {
	inNamespace(t)
	all, err := AttachAll([]Options{{Interface: "v1"}, {Interface: "v0", XDPMode: XDPGeneric}})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 || all[0].Interface() != "v1" || all[1].Interface() != "v0" || all[1].Info.XDPMode != XDPGeneric {
		t.Fatalf("attached to %s and %s", all[0].Interface(), all[1].Interface())
	}
	key, _ := flow.NewKey(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), flow.TCP, 0, 0)
	if err := all[0].Apply(key, flow.Treatment{Action: flow.Drop, TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{1, 0} {
		if blocks, err := all[i].Blocked(); err != nil || len(blocks) != want {
			t.Errorf("%s: %d blocks, %v; want %d", all[i].Interface(), len(blocks), err, want)
		}
	}
	if err := all[0].Detach(); err != nil {
		t.Error(err)
	}
	if _, err := all[1].Check(); err != nil {
		t.Errorf("the other one: %v", err)
	}
	if got := pinnedFor(t); got != "v0" {
		t.Errorf("pins of %q", got)
	}
	if err := all[1].Detach(); err != nil {
		t.Error(err)
	}
}

// Where one of several interfaces can't be attached to, the others are as before: what was
// not attached is not, and what a dead process left goes on, with its blocks and mode.
func TestAttachAllAttachesToAllOrNone(t *testing.T) {
	inNamespace(t)
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "d0"}, PeerName: "d1"}); err != nil {
		t.Fatal(err)
	}
	left := attach(t, Options{XDPMode: XDPGeneric}) // to v0
	key, _ := flow.NewKey(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), flow.TCP, 0, 0)
	if err := left.Apply(key, flow.Treatment{Action: flow.Drop, TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if err := left.Release(); err != nil {
		t.Fatal(err)
	}
	held, err := Attach(Options{Interface: "d0", XDPMode: XDPGeneric})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		last Options
		want string
	}{
		{"it is not there", Options{Interface: "nosuch0"}, "no such interface: nosuch0"},
		{"it is held", Options{Interface: "d0"}, "already attached to d0"},
		{"it is named twice", Options{Interface: "v1"}, "the same interface"},
		{"its sizes can't be", Options{Interface: "lo", Sizes: Sizes{Blocked: 1}}, "blocked"},
		{"its driver lacks the mode", Options{Interface: "lo", XDPMode: XDPNative}, "native"},
		{"it can't be loaded", Options{Interface: "lo", failLoad: true}, "load"},
	} {
		_, err := AttachAll([]Options{{Interface: "v0", Monitor: true, XDPMode: XDPGeneric}, {Interface: "v1"}, tt.last})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Fatalf("%s: %v; want %q", tt.name, err, tt.want)
		}
		if got := pinnedFor(t); got != "d0 v0" {
			t.Errorf("%s: pins of %q", tt.name, got)
		}
		tables, err := Open("v0")
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		blocks, err := tables.Blocked()
		if a, errA := tables.Attachment(); errA != nil || err != nil || len(blocks) != 1 || a.Mode != "enforce" || a.Alive || a.Gone {
			t.Errorf("%s: %d blocks, %v; %+v, %v", tt.name, len(blocks), err, a, errA)
		}
		if l, err := netlink.LinkByName("v1"); err != nil || hasXDP(l) {
			t.Errorf("%s: v1 has a program: %v", tt.name, err)
		}
		_ = tables.Close()
	}
	if err := held.Detach(); err != nil {
		t.Error(err)
	}
	if err := Detach("v0", false); err != nil {
		t.Error(err)
	}
}
