// SPDX-License-Identifier: Apache-2.0

#include "prefill.cuh"

#include "attention_dispatch.cuh"
#include "launchers.h"

namespace tc {

tc_status launch_prefill(const tc_attention_args& args, const CacheScales& scales, void* stream) {
  return dispatch(args, [&](auto type, auto head_size) {
    using T = decltype(type);
    constexpr int D = decltype(head_size)::value;
    using Shape = PrefillShape<D>;
    return dispatch_cache<T>(scales, [&](auto stored) {
      using Stored = decltype(stored);
      const auto p = make_params<T, Stored>(args, scales, Shape::kRows);
      const int64_t blocks = args.batch * args.kv_heads * p.row_blocks;
      return launch(&prefill_attention<T, Stored, D>, blocks, Shape::kThreads,
                    kPrefillSharedBytes<T, Stored, D>, stream, p);
    });
  });
}

}  // namespace tc
