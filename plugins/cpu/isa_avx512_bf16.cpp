// SPDX-License-Identifier: Apache-2.0
//
// x86-64 with AVX-512 and its dot product of bfloat16.

#define TC_ISA tc_cpu_avx512_bf16
#define TC_ISA_TABLE kAvx512Bf16
#define TC_VECTOR_BYTES 64
#define TC_BF16_DOT
#include "isa_kernels_impl.h"
