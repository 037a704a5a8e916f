/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What passes between hand-over and verdict is bounded for connections that may be tunnels.
 *
 * A connection whose initiator begins with bytes that look random, and with no header, waits for
 * its verdict: cfg_pending_bytes pass from the packet on that filled its capture, of both
 * directions together. What is more is dropped, and TCP sends it again.
 *
 * What passed is counted by sequence numbers: bytes that come again count once, and what is
 * dropped does not count. So whoever does not know a connection's numbers to these few bytes
 * can't use up what it may send; and whoever forges a whole packet has that one dropped.
 *
 * Contract: a connection waits for PENDING_NS at most, from a hand-over that has succeeded, and
 * only in mode enforce and while somebody is there to decide: user space says so in `heartbeat`
 * several times a second, and no verdict was late for a while. Else everything passes. Only
 * connections that both ends have made wait, once, with their first capture if that is full.
 * flow.LooksRandom() of loader/flow has the same rules.
 */
#pragma once

#include "packet.h"
#include "maps.h"
#include "capture.h"
#include "place.h"
#include "settled.h"

#define PENDING_NS 5000000ULL
#define HEARTBEAT_NS 1000000000ULL
/* So long nothing waits after a connection has waited in vain. */
#define LATE_NS 1000000000ULL
/* Nor does anything while captures queue up: so many bytes are what is classified in a
 * millisecond or two. */
#define PENDING_BACKLOG (64 * 1024)
/* What is further ahead is no segment of the connection. */
#define PENDING_AHEAD (64 * 1024 * 1024)

/* So much of the first payload is looked at, in words; less than the least says nothing. */
#define RANDOM_LEAST 32
#define RANDOM_MOST 256

#define HEARTBEAT_LAST 0
#define HEARTBEAT_LATE 1

struct heartbeat {
	__u64 ns;
};

/* key: 0. value: CLOCK_MONOTONIC at which user space was last there to give verdicts, 0: it is
 * not. Written by user space.
 * key: 1. value: ... at which a verdict was late; 0: never. Written by the kernel. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct heartbeat);
} heartbeat SEC(".maps");

/* Whether somebody is there to give verdicts in time. */
static __always_inline bool is_attended(__u64 now)
{
	__u32 last_key = HEARTBEAT_LAST, late_key = HEARTBEAT_LATE;
	struct heartbeat *last = bpf_map_lookup_elem(&heartbeat, &last_key);
	struct heartbeat *late = bpf_map_lookup_elem(&heartbeat, &late_key);

	if (!last || !late || !last->ns)
		return false;
	/* Another CPU's clock, and user space, may be a little ahead. */
	return (__s64)(now - last->ns) < (__s64)HEARTBEAT_NS &&
	       (!late->ns || (__s64)(now - late->ns) >= (__s64)LATE_NS);
}

static __always_inline void note_late(__u64 now)
{
	__u32 late_key = HEARTBEAT_LATE;
	struct heartbeat *late = bpf_map_lookup_elem(&heartbeat, &late_key);

	if (late)
		late->ns = now;
}

#define EACH_BYTE 0x0101010101010101ULL

static __always_inline __u32 count_bits(__u64 word)
{
	word -= (word >> 1) & (EACH_BYTE * 0x55);
	word = (word & (EACH_BYTE * 0x33)) + ((word >> 2) & (EACH_BYTE * 0x33));
	word = (word + (word >> 4)) & (EACH_BYTE * 0x0f);
	return (word * EACH_BYTE) >> 56;
}

/* Bytes from 0x20 to 0x7e. */
static __always_inline __u32 count_printable(__u64 word)
{
	__u64 low = word & (EACH_BYTE * 0x7f);
	__u64 printable = (low + EACH_BYTE * 0x60) & ~(low + EACH_BYTE) & ~word;

	return (((printable >> 7) & EACH_BYTE) * EACH_BYTE) >> 56;
}

static __always_inline __u32 count_zeros(__u64 word)
{
	__u64 low = (word & (EACH_BYTE * 0x7f)) + EACH_BYTE * 0x7f;

	return (((~(low | word) >> 7) & EACH_BYTE) * EACH_BYTE) >> 56;
}

/* Whether a payload of this length begins with a header: as TLS, SSH or HTTP do, with its own
 * length, or with eight bytes that are all text, of which two are zero, or more than 52 bits are
 * set. The word is as it is in memory; both targets are little-endian. */
static __always_inline bool begins_plainly(__u64 word, __u16 len)
{
	__u16 said = bpf_ntohs((__u16)word);

	if ((word & 0xffff) == 0x0316 || count_printable(word) == 8 || count_zeros(word) >= 2 ||
	    count_bits(word) > 52)
		return true;
	if (said == len || said == (__u16)(len - 2))
		return true;
	switch ((__u32)word) {
	case 0x2d485353: /* "SSH-" */
	case 0x20544547: /* "GET " */
	case 0x54534f50: /* "POST" */
	case 0x20545550: /* "PUT " */
	case 0x44414548: /* "HEAD" */
	case 0x454c4544: /* "DELE" */
	case 0x4954504f: /* "OPTI" */
	case 0x4e4e4f43: /* "CONN" */
	case 0x43544150: /* "PATC" */
	case 0x43415254: /* "TRAC" */
	case 0x20495250: /* "PRI " */
		return true;
	}
	return false;
}

/* Whether so many bytes are as random ones are: how many bits are set (4 of 8), and how many
 * bytes are printable (95 of 256), is within four standard deviations. */
static __always_inline bool are_random_sums(__u32 bytes, __u32 bits, __u32 printable)
{
	__s64 excess = (__s64)bits - 4 * (__s64)bytes;
	__s64 text = 256 * (__s64)printable - 95 * (__s64)bytes;

	return excess * excess <= 16 * 2 * (__s64)bytes &&
	       text * text <= 16 * 95 * 161 * (__s64)bytes;
}

struct payload_sums {
	const struct slot *slot;
	__u32 at; /* in its data */
	__u32 bits;
	__u32 printable;
};

static long sum_word(__u32 index, struct payload_sums *sums)
{
	__u32 at = sums->at + index * 8;
	__u64 word;

	barrier_var(at);
	if (at >= CAPTURE_BYTES + RANDOM_MOST) /* never, but the verifier asks */
		return 1;
	/* As a whole, which both targets can; what is behind the capture is slack. */
	word = *(const __u64 *)&sums->slot->sample.data[at];
	sums->bits += count_bits(word);
	sums->printable += count_printable(word);
	return 0;
}

/* Whether the initiator's first payload looks random. Not static, as own_handshake(). */
__noinline int looks_random(__u32 id)
{
	struct payload_sums sums = {.slot = get_slot(id)};
	__u32 at, bytes;

	if (!sums.slot)
		return 0;
	at = sums.slot->first_at;
	bytes = MIN(sums.slot->first_bytes, RANDOM_MOST) & ~7U;
	barrier_var(at);
	if (bytes < RANDOM_LEAST || at >= CAPTURE_BYTES)
		return 0;
	if (begins_plainly(*(const __u64 *)&sums.slot->sample.data[at], sums.slot->first_len))
		return 0;
	sums.at = at;
	bpf_loop(bytes / 8, sum_word, &sums, 0);
	return are_random_sums(bytes, sums.bits, sums.printable);
}

/* Notes the initiator's first payload: so many bytes of it are in the capture, there. */
static __always_inline void note_beginning(struct slot *slot, const struct packet *pkt, __u32 at,
					   __u32 bytes)
{
	const struct sample *sample = &slot->sample;

	if (pkt->src_is_lo != !!sample->initiator_is_lo || !(sample->known & KNOWN_ISN) ||
	    pkt->seq != (pkt->src_is_lo ? sample->isn_lo : sample->isn_hi) + 1)
		return;
	slot->first_at = at;
	slot->first_bytes = bytes;
	slot->first_len = pkt->payload_len;
}

/* Whether a flow that was handed over may wait for its verdict. */
static __always_inline bool may_wait(const struct sample *sample)
{
	if (!cfg_pending_bytes || cfg_one_hook)
		return false;
	if (sample->key.proto != IPPROTO_TCP || sample->reason != REASON_FULL || sample->again ||
	    (sample->flags & (SAMPLE_ONE_WAY | SAMPLE_MID_STREAM)))
		return false;
	return is_enforced() && is_attended(sample->end_ns) &&
	       bpf_ringbuf_query(&samples, BPF_RB_AVAIL_DATA) <= PENDING_BACKLOG;
}

/* Has a flow that was handed over wait, unless there is a verdict already. */
static __always_inline void wait_for_verdict(struct counts *cnt, const struct sample *sample)
{
	__u32 last = (sample->packet_count - 1) & (CAPTURE_PACKETS - 1), passed;
	struct flow *flow = bpf_map_lookup_elem(&flows, &sample->key);

	if (!flow)
		return;
	barrier_var(last);
	passed = sample->packets[last & (CAPTURE_PACKETS - 1)].wire_len;
	flow->last_ns = sample->end_ns + PENDING_NS;
	flow->last_tick = passed < cfg_pending_bytes ? cfg_pending_bytes - passed : 0;
	if (__sync_val_compare_and_swap(&flow->verdict, VERDICT_PENDING, VERDICT_WAITS) !=
	    VERDICT_PENDING)
		return;
	/* A packet may have passed in between, and have said that the next ones just pass. */
	clear_settled(hash_of(&sample->key), false);
	cnt->pending_flows++;
}

/* Whether a segment is to be dropped, as its flow waits. */
static __always_inline bool is_held(struct counts *cnt, struct flow *flow, const struct packet *pkt)
{
	__u32 *next = pkt->src_is_lo ? &flow->next_lo : &flow->next_hi;
	__u32 end = pkt->seq + pkt->payload_len;
	__s32 fresh, left;

	if (!cfg_pending_bytes || flow->verdict != VERDICT_WAITS)
		return false;
	if ((__s64)(pkt->now - flow->last_ns) >= 0) {
		if (__sync_val_compare_and_swap(&flow->verdict, VERDICT_WAITS, VERDICT_PENDING) ==
		    VERDICT_WAITS) {
			cnt->pending_late++;
			note_late(pkt->now);
		}
		return false;
	}
	/* Nobody sends a RST again; and with a mark, another connection may be on its way. */
	if (!pkt->payload_len || (pkt->tcp_flags & TCP_RST) || flow->mark ||
	    !comes_from(pkt, flow->side, flow->initiator_is_lo))
		return false;
	fresh = end - *next;
	if (fresh <= 0 || fresh > PENDING_AHEAD)
		return false;
	if (!is_enforced() || !is_attended(pkt->now))
		return false;
	left = __sync_fetch_and_sub(&flow->last_tick, fresh);
	if (left >= fresh) {
		*next = end;
		return false;
	}
	__sync_fetch_and_add(&flow->last_tick, fresh);
	cnt->pending_packets++;
	cnt->pending_bytes += pkt->frame_len;
	return true;
}
