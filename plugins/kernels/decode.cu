// SPDX-License-Identifier: Apache-2.0

#include "decode.cuh"

#include "attention_dispatch.cuh"
#include "launchers.h"

namespace tc {
namespace {

// Partial sums and states, in floats.
struct Workspace {
  int64_t sums, states;
};

Workspace workspace_of(const tc_attention_args& args, int splits) {
  const int64_t parts = args.batch * args.q_heads * args.tokens * splits;
  return {parts * args.head_dim, parts * 2};
}

}  // namespace

std::size_t decode_workspace_bytes(const tc_attention_args& args, int splits) {
  const Workspace needed = workspace_of(args, splits);
  return splits == 1 ? 0 : (needed.sums + needed.states) * sizeof(float);
}

tc_status launch_decode(const tc_attention_args& args, const CacheScales& scales, int splits,
                        void* workspace, void* stream) {
  return dispatch(args, [&](auto type, auto head_size) {
    using T = decltype(type);
    constexpr int D = decltype(head_size)::value;
    using Shape = DecodeShape<D>;
    return dispatch_cache<T>(scales, [&](auto stored) {
      using Stored = decltype(stored);
      auto p = make_params<T, Stored>(args, scales, kDecodeRows);
      p.splits = splits;
      if (splits > 1) {
        p.partial_sums = static_cast<float*>(workspace);
        p.partial_states = p.partial_sums + workspace_of(args, splits).sums;
      }
      const int64_t heads = args.batch * args.kv_heads;
      const tc_status status =
          launch(&decode_attention<T, Stored, D>, heads * p.row_blocks * splits, Shape::kThreads,
                 kDecodeSharedBytes<T, Stored, D>, stream, p);
      if (status != TC_OK || splits == 1) return status;
      const QueryParams<T>& queries = p;
      return launch(&merge_splits<T, D>, heads * packed_rows(args), kMergeThreads, 0, stream,
                    queries);
    });
  });
}

}  // namespace tc
