// SPDX-License-Identifier: Apache-2.0
//
// From sizes and types known at run time to the kernel compiled for them.

#ifndef TC_ATTENTION_DISPATCH_CUH
#define TC_ATTENTION_DISPATCH_CUH

#include <algorithm>
#include <type_traits>

#include "attention_tile.cuh"
#include "launchers.h"

namespace tc {

template <int D>
using HeadSize = std::integral_constant<int, D>;

// Calls `function(T{}, HeadSize<D>{})` with the type of q and the head size of the arguments.
template <class Function>
tc_status dispatch(const tc_attention_args& args, Function function) {
  auto of_type = [&](auto type) {
    switch (args.head_dim) {
      case 64: return function(type, HeadSize<64>{});
      case 80: return function(type, HeadSize<80>{});
      case 96: return function(type, HeadSize<96>{});
      case 128: return function(type, HeadSize<128>{});
      case 256: return function(type, HeadSize<256>{});
      default: return TC_UNSUPPORTED;
    }
  };
  switch (args.dtype) {
    case TC_FLOAT16: return of_type(Half{});
    case TC_BFLOAT16: return of_type(BFloat16{});
    default: return TC_UNSUPPORTED;
  }
}

// Calls `function(Stored{})` with the type of the cache, that of q or int8_t.
template <class T, class Function>
tc_status dispatch_cache(const CacheScales& scales, Function function) {
  return scales.keys == nullptr ? function(T{}) : function(int8_t{});
}

inline int64_t packed_rows(const tc_attention_args& args) {
  return args.tokens * (args.q_heads / args.kv_heads);
}

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// At most so many packed rows of a group go the way of decoding, which reads all keys once for
// every 16 of them.
inline bool goes_to_decode(const tc_attention_args& args) { return packed_rows(args) <= 64; }

// Parts that decoding cuts the keys into: more while there are fewer blocks than two for each SM
// of the largest GPUs, and keys enough to give each part two tiles. Shapes alone decide, not the
// device: the same call gives the same bits everywhere.
inline int decode_splits(const tc_attention_args& args) {
  constexpr int64_t kBlocksWanted = 264, kMinKeys = 128;
  const int64_t blocks = args.batch * args.kv_heads * ceil_divide(packed_rows(args), 16);
  const int64_t splits = std::min(kBlocksWanted / blocks, args.cache_rows / kMinKeys);
  return static_cast<int>(std::max<int64_t>(1, splits));
}

template <class T, class Stored>
AttentionParams<T, Stored> make_params(const tc_attention_args& args, const CacheScales& scales,
                                       int rows_per_block) {
  constexpr float kLog2E = 1.4426950408889634f;
  AttentionParams<T, Stored> p{};
  p.q = static_cast<const T*>(args.q);
  p.keys = static_cast<const Stored*>(args.present_key);
  p.values = static_cast<const Stored*>(args.present_value);
  p.key_scales = scales.keys;
  p.value_scales = scales.values;
  p.y = static_cast<T*>(args.y);
  p.kv_end = args.kv_end;
  p.kv_heads = static_cast<int>(args.kv_heads);
  p.group = static_cast<int>(args.q_heads / args.kv_heads);
  p.tokens = static_cast<int>(args.tokens);
  p.cache_rows = static_cast<int>(args.cache_rows);
  p.row_blocks = static_cast<int>(ceil_divide(packed_rows(args), rows_per_block));
  p.splits = 1;
  p.scale_log2 = args.scale * kLog2E;
  return p;
}

}  // namespace tc

#endif  // TC_ATTENTION_DISPATCH_CUH
