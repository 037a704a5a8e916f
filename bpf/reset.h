/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The ends of a blocked flow are told with a RST, made of the packet that is dropped.
 *
 * The packet's sender is answered: the RST has the number that the packet acknowledges, which
 * its sender waits for (RFC 9293, 3.10.7.1). Only payload of the responder, when the initiator
 * has not been told, goes on to the initiator as a RST in its place: who waits for an answer,
 * and sends nothing meanwhile, would wait on. What its sender sends again is answered.
 *
 * A SYN of a treated pair is answered as a closed port would.
 *
 * Contract: who is told are the block's two ends, each at most RESETS_MOST times, and no more
 * than one each RESET_NS on an interface, RESET_BURST at once. A packet with numbers that the
 * connection can't have now tells nobody. Not answered are fragments, IPv4 options, IPv6
 * extension headers, and links without an Ethernet header: they are dropped alone.
 *
 * A RST's window means nothing (RFC 9293, 3.5.3). It is chosen so that the checksum is the sum
 * of the pseudo-header: that is right whether a network card is yet to complete it or not, which
 * can't be known of a socket buffer.
 */
#pragma once

#include "tcp.h"

#define RESET_NS 5000000ULL
#define RESET_BURST 200
#define PAIR_RESET_NS 50000000ULL
#define PAIR_RESET_BURST 20
#define RESET_TTL 64
#define ETH_FRAME_MIN 60

/* Where the IP header is, in the buffer. */
static __always_inline __u32 network_offset(const struct source *src)
{
	__u32 off = ETH_HLEN;
	__be16 type;

#pragma unroll
	for (int i = 0; i < VLAN_TAGS; i++) {
		if (load(src, off - sizeof(type), &type, sizeof(type)))
			return 0;
		if (type != ETH_P_8021Q_NET && type != ETH_P_8021AD_NET && type != ETH_P_QINQ_NET)
			break;
		off += sizeof(struct vlan_header);
	}
	return off;
}

/* Whether the numbers are those that the block's connection may have by now, where they are
 * known. */
static __always_inline bool fits_block(const struct block *block, bool from_lo, __u32 seq,
				       __u32 ack)
{
	__u32 next = from_lo ? block->next_lo : block->next_hi;
	__u32 other = from_lo ? block->next_hi : block->next_lo;
	__u8 known = from_lo ? KNOWN_NEXT_LO : KNOWN_NEXT_HI;

	if ((block->known & known) && seq - next + BLOCK_AHEAD > 2 * BLOCK_AHEAD)
		return false;
	known ^= KNOWN_NEXT_LO | KNOWN_NEXT_HI;
	return !(block->known & known) || ack - other + BLOCK_AHEAD <= 2 * BLOCK_AHEAD;
}

/* IP without options, and TCP behind it. IPv4 has the last five words of the ten. */
struct reset_headers {
	__be32 ip[10];
	struct tcphdr tcp;
};

#define IPV4_WORDS 5
#define IPV6_WORDS 10

/* Exchanges two addresses that are behind one another. */
static __always_inline void exchange(__be32 *addresses, const int words)
{
#pragma unroll
	for (int i = 0; i < words; i++) {
		__be32 word = addresses[i];

		addresses[i] = addresses[i + words];
		addresses[i + words] = word;
	}
}

static __always_inline __u64 sum_words(const __be32 *words, const int count)
{
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < count; i++)
		sum += words[i];
	return sum;
}

/* Makes an IP header that of a TCP header alone, back to the packet's sender or not. Returns the
 * sum of the pseudo-header. */
static __always_inline __u64 reset_ipv4(__be32 *ip, bool answer)
{
	ip[0] = (ip[0] & bpf_htonl(0xffff0000)) |
		bpf_htonl(sizeof(struct iphdr) + sizeof(struct tcphdr));
	ip[2] &= bpf_htonl(0xffff0000);
	if (answer) {
		ip[2] = bpf_htonl(RESET_TTL << 24 | IPPROTO_TCP << 16);
		exchange(&ip[3], 1);
	}
	ip[2] |= (__u32)(__u16)~fold_sum(sum_words(ip, IPV4_WORDS)) << 16;
	return sum_words(&ip[3], 2) + bpf_htonl(sizeof(struct tcphdr)) + bpf_htonl(IPPROTO_TCP);
}

static __always_inline __u64 reset_ipv6(__be32 *ip, bool answer)
{
	ip[1] = (ip[1] & bpf_htonl(0xffff)) | bpf_htonl(sizeof(struct tcphdr) << 16);
	if (answer) {
		ip[1] = bpf_htonl(sizeof(struct tcphdr) << 16 | IPPROTO_TCP << 8 | RESET_TTL);
		exchange(&ip[2], 4);
	}
	return sum_words(&ip[2], 8) + bpf_htonl(sizeof(struct tcphdr)) + bpf_htonl(IPPROTO_TCP);
}

/* refused: what the RST acknowledges of a SYN, 0 where it answers none. */
static __always_inline void reset_tcp(struct tcphdr *tcp, bool answer, __u32 refused, __u64 pseudo)
{
	__u32 *words = (__u32 *)tcp;
	__be16 port = tcp->source;

	if (answer) {
		tcp->source = tcp->dest;
		tcp->dest = port;
		/* RFC 9293, 3.10.7.1 */
		if (refused) {
			tcp->ack_seq = bpf_htonl(bpf_ntohl(tcp->seq) + refused);
			tcp->seq = 0;
		} else {
			tcp->seq = tcp->ack_seq;
			tcp->ack_seq = 0;
		}
	}
	/* The length of the header, and the flags. */
	words[3] = bpf_htonl(0x50000000 | TCP_RST << 16 | (answer && !refused ? 0 : TCP_ACK << 16));
	words[4] = fold_sum(pseudo);
	/* With what is in the checksum's place, all is to add up to nothing. */
	pseudo = fold_sum(pseudo) + sum_words(words, 5);
	words[3] |= (__u32)(__u16)~fold_sum(pseudo) << 16;
}

/* flags: BPF_F_RECOMPUTE_CSUM for what is behind the Ethernet header: a network card's sum over
 * what it received (CHECKSUM_COMPLETE) follows. */
static __always_inline int store(const struct source *src, __u32 to, const void *from, __u32 len,
				 __u64 flags)
{
	return src->is_xdp ? bpf_xdp_store_bytes(src->ctx, to, (void *)from, len)
			   : bpf_skb_store_bytes(src->ctx, to, from, len, flags);
}

/* Exchanges the Ethernet addresses. */
static __always_inline bool turn_frame(const struct source *src)
{
	__u16 macs[6], back[6];

	if (load(src, 0, macs, sizeof(macs)))
		return false;
#pragma unroll
	for (int i = 0; i < 6; i++)
		back[i] = macs[(i + 3) % 6];
	return !store(src, 0, back, sizeof(back), 0);
}

/* Cuts the buffer behind a header. A driver may not fill a frame up to the least that goes onto a
 * cable. */
static __always_inline bool cut_frame(const struct source *src, __u32 end)
{
	const __u8 padding[6] = {};
	__u32 len;

	if (!src->is_xdp)
		return !bpf_skb_change_tail(src->ctx, end, 0);
	len = bpf_xdp_get_buff_len(src->ctx);
	if (end < ETH_FRAME_MIN && len >= ETH_FRAME_MIN) {
		/* With a tag there are four bytes more. */
		if (end == ETH_FRAME_MIN - 6 ? store(src, ETH_FRAME_MIN - 6, padding, 6, 0)
					     : store(src, ETH_FRAME_MIN - 2, padding, 2, 0))
			return false;
		end = ETH_FRAME_MIN;
	}
	return end == len || !bpf_xdp_adjust_tail(src->ctx, (int)(end - len));
}

/* How many RSTs an end was sent. */
static __always_inline __u32 *resets_of(struct block *block, bool lo)
{
	return lo ? &block->resets_lo : &block->resets_hi;
}

/* Whether the interface has not sent too many lately. */
static __always_inline bool take_reset(struct counts *cnt, __u64 now)
{
	struct reset_bucket *bucket;
	__u32 zero = 0;

	bucket = bpf_map_lookup_elem(&reset_bucket, &zero);
	if (bucket && take(&bucket->busy_ns, now, RESET_NS, RESET_BURST * RESET_NS))
		return true;
	cnt->resets_refused++;
	return false;
}

/* Whether one of the block's ends is to be told, and counts that. */
static __always_inline bool may_reset(struct counts *cnt, __u32 *told)
{
	if (*told >= RESETS_MOST || !take_reset(cnt, bpf_ktime_get_ns()) ||
	    __sync_fetch_and_add(told, 1) >= RESETS_MOST)
		return false;
	cnt->resets++;
	return true;
}

/* Whether the sender of a pair's SYN is to be told, and counts that. Its address may be forged:
 * no pair uses up what the others of the interface have. Not static, so that its stack is its
 * own. */
__noinline int may_refuse(struct counts *cnt, const struct packet *pkt)
{
	struct pair *pair;

	if (!cnt || !pkt)
		return 0;
	pair = find_pair(&pkt->key, pkt->src_is_lo);
	if (!pair)
		return 0;
	if (!take(&pair->busy_ns, pkt->now, PAIR_RESET_NS, PAIR_RESET_BURST * PAIR_RESET_NS)) {
		cnt->resets_refused++;
		return 0;
	}
	if (!take_reset(cnt, pkt->now))
		return 0;
	cnt->resets++;
	return 1;
}

/* Whether a packet that was counted as dropped tells one of its ends: then it becomes a RST.
 * Returns an enum action; with ACTION_PASS it goes on as a RST. */
static __always_inline int reset(const struct source *src, struct packet *pkt)
{
	const __u8 answers = src->is_ingress ? ANSWER_INGRESS : ANSWER_EGRESS;
	struct counts *cnt = src->cnt;
	struct reset_headers headers;
	__u32 at, len, refused = 0;
	bool v4, answer, from_lo;
	struct block *block = NULL;
	struct flow_key key;
	__u64 pseudo;

	if (!cnt || !pkt || cfg_raw_ip)
		return ACTION_DROP;
	key = pkt->key;
	from_lo = pkt->src_is_lo;
	if (pkt->tcp_flags & TCP_SYN)
		refused = 1 + pkt->payload_len;
	else if (!(block = get_block(&key)))
		return ACTION_DROP;
	at = network_offset(src);
	len = pkt->tcp_off - at;
	v4 = len == sizeof(struct iphdr);
	if (!at || (!v4 && len != sizeof(struct ipv6hdr)))
		return ACTION_DROP;
	if (v4 ? load(src, at, &headers.ip[IPV4_WORDS], sizeof(headers) - IPV4_WORDS * 4)
	       : load(src, at, &headers, sizeof(headers)))
		return ACTION_DROP;
	/* Ten words are also those of an IPv4 header with options. */
	if ((headers.ip[v4 ? IPV4_WORDS : 0] & bpf_htonl(0xf0000000)) !=
	    (v4 ? bpf_htonl(0x40000000) : bpf_htonl(0x60000000)))
		return ACTION_DROP;
	if (block &&
	    !fits_block(block, from_lo, bpf_ntohl(headers.tcp.seq), bpf_ntohl(headers.tcp.ack_seq)))
		return ACTION_DROP;

	/* A block by hand knows no initiator, and is not renewed. */
	answer = !block || from_lo == !!block->initiator_is_lo || !pkt->payload_len ||
		 !block->ttl_ns || *resets_of(block, block->initiator_is_lo);
	if (answer && !(cfg_answers & answers))
		return ACTION_DROP;
	if (block ? !may_reset(cnt, resets_of(block, from_lo == answer)) : !may_refuse(cnt, pkt))
		return ACTION_DROP;

	pseudo = v4 ? reset_ipv4(&headers.ip[IPV4_WORDS], answer) : reset_ipv6(headers.ip, answer);
	reset_tcp(&headers.tcp, answer, refused, pseudo);
	if (v4 ? store(src, at, &headers.ip[IPV4_WORDS], sizeof(headers) - IPV4_WORDS * 4,
		       BPF_F_RECOMPUTE_CSUM)
	       : store(src, at, &headers, sizeof(headers), BPF_F_RECOMPUTE_CSUM))
		return ACTION_DROP;
	if ((answer && !turn_frame(src)) || !cut_frame(src, at + len + sizeof(struct tcphdr)))
		return ACTION_DROP;
	return answer ? ACTION_ANSWER : ACTION_PASS;
}

FOR_EACH_HOOK(reset)
