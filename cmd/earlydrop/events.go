// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// event is one line of the event log. Fields that an event does not have are
// left out.
type event struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"` // attached, verdict, block_ended, ended

	Interface string `json:"interface"`
	Mode      string `json:"mode,omitempty"`
	XDP       string `json:"xdp,omitempty"`
	Egress    string `json:"egress,omitempty"`
	Adopted   *bool  `json:"adopted,omitempty"`
	Policy    string `json:"policy,omitempty"`

	// verdict and block_ended
	Src       string    `json:"src,omitempty"` // initiator
	Dst       string    `json:"dst,omitempty"`
	Proto     string    `json:"proto,omitempty"`
	VLAN      uint16    `json:"vlan,omitempty"`
	InnerVLAN uint16    `json:"inner_vlan,omitempty"`
	Start     time.Time `json:"start,omitzero"`

	// verdict
	Class      string             `json:"class,omitempty"`
	Confidence *float64           `json:"confidence,omitempty"` // of the likeliest label
	Scores     map[string]float64 `json:"scores,omitempty"`
	Decision   string             `json:"decision,omitempty"` // pass or drop, as the policy says
	Enforced   *bool              `json:"enforced,omitempty"` // the kernel drops it
	Rule       string             `json:"rule,omitempty"`
	// What was compared with the rule's min_confidence: the probability that
	// the flow is of one of its classes.
	RuleConfidence *float64 `json:"rule_confidence,omitempty"`
	Reason         string   `json:"reason,omitempty"`
	TTL            float64  `json:"ttl_seconds,omitempty"`
	Model          string   `json:"model,omitempty"`
	Captured       int      `json:"captured,omitempty"`    // bytes
	Complete       *bool    `json:"complete,omitempty"`    // all 1024 of them
	HandedOver     string   `json:"handed_over,omitempty"` // full, closed, idle
	MidStream      bool     `json:"mid_stream,omitempty"`  // captured from its middle
	Resumed        bool     `json:"resumed,omitempty"`     // UDP that may have been there before
	Packets        int      `json:"packets,omitempty"`     // until the verdict
	Bytes          uint64   `json:"bytes,omitempty"`       // on the wire, until the verdict
	VerdictMS      float64  `json:"verdict_ms,omitempty"`  // from the flow's first packet
	LatencyUS      float64  `json:"latency_us,omitempty"`  // from the hand-over to the verdict in the map

	// block_ended, ended
	DroppedPackets *uint64           `json:"dropped_packets,omitempty"`
	DroppedBytes   *uint64           `json:"dropped_bytes,omitempty"`
	Classes        map[string]uint64 `json:"classes,omitempty"`
	Counters       map[string]uint64 `json:"counters,omitempty"`
	Persisted      *bool             `json:"persisted,omitempty"`

	text string // for people, instead of what print makes of the fields
}

func newVerdictEvent(d *daemon, s *flow.Sample, r flow.Result, dec policy.Decision, enforced bool, at time.Time) event {
	var wire uint64
	for _, p := range s.Packets {
		wire += uint64(p.WireLen)
	}
	scores := make(map[string]float64, len(r.Scores))
	for i, label := range r.Labels {
		scores[label] = r.Scores[i]
	}
	complete := s.Complete()
	handedOver := s.Start.Add(s.Elapsed)
	var ruleConfidence *float64
	if dec.Rule != "" && dec.Reason != policy.ReasonAllowList {
		ruleConfidence = &dec.Confidence
	}
	return event{
		Time: at, Event: "verdict", Interface: d.iface(), Mode: d.mode.String(),
		Src: s.Initiator().String(), Dst: s.Responder().String(), Proto: s.Key.Proto.String(),
		VLAN: s.Key.VLAN, InnerVLAN: s.Key.InnerVLAN, Start: s.Start,
		Class: r.Class, Confidence: &r.Confidence, Scores: scores,
		Decision: dec.Action.String(), Enforced: &enforced, Rule: dec.Rule, RuleConfidence: ruleConfidence, Reason: dec.Reason,
		TTL: dec.TTL.Seconds(), Model: d.model,
		Captured: len(s.Data), Complete: &complete, HandedOver: s.Reason.String(), MidStream: s.MidStream, Resumed: s.Resumed,
		Packets: len(s.Packets), Bytes: wire,
		VerdictMS: milliseconds(at.Sub(s.Start)),
		LatencyUS: float64(max(0, at.Sub(handedOver)).Nanoseconds()) / 1e3,
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// sinks write events, from a goroutine of their own: a terminal or a disk that is
// slow must not hold up verdicts. What does not fit into the queue is counted.
type sinks struct {
	text           io.Writer   // nil: none
	json           []io.Writer // one object per line each
	closers        []io.Closer
	stderr         io.Writer
	quiet, verbose bool
	created        string // the event file, if it was not there before

	queue chan event
	done  chan struct{}
	lost  atomic.Uint64
}

const eventQueue = 8192

func (s *sinks) start() {
	s.queue, s.done = make(chan event, eventQueue), make(chan struct{})
	go s.write()
}

// close writes what is queued and closes the files.
func (s *sinks) close() {
	close(s.queue)
	<-s.done
	for _, c := range s.closers {
		_ = c.Close()
	}
	if n := s.lost.Load(); n > 0 {
		slog.Warn("events were not written: the output was too slow", "lost", n)
	}
}

// uncreate removes an event file that was created for nothing.
func (s *sinks) uncreate() {
	if s.created != "" {
		_ = os.Remove(s.created)
	}
}

func (s *sinks) verdict(e event) {
	select {
	case s.queue <- e:
	default:
		s.lost.Add(1)
	}
}

func (s *sinks) write() {
	defer close(s.done)
	var buffers []*bufio.Writer
	buffer := func(w io.Writer) *bufio.Writer {
		b := bufio.NewWriterSize(&output{to: w}, 64<<10)
		buffers = append(buffers, b)
		return b
	}
	var text *bufio.Writer
	if s.text != nil {
		text = buffer(s.text)
	}
	notes := text
	if notes == nil {
		notes = buffer(s.stderr) // standard output is for machines
	}
	var encoders []*json.Encoder
	for _, w := range s.json {
		encoders = append(encoders, json.NewEncoder(buffer(w)))
	}
	for e := range s.queue {
		// output takes everything, so that none of these fails.
		switch {
		case e.text != "":
			_, _ = notes.WriteString(e.text)
		case text != nil:
			_ = s.print(text, &e)
		}
		for _, enc := range encoders {
			_ = enc.Encode(&e)
		}
		if len(s.queue) == 0 { // nothing is waiting: let people see it
			for _, b := range buffers {
				_ = b.Flush()
			}
		}
	}
	for _, b := range buffers {
		_ = b.Flush()
	}
}

// output warns where a write fails and takes what comes next: a disk may have
// room again. An output whose reader is gone is left alone.
type output struct {
	to     io.Writer
	gone   bool
	cut    bool // a line may have been cut
	warned rateLimit
}

func (o *output) Write(p []byte) (int, error) {
	if o.gone {
		return len(p), nil
	}
	var err error
	if o.cut {
		_, err = o.to.Write([]byte("\n"))
	}
	if err == nil {
		_, err = o.to.Write(p)
	}
	o.cut = err != nil
	switch {
	case err == nil:
	case errors.Is(err, unix.EPIPE):
		o.gone = true
		slog.Warn("nobody reads the events any more; the work goes on", "error", err)
	case o.warned.allow():
		slog.Warn("events not written", "error", err)
	}
	return len(p), nil
}

// print writes e as a line for people.
func (s *sinks) print(w io.Writer, e *event) error {
	switch e.Event {
	case "verdict":
		return s.printVerdict(w, e)
	case "block_ended":
		_, err := fmt.Fprintf(w, "%s  block ended  %s %s > %s  %s, dropped %d packets, %s\n", clock(e.Time), e.Proto, e.Src, e.Dst, e.Class, *e.DroppedPackets, byteCount(*e.DroppedBytes))
		return err
	}
	return nil // the others bring their text along
}

func (s *sinks) printVerdict(w io.Writer, e *event) error {
	if s.quiet && e.Decision != policy.Drop.String() {
		return nil
	}
	what := e.Decision
	if e.Decision == policy.Drop.String() && !*e.Enforced {
		what = "would drop"
	}
	vlan := ""
	if e.VLAN != 0 || e.InnerVLAN != 0 {
		vlan = fmt.Sprintf(" vlan %d.%d", e.VLAN, e.InnerVLAN)
	}
	line := fmt.Sprintf("%s  %-10s  %s %s > %s%s  %s %.3f  %.1f ms, %d packets", clock(e.Time), what, e.Proto, e.Src, e.Dst, vlan, e.Class, *e.Confidence, e.VerdictMS, e.Packets)
	if e.MidStream {
		line += ", mid-stream"
	}
	if e.Resumed {
		line += ", resumed"
	}
	if e.Rule != "" {
		line += "  " + e.Reason + " " + e.Rule
		if e.RuleConfidence != nil && *e.RuleConfidence != *e.Confidence {
			line += fmt.Sprintf(" (%.3f)", *e.RuleConfidence)
		}
	}
	if s.verbose {
		var scores []string
		for _, label := range slices.Sorted(maps.Keys(e.Scores)) {
			scores = append(scores, fmt.Sprintf("%s %.4f", label, e.Scores[label]))
		}
		line += fmt.Sprintf("  [%s; %s, %d bytes captured, %d on the wire; verdict %.0f us after the hand-over; model %s]",
			strings.Join(scores, ", "), e.HandedOver, e.Captured, e.Bytes, e.LatencyUS, e.Model)
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

func clock(t time.Time) string { return t.Format("15:04:05.000") }

// byteCount prints a number of bytes for people.
func byteCount(n uint64) string {
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

// attached tells how the data path was attached.
func (s *sinks) attached(d *daemon, policyName string) {
	info := d.dp.Info
	var text strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&text, format+"\n", args...) }
	how := "attached"
	if info.Adopted {
		how = "adopted"
	}
	say("%s %s: xdp %s, egress %s, mode %s, policy %s, model %s, device %s",
		how, d.iface(), info.XDPMode, info.Egress, d.mode, policyName, d.model, d.engine.Device())
	if info.XDPFallback != nil {
		say("native xdp is not possible on %s, generic is slower: %v", d.iface(), info.XDPFallback)
	}
	if info.Replaced != "" {
		say("what was pinned was replaced: %s", info.Replaced)
	}
	if info.BlocksLost != nil {
		say("not all blocks found room in the new tables: %v", info.BlocksLost)
	}
	if info.BlocksAdopted > 0 {
		say("%d flows stay blocked", info.BlocksAdopted)
	}
	if info.BlocksRemoved > 0 {
		say("%d blocks removed: mode monitor drops nothing", info.BlocksRemoved)
	}
	if info.HiddenVLANs {
		say("%s strips VLAN tags on receive, so the two directions of tagged flows don't match: ethtool -K %s rxvlan off rx-vlan-stag-hw-parse off", d.iface(), d.iface())
	}
	if !d.policy.TreatsUDP() {
		say("%s", udpNotTreated)
	} else {
		say("UDP flows are treated as rules say udp_unproven: true; who forges datagrams can have flows of others dropped")
	}
	say("tables: %s; %s of kernel memory", info.Sizes, byteCount(info.Memory))
	say("maps: bpftool map dump pinned %s/blocked", info.PinDir)
	for _, warning := range warnings(d.iface(), info) {
		say("warning: %s", warning)
	}
	s.queue <- event{
		Time: time.Now(), Event: "attached", Interface: d.iface(), Mode: d.mode.String(), XDP: string(info.XDPMode),
		Egress: info.Egress, Adopted: &info.Adopted, Policy: policyName, Model: d.model, text: text.String(),
	}
}

// blockEnded tells that a block is over, and why.
func (s *sinks) blockEnded(d *daemon, b loader.Block) {
	s.verdict(event{
		Time: time.Now(), Event: "block_ended", Interface: d.iface(), Src: b.Key.Lo.String(), Dst: b.Key.Hi.String(),
		Proto: b.Key.Proto.String(), VLAN: b.Key.VLAN, InnerVLAN: b.Key.InnerVLAN, Class: b.Class, Rule: b.Rule,
		DroppedPackets: &b.Packets, DroppedBytes: &b.Bytes, Reason: string(b.Ended),
	})
}

// summary is what a run of the daemon comes to.
type summary struct {
	iface    string
	took     time.Duration
	mode     policy.Mode
	classes  map[string]uint64
	counters map[string]uint64 // those that are not zero
	order    []string          // their names, in the kernel's order
}

func (d *daemon) summary() summary {
	s := summary{iface: d.iface(), took: time.Since(d.started), mode: d.mode, classes: map[string]uint64{}, counters: map[string]uint64{}}
	d.classes.Range(func(k, v any) bool {
		s.classes[k.(string)] = v.(*atomic.Uint64).Load()
		return true
	})
	add := func(name string, v uint64) {
		if v != 0 {
			s.counters[name] = v
			s.order = append(s.order, name)
		}
	}
	if c, err := d.dp.Counters(); err == nil {
		for name, v := range c.All() {
			add(name, v)
		}
	}
	dc := d.counters()
	add("classified", dc.Classified)
	add("to_drop", dc.ToDrop)
	add("blocked", dc.Blocked)
	add("queue_full", dc.QueueFull)
	add("not_classified", dc.NotClassified)
	add("not_blocked", dc.NotBlocked)
	add("events_lost", d.out.lost.Load())
	add("pins_restored", d.pinsRestored.Load())
	return s
}

// ended prints the summary.
func (s *sinks) ended(sum summary, persist bool) {
	var text strings.Builder
	fmt.Fprintf(&text, "\n%s after %s, mode %s\n", sum.iface, sum.took.Round(time.Millisecond), sum.mode)
	for _, class := range slices.Sorted(maps.Keys(sum.classes)) {
		fmt.Fprintf(&text, "  %-20s %10d flows\n", class, sum.classes[class])
	}
	for _, name := range sum.order {
		fmt.Fprintf(&text, "  %-20s %10d\n", name, sum.counters[name])
	}
	if persist {
		fmt.Fprintf(&text, "the data path stays attached to %s (earlydrop detach -i %s removes it)\n", sum.iface, sum.iface)
	} else {
		fmt.Fprintf(&text, "detached from %s\n", sum.iface)
	}
	s.queue <- event{
		Time: time.Now(), Event: "ended", Interface: sum.iface, Mode: sum.mode.String(), Classes: sum.classes,
		Counters: sum.counters, Persisted: &persist, text: text.String(),
	}
}
