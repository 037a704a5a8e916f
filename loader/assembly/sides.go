// SPDX-License-Identifier: Apache-2.0

package assembly

// sides says which sides of a file's packets can be believed. They are those of one
// interface: where a file has packets of several, as a router's has, a connection
// comes in by one and goes out by another, and the sides say nothing about its ends.
type sides struct {
	any, off bool
	section  int // of the first packet that had a side: where it was captured
	number   uint32
	device   uint32
	nameless bool // the link type does not tell one interface from another
}

// of returns the side of a packet, as far as it can be believed.
func (s *sides) of(r *record) Side {
	if r.side == SideUnknown || s.off {
		return SideUnknown
	}
	if !s.any {
		*s = sides{any: true, section: r.from.section, number: r.from.number, device: r.device, nameless: r.link == LinkSLL}
	}
	if s.section != r.from.section || s.number != r.from.number || s.device != r.device {
		s.off = true
		return SideUnknown
	}
	return r.side
}

// reflected says that a packet left that had come in.
func (s *sides) reflected() {
	if s.nameless {
		s.off = true
	}
}
