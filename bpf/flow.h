/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What both protocols' flows go through: blocks, the slots, the capture, the hand-over.
 *
 * Contract: a slot belongs to one flow from take_slot() to give_back(); `collecting` says
 * to which. A segment that is captured was judged first (place.h). A flow that finds no
 * room is remembered as decided: what is captured later would not be its first bytes.
 */
#pragma once

#include "packet.h"
#include "maps.h"
#include "hash.h"
#include "capture.h"
#include "handshake.h"
#include "place.h"
#include "exempt.h"
#include "pending.h"

enum action {
	ACTION_PASS = 0,
	ACTION_DROP = 1,
	ACTION_RESET = 2,  /* of a TCP packet that was counted as dropped: reset() decides */
	ACTION_ANSWER = 3, /* it became a RST to its sender: back where it came from */
};

/* Where the buffer's bytes can be read without a helper. */
static __always_inline void linear_part(const struct source *src, void **data, void **data_end)
{
	if (src->is_xdp) {
		*data = (void *)(long)((struct xdp_md *)src->ctx)->data;
		*data_end = (void *)(long)((struct xdp_md *)src->ctx)->data_end;
	} else {
		*data = (void *)(long)((struct __sk_buff *)src->ctx)->data;
		*data_end = (void *)(long)((struct __sk_buff *)src->ctx)->data_end;
	}
}

/* Where a packet came from. */
enum side {
	SIDE_IN = 0,  /* through the interface */
	SIDE_OUT = 1, /* from this machine, or through another interface */
};

static __always_inline __u8 side_of(const struct source *src, const struct packet *pkt)
{
	__u32 device;

	if (cfg_one_hook)
		return pkt->src_is_lo;
	if (src->is_ingress)
		return SIDE_IN;
	device = ((struct __sk_buff *)src->ctx)->ingress_ifindex;
	return device && bpf_map_lookup_elem(&same_side, &device) ? SIDE_IN : SIDE_OUT;
}

/* Makes three functions of one: no program may contain helper calls of the other kind of hook, and
 * the direction is a constant. Not static, so that the verifier looks at each once. Counters are
 * handed on: for each lookup of them, the kernel would move the program that is behind it. */
#define FOR_EACH_HOOK(function)                                                                    \
	__noinline int function##_xdp(struct xdp_md *ctx, struct packet *pkt, struct counts *cnt)  \
	{                                                                                          \
		struct source src = {.ctx = ctx, .cnt = cnt, .is_xdp = true, .is_ingress = true};  \
		return function(&src, pkt);                                                        \
	}                                                                                          \
	__noinline int function##_in(struct __sk_buff *ctx, struct packet *pkt,                    \
				     struct counts *cnt)                                           \
	{                                                                                          \
		struct source src = {.ctx = ctx, .cnt = cnt, .is_ingress = true};                  \
		return function(&src, pkt);                                                        \
	}                                                                                          \
	__noinline int function##_out(struct __sk_buff *ctx, struct packet *pkt,                   \
				      struct counts *cnt)                                          \
	{                                                                                          \
		struct source src = {.ctx = ctx, .cnt = cnt};                                      \
		return function(&src, pkt);                                                        \
	}

#define call_hook(function, src, pkt)                                                              \
	((src)->is_xdp	     ? function##_xdp((src)->ctx, pkt, (src)->cnt)                         \
	 : (src)->is_ingress ? function##_in((src)->ctx, pkt, (src)->cnt)                          \
			     : function##_out((src)->ctx, pkt, (src)->cnt))

/* The slowest tick that kernels are built with (CONFIG_HZ=100), in nanoseconds. */
#define SLOWEST_TICK 10000000ULL

/* The key's block, if it has one, its connection ended or not. */
static __always_inline struct block *find_block(const struct flow_key *key)
{
	if (!block_filter[flow_bucket(key)])
		return NULL;
	return bpf_map_lookup_elem(&blocked, key);
}

/* The key's block, unless it ended with its connection. */
static __always_inline struct block *get_block(const struct flow_key *key)
{
	struct block *block = find_block(key);

	return block && !block->ended ? block : NULL;
}

/* Whether a block's time is not over. Reading a clock costs more than the rest of a
 * dropped packet, reading jiffies next to nothing; how long a jiffy is, a program can't
 * know. So the clock is read once and then not again until the time left could be over if
 * every tick were as short as 1 ms and is surely not if it is as long as 10 ms: each
 * reading covers at least a tenth of what is left, and the block ends to the nanosecond. */
static __always_inline bool time_left(struct block *block)
{
	__u64 now, jiffies = bpf_jiffies64();

	if (jiffies < block->sure_until)
		return true;
	now = bpf_ktime_get_ns();
	if (now >= block->expires_ns)
		return false;
	block->sure_until = jiffies + (block->expires_ns - now) / SLOWEST_TICK;
	return true;
}

/* Takes what is worth so many nanoseconds out of a bucket that holds `most` of them. The word
 * says when what was taken will have flown in again. CPUs that take at the same time never
 * get more; one that others prevent again and again gets nothing. Not static, as
 * own_handshake(). */
__noinline int take(__u64 *busy_ns, __u64 now, __u64 worth, __u64 most)
{
	if (!busy_ns)
		return false;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		__u64 is = *(volatile __u64 *)busy_ns, from = is > now ? is : now;

		if (from + worth - now > most)
			return false;
		if (__sync_val_compare_and_swap(busy_ns, is, from + worth) == is)
			return true;
	}
	return false;
}

/* What a limited flow may send at once: a socket buffer is up to 64 KiB. */
#define LIMIT_BURST (128 * 1024)
#define SECOND_NS 1000000000ULL

/* Whether a packet of a limited flow passes. Both directions share the rate. Not static, so
 * that the registers of a dropped packet are not saved for it. */
__noinline int within_limit(struct block *block, __u32 bytes)
{
	__u64 rate;

	if (!block)
		return 0;
	rate = block->rate;
	return take(&block->busy_ns, bpf_ktime_get_ns(), (bytes * SECOND_NS + rate - 1) / rate,
		    LIMIT_BURST * SECOND_NS / rate);
}

/* How many RSTs an end of a blocked flow is sent. */
#define RESETS_MOST 3

/* Whether a packet of a flow that is reset is a RST without payload, which passes: one of ours,
 * or of an end that got one. */
static __always_inline bool is_bare_reset(const struct packet *pkt)
{
	return (pkt->tcp_flags & (TCP_RST | PACKET_FIRST)) == TCP_RST && !pkt->payload_len;
}

/* Whether a packet that is dropped may be answered. Fragments, and what is no whole packet of a
 * connection, are not; nor what a RST answers already. */
static __always_inline bool wants_reset(const struct block *block, const struct packet *pkt)
{
	const __u8 mine = TCP_ACK | TCP_SYN | TCP_RST | PACKET_FIRST | PACKET_UNSURE | PACKET_DECOY;
	__u32 sender = pkt->src_is_lo ? block->resets_lo : block->resets_hi;
	__u32 other = pkt->src_is_lo ? block->resets_hi : block->resets_lo;

	return (pkt->tcp_flags & mine) == TCP_ACK && (sender < RESETS_MOST || !other);
}

/* What becomes of a packet of a blocked flow; drops it. In mode monitor the block is suspended:
 * the packet passes, is not counted, and is to go the way of one that no block is about. So
 * does what a limit lets pass. */
static __always_inline enum action drop(struct counts *cnt, struct block *block,
					const struct packet *pkt)
{
	__u8 action = block->action;

	if (!is_enforced())
		return ACTION_PASS;
	if (action == BLOCK_RESET && is_bare_reset(pkt))
		return ACTION_PASS;
	if (action == BLOCK_LIMIT && within_limit(block, pkt->frame_len))
		return ACTION_PASS;
	__sync_fetch_and_add(&block->packets, 1);
	__sync_fetch_and_add(&block->bytes, pkt->frame_len);
	cnt->dropped_packets++;
	cnt->dropped_bytes += pkt->frame_len;
	if (action == BLOCK_RESET && wants_reset(block, pkt))
		return ACTION_RESET;
	return ACTION_DROP;
}

/* drop() for what goes a longer way anyway: it stands once in a program, and not wherever it is
 * asked. Not static, as own_handshake(). */
__noinline int drop_late(struct counts *cnt, struct block *block, const struct packet *pkt)
{
	if (!cnt || !block || !pkt)
		return ACTION_PASS;
	return drop(cnt, block, pkt);
}

static __always_inline void remember(const struct flow_key *key, enum verdict verdict, __u32 isn_lo,
				     __u32 isn_hi, __u8 known)
{
	struct flow flow = {
		.last_ns = bpf_ktime_get_coarse_ns(),
		.last_tick = bpf_jiffies64(),
		.verdict = verdict,
		.isn_lo = isn_lo,
		.isn_hi = isn_hi,
		.known = known & KNOWN_ISN,
	};

	/* An LRU map refuses no entry; were one refused, the flow would be seen as
	 * mid-stream, which passes. */
	bpf_map_update_elem(&flows, key, &flow, BPF_ANY);
}

/* Whether there is more than next to no payload, with what was captured before. */
static __always_inline bool enough_payload(const struct slot *slot)
{
	return slot->sample.before || slot->payload >= PAYLOAD_LEAST;
}

/* A capture was handed over. again is as of struct flow. */
static __always_inline void remember_capture(const struct slot *slot, enum verdict verdict,
					     __u8 again)
{
	const struct sample *sample = &slot->sample;
	struct flow *known,
		flow = {
			.last_ns = bpf_ktime_get_coarse_ns(),
			.last_tick = bpf_jiffies64(),
			.verdict = verdict,
			.isn_lo = sample->isn_lo,
			.isn_hi = sample->isn_hi,
			.known = sample->known & KNOWN_ISN,
			.mark = slot->mark,
			.again = again,
			.initiator_is_lo = sample->initiator_is_lo,
			.side = sample->side,
			.state = (sample->flags & SAMPLE_ONE_WAY) |
				 slot->pieces_lo << FLOW_PIECES_LO_SHIFT |
				 slot->pieces_hi << FLOW_PIECES_HI_SHIFT |
				 (slot->begun || enough_payload(slot) ? FLOW_BEGUN : 0),
			.before =
				again && enough_payload(slot) && !slot->unsure ? sample->length : 0,
			.next_lo = sample->next_lo,
			.next_hi = sample->next_hi,
		};

	/* Somebody has lifted a block of the flow while it was captured. */
	known = bpf_map_lookup_elem(&flows, &sample->key);
	if (known && known->verdict == VERDICT_EXEMPT)
		return;
	/* As in remember(). */
	bpf_map_update_elem(&flows, &sample->key, &flow, BPF_ANY);
}

/* For which time payload that follows opens the capture again; 0: for none. */
static __always_inline __u8 goes_on(const struct slot *slot)
{
	const struct sample *sample = &slot->sample;

	if (sample->key.proto != IPPROTO_TCP || sample->again >= AGAIN_MOST)
		return 0;
	if ((sample->flags & SAMPLE_MID_STREAM) && !(sample->more & MORE_GOES_ON))
		return 0;
	if (sample->reason == REASON_FULL && enough_payload(slot) && !slot->unsure)
		return 0;
	return sample->again + 1;
}

static __always_inline bool take_slot(__u8 proto, __u32 *id)
{
	if (proto == IPPROTO_TCP && !bpf_map_pop_elem(&free_tcp_slots, id))
		return true;
	return !bpf_map_pop_elem(&free_slots, id);
}

static __always_inline void count_one_slot(__u32 quota, __u32 delta)
{
	struct slot_count *count = bpf_map_lookup_elem(&slot_quota, &quota);

	if (count)
		__sync_fetch_and_add(&count->held, delta);
}

/* Counts a slot that is held (1), or no more (-1). Not static, as own_handshake(). */
__noinline int count_slot(__u32 quota, __u32 pair_quota, __u32 delta)
{
	count_one_slot(SLOTS_IN_USE, delta);
	count_one_slot(quota, delta);
	count_one_slot(pair_quota, delta);
	return 0;
}

static __always_inline void give_back(const struct slot *slot, __u32 id)
{
	count_slot(slot->quota, slot->pair_quota, -1);
	if (id < cfg_tcp_slots)
		bpf_map_push_elem(&free_tcp_slots, &id, 0);
	else
		bpf_map_push_elem(&free_slots, &id, 0);
}

static __always_inline void release_slot(struct slot *slot, __u32 id)
{
	bpf_map_delete_elem(&collecting, &slot->sample.key);
	give_back(slot, id);
}

/* Called with the word that the last one to leave a full or closed capture saw. Not
 * static, so that the verifier looks at it once and not wherever it is called; which is
 * why it looks for its counters and its slot again. Returns 0. */
__noinline int hand_over(struct counts *cnt, __u32 id, __u64 word)
{
	struct slot *slot = get_slot(id);
	__u32 len = WORD_BYTES(word), size;
	struct sample *sample;
	__u8 again;

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
	again = goes_on(slot);
	if (again)
		sample->flags |= SAMPLE_PROVISIONAL;
	remember_capture(slot, VERDICT_PENDING, again);
	if (sample->reason == REASON_FULL)
		cnt->handed_full++;
	else if (sample->reason == REASON_IDLE)
		cnt->handed_idle++;
	else
		cnt->handed_closed++;
	size = __builtin_offsetof(struct sample, data) + len;
	if (sample->repeat_len)
		size = __builtin_offsetof(struct sample, repeat) + sample->repeat_len;
	barrier_var(size);
	if (size > sizeof(*sample))
		size = sizeof(*sample);
	if (bpf_ringbuf_output(&samples, sample, size, 0)) {
		cnt->ring_full++;
		remember_capture(slot, VERDICT_PASS, 0);
	} else if (!again && may_wait(sample) && looks_random(id)) {
		wait_for_verdict(cnt, sample);
	}
	release_slot(slot, id);
	return 0;
}

/* Stops a capture; what is in it is handed over by whoever leaves it last. */
static __always_inline void close_capture(struct counts *cnt, struct slot *slot, __u32 id,
					  __u8 reason)
{
	__u64 old;

	if (slot->word & WORD_CLOSED)
		return;
	slot->sample.reason = reason;
	old = __sync_fetch_and_or(&slot->word, WORD_CLOSED);
	if (!WORD_REFS(old))
		hand_over(cnt, id, old | WORD_CLOSED);
}

/* Throws a capture away. Returns false if another CPU was faster, which hands it over. */
static __always_inline bool discard_capture(struct slot *slot, __u32 id)
{
	__sync_fetch_and_or(&slot->word, WORD_CLOSED);
	if (__sync_lock_test_and_set(&slot->handed_over, 1))
		return false;
	release_slot(slot, id);
	return true;
}

/* Called when a capture has been opened: another CPU may have opened one and handed it over
 * since this one looked for the flow. Then this is a second one, and is thrown away; returns
 * whether it was. In hand_over(), `flows` is written before `collecting` is free again. */
static __always_inline bool discard_second(const struct flow_key *key, struct slot *slot, __u32 id)
{
	struct flow *known = bpf_map_lookup_elem(&flows, key);

	return known && known->verdict != VERDICT_RESUMED && discard_capture(slot, id);
}

/* Takes back what a packet has added to a capture's word. Whoever leaves a full or closed one
 * last leaves the hand-over to its caller, see struct packet. */
static __always_inline void leave_capture(struct slot *slot, __u32 id, struct packet *pkt,
					  __u64 added)
{
	__u64 word = __sync_fetch_and_sub(&slot->word, added) - added;

	if (!WORD_REFS(word) && ((word & WORD_CLOSED) || WORD_BYTES(word) >= CAPTURE_BYTES)) {
		pkt->hand_over = word;
		pkt->slot = id;
	}
}

/* Adds to the payload that was captured, and notes a slow beginning. */
static __always_inline void add_payload(struct slot *slot, __u32 bytes, __u32 time_us)
{
	__u32 payload = slot->payload;

	if (!payload)
		slot->first_us = time_us;
	slot->payload = payload + bytes;
	if (payload < PAYLOAD_LEAST && payload + bytes >= PAYLOAD_LEAST && !slot->begun &&
	    (__s32)(time_us - slot->first_us) > SLOW_US)
		slot->unsure = 1;
}

/* Keeps what of the frame is behind its first `len` bytes: with what follows, it becomes
 * one beginning. With fewer than PREFIX_LEN there it keeps the frame from its start. The
 * caller holds the capture. */
static __always_inline void keep_rest(struct slot *slot, const struct source *src,
				      const struct packet *pkt, __u32 len)
{
	struct counts *cnt = src->cnt;
	const __u32 whole = REST_BYTES - PREFIX_LEN; /* see copy_frame() */
	__u32 off = len - pkt->prefix_len + pkt->skip, n;
	struct sample *sample = &slot->sample;

	if (__sync_lock_test_and_set(&slot->repeated, 1))
		return;
	if (len < PREFIX_LEN) {
		n = MIN(pkt->frame_len, whole);
		if (copy_frame(src, pkt, sample->repeat, n, whole)) {
			cnt->load_failed++;
			return;
		}
	} else {
		n = MIN(pkt->frame_len - len, REST_BYTES);
		n--; /* see copy_frame() */
		barrier_var(n);
		if (n >= REST_BYTES)
			return;
		n++;
		if (load(src, off, sample->repeat, n)) {
			cnt->load_failed++;
			return;
		}
	}
	sample->more |= MORE_REST;
	sample->repeat_len = n;
}

/* Adds one packet to a capture; `last` closes it. Leaves the hand-over to the caller if that
 * was the last one, see struct packet. */
static __always_inline void capture(struct slot *slot, __u32 id, const struct source *src,
				    struct packet *pkt, bool last)
{
	struct counts *cnt = src->cnt;
	__u32 len = MIN(pkt->frame_len, CAPTURE_BYTES), off, n;
	__u32 header_len = pkt->frame_len - pkt->payload_len;
	__u64 joined = WORD_REF | WORD_PACKET | len, word;
	struct packet_record *rec;

	word = __sync_fetch_and_add(&slot->word, joined);
	off = WORD_BYTES(word);
	n = WORD_PACKETS(word);
	barrier_var(off);
	barrier_var(n);
	if ((word & WORD_CLOSED) || off >= CAPTURE_BYTES || n >= CAPTURE_PACKETS) {
		leave_capture(slot, id, pkt, joined);
	} else {
		rec = &slot->sample.packets[n];
		rec->wire_len = pkt->frame_len;
		rec->time_us = microseconds(slot->sample.start_ns, pkt->now);
		rec->place = record_place(src, pkt, off,
					  pkt->src_is_lo == !!slot->sample.initiator_is_lo);
		rec->segment = segment_size(src);
		slot->last_ns = pkt->now;
		len = MIN(len, CAPTURE_BYTES - off);
		if (len > header_len) {
			add_payload(slot, len - header_len, rec->time_us);
			note_beginning(slot, pkt, off + header_len, len - header_len);
		}
		if (slot->unsure && len < pkt->frame_len)
			keep_rest(slot, src, pkt, len);
		if (copy_frame(src, pkt, slot->sample.data + off, len, CAPTURE_BYTES))
			cnt->load_failed++;
		if (last) {
			slot->sample.reason = REASON_CLOSED;
			__sync_fetch_and_or(&slot->word, WORD_CLOSED);
		}
		leave_capture(slot, id, pkt, WORD_REF);
	}
}

/* Keeps payload that its side has sent before, once: it may differ from what was captured, and
 * nobody here can tell which of the two a host takes. Leaves the hand-over to the caller, as
 * capture() does. */
static __always_inline void keep_repeated(struct slot *slot, __u32 id, const struct source *src,
					  struct packet *pkt)
{
	struct counts *cnt = src->cnt;
	__u32 off = pkt->frame_len - pkt->payload_len - pkt->prefix_len + pkt->skip;
	__u32 len = MIN(pkt->payload_len, REPEAT_BYTES);
	struct sample *sample = &slot->sample;
	__u64 word;

	/* A single byte is how some ask whether the other side is alive. */
	if (len < 2 || slot->repeated)
		return;
	/* Nobody hands the capture over meanwhile. */
	word = __sync_fetch_and_add(&slot->word, WORD_REF);
	if (!(word & WORD_CLOSED) && WORD_BYTES(word) < CAPTURE_BYTES &&
	    !__sync_lock_test_and_set(&slot->repeated, 1)) {
		sample->repeat_seq = pkt->seq;
		sample->repeat_from_initiator = pkt->src_is_lo == !!sample->initiator_is_lo;
		len--; /* see copy_frame() */
		barrier_var(len);
		if (len < REPEAT_BYTES) {
			if (load(src, off, sample->repeat, len + 1))
				cnt->load_failed++;
			else
				sample->repeat_len = len + 1;
		}
	}
	leave_capture(slot, id, pkt, WORD_REF);
}

/* Counts why a segment is not captured. */
static __always_inline void count_misplaced(struct counts *cnt, enum placed placed)
{
	if (placed == PLACED_BEHIND)
		cnt->behind++;
	else
		cnt->out_of_place++;
}

/* Notes a segment with payload by which a side begins, and is captured. Called under the
 * lock. */
static __always_inline void note_piece(struct slot *slot, const struct packet *pkt)
{
	__u8 *pieces = pkt->src_is_lo ? &slot->pieces_lo : &slot->pieces_hi;
	__u8 side = pkt->src_is_lo ? 1 : 2;
	bool adjacent = slot->last_side == side;

	slot->last_side = side;
	if (*pieces == PIECES_OVER)
		return;
	if (pkt->payload_len >= TINY_BYTES) {
		*pieces = PIECES_OVER;
		return;
	}
	if (*pieces < PIECES_TINY)
		++*pieces;
	if (*pieces == PIECES_TINY || (adjacent && *pieces == PIECES_TINY - 1))
		slot->unsure = 1;
}

/* Judges a segment of a connection that is collecting, and counts one that is not to be captured.
 * Returns PLACED or PLACED_LAST for one that is, and PLACED_BEHIND for payload that comes again. */
static __always_inline enum placed place_segment(struct counts *cnt, struct slot *slot,
						 const struct packet *pkt)
{
	struct expected e = {.one_way = slot->sample.flags & SAMPLE_ONE_WAY,
			     .begun = slot->sample.known & KNOWN_ISN};
	bool decoy = pkt->tcp_flags & PACKET_DECOY;
	__u32 bare = has_payload(pkt) ? 0 : pkt->frame_len;
	__u32 sender = sender_of(pkt);
	enum placed placed;

	if (!comes_from(pkt, slot->sample.side, slot->sample.initiator_is_lo)) {
		cnt->wrong_side++;
		return PLACED_OUT;
	}
	/* Both hooks move one side's numbers each, and look at the other's. */
	bpf_spin_lock(&slot->lock);
	expect(&e, sender, &slot->sample.isn_lo, &slot->sample.next_lo, &slot->hole_lo);
	placed = place(&e, pkt);
	if (!decoy)
		move_on(&e, sender, &slot->sample.next_lo, &slot->hole_lo);
	if (decoy && placed != PLACED_OUT)
		slot->sample.flags |= SAMPLE_DECOY;
	if (!decoy && placed == PLACED_OUT)
		note_stray(&slot->stray_lo, &slot->stray_hi, &slot->sample.more, pkt);
	if (!decoy && placed == PLACED) {
		bare += slot->bare;
		if (bare <= BARE_BYTES)
			slot->bare = bare;
	}
	if (!decoy && pkt->payload_len && (placed == PLACED || placed == PLACED_LAST))
		note_piece(slot, pkt);
	bpf_spin_unlock(&slot->lock);
	if (decoy) {
		cnt->decoys++;
		return PLACED_OUT;
	}
	if (bare > BARE_BYTES && placed == PLACED) {
		cnt->bare++;
		return PLACED_OUT;
	}
	if (placed != PLACED && placed != PLACED_LAST)
		count_misplaced(cnt, placed);
	return placed;
}

#define NO_CANDIDATE 0xffffffff
#define NO_CANDIDATE_AGAIN 0xfffffffe /* the flow's capture goes on */

/* An initiator may hold an eighth of the slots when three quarters are in use, and for one
 * responder a sixty-fourth. What it holds for one responder counts for no more than that in
 * its own sum: who can make connections in a neighbour's name, but to one server only,
 * uses up the neighbour's slots to that server, and no others. */
#define QUOTA_SHARE 8
#define QUOTA_PAIR_SHARE 64

/* Puts into the packet what counts the slot. Returns false if the initiator has too many. Not
 * static, as own_handshake(). */
__noinline int within_quota(struct packet *pkt, bool initiator_is_lo)
{
	const __u32 *from, *to;
	struct slot_count *in_use, *own, *pair;
	__u32 share = cfg_slots / QUOTA_SHARE, pair_share = cfg_slots / QUOTA_PAIR_SHARE, quota;
	__u32 initiator[4];
	__u64 sum;

	if (!pkt)
		return false;
	if (!share)
		share = 1;
	if (!pair_share)
		pair_share = 1;
	from = (const __u32 *)(initiator_is_lo ? pkt->key.lo_addr : pkt->key.hi_addr);
	to = (const __u32 *)(initiator_is_lo ? pkt->key.hi_addr : pkt->key.lo_addr);
	__builtin_memcpy(initiator, from, sizeof(initiator));
	/* A host of IPv6 has a /64 for itself. */
	if (initiator[0] || initiator[1])
		initiator[2] = initiator[3] = 0;
	quota = SLOTS_IN_USE;
	in_use = bpf_map_lookup_elem(&slot_quota, &quota);
	sum = nh_sum(initiator, 4, 0);
	pkt->quota = quota = finish_hash(sum) % SLOT_QUOTAS;
	own = bpf_map_lookup_elem(&slot_quota, &quota);
	pkt->pair_quota = quota = finish_hash(sum + nh_sum(to, 4, 4)) % SLOT_QUOTAS;
	pair = bpf_map_lookup_elem(&slot_quota, &quota);
	if (!in_use || !own || !pair)
		return true;
	if (in_use->held * 4 >= cfg_slots * 3 && (own->held >= share || pair->held >= pair_share))
		return false;
	if (pair->held >= pair_share)
		pkt->quota = SLOT_UNCOUNTED;
	return true;
}

#define MARK_ASKED 0 /* say that there is one */
#define MARK_KEPT 1
#define MARK_CLEARED 2

enum joining {
	JOINED = 0,   /* the packet was captured, or counted */
	JOIN_NOTHING, /* the flow is not collecting */
	JOIN_MARKED,  /* its candidates are to be looked at first; pkt->mark says what then */
};

/* Captures a packet of a flow that is collecting. Returns an enum joining. */
static __always_inline int join_capture(const struct source *src, struct packet *pkt)
{
	struct counts *cnt = src->cnt;
	enum placed placed = PLACED;
	__u32 id, generation;
	struct slot_ref *ref;
	struct flow_key key;
	struct slot *slot;

	if (!cnt || !pkt)
		return JOINED;
	key = pkt->key;
	ref = bpf_map_lookup_elem(&collecting, &key);
	if (!ref)
		return JOIN_NOTHING;
	id = ref->slot;
	generation = ref->generation;
	slot = get_slot(id);
	/* The element was given to another flow after the lookup. */
	if (!slot || slot->generation != generation)
		return JOINED;
	if (slot->mark && pkt->mark == MARK_ASKED)
		return JOIN_MARKED;
	if (pkt->mark == MARK_CLEARED)
		slot->mark = 0;
	if (key.proto == IPPROTO_TCP) {
		placed = place_segment(cnt, slot, pkt);
	} else if (!comes_from(pkt, slot->sample.side, slot->sample.initiator_is_lo)) {
		cnt->wrong_side++;
		return JOINED;
	}
	if (placed == PLACED || placed == PLACED_LAST)
		capture(slot, id, src, pkt, placed == PLACED_LAST);
	else if (placed == PLACED_BEHIND)
		keep_repeated(slot, id, src, pkt);
	return JOINED;
}

FOR_EACH_HOOK(join_capture)

/* Makes a slot that was taken that of the packet's flow, and counts it. Returns its
 * generation. */
static __always_inline __u32 hold_slot(struct slot *slot, const struct packet *pkt, __u32 quota,
				       __u32 pair_quota)
{
	slot->quota = quota;
	slot->pair_quota = pair_quota;
	count_slot(quota, pair_quota, 1);
	slot->generation++;
	slot->handed_over = 0;
	slot->mark = 0;
	slot->pieces_lo = slot->pieces_hi = slot->unsure = slot->begun = slot->last_side = 0;
	slot->payload = slot->bare = slot->repeated = slot->first_us = 0;
	slot->first_bytes = 0;
	slot->stray_lo = slot->stray_hi = 0;
	slot->sample.repeat_len = 0;
	slot->sample.again = 0;
	slot->sample.more = 0;
	slot->sample.before = 0;
	slot->last_ns = pkt->now;
	slot->sample.key = pkt->key;
	slot->sample.reason = 0;
	return slot->generation;
}

/* Opens the capture of the packet's flow: of the candidate that pkt->candidate says, which
 * the caller owns, with the packets of its handshake; or from the middle of a stream, or where
 * the flow's capture before ended. The packet
 * itself is then to join it. Lets go of the candidate. Returns whether a flow began, captured or
 * not, and not another CPU's. */
__noinline int open_capture(struct counts *cnt, const struct packet *pkt)
{
	struct candidate *candidate = NULL;
	struct handshake *hs = NULL;
	struct flow *before = NULL;
	struct slot_ref ref = {};
	struct flow_key key;
	struct slot *slot;
	int opened = 1;
	__u32 id;
	int err; /* not long: before Linux 6.4 only the low half of the result is set */

	if (!cnt || !pkt)
		return 0;
	key = pkt->key;
	id = pkt->candidate;
	if (id == NO_CANDIDATE_AGAIN) {
		before = bpf_map_lookup_elem(&flows, &key);
		if (!before || !before->again)
			return 0; /* another CPU was faster */
	} else if (id != NO_CANDIDATE) {
		candidate = bpf_map_lookup_elem(&syns, &id);
		hs = bpf_map_lookup_elem(&handshakes, &id);
	}
	barrier_var(candidate); /* clang must not take id for it: the verifier can't */
	if (is_exempt(pkt)) {
		cnt->exempt_flows++;
		goto refused;
	}
	if (!take_slot(key.proto, &ref.slot)) {
		cnt->slots_full++;
		goto refused;
	}
	slot = get_slot(ref.slot);
	if (!slot)
		goto out;
	ref.generation = hold_slot(slot, pkt, pkt->quota, pkt->pair_quota);
	slot->word = 0;
	if (candidate && hs) {
		slot->sample.start_ns = candidate->start_ns;
		slot->sample.initiator_is_lo = candidate->initiator_is_lo;
		slot->sample.side = candidate->side;
		slot->sample.flags = candidate->flags & CANDIDATE_FORGED ? SAMPLE_ONE_WAY : 0;
		if (candidate->flags & CANDIDATE_DECOY)
			slot->sample.flags |= SAMPLE_DECOY;
		slot->sample.flags |= candidate->seen;
		slot->sample.more = candidate->more;
		if (candidate->more & (MORE_JOIN | MORE_UNREADABLE | MORE_GOES_ON))
			slot->sample.flags |= SAMPLE_MID_STREAM;
		slot->stray_lo = candidate->stray_lo;
		slot->stray_hi = candidate->stray_hi;
		if (candidate->flags & CANDIDATE_EARLY)
			slot->payload = candidate->acked - 1 -
					(candidate->initiator_is_lo ? candidate->isn_lo
								    : candidate->isn_hi);
		slot->sample.known = KNOWN_ALL;
		slot->sample.isn_lo = candidate->isn_lo;
		slot->sample.isn_hi = candidate->isn_hi;
		slot->sample.next_lo = candidate->next_lo;
		slot->sample.next_hi = candidate->next_hi;
		slot->hole_lo = candidate->hole_lo;
		slot->hole_lo_end = candidate->hole_lo_end;
		slot->hole_hi = candidate->hole_hi;
		slot->hole_hi_end = candidate->hole_hi_end;
		__builtin_memcpy(slot->sample.packets, hs->packets, sizeof(hs->packets));
		__builtin_memcpy(slot->sample.data, hs->data, HANDSHAKE_BYTES);
		slot->word = hs->packet_count * WORD_PACKET + hs->bytes;
	} else if (before) {
		slot->sample.start_ns = pkt->now;
		slot->sample.initiator_is_lo = before->initiator_is_lo;
		slot->sample.side = before->side;
		slot->sample.flags = before->state & SAMPLE_ONE_WAY;
		slot->pieces_lo = before->state >> FLOW_PIECES_LO_SHIFT & FLOW_PIECES_MASK;
		slot->pieces_hi = before->state >> FLOW_PIECES_HI_SHIFT & FLOW_PIECES_MASK;
		slot->begun = before->state & FLOW_BEGUN;
		slot->mark = before->mark;
		slot->sample.again = before->again;
		slot->sample.before = before->before;
		slot->word = before->before;
		slot->sample.known = KNOWN_ALL;
		slot->sample.isn_lo = before->isn_lo;
		slot->sample.isn_hi = before->isn_hi;
		slot->sample.next_lo = before->next_lo;
		slot->sample.next_hi = before->next_hi;
		slot->hole_lo = slot->hole_lo_end = slot->hole_hi = slot->hole_hi_end = 0;
	} else {
		slot->sample.start_ns = pkt->now;
		slot->sample.initiator_is_lo = pkt->src_is_lo;
		slot->sample.side = pkt->side;
		slot->sample.flags = SAMPLE_MID_STREAM;
		slot->sample.known = KNOWN_NEXT_LO | KNOWN_NEXT_HI;
		slot->sample.isn_lo = slot->sample.isn_hi = 0;
		slot->sample.next_lo = pkt->src_is_lo ? pkt->seq : pkt->ack;
		slot->sample.next_hi = pkt->src_is_lo ? pkt->ack : pkt->seq;
		slot->hole_lo = slot->hole_lo_end = slot->hole_hi = slot->hole_hi_end = 0;
	}
	err = bpf_map_update_elem(&collecting, &key, &ref, BPF_NOEXIST);
	if (!err) {
		/* First collecting, then no longer handed over, as in hand_over(). */
		if (before) {
			bpf_map_delete_elem(&flows, &key);
			cnt->again++;
		} else if (!candidate) {
			opened = !discard_second(&key, slot, ref.slot);
		}
		goto out;
	}
	give_back(slot, ref.slot);
	if (err == -EEXIST) {
		/* The other direction's first packet was faster on another CPU. */
		opened = 0;
		goto out;
	}
	cnt->collecting_full++;
refused:
	if (candidate)
		remember(&key, VERDICT_PASS, candidate->isn_lo, candidate->isn_hi, KNOWN_ISN);
	else if (before)
		before->again = 0;
	else
		remember(&key, VERDICT_PASS, 0, 0, 0);
out:
	if (candidate)
		free_candidate(id);
	return opened;
}

/* Remembers the flow of pkt->candidate, which the caller owns, as decided, without a
 * capture. Lets go of the candidate. */
__noinline int refuse_capture(const struct packet *pkt)
{
	struct candidate *candidate;
	struct flow_key key;
	__u32 id;

	if (!pkt)
		return 0;
	key = pkt->key;
	id = pkt->candidate;
	candidate = bpf_map_lookup_elem(&syns, &id);
	if (!candidate)
		return 0;
	remember(&key, VERDICT_PASS, candidate->isn_lo, candidate->isn_hi, KNOWN_ISN);
	free_candidate(id);
	return 0;
}
