/* SPDX-License-Identifier: Apache-2.0
 *
 * CUDA only: the two ops of tc_kernels.h cut differently, so that a key crosses memory once. First
 * q and k are rotated, and k and v stored in the cache, in one pass; then attention reads the
 * cache. The two calls together give what tc_cuda_dual_rope (twice) and
 * tc_cuda_block_causal_attention in place give.
 */
#ifndef TC_KERNELS_FUSED_H
#define TC_KERNELS_FUSED_H

#include "tc_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Sizes, types and rotation as in tc_dual_rope_args; slots and caches as in tc_attention_args. */
typedef struct {
  tc_dtype dtype; /* of q, k, v and the caches */
  int64_t batch, q_heads, kv_heads, tokens, cache_rows, head_dim, rotary_half;
  float gamma, attention_factor;
  const void* q;               /* [B, H, S, D] */
  const void* k;               /* [B, K, S, D] */
  const void* v;               /* [B, K, S, D] */
  const int64_t* position_ids; /* [B, S] */
  const int64_t* temporal_ids; /* [B, S] */
  const int64_t* slots;        /* [B, S] */
  const float* inv_freq;       /* [R] */
  void* q_rotated;             /* [B, H, S, D]; may be q */
  void* key_cache;             /* [B, K, C, D] */
  void* value_cache;           /* [B, K, C, D] */
} tc_rope_and_store_args;

TC_API tc_status tc_cuda_rope_and_store(const tc_rope_and_store_args* args, void* stream);

/* tc_cuda_block_causal_attention without its writing: reads q, kv_end, present_key and
 * present_value; k, v, slots, past_key and past_value may be null. The same workspace. */
TC_API tc_status tc_cuda_attend_cached(const tc_attention_args* args, void* workspace,
                                       size_t workspace_bytes, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TC_KERNELS_FUSED_H */
