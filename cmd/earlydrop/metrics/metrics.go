// SPDX-License-Identifier: Apache-2.0

// Package metrics tells Prometheus of a gateway.
package metrics

import (
	"log/slog"
	"maps"
	"slices"

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
	gauge("earlydrop_attached_timestamp_seconds", "when the daemon attached to the interface or adopted it, in Unix time", float64(s.Since.UnixNano())/1e9)
	gauge("earlydrop_enforcing", "1 in mode enforce, 0 in mode monitor", is(s.Mode == "enforce"))
	gauge("earlydrop_degraded", "1 if something is not as it should be", is(s.State != status.Well))
	for _, table := range []struct {
		name       string
		used, size int
	}{
		{"flows", s.Flows.Flows, s.Capacity.Flows},
		{"collecting", s.Flows.Collecting, s.Capacity.Collecting},
		{"blocked", s.Flows.Blocked, s.Capacity.Blocked},
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
	if h := s.Delays; h != nil {
		w.to <- prometheus.MustNewConstHistogram(
			prometheus.NewDesc("earlydrop_verdict_delay_seconds", "time from the hand-over of a capture until its verdict was in the kernel's table", []string{"interface"}, nil),
			h.Count, h.Sum, h.Buckets, s.Interface)
	}
}

func is(so bool) float64 {
	if so {
		return 1
	}
	return 0
}
