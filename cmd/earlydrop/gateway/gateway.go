// SPDX-License-Identifier: Apache-2.0

// Package gateway joins data path, classifier and policy: it carries captures from the
// kernel to the classifier, and verdicts back, until it is told to end.
package gateway

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/policy"
)

// Config says what a gateway works with.
type Config struct {
	// Attach says what the data path is attached to, and how. Its Monitor, Model and
	// Policy are set by New.
	Attach loader.Options
	// Engine classifies. It is the gateway's when New succeeds, and closed by Run.
	Engine *classifier.Engine
	// Policy decides, and PolicyName says in events and status where it is from.
	Policy     *policy.Policy
	PolicyName string
	// Mode says whether the kernel drops what the policy says. It counts instead of the
	// policy's own.
	Mode policy.Mode
	// Events gets the events. It stays open.
	Events *eventlog.Log
	// Persist leaves the data path attached at the end: blocked flows stay blocked.
	Persist bool
	// Advise (optional) is asked once a second, until it says something, what the counters
	// of an interface say about what is seen there. It is logged as warnings.
	Advise func(iface string, counters map[string]uint64) []string
	// Explain (optional) adds to an error that is logged what can be done about it.
	Explain func(error) error
}

// Gateway is a data path with a classifier and a policy behind it. One engine, one policy
// and one log of events serve whatever is attached.
type Gateway struct {
	config  Config
	model   string // name and version
	started time.Time

	attachment *attachment

	counts  counts
	classes sync.Map // class -> *atomic.Uint64
}

// New attaches. After an error nothing is attached that was not before, and the error is
// the loader's: a *loader.RefusedError says that nothing was changed. Run has to follow,
// or Close.
func New(c Config) (*Gateway, error) {
	if c.Advise == nil {
		c.Advise = func(string, map[string]uint64) []string { return nil }
	}
	if c.Explain == nil {
		c.Explain = func(err error) error { return err }
	}
	m := c.Engine.Manifest()
	g := &Gateway{config: c, model: m.Name + " " + m.Version}
	options := c.Attach
	options.Monitor, options.Model, options.Policy = c.Mode == policy.Monitor, g.model, c.PolicyName
	dp, err := loader.Attach(options)
	if err != nil {
		return nil, err
	}
	g.started = time.Now()
	g.attachment = newAttachment(g, dp, dp.Interface)
	return g, nil
}

// Interface returns what the interface is called now.
func (g *Gateway) Interface() string { return g.attachment.iface() }

// Info tells how the data path was attached.
func (g *Gateway) Info() loader.Info { return g.attachment.dp.Info }

// Summary is what a run comes to.
type Summary struct {
	Interface string
	Took      time.Duration
	Mode      policy.Mode
	Classes   map[string]uint64 // flows by class
	Counters  loader.Counters   // those that are not zero: the kernel's, then the gateway's
	Persisted bool              // the data path stays attached
}

// BrokenError ends a gateway that can't do its work any more, although its interface
// is there and nobody asked it to end. What the kernel does goes on without it.
type BrokenError struct{ err error }

func (e *BrokenError) Error() string {
	return e.err.Error() + "; the data path stays attached: blocked flows stay blocked, new flows pass"
}

// Unwrap returns what broke.
func (e *BrokenError) Unwrap() error { return e.err }

// Run works until ctx ends, which is no error, the interface vanishes, or, with a
// *BrokenError, captures can't be had any more. Then it ends the data path, or leaves it
// attached, and closes the engine. It writes the events of its beginning and its end, and
// those between. It is called once.
func (g *Gateway) Run(ctx context.Context) (Summary, error) {
	a, info := g.attachment, g.Info()
	g.config.Events.Put(&event.Attached{
		Time: time.Now(), Interface: a.iface(), Mode: g.config.Mode.String(), XDP: string(info.XDPMode),
		Egress: info.Egress, Adopted: info.Adopted, Policy: g.config.PolicyName, Model: g.model,
	})
	runErr := a.run(ctx)
	_ = g.config.Engine.Close() // what was queued is decided then
	a.sayLeftOut(time.Now())
	sum := g.summary() // it needs the maps, so it comes before they go
	var broken *BrokenError
	persist := g.config.Persist || errors.As(runErr, &broken)
	err := g.end(persist)
	sum.Persisted = persist && err == nil
	g.config.Events.Put(&event.Ended{
		Time: time.Now(), Interface: sum.Interface, Mode: sum.Mode.String(), Classes: sum.Classes,
		Counters: sum.Counters.Values(), Persisted: sum.Persisted,
	})
	return sum, errors.Join(runErr, err)
}

// Close ends a gateway whose Run was not called: it detaches. It does nothing after Run.
func (g *Gateway) Close() error {
	if g.attachment.ended {
		return nil
	}
	return errors.Join(g.config.Engine.Close(), g.end(false))
}

// end lets go of the data path.
func (g *Gateway) end(persist bool) error {
	g.attachment.ended = true
	if persist {
		return g.attachment.dp.Release()
	}
	return g.attachment.dp.Detach()
}

// summary returns what the run has come to so far.
func (g *Gateway) summary() Summary {
	s := Summary{Interface: g.Interface(), Took: time.Since(g.started), Mode: g.config.Mode, Classes: map[string]uint64{}}
	g.classes.Range(func(k, v any) bool {
		s.Classes[k.(string)] = v.(*atomic.Uint64).Load()
		return true
	})
	all, _ := g.attachment.dp.Counters() // without them it says the rest
	for _, c := range append(all, g.counters()...) {
		if c.Value != 0 {
			s.Counters = append(s.Counters, c)
		}
	}
	return s
}

// counters returns what the gateway has counted so far.
func (g *Gateway) counters() loader.Counters {
	g.counts[countPassesLeftOut].Store(g.config.Events.LeftOut())
	g.counts[countEventsLost].Store(g.config.Events.Lost())
	return g.counts.list()
}
