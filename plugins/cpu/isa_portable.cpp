// SPDX-License-Identifier: Apache-2.0
//
// Every processor: SSE2 on x86-64, NEON on aarch64.

#define TC_ISA tc_cpu_portable
#define TC_ISA_TABLE kPortable
#define TC_VECTOR_BYTES 16
#include "isa_kernels_impl.h"
