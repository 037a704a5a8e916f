/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A flow lives in exactly one of five maps, and each of them has its own way of
 * dealing with pressure (a decided UDP flow that is resumed in two, until it is handed
 * over again):
 *
 *   syns        TCP, no payload yet   fixed table: a SYN flood pushes out its like only
 *   waiting_flows  UDP, one side has spoken  fixed table, for datagrams the same
 *   collecting  payload seen          plain hash: bounded, refuses, never evicts
 *   flows       handed over, decided  LRU: an evicted flow just passes
 *   blocked     named by the policy   plain hash: only user space removes a block
 *
 * Two maps are asked when a flow begins, see pairs.h and exempt.h.
 *
 * Beside its flow, a key may have candidates in `syns`: handshakes that are not proven
 * yet, which change nothing that is known of the key. TCP flows whose beginning was not
 * seen are in none of the five but in `settled`, beside those that are decided: there
 * strangers push out what is found in `flows` again.
 *
 * Sizes are defaults; the loader sets them before load. Bytes per entry are
 * 48 (hash element) or 64 (LRU element) of the kernel + key (48, rounded) + value.
 */
#pragma once

#include "earlydrop.h"

/* One capture that is being filled. Only user space and open_capture() write
 * `sample` as a whole; packets of the flow write disjoint parts of it (see
 * capture.h). */
struct slot {
	__u64 word;		   /* closed | references | packets | bytes, see capture.h */
	__u64 last_ns;		   /* CLOCK_MONOTONIC of the last packet */
	__u32 handed_over;	   /* taken by exchange: exactly one CPU submits */
	__u32 generation;	   /* of the flow that holds the slot */
	struct bpf_spin_lock lock; /* of the holes and of the sample's next_lo, next_hi */
	__u32 hole_lo;		   /* sequence number of the first byte that the side skipped */
	__u32 hole_lo_end;	   /* ... behind the last one; the same: nothing is missing */
	__u32 hole_hi;
	__u32 hole_hi_end;
	__u32 quota;	  /* entry of slot_quota that counts the slot for its initiator */
	__u32 pair_quota; /* ... for initiator and responder; SLOT_UNCOUNTED: none */
	__u32 payload;	  /* captured bytes of it; one that is lost in a race does no harm */
	__u32 bare;	  /* TCP: bytes of header-only packets behind the first payload */
	__u32 repeated;	  /* taken by exchange: a repeated range was, or is being, kept */
	__u32 stray_lo;	  /* TCP: payload that the side sent out of place, see note_stray() */
	__u32 stray_hi;
	__u32 first_us; /* time_us of the first payload */
	__u8 mark;	/* a SYN of the key was acknowledged: look at its candidates */
	__u8 pieces_lo; /* TCP: how far the side's tiny pieces go, enum pieces */
	__u8 pieces_hi;
	/* TCP: its bytes are next to no beginning, of tiny pieces or slow: it goes on though it
	 * is full */
	__u8 unsure;
	__u8 begun;	   /* PAYLOAD_LEAST bytes had come before */
	__u8 last_side;	   /* TCP: of the last payload, 1 for the lower endpoint; 0: none */
	__u16 first_at;	   /* TCP: where the initiator's first payload is in the capture */
	__u16 first_bytes; /* ... and how much of it is; 0: it is not known */
	__u16 first_len;   /* ... and how long it is, modulo 65536 */
	struct sample sample;
};

/* The verifier tracks offset and length of a copy apart: it takes an offset below 1024 (plus
 * a prefix of 16 bytes) and a length of up to 1024 to reach this far behind the data. */
_Static_assert(sizeof(struct sample) - __builtin_offsetof(struct sample, data) >=
		       2 * CAPTURE_BYTES + CAPTURE_SPILL,
	       "room behind the data");

struct slot_ref {
	__u32 slot;
	__u32 generation;
};

/* Sixteen handshakes that a flow's hash may choose from, one word for each:
 *
 *   bits 16-31  tag: more of the hash, never 0; the lowest bit is the initiator's side
 *   bit  15     busy: whoever set it owns the handshake until it clears it
 *   bits 0-14   stamp: when it was last wanted, see handshake.h
 *
 * A word of 0 is free. A packet looks at these words, which stay in a CPU's cache, and
 * then at no more than one handshake of each side. */
#define HANDSHAKE_WAYS 16

struct handshake_bucket {
	__u32 word[HANDSHAKE_WAYS];
};

/* A SYN. */
struct syn {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 seq;
	__u32 payload_len; /* TCP Fast Open */
	__u16 bytes;	   /* of frame; 0: the SYN was too long to keep */
	__u16 header_len;  /* of frame: without its payload */
	__u8 tcp_at;	   /* where the TCP header is in frame */
	__u8 from_lo;
	__u8 pad[2];
	/* what is behind HANDSHAKE_FRAME is slack: joins_connection() reads 42 bytes from any
	 * place in the frame on */
	__u8 frame[HANDSHAKE_FRAME + 48] __attribute__((aligned(8)));
};

enum candidate_state {
	CANDIDATE_SYN = 0,	/* SYNs only */
	CANDIDATE_ALONE = 1,	/* a SYN+ACK that acknowledges no SYN that was seen */
	CANDIDATE_ANSWERED = 2, /* a SYN+ACK that acknowledges one of the SYNs */
	CANDIDATE_PROVEN = 3,	/* the initiator has acknowledged that: a connection */
};

#define CANDIDATE_ONE_WAY 1 /* one direction alone would prove it; counted */
#define CANDIDATE_FORGED 2  /* ... and did: whoever sends in that direction can forge it */
#define CANDIDATE_JOIN 4    /* the SYN joins another connection (MPTCP) */
#define CANDIDATE_EARLY 8   /* all payload of the SYN was acknowledged, and is in its frame */
#define CANDIDATE_CLOSED 16 /* RST or FIN came before any payload */
#define CANDIDATE_DECOY 32  /* a segment in place had a wrong checksum */

/* The handshakes of one key whose initiator is on one side. A SYN flood writes what
 * comes before `latest`, and little of it, since most of what a SYN costs is memory that
 * is not in a cache. Written by the owner of its word alone. */
struct candidate {
	struct flow_key key;
	__u8 side; /* the initiator's */
	__u8 state;
	__u8 syns;  /* that are known: 0, first, or first and latest */
	__u8 flags; /* CANDIDATE_* */
	/* from CANDIDATE_ALONE on */
	__u64 start_ns;	   /* of the SYN that was acknowledged */
	__u64 answered_ns; /* ... of the SYN+ACK */
	__u32 isn_lo;
	__u32 isn_hi;
	__u32 next_lo;
	__u32 next_hi;
	__u32 hole_lo; /* as of struct slot */
	__u32 hole_lo_end;
	__u32 hole_hi;
	__u32 hole_hi_end;
	__u32 acked; /* acknowledgement number of the SYN+ACK */
	__u8 initiator_is_lo;
	__u8 seen; /* SAMPLE_SYN_DATA, SAMPLE_EARLY, SAMPLE_HIDDEN */
	__u8 more; /* MORE_* */
	__u8 pad;
	__u32 stray_lo; /* as of struct slot */
	__u32 stray_hi;
	struct syn first;
	struct syn latest;
};

/* The packets of a handshake from its SYN+ACK on. Of the same owner. */
struct handshake {
	__u16 bytes;
	__u16 packet_count;
	struct packet_record packets[HANDSHAKE_PACKETS];
	/* the last 176 bytes are slack */
	__u8 data[HANDSHAKE_BYTES + 16 + HANDSHAKE_FRAME] __attribute__((aligned(8)));
};

/* The capture of a UDP flow of which one side has spoken, see udp.h. */
#define WAITING_FLOWS 16384
#define WAITING_CHUNK 64

struct waiting {
	struct flow_key key;
	__u8 from_lo; /* who has spoken */
	__u8 side;    /* and from where */
	__u8 resumed; /* the flow may have been there before */
	__u8 waits;   /* 0: its time was over, or it was answered */
	__u64 start_ns;
	__u64 last_ns;
	__u32 quota; /* entry of waiting_quota that counts it */
	__u16 bytes;
	__u16 packet_count;
	struct packet_record packets[CAPTURE_PACKETS];
	/* what is behind CAPTURE_BYTES is slack */
	__u8 data[CAPTURE_BYTES + WAITING_CHUNK + 16] __attribute__((aligned(8)));
};

/* key: flow. value: verdict. Written by the kernel at hand-over and by the
 * loader with a verdict; deleted by the kernel when another connection of the key is
 * proven, and by the LRU.
 * 262144 * (64 + 48 + 40) = 38 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* key: flow. value: until when, what was dropped, why. Written and deleted by
 * user space (the loader, `earlydrop blocked`); the kernel adds to the
 * counters, obeys expires_ns, renews it, and sets ended. It writes those of limit_connection().
 * 65536 * (48 + 48 + 136) = 14.5 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct block);
} blocked SEC(".maps");

struct reset_bucket {
	__u64 busy_ns;
};

/* key: 0. value: CLOCK_MONOTONIC at which the RSTs that were sent would have been sent, one
 * each RESET_NS. Written by the kernel. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct reset_bucket);
} reset_bucket SEC(".maps");

struct mode {
	__u32 enforce; /* 0: monitor, 1: enforce */
};

/* key: 0. value: the mode. Written by user space alone, at any time; read only for packets
 * that a block or a malformed fragment would have dropped. User space reads it for each verdict,
 * so it is mapped into its memory: a page. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct mode);
} mode SEC(".maps");

/* How many blocked flows fall into each bucket of flow_bucket(): a packet whose
 * bucket is empty belongs to no blocked flow, and `blocked` is not looked up for it.
 * Counted up before a block is added and down after it was deleted, so that a bucket never
 * says less than there is. Pinned as block_filter.
 * Behind them are the buckets of pair_bucket(), the same for `pairs`; then, how many blocks
 * and pairs there are at all. (2 * 65536 + 2) * 4 = 512 KiB. */
#define BLOCK_BUCKETS 65536
#define PAIR_BUCKETS 65536
#define BLOCKS_IN_USE (BLOCK_BUCKETS + PAIR_BUCKETS)
#define PAIRS_IN_USE (BLOCKS_IN_USE + 1)
__u32 block_filter[PAIRS_IN_USE + 1]; /* the only variable in .bss, which is its map */

static __always_inline __u16 flow_bucket(const struct flow_key *key)
{
	return key->lo_port ^ key->hi_port;
}

/* Counts a block that is added (1), or was not after all (-1). */
static __always_inline void count_block(const struct flow_key *key, __u32 delta)
{
	__sync_fetch_and_add(&block_filter[flow_bucket(key)], delta);
	__sync_fetch_and_add(&block_filter[BLOCKS_IN_USE], delta);
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

/* key: bucket * 16 + way. value: the SYNs of a key, and what became of them. Written by
 * the kernel; freed by it when payload comes, else overwritten. 65536 * 576 = 36 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct candidate);
} syns SEC(".maps");

/* key: as of syns. value: the handshake's packets, from the SYN+ACK on.
 * Written by the kernel. 65536 * 664 = 41.5 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct handshake);
} handshakes SEC(".maps");

/* key: hash of the flow. value: as of handshake_tags, for waiting_flows. 64 KiB. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WAITING_FLOWS / HANDSHAKE_WAYS);
	__type(key, __u32);
	__type(value, struct handshake_bucket);
} waiting_tags SEC(".maps");

/* key: bucket * 16 + way. value: what one side of a UDP flow has sent so far. Written by the
 * kernel; the oldest gives way. 16384 * 1560 = 24.4 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WAITING_FLOWS);
	__type(key, __u32);
	__type(value, struct waiting);
} waiting_flows SEC(".maps");

/* key: hash of a sender's address and side; WAITING_IN_USE: none. value: how many captures
 * of its flows wait; how many wait at all. Written by the kernel. 256 KiB. */
#define WAITING_QUOTAS 65536
#define WAITING_IN_USE WAITING_QUOTAS

struct waiting_count {
	__u32 held;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WAITING_QUOTAS + 1);
	__type(key, __u32);
	__type(value, struct waiting_count);
} waiting_quota SEC(".maps");

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
 * 8192 * 2616 = 20.4 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

/* Numbers of the free slots, first in, first out: a slot that was given back is
 * used again only after all others of its queue, so that a CPU which still holds a
 * pointer to it has long left. Filled by ed_free_slots() once, then the kernel's.
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

/* key: some bits of the flow's hash. value: the others, never 0, see settled.h; or 0. Flows
 * whose packets just pass: decided, or TCP without a beginning that was seen. Each new one
 * takes the word of an older one, which is looked up in `flows` then. Written by the kernel;
 * cleared by it when a SYN of the key is acknowledged, or a UDP flow is resumed. Two flows
 * have the same index and word with a probability of 2^-32, see hash.h: then one of them is
 * not judged.
 * 262144 * 8 = 2 MiB. */
#define SETTLED_WORDS 262144

struct settled_flow {
	__u64 hash;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SETTLED_WORDS);
	__type(key, __u32);
	__type(value, struct settled_flow);
} settled SEC(".maps");

/* key: some bits of a hash of a SYN's or SYN+ACK's key, direction and numbers, or of those of a
 * datagram of a flow that is not decided, its length and checksum. value: others of them, and
 * when it came in through the interface. Written by the kernel.
 * 65536 * 8 = 512 KiB. */
#define SEEN_WORDS 65536

struct seen_packet {
	__u64 hash_and_time; /* upper and lower half; read and written as one */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SEEN_WORDS);
	__type(key, __u32);
	__type(value, struct seen_packet);
} seen_inside SEC(".maps");

/* key: hash of an initiator's address, or of both addresses; SLOTS_IN_USE: none. value:
 * how many slots its TCP flows hold; how many are held at all. What falls together
 * shares what it may have. Written by the kernel. 65537 * 8 = 512 KiB. */
#define SLOT_QUOTAS 65536
#define SLOTS_IN_USE SLOT_QUOTAS
#define SLOT_UNCOUNTED 0xffffffff

struct slot_count {
	__u32 held;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOT_QUOTAS + 1);
	__type(key, __u32);
	__type(value, struct slot_count);
} slot_quota SEC(".maps");

struct device_side {
	__u8 same;
};

/* key: index of a network device. value: same is 1. The interface and the devices that stand on
 * it: what was received through them came from the interface's side. Written by the
 * loader. 256 * (48 + 8 + 8) = 16 KiB. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct device_side);
} same_side SEC(".maps");

/* Captures on their way to user space; room for 2700 full ones. */
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

/* key: place in a list that an empty name ends. value: what the daemon has counted. Written
 * by the loader about once a second, read by `earlydrop status`. What is counted is the
 * daemon's affair: another counter is another entry, and no other layout.
 * 128 * 40 = 5 KiB. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 128);
	__type(key, __u32);
	__type(value, struct daemon_counter);
} daemon_counters SEC(".maps");

static __always_inline struct counts *get_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counters, &zero);
}

static __always_inline struct slot *get_slot(__u32 id)
{
	return bpf_map_lookup_elem(&slots, &id);
}

/* Whether packets may be dropped at all. */
static __always_inline bool is_enforced(void)
{
	__u32 zero = 0;
	struct mode *is = bpf_map_lookup_elem(&mode, &zero);

	return is && is->enforce;
}
