// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// TestChecksumsOfEachLength: one wrong byte anywhere in a segment of at most 2048 bytes is
// noticed, and no right checksum is taken for a wrong one.
func TestChecksumsOfEachLength(t *testing.T) {
	const most, header = 2048, 20
	random := rand.New(rand.NewPCG(12, 1024))
	for _, addrs := range [][2]string{{"10.0.0.2", "192.0.2.7"}, {"fd00::2", "2001:db8::7"}} {
		for _, e := range []entry{ingress, egress} {
			k := loadKernel(t, config{})
			lengths := 0
			for n := range most - header + 4 {
				src := netip.AddrPortFrom(netip.MustParseAddr(addrs[0]), uint16(10_000+n))
				dst := netip.AddrPortFrom(netip.MustParseAddr(addrs[1]), 443)
				body := make([]byte, n)
				for i := range body {
					body[i] = byte(random.Uint32())
				}
				right := f.Ethernet(f.IP(src, dst, f.TCP, f.Numbered(f.Segment(src, dst, f.ACK, nil, body), 2, 2)))
				at := len(right) - header - n + 13 // the flags, and what is behind them
				at += random.IntN(len(right) - at)
				if n%2 == 0 {
					at = len(right) - 1
				}
				wrong := f.With(right, at, right[at]^0x40)
				if n <= most-header {
					k.run(e, wrong)
					lengths++
				}
				k.run(e, right)
			}
			if c := k.counts(); c["decoys"] != uint64(lengths) || c["mid_stream"] != uint64(lengths+3) {
				t.Errorf("%s, %s: counters %v instead of %d decoys and %d flows", addrs[0], e, c, lengths, lengths+3)
			}
		}
	}
}
