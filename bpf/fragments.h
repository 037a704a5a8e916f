/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fragments. A first fragment is a packet as any other: it has the ports. A later one has
 * none, and follows its first for FRAGMENT_NS: it is dropped if their flow is blocked.
 *
 * A fragment that keeps TCP flags from whoever reads the first one is malformed: a first one
 * without all headers (RFC 1858; RFC 7112 for IPv6), a later one that begins within them
 * (RFC 3128). No host has to send one. They are dropped in mode enforce, and pass otherwise: if
 * one has the very sequence number that its side is to send next, the flow shows it.
 *
 * Contract: a later fragment changes nothing that is known of a flow, so that nobody can who
 * forges one. What does not fit together, as two first fragments of one id, is no
 * reason to drop: without its first, no later fragment is of use. loader/assembly and
 * loader/flow/headers have the same rules.
 */
#pragma once

#include "packet.h"
#include "maps.h"
#include "flow.h"
#include "tcp.h"

/* How long later fragments follow. Those of one packet come behind one another; ids come again. */
#define FRAGMENT_NS 2000000000ULL

struct fragment_key {
	__u8 from_addr[16]; /* IPv4: in the last 4 bytes */
	__u8 to_addr[16];
	__u32 id;
	__u16 vlan; /* as of struct flow_key */
	__u16 inner_vlan;
	__u8 proto; /* of an IPv4 header; 0: IPv6, where fragments of one packet may differ in it */
	__u8 side;  /* from which it came, see side_of(): who forges an address of the other side
		     * does not meet its owner's fragments */
	__u8 pad[2];
} __attribute__((aligned(4)));

struct fragment {
	__u64 time_ns; /* CLOCK_MONOTONIC of the first fragment */
	__u16 source;  /* ports */
	__u16 dest;
	__u16 header_len; /* how far the headers reach into the packet that is put together */
	__u8 proto;
	__u8 unsure; /* first fragments that differ had the id: none is followed */
};

/* key: what fragments of one packet share. value: what the first one told. Written by the
 * kernel; strangers push out strangers. 8192 * (64 + 48 + 16) = 1 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

/* Counts a malformed fragment. Returns an enum action. Not static, so that its stack is its
 * own. */
__noinline int bad_fragment(struct counts *cnt)
{
	if (!cnt)
		return ACTION_PASS;
	cnt->bad_fragment++;
	if (!is_enforced())
		return ACTION_PASS;
	cnt->bad_fragment_dropped++;
	return ACTION_DROP;
}

enum hidden {
	HIDDEN_UNKNOWN = 0, /* it may be of a connection that has no payload yet */
	HIDDEN_COUNTED,	    /* ... no more */
	HIDDEN_DROPPED,
};

/* A first fragment that hides TCP's flags: drops it if its flow is blocked, and notes it on one
 * that is collecting if it is in place. Returns an enum hidden. Not static, as
 * own_handshake(). */
__noinline int note_hidden(struct counts *cnt, const struct packet *pkt)
{
	struct flow_key key;
	struct block *block;
	struct slot *slot;
	__u32 id, next;

	if (!pkt || !cnt)
		return HIDDEN_COUNTED;
	key = pkt->key;
	block = get_block(&key);
	if (block && time_left(block) && drop_late(cnt, block, pkt) != ACTION_PASS)
		return HIDDEN_DROPPED;
	slot = collecting_slot(&key, &id);
	if (!slot)
		return HIDDEN_UNKNOWN;
	if (!comes_from(pkt, slot->sample.side, slot->sample.initiator_is_lo))
		return HIDDEN_COUNTED;
	bpf_spin_lock(&slot->lock);
	next = pkt->src_is_lo ? slot->sample.next_lo : slot->sample.next_hi;
	if (pkt->seq == next)
		slot->sample.flags |= SAMPLE_HIDDEN;
	bpf_spin_unlock(&slot->lock);
	return HIDDEN_COUNTED;
}

/* Notes it on a connection that has no payload yet, whose initiator is on a side. */
__noinline int note_hidden_start(const struct packet *pkt, __u32 side)
{
	struct candidate *candidate;
	struct place at;
	__u32 next;

	if (!pkt)
		return 0;
	candidate = find_candidate(pkt, side & 1, false, &at);
	if (!candidate)
		return 0;
	next = pkt->src_is_lo ? candidate->next_lo : candidate->next_hi;
	if (candidate->state == CANDIDATE_PROVEN && pkt->seq == next &&
	    comes_from(pkt, candidate->side, candidate->initiator_is_lo))
		candidate->seen |= SAMPLE_HIDDEN;
	leave_handshake(&at);
	return 0;
}

static __always_inline bool is_recent(const struct fragment *known, __u64 now)
{
	/* Another CPU's clock may be a little ahead. */
	return (__s64)(now - known->time_ns) < (__s64)FRAGMENT_NS;
}

/* Notes what a first fragment tells. */
static __always_inline void note_first(const struct fragment_key *key, struct fragment *first)
{
	struct fragment *known = bpf_map_lookup_elem(&fragments, key);

	/* Once more, or somebody forges one of the two. */
	if (known && is_recent(known, first->time_ns))
		first->unsure = known->unsure | (known->source != first->source) |
				(known->dest != first->dest) | (known->proto != first->proto) |
				(known->header_len != first->header_len);
	bpf_map_update_elem(&fragments, key, first, BPF_ANY);
}

/* set_endpoints() of a fragment: stands once in a program. The source's port is the upper half. Not
 * static, as own_handshake(). */
__noinline int set_fragment_ends(struct packet *pkt, __u32 ports, bool v4)
{
	const struct network net = {.v4 = v4};

	if (pkt)
		set_endpoints(pkt, &net, ports >> 16, ports);
	return 0;
}

/* Drops a later fragment of a blocked flow, whose key the packet has. */
static __always_inline enum parse_result follow(struct counts *cnt, const struct packet *pkt)
{
	/* Before Linux 6.2, helpers take no key from memory that a function was handed. */
	struct flow_key key = pkt->key;
	struct block *block = get_block(&key);

	if (!block || !time_left(block) || drop_late(cnt, block, pkt) == ACTION_PASS)
		return PARSE_PASS;
	return PARSE_DROP;
}

/* Fills in what a first fragment tells that lacks TCP's header: ports and sequence number, if
 * those are there. Returns an enum parse_result. */
static __always_inline int hidden_first(const struct source *src, struct packet *pkt,
					const struct network *net, __u64 now)
{
	__be32 words[2];

	if (net->off + sizeof(words) > net->end)
		return PARSE_BAD_FRAGMENT;
	if (load(src, net->off, words, sizeof(words)))
		return PARSE_LOAD_FAILED;
	pkt->key.proto = IPPROTO_TCP;
	set_fragment_ends(pkt, bpf_ntohl(words[0]), net->v4);
	pkt->seq = bpf_ntohl(words[1]);
	pkt->ack = 0;
	pkt->hash = hash_of(&pkt->key);
	pkt->now = now;
	pkt->side = side_of(src, pkt);
	return PARSE_HIDDEN_FIRST;
}

/* Looks at pkt->fragment: parses a first one to its end and notes it, and has a later one
 * follow it. The addresses in the packet's key are not in order yet. Returns an enum
 * parse_result. */
static __always_inline int fragment(const struct source *src, struct packet *pkt)
{
	struct network net = {.marks = PACKET_UNSURE | PACKET_FIRST};
	struct counts *cnt = src->cnt;
	struct fragment first = {}, *known;
	struct fragment_key key = {};
	enum parse_result result;
	bool nested;
	union {
		__be32 words[2];
		struct tcphdr tcp;
		struct udphdr udp;
	} header;
	__u32 at, offset;

	if (!cnt || !pkt)
		return PARSE_PASS;
	at = pkt->fragment.at;
	net.off = pkt->fragment.off;
	net.end = pkt->fragment.end;
	net.proto = pkt->fragment.proto;
	net.v4 = pkt->fragment.v4;
	result = pkt->fragment.result;
	nested = pkt->fragment.nested;
	if (load(src, at, header.words, sizeof(header.words)))
		return PARSE_LOAD_FAILED;
	__builtin_memcpy(key.from_addr, pkt->key.lo_addr, sizeof(key.from_addr));
	__builtin_memcpy(key.to_addr, pkt->key.hi_addr, sizeof(key.to_addr));
	key.vlan = pkt->key.vlan;
	key.inner_vlan = pkt->key.inner_vlan;
	key.side = cfg_one_hook ? 0 : side_of(src, pkt);
	key.id = bpf_ntohl(header.words[1]);
	offset = bpf_ntohl(header.words[0]) & 0xfff8;
	if (net.v4) {
		key.proto = net.proto;
		offset = (key.id & IP_OFFSET_MASK) * 8;
		key.id >>= 16;
	} else if (offset) {
		net.proto = bpf_ntohl(header.words[0]) >> 24;
	}
	/* All headers have to be in the first fragment (RFC 7112). */
	if (nested || (!offset && result == PARSE_MALFORMED))
		return PARSE_BAD_FRAGMENT;
	first.time_ns = bpf_ktime_get_ns();
	pkt->frame_len = pkt->prefix_len + (net.end - pkt->skip);

	if (offset) {
		/* Behind a whole TCP header no offset is smaller. */
		if (net.proto == IPPROTO_TCP && offset < sizeof(header.tcp))
			return PARSE_BAD_FRAGMENT;
		known = bpf_map_lookup_elem(&fragments, &key);
		if (!known || known->unsure || !is_recent(known, first.time_ns)) {
			cnt->later_fragment++;
			return PARSE_PASS;
		}
		if (offset < known->header_len)
			return PARSE_BAD_FRAGMENT;
		cnt->later_fragment++;
		cnt->followed_fragment++;
		pkt->key.proto = known->proto;
		set_fragment_ends(pkt, (__u32)known->source << 16 | known->dest, net.v4);
		return follow(cnt, pkt);
	}
	if (result != PARSE_FLOW)
		return result;
	if (!net.v4 && is_extension(net.proto))
		return PARSE_UNPARSABLE;
	if (net.proto == IPPROTO_TCP) {
		result = PARSE_BAD_FRAGMENT;
		if (net.off + sizeof(header.tcp) <= net.end) {
			if (load(src, net.off, &header.tcp, sizeof(header.tcp)))
				return PARSE_LOAD_FAILED;
			first.header_len = header.tcp.doff * 4;
			result = read_tcp(pkt, &net, &header.tcp);
		}
		if (result == PARSE_BAD_FRAGMENT)
			return hidden_first(src, pkt, &net, first.time_ns);
	} else if (net.proto == IPPROTO_UDP) {
		if (net.off + sizeof(header.udp) > net.end)
			return PARSE_BAD_FRAGMENT;
		if (load(src, net.off, &header.udp, sizeof(header.udp)))
			return PARSE_LOAD_FAILED;
		first.header_len = sizeof(header.udp);
		result = read_udp(pkt, &net, &header.udp);
		pkt->tcp_flags = PACKET_FIRST;
	} else {
		return PARSE_OTHER_PROTO;
	}
	if (result != PARSE_FLOW)
		return result;
	/* Ports are where both protocols have them. */
	first.source = bpf_ntohs(header.udp.source);
	first.dest = bpf_ntohs(header.udp.dest);
	first.proto = pkt->key.proto = net.proto;
	set_fragment_ends(pkt, (__u32)first.source << 16 | first.dest, net.v4);
	/* IPv6: headers of IP may come behind the fragment header. */
	if (!net.v4)
		first.header_len += net.off - (at + 8);
	note_first(&key, &first);
	return PARSE_FIRST_FRAGMENT;
}

FOR_EACH_HOOK(fragment)
