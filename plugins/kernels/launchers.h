// SPDX-License-Identifier: Apache-2.0
//
// Between the C interface (interface.cu) and the kernels, each compiled in a file of its own.
// Arguments were checked by the interface.

#ifndef TC_LAUNCHERS_H
#define TC_LAUNCHERS_H

#include <cstddef>

#include "tc_kernels.h"
#include "tc_kernels_fused.h"

namespace tc {

// Scales [B, K, C] of the present cache, whose pointers are to int8 then; null where it has none.
struct CacheScales {
  const float* keys;
  const float* values;
};

tc_status launch_prefill(const tc_attention_args& args, const CacheScales& scales, void* stream);

// `splits` parts of the keys; the workspace holds decode_workspace_bytes of them.
tc_status launch_decode(const tc_attention_args& args, const CacheScales& scales, int splits,
                        void* workspace, void* stream);
std::size_t decode_workspace_bytes(const tc_attention_args& args, int splits);

// With kv_heads 0 the plain rotation, with q_heads 0 the plain cache write.
tc_status launch_rotate_and_store(const tc_rope_and_store_args& args, void* stream);

// Rounds k and v to int8 and writes them to the present cache.
tc_status launch_store_int8(const tc_attention_int8_args& args, void* stream);

}  // namespace tc

#endif  // TC_LAUNCHERS_H
