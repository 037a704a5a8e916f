/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The keyed hash of flow keys: of the table of handshakes, of the settled words, of
 * the slots' quotas.
 *
 * Contract: who does not know cfg_hash_secret can't name two keys that fall together more
 * often than by chance. That holds for every pair of keys (NH of UMAC, RFC 4418: each
 * secret is added before the words are multiplied); mixing rounds that meet a secret only
 * once do not have it: there are keys that they give the same hash under every secret.
 */
#pragma once

#include "earlydrop.h"
#include "config.h"

/* NH, and a finalizer, so that a part of the result is as good as the whole. Words behind
 * the last one count as 0. */
static __always_inline __u64 hash_words(const __u32 *word, const int words)
{
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < words; i += 2) {
		__u32 a = word[i] + cfg_hash_secret[i];
		__u32 b = (i + 1 < words ? word[i + 1] : 0) + cfg_hash_secret[i + 1];

		sum += (__u64)a * b;
	}
	/* The first two rounds of MurmurHash3's finalizer: a bijection. */
	sum ^= sum >> 33;
	sum *= 0xff51afd7ed558ccdULL;
	sum ^= sum >> 33;
	sum *= 0xc4ceb9fe1a85ec53ULL;
	return sum ^ sum >> 33;
}

static __always_inline __u64 hash_key(const struct flow_key *key)
{
	_Static_assert(sizeof(*key) == 11 * 4 && HASH_WORDS == 12, "all words of a key are hashed");
	return hash_words((const __u32 *)key, 11);
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
