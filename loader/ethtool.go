// SPDX-License-Identifier: Apache-2.0

package loader

import "github.com/safchain/ethtool"

// stripsVLANs reports whether the driver takes VLAN tags, 802.1Q or 802.1ad, out of
// received frames. An interface that can't say does not.
func stripsVLANs(name string) bool {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return false
	}
	defer tool.Close()
	features, err := tool.Features(name)
	return err == nil && (features["rx-vlan-hw-parse"] || features["rx-vlan-stag-hw-parse"])
}
