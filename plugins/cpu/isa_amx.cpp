// SPDX-License-Identifier: Apache-2.0
//
// x86-64 with AVX-512, its dot product of bfloat16, and Intel's matrix unit.

#define TC_ISA tc_cpu_amx
#define TC_ISA_TABLE kAmx
#define TC_VECTOR_BYTES 64
#define TC_BF16_DOT
#define TC_AMX
#include "isa_kernels_impl.h"
