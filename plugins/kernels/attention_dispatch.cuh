// SPDX-License-Identifier: Apache-2.0
//
// From sizes and types known at run time to the kernel compiled for them.

#ifndef TC_ATTENTION_DISPATCH_CUH
#define TC_ATTENTION_DISPATCH_CUH

#include <type_traits>

#include "attention_tile.cuh"

namespace tc {

template <int D>
using HeadSize = std::integral_constant<int, D>;

// Calls `function(T{}, HeadSize<D>{})` with the type and head size of the arguments.
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

inline int64_t packed_rows(const tc_attention_args& args) {
  return args.tokens * (args.q_heads / args.kv_heads);
}

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
AttentionParams<T> make_params(const tc_attention_args& args, int rows_per_block) {
  constexpr float kLog2E = 1.4426950408889634f;
  AttentionParams<T> p{};
  p.q = static_cast<const T*>(args.q);
  p.keys = static_cast<const T*>(args.present_key);
  p.values = static_cast<const T*>(args.present_value);
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
