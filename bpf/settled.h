/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows whose packets just pass: one word of memory for each instead of a look at `flows`.
 *
 *   bit  63     set, so that no word in use is 0
 *   bit  62     UDP
 *   bits 46-61  UDP: when the flow was last looked up in `flows`, in units of 1024 jiffies
 *   bits 0-45   the hash of the key, less the bits that are its index
 *
 * Contract: a word says nothing that `flows` does not say, or once said; whoever changes
 * what is said there clears the word behind that. A word of UDP is good for a few seconds
 * (SETTLED_AGE), so that silence is noticed.
 */
#pragma once

#include "packet.h"
#include "maps.h"
#include "hash.h"

#define SETTLED_SET (1ULL << 63)
#define SETTLED_UDP (1ULL << 62)
#define SETTLED_TIME_SHIFT 46
#define SETTLED_TIME (0xffffULL << SETTLED_TIME_SHIFT)
/* The longest that a word of UDP is good for: 5 s where a jiffy is 1 ms, 52 s where it is 10 ms. */
#define SETTLED_AGE 4
#define SETTLED_UDP_IDLE 120000000000ULL /* a flow that is resumed earlier has no word */

/* The word of a key's hash. */
static __always_inline __u64 *settled_word(__u64 hash)
{
	__u32 index = hash % SETTLED_WORDS;
	struct settled_flow *flow = bpf_map_lookup_elem(&settled, &index);

	return flow ? &flow->hash : NULL;
}

/* What that word is for this key, but for the time. */
static __always_inline __u64 settled_tag(__u64 hash, bool udp)
{
	return hash / SETTLED_WORDS | SETTLED_SET | (udp ? SETTLED_UDP : 0);
}

static __always_inline __u64 settled_time(void)
{
	return (bpf_jiffies64() >> 10) & 0xffff;
}

/* Whether a word of UDP is not too old. */
static __always_inline bool is_fresh(__u64 word)
{
	__u64 then = (word & SETTLED_TIME) >> SETTLED_TIME_SHIFT;

	return ((settled_time() - then) & 0xffff) <= SETTLED_AGE;
}

/* Whether packets of the flow just pass; fills in its hash. The packet is on the caller's
 * stack, which has no room for the index; its buffer has. */
static __always_inline bool is_settled(struct packet *pkt, bool udp)
{
	struct settled_flow *flow;
	__u64 word;

	pkt->hash = hash_key(&pkt->key);
	pkt->slot = pkt->hash % SETTLED_WORDS;
	flow = bpf_map_lookup_elem(&settled, &pkt->slot);
	if (!flow)
		return false;
	word = flow->hash;
	if (udp && !is_fresh(word))
		return false;
	return (word & ~SETTLED_TIME) == settled_tag(pkt->hash, udp);
}

/* Clears the word of a key, whose hash is given. */
static __always_inline void clear_settled(__u64 hash, bool udp)
{
	__u64 *word = settled_word(hash), is;

	if (!word)
		return;
	is = *word;
	if ((is & ~SETTLED_TIME) == settled_tag(hash, udp))
		__sync_val_compare_and_swap(word, is, 0);
}

/* A packet of a decided flow that nothing marks has passed: the next ones need no look at
 * `flows`. Where another flow has the word, one packet of sixteen takes it, so that two
 * running flows do not write it all the time. Not static, so that its stack is its own. */
__noinline int settle(const struct packet *pkt)
{
	__u64 *word, tag, is, hash;
	struct flow_key key;
	struct flow *flow;
	bool udp;

	if (!pkt)
		return 0;
	key = pkt->key;
	udp = key.proto == IPPROTO_UDP;
	hash = hash_of(&key);
	word = settled_word(hash);
	if (!word)
		return 0;
	tag = settled_tag(hash, udp);
	is = *word;
	if ((is & ~SETTLED_TIME) != tag && is && (bpf_get_prandom_u32() & 15))
		return 0;
	if (udp)
		tag |= settled_time() << SETTLED_TIME_SHIFT;
	if (is == tag)
		return 0;
	__sync_lock_test_and_set(word, tag);
	/* A mark, or the end of what is known, is written first and clears the word then:
	 * so one of the two sees what the other has written. */
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow || flow->mark || flow->again || flow->verdict == VERDICT_RESUMED ||
	    flow->verdict == VERDICT_WAITS)
		__sync_val_compare_and_swap(word, tag, 0);
	return 0;
}
