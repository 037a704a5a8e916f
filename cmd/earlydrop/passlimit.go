// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// sayLeftOut is how often the events tell how many verdicts were left out.
const sayLeftOut = 10 * time.Second

// passLimit says which verdicts are written of flows that pass undetected: in a
// flood they are nearly all there is. Its methods are safe for concurrent use, and
// its zero value writes none.
type passLimit struct {
	text      string
	all       bool
	perSecond uint64 // at most so many in a second, or
	oneIn     uint64 // every so many-th

	mu     sync.Mutex
	second int64  // the one that n is about
	n      uint64 // in this second, or since the last that was written

	leftOut atomic.Uint64 // in all
	unsaid  atomic.Uint64 // of them, those that no event has told of
}

// parsePassLimit reads the value of --events-pass. Every error is bad input.
func parsePassLimit(s string) (*passLimit, error) {
	l := &passLimit{text: s}
	rate, perSecond := strings.CutSuffix(s, "/s")
	share, oneIn := strings.CutPrefix(s, "1/")
	n, err := uint64(0), error(nil)
	switch {
	case s == "all":
		l.all = true
	case s == "none":
	case perSecond:
		n, err = strconv.ParseUint(rate, 10, 32)
		l.perSecond = n
	case oneIn:
		n, err = strconv.ParseUint(share, 10, 32)
		l.oneIn = n
	default:
		err = strconv.ErrSyntax
	}
	if err != nil || (perSecond || oneIn) && n == 0 {
		return nil, badInput("--events-pass %q: use all, none, a rate such as 100/s, or a share such as 1/100", s)
	}
	return l, nil
}

// allow reports whether the verdict of now is to be written, and counts it if not.
func (l *passLimit) allow(now time.Time) bool {
	if l.all {
		return true
	}
	l.mu.Lock()
	ok := false
	switch {
	case l.perSecond > 0:
		if second := now.Unix(); second != l.second {
			l.second, l.n = second, 0
		}
		ok = l.n < l.perSecond
		l.n++
	case l.oneIn > 0:
		ok = l.n%l.oneIn == 0
		l.n++
	}
	l.mu.Unlock()
	if !ok {
		l.leftOut.Add(1)
		l.unsaid.Add(1)
	}
	return ok
}

// leftOutEvent returns the event that tells how many verdicts were left out since
// the last one, and whether there were any.
func (s *sinks) leftOutEvent(now time.Time) (event, bool) {
	n := s.passes.unsaid.Swap(0)
	if n == 0 { // as before the attach, when the interface has no name yet
		return event{}, false
	}
	return event{Time: now, Event: "left_out", Interface: s.iface(), PassesLeftOut: n}, true
}
