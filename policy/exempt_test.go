// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// many writes a set of so many addresses, and returns the policy's line that names it.
func many(t *testing.T, dir, name string, n int) {
	t.Helper()
	var text strings.Builder
	for i := range n {
		fmt.Fprintf(&text, "10.%d.%d.%d\n", i>>16, i>>8&255, i&255)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestExemptNetworks(t *testing.T) {
	dir := t.TempDir()
	many(t, dir, "few.txt", 3)
	many(t, dir, "most.txt", MaxExempt)
	many(t, dir, "over.txt", MaxExempt+1)
	const sets = "sets: {few: {file: few.txt}, most: {file: most.txt}, over: {file: over.txt}}\n"
	for _, tt := range []struct {
		name, allow string
		n           int    // of networks
		has, not    string // one of them, and one that is not
		want        string // of the error
	}{
		{name: "nothing", allow: "[]"},
		{name: "by itself", allow: "[{cidr: 192.0.2.0/24}, {cidr: '2001:db8::/32'}, {set: few}]", n: 5, has: "2001:db8::/32"},
		{name: "with a side or a port it is not", allow: "[{cidr: 192.0.2.0/24, side: initiator}, {cidr: 192.0.3.0/24, port: 443}, {port: 1}, {cidr: 192.0.4.0/24, side: any}]", n: 1, has: "192.0.4.0/24"},
		{name: "asked for or not", allow: "[{cidr: 192.0.2.0/24, exempt: true}, {cidr: 192.0.3.0/24, exempt: false}]", n: 1, has: "192.0.2.0/24", not: "192.0.3.0/24"},
		{name: "as many as there may be", allow: "[{set: most, exempt: true}]", n: MaxExempt, has: "10.0.0.7/32"},
		{name: "what does not fit is left out whole", allow: "[{cidr: 192.0.2.0/24}, {set: most}, {cidr: 192.0.3.0/24}]", n: 2, has: "192.0.3.0/24", not: "10.0.0.7/32"},
		{name: "too many", allow: "[{set: over}, {cidr: 192.0.3.0/24}]", n: 1, has: "192.0.3.0/24"},
		{name: "what was asked for comes first", allow: "[{cidr: 192.0.2.0/24}, {set: most, exempt: true}]", n: MaxExempt, has: "10.0.0.7/32", not: "192.0.2.0/24"},
		{name: "too many are asked for", allow: "[{set: over, exempt: true}]", want: "entries with exempt: true have more than 100000 networks together"},
		{name: "too many together", allow: "[{set: most, exempt: true}, {cidr: 192.0.2.0/24, exempt: true}]", want: "p.yaml:2:57: entries with exempt: true have more than 100000"},
		{name: "a port", allow: "[{cidr: 192.0.2.0/24, port: 443, exempt: true}]", want: "write it without port and side"},
		{name: "a side", allow: "[{cidr: 192.0.2.0/24, side: responder, exempt: true}]", want: "write it without port and side"},
		{name: "a port alone", allow: "[{port: 443, exempt: true}]", want: "write it without port and side"},
		{name: "a port, and not", allow: "[{cidr: 192.0.2.0/24, port: 443, exempt: false}]"},
		{name: "no word", allow: "[{cidr: 192.0.2.0/24, exempt: yes}]", want: "exempt has to be true or false"},
		{name: "nearly the key", allow: "[{cidr: 192.0.2.0/24, excempt: true}]", want: "exempt"},
	} {
		p, err := Parse(filepath.Join(dir, "p.yaml"), []byte(sets+"allow: "+tt.allow+"\n"), nil)
		if tt.want != "" {
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var names []string
		for _, network := range p.Exempt() {
			names = append(names, network.String())
		}
		if len(names) != tt.n || tt.has != "" && !slices.Contains(names, tt.has) || tt.not != "" && slices.Contains(names, tt.not) {
			t.Errorf("%s: %d networks, %v", tt.name, len(names), names[:min(5, len(names))])
		}
	}
	// An exception has no such key.
	text := "rules: [{class: a, min_confidence: 0.9, action: drop, ttl: 1m, except: [{cidr: 192.0.2.0/24, exempt: true}]}]"
	if _, err := Parse("p.yaml", []byte(text), nil); err == nil || !strings.Contains(err.Error(), `unknown key "exempt"`) {
		t.Errorf("an exception: %v", err)
	}
}
