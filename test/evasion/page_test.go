// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const manual = "../../cmd/earlydrop/doc/evasion.md"

// The manual's page is what the two files say, and nobody has edited it.
func TestPageIsGenerated(t *testing.T) {
	var page bytes.Buffer
	if code, err := run(t.Context(), &page, []string{"-page", "testdata/before.json", "testdata/now.json"}); code != 0 || err != nil {
		t.Fatalf("code %d, %v", code, err)
	}
	text, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text, page.Bytes()) {
		t.Errorf("%s is not what -page prints of the files in testdata: generate it as the page says", manual)
	}
}

// What the page shows of a strategy is one of those that there are.
func TestPageHasEveryStrategy(t *testing.T) {
	rows, err := readRows("testdata/now.json")
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*row{}
	for _, r := range rows {
		byName[r.Strategy] = r
	}
	for _, s := range strategies {
		r := byName[s.name]
		if r == nil || r.What != s.what || r.Takes != s.needs || r.Malformed != s.malformed {
			t.Errorf("testdata/now.json says %+v of %s; run the suite and generate the page again", r, s.name)
		}
	}
	if len(rows) != len(strategies) {
		t.Errorf("testdata/now.json has %d strategies, and there are %d", len(rows), len(strategies))
	}
}

// pageRow is a row of ten connections in each protocol that all work.
func pageRow(name string, changes func(r *row)) *row {
	r := &row{Strategy: name, What: "what " + name + " does", Takes: root, Program: "v1", Kernel: "6.1", Date: "2026-11-25", Outcomes: map[string]*outcome{}}
	for _, p := range protocols {
		r.Outcomes[p] = &outcome{N: 10, Alone: 10, Watched: 10, Identified: 10}
	}
	r.Outcomes[https].Enforce = &enforced{Worked: 10}
	if changes != nil {
		changes(r)
	}
	return r
}

// tunnelsOf sets what became of both tunnels.
func tunnelsOf(identified, neither int, signals map[string]int) func(r *row) {
	return func(r *row) {
		for _, p := range []string{shadowsocks, vmess} {
			r.Outcomes[p].Identified, r.Outcomes[p].Neither, r.Outcomes[p].Signals = identified, neither, signals
		}
	}
}

func TestPageSaysWhatBecameOfStrategies(t *testing.T) {
	before := []*row{
		pageRow("all", nil), pageRow("better", tunnelsOf(0, 10, nil)), pageRow("gone", nil),
	}
	now := []*row{
		pageRow("all", nil),
		pageRow("better", tunnelsOf(9, 1, nil)),
		pageRow("shown", tunnelsOf(2, 0, map[string]int{"tiny": 9, "gap": 1})),
		pageRow("hides", func(r *row) { tunnelsOf(0, 10, nil)(r); r.Takes = nothing }),
		pageRow("hides-one", func(r *row) { r.Outcomes[vmess].Identified, r.Outcomes[vmess].Neither = 4, 6 }),
		pageRow("malformed", func(r *row) {
			tunnelsOf(0, 10, nil)(r)
			r.Malformed, r.Outcomes[https].Enforce.Worked = true, 0
		}),
		pageRow("cut", func(r *row) { r.Outcomes[https].Enforce.Worked = 9 }),
		pageRow("dead", func(r *row) {
			tunnelsOf(0, 10, nil)(r)
			r.Outcomes[shadowsocks].Alone, r.Outcomes[vmess].Alone = 0, 0
			r.Outcomes[https].Alone, r.Outcomes[https].Enforce.Worked = 0, 0
		}),
	}
	var page strings.Builder
	if err := printPage(&page, before, now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Now is earlydrop v1 on Linux 6.1, 2026-11-25, 10 connections each.",
		"With 3 of 7 strategies at least half of each tunnel's connections are identified; with 1 they are not, but have a signal; with 3 there is neither. ",
		"Before, it was 2, 0 and 1. ",
		"HTTPS survives 5 of 6 strategies in mode enforce that it survives with nothing attached, not `cut`; besides these, that mode drops malformed",
		"of tunnels and HTTPS alike: `malformed`.",
		"| nothing: any program, at its socket | `hides` |  |\n| root: raw packets at the client | `hides-one` | `shown` |\n\n",
		"| `all` | what all does | root | 10/10 → 10/10 | 10/10 → 10/10 |  | 0 → 0 | survives |\n",
		"| `better` | what better does | root | 0/10 → 9/10 | 0/10 → 9/10 |  | 20 → 2 | survives |\n",
		"| `shown` | what shown does | root | – → 2/10 | – → 2/10 | `gap` 2, `tiny` 18 | – → 0 | survives |\n",
		"| dropped, as malformed |\n",
		"| 10 of 10 alone, 9 in mode enforce |\n",
		"| – → does not work | – → does not work |  | – → 20 | does not work |\n",
	} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(page.String())
	}
}

// A row that was tried again replaces the first; what is none is refused.
func TestRowsAreRead(t *testing.T) {
	text := func(rows ...*row) string {
		var b strings.Builder
		for _, r := range rows {
			if err := json.NewEncoder(&b).Encode(r); err != nil {
				t.Fatal(err)
			}
		}
		return b.String()
	}
	lacking := pageRow("a", func(r *row) { delete(r.Outcomes, vmess) })
	unenforced := pageRow("a", func(r *row) { r.Outcomes[https].Enforce = nil })
	for _, tt := range []struct {
		name, text string
		want       string // names, or the error
	}{
		{"sorted", text(pageRow("b", nil), pageRow("a", nil)), "a 10, b 10"},
		{"tried again", text(pageRow("b", nil), pageRow("a", nil), pageRow("b", tunnelsOf(3, 7, nil))), "a 10, b 3"},
		{"empty", "", "no strategies"},
		{"no JSON", "strategy takes", "invalid character"},
		{"cut off", text(pageRow("a", nil))[:40], "unexpected EOF"},
		{"a protocol lacks", text(lacking), "no outcome for vmess"},
		{"enforce lacks", text(unenforced), "no outcome in mode enforce"},
	} {
		path := filepath.Join(t.TempDir(), "rows.json")
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		rows, err := readRows(path)
		var got []string
		for _, r := range rows {
			got = append(got, r.Strategy+" "+strings.Split(count(r, vmess), "/")[0])
		}
		if err != nil {
			got = []string{err.Error()}
		}
		if !strings.Contains(strings.Join(got, ", "), tt.want) || err != nil && !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
