// SPDX-License-Identifier: Apache-2.0

#include "store_int8.cuh"

#include "launchers.h"

namespace tc {
namespace {

template <class T>
tc_status launch_type(const tc_attention_int8_args& args, void* stream) {
  StoreInt8Params<T> p{};
  p.k = static_cast<const T*>(args.k);
  p.v = static_cast<const T*>(args.v);
  p.slots = args.slots;
  p.keys = args.present_key;
  p.values = args.present_value;
  p.key_scales = args.present_key_scale;
  p.value_scales = args.present_value_scale;
  p.batch = static_cast<int>(args.batch);
  p.kv_heads = static_cast<int>(args.kv_heads);
  p.tokens = static_cast<int>(args.tokens);
  p.cache_rows = static_cast<int>(args.cache_rows);
  p.channels = static_cast<int>(args.head_dim);
  const int64_t rows = 2 * args.batch * args.kv_heads * args.tokens;
  const int64_t blocks = (rows + kStoreWarps - 1) / kStoreWarps;
  return launch(&store_int8<T>, blocks, kStoreWarps * kWarpSize, 0, stream, p);
}

}  // namespace

tc_status launch_store_int8(const tc_attention_int8_args& args, void* stream) {
  switch (args.dtype) {
    case TC_FLOAT16: return launch_type<Half>(args, stream);
    case TC_BFLOAT16: return launch_type<BFloat16>(args, stream);
    default: return TC_UNSUPPORTED;
  }
}

}  // namespace tc
