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
	Event string    `json:"event"` // attached, verdict, block_ended, left_out, ended

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

	// verdict; Class is the model's outcome, naming says what decided.
	Class      string             `json:"class,omitempty"`
	Confidence *float64           `json:"confidence,omitempty"` // of the likeliest label
	Scores     map[string]float64 `json:"scores,omitempty"`
	Decision   string             `json:"decision,omitempty"` // pass or drop, as the policy says
	Enforced   *bool              `json:"enforced,omitempty"` // the kernel drops it
	Error      string             `json:"error,omitempty"`    // why a drop could not be enforced
	Rule       string             `json:"rule,omitempty"`
	naming
	Reason     string  `json:"reason,omitempty"`
	TTL        float64 `json:"ttl_seconds,omitempty"`
	Model      string  `json:"model,omitempty"`
	Captured   int     `json:"captured,omitempty"`    // bytes
	Complete   *bool   `json:"complete,omitempty"`    // all 1024 of them
	HandedOver string  `json:"handed_over,omitempty"` // full, closed, idle
	MidStream  bool    `json:"mid_stream,omitempty"`  // captured from its middle
	Resumed    bool    `json:"resumed,omitempty"`     // UDP that may have been there before
	OneWay     bool    `json:"one_way,omitempty"`     // one direction alone was seen
	// what the first packets show that ordinary ones rarely do
	Signals   []string `json:"signals,omitempty"`
	Packets   int      `json:"packets,omitempty"`    // until the verdict
	Bytes     uint64   `json:"bytes,omitempty"`      // on the wire, until the verdict
	VerdictMS float64  `json:"verdict_ms,omitempty"` // from the flow's first packet
	LatencyUS float64  `json:"latency_us,omitempty"` // from the hand-over to the verdict in the map

	// left_out: verdicts since the last such event that --events-pass left out
	PassesLeftOut uint64 `json:"passes_left_out,omitempty"`

	// block_ended, ended
	DroppedPackets *uint64           `json:"dropped_packets,omitempty"`
	DroppedBytes   *uint64           `json:"dropped_bytes,omitempty"`
	Classes        map[string]uint64 `json:"classes,omitempty"`
	Counters       map[string]uint64 `json:"counters,omitempty"`
	Persisted      *bool             `json:"persisted,omitempty"`

	text   string // for people, instead of what print makes of the fields
	reopen bool   // no event: the file is to be opened again before the next one
}

// newVerdictEvent returns the event of a verdict. failed says why a drop was not
// enforced, although it should have been.
func newVerdictEvent(d *daemon, s *flow.Sample, r flow.Result, dec policy.Decision, enforced bool, failed error, at time.Time) event {
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
	e := event{
		Time: at, Event: "verdict", Interface: s.Source.Interface, Mode: d.mode.String(),
		Src: s.Initiator().String(), Dst: s.Responder().String(), Proto: s.Key.Proto.String(),
		VLAN: s.Key.VLAN, InnerVLAN: s.Key.InnerVLAN, Start: s.Start,
		Class: r.Class, Confidence: &r.Confidence, Scores: scores,
		Decision: dec.Action.String(), Enforced: &enforced, Rule: dec.Rule, naming: nameFlow(&dec), Reason: dec.Reason,
		TTL: dec.TTL.Seconds(), Model: d.model,
		Captured: len(s.Data), Complete: &complete, HandedOver: s.Reason.String(), MidStream: s.MidStream, Resumed: s.Resumed, OneWay: s.OneWay,
		Signals: s.Signals.Names(),
		Packets: len(s.Packets), Bytes: wire,
		VerdictMS: milliseconds(at.Sub(s.Start)),
		LatencyUS: float64(max(0, at.Sub(handedOver)).Nanoseconds()) / 1e3,
	}
	if failed != nil {
		e.Error = failed.Error()
	}
	return e
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// sinks write events, from a goroutine of their own: a terminal or a disk that is
// slow must not hold up verdicts. What does not fit into the queue is counted.
type sinks struct {
	iface          func() string // what the interface is called now
	text           io.Writer     // nil: none
	json           io.Writer     // one object per line each; nil: none
	file           *eventFile    // the same; nil: none
	stderr         io.Writer
	quiet, verbose bool
	passes         *passLimit

	queue chan event
	done  chan struct{}
	lost  atomic.Uint64
}

// eventQueue is how many events may wait. The last quarter of the queue is left to
// those that must not be lost: flows that pass undetected come in floods.
const eventQueue = 8192

func (s *sinks) start() {
	s.queue, s.done = make(chan event, eventQueue), make(chan struct{})
	go s.write()
}

// close writes what is queued and closes the file.
func (s *sinks) close() {
	close(s.queue)
	if !s.drained() {
		slog.Warn("the output takes no more events: those that still wait are lost", "lost", uint64(len(s.queue))+s.lost.Load())
		return
	}
	if s.file != nil {
		if err := s.file.Close(); err != nil {
			slog.Warn("the event file was not closed properly", "error", err)
		}
	}
	if n := s.lost.Load(); n > 0 {
		slog.Warn("events were not written: the output was too slow", "lost", n)
	}
}

// uncreate removes an event file that was created for nothing.
func (s *sinks) uncreate() {
	if s.file != nil && s.file.created {
		_ = os.Remove(s.file.path)
	}
}

func (s *sinks) verdict(e event) {
	ordinary := e.Detected != nil && !*e.Detected
	if ordinary && len(s.queue) >= eventQueue*3/4 {
		s.lost.Add(1)
		return
	}
	select {
	case s.queue <- e:
	default:
		s.lost.Add(1)
	}
}

func (s *sinks) write() {
	defer close(s.done)
	var buffers []*bufio.Writer
	buffer := func(w io.Writer) (*bufio.Writer, *output) {
		o := &output{to: w, tty: terminal(w) != nil}
		b := bufio.NewWriterSize(o, 64<<10)
		buffers = append(buffers, b)
		return b, o
	}
	var text *bufio.Writer
	if s.text != nil {
		text, _ = buffer(s.text)
	}
	notes := text
	if notes == nil {
		notes, _ = buffer(s.stderr) // standard output is for machines
	}
	var encoders []*json.Encoder
	if s.json != nil {
		b, _ := buffer(s.json)
		encoders = append(encoders, json.NewEncoder(b))
	}
	var file *bufio.Writer
	var fileOutput *output
	if s.file != nil {
		file, fileOutput = buffer(s.file)
		encoders = append(encoders, json.NewEncoder(file))
	}
	write := func(e *event) {
		// output takes everything, so that none of these fails.
		switch {
		case e.text != "":
			_, _ = notes.WriteString(e.text)
		case text != nil:
			_ = s.print(text, e)
		}
		for _, enc := range encoders {
			_ = enc.Encode(e)
		}
	}
	tick := time.NewTicker(sayLeftOut)
	defer tick.Stop()
	for open := true; open; {
		var e event
		select {
		case now := <-tick.C:
			if e, ok := s.leftOutEvent(now); ok {
				write(&e)
			}
		case e, open = <-s.queue:
			switch {
			case !open:
			case e.reopen:
				_ = file.Flush() // what comes before belongs to the old file
				if err := s.file.reopen(); err != nil {
					slog.Error("the event file can't be opened again; events go on to the old one", "error", err)
					break
				}
				*fileOutput = output{to: s.file, tty: terminal(s.file.File) != nil}
				slog.Info("event file opened again", "file", s.file.path)
			default:
				write(&e)
			}
		}
		if len(s.queue) == 0 { // nothing is waiting: let people see it
			for _, b := range buffers {
				_ = b.Flush()
			}
		}
	}
}

// output warns where a write fails and takes what comes next: a disk may have
// room again. An output whose reader is gone is left alone.
type output struct {
	to     io.Writer
	tty    bool // a terminal
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
	case errors.Is(err, unix.EPIPE), o.tty && errors.Is(err, unix.EIO): // a closed terminal stays closed
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
	case "left_out":
		if s.quiet {
			return nil
		}
		_, err := fmt.Fprintf(w, "%s  left out  %d verdicts that pass (--events-pass %s)\n", clock(e.Time), e.PassesLeftOut, s.passes.text)
		return err
	}
	return nil // the others bring their text along
}

func (s *sinks) printVerdict(w io.Writer, e *event) error {
	if s.quiet && e.Decision != flow.Drop.String() {
		return nil
	}
	what := e.Decision
	if e.Decision == flow.Drop.String() && !*e.Enforced {
		what = "would drop"
		if e.Error != "" {
			what = "drop failed"
		}
	}
	vlan := ""
	if e.VLAN != 0 || e.InnerVLAN != 0 {
		vlan = fmt.Sprintf(" vlan %d.%d", e.VLAN, e.InnerVLAN)
	}
	line := fmt.Sprintf("%s  %-11s  %s %s > %s%s  %s  %.1f ms, %d packets", clock(e.Time), what, e.Proto, e.Src, e.Dst, vlan,
		e.line(e.Class, *e.Confidence), e.VerdictMS, e.Packets)
	if e.MidStream {
		line += ", mid-stream"
	}
	if e.Resumed {
		line += ", resumed"
	}
	if e.OneWay {
		line += ", one-way"
	}
	if e.Signals != nil {
		line += ", shows " + strings.Join(e.Signals, " ")
	}
	if e.Rule != "" {
		line += "  " + e.Reason + " " + e.Rule
	}
	if e.Error != "" {
		line += "  it passes: " + e.Error
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

// clock prints a time for people, local, so that logs of several days and machines
// can be told apart.
func clock(t time.Time) string { return t.Format("2006-01-02T15:04:05.000Z07:00") }

// stamped puts the time in front of each write, which is one line of a log.
type stamped struct{ to io.Writer }

func (s stamped) Write(p []byte) (int, error) {
	if _, err := fmt.Fprintf(s.to, "%s  %s", clock(time.Now()), p); err != nil {
		return 0, err
	}
	return len(p), nil
}

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
	how, now := "attached", time.Now()
	if info.Adopted {
		how = "adopted"
	}
	say("%s  %s %s: xdp %s, egress %s, mode %s, policy %s, model %s, device %s",
		clock(now), how, d.iface(), info.XDPMode, info.Egress, d.mode, policyName, d.model, d.engine.Device())
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
	if d.oneHook {
		say("%s", oneHookProof)
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
	s.put(event{
		Time: now, Event: "attached", Interface: d.iface(), Mode: d.mode.String(), XDP: string(info.XDPMode),
		Egress: info.Egress, Adopted: &info.Adopted, Policy: policyName, Model: d.model, text: text.String(),
	})
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
	all, _ := d.dp.Counters() // without them it says the rest
	for _, c := range append(all, d.counters()...) {
		if c.Value != 0 {
			s.counters[c.Name] = c.Value
			s.order = append(s.order, c.Name)
		}
	}
	return s
}

// ended prints the summary.
func (s *sinks) ended(sum summary, persist bool) {
	var text strings.Builder
	now := time.Now()
	if e, ok := s.leftOutEvent(now); ok {
		s.put(e)
	}
	fmt.Fprintf(&text, "\n%s  %s after %s, mode %s\n", clock(now), sum.iface, sum.took.Round(time.Millisecond), sum.mode)
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
	s.put(event{
		Time: now, Event: "ended", Interface: sum.iface, Mode: sum.mode.String(), Classes: sum.classes,
		Counters: sum.counters, Persisted: &persist, text: text.String(),
	})
}
