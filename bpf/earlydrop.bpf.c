/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The data path: XDP or TCX (or clsact) on ingress, TCX (or clsact) on egress, one
 * process_packet() for all, so that a flow is bidirectional on one interface.
 *
 * Contract: a packet passes unless its flow stands in `blocked` with time left, and the
 * mode is enforce (with BLOCK_LIMIT, what is within the limit passes); or the flow waits for its
 * verdict, see pending.h. Whatever goes wrong passes, too, and adds to the counter of its cause.
 * A packet of a TCP flow that is decided costs the parser, a hash and one word of memory.
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
#include "hash.h"
#include "capture.h"
#include "flow.h"
#include "tcp.h"
#include "udp.h"
#include "fragments.h"
#include "reset.h"
#include "passed.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/* A datagram of a flow that is neither decided nor blocked. */
static __always_inline void collect_udp(const struct source *src, struct packet *pkt,
					const struct flow_key *key)
{
	struct counts *cnt = src->cnt;
	enum opening opening;
	struct flow *flow;

	pkt->now = bpf_ktime_get_ns();
	pkt->side = side_of(src, pkt);
	if (is_sent_back(pkt)) {
		cnt->reflected++;
		return;
	}
	if (call_hook(join_capture, src, pkt) == JOINED)
		return;
	/* Neither decided, a moment ago, nor collecting now: unless another CPU handed
	 * the flow over in between, and then it is decided by now. Without this look
	 * its next packet would open it a second time. */
	flow = bpf_map_lookup_elem(&flows, key);
	if (flow && flow->verdict != VERDICT_RESUMED)
		return;
	pkt->resumed = flow || pkt->now - cfg_first_attach_ns < cfg_udp_warmup_ns;
	switch (wait_for_answer(cnt, pkt)) {
	case WAIT_GOES_ON:
		if (call_hook(add_waiting, src, pkt))
			cnt->load_failed++;
		release_waiting(pkt, true);
		break;
	case WAIT_ANSWERED:
		opening = open_answered(cnt, pkt);
		if (opening != OPENING_REFUSED) {
			cnt->udp_opened += opening == OPENING_DONE;
			call_hook(join_capture, src, pkt);
			break;
		}
		/* fall through */
	case WAIT_REFUSED:
		cnt->udp_opened++;
		refuse_answered(pkt);
	}
}

/* Whether a first fragment is simply passed or dropped, as process_packet() does it with whole
 * packets. Sets an enum action then. */
static __always_inline bool settled_fragment(struct counts *cnt, struct packet *pkt,
					     const struct flow_key *key, int *action)
{
	struct block *block;
	struct flow *flow;
	__u64 *word;

	/* Linux 6.1 knows no bound of a bucket whose ports come out of a longer register. */
	barrier_var(key);
	block = find_block(key);
	if (key->proto == IPPROTO_TCP) {
		/* What is known of its flow, tcp_segment() looks up. */
		if (block || (pkt->tcp_flags & TCP_SYN))
			return false;
		word = settled_word(pkt->hash);
		return word && *word == settled_tag(pkt->hash, false);
	}
	if (block) {
		if (!time_left(block)) {
			resume_after(pkt, block->expires_ns);
		} else if (drop_late(cnt, block, pkt) != ACTION_PASS) {
			*action = ACTION_DROP;
			return true;
		}
	}
	flow = bpf_map_lookup_elem(&flows, key);
	return flow && !is_resumed(flow);
}

/* A packet of a flow that is not simply passed or dropped. Returns an enum action. */
static __always_inline int unsettled(const struct source *src, struct packet *pkt)
{
	struct counts *cnt = src->cnt;
	int action = ACTION_PASS;
	struct flow_key key;

	if (!cnt || !pkt)
		return ACTION_PASS;
	/* Before Linux 6.2, helpers take no key from memory that a function was handed. */
	key = pkt->key;
	if (!pkt->hash)
		pkt->hash = hash_of(&key);
	if ((pkt->tcp_flags & PACKET_FIRST) && settled_fragment(cnt, pkt, &key, &action))
		return action;
	if (key.proto == IPPROTO_TCP)
		action = tcp_segment(src, pkt, &key);
	else
		collect_udp(src, pkt, &key);
	if (pkt->hand_over)
		hand_over(cnt, pkt->slot, pkt->hand_over);
	return action;
}

FOR_EACH_HOOK(unsettled)

static __always_inline enum action process_packet(struct source *src, bool offloaded_tag,
						  __be16 tag_proto, __u16 tci)
{
	struct counts *cnt = src->cnt = get_counters();
	struct packet packet, *pkt = &packet;
	struct block *block;
	struct flow *flow;
	bool tcp, syn, settles, passes = false;
	int action;

	if (!cnt) /* an array's only entry: never, but the verifier asks */
		return ACTION_PASS;
	/* All but buf, which is cleared where somebody wants it: most packets go no further. */
	__builtin_memset(pkt, 0, __builtin_offsetof(struct packet, buf));
	__builtin_memset(pkt->prefix, 0, sizeof(*pkt) - __builtin_offsetof(struct packet, prefix));
	if (src->is_ingress)
		cnt->packets_ingress++;
	else
		cnt->packets_egress++;

	switch (parse_packet(src, pkt, offloaded_tag, tag_proto, tci)) {
	case PARSE_FLOW:
		break;
	case PARSE_FIRST_FRAGMENT:
		goto unhashed;
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
	case PARSE_HIDDEN_FIRST:
		switch (note_hidden(cnt, pkt)) {
		case HIDDEN_DROPPED:
			return ACTION_DROP;
		case HIDDEN_UNKNOWN:
			note_hidden_start(pkt, SIDE_IN);
			note_hidden_start(pkt, SIDE_OUT);
		}
		return bad_fragment(cnt);
	case PARSE_BAD_FRAGMENT:
		return bad_fragment(cnt);
	case PARSE_DROP:
		return ACTION_DROP;
	case PARSE_LATER_FRAGMENT: /* fragment() has counted it */
	case PARSE_PASS:
		return ACTION_PASS;
	case PARSE_LOAD_FAILED:
		cnt->load_failed++;
		return ACTION_PASS;
	case PARSE_BAD_FLAGS:
		cnt->bad_flags++;
		return ACTION_PASS;
	}

	tcp = pkt->key.proto == IPPROTO_TCP;
	syn = tcp && (pkt->tcp_flags & TCP_SYN);
	block = find_block(&pkt->key);
	if (block) {
		if (!tcp || (!syn && !block->candidate_ns)) {
			if (time_left(block)) {
				action = drop(cnt, block, pkt);
				if (action == ACTION_DROP)
					return ACTION_DROP;
				if (action == ACTION_RESET)
					goto reset;
				goto not_blocked;
			}
			if (!tcp)
				resume_after(pkt, block->expires_ns);
			if (!tcp || !block->ttl_ns)
				goto not_blocked;
		}
		goto unhashed;
	}
not_blocked:
	settles = tcp ? !syn : cfg_udp_idle_ns >= SETTLED_UDP_IDLE;
	if (settles) {
		passes = tcp ? is_settled(pkt, false) : is_settled(pkt, true);
		/* One tick of 16 looks at `flows`, too, so that the LRU map keeps what runs. */
		if (passes && bpf_jiffies64() % 16)
			return ACTION_PASS;
	}
	flow = bpf_map_lookup_elem(&flows, &pkt->key);
	if (flow) {
		if (tcp ? !syn && !flow->mark && !flow->again && flow->verdict != VERDICT_WAITS
			: !is_resumed(flow)) {
			if (settles)
				settle(pkt);
			return ACTION_PASS;
		}
	} else if (passes) {
		return ACTION_PASS;
	} else {
		pkt->tcp_flags |= PACKET_NEW;
	}
	if (settles)
		goto unsettled;
unhashed:
	pkt->hash = 0; /* is found out there, so that it stands here once */
unsettled:
	/* The rest of its buffer, which its functions may read. */
	pkt->seq = pkt->ack = 0;
	pkt->now = pkt->hand_over = 0;
	pkt->slot = pkt->candidate = 0;
	action = call_hook(unsettled, src, pkt);
	if (action != ACTION_RESET)
		return action;
reset:
	return call_hook(reset, src, pkt);
}

/* What becomes of a packet: XDP_*. */
static __always_inline int xdp_verdict(enum action action)
{
	if (action == ACTION_DROP)
		return XDP_DROP;
	return action == ACTION_ANSWER ? XDP_TX : XDP_PASS;
}

/* What XDP writes in front of a packet that it has seen, see cfg_two_hooks. */
#define SEEN_MARK 0x6e656573

static __always_inline void mark_seen(struct xdp_md *ctx)
{
	__u32 *mark;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*mark)))
		return; /* the driver has no place for it */
	mark = (void *)(long)ctx->data_meta;
	if ((void *)(mark + 1) <= (void *)(long)ctx->data)
		*mark = SEEN_MARK;
}

static __always_inline bool is_seen(const struct __sk_buff *skb)
{
	const __u32 *mark = (void *)(long)skb->data_meta;

	return (void *)(mark + 1) <= (void *)(long)skb->data && *mark == SEEN_MARK;
}

SEC("xdp.frags")
int ed_ingress(struct xdp_md *ctx)
{
	struct source src = {
		.ctx = ctx,
		.data = (void *)(long)ctx->data,
		.data_end = (void *)(long)ctx->data_end,
		.is_xdp = true,
		.is_ingress = true,
	};
	int verdict;

	src.len = src.data_end - src.data;
	verdict = xdp_verdict(process_packet(&src, false, 0, 0));
	if (cfg_two_hooks && verdict == XDP_PASS)
		mark_seen(ctx);
	return verdict;
}

/* What becomes of a socket buffer. An answer goes back the way it came. */
static __always_inline int skb_verdict(enum action action, __u32 ifindex, __u64 back)
{
	switch (action) {
	case ACTION_DROP:
		return TC_ACT_SHOT;
	case ACTION_ANSWER:
		return bpf_redirect(ifindex, back);
	default: /* TCX_NEXT: programs behind this one have their say */
		return TC_ACT_UNSPEC;
	}
}

static __always_inline int process_skb(struct __sk_buff *skb, const bool is_ingress)
{
	struct source src = {
		.ctx = skb,
		.data = (void *)(long)skb->data,
		.data_end = (void *)(long)skb->data_end,
		.len = skb->len,
		.is_ingress = is_ingress,
	};
	enum action action;

	/* The stack takes the outer tag out of what it received before a hook sees it. */
	action = process_packet(&src, skb->vlan_present, skb->vlan_proto, skb->vlan_tci);
	return skb_verdict(action, skb->ifindex, is_ingress ? 0 : BPF_F_INGRESS);
}

SEC("tc")
int ed_tcx_ingress(struct __sk_buff *skb)
{
	if (cfg_two_hooks && is_seen(skb))
		return TC_ACT_UNSPEC;
	return process_skb(skb, true);
}

SEC("tc")
int ed_egress(struct __sk_buff *skb)
{
	return process_skb(skb, false);
}

struct sweep_state {
	__u64 now;
	__u64 found;
};

static long sweep_one(void *map, struct flow_key *key, struct slot_ref *ref,
		      struct sweep_state *state)
{
	__u32 id = ref->slot, generation = ref->generation;
	struct counts *cnt = get_counters();
	struct slot *slot = get_slot(id);

	if (!cnt || !slot || slot->generation != generation)
		return 0;
	if (state->now < slot->last_ns || state->now - slot->last_ns < cfg_idle_ns)
		return 0;
	close_capture(cnt, slot, id, REASON_IDLE);
	state->found++;
	return 0;
}

/* Run by the loader several times a second (BPF_PROG_RUN, never attached): hands
 * over the captures of flows that have been silent for cfg_idle_ns, and discards those
 * that nobody has answered. Its packet is a dummy. Returns how many it found. */
SEC("tc")
int ed_sweep(struct __sk_buff *skb)
{
	struct sweep_state state = {.now = bpf_ktime_get_ns()};

	struct expiry expiry = {.now = state.now};

	bpf_for_each_map_elem(&collecting, sweep_one, &state, 0);
	bpf_for_each_map_elem(&waiting_tags, expire_bucket, &expiry, 0);
	return state.found;
}

static long free_slot(__u32 id, long *failed)
{
	long err = id < cfg_tcp_slots ? bpf_map_push_elem(&free_tcp_slots, &id, 0)
				      : bpf_map_push_elem(&free_slots, &id, 0);

	*failed += !!err;
	return 0;
}

/* Run by the loader once, where it has made the tables (BPF_PROG_RUN, never attached): all slots
 * are free. Its packet is a dummy: on Linux 6.1, a program of type syscall can use no queue.
 * Returns how many it could not free. */
SEC("tc")
int ed_free_slots(struct __sk_buff *skb)
{
	long failed = 0;

	bpf_loop(cfg_slots, free_slot, &failed, 0);
	return failed;
}

/* See passed.h. */
SEC("syscall")
int ed_passed(struct passed *passed)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 i;

#pragma unroll
	for (i = 0; i < PASSED_MOST; i++) {
		if (i == passed->flows)
			break;
		note_passed(&passed->keys[i], now);
	}
	return 0;
}
