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
 * makes that happen once. Late packets join and leave without writing. What is kept beside
 * the capture (keep_repeated()) holds a reference, too, while it is written.
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

/* Copies all of a prefix. In two words, wherever they go: both targets can. */
static __always_inline void copy_prefix(__u8 *to, const struct packet *pkt)
{
	_Static_assert(PREFIX_LEN == 2 * sizeof(__u64), "a prefix is two words");
	((__u64 *)to)[0] = ((const __u64 *)pkt->prefix)[0];
	((__u64 *)to)[1] = ((const __u64 *)pkt->prefix)[1];
}

/* Copies the frame's first `len` bytes to `to`, which has room for PREFIX_LEN +
 * max bytes. Returns 0 or a negative error. */
static __always_inline int copy_frame(const struct source *src, const struct packet *pkt, __u8 *to,
				      __u32 len, const __u32 max)
{
	__u32 skip = pkt->skip;

	if (pkt->prefix_len) {
		/* All 16 bytes, a constant size; what is beyond prefix_len or the
		 * frame's share is overwritten below or is slack. */
		copy_prefix(to, pkt);
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
	 * both bounds. barrier_var(), here and elsewhere: clang must not fold the bound
	 * that it can prove away, since the verifier can't prove it. */
	len--;
	barrier_var(len);
	if (len >= max)
		return 0;
	return load(src, skip, to, len + 1);
}

static __always_inline __u32 microseconds(__u64 from_ns, __u64 to_ns)
{
	__u64 us;

	if (to_ns <= from_ns)
		return 0;
	us = (to_ns - from_ns) / 1000;
	return us > 0xffffffff ? 0xffffffff : us;
}
