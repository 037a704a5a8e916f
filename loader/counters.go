// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"iter"
	"reflect"
	"strings"

	"github.com/cilium/ebpf"
)

// Counters are the sums over all CPUs since the maps were created. The field
// names are those of struct counts in bpf/earlydrop.h, which explains each.
type Counters datapathCounts

// All yields each counter's name, as bpftool prints it, and its value, in the
// order of the C struct.
func (c *Counters) All() iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		v := reflect.ValueOf(c).Elem()
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.Name != "_" && !yield(snakeCase(f.Name), v.Field(i).Uint()) {
				return
			}
		}
	}
}

func (c *Counters) add(other *datapathCounts) {
	dst, src := reflect.ValueOf(c).Elem(), reflect.ValueOf(other).Elem()
	for i := range dst.NumField() {
		if dst.Type().Field(i).Name != "_" {
			dst.Field(i).SetUint(dst.Field(i).Uint() + src.Field(i).Uint())
		}
	}
}

// snakeCase undoes what bpf2go does to C names.
func snakeCase(s string) string {
	var b strings.Builder
	for i, r := range s {
		if i > 0 && r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteString(strings.ToLower(string(r)))
	}
	return b.String()
}

func readCounters(m *ebpf.Map) (Counters, error) {
	var perCPU []datapathCounts
	var sum Counters
	if err := m.Lookup(uint32(0), &perCPU); err != nil {
		return sum, fmt.Errorf("read map counters: %w", err)
	}
	for i := range perCPU {
		sum.add(&perCPU[i])
	}
	return sum, nil
}
