// SPDX-License-Identifier: Apache-2.0

package top

import (
	"fmt"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
)

// count returns a number for a column: as it is, or in thousands and so on.
func count[N ~int | ~uint64](n N) cell {
	v := float64(n)
	if n < 100_000 {
		return cell{fmt.Sprint(uint64(n)), v}
	}
	return cell{scaled(v), v}
}

// scaled returns a large number in few characters.
func scaled(v float64) string {
	for _, unit := range []string{"", "k", "M", "G", "T", "P"} {
		switch {
		case v < 9.95 && unit != "":
			return fmt.Sprintf("%.1f%s", v, unit)
		case v < 999.5:
			return fmt.Sprintf("%.0f%s", v, unit)
		}
		v /= 1000
	}
	return fmt.Sprintf("%.0fE", v)
}

// perSecond returns a rate; "-" where it is not known.
func perSecond(rate float64, known bool) cell {
	switch {
	case !known:
		return cell{"-", -1}
	case rate > 0 && rate < 9.95:
		return cell{fmt.Sprintf("%.1f", rate), rate}
	}
	return cell{scaled(rate), rate}
}

// bytesPerSecond is perSecond of bytes, with its unit.
func bytesPerSecond(rate float64, known bool) cell {
	if !known {
		return cell{"-", -1}
	}
	return cell{event.ByteCount(uint64(rate)) + "/s", rate}
}

func size(n uint64) cell { return cell{event.ByteCount(n), float64(n)} }

// percent returns how full something is.
func percent(used, size int) cell {
	if size == 0 {
		return cell{"-", -1}
	}
	share := 100 * float64(used) / float64(size)
	if used > 0 && share < 1 {
		return cell{"<1%", share}
	}
	return cell{fmt.Sprintf("%.0f%%", share), share}
}

// micros returns a time in microseconds.
func micros(us float64) string {
	switch {
	case us < 999.5:
		return fmt.Sprintf("%.0f us", us)
	case us < 999_500:
		return fmt.Sprintf("%.1f ms", us/1e3)
	}
	return fmt.Sprintf("%.1f s", us/1e6)
}

// ratesOver is how long a time rates are of, where there was one: that of some looks, so that
// they are no mere noise.
const ratesOver = 6 * time.Second

// looks are those of the last seconds, the oldest first.
type looks []*status.Top

// add adds a look. What a daemon has counted that was there before says nothing about it.
func (l looks) add(top *status.Top) looks {
	if len(l) > 0 && (!l.last().Since.Equal(top.Since) || !top.Time.After(l.last().Time)) {
		l = nil
	}
	l = append(l, top)
	for len(l) > 2 && top.Time.Sub(l[1].Time) >= ratesOver {
		l = l[1:]
	}
	return l
}

func (l looks) last() *status.Top { return l[len(l)-1] }

// span returns how long the time is that rates are of; 0 where there are none.
func (l looks) span() time.Duration { return l.last().Time.Sub(l[0].Time) }

// rate returns how fast a number grows.
func (l looks) rate(of func(*status.Top) uint64) cell {
	now, then := of(l.last()), of(l[0])
	return perSecond(float64(now-min(now, then))/max(1e-9, l.span().Seconds()), l.span() > 0)
}

// rates returns those of an interface: the daemon's own, until there are two looks.
func (l looks) rates(s *status.Status) *status.Rates {
	for _, before := range l[0].Interfaces {
		if before.Pins == s.Pins && l.span() > 0 {
			return s.Totals().Since(before.Totals(), l.span())
		}
	}
	return s.Rates
}

// sumRates adds rates up.
func sumRates(sum, r *status.Rates) *status.Rates {
	if r == nil {
		return sum
	}
	if sum == nil {
		sum = new(status.Rates)
	}
	return &status.Rates{
		Seconds: max(sum.Seconds, r.Seconds),
		Packets: sum.Packets + r.Packets, Bytes: sum.Bytes + r.Bytes,
		DroppedPackets: sum.DroppedPackets + r.DroppedPackets, DroppedBytes: sum.DroppedBytes + r.DroppedBytes,
		Flows: sum.Flows + r.Flows, Verdicts: sum.Verdicts + r.Verdicts, Treated: sum.Treated + r.Treated,
	}
}
