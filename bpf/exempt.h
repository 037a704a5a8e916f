/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Networks whose flows are exempt: whatever they carry, the policy lets them pass.
 *
 * Contract: looked up once for a flow, before the first byte of its payload would be copied, and
 * none is.
 */
#pragma once

#include "maps.h"
#include "packet.h"

struct exempt_key {
	__u32 prefixlen; /* bits of the address; of IPv4 at least 96 */
	__u8 addr[16];	 /* IPv4: v4-mapped */
};

struct exempt_network {
	__u8 exempt; /* 0: of these addresses only those of longer networks are */
};

/* key: network. value: whether it is exempt. Written by user space alone.
 * Twice as many as there may be, since a change adds before it deletes. It takes its memory as
 * it fills: 72 bytes each, and as much for inner nodes: 14 MiB at most. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 200002);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct exempt_key);
	__type(value, struct exempt_network);
} exempt SEC(".maps");

/* Whether one of the ends is in an exempt network. Not static, so that its stack is its own. */
__noinline int is_exempt(const struct packet *pkt)
{
	struct exempt_key key = {.prefixlen = 128};
	struct exempt_network *network;

	if (!pkt)
		return 0;
	__builtin_memcpy(key.addr, pkt->key.lo_addr, sizeof(key.addr));
	network = bpf_map_lookup_elem(&exempt, &key);
	if (network && network->exempt)
		return 1;
	__builtin_memcpy(key.addr, pkt->key.hi_addr, sizeof(key.addr));
	network = bpf_map_lookup_elem(&exempt, &key);
	return network && network->exempt;
}
