// SPDX-License-Identifier: Apache-2.0

#include "prefill.cuh"

#include "attention_dispatch.cuh"
#include "launchers.h"

namespace tc {

tc_status launch_prefill(const tc_attention_args& args, void* stream) {
  return dispatch(args, [&](auto type, auto head_size) {
    using T = decltype(type);
    constexpr int D = decltype(head_size)::value;
    using Shape = PrefillShape<D>;
    const auto p = make_params<T>(args, Shape::kRows);
    const int64_t blocks = args.batch * args.kv_heads * p.row_blocks;
    return launch(&prefill_attention<T, D>, blocks, Shape::kThreads, Shape::kSharedBytes, stream,
                  p);
  });
}

}  // namespace tc
