// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"math"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
)

// Every latency is counted where it belongs, and the top of that is at most an eighth larger.
func TestLatencyBuckets(t *testing.T) {
	last := -1
	for _, d := range []time.Duration{-1, 0, 1, 7, 8, 9, 15, 16, 17, 1000, 1023, 1024, time.Millisecond, time.Second, time.Hour, math.MaxInt64} {
		i := bucketOf(d)
		top := bucketTop(i)
		if i < last || i >= len(latencyWindow{}.buckets) || top < d || d > 0 && float64(top-d) > float64(d)/latencySteps {
			t.Errorf("%d ns: bucket %d to %d", d, i, top)
		}
		last = i
	}
}

func TestLatencyPercentiles(t *testing.T) {
	var l latencies
	now := time.Unix(6000, 0)
	if got := l.list(now); got != nil {
		t.Errorf("of nothing: %+v", got)
	}
	for i := 1; i <= 1000; i++ {
		l.add(now, time.Duration(i)*time.Microsecond)
	}
	near := func(got, want float64) bool { return got >= want && got <= want*(1+1.0/latencySteps) }
	check := func(when string) {
		got := l.list(now)
		if got == nil || got.Verdicts != 1000 || !near(got.P50, 500) || !near(got.P90, 900) || !near(got.P99, 990) || got.Max != 1000 {
			t.Errorf("%s: %+v", when, got)
		}
	}
	check("at once")
	now = now.Add(time.Minute)
	check("a minute later")
	l.add(now, 2*time.Millisecond)
	if got := l.list(now); got.Verdicts != 1001 || got.Max != 2000 {
		t.Errorf("of two minutes: %+v", got)
	}
	now = now.Add(time.Minute)
	if got := l.list(now); got.Verdicts != 1 || got.P50 != 2000 {
		t.Errorf("the first minute is over: %+v", got)
	}
	if got := l.list(now.Add(time.Hour)); got != nil {
		t.Errorf("an hour later: %+v", got)
	}
	if got := l.list(now.Add(-time.Hour)); got != nil {
		t.Errorf("after the clock was set back: %+v", got)
	}
}

func TestRecentGrowth(t *testing.T) {
	var r recent
	now := time.Unix(6000, 0)
	if grown, span := r.growth(now, map[string]uint64{"a": 1}); grown != nil || span != 0 {
		t.Errorf("before the first look: %v in %s", grown, span)
	}
	for i := range 100 { // every 5 s, "a" grows by one, "b" stays
		at := now.Add(time.Duration(i) * recentEvery)
		if !r.due(at) || r.due(at.Add(-time.Nanosecond)) && i > 0 {
			t.Fatalf("due at %d", i)
		}
		r.note(at, map[string]uint64{"a": uint64(i), "b": 7}, status.Totals{})
	}
	now = now.Add(99 * recentEvery)
	grown, span := r.growth(now, map[string]uint64{"a": 99, "b": 7, "c": 2})
	if len(grown) != 2 || grown["a"] != uint64(span/recentEvery) || grown["c"] != 2 || span < recentSpan || span > recentSpan+recentEvery || len(r.kept) > 20 {
		t.Errorf("%v in %s, %d kept", grown, span, len(r.kept))
	}
}
