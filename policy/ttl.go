// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"

	"github.com/earlydrop/earlydrop/policy/yamlfile"
)

const (
	day  = 24 * time.Hour
	week = 7 * day
)

var (
	ttlForm    = regexp.MustCompile(`^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(w|d|h|m|s|ms|us|µs|μs|ns)(([0-9]+(\.[0-9]*)?|\.[0-9]+)(w|d|h|m|s|ms|us|µs|μs|ns))*$`)
	ttlPart    = regexp.MustCompile(`([0-9.]+)([^0-9.]+)`)
	onlyDigits = regexp.MustCompile(`^[+-]?[0-9]+$`)
)

// ParseTTL reads how long a block is to last: numbers with units, such as 30s,
// 1h30m, 7d or 1w2d, where a day has 24 hours. It lies between MinTTL and MaxTTL.
// The error quotes s and says what to write.
func ParseTTL(s string) (time.Duration, error) {
	if onlyDigits.MatchString(s) {
		return 0, fmt.Errorf("%s has no unit; write %ss, %sm, %sh or %sd", yamlfile.Quote(s), yamlfile.Cut(s), yamlfile.Cut(s), yamlfile.Cut(s), yamlfile.Cut(s))
	}
	if !ttlForm.MatchString(s) {
		return 0, fmt.Errorf("%s is not a duration; write one such as 30s, 10m, 1h30m, 7d or 2w", yamlfile.Quote(s))
	}
	var ttl time.Duration
	inRange := true
	for _, part := range ttlPart.FindAllStringSubmatch(s, -1) {
		number, unit, times := part[1], part[2], time.Duration(1)
		switch unit {
		case "d":
			unit, times = "h", day/time.Hour
		case "w":
			unit, times = "h", week/time.Hour
		}
		// A number that is too large for a duration is the only mistake left.
		d, err := time.ParseDuration(number + unit)
		if err != nil || d > math.MaxInt64/times || ttl > math.MaxInt64-d*times {
			inRange = false
			break
		}
		ttl += d * times
	}
	if !inRange || strings.HasPrefix(s, "-") || ttl < MinTTL || ttl > MaxTTL {
		return 0, fmt.Errorf("%s is out of range; write at least 1s and at most 365d (a year)", yamlfile.Quote(s))
	}
	return ttl, nil
}
