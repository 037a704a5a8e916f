/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TCP: only a connection that both ends have made is captured.
 *
 * A SYN makes a candidate and touches nothing that is known of its key. A SYN+ACK that
 * acknowledges it, from the other side, answers it; a segment that acknowledges that, from
 * the SYN's side again, proves it: then, and not before, what was known of the key ends.
 * A capture begins with the first payload, and takes what is in place (place.h).
 *
 * Contract: loader/assembly has the same rules, less those of sides where a capture file
 * has none. Whoever can send from one side of the interface, and does not see the other,
 * can't prove a connection, nor end or hide what is known of one.
 */
#pragma once

#include "flow.h"
#include "pairs.h"
#include "checksum.h"
#include "settled.h"

/* A candidate that is older has to make way for another. */
#define CANDIDATE_NS 60000000000ULL
/* What leaves within a second of having come in was sent back by routing; time is counted in
 * units of 2^20 ns. */
#define SEEN_SHIFT 20
#define SEEN_LIMIT (1000000000ULL >> SEEN_SHIFT)

/* A block is renewed at most so often, by packets that are no more than this ahead. */
#define BLOCK_RENEWALS 5
#define BLOCK_AHEAD (64 * 1024 * 1024)

/* Fills in what the TCP header says, and from where the packet came. */
static __always_inline bool read_segment(const struct source *src, struct packet *pkt)
{
	__u32 off = pkt->tcp_off + 4; /* behind the ports */
	void *data, *data_end;
	__be32 numbers[2];

	linear_part(src, &data, &data_end);
	barrier_var(off);
	if (off <= LINEAR_OFFSET && data + off + sizeof(numbers) <= data_end) {
		pkt->seq = bpf_ntohl(((__be32 *)(data + off))[0]);
		pkt->ack = bpf_ntohl(((__be32 *)(data + off))[1]);
	} else {
		if (load(src, off, numbers, sizeof(numbers)))
			return false;
		pkt->seq = bpf_ntohl(numbers[0]);
		pkt->ack = bpf_ntohl(numbers[1]);
	}
	pkt->now = bpf_ktime_get_ns();
	pkt->side = side_of(src, pkt);
	return true;
}

static __always_inline bool is_young(const struct packet *pkt, __u64 since_ns, __u64 limit_ns)
{
	/* Another CPU's clock may be a little ahead. */
	return (__s64)(pkt->now - since_ns) < (__s64)limit_ns;
}

static __always_inline bool is_syn(const struct syn *syn, const struct packet *pkt)
{
	return syn->seq == pkt->seq && !!syn->from_lo == pkt->src_is_lo;
}

/* Whether SYN, SYN+ACK or a datagram left a moment after it came in, with the same numbers:
 * routing sent it back, and nobody on the other side has sent it. What comes in is noted. Not
 * static, as own_handshake(). */
__noinline int is_reflected(const struct packet *pkt)
{
	__u32 words[6], index, tag, when;
	struct seen_packet *seen;
	__u64 hash, was;

	if (!pkt || cfg_one_hook)
		return 0;
	words[0] = pkt->hash;
	words[1] = pkt->hash >> 32;
	words[2] = pkt->seq;
	words[3] = pkt->ack;
	words[4] = pkt->tcp_flags & TCP_ACK;
	words[5] = pkt->src_is_lo;
	when = pkt->now >> SEEN_SHIFT;
	hash = hash_words(words, 6);
	index = hash % SEEN_WORDS;
	tag = hash >> 32;
	seen = bpf_map_lookup_elem(&seen_inside, &index);
	if (!seen)
		return false;
	if (pkt->side == SIDE_IN) {
		seen->hash_and_time = (__u64)tag << 32 | when;
		return false;
	}
	was = seen->hash_and_time;
	return was >> 32 == tag && when - (__u32)was <= SEEN_LIMIT;
}

/* Appends a packet, cut behind its headers, to the handshake pkt->candidate, owned, or leaves it
 * out where it is too large. Looks up what its callers have, so that the verifier looks at it once
 * and not behind each way there. */
static __always_inline int append_handshake(const struct source *src, struct packet *pkt)
{
	const struct candidate *candidate;
	struct counts *cnt = src->cnt;
	struct packet_record *rec;
	__u32 id, len, off, n;
	struct handshake *hs;

	if (!cnt || !pkt)
		return 0;
	id = pkt->candidate;
	candidate = bpf_map_lookup_elem(&syns, &id);
	hs = bpf_map_lookup_elem(&handshakes, &id);
	if (!candidate || !hs)
		return 0;
	len = pkt->frame_len - pkt->payload_len;
	off = hs->bytes;
	n = hs->packet_count;
	barrier_var(len);
	if (len > HANDSHAKE_FRAME)
		return 0;
	barrier_var(off);
	barrier_var(n);
	if (off + len > HANDSHAKE_BYTES || off >= HANDSHAKE_BYTES || n >= HANDSHAKE_PACKETS)
		return 0;
	rec = &hs->packets[n];
	rec->wire_len = len;
	rec->time_us = microseconds(candidate->start_ns, pkt->now);
	rec->place = record_place(src, pkt, off, pkt->src_is_lo == !!candidate->initiator_is_lo);
	rec->segment = 0; /* its payload is left out */
	hs->bytes = off + len;
	hs->packet_count = n + 1;
	if (copy_frame(src, pkt, hs->data + off, len, HANDSHAKE_FRAME))
		cnt->load_failed++;
	return 0;
}

FOR_EACH_HOOK(append_handshake)

/* A SYN. */
static __always_inline int note_syn(const struct source *src, struct packet *pkt)
{
	struct counts *cnt = src->cnt;
	struct candidate *candidate;
	struct place at;
	struct syn *syn;
	__u32 bytes;

	if (!cnt || !pkt)
		return 0;
	candidate = find_candidate(pkt, pkt->side, true, &at);
	if (!candidate) {
		cnt->handshake_busy += at.busy;
		return 0;
	}
	if (at.fresh)
		begin_candidate(candidate, pkt, pkt->side);
	if ((candidate->syns > 0 && is_syn(&candidate->first, pkt)) ||
	    (candidate->syns > 1 && is_syn(&candidate->latest, pkt))) {
		leave_handshake(&at); /* once more */
		return 0;
	}
	cnt->syns++;
	if (!candidate->syns || !is_young(pkt, candidate->first.time_ns, CANDIDATE_NS)) {
		syn = &candidate->first;
		if (!candidate->syns)
			candidate->syns = 1;
	} else {
		syn = &candidate->latest;
		candidate->syns = 2;
	}
	bytes = pkt->frame_len;
	if (bytes > HANDSHAKE_FRAME || (pkt->payload_len && is_exempt(pkt)))
		bytes -= pkt->payload_len;
	syn->time_ns = pkt->now;
	syn->seq = pkt->seq;
	syn->payload_len = pkt->payload_len;
	syn->header_len = pkt->frame_len - pkt->payload_len;
	syn->tcp_at = pkt->prefix_len + pkt->tcp_off - pkt->skip;
	syn->from_lo = pkt->src_is_lo;
	syn->bytes = 0;
	barrier_var(bytes);
	if (bytes <= HANDSHAKE_FRAME) {
		syn->bytes = bytes;
		if (copy_frame(src, pkt, syn->frame, bytes, HANDSHAKE_FRAME))
			cnt->load_failed++;
	}
	release_handshake(&at, candidate);
	return 0;
}

/* The slot of a key that is collecting, and its number. */
static __always_inline struct slot *collecting_slot(const struct flow_key *key, __u32 *id)
{
	struct slot_ref *ref = bpf_map_lookup_elem(&collecting, key);
	struct slot *slot;
	__u32 generation;

	if (!ref)
		return NULL;
	*id = ref->slot;
	generation = ref->generation;
	slot = get_slot(*id);
	return slot && slot->generation == generation ? slot : NULL;
}

/* A SYN of the key was acknowledged: what is known of it has to look at its candidates.
 * Not static, as own_handshake(). */
__noinline int mark_known(const struct packet *pkt)
{
	struct flow_key key;
	struct block *block;
	struct flow *flow;
	struct slot *slot;
	__u32 id;

	if (!pkt)
		return 0;
	key = pkt->key;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow)
		flow->mark = 1;
	slot = collecting_slot(&key, &id);
	if (slot)
		slot->mark = 1;
	block = get_block(&key);
	if (block)
		block->mark = 1;
	return 0;
}

/* 1 where a SYN+ACK acknowledges the SYN, and perhaps some of its payload, else 0. Without a
 * branch, see sender_of(). */
static __always_inline __u32 answers(const struct syn *syn, const struct packet *pkt)
{
	__u32 acked = pkt->ack - (syn->seq + 1);
	__u32 more = ((__u64)syn->payload_len - acked) >> 63;

	return (syn->from_lo ^ pkt->src_is_lo) & (more ^ 1);
}

/* Sets a candidate's numbers from a SYN+ACK that acknowledges isn. */
static __always_inline void set_numbers(struct candidate *candidate, const struct packet *pkt,
					__u32 isn)
{
	__u32 *isns = &candidate->isn_lo, *next = &candidate->next_lo, sender = sender_of(pkt);

	isns[sender] = pkt->seq;
	next[sender] = pkt->seq + 1;
	isns[sender ^ 1] = isn;
	next[sender ^ 1] = pkt->ack;
	candidate->hole_lo = candidate->hole_lo_end = 0;
	candidate->hole_hi = candidate->hole_hi_end = 0;
	candidate->acked = pkt->ack;
	candidate->answered_ns = pkt->now;
	candidate->initiator_is_lo = !pkt->src_is_lo;
}

FOR_EACH_HOOK(note_syn)

enum answer {
	ANSWER_NONE = 0, /* it changes nothing */
	ANSWER_ALONE,
	ANSWER_TO_SYN, /* of which what is known of the key has to be told */
};

/* A SYN+ACK. Returns an enum answer. */
static __always_inline int note_answer(const struct source *src, struct packet *pkt)
{
	struct counts *cnt = src->cnt;
	struct candidate *candidate;
	__u32 first, latest, acked;
	struct handshake *hs;
	const struct syn *syn;
	struct place at;
	__u32 differs;
	bool same;

	if (!cnt || !pkt)
		return ANSWER_NONE;
	candidate = find_candidate(pkt, !pkt->side, true, &at);
	if (!candidate) {
		cnt->handshake_busy += at.busy;
		return ANSWER_NONE;
	}
	hs = bpf_map_lookup_elem(&handshakes, &at.id);
	if (!hs) { /* never */
		free_handshake(&at);
		return ANSWER_NONE;
	}
	if (at.fresh)
		begin_candidate(candidate, pkt, !pkt->side);
	/* There are 0 to 2 of them. */
	first = answers(&candidate->first, pkt) & (candidate->syns | candidate->syns >> 1);
	latest = answers(&candidate->latest, pkt) & candidate->syns >> 1;
	barrier_var(first);
	barrier_var(latest);
	first &= 1;
	syn = (first | latest) & 1 ? &(&candidate->first)[first ^ 1] : NULL;
	acked = syn ? pkt->ack - (syn->seq + 1) : 0;
	differs = (candidate->acked ^ pkt->ack) |
		  (pkt->seq ^ (&candidate->isn_lo)[sender_of(pkt)]) |
		  (candidate->initiator_is_lo ^ pkt->src_is_lo ^ 1);
	same = candidate->state >= CANDIDATE_ALONE && !differs;
	if (same && (!syn || candidate->state != CANDIDATE_ALONE)) {
		leave_handshake(&at); /* once more */
		return ANSWER_NONE;
	}
	/* One that acknowledges nothing that was seen never replaces one that does. */
	if (!syn &&
	    ((candidate->state == CANDIDATE_PROVEN && !(candidate->flags & CANDIDATE_CLOSED)) ||
	     (candidate->state == CANDIDATE_ANSWERED &&
	      is_young(pkt, candidate->answered_ns, CANDIDATE_NS)))) {
		cnt->out_of_place++;
		leave_handshake(&at);
		return ANSWER_NONE;
	}
	set_numbers(candidate, pkt, pkt->ack - 1 - acked);
	candidate->start_ns = pkt->now;
	candidate->seen = candidate->more = 0;
	candidate->stray_lo = candidate->stray_hi = 0;
	candidate->state = CANDIDATE_ALONE;
	if (syn) {
		candidate->state = CANDIDATE_ANSWERED;
		candidate->start_ns = syn->time_ns;
		candidate->flags &= CANDIDATE_ONE_WAY;
		if (acked && acked == syn->payload_len &&
		    syn->bytes == syn->header_len + syn->payload_len)
			candidate->flags |= CANDIDATE_EARLY;
		if (acked < syn->payload_len)
			candidate->seen |= SAMPLE_SYN_DATA;
		if (joins_connection(syn))
			candidate->flags |= CANDIDATE_JOIN;
	} else {
		candidate->flags = 0;
	}
	begin_handshake(hs, syn, acked);
	pkt->candidate = at.id;
	call_hook(append_handshake, src, pkt);
	release_handshake(&at, candidate);
	return syn ? ANSWER_TO_SYN : ANSWER_ALONE;
}

FOR_EACH_HOOK(note_answer)

static __always_inline bool same_isn(__u8 known, __u32 lo, __u32 hi, const struct candidate *c)
{
	return (known & KNOWN_ISN) && lo == c->isn_lo && hi == c->isn_hi;
}

/* What a segment is to the candidates of its key; of two, the greater one counts. */
enum candidacy {
	CANDIDACY_NONE = 0, /* no handshake that it could be part of */
	CANDIDACY_ALONE,    /* a SYN+ACK stands that it does not answer */
	CANDIDACY_ONE_WAY,  /* it goes on with a handshake of which one direction is seen */
	CANDIDACY_ANSWERED, /* a SYN is acknowledged, and it does not prove the connection */
	/* what a segment comes to */
	CANDIDACY_WRONG_SIDE,
	CANDIDACY_OUT,
	CANDIDACY_BEHIND,
	/* the next five: go on with pkt->candidate, owned */
	CANDIDACY_CONNECTED, /* it was proven before: connected_segment() */
	CANDIDACY_PROVEN,    /* it is proven by this segment: begin_connection() */
	CANDIDACY_OPEN,	     /* its capture begins: open_capture() */
	CANDIDACY_SHOWN,     /* its handshake is handed over, and no more: show_handshake() */
	CANDIDACY_REFUSED,   /* it is not to be captured: refuse_capture() */
	CANDIDACY_DONE,	     /* the segment was counted, and kept where it has to be */
	CANDIDACY_SAME,	     /* it proved the connection that is known already */
};

/* pkt->candidate is proven. So may be the one whose initiator is on the other side: both ends
 * may have opened at once, which makes one connection, proven by both. Returns whether it
 * is; otherwise the other one ends. Not static, as own_handshake(). */
__noinline int is_proven_by_other(const struct packet *pkt)
{
	struct candidate *candidate, *other;
	struct place at;
	bool same;
	__u32 id;

	if (!pkt)
		return 0;
	id = pkt->candidate;
	candidate = bpf_map_lookup_elem(&syns, &id);
	if (!candidate)
		return 0;
	other = find_candidate(pkt, !candidate->side, false, &at);
	if (!other)
		return 0;
	same = other->state == CANDIDATE_PROVEN &&
	       same_isn(KNOWN_ISN, other->isn_lo, other->isn_hi, candidate);
	if (same || other->state == CANDIDATE_SYN)
		leave_handshake(&at);
	else
		free_handshake(&at);
	if (same)
		free_candidate(id);
	return same;
}

/* pkt->candidate is proven. Returns whether it is the connection that is known already: then
 * the candidate is freed, and all marks. Not static, as own_handshake(). */
__noinline int is_known(const struct packet *pkt)
{
	struct candidate *c;
	struct flow_key key;
	struct block *block;
	struct flow *flow;
	struct slot *slot;
	__u32 id, slot_id;
	bool same = false;

	if (!pkt)
		return 0;
	id = pkt->candidate;
	c = bpf_map_lookup_elem(&syns, &id);
	if (!c)
		return 0;
	key = pkt->key;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow && same_isn(flow->known, flow->isn_lo, flow->isn_hi, c)) {
		flow->mark = 0;
		same = true;
	}
	block = get_block(&key);
	if (block && same_isn(block->known, block->isn_lo, block->isn_hi, c)) {
		block->mark = 0;
		block->candidate_ns = 0;
		same = true;
	}
	slot = collecting_slot(&key, &slot_id);
	if (slot && same_isn(slot->sample.known, slot->sample.isn_lo, slot->sample.isn_hi, c)) {
		slot->mark = 0;
		same = true;
	}
	if (same)
		free_candidate(id);
	return same;
}

/* pkt->candidate is proven, and a new connection. What is known of its key ends. Returns an
 * enum candidacy. Not static, as own_handshake(). */
__noinline int begin_connection(struct counts *cnt, const struct packet *pkt)
{
	struct candidate *candidate;
	struct flow_key key;
	struct block *block;
	struct slot *slot;
	__u32 id;

	if (!pkt || !cnt)
		return CANDIDACY_DONE;
	id = pkt->candidate;
	candidate = bpf_map_lookup_elem(&syns, &id);
	if (!candidate)
		return CANDIDACY_DONE;
	key = pkt->key;
	slot = collecting_slot(&key, &id);
	if (slot && discard_capture(slot, id))
		cnt->restarted++;
	bpf_map_delete_elem(&flows, &key);
	block = get_block(&key);
	if (block) {
		block->ended = 1;
		/* Packets of keys that have none do not look whether it ended. */
		block->candidate_ns = pkt->now;
	}
	clear_settled(pkt->hash, false);
	cnt->tcp_opened++;
	if (candidate->flags & CANDIDATE_JOIN) {
		cnt->mptcp_join++;
		candidate->more |= MORE_JOIN;
		return CANDIDACY_SHOWN;
	}
	candidate->state = CANDIDATE_PROVEN;
	return CANDIDACY_CONNECTED;
}

/* place() for a connection that has no payload yet. move_on() is the caller's to do. */
static __always_inline enum placed place_early(struct expected *e, const struct candidate *c,
					       const struct packet *pkt)
{
	e->one_way = c->flags & CANDIDATE_FORGED;
	e->begun = true;
	expect(e, sender_of(pkt), &c->isn_lo, &c->next_lo, &c->hole_lo);
	return place(e, pkt);
}

static __always_inline bool from_initiator(const struct candidate *candidate,
					   const struct packet *pkt)
{
	return pkt->src_is_lo == !!candidate->initiator_is_lo;
}

/* Whether the numbers acknowledge what the responder has sent. The bare acknowledgement, and
 * some data, may have been lost. A responder that has gone on before (TCP Fast Open; or the
 * acknowledgement was not seen) may have its data and its FIN acknowledged, too. */
static __always_inline bool proves(const struct candidate *c, const struct packet *pkt)
{
	__u32 mine, isn, acked, early = 0;

	if ((pkt->tcp_flags & PACKET_DECOY) ||
	    (c->state != CANDIDATE_ALONE && c->state != CANDIDATE_ANSWERED) ||
	    !from_initiator(c, pkt) || (pkt->tcp_flags & (TCP_ACK | TCP_RST)) != TCP_ACK)
		return false;
	mine = c->acked;
	isn = c->initiator_is_lo ? c->isn_hi : c->isn_lo;
	acked = pkt->ack - (isn + 1);
	if (c->state == CANDIDATE_ANSWERED) {
		early = (c->initiator_is_lo ? c->next_hi : c->next_lo) - (isn + 1);
		early += !!early;
	} else if (pkt->seq != mine) {
		return false;
	}
	return is_ahead(pkt, mine) && acked <= early;
}

/* Whether one direction alone shows a connection: its SYN, then what follows it; or its
 * SYN+ACK. Sets the SYN. */
static __always_inline bool proves_one_way(const struct candidate *c, const struct packet *pkt,
					   bool own, const struct syn **syn)
{
	*syn = NULL;
	if ((pkt->tcp_flags & (TCP_ACK | TCP_RST | PACKET_DECOY)) != TCP_ACK)
		return false;
	if (c->state == CANDIDATE_ALONE)
		return !own && !from_initiator(c, pkt) &&
		       pkt->seq == (pkt->src_is_lo ? c->isn_lo : c->isn_hi) + 1;
	if (!own || c->state != CANDIDATE_SYN)
		return false;
	if (c->syns > 0 && !!c->first.from_lo == pkt->src_is_lo && c->first.seq + 1 == pkt->seq)
		*syn = &c->first;
	else if (c->syns > 1 && !!c->latest.from_lo == pkt->src_is_lo &&
		 c->latest.seq + 1 == pkt->seq)
		*syn = &c->latest;
	return *syn;
}

/* Whether both sides of a connection that has no payload have sent much of it out of place: they
 * may have agreed on other numbers. */
static __always_inline bool strays(struct candidate *candidate, const struct handshake *hs,
				   const struct packet *pkt)
{
	note_stray(&candidate->stray_lo, &candidate->stray_hi, &candidate->more, pkt);
	if (!(candidate->more & MORE_OUT_OF_PLACE) || !hs->packet_count)
		return false;
	candidate->more |= MORE_GOES_ON;
	return true;
}

/* A segment of a connection that has no payload yet: pkt->candidate. Lets go of it, unless
 * the capture begins. Returns an enum candidacy. */
static __always_inline int connected_segment(const struct source *src, struct packet *pkt)
{
	struct counts *cnt = src->cnt;
	struct candidate *candidate;
	struct expected e = {};
	struct handshake *hs;
	enum placed placed;
	__u32 id;

	if (!cnt || !pkt)
		return CANDIDACY_DONE;
	id = pkt->candidate;
	candidate = bpf_map_lookup_elem(&syns, &id);
	hs = bpf_map_lookup_elem(&handshakes, &id);
	if (!candidate || !hs)
		return CANDIDACY_DONE;
	if (!comes_from(pkt, candidate->side, candidate->initiator_is_lo)) {
		release_candidate(id, candidate, pkt->now);
		return CANDIDACY_WRONG_SIDE;
	}
	placed = place_early(&e, candidate, pkt);
	if (pkt->tcp_flags & PACKET_DECOY) {
		cnt->decoys++;
		if (placed != PLACED_OUT)
			candidate->flags |= CANDIDATE_DECOY;
		release_candidate(id, candidate, pkt->now);
		return CANDIDACY_DONE;
	}
	/* With payload in the SYN's frame the capture begins whatever this one is. */
	if ((placed == PLACED_BEHIND || placed == PLACED_OUT) &&
	    !(candidate->flags & CANDIDATE_EARLY)) {
		if (placed == PLACED_OUT && strays(candidate, hs, pkt)) {
			cnt->out_of_place++;
			return CANDIDACY_SHOWN;
		}
		release_candidate(id, candidate, pkt->now);
		return placed == PLACED_BEHIND ? CANDIDACY_BEHIND : CANDIDACY_OUT;
	}
	if (has_payload(pkt) || (candidate->flags & CANDIDATE_EARLY)) {
		/* Those of one direction may be forged, and would use up what others have. */
		pkt->quota = pkt->pair_quota = SLOT_UNCOUNTED;
		if ((candidate->flags & CANDIDATE_FORGED) ||
		    within_quota(pkt, candidate->initiator_is_lo))
			return CANDIDACY_OPEN;
		cnt->initiator_slots++;
		return CANDIDACY_REFUSED;
	}
	call_hook(append_handshake, src, pkt);
	move_on(&e, sender_of(pkt), &candidate->next_lo, &candidate->hole_lo);
	if (is_unread(&e, pkt)) {
		candidate->more |= MORE_UNREADABLE;
		/* All of it may have been too long to keep. */
		return hs->packet_count ? CANDIDACY_SHOWN : CANDIDACY_REFUSED;
	}
	if ((pkt->tcp_flags & (TCP_RST | TCP_FIN)) && !(candidate->flags & CANDIDATE_CLOSED)) {
		candidate->flags |= CANDIDATE_CLOSED;
		cnt->header_only++;
	}
	release_candidate(id, candidate, pkt->now);
	return CANDIDACY_DONE;
}

FOR_EACH_HOOK(connected_segment)

/* What a segment is to one of its key's candidates: the one whose initiator is on the
 * segment's side (own), or the other. Returns an enum candidacy. Not static, as
 * own_handshake(). */
__noinline int candidate_segment(struct counts *cnt, struct packet *pkt, __u32 own)
{
	struct candidate *candidate;
	const struct syn *syn;
	int candidacy;
	struct place at;

	if (!cnt || !pkt)
		return CANDIDACY_NONE;
	candidate = find_candidate(pkt, own ? pkt->side : !pkt->side, false, &at);
	if (!candidate) {
		cnt->handshake_busy += at.busy;
		return at.busy ? CANDIDACY_DONE : CANDIDACY_NONE;
	}
	if (proves(candidate, pkt)) {
		if (own) {
			pkt->candidate = at.id;
			return CANDIDACY_PROVEN;
		}
		/* It left through the hook that it should have come in by. */
		cnt->reflected++;
		candidate->state = CANDIDATE_SYN;
		candidate->flags &= CANDIDATE_ONE_WAY;
		if (candidate->syns)
			release_handshake(&at, candidate);
		else
			free_handshake(&at);
		return CANDIDACY_DONE;
	}
	if (candidate->state == CANDIDATE_PROVEN) {
		pkt->candidate = at.id;
		return CANDIDACY_CONNECTED;
	}
	candidacy = CANDIDACY_NONE;
	if (proves_one_way(candidate, pkt, own, &syn))
		candidacy = CANDIDACY_ONE_WAY;
	else if (candidate->state != CANDIDATE_SYN &&
		 is_young(pkt, candidate->answered_ns, CANDIDATE_NS)) {
		if (candidate->state == CANDIDATE_ANSWERED)
			candidacy = CANDIDACY_ANSWERED;
		else if (!(candidate->flags & CANDIDATE_ONE_WAY))
			candidacy = CANDIDACY_ALONE;
	}
	leave_handshake(&at);
	return candidacy;
}

/* A segment while a SYN is acknowledged: of the responder, if it is in place in its
 * handshake. It is not captured, but must not hide the connection. Returns an enum candidacy.
 * Not static, as own_handshake(). */
__noinline int early_segment(struct packet *pkt)
{
	struct candidate *candidate;
	struct expected e = {};
	enum placed placed = PLACED_OUT;
	struct place at;

	if (!pkt)
		return CANDIDACY_OUT;
	candidate = find_candidate(pkt, !pkt->side, false, &at);
	if (!candidate)
		return CANDIDACY_OUT;
	if (candidate->state == CANDIDATE_ANSWERED && !from_initiator(candidate, pkt) &&
	    !(pkt->tcp_flags & PACKET_DECOY)) {
		placed = place_early(&e, candidate, pkt);
		if (placed == PLACED || placed == PLACED_LAST) {
			move_on(&e, sender_of(pkt), &candidate->next_lo, &candidate->hole_lo);
			if (pkt->payload_len)
				candidate->seen |= SAMPLE_EARLY;
		}
	}
	leave_handshake(&at);
	if (placed == PLACED_BEHIND)
		return CANDIDACY_BEHIND;
	return placed == PLACED_OUT ? CANDIDACY_OUT : CANDIDACY_DONE;
}

/* The same, of either end, if it is out of place there. Not static, as own_handshake(). */
__noinline int stray_segment(struct packet *pkt)
{
	struct candidate *candidate;
	struct handshake *hs;
	struct place at;

	if (!pkt || !pkt->payload_len || (pkt->tcp_flags & PACKET_DECOY))
		return CANDIDACY_OUT;
	for (__u32 side = SIDE_IN; side <= SIDE_OUT; side++) {
		candidate = find_candidate(pkt, side, false, &at);
		if (!candidate)
			continue;
		hs = bpf_map_lookup_elem(&handshakes, &at.id);
		if (hs && candidate->state == CANDIDATE_ANSWERED &&
		    comes_from(pkt, candidate->side, candidate->initiator_is_lo) &&
		    strays(candidate, hs, pkt)) {
			pkt->candidate = at.id;
			return CANDIDACY_SHOWN;
		}
		leave_handshake(&at);
	}
	return CANDIDACY_OUT;
}

/* A segment that goes on with a handshake of which one direction is seen. Returns an enum
 * candidacy. Not static, as own_handshake(). */
__noinline int one_way_segment(struct counts *cnt, struct packet *pkt, __u32 own)
{
	struct candidate *candidate;
	const struct syn *syn;
	struct handshake *hs;
	struct place at;

	if (!cnt || !pkt)
		return CANDIDACY_NONE;
	candidate = find_candidate(pkt, own ? pkt->side : !pkt->side, false, &at);
	if (!candidate)
		return CANDIDACY_NONE;
	hs = bpf_map_lookup_elem(&handshakes, &at.id);
	if (!hs || !proves_one_way(candidate, pkt, own, &syn))
		goto none;
	if (!(candidate->flags & CANDIDATE_ONE_WAY))
		cnt->one_way++;
	candidate->flags |= CANDIDATE_ONE_WAY;
	if (!cfg_one_way)
		goto none;
	if (syn) {
		candidate->initiator_is_lo = pkt->src_is_lo;
		candidate->start_ns = syn->time_ns;
		candidate->answered_ns = pkt->now;
		candidate->isn_lo = pkt->src_is_lo ? syn->seq : pkt->ack - 1;
		candidate->isn_hi = pkt->src_is_lo ? pkt->ack - 1 : syn->seq;
		candidate->next_lo = candidate->isn_lo + 1;
		candidate->next_hi = candidate->isn_hi + 1;
		candidate->hole_lo = candidate->hole_lo_end = 0;
		candidate->hole_hi = candidate->hole_hi_end = 0;
		candidate->acked = syn->seq + 1;
		candidate->seen = candidate->more = 0;
		candidate->stray_lo = candidate->stray_hi = 0;
		if (joins_connection(syn))
			candidate->flags |= CANDIDATE_JOIN;
		begin_handshake(hs, syn, 0);
	}
	candidate->flags |= CANDIDATE_FORGED;
	pkt->candidate = at.id;
	return CANDIDACY_PROVEN;
none:
	leave_handshake(&at);
	return CANDIDACY_NONE;
}

/* Ends the capture of the packet's flow, which was opened for its handshake alone. Leaves the
 * hand-over to the caller, as capture(). Not static, so that its stack is its own. */
__noinline int show_handshake(struct packet *pkt)
{
	struct flow_key key;
	struct slot *slot;
	__u64 old;
	__u32 id;

	if (!pkt)
		return 0;
	key = pkt->key;
	slot = collecting_slot(&key, &id);
	if (!slot) /* there was no room */
		return 0;
	slot->sample.reason = REASON_CLOSED;
	old = __sync_fetch_and_or(&slot->word, WORD_CLOSED);
	if (!(old & WORD_CLOSED) && !WORD_REFS(old)) {
		pkt->hand_over = old | WORD_CLOSED;
		pkt->slot = id;
	}
	return 0;
}

/* Goes on with what a segment is to pkt->candidate. */
static __always_inline enum candidacy go_on(enum candidacy candidacy, const struct source *src,
					    struct packet *pkt)
{
	struct counts *cnt = src->cnt;

	if (candidacy == CANDIDACY_PROVEN)
		candidacy = begin_connection(cnt, pkt);
	if (candidacy == CANDIDACY_CONNECTED)
		candidacy = call_hook(connected_segment, src, pkt);
	if (candidacy == CANDIDACY_OPEN && any_pairs() && limit_connection(cnt, pkt))
		candidacy = CANDIDACY_REFUSED;
	if (candidacy == CANDIDACY_SHOWN) {
		/* It has the slot for a moment. */
		pkt->quota = pkt->pair_quota = SLOT_UNCOUNTED;
		open_capture(cnt, pkt);
		show_handshake(pkt);
		return CANDIDACY_DONE;
	}
	if (candidacy == CANDIDACY_OPEN || candidacy == CANDIDACY_REFUSED) {
		pkt->mark = MARK_KEPT;
		if (candidacy == CANDIDACY_REFUSED)
			refuse_capture(pkt);
		else
			open_capture(cnt, pkt);
		call_hook(join_capture, src, pkt);
		candidacy = CANDIDACY_DONE;
	}
	return candidacy;
}

/* A segment of a key of which something is known, and a SYN is acknowledged: it may prove
 * another connection. */
static __always_inline enum candidacy marked_segment(const struct source *src, struct packet *pkt)
{
	struct counts *cnt = src->cnt;
	enum candidacy candidacy = candidate_segment(cnt, pkt, true);

	if (candidacy == CANDIDACY_PROVEN) {
		if (is_known(pkt) || is_proven_by_other(pkt))
			return CANDIDACY_SAME;
		return go_on(candidacy, src, pkt);
	}
	if (candidacy == CANDIDACY_CONNECTED)
		leave_candidate(pkt->candidate);
	candidacy = candidate_segment(cnt, pkt, false);
	if (candidacy == CANDIDACY_CONNECTED)
		leave_candidate(pkt->candidate);
	return candidacy;
}

/* A segment of a key of which nothing is known but candidates. */
static __always_inline enum candidacy candidates(const struct source *src, struct packet *pkt)
{
	enum candidacy own, other, candidacy;
	struct counts *cnt = src->cnt;
	bool is_out = false;
	__u32 own_id;

	own = candidate_segment(cnt, pkt, true);
	if (own == CANDIDACY_PROVEN && is_proven_by_other(pkt))
		own = CANDIDACY_NONE; /* both ends have opened: the other one goes on */
	candidacy = own;
	if (own >= CANDIDACY_PROVEN)
		goto on;
	own_id = pkt->candidate;
	candidacy = other = candidate_segment(cnt, pkt, false);
	if (own == CANDIDACY_CONNECTED) {
		if (other == CANDIDACY_CONNECTED) /* never */
			leave_candidate(pkt->candidate);
		pkt->candidate = own_id;
		candidacy = own;
		if (other != CANDIDACY_DONE)
			goto on;
		leave_candidate(own_id);
		return other;
	}
	if (other >= CANDIDACY_CONNECTED)
		goto on;
	if (own == CANDIDACY_ANSWERED || other == CANDIDACY_ANSWERED) {
		candidacy = early_segment(pkt);
		if (candidacy != CANDIDACY_OUT || stray_segment(pkt) == CANDIDACY_OUT)
			return candidacy;
		candidacy = CANDIDACY_SHOWN;
		is_out = true; /* it counts as such */
		goto on;
	}
	if (own == CANDIDACY_ONE_WAY || other == CANDIDACY_ONE_WAY) {
		candidacy = one_way_segment(cnt, pkt, own == CANDIDACY_ONE_WAY);
		if (candidacy == CANDIDACY_PROVEN && is_proven_by_other(pkt))
			candidacy = CANDIDACY_SAME; /* never */
		goto on;
	}
	return own == CANDIDACY_ALONE || other == CANDIDACY_ALONE ? CANDIDACY_OUT : CANDIDACY_NONE;
on:
	candidacy = go_on(candidacy, src, pkt);
	return is_out ? CANDIDACY_OUT : candidacy;
}

#define STANDING_ANSWERED 1 /* a SYN of the key is acknowledged */
#define STANDING_ANY 2	    /* ... or a SYN+ACK alone, or a connection without payload */

/* What stands of a key's candidates. Does not own what it looks at. Not static, as
 * own_handshake(). */
__noinline int standing(const struct packet *pkt)
{
	__u32 number, found = 0;

	if (!pkt)
		return 0;
	number = pkt->hash & cfg_bucket_mask;
	for (__u32 side = SIDE_IN; side <= SIDE_OUT; side++) {
		struct handshake_bucket *bucket = bpf_map_lookup_elem(&handshake_tags, &number);
		struct candidate *candidate;
		__u32 way, id;

		if (!bucket)
			return 0;
		way = choose_way(bucket, handshake_tag(pkt, side), 0);
		id = number * HANDSHAKE_WAYS + way % HANDSHAKE_WAYS;
		candidate = bpf_map_lookup_elem(&syns, &id);
		if (!candidate || !(way & HANDSHAKE_WAYS) || !same_key(&candidate->key, &pkt->key))
			continue;
		if (candidate->state == CANDIDATE_PROVEN)
			found |= STANDING_ANY;
		if (candidate->state == CANDIDATE_SYN ||
		    !is_young(pkt, candidate->answered_ns, CANDIDATE_NS))
			continue;
		if (candidate->state == CANDIDATE_ANSWERED)
			found |= STANDING_ANSWERED | STANDING_ANY;
		if (!(candidate->flags & CANDIDATE_ONE_WAY))
			found |= STANDING_ANY;
	}
	return found;
}

/* Whether the key has a capture. Not static, so that its stack is its own. */
__noinline int is_collecting(const struct packet *pkt)
{
	struct flow_key key;

	if (!pkt)
		return 0;
	key = pkt->key;
	return !!bpf_map_lookup_elem(&collecting, &key);
}

/* A segment of a flow that nothing is known of. */
static __always_inline void mid_stream_segment(const struct source *src, struct packet *pkt)
{
	struct counts *cnt = src->cnt;
	__u64 *word, tag;

	if (pkt->tcp_flags & PACKET_DECOY) {
		cnt->decoys++;
		return;
	}
	if (cfg_mid_stream) {
		/* Without an acknowledgement it is in place nowhere. */
		pkt->candidate = NO_CANDIDATE;
		pkt->quota = pkt->pair_quota = SLOT_UNCOUNTED;
		if (!has_payload(pkt) || !(pkt->tcp_flags & TCP_ACK))
			return;
		if (open_capture(cnt, pkt))
			cnt->mid_stream++;
		call_hook(join_capture, src, pkt);
		return;
	}
	word = settled_word(pkt->hash);
	tag = settled_tag(pkt->hash, false);
	if (!word || *word == tag)
		return;
	cnt->mid_stream++;
	__sync_lock_test_and_set(word, tag);
	/* What stands has to be looked at: a SYN+ACK alone, beside which somebody forged a
	 * connection that goes one way, or a SYN that was acknowledged on another CPU, which
	 * cleared the word before it was written. It may even have gone from a candidate to a
	 * capture since this packet looked for one. */
	if ((standing(pkt) & STANDING_ANY) || is_collecting(pkt))
		__sync_val_compare_and_swap(word, tag, 0);
}

/* A segment with payload of a flow whose capture ended early. Returns whether it is to go on:
 * open_capture(). Not static, as own_handshake(). */
__noinline int goes_on_with(struct counts *cnt, struct packet *pkt)
{
	struct expected e = {};
	struct flow_key key;
	enum placed placed;
	struct flow *flow;

	if (!cnt || !pkt)
		return 0;
	key = pkt->key;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow || !flow->again)
		return 0;
	if (pkt->tcp_flags & PACKET_DECOY) {
		cnt->decoys++;
		return 0;
	}
	if (!comes_from(pkt, flow->side, flow->initiator_is_lo)) {
		cnt->wrong_side++;
		return 0;
	}
	e.one_way = flow->state & SAMPLE_ONE_WAY;
	expect(&e, sender_of(pkt), &flow->isn_lo, &flow->next_lo, NULL);
	e.begun = flow->known & KNOWN_ISN;
	placed = place(&e, pkt);
	if (placed == PLACED_BEHIND || placed == PLACED_OUT) {
		count_misplaced(cnt, placed);
		return 0;
	}
	pkt->candidate = NO_CANDIDATE_AGAIN;
	if (within_quota(pkt, flow->initiator_is_lo))
		return 1;
	cnt->initiator_slots++;
	flow->again = 0;
	return 0;
}

/* Beside an enum action: the block has no say, is suspended, or its time is over. */
#define NOT_BLOCKED -1

/* Whether the block's connection goes on, so that the block does, too. */
static __always_inline bool renew(struct counts *cnt, struct block *block, const struct packet *pkt)
{
	__u32 next = pkt->src_is_lo ? block->next_lo : block->next_hi;
	__u8 known = pkt->src_is_lo ? KNOWN_NEXT_LO : KNOWN_NEXT_HI;
	__u64 expires = block->expires_ns;

	if (!block->ttl_ns || !(block->known & known) || pkt->seq - next > BLOCK_AHEAD)
		return false;
	if (pkt->now < expires) /* another CPU has renewed it */
		return true;
	if (block->renewed >= BLOCK_RENEWALS)
		return false;
	if (__sync_val_compare_and_swap(&block->expires_ns, expires, pkt->now + block->ttl_ns) ==
	    expires) {
		block->renewed++;
		cnt->renewed++;
	}
	return true;
}

/* A packet of a blocked key: of the connection, or of the next one that tries to be made. */
static __always_inline int blocked_segment(struct block *block, const struct source *src,
					   struct packet *pkt)
{
	struct counts *cnt = src->cnt;
	bool live = time_left(block), stands;
	enum action action;
	__u64 since;

	if ((pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
		if (live && has_payload(pkt) &&
		    (action = drop_late(cnt, block, pkt)) != ACTION_PASS)
			return action;
		block->candidate_ns = pkt->now;
		return NOT_BLOCKED;
	}
	since = block->candidate_ns;
	stands = since && is_young(pkt, since, CANDIDATE_NS);
	if (!stands) {
		/* Unless another CPU has ended the block. */
		__sync_val_compare_and_swap(&block->candidate_ns, since, 0);
		block->mark = 0;
	}
	if (pkt->tcp_flags & TCP_SYN) {
		if (live && (!stands || has_payload(pkt)) &&
		    (action = drop_late(cnt, block, pkt)) != ACTION_PASS)
			return action;
		return NOT_BLOCKED;
	}
	if (stands && block->mark) {
		if (!(standing(pkt) & STANDING_ANSWERED))
			block->mark = 0;
		else {
			call_hook(check_segment, src, pkt);
			marked_segment(src, pkt);
		}
		if (block->ended)
			return ACTION_PASS;
		stands = block->candidate_ns;
	}
	/* Or the new handshake could never be made. */
	if (stands && !has_payload(pkt))
		return ACTION_PASS;
	if ((live || renew(cnt, block, pkt)) &&
	    (action = drop_late(cnt, block, pkt)) != ACTION_PASS)
		return action;
	return NOT_BLOCKED;
}

/* Returns an enum action. */
static __always_inline int tcp_segment(const struct source *src, struct packet *pkt,
				       const struct flow_key *key)
{
	struct counts *cnt = src->cnt;
	enum answer answered = ANSWER_NONE;
	enum candidacy candidacy;
	enum joining joining;
	struct block *block;
	struct flow *flow;

	if (!read_segment(src, pkt)) {
		cnt->load_failed++;
		return ACTION_PASS;
	}
	if ((pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN && any_pairs()) {
		int action = pair_syn(cnt, pkt);

		if (action != ACTION_PASS)
			return action;
	}
	block = get_block(key);
	if (block) {
		int action = blocked_segment(block, src, pkt);

		if (action != NOT_BLOCKED)
			return action;
	}
	if (pkt->tcp_flags & TCP_SYN) {
		if (is_reflected(pkt))
			cnt->reflected++;
		else if (!(pkt->tcp_flags & TCP_ACK))
			call_hook(note_syn, src, pkt);
		else
			answered = call_hook(note_answer, src, pkt);
		if (answered == ANSWER_TO_SYN)
			mark_known(pkt);
		if (answered != ANSWER_NONE)
			clear_settled(pkt->hash, false);
		return ACTION_PASS;
	}
	flow = pkt->tcp_flags & PACKET_NEW ? NULL : bpf_map_lookup_elem(&flows, key);
	if (flow) {
		if (is_held(cnt, flow, pkt))
			return ACTION_DROP;
		if (!flow->mark && !(flow->again && pkt->payload_len))
			return ACTION_PASS;
		call_hook(check_segment, src, pkt);
		if (flow->mark) {
			if (!(standing(pkt) & STANDING_ANSWERED))
				flow->mark = 0;
			else if (marked_segment(src, pkt) == CANDIDACY_DONE)
				return ACTION_PASS;
		}
		if (flow->again && pkt->payload_len && goes_on_with(cnt, pkt)) {
			open_capture(cnt, pkt);
			pkt->mark = MARK_KEPT;
			call_hook(join_capture, src, pkt);
		}
		return ACTION_PASS;
	}
	call_hook(check_segment, src, pkt);
	joining = call_hook(join_capture, src, pkt);
	if (joining == JOIN_MARKED) {
		pkt->mark = MARK_CLEARED;
		if (standing(pkt) & STANDING_ANSWERED) {
			pkt->mark = MARK_KEPT;
			candidacy = marked_segment(src, pkt);
			if (candidacy == CANDIDACY_DONE)
				return ACTION_PASS;
		}
		call_hook(join_capture, src, pkt);
	}
	if (joining != JOIN_NOTHING)
		return ACTION_PASS;
	/* As for datagrams: another CPU may have handed it over in between. */
	if (bpf_map_lookup_elem(&flows, key))
		return ACTION_PASS;
	switch (candidates(src, pkt)) {
	case CANDIDACY_NONE:
		mid_stream_segment(src, pkt);
		break;
	case CANDIDACY_WRONG_SIDE:
		cnt->wrong_side++;
		break;
	case CANDIDACY_OUT:
		cnt->out_of_place++;
		break;
	case CANDIDACY_BEHIND:
		cnt->behind++;
		break;
	default:
		break;
	}
	return ACTION_PASS;
}
