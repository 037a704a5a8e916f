/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The table of handshakes: finding one, owning it, keeping its packets.
 *
 * Contract: a handshake is read and written by the CPU that owns it alone. find_candidate()
 * returns it owned, and each way out of it ends with one of leave_handshake(),
 * free_handshake() and release_handshake(). A CPU may own one of each side; it waits for
 * the second no longer than HANDSHAKE_SPINS rounds, so that two can't wait for each other.
 */
#pragma once

#include "packet.h"
#include "maps.h"
#include "hash.h"
#include "capture.h"

/* Stamps count time in units of 2^22 ns, about 4 ms, and wrap after 137 s; what is
 * older than that looks young again, and no more than that comes of it. A connection that
 * is proven is stamped this much later, so that all that is not makes room first (all but
 * for a SYN that falls into its bucket with its tag, one of 32768). */
#define STAMP_SHIFT 22
#define STAMP_MASK 0x7fff
#define STAMP_PROVEN 0x2000

#define WAY_BUSY 0x8000
#define WAY_TAG(word) ((word) >> 16)

/* How often a CPU looks whether the other has let go of a handshake: long enough for
 * one to copy its packet, and no longer. */
#define HANDSHAKE_SPINS 32

/* A handshake's place in the table. */
struct place {
	__u32 *word; /* of its bucket */
	__u32 id;    /* in syns and handshakes */
	__u32 tag;
	__u32 stamp; /* of the packet */
	bool fresh;  /* what is there is of another key, or of none */
	bool busy;   /* another CPU does not let go of it */
};

enum ownership {
	OWN_NONE, /* it is no more of that tag */
	OWN_ACQUIRED,
	OWN_BUSY, /* another CPU does not let go of it */
};

/* Takes the handshake behind a word once. Returns an enum ownership. */
static __always_inline int try_to_own(__u32 *word, __u32 tag)
{
	__u32 old = *(volatile __u32 *)word;

	if (tag && WAY_TAG(old) != tag)
		return OWN_NONE;
	if (!(old & WAY_BUSY) && __sync_val_compare_and_swap(word, old, old | WAY_BUSY) == old)
		return OWN_ACQUIRED;
	return OWN_BUSY;
}

struct owning {
	__u32 *word;
	__u32 tag;
	int own;
};

static long spin(__u32 round, struct owning *owning)
{
	owning->own = try_to_own(owning->word, owning->tag);
	return owning->own != OWN_BUSY;
}

/* Takes the handshake behind a word whose tag is the given one, or any where tag is 0.
 * Returns an enum ownership. Not static, so that the verifier looks at it once and not with
 * all that may come behind. */
__noinline int own_handshake(__u32 *word, __u32 tag)
{
	struct owning owning = {.word = word, .tag = tag};

	if (!word)
		return OWN_NONE;
	owning.own = try_to_own(word, tag);
	if (owning.own == OWN_BUSY)
		bpf_loop(HANDSHAKE_SPINS - 1, spin, &owning, 0);
	return owning.own;
}

/* An exchange, which is a full barrier: the next owner sees all that was written. */
static __always_inline void set_way(struct place *at, __u32 word)
{
	__sync_lock_test_and_set(at->word, word);
}

/* As if it had not been owned. */
static __always_inline void leave_handshake(struct place *at)
{
	__sync_fetch_and_and(at->word, ~WAY_BUSY);
}

static __always_inline void free_handshake(struct place *at)
{
	set_way(at, 0);
}

static __always_inline __u32 stamp_of(const struct candidate *candidate, __u32 now)
{
	if (candidate->state == CANDIDATE_PROVEN && !(candidate->flags & CANDIDATE_CLOSED))
		now += STAMP_PROVEN;
	return now & STAMP_MASK;
}

static __always_inline void release_handshake(struct place *at, const struct candidate *candidate)
{
	set_way(at, at->tag << 16 | stamp_of(candidate, at->stamp));
}

#define KEEP_STAMP 0xffff /* no stamp */

/* Lets go of an owned handshake whose number is known: with another stamp, with the one that it
 * has, or as a free one where there is no tag. Not static, as own_handshake(). */
__noinline int let_go(__u32 id, bool keep_tag, __u32 stamp)
{
	__u32 number = id / HANDSHAKE_WAYS, word = 0;
	struct handshake_bucket *bucket = bpf_map_lookup_elem(&handshake_tags, &number);
	__u32 *way;

	if (!bucket)
		return 0;
	way = &bucket->word[id % HANDSHAKE_WAYS];
	if (keep_tag)
		word = stamp == KEEP_STAMP ? *way & ~WAY_BUSY : WAY_TAG(*way) << 16 | stamp;
	__sync_lock_test_and_set(way, word);
	return 0;
}

/* As free_handshake(), release_handshake() and leave_handshake(). */
static __always_inline void free_candidate(__u32 id)
{
	let_go(id, false, 0);
}

static __always_inline void release_candidate(__u32 id, const struct candidate *candidate,
					      __u64 now)
{
	let_go(id, true, stamp_of(candidate, now >> STAMP_SHIFT));
}

static __always_inline void leave_candidate(__u32 id)
{
	let_go(id, true, KEEP_STAMP);
}

/* For how long the entry of a word has not been wanted; a free one longer than any. Without
 * branches, see choose_way(). */
static __always_inline __u32 way_age(__u32 word, __u32 stamp)
{
	__u32 is_free = ((word - 1) & ~word) >> 31; /* a tag's top bit may be set, too */

	barrier_var(is_free);
	return ((stamp + STAMP_PROVEN - word) & STAMP_MASK) | is_free << 15;
}

/* Looks through a bucket. Returns the way of the tag, with bit 4 set, or, where there is
 * none, the one that has been wanted least for longest; a free one before all. Without
 * branches, since the verifier follows both sides of each: barrier_var() keeps clang from
 * making some, and from turning a product into a mask that is all ones or none, which
 * newer verifiers take for a branch, too. Not static, as own_handshake(). */
__noinline __u32 choose_way(const struct handshake_bucket *bucket, __u32 tag, __u32 stamp)
{
	__u32 found = 0, oldest = 0;

	if (!bucket)
		return 0;
#pragma unroll
	for (int i = 0; i < HANDSHAKE_WAYS; i++) {
		__u32 word = bucket->word[i], same, age, more;

		same = ((WAY_TAG(word) ^ tag) - 1) >> 31; /* wraps where they are the same */
		barrier_var(same);
		found |= same * (HANDSHAKE_WAYS | i);

		age = way_age(word, stamp) * HANDSHAKE_WAYS + i;
		more = (oldest - age) >> 31;
		barrier_var(more);
		oldest += more * (age - oldest);
	}
	return found ? found : oldest % HANDSHAKE_WAYS;
}

/* Tags of both sides differ in their lowest bit, so that both fall into one bucket. */
static __always_inline __u32 handshake_tag(const struct packet *pkt, __u32 side)
{
	__u32 tag = (pkt->hash >> 32) & 0xfffe;

	if (!tag)
		tag = 2;
	return tag | side;
}

/* Returns the handshakes of the packet's key whose initiator is on a side, owned, or NULL.
 * Where `make`, and there are none, it is the place for some, with at->fresh set. */
static __always_inline struct candidate *find_candidate(const struct packet *pkt, __u32 side,
							bool make, struct place *at)
{
	__u32 number = pkt->hash & cfg_bucket_mask, way;
	struct handshake_bucket *bucket;
	struct candidate *candidate;
	int own;

	at->busy = false;
	at->fresh = false;
	bucket = bpf_map_lookup_elem(&handshake_tags, &number);
	if (!bucket)
		return NULL;
	at->tag = handshake_tag(pkt, side);
	at->stamp = pkt->now >> STAMP_SHIFT;
	way = choose_way(bucket, at->tag, at->stamp);
	if (!make && !(way & HANDSHAKE_WAYS))
		return NULL;
	at->id = number * HANDSHAKE_WAYS + way % HANDSHAKE_WAYS;
	at->word = &bucket->word[way % HANDSHAKE_WAYS];
	candidate = bpf_map_lookup_elem(&syns, &at->id);
	if (!candidate)
		return NULL;
	own = own_handshake(at->word, make ? 0 : at->tag);
	at->busy = own == OWN_BUSY;
	if (own != OWN_ACQUIRED)
		return NULL;
	/* Tags are not keys, and it may have been given to another flow before it was
	 * owned. */
	at->fresh = WAY_TAG(*at->word) != at->tag || !same_key(&candidate->key, &pkt->key);
	if (at->fresh && !make) {
		leave_handshake(at);
		return NULL;
	}
	return candidate;
}

/* Begins the handshakes of a key; owned and fresh. */
static __always_inline void begin_candidate(struct candidate *candidate, const struct packet *pkt,
					    __u32 side)
{
	candidate->key = pkt->key;
	candidate->side = side;
	candidate->state = CANDIDATE_SYN;
	candidate->syns = 0;
	candidate->flags = 0;
	candidate->seen = 0;
}

/* Begins the packets of an owned handshake: with a SYN, of which `acked` bytes of payload
 * were acknowledged, or with none. What was not acknowledged comes again. Not static, as
 * own_handshake(). */
__noinline int begin_handshake(struct handshake *hs, const struct syn *syn, __u32 acked)
{
	struct packet_record first = {.place = RECORD_FROM_INITIATOR};

	if (!hs)
		return 0;
	hs->bytes = 0;
	hs->packet_count = 0;
	if (!syn || !syn->bytes)
		return 0;
	first.wire_len = acked < syn->payload_len ? syn->header_len : syn->bytes;
	hs->bytes = first.wire_len;
	hs->packet_count = 1;
	hs->packets[0] = first;
	__builtin_memcpy(hs->data, syn->frame, HANDSHAKE_FRAME);
	return 0;
}

#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_MPTCP 30
#define TCP_OPTIONS 40
#define MPTCP_JOIN 1

struct option_walk {
	const struct syn *syn;
	__u32 at; /* of the next option, in the frame */
	__u32 end;
	int joins;
};

static long look_at_option(__u32 number, struct option_walk *walk)
{
	const __u8 *option;
	__u32 at = walk->at;

	barrier_var(at);
	if (at >= walk->end || at >= HANDSHAKE_FRAME + TCP_OPTIONS)
		return 1;
	option = &walk->syn->frame[at];
	if (option[0] == TCP_OPTION_NOP) {
		walk->at++;
		return 0;
	}
	/* The last option, one that is too short, and one that does not end within the header
	 * end the walk. */
	if (option[0] == TCP_OPTION_END || option[1] < 2 || at + option[1] > walk->end)
		return 1;
	walk->at += option[1];
	walk->joins =
		option[0] == TCP_OPTION_MPTCP && option[1] > 2 && option[2] >> 4 == MPTCP_JOIN;
	return walk->joins;
}

/* Whether a SYN joins a connection that exists (MP_JOIN, RFC 8684, 3.2). One whose headers
 * were too long to keep is not looked at. Not static, as own_handshake(). */
__noinline int joins_connection(const struct syn *syn)
{
	struct option_walk walk = {.syn = syn};

	if (!syn || !syn->bytes)
		return 0;
	walk.at = syn->tcp_at + sizeof(struct tcphdr);
	walk.end = MIN(syn->header_len, walk.at + TCP_OPTIONS);
	bpf_loop(TCP_OPTIONS, look_at_option, &walk, 0);
	return walk.joins;
}
