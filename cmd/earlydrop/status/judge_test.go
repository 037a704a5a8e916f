// SPDX-License-Identifier: Apache-2.0

package status

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
)

func TestStatusIsJudged(t *testing.T) {
	capacity := loader.Occupancy{Flows: 1000, Collecting: 100, Blocked: 50}
	for _, tt := range []struct {
		name    string
		is      Status
		want    State
		worries []WorryKind
	}{
		{"all is well", Status{Running: true}, Well, nil},
		{"flows make room", Status{Running: true, Flows: loader.Occupancy{Flows: 1000}}, Well, nil},
		{"no daemon", Status{}, Unattended, []WorryKind{WorryNoDaemon}},
		{"nothing attached", Status{Gone: true}, Gone, []WorryKind{WorryGone}},
		{"room for blocks", Status{Running: true, Flows: loader.Occupancy{Blocked: 44}}, Well, nil},
		{"hardly room for blocks", Status{Running: true, Flows: loader.Occupancy{Blocked: 45}}, Degraded, []WorryKind{WorryTableFull}},
		{"hardly room for captures", Status{Running: true, Flows: loader.Occupancy{Collecting: 90}}, Degraded, []WorryKind{WorryTableFull}},
		{"ring full long ago", Status{Running: true, Counters: map[string]uint64{"ring_full": 9}}, Well, nil},
		{"ring full lately", Status{Running: true, Recent: map[string]uint64{"ring_full": 9}}, Degraded, []WorryKind{WorryPassesNow}},
		{"pins removed", Status{Running: true, Recent: map[string]uint64{"pins_restored": 9}}, Degraded, []WorryKind{WorryPinsRemoved}},
		{"odd traffic", Status{Running: true, Recent: map[string]uint64{"malformed": 9}}, Well, nil},
		{"captures can't be read", Status{Running: true, Worries: []Worry{{Kind: WorryUnreadable}}}, Degraded, []WorryKind{WorryUnreadable}},
		{"all at once", Status{Flows: loader.Occupancy{Blocked: 50, Collecting: 100}, Recent: map[string]uint64{"ring_full": 1, "queue_full": 2}}, Unattended,
			[]WorryKind{WorryNoDaemon, WorryTableFull, WorryTableFull, WorryPassesNow, WorryPassesNow}},
	} {
		tt.is.Capacity = capacity
		tt.is.Judge()
		tt.is.Judge() // once more changes nothing
		var got []WorryKind
		for _, w := range tt.is.Worries {
			got = append(got, w.Kind)
		}
		if tt.is.State != tt.want || !slices.Equal(got, tt.worries) {
			t.Errorf("%s: %s %v, want %s %v", tt.name, tt.is.State, got, tt.want, tt.worries)
		}
	}
	// The help says what a counter is about.
	s := Status{Running: true, Recent: map[string]uint64{"ring_full": 3}, RecentSeconds: 60, Rows: loader.Counters{{Name: "ring_full", Help: "what it says"}}}
	if s.Judge(); s.Worries[0].Text != "ring_full grew by 3 in the last 60 s: what it says" {
		t.Errorf("%+v", s.Worries)
	}
}

func TestWorseStateCounts(t *testing.T) {
	if Worse(Degraded, Well) != Degraded || Worse(Degraded, Unattended) != Unattended || Worse(Gone, Unattended) != Gone || Worse(Well, Awaited) != Awaited {
		t.Error("the worse state is not the one that counts")
	}
}

// Of what the programs count, nothing that passes unseen is forgotten, and there is no
// name that nothing has.
func TestCountersOfWhatPassesAreKnown(t *testing.T) {
	var kernel []string
	for _, c := range loader.KnownCounters() {
		kernel = append(kernel, c.Name)
		if strings.HasPrefix(c.Help, "flows that pass because") && !slices.Contains(passing, c.Name) {
			t.Errorf("%s is not in passing: %s", c.Name, c.Help)
		}
	}
	at := slices.Index(passing, "queue_full") // where those of the daemon begin
	for _, name := range passing[:at] {
		if !slices.Contains(kernel, name) {
			t.Errorf("the programs count no %s", name)
		}
	}
}

// compiled returns a part of the schema.
func compiled(t *testing.T, part string) *jsonschema.Schema {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("status.json", document); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("status.json#/$defs/" + part)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// What the types become fits the schema, with all that they can have and with as little,
// and the schema describes every field that they write.
func TestJSONFitsItsSchema(t *testing.T) {
	full := &Status{
		Interface: "eth0", Pins: "/sys/fs/bpf/earlydrop/eth0", Running: true, PID: 7, Since: time.Now(), Ingress: "xdp", IngressWhy: "it was asked for", XDP: "native", Egress: "tcx", Mode: "enforce",
		Flows: loader.Occupancy{Flows: 1, Collecting: 2, Blocked: 3}, Capacity: loader.Occupancy{Flows: 9, Collecting: 9, Blocked: 3},
		Daemon: map[string]uint64{"classified": 1}, Counters: map[string]uint64{"syns": 1},
		Classes: map[string]uint64{"ssh": 1}, Rules: map[string]Rule{"tunnels": {2, 1}},
		Verdicts: []Verdicts{{"tunnels", "drop", "rule", 2}}, Traffic: &loader.Traffic{RxBytes: 1}, Rates: &Rates{Seconds: 5},
		Latency: &Latency{1, Times{1, 2, 3, 4}}, Recent: map[string]uint64{"ring_full": 1}, RecentSeconds: 60,
	}
	full.Judge()
	few := &Status{Ingress: "clsact", XDP: "none", Egress: "clsact", Mode: "monitor", Daemon: map[string]uint64{}, Counters: map[string]uint64{}}
	few.Judge()
	report := &Report{
		PID: 7, Interfaces: []*Status{full, few}, Waiting: []Waiting{{Interface: "eth9", State: Awaited}}, Inference: &Inference{1, Times{1, 2, 3, 4}},
		Evidence: Evidence{PausedUntil: time.Now(), PausedUnprovenUntil: time.Now()}, Reloads: Reloads{1, 1, time.Now()},
	}
	some := []Leader{{}, {
		netip.MustParsePrefix("10.0.0.2/32"), netip.MustParseAddrPort("192.0.2.7:8388"), "tcp", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, "eth0", "shadowsocks", "tunnels", time.Now(),
	}}
	for part, values := range map[string][]any{
		"status": {full, few},
		"report": {report, &Report{PID: 1, Interfaces: []*Status{}}},
		"top": {
			&Top{Report: *report, Pairs: some, Servers: some, Initiators: some, Latest: []*event.Verdict{{Class: "shadowsocks"}}},
			&Top{Report: Report{Interfaces: []*Status{}}, Pairs: []Leader{}, Servers: []Leader{}, Initiators: []Leader{}, Latest: []*event.Verdict{}},
		},
		"waiting": {&Waiting{Interface: "eth9", State: Awaited}, &Waiting{Interface: "eth9", State: Awaited, Error: "another program is attached"}},
		"block":   {NewBlock("eth0", &loader.Block{})},
		"pair":    {NewPair("eth0", &loader.Pair{}), NewPair("eth0", &loader.Pair{Action: flow.Limit, Rate: 8000, Last: time.Now()})},
	} {
		schema := compiled(t, part)
		for _, value := range values {
			text, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			if part == "block" || part == "pair" { // no endpoint is no flow
				text = bytes.ReplaceAll(text, []byte(`"proto":"proto-0"`), []byte(`"proto":"tcp"`))
				text = bytes.ReplaceAll(text, []byte(`"action":"pass"`), []byte(`"action":"drop"`))
			}
			object, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if err := schema.Validate(object); err != nil {
				t.Errorf("%s: %v", text, err)
			}
			for name := range object.(map[string]any) {
				if schema.Properties[name] == nil {
					t.Errorf("%s.%s is not described", part, name)
				}
			}
		}
	}
	var again Status
	text, _ := json.Marshal(full)
	if err := json.Unmarshal(text, &again); err != nil || again.State != Degraded || *again.Latency != *full.Latency || again.Rules["tunnels"] != full.Rules["tunnels"] {
		t.Errorf("read back as %+v, %v", again, err)
	}
}
