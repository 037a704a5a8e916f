/* SPDX-License-Identifier: Apache-2.0 */

/* How the network is computed. Each compute_*.c includes this once, after it has said for which
 * instructions: COMPUTE is the function's name, TARGET its attribute, LANES how many numbers a
 * vector has.
 *
 * Nearly all of the time goes into reading weights. So inputs that are zero are left out, what
 * is the same in most images (rows without a packet, what is behind the end of a side) was
 * added up beforehand, and several images are computed layer by layer, while the layer's
 * weights are in the cache. */

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "network.h"

#define FUNCTION TARGET static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* A vector of the numbers that stand for a byte, or a part of them. */
#define BYTE_LANES (LANES < BYTE_SIZE ? LANES : BYTE_SIZE)
typedef float byte_vector __attribute__((vector_size(BYTE_LANES * 4), aligned(4), may_alias));

/* add notes an input of the next layer. */
FUNCTION void add(struct workspace *w, int input, float x)
{
	w->input[w->n] = (uint16_t)input;
	w->x[w->n] = x;
	w->n++;
}

/* add_positive notes those of count inputs that are above zero: what ReLU leaves. */
FUNCTION void add_positive(struct workspace *w, int input, const float *x, int count)
{
	int n = w->n;
	for (int i = 0; i < count; i++) {
		w->input[n] = (uint16_t)(input + i);
		w->x[n] = x[i];
		n += x[i] > 0;
	}
	w->n = n;
}

/* A few vectors of a layer's outputs, so few that the sums stay in registers. */
FUNCTION void outputs_of(const struct workspace *w, const float *weights, const float *bias,
			 int outputs, int vectors, float *y)
{
	vector sum[12];
	for (int j = 0; j < vectors; j++)
		sum[j] = *(const vector *)(bias + j * LANES);
	for (int i = 0; i < w->n; i++) {
		const float *of = weights + (size_t)w->input[i] * outputs;
		vector x = w->x[i] - (vector){};
		for (int j = 0; j < vectors; j++)
			sum[j] += x * *(const vector *)(of + j * LANES);
	}
	for (int j = 0; j < vectors; j++)
		*(vector *)(y + j * LANES) = sum[j];
}

/* layer computes a layer of what was noted, and forgets that. */
FUNCTION void layer(struct workspace *w, const float *weights, const float *bias, int outputs,
		    float *y)
{
	int vectors = outputs / LANES;
	int some = vectors % 12 == 0 ? 12 : vectors % 8 == 0 ? 8 : vectors;
	for (int j = 0; j < vectors; j += some)
		outputs_of(w, weights + j * LANES, bias + j * LANES, outputs, some, y + j * LANES);
	w->n = 0;
}

/* What a row of the second plane says. Its first byte has no weight. */
FUNCTION int is_empty(const uint8_t *row)
{
	return !(row[1] | row[2] | row[3] | row[4] | row[5] | row[6] | row[7]);
}

FUNCTION int from_initiator(const uint8_t *row)
{
	return row[1] > 192;
}

FUNCTION int length_of(const uint8_t *row)
{
	return row[2] << 8 | row[3];
}

FUNCTION int captured_of(const uint8_t *row)
{
	return row[4] << 8 | row[5];
}

/* The packets and the messages. */
FUNCTION void rows(const struct network *n, struct workspace *w, const uint8_t *packets, float *y)
{
	for (int i = 0; i < SEEN; i++) {
		int at = i < SEEN_PACKETS ? i : PACKET_ROWS + i - SEEN_PACKETS;
		const uint8_t *row = packets + at * ROW;
		if (is_empty(row)) {
			add(w, SEEN * ROW_SIZE + i, 1);
			continue;
		}
		int length = length_of(row);
		int known = length < LENGTHS ? length : LENGTHS - 1;
		const float *meaning = n->lengths[known + LENGTHS * from_initiator(row)];
		int input = i * ROW_SIZE;
		for (int k = 0; k < LENGTH_SIZE; k++)
			add(w, input++, meaning[k]);
		add(w, input++, row[6] * (1.0f / 255));
		add(w, input++, row[7] * 0.125f);
		add(w, input++, captured_of(row) * (1.0f / 512));
		add(w, input++, logf(1 + length) * (1.0f / 11));
	}
	layer(w, n->rows[0], n->joined_bias, ROWS_OUT, y);
}

/* What is behind the end of a side has the value 0 in place of a byte's. */
FUNCTION int value_at(const uint8_t *stream, int at, int end)
{
	return at < end ? stream[at] + 1 : 0;
}

/* The first bytes of each side. */
FUNCTION void first(const struct network *n, struct workspace *w, const uint8_t *streams,
		    const int *ends, float *y)
{
	for (int side = 0; side < SIDES; side++) {
		const uint8_t *stream = streams + side * STREAM;
		int end = ends[side] < FIRST ? ends[side] : FIRST;
		for (int i = 0; i < end; i++)
			for (int k = 0; k < BYTE_SIZE; k++)
				add(w, (side * FIRST + i) * BYTE_SIZE + k,
				    n->bytes[stream[i] + 1][k]);
		if (end < FIRST)
			add(w, SIDES * FIRST * BYTE_SIZE + side * FIRST + end, 1);
	}
	layer(w, n->first[0], n->joined_bias + ROWS_OUT, FIRST_OUT, y);
}

/* The chunks of both sides. */
FUNCTION void chunks(const struct network *n, struct workspace *w, const uint8_t *streams,
		     const int *ends, float *y)
{
	for (int side = 0; side < SIDES; side++) {
		const uint8_t *stream = streams + side * STREAM;
		int end = ends[side], begun = (end + CHUNK - 1) / CHUNK;
		for (int c = 0; c < begun; c++) {
			vector sum[CHUNK_SIZE / LANES];
			memcpy(sum, n->chunk_bias, sizeof(sum));
			for (int p = 0; p < CHUNK; p++) {
				const float *adds =
					n->places[p][value_at(stream, c * CHUNK + p, end)];
				for (int j = 0; j < CHUNK_SIZE / LANES; j++)
					sum[j] += *(const vector *)(adds + j * LANES);
			}
			float chunk[CHUNK_SIZE];
			memcpy(chunk, sum, sizeof(chunk));
			add_positive(w, (side * CHUNKS + c) * CHUNK_SIZE, chunk, CHUNK_SIZE);
		}
		if (begun < CHUNKS)
			add(w, SIDES * CHUNKS * CHUNK_SIZE + side * CHUNKS + begun, 1);
	}
	layer(w, n->chunks[0], n->joined_bias + ROWS_OUT + FIRST_OUT, CHUNKS_OUT, y);
}

/* The mean of all bytes of each side; used is how many there were, more than are in the image
 * or not. */
FUNCTION void means(const struct network *n, struct workspace *w, const uint8_t *streams,
		    const int *ends, const int *used, float *y)
{
	for (int side = 0; side < SIDES; side++) {
		const uint8_t *stream = streams + side * STREAM;
		int end = ends[side], i = 0;
		byte_vector sum[4][BYTE_SIZE / BYTE_LANES] = {};
		for (; i + 4 <= end; i += 4)
			for (int k = 0; k < 4; k++)
				for (int j = 0; j < BYTE_SIZE / BYTE_LANES; j++)
					sum[k][j] +=
						*(const byte_vector *)(n->bytes[stream[i + k] + 1] +
								       j * BYTE_LANES);
		for (; i < end; i++)
			for (int j = 0; j < BYTE_SIZE / BYTE_LANES; j++)
				sum[0][j] += *(const byte_vector *)(n->bytes[stream[i] + 1] +
								    j * BYTE_LANES);
		for (int j = 0; j < BYTE_SIZE / BYTE_LANES; j++)
			sum[0][j] += sum[1][j] + (sum[2][j] + sum[3][j]);
		float total[BYTE_SIZE];
		memcpy(total, sum[0], sizeof(total));
		float divisor = used[side] < 1 ? 1 : used[side] < STREAM ? used[side] : STREAM;
		for (int k = 0; k < BYTE_SIZE; k++)
			add(w, side * BYTE_SIZE + k,
			    (total[k] + (STREAM - end) * n->bytes[0][k]) / divisor);
	}
	layer(w, n->means[0], n->joined_bias + ROWS_OUT + FIRST_OUT + CHUNKS_OUT, MEANS_OUT, y);
}

/* bounds adds up what the packets' rows say was captured of each side. */
FUNCTION void bounds(const uint8_t *packets, int *used, int *ends)
{
	used[0] = used[1] = 0;
	for (int i = 0; i < PACKET_ROWS; i++)
		used[!from_initiator(packets + i * ROW)] += captured_of(packets + i * ROW);
	for (int side = 0; side < SIDES; side++)
		ends[side] = used[side] < STREAM ? used[side] : STREAM;
}

FUNCTION void block(const struct network *n, struct workspace *w, const uint8_t *images, int count,
		    float *logits, int labels)
{
	int used[BLOCK][SIDES], ends[BLOCK][SIDES];
	w->n = 0;
	for (int i = 0; i < count; i++) {
		bounds(images + i * IMAGE + PIXELS, used[i], ends[i]);
		rows(n, w, images + i * IMAGE + PIXELS, w->joined[i]);
	}
	for (int i = 0; i < count; i++)
		first(n, w, images + i * IMAGE, ends[i], w->joined[i] + ROWS_OUT);
	for (int i = 0; i < count; i++)
		chunks(n, w, images + i * IMAGE, ends[i], w->joined[i] + ROWS_OUT + FIRST_OUT);
	for (int i = 0; i < count; i++)
		means(n, w, images + i * IMAGE, ends[i], used[i],
		      w->joined[i] + ROWS_OUT + FIRST_OUT + CHUNKS_OUT);
	for (int i = 0; i < count; i++) {
		add_positive(w, 0, w->joined[i], JOINED);
		layer(w, n->mix[0], n->mix_bias, MIX_OUT, w->mixed[i]);
	}
	for (int i = 0; i < count; i++) {
		add_positive(w, 0, w->mixed[i], MIX_OUT);
		layer(w, n->hidden[0], n->hidden_bias, HIDDEN_OUT, w->hidden[i]);
	}
	for (int i = 0; i < count; i++) {
		float y[MOST_LABELS];
		add_positive(w, 0, w->hidden[i], HIDDEN_OUT);
		layer(w, n->out[0], n->out_bias, MOST_LABELS, y);
		memcpy(logits + i * labels, y, labels * sizeof(*y));
	}
}

TARGET void COMPUTE(const struct network *n, struct workspace *w, const uint8_t *images,
		    int32_t count, float *logits, int32_t labels)
{
	for (int i = 0; i < count; i += BLOCK)
		block(n, w, images + i * IMAGE, count - i < BLOCK ? count - i : BLOCK,
		      logits + i * labels, labels);
}
