// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// An interface that was removed took its links along. A new one of the same name
// gets new links; the blocks are adopted.
func TestAdoptAfterTheInterfaceWasMadeAnew(t *testing.T) {
	for _, opts := range []Options{{}, {XDPMode: XDPGeneric}, {forceClsact: true}, {Ingress: IngressXDP, forceClsact: true}} {
		inNamespace(t)
		d := attach(t, opts)
		if err := d.Apply(tcpKey(), drop(time.Hour, "shadowsocks", "r")); err != nil {
			t.Fatal(err)
		}
		if err := d.Release(); err != nil {
			t.Fatal(err)
		}
		old, err := netlink.LinkByName("v0")
		if err == nil {
			err = netlink.LinkDel(old)
		}
		if err == nil {
			err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"})
		}
		if err != nil {
			t.Fatal(err)
		}
		d = attach(t, opts)
		if !d.Info.Adopted || d.Info.BlocksAdopted != 1 {
			t.Errorf("info %+v", d.Info)
		}
		if xdp, egress := attached(t); xdp == 0 || len(egress) != 1 {
			t.Errorf("attached: xdp %d, egress %v", xdp, egress)
		}
		if err := d.Detach(); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t)
	}
}
