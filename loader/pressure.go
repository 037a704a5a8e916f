// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// ErrInitiatorQuota means that the table of blocks is nearly full, and that the flow's
// initiator has a quarter of it.
var ErrInitiatorQuota = errors.New("the flow's initiator has a quarter of all blocks, and the table is three quarters full")

const (
	// idleBlock is how old a block that has dropped nothing must be before it makes
	// room for another.
	idleBlock = 5 * time.Second
	// censusAge is how often the blocks are counted at most. Between two counts
	// blocks are added to the sums, but not subtracted.
	censusAge = time.Second
	// quotaShare is the part of a table that is nearly full that one initiator may have,
	// and pairQuotaShare the part of it that may be of one responder. What it has of one
	// responder counts for no more than that in its own sum: who can make connections in
	// a neighbour's name, but to one server only, does not use up the neighbour's share.
	quotaShare     = 4
	pairQuotaShare = 32
)

type pair struct{ initiator, responder netip.Prefix }

// census is how many blocks there are, and of whom.
type census struct {
	taken      time.Time
	total      int
	initiators map[netip.Prefix]int
	pairs      map[pair]int
	max        int // of the table

	// idle are the keys of blocks that had dropped nothing, the oldest one last.
	idle []datapathFlowKey
}

func (c *census) add(initiator, responder netip.Prefix) {
	if c.initiators == nil {
		return
	}
	c.total++
	p := pair{initiator, responder}
	c.pairs[p]++
	if c.pairs[p] <= max(1, c.max/pairQuotaShare) {
		c.initiators[initiator]++
	}
}

func initiatorOf(k *datapathFlowKey, b *datapathBlock) netip.Prefix {
	if b.InitiatorIsLo != 0 {
		return flow.Household(netip.AddrFrom16(k.LoAddr))
	}
	return flow.Household(netip.AddrFrom16(k.HiAddr))
}

func responderOf(k *datapathFlowKey, b *datapathBlock) netip.Prefix {
	if b.InitiatorIsLo != 0 {
		return flow.Household(netip.AddrFrom16(k.HiAddr))
	}
	return flow.Household(netip.AddrFrom16(k.LoAddr))
}

// count takes a census, unless one is young enough.
func (t *Tables) count() error {
	c := &t.census
	if c.initiators != nil && time.Since(c.taken) < censusAge {
		return nil
	}
	*c = census{taken: time.Now(), initiators: map[netip.Prefix]int{}, pairs: map[pair]int{}, max: int(t.blocked.MaxEntries())}
	type idle struct {
		key   datapathFlowKey
		since uint64
	}
	var all []idle
	now := monotonic()
	err := walk(t.blocked, func(k *datapathFlowKey, b *datapathBlock) {
		c.add(initiatorOf(k, b), responderOf(k, b))
		if b.Packets == 0 && now-b.SinceNs > uint64(idleBlock) {
			all = append(all, idle{*k, b.SinceNs})
		}
	})
	if err != nil {
		c.initiators = nil
		return err
	}
	slices.SortFunc(all, func(a, b idle) int {
		if a.since > b.since {
			return -1
		}
		return 1
	})
	for _, i := range all {
		c.idle = append(c.idle, i.key)
	}
	return nil
}

// checkQuota refuses a flow whose initiator has too many blocks of a table that is
// nearly full. The interface's own addresses stand for many (masquerade).
func (t *Tables) checkQuota(m *flow.Meta) error {
	c := &t.census
	full := int(t.blocked.MaxEntries())
	if c.initiators != nil && c.total*4 < full*3 {
		return nil // there are no more than that
	}
	if err := t.count(); err != nil {
		return err
	}
	initiator, responder := flow.Household(m.Initiator().Addr()), flow.Household(m.Responder().Addr())
	if c.total*4 < full*3 || c.initiators[initiator] < max(1, full/quotaShare) &&
		c.pairs[pair{initiator, responder}] < max(1, full/pairQuotaShare) {
		return nil
	}
	if t.own != nil {
		addrs, err := t.own()
		if err != nil {
			return fmt.Errorf("list the addresses of %s: %w", t.Interface(), err)
		}
		if slices.Contains(addrs, m.Initiator().Addr()) {
			return nil
		}
	}
	return ErrInitiatorQuota
}

// makeRoom removes the oldest block that has dropped nothing, and reports whether there
// was one.
func (t *Tables) makeRoom() bool {
	if len(t.census.idle) == 0 {
		if err := t.count(); err != nil {
			return false
		}
	}
	for n := len(t.census.idle); n > 0; n-- {
		k := t.census.idle[n-1]
		t.census.idle = t.census.idle[:n-1]
		var b datapathBlock
		if err := t.blocked.Lookup(&k, &b); err != nil || b.Packets > 0 || monotonic()-b.SinceNs <= uint64(idleBlock) {
			continue
		}
		if b, err := t.unblock(&k); err == nil {
			block := fromKernelBlock(&k, &b)
			block.Ended = EndRoom
			t.evicted = append(t.evicted, block)
			return true
		}
	}
	return false
}
