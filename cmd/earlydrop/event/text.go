// SPDX-License-Identifier: Apache-2.0

package event

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Text returns a verdict of live traffic as a line for people, without its end.
// Verbose adds the probabilities and how the verdict came about.
func (v *Verdict) Text(verbose bool) string {
	vlan := ""
	if v.VLAN != 0 || v.InnerVLAN != 0 {
		vlan = fmt.Sprintf(" vlan %d.%d", v.VLAN, v.InnerVLAN)
	}
	line := fmt.Sprintf("%s  %-11s  %s %s > %s%s  %s  %.1f ms, %d packets", Clock(v.Time), v.Outcome(), v.Proto, v.Src, v.Dst, vlan,
		v.Line(v.Class, v.Confidence), v.VerdictMS, v.Packets)
	for _, note := range v.notes() {
		line += ", " + note
	}
	if v.Signals != nil {
		line += ", shows " + strings.Join(v.Signals, " ")
	}
	if v.Rule != "" {
		line += "  " + v.Reason + " " + v.Rule
	}
	if v.EvidenceJudged > 0 {
		line += fmt.Sprintf(" (%d of %d flows of the pair)", v.EvidenceFlows, v.EvidenceJudged)
	}
	if v.Error != "" {
		line += "  it passes: " + v.Error
	}
	if verbose {
		var scores []string
		for i, label := range v.Scores.Labels {
			scores = append(scores, fmt.Sprintf("%s %.4f", label, v.Scores.Values[i]))
		}
		slices.Sort(scores)
		line += fmt.Sprintf("  [%s; %s, %d bytes captured, %d on the wire; verdict %.0f us after the hand-over; model %s]",
			strings.Join(scores, ", "), v.HandedOver, v.Captured, v.Bytes, v.LatencyUS, v.Model)
	}
	return line
}

// Outcome says in a word or two what became of a flow of live traffic: "drop", "would drop",
// "drop failed".
func (v *Verdict) Outcome() string {
	switch {
	case !v.Treats() || v.Enforced != nil && *v.Enforced:
		return v.Decision
	case v.Error != "":
		return v.Decision + " failed"
	}
	return "would " + v.Decision
}

// Drop reports whether the policy says to drop all packets of the flow.
func (v *Verdict) Drop() bool {
	return v.Decision == flow.Drop.String() || v.Decision == flow.Reset.String()
}

// Treats reports whether the policy says to drop packets of the flow, all or those that are
// more than a limit.
func (v *Verdict) Treats() bool { return v.Drop() || v.Decision == flow.Limit.String() }

// Logged reports whether a rule says to do no more to the flow than to log it.
func (v *Verdict) Logged() bool { return v.Decision == flow.Log.String() }

// StartFormat is how the start of a flow is printed for people, in UTC.
const StartFormat = "2006-01-02 15:04:05.000"

// Called is what the flow is called: the classes that decided, or the model's outcome
// where no rule was asked.
func (v *Verdict) Called() string { return v.Name(v.Class) }

// notes are words for how the capture came about, live and in files; MidStream is of TCP and
// Resumed of UDP.
func (v *Verdict) notes() (notes []string) {
	for _, n := range [...]struct {
		is   bool
		word string
	}{{v.MidStream, "mid-stream"}, {v.Resumed, "resumed"}, {v.OneWay, "one-way"}, {v.Revised > 0, "revised"}, {v.Variant, "variant"}} {
		if n.is {
			notes = append(notes, n.word)
		}
	}
	return notes
}

// Note says in a word what is special about the capture of a flow, "-" if nothing is.
func (v *Verdict) Note() string {
	var notes []string
	switch {
	case v.Incomplete:
		notes = append(notes, "incomplete")
	case v.Cut:
		notes = append(notes, "cut")
	}
	notes = append(append(notes, v.notes()...), v.Signals...)
	if notes == nil {
		return "-"
	}
	return strings.Join(notes, ",")
}

// Text returns the event as a line for people, without its end.
func (w *Waiting) Text() string {
	line := fmt.Sprintf("%s  waiting for %s", Clock(w.Time), w.Interface)
	if w.Error != "" {
		line += ": " + w.Error
	}
	return line
}

// Text returns the event as a line for people, without its end.
func (b *BlockEnded) Text() string {
	return fmt.Sprintf("%s  block ended  %s %s > %s  %s, dropped %d packets, %s", Clock(b.Time), b.Proto, b.Src, b.Dst, b.Class,
		b.DroppedPackets, ByteCount(b.DroppedBytes))
}

// Text returns the event as a line for people, without its end.
func (p *PairTreated) Text() string {
	return fmt.Sprintf("%s  pair treated  %s  %s %s until %s on %s  %s (%d of %d flows)", Clock(p.Time), p.Pair(), p.Class, p.Action,
		Clock(p.Until), p.Interface, p.Rule, p.EvidenceFlows, p.EvidenceJudged)
}

// Text returns the event as a line for people, without its end.
func (p *PairEnded) Text() string {
	return fmt.Sprintf("%s  pair ended  %s  %s on %s, %d connections, dropped %d packets, %s  %s", Clock(p.Time), p.Pair(), p.Class, p.Interface,
		p.Connections, p.DroppedPackets, ByteCount(p.DroppedBytes), p.Reason)
}

// Text returns the event as a line for people, without its end.
func (l *LimitReached) Text() string {
	kind := "proven connections"
	if !l.Proven {
		kind = "flows that prove nothing about their initiator"
	}
	return fmt.Sprintf("%s  ALERT: limit %s reached: of %d initiators of an hour, flows of %d treated; of %s, what rules do without evidence pauses until %s",
		Clock(l.Time), l.Limit, l.Initiators, l.Treated, kind, Clock(l.Until))
}

// Text returns the event as a line for people, without its end.
func (f *DeviceFailed) Text() string {
	return fmt.Sprintf("%s  ALERT: %s failed, so %s computes the model %s from now on: %s", Clock(f.Time), f.Device, f.Instead, f.Model, f.Error)
}

// Text returns the event as a line for people, without its end.
func (l *LeftOut) Text() string {
	return fmt.Sprintf("%s  left out  %d verdicts that pass", Clock(l.Time), l.PassesLeftOut)
}

// Text returns the event as a line for people, without its end.
func (r *Reloaded) Text() string {
	if r.Error != "" {
		return fmt.Sprintf("%s  not reloaded, nothing has changed  %s", Clock(r.Time), r.Error)
	}
	changes := "nothing changed"
	if r.Changes != nil {
		changes = r.Changes.String()
	}
	line := fmt.Sprintf("%s  reloaded  policy %s: %s", Clock(r.Time), r.Policy, changes)
	if r.Was != "" {
		line += fmt.Sprintf("; model %s instead of %s", r.Model, r.Was)
	}
	if r.BlocksLifted > 0 {
		line += fmt.Sprintf("; %d blocks lifted", r.BlocksLifted)
	}
	return line
}

// Text returns the event as a line for people, without its end.
func (d *Disagreed) Text() string {
	return fmt.Sprintf("%s  disagreed  %s %s > %s  %s %.3f (%s), by %s %s %.3f (%s)", Clock(d.Time), d.Proto, d.Src, d.Dst,
		d.First.Class, d.First.Confidence, d.First.Decision, d.Second.Model, d.Second.Class, d.Second.Confidence, d.Second.Decision)
}

// Text returns the event as a line for people, without its end.
func (m *ModeChanged) Text() string {
	return fmt.Sprintf("%s  mode %s  on %s", Clock(m.Time), m.Mode, m.Interface)
}

// Text returns the event as a line for people, without its end.
func (a *Audit) Text() string {
	line := fmt.Sprintf("%s  %s %s by uid %d, gid %d, pid %d", Clock(a.Time), strings.ReplaceAll(a.Action, "_", " "), a.Outcome, a.UID, a.GID, a.PID)
	if a.Interface != "" {
		line += "  " + a.Interface
	}
	if a.Asked != "" {
		line += "  " + a.Asked
	}
	if a.Blocks != 0 {
		line += fmt.Sprintf("  %d blocks", a.Blocks)
	}
	if a.Pairs != 0 {
		line += fmt.Sprintf("  %d pairs", a.Pairs)
	}
	if a.Error != "" {
		line += ": " + a.Error
	}
	return line
}

// Text returns the event as a line for people, without its end.
func (l *Lost) Text() string {
	return fmt.Sprintf("%s  lost  %d events: this reader was too slow", Clock(l.Time), l.EventsLost)
}

// Text returns the event as a line for people, without its end.
func (a *Attached) Text() string {
	how := "attached"
	if a.Adopted {
		how = "adopted"
	}
	return fmt.Sprintf("%s  %s  %s: ingress %s, xdp %s, egress %s, mode %s, policy %s, model %s", Clock(a.Time), how, a.Interface, a.Ingress, a.XDP, a.Egress, a.Mode, a.Policy, a.Model)
}

// Text returns the event as a line for people, without its end.
func (e *Ended) Text() string {
	what := "detached"
	if e.Persisted {
		what = "the data path stays attached"
	}
	return fmt.Sprintf("%s  ended  %s: %s", Clock(e.Time), e.Interface, what)
}

// Clock prints a time for people, local, so that logs of several days and machines can be
// distinguished.
func Clock(t time.Time) string { return t.Format("2006-01-02T15:04:05.000Z07:00") }

// ByteCount prints a number of bytes for people.
func ByteCount(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	div, exp := uint64(unit), 0
	for v := n / unit; v >= unit && exp < 4; v /= unit {
		div *= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", float64(n)/float64(div), "KMGTP"[exp])
}

// Counted returns a number of things for people: "1 flow", "2 flows".
func Counted[N int | uint64](n N, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
