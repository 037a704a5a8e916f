/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The data path: XDP on ingress, TCX (or clsact) on egress, one process_packet()
 * for both, so that a flow is bidirectional on one interface.
 *
 * Contract: a packet passes unless its flow stands in `blocked` with time left.
 * Whatever goes wrong passes, too, and adds to the counter of its cause. A packet
 * of a flow that is decided costs the parser and one map lookup.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "earlydrop.h"
#include "config.h"
#include "maps.h"
#include "packet.h"
#include "capture.h"

char _license[] SEC("license") = "Dual BSD/GPL";

enum action {
	ACTION_PASS = 0,
	ACTION_DROP = 1,
};

static __always_inline struct counts *get_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counters, &zero);
}

static __always_inline struct slot *get_slot(__u32 id)
{
	return bpf_map_lookup_elem(&slots, &id);
}

/* The slowest tick that kernels are built with (CONFIG_HZ=100), in nanoseconds. */
#define SLOWEST_TICK 10000000ULL

/* The flow's block, if it has one with time left. Reading a clock costs more than
 * the rest of a dropped packet, reading jiffies next to nothing; how long a jiffy
 * is, a program can't know. So the clock is read once and then not again until the
 * time left could be over if every tick were as short as 1 ms and is surely not if
 * it is as long as 10 ms: each reading covers at least a tenth of what is left, and
 * the block ends to the nanosecond. */
static __always_inline struct block *get_block(const struct flow_key *key)
{
	struct block *block;
	__u64 now, jiffies;

	if (!block_filter[flow_bucket(key)])
		return NULL;
	block = bpf_map_lookup_elem(&blocked, key);
	if (!block)
		return NULL;
	jiffies = bpf_jiffies64();
	if (jiffies < block->sure_until)
		return block;
	now = bpf_ktime_get_ns();
	if (now >= block->expires_ns)
		return NULL;
	block->sure_until = jiffies + (block->expires_ns - now) / SLOWEST_TICK;
	return block;
}

static __always_inline void remember(const struct flow_key *key, enum verdict verdict)
{
	struct flow flow = {
		.last_ns = bpf_ktime_get_coarse_ns(),
		.last_tick = bpf_jiffies64(),
		.verdict = verdict,
	};

	/* An LRU map refuses no entry; were one refused, the flow would be seen as
	 * mid-stream, which passes. */
	bpf_map_update_elem(&flows, key, &flow, BPF_ANY);
}

static __always_inline bool take_slot(__u8 proto, __u32 *id)
{
	if (proto == IPPROTO_TCP && !bpf_map_pop_elem(&free_tcp_slots, id))
		return true;
	return !bpf_map_pop_elem(&free_slots, id);
}

static __always_inline void give_back(__u32 id)
{
	if (id < cfg_tcp_slots)
		bpf_map_push_elem(&free_tcp_slots, &id, 0);
	else
		bpf_map_push_elem(&free_slots, &id, 0);
}

static __always_inline void release_slot(struct slot *slot, __u32 id)
{
	bpf_map_delete_elem(&collecting, &slot->sample.key);
	give_back(id);
}

/* Called with the word that the last one to leave a full or closed capture saw. Not
 * static, so that the verifier looks at it once and not wherever it is called; which is
 * why it looks for its counters and its slot again. Returns 0. */
__noinline int hand_over(__u32 id, __u64 word)
{
	struct counts *cnt = get_counters();
	struct slot *slot = get_slot(id);
	__u32 len = WORD_BYTES(word);
	struct sample *sample;

	if (!cnt || !slot || __sync_lock_test_and_set(&slot->handed_over, 1))
		return 0;
	sample = &slot->sample;
	if (len >= CAPTURE_BYTES) {
		len = CAPTURE_BYTES;
		sample->reason = REASON_FULL;
	}
	sample->length = len;
	sample->packet_count = WORD_PACKETS(word);
	sample->end_ns = bpf_ktime_get_ns();
	/* First known as handed over, then no longer collecting: a packet between
	 * the two must not look like one of an unknown flow. */
	remember(&sample->key, VERDICT_PENDING);
	if (sample->reason == REASON_FULL)
		cnt->handed_full++;
	else if (sample->reason == REASON_IDLE)
		cnt->handed_idle++;
	else
		cnt->handed_closed++;
	hide(len);
	if (len > CAPTURE_BYTES)
		len = CAPTURE_BYTES;
	if (bpf_ringbuf_output(&samples, sample, __builtin_offsetof(struct sample, data) + len,
			       0)) {
		cnt->ring_full++;
		remember(&sample->key, VERDICT_PASS);
	}
	release_slot(slot, id);
	return 0;
}

/* Stops a capture; what is in it is handed over by whoever leaves it last. */
static __always_inline void close_capture(struct slot *slot, __u32 id, __u8 reason)
{
	__u64 old;

	if (slot->word & WORD_CLOSED)
		return;
	slot->sample.reason = reason;
	old = __sync_fetch_and_or(&slot->word, WORD_CLOSED);
	if (!WORD_REFS(old))
		hand_over(id, old | WORD_CLOSED);
}

/* Throws a capture away: its flow starts afresh. */
static __always_inline void discard_capture(struct counts *cnt, struct slot *slot, __u32 id)
{
	__sync_fetch_and_or(&slot->word, WORD_CLOSED);
	if (__sync_lock_test_and_set(&slot->handed_over, 1))
		return;
	cnt->restarted++;
	release_slot(slot, id);
}

/* Adds one packet to a capture and hands it over if that was the last one. */
static __always_inline void capture(struct counts *cnt, struct slot *slot, __u32 id,
				    const struct source *src, const struct packet *pkt, __u64 now)
{
	__u32 len = MIN(pkt->frame_len, CAPTURE_BYTES), off, n;
	__u64 joined = WORD_REF | WORD_PACKET | len, word;
	struct packet_record *rec;

	word = __sync_fetch_and_add(&slot->word, joined);
	off = WORD_BYTES(word);
	n = WORD_PACKETS(word);
	hide(off);
	hide(n);
	if ((word & WORD_CLOSED) || off >= CAPTURE_BYTES || n >= CAPTURE_PACKETS) {
		word = __sync_fetch_and_sub(&slot->word, joined) - joined;
	} else {
		rec = &slot->sample.packets[n];
		rec->wire_len = pkt->frame_len;
		rec->time_us = microseconds(slot->sample.start_ns, now);
		rec->offset = off;
		rec->from_initiator = pkt->src_is_lo == !!slot->sample.initiator_is_lo;
		slot->last_ns = now;
		if (copy_frame(src, pkt, slot->sample.data + off, MIN(len, CAPTURE_BYTES - off),
			       CAPTURE_BYTES))
			cnt->load_failed++;
		if (pkt->tcp_flags & (TCP_FIN | TCP_RST)) {
			slot->sample.reason = REASON_CLOSED;
			__sync_fetch_and_or(&slot->word, WORD_CLOSED);
		}
		word = __sync_fetch_and_sub(&slot->word, WORD_REF) - WORD_REF;
	}
	if (!WORD_REFS(word) && ((word & WORD_CLOSED) || WORD_BYTES(word) >= CAPTURE_BYTES))
		hand_over(id, word);
}

/* Starts the capture of a flow, with the handshake packets where there are any (syn and
 * hs, or neither). A flow that finds no room is remembered as decided: what is captured
 * later would not be its first bytes. Returns false if another CPU had started it. */
static __always_inline bool open_capture(struct counts *cnt, const struct source *src,
					 const struct packet *pkt, const struct syn *syn,
					 const struct handshake *hs, __u64 now)
{
	struct slot_ref ref = {}, *existing;
	bool opened = true;
	struct slot *slot;
	int err; /* not long: before Linux 6.4 only the low half of the result is set */

	if (!take_slot(pkt->key.proto, &ref.slot)) {
		cnt->slots_full++;
		remember(&pkt->key, VERDICT_PASS);
		return true;
	}
	slot = get_slot(ref.slot);
	if (!slot)
		return true;
	ref.generation = slot->generation + 1;
	slot->generation = ref.generation;
	slot->handed_over = 0;
	slot->last_ns = now;
	slot->sample.key = pkt->key;
	slot->sample.reason = 0;
	if (hs) {
		slot->sample.start_ns = syn->start_ns;
		slot->sample.initiator_is_lo = syn->initiator_is_lo;
		__builtin_memcpy(slot->sample.packets, hs->packets, sizeof(hs->packets));
		__builtin_memcpy(slot->sample.data, hs->data, HANDSHAKE_BYTES);
		slot->word = hs->packet_count * WORD_PACKET + hs->bytes;
	} else {
		slot->sample.start_ns = now;
		slot->sample.initiator_is_lo = pkt->src_is_lo;
		slot->word = 0;
	}
	err = bpf_map_update_elem(&collecting, &pkt->key, &ref, BPF_NOEXIST);
	if (err == -EEXIST) {
		/* The other direction's first packet was faster on another CPU. */
		opened = false;
		give_back(ref.slot);
		existing = bpf_map_lookup_elem(&collecting, &pkt->key);
		if (!existing) /* and is handed over by now */
			return false;
		ref = *existing;
		slot = get_slot(ref.slot);
		if (!slot || slot->generation != ref.generation)
			return false;
	} else if (err) {
		give_back(ref.slot);
		cnt->collecting_full++;
		remember(&pkt->key, VERDICT_PASS);
		return true;
	}
	capture(cnt, slot, ref.slot, src, pkt, now);
	return opened;
}

/* A SYN without ACK: a flow begins, whatever was known of its key. */
static __always_inline void open_syn(struct counts *cnt, struct syn *syn, struct place *at,
				     const struct source *src, const struct packet *pkt, __u64 now)
{
	cnt->tcp_opened++;
	if (pkt->payload_len) { /* TCP Fast Open */
		if (same_key(&syn->key, &pkt->key))
			free_handshake(at);
		else
			leave_handshake(at);
		open_capture(cnt, src, pkt, NULL, NULL, now);
		return;
	}
	syn->key = pkt->key;
	syn->start_ns = now;
	syn->initiator_is_lo = pkt->src_is_lo;
	syn->answered = 0;
	syn->bytes = 0;
	if (pkt->frame_len <= HANDSHAKE_FRAME) {
		syn->bytes = pkt->frame_len;
		if (copy_frame(src, pkt, syn->frame, pkt->frame_len, HANDSHAKE_FRAME))
			cnt->load_failed++;
	}
	release_handshake(at, false);
}

/* A packet of a flow whose SYN was seen; owned. */
static __always_inline void handshake_packet(struct counts *cnt, struct syn *syn, struct place *at,
					     const struct source *src, const struct packet *pkt,
					     __u64 now)
{
	struct handshake *hs;

	if (!pkt->payload_len && (pkt->tcp_flags & (TCP_FIN | TCP_RST))) {
		cnt->header_only++;
		free_handshake(at);
		return;
	}
	hs = get_handshake(syn, at);
	if (!hs) { /* never */
		free_handshake(at);
		return;
	}
	if (pkt->payload_len) {
		open_capture(cnt, src, pkt, syn, hs, now);
		free_handshake(at);
		return;
	}
	if (append_handshake(syn, hs, src, pkt, now))
		cnt->load_failed++;
	release_handshake(at, pkt->src_is_lo == !!syn->initiator_is_lo);
}

static __always_inline void new_tcp_packet(struct counts *cnt, const struct source *src,
					   const struct packet *pkt, bool opens, __u64 now)
{
	bool busy = false;
	struct place at;
	struct syn *syn = find_syn(&pkt->key, opens, now, &at, &busy);

	if (syn) {
		/* A SYN from the other side is a simultaneous open: part of this flow. */
		if (opens && !(same_key(&syn->key, &pkt->key) && (*at.word & ~WAY_BUSY) &&
			       pkt->src_is_lo != !!syn->initiator_is_lo))
			open_syn(cnt, syn, &at, src, pkt, now);
		else
			handshake_packet(cnt, syn, &at, src, pkt, now);
	} else if (busy) {
		cnt->handshake_busy++;
	} else if (!cfg_mid_stream) {
		cnt->mid_stream++;
		remember(&pkt->key, VERDICT_MID_STREAM);
	} else if (pkt->payload_len) {
		cnt->mid_stream++;
		open_capture(cnt, src, pkt, NULL, NULL, now);
	}
}

/* A packet of a flow that is neither decided nor blocked. */
static __always_inline void collect(struct counts *cnt, const struct source *src,
				    const struct packet *pkt, bool opens)
{
	__u64 now = bpf_ktime_get_ns();
	struct slot_ref *ref;
	struct slot *slot;

	ref = bpf_map_lookup_elem(&collecting, &pkt->key);
	if (ref) {
		__u32 id = ref->slot, generation = ref->generation;

		slot = get_slot(id);
		/* The element was given to another flow after the lookup. */
		if (!slot || slot->generation != generation)
			return;
		if (!opens) {
			capture(cnt, slot, id, src, pkt, now);
			return;
		}
		discard_capture(cnt, slot, id);
	}
	/* Neither decided, a moment ago, nor collecting now: unless another CPU handed
	 * the flow over in between, and then it is decided by now. Without this look
	 * its next packet would open it a second time. */
	if (!opens && bpf_map_lookup_elem(&flows, &pkt->key))
		return;
	if (pkt->key.proto == IPPROTO_TCP) {
		new_tcp_packet(cnt, src, pkt, opens, now);
	} else if (pkt->payload_len) {
		if (open_capture(cnt, src, pkt, NULL, NULL, now))
			cnt->udp_opened++;
	} else {
		cnt->header_only++;
	}
}

/* Notes a packet of a known UDP flow, and tells whether it comes after so long a
 * silence that it starts another. The clock is read once a tick at most. */
static __always_inline bool fell_silent(struct flow *flow)
{
	__u32 tick = bpf_jiffies64();
	__u64 now, last;

	if (tick == flow->last_tick)
		return false;
	now = bpf_ktime_get_coarse_ns();
	last = flow->last_ns;
	flow->last_ns = now;
	flow->last_tick = tick;
	/* User space writes an exact time, which the coarse clock may lag. */
	return now > last && now - last > cfg_udp_idle_ns;
}

static __always_inline enum action process_packet(struct source *src, bool offloaded_tag,
						  __be16 tag_proto, __u16 tci)
{
	struct packet packet = {}, *pkt = &packet;
	struct counts *cnt = get_counters();
	struct block *block;
	struct flow *flow;
	bool opens;

	if (!cnt) /* an array's only entry: never, but the verifier asks */
		return ACTION_PASS;
	if (src->is_xdp)
		cnt->packets_ingress++;
	else
		cnt->packets_egress++;

	switch (parse_packet(src, pkt, offloaded_tag, tag_proto, tci)) {
	case PARSE_FLOW:
		break;
	case PARSE_NOT_IP:
		cnt->not_ip++;
		return ACTION_PASS;
	case PARSE_OTHER_PROTO:
		cnt->other_proto++;
		return ACTION_PASS;
	case PARSE_MALFORMED:
		cnt->malformed++;
		return ACTION_PASS;
	case PARSE_UNPARSABLE:
		cnt->unparsable++;
		return ACTION_PASS;
	case PARSE_LATER_FRAGMENT:
		cnt->later_fragment++;
		return ACTION_PASS;
	case PARSE_LOAD_FAILED:
		cnt->load_failed++;
		return ACTION_PASS;
	}

	opens = pkt->key.proto == IPPROTO_TCP && (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	block = get_block(&pkt->key);
	if (block) {
		__sync_fetch_and_add(&block->packets, 1);
		__sync_fetch_and_add(&block->bytes, pkt->frame_len);
		cnt->dropped_packets++;
		cnt->dropped_bytes += pkt->frame_len;
		return ACTION_DROP;
	}
	flow = bpf_map_lookup_elem(&flows, &pkt->key);
	if (flow) {
		if (pkt->key.proto == IPPROTO_UDP ? !fell_silent(flow) : !opens)
			return ACTION_PASS;
		/* The key's next flow. */
		bpf_map_delete_elem(&flows, &pkt->key);
	}
	collect(cnt, src, pkt, opens);
	return ACTION_PASS;
}

SEC("xdp.frags")
int ed_ingress(struct xdp_md *ctx)
{
	struct source src = {
		.ctx = ctx,
		.data = (void *)(long)ctx->data,
		.data_end = (void *)(long)ctx->data_end,
		.is_xdp = true,
	};

	src.len = src.data_end - src.data;
	return process_packet(&src, false, 0, 0) == ACTION_DROP ? XDP_DROP : XDP_PASS;
}

SEC("tc")
int ed_egress(struct __sk_buff *skb)
{
	struct source src = {
		.ctx = skb,
		.data = (void *)(long)skb->data,
		.data_end = (void *)(long)skb->data_end,
		.len = skb->len,
	};

	/* TC_ACT_UNSPEC (TCX_NEXT): programs behind this one have their say. */
	return process_packet(&src, skb->vlan_present, skb->vlan_proto, skb->vlan_tci) ==
			       ACTION_DROP
		       ? TC_ACT_SHOT
		       : TC_ACT_UNSPEC;
}

struct sweep_state {
	__u64 now;
	__u64 found;
};

static long sweep_one(void *map, struct flow_key *key, struct slot_ref *ref,
		      struct sweep_state *state)
{
	__u32 id = ref->slot, generation = ref->generation;
	struct slot *slot = get_slot(id);

	if (!slot || slot->generation != generation)
		return 0;
	if (state->now < slot->last_ns || state->now - slot->last_ns < cfg_idle_ns)
		return 0;
	close_capture(slot, id, REASON_IDLE);
	state->found++;
	return 0;
}

/* Run by the loader several times a second (BPF_PROG_RUN, never attached): hands
 * over the captures of flows that have been silent for cfg_idle_ns. Its packet is
 * a dummy. Returns how many it found. */
SEC("tc")
int ed_sweep(struct __sk_buff *skb)
{
	struct sweep_state state = {.now = bpf_ktime_get_ns()};

	bpf_for_each_map_elem(&collecting, sweep_one, &state, 0);
	return state.found;
}
