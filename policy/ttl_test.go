// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"
	"time"
)

func TestParseTTL(t *testing.T) {
	const hour = time.Hour
	for s, want := range map[string]time.Duration{
		"1s": time.Second, "10m": 10 * time.Minute, "1h30m": 90 * time.Minute, "1000ms": time.Second, "1.5h": 90 * time.Minute,
		"1d": 24 * hour, "7d": 168 * hour, "1w": 168 * hour, "2w": 336 * hour, "1d12h": 36 * hour, "1w1d1h1m1s": 193*hour + time.Minute + time.Second,
		"12h1d": 36 * hour, "0.5d": 12 * hour, "1.5w": 252 * hour, ".5d": 12 * hour, "+1d": 24 * hour, "365d": MaxTTL, "8760h": MaxTTL, "52w1d": MaxTTL, "0d1s": time.Second,
	} {
		if got, err := ParseTTL(s); err != nil || got != want {
			t.Errorf("ParseTTL(%q) = %v, %v; want %v", s, got, err, want)
		}
	}
	for s, want := range map[string]string{
		"":    `"" is not a duration`,
		"d":   `"d" is not a duration`,
		"1":   `"1" has no unit; write 1s, 1m, 1h or 1d`,
		"0":   `"0" has no unit`,
		"1dd": `"1dd" is not a duration`,
		"1d2": `"1d2" is not a duration`,
		"1 d": `"1 d" is not a duration`, "1d 2h": `"1d 2h" is not a duration`, "1D": `"1D" is not a duration`, "1y": `"1y" is not a duration`,
		"1.2.3d": `"1.2.3d" is not a duration`, ".d": `".d" is not a duration`, "1day": `"1day" is not a duration`, "d1": `"d1" is not a duration`,
		"366d": `"366d" is out of range`, "53w": `"53w" is out of range`, "364d25h": `"364d25h" is out of range`, "-1d": `"-1d" is out of range`,
		"0s": `"0s" is out of range`, "999ms": `"999ms" is out of range`, "0.00001d": `"0.00001d" is out of range`,
		"2562048h": "out of range", "99999999999999999999h": "out of range", "106752d": "out of range", "9223372036854775807w": "out of range", "2562047h2562047h": "out of range",
		strings.Repeat("1", 100): `1..." has no unit`,
	} {
		if got, err := ParseTTL(s); err == nil || !strings.Contains(err.Error(), want) || got != 0 || len(err.Error()) > 400 {
			t.Errorf("ParseTTL(%q) = %v, %v; want an error with %q", s, got, err, want)
		}
	}
}

func TestFormatTTLIsShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Second: "1s", 10 * time.Minute: "10m", time.Hour: "1h", 90 * time.Minute: "1h30m",
		10 * time.Hour: "10h", time.Hour + time.Second: "1h0m1s", 100 * time.Second: "1m40s", 1500 * time.Millisecond: "1.5s",
		24 * time.Hour: "1d", 36 * time.Hour: "1d12h", 7*24*time.Hour + time.Minute: "7d1m", 365 * 24 * time.Hour: "365d",
	} {
		if got := FormatTTL(d); got != want {
			t.Errorf("FormatTTL(%s) = %s, want %s", d.String(), got, want)
		}
	}
}
