// SPDX-License-Identifier: Apache-2.0

#include "rotate_and_store.cuh"

#include "launchers.h"

namespace tc {
namespace {

template <class T>
RotateParams<T> make_params(const tc_rope_and_store_args& args) {
  RotateParams<T> p{};
  p.q = static_cast<const T*>(args.q);
  p.k = static_cast<const T*>(args.k);
  p.v = static_cast<const T*>(args.v);
  p.q_rotated = static_cast<T*>(args.q_rotated);
  p.key_cache = static_cast<T*>(args.key_cache);
  p.value_cache = static_cast<T*>(args.value_cache);
  p.position_ids = args.position_ids;
  p.temporal_ids = args.temporal_ids;
  p.slots = args.slots;
  p.inv_freq = args.inv_freq;
  p.batch = static_cast<int>(args.batch);
  p.q_heads = static_cast<int>(args.q_heads);
  p.kv_heads = static_cast<int>(args.kv_heads);
  p.tokens = static_cast<int>(args.tokens);
  p.cache_rows = static_cast<int>(args.cache_rows);
  p.channels = static_cast<int>(args.head_dim);
  p.half = static_cast<int>(args.rotary_half);
  p.gamma = args.gamma;
  p.attention_factor = args.attention_factor;
  return p;
}

// Vectors need whole vectors on either side of every pair, and aligned rows.
template <class T>
bool fits_vectors(const tc_rope_and_store_args& args, int width) {
  const void* tensors[] = {args.q,         args.k,         args.v,
                           args.q_rotated, args.key_cache, args.value_cache};
  bool fits = args.head_dim % width == 0 && args.rotary_half % width == 0;
  for (const void* tensor : tensors) {
    fits = fits && reinterpret_cast<std::uintptr_t>(tensor) % (width * sizeof(T)) == 0;
  }
  return fits;
}

template <class T, int Width>
tc_status launch_width(const tc_rope_and_store_args& args, void* stream) {
  const RotateParams<T> p = make_params<T>(args);
  const int64_t pieces = (args.head_dim - args.rotary_half) / Width;
  const int64_t groups = (p.heads() + kRotateHeads - 1) / kRotateHeads;
  const int64_t items = args.batch * groups * args.tokens * pieces;
  const int64_t blocks = (items + kRotateThreads - 1) / kRotateThreads;
  if (blocks > 0x7fffffff) return TC_UNSUPPORTED;  // more than a grid has
  return launch(&rotate_and_store<T, Width>, blocks, kRotateThreads, 0, stream, p);
}

template <class T>
tc_status launch_type(const tc_rope_and_store_args& args, void* stream) {
  constexpr int kWidth = 16 / sizeof(T);
  return fits_vectors<T>(args, kWidth) ? launch_width<T, kWidth>(args, stream)
                                       : launch_width<T, 1>(args, stream);
}

}  // namespace

tc_status launch_rotate_and_store(const tc_rope_and_store_args& args, void* stream) {
  switch (args.dtype) {
    case TC_FLOAT32: return launch_type<float>(args, stream);
    case TC_FLOAT16: return launch_type<Half>(args, stream);
    case TC_BFLOAT16: return launch_type<BFloat16>(args, stream);
    default: return TC_UNSUPPORTED;
  }
}

}  // namespace tc
