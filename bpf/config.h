/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the operator sets before load. The loader rewrites these constants; the
 * verifier then sees plain numbers and removes dead branches.
 */
#pragma once

/* The interface has no Ethernet header (tun, wg): frames start with IP. */
volatile const bool cfg_raw_ip = false;

/* What it says of a packet that came in when there is no more in its checksum's place than the
 * sum of the pseudo-header, as an offload leaves it. */
enum partial_sums {
	PARTIAL_UNSURE = 0, /* counted, and believed */
	PARTIAL_RIGHT = 1,  /* the peer is this host: the packet was never on a cable */
	PARTIAL_WRONG = 2,
};

volatile const __u8 cfg_partial_sums = PARTIAL_UNSURE;

/* For the moment in which the data path moves from one ingress hook to the other, both are
 * attached: XDP marks what it has seen, and TCX leaves that alone. */
volatile const bool cfg_two_hooks = false;

/* Where the sender of a packet can be answered with a RST, see reset.h. */
#define ANSWER_INGRESS 1 /* what came in through the interface */
#define ANSWER_EGRESS 2	 /* what was to leave through it */

volatile const __u8 cfg_answers = 0;

/* A collecting flow without a packet for this long is handed over as it is. */
volatile const __u64 cfg_idle_ns = 2000000000ULL;

/* A UDP flow that is decided, and without a packet for this long, is captured again from
 * the next one on, and marked as resumed: silence is no beginning. */
volatile const __u64 cfg_udp_idle_ns = 600000000000ULL;

/* CLOCK_MONOTONIC of the first attach, and how long from then on every UDP flow that is new
 * is taken for one that was there before: the attach is no beginning. */
volatile const __u64 cfg_first_attach_ns = 0;
volatile const __u64 cfg_udp_warmup_ns = 0;

/* TCP flows that are seen without their beginning are captured from their next payload
 * byte on, as if its sender had opened them; otherwise they are left alone. */
volatile const bool cfg_mid_stream = false;

/* Both directions come through one hook (mirror port, one-armed router), so that the
 * hook can't tell from which side a packet is. Its direction stands for its side. */
volatile const bool cfg_one_hook = false;

/* TCP connections of which one direction is seen (asymmetric routing) are captured, and
 * marked as such. */
volatile const bool cfg_one_way = false;

/* What may pass of a TCP connection that waits for its verdict, in bytes, see pending.h; 0: none
 * waits. */
volatile const __u32 cfg_pending_bytes = 16384;

/* Number of entries of `handshake_tags` less 1; a power of two less 1. */
volatile const __u32 cfg_bucket_mask = 65536 / 16 - 1;

/* Number of entries of `slots`. */
volatile const __u32 cfg_slots = 8192;

/* Number of entries of `blocked`. */
volatile const __u32 cfg_blocked = 65536;

/* Slots with lower numbers are for TCP flows only. */
volatile const __u32 cfg_tcp_slots = 8192 / 4;

/* Drawn at random, kept by an adoption: who does not know them can't choose addresses and
 * ports that fall together. */
volatile const __u32 cfg_hash_secret[HASH_WORDS] = {};
