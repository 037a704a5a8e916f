// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/history"
)

// kept returns a fake gateway with a history of so many verdicts, a second apart, of which every
// tenth is a drop, and these.
func kept(t *testing.T, n int) (*fake, []*event.Verdict) {
	t.Helper()
	f := newFake(t)
	h, err := history.Open(history.Options{Path: filepath.Join(t.TempDir(), "history.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	f.kept = h
	var all []*event.Verdict
	for i := range n {
		at := time.Date(2026, 11, 25, 1, 0, i, 0, time.UTC)
		v := &event.Verdict{Time: at, Start: at, Interface: "eth0", Mode: "enforce", Decision: "pass", Class: "background", Reason: "no_rule", Model: "m 1", HandedOver: "full",
			Endpoints: event.Endpoints{Src: netip.MustParseAddrPort(fmt.Sprintf("10.0.%d.%d:4000", i/250, 1+i%250)), Dst: netip.MustParseAddrPort("192.0.2.7:443"), Proto: "tcp"}}
		if i%10 == 0 {
			v.Decision, v.Detected, v.Rule, v.Class = "drop", true, "tunnels", "v2ray"
		}
		v.ID = event.ID(i + 1)
		h.Keep(v)
		all = append(all, v)
	}
	for deadline := time.Now().Add(2 * time.Minute); h.LastID() < event.ID(n); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it is not written: %+v", h.Status())
		}
	}
	return f, all
}

// past returns the IDs of what the history says.
func past(t *testing.T, c *Client, q *HistoryQuery) (ids []event.ID, err error) {
	t.Helper()
	found, err := c.History(within(t), q)
	if err != nil {
		return nil, err
	}
	for line, err := range found {
		if err != nil {
			return ids, err
		}
		e, err := event.Decode(line)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, event.IDOf(e))
	}
	return ids, nil
}

func TestHistoryIsAnswered(t *testing.T) {
	f, all := kept(t, 1100)
	_, c := serve(t, f)
	filter := func(query string) EventFilter {
		v, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		f, err := ParseEventFilter(v)
		if err != nil {
			t.Fatal(err)
		}
		return *f
	}
	for name, tt := range map[string]struct {
		q    HistoryQuery
		want []event.ID // the first and the last
		n    int
	}{
		"the latest":    {HistoryQuery{}, []event.ID{1100, 101}, DefaultHistory},
		"all":           {HistoryQuery{Limit: MaxHistory, Oldest: true}, []event.ID{1, 1100}, 1100},
		"a page":        {HistoryQuery{Limit: 10, Before: 101}, []event.ID{100, 91}, 10},
		"next page":     {HistoryQuery{Limit: 10, After: 100, Oldest: true}, []event.ID{101, 110}, 10},
		"drops":         {HistoryQuery{EventFilter: filter("decision=drop")}, []event.ID{1091, 1}, 110},
		"host":          {HistoryQuery{EventFilter: filter("cidr=10.0.0.5,10.0.0.7")}, []event.ID{7, 5}, 2},
		"network":       {HistoryQuery{EventFilter: filter("src=10.0.1.0/24")}, []event.ID{500, 251}, 250},
		"server":        {HistoryQuery{EventFilter: filter("server=192.0.2.7:443&class=v2ray&rule=tunnels"), Limit: 1}, []event.ID{1091, 1091}, 1},
		"another port":  {HistoryQuery{EventFilter: filter("server=192.0.2.7:444")}, nil, 0},
		"a time":        {HistoryQuery{Since: all[10].Time, Until: all[20].Time}, []event.ID{20, 11}, 10},
		"one":           {HistoryQuery{ID: 77}, []event.ID{77, 77}, 1},
		"what is not":   {HistoryQuery{EventFilter: filter("decision=reset")}, nil, 0},
		"other proto":   {HistoryQuery{EventFilter: filter("proto=udp")}, nil, 0},
		"other kind":    {HistoryQuery{EventFilter: filter("event=audit")}, nil, 0},
		"detected":      {HistoryQuery{EventFilter: filter("detected=true&interface=eth0"), Oldest: true}, []event.ID{1, 1091}, 110},
		"wide networks": {HistoryQuery{EventFilter: filter("cidr=0.0.0.0/0"), Limit: 5}, []event.ID{1100, 1096}, 5},
	} {
		got, err := past(t, c, &tt.q)
		if err != nil || len(got) != tt.n || tt.n > 0 && (got[0] != tt.want[0] || got[len(got)-1] != tt.want[1]) {
			t.Errorf("%s: %d events, %v, %v, want %d, %v", name, len(got), got[:min(len(got), 3)], err, tt.n, tt.want)
		}
		again, err := ParseHistoryQuery(tt.q.Values())
		if err != nil || !reflect.DeepEqual(again.Values(), tt.q.Values()) {
			t.Errorf("%s: %+v becomes %+v, %v", name, tt.q, again, err)
		}
	}
	if _, err := c.Capture(within(t), 7); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "the capture of event 7: not found") {
		t.Errorf("a capture that there is not: %v", err)
	}
	if _, err := past(t, c, &HistoryQuery{ID: 7777}); !errors.Is(err, ErrNotFound) {
		t.Errorf("an event that there is not: %v", err)
	}
}

func TestHistoryRefusesBadQueries(t *testing.T) {
	_, c := serve(t, newFake(t))
	if _, err := past(t, c, &HistoryQuery{}); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "keeps no history") {
		t.Errorf("without a history: %v", err)
	}
	if _, err := c.Capture(within(t), 7); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "keeps no history") {
		t.Errorf("without a history: %v", err)
	}
	f, _ := kept(t, 1)
	s, _ := serve(t, f)
	for query, want := range map[string]string{
		"limit=0":              `limit "0": use a whole number from 1 to 10000`,
		"limit=10001":          `use a whole number from 1 to 10000`,
		"since=yesterday":      `since "yesterday": write a time as 2026-11-25T13:00:00Z`,
		"before=-1":            `before: "-1" is no id of an event`,
		"after=" + "z" + "%20": `after: "z " is no id of an event`,
		"id=0":                 `"0" is no id of an event`,
		"id=1&limit=1":         `id names one event: leave out all else`,
		"id=zzzzzzzzzzzzzzzzz": `is no id of an event`,
		"order=up":             `order can't be "up": use one of newest, oldest`,
		"order=oldst":          `order can't be "oldst", did you mean oldest?`,
		"server=192.0.2.7":     `server: "192.0.2.7" is no endpoint`,
		"limt=1":               `unknown parameter "limt", did you mean limit?`,
		"limit=1&limit=2":      `parameter limit is given 2 times`,
	} {
		answer := raw(t, s.Path(), "GET /v1/history?"+query+" HTTP/1.1\r\nHost: x\r\n\r\n")
		if !strings.HasPrefix(answer, "HTTP/1.1 400 ") || !strings.Contains(strings.ReplaceAll(answer, `\"`, `"`), want) {
			t.Errorf("%s: %s, want %q", query, answer, want)
		}
	}
}
