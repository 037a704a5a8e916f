// SPDX-License-Identifier: Apache-2.0

// Package gateway joins data paths, classifier and policy: it carries captures from the
// kernel to the classifier, and verdicts back, until it is told to end.
package gateway

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/history"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/policy"
	"github.com/earlydrop/earlydrop/policy/evidence"
)

// Config says what a gateway works with.
type Config struct {
	// Attach says what the data paths are attached to, and how: one for each interface. Their
	// Monitor, MonitorOnly, Model and Policy are set by New.
	Attach []loader.Options
	// Engine classifies. It is the gateway's when New succeeds, and closed by Run.
	Engine *classifier.Engine
	// Shadow (optional) classifies as well, when there is time: counters and events tell what
	// the two do not agree on. It is the gateway's as Engine is, and needs LoadPolicy.
	Shadow *classifier.Engine
	// Policy decides, and PolicyName says in events and status where it is from.
	Policy     *policy.Policy
	PolicyName string
	// LoadPolicy (optional) returns for Reload the policy as it is by then, for a model with
	// such a manifest, and LoadModel for UseModel a model.
	LoadPolicy func(*classifier.Manifest) (*policy.Policy, error)
	LoadModel  func(name string) (*classifier.Network, error)
	// Evidence (optional) is what is known of pairs and limits. New makes one that knows
	// nothing. It is not closed or saved.
	Evidence *evidence.State
	// Mode says whether the kernel drops what the policy says. It counts instead of the
	// policy's own. From then on the mode is what the data path says, which anybody with the
	// rights may change.
	Mode policy.Mode
	// MonitorOnly (optional) says in a line why an interface that is attached so must not be
	// in mode enforce with a policy; it is empty if it may.
	MonitorOnly func(*loader.Options, *policy.Policy) string
	// ModeFixed says that Mode was asked for by itself: a reload does not change it.
	ModeFixed bool
	// Events gets the events. It stays open.
	Events *eventlog.Log
	// History (optional) keeps verdicts. It stays open.
	History *history.History
	// Persist leaves the data paths attached at the end: blocked flows stay blocked.
	Persist bool
	// Wait has Run wait for interfaces that are not there, or that are removed: it attaches to
	// each as soon as there is one of its name.
	Wait bool
	// Attached (optional) is told by Run of each interface that is watched from now on, and
	// Ended of each that is not any more. They are called one at a time.
	Attached func(iface string, info loader.Info)
	Ended    func(Summary)
	// Advise (optional) is asked once a second, until it says something, what the counters
	// of an interface say about what is seen there. It is logged as warnings. It may be
	// called for several interfaces at once.
	Advise func(iface string, counters map[string]uint64) []string
	// Explain (optional) adds to an error that is logged what can be done about it.
	Explain func(error) error
}

// Gateway is any number of data paths, each with tables of its own, with one classifier,
// one policy and one log of events behind them.
type Gateway struct {
	config Config
	judge  atomic.Pointer[judge]

	// changing is held by whoever changes the policy, the model or what is waited for. It is
	// taken before mu.
	changing sync.Mutex

	classified pulse
	realTime   realTime
	began      time.Time
	inference  latencies // of batches
	tops       *tops
	reloads    reloads

	decisions decisions
	passed    passed

	disagreements *rate.Limiter // of events

	mu       sync.Mutex    // of what follows, and of the end of each
	attached []*attachment // in the order in which they were attached to

	waiting []*waiting // of New, and then of Run

	several   atomic.Int32 // as many as are attached
	crossings *crossings
	natSaid   sync.Map // pairs of interfaces
}

// New attaches to all interfaces (with Config.Wait, to those that are there) or, after an
// error, to none: nothing is attached then that was not before. The error is the loader's: a
// *loader.RefusedError says that nothing was changed. Run has to follow, or Close.
func New(c Config) (*Gateway, error) {
	c.setDefaults()
	c.Attach = slices.Clone(c.Attach)
	for i := range c.Attach {
		c.Attach[i].Monitor = c.Mode == policy.Monitor
	}
	g := &Gateway{config: c, began: time.Now(), tops: newTops(), crossings: newCrossings(), disagreements: newDisagreements()}
	second, err := g.shadowPolicy()
	if err != nil {
		return nil, err
	}
	g.tellFailures(c.Engine)
	if c.Shadow != nil {
		g.tellFailures(c.Shadow)
	}
	g.judge.Store(&judge{policy: c.Policy, model: modelName(c.Engine.Manifest()), shadow: second, since: time.Now()})
	there, away := c.Attach, []loader.Options(nil)
	if c.Wait {
		if there, away, err = split(c.Attach); err != nil {
			return nil, err
		}
	}
	paths, err := loader.AttachAll(g.options(there...))
	if err != nil {
		return nil, err
	}
	c.Engine.AfterBatch(g.passed.write)
	c.Engine.OnBatch(func(_ int, took time.Duration) { g.inference.add(time.Now(), took) })
	for i, dp := range paths {
		g.add(there[i], dp)
	}
	g.adoptPairs(g.attached, true)
	debug.FreeOSMemory() // what it took to load the programs is not needed any more
	for _, o := range away {
		g.waiting = append(g.waiting, &waiting{asked: o})
	}
	return g, nil
}

// add takes a data path over that was attached as asked.
func (g *Gateway) add(asked loader.Options, dp *loader.DataPath) *attachment {
	a := newAttachment(g, dp, dp.Interface)
	a.asked = asked
	if !asked.Monitor {
		a.told.mode.Store(uint32(policy.Enforce))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.attached = append(g.attached, a)
	g.several.Add(1)
	return a
}

func (c *Config) setDefaults() {
	if c.Evidence == nil {
		c.Evidence = evidence.New(evidence.Options{})
	}
	if c.Attached == nil {
		c.Attached = func(string, loader.Info) {}
	}
	if c.Ended == nil {
		c.Ended = func(Summary) {}
	}
	if c.Advise == nil {
		c.Advise = func(string, map[string]uint64) []string { return nil }
	}
	if c.MonitorOnly == nil {
		c.MonitorOnly = func(*loader.Options, *policy.Policy) string { return "" }
	}
	if c.Explain == nil {
		c.Explain = func(err error) error { return err }
	}
}

// options returns what was asked for, with what the gateway adds to it.
func (g *Gateway) options(asked ...loader.Options) []loader.Options {
	all := slices.Clone(asked)
	for i := range all {
		j := g.judge.Load()
		all[i].Exempt = j.policy.Exempt()
		all[i].Model, all[i].Policy, all[i].MonitorOnly = j.model, g.config.PolicyName, g.config.MonitorOnly(&all[i], j.policy)
	}
	return all
}

// Summary is what became of an interface.
type Summary struct {
	Interface string
	Took      time.Duration
	Mode      policy.Mode
	Classes   map[string]uint64 // flows by class
	Counters  loader.Counters   // those that are not zero: the kernel's, then the gateway's
	Persisted bool              // the data path stays attached
	Err       error             // why it ended although nobody asked for it; else nil
}

// Total adds up what is counted for several interfaces; Took is the longest time. Interface,
// Persisted and Err are left out.
func Total(all []Summary) Summary {
	total := Summary{Classes: map[string]uint64{}}
	at := map[string]int{} // of a counter
	for _, s := range all {
		total.Took, total.Mode = max(total.Took, s.Took), s.Mode
		for class, n := range s.Classes {
			total.Classes[class] += n
		}
		for _, c := range s.Counters {
			i, ok := at[c.Name]
			if !ok {
				at[c.Name] = len(total.Counters)
				total.Counters = append(total.Counters, c)
				continue
			}
			total.Counters[i].Value += c.Value
		}
	}
	return total
}

// BrokenError ends an attachment that can't do its work any more, although its interface
// is there and nobody asked it to end. What the kernel does goes on without it.
type BrokenError struct{ err error }

func (e *BrokenError) Error() string {
	return e.err.Error() + "; the data path stays attached: blocked flows stay blocked, new flows pass"
}

// Unwrap returns what broke.
func (e *BrokenError) Unwrap() error { return e.err }

// runEnd is the end of an attachment's work.
type runEnd struct {
	a   *attachment
	err error
}

// Run works until ctx ends, which is no error, or until there is no interface left: one that
// vanishes, or whose captures can't be had any more (a *BrokenError), ends for itself, and
// the others go on. The data path of what ends is detached, or left attached. At the end the
// engine is closed. Run writes the events of the beginning and the end of each interface, and
// those between. It returns what became of each, in the order of their ends. It is called
// once.
func (g *Gateway) Run(ctx context.Context) ([]Summary, error) {
	ends := make(chan runEnd)
	running := 0
	start := func(all []*attachment) {
		for _, a := range all {
			a.tellAttached()
		}
		for _, a := range all {
			running++
			go func() {
				err := a.run(ctx)
				a.drain(ctx)
				ends <- runEnd{a, err}
			}()
		}
	}
	start(slices.Clone(g.attached))
	over := ctx.Done()
	var links <-chan struct{}
	if g.config.Wait {
		g.tellWaiting()
		links = watchLinks(ctx)
	}
	var sums []Summary
	var errs []error
	var asked []runEnd // because ctx ended
	for running > 0 || len(g.waiting) > 0 {
		select {
		case <-over: // what runs ends by itself
			over, links, g.waiting = nil, nil, nil
		case <-links:
			start(g.attachWaiting())
		case <-g.nextTry():
			start(g.attachWaiting())
		case e := <-ends:
			running--
			if ctx.Err() != nil {
				asked = append(asked, e)
				continue
			}
			sum, err := g.end(e)
			sums, errs = append(sums, sum), append(errs, err)
			if g.waitAgain(e) {
				start(g.attachWaiting()) // it may have returned by now
			} else if running > 0 || len(g.waiting) > 0 {
				slog.Warn("the interface is not watched any more, the others are", "interface", sum.Interface, "error", g.config.Explain(err))
			}
		}
	}
	_ = g.config.Engine.Close() // who waits for a verdict gets none
	g.closeShadow()
	if ctx.Err() != nil {
		errs = nil // of those that ended before, it was told
	}
	slices.SortStableFunc(asked, func(x, y runEnd) int {
		return cmp.Compare(slices.Index(g.attached, x.a), slices.Index(g.attached, y.a))
	})
	for _, e := range asked {
		sum, err := g.end(e)
		sums, errs = append(sums, sum), append(errs, err)
	}
	return sums, errors.Join(errs...)
}

// Close ends a gateway whose Run was not called: it detaches. It does nothing after Run.
func (g *Gateway) Close() error {
	g.mu.Lock()
	all := g.attached
	g.attached = nil
	g.mu.Unlock()
	errs := []error{g.config.Engine.Close()}
	g.closeShadow()
	for _, a := range all {
		errs = append(errs, a.dp.Detach())
	}
	return errors.Join(errs...)
}

// end lets go of an attachment whose run has ended, and tells what became of it. The error is
// that of the run, and what went wrong with the end.
func (g *Gateway) end(e runEnd) (Summary, error) {
	a, err := e.a, e.err
	a.sayLeftOut(time.Now())
	sum := a.summary() // it needs the maps, so it comes before they go
	var broken *BrokenError
	persist := g.config.Persist || errors.As(err, &broken)
	letGo := g.letGo(a, persist)
	sum.Persisted, sum.Err = persist && letGo == nil, err
	told := &event.Ended{
		Time: time.Now(), Interface: sum.Interface, Mode: sum.Mode.String(), Classes: sum.Classes,
		Counters: sum.Counters.Values(), Persisted: sum.Persisted,
	}
	if err != nil {
		told.Error = err.Error()
	}
	a.put(told)
	g.config.Ended(sum)
	return sum, errors.Join(err, letGo)
}

// letGo ends a data path, or leaves it attached.
func (g *Gateway) letGo(a *attachment, persist bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.several.Add(-1)
	g.crossings.end(a)
	g.attached = slices.DeleteFunc(g.attached, func(other *attachment) bool { return other == a })
	if persist {
		return a.dp.Release()
	}
	return a.dp.Detach()
}
