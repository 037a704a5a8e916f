// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
	"github.com/earlydrop/earlydrop/policy/evidence"
)

// The kernel of each interface treats the pairs that evidence treats, as far as the policy says
// the same of all flows that a pair may have there. It does so in mode monitor as well, where
// what it does is suspended. Flows of the others are treated one by one, by their verdicts.

// Ends of pairs, besides EndByHand and those of blocks: time and policy.
const endForgotten = "forgotten" // too many other pairs were seen since

// kernelPairs is what an attachment knows of the pairs in its kernel's table.
type kernelPairs struct {
	mu sync.Mutex // of the table, and of what follows

	// The table is right for this judge, and for so many changes of the evidence; full: as far
	// as there was room.
	judge   *judge
	changes uint64
	full    bool
}

// treatmentOf returns what the kernel is to do about a pair at the interface.
func (a *attachment) treatmentOf(p *policy.Policy, t *evidence.Treated, now time.Time) (_ flow.Treatment, ok bool) {
	rule := p.RuleForPair(t.Rule, t.Pair, flow.Source{Interface: a.iface()})
	if rule == nil || !now.Before(t.Until) {
		return flow.Treatment{}, false
	}
	treatment := flow.Treatment{Action: rule.Action, Scope: flow.ScopePair, TTL: t.Until.Sub(now), Class: t.Class, Rule: rule.Name}
	if rule.Action == flow.Limit {
		treatment.Rate = rule.Rate
	}
	return treatment, true
}

// treatPair has the kernel treat a pair that evidence treats since a moment ago.
func (a *attachment) treatPair(p flow.Pair) {
	a.pairs.mu.Lock()
	defer a.pairs.mu.Unlock()
	now := time.Now()
	t, ok := a.gateway.config.Evidence.TreatmentOf(p, now)
	if !ok {
		return
	}
	if treatment, ok := a.treatmentOf(a.gateway.judge.Load().policy, &t, now); ok {
		a.putPair(&t, treatment)
	}
}

// putPair writes a pair that is not in the kernel's table, and tells of it. The caller has
// a.pairs.mu.
func (a *attachment) putPair(t *evidence.Treated, treatment flow.Treatment) {
	if err := a.dp.TreatPair(t.Pair, treatment); err != nil {
		a.pairs.full = a.pairs.full || errors.Is(err, loader.ErrFull)
		a.counts[countPairsNotWritten].Add(1)
		a.warnBlock.Do(func() {
			slog.Warn("pair not treated by the kernel, its flows are treated by their verdicts", "interface", a.iface(), "pair", t.Pair, "error", err)
		})
		return
	}
	a.put(&event.PairTreated{
		Time: time.Now(), Interface: a.iface(), PairEnds: event.EndsOf(t.Pair), Class: t.Class, Rule: t.Rule, Action: treatment.Action.String(),
		Rate: treatment.Rate, Until: t.Until, EvidenceFlows: t.Seen, EvidenceJudged: t.Judged,
	})
}

// pairEnded tells that the kernel treats a pair no longer, and why.
func (a *attachment) pairEnded(p *loader.Pair, why string) {
	a.gateway.tops.noteEndedPair(p)
	a.put(&event.PairEnded{
		Time: time.Now(), Interface: a.iface(), PairEnds: event.EndsOf(p.Pair), Class: p.Class, Rule: p.Rule, Reason: why,
		Connections: p.Flows, DroppedPackets: p.Packets, DroppedBytes: p.Bytes,
	})
}

// tendPairs removes the pairs from the kernel's table whose time is over, and has it treat
// those, and no others, that evidence treats now.
func (a *attachment) tendPairs() error {
	a.pairs.mu.Lock()
	defer a.pairs.mu.Unlock()
	ended, err := a.dp.ExpirePairs()
	for i := range ended {
		a.pairEnded(&ended[i], string(loader.EndTime))
	}
	if err != nil {
		return err
	}
	e, j := a.gateway.config.Evidence, a.gateway.judge.Load()
	changes := e.Changes() // before it is asked
	if a.pairs.judge == j && a.pairs.changes == changes && !(a.pairs.full && len(ended) > 0) {
		return nil
	}
	there, err := a.kernelPairs()
	if err != nil {
		return err
	}
	now := time.Now()
	treated := map[flow.Pair]bool{}
	a.pairs.full = false
	for _, t := range e.Treated(now) {
		treated[t.Pair] = true
		want, ok := a.treatmentOf(j.policy, &t, now)
		is, known := there[t.Pair]
		switch {
		case !ok: // if it is there, it goes
			continue
		case !known:
			a.putPair(&t, want)
		case is.Action != want.Action || is.Rate != want.Rate || is.Rule != cut(want.Rule) || is.Expires.Sub(t.Until).Abs() > time.Second:
			// Another policy; or the clock was set.
			if err := a.dp.TreatPair(t.Pair, want); err != nil {
				return err
			}
		}
		delete(there, t.Pair)
	}
	for p := range there {
		why := endForgotten
		if treated[p] {
			why = string(loader.EndPolicy)
		}
		if err := a.endPair(p, why); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	a.pairs.judge, a.pairs.changes = j, changes
	return nil
}

func (a *attachment) kernelPairs() (map[flow.Pair]loader.Pair, error) {
	all, err := a.dp.Pairs()
	there := make(map[flow.Pair]loader.Pair, len(all))
	for _, p := range all {
		there[p.Pair] = p
	}
	return there, err
}

// endPair takes a pair out of the kernel's table, and tells of it. The error wraps
// ebpf.ErrKeyNotExist where it is not there. The caller has a.pairs.mu.
func (a *attachment) endPair(p flow.Pair, why string) error {
	was, err := a.dp.ForgetPair(p)
	if err == nil {
		a.pairEnded(&was, why)
	}
	return err
}

// adoptPairs has evidence know of the pairs that kernels treat since an earlier process, which may
// have been killed before it wrote them down. What is not said of a pair is left to its rule.
//
// With all, these are all interfaces. Where none of their kernels treats a pair that it would,
// somebody has ended that while nobody was there, and evidence forgets the pair.
func (g *Gateway) adoptPairs(attached []*attachment, all bool) {
	e, p, now := g.config.Evidence, g.judge.Load().policy, time.Now()
	there := map[flow.Pair]bool{}
	var known []*attachment
	for _, a := range attached {
		if !a.dp.Info.PairsKnown {
			continue
		}
		pairs, err := a.dp.Pairs()
		if err != nil {
			slog.Warn("what the kernel knows of pairs can't be read", "interface", a.iface(), "error", err)
			return
		}
		known = append(known, a)
		for i := range pairs {
			k := &pairs[i]
			there[k.Pair] = true
			if _, ok := e.TreatmentOf(k.Pair, now); ok {
				continue
			}
			// The kernel has cut its name.
			at := slices.IndexFunc(p.Rules, func(r policy.Rule) bool { return r.Evidence != nil && cut(r.Name) == k.Rule })
			if at >= 0 {
				e.Treat(evidence.Treated{Pair: k.Pair, Rule: p.Rules[at].Name, Class: k.Class, Since: k.Since, Until: k.Expires})
			}
		}
	}
	if !all {
		return
	}
	for _, t := range e.Treated(now) {
		ended := slices.ContainsFunc(known, func(a *attachment) bool {
			_, would := a.treatmentOf(p, &t, now)
			return would
		})
		if ended && !there[t.Pair] {
			e.Forget(t.Pair)
		}
	}
}

// Pairs returns the pairs that the kernel treats, of all interfaces.
func (g *Gateway) Pairs() (all []status.Pair, err error) {
	err = g.each(func(a *attachment) error {
		pairs, err := a.dp.Pairs()
		if err != nil {
			return err
		}
		enforces, err := a.dp.Enforces()
		for i := range pairs {
			p := status.NewPair(a.iface(), &pairs[i])
			p.Suspended = !enforces
			all = append(all, p)
		}
		return err
	})
	return all, err
}

// ForgetPair ends the treatment of a pair on all interfaces, and has evidence forget what is known of
// it. It returns the pair as it was, of each interface whose kernel treated it. The error wraps
// ebpf.ErrKeyNotExist where it was not treated.
func (g *Gateway) ForgetPair(p flow.Pair) (was []status.Pair, err error) {
	treated := g.config.Evidence.Forget(p)
	err = g.each(func(a *attachment) error {
		a.pairs.mu.Lock()
		defer a.pairs.mu.Unlock()
		ended, err := a.dp.ForgetPair(p)
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return nil
		case err != nil:
			return err
		}
		a.pairEnded(&ended, string(EndByHand))
		was = append(was, status.NewPair(a.iface(), &ended))
		return nil
	})
	if err == nil && len(was) == 0 && !treated {
		err = fmt.Errorf("%s: %w", p, ebpf.ErrKeyNotExist)
	}
	return was, err
}
