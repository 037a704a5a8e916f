// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/policy"
)

// How long an interface is left alone that is there and can't be attached to: twice as long
// after each try, within these bounds. One that is not there is tried as soon as it is.
const (
	shortestWait = time.Second
	longestWait  = 30 * time.Second
)

// waiting is an interface that is to be attached to as soon as it can be.
type waiting struct {
	asked loader.Options
	wait  time.Duration // after the next failure; 0: the interface is not there
	again time.Time     // when it is tried again, if it is there
	said  string        // the error that was told last
}

// failed notes that it can't be attached to, and reports whether that is something new.
func (w *waiting) failed(err error, now time.Time) (news bool) {
	if errors.Is(err, loader.ErrNoInterface) {
		news = w.wait != 0
		w.wait, w.again, w.said = 0, time.Time{}, ""
		return news
	}
	w.wait = min(max(2*w.wait, shortestWait), longestWait)
	w.again = now.Add(w.wait)
	news = w.said != err.Error()
	w.said = err.Error()
	return news
}

// event tells of it.
func (w *waiting) event() *event.Waiting {
	return &event.Waiting{Time: time.Now(), Interface: w.asked.Interface, Error: w.said}
}

// tellWaiting tells of all that are waited for.
func (g *Gateway) tellWaiting() {
	for _, w := range g.waiting {
		g.config.Events.Put(w.event())
	}
}

// waitAgain reports whether an interface was removed that is to be waited for.
func (g *Gateway) waitAgain(e runEnd) bool {
	var removed *loader.RemovedError
	if !g.config.Wait || !errors.As(e.err, &removed) {
		return false
	}
	w := &waiting{asked: e.a.asked}
	w.asked.Monitor = policy.Mode(e.a.told.mode.Load()) == policy.Monitor // as it was at last
	g.changing.Lock()
	g.waiting = append(g.waiting, w)
	g.changing.Unlock()
	g.config.Events.Put(w.event())
	return true
}

// attachWaiting attaches to those that can be by now, and returns them.
func (g *Gateway) attachWaiting() (found []*attachment) {
	g.changing.Lock()
	defer g.changing.Unlock()
	now := time.Now()
	g.waiting = slices.DeleteFunc(g.waiting, func(w *waiting) bool {
		if now.Before(w.again) {
			return false
		}
		paths, err := loader.AttachAll(g.options(w.asked))
		if err == nil {
			found = append(found, g.add(w.asked, paths[0]))
			g.adoptPairs(found[len(found)-1:], false)
			return true
		}
		if w.failed(g.config.Explain(err), now) {
			g.config.Events.Put(w.event())
		}
		return false
	})
	if len(found) > 0 {
		debug.FreeOSMemory()
	}
	return found
}

// nextTry returns a channel that tells when an interface is to be tried again that is there;
// nil if there is none.
func (g *Gateway) nextTry() <-chan time.Time {
	var next time.Time
	for _, w := range g.waiting {
		if !w.again.IsZero() && (next.IsZero() || w.again.Before(next)) {
			next = w.again
		}
	}
	if next.IsZero() {
		return nil
	}
	return time.After(time.Until(next))
}

// watchLinks returns a channel that tells of changes of interfaces until ctx ends.
func watchLinks(ctx context.Context) <-chan struct{} {
	changes := make(chan struct{}, 1)
	go loader.WatchLinks(ctx, func() {
		select {
		case changes <- struct{}{}:
		default: // it is told already
		}
	})
	return changes
}

// split returns which of the interfaces are there.
func split(asked []loader.Options) (there, away []loader.Options, err error) {
	for _, o := range asked {
		has, err := loader.HasInterface(o.Interface)
		switch {
		case err != nil:
			return nil, nil, err
		case has:
			there = append(there, o)
		default:
			away = append(away, o)
		}
	}
	return there, away, nil
}
