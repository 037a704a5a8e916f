// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestLookTellsWhatAttachWouldFind(t *testing.T) {
	inNamespace(t)
	if _, err := Look("nosuch0", Sizes{}); !errors.Is(err, ErrNoInterface) {
		t.Errorf("an interface that is not there: %v", err)
	}
	if _, err := Look("v0", Sizes{Flows: 1}); err == nil {
		t.Error("sizes out of bounds are taken")
	}
	s, err := Look("v0", Sizes{})
	if err != nil {
		t.Fatal(err)
	}
	if s.Driver != "veth" || s.MTU != 1500 || s.Attached || s.Occupied != nil || s.Memory == 0 || s.Sizes.Flows == 0 || s.Loopback || s.Bridge || len(s.LargeReceive) != 0 {
		t.Errorf("%+v", s)
	}
	if s.NativeXDP != nil && !*s.NativeXDP {
		t.Error("veth is said to lack XDP")
	}
	if lo, err := Look("lo", Sizes{}); err != nil || !lo.Loopback || lo.NativeXDP != nil && *lo.NativeXDP {
		t.Errorf("lo: %+v, %v", lo, err)
	}

	d := attach(t, Options{XDPMode: XDPGeneric})
	if s, err = Look("v0", Sizes{}); err != nil || !s.Attached || s.Occupied != nil {
		t.Errorf("attached: %+v, %v", s, err)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	if s, err = Look("v0", Sizes{}); err != nil || s.Attached || s.Occupied != nil {
		t.Errorf("detached: %+v, %v", s, err)
	}

	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}); err != nil {
		t.Fatal(err)
	}
	if br, err := Look("br0", Sizes{}); err != nil || !br.Bridge || br.Up {
		t.Errorf("a bridge: %+v, %v", br, err)
	}
}

func TestRequirementsAreMet(t *testing.T) {
	inNamespace(t)
	for _, r := range Requirements() {
		if r.Err != nil {
			t.Errorf("%s: %v", r.Name, r.Err)
		}
	}
}
