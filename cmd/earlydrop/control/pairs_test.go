// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader/flow"
)

func TestPairsAreListedAndForgotten(t *testing.T) {
	f := newFake(t)
	s, c := serve(t, f)
	for name, tt := range map[string]struct {
		filter PairFilter
		want   int
	}{
		"all":             {PairFilter{}, 2},
		"an interface":    {PairFilter{Interface: "eth1"}, 1},
		"its pair":        {PairFilter{Pair: &fakePair}, 2},
		"another pair":    {PairFilter{Pair: &flow.Pair{Initiator: fakePair.Initiator, Server: fakePair.Server, VLAN: 7}}, 0},
		"its server":      {PairFilter{CIDR: netip.MustParsePrefix("192.0.2.0/24")}, 2},
		"its initiator":   {PairFilter{CIDR: netip.MustParsePrefix("10.0.0.0/8")}, 2},
		"another network": {PairFilter{CIDR: netip.MustParsePrefix("10.1.0.0/16")}, 0},
		"class and rule":  {PairFilter{Class: "v2ray", Rule: "tunnels"}, 2},
		"another rule":    {PairFilter{Rule: "tunnel"}, 0},
	} {
		got, err := c.Pairs(within(t), tt.filter, "", 0)
		if err != nil || got.Matched != tt.want || len(got.Pairs) != tt.want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for by, want := range map[string]string{"": "eth0", "-interface": "eth1", "-bytes": "eth0"} {
		got, err := c.Pairs(within(t), PairFilter{}, by, 1)
		if err != nil || got.Matched != 2 || len(got.Pairs) != 1 || got.Pairs[0].Interface != want {
			t.Errorf("one, sorted by %q: %+v, %v, want that of %s", by, got, err, want)
		}
	}
	sum, err := c.ForgetPairs(within(t), PairFilter{Rule: "tunnels"})
	if err != nil || sum != (Forgotten{Pairs: 1, Connections: 4, Packets: 10, Bytes: 600}) {
		t.Errorf("forgotten %+v, %v", sum, err)
	}
	if _, err := c.ForgetPairs(within(t), PairFilter{Pair: &fakePair}); !errors.Is(err, ErrNotFound) {
		t.Errorf("forgotten twice: %v", err)
	}
	if sum, err := c.ForgetPairs(within(t), PairFilter{}); err != nil || sum.Pairs != 0 {
		t.Errorf("all of none: %+v, %v", sum, err)
	}
	s.Close()
	audits := f.audits(t)
	if len(audits) != 3 || audits[0].Action != "pairs_del" || audits[0].Pairs != 1 || audits[0].Outcome != event.Done || audits[0].Asked != "rule tunnels" ||
		audits[1].Outcome != event.Refused || audits[2].Asked != "all" {
		t.Errorf("audits %+v", audits)
	}
}
