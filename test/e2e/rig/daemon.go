// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Event is one line of the program's event log. Fields that an event does not have
// are zero.
type Event struct {
	Time      time.Time `json:"time"`
	Event     string    `json:"event"`
	Interface string    `json:"interface"`
	Mode      string    `json:"mode"`
	Policy    string    `json:"policy"`
	XDP       string    `json:"xdp"`
	Egress    string    `json:"egress"`
	Adopted   bool      `json:"adopted"`

	Src        netip.AddrPort     `json:"src"`
	Dst        netip.AddrPort     `json:"dst"`
	Proto      string             `json:"proto"`
	VLAN       uint16             `json:"vlan"`
	InnerVLAN  uint16             `json:"inner_vlan"`
	Start      time.Time          `json:"start"`
	Class      string             `json:"class"`
	Confidence float64            `json:"confidence"`
	Scores     map[string]float64 `json:"scores"`
	// Likeliest is the likeliest label, also where the class is unknown.
	Likeliest string `json:"likeliest"`
	// RuleConfidence is what was compared with the rule's min_confidence, and
	// RuleClasses are the classes that it comes from.
	RuleConfidence float64  `json:"rule_confidence"`
	RuleClasses    []string `json:"rule_classes"`
	Detected       bool     `json:"detected"`
	Decision       string   `json:"decision"`
	Enforced       *bool    `json:"enforced"`
	Error          string   `json:"error"`
	Rule           string   `json:"rule"`
	Reason         string   `json:"reason"`
	MidStream      bool     `json:"mid_stream"`
	Resumed        bool     `json:"resumed"`
	Model          string   `json:"model"`
	Captured       int      `json:"captured"`
	Complete       bool     `json:"complete"`
	HandedOver     string   `json:"handed_over"`
	Packets        int      `json:"packets"`
	Bytes          uint64   `json:"bytes"`
	VerdictMS      float64  `json:"verdict_ms"`
	LatencyUS      float64  `json:"latency_us"`
	// Signals names what was noticed of how the flow's first bytes were sent.
	Signals []string `json:"signals"`

	DroppedPackets uint64            `json:"dropped_packets"`
	DroppedBytes   uint64            `json:"dropped_bytes"`
	Classes        map[string]uint64 `json:"classes"`
	Counters       map[string]uint64 `json:"counters"`
	PassesLeftOut  uint64            `json:"passes_left_out"`
	Persisted      bool              `json:"persisted"`
}

// Name is what the flow of a verdict is called: the classes that decided, or the
// model's outcome where no rule was asked.
func (e *Event) Name() string {
	if len(e.RuleClasses) > 0 {
		return strings.Join(e.RuleClasses, "|")
	}
	return e.Class
}

// Daemon is a running `earlydrop attach`. Its methods may be called concurrently.
type Daemon struct {
	Attached Event // its first event

	cmd  *exec.Cmd
	done chan struct{}
	code int

	mu     sync.Mutex
	events []Event
	broken error         // a line that is no event
	more   chan struct{} // closed and replaced at each event
	stderr bytes.Buffer
}

// syncBuffer collects standard error under the daemon's lock.
type syncBuffer struct{ d *Daemon }

func (b syncBuffer) Write(p []byte) (int, error) {
	b.d.mu.Lock()
	defer b.d.mu.Unlock()
	return b.d.stderr.Write(p)
}

// Attach starts `earlydrop attach` with more arguments and returns when it says that
// it is attached: to Device, unless -i is one of them. It is ended by Stop, Kill, or
// with the lab.
func (r *Rig) Attach(ctx context.Context, args ...string) (*Daemon, error) {
	argv := []string{r.binary, "attach", "--json"}
	if !slices.Contains(args, "-i") {
		argv = append(argv, "-i", Device)
	}
	return r.Daemon(ctx, append(argv, args...)...)
}

// Daemon is Attach with the whole command line, which must have the program print its
// events on standard output.
func (r *Rig) Daemon(ctx context.Context, argv ...string) (*Daemon, error) {
	cmd, err := r.Command(context.Background(), argv...)
	if err != nil {
		return nil, err
	}
	d := &Daemon{cmd: cmd, done: make(chan struct{}), more: make(chan struct{})}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = syncBuffer{d}
	if err := r.Start(cmd); err != nil {
		return nil, fmt.Errorf("start earlydrop: %w", err)
	}
	go func() {
		dec := json.NewDecoder(stdout)
		for {
			var e Event
			if err := dec.Decode(&e); err != nil {
				d.mu.Lock()
				if !errors.Is(err, os.ErrClosed) && err.Error() != "EOF" {
					d.broken = err
				}
				d.mu.Unlock()
				break
			}
			d.mu.Lock()
			d.events = append(d.events, e)
			close(d.more)
			d.more = make(chan struct{})
			d.mu.Unlock()
		}
		_ = cmd.Wait()
		d.code = cmd.ProcessState.ExitCode()
		close(d.done)
	}()
	if d.Attached, err = d.Wait(ctx, "the attached event", func(e Event) bool { return e.Event == "attached" }); err != nil {
		d.Kill()
		return nil, err
	}
	return d, nil
}

// PID returns the process id.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Stderr returns what it has printed on standard error so far.
func (d *Daemon) Stderr() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stderr.String()
}

// Events returns the events so far.
func (d *Daemon) Events() []Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.events)
}

// Wait returns the first event, from the start on, that fits. It fails when the
// program ends without it. what names the event in errors.
func (d *Daemon) Wait(ctx context.Context, what string, fits func(Event) bool) (Event, error) {
	for i, ended := 0, false; ; {
		d.mu.Lock()
		events, more, broken := d.events, d.more, d.broken
		d.mu.Unlock()
		for ; i < len(events); i++ {
			if fits(events[i]) {
				return events[i], nil
			}
		}
		if broken != nil {
			return Event{}, fmt.Errorf("wait for %s: not an event: %w", what, broken)
		}
		if ended {
			return Event{}, fmt.Errorf("wait for %s: earlydrop ended with code %d: %s", what, d.code, strings.TrimSpace(d.Stderr()))
		}
		select {
		case <-more:
		case <-d.done:
			ended = true // once more: the last events may have come with it
		case <-ctx.Done():
			return Event{}, fmt.Errorf("wait for %s: %w; events: %s", what, ctx.Err(), brief(events))
		}
	}
}

func brief(events []Event) string {
	var lines []string
	for _, e := range events[max(0, len(events)-20):] {
		lines = append(lines, fmt.Sprintf("%s %s > %s %s %.3f %s", e.Event, e.Src, e.Dst, e.Name(), e.Confidence, e.Decision))
	}
	return strings.Join(lines, "; ")
}

// Verdict waits for the verdict about the n-th flow, from 0, to a server.
func (d *Daemon) Verdict(ctx context.Context, server netip.AddrPort, n int) (Event, error) {
	return d.Wait(ctx, fmt.Sprintf("the verdict about flow %d to %s", n, server), func(e Event) bool {
		if e.Event != "verdict" || e.Dst != server {
			return false
		}
		n--
		return n < 0
	})
}

// Verdicts returns the verdicts so far about flows to a server.
func (d *Daemon) Verdicts(server netip.AddrPort) []Event {
	return slices.DeleteFunc(d.Events(), func(e Event) bool { return e.Event != "verdict" || e.Dst != server })
}

// Signal sends a signal.
func (d *Daemon) Signal(s os.Signal) error { return d.cmd.Process.Signal(s) }

// Exited waits for the program's end and returns its exit code, -1 when a signal
// ended it.
func (d *Daemon) Exited(ctx context.Context) (int, error) {
	select {
	case <-d.done:
		return d.code, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("earlydrop, pid %d, does not end: %w", d.PID(), ctx.Err())
	}
}

// Stop ends the program as the terminal or the service manager does and returns
// its last event.
func (d *Daemon) Stop(ctx context.Context) (Event, error) {
	if err := d.Signal(os.Interrupt); err != nil {
		return Event{}, err
	}
	code, err := d.Exited(ctx)
	if err == nil && code != 0 {
		err = fmt.Errorf("earlydrop ended with code %d: %s", code, strings.TrimSpace(d.Stderr()))
	}
	if err != nil {
		return Event{}, err
	}
	return d.Wait(ctx, "the last event", func(e Event) bool { return e.Event == "ended" })
}

// Kill ends the program without giving it a chance (SIGKILL) and waits for it.
func (d *Daemon) Kill() {
	_ = d.cmd.Process.Kill()
	<-d.done
}

// Objects are ids of objects in the kernel.
type Objects struct{ Progs, Maps, Links []int }

// Objects returns the programs, maps and links that the process has open.
func (d *Daemon) Objects() (Objects, error) {
	var o Objects
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", d.PID()))
	if err != nil {
		return o, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // closed in the meantime
		}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			id, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				continue
			}
			switch name {
			case "prog_id":
				o.Progs = append(o.Progs, id)
			case "map_id":
				o.Maps = append(o.Maps, id)
			case "link_id":
				o.Links = append(o.Links, id)
			}
		}
	}
	for _, ids := range []*[]int{&o.Progs, &o.Maps, &o.Links} {
		slices.Sort(*ids)
		*ids = slices.Compact(*ids)
	}
	return o, nil
}

// Present returns those of the objects that the kernel still has. Each is asked for
// by its id: a list of all, as bpftool makes it, fails when any object of the machine
// goes while it is made.
func (o Objects) Present() (Objects, error) {
	present := func(ids []int, open func(id uint32) (io.Closer, error)) ([]int, error) {
		var found []int
		for _, id := range ids {
			object, err := open(uint32(id))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			found = append(found, id)
			if err := object.Close(); err != nil {
				return nil, err
			}
		}
		return found, nil
	}
	var got Objects
	var errP, errM, errL error
	got.Progs, errP = present(o.Progs, func(id uint32) (io.Closer, error) { return ebpf.NewProgramFromID(ebpf.ProgramID(id)) })
	got.Maps, errM = present(o.Maps, func(id uint32) (io.Closer, error) { return ebpf.NewMapFromID(ebpf.MapID(id)) })
	got.Links, errL = present(o.Links, func(id uint32) (io.Closer, error) { return link.NewFromID(link.ID(id)) })
	return got, errors.Join(errP, errM, errL)
}
