/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A flow lives in exactly one of four maps, and each of them has its own way of
 * dealing with pressure:
 *
 *   syns        TCP, no payload yet   fixed table: a SYN flood pushes out its like only
 *   collecting  payload seen          plain hash: bounded, refuses, never evicts
 *   flows       handed over, decided  LRU: an evicted flow just passes
 *   blocked     named by the policy   plain hash: only its time to live ends it
 *
 * Sizes are defaults; the loader sets them before load. Bytes per entry are
 * 48 (hash element) or 64 (LRU element) of the kernel + key (48, rounded) + value.
 */
#pragma once

#include "earlydrop.h"

/* Bytes behind data[1023] that a copy may touch: the verifier tracks offset and
 * length apart, so that it takes an offset below 1024 (plus a 16 byte prefix)
 * and a length of up to 1024 to reach this far. They are never submitted. */
#define CAPTURE_SLACK (CAPTURE_BYTES + 16)

/* One capture that is being filled. Only user space and open_slot() write
 * `sample` as a whole; packets of the flow write disjoint parts of it (see
 * capture.h). */
struct slot {
	__u64 word;	   /* closed | references | packets | bytes, see capture.h */
	__u64 last_ns;	   /* CLOCK_MONOTONIC of the last packet */
	__u32 handed_over; /* taken by exchange: exactly one CPU submits */
	__u32 generation;  /* of the flow that holds the slot */
	struct sample sample;
	__u8 slack[CAPTURE_SLACK];
};

struct slot_ref {
	__u32 slot;
	__u32 generation;
};

/* Sixteen handshakes that a flow's hash may choose from, one word for each:
 *
 *   bits 16-31  tag: more of the hash, never 0
 *   bit  15     busy: whoever set it owns the handshake until it clears it
 *   bits 0-14   stamp: when it was last wanted, see capture.h
 *
 * A word of 0 is free. A packet looks at these words, which stay in a CPU's cache, and
 * then at no more than one handshake. */
#define HANDSHAKE_WAYS 16

struct handshake_bucket {
	__u32 word[HANDSHAKE_WAYS];
};

/* A flow that began with its SYN: all that a SYN flood writes, and little, since most
 * of what a SYN costs is memory that is not in a cache. Written by the owner of its
 * word alone. */
struct syn {
	__u64 start_ns;
	struct flow_key key;
	__u8 initiator_is_lo;
	__u8 answered; /* more than this packet came: handshakes[] has them all */
	__u16 bytes;   /* of frame; 0: the SYN was too long to keep */
	__u8 frame[HANDSHAKE_FRAME + 16] __attribute__((aligned(8)));
};

/* All packets of a handshake that has more than a SYN. Of the same owner. */
struct handshake {
	__u16 bytes;
	__u16 packet_count;
	struct packet_record packets[HANDSHAKE_PACKETS];
	/* the last 176 bytes are slack */
	__u8 data[HANDSHAKE_BYTES + 16 + HANDSHAKE_FRAME] __attribute__((aligned(8)));
};

/* key: flow. value: verdict. Written by the kernel at hand-over and by the
 * loader with a verdict; deleted by the kernel when a SYN or an idle time starts
 * the flow afresh, and by the LRU.
 * 262144 * (64 + 48 + 16) = 32 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* key: flow. value: until when, what was dropped, why. Written and deleted by
 * user space alone (the loader, `earlydrop blocked`); the kernel adds to the
 * counters and obeys expires_ns. 65536 * (48 + 48 + 72) = 10.5 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct block);
} blocked SEC(".maps");

/* How many blocked flows fall into each bucket of flow_bucket(): a packet whose
 * bucket is empty belongs to no blocked flow, and `blocked` is not looked up for it.
 * Counted by user space alone, up before a block is added and down after it was
 * deleted, so that a bucket never says less than there is. Pinned as block_filter.
 * 65536 * 4 = 256 KiB. */
#define BLOCK_BUCKETS 65536
__u32 block_filter[BLOCK_BUCKETS] SEC(".data.filter");

static __always_inline __u16 flow_bucket(const struct flow_key *key)
{
	return key->lo_port ^ key->hi_port;
}

/* key: hash of the flow. value: which handshakes are in use, see above. Written by the
 * kernel. Not an LRU hash, which would have to move 900 bytes per SYN through its free
 * lists, and locks them for it: SYNs are what a flood is made of.
 * 65536 / 16 * 64 = 256 KiB. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536 / HANDSHAKE_WAYS);
	__type(key, __u32);
	__type(value, struct handshake_bucket);
} handshake_tags SEC(".maps");

/* key: bucket * 16 + way. value: a flow of which a SYN was seen and no payload yet.
 * Written by the kernel; freed by it when payload comes or the flow closes, else
 * overwritten. 65536 * 240 = 15 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct syn);
} syns SEC(".maps");

/* key: as of syns. value: the handshake's packets, where there is more than the SYN.
 * Written by the kernel. 65536 * 664 = 41.5 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct handshake);
} handshakes SEC(".maps");

/* key: flow. value: its slot. Written by the kernel with the first payload;
 * deleted by it at hand-over. As many entries as there are slots.
 * 8192 * (48 + 48 + 8) = 0.8 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct flow_key);
	__type(value, struct slot_ref);
} collecting SEC(".maps");

/* key: slot number. value: the capture. Written by the kernel, never deleted.
 * 8192 * 2.5 KiB = 20 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

/* Numbers of the free slots, first in, first out: a slot that was given back is
 * used again only after all others of its queue, so that a CPU which still holds a
 * pointer to it has long left. Filled by the loader once, then the kernel's.
 * 8192 * 4 = 32 KiB each. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 8192);
	__type(value, __u32);
} free_slots SEC(".maps");

/* Those below cfg_tcp_slots, which only TCP flows get: whoever can send datagrams can
 * take all the others, with an address of its own in each. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 8192);
	__type(value, __u32);
} free_tcp_slots SEC(".maps");

/* Captures on their way to user space; room for 2900 full ones. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 * 1024 * 1024);
} samples SEC(".maps");

/* One struct per CPU, so that no counter is ever contended. Read by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counts);
} counters SEC(".maps");

/* Written by the loader at attach, read by `earlydrop status`. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct attached);
} attachment SEC(".maps");
