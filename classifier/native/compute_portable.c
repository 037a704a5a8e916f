/* SPDX-License-Identifier: Apache-2.0 */

/* For every processor. Where vectors of four are not known, the compiler makes them of less. */
#define TARGET
#define LANES 4
#define COMPUTE native_compute_portable
#include "compute.h"
