/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whether a TCP segment's checksum is wrong: then no host takes it, and it was sent for
 * whoever reads along.
 *
 * Contract: "wrong" is said only of what is there whole, and is no work left to a network
 * card: a socket buffer that is to be cut up or finished by one has the sum of the
 * pseudo-header in the checksum's place. Segments of more than CHECKSUM_BYTES, behind
 * IPv6 extension headers (which may name another destination) and first fragments are not
 * looked at. loader/flow/signals has the same rules.
 */
#pragma once

#include "flow.h"

#define CHECKSUM_BYTES 2048
#define CHECKSUM_CHUNK 512

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

/* Marks the packet as a decoy if its checksum is wrong. */
static __always_inline int check_segment(const struct source *src, struct packet *pkt)
{
	const __u32 at = 16; /* of the checksum in the TCP header */
	struct checksum_room *room;
	__u32 zero = 0, len, left, off, *words;
	const __u32 *lo, *hi;
	__u64 pseudo = 0;
	__wsum sum = 0;
	bool v4;

	if (!pkt)
		return 0;
	room = bpf_map_lookup_elem(&checksum_rooms, &zero);
	if (!room || (pkt->tcp_flags & PACKET_UNSURE))
		return 0;
	len = pkt->frame_len - pkt->prefix_len + pkt->skip - pkt->tcp_off;
	if (len > CHECKSUM_BYTES)
		return 0;
	if (!src->is_xdp && ((struct __sk_buff *)src->ctx)->gso_size)
		return 0;
	lo = (const __u32 *)pkt->key.lo_addr;
	hi = (const __u32 *)pkt->key.hi_addr;
	v4 = !lo[0] && !lo[1] && lo[2] == bpf_htonl(0xffff);
	if (!v4)
		pseudo = (__u64)lo[0] + lo[1] + lo[2] + hi[0] + hi[1] + hi[2];
	pseudo += (__u64)lo[3] + hi[3] + bpf_htonl(len) + bpf_htonl(IPPROTO_TCP);
	off = pkt->tcp_off;
	left = len;
	words = (__u32 *)room->data;
	for (int i = 0; i < CHECKSUM_BYTES / CHECKSUM_CHUNK; i++) {
		__u32 n = left < CHECKSUM_CHUNK ? left : CHECKSUM_CHUNK, last;
		long err;

		n--; /* see copy_frame() */
		hide(n);
		if (n >= CHECKSUM_CHUNK)
			break;
		/* What is behind the last byte counts as 0. */
		last = n / 4;
		hide(last);
		if (last < CHECKSUM_CHUNK / 4)
			words[last] = 0;
		err = src->is_xdp ? bpf_xdp_load_bytes(src->ctx, off, room->data, n + 1)
				  : bpf_skb_load_bytes(src->ctx, off, room->data, n + 1);
		if (err)
			return 0;
		/* As a network card would find it. */
		if (!i && *(__u16 *)(room->data + at) == fold_sum(pseudo))
			return 0;
		n = (n + 4) & ~3U;
		hide(n);
		if (n > CHECKSUM_CHUNK)
			return 0;
		sum = bpf_csum_diff(NULL, 0, (__be32 *)room->data, n, sum);
		if (left <= CHECKSUM_CHUNK)
			break;
		left -= CHECKSUM_CHUNK;
		off += CHECKSUM_CHUNK;
	}
	if (fold_sum(pseudo + (__u32)sum) != 0xffff)
		pkt->tcp_flags |= PACKET_DECOY;
	return 0;
}

FOR_EACH_HOOK(check_segment)
