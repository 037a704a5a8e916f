// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// live is a gateway whose policy a test changes.
type live struct {
	*Gateway
	t    *testing.T
	text atomic.Pointer[string] // of the policy
}

// newLive attaches with the policy. The interfaces are removed at the end.
func newLive(t *testing.T, config *Config, text string) *live {
	t.Helper()
	l := &live{t: t}
	l.text.Store(&text)
	config.LoadPolicy = l.loadPolicy
	var err error
	if config.Policy, err = config.LoadPolicy(config.Engine.Manifest()); err != nil {
		t.Fatal(err)
	}
	config.Mode = config.Policy.Mode
	if l.Gateway, err = New(*config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		for _, o := range config.Attach {
			removeLink(t, o.Interface)
		}
	})
	return l
}

func (l *live) loadPolicy(m *classifier.Manifest) (*policy.Policy, error) {
	return policy.Parse("p.yaml", []byte(*l.text.Load()), &policy.Model{Labels: m.Labels, Thresholds: m.Thresholds, AnyThreshold: m.AnyThreshold})
}

// reload changes the policy to this one.
func (l *live) reload(text string) (*Reloaded, error) {
	l.text.Store(&text)
	return l.Reload()
}

// judge has the gateway decide on a flow from a client's port to port 8388 that is v2ray with
// this probability, of which less than a half stands for shadowsocks.
func (l *live) judge(proto flow.Proto, port int, p float64, change ...func(*flow.Meta)) flow.Key {
	l.t.Helper()
	s := &flow.Sample{}
	s.Reset()
	s.Key, s.InitiatorIsLo = flow.NewKey(netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(port)), netip.MustParseAddrPort("192.0.2.7:8388"), proto, 0, 0)
	s.Data, s.Packets = append(s.Data, make([]byte, 100)...), append(s.Packets, flow.Packet{WireLen: 100, FromInitiator: true})
	s.Source.Interface = l.attached[0].iface()
	s.Reason, s.Start = flow.ReasonFull, time.Now()
	for _, f := range change {
		f(&s.Meta)
	}
	labels := []string{flow.Background, "shadowsocks", "v2ray"}
	r := flow.Result{Class: "v2ray", Confidence: p, Labels: labels, Scores: []float64{1 - p, 0, p}}
	if p < 0.5 {
		r.Class, r.Confidence, r.Scores = "shadowsocks", 1-p, []float64{0, 1 - p, p}
	}
	l.attached[0].pending.Add(1)
	l.attached[0].decide(s, r, nil)
	l.passed.write()
	return s.Key
}

// blocked returns the ports of the clients that are blocked.
func (l *live) blocked() (ports []int) {
	l.t.Helper()
	blocks, err := l.attached[0].dp.Blocked()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, b := range blocks {
		ports = append(ports, int(min(b.Key.Lo.Port(), b.Key.Hi.Port())))
	}
	slices.Sort(ports)
	return ports
}

const allRules = "mode: enforce\nallow: [{cidr: 10.9.0.0/16}]\nrules:\n" +
	"- {name: a-long-name-of-a-rule, class: [v2ray], min_confidence: 0.7, action: drop, ttl: 1h, udp_unproven: true, one_way: true, mid_stream: true}\n" +
	"- {name: b, class: [shadowsocks, v2ray], min_confidence: 0.9, action: drop, ttl: 1h}\n"

// A reload lifts the blocks that the new policy would not make, and tells of each; a block by
// hand stays, whatever the policy says.
func TestReloadLiftsBlocksThatThePolicyWouldNotMake(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	const (
		sure     = 1001 // v2ray, 0.95
		unsure   = 1002 // v2ray, 0.75
		other    = 1003 // shadowsocks
		datagram = 1004
		oneWay   = 1005
		middle   = 1006
		byHand   = 2000
	)
	every := []int{sure, unsure, other, datagram, oneWay, middle}
	without := func(ports ...int) []int {
		return slices.DeleteFunc(slices.Clone(every), func(p int) bool { return slices.Contains(ports, p) })
	}
	edit := func(old, new string) string {
		if !strings.Contains(allRules, old) {
			t.Fatalf("the policy has no %q", old)
		}
		return strings.Replace(allRules, old, new, 1)
	}
	config, _ := newConfig(t, 1)
	l := newLive(t, &config, allRules)
	follower := config.Events.Follow(1000)
	for _, tt := range []struct {
		name    string
		text    string
		want    []int // that stay blocked
		unknown []int // ... where the blocks are an earlier daemon's, which tells of less
	}{
		{"a comment", allRules + "# so\n", every, every},
		{"the client is allowed", edit("10.9.0.0/16", "10.0.0.0/24"), nil, nil},
		{"it is allowed as an initiator", edit("cidr: 10.9.0.0/16", "cidr: 10.0.0.1/32, side: initiator"), nil, nil},
		{"it is allowed as a responder, which it is not", edit("cidr: 10.9.0.0/16", "cidr: 10.0.0.1/32, side: responder"), every, every},
		{"the port is allowed", edit("cidr: 10.9.0.0/16", "port: 8388"), nil, nil},
		{"a rule is gone, another one is about some of its flows", edit("- {name: a-long", "#"), []int{sure, other}, []int{other}},
		{"no rule", "mode: enforce\n", nil, nil},
		{"a rule is for one class less", edit("class: [shadowsocks, v2ray]", "class: [v2ray]"), without(other), without(other)},
		{"a rule has another name", edit("name: b,", "name: c,"), every, without(other)},
		{"a rule asks for more", edit("0.7", "0.8"), without(unsure), every},
		{"a rule has an exception", edit("udp_unproven: true,", "udp_unproven: true, except: [{cidr: 10.0.0.0/8}],"), []int{sure, other}, []int{other}},
		{"no rule is for UDP", edit("udp_unproven: true,", ""), without(datagram), without(datagram)},
		{"no rule is for one direction", edit("one_way: true,", ""), without(oneWay), every},
		{"no rule is for the middle of flows", edit(", mid_stream: true", ""), without(middle), every},
		{"mode monitor", edit("mode: enforce", "mode: monitor"), nil, nil},
	} {
		for _, known := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/known %v", tt.name, known), func(t *testing.T) {
				if _, err := l.reload(allRules); err != nil {
					t.Fatal(err)
				}
				if _, err := l.attached[0].dp.UnblockAll(); err != nil {
					t.Fatal(err)
				}
				for len(follower.Events()) > 0 {
					<-follower.Events()
				}
				l.judge(flow.TCP, sure, 0.95)
				l.judge(flow.TCP, unsure, 0.75)
				l.judge(flow.TCP, other, 0.01)
				l.judge(flow.UDP, datagram, 0.8)
				l.judge(flow.TCP, oneWay, 0.8, func(m *flow.Meta) { m.OneWay = true })
				l.judge(flow.TCP, middle, 0.8, func(m *flow.Meta) { m.MidStream = true })
				key, _ := flow.NewKey(netip.MustParseAddrPort("10.0.0.1:2000"), netip.MustParseAddrPort("192.0.2.7:8388"), flow.TCP, 0, 0)
				if err := l.attached[0].dp.Apply(key, flow.Treatment{Action: flow.Drop, TTL: time.Hour, Rule: flow.ByHand}); err != nil {
					t.Fatal(err)
				}
				if got := l.blocked(); !slices.Equal(got, append(slices.Clone(every), byHand)) {
					t.Fatalf("blocked are %v", got)
				}
				want := tt.want
				if !known {
					l.attached[0].known, want = knownFlows{}, tt.unknown
				}
				r, err := l.reload(tt.text)
				if err != nil {
					t.Fatal(err)
				}
				if got := l.blocked(); !slices.Equal(got, append(slices.Clone(want), byHand)) {
					t.Errorf("blocked are %v, want %v and the one by hand", got, want)
				}
				if r.Lifted != len(every)-len(want) {
					t.Errorf("%d blocks were lifted: %s", r.Lifted, r)
				}
				lifted := 0
				for told := false; !told; { // which comes last
					switch e := (<-follower.Events()).(type) {
					case *event.BlockEnded:
						lifted++
						if e.Reason != "policy" || e.Rule == "" || e.Class == "" {
							t.Errorf("event %+v", e)
						}
					case *event.Reloaded:
						told = true
						if e.BlocksLifted != r.Lifted || e.Error != "" {
							t.Errorf("event %+v", e)
						}
					}
				}
				if lifted != r.Lifted {
					t.Errorf("%d events of blocks that ended, %d were lifted", lifted, r.Lifted)
				}
			})
		}
	}
}

// What is wrong with a policy changes nothing: neither does one that an interface in mode
// enforce must not have.
func TestReloadThatIsRefusedChangesNothing(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, text := newConfig(t, 1)
	config.Attach[0].OneHook = true
	config.MonitorOnly = func(o *loader.Options, p *policy.Policy) string {
		if o.OneHook && !p.OneHook {
			return "the policy has no one_hook"
		}
		return ""
	}
	l := newLive(t, &config, "one_hook: true\n"+allRules)
	l.judge(flow.TCP, 1001, 0.95)
	before := l.Gateway.judge.Load()
	for _, tt := range []struct{ text, word string }{
		{"mode: enforce\nrules: [{name: a, class: [v2rai], min_confidence: 0.5, action: drop, ttl: 1m}]\n", "p.yaml:2:27"},
		{allRules, "one_hook"},
	} {
		r, err := l.reload(tt.text)
		if err == nil || !strings.Contains(err.Error(), tt.word) || r != nil {
			t.Errorf("%v, %v; want an error about %s", r, err, tt.word)
		}
		if l.Gateway.judge.Load() != before || !slices.Equal(l.blocked(), []int{1001}) {
			t.Error("something has changed")
		}
	}
	// In mode monitor the same policy is allowed, and enforce is refused from then on.
	if _, err := l.reload(strings.Replace(allRules, "enforce", "monitor", 1)); err != nil {
		t.Error(err)
	}
	var only *loader.MonitorOnlyError
	if changed, err := l.SetMode(policy.Enforce); !errors.As(err, &only) || len(changed) > 0 {
		t.Errorf("%v, %v", changed, err)
	}
	if _, err := l.reload("one_hook: true\n" + allRules); err != nil {
		t.Error(err)
	}
	if mode := l.attached[0].mode(); mode != policy.Enforce {
		t.Errorf("mode %s", mode)
	}
	config.Events.Close()
	var errs, changed []string
	for _, e := range kinds(t, text) {
		switch e := e.(type) {
		case *event.Reloaded:
			errs = append(errs, fmt.Sprint(e.Error != "", e.Changes != nil))
		case *event.ModeChanged:
			changed = append(changed, e.Mode)
		}
	}
	if want := []string{"true false", "true false", "false true", "false true"}; !slices.Equal(errs, want) || !slices.Equal(changed, []string{"monitor", "enforce"}) {
		t.Errorf("events of reloads %v, of modes %v", errs, changed)
	}
}

// Who changed the mode by hand keeps it, until the policy's own mode changes; and --mode counts
// instead of that.
func TestReloadChangesTheModeOnlyWithThePolicys(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	monitor := strings.Replace(allRules, "enforce", "monitor", 1)
	config, _ := newConfig(t, 1)
	l := newLive(t, &config, allRules)
	for _, fixed := range []bool{false, true} {
		l.Gateway.config.ModeFixed = fixed
		check := func(what string, want policy.Mode) {
			t.Helper()
			if got := l.attached[0].mode(); got != want {
				t.Errorf("fixed %v, %s: mode %s, want %s", fixed, what, got, want)
			}
		}
		reload := func(text string) {
			t.Helper()
			if _, err := l.reload(text); err != nil {
				t.Fatal(err)
			}
		}
		if changed, err := l.SetMode(policy.Monitor); err != nil || len(changed) != 1 {
			t.Errorf("%v, %v", changed, err)
		}
		reload(allRules + "#\n")
		check("the same mode", policy.Monitor)
		if _, err := l.SetMode(policy.Enforce, config.Attach[0].Interface); err != nil {
			t.Error(err)
		}
		l.judge(flow.TCP, 1001, 0.95)
		reload(monitor)
		want := policy.Monitor
		if fixed {
			want = policy.Enforce
		}
		check("the policy's mode is monitor", want)
		if got := len(l.blocked()); (got == 1) != fixed {
			t.Errorf("fixed %v: %d blocks", fixed, got)
		}
		reload(allRules)
		check("the policy's mode is enforce", policy.Enforce)
	}
	if _, err := l.SetMode(policy.Monitor, config.Attach[0].Interface, "nosuch0"); !errors.Is(err, loader.ErrNotAttached) || l.attached[0].mode() != policy.Enforce {
		t.Errorf("an interface that is not attached: %v", err)
	}
}

// While flows are judged, the policy is loaded again a thousand times: each verdict is of one
// policy, memory does not grow, and no block is left that the last policy would not make.
func TestThousandReloadsUnderLoad(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, _ := newConfig(t, 1)
	// Name, time to live and what is allowed belong together.
	text := func(name, ttl, more string) string {
		return fmt.Sprintf("mode: enforce\nrules: [{name: %s, class: [v2ray], min_confidence: 0.5, action: drop, ttl: %s%s}]\n", name, ttl, more)
	}
	texts := []string{text("a", "1h", ""), text("b", "2h", ", except: [{port: 1}]"), "mode: enforce\nallow: [{cidr: 10.0.0.0/8}]\n"}
	var err error
	if config.Events, err = eventlog.Open(eventlog.Config{JSON: io.Discard}); err != nil {
		t.Fatal(err)
	}
	l := newLive(t, &config, texts[0])
	follower := config.Events.Follow(64) // what waits there is no growth
	var mixed, verdicts atomic.Int64
	var watching sync.WaitGroup
	watching.Go(func() {
		for e := range follower.Events() {
			v, ok := e.(*event.Verdict)
			if !ok {
				continue
			}
			verdicts.Add(1)
			switch {
			case v.Rule == "a" && v.TTL == 3600 && v.Decision == "drop":
			case v.Rule == "b" && v.TTL == 7200 && v.Decision == "drop":
			case v.Rule == "cidr 10.0.0.0/8" && v.TTL == 0 && v.Decision == "pass" && !*v.Enforced:
			default:
				mixed.Add(1)
			}
		}
	})
	done := make(chan struct{})
	var load sync.WaitGroup
	var gate sync.RWMutex
	for worker := range 2 {
		load.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				gate.RLock()
				l.judge(flow.TCP, 10000+worker*1000+i%1000, 0.95)
				gate.RUnlock()
			}
		})
	}
	heap := func() uint64 { // without the events that wait to be written
		gate.Lock()
		defer gate.Unlock()
		least := uint64(math.MaxUint64)
		for range 20 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			least = min(least, m.HeapAlloc)
			time.Sleep(5 * time.Millisecond)
		}
		return least
	}
	const reloads, warm = 1000, 100
	var before uint64
	for i := range reloads {
		if i == warm {
			before = heap()
		}
		if _, err := l.reload(texts[i%len(texts)]); err != nil {
			t.Fatal(err)
		}
	}
	after := heap()
	if _, err := l.reload(texts[2]); err != nil {
		t.Fatal(err)
	}
	close(done)
	load.Wait()
	if got := l.blocked(); len(got) > 0 {
		t.Errorf("%d flows are blocked that the policy allows", len(got))
	}
	if n := l.attached[0].known.len(); n > 0 {
		t.Errorf("%d flows are known that are not blocked", n)
	}
	config.Events.Close()
	watching.Wait()
	if mixed.Load() > 0 || verdicts.Load() < 1000 {
		t.Errorf("%d of %d verdicts are of no policy", mixed.Load(), verdicts.Load())
	}
	t.Logf("heap %d KiB, then %d KiB", before>>10, after>>10)
	if after > before+2<<20 {
		t.Errorf("the heap grew from %d KiB to %d KiB in %d reloads", before>>10, after>>10, reloads-warm)
	}
}

// What is blocked on the evidence of other flows is lifted when no rule treats the pair any
// more, although the policy would not drop the flow for itself.
func TestReloadKeepsBlocksOnEvidence(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	const evidence = "mode: enforce\nallow: [{port: 1}]\nrules:\n- {name: a-long-name-of-a-rule, class: [v2ray], proto: tcp, min_confidence: 0.7, action: drop, ttl: 1h, scope: pair, " +
		"meanwhile: log, evidence: {flows: 2, share: 0.5, within: 1h}}\n"
	config, _ := newConfig(t, 1)
	l := newLive(t, &config, evidence)
	proven := func(m *flow.Meta) { m.Numbers.ResponderNextKnown, m.Numbers.InitiatorNextKnown = true, true }
	l.judge(flow.TCP, 1001, 0.9, proven)
	if got := l.blocked(); len(got) > 0 {
		t.Fatalf("blocked are %v after one flow", got)
	}
	for _, known := range []bool{true, false} {
		for _, tt := range []struct {
			name, text string
			stays      bool
		}{
			{"a comment", evidence + "#\n", true},
			{"more evidence", strings.Replace(evidence, "flows: 2", "flows: 5", 1), true},
			{"an allowed client", strings.Replace(evidence, "port: 1", "cidr: 10.0.0.1/32", 1), false},
			{"a protected server", "protect: [192.0.2.0/24]\n" + evidence, false},
			{"another rule", strings.Replace(evidence, "a-long", "the-long", 1), false},
			{"another initiator", strings.Replace(evidence, "proto: tcp", "proto: tcp, from: [10.7.0.0/16]", 1), false},
			{"no evidence", "mode: enforce\n", false},
		} {
			if _, err := l.reload(evidence); err != nil {
				t.Fatal(err)
			}
			l.judge(flow.TCP, 1002, 0.9, proven)
			if got := l.blocked(); !slices.Contains(got, 1002) {
				t.Fatalf("%s: blocked are %v after two flows", tt.name, got)
			}
			if !known {
				l.attached[0].known = knownFlows{}
			}
			if _, err := l.reload(tt.text); err != nil {
				t.Fatal(err)
			}
			if got := l.blocked(); slices.Contains(got, 1002) != tt.stays || !tt.stays && len(got) > 0 {
				t.Errorf("%s, known %v: blocked are %v", tt.name, known, got)
			}
		}
	}
}
