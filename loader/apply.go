// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"slices"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// An UnsupportedError says what of a treatment the data path can't do. Nothing was changed.
type UnsupportedError struct {
	Treatment flow.Treatment
	What      string // such as "action-7"
}

// Error returns one lower-case line.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("the data path knows no %s: it drops, resets or limits flows", e.What)
}

// checkTreatment returns an *UnsupportedError for what the data path can't do.
func checkTreatment(t flow.Treatment) error {
	switch {
	case !t.Action.Blocks():
		return &UnsupportedError{t, t.Action.String()}
	case t.Scope != flow.ScopeFlow:
		return &UnsupportedError{t, t.Scope.String()}
	case t.Rate != 0 && t.Action != flow.Limit:
		return &UnsupportedError{t, fmt.Sprintf("rate (%d bytes/s) of action %s", t.Rate, t.Action)}
	case t.Action == flow.Limit && (t.Rate < MinRate || t.Rate > MaxRate):
		return fmt.Errorf("rate of %d bytes/s is not between %d and %d", t.Rate, MinRate, uint64(MaxRate))
	case t.Action.Blocks() && t.TTL <= 0:
		return fmt.Errorf("time to live %s is not positive", t.TTL)
	}
	return nil
}

// Bounds of Treatment.Rate, in bytes per second: 1 kbit/s and 10 Gbit/s.
const (
	MinRate = 125
	MaxRate = 1_250_000_000
)

// LimitBurst is how many bytes a limited flow may send at once, on top of its rate.
const LimitBurst = 128 << 10

// The actions of a block are numbered as in enum block_action of bpf/earlydrop.h.
var blockActions = [...]flow.Action{flow.Drop, flow.Reset, flow.Limit}

func actionOf(number uint8) flow.Action {
	if int(number) < len(blockActions) {
		return blockActions[number]
	}
	return flow.Drop
}

// Apply treats whatever has a key.
//
// Drop has the kernel drop its packets for the treatment's time, at most 100 years, from
// now on, or until another TCP connection of the key is made. A key that is blocked
// already gets the new time and reason, and its counters begin at zero again. The error
// wraps [ErrFull] when the table is full of blocks that drop.
//
// Reset is Drop, and the ends of a TCP connection get a RST, where [Info.NoResets] is empty:
// who sent one of the first packets that are dropped, at most three RSTs each, and no more
// than 200 a second on the interface. Only for the first payload of the responder does the
// initiator get it, who may wait for it in silence. A RST without payload passes.
//
// Limit drops what is more than the treatment's rate, of both directions together: of any
// time t no more passes than Rate * t + [LimitBurst] bytes, L2 headers included.
//
// What the data path can't do is refused with an [*UnsupportedError]; for what passes there is
// [DataPath.Pass].
func (t *Tables) Apply(key flow.Key, treatment flow.Treatment) error {
	return t.apply(key, nil, treatment)
}

// ApplyFlow is Apply for a flow that was captured. A TCP connection that goes on when
// the time of its block is over stays blocked for as long again, at most five times. The error
// wraps [ErrFlowGone], and nothing is blocked, when another connection has the key by now,
// [ErrExempt] when [Tables.Unblock] has lifted a block of the flow,
// and [ErrInitiatorQuota] when the flow's initiator has too many of the blocks.
func (t *Tables) ApplyFlow(m *flow.Meta, treatment flow.Treatment) error {
	return t.apply(m.Key, m, treatment)
}

// apply treats a key, or the flow m of that key.
func (t *Tables) apply(key flow.Key, m *flow.Meta, treatment flow.Treatment) error {
	err := checkTreatment(treatment)
	k := toKernelKey(key)
	switch {
	case err != nil:
	case m == nil:
		b := newBlock(treatment)
		t.blocking.Lock()
		defer t.blocking.Unlock()
		err = t.putBlock(&k, &b)
	default:
		t.blocking.Lock()
		defer t.blocking.Unlock()
		err = t.blockFlow(&k, m, treatment)
	}
	if err == nil {
		return nil
	}
	if treatment.Action.Blocks() {
		return fmt.Errorf("block %s: %w", key, err)
	}
	return fmt.Errorf("treat %s: %w", key, err)
}

// Pass notes in the kernel that flows are decided and pass, whatever else is known of them. It
// ends no block ([Tables.Unblock] does), and a flow that the kernel has forgotten in the meantime,
// or whose block was lifted, is left alone. After an error, some of the flows may be noted.
func (d *DataPath) Pass(keys ...flow.Key) error {
	return pass(d.coll.Programs[datapathProgEdPassed], keys)
}

func pass(prog *ebpf.Program, keys []flow.Key) error {
	for some := range slices.Chunk(keys, len(datapathPassed{}.Keys)) {
		in := datapathPassed{Flows: uint32(len(some))}
		for i, k := range some {
			in.Keys[i] = toKernelKey(k)
		}
		raw := unsafe.Slice((*byte)(unsafe.Pointer(&in)), unsafe.Sizeof(in))
		if _, err := prog.Run(&ebpf.RunOptions{Context: raw}); err != nil {
			return fmt.Errorf("write verdicts of %s and %d other flows: %w", some[0], len(some)-1, err)
		}
	}
	return nil
}

// blockFlow blocks a flow that was captured, provided that it is still there.
func (t *Tables) blockFlow(k *datapathFlowKey, m *flow.Meta, treatment flow.Treatment) error {
	b := newBlock(treatment)
	b.setNumbers(m, treatment.TTL)
	if err := t.checkQuota(m); err != nil {
		return err
	}
	// The kernel forgets the flow first and ends its block then: one of the two looks
	// finds that it is another connection by now.
	if err := t.checkConnection(k, &b); err != nil {
		return err
	}
	if err := t.putBlock(k, &b); err != nil {
		return err
	}
	if err := t.checkConnection(k, &b); err != nil {
		_, undo := t.unblock(k)
		return errors.Join(err, undo)
	}
	t.census.add(initiatorOf(k, &b), responderOf(k, &b))
	return nil
}

func newBlock(t flow.Treatment) datapathBlock {
	now := monotonic()
	b := datapathBlock{SinceNs: now, ExpiresNs: now + uint64(t.TTL), Rate: t.Rate}
	b.Action = uint8(slices.Index(blockActions[:], t.Action))
	fixed(b.Class[:], t.Class)
	fixed(b.Rule[:], t.Rule)
	return b
}

// setNumbers fills in what is known of a TCP connection.
func (b *datapathBlock) setNumbers(m *flow.Meta, ttl time.Duration) {
	n := &m.Numbers
	if m.InitiatorIsLo {
		b.InitiatorIsLo = 1
		b.IsnLo, b.IsnHi, b.NextLo, b.NextHi = n.InitiatorISN, n.ResponderISN, n.InitiatorNext, n.ResponderNext
	} else {
		b.IsnLo, b.IsnHi, b.NextLo, b.NextHi = n.ResponderISN, n.InitiatorISN, n.ResponderNext, n.InitiatorNext
	}
	if m.Key.Proto != flow.TCP {
		return
	}
	b.TtlNs = uint64(ttl)
	if n.ISNKnown {
		b.Known |= knownISN
	}
	if n.InitiatorNextKnown && m.InitiatorIsLo || n.ResponderNextKnown && !m.InitiatorIsLo {
		b.Known |= knownNextLo
	}
	if n.ResponderNextKnown && m.InitiatorIsLo || n.InitiatorNextKnown && !m.InitiatorIsLo {
		b.Known |= knownNextHi
	}
}

// checkConnection returns ErrFlowGone where the kernel knows of another connection of
// the key than the block's, or of none, and ErrExempt where the flow is exempt.
func (t *Tables) checkConnection(k *datapathFlowKey, b *datapathBlock) error {
	var v datapathFlow
	switch err := t.flows.Lookup(k, &v); {
	case errors.Is(err, ebpf.ErrKeyNotExist) && b.Known&knownISN == 0:
		return nil
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return ErrFlowGone
	case err != nil:
		return fmt.Errorf("read map flows: %w", err)
	case v.Verdict == datapathVerdictVERDICT_EXEMPT && (b.Known&v.Known&knownISN == 0 || v.IsnLo == b.IsnLo && v.IsnHi == b.IsnHi):
		return ErrExempt
	case b.Known&knownISN == 0:
		return nil
	case v.Known&knownISN == 0 || v.IsnLo != b.IsnLo || v.IsnHi != b.IsnHi:
		return ErrFlowGone
	}
	return nil
}

// putBlock writes a block, and makes room for it if need be. Nothing else writes to the
// table.
func (t *Tables) putBlock(k *datapathFlowKey, b *datapathBlock) error {
	// The filter first: a block that it does not count is not looked up.
	t.filter.add(k, 1)
	for {
		err := t.blocked.Update(k, b, ebpf.UpdateNoExist)
		if err == nil {
			return nil
		}
		if errors.Is(err, unix.E2BIG) && t.makeRoom() {
			continue
		}
		if errors.Is(err, ebpf.ErrKeyExist) {
			// It is counted already. If somebody deletes it in between, it is
			// a new one again.
			if err = t.blocked.Update(k, b, ebpf.UpdateExist); errors.Is(err, ebpf.ErrKeyNotExist) {
				continue
			}
		}
		t.filter.add(k, -1)
		if errors.Is(err, unix.E2BIG) { // what the kernel says of a full hash table
			err = fmt.Errorf("the table of blocked flows is %w: it holds %d", ErrFull, t.blocked.MaxEntries())
		}
		return err
	}
}
