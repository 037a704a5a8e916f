// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
)

// evidenceFlows is how many flows of a pair the tables ask about: a policy's "third flow".
const evidenceFlows = 3

// tunnels is a row about tunnels.
type tunnels struct {
	flows, alone int      // how many, and how many of them each by itself is treated
	passed       int      // whole, with evidence
	pairs, third int      // pairs of three flows or more, and those treated with the third at the latest
	ever         int      // ... with any
	bytes        []uint64 // that passed of each treated pair until it was
}

// background is a row about what is no tunnel.
type background struct{ flows, complete, treated int }

// tables count.
type tables struct {
	tunnels map[string]*tunnels
	rest    map[string]map[string]*background // by kind and what it is
}

func newTables() *tables {
	return &tables{tunnels: map[string]*tunnels{}, rest: map[string]map[string]*background{}}
}

// row returns the row of a name, a new one if there is none.
func row[T any](rows map[string]*T, name string) *T {
	if rows[name] == nil {
		rows[name] = new(T)
	}
	return rows[name]
}

// add counts the flows of a capture as a policy treats them, and of a tunnel as it treats each by
// itself.
func (t *tables) add(j *job, flows, alone []*judged) {
	if j.kind != tunnel {
		if t.rest[j.kind] == nil {
			t.rest[j.kind] = map[string]*background{}
		}
		b := row(t.rest[j.kind], j.what)
		for _, f := range flows {
			b.flows++
			if f.complete {
				b.complete++
			}
			if f.treated {
				b.treated++
			}
		}
		return
	}
	if len(flows) == 0 {
		return // UDP
	}
	r := row(t.tunnels, j.what)
	for _, f := range alone {
		r.flows++
		if f.treated {
			r.alone++
		}
	}
	bytes, n := uint64(0), -1 // n: with which flow the pair is treated
	for i, f := range flows {
		if !f.treated {
			r.passed++
		}
		if n < 0 {
			bytes += f.passed
		}
		if f.onPair && n < 0 {
			n = i
		}
	}
	if len(flows) < evidenceFlows {
		return
	}
	r.pairs++
	if n >= 0 {
		r.ever++
		r.bytes = append(r.bytes, bytes)
		if n < evidenceFlows {
			r.third++
		}
	}
}

// print prints the tables.
func (t *tables) print(w io.Writer, title string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "## %s\n", title)
	if len(t.tunnels) > 0 {
		b.WriteString("\n| tunnel | TCP flows | treated, each by itself | passed whole, with evidence | pairs of 3 flows or more | treated with the third | with any | bytes that passed until then: median | 9 of 10 | most |\n" +
			"| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
		var untouched []string // names
		all := 0               // their flows
		for _, name := range slices.Sorted(maps.Keys(t.tunnels)) {
			r := t.tunnels[name]
			if r.passed == r.flows && r.alone == 0 {
				untouched, all = append(untouched, name), all+r.flows
				continue
			}
			slices.Sort(r.bytes)
			fmt.Fprintf(&b, "| %s | %d | %s | %s | %d | %s | %s | %s | %s | %s |\n", name, r.flows, share(r.alone, r.flows), share(r.passed, r.flows),
				r.pairs, share(r.third, r.pairs), share(r.ever, r.pairs), quantile(r.bytes, 0.5), quantile(r.bytes, 0.9), quantile(r.bytes, 1))
		}
		if all > 0 {
			fmt.Fprintf(&b, "| %s | %d | 0 | all | | | | | | |\n", strings.Join(untouched, ", "), all)
		}
	}
	for _, kind := range []string{ordinary, randomLike, others} {
		rows := t.rest[kind]
		if len(rows) == 0 {
			continue
		}
		all := background{}
		fmt.Fprintf(&b, "\n| %s | TCP flows | with all 1024 bytes | treated |\n| --- | --- | --- | --- |\n", kind)
		rest := 0
		for _, name := range slices.Sorted(maps.Keys(rows)) {
			r := rows[name]
			all.flows, all.complete, all.treated = all.flows+r.flows, all.complete+r.complete, all.treated+r.treated
			if r.treated == 0 {
				rest++
				continue
			}
			fmt.Fprintf(&b, "| %s | %d | %d | %s |\n", name, r.flows, r.complete, share(r.treated, r.flows))
		}
		fmt.Fprintf(&b, "| %d others | | | 0 |\n| **all** | %d | %d | %s |\n", rest, all.flows, all.complete, share(all.treated, all.flows))
	}
	b.WriteByte('\n')
	_, err := io.WriteString(w, b.String())
	return err
}

// share prints a share of a number, with its 95 % interval (Wilson).
func share(n, of int) string {
	if of == 0 {
		return "-"
	}
	low, high := wilson(n, of)
	return fmt.Sprintf("%.2f %% (%d of %d; %.2f to %.2f)", 100*float64(n)/float64(of), n, of, 100*low, 100*high)
}

// wilson returns the 95 % interval of a share.
func wilson(n, of int) (low, high float64) {
	const z = 1.959964
	p, all := float64(n)/float64(of), float64(of)
	middle, half := p+z*z/(2*all), z*math.Sqrt(p*(1-p)/all+z*z/(4*all*all))
	return max(0, (middle-half)/(1+z*z/all)), min(1, (middle+half)/(1+z*z/all))
}

// quantile prints a value of a sorted list, of which so large a share is not larger.
func quantile(sorted []uint64, share float64) string {
	if len(sorted) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f KB", float64(sorted[max(0, int(math.Ceil(share*float64(len(sorted))))-1)])/1000)
}
