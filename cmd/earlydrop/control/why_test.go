// SPDX-License-Identifier: Apache-2.0

package control

import (
	"strconv"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/why"
	"github.com/earlydrop/earlydrop/policy"
)

func TestParseWhy(t *testing.T) {
	for of, want := range map[string]string{
		"192.0.2.7": "192.0.2.7/32 0", "192.0.2.7:443": "192.0.2.7/32 443", "10.0.0.0/8": "10.0.0.0/8 0", "::/0": "::/0 0",
		"2001:db8::1": "2001:db8::1/128 0", "[2001:db8::1]": "2001:db8::1/128 0", "[2001:db8::1]:443": "2001:db8::1/128 443",
		"::ffff:192.0.2.7": "192.0.2.7/32 0", "[::ffff:192.0.2.7]:443": "192.0.2.7/32 443", "::ffff:192.0.2.0/120": "192.0.2.0/24 0",
	} {
		q, err := ParseWhy(of)
		if err != nil {
			t.Errorf("%s: %v", of, err)
			continue
		}
		if got := q.Network.String() + " " + strconv.Itoa(int(q.Port)); got != want || q.Most != defaultDecisions {
			t.Errorf("%s: %s, at most %d, want %s", of, got, q.Most, want)
		}
		again, err := ParseWhy(q.Of())
		if err != nil || again != q {
			t.Errorf("%s is asked as %s: %+v, %v", of, q.Of(), again, err)
		}
	}
}

// What a client gets is what the gateway has answered.
func TestWhy(t *testing.T) {
	f := newFake(t)
	_, c := serve(t, f)
	q, err := ParseWhy("10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.Why(within(t), &q)
	if err != nil {
		t.Fatal(err)
	}
	if a.Of != "10.0.0.1" || a.Matched != 1 || len(a.Decisions) != 1 || a.Policy != "p.yaml" || !a.Since.Equal(started) {
		t.Fatalf("%+v", a)
	}
	d := a.Decisions[0]
	if d.Decision != "drop" || d.Reason != policy.ReasonRule || d.PolicyLine != 7 || !d.BeforeReload || d.Block == nil || d.Block.Packets != 3 || d.Ended != nil || d.Dst.Port() != 443 {
		t.Errorf("%+v", d)
	}
	if a, err = c.Why(within(t), &why.Query{Network: q.Network, Port: 80}); err != nil || a.Matched != 0 || len(a.Decisions) != 0 || a.Of != "10.0.0.1:80" {
		t.Errorf("%+v, %v", a, err)
	}
	if audits := f.audits(t); len(audits) != 0 {
		t.Errorf("reading is audited: %+v", audits)
	}
}
