/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * UDP: a flow begins when both its sides have spoken.
 *
 * A datagram proves nothing about its sender, and whoever can send from one side of the
 * interface must not fill what real flows need. So the capture of a flow waits in a table
 * of its own, where strangers push out strangers, until a datagram of the other side comes
 * from the other side: then it gets a slot. It waits for 30 seconds at most; what comes
 * later is not the beginning, and the flow is resumed.
 *
 * Contract: nothing that one side alone has sent reaches `samples`, `flows` or `blocked`.
 * loader/assembly has the same rules. As in handshake.h, an entry is read and written by
 * the CPU alone that owns its word.
 */
#pragma once

#include "flow.h"
#include "tcp.h"

/* What waits longer is discarded. */
#define WAITING_NS 30000000000ULL

/* One side's flows may take an eighth of the table per initiator when three quarters of it
 * are in use. */
#define WAITING_SHARE 8

/* Tags of a key differ in their lowest bits by who has spoken, and from which side, so that
 * all fall into the same buckets and none hides another. */
static __always_inline __u32 waiting_tag(const struct packet *pkt, bool from_lo, __u32 side)
{
	__u32 tag = (pkt->hash >> 32) & 0xfffc;

	if (!tag)
		tag = 4;
	return tag | from_lo << 1 | side;
}

#define WAITING_BUCKETS (WAITING_FLOWS / HANDSHAKE_WAYS)

/* Sets at->id and at->word to the tag's entry, or to the one that gives way to it. A key has
 * two buckets, and takes the place in which less is lost: so what is pushed out is nearly
 * the oldest of all, also by a flood that comes in bursts. Returns whether the tag was
 * found. */
static __always_inline bool find_way(__u64 hash, struct place *at)
{
	__u32 first = hash % WAITING_BUCKETS, second = hash / WAITING_BUCKETS % WAITING_BUCKETS;
	struct handshake_bucket *one, *two;
	__u32 way, other;

	at->word = NULL;
	one = bpf_map_lookup_elem(&waiting_tags, &first);
	two = bpf_map_lookup_elem(&waiting_tags, &second);
	if (!one || !two)
		return false;
	way = choose_way(one, at->tag, at->stamp);
	other = choose_way(two, at->tag, at->stamp);
	if (!(way & HANDSHAKE_WAYS) &&
	    ((other & HANDSHAKE_WAYS) ||
	     way_age(two->word[other % HANDSHAKE_WAYS], at->stamp) >
		     way_age(one->word[way % HANDSHAKE_WAYS], at->stamp))) {
		first = second;
		one = two;
		way = other;
	}
	at->id = first * HANDSHAKE_WAYS + way % HANDSHAKE_WAYS;
	at->word = &one->word[way % HANDSHAKE_WAYS];
	return way & HANDSHAKE_WAYS;
}

/* As find_candidate(): returns the capture that waits for an answer to who has spoken,
 * owned, or NULL. */
static __always_inline struct waiting *find_waiting(const struct packet *pkt, bool from_lo,
						    __u32 side, bool make, struct place *at)
{
	struct waiting *waiting;
	int own;

	at->busy = false;
	at->fresh = false;
	at->tag = waiting_tag(pkt, from_lo, side);
	at->stamp = pkt->now >> STAMP_SHIFT;
	if ((!find_way(pkt->hash, at) && !make) || !at->word)
		return NULL;
	waiting = bpf_map_lookup_elem(&waiting_flows, &at->id);
	if (!waiting)
		return NULL;
	own = own_handshake(at->word, make ? 0 : at->tag);
	at->busy = own == OWN_BUSY;
	if (own != OWN_ACQUIRED)
		return NULL;
	at->fresh = WAY_TAG(*at->word) != at->tag || !same_key(&waiting->key, &pkt->key);
	if (at->fresh && !make) {
		leave_handshake(at);
		return NULL;
	}
	return waiting;
}

static __always_inline void count_one_waiting(__u32 quota, __u32 delta)
{
	struct waiting_count *count = bpf_map_lookup_elem(&waiting_quota, &quota);

	if (count)
		__sync_fetch_and_add(&count->held, delta);
}

/* Counts a capture that waits (1), or no more (-1). Not static, as own_handshake(). */
__noinline int count_waiting(__u32 quota, __u32 delta)
{
	count_one_waiting(WAITING_IN_USE, delta);
	count_one_waiting(quota, delta);
	return 0;
}

/* The capture waits no more. What is left of the entry says that the flow was seen. */
static __always_inline void end_wait(struct waiting *waiting)
{
	if (!waiting->waits)
		return;
	waiting->waits = 0;
	count_waiting(waiting->quota, -1);
}

static __always_inline bool still_waits(const struct waiting *waiting, __u64 now)
{
	/* Another CPU's clock may be a little ahead. */
	return waiting->waits && (__s64)(now - waiting->start_ns) < (__s64)WAITING_NS;
}

static __always_inline bool seen_lately(const struct waiting *waiting, __u64 now)
{
	return (__s64)(now - waiting->last_ns) <= (__s64)cfg_udp_idle_ns;
}

/* Whether a datagram left a moment after it came in. What says so without this, as on a plain
 * route or a bridge, is its side, see side_of(). */
static __always_inline bool is_sent_back(struct packet *pkt)
{
	pkt->seq = pkt->payload_len;
	pkt->ack = pkt->udp_check;
	return is_reflected(pkt);
}

/* Returns what counts the sender's waiting captures, or WAITING_IN_USE if it has too many.
 * Its side belongs to it: who forges an address on the other side uses up nothing of
 * its owner's. */
static __always_inline __u32 waiting_quota_of(const struct packet *pkt)
{
	const __u32 *from = (const __u32 *)(pkt->src_is_lo ? pkt->key.lo_addr : pkt->key.hi_addr);
	__u32 words[5] = {from[0], from[1], from[2], from[3], pkt->side};
	struct waiting_count *in_use, *own;
	__u32 quota = WAITING_IN_USE;

	/* A host of IPv6 has a /64 for itself. */
	if (words[0] || words[1])
		words[2] = words[3] = 0;
	in_use = bpf_map_lookup_elem(&waiting_quota, &quota);
	quota = hash_words(words, 5) % WAITING_QUOTAS;
	own = bpf_map_lookup_elem(&waiting_quota, &quota);
	if (in_use && own && in_use->held >= WAITING_FLOWS / 4 * 3 &&
	    own->held >= WAITING_FLOWS / WAITING_SHARE)
		return WAITING_IN_USE;
	return quota;
}

/* Adds a packet to the capture pkt->candidate, owned, if there is room. A first frame is
 * copied at once; another in chunks: for the verifier, which tracks a place and a length
 * apart, a whole one could reach as far again behind the end. */
static __always_inline int add_waiting(const struct source *src, struct packet *pkt)
{
	struct packet_record *rec;
	struct waiting *waiting;
	__u32 id, off, n, len, skip;

	if (!pkt)
		return 0;
	id = pkt->candidate;
	waiting = bpf_map_lookup_elem(&waiting_flows, &id);
	if (!waiting)
		return 0;
	off = waiting->bytes;
	n = waiting->packet_count;
	barrier_var(off);
	barrier_var(n);
	if (off >= CAPTURE_BYTES || n >= CAPTURE_PACKETS)
		return 0;
	len = MIN(pkt->frame_len, CAPTURE_BYTES - off);
	rec = &waiting->packets[n];
	rec->wire_len = pkt->frame_len;
	rec->time_us = microseconds(waiting->start_ns, pkt->now);
	rec->place = record_place(src, pkt, off, true);
	rec->segment = segment_size(src);
	waiting->bytes = off + len;
	waiting->packet_count = n + 1;
	if (!off)
		return copy_frame(src, pkt, waiting->data, len, CAPTURE_BYTES);
	skip = pkt->skip;
	if (pkt->prefix_len) {
		copy_prefix(waiting->data + off, pkt);
		if (len <= pkt->prefix_len)
			return 0;
		off += pkt->prefix_len;
		len -= pkt->prefix_len;
	}
	for (int i = 0; i < CAPTURE_BYTES / WAITING_CHUNK; i++) {
		barrier_var(off);
		if (off >= CAPTURE_BYTES)
			break;
		if (len <= WAITING_CHUNK) {
			len--; /* see copy_frame() */
			barrier_var(len);
			if (len >= WAITING_CHUNK)
				break;
			return load(src, skip, waiting->data + off, len + 1);
		}
		if (load(src, skip, waiting->data + off, WAITING_CHUNK))
			return -EFAULT;
		off += WAITING_CHUNK;
		skip += WAITING_CHUNK;
		len -= WAITING_CHUNK;
	}
	return 0;
}

FOR_EACH_HOOK(add_waiting)

/* Lets go of the entry pkt->candidate, which was used just now. */
static __always_inline void release_waiting(const struct packet *pkt, bool kept)
{
	__u32 number = pkt->candidate / HANDSHAKE_WAYS;
	struct handshake_bucket *bucket = bpf_map_lookup_elem(&waiting_tags, &number);
	__u32 word = 0, *way;

	if (!bucket)
		return;
	way = &bucket->word[pkt->candidate % HANDSHAKE_WAYS];
	if (kept)
		word = waiting_tag(pkt, pkt->src_is_lo, pkt->side) << 16 |
		       ((pkt->now >> STAMP_SHIFT) & STAMP_MASK);
	__sync_lock_test_and_set(way, word);
}

enum wait {
	WAIT_NOT = 0,  /* the datagram was counted, if need be */
	WAIT_GOES_ON,  /* go on with pkt->candidate, owned: add_waiting() */
	WAIT_ANSWERED, /* ... open_answered() */
	WAIT_REFUSED,  /* ... refuse_answered() */
};

/* A datagram of a flow that is not collecting and not decided. Returns an enum wait. Not
 * static, as own_handshake(). */
__noinline int wait_for_answer(struct counts *cnt, struct packet *pkt)
{
	struct waiting *waiting;
	struct place at;
	__u32 quota;

	if (!cnt || !pkt)
		return WAIT_NOT;
	waiting = find_waiting(pkt, !pkt->src_is_lo, !pkt->side, false, &at);
	if (waiting) {
		if (still_waits(waiting, pkt->now)) {
			pkt->candidate = at.id;
			if (is_exempt(pkt)) {
				cnt->exempt_flows++;
				return WAIT_REFUSED;
			}
			if (within_quota(pkt, waiting->from_lo))
				return WAIT_ANSWERED;
			cnt->initiator_slots++;
			return WAIT_REFUSED;
		}
		/* Too late: it is not the flow's beginning that would be handed over. */
		if (seen_lately(waiting, pkt->now))
			pkt->resumed = 1;
		cnt->udp_unanswered += waiting->waits;
		end_wait(waiting);
		leave_handshake(&at);
	} else if (at.busy) {
		cnt->handshake_busy++;
		return WAIT_NOT;
	}
	waiting = find_waiting(pkt, pkt->src_is_lo, pkt->side, has_payload(pkt), &at);
	if (!waiting) {
		if (at.busy)
			cnt->handshake_busy++;
		else
			cnt->header_only += !has_payload(pkt);
		return WAIT_NOT;
	}
	if (at.fresh || !still_waits(waiting, pkt->now)) {
		if (!at.fresh && seen_lately(waiting, pkt->now))
			pkt->resumed = 1;
		quota = waiting_quota_of(pkt);
		if (!has_payload(pkt) || quota == WAITING_IN_USE) {
			cnt->header_only += !has_payload(pkt);
			cnt->initiator_waiting += has_payload(pkt);
			leave_handshake(&at);
			return WAIT_NOT;
		}
		if (*at.word >> 16) { /* otherwise it is free, and no entry was there */
			cnt->udp_unanswered += waiting->waits;
			end_wait(waiting);
		}
		count_waiting(quota, 1);
		cnt->udp_waiting++;
		waiting->key = pkt->key;
		waiting->from_lo = pkt->src_is_lo;
		waiting->side = pkt->side;
		waiting->resumed = pkt->resumed;
		waiting->waits = 1;
		waiting->start_ns = pkt->now;
		waiting->quota = quota;
		/* Of an exempt flow no byte is kept, as if there were no room. */
		waiting->bytes = is_exempt(pkt) ? CAPTURE_BYTES : 0;
		waiting->packet_count = 0;
	}
	waiting->last_ns = pkt->now;
	pkt->candidate = at.id;
	return WAIT_GOES_ON;
}

/* Remembers the flow of pkt->candidate, owned, as decided, without a capture. Lets go of the
 * entry. Not static, as own_handshake(). */
__noinline int refuse_answered(const struct packet *pkt)
{
	struct waiting *waiting;
	struct flow_key key;
	__u32 id;

	if (!pkt)
		return 0;
	key = pkt->key;
	id = pkt->candidate;
	remember(&key, VERDICT_PASS, 0, 0, 0);
	waiting = bpf_map_lookup_elem(&waiting_flows, &id);
	if (waiting)
		end_wait(waiting);
	release_waiting(pkt, false);
	return 0;
}

/* What is copied of a capture: its packets, and its data, which follow them in both tables. */
#define COPIED_BYTES (sizeof(((struct waiting *)0)->packets) + CAPTURE_BYTES)
#define COPIED_IN(type)                                                                            \
	(__builtin_offsetof(type, packets) % sizeof(__u64) == 0 &&                                 \
	 __builtin_offsetof(type, packets) + COPIED_BYTES ==                                       \
		 __builtin_offsetof(type, data) + CAPTURE_BYTES)

/* As much as a round copies. */
struct chunk {
	__u64 word[16];
};
_Static_assert(COPIED_IN(struct waiting) && COPIED_IN(struct sample) &&
		       COPIED_BYTES % sizeof(struct chunk) == 0,
	       "rounds copy both");

struct copying {
	struct chunk *to;
	const struct chunk *from;
};

/* For bpf_loop(): a copy of 1408 bytes that clang makes is 704 instructions. */
static long copy_chunk(__u32 i, struct copying *copying)
{
	if (i >= COPIED_BYTES / sizeof(struct chunk))
		return 1;
	copying->to[i] = copying->from[i];
	return 0;
}

enum opening {
	OPENING_LATE = 0, /* another CPU has opened it */
	OPENING_DONE,
	OPENING_REFUSED, /* go on with pkt->candidate, still owned: refuse_answered() */
};

/* Gives the capture pkt->candidate, owned, a slot: its flow was answered by the packet, which
 * is then to join it. Lets go of the entry. Returns an enum opening. Not static, as
 * own_handshake(). */
__noinline int open_answered(struct counts *cnt, struct packet *pkt)
{
	struct waiting *waiting;
	struct copying copying = {};
	struct slot_ref ref = {};
	struct flow_key key;
	struct slot *slot;
	enum opening opening = OPENING_DONE;
	__u32 id;
	int err; /* see open_capture() */

	if (!cnt || !pkt)
		return OPENING_LATE;
	key = pkt->key;
	id = pkt->candidate;
	waiting = bpf_map_lookup_elem(&waiting_flows, &id);
	if (!waiting)
		return OPENING_LATE;
	if (!take_slot(IPPROTO_UDP, &ref.slot)) {
		cnt->slots_full++;
		return OPENING_REFUSED;
	}
	slot = get_slot(ref.slot);
	if (!slot)
		goto out;
	ref.generation = hold_slot(slot, pkt, pkt->quota, pkt->pair_quota);
	slot->hole_lo = slot->hole_lo_end = slot->hole_hi = slot->hole_hi_end = 0;
	slot->sample.start_ns = waiting->start_ns;
	slot->sample.initiator_is_lo = waiting->from_lo;
	slot->sample.side = waiting->side;
	slot->sample.flags = waiting->resumed ? SAMPLE_RESUMED : 0;
	slot->sample.known = 0;
	slot->sample.isn_lo = slot->sample.isn_hi = 0;
	slot->sample.next_lo = slot->sample.next_hi = 0;
	copying.to = (void *)slot->sample.packets;
	copying.from = (void *)waiting->packets;
	bpf_loop(COPIED_BYTES / sizeof(struct chunk), copy_chunk, &copying, 0);
	slot->word = waiting->packet_count * WORD_PACKET + waiting->bytes;
	err = bpf_map_update_elem(&collecting, &key, &ref, BPF_NOEXIST);
	if (!err) {
		if (discard_second(&key, slot, ref.slot))
			opening = OPENING_LATE;
		goto out;
	}
	give_back(slot, ref.slot);
	if (err != -EEXIST) {
		cnt->collecting_full++;
		return OPENING_REFUSED;
	}
	opening = OPENING_LATE;
out:
	end_wait(waiting);
	release_waiting(pkt, false);
	return opening;
}

/* Notes a packet of a known UDP flow, and tells whether it is captured again, as there was
 * a long silence before, until that is handed over. The clock is read once a tick at
 * most. */
static __always_inline bool is_resumed(struct flow *flow)
{
	__u32 tick = bpf_jiffies64();
	__u64 now, last;

	if (flow->verdict == VERDICT_RESUMED)
		return true;
	if (tick == flow->last_tick)
		return false;
	now = bpf_ktime_get_coarse_ns();
	last = flow->last_ns;
	flow->last_ns = now;
	flow->last_tick = tick;
	/* User space writes an exact time, which the coarse clock may lag. */
	if (now <= last || now - last <= cfg_udp_idle_ns)
		return false;
	flow->verdict = VERDICT_RESUMED;
	return true;
}

/* A datagram of a flow whose block's time is over: the flow is captured again, unless
 * that has been done since. Not static, so that its stack is its own. */
__noinline int resume_after(const struct packet *pkt, __u64 expires_ns)
{
	struct flow_key key;
	struct flow *flow;

	if (!pkt)
		return 0;
	key = pkt->key;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow)
		remember(&key, VERDICT_RESUMED, 0, 0, 0);
	else if (flow->last_ns < expires_ns)
		flow->verdict = VERDICT_RESUMED;
	/* It may pass no more without a look at what was written. */
	clear_settled(hash_of(&key), true);
	return 0;
}

/* A sweep looks through a part of the buckets, and in two seconds through all. */
#define EXPIRY_PARTS 16
#define EXPIRY_SHIFT 27

struct expiry {
	__u64 now;
};

static long expire_bucket(void *map, __u32 *number, struct handshake_bucket *bucket,
			  struct expiry *state)
{
	struct counts *cnt = get_counters();
	struct waiting *waiting;
	__u32 id;

	if (!cnt || *number % EXPIRY_PARTS != (state->now >> EXPIRY_SHIFT) % EXPIRY_PARTS)
		return 0;
#pragma unroll /* Linux 6.1 does not take the loop that clang makes of it */
	for (int i = 0; i < HANDSHAKE_WAYS; i++) {
		id = *number * HANDSHAKE_WAYS + i;
		waiting = bpf_map_lookup_elem(&waiting_flows, &id);
		if (!bucket->word[i] || !waiting || !waiting->waits ||
		    still_waits(waiting, state->now) ||
		    own_handshake(&bucket->word[i], 0) != OWN_ACQUIRED)
			continue;
		if (!still_waits(waiting, state->now)) {
			cnt->udp_unanswered += waiting->waits;
			end_wait(waiting);
		}
		__sync_fetch_and_and(&bucket->word[i], ~WAY_BUSY);
	}
	return 0;
}
