// SPDX-License-Identifier: Apache-2.0

package loader

// Capacity returns how much each of the tables that Occupancy counts can hold.
func (t *Tables) Capacity() Occupancy {
	return Occupancy{
		Flows: int(t.flows.MaxEntries()), Collecting: int(t.collecting.MaxEntries()), Blocked: int(t.blocked.MaxEntries()), Pairs: int(t.pairs.MaxEntries()),
	}
}
