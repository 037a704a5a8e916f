// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package native

// #include "network.h"
import "C"

import "unsafe"

// The same bound in both languages.
var _ [mostLabels]struct{} = [C.MOST_LABELS]struct{}{}

// floats is the memory of one of C's arrays.
func floats[T any](array *T) []float32 {
	return unsafe.Slice((*float32)(unsafe.Pointer(array)), unsafe.Sizeof(*array)/unsafe.Sizeof(float32(0)))
}

// pack arranges the weights for the computation, and adds up what is the same in every image.
func (w *weights) pack() *C.struct_network {
	n := new(C.struct_network) // it holds no pointers, and belongs to Go's memory
	t := w.tensors
	// The order is that of compact.graph.
	copy(floats(&n.lengths), t[0])
	copy(floats(&n.bytes), t[1])
	turn(floats(&n.rows), t[2], C.ROWS_OUT, C.ROWS_OUT)
	turn(floats(&n.first), t[4], C.FIRST_OUT, C.FIRST_OUT)
	turn(floats(&n.chunks), t[8], C.CHUNKS_OUT, C.CHUNKS_OUT)
	turn(floats(&n.means), t[10], C.MEANS_OUT, C.MEANS_OUT)
	turn(floats(&n.mix), t[12], C.MIX_OUT, C.MIX_OUT)
	turn(floats(&n.hidden), t[14], C.HIDDEN_OUT, C.HIDDEN_OUT)
	turn(floats(&n.out), t[16], w.labels, C.MOST_LABELS)

	joined := floats(&n.joined_bias)
	for _, bias := range [][]float32{t[3], t[5], t[9], t[11]} {
		joined = joined[copy(joined, bias):]
	}
	copy(floats(&n.chunk_bias), t[7])
	copy(floats(&n.mix_bias), t[13])
	copy(floats(&n.hidden_bias), t[15])
	copy(floats(&n.out_bias), t[17])

	// A byte at a place of a chunk adds the same to it in every chunk.
	places := floats(&n.places)
	for place := range C.CHUNK {
		for value := range C.VALUES {
			meaning := t[1][value*C.BYTE_SIZE:][:C.BYTE_SIZE]
			to := places[(place*C.VALUES+value)*C.CHUNK_SIZE:][:C.CHUNK_SIZE]
			for out := range to {
				of := t[6][(out*C.CHUNK+place)*C.BYTE_SIZE:][:C.BYTE_SIZE]
				sum := 0.0
				for k, x := range meaning {
					sum += float64(x) * float64(of[k])
				}
				to[out] = float32(sum)
			}
		}
	}

	// A row without a packet: the length 0 of a responder, and zeros.
	rows := floats(&n.rows)
	for row := range C.SEEN {
		sum := make([]float64, C.ROWS_OUT)
		addInputs(sum, rows, row*C.ROW_SIZE, t[0][:C.LENGTH_SIZE])
		put(rows, C.SEEN*C.ROW_SIZE+row, sum)
	}

	// The rest of a side: bytes, and chunks of bytes, behind the end.
	behind := t[1][:C.BYTE_SIZE]
	chunk := make([]float32, C.CHUNK_SIZE)
	for out := range chunk {
		sum := float64(t[7][out])
		for place := range C.CHUNK {
			sum += float64(places[place*C.VALUES*C.CHUNK_SIZE+out])
		}
		chunk[out] = float32(max(0, sum))
	}
	for side := range C.SIDES {
		sum := make([]float64, C.FIRST_OUT)
		for i := C.FIRST - 1; i >= 0; i-- {
			addInputs(sum, floats(&n.first), (side*C.FIRST+i)*C.BYTE_SIZE, behind)
			put(floats(&n.first), C.SIDES*C.FIRST*C.BYTE_SIZE+side*C.FIRST+i, sum)
		}
		sum = make([]float64, C.CHUNKS_OUT)
		for i := C.CHUNKS - 1; i >= 0; i-- {
			addInputs(sum, floats(&n.chunks), (side*C.CHUNKS+i)*C.CHUNK_SIZE, chunk)
			put(floats(&n.chunks), C.SIDES*C.CHUNKS*C.CHUNK_SIZE+side*C.CHUNKS+i, sum)
		}
	}
	return n
}

// turn writes the weights of a layer of so many outputs, which are by output, by input: width
// is as many as there is room for.
func turn(to, from []float32, outputs, width int) {
	inputs := len(from) / outputs
	for out := range outputs {
		for in, w := range from[out*inputs:][:inputs] {
			to[in*width+out] = w
		}
	}
}

// addInputs adds to a layer's outputs what the inputs from one on do when they are x.
func addInputs(sum []float64, layer []float32, from int, x []float32) {
	for i, x := range x {
		for out, w := range layer[(from+i)*len(sum):][:len(sum)] {
			sum[out] += float64(x) * float64(w)
		}
	}
}

// put writes the weights of an input.
func put(layer []float32, input int, sum []float64) {
	for out, v := range sum {
		layer[input*len(sum)+out] = float32(v)
	}
}
