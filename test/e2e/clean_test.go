// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
)

// clean makes sure that the gateway's device is as it was before earlydrop: no
// program, no queueing discipline of ours, nothing pinned.
func (s *scene) clean() {
	s.t.Helper()
	nl := s.Gateway.Netlink()
	dev, err := nl.LinkByName(rig.Device)
	if err != nil {
		s.t.Fatal(err)
	}
	if xdp := dev.Attrs().Xdp; xdp != nil && xdp.Attached {
		s.t.Errorf("an XDP program is left: id %d", xdp.ProgId)
	}
	err = s.Gateway.Do(func() error {
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			res, err := link.QueryPrograms(link.QueryOptions{Target: dev.Attrs().Index, Attach: at})
			if err != nil {
				return err
			}
			if len(res.Programs) > s.ownTCX {
				s.t.Errorf("a TCX program is left: %v", res.Programs)
			}
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	qdiscs, err := nl.QdiscList(dev)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, q := range qdiscs {
		if q.Type() == "clsact" || q.Type() == "ingress" {
			s.t.Errorf("qdisc %s is left", q.Type())
		}
	}
	pins, err := s.Pins()
	if err != nil {
		s.t.Fatal(err)
	}
	if len(pins) > 0 {
		s.t.Errorf("pins are left: %v", pins)
	}
}
