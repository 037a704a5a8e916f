// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
)

// source is a gateway that reports the same each time.
type source struct {
	report *status.Report
	err    error
}

func (s source) Report() (*status.Report, error) { return s.report, s.err }

func twoInterfaces() *status.Report {
	rows := loader.Counters{{Name: "classified", Help: "flows that got a verdict", Value: 7}, {Name: "ring_full", Help: "captures lost", Value: 2}}
	one := &status.Status{
		Interface: "eth0", State: status.Degraded, Since: time.Unix(1000, 0), Ingress: "xdp", XDP: "native", Egress: "tcx", Mode: "enforce", Model: "compact 1", Policy: "p.yaml",
		Flows: loader.Occupancy{Flows: 5, Blocked: 1, Pairs: 2}, Capacity: loader.Occupancy{Flows: 100, Collecting: 10, Blocked: 50, Pairs: 20},
		Classes: map[string]uint64{"shadowsocks": 3, "background": 4}, Rules: map[string]status.Rule{"a \"rule\"\n": {Detected: 3, Blocked: 1}},
		Rows:     rows,
		Verdicts: []status.Verdicts{{Rule: "tunnels", Decision: "drop", Reason: "rule", Flows: 3}, {Decision: "pass", Reason: "no rule", Flows: 4}},
		Traffic:  &loader.Traffic{RxPackets: 1, RxBytes: 2, TxPackets: 3, TxBytes: 4},
		Delays:   &status.Histogram{Count: 2, Sum: 0.5, Buckets: map[float64]uint64{0.1: 1, 1: 2}},
	}
	two := *one
	two.Interface, two.Mode, two.State, two.Delays, two.Verdicts, two.Traffic = "wan.5", "monitor", status.Well, nil, nil, nil
	return &status.Report{
		Version: "v1", Device: "cpu", Interfaces: []*status.Status{one, &two}, Time: time.Unix(5000, 0),
		Model: "compact 1", ModelDigest: "sha256:ab", Policy: "p.yaml", PolicyDigest: "sha256:cd", Queue: status.Fill{Used: 3, Size: 4096},
		Evidence: status.Evidence{Undetected: status.Fill{Used: 9, Size: 100}, Treated: status.Fill{Used: 1, Size: 50}, LimitsReached: 2, PausedUntil: time.Unix(5001, 0), PausedUnprovenUntil: time.Unix(5000, 0)},
		History:  &status.History{Events: 7, Bytes: 70, Limit: 700, Lost: 1, Error: "full"},
		Reloads:  status.Reloads{Done: 4, Failed: 1, Last: time.Unix(4000, 0)}, InferenceTimes: &status.Histogram{Count: 1, Sum: 0.25, Buckets: map[float64]uint64{0.1: 0, 1: 1}},
	}
}

func TestMetricsAreWhatIsReported(t *testing.T) {
	r := NewRegistry(source{report: twoInterfaces()})
	problems, err := testutil.GatherAndLint(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	const want = `# HELP earlydrop_class_flows_total flows that got a verdict, by the class of the verdict
# TYPE earlydrop_class_flows_total counter
earlydrop_class_flows_total{class="background",interface="eth0"} 4
earlydrop_class_flows_total{class="background",interface="wan.5"} 4
earlydrop_class_flows_total{class="shadowsocks",interface="eth0"} 3
earlydrop_class_flows_total{class="shadowsocks",interface="wan.5"} 3
# HELP earlydrop_degraded 1 if something is not as it should be
# TYPE earlydrop_degraded gauge
earlydrop_degraded{interface="eth0"} 1
earlydrop_degraded{interface="wan.5"} 0
# HELP earlydrop_enforcing 1 in mode enforce, 0 in mode monitor
# TYPE earlydrop_enforcing gauge
earlydrop_enforcing{interface="eth0"} 1
earlydrop_enforcing{interface="wan.5"} 0
# HELP earlydrop_evidence_pairs pairs of initiator and server that are remembered: without a detected flow, with one, treated or once treated
# TYPE earlydrop_evidence_pairs gauge
earlydrop_evidence_pairs{state="detected"} 0
earlydrop_evidence_pairs{state="treated"} 1
earlydrop_evidence_pairs{state="undetected"} 9
# HELP earlydrop_history_bytes bytes of the file of the history that are in use
# TYPE earlydrop_history_bytes gauge
earlydrop_history_bytes 70
# HELP earlydrop_history_events_lost_total events that are not in the history though they should be
# TYPE earlydrop_history_events_lost_total counter
earlydrop_history_events_lost_total 1
# HELP earlydrop_history_writable 1 if the history can be written, 0 if events are lost to it
# TYPE earlydrop_history_writable gauge
earlydrop_history_writable 0
# HELP earlydrop_inference_seconds time that the model took for a batch of flows
# TYPE earlydrop_inference_seconds histogram
earlydrop_inference_seconds_bucket{le="0.1"} 0
earlydrop_inference_seconds_bucket{le="1"} 1
earlydrop_inference_seconds_bucket{le="+Inf"} 1
earlydrop_inference_seconds_sum 0.25
earlydrop_inference_seconds_count 1
# HELP earlydrop_last_reload_timestamp_seconds when the policy was reloaded, or the model changed, at last, in Unix time
# TYPE earlydrop_last_reload_timestamp_seconds gauge
earlydrop_last_reload_timestamp_seconds 4000
# HELP earlydrop_limits_reached_total how often a limit of the policy was reached, so that rules without evidence paused
# TYPE earlydrop_limits_reached_total counter
earlydrop_limits_reached_total 2
# HELP earlydrop_model_info 1; the model that classifies, and the digest of its file
# TYPE earlydrop_model_info gauge
earlydrop_model_info{digest="sha256:ab",model="compact 1"} 1
# HELP earlydrop_policy_info 1; the policy that decides, and the digest of its text, that of the files of its sets left out
# TYPE earlydrop_policy_info gauge
earlydrop_policy_info{digest="sha256:cd",policy="p.yaml"} 1
# HELP earlydrop_queue_captures captures that wait for the model
# TYPE earlydrop_queue_captures gauge
earlydrop_queue_captures 3
# HELP earlydrop_receive_bytes_total bytes that the interface received, by its own statistics
# TYPE earlydrop_receive_bytes_total counter
earlydrop_receive_bytes_total{interface="eth0"} 2
# HELP earlydrop_reloads_total reloads of the policy, and changes of the model; one that failed has changed nothing
# TYPE earlydrop_reloads_total counter
earlydrop_reloads_total{outcome="done"} 4
earlydrop_reloads_total{outcome="failed"} 1
# HELP earlydrop_report_complete 1 if all tables could be read for this scrape
# TYPE earlydrop_report_complete gauge
earlydrop_report_complete 1
# HELP earlydrop_ring_full_total captures lost
# TYPE earlydrop_ring_full_total counter
earlydrop_ring_full_total{interface="eth0"} 2
earlydrop_ring_full_total{interface="wan.5"} 2
# HELP earlydrop_rule_detected_flows_total flows that a rule detected, in mode monitor as well
# TYPE earlydrop_rule_detected_flows_total counter
earlydrop_rule_detected_flows_total{interface="eth0",rule="a \"rule\"\n"} 3
earlydrop_rule_detected_flows_total{interface="wan.5",rule="a \"rule\"\n"} 3
# HELP earlydrop_rules_paused 1 while rules without evidence pause, as a limit was reached: for connections that both ends have made, and for other flows
# TYPE earlydrop_rules_paused gauge
earlydrop_rules_paused{flows="proven"} 1
earlydrop_rules_paused{flows="unproven"} 0
# HELP earlydrop_table_capacity_entries entries that a table of the kernel has room for
# TYPE earlydrop_table_capacity_entries gauge
earlydrop_table_capacity_entries{interface="eth0",table="blocked"} 50
earlydrop_table_capacity_entries{interface="eth0",table="collecting"} 10
earlydrop_table_capacity_entries{interface="eth0",table="flows"} 100
earlydrop_table_capacity_entries{interface="eth0",table="pairs"} 20
earlydrop_table_capacity_entries{interface="wan.5",table="blocked"} 50
earlydrop_table_capacity_entries{interface="wan.5",table="collecting"} 10
earlydrop_table_capacity_entries{interface="wan.5",table="flows"} 100
earlydrop_table_capacity_entries{interface="wan.5",table="pairs"} 20
# HELP earlydrop_verdict_delay_seconds time from the hand-over of a capture until its verdict was in the kernel's table
# TYPE earlydrop_verdict_delay_seconds histogram
earlydrop_verdict_delay_seconds_bucket{interface="eth0",le="0.1"} 1
earlydrop_verdict_delay_seconds_bucket{interface="eth0",le="1"} 2
earlydrop_verdict_delay_seconds_bucket{interface="eth0",le="+Inf"} 2
earlydrop_verdict_delay_seconds_sum{interface="eth0"} 0.5
earlydrop_verdict_delay_seconds_count{interface="eth0"} 2
# HELP earlydrop_verdicts_total flows that got a verdict, by the rule that was asked, what it decided, and why
# TYPE earlydrop_verdicts_total counter
earlydrop_verdicts_total{decision="drop",interface="eth0",reason="rule",rule="tunnels"} 3
earlydrop_verdicts_total{decision="pass",interface="eth0",reason="no rule",rule=""} 4
`
	if err := testutil.GatherAndCompare(r, strings.NewReader(want),
		"earlydrop_class_flows_total", "earlydrop_degraded", "earlydrop_enforcing", "earlydrop_report_complete", "earlydrop_ring_full_total",
		"earlydrop_rule_detected_flows_total", "earlydrop_table_capacity_entries", "earlydrop_verdict_delay_seconds", "earlydrop_verdicts_total",
		"earlydrop_evidence_pairs", "earlydrop_history_bytes", "earlydrop_history_events_lost_total", "earlydrop_history_writable", "earlydrop_inference_seconds", "earlydrop_last_reload_timestamp_seconds", "earlydrop_limits_reached_total", "earlydrop_model_info",
		"earlydrop_policy_info", "earlydrop_queue_captures", "earlydrop_receive_bytes_total", "earlydrop_reloads_total", "earlydrop_rules_paused"); err != nil {
		t.Error(err)
	}
}

// What can't be read is told of, and the rest is there.
func TestMetricsOfAGatewayThatCanNotReadAll(t *testing.T) {
	for name, s := range map[string]source{
		"an interface": {&status.Report{Version: "v1", Device: "cpu"}, errors.New("map gone")},
		"nothing":      {nil, errors.New("ended")},
	} {
		r := NewRegistry(s)
		if err := testutil.GatherAndCompare(r, strings.NewReader("# HELP earlydrop_report_complete 1 if all tables could be read for this scrape\n# TYPE earlydrop_report_complete gauge\nearlydrop_report_complete 0\n"), "earlydrop_report_complete"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestServerAnswersScrapesAndNothingElse(t *testing.T) {
	s, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Serve(source{report: twoInterfaces()})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, tt := range []struct {
		method, path string
		code         int
		text         string
	}{
		{"GET", "/metrics", 200, `earlydrop_classified_total{interface="eth0"} 7`},
		{"HEAD", "/metrics", 200, ""},
		{"GET", "/metrics", 200, "process_resident_memory_bytes"},
		{"POST", "/metrics", 405, "use GET"},
		{"DELETE", "/metrics", 405, "use GET"},
		{"GET", "/", 404, ""},
		{"GET", "/debug/pprof/", 404, ""},
		{"GET", "/metrics/../v1/status", 404, ""},
	} {
		r, err := http.NewRequestWithContext(ctx, tt.method, "http://"+s.Addr().String()+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if answer.StatusCode != tt.code || !strings.Contains(string(text), tt.text) {
			t.Errorf("%s %s: %d, want %d with %q:\n%.300s", tt.method, tt.path, answer.StatusCode, tt.code, tt.text, text)
		}
	}
}

func TestListenRefusesWhatIsNoAddress(t *testing.T) {
	taken, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, address := range []string{"", "9417", ":9417", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "nosuch.invalid:1", taken.Addr().String()} {
		if s, err := Listen(address); err == nil {
			t.Errorf("%q is taken", address)
			s.Close()
		}
	}
}
