// SPDX-License-Identifier: Apache-2.0
//
// x86-64 with AVX-512 (F, BW, DQ, VL).

#define TC_ISA tc_cpu_avx512
#define TC_ISA_TABLE kAvx512
#define TC_VECTOR_BYTES 64
#include "isa_kernels_impl.h"
