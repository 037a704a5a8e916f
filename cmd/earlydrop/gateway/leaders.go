// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"container/heap"
	"slices"
)

// leaders counts those keys that have the most of something, in bounded memory, by the
// algorithm Space-Saving (Metwally, Agrawal, El Abbadi: Efficient computation of frequent and
// top-k elements in data streams, 2005): a new key takes the place of the one with the least,
// and inherits its weight as what it may have missed. So a key with more than an even share of
// all that was added is always there. It is not safe for concurrent use.
type leaders[K comparable, V any] struct {
	room int
	of   map[K]*leader[K, V]
	heap leaderHeap[K, V] // the least first
}

// leader is one key. V is what else is known of it since it is there.
type leader[K comparable, V any] struct {
	key    K
	weight uint64 // missed included
	missed uint64 // at most so much was before
	at     int    // in the heap
	value  V
}

// has returns what was added while the key was there.
func (l *leader[K, V]) has() uint64 { return l.weight - l.missed }

func newLeaders[K comparable, V any](room int) *leaders[K, V] {
	return &leaders[K, V]{room: room, of: map[K]*leader[K, V]{}}
}

// add adds to the weight of a key, and returns what else is known of it.
func (l *leaders[K, V]) add(key K, weight uint64) *V {
	e := l.of[key]
	switch {
	case e != nil:
	case len(l.heap) < l.room:
		e = &leader[K, V]{key: key}
		l.of[key] = e
		heap.Push(&l.heap, e)
	default:
		e = l.heap[0]
		delete(l.of, e.key)
		*e = leader[K, V]{key: key, weight: e.weight, missed: e.weight}
		l.of[key] = e
	}
	e.weight += weight
	heap.Fix(&l.heap, e.at)
	return &e.value
}

// top returns the n with the most, the first of them first.
func (l *leaders[K, V]) top(n int) []leader[K, V] {
	all := make([]leader[K, V], len(l.heap))
	for i, e := range l.heap {
		all[i] = *e
	}
	slices.SortFunc(all, func(a, b leader[K, V]) int { return cmp.Compare(b.has(), a.has()) })
	return all[:min(n, len(all))]
}

// leaderHeap is for container/heap.
type leaderHeap[K comparable, V any] []*leader[K, V]

func (h leaderHeap[K, V]) Len() int           { return len(h) }
func (h leaderHeap[K, V]) Less(i, j int) bool { return h[i].weight < h[j].weight }
func (h leaderHeap[K, V]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

// Push is for container/heap.
func (h *leaderHeap[K, V]) Push(x any) {
	e := x.(*leader[K, V])
	e.at = len(*h)
	*h = append(*h, e)
}

// Pop is for container/heap. Nobody leaves.
func (h *leaderHeap[K, V]) Pop() any { panic("gateway: no leader leaves its heap") }
