// SPDX-License-Identifier: Apache-2.0

package loader

// The objects and their Go types are checked in: building earlydrop needs no
// clang. `make generate` runs this with BPF_CFLAGS naming the system's include
// folders.
//
//go:generate go tool bpf2go -go-package loader -target amd64,arm64 -cc clang -cflags "$BPF_CFLAGS" -type sample -type packet_record -type verdict -type passed datapath ../bpf/earlydrop.bpf.c
//go:generate go tool bpf2go -go-package floor -output-dir internal/floor -target amd64,arm64 -cc clang -cflags "$BPF_CFLAGS" floor ../bpf/floor.bpf.c
//
// What nobody reads is a third of the objects, and of the time that reading them takes: the labels of
// jumps, and relocations of what says which line an instruction comes from.
//
//go:generate find . -name *_bpfel.o -exec llvm-objcopy --wildcard --strip-symbol=LBB* --remove-section=.rel.BTF.ext {} ;
