// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// Traffic is what an interface has carried, by its own statistics. Whether packets that XDP
// drops are among those that it received is its driver's to say.
type Traffic struct {
	RxPackets uint64 `json:"rx_packets"` // received
	RxBytes   uint64 `json:"rx_bytes"`
	TxPackets uint64 `json:"tx_packets"` // sent
	TxBytes   uint64 `json:"tx_bytes"`
}

// Traffic returns what the interface has carried since it was created. It fails where the
// interface is in another network namespace by now.
func (d *DataPath) Traffic() (Traffic, error) {
	l, err := netlink.LinkByIndex(int(d.index.Load()))
	if err != nil {
		return Traffic{}, fmt.Errorf("read the statistics of %s: %w", d.Interface(), err)
	}
	s := l.Attrs().Statistics
	if s == nil {
		return Traffic{}, fmt.Errorf("%s has no statistics", d.Interface())
	}
	return Traffic{RxPackets: s.RxPackets, RxBytes: s.RxBytes, TxPackets: s.TxPackets, TxBytes: s.TxBytes}, nil
}
