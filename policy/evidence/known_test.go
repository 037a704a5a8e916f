// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"net/netip"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Known tells of pairs of which a flow was detected, those that are treated first.
func TestKnown(t *testing.T) {
	s, p := New(Options{}), parse(t, "rules:\n"+pairRule)
	decide := func(at time.Duration, to string, shadowsocks float64) {
		oneFlow{at: at, to: to, shadowsock: shadowsocks}.decide(s, p)
	}
	decide(0, "192.0.2.1:443", 0)
	decide(time.Second, "192.0.2.2:443", 0)
	decide(2*time.Second, "192.0.2.2:443", 0.6)
	for i := range 4 {
		decide(time.Duration(3+i)*time.Second, "192.0.2.3:443", 0.95)
	}
	decide(9*time.Second, "192.0.2.4:443", 0.6)
	all := func(*flow.Pair) bool { return true }
	known := s.Known(epoch.Add(10*time.Second), 10, all)
	if len(known) != 3 {
		t.Fatalf("%d pairs: %+v", len(known), known)
	}
	for i, want := range []struct {
		server           string
		detected, judged int
		rule             string
	}{{"192.0.2.3:443", 3, 3, "pairs"}, {"192.0.2.4:443", 1, 1, ""}, {"192.0.2.2:443", 1, 2, ""}} {
		k := &known[i]
		if k.Server != netip.MustParseAddrPort(want.server) || k.Detected != want.detected || k.Judged != want.judged || k.Rule != want.rule ||
			(k.Rule != "") != k.Until.After(k.Since) || k.Last.IsZero() {
			t.Errorf("pair %d: %+v, want %+v", i, k, want)
		}
	}
	if known := s.Known(epoch.Add(time.Hour), 10, all); known[0].Rule != "" || !known[0].Until.IsZero() {
		t.Errorf("its time is over: %+v", known[0])
	}
	if known := s.Known(epoch, 1, all); len(known) != 1 {
		t.Errorf("%d pairs instead of 1", len(known))
	}
	if known := s.Known(epoch, 10, func(p *flow.Pair) bool { return p.Server.Port() == 80 }); len(known) != 0 {
		t.Errorf("%+v", known)
	}
}
