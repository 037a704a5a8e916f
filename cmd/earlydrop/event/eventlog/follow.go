// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"slices"
	"sync/atomic"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// Follower gets the events of a Log as they come, besides its outputs. One that is too
// slow loses events, and holds up nobody. Events are shared: they are for reading.
type Follower struct {
	log    *Log
	events chan event.Event
	lost   atomic.Uint64
}

// Follow returns a follower that gets what is logged from now on. So many events may wait
// for it. It may be called after Close; there is nothing to come then.
func (l *Log) Follow(waiting int) *Follower {
	f := &Follower{log: l, events: make(chan event.Event, waiting)}
	l.following.Lock()
	defer l.following.Unlock()
	list := l.followers.Load()
	switch {
	case list == nil:
		l.followers.Store(&[]*Follower{f})
	case *list == nil: // the log is closed
		close(f.events)
	default:
		next := append(slices.Clone(*list), f)
		l.followers.Store(&next)
	}
	return f
}

// Events is where they come. It is closed when the log is.
func (f *Follower) Events() <-chan event.Event { return f.events }

// TakeLost returns how many events did not fit since it was called last.
func (f *Follower) TakeLost() uint64 { return f.lost.Swap(0) }

// Close ends the following.
func (f *Follower) Close() {
	f.log.following.Lock()
	defer f.log.following.Unlock()
	list := f.log.followers.Load()
	if list == nil || *list == nil {
		return
	}
	next := slices.DeleteFunc(slices.Clone(*list), func(other *Follower) bool { return other == f })
	f.log.followers.Store(&next)
}

// publish gives an event its ID, and then to all that follow.
func (l *Log) publish(e event.Event) {
	l.ids.Identify(e)
	if _, verdict := e.(*event.Verdict); l.taker != nil && !verdict {
		l.taker(e)
	}
	list := l.followers.Load()
	if list == nil {
		return
	}
	for _, f := range *list {
		select {
		case f.events <- e:
		default:
			f.lost.Add(1)
		}
	}
}

// endFollowers tells all that follow that nothing comes any more.
func (l *Log) endFollowers() {
	l.following.Lock()
	defer l.following.Unlock()
	if list := l.followers.Load(); list != nil {
		for _, f := range *list {
			close(f.events)
		}
	}
	l.followers.Store(new([]*Follower)) // a nil list: closed
}
