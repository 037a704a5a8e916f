// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// ANSWER_INGRESS and ANSWER_EGRESS of bpf/config.h.
const (
	answerIngress = 1
	answerEgress  = 2
)

// answers says where the sender of a packet can be answered with a RST, as cfg_answers has it,
// and in a line why not everywhere. mode is what was asked for of XDP.
func (i *iface) answers(hook Ingress, mode XDPMode) (where uint8, why string) {
	if i.rawIP() {
		return 0, fmt.Sprintf("%s has no Ethernet header, in which a RST could be sent back", i.name)
	}
	native := hook == IngressXDP && mode != XDPGeneric
	if native && mode == XDPAuto && hasXDP(i.link) {
		native = i.attachedMode() == XDPNative // which an adoption keeps
	}
	if native && i.link.Type() == "veth" && !i.peerReceives() {
		return answerEgress, fmt.Sprintf("%s is a veth in native XDP mode, which sends nothing back (XDP_TX) unless its peer has an XDP program as well (TCX, or XDP in generic mode, would): who sends through it into this machine is sent none", i.name)
	}
	return answerIngress | answerEgress, ""
}

// peerReceives reports whether the peer of a veth takes what XDP sends back: up to Linux 6.18,
// it is woken only where it has an XDP program itself. One in another network namespace can't
// be asked.
func (i *iface) peerReceives() bool {
	if i.link.Attrs().NetNsID >= 0 {
		return false
	}
	peer, err := netlink.LinkByIndex(i.link.Attrs().ParentIndex)
	return err == nil && peer.Type() == "veth" && peer.Attrs().ParentIndex == i.index() && hasXDP(peer)
}
