// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// sure is a network that takes every flow for one class.
type sure struct {
	labels, class int
	slow          time.Duration // of each run
	closed        *atomic.Int64
}

func (s *sure) Run(_ []uint8, n int, logits []float32) error {
	time.Sleep(s.slow)
	for i := range n * s.labels {
		logits[i] = 0
		if i%s.labels == s.class {
			logits[i] = 20
		}
	}
	return nil
}

func (s *sure) Limits() classifier.Limits { return classifier.Limits{Runs: 2, Batch: 32} }
func (s *sure) Device() string            { return "cpu" }
func (s *sure) Close() error              { s.closed.Add(1); return nil }

// network returns a model of some version, with labels of its own, that takes every flow for
// the label that ends with the version.
func network(t *testing.T, version string, slow time.Duration, closed *atomic.Int64, labels ...string) *classifier.Network {
	t.Helper()
	engine := openTiny(t)
	defer engine.Close()
	m := *engine.Manifest()
	m.Version, m.Check, m.Labels = version, nil, append([]string{flow.Background}, labels...)
	m.Thresholds = maps.Clone(m.Thresholds)
	class := 0
	for i, label := range m.Labels {
		m.Thresholds[label] = 0.5
		if strings.HasSuffix(label, version) {
			class = i
		}
	}
	n, err := classifier.NewNetwork("fake", &m, &sure{len(m.Labels), class, slow, closed})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// submit has the gateway judge 5000 UDP flows a second until done, as from a ring buffer with
// room, and returns how many it took.
func (l *live) submit(done <-chan struct{}) (submitted, refused int) {
	a := l.attached[0]
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for port := 0; ; {
		select {
		case <-done:
			return submitted, refused
		case <-tick.C:
		}
		for range 50 {
			s := l.config.Engine.Get()
			port = (port + 1) % 4096
			s.Key, s.InitiatorIsLo = flow.NewKey(netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(1024+port)), netip.MustParseAddrPort("192.0.2.7:8388"), flow.UDP, 0, 0)
			s.Data, s.Packets = append(s.Data, make([]byte, 100)...), append(s.Packets, flow.Packet{WireLen: 100, FromInitiator: true})
			s.Reason, s.Start, s.Source.Interface = flow.ReasonFull, time.Now(), a.iface()
			a.pending.Add(1)
			if !a.submit(context.Background(), new(ringOf), s, a.decide) {
				a.pending.Done()
				l.config.Engine.Put(s)
				refused++
				continue
			}
			submitted++
		}
	}
}

// Under 5000 flows a second the model is changed again and again: each flow gets one verdict,
// of one model and the policy that was loaded for it, and every old model is freed.
func TestModelsAreChangedUnderLoadWithoutALostVerdict(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, _ := newConfig(t, 1)
	var err error
	if config.Events, err = eventlog.Open(eventlog.Config{JSON: io.Discard}); err != nil {
		t.Fatal(err)
	}
	_ = config.Engine.Close()
	var closed atomic.Int64
	if config.Engine, err = network(t, "0", 0, &closed, "class0", "other").Engine(0); err != nil {
		t.Fatal(err)
	}
	// Each has labels that the other lacks.
	config.LoadModel = func(version string) (*classifier.Network, error) {
		if version == "7" {
			return nil, errors.New("the file is cut")
		}
		return network(t, version, 0, &closed, "other", "class"+version), nil
	}
	const text = "mode: monitor\nrules: [{name: a, class: [other], action: drop, ttl: 1m, udp_unproven: true}]\n"
	l := newLive(t, &config, text)
	var mixed atomic.Int64
	models := map[string]int{}
	follower := config.Events.Follow(1 << 16)
	var watching sync.WaitGroup
	watching.Go(func() {
		for e := range follower.Events() {
			if v, ok := e.(*event.Verdict); ok {
				models[v.Model]++
				if !strings.HasSuffix(v.Model, strings.TrimPrefix(v.Class, "class")) || v.Scores.Of(v.Class) < 0.9 {
					mixed.Add(1)
				}
			}
		}
	})
	done := make(chan struct{})
	var submitted, refused int
	var load sync.WaitGroup
	load.Go(func() { submitted, refused = l.submit(done) })
	var swaps int
	for i := 1; i <= 20; i++ {
		version := fmt.Sprint(i)
		r, err := l.UseModel(version)
		if i == 7 {
			if err == nil || r != nil || !strings.Contains(err.Error(), "cut") {
				t.Errorf("%v, %v", r, err)
			}
			continue
		}
		if err != nil || r.Model != "test "+version || r.Was == "" {
			t.Fatalf("%+v, %v", r, err)
		}
		swaps++
		if got := closed.Load(); got != int64(swaps) {
			t.Errorf("%d models are freed after %d changes", got, swaps)
		}
		before := l.attached[0].counts[countClassified].Load()
		for l.attached[0].counts[countClassified].Load() < before+20 {
			time.Sleep(time.Millisecond)
		}
	}
	// A model that the policy does not fit is refused, whatever computes.
	if r, err := func() (*Reloaded, error) {
		text := "mode: monitor\nrules: [{name: a, class: [class20], action: drop, ttl: 1m}]\n"
		if _, err := l.reload(text); err != nil {
			t.Fatal(err)
		}
		return l.UseModel("21")
	}(); err == nil || r != nil || !strings.Contains(err.Error(), "class20") {
		t.Errorf("%v, %v", r, err)
	}
	if got := l.config.Engine.Manifest().Version; got != "20" {
		t.Errorf("the model is %s", got)
	}
	close(done)
	load.Wait()
	l.attached[0].pending.Wait()
	counts := &l.attached[0].counts
	if n := counts[countClassified].Load(); n != uint64(submitted) || refused > 0 || counts[countNotClassified].Load() > 0 {
		t.Errorf("%d submitted, %d refused, %d judged, %d not", submitted, refused, n, counts[countNotClassified].Load())
	}
	config.Events.Close()
	watching.Wait()
	if mixed.Load() > 0 || len(models) < swaps {
		t.Errorf("%d verdicts are of two models; verdicts by model: %v", mixed.Load(), models)
	}
}

// The second model judges what the first one does, and nothing comes of it but counters and
// events. Where it can't keep up it is left out, and the first one loses no flow.
func TestShadowJudgesBeside(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	var closed atomic.Int64
	for _, tt := range []struct {
		name     string
		version  string        // of the second model, which takes flows for other9, or class0
		slow     time.Duration // its runs
		disagree bool
	}{{"agrees", "0", 0, false}, {"disagrees", "9", 0, true}, {"is slow", "9", 200 * time.Millisecond, true}} {
		t.Run(tt.name, func(t *testing.T) {
			config, _ := newConfig(t, 1)
			var err error
			if config.Events, err = eventlog.Open(eventlog.Config{JSON: io.Discard}); err != nil {
				t.Fatal(err)
			}
			_ = config.Engine.Close()
			if config.Engine, err = network(t, "0", 0, &closed, "class0", "other9").Engine(0); err != nil {
				t.Fatal(err)
			}
			if config.Shadow, err = network(t, tt.version, tt.slow, &closed, "other9", "class0").Engine(256); err != nil {
				t.Fatal(err)
			}
			l := newLive(t, &config, "mode: enforce\nrules: [{name: a, class: [other9], action: drop, ttl: 1m, udp_unproven: true}]\n")
			follower := config.Events.Follow(1 << 16)
			var verdicts, disagreed atomic.Int64
			var watching sync.WaitGroup
			watching.Go(func() {
				for e := range follower.Events() {
					switch e := e.(type) {
					case *event.Verdict:
						verdicts.Add(1)
						if e.Decision != "pass" || e.Model != "test 0" {
							t.Errorf("verdict %+v", e)
						}
					case *event.Disagreed:
						disagreed.Add(1)
						want := event.Disagreed{First: event.Opinion{Model: "test 0", Class: "class0", Decision: "pass"}, Second: event.Opinion{Model: "test 9", Class: "other9", Decision: "drop"}}
						first, second := e.First, e.Second // the event is the log's as well
						first.Confidence, second.Confidence = 0, 0
						if first != want.First || second != want.Second || e.Proto != "udp" || e.Src.Addr().String() != "10.0.0.1" {
							t.Errorf("event %+v", e)
						}
					}
				}
			})
			done := make(chan struct{})
			time.AfterFunc(2*time.Second, func() { close(done) })
			submitted, refused := l.submit(done)
			a := l.attached[0]
			a.pending.Wait()
			if err := config.Shadow.Close(); err != nil { // what waited counts as skipped
				t.Error(err)
			}
			counts := func(id countID) int { return int(a.counts[id].Load()) }
			if counts(countClassified) != submitted || refused > 0 || counts(countBlocked) > 0 {
				t.Errorf("%d submitted, %d refused, %d judged, %d blocked", submitted, refused, counts(countClassified), counts(countBlocked))
			}
			if counts(countShadowed)+counts(countShadowSkipped) != submitted || counts(countShadowed) == 0 {
				t.Errorf("of %d the second model judged %d, and not %d", submitted, counts(countShadowed), counts(countShadowSkipped))
			}
			want := 0
			if tt.disagree {
				want = counts(countShadowed)
			}
			if counts(countDisagreed) != want {
				t.Errorf("they disagree on %d of %d", counts(countDisagreed), counts(countShadowed))
			}
			if tt.slow > 0 && counts(countShadowSkipped) < submitted/2 {
				t.Errorf("the slow model left out %d of %d only", counts(countShadowSkipped), submitted)
			}
			config.Events.Close()
			watching.Wait()
			if n := disagreed.Load(); (n > 0) != tt.disagree || n > disagreementsAtOnce+30*disagreementsPerSecond {
				t.Errorf("%d events of disagreements, %d in all", n, want)
			}
		})
	}
	// A policy that fits one of the two models only is refused.
	config, _ := newConfig(t, 1)
	var err error
	if config.Shadow, err = network(t, "9", 0, &closed, "other9").Engine(0); err != nil {
		t.Fatal(err)
	}
	defer config.Engine.Close()
	defer config.Shadow.Close()
	l := &live{t: t}
	text := "rules: [{name: a, class: [v2ray], action: drop, ttl: 1m}]\n"
	l.text.Store(&text)
	config.LoadPolicy = l.loadPolicy
	if _, err := New(config); err == nil || !strings.Contains(err.Error(), "test 9") || !strings.Contains(err.Error(), "v2ray") {
		t.Errorf("%v", err)
	}
	if attachedTo(t, config.Attach[0]) {
		t.Error("it is attached")
	}
}
