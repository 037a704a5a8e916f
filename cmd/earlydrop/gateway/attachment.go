// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

const (
	sweepEvery = 100 * time.Millisecond // idle flows wait at most this much longer; and says that somebody is there
	tidyEvery  = time.Second            // expired blocks, counters for status
	tellEvery  = 10 * time.Second       // how many verdicts were left out

	// After the program stood still, the ring buffer is full of captures whose
	// flows are far ahead. New flows must not wait until all of them are
	// classified: what is staleAfter old passes while more than a few wait.
	staleAfter   = time.Second
	staleWaiting = 64

	// While the classifier is behind, captures wait in the ring buffer, which costs nothing.
	// At this fill the oldest give way, down to the lower one, so that the kernel has room for
	// new ones. They are not even read: what is spent on them is missing for the others.
	fullRing, roomyRing = 0.5, 0.25
)

// attachment is one interface of a gateway: its data path, and the way of captures and
// verdicts between that and the gateway's classifier and policy.
type attachment struct {
	gateway *Gateway
	dp      *loader.DataPath
	iface   func() string // what the interface is called now
	started time.Time
	asked   loader.Options // what it was attached as

	counts  counts
	leftOut atomic.Uint64 // verdicts that no event has told of as left out
	classes sync.Map      // class -> *atomic.Uint64
	rules   tallies[string, ruleCounts]
	kinds   tallies[verdictKind, atomic.Uint64]
	latency latencies // from the hand-over to the verdict
	recent  recent    // what was counted lately
	unread  atomic.Pointer[string]
	pending sync.WaitGroup // captures that the classifier has
	sent    sent           // of the capture that is read
	tidied  pulse
	told    toldMode
	known   knownFlows // that are blocked
	pairs   kernelPairs

	// Of each kind one warning per second.
	warnClassify, warnBlock, warnRead, warnTidy rate.Sometimes
}

func newAttachment(g *Gateway, dp *loader.DataPath, iface func() string) *attachment {
	a := &attachment{gateway: g, dp: dp, iface: iface, started: time.Now()}
	a.tidied.beat()
	for _, kind := range []*rate.Sometimes{&a.warnClassify, &a.warnBlock, &a.warnRead, &a.warnTidy} {
		kind.Interval = time.Second
	}
	return a
}

// run works until ctx ends, the interface vanishes or the ring buffer fails.
func (a *attachment) run(ctx context.Context) error {
	reader, err := a.dp.NewReader()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	wg.Go(func() { a.tidy(ctx, cancel) })
	wg.Go(func() {
		if err := a.dp.Watch(ctx, a.changed); err != nil {
			cancel(err)
		}
	})
	wg.Go(func() {
		<-ctx.Done()
		_ = reader.Close()
	})
	err = a.read(ctx, reader)
	cancel(err)
	wg.Wait()
	// A signal is how it is meant to end.
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return err
}

// drain waits until the classifier has none of the captures any more, or ctx ends: its engine
// works for others, too.
func (a *attachment) drain(ctx context.Context) {
	empty := make(chan struct{})
	go func() {
		a.pending.Wait()
		close(empty)
	}()
	select {
	case <-empty:
	case <-ctx.Done():
	}
}

// sampleSource is where captures come from, a *loader.Reader.
type sampleSource interface {
	Read(*flow.Sample) error
	More() bool
	Fill() float64
	Skip() error
}

// read moves captures from the ring buffer to the classifier's queue, or, as long as they come
// one by one, has them classified at once. It returns nil when the reader is closed, and a
// *BrokenError when the ring buffer fails for good.
func (a *attachment) read(ctx context.Context, reader sampleSource) error {
	var trouble patience
	thread := a.gateway.realTime.thread()
	defer thread.end()
	engine, decide := a.gateway.config.Engine, a.decide // once: a method value takes memory
	for {
		s := engine.Get()
		err := reader.Read(s)
		switch {
		case errors.Is(err, loader.ErrClosed):
			engine.Put(s)
			return nil
		case errors.Is(err, loader.ErrBadRecord):
			trouble.over()
			engine.Put(s)
			a.counts[countNotClassified].Add(1)
			a.warnRead.Do(func() { slog.Warn("capture lost", "interface", a.iface(), "error", err) })
			continue
		case err != nil:
			engine.Put(s)
			if trouble.lasts() {
				return &BrokenError{err}
			}
			text := err.Error()
			a.unread.Store(&text)
			a.warnRead.Do(func() { slog.Warn("captures can't be read, trying again", "interface", a.iface(), "error", err) })
			pause(ctx, tryAgainAfter)
			continue
		}
		trouble.over()
		a.unread.Store(nil)
		now := time.Now()
		thread.look(now)
		stale := engine.Waiting() >= staleWaiting && now.Sub(s.Start.Add(s.Elapsed)) > staleAfter
		var c *crossing
		if !stale {
			var recognised bool
			if c, recognised = a.recognise(s); recognised {
				engine.Put(s)
				continue
			}
		}
		a.pending.Add(1)
		if !stale && !reader.More() && engine.ComputeNow(s, decide) {
			continue
		}
		if stale || !a.submit(ctx, reader, s, decide) {
			// Fail open: the flow passes, as it does already.
			a.pending.Done()
			a.counts[countQueueFull].Add(1)
			engine.Put(s)
			if c != nil {
				a.gateway.crossings.forget(c, a)
			}
		}
	}
}

// submit hands a capture to the classifier, and waits for it as long as the ring buffer has
// room for others. It returns false if that room ends, or ctx does: then the capture gives way,
// and others behind it have done.
func (a *attachment) submit(ctx context.Context, reader sampleSource, s *flow.Sample, decide classifier.Handler) bool {
	engine := a.gateway.config.Engine
	for !engine.Submit(s, decide) {
		if reader.Fill() >= fullRing {
			for reader.Fill() > roomyRing && reader.Skip() == nil { // Read tells of an error
				a.counts[countQueueFull].Add(1)
			}
			return false
		}
		select {
		case <-engine.Room():
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// decide is called by the classifier's workers, several at once.
func (a *attachment) decide(s *flow.Sample, r flow.Result, err error) {
	defer a.pending.Done()
	g := a.gateway
	g.classified.beat()
	if err != nil {
		a.counts[countNotClassified].Add(1)
		if !errors.Is(err, classifier.ErrClosed) {
			a.warnClassify.Do(func() {
				slog.Warn("flow not classified, it passes", "interface", a.iface(), "flow", s.Key, "error", err)
			})
		}
		return
	}
	var j *judge
	var decision policy.Decision
	var mode policy.Mode
	var treatment flow.Treatment
	var earlier []flow.Meta  // that are to be treated with it
	var block, enforced bool // to be, and is
	for {
		j = g.judge.Load()
		var more []flow.Meta
		decision, more = g.config.Evidence.Decide(j.policy, &s.Meta, r)
		earlier, treatment = append(earlier, more...), flow.Treatment{}
		if mode = a.mode(); mode == policy.Enforce {
			treatment = decision.Treatment()
		}
		block = treatment.Action.Blocks()
		err = a.dp.ApplyFlow(&s.Meta, treatment)
		if enforced = block && err == nil; !enforced {
			break
		}
		a.known.add(&s.Meta, &r, &decision)
		if g.judge.Load() == j {
			break // a reload that comes now sees the block
		}
		// One that was there before may not have seen it: the flow is judged again.
		if err = a.takeBack(s.Key); err != nil {
			break
		}
	}
	decided := time.Now()
	// Somebody has lifted a block of the flow; of its pair, the decision is as it was.
	lifted := errors.Is(err, loader.ErrExempt)
	if lifted {
		err = nil
	}
	var failed error // to block
	if err != nil {
		a.counts[countNotBlocked].Add(1)
		message := "verdict not written, the flow passes"
		if block {
			failed, message = err, "flow not blocked, it passes"
		}
		if errors.Is(err, loader.ErrFull) {
			a.counts[countBlockedFull].Add(1)
		}
		a.warnBlock.Do(func() { slog.Warn(message, "interface", a.iface(), "flow", s.Key, "error", err) })
	}
	blockedBefore := a.treatEarlier(earlier, s.Source, treatment, j)
	a.counts[countClassified].Add(1)
	if decision.Action.Blocks() {
		a.counts[countToDrop].Add(1)
	}
	if enforced {
		a.counts[countBlocked].Add(1)
	}
	if g.config.Engine.Failure() != nil {
		a.counts[countOnSpare].Add(1)
	}
	a.counts[countForgotten].Add(g.config.Evidence.TakeForgotten())
	switch decision.Reason {
	case policy.ReasonEvidence:
		a.counts[countPairs].Add(1)
		a.treatPair(s.Pair())
	case policy.ReasonPair:
		a.counts[countPairFlows].Add(1)
	case policy.ReasonPaused:
		a.counts[countPaused].Add(1)
	}
	if lifted {
		decision.Pass(policy.ReasonExempt)
	}
	n, _ := a.classes.LoadOrStore(decision.Class, new(atomic.Uint64))
	n.(*atomic.Uint64).Add(1)
	a.countDecision(&s.Meta, &decision, enforced, decided)
	a.latency.add(decided, decided.Sub(s.Start.Add(s.Elapsed)))
	a.shadow(s, &r, j)
	o := outcome{id: g.config.Events.NewID(decided), judge: j, mode: mode, enforced: enforced, failed: failed, at: decided, earlier: blockedBefore}
	g.decisions.add(a, s, &r, &decision, &o)
	told, kept := g.config.Events.Wants(decision.Detected, decided), g.config.History.Wants(decision.Detected, decided)
	if told || kept {
		v := newVerdict(s, &r, &decision, &o)
		if kept {
			g.config.History.KeepVerdict(v, s)
		}
		g.tops.keep(v)
		if told {
			a.add(v)
		}
	}
	if !told {
		a.counts[countPassesLeftOut].Add(1)
		a.leftOut.Add(1)
	}
}

// treatEarlier treats flows of a pair that passed before there was enough evidence, as far as
// they are open and came through this interface, and returns how many are blocked now.
func (a *attachment) treatEarlier(flows []flow.Meta, here flow.Source, treatment flow.Treatment, j *judge) (n int) {
	if !treatment.Action.Blocks() {
		return 0
	}
	for i := range flows {
		m := &flows[i]
		if m.Source.Index != here.Index {
			continue
		}
		switch err := a.dp.ApplyFlow(m, treatment); {
		case err == nil:
			if a.gateway.judge.Load() != j {
				// A reload may not have seen the block: these flows are not judged again, so
				// they pass.
				if err := a.takeBack(m.Key); err == nil {
					continue
				}
			}
			n++
			a.counts[countBlocked].Add(1)
			a.gateway.tops.noteBlocked(m)
		case !errors.Is(err, loader.ErrFlowGone) && !errors.Is(err, loader.ErrExempt):
			a.counts[countNotBlocked].Add(1)
			a.warnBlock.Do(func() { slog.Warn("flow not blocked, it passes", "interface", a.iface(), "flow", m.Key, "error", err) })
		}
	}
	return n
}

// add queues an event, and put one that must not be lost.
func (a *attachment) add(e event.Event) {
	if !a.gateway.config.Events.Add(e) {
		a.counts[countEventsLost].Add(1)
	}
}

// put is explained at add.
func (a *attachment) put(e event.Event) {
	if !a.gateway.config.Events.Put(e) {
		a.counts[countEventsLost].Add(1)
	}
}

// newVerdict returns the event of a decision.
func newVerdict(s *flow.Sample, r *flow.Result, dec *policy.Decision, o *outcome) *event.Verdict {
	v, enforced := event.NewVerdict(s, r, dec), o.enforced // a copy, so that o needs no memory of its own
	handedOver := v.Time
	v.ID, v.Time, v.Mode, v.Model, v.Enforced, v.EarlierBlocked = o.id, o.at, o.mode.String(), o.judge.model, &enforced, o.earlier
	v.VerdictMS = float64(o.at.Sub(s.Start).Microseconds()) / 1e3
	v.LatencyUS = float64(max(0, o.at.Sub(handedOver)).Nanoseconds()) / 1e3
	if o.failed != nil {
		v.Error = o.failed.Error()
	}
	return v
}

// tidy does what is due regularly: the idle sweep, expired blocks, status.
func (a *attachment) tidy(ctx context.Context, cancel context.CancelCauseFunc) {
	sweep, slow, tell := time.NewTicker(sweepEvery), time.NewTicker(tidyEvery), time.NewTicker(tellEvery)
	defer sweep.Stop()
	defer slow.Stop()
	defer tell.Stop()
	var noSweep, noTidying patience
	advised := false
	a.noteRecent()
	if err := a.tendPairs(); err != nil {
		a.warnTidy.Do(func() { slog.Warn("trying again", "interface", a.iface(), "error", err) })
	}
	for {
		var err error
		trouble := &noSweep
		select {
		case <-ctx.Done():
			// The last words of a daemon that persists.
			_, _ = a.dp.Attend(false), a.dp.Report(a.counts.list())
			return
		case now := <-tell.C:
			a.sayLeftOut(now)
			if a.known.len() > 0 {
				at := time.Now()
				if blocks, err := a.dp.Blocked(); err == nil {
					a.known.keep(blocks, at)
				}
			}
			continue
		case <-sweep.C:
			_, err = a.dp.Sweep()
			// A policy that drops no TCP flow has none wait.
			err = errors.Join(err, a.dp.Attend(a.gateway.judge.Load().policy.DropsTCP()))
		case <-slow.C:
			err, trouble = errors.Join(a.expire(), a.tendPairs(), a.dp.Report(a.counts.list())), &noTidying
			advised = advised || a.advise()
			a.noteRecent()
			a.tidied.beat()
			a.mode() // tells if it was changed
		}
		switch {
		case err == nil:
			trouble.over()
		case trouble.lasts():
			cancel(&BrokenError{err})
			return
		default:
			a.warnTidy.Do(func() { slog.Warn("trying again", "interface", a.iface(), "error", err) })
		}
	}
}

// advise logs, once, what the counters say about what is seen of connections, and
// reports whether there was anything.
func (a *attachment) advise() bool {
	counters, err := a.dp.Counters()
	if err != nil {
		return false
	}
	advice := a.gateway.config.Advise(a.iface(), counters.Values())
	for _, text := range advice {
		slog.Warn(text, "interface", a.iface())
	}
	return len(advice) > 0
}

func (a *attachment) expire() error {
	blocks, err := a.dp.ExpireBlocks()
	for _, b := range blocks {
		a.blockEnded(b)
	}
	return err
}

// blockEnded tells that a block is over, and why.
func (a *attachment) blockEnded(b loader.Block) {
	a.known.remove(b.Key)
	a.gateway.tops.noteEnded(&b)
	e := &event.BlockEnded{
		Time: time.Now(), Interface: a.iface(),
		Endpoints: event.Endpoints{Src: b.Key.Lo, Dst: b.Key.Hi, Proto: b.Key.Proto.String(), VLAN: b.Key.VLAN, InnerVLAN: b.Key.InnerVLAN},
		Class:     b.Class, Rule: b.Rule, Reason: string(b.Ended), DroppedPackets: b.Packets, DroppedBytes: b.Bytes,
	}
	a.gateway.decisions.ended(a.blockID(b.Key), e)
	a.add(e)
}

// sayLeftOut tells how many verdicts were left out since the last time, if any.
func (a *attachment) sayLeftOut(now time.Time) {
	if n := a.leftOut.Swap(0); n > 0 {
		a.put(&event.LeftOut{Time: now, Interface: a.iface(), PassesLeftOut: n})
	}
}

// tellAttached tells that the interface is watched from now on.
func (a *attachment) tellAttached() {
	c, info := &a.gateway.config, a.dp.Info
	j := a.gateway.judge.Load()
	a.put(&event.Attached{
		Time: time.Now(), Interface: a.iface(), Mode: a.mode().String(), Ingress: info.Ingress, IngressWhy: info.IngressWhy, XDP: string(info.XDPMode),
		Egress: info.Egress, Adopted: info.Adopted, Policy: c.PolicyName, Model: j.model,
	})
	c.Attached(a.iface(), info)
}

// summary returns what the run has come to so far.
func (a *attachment) summary() Summary {
	s := Summary{Interface: a.iface(), Took: time.Since(a.started), Mode: a.mode(), Classes: a.countsOfClasses()}
	all, _ := a.dp.Counters() // without them it says the rest
	for _, c := range append(all, a.counts.list()...) {
		if c.Value != 0 {
			s.Counters = append(s.Counters, c)
		}
	}
	return s
}

// changed tells what became of the interface and the pins while it ran.
func (a *attachment) changed(c loader.Change) {
	if c.Was != "" {
		slog.Info("the interface was renamed", "from", c.Was, "interface", a.iface(), "pins", a.dp.PinDir())
	}
	if c.Moved {
		slog.Warn("the interface was moved to another network namespace, the work goes on", "interface", a.iface())
	}
	if c.Restored > 0 {
		a.counts[countPinsRestored].Add(uint64(c.Restored))
		slog.Warn("pins had been removed and are there again", "interface", a.iface(), "pins", a.dp.PinDir(), "count", c.Restored)
	}
	if c.PinsErr != nil {
		slog.Warn("pins were removed and can't be put back: the work goes on, but status does not show it, and blocks end with this process",
			"interface", a.iface(), "error", a.gateway.config.Explain(c.PinsErr))
	}
}
