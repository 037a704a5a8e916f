/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whether a TCP segment's checksum is wrong: then no host accepts it, and it was sent for
 * whoever reads along.
 *
 * Contract: "wrong" is said only of what is there whole, and is no work left to a network
 * card: a socket buffer that is to be cut up or finished by one has the sum of the
 * pseudo-header in the checksum's place. That is work of this host's, so it is right on
 * egress, and on ingress where the peer is this host (cfg_partial_sums); off a cable no
 * host accepts it, unless it was put together on receive (GRO), which is done with right
 * ones alone. Segments of more than CHECKSUM_BYTES, behind IPv6 extension headers
 * (which may name another destination) and first fragments are not looked at.
 * loader/flow/signals has the same rules.
 */
#pragma once

#include "flow.h"

#define CHECKSUM_BYTES 2048
#define CHECKSUM_CHUNK 512 /* as much as bpf_csum_diff() takes */
#define CHECKSUM_PART 512  /* what sum_part() adds up */
#define CHECKSUM_BLOCK 32

/* key: 0. value: room for a part of a segment. Written and read by the CPU alone that owns it,
 * while it handles one packet. 512 bytes per CPU. */
struct checksum_room {
	__u8 data[CHECKSUM_CHUNK];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct checksum_room);
} checksum_rooms SEC(".maps");

static __always_inline __u16 fold_sum(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum + (sum >> 16);
}

/* Adds up blocks of so many bytes that are in the buffer's linear part, from `at` on: two sums,
 * since a CPU does two additions at once. */
static __always_inline __u64 sum_blocks(const void *at, const void *end, const __u32 bytes,
					__u32 blocks, const __u32 most)
{
	__u64 even = 0, odd = 0;

	for (__u32 i = 0; i < most; i++) {
		const __u32 *word = at;

		if (i >= blocks || at + bytes > end)
			break;
#pragma unroll
		for (__u32 j = 0; j < bytes / 4; j += 2) {
			even += word[j];
			odd += word[j + 1];
		}
		at += bytes;
	}
	return even + odd;
}

/* Adds up CHECKSUM_PART bytes. */
static __always_inline __u64 sum_part(const struct source *src, __u32 off)
{
	const __u32 rounds = 4; /* the more, the longer the verifier takes */
	void *data, *data_end;

	linear_part(src, &data, &data_end);
	if (off > LINEAR_OFFSET + CHECKSUM_BYTES)
		return 0;
	return sum_blocks(data + off, data_end, CHECKSUM_PART / rounds, rounds, rounds);
}

/* Not static, as sum_linear_xdp(): a loop over all blocks of a segment is looked at block by
 * block. */
__noinline __u64 sum_part_xdp(struct xdp_md *ctx, __u32 off)
{
	struct source src = {.ctx = ctx, .is_xdp = true};

	return sum_part(&src, off);
}

__noinline __u64 sum_part_skb(struct __sk_buff *ctx, __u32 off)
{
	struct source src = {.ctx = ctx};

	return sum_part(&src, off);
}

/* Adds up bytes that are in the buffer's linear part, at most CHECKSUM_BYTES. For 1 KB it takes
 * half the time that bpf_csum_diff() and a copy of what is left over would. */
static __always_inline __u64 sum_linear(const struct source *src, __u32 off, __u32 len)
{
	/* From offsets of its own, so that the verifier looks at what follows once, and not after
	 * each number of parts, or blocks. */
	__u32 rest = off + (len & ~(CHECKSUM_PART - 1)), tail = off + (len & ~(CHECKSUM_BLOCK - 1));
	__u32 parts = len / CHECKSUM_PART, left = len % CHECKSUM_BLOCK, last;
	void *at, *data, *data_end;
	__u64 sum = 0;

	if (off > LINEAR_OFFSET || len > CHECKSUM_BYTES)
		return 0;
	for (__u32 i = 0; i < CHECKSUM_BYTES / CHECKSUM_PART; i++) {
		if (i >= parts)
			break;
		sum += src->is_xdp ? sum_part_xdp(src->ctx, off) : sum_part_skb(src->ctx, off);
		off += CHECKSUM_PART;
	}
	linear_part(src, &data, &data_end);
	barrier_var(rest);
	if (rest > LINEAR_OFFSET + CHECKSUM_BYTES)
		return 0;
	sum += sum_blocks(data + rest, data_end, CHECKSUM_BLOCK,
			  len % CHECKSUM_PART / CHECKSUM_BLOCK, CHECKSUM_PART / CHECKSUM_BLOCK - 1);
	barrier_var(tail);
	if (tail > LINEAR_OFFSET + CHECKSUM_BYTES)
		return 0;
	last = left & ~3U;
	at = data + tail;
	for (int i = 0; i < CHECKSUM_BLOCK / 4; i++) {
		if (left < 4 || at + 4 > data_end)
			break;
		sum += *(const __u32 *)at;
		at += 4;
		left -= 4;
	}
	tail += last;
	barrier_var(tail);
	if (tail > LINEAR_OFFSET + CHECKSUM_BYTES)
		return 0;
	/* Both targets are little-endian: a last byte is the lower half of its word. */
	at = data + tail;
	if ((left & 2) && at + 2 <= data_end) {
		sum += *(const __u16 *)at;
		at += 2;
	}
	if ((left & 1) && at + 1 <= data_end)
		sum += *(const __u8 *)at;
	return sum;
}

/* Not static, so that the verifier looks at the loops once, and not after each way there. */
__noinline __u64 sum_linear_xdp(struct xdp_md *ctx, __u32 off, __u32 len)
{
	struct source src = {.ctx = ctx, .is_xdp = true};

	return sum_linear(&src, off, len);
}

__noinline __u64 sum_linear_skb(struct __sk_buff *ctx, __u32 off, __u32 len)
{
	struct source src = {.ctx = ctx};

	return sum_linear(&src, off, len);
}

/* Whether what stands in the checksum's place, the sum of the pseudo-header alone, is known to
 * be work that is left to a network card. */
static __always_inline bool is_left_to_card(const struct source *src)
{
	return !src->is_ingress || cfg_partial_sums == PARTIAL_RIGHT;
}

/* Marks the packet as a decoy if its checksum is wrong. */
static __always_inline int check_segment(const struct source *src, struct packet *pkt)
{
	struct counts *cnt = src->cnt;
	const __u32 at = 16; /* of the checksum in the TCP header */
	struct checksum_room *room;
	__u32 zero = 0, len, left, off, *words;
	void *data, *data_end, *segment;
	const __u32 *lo, *hi;
	__u64 pseudo = 0;
	bool v4, partial = false;
	__wsum sum = 0;

	if (!cnt || !pkt)
		return 0;
	room = bpf_map_lookup_elem(&checksum_rooms, &zero);
	if (!room || (pkt->tcp_flags & PACKET_UNSURE))
		return 0;
	len = pkt->frame_len - pkt->prefix_len + pkt->skip - pkt->tcp_off;
	if (len > CHECKSUM_BYTES)
		return 0;
	if (segment_size(src))
		return 0;
	lo = (const __u32 *)pkt->key.lo_addr;
	hi = (const __u32 *)pkt->key.hi_addr;
	v4 = !lo[0] && !lo[1] && lo[2] == bpf_htonl(0xffff);
	if (!v4)
		pseudo = (__u64)lo[0] + lo[1] + lo[2] + hi[0] + hi[1] + hi[2];
	pseudo += (__u64)lo[3] + hi[3] + bpf_htonl(len) + bpf_htonl(IPPROTO_TCP);
	off = pkt->tcp_off;
	left = len;
	linear_part(src, &data, &data_end);
	if (off > LINEAR_OFFSET)
		return 0;
	/* Linux 6.1: else it is read from the stack once more, and its bound is not known. */
	barrier_var(off);
	segment = data + (off & LINEAR_OFFSET);
	barrier_var(segment);
	if (segment + at + 2 <= data_end) {
		if (segment + len <= data_end) {
			partial = *(__u16 *)(segment + at) == fold_sum(pseudo);
			if (partial && is_left_to_card(src))
				return 0;
			pseudo += src->is_xdp ? sum_linear_xdp(src->ctx, off, len)
					      : sum_linear_skb(src->ctx, off, len);
			left = 0;
		}
	}
	words = (__u32 *)room->data;
	for (int i = 0; left && i < CHECKSUM_BYTES / CHECKSUM_CHUNK; i++) {
		__u32 n = left < CHECKSUM_CHUNK ? left : CHECKSUM_CHUNK, last;

		n--; /* see copy_frame() */
		barrier_var(n);
		if (n >= CHECKSUM_CHUNK)
			break;
		/* What is behind the last byte counts as 0. */
		last = n / 4;
		barrier_var(last);
		if (last < CHECKSUM_CHUNK / 4)
			words[last] = 0;
		if (load(src, off, room->data, n + 1))
			return 0;
		if (!i)
			partial = *(__u16 *)(room->data + at) == fold_sum(pseudo);
		if (partial && is_left_to_card(src))
			return 0;
		n = (n + 4) & ~3U;
		barrier_var(n);
		if (n > CHECKSUM_CHUNK)
			return 0;
		sum = bpf_csum_diff(NULL, 0, (__be32 *)room->data, n, sum);
		if (left <= CHECKSUM_CHUNK)
			break;
		left -= CHECKSUM_CHUNK;
		off += CHECKSUM_CHUNK;
	}
	if (fold_sum(pseudo + (__u32)sum) == 0xffff)
		return 0;
	if (partial && cfg_partial_sums == PARTIAL_UNSURE) {
		cnt->partial_sums++;
		return 0;
	}
	pkt->tcp_flags |= PACKET_DECOY;
	return 0;
}

FOR_EACH_HOOK(check_segment)
