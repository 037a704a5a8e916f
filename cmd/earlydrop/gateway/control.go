// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/history"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// EndByHand is why a block ended that somebody lifted.
const EndByHand loader.BlockEnd = "by_hand"

// each calls f for every attachment that is there now. None is let go of before each
// returns.
func (g *Gateway) each(f func(*attachment) error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for _, a := range g.attached {
		errs = append(errs, f(a))
	}
	return errors.Join(errs...)
}

// with calls f for the attachment of an interface, by its present name.
func (g *Gateway) with(iface string, f func(*attachment) error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range g.attached {
		if a.iface() == iface {
			return f(a)
		}
	}
	return fmt.Errorf("%w to %s", loader.ErrNotAttached, iface)
}

// Report tells of the gateway and its interfaces. It walks their maps, which takes some
// milliseconds for 100 000 flows.
func (g *Gateway) Report() (*status.Report, error) {
	r := g.About()
	g.describe(r)
	g.changing.Lock()
	for _, w := range g.waiting {
		r.Waiting = append(r.Waiting, status.Waiting{Interface: w.asked.Interface, State: status.Awaited, Error: w.said})
	}
	g.changing.Unlock()
	r.History = (*status.History)(g.config.History.Status())
	return r, g.each(func(a *attachment) error {
		s, err := a.status()
		if err == nil {
			r.Interfaces = append(r.Interfaces, s)
		}
		return err
	})
}

// About returns a report without interfaces.
func (g *Gateway) About() *status.Report {
	netns, _ := os.Readlink("/proc/self/ns/net") // without /proc, nobody asks for it
	return &status.Report{
		PID: os.Getpid(), Version: g.config.version(), Device: g.config.Engine.Device(), Namespace: netns, Interfaces: []*status.Status{},
	}
}

// version returns that of the program, as the interfaces have it.
func (c *Config) version() string {
	if len(c.Attach) == 0 {
		return ""
	}
	return c.Attach[0].Version
}

// Interfaces returns the present names of those that are attached.
func (g *Gateway) Interfaces() (names []string) {
	_ = g.each(func(a *attachment) error {
		names = append(names, a.iface())
		return nil
	})
	return names
}

// status tells of the attachment.
func (a *attachment) status() (*status.Status, error) {
	s, err := status.Read(a.dp.Tables)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	daemon := a.counts.list() // newer than what is in the map
	s.Running, s.PID, s.Daemon = true, os.Getpid(), daemon.Values()
	s.Rows = slices.Concat(daemon, s.Rows[len(s.Rows)-len(s.Counters):])
	s.Classes, s.Rules, s.Verdicts, s.Latency = a.countsOfClasses(), a.countsOfRules(), a.countsOfVerdicts(), a.latency.list(now)
	if traffic, err := a.dp.Traffic(); err == nil {
		s.Traffic = &traffic
	}
	s.Rates = a.recent.rates(now, s.Totals())
	grown, span := a.recent.growth(now, status.Passing(s.Daemon, s.Counters))
	s.Recent, s.RecentSeconds = grown, span.Round(100*time.Millisecond).Seconds()
	s.Delays = a.latency.histogram()
	s.Device = a.gateway.config.Engine.Device()
	s.Worries = a.gateway.deviceWorry()
	if text := a.unread.Load(); text != nil {
		s.Worries = append(s.Worries, status.Worry{Kind: status.WorryUnreadable, Text: "captures can't be read: " + *text})
	}
	s.Judge()
	return s, nil
}

func (a *attachment) countsOfClasses() map[string]uint64 {
	classes := map[string]uint64{}
	a.classes.Range(func(k, v any) bool {
		classes[k.(string)] = v.(*atomic.Uint64).Load()
		return true
	})
	return classes
}

// Blocks returns the blocks of all interfaces.
func (g *Gateway) Blocks() (all []status.Block, err error) {
	err = g.each(func(a *attachment) error {
		blocks, err := a.dp.Blocked()
		if err != nil {
			return err
		}
		enforces, err := a.dp.Enforces()
		all = slices.Grow(all, len(blocks))
		for i := range blocks {
			b := status.NewBlock(a.iface(), &blocks[i])
			b.Suspended = !enforces
			all = append(all, b)
		}
		return err
	})
	return all, err
}

// Block drops a flow from now on, and reports whether that is suspended, as the interface
// is in mode monitor. The error wraps loader.ErrNotAttached where there is no such
// interface, and loader.ErrFull.
func (g *Gateway) Block(iface string, key flow.Key, ttl time.Duration) (suspended bool, err error) {
	err = g.with(iface, func(a *attachment) error {
		if err := a.dp.Apply(key, flow.Treatment{Action: flow.Drop, TTL: ttl, Rule: flow.ByHand}); err != nil {
			return err
		}
		enforces, err := a.dp.Enforces()
		suspended = !enforces
		return err
	})
	return suspended, err
}

// Unblock lifts a block, writes the event of its end, and returns it as it was. The error
// wraps loader.ErrNotAttached where there is no such interface, and ebpf.ErrKeyNotExist
// where the flow is not blocked there.
func (g *Gateway) Unblock(iface string, key flow.Key) (lifted status.Block, err error) {
	err = g.with(iface, func(a *attachment) error {
		b, err := a.dp.Unblock(key)
		if err != nil {
			return err
		}
		b.Ended = EndByHand
		a.blockEnded(b)
		lifted = status.NewBlock(a.iface(), &b)
		return nil
	})
	return lifted, err
}

// History returns what keeps the events, nil if nothing does.
func (g *Gateway) History() *history.History { return g.config.History }

// Follow returns events from now on. So many of them may wait.
func (g *Gateway) Follow(waiting int) *eventlog.Follower { return g.config.Events.Follow(waiting) }

// Audit writes an event of what was asked for. It does not wait.
func (g *Gateway) Audit(e *event.Audit) { g.config.Events.Add(e) }
