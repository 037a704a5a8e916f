// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/policy"
)

// MonitorOnly says why an interface that is attached so must not be in mode enforce with a
// policy: that one does not say what is to become of flows that prove little. It is empty if
// it may.
func MonitorOnly(o *loader.Options, p *policy.Policy) string {
	switch {
	case o.MidStream && !p.TreatsMidStream():
		return "--mid-stream capture in mode enforce needs a rule with \"mid_stream: true\", and the policy has none: models know the beginnings of flows, and mistake many ordinary ones for tunnels from their middle on; add the key to a rule, or leave --mid-stream out"
	case o.OneHook && !p.OneHook:
		return "--one-hook in mode enforce needs \"one_hook: true\" in the policy: where both directions come through one hook, whoever can send both can have a flow of others dropped"
	}
	return ""
}
