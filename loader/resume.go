// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// resume has the next datagram of a UDP flow captured again, as a resumed flow, whose
// block's time is over: the middle of a flow is no beginning. Without it, the flow would
// pass as decided, or, if the kernel has forgotten it, begin. The kernel does the same
// as long as it finds the block.
func (t *Tables) resume(k *datapathFlowKey, b *datapathBlock) error {
	if flow.Proto(k.Proto) != flow.UDP {
		return nil
	}
	v := datapathFlow{LastNs: monotonic(), Verdict: datapathVerdictVERDICT_RESUMED}
	err := t.flows.Update(k, &v, ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		var was datapathFlow
		err = t.flows.Lookup(k, &was)
		if err == nil && was.LastNs < b.ExpiresNs { // since when it may have been captured
			err = t.flows.Update(k, &v, ebpf.UpdateExist)
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil // forgotten this very moment
		}
	}
	if err != nil {
		return fmt.Errorf("write map flows: %w", err)
	}
	return nil
}
