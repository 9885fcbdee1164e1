// SPDX-License-Identifier: Apache-2.0
//
// The CUDA half of the C interface: arguments are checked here, and the way is chosen.
//
// What only the device can see is not checked but defined: a slot outside of [0, C) is not
// written, kv_end below 0 is 0 and above C is C. No value in any tensor makes a kernel read or
// write out of bounds.

#include <cmath>

#include "attention_dispatch.cuh"
#include "launchers.h"

namespace tc {
namespace {

// Kernels count blocks, rows and channels with 32 bits, and may count to the end of a last tile
// that is not full.
constexpr int64_t kMaxIndex = 0x7ffff000;

template <class... Sizes>
bool all_positive(Sizes... sizes) {
  return ((sizes > 0 && sizes <= kMaxIndex) && ...);
}

template <class... Pointers>
bool any_null(Pointers... pointers) {
  return ((pointers == nullptr) || ...);
}

template <class... Pointers>
bool all_aligned(Pointers... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) % 16 == 0) && ...);
}

// Upper bound of the blocks of any kernel: one for each packed row.
bool fits_grid(int64_t batch, int64_t heads, int64_t tokens) {
  return batch * heads <= kMaxIndex && batch * heads * tokens <= kMaxIndex;
}

tc_status check_sizes(const tc_attention_args& args) {
  if (!all_positive(args.batch, args.q_heads, args.kv_heads, args.tokens, args.cache_rows) ||
      args.q_heads % args.kv_heads != 0 || !(args.scale > 0.0f) || !std::isfinite(args.scale)) {
    return TC_INVALID_ARGUMENT;
  }
  if (!fits_grid(args.batch, args.q_heads, args.tokens)) return TC_UNSUPPORTED;
  return dispatch(args, [](auto, auto) { return TC_OK; });
}

// What both kinds of cache have in common; pointers to a cache in int8 among them.
tc_attention_args common(const tc_attention_int8_args& a) {
  return {a.dtype,  a.batch, a.q_heads, a.kv_heads,  a.tokens,      a.cache_rows, a.head_dim,
          a.scale,  a.q,     a.k,       a.v,         a.kv_end,      a.slots,      a.past_key,
          a.past_value, a.y, a.present_key, a.present_value};
}

size_t workspace_bytes_of(const tc_attention_args& args) {
  return goes_to_decode(args) ? decode_workspace_bytes(args, decode_splits(args)) : 0;
}

struct Workspace {
  void* memory;
  size_t bytes;
};

// All that is refused is refused before anything is written.
tc_status check_attend(const tc_attention_args& args, const Workspace& workspace) {
  if (any_null(args.q, args.kv_end, args.present_key, args.present_value, args.y) ||
      !all_aligned(args.q, args.present_key, args.present_value, args.y)) {
    return TC_INVALID_ARGUMENT;
  }
  const tc_status status = check_sizes(args);
  if (status != TC_OK) return status;
  const size_t needed = workspace_bytes_of(args);
  const bool has_room = needed == 0 || (workspace.memory != nullptr && needed <= workspace.bytes);
  return has_room ? TC_OK : TC_INVALID_ARGUMENT;
}

tc_status attend(const tc_attention_args& args, const CacheScales& scales, void* workspace,
                 void* stream) {
  if (!goes_to_decode(args)) return launch_prefill(args, scales, stream);
  return launch_decode(args, scales, decode_splits(args), workspace, stream);
}

// A part of the cache, before and after the call.
struct CachePart {
  void* to;
  const void* from;
  int64_t row_bytes;
};

// The cache before the call becomes the cache after it; nothing to do in place.
template <int Count>
tc_status copy_cache(const tc_attention_args& args, const CachePart (&parts)[Count], void* stream) {
  const int64_t rows = args.batch * args.kv_heads * args.cache_rows;
  for (const CachePart& part : parts) {
    if (part.to == part.from) continue;
    const tc_status status = copy_on_device(part.to, part.from, rows * part.row_bytes, stream);
    if (status != TC_OK) return status;
  }
  return TC_OK;
}

tc_status write_cache(const tc_attention_args& args, void* stream) {
  tc_rope_and_store_args store{};
  store.dtype = args.dtype;
  store.batch = args.batch;
  store.kv_heads = args.kv_heads;
  store.tokens = args.tokens;
  store.cache_rows = args.cache_rows;
  store.head_dim = args.head_dim;
  store.k = args.k;
  store.v = args.v;
  store.slots = args.slots;
  store.key_cache = args.present_key;
  store.value_cache = args.present_value;
  return launch_rotate_and_store(store, stream);
}

// What the plain and the fused rotation have in common; `heads` counts all that the kernel visits.
tc_status check_rotation(const tc_rope_and_store_args& args, int64_t heads) {
  if (any_null(args.q, args.q_rotated, args.position_ids, args.temporal_ids, args.inv_freq) ||
      !all_positive(args.batch, heads, args.tokens, args.head_dim, args.rotary_half) ||
      2 * args.rotary_half > args.head_dim) {
    return TC_INVALID_ARGUMENT;
  }
  return fits_grid(args.batch, heads, args.tokens) ? TC_OK : TC_UNSUPPORTED;
}

}  // namespace
}  // namespace tc

extern "C" {

size_t tc_cuda_block_causal_attention_workspace(const tc_attention_args* args) {
  if (args == nullptr || tc::check_sizes(*args) != TC_OK) return 0;
  return tc::workspace_bytes_of(*args);
}

tc_status tc_cuda_attend_cached(const tc_attention_args* args, void* workspace,
                                size_t workspace_bytes, void* stream) {
  if (args == nullptr) return TC_INVALID_ARGUMENT;
  const tc_status status = tc::check_attend(*args, {workspace, workspace_bytes});
  return status == TC_OK ? tc::attend(*args, {}, workspace, stream) : status;
}

tc_status tc_cuda_block_causal_attention(const tc_attention_args* args, void* workspace,
                                         size_t workspace_bytes, void* stream) {
  if (args == nullptr ||
      tc::any_null(args->k, args->v, args->slots, args->past_key, args->past_value)) {
    return TC_INVALID_ARGUMENT;
  }
  const int64_t row_bytes = args->head_dim * 2;
  tc_status status = tc::check_attend(*args, {workspace, workspace_bytes});
  if (status == TC_OK) {
    status = tc::copy_cache(*args,
                            {{args->present_key, args->past_key, row_bytes},
                             {args->present_value, args->past_value, row_bytes}},
                            stream);
  }
  if (status == TC_OK) status = tc::write_cache(*args, stream);
  return status == TC_OK ? tc::attend(*args, {}, workspace, stream) : status;
}

size_t tc_cuda_block_causal_attention_int8_workspace(const tc_attention_int8_args* args) {
  if (args == nullptr) return 0;
  const tc_attention_args plain = tc::common(*args);
  return tc_cuda_block_causal_attention_workspace(&plain);
}

tc_status tc_cuda_block_causal_attention_int8(const tc_attention_int8_args* args, void* workspace,
                                              size_t workspace_bytes, void* stream) {
  if (args == nullptr ||
      tc::any_null(args->k, args->v, args->slots, args->past_key, args->past_value,
                   args->past_key_scale, args->past_value_scale, args->present_key_scale,
                   args->present_value_scale)) {
    return TC_INVALID_ARGUMENT;
  }
  const tc_attention_args plain = tc::common(*args);
  const int64_t scale_bytes = sizeof(float);
  tc_status status = tc::check_attend(plain, {workspace, workspace_bytes});
  if (status == TC_OK) {
    status = tc::copy_cache(plain,
                            {{args->present_key, args->past_key, args->head_dim},
                             {args->present_value, args->past_value, args->head_dim},
                             {args->present_key_scale, args->past_key_scale, scale_bytes},
                             {args->present_value_scale, args->past_value_scale, scale_bytes}},
                            stream);
  }
  if (status == TC_OK) status = tc::launch_store_int8(*args, stream);
  if (status != TC_OK) return status;
  const tc::CacheScales scales{args->present_key_scale, args->present_value_scale};
  return tc::attend(plain, scales, workspace, stream);
}

tc_status tc_cuda_dual_rope(const tc_dual_rope_args* args, void* stream) {
  if (args == nullptr) return TC_INVALID_ARGUMENT;
  tc_rope_and_store_args rope{};
  rope.dtype = args->dtype;
  rope.batch = args->batch;
  rope.q_heads = args->heads;
  rope.tokens = args->tokens;
  rope.head_dim = args->head_dim;
  rope.rotary_half = args->rotary_half;
  rope.gamma = args->gamma;
  rope.attention_factor = args->attention_factor;
  rope.q = args->x;
  rope.position_ids = args->position_ids;
  rope.temporal_ids = args->temporal_ids;
  rope.inv_freq = args->inv_freq;
  rope.q_rotated = args->y;
  const tc_status status = tc::check_rotation(rope, args->heads);
  return status == TC_OK ? tc::launch_rotate_and_store(rope, stream) : status;
}

tc_status tc_cuda_rope_and_store(const tc_rope_and_store_args* args, void* stream) {
  if (args == nullptr ||
      tc::any_null(args->k, args->v, args->slots, args->key_cache, args->value_cache) ||
      !tc::all_positive(args->q_heads, args->kv_heads, args->cache_rows) ||
      args->q_heads % args->kv_heads != 0) {
    return TC_INVALID_ARGUMENT;
  }
  const tc_status status = tc::check_rotation(*args, args->q_heads + 2 * args->kv_heads);
  return status == TC_OK ? tc::launch_rotate_and_store(*args, stream) : status;
}
}
