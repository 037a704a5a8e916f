// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"slices"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
)

// iface is the network interface that the data path is for.
type iface struct {
	name string
	link netlink.Link
}

func findInterface(name string) (*iface, error) {
	l, err := interfaceNamed(name)
	if err == nil && l == nil {
		err = refused(ErrNoInterface, "%v: %s", ErrNoInterface, name)
	}
	if err != nil {
		return nil, err
	}
	return &iface{name: name, link: l}, nil
}

// HasInterface reports whether this network namespace has an interface of that name. A name
// that no interface can have is refused.
func HasInterface(name string) (bool, error) {
	l, err := interfaceNamed(name)
	return l != nil, err
}

func (i *iface) index() int { return i.link.Attrs().Index }

// rawIP reports whether frames begin with the IP header (tun, wg, ipip).
func (i *iface) rawIP() bool {
	switch i.link.Attrs().EncapType {
	case "ether", "loopback":
		return false
	}
	return true
}

func hasXDP(l netlink.Link) bool {
	xdp := l.Attrs().Xdp
	return xdp != nil && xdp.Attached
}

// ports returns the names of the interfaces that a bridge joins.
func (i *iface) ports() []string {
	links, err := netlink.LinkList()
	if err != nil {
		return nil
	}
	var names []string
	for _, l := range links {
		if l.Attrs().MasterIndex == i.index() {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// hidesVLANs reports whether this interface has VLAN interfaces while its driver
// strips tags on receive: the ingress program then sees their frames untagged.
func (i *iface) hidesVLANs() bool {
	links, err := netlink.LinkList()
	if err != nil {
		return false
	}
	for _, l := range links {
		if l.Type() == "vlan" && l.Attrs().ParentIndex == i.index() {
			return stripsVLANs(i.name)
		}
	}
	return false
}

// stripsVLANs reports whether the driver takes VLAN tags, 802.1Q or 802.1ad, out of
// received frames. An interface that can't say does not.
func stripsVLANs(name string) bool {
	return anyFeature(name, "rx-vlan-hw-parse", "rx-vlan-stag-hw-parse")
}

// anyFeature reports whether one of the features of a device is on. A device that can't
// say has them off.
func anyFeature(name string, features ...string) bool {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return false
	}
	defer tool.Close()
	all, err := tool.Features(name)
	return err == nil && slices.ContainsFunc(features, func(f string) bool { return all[f] })
}
