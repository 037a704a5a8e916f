// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// midStream reports whether a capture begins in the middle of a TCP connection. The
// first packet of such a one, at its time 0, has payload and opens nothing. Where the
// SYN alone is missing, as it was too large to be kept, the first packet is later.
func midStream(s *flow.Sample) bool {
	if s.Key.Proto != flow.TCP || len(s.Packets) == 0 || s.Packets[0].Time != 0 {
		return false
	}
	p, verdict := assembly.Parse(s.Frame(0), int(s.Packets[0].WireLen))
	return verdict == assembly.OK && p.PayloadLen > 0 && !p.Flags.Opens()
}
