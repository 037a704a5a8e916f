/* SPDX-License-Identifier: Apache-2.0 */

/* The network "compact", its weights as the computation reads them, and the functions that
 * compute it. Everything has a fixed size: nothing that a model file says is an index. */

#ifndef NATIVE_NETWORK_H
#define NATIVE_NETWORK_H

#include <stdint.h>

enum {
	SIDES = 2,	    /* of a connection: initiator, responder */
	STREAM = 512,	    /* bytes of each side, in the image's first plane */
	PIXELS = 1024,	    /* of a plane */
	IMAGE = 2 * PIXELS, /* streams, packets */
	ROW = 32,	    /* bytes of a row of the second plane */
	PACKET_ROWS = 24,   /* the others are of messages */
	SEEN_PACKETS = 10,  /* of the packets' rows */
	SEEN_MESSAGES = 8,
	SEEN = SEEN_PACKETS + SEEN_MESSAGES,
	LENGTHS = 2048,	  /* of a packet that are known exactly; longer ones are as the last */
	LENGTH_SIZE = 16, /* numbers that stand for a length */
	ROW_SIZE = LENGTH_SIZE + 4,
	VALUES = 257,	 /* of a byte: 0 behind the end, else 1 + byte */
	BYTE_SIZE = 8,	 /* numbers that stand for a byte */
	FIRST = 32,	 /* bytes of each side that have weights of their own */
	CHUNK = 16,	 /* bytes */
	CHUNK_SIZE = 16, /* numbers that stand for a chunk */
	CHUNKS = STREAM / CHUNK,

	/* Outputs of the layers. */
	ROWS_OUT = 256,
	FIRST_OUT = 96,
	CHUNKS_OUT = 64,
	MEANS_OUT = 32,
	JOINED = ROWS_OUT + FIRST_OUT + CHUNKS_OUT + MEANS_OUT,
	MIX_OUT = 192,
	HIDDEN_OUT = 128,
	MOST_LABELS = 32,

	/* Inputs of the layers. Behind the network's own are those that stand for many at
	 * once: an empty row, and the rest of a side behind its end, by where that is. */
	ROWS_IN = SEEN * ROW_SIZE + SEEN,
	FIRST_IN = SIDES * FIRST * BYTE_SIZE + SIDES * FIRST,
	CHUNKS_IN = SIDES * CHUNKS * CHUNK_SIZE + SIDES * CHUNKS,
	MEANS_IN = SIDES * BYTE_SIZE,
	MOST_IN = CHUNKS_IN,

	BLOCK = 16, /* images that are computed layer by layer */
};

/* The weights of a layer are in the order in which they are read: by input, then by output. */
struct network {
	float lengths[SIDES * LENGTHS][LENGTH_SIZE]; /* responder, initiator */
	float bytes[VALUES][BYTE_SIZE];
	float places[CHUNK][VALUES][CHUNK_SIZE]; /* what a byte adds to its chunk */
	float rows[ROWS_IN][ROWS_OUT];
	float first[FIRST_IN][FIRST_OUT];
	float chunks[CHUNKS_IN][CHUNKS_OUT];
	float means[MEANS_IN][MEANS_OUT];
	float mix[JOINED][MIX_OUT];
	float hidden[MIX_OUT][HIDDEN_OUT];
	float out[HIDDEN_OUT][MOST_LABELS];

	float chunk_bias[CHUNK_SIZE];
	float joined_bias[JOINED]; /* of rows, first, chunks, means */
	float mix_bias[MIX_OUT];
	float hidden_bias[HIDDEN_OUT];
	float out_bias[MOST_LABELS];
};

/* The memory of one computation at a time. */
struct workspace {
	/* The inputs of a layer that are not zero: there are n, at most MOST_IN. */
	int32_t n;
	uint16_t input[MOST_IN];
	float x[MOST_IN];

	float joined[BLOCK][JOINED];
	float mixed[BLOCK][MIX_OUT];
	float hidden[BLOCK][HIDDEN_OUT];
};

/* Computes the logits of count images of IMAGE bytes, labels (at most MOST_LABELS) for each. */
typedef void compute_function(const struct network *n, struct workspace *w, const uint8_t *images,
			      int32_t count, float *logits, int32_t labels);

compute_function native_compute_portable;
#ifdef __x86_64__
compute_function native_compute_avx2;
compute_function native_compute_avx512;
#endif

#endif
