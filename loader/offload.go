// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"slices"

	"github.com/safchain/ethtool"
)

// partialSums says what it means that a packet comes in through an interface with no more
// than the sum of the pseudo-header in the place of its checksum. A host leaves it there
// for the network card to complete, and for peers that are the same machine nobody does.
type partialSums uint8

// The numbers are those of enum partial_sums in bpf/config.h.
const (
	// partialUnsure: such packets may be right, and are counted.
	partialUnsure partialSums = 0
	// partialRight: the peer is this machine.
	partialRight partialSums = 1
	// partialWrong: it came off a cable, where no card would have left it so.
	partialWrong partialSums = 2
)

// Drivers of virtual machines' interfaces, as ethtool calls them. Whose peers are said to be
// this machine are those that the host tells which checksums are to be completed.
var (
	peerDrivers   = []string{"virtio_net", "vif", "xen_netfront"}
	unsureDrivers = []string{"vmxnet3", "hv_netvsc", "netvsc", "ena", "gve", "mana", "fjes", "netdevsim"}
)

// partialSums tells it by the kind of interface and the driver.
func (i *iface) partialSums() partialSums {
	if i.link.Attrs().EncapType == "loopback" {
		return partialRight
	}
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return partialSumsOf(i.link.Type(), "", "")
	}
	defer tool.Close()
	info, err := tool.DriverInfo(i.name)
	if err != nil {
		info = ethtool.DrvInfo{}
	}
	return partialSumsOf(i.link.Type(), info.Driver, info.BusInfo)
}

// partialSumsOf tells it by the link's kind ("device": none), its driver, and where on which
// bus it is. What is built on others is left open: segments may have been put together
// (GRO) on the way there, which leaves such sums as well, and ports of a bridge may be
// virtual machines.
func partialSumsOf(kind, driver, bus string) partialSums {
	switch kind {
	case "veth", "netkit", "tun", "tuntap":
		return partialRight
	case "device":
	default:
		return partialUnsure
	}
	switch {
	case slices.Contains(peerDrivers, driver):
		return partialRight
	case bus == "" || driver == "" || slices.Contains(unsureDrivers, driver):
		return partialUnsure
	}
	return partialWrong
}
