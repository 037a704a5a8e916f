// SPDX-License-Identifier: Apache-2.0

// Package floor holds the programs that the data path's benchmarks compare it with.
package floor

import "github.com/cilium/ebpf"

// Spec returns the floor programs floor_pass and floor_drop with their map
// floor_flows, and bench_packet with the maps of the data path.
func Spec() (*ebpf.CollectionSpec, error) { return loadFloor() }
