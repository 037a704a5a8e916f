// SPDX-License-Identifier: Apache-2.0

package event

import (
	"testing"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

func TestFlowIsNamedAfterWhatDecided(t *testing.T) {
	for _, tt := range []struct {
		name       string
		d          policy.Decision
		r          flow.Result
		line       string
		table      string
		confidence string
	}{
		{"two classes share it",
			policy.Decision{RuleClasses: "shadowsocks|v2ray", Likeliest: "shadowsocks", Confidence: 0.95}, flow.Result{Class: "unknown", Confidence: 0.551},
			"shadowsocks|v2ray 0.950 (shadowsocks 0.551)", "shadowsocks|v2ray (shadowsocks)", "0.9500"},
		{"one class has it",
			policy.Decision{RuleClasses: "shadowsocks", Likeliest: "shadowsocks", Confidence: 0.95}, flow.Result{Class: "shadowsocks", Confidence: 0.94},
			"shadowsocks 0.950", "shadowsocks", "0.9500"},
		{"a rule over unknown",
			policy.Decision{RuleClasses: "unknown", Likeliest: "background", Confidence: 0.4}, flow.Result{Class: "unknown", Confidence: 0.4},
			"unknown (background 0.400)", "unknown (background)", "0.4000"},
		{"no rule, unknown",
			policy.Decision{Likeliest: "background", Confidence: 0.4}, flow.Result{Class: "unknown", Confidence: 0.4},
			"unknown (background 0.400)", "unknown (background)", "0.4000"},
		{"no rule",
			policy.Decision{Likeliest: "background", Confidence: 0.99}, flow.Result{Class: "background", Confidence: 0.99},
			"background 0.990", "background", "0.9900"},
	} {
		n := NameFlow(&tt.d)
		name, confidence := n.Columns(tt.r.Class, tt.r.Confidence)
		if line := n.Line(tt.r.Class, tt.r.Confidence); line != tt.line || name != tt.table || confidence != tt.confidence {
			t.Errorf("%s: %q, %q, %q; want %q, %q, %q", tt.name, line, name, confidence, tt.line, tt.table, tt.confidence)
		}
	}
}
