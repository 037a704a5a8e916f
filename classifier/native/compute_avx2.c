/* SPDX-License-Identifier: Apache-2.0 */

#ifdef __x86_64__
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define COMPUTE native_compute_avx2
#include "compute.h"
#endif
