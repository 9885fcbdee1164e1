// SPDX-License-Identifier: Apache-2.0
//
// x86-64 with AVX2 and FMA.

#define TC_ISA tc_cpu_avx2
#define TC_ISA_TABLE kAvx2
#define TC_VECTOR_BYTES 32
#include "isa_kernels_impl.h"
