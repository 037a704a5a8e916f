/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whether a segment is in place: whether its numbers are those that the connection can
 * have now. What is not is counted and never captured, and ends nothing.
 *
 * Contract: pure arithmetic, no helpers, so that it may run under a lock. Differences of
 * sequence numbers are signed 32-bit numbers (RFC 9293, 3.4). loader/assembly has the same
 * rules.
 */
#pragma once

#include "packet.h"

#define PLACE_WINDOW (16 * 1024)
/* How far behind what the other side has sent an acknowledgement may be, where it is not known
 * what the other side has begun with. */
#define PLACE_ACK_BEHIND (1024 * 1024)
/* More payload out of place than this, of both sides, is no accident. */
#define STRAY_BYTES (16 * 1024)
/* A connection that moved on by more than this has sent payload that nobody could read. */
#define UNREAD_BYTES 4096

enum placed {
	PLACED = 0,
	PLACED_LAST, /* in place, and ends the connection */
	PLACED_BEHIND,
	PLACED_OUT,
};

/* What is expected of the segment's side, and of the other. */
struct expected {
	__u32 next;
	__u32 hole; /* the first byte that was skipped */
	__u32 hole_end;
	__u32 other;  /* next of the other side */
	__u32 first;  /* first of the other side: nobody acknowledges less */
	bool begun;   /* first is known */
	bool one_way; /* the other side is not seen: what is acknowledged is what it sent */
};

/* The place of the sender's field where two follow each other, the lower end's first. The verifier
 * is not to know which it is, or it looks at all that follows twice. */
static __always_inline __u32 sender_of(const struct packet *pkt)
{
	__u32 is_lo = pkt->src_is_lo;

	barrier_var(is_lo);
	return (is_lo & 1) ^ 1;
}

/* What is expected of a sender. All are arrays of both ends: isn and next of one number for each,
 * hole of two, or NULL where none is known. */
static __always_inline void expect(struct expected *e, __u32 sender, const __u32 *isn,
				   const __u32 *next, const __u32 *hole)
{
	e->next = next[sender];
	e->other = next[sender ^ 1];
	e->first = isn[sender ^ 1] + 1;
	if (hole) {
		e->hole = hole[sender * 2];
		e->hole_end = hole[sender * 2 + 1];
	}
}

/* Writes back what place() has changed. */
static __always_inline void move_on(const struct expected *e, __u32 sender, __u32 *next,
				    __u32 *hole)
{
	next[sender] = e->next;
	next[sender ^ 1] = e->other;
	hole[sender * 2] = e->hole;
	hole[sender * 2 + 1] = e->hole_end;
}

/* The side that a packet of a connection must come from. */
static __always_inline bool comes_from(const struct packet *pkt, __u8 initiator_side,
				       __u8 initiator_is_lo)
{
	return pkt->side == (initiator_side ^ (pkt->src_is_lo != !!initiator_is_lo));
}

static __always_inline bool is_ahead(const struct packet *pkt, __u32 next)
{
	__u32 ahead = pkt->seq - next;

	return ahead <= PLACE_WINDOW;
}

/* Judges a segment without SYN and moves what is expected on. */
static __always_inline enum placed place(struct expected *e, const struct packet *pkt)
{
	__s32 ahead = pkt->seq - e->next;
	__u32 end = pkt->seq + pkt->payload_len;
	bool last = pkt->tcp_flags & TCP_FIN;

	if (pkt->tcp_flags & TCP_ACK) {
		__s32 acked = pkt->ack - e->other;

		if (acked < -PLACE_ACK_BEHIND || (acked > PLACE_WINDOW && !e->one_way))
			return PLACED_OUT;
		if (e->begun && (__s32)(pkt->ack - e->first) < 0)
			return PLACED_OUT;
	} else if (!(pkt->tcp_flags & TCP_RST)) {
		return PLACED_OUT; /* RFC 9293, 3.10.7.4: no host accepts it */
	}
	/* RFC 5961 asks for the exact number; stacks before it take the window. */
	if ((pkt->tcp_flags & TCP_RST) && ahead &&
	    !((pkt->tcp_flags & TCP_ACK) && is_ahead(pkt, e->next)))
		return PLACED_OUT;
	if (ahead > PLACE_WINDOW)
		return PLACED_OUT;
	if (!pkt->payload_len) {
		if (ahead < -PLACE_WINDOW)
			return PLACED_OUT;
		last = last && !ahead;
	} else if (ahead > 0) {
		last = false;
		if (e->hole == e->hole_end) {
			e->hole = e->next;
			e->hole_end = pkt->seq;
		}
	} else if (!ahead) {
		/* in order */
	} else if (e->hole != e->hole_end && (__s32)(pkt->seq - e->hole) >= 0 &&
		   (__s32)(pkt->seq - e->hole_end) < 0) {
		/* A late filler, once: what is left is in front of it or behind it. */
		if (pkt->seq != e->hole)
			e->hole_end = pkt->seq;
		else if ((__s32)(e->hole_end - end) > 0)
			e->hole = end;
		else
			e->hole = e->hole_end;
	} else if (ahead < -PLACE_WINDOW) {
		return PLACED_OUT;
	} else if ((__s32)(end - e->next) <= 0) {
		return PLACED_BEHIND;
	}
	if (pkt->payload_len && (__s32)(end - e->next) > 0)
		e->next = end;
	if (e->one_way && (pkt->tcp_flags & TCP_ACK) && (__s32)(pkt->ack - e->other) > 0)
		e->other = pkt->ack;
	return last || (pkt->tcp_flags & TCP_RST) ? PLACED_LAST : PLACED;
}

/* Whether a header-only segment in place shows that payload was sent which was not read. What a
 * side sends that is not seen is not read, either. */
static __always_inline bool is_unread(const struct expected *e, const struct packet *pkt)
{
	__s32 ahead = pkt->seq - e->next, acked = pkt->ack - e->other;

	return ahead > UNREAD_BYTES ||
	       ((pkt->tcp_flags & TCP_ACK) && !e->one_way && acked > UNREAD_BYTES);
}

/* Notes payload out of place. Who forges it sends from one side alone; with one hook there is
 * no telling. */
static __always_inline void note_stray(__u32 *lo, __u32 *hi, __u8 *more, const struct packet *pkt)
{
	__u32 *mine = pkt->src_is_lo ? lo : hi;

	if (cfg_one_hook)
		return;
	if (*mine <= STRAY_BYTES)
		*mine += pkt->payload_len;
	if (*lo > STRAY_BYTES && *hi > STRAY_BYTES)
		*more |= MORE_OUT_OF_PLACE;
}
