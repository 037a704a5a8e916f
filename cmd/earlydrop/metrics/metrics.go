// SPDX-License-Identifier: Apache-2.0

// Package metrics tells Prometheus of a gateway.
package metrics

import (
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
)

// Source is what is told of, a *gateway.Gateway. Reports are asked for at each scrape, one at
// a time, and have Rows.
type Source interface {
	Report() (*status.Report, error)
}

// NewRegistry returns a registry that has what a gateway counts, one time series for each
// interface, and what Go and the kernel count of the process. Names of series depend on
// nothing that traffic could choose: labels are interfaces, the model's classes, the policy's
// rules and tables, so their number is bounded.
func NewRegistry(s Source) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collector{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// collector reads a report. It describes nothing beforehand: names come with the counters.
type collector struct{ source Source }

// Describe implements prometheus.Collector.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	report, err := c.source.Report()
	up := 1.0
	if err != nil {
		// What could be read is told of, and that it is not all.
		slog.Warn("not all could be read for the metrics", "error", err)
		up = 0
	}
	w := writer{to}
	w.put(prometheus.GaugeValue, "earlydrop_report_complete", "1 if all tables could be read for this scrape", up)
	if report == nil {
		return
	}
	w.put(prometheus.GaugeValue, "earlydrop_build_info", "1; the program and the device that classifies", 1,
		"version", report.Version, "device", report.Device)
	w.gateway(report)
	for _, s := range report.Interfaces {
		w.status(s)
	}
}

// writer sends single metrics.
type writer struct{ to chan<- prometheus.Metric }

// put sends one value. Names and values of labels alternate.
func (w writer) put(kind prometheus.ValueType, name, help string, value float64, labels ...string) {
	var names, values []string
	for i := 0; i < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	w.to <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, value, values...)
}

// gateway sends what is told of the gateway as a whole.
func (w writer) gateway(r *status.Report) {
	gauge := func(name, help string, value float64, labels ...string) {
		w.put(prometheus.GaugeValue, name, help, value, labels...)
	}
	count := func(name, help string, value uint64, labels ...string) {
		w.put(prometheus.CounterValue, name, help, float64(value), labels...)
	}
	gauge("earlydrop_model_info", "1; the model that classifies, and the digest of its file", 1, "model", r.Model, "digest", r.ModelDigest)
	gauge("earlydrop_policy_info", "1; the policy that decides, and the digest of its text, that of the files of its sets left out", 1, "policy", r.Policy, "digest", r.PolicyDigest)
	gauge("earlydrop_queue_captures", "captures that wait for the model", float64(r.Queue.Used))
	gauge("earlydrop_queue_capacity_captures", "captures that can wait: what is more passes", float64(r.Queue.Size))
	w.histogram("earlydrop_inference_seconds", "time that the model took for a batch of flows", r.InferenceTimes)
	for _, kind := range []struct {
		name string
		status.Fill
	}{{"undetected", r.Evidence.Undetected}, {"detected", r.Evidence.Detected}, {"treated", r.Evidence.Treated}} {
		gauge("earlydrop_evidence_pairs", "pairs of initiator and server that are remembered: without a detected flow, with one, treated or once treated", float64(kind.Used), "state", kind.name)
		gauge("earlydrop_evidence_capacity_pairs", "pairs that can be remembered: the least recently seen make room", float64(kind.Size), "state", kind.name)
	}
	count("earlydrop_limits_reached_total", "how often a limit of the policy was reached, so that rules without evidence paused", r.Evidence.LimitsReached)
	for _, of := range []struct {
		flows string
		until time.Time
	}{{"proven", r.Evidence.PausedUntil}, {"unproven", r.Evidence.PausedUnprovenUntil}} {
		gauge("earlydrop_rules_paused", "1 while rules without evidence pause, as a limit was reached: for connections that both ends have made, and for other flows", is(r.Time.Before(of.until)), "flows", of.flows)
	}
	if h := r.History; h != nil {
		gauge("earlydrop_history_events", "events in the file of the history", float64(h.Events))
		gauge("earlydrop_history_bytes", "bytes of the file of the history that are in use", float64(h.Bytes))
		gauge("earlydrop_history_limit_bytes", "bytes that it may use: the oldest events make room", float64(h.Limit))
		gauge("earlydrop_history_writable", "1 if the history can be written, 0 if events are lost to it", is(h.Error == ""))
		count("earlydrop_history_events_lost_total", "events that are not in the history though they should be", h.Lost)
	}
	const reloads = "reloads of the policy, and changes of the model; one that failed has changed nothing"
	count("earlydrop_reloads_total", reloads, r.Reloads.Done, "outcome", "done")
	count("earlydrop_reloads_total", reloads, r.Reloads.Failed, "outcome", "failed")
	if !r.Reloads.Last.IsZero() {
		gauge("earlydrop_last_reload_timestamp_seconds", "when the policy was reloaded, or the model changed, at last, in Unix time", seconds(r.Reloads.Last))
	}
}

// histogram sends one, if there is one.
func (w writer) histogram(name, help string, h *status.Histogram, labels ...string) {
	if h == nil {
		return
	}
	var names, values []string
	for i := 0; i < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	w.to <- prometheus.MustNewConstHistogram(prometheus.NewDesc(name, help, names, nil), h.Count, h.Sum, h.Buckets, values...)
}

// seconds returns a time as metrics have it.
func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// status sends what is told of one interface.
func (w writer) status(s *status.Status) {
	gauge := func(name, help string, value float64, labels ...string) {
		w.put(prometheus.GaugeValue, name, help, value, append([]string{"interface", s.Interface}, labels...)...)
	}
	count := func(name, help string, value uint64, labels ...string) {
		w.put(prometheus.CounterValue, name, help, float64(value), append([]string{"interface", s.Interface}, labels...)...)
	}
	gauge("earlydrop_attachment_info", "1; how the interface is attached, and what decides about its flows", 1,
		"ingress", s.Ingress, "xdp", s.XDP, "egress", s.Egress, "model", s.Model, "policy", s.Policy)
	gauge("earlydrop_attached_timestamp_seconds", "when the daemon attached to the interface or adopted it, in Unix time", seconds(s.Since))
	gauge("earlydrop_enforcing", "1 in mode enforce, 0 in mode monitor", is(s.Mode == "enforce"))
	gauge("earlydrop_degraded", "1 if something is not as it should be", is(s.State != status.Well))
	for _, table := range []struct {
		name       string
		used, size int
	}{
		{"flows", s.Flows.Flows, s.Capacity.Flows},
		{"collecting", s.Flows.Collecting, s.Capacity.Collecting},
		{"blocked", s.Flows.Blocked, s.Capacity.Blocked},
		{"pairs", s.Flows.Pairs, s.Capacity.Pairs},
	} {
		gauge("earlydrop_table_entries", "entries of a table of the kernel that are in use", float64(table.used), "table", table.name)
		gauge("earlydrop_table_capacity_entries", "entries that a table of the kernel has room for", float64(table.size), "table", table.name)
	}
	for _, c := range s.Rows {
		count("earlydrop_"+c.Name+"_total", c.Help, c.Value)
	}
	for _, class := range slices.Sorted(maps.Keys(s.Classes)) {
		count("earlydrop_class_flows_total", "flows that got a verdict, by the class of the verdict", s.Classes[class], "class", class)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Rules)) {
		rule := s.Rules[name]
		count("earlydrop_rule_detected_flows_total", "flows that a rule detected, in mode monitor as well", rule.Detected, "rule", name)
		count("earlydrop_rule_blocked_flows_total", "flows that a rule had blocked", rule.Blocked, "rule", name)
	}
	for _, k := range s.Verdicts {
		count("earlydrop_verdicts_total", "flows that got a verdict, by the rule that was asked, what it decided, and why", k.Flows,
			"rule", k.Rule, "decision", k.Decision, "reason", k.Reason)
	}
	if t := s.Traffic; t != nil {
		count("earlydrop_receive_packets_total", "packets that the interface received, by its own statistics", t.RxPackets)
		count("earlydrop_receive_bytes_total", "bytes that the interface received, by its own statistics", t.RxBytes)
		count("earlydrop_transmit_packets_total", "packets that the interface sent, by its own statistics", t.TxPackets)
		count("earlydrop_transmit_bytes_total", "bytes that the interface sent, by its own statistics", t.TxBytes)
	}
	w.histogram("earlydrop_verdict_delay_seconds", "time from the hand-over of a capture until its verdict was in the kernel's table", s.Delays, "interface", s.Interface)
}

func is(so bool) float64 {
	if so {
		return 1
	}
	return 0
}
