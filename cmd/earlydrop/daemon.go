// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

const (
	sweepEvery = 100 * time.Millisecond // idle flows wait at most this much longer
	tidyEvery  = time.Second            // expired blocks, counters for status
	tellEvery  = 10 * time.Second       // how many verdicts were left out

	// After the program stood still, the ring buffer is full of captures whose
	// flows are far ahead. New flows must not wait until all of them are
	// classified: what is staleAfter old passes while more than a few wait.
	staleAfter   = time.Second
	staleWaiting = 64
)

// daemon joins data path, classifier and policy: it carries captures one way and
// verdicts the other.
type daemon struct {
	dp      *loader.DataPath
	iface   func() string // what the interface is called now
	engine  *classifier.Engine
	policy  *policy.Policy
	mode    policy.Mode
	model   string
	out     *eventlog.Log
	started time.Time

	oneHook, oneWay bool // as attached

	counts                                counts
	warnClassify, warnBlock, warnRead     rateLimit
	warnTidy                              rateLimit
	classes                               sync.Map // class -> *atomic.Uint64
	expiredPackets, expiredBytes, expired uint64   // of blocks that ended; the tidy loop's
}

// run works until ctx ends, the interface vanishes or the ring buffer fails.
func (d *daemon) run(ctx context.Context) error {
	reader, err := d.dp.NewReader()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	wg.Go(func() { d.tidy(ctx, cancel) })
	wg.Go(func() {
		if err := d.dp.Watch(ctx, d.changed); err != nil {
			cancel(err)
		}
	})
	wg.Go(func() {
		<-ctx.Done()
		_ = reader.Close()
	})
	err = d.read(ctx, reader)
	cancel(err)
	wg.Wait()
	d.engine.Close()
	// A signal is how it is meant to end.
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return err
}

// sampleSource is where captures come from, a *loader.Reader.
type sampleSource interface {
	Read(*flow.Sample) error
}

// read moves captures from the ring buffer to the classifier's queue. It returns nil
// when the reader is closed, and a *brokenError when the ring buffer fails for good.
func (d *daemon) read(ctx context.Context, reader sampleSource) error {
	var trouble patience
	decide := d.decide // once: a method value takes memory
	for {
		s := d.engine.Get()
		err := reader.Read(s)
		switch {
		case errors.Is(err, loader.ErrClosed):
			d.engine.Put(s)
			return nil
		case errors.Is(err, loader.ErrBadRecord):
			trouble.over()
			d.engine.Put(s)
			d.counts[countNotClassified].Add(1)
			if d.warnRead.allow() {
				slog.Warn("capture lost", "interface", d.iface(), "error", err)
			}
			continue
		case err != nil:
			d.engine.Put(s)
			if trouble.lasts() {
				return &brokenError{err}
			}
			if d.warnRead.allow() {
				slog.Warn("captures can't be read, trying again", "interface", d.iface(), "error", err)
			}
			pause(ctx, tryAgainAfter)
			continue
		}
		trouble.over()
		stale := d.engine.Waiting() >= staleWaiting && time.Since(s.Start.Add(s.Elapsed)) > staleAfter
		if stale || !d.engine.Submit(s, decide) {
			// Fail open: the flow passes, as it does already.
			d.counts[countQueueFull].Add(1)
			d.engine.Put(s)
		}
	}
}

// decide is called by the classifier's workers, several at once.
func (d *daemon) decide(s *flow.Sample, r flow.Result, err error) {
	if err != nil {
		d.counts[countNotClassified].Add(1)
		if !errors.Is(err, classifier.ErrClosed) && d.warnClassify.allow() {
			slog.Warn("flow not classified, it passes", "interface", d.iface(), "flow", s.Key, "error", err)
		}
		return
	}
	decision := d.policy.Decide(&s.Meta, r)
	treatment := decision.Treatment()
	if d.mode != policy.Enforce {
		treatment = flow.Treatment{}
	}
	block := treatment.Action == flow.Drop
	err = d.dp.ApplyFlow(&s.Meta, treatment)
	decided := time.Now()
	enforced := block && err == nil
	var failed error // to block
	if err != nil {
		d.counts[countNotBlocked].Add(1)
		message := "verdict not written, the flow passes"
		if block {
			failed, message = err, "flow not blocked, it passes"
		}
		if errors.Is(err, loader.ErrFull) {
			d.counts[countBlockedFull].Add(1)
		}
		if d.warnBlock.allow() {
			slog.Warn(message, "interface", d.iface(), "flow", s.Key, "error", err)
		}
	}
	d.counts[countClassified].Add(1)
	if decision.Action == flow.Drop {
		d.counts[countToDrop].Add(1)
	}
	if enforced {
		d.counts[countBlocked].Add(1)
	}
	n, _ := d.classes.LoadOrStore(decision.Class, new(atomic.Uint64))
	n.(*atomic.Uint64).Add(1)
	if d.out.Wants(decision.Detected, decided) {
		d.out.Add(d.verdict(s, &r, &decision, enforced, failed, decided))
	}
}

// verdict returns the event of a verdict. failed says why a drop was not enforced,
// although it should have been.
func (d *daemon) verdict(s *flow.Sample, r *flow.Result, dec *policy.Decision, enforced bool, failed error, at time.Time) *event.Verdict {
	v := event.NewVerdict(s, r, dec)
	handedOver := v.Time
	v.Time, v.Mode, v.Model, v.Enforced = at, d.mode.String(), d.model, &enforced
	v.VerdictMS = float64(at.Sub(s.Start).Microseconds()) / 1e3
	v.LatencyUS = float64(max(0, at.Sub(handedOver)).Nanoseconds()) / 1e3
	if failed != nil {
		v.Error = failed.Error()
	}
	return v
}

// tidy does what is due regularly: the idle sweep, expired blocks, status.
func (d *daemon) tidy(ctx context.Context, cancel context.CancelCauseFunc) {
	sweep, slow, tell := time.NewTicker(sweepEvery), time.NewTicker(tidyEvery), time.NewTicker(tellEvery)
	defer sweep.Stop()
	defer slow.Stop()
	defer tell.Stop()
	var noSweep, noTidying patience
	advised := false
	for {
		var err error
		trouble := &noSweep
		select {
		case <-ctx.Done():
			// The last word of a daemon that persists.
			_ = d.dp.Report(d.counters())
			return
		case now := <-tell.C:
			d.sayLeftOut(now)
			continue
		case <-sweep.C:
			_, err = d.dp.Sweep()
		case <-slow.C:
			err, trouble = errors.Join(d.expire(), d.dp.Report(d.counters())), &noTidying
			advised = advised || d.adviseSides()
		}
		switch {
		case err == nil:
			trouble.over()
		case trouble.lasts():
			cancel(&brokenError{err})
			return
		case d.warnTidy.allow():
			slog.Warn("trying again", "interface", d.iface(), "error", err)
		}
	}
}

// adviseSides warns, once, where the interface does not see what it takes to prove
// connections, and reports whether it did.
func (d *daemon) adviseSides() bool {
	counters, err := d.dp.Counters()
	if err != nil {
		return false
	}
	advice := sidesAdvice(d.iface(), counters.Values(), d.oneHook, d.oneWay)
	for _, a := range advice {
		slog.Warn(a, "interface", d.iface())
	}
	return len(advice) > 0
}

func (d *daemon) expire() error {
	blocks, err := d.dp.ExpireBlocks()
	for _, b := range blocks {
		d.expired++
		d.expiredPackets += b.Packets
		d.expiredBytes += b.Bytes
		d.blockEnded(b)
	}
	return err
}

// changed tells what became of the interface and the pins while it ran.
func (d *daemon) changed(c loader.Change) {
	if c.Was != "" {
		slog.Info("the interface was renamed", "from", c.Was, "interface", d.iface(), "pins", d.dp.PinDir())
	}
	if c.Moved {
		slog.Warn("the interface was moved to another network namespace, the work goes on", "interface", d.iface())
	}
	if c.Restored > 0 {
		d.counts[countPinsRestored].Add(uint64(c.Restored))
		slog.Warn("pins had been removed and are there again", "interface", d.iface(), "pins", d.dp.PinDir(), "count", c.Restored)
	}
	if c.PinsErr != nil {
		slog.Warn("pins were removed and can't be put back: the work goes on, but other commands don't see it, and blocks end with this process",
			"interface", d.iface(), "error", fromLoader(c.PinsErr))
	}
}

// counters returns what the daemon has counted so far.
func (d *daemon) counters() loader.Counters {
	d.counts[countPassesLeftOut].Store(d.out.LeftOut())
	d.counts[countEventsLost].Store(d.out.Lost())
	return d.counts.list()
}

// rateLimit lets one warning per second through.
type rateLimit struct{ last atomic.Int64 }

func (r *rateLimit) allow() bool {
	now, last := time.Now().UnixNano(), r.last.Load()
	return now-last >= int64(time.Second) && r.last.CompareAndSwap(last, now)
}
