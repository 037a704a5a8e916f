// SPDX-License-Identifier: Apache-2.0

package top

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
)

// view is what is on the screen, and how the user wants it.
type view struct {
	width, height int
	colors        bool
	counters      loader.Counters

	looks   looks // at least one, once connected
	treated treatments
	trouble string // why the daemon does not answer; empty where it does

	list   list
	sort   [numLists]int
	turned [numLists]bool
	// At is the selected row; Follows says that the selection stays where it is, at the top, and
	// else it is ID's row.
	at      int
	follows bool
	id      string
	first   int // row on the screen

	iface  string // all: empty
	filter string
	paused bool

	asking *question
	typing bool   // the filter
	said   string // what came of a command
	story  *story // nil: the list is shown
	help   bool
}

// question is one to be answered with yes or no.
type question struct {
	text string
	yes  any // message, if so
}

func newView() *view {
	v := &view{width: 80, height: 24, follows: true}
	for l := range numLists {
		v.sort[l] = l.byTitle(sorted[l])
	}
	return v
}

// table returns the list that is looked at, filtered and sorted.
func (v *view) table(l list) *table {
	t := &table{columns[l], v.rows(l)}
	if v.filter != "" {
		t.rows = slices.DeleteFunc(t.rows, func(r row) bool { return !r.has(v.filter) })
	}
	t.sortBy(v.sort[l], v.turned[l])
	return t
}

// selected returns the row that is selected, nil if there is none.
func (v *view) selected(t *table) *row {
	if len(t.rows) == 0 {
		return nil
	}
	if !v.follows {
		if i := slices.IndexFunc(t.rows, func(r row) bool { return r.id == v.id }); i >= 0 {
			v.at = i
		}
	}
	v.at = min(max(0, v.at), len(t.rows)-1)
	v.id = t.rows[v.at].id
	return &t.rows[v.at]
}

// move moves the selection by so many rows.
func (v *view) move(by int) {
	if v.story != nil {
		v.story.first = max(0, v.story.first+by)
		return
	}
	t := v.table(v.list)
	v.selected(t)
	v.at = min(max(0, v.at+by), max(0, len(t.rows)-1))
	v.follows = v.at == 0
	if len(t.rows) > 0 {
		v.id = t.rows[v.at].id
	}
}

// show shows another list, from its beginning.
func (v *view) show(l list) {
	v.list, v.story, v.help = l, nil, false
	v.at, v.first, v.follows = 0, 0, true
}

// bothFrom is how high a screen is that has room for the latest decisions below a list.
const bothFrom = 40

// lines returns the screen.
func (v *view) lines() []line {
	var out []line
	if len(v.looks) == 0 {
		out = []line{say(strong, "earlydrop top"), {}}
		out = append(out, wrapped(cmp.Or(v.trouble, "asking the daemon"), v.width)...)
		return v.filled(out)
	}
	out = v.head()
	room := v.height - 1 - len(out)
	switch {
	case v.help:
		out = append(out, helpLines()[:min(max(0, room), len(helpLines()))]...)
	case v.story != nil:
		out = append(out, v.storyLines(room)...)
	default:
		out = append(out, v.listLines(room)...)
	}
	return v.filled(out)
}

// filled returns the lines with what is at the bottom of the screen.
func (v *view) filled(lines []line) []line {
	for len(lines) < v.height-1 {
		lines = append(lines, nil)
	}
	return append(lines[:max(0, v.height-1)], v.foot())
}

// head returns what is at the top: how the gateway is, and which list is looked at.
func (v *view) head() []line {
	top, all := v.top(), v.attached(v.top())
	var rates *status.Rates
	for _, s := range all {
		rates = sumRates(rates, v.looks.rates(s))
	}
	names := make([]string, 0, len(all))
	for _, s := range all {
		names = append(names, s.Interface)
	}
	for _, w := range top.Waiting {
		if v.looksAt(w.Interface) {
			names = append(names, w.Interface+" (waiting)")
		}
	}
	mode, tone := modeOf(all)
	first := []span{{"earlydrop " + top.Version, strong}, {"mode " + mode, tone}, {cmp.Or(strings.Join(names, " "), "no interface"), plain}}
	if v.iface != "" {
		first = append(first, span{"only " + v.iface, warning})
	}
	if v.filter != "" && !v.typing {
		first = append(first, span{"filter " + v.filter, warning})
	}
	if v.paused {
		first = append(first, span{"PAUSED", warning})
	}
	first = append(first, span{top.Time.Local().Format(clock), plain}, span{"policy " + top.Policy, plain}, span{"model " + top.Model, plain})
	lines := flowed(first, v.width)

	r, known := rates, rates != nil
	if r == nil {
		r = new(status.Rates)
	}
	per := func(name string, rate float64) span {
		return span{name + " " + perSecond(rate, known).text + "/s", plain}
	}
	bytes := func(rate float64) span { return span{bytesPerSecond(rate, known).text, plain} }
	lines = append(lines, flowed([]span{
		per("packets", r.Packets), bytes(r.Bytes), per("dropped", r.DroppedPackets), bytes(r.DroppedBytes),
		per("new flows", r.Flows), per("verdicts", r.Verdicts), per("treated", r.Treated),
	}, v.width)...)

	var used, size [4]int
	latency := 0.0
	for _, s := range all {
		for i, n := range [4]int{s.Flows.Flows, s.Flows.Collecting, s.Flows.Blocked, s.Flows.Pairs} {
			used[i] += n
		}
		for i, n := range [4]int{s.Capacity.Flows, s.Capacity.Collecting, s.Capacity.Blocked, s.Capacity.Pairs} {
			size[i] += n
		}
		if s.Latency != nil {
			latency = max(latency, s.Latency.P99)
		}
	}
	fill := func(name string, used, size int) span {
		t := plain
		if size > 0 && used*10 >= size*9 && name != "flows" && name != "pairs" { // what does not fit there is no loss
			t = bad
		}
		return span{name + " " + percent(used, size).text, t}
	}
	pieces := []span{fill("flows", used[0], size[0]), fill("collecting", used[1], size[1]), fill("blocked", used[2], size[2]), fill("pairs", used[3], size[3]), fill("queue", top.Queue.Used, top.Queue.Size)}
	if latency > 0 {
		pieces = append(pieces, span{"verdict p99 " + micros(latency), plain})
	}
	if top.Inference != nil {
		pieces = append(pieces, span{"model p99 " + micros(top.Inference.P99), plain})
	}
	if n := top.Evidence.Treated.Used; n > 0 {
		pieces = append(pieces, span{fmt.Sprintf("treated pairs %d", n), plain})
	}
	lines = append(lines, flowed(pieces, v.width)...)
	lines = append(lines, v.warnings(all)...)
	return append(lines, v.tabs())
}

// modeOf returns the mode of interfaces in words.
func modeOf(all []*status.Status) (string, tone) {
	modes := map[string]int{}
	for _, s := range all {
		modes[s.Mode]++
	}
	switch {
	case len(all) == 0:
		return "-", plain
	case modes["enforce"] == len(all):
		return "enforce", good
	case modes["enforce"] > 0:
		return fmt.Sprintf("enforce on %d of %d", modes["enforce"], len(all)), warning
	}
	return "monitor", warning
}

// mostWarnings is how many lines warnings may take.
const mostWarnings = 3

// warnings returns what is not as it should be, a line each.
func (v *view) warnings(all []*status.Status) (lines []line) {
	top := v.top()
	if v.trouble != "" {
		lines = append(lines, say(bad, "! "+v.trouble+"; what is below is from "+top.Time.Local().Format(clock)))
	}
	for _, until := range []struct {
		t    time.Time
		what string
	}{{top.Evidence.PausedUntil, "rules without evidence"}, {top.Evidence.PausedUnprovenUntil, "rules without evidence, on flows that prove nothing about their initiator,"}} {
		if top.Time.Before(until.t) {
			lines = append(lines, say(bad, fmt.Sprintf("! a limit of the policy was reached: %s pause until %s", until.what, until.t.Local().Format(clock))))
		}
	}
	for _, s := range all {
		for _, w := range s.Worries {
			lines = append(lines, say(warning, "! "+s.Interface+": "+w.Text))
		}
	}
	for _, w := range top.Waiting {
		if w.Error != "" && v.looksAt(w.Interface) {
			lines = append(lines, say(warning, "! "+w.Interface+" is waited for: "+w.Error))
		}
	}
	if n := len(lines) - mostWarnings; n > 0 {
		lines = append(lines[:mostWarnings-1], say(warning, fmt.Sprintf("! %d more warnings, which the status has", n+1)))
	}
	return lines
}

// tabs returns the line with the lists. Where it is too long for the screen, the numbers are put
// close to the names.
func (v *view) tabs() line {
	for _, between := range []string{" ", ""} {
		var out line
		width := -1
		for l, name := range names {
			text, t := fmt.Sprintf("%d%s%s", l+1, between, name), plain
			if list(l) == v.list {
				text, t = "["+text+"]", strong
			}
			if l > 0 {
				out = append(out, span{" ", plain})
			}
			out = append(out, span{text, t})
			width += len(text) + 1
		}
		if width <= v.width || between == "" {
			return out
		}
	}
	return nil
}

// listLines returns the list, and on a high screen the latest decisions below it.
func (v *view) listLines(room int) []line {
	t, below := v.table(v.list), 0
	if v.height >= bothFrom && v.list != latest {
		below = room / 3
	}
	selected := v.selected(t)
	head, rows := t.lines(v.width-2, v.sort[v.list], v.turned[v.list])
	out := []line{append(line{{"  ", plain}}, head...)}
	visible := max(1, room-below-1)
	if v.first > v.at {
		v.first = v.at
	}
	v.first = max(0, max(v.first, v.at-visible+1))
	v.first = min(v.first, max(0, len(rows)-visible))
	for i := v.first; i < min(len(rows), v.first+visible); i++ {
		if i == v.at && selected != nil {
			out = append(out, line{{"> ", strong}, {rows[i][0].text, chosen}})
		} else {
			out = append(out, append(line{{"  ", plain}}, rows[i]...))
		}
	}
	if len(rows) == 0 {
		out = append(out, say(faint, "  "+v.nothing()))
	}
	if below > 0 {
		for len(out) < visible+1 {
			out = append(out, nil)
		}
		t := &table{columns[latest], v.rows(latest)}
		t.sortBy(v.sort[latest], v.turned[latest])
		head, rows := t.lines(v.width-2, v.sort[latest], v.turned[latest])
		out = append(out, append(line{{"  ", plain}}, head...))
		for _, r := range rows[:min(len(rows), below-1)] {
			out = append(out, append(line{{"  ", plain}}, r...))
		}
	}
	return out
}

// nothing says why a list is empty.
func (v *view) nothing() string {
	if v.filter != "" {
		return "nothing here has " + v.filter + " in it"
	}
	return [numLists]string{
		latest: "no verdict yet", pairs: "no flow was detected, and nothing dropped", servers: "no flow was detected, and nothing dropped",
		initiators: "no flow was detected, and nothing dropped", classes: "no verdict yet", rules: "no verdict yet", blocks: "no flow is blocked", treated: "no pair is treated",
		interfaces: "no interface is attached",
	}[v.list]
}

// foot returns the last line: a question, what came of a command, or keys.
func (v *view) foot() line {
	switch {
	case v.asking != nil:
		const answers = " y/n "
		return line{{fit(clean(v.asking.text), v.width-len(answers)) + answers, strong}}
	case v.typing:
		return line{{"filter: ", strong}, {v.filter, plain}, {"_", plain}, {gap + "Enter keeps it, Esc ends it", faint}}
	case v.said != "":
		return say(strong, v.said)
	case len(v.looks) == 0:
		return say(faint, "q quits")
	case v.help:
		return say(faint, "any key goes back")
	case v.story != nil:
		return say(faint, "Esc back  arrows scroll  u unblock  q quit")
	}
	return say(faint, "? help  q quit  Enter more  u unblock  s sort  / filter  i interface  p pause")
}

func helpLines() []line {
	var out []line
	for _, l := range strings.Split(strings.TrimSpace(helpText), "\n") {
		out = append(out, say(plain, l))
	}
	return out
}

const helpText = `
1 to 9, Tab         another list; left and right as well
up, down, j, k      another row; PgUp, PgDn, Home and End as well
Enter               what is known of the row; Esc goes back
s, S                sort by the next column; the other way round
/                   show rows only that have a text in them; Esc shows all
i                   one interface after another, then all
p, Space            stand still; again: go on
u                   lift blocks and treated pairs of the row, after a question
q, Ctrl-C           quit

latest      verdicts: "would drop" in mode monitor, else what the kernel does
pairs ...   who had flows detected, and packets dropped, since the daemon began
rules       verdicts by rule, decision and reason
treated     pairs whose connections the kernel treats as they begin
`
