/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Types shared by the kernel programs and the Go loader.
 *
 * Contract: every struct here is the key, the value or the record of a map, so
 * its layout is an interface. bpf2go derives the Go side from its BTF, and
 * bpftool prints its fields by name; padding is therefore always explicit and
 * always zero. Numbers of enum members are never reused. A change of layout
 * raises LAYOUT_VERSION, which makes a newer loader replace what an older one
 * pinned instead of adopting it. Blocks are carried over even then: BLOCK_LAYOUT is
 * the version of `blocked` alone.
 */
#pragma once

#define LAYOUT_VERSION 9
#define BLOCK_LAYOUT 4

/* The first bytes of a flow that are captured: a 32x32 image. */
#define CAPTURE_BYTES 1024
/* 1024 bytes hold at most 25 packets of the smallest size (42 bytes); the next
 * power of two, because the verifier wants an index that a mask bounds. */
#define CAPTURE_PACKETS 32

/* What is kept of header-only TCP packets until the first payload byte. */
#define HANDSHAKE_BYTES 384
#define HANDSHAKE_FRAME 160
#define HANDSHAKE_PACKETS 8

/* What is kept of header-only TCP packets behind the first payload byte: who sends many has
 * not said more. */
#define BARE_BYTES 384

/* A capture that ends before its bytes are in, or with less payload than this, goes on when
 * payload follows, so often at most. */
#define PAYLOAD_LEAST 64
#define AGAIN_MOST 4

/* A side begins in tiny pieces with so many segments of less payload each, or with one fewer
 * and no payload of the other side between. */
#define TINY_SEGMENTS 3
#define TINY_BYTES 16
/* A beginning is slow when PAYLOAD_LEAST bytes take longer. */
#define SLOW_US 2000000

/* What is kept, once, of payload that was captured and comes again; or of a frame what did not
 * fit any more. */
#define REPEAT_BYTES 512
#define REST_BYTES (CAPTURE_BYTES - 8)
/* Where a copy of a frame may write behind the data: of its prefix, see copy_frame(). */
#define CAPTURE_SPILL 16

#define NAME_LEN 16

/* 32-bit words of a flow key, padded to an even number. */
#define HASH_WORDS 12

/* One bidirectional flow. The lower endpoint (address as 16 bytes, then port)
 * stands first; IPv4 is v4-mapped. Ports are in host order so that a dump reads
 * as a person expects. */
struct flow_key {
	__u8 lo_addr[16];
	__u8 hi_addr[16];
	__u16 lo_port;
	__u16 hi_port;
	__u16 vlan;	  /* outer 802.1Q id, 0 = none or priority tag */
	__u16 inner_vlan; /* second tag of QinQ, else 0 */
	__u8 proto;	  /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 pad[3];
} __attribute__((aligned(4))); /* so that it is copied and compared by words */

enum verdict {
	VERDICT_PENDING = 1, /* handed over, no verdict yet: passes */
	VERDICT_PASS = 2,    /* decided */
	/* 3 was for connections that carry the middle of a stream */
	VERDICT_RESUMED = 4, /* UDP: was decided, then silent or blocked; it is captured again */
	VERDICT_EXEMPT = 5,  /* decided: somebody lifted its block, and no verdict makes another */
	VERDICT_WAITS = 6,   /* TCP: as VERDICT_PENDING, but only so much passes, see pending.h */
};

/* What is known of a TCP connection's numbers. */
#define KNOWN_ISN 1	/* isn_lo and isn_hi */
#define KNOWN_NEXT_LO 2 /* next_lo */
#define KNOWN_NEXT_HI 4
#define KNOWN_ALL (KNOWN_ISN | KNOWN_NEXT_LO | KNOWN_NEXT_HI)

/* What a capture that goes on is to know: SAMPLE_ONE_WAY; how far each side's tiny pieces go, an
 * enum pieces; whether PAYLOAD_LEAST bytes have come. */
#define FLOW_PIECES_LO_SHIFT 1
#define FLOW_PIECES_HI_SHIFT 4
#define FLOW_PIECES_MASK 7
#define FLOW_BEGUN 128

enum pieces {
	/* up to here, so many tiny segments and no other */
	PIECES_TINY = TINY_SEGMENTS, /* so many or more */
	PIECES_OVER,		     /* a greater one came */
};

/* Value of `flows`. Blocked flows are not in here but in `blocked`. */
struct flow {
	/* UDP: CLOCK_MONOTONIC of the last packet, to a tick. VERDICT_WAITS: until when it does */
	__u64 last_ns;
	/* UDP: low half of jiffies at last_ns. VERDICT_WAITS: bytes that may pass until then */
	__u32 last_tick;
	enum verdict verdict;
	__u32 isn_lo; /* initial sequence numbers, which tell connections apart; TCP only */
	__u32 isn_hi;
	__u8 known; /* KNOWN_ISN or 0 */
	__u8 mark;  /* a SYN of the key was acknowledged: look at its candidates */
	/* TCP: the capture ended early, and payload in place opens it again */
	__u8 again; /* for that time, at most AGAIN_MOST; 0: it does not */
	__u8 initiator_is_lo;
	__u8 side;     /* the initiator's */
	__u8 state;    /* FLOW_* */
	__u16 before;  /* bytes so far; 0 where another CAPTURE_BYTES are to be captured */
	__u32 next_lo; /* as of struct sample */
	__u32 next_hi;
};

/* What is done to the packets of a blocked flow. */
enum block_action {
	BLOCK_DROP = 0,
	BLOCK_RESET = 1, /* they are dropped, and the ends are told with a RST, see reset.h */
	BLOCK_LIMIT = 2, /* those that are too many are dropped, see within_limit() */
};

/* Value of `blocked`. What a dropped packet asks for stands first: it is in one line of a
 * CPU's cache. */
struct block {
	__u64 sure_until;   /* jiffies before which expires_ns is surely not reached */
	__u64 candidate_ns; /* CLOCK_MONOTONIC of the last SYN on the key; 0: none stands */
	__u64 packets;	    /* dropped so far, both directions */
	__u64 bytes;	    /* ... L2 headers included */
	__u8 action;	    /* enum block_action */
	__u8 known;	    /* which of the numbers below are known, KNOWN_* */
	__u8 initiator_is_lo;
	__u8 renewed; /* times, at most BLOCK_RENEWALS */
	__u8 mark;    /* a SYN of the key was acknowledged: look at its candidates */
	__u8 ended;   /* another connection of the key was proven: it blocks nothing more */
	__u8 pad[2];
	__u64 expires_ns; /* CLOCK_MONOTONIC; packets pass from then on */
	__u64 since_ns;
	__u64 ttl_ns; /* what a renewal adds; 0: it is not renewed */
	__u32 isn_lo; /* the blocked connection's numbers at its hand-over */
	__u32 isn_hi;
	__u32 next_lo;
	__u32 next_hi;
	__u32 resets_lo; /* RSTs that this end was sent, with BLOCK_RESET */
	__u32 resets_hi;
	__u64 rate;    /* with BLOCK_LIMIT: bytes per second that pass, never 0 */
	__u64 busy_ns; /* ... CLOCK_MONOTONIC at which what passed would have passed at the rate */
	char class[NAME_LEN]; /* truncated, NUL-terminated */
	char rule[NAME_LEN];
};

/* packet_record.place: the packet's first byte in the capture, and what more there is to say. */
#define RECORD_OFFSET 0x1fff
#define RECORD_FROM_INITIATOR 0x8000
#define RECORD_FRAGMENT 0x4000	/* it is the first one of a greater packet */
#define RECORD_OFF_CABLE 0x2000 /* no network card was yet to complete its checksum */

struct packet_record {
	__u32 wire_len; /* L2 header included, Ethernet padding left out */
	__u32 time_us;	/* since the flow's first packet; saturates */
	__u16 place;	/* RECORD_* */
	__u16 segment;	/* payload of each packet that it is cut into, or was joined from; 0: one */
};

enum handover_reason {
	REASON_FULL = 1,
	REASON_CLOSED = 2,
	REASON_IDLE = 3,
};

#define SAMPLE_ONE_WAY 1      /* only one direction was seen: its sender can forge it */
#define SAMPLE_MID_STREAM 2   /* it does not begin with the flow's first bytes */
#define SAMPLE_RESUMED 4      /* UDP: it may not, as the flow may have been there before */
#define SAMPLE_DECOY 8	      /* TCP: segments in place with a wrong checksum were left out */
#define SAMPLE_SYN_DATA 16    /* TCP: the SYN had data, which was not acknowledged */
#define SAMPLE_EARLY 32	      /* TCP: the responder sent data before its SYN+ACK was answered */
#define SAMPLE_PROVISIONAL 64 /* TCP: more is captured where payload follows */

#define SAMPLE_HIDDEN 128 /* TCP: segments in place came in fragments that hide their header */

/* The same, of sample.more. With the first two and the last it is the handshake alone:
 * SAMPLE_MID_STREAM. */
#define MORE_JOIN 1	    /* TCP: it joins another connection (MPTCP) */
#define MORE_UNREADABLE 2   /* TCP: it moved on, and no payload could be read */
#define MORE_OUT_OF_PLACE 4 /* TCP: both sides sent much payload out of place */
#define MORE_GOES_ON 8	    /* TCP: ... and none in place so far */
#define MORE_REST 16	    /* TCP: `repeat` is what of the last frame did not fit, keep_rest() */

/* Record of the ring buffer `samples`: everything up to `data`, then `length` bytes of it and
 * nothing behind them; or, with a repeated range, everything up to `repeat` and `repeat_len`
 * bytes of that. */
struct sample {
	struct flow_key key;
	__u16 length;	   /* captured bytes, 1..CAPTURE_BYTES */
	__u8 packet_count; /* 1..CAPTURE_PACKETS */
	__u8 reason;	   /* enum handover_reason */
	__u64 start_ns;	   /* CLOCK_MONOTONIC of the first packet */
	__u64 end_ns;	   /* ... of the hand-over */
	__u8 initiator_is_lo;
	__u8 side;  /* the initiator's, 0 or 1 (enum side); TCP only, as all that follows */
	__u8 flags; /* SAMPLE_* */
	__u8 known; /* KNOWN_* */
	__u32 isn_lo;
	__u32 isn_hi;
	__u32 next_lo; /* sequence number of the next byte that the side will send */
	__u32 next_hi;
	__u8 again; /* TCP: it goes on with the capture before, for that time; 0: it is the first */
	__u8 more;  /* MORE_* */
	__u16 before; /* bytes of it; here, the capture begins only behind so many */
	struct packet_record packets[CAPTURE_PACKETS];
	__u8 data[CAPTURE_BYTES] __attribute__((aligned(8)));
	__u8 spill[CAPTURE_SPILL];
	/* TCP payload behind what its side has sent, for user space to compare with `data` */
	__u32 repeat_seq;
	__u16 repeat_len; /* 0: none */
	__u8 repeat_from_initiator;
	__u8 pad2;
	__u8 repeat[REST_BYTES];
};

/* Value of the only entry of `counters`, one per CPU. Packets are counted on
 * the hot path; all others count causes, each of them rare. */
struct counts {
	__u64 packets_ingress;
	__u64 packets_egress;
	__u64 dropped_packets; /* of blocked flows, and SYNs of treated pairs */
	__u64 dropped_bytes;
	__u64 resets;	      /* RSTs that ends of blocked flows were sent */
	__u64 resets_refused; /* ... that they were not sent, as there had been too many */
	/* passed, never part of a flow */
	__u64 not_ip;
	__u64 other_proto;    /* neither TCP nor UDP */
	__u64 malformed;      /* headers that can't be true: lengths, IPv4 checksum, TTL 0, ... */
	__u64 unparsable;     /* more tags or extension headers than are walked */
	__u64 later_fragment; /* all but bad ones; those of blocked flows are dropped, and here */
	__u64 followed_fragment;    /* ... which followed their first: they belong to its flow */
	__u64 bad_fragment;	    /* malformed, see fragments.h: pass in monitor */
	__u64 bad_fragment_dropped; /* ... dropped, in enforce; of no block */
	__u64 bad_flags;	    /* SYN together with RST or FIN */
	/* flows */
	__u64 tcp_opened;     /* connections that both ends have made */
	__u64 udp_opened;     /* flows of which both sides have spoken */
	__u64 udp_waiting;    /* flows of which one side had spoken */
	__u64 udp_unanswered; /* ... whose capture was discarded: 30 s are over, or no room */
	__u64 mid_stream;     /* TCP flows whose beginning was not seen */
	__u64 header_only;    /* closed, or a datagram, without payload */
	__u64 restarted;      /* a new connection on a flow that was collecting */
	__u64 handed_full;
	__u64 handed_closed;
	__u64 handed_idle;
	/* TCP: what a proof of the connection asks for, and what lacks it */
	__u64 syns;	    /* SYNs that became candidates */
	__u64 one_way;	    /* connections of which one direction was seen */
	__u64 reflected;    /* handshake packets and datagrams that came back from the wrong side */
	__u64 wrong_side;   /* segments that came from the other end's side */
	__u64 out_of_place; /* segments whose numbers the connection can't have now */
	__u64 behind;	    /* payload that was captured before: retransmissions */
	__u64 decoys;	    /* segments with a wrong checksum, of flows that are not decided */
	__u64 partial_sums; /* ... with none but the pseudo-header's, where it may be right */
	__u64 bare;	    /* header-only segments beyond those that a capture keeps */
	__u64 again;	    /* captures that went on, as payload followed an early end */
	__u64 mptcp_join;   /* connections that carry the middle of a stream */
	__u64 renewed;	    /* blocks whose connection went on when their time was over */
	/* flows of which nothing is captured, as the policy has decided about them before */
	__u64 pair_connections; /* that began while their pair was treated: dropped or limited */
	__u64 exempt_flows;	/* with an end in an exempt network: they pass */
	/* between hand-over and verdict, see pending.h */
	__u64 pending_flows;   /* connections that waited */
	__u64 pending_packets; /* ... of which these were dropped, and are sent again */
	__u64 pending_bytes;   /* ... L2 headers included */
	__u64 pending_late;    /* connections that waited in vain: their verdict was late */
	/* passed without an identification: fail open, per cause */
	__u64 slots_full;	 /* no free capture slot */
	__u64 initiator_slots;	 /* slots are scarce, and the flow's initiator has many */
	__u64 initiator_waiting; /* the table of waiting flows is scarce, and a sender has many */
	__u64 collecting_full;	 /* a map refused the flow, mostly `collecting` */
	__u64 handshake_busy;	 /* another CPU was writing there; the packet is not captured */
	__u64 ring_full;
	__u64 load_failed; /* a helper could not read the packet */
};

/* Value of the only entry of `attachment`: what is attached how, for `earlydrop status`
 * and for the next attach. Written by user space alone. */
struct attached {
	__u32 layout_version;
	__u32 pid;	   /* of the daemon; it may be gone */
	__u64 attached_ns; /* CLOCK_REALTIME */
	/* Up to here in every layout since 3. */
	__u32 block_layout;
	__u8 one_hook; /* cfg_one_hook */
	__u8 one_way;  /* cfg_one_way */
	__u8 pad[2];
	__u32 hash_secret[HASH_WORDS]; /* cfg_hash_secret, by which handshakes are found */
	char ingress[NAME_LEN];	       /* xdp, tcx, clsact */
	char xdp_mode[NAME_LEN];       /* native, generic; empty without XDP */
	char egress[NAME_LEN];	       /* tcx, clsact */
	char ingress_why[160];	       /* why that hook, in a line */
	char version[32];
	char model[64];
	char policy[128];
	char monitor_only[320]; /* why mode enforce is refused; empty: it is not */
	__u64 first_ns;		/* CLOCK_MONOTONIC of the first attach; an adoption keeps it */
};

/* Value of `daemon_counters`: one thing that the daemon counts. */
#define COUNTER_NAME_LEN 32

struct daemon_counter {
	char name[COUNTER_NAME_LEN];
	__u64 value;
};
