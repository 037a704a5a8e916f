/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * For benchmarks only, never attached.
 *
 * floor_pass and floor_drop are the least that a program of this kind can do:
 * read Ethernet, IPv4 and TCP headers from linear data, make a 40-byte key, look
 * it up in an LRU hash. The data path's cost per packet is told as a ratio to them.
 *
 * floor_insert is what any program does that remembers each new flow in an LRU hash:
 * the floor of a SYN.
 *
 * bench_packet and floor_insert change the packet's source address each time, since
 * BPF_PROG_RUN repeats one packet only, and a repeated packet belongs to a flow that is
 * known already. bench_join empties the capture of the packet's flow each time.
 */
#include "earlydrop.bpf.c"

struct floor_key {
	__u8 saddr[16];
	__u8 daddr[16];
	__be16 source;
	__be16 dest;
	__u8 proto;
	__u8 pad[3];
} __attribute__((aligned(4)));

/* key: 5-tuple. value: anything. Written by the benchmark. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct floor_key);
	__type(value, __u64);
} floor_flows SEC(".maps");

static __always_inline bool floor_parse(struct xdp_md *ctx, struct floor_key *key)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct tcphdr *tcp = (void *)(ip + 1);

	if ((void *)(tcp + 1) > end || eth->h_proto != ETH_P_IP_NET ||
	    (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP))
		return false;
	*(__be32 *)&key->saddr[12] = ip->saddr;
	*(__be32 *)&key->daddr[12] = ip->daddr;
	key->source = tcp->source;
	key->dest = tcp->dest;
	key->proto = ip->protocol;
	return true;
}

static __always_inline bool floor_lookup(struct xdp_md *ctx)
{
	struct floor_key key = {};

	return floor_parse(ctx, &key) && bpf_map_lookup_elem(&floor_flows, &key);
}

SEC("xdp.frags")
int floor_pass(struct xdp_md *ctx)
{
	return floor_lookup(ctx) ? XDP_PASS : XDP_ABORTED;
}

SEC("xdp.frags")
int floor_drop(struct xdp_md *ctx)
{
	return floor_lookup(ctx) ? XDP_DROP : XDP_ABORTED;
}

/* Not in .bss, which is block_filter's. */
__u32 bench_number SEC(".data.bench") = 0;

static __always_inline bool next_source(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	__u64 sum = 0;

	if ((void *)(ip + 1) > end)
		return false;
	ip->saddr = bench_number++;
	ip->check = 0;
#pragma unroll
	for (int i = 0; i < (int)(sizeof(*ip) / 4); i++)
		sum += ((__u32 *)ip)[i];
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~(sum + (sum >> 16));
	return true;
}

SEC("xdp.frags")
int floor_insert(struct xdp_md *ctx)
{
	struct floor_key key = {};
	__u64 value = 1;

	if (!next_source(ctx) || !floor_parse(ctx, &key))
		return XDP_ABORTED;
	bpf_map_update_elem(&floor_flows, &key, &value, BPF_ANY);
	return XDP_PASS;
}

SEC("xdp.frags")
int bench_packet(struct xdp_md *ctx)
{
	return next_source(ctx) ? ed_ingress(ctx) : XDP_ABORTED;
}

/* The same, and the answer to it. */
SEC("xdp.frags")
int bench_answer(struct xdp_md *ctx)
{
	void *data, *end;
	struct iphdr *ip;
	struct udphdr *udp;
	__be32 addr;
	__be16 port;

	if (!next_source(ctx) || ed_ingress(ctx) != XDP_PASS)
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	ip = data + sizeof(struct ethhdr);
	udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > end)
		return XDP_ABORTED;
	/* The sum stays the same. */
	addr = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = addr;
	port = udp->source;
	udp->source = udp->dest;
	udp->dest = port;
	ed_ingress(ctx);
	/* next_source() sets the source alone. */
	ip = (void *)(long)ctx->data + sizeof(struct ethhdr);
	udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	ip->daddr = ip->saddr;
	port = udp->source;
	udp->source = udp->dest;
	udp->dest = port;
	return XDP_PASS;
}

/* The slot that the flow of bench_join's packet has, and for TCP the packet's sequence
 * number, whose sender is the lower endpoint. */
__u32 bench_slot SEC(".data.bench") = 0;
__u32 bench_seq SEC(".data.bench") = 0;

/* A function, so that it takes nothing of the data path's 512 bytes of stack. */
static __noinline bool empty_capture(void)
{
	__u32 id = bench_slot;
	struct slot *slot = get_slot(id);

	if (!slot)
		return false;
	slot->word = 0;
	slot->sample.next_lo = bench_seq;
	return true;
}

SEC("xdp.frags")
int bench_join(struct xdp_md *ctx)
{
	return empty_capture() ? ed_ingress(ctx) : XDP_ABORTED;
}
