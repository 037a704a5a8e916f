// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"time"

	"golang.org/x/time/rate"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// A second model judges what the first one has judged, and nothing comes of it but counters and
// events about what the two do not agree on. It has the time that the first one leaves: when
// captures wait for that one, it gets none.
const (
	// yieldWaiting is how many captures may wait for the first model: about a batch.
	yieldWaiting = 32
	// So many events tell of disagreements, at most; the counters have all.
	disagreementsPerSecond, disagreementsAtOnce = 10, 100
)

func newDisagreements() *rate.Limiter {
	return rate.NewLimiter(disagreementsPerSecond, disagreementsAtOnce)
}

// shadow has the second model judge a flow, if there is one and it has time.
func (a *attachment) shadow(s *flow.Sample, r *flow.Result, j *judge) {
	g := a.gateway
	second := g.config.Shadow
	if second == nil {
		return
	}
	if g.config.Engine.Waiting() >= yieldWaiting {
		a.counts[countShadowSkipped].Add(1)
		return
	}
	own := second.Get()
	own.CopyFrom(s)
	// The two are asked about the flow alone: what is known of other flows is from the first
	// model's verdicts.
	alone := j.policy.Decide(&s.Meta, *r)
	first := event.Opinion{Model: j.model, Class: r.Class, Confidence: r.Confidence, Decision: alone.Action.String()}
	if !second.Submit(own, func(s *flow.Sample, r flow.Result, err error) { a.compare(s, &r, err, &first, j) }) {
		second.Put(own)
		a.counts[countShadowSkipped].Add(1)
	}
}

// compare compares what the second model says of a flow with what the first one said.
func (a *attachment) compare(s *flow.Sample, r *flow.Result, err error, first *event.Opinion, j *judge) {
	if err != nil {
		a.counts[countShadowSkipped].Add(1)
		return
	}
	d := j.shadow.Decide(&s.Meta, *r)
	second := event.Opinion{
		Model: modelName(a.gateway.config.Shadow.Manifest()), Class: r.Class, Confidence: r.Confidence, Decision: d.Action.String(),
	}
	a.counts[countShadowed].Add(1)
	if second.Class == first.Class && second.Decision == first.Decision {
		return
	}
	a.counts[countDisagreed].Add(1)
	if !a.gateway.disagreements.Allow() {
		return
	}
	initiator, responder := s.Initiator(), s.Responder()
	a.add(&event.Disagreed{
		Time: time.Now(), Interface: a.iface(),
		Endpoints: event.Endpoints{Src: initiator, Dst: responder, Proto: s.Key.Proto.String(), VLAN: s.Key.VLAN, InnerVLAN: s.Key.InnerVLAN},
		First:     *first, Second: second,
	})
}

// closeShadow ends the second model. The first one is closed by then: it hands nothing on.
func (g *Gateway) closeShadow() {
	if g.config.Shadow != nil {
		_ = g.config.Shadow.Close()
	}
}
