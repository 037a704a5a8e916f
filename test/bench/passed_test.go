// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
)

func TestPassedTakesShares(t *testing.T) {
	p := passed{Bytes: []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}}
	for of, want := range map[float64]uint64{0: 1, 0.5: 6, 0.9: 10, 1: 11} {
		if got := p.share(of); got != want {
			t.Errorf("share %v is %d, want %d", of, got, want)
		}
	}
	if got := (passed{}).share(0.5); got != 0 {
		t.Errorf("share of nothing is %d", got)
	}
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1448: "1.4 KB", 9949: "9.9 KB", 14480: "14 KB", 999_499: "999 KB", 999_500: "1.0 MB", 4_600_000: "4.6 MB"} {
		if got := bytesInWords(n); got != want {
			t.Errorf("%d is printed %q, want %q", n, got, want)
		}
	}
}

// A short run of the real thing: connections are cut, and only what was on its way
// until then has passed.
func TestPassedIsCountedOfConnectionsThatAreCut(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	program, err := rig.Build(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	rep, err := measurePassed(ctx, program, 2, []time.Duration{5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Passed) != 4 {
		t.Fatalf("%d rows, want 4", len(rep.Passed))
	}
	cut := 0
	for _, p := range rep.Passed {
		if p.Connections != 2 || p.RoundTrip != 5 {
			t.Errorf("%s, %s: %d connections at %v ms, want 2 at 5", p.Tunnel, p.Direction, p.Connections, p.RoundTrip)
		}
		cut += len(p.Bytes)
		for _, n := range p.Bytes {
			if n > contentBytes/4 {
				t.Errorf("%s, %s: %d bytes passed", p.Tunnel, p.Direction, n)
			}
		}
	}
	if cut == 0 {
		t.Error("no connection was cut")
	}
	var out bytes.Buffer
	rep.print(&out)
	for _, word := range []string{"Shadowsocks", "VMess", "download", "upload", "5 ms", "of 2"} {
		if !strings.Contains(out.String(), word) {
			t.Errorf("the table lacks %q:\n%s", word, out.String())
		}
	}
	t.Log("\n" + out.String())
}
