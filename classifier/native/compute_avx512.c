/* SPDX-License-Identifier: Apache-2.0 */

#ifdef __x86_64__
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define LANES 16
#define COMPUTE native_compute_avx512
#include "compute.h"
#endif
