// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"math/bits"
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
)

// latencies are how long verdicts, or batches, took, of this minute and the one before. It is safe for
// concurrent use.
type latencies struct {
	mu      sync.Mutex
	minute  int64 // that the first of them is about
	windows [2]latencyWindow

	// Since the beginning: how many were at most as long as each of delayBounds, but longer
	// than the one before.
	delays [len(delayBounds)]uint64
	count  uint64
	sum    time.Duration
}

// delayBounds are those of the histogram: from what a quiet machine takes to what a flow
// notices.
var delayBounds = [...]time.Duration{
	50 * time.Microsecond, 100 * time.Microsecond, 200 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, time.Second, 10 * time.Second,
}

// latencyWindow counts latencies by their size: of each power of two of nanoseconds,
// eight steps, so that a percentile is at most an eighth too large.
type latencyWindow struct {
	n       uint64
	max     time.Duration
	buckets [64 * latencySteps]uint32
}

const latencySteps = 8

// bucketOf returns where a latency is counted, and bucketTop the largest that is
// counted there.
func bucketOf(d time.Duration) int {
	v := uint64(max(0, d))
	if v < latencySteps {
		return int(v)
	}
	shift := bits.Len64(v) - bits.Len64(latencySteps)
	return (shift+1)*latencySteps + int(v>>shift)&(latencySteps-1)
}

func bucketTop(i int) time.Duration {
	if i < latencySteps {
		return time.Duration(i)
	}
	shift := i/latencySteps - 1
	return time.Duration((uint64(i%latencySteps+latencySteps)+1)<<shift - 1)
}

// add counts one.
func (l *latencies) add(now time.Time, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turn(now)
	w := &l.windows[0]
	w.n++
	w.max = max(w.max, d)
	w.buckets[bucketOf(d)]++
	l.count++
	l.sum += max(0, d)
	for i, bound := range delayBounds {
		if d <= bound {
			l.delays[i]++
			break
		}
	}
}

// histogram returns all there were.
func (l *latencies) histogram() *status.Histogram {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := &status.Histogram{Count: l.count, Sum: l.sum.Seconds(), Buckets: map[float64]uint64{}}
	sum := uint64(0)
	for i, bound := range delayBounds {
		sum += l.delays[i]
		h.Buckets[bound.Seconds()] = sum
	}
	return h
}

// turn begins a new window where the minute is over.
func (l *latencies) turn(now time.Time) {
	switch minute := now.Unix() / 60; {
	case minute == l.minute+1:
		l.windows[1], l.windows[0], l.minute = l.windows[0], latencyWindow{}, minute
	case minute != l.minute:
		l.windows, l.minute = [2]latencyWindow{}, minute
	}
}

// list returns what they come to; nil if there was none lately.
func (l *latencies) list(now time.Time) *status.Latency {
	n, times := l.times(now)
	if n == 0 {
		return nil
	}
	return &status.Latency{Verdicts: n, Times: times}
}

// times returns how many there were lately, and what they come to.
func (l *latencies) times(now time.Time) (n uint64, times status.Times) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turn(now)
	a, b := &l.windows[0], &l.windows[1]
	n, most := a.n+b.n, max(a.max, b.max)
	if n == 0 {
		return 0, times
	}
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	percentile := func(percent uint64) float64 {
		rank, seen := (n*percent+99)/100, uint64(0)
		for i := range a.buckets {
			if seen += uint64(a.buckets[i]) + uint64(b.buckets[i]); seen >= rank {
				return us(min(bucketTop(i), most))
			}
		}
		return us(most)
	}
	return n, status.Times{P50: percentile(50), P90: percentile(90), P99: percentile(99), Max: us(most)}
}
