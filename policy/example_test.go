// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// What becomes of a flow that the classifier has a result for.
func Example() {
	model := &policy.Model{
		Labels:       []string{flow.Background, "shadowsocks", "v2ray"},
		Thresholds:   map[string]float64{"shadowsocks": 0.9, "v2ray": 0.8},
		AnyThreshold: 0.95,
	}
	p, err := policy.Parse("policy.yaml", []byte(`
mode: enforce
allow:
  - port: 22
rules:
  - name: tunnels
    class: [shadowsocks, v2ray]
    action: drop
    ttl: 10m
    except:
      - cidr: 192.0.2.0/24
        side: initiator
`), model)
	if err != nil {
		fmt.Println(err)
		return
	}
	// Between them the two classes have enough for the rule, which asks for the
	// model's any_threshold.
	result := flow.Result{
		Class: "shadowsocks", Confidence: 0.6,
		Labels: model.Labels, Scores: []float64{0.03, 0.6, 0.37},
	}
	for _, from := range []string{"198.51.100.1:50000", "192.0.2.1:50000"} {
		initiator, responder := netip.MustParseAddrPort(from), netip.MustParseAddrPort("203.0.113.7:8388")
		key, isLo := flow.NewKey(initiator, responder, flow.TCP, 0, 0)
		d := p.Decide(&flow.Meta{Key: key, InitiatorIsLo: isLo}, result)
		fmt.Printf("%s: %s, %s %s, %s at %.2f, for %s\n", initiator.Addr(), d.Action, d.Reason, d.Rule, d.RuleClasses, d.Confidence, d.TTL)
	}
	// Output:
	// 198.51.100.1: drop, rule tunnels, shadowsocks|v2ray at 0.97, for 10m0s
	// 192.0.2.1: pass, exception tunnels, shadowsocks|v2ray at 0.97, for 0s
}

// A mistake is shown with its place and what to do about it.
func ExampleParse_mistake() {
	_, err := policy.Parse("policy.yaml", []byte("mode: enforce\nrules:\n- class: shadowsocks\n  min_confidence: 0.9\n  action: drop\n  ttl: 10\n"), nil)
	fmt.Println(err)
	var mistake *policy.Error
	if errors.As(err, &mistake) {
		fmt.Println("in line", mistake.Line)
	}
	// Output:
	// policy.yaml:6:8: ttl "10" has no unit; write 10s, 10m, 10h or 10d
	// in line 6
}

// The built-in policy names those of its classes that the model knows.
func ExampleDefault() {
	p, err := policy.Default(&policy.Model{
		Labels:       []string{flow.Background, "shadowsocks", "ssh", "v2ray"},
		AnyThreshold: 0.95,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.Mode)
	for _, rule := range p.Rules {
		fmt.Println(rule.Name, rule.Classes, rule.MinConfidence)
	}
	// Output:
	// monitor
	// tunnels [shadowsocks v2ray] 0.9
}

func ExampleParseTTL() {
	ttl, err := policy.ParseTTL("1d12h")
	fmt.Println(ttl, err)
	_, err = policy.ParseTTL("2y")
	fmt.Println(err)
	// Output:
	// 36h0m0s <nil>
	// "2y" is not a duration; write one such as 30s, 10m, 1h30m, 7d or 2w
}
