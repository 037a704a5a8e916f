/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Treated pairs, an initiator and a server each: looked at when a connection begins.
 *
 * A SYN of a pair is dropped, and its sender told with a RST if the pair is to be reset: nothing
 * of the connection passes, and nothing of it is captured. Where the pair is to be limited, the
 * SYN passes, and instead of a capture the connection gets a block that limits it.
 *
 * Contract: nothing but a SYN that the initiator sends, and the connection that it begins, has
 * to do with a pair. What is in the middle of a connection has not, nor a connection whose SYN
 * came before its pair was treated. Who forges a SYN has that one dropped, and no more. UDP has
 * no pairs: datagrams prove nothing, so they are evidence for nothing.
 */
#pragma once

#include "maps.h"
#include "flow.h"

struct pair_key {
	__u8 initiator[16]; /* IPv4: v4-mapped; IPv6: a network of 64 bits, the others are 0 */
	__u8 server[16];
	__u16 port;	  /* the server's */
	__u16 vlan;	  /* as of struct flow_key */
	__u16 inner_vlan; /* as well */
	__u8 proto;	  /* IPPROTO_TCP */
	__u8 pad;
} __attribute__((aligned(4)));

/* SYNs with these numbers came lately: one that comes again begins no other connection. */
#define PAIR_RECENT 8

struct pair {
	__u64 expires_ns; /* CLOCK_MONOTONIC; SYNs pass from then on */
	__u64 since_ns;
	__u64 flows;   /* that began meanwhile, and were treated */
	__u64 packets; /* SYNs that were dropped */
	__u64 bytes;   /* ... L2 headers included */
	__u64 last_ns; /* CLOCK_MONOTONIC of the last of its flows; 0: none so far */
	__u64 rate;    /* with BLOCK_LIMIT: bytes per second that pass of each flow */
	__u64 busy_ns; /* with BLOCK_RESET: as of struct reset_bucket */
	__u32 recent[PAIR_RECENT];
	__u8 action; /* enum block_action */
	__u8 pad[7];
	char class[NAME_LEN]; /* truncated, NUL-terminated */
	char rule[NAME_LEN];
};

/* key: pair. value: until when, what is done, what came of it. Written and deleted by user space
 * alone, which counts the entries in block_filter; the kernel adds to the counters and obeys
 * expires_ns. 16384 * (48 + 40 + 136) = 3.5 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct pair_key);
	__type(value, struct pair);
} pairs SEC(".maps");

static __always_inline bool any_pairs(void)
{
	return block_filter[PAIRS_IN_USE];
}

/* The bucket of the pair that an initiator and a server would be: of addresses mostly, so that
 * few SYNs are looked up in `pairs` that are of none. Who chooses addresses so that they fall
 * together with a pair has them looked up, and no more. */
static __always_inline __u16 pair_bucket(const struct pair_key *pair)
{
	const __u32 *initiator = (const __u32 *)pair->initiator;
	const __u32 *server = (const __u32 *)pair->server;
	__u32 word = (initiator[0] ^ initiator[1] ^ initiator[3]) + server[3] * 31 + pair->port;

	return word * 0x9e3779b1U >> 16;
}

/* The pair of a connection, if it has one. */
static __always_inline struct pair *find_pair(const struct flow_key *key, bool initiator_is_lo)
{
	const __u32 *lo = (const __u32 *)key->lo_addr, *hi = (const __u32 *)key->hi_addr;
	const __u32 *from = initiator_is_lo ? lo : hi, *to = initiator_is_lo ? hi : lo;
	struct pair_key pair = {
		.port = initiator_is_lo ? key->hi_port : key->lo_port,
		.vlan = key->vlan,
		.inner_vlan = key->inner_vlan,
		.proto = key->proto,
	};
	__u32 *initiator = (__u32 *)pair.initiator, *server = (__u32 *)pair.server;

#pragma unroll
	for (int i = 0; i < 4; i++) {
		initiator[i] = from[i];
		server[i] = to[i];
	}
	/* A host of IPv6 has a /64 for itself. */
	if (initiator[0] || initiator[1] || initiator[2] != bpf_htonl(0xffff))
		initiator[2] = initiator[3] = 0;
	if (!block_filter[BLOCK_BUCKETS + pair_bucket(&pair)])
		return NULL;
	return bpf_map_lookup_elem(&pairs, &pair);
}

/* Whether a pair is to be treated now. */
static __always_inline bool is_treated(const struct pair *pair, const struct packet *pkt)
{
	return pkt->now < pair->expires_ns && is_enforced();
}

/* Counts a flow of a pair, once, by its initiator's initial sequence number. */
static __always_inline void count_pair_flow(struct counts *cnt, struct pair *pair,
					    const struct packet *pkt, __u32 isn)
{
	__u32 number = isn ? isn : 1; /* 0: none so far */
	__u64 flows;

	pair->last_ns = pkt->now;
#pragma unroll
	for (int i = 0; i < PAIR_RECENT; i++)
		if (pair->recent[i] == number)
			return;
	flows = __sync_fetch_and_add(&pair->flows, 1);
	pair->recent[flows % PAIR_RECENT] = number;
	cnt->pair_connections++;
}

/* What becomes of a SYN: drops that of a treated pair. Returns an enum action. Not static, so
 * that its stack is its own. */
__noinline int pair_syn(struct counts *cnt, const struct packet *pkt)
{
	struct pair *pair;

	if (!cnt || !pkt)
		return ACTION_PASS;
	pair = find_pair(&pkt->key, pkt->src_is_lo);
	if (!pair || pair->action == BLOCK_LIMIT || !is_treated(pair, pkt))
		return ACTION_PASS;
	count_pair_flow(cnt, pair, pkt, pkt->seq);
	__sync_fetch_and_add(&pair->packets, 1);
	__sync_fetch_and_add(&pair->bytes, pkt->frame_len);
	cnt->dropped_packets++;
	cnt->dropped_bytes += pkt->frame_len;
	if (pair->action == BLOCK_RESET && !(pkt->tcp_flags & (PACKET_FIRST | PACKET_UNSURE)))
		return ACTION_RESET;
	return ACTION_DROP;
}

/* Has the connection of pkt->candidate, owned, limited if its pair is to be. Returns whether that
 * was decided: then it is not to be captured. Not static, as pair_syn(). */
__noinline int limit_connection(struct counts *cnt, const struct packet *pkt)
{
	struct candidate *candidate;
	struct handshake *hs;
	struct flow_key key;
	struct block *block;
	struct pair *pair;
	__u32 id;
	int err; /* see open_capture() */

	if (!cnt || !pkt)
		return 0;
	key = pkt->key;
	id = pkt->candidate;
	candidate = bpf_map_lookup_elem(&syns, &id);
	hs = bpf_map_lookup_elem(&handshakes, &id);
	/* Who forges both its SYN and what follows is no initiator, see CANDIDATE_FORGED. */
	if (!candidate || !hs || (candidate->flags & CANDIDATE_FORGED))
		return 0;
	pair = find_pair(&key, candidate->initiator_is_lo);
	if (!pair || pair->action != BLOCK_LIMIT || candidate->start_ns < pair->since_ns ||
	    !is_treated(pair, pkt))
		return 0;
	/* With half of the table full, user space blocks it, which knows whose blocks those are. */
	if (block_filter[BLOCKS_IN_USE] >= cfg_blocked / 2)
		return 0;
	/* What the handshake's packets were in is not needed any more, and there is no room for a
	 * block on the stack. */
	_Static_assert(sizeof(*block) <= HANDSHAKE_BYTES, "a block fits there");
	block = (struct block *)hs->data;
	__builtin_memset(block, 0, sizeof(*block));
	block->action = BLOCK_LIMIT;
	block->known = KNOWN_ALL;
	block->initiator_is_lo = candidate->initiator_is_lo;
	block->since_ns = pkt->now;
	block->expires_ns = pair->expires_ns;
	block->ttl_ns = pair->expires_ns - pkt->now;
	block->isn_lo = candidate->isn_lo;
	block->isn_hi = candidate->isn_hi;
	block->next_lo = candidate->next_lo;
	block->next_hi = candidate->next_hi;
	block->rate = pair->rate;
	__builtin_memcpy(block->class, pair->class, sizeof(block->class));
	__builtin_memcpy(block->rule, pair->rule, sizeof(block->rule));
	/* The filter first, see there. */
	count_block(&key, 1);
	err = bpf_map_update_elem(&blocked, &key, block, BPF_NOEXIST);
	if (err)
		count_block(&key, -1);
	if (err == -EEXIST) /* that of a connection before */
		err = bpf_map_update_elem(&blocked, &key, block, BPF_EXIST);
	if (err)
		cnt->collecting_full++;
	else
		count_pair_flow(cnt, pair, pkt,
				candidate->initiator_is_lo ? candidate->isn_lo : candidate->isn_hi);
	return 1;
}
