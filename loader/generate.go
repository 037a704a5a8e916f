// SPDX-License-Identifier: Apache-2.0

package loader

// The objects and their Go types are checked in: building earlydrop needs no
// clang. `make generate` runs this with BPF_CFLAGS naming the system's include
// folders.
//
//go:generate go tool bpf2go -go-package loader -target amd64,arm64 -cc clang -cflags "$BPF_CFLAGS" -type sample -type packet_record -type verdict -type passed datapath ../bpf/earlydrop.bpf.c
//go:generate go tool bpf2go -go-package floor -output-dir internal/floor -target amd64,arm64 -cc clang -cflags "$BPF_CFLAGS" floor ../bpf/floor.bpf.c
