// SPDX-License-Identifier: Apache-2.0

// Package loader brings the data path into the kernel and speaks with it: it
// loads the programs, attaches them to an interface, pins what must outlive the
// process, reads captures from the ring buffer and writes verdicts into the maps.
//
// # Life cycle
//
// [Attach] leaves programs and maps pinned below /sys/fs/bpf/earlydrop/<interface>/, with
// %2e for each dot. An interface is found by the program that is attached to it, whatever
// it is called by then; [DataPath.Watch] follows it, and puts back pins that others remove.
// When the process dies, blocked flows stay blocked and new flows pass; the next
// Attach adopts what is pinned and swaps the programs in place, so that not one
// packet goes unseen. [DataPath.Detach] takes everything away again,
// [DataPath.Release] leaves it for the next process.
//
// The package uses no cgo.
package loader
