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

static __always_inline __u32 mix(__u32 hash, __u32 word)
{
	/* An odd constant (the golden ratio's) moves what low bits differ in upwards,
	 * the shift brings it down again. */
	hash = (hash ^ word) * 0x9e3779b1;
	return hash ^ hash >> 15;
}

/* Spreads keys over the table of handshakes. Each word is mixed in by itself, behind
 * a seed that nobody outside knows: were some of them added up first, whoever chooses
 * addresses could make two flows fall together under any seed. */
static __always_inline __u32 hash_key(const struct flow_key *key)
{
	const __u32 *word = (const __u32 *)key;
	__u32 hash = cfg_hash_seed;

#pragma unroll
	for (int i = 0; i < (int)(sizeof(*key) / sizeof(*word)); i++)
		hash = mix(hash, word[i]);
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

/* How often a CPU looks whether the other has let go of a handshake: long enough for
 * one to copy its packet, and no longer. */
#define HANDSHAKE_SPINS 32

static __always_inline bool own_handshake(struct handshake *hs)
{
	for (int i = 0; i < HANDSHAKE_SPINS; i++) {
		if (!__sync_lock_test_and_set(&hs->busy, 1))
			return true;
	}
	return false;
}

static __always_inline void release_handshake(struct handshake *hs)
{
	/* An exchange, which is a full barrier: the next owner sees all of it. */
	__sync_lock_test_and_set(&hs->busy, 0);
}

static __always_inline void free_handshake(struct handshake *hs)
{
	hs->key.proto = 0;
	hs->start_ns = 0; /* the first to be overwritten */
}

/* Returns the key's handshake, owned, or NULL. Where `opens`, and there is none, it
 * is the place for one: of the two that the key may have, the older. With `busy` set,
 * NULL means that another CPU does not let go of it. */
static __always_inline struct handshake *find_handshake(const struct flow_key *key, bool opens,
							bool *busy)
{
	__u32 first = hash_key(key) & cfg_handshake_mask, second = first ^ 1;
	struct handshake *a, *b, *hs;

	a = bpf_map_lookup_elem(&handshakes, &first);
	b = bpf_map_lookup_elem(&handshakes, &second);
	if (!a || !b)
		return NULL;
	if (same_key(&a->key, key))
		hs = a;
	else if (same_key(&b->key, key))
		hs = b;
	else if (!opens)
		return NULL;
	else
		hs = a->start_ns <= b->start_ns ? a : b;
	if (!own_handshake(hs)) {
		*busy = true;
		return NULL;
	}
	/* It may have been freed or given to another flow before it was ours. */
	if (!opens && !same_key(&hs->key, key)) {
		release_handshake(hs);
		return NULL;
	}
	return hs;
}

/* Appends a header-only packet to an owned handshake, or leaves it out where it is too
 * large. */
static __always_inline int append_handshake(struct handshake *hs, const struct source *src,
					    const struct packet *pkt, __u64 now)
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
	rec->time_us = microseconds(hs->start_ns, now);
	rec->offset = off;
	rec->from_initiator = pkt->src_is_lo == !!hs->initiator_is_lo;
	hs->bytes = off + len;
	hs->packet_count = n + 1;
	return copy_frame(src, pkt, hs->data + off, len, HANDSHAKE_FRAME);
}
