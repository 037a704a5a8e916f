/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Filling a capture from several CPUs at once.
 *
 * XDP ingress and TCX egress run for the same flow on different CPUs at the same
 * time. One 64-bit word per capture orders them without a lock (the helpers that
 * read packets may not be called under bpf_spin_lock):
 *
 *   bit  63     closed: no packet may join any more
 *   bits 40-55  references: packets that are being copied now
 *   bits 24-39  packets that joined
 *   bits  0-23  bytes that joined, at most CAPTURE_BYTES per packet
 *
 * A packet joins with one atomic add, which gives it a number and a range of
 * bytes that is its own, and leaves with another. Whoever leaves a capture that is
 * full or closed as the last one hands it over; `handed_over`, taken by exchange,
 * makes that happen once. Late packets join and leave without writing.
 */
#pragma once

#include "packet.h"
#include "maps.h"

#define WORD_CLOSED (1ULL << 63)
#define WORD_REF (1ULL << 40)
#define WORD_REFS(w) (((w) >> 40) & 0xffff)
#define WORD_PACKET (1ULL << 24)
#define WORD_PACKETS(w) (((w) >> 24) & 0xffff)
#define WORD_BYTES(w) ((w)&0xffffff)

#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* clang must not fold the bound that it can prove away: the verifier can't. */
#define hide(var) asm volatile("" : "+r"(var))

/* Copies the frame's first `len` bytes to `to`, which has room for PREFIX_LEN +
 * max bytes. Returns 0 or a negative error. */
static __always_inline int copy_frame(const struct source *src, const struct packet *pkt, __u8 *to,
				      __u32 len, const __u32 max)
{
	__u32 skip = pkt->skip;

	if (pkt->prefix_len) {
		/* All 16 bytes, a constant size; what is beyond prefix_len or the
		 * frame's share is overwritten below or is slack. */
		__builtin_memcpy(to, pkt->prefix, PREFIX_LEN);
		if (len <= pkt->prefix_len)
			return 0;
		/* Two constants instead of a variable: the verifier adds up the
		 * bounds of variables. */
		if (pkt->prefix_len == 16)
			to += 16;
		else
			to += ETH_HLEN;
		len -= pkt->prefix_len;
	}
	/* The helpers take no empty range. Verifiers before Linux 6.8 learn nothing
	 * from a comparison with 0; from one of a value that is 1 less they learn
	 * both bounds. */
	len--;
	hide(len);
	if (len >= max)
		return 0;
	if (src->is_xdp)
		return bpf_xdp_load_bytes(src->ctx, skip, to, len + 1);
	return bpf_skb_load_bytes(src->ctx, skip, to, len + 1);
}

static __always_inline __u32 microseconds(__u64 from_ns, __u64 to_ns)
{
	__u64 us;

	if (to_ns <= from_ns)
		return 0;
	us = (to_ns - from_ns) / 1000;
	return us > 0xffffffff ? 0xffffffff : us;
}

/* Spreads keys over the table of handshakes. Each word is mixed in by itself, behind
 * a seed that nobody outside knows: were some of them added up first, whoever chooses
 * addresses could make two flows fall together under any seed. */
static __always_inline __u32 hash_key(const struct flow_key *key)
{
	const __u64 *word = (const __u64 *)key;
	__u64 hash = cfg_hash_seed;

	_Static_assert(sizeof(*key) == 5 * 8 + 4, "all words of a key are hashed");
#pragma unroll
	for (int i = 0; i < 6; i++) {
		hash ^= i < 5 ? word[i] : *(const __u32 *)&word[i];
		/* An odd constant (the golden ratio's) moves what low bits differ in
		 * upwards, the shift brings it down again. */
		hash *= 0x9e3779b97f4a7c15ULL;
		hash ^= hash >> 32;
	}
	return hash;
}

static __always_inline bool same_key(const struct flow_key *a, const struct flow_key *b)
{
	const __u32 *x = (const __u32 *)a, *y = (const __u32 *)b;
	__u32 diff = 0;

#pragma unroll
	for (int i = 0; i < (int)(sizeof(*a) / sizeof(*x)); i++)
		diff |= x[i] ^ y[i];
	return !diff;
}

/* Stamps count time in units of 2^22 ns, about 4 ms, and wrap after 137 s; what is
 * older than that looks young again, and no more than that comes of it. An initiator
 * that answered the responder is where it says that it is, which a flood's are not:
 * its handshake is stamped this much later, so that all others make room first (all but
 * for a SYN that falls into its bucket with its tag, one of 65536). */
#define STAMP_SHIFT 22
#define STAMP_MASK 0x7fff
#define STAMP_ANSWERED 0x2000

#define WAY_BUSY 0x8000
#define WAY_TAG(word) ((word) >> 16)

/* How often a CPU looks whether the other has let go of a handshake: long enough for
 * one to copy its packet, and no longer. */
#define HANDSHAKE_SPINS 32

/* A flow's place in the table of handshakes. */
struct place {
	__u32 *word; /* of its bucket */
	__u32 id;    /* in syns and handshakes */
	__u32 tag;
	__u32 stamp; /* of the packet */
};

enum ownership {
	OWN_NONE, /* it is no more of that tag */
	OWN_YES,
	OWN_BUSY, /* another CPU does not let go of it */
};

/* Takes the handshake behind a word whose tag is the given one, or any where tag is 0.
 * Returns an enum ownership. Not static, so that the verifier looks at the loop once and
 * not with all that may come behind each of its rounds. */
__noinline int own_handshake(__u32 *word, __u32 tag)
{
	if (!word)
		return OWN_NONE;
	for (int i = 0; i < HANDSHAKE_SPINS; i++) {
		__u32 old = *(volatile __u32 *)word;

		if (tag && WAY_TAG(old) != tag)
			return OWN_NONE;
		if (!(old & WAY_BUSY) &&
		    __sync_val_compare_and_swap(word, old, old | WAY_BUSY) == old)
			return OWN_YES;
	}
	return OWN_BUSY;
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

static __always_inline void release_handshake(struct place *at, bool answered)
{
	__u32 stamp = answered ? at->stamp + STAMP_ANSWERED : at->stamp;

	set_way(at, at->tag << 16 | (stamp & STAMP_MASK));
}

/* Looks through a bucket. Returns the way of the tag, with bit 4 set, or, where there is
 * none, the one that has been wanted least for longest; a free one before all. Without
 * branches, since the verifier follows both sides of each: hide() keeps clang from
 * making some, and from turning a product into a mask that is all ones or none, which
 * newer verifiers take for a branch, too. */
static __always_inline __u32 choose_way(const struct handshake_bucket *bucket, __u32 tag,
					__u32 stamp)
{
	__u32 found = 0, oldest = 0;

	stamp += STAMP_ANSWERED;
#pragma unroll
	for (int i = 0; i < HANDSHAKE_WAYS; i++) {
		__u32 word = bucket->word[i], same, is_free, age, more;

		same = ((WAY_TAG(word) ^ tag) - 1) >> 31; /* wraps where they are the same */
		hide(same);
		found |= same * (HANDSHAKE_WAYS | i);

		is_free = ((word - 1) & ~word) >> 31; /* a tag's top bit may be set, too */
		hide(is_free);
		age = (((stamp - word) & STAMP_MASK) | is_free << 15) * HANDSHAKE_WAYS + i;
		more = (oldest - age) >> 31;
		hide(more);
		oldest += more * (age - oldest);
	}
	return found ? found : oldest % HANDSHAKE_WAYS;
}

/* Returns the flow's SYN, owned, or NULL. Where `opens`, and there is none, it is the
 * place for one. With `busy` set, NULL means that another CPU does not let go of it. */
static __always_inline struct syn *find_syn(const struct flow_key *key, bool opens, __u64 now,
					    struct place *at, bool *busy)
{
	__u32 hash = hash_key(key), number = hash & cfg_bucket_mask, way;
	struct handshake_bucket *bucket;
	struct syn *syn;
	int own;

	bucket = bpf_map_lookup_elem(&handshake_tags, &number);
	if (!bucket)
		return NULL;
	at->tag = hash >> 16;
	if (!at->tag)
		at->tag = 1;
	at->stamp = now >> STAMP_SHIFT;
	way = choose_way(bucket, at->tag, at->stamp);
	if (!opens && !(way & HANDSHAKE_WAYS))
		return NULL;
	at->id = number * HANDSHAKE_WAYS + way % HANDSHAKE_WAYS;
	at->word = &bucket->word[way % HANDSHAKE_WAYS];
	syn = bpf_map_lookup_elem(&syns, &at->id);
	if (!syn)
		return NULL;
	own = own_handshake(at->word, opens ? 0 : at->tag);
	*busy = own == OWN_BUSY;
	if (own != OWN_YES)
		return NULL;
	/* Tags are not keys, and it may have been given to another flow before it was
	 * owned. */
	if (!opens && !same_key(&syn->key, key)) {
		leave_handshake(at);
		return NULL;
	}
	return syn;
}

/* The handshake's packets, with the SYN as the first of them; owned. */
static __always_inline struct handshake *get_handshake(struct syn *syn, const struct place *at)
{
	struct handshake *hs = bpf_map_lookup_elem(&handshakes, &at->id);
	struct packet_record first = {
		.wire_len = syn->bytes,
		.from_initiator = 1,
	};

	if (!hs || syn->answered)
		return hs;
	syn->answered = 1;
	hs->bytes = syn->bytes;
	hs->packet_count = !!syn->bytes;
	hs->packets[0] = first;
	__builtin_memcpy(hs->data, syn->frame, sizeof(syn->frame));
	return hs;
}

/* Appends a header-only packet to an owned handshake, or leaves it out where it is too
 * large. */
static __always_inline int append_handshake(struct syn *syn, struct handshake *hs,
					    const struct source *src, const struct packet *pkt,
					    __u64 now)
{
	__u32 len = pkt->frame_len, off = hs->bytes, n = hs->packet_count;
	struct packet_record *rec;

	if (len > HANDSHAKE_FRAME)
		return 0;
	hide(off);
	hide(n);
	if (off + len > HANDSHAKE_BYTES || off >= HANDSHAKE_BYTES || n >= HANDSHAKE_PACKETS)
		return 0;
	rec = &hs->packets[n];
	rec->wire_len = len;
	rec->time_us = microseconds(syn->start_ns, now);
	rec->offset = off;
	rec->from_initiator = pkt->src_is_lo == !!syn->initiator_is_lo;
	hs->bytes = off + len;
	hs->packet_count = n + 1;
	return copy_frame(src, pkt, hs->data + off, len, HANDSHAKE_FRAME);
}
