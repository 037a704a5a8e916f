// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"slices"

	"github.com/safchain/ethtool"
)

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
