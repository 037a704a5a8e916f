// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// Every flow that is cut is captured from its middle, which decide checks, and counted
// once; the same seed cuts at the same places.
func TestEachFlowIsCutOnce(t *testing.T) {
	var out [3]bytes.Buffer
	for i, seed := range []uint64{1, 1, 2} {
		if err := run(&out[i], "", seed, []string{"../testdata"}); err != nil {
			t.Fatal(err)
		}
	}
	if out[0].String() != out[1].String() {
		t.Errorf("one seed, two answers:\n%s%s", &out[0], &out[1])
	}
	flows := map[string]int{}
	for line := range strings.Lines(out[0].String()) {
		for _, kind := range kindNames {
			if rest, ok := strings.CutPrefix(line, kind+" "); ok {
				var n, dropped int
				if _, err := fmt.Sscanf(strings.ReplaceAll(rest, ",", " "), "%d %d", &n, &dropped); err != nil || dropped > n {
					t.Errorf("%q: %v", line, err)
				}
				flows[kind] = n
			}
		}
	}
	if all := flows[kindNames[all]]; all < 10 || all != flows[kindNames[toHTTPS]]+flows[kindNames[toHTTP]]+flows[kindNames[toOther]] {
		t.Errorf("flows of each kind %v in:\n%s", flows, &out[0])
	}
}
