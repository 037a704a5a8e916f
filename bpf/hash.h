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

/* NH of words that are the first ones of a message, or those behind so many, an even number. Its
 * sum is that of its parts. Words behind the last one count as 0. */
static __always_inline __u64 nh_sum(const __u32 *word, const int words, const int behind)
{
	const volatile __u32 *secret = cfg_hash_secret + behind;
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < words; i += 2) {
		__u32 a = word[i] + secret[i];
		__u32 b = (i + 1 < words ? word[i + 1] : 0) + secret[i + 1];

		sum += (__u64)a * b;
	}
	return sum;
}

/* A finalizer, so that a part of the result is as good as the whole: the first two rounds of
 * MurmurHash3's, a bijection. */
static __always_inline __u64 finish_hash(__u64 sum)
{
	sum ^= sum >> 33;
	sum *= 0xff51afd7ed558ccdULL;
	sum ^= sum >> 33;
	sum *= 0xc4ceb9fe1a85ec53ULL;
	return sum ^ sum >> 33;
}

static __always_inline __u64 hash_words(const __u32 *word, const int words)
{
	return finish_hash(nh_sum(word, words, 0));
}

static __always_inline __u64 hash_key(const struct flow_key *key)
{
	_Static_assert(sizeof(*key) == 11 * 4 && HASH_WORDS == 12, "all words of a key are hashed");
	return hash_words((const __u32 *)key, 11);
}

/* hash_key() where a call does not matter: it stands once in a program. Not static, so that the
 * verifier looks at it once. */
__noinline __u64 hash_of(const struct flow_key *key)
{
	return key ? hash_key(key) : 0;
}

static __always_inline bool same_key(const struct flow_key *a, const struct flow_key *b)
{
	/* Long words, wherever they lie: both targets can. */
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;
	__u64 diff = ((const __u32 *)a)[10] ^ ((const __u32 *)b)[10];

#pragma unroll
	for (int i = 0; i < 5; i++)
		diff |= x[i] ^ y[i];
	return !diff;
}
