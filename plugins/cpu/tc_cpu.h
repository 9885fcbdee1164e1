/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPU implementation beyond the common interface: the choice of an instruction set, for tests,
 * and threads for callers that have none of their own.
 */
#ifndef TC_CPU_H
#define TC_CPU_H

#include "tc_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  TC_ISA_BEST = 0, /* the best that this processor has: what the common interface uses */
  TC_ISA_PORTABLE = 1,
  TC_ISA_AVX2 = 2,
  TC_ISA_AVX512 = 3,
  TC_ISA_AVX512_BF16 = 4,
  TC_ISA_AMX = 5
} tc_cpu_isa;

/* The name of an instruction set ("avx2"); null when this processor or build does not have it. */
TC_API const char* tc_cpu_isa_name(tc_cpu_isa isa);

/* The ops on an instruction set of the caller's choice; TC_UNSUPPORTED when it is not there. */
TC_API tc_status tc_cpu_block_causal_attention_on(tc_cpu_isa isa, const tc_attention_args* args,
                                                  tc_parallel_for parallel_for, void* context);
TC_API tc_status tc_cpu_block_causal_attention_int8_on(tc_cpu_isa isa,
                                                       const tc_attention_int8_args* args,
                                                       tc_parallel_for parallel_for,
                                                       void* context);
TC_API tc_status tc_cpu_dual_rope_on(tc_cpu_isa isa, const tc_dual_rope_args* args,
                                     tc_parallel_for parallel_for, void* context);

/* A tc_parallel_for on threads that it starts and joins. `context` points to an int32_t, the number
 * of threads that share the work, the caller's included. */
TC_API void tc_cpu_run_on_threads(void* context, size_t n, void (*task)(void* data, size_t i),
                                  void* data);

/* The version of this library, as in pyproject.toml. */
TC_API const char* tc_ops_version(void);

#ifdef __cplusplus
}
#endif

#endif /* TC_CPU_H */
