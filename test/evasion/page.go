// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// readRows reads what -json has printed. Of a strategy that is there more than once, the
// last row counts.
func readRows(path string) ([]*row, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	byName := map[string]*row{}
	for dec := json.NewDecoder(bytes.NewReader(text)); ; {
		r := new(row)
		if err := dec.Decode(r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		for _, p := range protocols {
			if r.Outcomes[p] == nil {
				return nil, fmt.Errorf("%s: strategy %q has no outcome for %s; -json prints one", path, r.Strategy, p)
			}
		}
		if r.Outcomes[https].Enforce == nil {
			return nil, fmt.Errorf("%s: strategy %q has no outcome in mode enforce; -json prints one", path, r.Strategy)
		}
		byName[r.Strategy] = r
	}
	if len(byName) == 0 {
		return nil, fmt.Errorf("%s: there are no strategies in it", path)
	}
	return slices.SortedFunc(maps.Values(byName), func(a, b *row) int { return cmp.Compare(a.Strategy, b.Strategy) }), nil
}

// fate is what became of a strategy's tunnels.
type fate int

const (
	named   fate = iota // at least half of each tunnel's connections are
	shown               // ... are identified or have a signal
	hidden              // neither
	useless             // no tunnel works with it
)

func (r *row) fate() (f fate) {
	f = useless
	for _, p := range []string{shadowsocks, vmess} {
		o, of := r.Outcomes[p], named
		switch {
		case o.Alone == 0:
			continue
		case 2*o.Neither > o.N:
			of = hidden
		case 2*o.Identified < o.N:
			of = shown
		}
		if f == useless || of > f {
			f = of
		}
	}
	return f
}

// refused tells whether mode enforce drops it, whatever it carries.
func (r *row) refused() bool {
	web := r.Outcomes[https]
	return r.Malformed && web.Alone > 0 && web.Enforce.Worked == 0
}

// printPage prints the manual's page.
func printPage(out io.Writer, before, now []*row) error {
	var b strings.Builder
	fmt.Fprintf(&b, `# Evasion

What [the evasion suite](signals.md) makes of each strategy: what is done to the first bytes of real Shadowsocks, VMess and HTTPS
connections to get past a filter, and whether earlydrop, in mode monitor with the shipped model, still identifies the tunnels.

This page is generated, and not edited:

`+"```"+`
sudo go run ./test/evasion -n %d -json > now.json
mv now.json test/evasion/testdata
go run ./test/evasion -page test/evasion/testdata/before.json test/evasion/testdata/now.json > cmd/earlydrop/doc/evasion.md
`+"```"+`

Now is %s.

Before is %s.

`, now[0].Outcomes[https].N, origin(now), origin(before))

	was, is := fates(before), fates(now)
	fmt.Fprintf(&b, "With %d of %d strategies at least half of each tunnel's connections are identified; with %d they are not, but have a signal; with %d there is neither. ",
		len(is[named]), len(now)-len(is[useless]), len(is[shown]), len(is[hidden]))
	fmt.Fprintf(&b, "Before, it was %d, %d and %d. ", len(was[named]), len(was[shown]), len(was[hidden]))
	b.WriteString(webSentence(now) + "\n\n")

	b.WriteString("## What still works\n\nThe cheapest first: with these, fewer than half of a tunnel's connections are identified.\n\n| takes | no signal either | but a signal |\n| --- | --- | --- |\n")
	for _, takes := range []string{network, nothing, root, server, bothEnds, outsider} {
		of := func(f fate) string {
			var names []string
			for _, r := range is[f] {
				if r.Takes == takes && !r.refused() {
					names = append(names, "`"+r.Strategy+"`")
				}
			}
			return strings.Join(names, ", ")
		}
		if hides, shows := of(hidden), of(shown); hides+shows != "" {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", takesText[takes], hides, shows)
		}
	}

	b.WriteString(`
## All strategies

Tunnels: of how many connections a verdict named the tunnel, before → now. Signals: of how many tunnels in mode monitor, now. Neither:
tunnels that are neither identified nor signalled, before → now. HTTPS: whether all pages that come with nothing attached come in mode
enforce.

| strategy | what it does | takes | Shadowsocks | VMess | signals | neither | HTTPS |
| --- | --- | --- | --- | --- | --- | --- | --- |
`)
	earlier := map[string]*row{}
	for _, r := range before {
		earlier[r.Strategy] = r
	}
	for _, r := range now {
		of := earlier[r.Strategy]
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s | %s |\n", r.Strategy, r.What, r.Takes,
			identifiedThen(of, r, shadowsocks), identifiedThen(of, r, vmess), r.signalsOfTunnels(), neither(of, r), r.webResult())
	}
	_, err := io.WriteString(out, b.String())
	return err
}

var takesText = map[string]string{
	network:  "network: nobody does it",
	nothing:  "nothing: any program, at its socket",
	root:     "root: raw packets at the client",
	server:   "server: raw packets at the server, the client has no part in it",
	bothEnds: "both ends: raw packets at both",
	outsider: "outsider: no end",
}

// origin says what printed rows.
func origin(rows []*row) string {
	var all []string
	for _, r := range rows {
		text := fmt.Sprintf("earlydrop %s on Linux %s, %s, %d connections each", r.Program, r.Kernel, r.Date, r.Outcomes[https].N)
		if !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	return strings.Join(all, "; ")
}

func fates(rows []*row) map[fate][]*row {
	all := map[fate][]*row{}
	for _, r := range rows {
		all[r.fate()] = append(all[r.fate()], r)
	}
	return all
}

// webSentence says what becomes of HTTPS.
func webSentence(rows []*row) string {
	survives, survived := 0, 0
	var refused, broken []string
	for _, r := range rows {
		web := r.Outcomes[https]
		switch {
		case web.Alone < web.N:
		case r.refused():
			refused = append(refused, "`"+r.Strategy+"`")
		default:
			survives++
			if web.Enforce.Worked == web.N {
				survived++
			} else {
				broken = append(broken, "`"+r.Strategy+"`")
			}
		}
	}
	s := fmt.Sprintf("HTTPS survives %d of %d strategies in mode enforce that it survives with nothing attached", survived, survives)
	if len(broken) > 0 {
		s += ", not " + strings.Join(broken, ", ")
	}
	if len(refused) > 0 {
		s += "; besides these, that mode drops malformed [fragments](flows.md#fragments), of tunnels and HTTPS alike: " + strings.Join(refused, ", ")
	}
	return s + "."
}

func count(r *row, protocol string) string {
	if r == nil {
		return "–"
	}
	if o := r.Outcomes[protocol]; o.Alone > 0 {
		return fmt.Sprintf("%d/%d", o.Identified, o.N)
	}
	return "does not work"
}

// identifiedThen is how many were identified, before and now.
func identifiedThen(before, now *row, protocol string) string {
	return count(before, protocol) + " → " + count(now, protocol)
}

func (r *row) neither() string {
	if r == nil {
		return "–"
	}
	return fmt.Sprint(r.Outcomes[shadowsocks].Neither + r.Outcomes[vmess].Neither)
}

func neither(before, now *row) string { return before.neither() + " → " + now.neither() }

func (r *row) signalsOfTunnels() string {
	sum := map[string]int{}
	for _, p := range []string{shadowsocks, vmess} {
		for name, n := range r.Outcomes[p].Signals {
			sum[name] += n
		}
	}
	var cells []string
	for _, name := range slices.Sorted(maps.Keys(sum)) {
		cells = append(cells, fmt.Sprintf("`%s` %d", name, sum[name]))
	}
	return strings.Join(cells, ", ")
}

func (r *row) webResult() string {
	web := r.Outcomes[https]
	switch {
	case r.refused():
		return "dropped, as malformed"
	case web.Alone == 0:
		return "does not work"
	case web.Alone == web.N && web.Enforce.Worked == web.N:
		return "survives"
	}
	return fmt.Sprintf("%d of %d alone, %d in mode enforce", web.Alone, web.N, web.Enforce.Worked)
}
