// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"context"
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

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// Daemon is a running `earlydrop attach`. Its methods may be called concurrently.
type Daemon struct {
	Attached *event.Attached // its first event

	cmd  *exec.Cmd
	done chan struct{}
	code int

	mu     sync.Mutex
	events []event.Event
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
		for events := event.NewDecoder(stdout); ; {
			e, err := events.Next()
			if err != nil {
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
	if d.Attached, err = Wait(ctx, d, "the attached event", func(*event.Attached) bool { return true }); err != nil {
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
func (d *Daemon) Events() []event.Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.events)
}

// Of returns the events of one kind.
func Of[E event.Event](events []event.Event) (list []E) {
	for _, e := range events {
		if e, ok := e.(E); ok {
			list = append(list, e)
		}
	}
	return list
}

// Wait returns d's first event of a kind, from the start on, that fits. It fails when the
// program ends without it. what names the event in errors.
func Wait[E event.Event](ctx context.Context, d *Daemon, what string, fits func(E) bool) (none E, err error) {
	for i, ended := 0, false; ; {
		d.mu.Lock()
		events, more, broken := d.events, d.more, d.broken
		d.mu.Unlock()
		for ; i < len(events); i++ {
			if e, ok := events[i].(E); ok && fits(e) {
				return e, nil
			}
		}
		if broken != nil {
			return none, fmt.Errorf("wait for %s: not an event: %w", what, broken)
		}
		if ended {
			return none, fmt.Errorf("wait for %s: earlydrop ended with code %d: %s", what, d.code, strings.TrimSpace(d.Stderr()))
		}
		select {
		case <-more:
		case <-d.done:
			ended = true // once more: the last events may have come with it
		case <-ctx.Done():
			return none, fmt.Errorf("wait for %s: %w; events: %s", what, ctx.Err(), brief(events))
		}
	}
}

func brief(events []event.Event) string {
	var lines []string
	for _, e := range events[max(0, len(events)-20):] {
		line := e.Kind()
		if v, ok := e.(*event.Verdict); ok {
			line += fmt.Sprintf(" %s > %s %s %.3f %s", v.Src, v.Dst, v.Called(), v.Confidence, v.Decision)
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "; ")
}

// Verdict waits for the verdict about the n-th flow, from 0, to a server.
func (d *Daemon) Verdict(ctx context.Context, server netip.AddrPort, n int) (*event.Verdict, error) {
	return Wait(ctx, d, fmt.Sprintf("the verdict about flow %d to %s", n, server), func(v *event.Verdict) bool {
		if v.Dst != server {
			return false
		}
		n--
		return n < 0
	})
}

// Verdicts returns the verdicts so far about flows to a server.
func (d *Daemon) Verdicts(server netip.AddrPort) []*event.Verdict {
	return slices.DeleteFunc(Of[*event.Verdict](d.Events()), func(v *event.Verdict) bool { return v.Dst != server })
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
func (d *Daemon) Stop(ctx context.Context) (*event.Ended, error) {
	if err := d.Signal(os.Interrupt); err != nil {
		return nil, err
	}
	code, err := d.Exited(ctx)
	if err == nil && code != 0 {
		err = fmt.Errorf("earlydrop ended with code %d: %s", code, strings.TrimSpace(d.Stderr()))
	}
	if err != nil {
		return nil, err
	}
	return Wait(ctx, d, "the last event", func(*event.Ended) bool { return true })
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
