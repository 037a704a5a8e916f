// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"time"

	"golang.org/x/sys/unix"
)

// monotonic returns CLOCK_MONOTONIC in nanoseconds, the kernel programs' clock.
func monotonic() uint64 {
	var ts unix.Timespec
	// It fails for an unknown clock only.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return uint64(ts.Nano())
}

// wallClock turns monotonic nanoseconds into wall-clock time. The offset between
// the two changes when the clock is set, so it is read again for each use.
func wallClock(ns uint64) time.Time {
	return time.Now().Add(time.Duration(int64(ns) - int64(monotonic()))).Round(0)
}
