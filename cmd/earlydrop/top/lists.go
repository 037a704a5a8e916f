// SPDX-License-Identifier: Apache-2.0

package top

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
)

// list is one of those that are looked at, one at a time.
type list int

const (
	latest list = iota
	pairs
	servers
	initiators
	classes
	rules
	blocks
	treated
	interfaces

	numLists
)

// names are what the lists are called.
var names = [numLists]string{"latest", "pairs", "servers", "initiators", "classes", "rules", "blocks", "treated", "ifaces"}

// columns are those of the lists, and sorted what they are sorted by at first.
var (
	leaderColumns = []column{
		{title: "detected", right: true}, {title: "blocked", right: true, rank: 2}, {title: "blocks", right: true, rank: 4},
		{title: "dropped", right: true}, {title: "packets", right: true, rank: 5},
		{title: "class", flex: 8, rank: 1}, {title: "rule", flex: 8, rank: 3}, {title: "last", time: true, rank: 6},
	}
	columns = [numLists][]column{
		latest: {
			{title: "time", time: true}, {title: "decision"}, {title: "proto", rank: 4}, {title: "initiator", flex: 21}, {title: "server", flex: 21},
			{title: "class", flex: 8, rank: 1}, {title: "score", right: true, rank: 3}, {title: "reason", flex: 9}, {title: "rule", flex: 8, rank: 2}, {title: "iface", flex: 5, rank: 5},
		},
		pairs:      append([]column{{title: "initiator", flex: 21}, {title: "server", flex: 21}, {title: "proto", rank: 4}}, leaderColumns...),
		servers:    append([]column{{title: "server", flex: 15}, {title: "proto", rank: 4}}, leaderColumns...),
		initiators: append([]column{{title: "initiator", flex: 14}}, leaderColumns...),
		classes:    {{title: "class", flex: 8}, {title: "flows", right: true}, {title: "flows/s", right: true}, {title: "share", right: true}},
		rules: {
			{title: "rule", flex: 8}, {title: "decision"}, {title: "reason", flex: 9}, {title: "flows", right: true}, {title: "flows/s", right: true}, {title: "share", right: true},
		},
		blocks: {
			{title: "dropped", right: true}, {title: "packets", right: true, rank: 4}, {title: "flow", flex: 30}, {title: "class", flex: 8, rank: 1}, {title: "rule", flex: 8, rank: 2},
			{title: "state"}, {title: "ends in", right: true}, {title: "iface", flex: 5, rank: 3},
		},
		treated: {
			{title: "dropped", right: true}, {title: "conns", right: true, rank: 4}, {title: "pair", flex: 30}, {title: "class", flex: 8, rank: 1}, {title: "rule", flex: 8, rank: 2},
			{title: "state"}, {title: "ends in", right: true}, {title: "iface", flex: 5, rank: 3},
		},
		interfaces: {
			{title: "iface", flex: 5}, {title: "state"}, {title: "mode"}, {title: "xdp", rank: 5}, {title: "pkt/s", right: true}, {title: "bytes", right: true, rank: 1},
			{title: "drop/s", right: true}, {title: "flows/s", right: true}, {title: "flows", right: true, rank: 3}, {title: "blocked", right: true, rank: 2}, {title: "p99", right: true, rank: 4},
		},
	}
	sorted = [numLists]string{latest: "time", pairs: "detected", servers: "detected", initiators: "detected", classes: "flows", rules: "flows", blocks: "dropped", treated: "dropped", interfaces: "iface"}
)

// byTitle returns the index of a column.
func (l list) byTitle(title string) int {
	return slices.IndexFunc(columns[l], func(c column) bool { return c.title == title })
}

// rows returns those of a list. Iface is the interface that is looked at, empty for all.
func (v *view) rows(l list) []row {
	switch l {
	case latest:
		return v.latestRows()
	case pairs:
		return v.leaderRows(l, v.top().Pairs)
	case servers:
		return v.leaderRows(l, v.top().Servers)
	case initiators:
		return v.leaderRows(l, v.top().Initiators)
	case classes:
		return v.classRows()
	case rules:
		return v.ruleRows()
	case blocks:
		return v.blockRows()
	case treated:
		return v.pairRows()
	}
	return v.interfaceRows()
}

// top returns the latest look.
func (v *view) top() *status.Top { return v.looks.last() }

// looksAt reports whether an interface is among those that are looked at.
func (v *view) looksAt(iface string) bool { return v.iface == "" || v.iface == iface }

// attached returns the interfaces that are looked at.
func (v *view) attached(top *status.Top) []*status.Status {
	return slices.DeleteFunc(slices.Clone(top.Interfaces), func(s *status.Status) bool { return !v.looksAt(s.Interface) })
}

const clock = "15:04:05"

// what says in few words what became of a flow.
func what(e *event.Verdict) (text string, t tone) {
	switch {
	case e.Treats() && e.Error != "":
		return e.Decision + " failed", warning
	case e.Treats() && (e.Enforced == nil || !*e.Enforced):
		return "would " + e.Decision, warning
	case e.Treats():
		return e.Decision, bad
	case e.Detected:
		return e.Decision, warning
	}
	return e.Decision, plain
}

func (v *view) latestRows() (rows []row) {
	for _, e := range v.top().Latest {
		if !v.looksAt(e.Interface) {
			continue
		}
		did, t := what(e)
		rows = append(rows, row{
			id: fmt.Sprint(e.Time.UnixNano(), e.Proto, e.Src, e.Dst, e.Interface), tone: t, about: e,
			cells: []cell{
				{text: e.Time.Local().Format(clock), n: float64(e.Time.UnixNano())}, word(did), word(e.Proto), word(e.Src.String()), word(e.Dst.String()), word(e.Called()),
				{fmt.Sprintf("%.3f", e.Deciding(e.Confidence)), e.Deciding(e.Confidence)}, word(e.Reason), word(e.Rule), word(e.Interface),
			},
		})
	}
	return rows
}

// initiatorText returns an initiator as it is told: an address, or an IPv6 network.
func initiatorText(p netip.Prefix) string {
	if p.IsValid() && p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func (v *view) leaderRows(of list, all []status.Leader) (rows []row) {
	for i := range all {
		l := &all[i]
		if l.Interface != "" && !v.looksAt(l.Interface) {
			continue
		}
		var cells []cell
		if of != servers {
			cells = append(cells, word(initiatorText(l.Initiator)))
		}
		if of != initiators {
			cells = append(cells, word(l.Server.String()), word(l.Proto))
		}
		last := cell{"-", 0}
		if !l.Last.IsZero() {
			last = cell{l.Last.Local().Format(clock), float64(l.Last.UnixNano())}
		}
		t := plain
		if l.Blocks > 0 {
			t = bad
		}
		rows = append(rows, row{
			id: fmt.Sprint(l.Initiator, l.Server, l.Proto, l.VLAN, l.InnerVLAN), about: l, tone: t,
			cells: append(cells, count(l.Detected), count(l.Blocked), count(l.Blocks), size(l.DroppedBytes), count(l.DroppedPackets), word(l.Class), word(l.Rule), last),
		})
	}
	return rows
}

// shareOf returns a share of all as a column has it.
func shareOf(n, all uint64) cell {
	share := 100 * float64(n) / float64(max(1, all))
	return cell{fmt.Sprintf("%.1f%%", share), share}
}

// className is what a row of classes is about.
type className string

func (v *view) classRows() (rows []row) {
	flows := func(top *status.Top) map[string]uint64 {
		sum := map[string]uint64{}
		for _, s := range v.attached(top) {
			for class, n := range s.Classes {
				sum[class] += n
			}
		}
		return sum
	}
	all, now := uint64(0), flows(v.top())
	for _, n := range now {
		all += n
	}
	for _, class := range slices.Sorted(maps.Keys(now)) {
		rate := v.looks.rate(func(top *status.Top) uint64 { return flows(top)[class] })
		rows = append(rows, row{id: class, about: className(class), cells: []cell{word(class), count(now[class]), rate, shareOf(now[class], all)}})
	}
	return rows
}

func (v *view) ruleRows() (rows []row) {
	flows := func(top *status.Top) map[status.Verdicts]uint64 {
		sum := map[status.Verdicts]uint64{}
		for _, s := range v.attached(top) {
			for _, k := range s.Verdicts {
				n := k.Flows
				k.Flows = 0
				sum[k] += n
			}
		}
		return sum
	}
	all, now := uint64(0), flows(v.top())
	for _, n := range now {
		all += n
	}
	for k, n := range now {
		rate := v.looks.rate(func(top *status.Top) uint64 { return flows(top)[k] })
		rows = append(rows, row{
			id: k.Rule + "\n" + k.Decision + "\n" + k.Reason, about: k,
			cells: []cell{word(cmp.Or(k.Rule, "-")), word(k.Decision), word(k.Reason), count(n), rate, shareOf(n, all)},
		})
	}
	slices.SortFunc(rows, func(a, b row) int { return strings.Compare(a.id, b.id) })
	return rows
}

// stateOf says what is done by the action of a block or a pair.
func stateOf(action string, suspended bool) (text string, t tone) {
	if suspended {
		return "suspended", warning
	}
	return map[string]string{"drop": "drops", "reset": "resets", "limit": "limits"}[action], bad
}

// left returns how long it is until a time.
func (v *view) left(until time.Time) cell {
	left := until.Sub(v.top().Time).Round(time.Second)
	return cell{left.String(), left.Seconds()}
}

func (v *view) blockRows() (rows []row) {
	for i := range v.treated.blocks {
		b := &v.treated.blocks[i]
		if !v.looksAt(b.Interface) {
			continue
		}
		state, t := stateOf(b.Action, b.Suspended)
		key := control.KeyOf(b)
		rows = append(rows, row{
			id: b.Interface + " " + key.String(), about: b, tone: t,
			cells: []cell{size(b.Bytes), count(b.Packets), word(key.String()), word(b.Class), word(b.Rule), word(state), v.left(b.Expires), word(b.Interface)},
		})
	}
	return rows
}

func (v *view) pairRows() (rows []row) {
	for i := range v.treated.pairs {
		p := &v.treated.pairs[i]
		if !v.looksAt(p.Interface) {
			continue
		}
		state, t := stateOf(p.Action, p.Suspended)
		pair := p.Pair().String()
		rows = append(rows, row{
			id: p.Interface + " " + pair, about: p, tone: t,
			cells: []cell{size(p.Bytes), count(p.Connections), word(pair), word(p.Class), word(p.Rule), word(state), v.left(p.Expires), word(p.Interface)},
		})
	}
	return rows
}

func (v *view) interfaceRows() (rows []row) {
	for _, s := range v.attached(v.top()) {
		t := plain
		if s.State != status.Well {
			t = warning
		}
		r, known := v.looks.rates(s), true
		if r == nil {
			r, known = new(status.Rates), false
		}
		p99 := cell{"-", -1}
		if s.Latency != nil {
			p99 = cell{micros(s.Latency.P99), s.Latency.P99}
		}
		rows = append(rows, row{
			id: s.Interface, about: s, tone: t,
			cells: []cell{
				word(s.Interface), word(string(s.State)), word(s.Mode), word(s.XDP), perSecond(r.Packets, known), bytesPerSecond(r.Bytes, known && s.Traffic != nil), perSecond(r.DroppedPackets, known),
				perSecond(r.Flows, known), percent(s.Flows.Flows, s.Capacity.Flows), percent(s.Flows.Blocked, s.Capacity.Blocked), p99,
			},
		})
	}
	for _, w := range v.top().Waiting {
		if v.looksAt(w.Interface) {
			rows = append(rows, row{
				id: w.Interface, about: w, tone: warning,
				cells: []cell{word(w.Interface), word(string(w.State)), word("-"), word("-"), {"-", -1}, {"-", -1}, {"-", -1}, {"-", -1}, {"-", -1}, {"-", -1}, {"-", -1}},
			})
		}
	}
	return rows
}
