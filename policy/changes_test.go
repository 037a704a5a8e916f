// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChangesSaysWhatIsDifferent(t *testing.T) {
	const rule = "{class: [v2ray], min_confidence: 0.9, action: drop, ttl: 1m, name: "
	const before = "mode: monitor\nallow: [{cidr: 10.0.0.0/8}, {port: 22}]\nrules:\n- " + rule + "a}\n- " + rule + "b}\n- " + rule + "c}\n"
	for _, tt := range []struct {
		name, text string
		want       Changes
		say        string
	}{
		{"nothing", "# another comment\n" + before, Changes{}, "nothing changed"},
		{"the mode", "mode: enforce" + before[len("mode: monitor"):], Changes{Mode: "enforce"}, "mode enforce"},
		{"rules", "mode: monitor\nallow: [{cidr: 10.0.0.0/8}, {port: 22}]\nrules:\n- " + rule + "a}\n- " + rule + "d}\n- " + rule + "c, except: [{port: 443}]}\n",
			Changes{RulesAdded: []string{"d"}, RulesRemoved: []string{"b"}, RulesChanged: []string{"c"}},
			"rules added: d; rules removed: b; rules changed: c"},
		{"their order", "mode: monitor\nallow: [{cidr: 10.0.0.0/8}, {port: 22}]\nrules:\n- " + rule + "c}\n- " + rule + "b}\n- " + rule + "a}\n",
			Changes{Reordered: true}, "rules in another order"},
		{"a rule before the others is no other order", "mode: monitor\nallow: [{cidr: 10.0.0.0/8}, {port: 22}]\nrules:\n- " + rule + "z}\n- " + rule + "a}\n- " + rule + "b}\n- " + rule + "c}\n",
			Changes{RulesAdded: []string{"z"}}, "rules added: z"},
		{"the allow-list", "mode: monitor\nallow: [{cidr: 10.0.0.0/8, side: initiator}, {port: 22}, {port: 22}]\nrules:\n- " + rule + "a}\n- " + rule + "b}\n- " + rule + "c}\n",
			Changes{AllowAdded: []string{"cidr 10.0.0.0/8 side initiator"}, AllowRemoved: []string{"cidr 10.0.0.0/8"}},
			"allowed now: cidr 10.0.0.0/8 side initiator; allowed no longer: cidr 10.0.0.0/8"},
		{"evidence of the rule above", "mode: monitor\nallow: [{cidr: 10.0.0.0/8}, {port: 22}]\nrules:\n- " + rule + "a, proto: tcp, scope: pair, evidence: {flows: 3, share: 0.6, within: 1h}}\n- " + rule + "b}\n- " + rule + "c}\n",
			Changes{RulesChanged: []string{"a"}}, "rules changed: a"},
		{"limits", "limits: {flows: 7/min}\n" + before, Changes{Other: true}, "other keys changed"},
		{"another key", "one_hook: true\n" + before, Changes{Other: true}, "other keys changed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			was, err := Parse("before", []byte(before), nil)
			if err != nil {
				t.Fatal(err)
			}
			is, err := Parse("after", []byte(tt.text), nil)
			if err != nil {
				t.Fatal(err)
			}
			got := is.ChangesFrom(was)
			if diff := cmp.Diff(&tt.want, got); diff != "" || got.String() != tt.say || got.None() != (tt.say == "nothing changed") {
				t.Errorf("says %q, want %q (-want +got):\n%s", got, tt.say, diff)
			}
		})
	}
}

// A set whose file was changed is told of, and not each rule that names it.
func TestChangesOfSets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "set.txt")
	read := func(networks string) *Policy {
		t.Helper()
		if err := os.WriteFile(file, []byte(networks), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := Parse("p.yaml", []byte(fmt.Sprintf("sets: {own: {file: %s}}\nallow: [{set: own}]\nrules: [{name: a, class: [v2ray], min_confidence: 0.9, action: drop, ttl: 1m, from: [set:own]}]\n", file)), nil)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	before := read("192.0.2.0/24\n")
	if c := read("192.0.2.0/25\n192.0.2.128/25\n# so\n").ChangesFrom(before); c.String() != "sets changed: own" {
		t.Errorf("other networks: %s", c)
	}
	if c := read("# so\n192.0.2.0/24\n").ChangesFrom(before); !c.None() {
		t.Errorf("a comment: %s", c)
	}
}
