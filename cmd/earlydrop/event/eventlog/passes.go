// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Passes says which verdicts are written of flows that pass undetected: in a flood they
// are nearly all there is. Its methods are safe for concurrent use, and its zero value
// writes none.
type Passes struct {
	all       bool
	perSecond uint64 // at most so many in a second, or
	oneIn     uint64 // every so many-th

	mu     sync.Mutex
	second int64  // the one that n is about
	n      uint64 // in this second, or since the last that was written
}

// AllPasses writes them all.
func AllPasses() *Passes { return &Passes{all: true} }

// ParsePasses reads all, none, a rate such as 100/s, or a share such as 1/100.
func ParsePasses(s string) (*Passes, error) {
	l := &Passes{}
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
		return nil, fmt.Errorf("%q: use all, none, a rate such as 100/s, or a share such as 1/100", s)
	}
	return l, nil
}

// Allow reports whether the verdict of now is to be written.
func (l *Passes) Allow(now time.Time) bool {
	if l.all {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
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
	return ok
}
