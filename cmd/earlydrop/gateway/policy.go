// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// judge is what decides. A decision reads it once, so that none is made by parts of two.
type judge struct {
	policy *policy.Policy
	model  string         // name and version
	shadow *policy.Policy // the same for the second model, if there is one
	since  time.Time
}

func modelName(m *classifier.Manifest) string { return m.Name + " " + m.Version }

// Reloaded says what came of a reload.
type Reloaded struct {
	Policy  string          `json:"policy"`            // where it is from
	Model   string          `json:"model"`             // name and version
	Was     string          `json:"was,omitempty"`     // the model before, if there is another one
	Changes *policy.Changes `json:"changes,omitempty"` // of the policy
	Lifted  int             `json:"lifted"`            // blocks that the policy of now would not make
}

// String says it in one line.
func (r *Reloaded) String() string {
	text := fmt.Sprintf("policy %s: %s", r.Policy, r.Changes)
	if r.Was != "" {
		text = fmt.Sprintf("model %s instead of %s; %s", r.Model, r.Was, text)
	}
	if r.Lifted > 0 {
		text += fmt.Sprintf("; %d blocks lifted", r.Lifted)
	}
	return text
}

// Reload has the gateway decide by the policy that Config.LoadPolicy returns now. After an
// error without a result nothing has changed: it is LoadPolicy's, or says that an interface in
// mode enforce must not have the policy. With a result, the policy is another one now, and
// something that goes with it failed.
//
// Blocks that the new policy would not make are lifted, but never those by hand. A mode that
// the policy has changed becomes that of all interfaces, unless Config.ModeFixed. It is safe
// for concurrent use.
func (g *Gateway) Reload() (*Reloaded, error) {
	return g.tellReload(func() (*Reloaded, error) { return g.reload(nil) })
}

// UseModel has the gateway classify with the model that Config.LoadModel returns for name,
// from the next batch on, and does what Reload does: the policy is loaded for the new
// model's labels. Errors are as of Reload.
func (g *Gateway) UseModel(name string) (*Reloaded, error) {
	return g.tellReload(func() (*Reloaded, error) {
		if g.config.LoadModel == nil {
			return nil, errors.New("no other model can be used")
		}
		n, err := g.config.LoadModel(name)
		if err != nil {
			return nil, err
		}
		// The bytes of the file, and the old model's.
		defer debug.FreeOSMemory()
		return g.reload(n)
	})
}

// tellReload tells what came of a reload.
func (g *Gateway) tellReload(reload func() (*Reloaded, error)) (*Reloaded, error) {
	r, err := reload()
	g.reloads.note(r != nil)
	e := &event.Reloaded{Time: time.Now(), Policy: g.config.PolicyName, Model: g.judge.Load().model}
	switch {
	case r == nil:
		e.Error = err.Error()
	case err != nil:
		slog.Warn("the policy is another one now, but not all that goes with it is done", "error", err)
		fallthrough
	default:
		e.Model, e.Was, e.BlocksLifted = r.Model, r.Was, r.Lifted
		if !r.Changes.None() {
			e.Changes = r.Changes
		}
	}
	g.config.Events.Put(e)
	return r, err
}

// reload changes the policy and, if there is one, takes over another model.
func (g *Gateway) reload(n *classifier.Network) (_ *Reloaded, err error) {
	g.changing.Lock()
	defer g.changing.Unlock()
	manifest := g.config.Engine.Manifest()
	if n != nil {
		manifest = n.Manifest()
	}
	old := g.judge.Load()
	now := &judge{model: modelName(manifest), since: time.Now()}
	// Until it has been taken over.
	defer func() {
		if n != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if g.config.LoadPolicy == nil {
		return nil, errors.New("the policy can't be loaded again")
	}
	if now.policy, err = g.config.LoadPolicy(manifest); err != nil {
		return nil, err
	}
	if now.shadow, err = g.shadowPolicy(); err != nil {
		return nil, err
	}
	r := &Reloaded{Policy: g.config.PolicyName, Model: now.model, Changes: now.policy.ChangesFrom(old.policy)}
	setsMode := r.Changes.Mode != "" && !g.config.ModeFixed

	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.mayHave(now.policy, setsMode); err != nil {
		return nil, err
	}
	// Whoever decides by the new policy has the mode that goes with it: monitor comes before,
	// enforce behind.
	if setsMode && now.policy.Mode == policy.Monitor {
		if err := g.setMode(policy.Monitor); err != nil {
			return nil, err
		}
	}
	var errs []error
	if n == nil {
		g.judge.Store(now)
	} else {
		r.Was = old.model
		take := n
		n = nil
		err := g.config.Engine.Swap(take, func() { g.judge.Store(now) })
		if g.judge.Load() != now {
			return nil, err
		}
		errs = append(errs, err)
	}
	for _, a := range g.attached {
		errs = append(errs, a.dp.Describe(now.model, g.config.PolicyName, g.config.MonitorOnly(&a.asked, now.policy)))
	}
	if setsMode && now.policy.Mode == policy.Enforce {
		errs = append(errs, g.setMode(policy.Enforce))
	}
	exempt := now.policy.Exempt()
	for _, a := range g.attached {
		lifted, err := a.lift(now.policy)
		r.Lifted += lifted
		errs = append(errs, err, a.tendPairs(), a.dp.SetExempt(exempt))
	}
	return r, errors.Join(errs...)
}

// shadowPolicy loads the policy for the second model, if there is one.
func (g *Gateway) shadowPolicy() (*policy.Policy, error) {
	if g.config.Shadow == nil {
		return nil, nil
	}
	if g.config.LoadPolicy == nil {
		return nil, errors.New("the policy can't be loaded for the second model")
	}
	p, err := g.config.LoadPolicy(g.config.Shadow.Manifest())
	if err != nil {
		return nil, fmt.Errorf("for the second model, %s: %w", modelName(g.config.Shadow.Manifest()), err)
	}
	return p, nil
}

// mayHave refuses a policy that an interface in mode enforce must not have, now or with the
// policy's own mode. The caller has g.changing and g.mu.
func (g *Gateway) mayHave(p *policy.Policy, setsMode bool) error {
	for i := range g.config.Attach {
		o := &g.config.Attach[i]
		if why := g.config.MonitorOnly(o, p); why != "" && setsMode && p.Mode == policy.Enforce {
			return errors.New(why)
		}
	}
	for _, w := range g.waiting {
		if why := g.config.MonitorOnly(&w.asked, p); why != "" && !setsMode && !w.asked.Monitor {
			return errors.New(why)
		}
	}
	for _, a := range g.attached {
		if why := g.config.MonitorOnly(&a.asked, p); why != "" && !setsMode && a.mode() == policy.Enforce {
			return errors.New(why)
		}
	}
	return nil
}

// setMode changes the mode of all interfaces, and of those that are waited for. The caller
// has g.changing and g.mu.
func (g *Gateway) setMode(mode policy.Mode) error {
	for _, w := range g.waiting {
		w.asked.Monitor = mode == policy.Monitor
	}
	all := make([]*loader.Tables, len(g.attached))
	for i, a := range g.attached {
		all[i] = a.dp.Tables
	}
	_, err := loader.SetModes(all, mode == policy.Enforce)
	for _, a := range g.attached {
		a.mode() // tells
	}
	return err
}

// lift lifts the blocks that a policy would not make, and returns how many there were. In
// mode monitor, where that is the policy's own, it would make none. The caller has g.mu.
func (a *attachment) lift(p *policy.Policy) (int, error) {
	none := p.Mode == policy.Monitor && !a.gateway.config.ModeFixed && a.mode() == policy.Monitor
	blocks, err := a.dp.UnblockWhere(func(b *loader.Block) bool {
		return !b.ByHand() && (none || !a.wouldDrop(p, b))
	})
	for _, b := range blocks {
		b.Ended = loader.EndPolicy
		a.blockEnded(b)
	}
	return len(blocks), err
}

// wouldDrop reports whether a policy would drop the flow of a block. Interfaces of a group have
// their blocks in common, so any of them may know the flow. The caller has g.mu.
func (a *attachment) wouldDrop(p *policy.Policy, b *loader.Block) bool {
	for _, other := range a.gateway.attached {
		if f := other.known.of(b); f != nil {
			return f.isDropped(p)
		}
	}
	return mayDrop(p, b, a.iface())
}

// takeBack lifts the block of a flow again that was judged by another policy than that of now.
func (a *attachment) takeBack(key flow.Key) error {
	a.known.remove(key)
	_, err := a.dp.UnblockWhere(func(b *loader.Block) bool { return b.Key == key && !b.ByHand() })
	return err
}
