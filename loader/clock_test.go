// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func kernelClock(t *testing.T) uint64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano())
}

// What Go says lies between two readings of the kernel's clock, but for what it is behind.
func TestClockIsTheKernels(t *testing.T) {
	behind := uint64(1 << 63)
	for range 1000 {
		before := kernelClock(t)
		is := monotonic()
		after := kernelClock(t)
		if is > after {
			t.Fatalf("%d ns ahead of the kernel's clock", is-after)
		}
		if is >= before {
			behind = 0
			break
		}
		behind = min(behind, before-is)
	}
	// Both readings of the start were interrupted each time: a busy machine.
	if behind > uint64(10*time.Millisecond) {
		t.Errorf("%d ns behind the kernel's clock, each time", behind)
	}
}

func TestWallClockOfAMoment(t *testing.T) {
	before := time.Now()
	got := wallClock(monotonic())
	if after := time.Now(); got.Before(before.Add(-time.Millisecond).Round(0)) || got.After(after.Add(time.Millisecond).Round(0)) {
		t.Errorf("now is %v, want %v to %v", got, before, after)
	}
	if d := time.Until(wallClock(monotonic() + uint64(time.Hour))); d < 59*time.Minute || d > 61*time.Minute {
		t.Errorf("in an hour is in %v", d)
	}
}

func BenchmarkMonotonic(b *testing.B) {
	for b.Loop() {
		monotonic()
	}
}

func BenchmarkWallClock(b *testing.B) {
	for b.Loop() {
		wallClock(1)
	}
}
