// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
)

// People see first what is worrying: of the interfaces, and of each.
func TestStatusSaysWhatIsWorryingFirst(t *testing.T) {
	well := &status.Status{Interface: "eth0", Running: true, PID: 7, Capacity: loader.Occupancy{Flows: 10, Collecting: 10, Blocked: 10},
		Classes: map[string]uint64{"ssh": 3}, Rules: map[string]status.Rule{"tunnels": {Detected: 2, Blocked: 1}},
		Latency: &status.Latency{Verdicts: 3, Times: status.Times{P50: 60, P90: 70, P99: 80, Max: 90}}, Rows: loader.Counters{{Name: "ring_full", Value: 5}}}
	full := &status.Status{Interface: "eth1", Running: true, Flows: loader.Occupancy{Blocked: 10}, Capacity: loader.Occupancy{Flows: 10, Collecting: 10, Blocked: 10}}
	left := &status.Status{Interface: "eth2"}
	for _, s := range []*status.Status{well, full, left} {
		s.Judge()
	}
	var out bytes.Buffer
	if err := printAll(&out, []*status.Status{well, full, left}, []status.Waiting{{Interface: "eth9", State: status.Awaited}}); err != nil {
		t.Fatal(err)
	}
	at := 0
	for _, want := range []string{
		"eth9 is waited for: it is not there\n\ninterface ", " eth2\nstate ", " unattended\nworry ", "no daemon is running",
		"\n\ninterface ", " eth1\nstate ", " degraded\nworry ", "the table blocked is 100 % full, 10 of 10",
		"\n\ninterface ", " eth0\nstate ", " well\npins ", "running, pid 7", "blocked 0 of 10 (0 %)",
		"half of 3 verdicts within 60 us, 90 % within 70 us, 99 % within 80 us, all within 90 us", "class ssh ", "3 flows", "rule tunnels ", "2 flows detected, 1 blocked", "ring_full ",
	} {
		i := strings.Index(out.String()[at:], want)
		if i < 0 {
			t.Fatalf("%q is not there, or too early:\n%s", want, &out)
		}
		at += i
	}

	out.Reset()
	if err := printJSON(&out, []*status.Status{well, full, left}, []status.Waiting{{Interface: "eth9", State: status.Awaited, Error: "occupied"}}); err != nil {
		t.Fatal(err)
	}
	var states []string
	for line := range bytes.Lines(out.Bytes()) {
		var one struct{ Interface, State string }
		if err := json.Unmarshal(line, &one); err != nil {
			t.Fatal(err)
		}
		states = append(states, one.Interface+" "+one.State)
	}
	if want := []string{"eth0 well", "eth1 degraded", "eth2 unattended", "eth9 waiting"}; !slices.Equal(states, want) {
		t.Errorf("got %q, want %q", states, want)
	}
}

// What status is not content with is an exit code, and no message.
func TestNotWellIsAnExitCode(t *testing.T) {
	var out bytes.Buffer
	if code := report(&out, errNotWell); code != exitNotWell || out.Len() != 0 {
		t.Errorf("code %d, %q", code, &out)
	}
}
