// SPDX-License-Identifier: Apache-2.0

//go:build emulated

// Topologies that not every kernel has: test/kernels runs them in Debian's.

package loader

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// vlan puts an 802.1Q device on another.
func (n *network) vlan(host, parent, name string, id int) {
	n.t.Helper()
	n.in(host, func() error {
		p, err := netlink.LinkByName(parent)
		if err != nil {
			return err
		}
		return netlink.LinkAdd(&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: p.Attrs().Index}, VlanId: id})
	})
	n.up(host, name)
}

// off switches features of a device off.
func (n *network) off(host, dev string, features ...string) {
	n.t.Helper()
	n.in(host, func() error {
		tool, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer tool.Close()
		change := map[string]bool{}
		for _, f := range features {
			change[f] = false
		}
		return tool.Change(dev, change)
	})
}

// Tagged frames: the VLAN device is stacked on the attached interface, so that what is
// routed back through it counts as what it is.
func TestTopologyVLAN(t *testing.T) {
	n := newNetwork(t, "client", "gateway", "server")
	n.cable("client", "c0", "gateway", "lan")
	n.cable("server", "s0", "gateway", "wan")
	n.vlan("client", "c0", "c0.7", 7)
	n.vlan("gateway", "lan", "lan.7", 7)
	n.address("client", "c0.7", "10.1.0.2/24")
	n.address("gateway", "lan.7", "10.1.0.1/24")
	n.address("gateway", "wan", "10.2.0.1/24")
	n.address("server", "s0", "10.2.0.2/24")
	n.route("client", "default", "10.1.0.1")
	n.route("server", "default", "10.2.0.1")
	// Tags are in the frames, as on a cable: the operator of a NIC that takes them out is
	// told to switch that off.
	n.off("client", "c0", "tx-vlan-hw-insert", "tx-vlan-stag-hw-insert")
	n.off("gateway", "lan", "rx-vlan-hw-parse", "rx-vlan-stag-hw-parse")
	d := n.attach("gateway", "lan", Options{Idle: 200 * time.Millisecond})
	from, to := n.talk("client", "server", topologyServer)
	s := d.next()
	if s.Initiator() != from || s.Responder() != to || s.Key.VLAN != 7 || !s.Complete() {
		t.Errorf("captured %s > %s in VLAN %d, %d bytes", s.Initiator(), s.Responder(), s.Key.VLAN, len(s.Data))
	}
	n.reflected(d, "client", "c0.7", "gateway", "lan.7", netip.MustParseAddrPort("10.1.0.2:5000"), netip.MustParseAddrPort("10.2.0.2:443"))
}

// A port of a bond sees a part of the flows, and its operator is told.
func TestTopologyBondPort(t *testing.T) {
	n := newNetwork(t, "client", "gateway")
	n.cable("client", "c0", "gateway", "p0")
	n.in("gateway", func() error {
		port, err := netlink.LinkByName("p0")
		if err != nil {
			return err
		}
		bond := netlink.NewLinkBond(netlink.LinkAttrs{Name: "bond0"})
		bond.Mode = netlink.BOND_MODE_ACTIVE_BACKUP
		if err := netlink.LinkAdd(bond); err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetDown(port), netlink.LinkSetMaster(port, bond), netlink.LinkSetUp(port), netlink.LinkSetUp(bond))
	})
	n.address("client", "c0", "10.2.0.3/24")
	n.address("gateway", "bond0", "10.2.0.1/24")
	d := n.attach("gateway", "p0", Options{Idle: 200 * time.Millisecond})
	if d.Info.Bypasses.Bond != "bond0" {
		t.Errorf("bypasses: %+v", d.Info.Bypasses)
	}
	d.identifies(n.talk("client", "gateway", netip.MustParseAddrPort("10.2.0.1:0")))
}

// What a flowtable in software forwards goes through both hooks all the same: it is seen,
// and a block holds.
func TestTopologySoftwareFlowtable(t *testing.T) {
	n := routed(t)
	n.in("gateway", func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "fw"})
		c.AddFlowtable(&nftables.Flowtable{Table: table, Name: "ft", Hooknum: nftables.FlowtableHookIngress, Priority: nftables.FlowtablePriorityFilter, Devices: []string{"lan", "wan"}})
		chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.FlowOffload{Name: "ft"},
		}})
		return c.Flush()
	})
	d := n.attach("gateway", "lan", Options{Idle: 200 * time.Millisecond})
	if len(d.Info.Bypasses.Flowtables) > 0 {
		t.Errorf("taken for one in hardware: %+v", d.Info.Bypasses)
	}
	var ln net.Listener
	n.in("server", func() (err error) {
		ln, err = net.Listen("tcp4", "10.2.0.2:0")
		return err
	})
	defer ln.Close()
	go func() { // an echo
		if c, err := ln.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	var c net.Conn
	n.in("client", func() (err error) {
		c, err = net.DialTimeout("tcp4", ln.Addr().String(), time.Minute)
		return err
	})
	defer c.Close()
	echo := func(limit time.Duration) error {
		_ = c.SetDeadline(time.Now().Add(limit))
		if _, err := c.Write(make([]byte, 700)); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 700))
		return err
	}
	for range 20 { // the flow is in the flowtable after the first answer
		if err := echo(5 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	s := d.next()
	if s.Initiator() != c.LocalAddr().(*net.TCPAddr).AddrPort() || !s.Complete() || s.Key.Proto != flow.TCP {
		t.Errorf("captured %s > %s, %d bytes", s.Initiator(), s.Responder(), len(s.Data))
	}
	if err := d.Apply(s.Key, drop(time.Minute, "x", "y")); err != nil {
		t.Fatal(err)
	}
	if err := echo(2 * time.Second); err == nil {
		t.Error("the block does not hold")
	}
	blocks, err := d.Blocked()
	if err != nil || len(blocks) != 1 || blocks[0].Packets == 0 {
		t.Errorf("blocks %+v, %v", blocks, err)
	}
}
