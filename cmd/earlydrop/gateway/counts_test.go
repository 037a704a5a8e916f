// SPDX-License-Identifier: Apache-2.0

package gateway

import "testing"

func TestEveryCountHasANameAndHelp(t *testing.T) {
	var c counts
	c[countQueueFull].Add(3)
	names := map[string]uint64{}
	for _, one := range c.list() {
		if one.Name == "" || len(one.Name) > 31 || one.Help == "" {
			t.Errorf("counter %+v", one)
		}
		names[one.Name] = one.Value
	}
	if len(names) != int(numCounts) || names["queue_full"] != 3 || names["classified"] != 0 {
		t.Errorf("counters %v", names)
	}
}
