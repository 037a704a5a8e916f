// SPDX-License-Identifier: Apache-2.0

package event_test

import (
	"encoding/json"
	"io"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// A flood of verdicts is made and written beside the classifier.
func BenchmarkVerdict(b *testing.B) {
	s, r, d := sample(), result(), decision()
	enc := json.NewEncoder(io.Discard)
	b.ReportAllocs()
	for b.Loop() {
		if err := enc.Encode(event.NewVerdict(s, r, d)); err != nil {
			b.Fatal(err)
		}
	}
}
