// SPDX-License-Identifier: Apache-2.0

package why

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// lineWidth is how wide the lines for people are at most, but for words that are longer.
const lineWidth = 100

// Text returns the answer for people, the latest decision first.
func (a *Answer) Text(now time.Time) string {
	b := &builder{now: now}
	back := "and remembers none yet"
	switch {
	case a.Remembered >= a.Room:
		back = fmt.Sprintf("and remembers the last %d decisions, back to %s", a.Remembered, b.clock(a.Since))
	case a.Remembered > 0:
		back = fmt.Sprintf("and remembers %s, back to %s", event.Counted(a.Remembered, "decision"), b.clock(a.Since))
	}
	if a.Matched == 0 {
		b.line("", "%s: the daemon knows of no decision, %s", a.Of, back)
	} else {
		b.line("", "%s: %s", a.Of, event.Counted(a.Matched, "decision"))
	}
	for i := range a.Pairs {
		b.pair(&a.Pairs[i])
	}
	for i := range a.Decisions {
		b.decision(a, &a.Decisions[i])
	}
	if rest := a.Matched - len(a.Decisions); rest > 0 {
		b.line("", "\n%d more, and the daemon remembers nothing before %s", rest, b.clock(a.Since))
	} else if a.Matched > 0 {
		b.line("", "\nnothing is remembered before %s", b.clock(a.Since))
	}
	if len(a.Earlier) > 0 {
		b.line("", "\nbefore that, from the history, which may leave out flows that passed:")
	}
	for i := range a.Earlier {
		b.decision(a, &a.Earlier[i])
	}
	// Names of files and interfaces may hold anything.
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return '?'
		}
		return r
	}, b.String())
}

// builder makes the text.
type builder struct {
	strings.Builder
	now time.Time
}

// clock prints a time, with the day where it is another one.
func (b *builder) clock(t time.Time) string {
	t, now := t.Local(), b.now.Local()
	if t.Year() == now.Year() && t.YearDay() == now.YearDay() {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04:05")
}

// line adds a line, and breaks it where it is too long.
func (b *builder) line(indent, format string, args ...any) {
	width := 0
	for i, word := range strings.Split(fmt.Sprintf(format, args...), " ") {
		switch {
		case i == 0:
			b.WriteString(indent)
			width = len(indent)
		case width+1+len(word) > lineWidth:
			b.WriteString("\n" + indent + "  ")
			width = len(indent) + 2
		default:
			b.WriteByte(' ')
			width++
		}
		b.WriteString(word)
		width += len(word)
	}
	b.WriteByte('\n')
}

func (b *builder) pair(p *Pair) {
	vlan := vlanText(p.VLAN, p.InnerVLAN)
	initiator := p.Initiator.String()
	if p.Initiator.IsSingleIP() {
		initiator = p.Initiator.Addr().String()
	}
	known := fmt.Sprintf("%d of %s detected", p.Detected, event.Counted(p.Judged, "flow"))
	if p.Rule != "" {
		stopped := ""
		n, suspended := uint64(0), false
		for i := range p.Kernel {
			n, suspended = n+p.Kernel[i].Connections, suspended || p.Kernel[i].Suspended
		}
		if n > 0 {
			stopped = fmt.Sprintf("; %s since", event.Counted(n, "connection"))
		}
		if suspended {
			stopped += "; suspended, as the mode is monitor"
		}
		b.line("", "pair %s > %s%s: treated by rule %s until %s, %s%s", initiator, p.Server, vlan, p.Rule, b.clock(p.Until), known, stopped)
	} else {
		b.line("", "pair %s > %s%s: not treated, %s", initiator, p.Server, vlan, known)
	}
}

func (b *builder) decision(a *Answer, d *Decision) {
	v := d.Verdict
	b.WriteByte('\n')
	ends := fmt.Sprintf("%s %s > %s%s", v.Proto, v.Src, v.Dst, vlanText(v.VLAN, v.InnerVLAN))
	head := fmt.Sprintf("%s  %-11s", b.clock(v.Time), v.Outcome())
	if len(head)+2+len(ends)+4+len(v.Interface) <= lineWidth {
		b.WriteString(head + "  " + ends + " on " + v.Interface + "\n")
	} else {
		b.line("", "%s  on %s", head, v.Interface)
		b.line("  ", "%s", ends)
	}
	b.line("  ", "%s: %s", v.Line(v.Class, v.Confidence), b.because(a, d))
	if note := v.Note(); note != "-" || v.Provisional {
		notes := strings.Split(note, ",")
		if v.Provisional {
			notes = append(notes, "provisional")
		}
		b.line("  ", "of the flow: %s", strings.TrimPrefix(strings.Join(notes, ", "), "-, "))
	}
	if text := b.became(d); text != "" {
		b.line("  ", "%s", text)
	}
}

// because says why the policy decided so.
func (b *builder) because(a *Answer, d *Decision) string {
	v := d.Verdict
	at := fmt.Sprintf("%s:%d", a.Policy, v.PolicyLine)
	if a.Policy == "built-in" {
		at = fmt.Sprintf("built-in policy, line %d", v.PolicyLine)
	}
	switch {
	case v.PolicyLine == 0: // no policy file says so
		at = a.Policy
	case d.BeforeReload:
		at += " before the reload of " + b.clock(a.PolicySince)
	}
	rule := fmt.Sprintf("rule %s (%s)", v.Rule, at)
	seen := fmt.Sprintf("%d of %s of the pair detected", v.EvidenceFlows, event.Counted(v.EvidenceJudged, "flow"))
	until := b.clock(v.Time.Add(time.Duration(v.TTL * float64(time.Second))))
	switch v.Reason {
	case policy.ReasonRule:
		return rule + " " + does(v)
	case policy.ReasonMeanwhile:
		meanwhile := "passes it"
		if v.Decision != flow.Pass.String() {
			meanwhile = does(v)
		}
		return fmt.Sprintf("%s waits for evidence, %s, and %s meanwhile", rule, seen, meanwhile)
	case policy.ReasonEvidence:
		return fmt.Sprintf("%s treats the pair until %s: %s", rule, until, seen)
	case policy.ReasonPair:
		return fmt.Sprintf("%s treats its pair until %s: %s", rule, until, seen)
	case policy.ReasonExempt:
		return "somebody has lifted a block of the flow, and so it passes for its life"
	case policy.ReasonPaused:
		return rule + " would treat it, but pauses as a limit was reached"
	case policy.ReasonAllowList:
		return fmt.Sprintf("the allow-list has %s (%s)", v.Rule, at)
	case policy.ReasonNoRule:
		return "no rule is for it"
	case policy.ReasonLowConfidence:
		return "less than the confidence that " + rule + " asks for"
	case policy.ReasonException:
		return "it is an exception of " + rule
	case policy.ReasonUDPUnproven:
		return rule + " has no udp_unproven: true"
	case policy.ReasonOneWay:
		return rule + " has no one_way: true"
	case policy.ReasonMidStream:
		return rule + " has no mid_stream: true"
	case policy.ReasonNoSignal:
		return "it shows no signal that " + rule + " asks for"
	case policy.ReasonProvisional:
		return rule + " waits until the capture is complete"
	case policy.ReasonFinal:
		return rule + " is for provisional verdicts only"
	case policy.ReasonPartial:
		return rule + " is for captures of all 1024 bytes only"
	case policy.ReasonComplete:
		return rule + " is for captures of fewer than 1024 bytes only"
	case policy.ReasonScant:
		return "too little payload for " + rule
	}
	return v.Reason
}

// does says what a rule does.
func does(v *event.Verdict) string {
	switch v.Decision {
	case flow.Limit.String():
		return "limits it to " + policy.FormatRate(v.Rate)
	case flow.Log.String():
		return "logs it"
	case flow.Reset.String():
		return "resets it"
	}
	return "drops it"
}

// became says what has become of the flow.
func (b *builder) became(d *Decision) string {
	v, block := d.Verdict, d.Block
	switch {
	case block != nil:
		text := "blocked"
		if block.Action == flow.Limit.String() {
			text = "limited"
		}
		if block.Rule == flow.ByHand {
			text += " by hand"
		} else if !v.Treats() {
			text += " by rule " + block.Rule
		}
		text += fmt.Sprintf(" until %s, %s dropped so far", b.clock(block.Expires), packets(block.Packets, block.Bytes))
		if block.Suspended {
			text += "; suspended, as the mode is monitor"
		}
		return text
	case d.Ended != nil:
		return fmt.Sprintf("its block ended at %s (%s), %s dropped", b.clock(d.Ended.Time), strings.ReplaceAll(d.Ended.Reason, "_", " "),
			packets(d.Ended.DroppedPackets, d.Ended.DroppedBytes))
	case v.Error != "":
		return "it passes: " + v.Error
	case v.Treats() && v.Mode == policy.Monitor.String():
		return "it passes: the mode was monitor"
	case v.Treats() && !d.fromHistory:
		return "not blocked any more"
	}
	return ""
}

func packets(n, bytes uint64) string {
	return fmt.Sprintf("%s (%s)", event.Counted(n, "packet"), event.ByteCount(bytes))
}

func vlanText(outer, inner uint16) string {
	switch {
	case inner != 0:
		return fmt.Sprintf(" vlan %d.%d", outer, inner)
	case outer != 0:
		return fmt.Sprintf(" vlan %d", outer)
	}
	return ""
}
