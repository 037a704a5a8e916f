// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
)

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

// What passes that should not is what status calls a gateway degraded for.
func TestWhatPassesUnseenIsWorrying(t *testing.T) {
	values := KnownCounters().Values()
	worrying := status.Passing(values)
	if len(worrying) == 0 {
		t.Error("nothing is worrying")
	}
	for _, c := range KnownCounters() {
		_, ok := worrying[c.Name]
		if passes := strings.Contains(c.Help, "that pass because") || strings.Contains(c.Help, "that pass since") || strings.Contains(c.Help, "could not be written"); passes && !ok {
			t.Errorf("%s does not worry status: %s", c.Name, c.Help)
		}
	}
}
