// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
	"github.com/earlydrop/earlydrop/policy/evidence"
)

const pairRules = "mode: enforce\nlimits: none\nallow: [{cidr: 10.9.0.0/16}]\nrules:\n" +
	"- {name: a-long-name-of-a-rule, class: [v2ray], min_confidence: 0.7, action: drop, ttl: 1h, meanwhile: log, evidence: {flows: 3, share: 0.6, within: 1h}}\n"

// pairs returns the pairs in the kernel's table of each interface, as text.
func (l *live) pairs() (all []string) {
	l.t.Helper()
	for i, a := range l.attached {
		pairs, err := a.dp.Pairs()
		if err != nil {
			l.t.Fatal(err)
		}
		for _, p := range pairs {
			all = append(all, fmt.Sprintf("%d %s %s %s", i, p.Pair, p.Action, p.Rule))
		}
	}
	return all
}

// tend is what each interface does once a second.
func (l *live) tend() {
	l.t.Helper()
	for _, a := range l.attached {
		if err := a.tendPairs(); err != nil {
			l.t.Fatal(err)
		}
	}
}

// evidence has so many flows of a pair detected.
func (l *live) evidence(flows, port int) {
	for i := range flows {
		l.judge(flow.TCP, port+i, 0.95)
	}
}

// told returns what events say of pairs, in a word or two each.
func told(t *testing.T, follower *eventlog.Follower) (told []string) {
	t.Helper()
	for len(follower.Events()) > 0 {
		switch e := (<-follower.Events()).(type) {
		case *event.PairTreated:
			if e.Initiator.String() != "10.0.0.1/32" || e.Server.String() != "192.0.2.7:8388" || e.Class != "v2ray" || e.Rule != "a-long-name-of-a-rule" || time.Until(e.Until) < 50*time.Minute {
				t.Errorf("treated: %+v", e)
			}
			told = append(told, fmt.Sprintf("treated %s %d/%d", e.Action, e.EvidenceFlows, e.EvidenceJudged))
		case *event.PairEnded:
			told = append(told, "ended "+e.Reason)
		}
	}
	return told
}

const onePair = "tcp 10.0.0.1 > 192.0.2.7:8388 drop a-long-name-of-"

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// The kernel of each interface treats a pair from the moment that there is enough evidence, and no
// longer than the policy of now does.
func TestKernelTreatsThePairsThatEvidenceDoes(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, _ := newConfig(t, 2)
	l := newLive(t, &config, pairRules)
	follower := config.Events.Follow(1000)
	l.evidence(2, 1000)
	l.tend()
	expect(t, "after two flows", l.pairs())
	l.evidence(1, 1002)
	expect(t, "after the third", l.pairs(), "0 "+onePair)
	l.tend()
	expect(t, "a moment later", l.pairs(), "0 "+onePair, "1 "+onePair)
	expect(t, "events", told(t, follower), "treated drop 3/3", "treated drop 3/3")
	edit := func(old, new string) string {
		t.Helper()
		if !strings.Contains(pairRules, old) {
			t.Fatalf("the policy has no %q", old)
		}
		return strings.Replace(pairRules, old, new, 1)
	}
	first := l.attached[0].iface()
	for _, tt := range []struct {
		name, text string
		want       []string // that are left
	}{
		{"a comment", pairRules + "# so\n", []string{"0 " + onePair, "1 " + onePair}},
		{"another action", edit("action: drop", "action: limit, rate: 64kbit"), []string{"0 " + strings.Replace(onePair, "drop", "limit", 1), "1 " + strings.Replace(onePair, "drop", "limit", 1)}},
		{"mode monitor, which suspends it", edit("mode: enforce", "mode: monitor"), []string{"0 " + onePair, "1 " + onePair}},
		{"one interface", edit("class:", "interface: "+first+", class:"), []string{"0 " + onePair}},
		{"it is only logged", edit("action: drop", "action: log"), nil},
		{"the rule has another name", edit("name: a-", "name: b-"), nil},
		{"the rule is for others", edit("class:", "from: 10.8.0.0/16, class:"), nil},
		{"an exception", edit("class:", "except: [{cidr: 10.0.0.0/24}], class:"), nil},
		{"the client is allowed", edit("10.9.0.0/16", "10.0.0.0/16"), nil},
		{"its own network is protected", "protect: [192.0.2.0/24]\n" + pairRules, nil},
		{"no rule", "mode: enforce\n", nil},
	} {
		told(t, follower)
		if _, err := l.reload(tt.text); err != nil {
			t.Fatal(err)
		}
		expect(t, tt.name, l.pairs(), tt.want...)
		ended := slices.DeleteFunc(told(t, follower), func(s string) bool { return s != "ended policy" })
		if len(ended) != 2-len(tt.want) {
			t.Errorf("%s: events %q", tt.name, ended)
		}
		// What is known of it is still there.
		if _, err := l.reload(pairRules); err != nil {
			t.Fatal(err)
		}
		expect(t, tt.name+", and back", l.pairs(), "0 "+onePair, "1 "+onePair)
	}
}

// Somebody ends the treatment of a pair: it takes as much evidence as at first to treat it again.
func TestPairIsForgottenByHand(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, _ := newConfig(t, 2)
	l := newLive(t, &config, pairRules)
	l.evidence(3, 1000)
	l.tend()
	all, err := l.Pairs()
	if err != nil || len(all) != 2 || all[0].Suspended || all[0].Interface != l.attached[0].iface() || all[0].Action != "drop" {
		t.Fatalf("pairs %+v, %v", all, err)
	}
	follower := config.Events.Follow(1000)
	was, err := l.ForgetPair(all[0].Pair())
	if err != nil || len(was) != 2 {
		t.Fatalf("forgotten: %+v, %v", was, err)
	}
	expect(t, "events", told(t, follower), "ended by_hand", "ended by_hand")
	l.tend()
	expect(t, "pairs", l.pairs())
	if _, err := l.ForgetPair(all[0].Pair()); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("forgotten twice: %v", err)
	}
	l.evidence(2, 2000)
	l.tend()
	expect(t, "after two flows", l.pairs())
	l.evidence(1, 2002)
	expect(t, "after three flows", l.pairs(), "0 "+onePair)
	if _, err := l.SetMode(policy.Monitor); err != nil {
		t.Fatal(err)
	}
	if all, err := l.Pairs(); err != nil || len(all) != 1 || !all[0].Suspended {
		t.Errorf("in mode monitor: %+v, %v", all, err)
	}
}

// A process that was killed leaves pairs in the kernel that no file knows of, and somebody may end one
// while no process is there.
func TestPairsOfAProcessThatWasKilled(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, _ := newConfig(t, 1)
	config.Evidence = evidence.New(evidence.Options{})
	l := newLive(t, &config, pairRules)
	l.evidence(3, 1000)
	// again is another process, which knows this.
	again := func(known *evidence.State) {
		t.Helper()
		if err := l.attached[0].dp.Release(); err != nil {
			t.Fatal(err)
		}
		config.Evidence, config.Engine = known, openTiny(t)
		g, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		if !g.attached[0].dp.Info.Adopted {
			t.Fatal("not adopted")
		}
		_ = l.config.Engine.Close()
		l.Gateway = g
	}
	known := config.Evidence
	again(evidence.New(evidence.Options{}))
	follower := config.Events.Follow(1000)
	l.tend()
	expect(t, "the file knew nothing", l.pairs(), "0 "+onePair)
	expect(t, "events", told(t, follower))
	if treated := l.config.Evidence.Treated(time.Now()); len(treated) != 1 || treated[0].Rule != "a-long-name-of-a-rule" || treated[0].Class != "v2ray" {
		t.Errorf("evidence: %+v", treated)
	}
	pair := l.config.Evidence.Treated(time.Now())[0].Pair
	if err := l.attached[0].dp.Release(); err != nil {
		t.Fatal(err)
	}
	tables, err := loader.Open(config.Attach[0].Interface)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tables.ForgetPair(pair); err != nil {
		t.Fatal(err)
	}
	if err := tables.Close(); err != nil {
		t.Fatal(err)
	}
	config.Evidence, config.Engine = known, openTiny(t) // as an older file has it
	g, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.config.Engine.Close()
	l.Gateway = g
	l.tend()
	expect(t, "it was ended by hand", l.pairs())
	if treated := known.Treated(time.Now()); len(treated) != 0 {
		t.Errorf("evidence: %+v", treated)
	}
	// And where nothing was attached, the file is what there is.
	l.evidence(3, 3000)
	if err := l.attached[0].dp.Detach(); err != nil {
		t.Fatal(err)
	}
	config.Engine = openTiny(t)
	if g, err = New(config); err != nil {
		t.Fatal(err)
	}
	_ = l.config.Engine.Close()
	l.Gateway = g
	l.tend()
	expect(t, "of a file", l.pairs(), "0 "+onePair)
}

// A flow whose block somebody has lifted passes for its life: a revised verdict does not block it.
func TestLiftedFlowIsNotBlockedAgain(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, _ := newConfig(t, 1)
	l := newLive(t, &config, allRules)
	key := l.judge(flow.TCP, 1001, 0.95)
	if ports := l.blocked(); !slices.Equal(ports, []int{1001}) {
		t.Fatalf("blocked %v", ports)
	}
	if _, err := l.Unblock(l.attached[0].iface(), key); err != nil {
		t.Fatal(err)
	}
	follower := config.Events.Follow(10)
	l.judge(flow.TCP, 1001, 0.95, func(m *flow.Meta) { m.Revision = 1 })
	if ports := l.blocked(); len(ports) != 0 {
		t.Errorf("blocked %v", ports)
	}
	v := (<-follower.Events()).(*event.Verdict)
	if v.Decision != "pass" || v.Reason != policy.ReasonExempt || *v.Enforced || v.Error != "" || !v.Detected {
		t.Errorf("verdict %+v", v)
	}
	if n := l.attached[0].counts[countNotBlocked].Load(); n != 0 {
		t.Errorf("%d could not be blocked", n)
	}
	// A block by hand is one.
	if _, err := l.Block(l.attached[0].iface(), key, time.Minute); err != nil {
		t.Fatal(err)
	}
	if ports := l.blocked(); !slices.Equal(ports, []int{1001}) {
		t.Errorf("by hand: %v", ports)
	}
}

// The networks of the allow-list are in the kernel from the attach on, and those of another policy
// after a reload.
func TestKernelKnowsExemptNetworks(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, _ := newConfig(t, 2)
	l := newLive(t, &config, pairRules)
	networks := func() (all []string) {
		t.Helper()
		for i, a := range l.attached {
			m, err := ebpf.LoadPinnedMap(filepath.Join(a.dp.PinDir(), "exempt"), nil)
			if err != nil {
				t.Fatal(err)
			}
			var key struct {
				Bits uint32
				Addr [16]byte
			}
			var value [1]byte
			for entries := m.Iterate(); entries.Next(&key, &value); {
				all = append(all, fmt.Sprintf("%d %s/%d %d", i, netip.AddrFrom16(key.Addr).Unmap(), key.Bits, value[0]))
			}
			_ = m.Close()
		}
		slices.Sort(all)
		return all
	}
	if policy.MaxExempt > loader.MaxExempt {
		t.Errorf("a policy may have %d exempt networks, and a kernel has room for %d", policy.MaxExempt, loader.MaxExempt)
	}
	expect(t, "attached", networks(), "0 10.9.0.0/112 1", "1 10.9.0.0/112 1")
	for _, tt := range []struct {
		allow string
		want  []string // of each interface
	}{
		{"[{cidr: 10.9.0.0/16}, {cidr: '2001:db8::/32'}]", []string{"10.9.0.0/112 1", "2001:db8::/32 1"}},
		{"[{cidr: 10.9.0.0/16, exempt: false}, {cidr: 10.8.0.0/16, side: initiator}]", nil},
		{"[]", nil},
	} {
		if _, err := l.reload(strings.Replace(pairRules, "[{cidr: 10.9.0.0/16}]", tt.allow, 1)); err != nil {
			t.Fatal(err)
		}
		var want []string
		for i := range l.attached {
			for _, network := range tt.want {
				want = append(want, fmt.Sprintf("%d %s", i, network))
			}
		}
		expect(t, tt.allow, networks(), want...)
	}
}
