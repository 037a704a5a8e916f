// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package onnx

/*
#include <stdlib.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

static void trim(void)
{
#ifdef __GLIBC__
	malloc_trim(0);
#endif
}
*/
import "C"

// returnMemory gives back to the system what was freed. The C library keeps it otherwise, of a
// model some 10 MB in each of the heaps that its threads have had.
func returnMemory() { C.trim() }
