// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// heartbeatLast is HEARTBEAT_LAST of bpf/pending.h.
const heartbeatLast = uint32(0)

// Attend says that somebody gives verdicts in time, or that nobody does: connections wait for
// theirs ([Options.Pending]) until a second after the last call that said so. Call it several
// times a second.
func (d *DataPath) Attend(there bool) error {
	var beat datapathHeartbeat
	if there {
		beat.Ns = monotonic()
	}
	if err := d.coll.Maps[datapathMapHeartbeat].Update(heartbeatLast, &beat, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write map heartbeat: %w", err)
	}
	return nil
}
