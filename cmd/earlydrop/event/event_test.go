// SPDX-License-Identifier: Apache-2.0

package event_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventtest"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// sample returns a sample of two packets, of which all that can be said is true.
func sample() *flow.Sample {
	s := &flow.Sample{}
	s.Reset()
	s.Key, s.InitiatorIsLo = flow.NewKey(netip.MustParseAddrPort("[2001:db8::2]:40000"), netip.MustParseAddrPort("[2001:db8::1]:443"), flow.TCP, 5, 6)
	s.Start, s.Elapsed = time.Date(2026, 11, 25, 23, 59, 59, 995_000_000, time.FixedZone("here", 3600)), 3*time.Millisecond
	s.Reason = flow.ReasonFull
	s.MidStream, s.OneWay, s.Resumed, s.Signals = true, true, true, flow.SignalDecoy|flow.SignalGap
	s.Data = append(s.Data, make([]byte, flow.CaptureBytes)...)
	s.Packets = append(s.Packets, flow.Packet{WireLen: 60, FromInitiator: true}, flow.Packet{Offset: 60, WireLen: 1500, Time: time.Millisecond})
	return s
}

func result() *flow.Result {
	return &flow.Result{Class: "shadowsocks", Confidence: 0.75, Labels: []string{"shadowsocks", "background", "<v2ray>"}, Scores: []float64{0.75, 0.2499995, 5e-7}}
}

func decision() *policy.Decision {
	return &policy.Decision{Action: flow.Drop, Rule: "tunnels", RuleClasses: "shadowsocks|v2ray", Class: "shadowsocks", Likeliest: "shadowsocks",
		Confidence: 0.7500005, Detected: true, Line: 12, TTL: 10 * time.Minute, Reason: policy.ReasonRule}
}

// live returns a verdict with all that a live one can have, and replayed one of a file.
func live() *event.Verdict {
	s := sample()
	s.Source = flow.Source{Interface: "eth0", Index: 2}
	v, enforced := event.NewVerdict(s, result(), decision()), true
	v.Mode, v.Enforced, v.Error, v.Model = "enforce", &enforced, "the table is full", "compact 1"
	v.VerdictMS, v.LatencyUS = 5.25, 60.5
	v.Scope, v.EvidenceFlows, v.EvidenceJudged, v.EarlierBlocked = "pair", 3, 4, 2
	v.Decision, v.Rate = "limit", 8000
	return v
}

func replayed() *event.Verdict {
	s := sample()
	s.Source.File = "a.pcap"
	s.Cut, s.Incomplete, s.Reason = true, true, flow.ReasonEnd
	v := event.NewVerdict(s, result(), decision())
	v.Model, v.FlowPackets, v.FlowBytes = "compact 1", 7, 9000
	return v
}

// every is an event of each kind with every field, and each with as few as it may have.
func every() map[string]event.Event {
	at := time.Date(2026, 11, 25, 1, 2, 3, 4, time.UTC)
	ends := event.Endpoints{Src: netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("10.0.0.2:2"), Proto: "udp", VLAN: 7, InnerVLAN: 8}
	pairEnds := event.PairEnds{Initiator: netip.MustParsePrefix("10.0.0.1/32"), Server: ends.Dst, Proto: "tcp", VLAN: 7, InnerVLAN: 8}
	pair6Ends := event.PairEnds{Initiator: netip.MustParsePrefix("fd00::/64"), Server: netip.MustParseAddrPort("[2001:db8::7]:443"), Proto: "tcp"}
	s := &flow.Sample{}
	s.Reset()
	s.Key, _ = flow.NewKey(ends.Src, ends.Dst, flow.UDP, 0, 0)
	s.Data, s.Packets, s.Reason = append(s.Data, 1), append(s.Packets, flow.Packet{WireLen: 60}), flow.ReasonIdle
	least := event.NewVerdict(s, &flow.Result{Class: flow.Unknown, Confidence: 0.5, Labels: []string{"background"}, Scores: []float64{0.5}},
		&policy.Decision{Reason: policy.ReasonNoRule, Likeliest: "background"})
	leastLive, leastReplayed, not := *least, *least, false
	leastLive.Interface, leastLive.Mode, leastLive.Enforced = "eth0", "monitor", &not
	leastReplayed.File, leastReplayed.FlowPackets, leastReplayed.FlowBytes = "a.pcap", 1, 60
	all := map[string]event.Event{
		"attached":            &event.Attached{Time: at, Interface: "eth0", Mode: "monitor", Ingress: "xdp", IngressWhy: "it was asked for", XDP: "native", Egress: "tcx", Adopted: true, Policy: "built-in", Model: "compact 1"},
		"waiting":             &event.Waiting{Time: at, Interface: "eth0"},
		"waiting, refused":    &event.Waiting{Time: at, Interface: "eth0", Error: "another XDP program is attached to eth0"},
		"verdict, live":       live(),
		"verdict, live, few":  &leastLive,
		"verdict, replay":     replayed(),
		"verdict, few":        &leastReplayed,
		"block ended":         &event.BlockEnded{Time: at, Interface: "eth0", Endpoints: ends, Class: "v2ray", Rule: "tunnels", Reason: "expired", DroppedPackets: 1, DroppedBytes: 2},
		"block ended by hand": &event.BlockEnded{Time: at, Interface: "eth0", Endpoints: event.Endpoints{Src: ends.Src, Dst: ends.Dst, Proto: "tcp"}, Reason: "expired"},
		"pair treated": &event.PairTreated{Time: at, Interface: "eth0", PairEnds: pairEnds, Class: "v2ray", Rule: "tunnels", Action: "limit", Rate: 8000,
			Until: at.Add(time.Hour), EvidenceFlows: 3, EvidenceJudged: 4},
		"pair treated, few": &event.PairTreated{Time: at, Interface: "eth0", PairEnds: pair6Ends, Class: "v2ray", Rule: "tunnels", Action: "drop", Until: at.Add(time.Hour)},
		"pair ended": &event.PairEnded{Time: at, Interface: "eth0", PairEnds: pairEnds, Class: "v2ray", Rule: "tunnels", Reason: "time", Connections: 2,
			DroppedPackets: 5, DroppedBytes: 300},
		"left out": &event.LeftOut{Time: at, Interface: "eth0", PassesLeftOut: 3},
		"reloaded": &event.Reloaded{Time: at, Policy: "p.yaml", Model: "compact 2", Was: "compact 1", BlocksLifted: 3, Error: "p.yaml:1:1: no", Changes: &policy.Changes{
			Mode: "enforce", RulesAdded: []string{"a"}, RulesRemoved: []string{"b"}, RulesChanged: []string{"c"}, Reordered: true, SetsChanged: []string{"own"},
			AllowAdded: []string{"port 1"}, AllowRemoved: []string{"port 2"}, Other: true}},
		"reloaded, few": &event.Reloaded{Time: at, Policy: "built-in", Model: "compact 1"},
		"device failed": &event.DeviceFailed{Time: at, Device: "cuda:0", Instead: "cpu", Model: "compact 1", Error: "the device is lost"},
		"disagreed": &event.Disagreed{Time: at, Interface: "eth0", Endpoints: ends, First: event.Opinion{Model: "compact 1", Class: "v2ray", Confidence: 0.9, Decision: "drop"},
			Second: event.Opinion{Model: "compact 2", Class: "background", Confidence: 0.8, Decision: "pass"}},
		"mode changed": &event.ModeChanged{Time: at, Interface: "eth0", Mode: "enforce"},
		"audit": &event.Audit{Time: at, UID: 1000, GID: 100, PID: 4242, Action: "blocked_del", Outcome: event.Failed, Interface: "eth0", Asked: "cidr 10.0.0.0/8",
			Blocks: 3, Pairs: 2, Error: "it was detached"},
		"audit, few":        &event.Audit{Time: at, Action: "reload", Outcome: event.Done},
		"limit reached":     &event.LimitReached{Time: at, Interface: "eth0", Limit: "share", Proven: true, Initiators: 12, Treated: 4, Until: at.Add(10 * time.Minute)},
		"lost":              &event.Lost{Time: at, EventsLost: 3},
		"ended":             &event.Ended{Time: at, Interface: "eth0", Mode: "enforce", Classes: map[string]uint64{"v2ray": 1}, Counters: map[string]uint64{"syns": 5}, Persisted: true, Error: "interface eth0 was removed"},
		"ended, of nothing": &event.Ended{Time: at, Interface: "eth0", Mode: "monitor"},
	}
	var ids event.IDs
	for name, e := range all {
		if !strings.HasSuffix(name, "few") {
			ids.Identify(e)
		}
	}
	return all
}

// What is written is read again as it was, and others' words are not taken for it.
func TestEventsSurviveTheirJSON(t *testing.T) {
	var text bytes.Buffer
	var want []event.Event
	kinds := slices.Clone(event.Kinds)
	for name, e := range every() {
		kinds = slices.DeleteFunc(kinds, func(kind string) bool { return kind == e.Kind() })
		if !slices.Contains(event.Kinds, e.Kind()) {
			t.Errorf("%s is in no list of kinds", e.Kind())
		}
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !strings.Contains(string(line), `"event":"`+e.Kind()+`"`) {
			t.Errorf("%s does not say what it is: %s", name, line)
		}
		text.Write(append(line, '\n'))
		want = append(want, e)
	}
	if len(kinds) > 0 {
		t.Errorf("no test has events %v", kinds)
	}
	got, err := event.DecodeAll(text.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("events (-written +read):\n%s", diff)
	}
	for line, want := range map[string]string{
		`{"event":"verdcit"}`:                            `unknown kind of event: "verdcit"`,
		`{"src":"10.0.0.1:1"}`:                           `unknown kind of event: ""`,
		`{"event":"verdict","scores":[1]}`:               "not an object",
		`{"event":"verdict","scores":{"v2ray":"often"}}`: "scores: v2ray",
		`{"event":"ended","persisted":1}`:                "event ended",
		`[]`:                                             "not an event",
	} {
		if e, err := event.Decode([]byte(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v, want %q", line, e, err, want)
		}
	}
	if _, err := event.Decode([]byte(`{"event":"x"}`)); !errors.Is(err, event.ErrUnknown) {
		t.Errorf("an unknown kind: %v", err)
	}
	if err := json.Unmarshal([]byte(`{"event":"ended"}`), new(event.Verdict)); err == nil {
		t.Error("the end was taken for a verdict")
	}
	if _, err := event.NewDecoder(strings.NewReader("")).Next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// A flow's packets, bytes and start are the same, whether it was live or in a file.
func TestLiveAndReplaySayTheSameOfAFlow(t *testing.T) {
	said := func(v *event.Verdict) map[string]any {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(text, &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	a, b := said(live()), said(replayed())
	for name, want := range map[string]any{"packets": 2.0, "bytes": 1560.0, "start": "2026-11-25T22:59:59.995Z", "vlan": 5.0, "inner_vlan": 6.0, "ttl_seconds": 600.0} {
		if a[name] != want || b[name] != want {
			t.Errorf("%s is %v live and %v in replay, want %v", name, a[name], b[name], want)
		}
	}
	if a["flow_packets"] != nil || b["flow_packets"] != 7.0 || b["flow_bytes"] != 9000.0 {
		t.Errorf("the whole flow: %v live, %v and %v in replay", a["flow_packets"], b["flow_packets"], b["flow_bytes"])
	}
}

// compiled returns the schema.
func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	s, err := eventtest.Schema()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSchemaFitsEveryEvent(t *testing.T) {
	s := compiled(t)
	for name, e := range every() {
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		object, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(object); err != nil {
			t.Errorf("%s: %s: %v", name, line, err)
		}
		// It notices a field that is missing or of another type.
		whole := object.(map[string]any)
		for field := range whole {
			if field == "error" || field == "rule" || field == "classes" || field == "counters" {
				continue // may be missing, and be any text or any numbers
			}
			other := maps.Clone(whole)
			other[field] = []any{map[string]any{}}
			if s.Validate(other) == nil {
				t.Errorf("%s: the schema takes %v for %s", name, other[field], field)
			}
		}
	}
}

func TestSchemaRefusesWhatIsNoEvent(t *testing.T) {
	s := compiled(t)
	change := func(e event.Event, with func(m map[string]any)) any {
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		object, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
		if err != nil {
			t.Fatal(err)
		}
		with(object.(map[string]any))
		return object
	}
	for name, object := range map[string]any{
		"no kind":                     change(live(), func(m map[string]any) { delete(m, "event") }),
		"another kind":                change(live(), func(m map[string]any) { m["event"] = "attached" }),
		"no packets":                  change(live(), func(m map[string]any) { delete(m, "packets") }),
		"packets as text":             change(live(), func(m map[string]any) { m["packets"] = "2" }),
		"a start that is a number":    change(live(), func(m map[string]any) { m["start"] = 1764111599.995 }),
		"a start without a zone":      change(live(), func(m map[string]any) { m["start"] = "2026-11-25 22:59:59.995" }),
		"neither live nor of a file":  change(live(), func(m map[string]any) { delete(m, "interface") }),
		"both live and of a file":     change(live(), func(m map[string]any) { m["file"] = "a.pcap" }),
		"a whole flow that is live":   change(live(), func(m map[string]any) { m["flow_packets"] = 7 }),
		"a latency in a file":         change(replayed(), func(m map[string]any) { m["latency_us"] = 7 }),
		"no whole flow in a file":     change(replayed(), func(m map[string]any) { delete(m, "flow_bytes") }),
		"more than all":               change(replayed(), func(m map[string]any) { m["captured"] = 1025 }),
		"a probability above 1":       change(replayed(), func(m map[string]any) { m["confidence"] = 1.5 }),
		"a decision that is none":     change(replayed(), func(m map[string]any) { m["decision"] = "maybe" }),
		"a counter that is negative":  change(every()["ended"], func(m map[string]any) { m["counters"] = map[string]any{"syns": -1} }),
		"nothing left out":            change(every()["left out"], func(m map[string]any) { m["passes_left_out"] = 0 }),
		"a block that dropped a half": change(every()["block ended"], func(m map[string]any) { m["dropped_packets"] = 0.5 }),
	} {
		if s.Validate(object) == nil {
			t.Errorf("%s: the schema takes %v", name, object)
		}
	}
}

// fields returns the names that a struct has in JSON, and of them those that it always has.
func fields(of reflect.Type) (all, always []string) {
	for _, f := range reflect.VisibleFields(of) {
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous {
			continue
		}
		all = append(all, tag)
		if !strings.Contains(f.Tag.Get("json"), "omit") {
			always = append(always, tag)
		}
	}
	slices.Sort(all)
	slices.Sort(always)
	return all, always
}

// The schema has each field of the types, and no other, and says which are always there.
func TestSchemaHasEveryField(t *testing.T) {
	s := compiled(t)
	byKind := map[string]*jsonschema.Schema{}
	for _, one := range s.OneOf {
		byKind[one.Ref.Title] = one.Ref
	}
	seen := map[string]bool{}
	for _, e := range every() {
		of := byKind[e.Kind()]
		if of == nil {
			t.Fatalf("the schema has no %s", e.Kind())
		}
		seen[e.Kind()] = true
		all, always := fields(reflect.TypeOf(e).Elem())
		required := slices.Sorted(slices.Values(of.Required))
		if got := slices.Sorted(maps.Keys(of.Properties)); !slices.Equal(got, all) || !slices.Equal(required, always) {
			t.Errorf("%s (-schema +type):\n%s%s", e.Kind(), cmp.Diff(got, all), cmp.Diff(required, always))
		}
		for name, p := range of.Properties {
			if p.Description == "" && name != "event" {
				t.Errorf("the schema does not say what %s of %s is", name, e.Kind())
			}
		}
	}
	if len(seen) != len(byKind) {
		t.Errorf("the schema has %d kinds, this package %d", len(byKind), len(seen))
	}
	var signals []string
	for _, v := range byKind[event.KindVerdict].Properties["signals"].Items2020.Enum.Values {
		signals = append(signals, v.(string))
	}
	if !slices.Equal(signals, flow.SignalNames()) {
		t.Errorf("the schema has the signals %v, flows have %v", signals, flow.SignalNames())
	}
}

func TestScores(t *testing.T) {
	s := event.Scores{Labels: []string{"b", "a", `"<\é`}, Values: []float64{0.25, 1e-7, 0.75}}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]float64
	if err := json.Unmarshal(text, &m); err != nil || m["b"] != 0.25 || m["a"] != 1e-7 || m[`"<\é`] != 0.75 || len(m) != 3 {
		t.Errorf("%s is %v, %v", text, m, err)
	}
	if s.Of("b") != 0.25 || s.Of("c") != 0 || !s.Has("a") || s.Has("c") {
		t.Errorf("probabilities of %v", s)
	}
	if _, err := json.Marshal(event.Scores{Labels: []string{"a"}}); err == nil {
		t.Error("a label without its probability")
	}
	for p, want := range map[float64]float64{0.1234564999: 0.123456, 0.1234565001: 0.123457, 0: 0, 1: 1} {
		if got := event.RoundScore(p); got != want {
			t.Errorf("%v is rounded to %v, want %v", p, got, want)
		}
	}
}

// Many verdicts hold the labels of one model: what is written does not depend on who
// shares them, and a verdict keeps its probabilities when the result is used again.
func TestVerdictOwnsItsProbabilities(t *testing.T) {
	r := result()
	v := event.NewVerdict(sample(), r, decision())
	before := fmt.Sprint(v.Scores)
	clear(r.Scores)
	if after := fmt.Sprint(v.Scores); after != before {
		t.Errorf("probabilities %s, now %s", before, after)
	}
}
