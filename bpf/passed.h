/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows that were decided, and pass: what user space notes of several at a time.
 *
 * Contract: run by the loader (BPF_PROG_RUN, never attached). What else the kernel knows of a
 * flow, and notes meanwhile, stays. A flow that it has forgotten is left alone, and so is one
 * whose block somebody has lifted.
 */
#pragma once

#include "maps.h"

/* How many there are at most. The loop is unrolled: before Linux 6.18, a program of this type
 * reads its context at constant offsets alone. 44 bytes each. */
#define PASSED_MOST 32

struct passed {
	__u32 flows;
	struct flow_key keys[PASSED_MOST];
};

static __always_inline void note_passed(const struct flow_key *from, __u64 now)
{
	struct flow_key key = *from; /* before Linux 5.18, helpers take nothing from the context */
	struct flow *flow = bpf_map_lookup_elem(&flows, &key);

	if (!flow || flow->verdict == VERDICT_EXEMPT)
		return;
	flow->last_ns = now;
	flow->verdict = VERDICT_PASS;
}
