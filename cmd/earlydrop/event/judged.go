// SPDX-License-Identifier: Apache-2.0

package event

import (
	"fmt"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// Judged returns what a policy needs to know of the flow, so that another one can be asked:
// the inverse of NewVerdict, as far as that goes. Events of programs that did not write Scant
// and MissingStart say so where that decided.
func (v *Verdict) Judged() (*flow.Meta, flow.Result, error) {
	m := &flow.Meta{
		Source: flow.Source{Interface: v.Interface, File: v.File},
		Start:  v.Start, Full: v.Complete, Cut: v.Cut, Incomplete: v.Incomplete, MidStream: v.MidStream, Resumed: v.Resumed, OneWay: v.OneWay,
		Provisional: v.Provisional, Revision: v.Revised, Variant: v.Variant,
		Scant: v.Scant || v.Reason == policy.ReasonScant, MissingStart: v.MissingStart || v.Reason == policy.ReasonMidStream,
	}
	r := flow.Result{Class: v.Class, Confidence: v.Confidence, Labels: v.Scores.Labels, Scores: v.Scores.Values}
	m.Elapsed = max(0, v.Time.Sub(v.Start)-time.Duration(v.LatencyUS*float64(time.Microsecond)))
	var proto flow.Proto
	switch v.Proto {
	case flow.TCP.String():
		proto = flow.TCP
	case flow.UDP.String():
		proto = flow.UDP
	default:
		return nil, r, fmt.Errorf("proto %q is neither tcp nor udp", v.Proto)
	}
	if !v.Src.IsValid() || !v.Dst.IsValid() {
		return nil, r, fmt.Errorf("src %s and dst %s are not two addresses with ports", v.Src, v.Dst)
	}
	m.Key, m.InitiatorIsLo = flow.NewKey(v.Src, v.Dst, proto, v.VLAN, v.InnerVLAN)
	for _, name := range v.Signals {
		signal, _ := flow.ParseSignal(name) // one of a newer program is none
		m.Signals |= signal
	}
	return m, r, nil
}
