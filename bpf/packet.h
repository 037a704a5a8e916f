/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A packet, the same for all hooks, and the parser that fills in what it means.
 *
 * Contract: parse_packet() reads headers wherever they lie (linear data, XDP
 * fragments, paged socket buffers) and never reads a port from bytes that are no
 * transport header. It returns PARSE_FLOW and a filled-in struct packet, or the
 * cause for which the packet belongs to no flow. Lengths that a header claims
 * are believed only as far as the frame reaches.
 *
 * The captured frame is `prefix` (prefix_len bytes that the wire has and the
 * kernel's buffer has not) followed by the buffer's bytes from `skip` on.
 */
#pragma once

#include "earlydrop.h"
#include "config.h"

#define ETH_P_8021Q_NET bpf_htons(0x8100)
#define ETH_P_8021AD_NET bpf_htons(0x88a8)
#define ETH_P_QINQ_NET bpf_htons(0x9100)
#define ETH_P_IP_NET bpf_htons(0x0800)
#define ETH_P_IPV6_NET bpf_htons(0x86dd)

#define VLAN_ID_MASK 0x0fff
#define VLAN_TAGS 2
#define IPV6_EXT_HEADERS 6

#define IP_OFFSET_MASK 0x1fff
#define IP_MORE_FRAGMENTS 0x2000

#define IPV4_OPTIONS 40

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
/* No flags: in place of CWR, ECE, URG and PSH, which nobody asks for. */
#define PACKET_DECOY 0x80  /* the checksum is wrong, see checksum.h */
#define PACKET_UNSURE 0x40 /* can't be told: fragments, lengths, extension headers */
#define PACKET_FIRST 0x20  /* the first fragment of a greater packet; UDP as well */
#define PACKET_NEW 0x08	   /* `flows` has nothing of the key */
#define PACKET_MARKS (PACKET_DECOY | PACKET_UNSURE | PACKET_FIRST | PACKET_NEW)

#define PREFIX_LEN 16
#define PACKET_BUF 40

enum parse_result {
	PARSE_FLOW = 0,
	PARSE_NOT_IP,
	PARSE_OTHER_PROTO,
	PARSE_MALFORMED,
	PARSE_UNPARSABLE,
	PARSE_LATER_FRAGMENT,
	PARSE_LOAD_FAILED,
	PARSE_BAD_FLAGS,
	/* see fragments.h */
	PARSE_BAD_FRAGMENT,
	PARSE_HIDDEN_FIRST,   /* as PARSE_BAD_FRAGMENT, with TCP's ports and sequence number */
	PARSE_FIRST_FRAGMENT, /* as PARSE_FLOW */
	PARSE_PASS,	      /* it was counted */
	PARSE_DROP,	      /* as well */
};

/* Where a packet's bytes are. Apart from struct packet, whose key is passed to
 * helpers and therefore lives on the stack: this one dissolves into registers and
 * constants, so that no program contains helper calls of the other kind of hook. */
struct source {
	void *ctx; /* struct xdp_md or struct __sk_buff */
	struct counts *cnt;
	void *data;
	void *data_end;	 /* of the linear part */
	__u32 len;	 /* of the whole buffer, without what a prefix adds */
	bool is_xdp;	 /* ctx is a struct xdp_md */
	bool is_ingress; /* XDP, or TCX ingress */
};

/* What a packet means. Without gaps, since it is passed to functions that the verifier
 * looks at by themselves: they may read all of it. */
struct packet {
	bool src_is_lo;
	__u8 tcp_flags;
	__u8 prefix_len;
	__u8 skip;
	__u32 frame_len; /* captured frame: prefix and buffer, padding left out */
	__u32 payload_len;
	union {
		__u16 tcp_off; /* of the TCP header, in the buffer */
		__be16 udp_check;
	};
	__u8 side; /* from which it came, see read_segment() */
	__u8 mark; /* what a mark of the capture is worth, see join_capture() */
	union {
		/* headers that the parser could not read in place */
		__u8 buf[PACKET_BUF];
		/* what packets of flows that are not decided are asked for */
		struct {
			__u32 seq; /* UDP: see is_sent_back() */
			union {
				__u32 ack;
				__u32 resumed; /* UDP: the flow may have been there before */
			};
			__u64 hash; /* of the key */
			__u64 now;  /* CLOCK_MONOTONIC */
			/* What functions leave to be done, so that they need not call one
			 * another: all frames of a program share 512 bytes of stack. */
			__u64 hand_over; /* hand this slot over, with its word; 0: none */
			union {
				__u32 slot;
				__u32 pair_quota; /* until then, see within_quota() */
			};
			__u32 candidate; /* go on with this candidate, or with NO_CANDIDATE */
		};
		/* what fragment() is asked about; offsets are in the buffer */
		struct {
			__u32 at;  /* of the IPv4 header or the IPv6 fragment header */
			__u32 off; /* of what follows the headers of IP */
			__u32 end; /* of the IP packet */
			enum parse_result result; /* of the walk over IPv6 extension headers */
			__u8 proto;
			bool v4;
			bool nested; /* two IPv6 fragment headers, the outer one of a first */
		} fragment;
	} __attribute__((aligned(8)));
	__u8 prefix[PREFIX_LEN];
	struct flow_key key __attribute__((aligned(8))); /* hashed by longer words */
	__u32 quota; /* of the capture that it opens, see within_quota() */
};

/* Of a first fragment, all payload may come in later ones. */
static __always_inline bool has_payload(const struct packet *pkt)
{
	return pkt->payload_len || (pkt->tcp_flags & PACKET_FIRST);
}

/* Payload bytes of each packet that a socket buffer holds which is to be cut up, or was put
 * together on receive (GRO): its sum is the pseudo-header's alone. 0: it holds one. */
static __always_inline __u32 segment_size(const struct source *src)
{
	return src->is_xdp ? 0 : ((struct __sk_buff *)src->ctx)->gso_size;
}

/* Where a packet is in a capture, and what there is to say of it: packet_record.place. */
static __always_inline __u16 record_place(const struct source *src, const struct packet *pkt,
					  __u32 offset, bool from_initiator)
{
	__u32 place = offset;

	/* Linux 6.1: else it is not this offset, but another copy of it, whose bounds are known. */
	barrier_var(place);
	if (from_initiator)
		place |= RECORD_FROM_INITIATOR;
	if (pkt->tcp_flags & PACKET_FIRST)
		place |= RECORD_FRAGMENT;
	if (src->is_ingress && cfg_partial_sums == PARTIAL_WRONG && !segment_size(src))
		place |= RECORD_OFF_CABLE;
	return place;
}

struct vlan_header {
	__be16 tci;
	__be16 proto;
};

struct ports {
	__be16 source;
	__be16 dest;
};

static __always_inline int load(const struct source *src, __u32 from, void *to, __u32 len)
{
	return src->is_xdp ? bpf_xdp_load_bytes(src->ctx, from, to, len)
			   : bpf_skb_load_bytes(src->ctx, from, to, len);
}

/* The verifier wants a bound below 64 KiB on what is added to a packet pointer. No header
 * starts that far in. */
#define LINEAR_OFFSET 0x3fff

/* Replaces the length of the linear part by that of the whole buffer: a helper
 * call that a packet which is linear as far as it is read does not need. */
static __always_inline void measure(struct source *src)
{
	if (src->is_xdp)
		src->len = bpf_xdp_get_buff_len(src->ctx);
}

/* Returns a pointer to len bytes, a constant, at offset off: into the packet where
 * its linear part holds them, else to pkt->buf, which a helper fills. NULL if the packet
 * ends before. */
static __always_inline void *header(struct source *src, struct packet *pkt, __u32 off,
				    const __u32 len)
{
	void *at;

	if (off > LINEAR_OFFSET)
		return NULL;
	at = src->data + off;
	if (at + len <= src->data_end)
		return at;
	measure(src);
	if (off + len > src->len)
		return NULL;
	if (load(src, off, pkt->buf, len))
		return NULL;
	return pkt->buf;
}

/* Where the network header says that the transport header is, and between whom. */
struct network {
	__u32 off; /* of the transport header, in the buffer */
	__u32 end; /* of the IP packet, in the buffer */
	__u8 proto;
	bool v4;      /* then only the last words of the addresses are set */
	__u8 marks;   /* PACKET_UNSURE, PACKET_FIRST */
	__u32 nought; /* 0, which the verifier does not know, see parse_packet() */
};

/* Looks at a fragment, see fragments.h. */
int fragment_xdp(struct xdp_md *ctx, struct packet *pkt, struct counts *cnt);
int fragment_in(struct __sk_buff *ctx, struct packet *pkt, struct counts *cnt);
int fragment_out(struct __sk_buff *ctx, struct packet *pkt, struct counts *cnt);

/* Asks about a fragment whose addresses are in the key. What is asked is as of struct packet. */
static __always_inline enum parse_result ask_fragment(struct source *src, struct packet *pkt,
						      const struct network *net, __u32 at,
						      enum parse_result result, bool nested)
{
	/* A function that is not static is handed memory that was written whole. */
	__builtin_memset(pkt->buf, 0, sizeof(pkt->buf));
	pkt->fragment.at = at;
	pkt->fragment.off = net->off;
	pkt->fragment.end = net->end;
	pkt->fragment.result = result;
	pkt->fragment.proto = net->proto;
	pkt->fragment.v4 = net->v4;
	pkt->fragment.nested = nested;
	if (src->is_xdp)
		return fragment_xdp(src->ctx, pkt, src->cnt);
	return src->is_ingress ? fragment_in(src->ctx, pkt, src->cnt)
			       : fragment_out(src->ctx, pkt, src->cnt);
}

/* Exchanges two words where `swap` is 1, and not where it is 0; without a branch, see
 * set_endpoints(). */
#define SWAP_IF(swap, a, b)                                                                        \
	do {                                                                                       \
		typeof(a) both = ((a) ^ (b)) * swap;                                               \
                                                                                                   \
		(a) ^= both;                                                                       \
		(b) ^= both;                                                                       \
	} while (0)

/* The key has the source's address as the lower one so far. Puts both into canonical order,
 * with their ports. Without a branch: which end is lower is by chance for the CPU, and two
 * ways through all that follows for the verifier. */
static __always_inline void set_endpoints(struct packet *pkt, const struct network *net,
					  __u16 sport, __u16 dport)
{
	__be32 *lo = (__be32 *)pkt->key.lo_addr, *hi = (__be32 *)pkt->key.hi_addr;
	__u64 src_is_lo, swap;

	/* What a long subtraction borrows in the end is 1 where the first number is lower;
	 * it begins with 1 where the same would be. */
	src_is_lo = ((__u64)sport - dport - 1) >> 63;
#pragma unroll
	for (int i = 3; i >= 0; i--) {
		/* barrier_var(): clang must not make a branch of it after all. */
		barrier_var(src_is_lo);
		src_is_lo = ((__u64)bpf_ntohl(lo[i]) - bpf_ntohl(hi[i]) - src_is_lo) >> 63;
		if (net->v4) /* the words before are equal */
			break;
	}
	pkt->src_is_lo = src_is_lo;
	swap = 1 - src_is_lo;
	barrier_var(swap);
	SWAP_IF(swap, sport, dport);
	pkt->key.lo_port = sport;
	pkt->key.hi_port = dport;
	if (net->v4) {
		lo[0] = lo[1] = hi[0] = hi[1] = net->nought;
		lo[2] = hi[2] = bpf_htonl(0xffff) ^ net->nought;
	}
#pragma unroll
	for (int i = 3; i >= 0; i--) {
		SWAP_IF(swap, lo[i], hi[i]);
		if (net->v4)
			break;
	}
}

/* Reads a TCP header that is there as far as its options. The header of a first fragment has
 * to be in it whole (RFC 1858). */
static __always_inline enum parse_result read_tcp(struct packet *pkt, const struct network *net,
						  const struct tcphdr *tcp)
{
	__u32 header_len = tcp->doff * 4;

	if (header_len < sizeof(*tcp))
		return PARSE_MALFORMED;
	if (net->off + header_len > net->end)
		return net->marks & PACKET_FIRST ? PARSE_BAD_FRAGMENT : PARSE_MALFORMED;
	/* The flags are byte 13; the struct has them as bit fields. */
	pkt->tcp_flags = ((__u8 *)tcp)[13] & ~PACKET_MARKS;
	if ((pkt->tcp_flags & TCP_SYN) && (pkt->tcp_flags & (TCP_RST | TCP_FIN)))
		return PARSE_BAD_FLAGS;
	pkt->tcp_flags |= net->marks;
	/* The length first: the verifier keeps what it knows of a stack word's lower half until the
	 * upper one is written, and goes more ways on from here, all of which are one. */
	pkt->payload_len = net->end - net->off - header_len;
	pkt->tcp_off = net->off;
	return PARSE_FLOW;
}

static __always_inline enum parse_result read_udp(struct packet *pkt, const struct network *net,
						  const struct udphdr *udp)
{
	__u32 len = bpf_ntohs(udp->len);

	/* 0 stands for "the rest" (jumbograms, GSO); a length beyond the packet
	 * can't be true, but the bytes that are there are. */
	if (len && len < sizeof(*udp))
		return PARSE_MALFORMED;
	if (!len || len > net->end - net->off)
		len = net->end - net->off;
	pkt->payload_len = len - sizeof(*udp);
	pkt->udp_check = udp->check;
	return PARSE_FLOW;
}

static __always_inline enum parse_result parse_transport(struct source *src, struct packet *pkt,
							 const struct network *net)
{
	enum parse_result result;
	__be16 source, dest;

	if (net->proto == IPPROTO_TCP) {
		struct tcphdr *tcp;

		if (net->off + sizeof(*tcp) > net->end)
			return PARSE_MALFORMED;
		tcp = header(src, pkt, net->off, sizeof(*tcp));
		if (!tcp)
			return PARSE_LOAD_FAILED;
		result = read_tcp(pkt, net, tcp);
		if (result != PARSE_FLOW)
			return result;
		source = tcp->source;
		dest = tcp->dest;
	} else if (net->proto == IPPROTO_UDP) {
		struct udphdr *udp;

		if (net->off + sizeof(*udp) > net->end)
			return PARSE_MALFORMED;
		udp = header(src, pkt, net->off, sizeof(*udp));
		if (!udp)
			return PARSE_LOAD_FAILED;
		result = read_udp(pkt, net, udp);
		if (result != PARSE_FLOW)
			return result;
		source = udp->source;
		dest = udp->dest;
	} else {
		return PARSE_OTHER_PROTO;
	}
	pkt->key.proto = net->proto;
	set_endpoints(pkt, net, bpf_ntohs(source), bpf_ntohs(dest));
	return PARSE_FLOW;
}

/* Adds up the words of an IPv4 header's options; what can't be read makes a wrong sum, or
 * nearly always. A function, so that the parser's frame has no room for them. */
static __always_inline __u64 options_sum(void *ctx, __u32 off, __u32 len, const bool is_xdp)
{
	__u32 buf[IPV4_OPTIONS / 4] = {};
	__u64 sum = 0;

	/* The helpers take no empty range, see copy_frame(). */
	len--;
	barrier_var(len);
	if (len >= IPV4_OPTIONS)
		return 1;
	if (is_xdp ? bpf_xdp_load_bytes(ctx, off, buf, len + 1)
		   : bpf_skb_load_bytes(ctx, off, buf, len + 1))
		return 1;
#pragma unroll
	for (int i = 0; i < IPV4_OPTIONS / 4; i++)
		sum += buf[i];
	return sum;
}

__noinline __u64 options_sum_xdp(struct xdp_md *ctx, __u32 off, __u32 len)
{
	return options_sum(ctx, off, len, true);
}

__noinline __u64 options_sum_skb(struct __sk_buff *ctx, __u32 off, __u32 len)
{
	return options_sum(ctx, off, len, false);
}

/* Whether the 16-bit words of an IPv4 header add up as they must (RFC 1071). Any byte
 * order does, as long as it is the same for all. */
static __always_inline bool checksum_holds(struct source *src, const struct iphdr *ip, __u32 off)
{
	const __u32 *word = (const __u32 *)ip;
	__u32 options = ip->ihl * 4 - sizeof(*ip);
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < (int)(sizeof(*ip) / 4); i++)
		sum += word[i];
	if (options)
		sum += src->is_xdp ? options_sum_xdp(src->ctx, off + sizeof(*ip), options)
				   : options_sum_skb(src->ctx, off + sizeof(*ip), options);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)(sum + (sum >> 16)) == 0xffff;
}

static __always_inline enum parse_result parse_ipv4(struct source *src, struct packet *pkt,
						    __u32 off, struct network *net)
{
	__u32 header_len, total_len, rest;
	struct iphdr *ip;
	bool big;

	ip = header(src, pkt, off, sizeof(*ip));
	if (!ip)
		return PARSE_MALFORMED;
	header_len = ip->ihl * 4;
	total_len = bpf_ntohs(ip->tot_len);
	big = !total_len;
	if (!total_len || total_len > src->len - off)
		measure(src);
	rest = src->len - off;
	/* BIG TCP leaves the length at 0: the packet ends where the frame does. */
	if (!total_len || total_len > rest) {
		total_len = rest;
		net->marks = PACKET_UNSURE;
	}
	if (ip->version != 4 || header_len < sizeof(*ip) || header_len > total_len)
		return PARSE_MALFORMED;
	/* No router passes these on, and no host accepts them: what they say was never heard.
	 * A BIG TCP packet may get its checksum only when it is cut into packets. */
	if (!ip->ttl || (!(big && !ip->check) && !checksum_holds(src, ip, off)))
		return PARSE_MALFORMED;
	net->off = off + header_len;
	net->end = off + total_len;
	net->proto = ip->protocol;
	net->v4 = true;
	((__be32 *)pkt->key.lo_addr)[3] = ip->saddr;
	((__be32 *)pkt->key.hi_addr)[3] = ip->daddr;
	if (ip->frag_off & bpf_htons(IP_OFFSET_MASK | IP_MORE_FRAGMENTS))
		return ask_fragment(src, pkt, net, off, PARSE_FLOW, false);
	return PARSE_FLOW;
}

static __always_inline bool is_extension(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_DSTOPTS ||
	       proto == IPPROTO_AH || proto == IPPROTO_FRAGMENT;
}

struct extension_walk {
	__u32 off;	/* in the buffer, of the next header; of what follows at last */
	__u32 end;	/* of the packet */
	__u32 fragment; /* offset of the last fragment header */
	__u16 field;	/* offset and "more" of all of them, 0: whole packets */
	bool nested;	/* one is in a first fragment */
	__u8 proto;
};

struct extension_loop {
	void *ctx;
	struct extension_walk walk;
	enum parse_result result;
	__u32 pad;
};

/* One IPv6 extension header. Returns 1 to end bpf_loop(), which is used because
 * six unrolled rounds, each with its own offset, multiply the states that the
 * verifier has to follow through everything behind them. */
static __always_inline long walk_extension(struct extension_loop *loop, const bool is_xdp)
{
	struct extension_walk *walk = &loop->walk;
	__u8 ext[4]; /* next header, length; fragment: offset in the last two */

	if (!is_extension(walk->proto))
		return 1;
	loop->result = PARSE_MALFORMED;
	if (walk->off + 8 > walk->end)
		return 1;
	if (is_xdp ? bpf_xdp_load_bytes(loop->ctx, walk->off, ext, sizeof(ext))
		   : bpf_skb_load_bytes(loop->ctx, walk->off, ext, sizeof(ext))) {
		loop->result = PARSE_LOAD_FAILED;
		return 1;
	}
	loop->result = PARSE_FLOW;
	if (walk->proto == IPPROTO_FRAGMENT) {
		walk->fragment = walk->off;
		walk->nested |= walk->field & 1;
		/* 13 bits of offset, 2 reserved, 1 "more" */
		walk->field |= (ext[2] << 8 | ext[3]) & 0xfff9;
		if (ext[2] || (ext[3] & 0xf8)) {
			loop->result = PARSE_LATER_FRAGMENT;
			return 1;
		}
		walk->off += 8;
	} else if (walk->proto == IPPROTO_AH) {
		walk->off += (ext[1] + 2) * 4;
	} else {
		walk->off += (ext[1] + 1) * 8;
	}
	walk->proto = ext[0];
	return 0;
}
/* Callbacks of bpf_loop(); each program may contain its own hook's helpers only. */
static long walk_extension_xdp(__u32 index, struct extension_loop *loop)
{
	return walk_extension(loop, true);
}

static long walk_extension_skb(__u32 index, struct extension_loop *loop)
{
	return walk_extension(loop, false);
}

/* Walks over the extension headers of an IPv6 packet. Returns an enum parse_result; with
 * PARSE_FLOW, there may be more than are walked. Not static, so that the verifier looks at it
 * once. */
__noinline int walk_extensions_xdp(struct xdp_md *ctx, struct extension_walk *walk)
{
	struct extension_loop loop = {.ctx = ctx};

	if (!walk)
		return PARSE_MALFORMED;
	loop.walk = *walk;
	bpf_loop(IPV6_EXT_HEADERS, walk_extension_xdp, &loop, 0);
	*walk = loop.walk;
	return loop.result;
}

__noinline int walk_extensions_skb(struct __sk_buff *ctx, struct extension_walk *walk)
{
	struct extension_loop loop = {.ctx = ctx};

	if (!walk)
		return PARSE_MALFORMED;
	loop.walk = *walk;
	bpf_loop(IPV6_EXT_HEADERS, walk_extension_skb, &loop, 0);
	*walk = loop.walk;
	return loop.result;
}

/* An IPv4 address as IPv6 has it (::ffff:0:0/96) is in no packet on a wire (RFC 4942, 2.2);
 * its key would be that of the IPv4 flow. */
static __always_inline bool is_mapped(const __be32 *addr)
{
	return !addr[0] && !addr[1] && addr[2] == bpf_htonl(0xffff);
}

static __always_inline enum parse_result parse_ipv6(struct source *src, struct packet *pkt,
						    __u32 off, struct network *net)
{
	__u32 payload_len, rest;
	struct ipv6hdr *ip6;

	ip6 = header(src, pkt, off, sizeof(*ip6));
	if (!ip6 || ip6->version != 6)
		return PARSE_MALFORMED;
	payload_len = bpf_ntohs(ip6->payload_len);
	if (!payload_len || payload_len > src->len - off - sizeof(*ip6))
		measure(src);
	rest = src->len - off;
	if (!payload_len || payload_len > rest - sizeof(*ip6)) {
		payload_len = rest - sizeof(*ip6);
		net->marks = PACKET_UNSURE;
	}
	net->off = off + sizeof(*ip6);
	net->end = net->off + payload_len;
	net->proto = ip6->nexthdr;
	net->v4 = false;
	__builtin_memcpy(pkt->key.lo_addr, &ip6->saddr, sizeof(pkt->key.lo_addr));
	__builtin_memcpy(pkt->key.hi_addr, &ip6->daddr, sizeof(pkt->key.hi_addr));
	if (!ip6->hop_limit || is_mapped((__be32 *)pkt->key.lo_addr) ||
	    is_mapped((__be32 *)pkt->key.hi_addr))
		return PARSE_MALFORMED;

	if (is_extension(net->proto)) {
		struct extension_walk *walk = (void *)pkt->buf;
		int result;

		net->marks = PACKET_UNSURE;
		_Static_assert(sizeof(*walk) <= sizeof(pkt->buf), "the walk fits there");
		__builtin_memset(walk, 0, sizeof(*walk));
		walk->off = net->off;
		walk->end = net->end;
		walk->proto = net->proto;
		result = src->is_xdp ? walk_extensions_xdp(src->ctx, walk)
				     : walk_extensions_skb(src->ctx, walk);
		net->off = walk->off;
		net->proto = walk->proto;
		if (walk->field)
			return ask_fragment(src, pkt, net, walk->fragment, result, walk->nested);
		if (result != PARSE_FLOW)
			return result;
		if (is_extension(walk->proto))
			return PARSE_UNPARSABLE;
	}
	return PARSE_FLOW;
}

/* offloaded_tag: the hardware took a tag, tag_proto and tci, out of the frame. */
static __always_inline enum parse_result parse_packet(struct source *src, struct packet *pkt,
						      bool offloaded_tag, __be16 tag_proto,
						      __u16 tci)
{
	enum parse_result result;
	struct network net = {}; /* or clang spills registers that were never set */
	__be16 proto, *type;
	__u32 off = 0, in_frame = 0, vlan = 0, inner_vlan = 0, nought;
	int tags = 0;

	if (cfg_raw_ip) {
		__u8 *first = header(src, pkt, 0, sizeof(*first));

		if (!first)
			return PARSE_MALFORMED;
		if ((*first >> 4) == 4)
			proto = ETH_P_IP_NET;
		else if ((*first >> 4) == 6)
			proto = ETH_P_IPV6_NET;
		else
			return PARSE_NOT_IP;
		/* An Ethernet header with zero addresses, so that offsets stay. */
		pkt->prefix_len = ETH_HLEN;
		*(__be16 *)&pkt->prefix[12] = proto;
	} else {
		/* The addresses matter only where they have to be copied. */
		type = header(src, pkt, 12, sizeof(*type));
		if (!type)
			return PARSE_MALFORMED;
		proto = *type;
		off = ETH_HLEN;
		if (offloaded_tag) {
			__u32 *macs, *prefix = (__u32 *)pkt->prefix;

			macs = header(src, pkt, 0, 12);
			if (!macs)
				return PARSE_MALFORMED;
			prefix[0] = macs[0];
			prefix[1] = macs[1];
			prefix[2] = macs[2];
			*(__be16 *)&pkt->prefix[12] = tag_proto;
			*(__be16 *)&pkt->prefix[14] = bpf_htons(tci);
			pkt->prefix_len = 16;
			pkt->skip = 12;
			vlan = tci & VLAN_ID_MASK;
			tags = 1;
		}
#pragma unroll
		for (int i = 0; i < VLAN_TAGS + 1; i++) {
			struct vlan_header *tag;

			if (proto != ETH_P_8021Q_NET && proto != ETH_P_8021AD_NET &&
			    proto != ETH_P_QINQ_NET)
				break;
			if (tags >= VLAN_TAGS)
				return PARSE_UNPARSABLE;
			tag = header(src, pkt, off + in_frame * sizeof(*tag), sizeof(*tag));
			if (!tag)
				return PARSE_MALFORMED;
			if (tags == 0)
				vlan = bpf_ntohs(tag->tci) & VLAN_ID_MASK;
			else
				inner_vlan = bpf_ntohs(tag->tci) & VLAN_ID_MASK;
			proto = tag->proto;
			in_frame++;
			tags++;
		}
		/* No buffer is that long. The verifier can't know that it is 0, and so sees one
		 * way on from here, however many tags there were, and not one for each number. */
		net.nought = nought = src->len >> 30;
		barrier_var(in_frame);
		barrier_var(vlan);
		barrier_var(inner_vlan);
		off += (in_frame ^ nought) * sizeof(struct vlan_header);
		pkt->key.vlan = vlan ^ nought;
		pkt->key.inner_vlan = inner_vlan ^ nought;
	}
	if (proto == ETH_P_IP_NET)
		result = parse_ipv4(src, pkt, off, &net);
	else if (proto == ETH_P_IPV6_NET)
		result = parse_ipv6(src, pkt, off, &net);
	else
		return PARSE_NOT_IP;
	if (result != PARSE_FLOW)
		return result;
	pkt->frame_len = pkt->prefix_len + (net.end - pkt->skip);
	return parse_transport(src, pkt, &net);
}
