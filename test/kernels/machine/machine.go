// SPDX-License-Identifier: Apache-2.0

// Package machine holds what a virtual machine of test/kernels and its host have
// agreed on: where things lie in its file system and what it says at the end.
package machine

const (
	// Program is the test program.
	Program = "/test"
	// ArgumentList is the file with the program's arguments, one on a line.
	ArgumentList = "/arguments"
	// ModuleDir holds the kernel modules.
	ModuleDir = "/modules"
	// ModuleList is the file with the modules' names in the order of loading.
	ModuleList = "/modules/order"
	// EndMark begins the console's last line; the program's exit status, or what
	// kept it from running, follows.
	EndMark = "earlydrop-machine-end: "
)
