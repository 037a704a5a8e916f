// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"time"

	"golang.org/x/sys/unix"
)

// began is a moment on Go's clock, and CLOCK_MONOTONIC then. Go reads the same clock without
// a system call, but does not tell what it is.
var began, beganNS = bothClocks()

// bothClocks reads both at one moment: of a few tries the one that was interrupted least. What
// is told of the kernel's clock is never ahead of it.
func bothClocks() (at time.Time, ns uint64) {
	least := time.Duration(1<<63 - 1)
	for range 16 {
		var ts unix.Timespec
		before := time.Now()
		// It fails for an unknown clock only.
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
		after := time.Now()
		if took := after.Sub(before); took < least {
			least, at, ns = took, after, uint64(ts.Nano())
		}
	}
	return at, ns
}

// monotonic returns CLOCK_MONOTONIC in nanoseconds, the kernel programs' clock, some
// hundred nanoseconds behind it at most.
func monotonic() uint64 { return beganNS + uint64(time.Since(began)) }

// wallClock turns monotonic nanoseconds into wall-clock time. The offset between
// the two changes when the clock is set, so it is read again for each use.
func wallClock(ns uint64) time.Time {
	now := time.Now()
	return now.Add(time.Duration(int64(ns) - int64(beganNS+uint64(now.Sub(began))))).Round(0)
}
