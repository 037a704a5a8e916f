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
	r.Labels = []string{"shadowsocks", "background", "v2ray", "ssh", "trojan", "vless", "obfs4", "socks5", "openvpn", "wireguard"}
	r.Scores = []float64{0.75, 0.2499995, 5e-7, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5}
	enc := json.NewEncoder(io.Discard)
	b.ReportAllocs()
	for b.Loop() {
		if err := enc.Encode(event.NewVerdict(s, r, d)); err != nil {
			b.Fatal(err)
		}
	}
}
