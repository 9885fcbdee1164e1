// SPDX-License-Identifier: Apache-2.0
//
// The CUDA launchers of tc_kernels.h on host memory: plain loops in float64, straight from the
// contract. They let the plugin be driven where there is neither a GPU nor a CUDA compiler.
//
// B batch, H query heads, K key/value heads, S tokens of this call, C cache rows, D head size,
// R half of the rotated channels.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "half.h"
#include "tc_kernels.h"

namespace {

using tc_test::Load;
using tc_test::Store;

bool IsSupported(tc_dtype dtype) { return dtype == TC_FLOAT16 || dtype == TC_BFLOAT16; }

// Copies the cache where it is not in place, and writes the new rows to their slots.
void WriteCache(const tc_attention_args& a, const void* past, const void* fresh, void* present) {
  const size_t row_bytes = a.head_dim * sizeof(uint16_t);
  if (present != past) {
    std::memcpy(present, past, a.batch * a.kv_heads * a.cache_rows * row_bytes);
  }
  for (int64_t b = 0; b < a.batch; ++b) {
    for (int64_t h = 0; h < a.kv_heads; ++h) {
      for (int64_t s = 0; s < a.tokens; ++s) {
        const int64_t slot = a.slots[b * a.tokens + s];
        if (slot >= 0) {
          const int64_t head = b * a.kv_heads + h;
          std::memcpy(static_cast<char*>(present) + (head * a.cache_rows + slot) * row_bytes,
                      static_cast<const char*>(fresh) + (head * a.tokens + s) * row_bytes,
                      row_bytes);
        }
      }
    }
  }
}

// One query row: the softmax of its logits over `visible` rows, applied to the values.
void Attend(const tc_attention_args& a, const uint16_t* q, const uint16_t* key,
            const uint16_t* value, int64_t visible, uint16_t* y) {
  std::vector<double> weight(visible);
  double largest = -INFINITY;
  for (int64_t c = 0; c < visible; ++c) {
    double dot = 0;
    for (int64_t d = 0; d < a.head_dim; ++d) {
      dot += double(Load(a.dtype, q[d])) * Load(a.dtype, key[c * a.head_dim + d]);
    }
    weight[c] = dot * a.scale;
    largest = std::max(largest, weight[c]);
  }
  double total = 0;
  for (double& w : weight) {
    w = std::exp(w - largest);
    total += w;
  }
  for (int64_t d = 0; d < a.head_dim; ++d) {
    double sum = 0;
    for (int64_t c = 0; c < visible; ++c) {
      sum += weight[c] * Load(a.dtype, value[c * a.head_dim + d]);
    }
    y[d] = Store(a.dtype, visible > 0 ? float(sum / total) : 0.0f);
  }
}

}  // namespace

// Made up: as on a device, one token wants more than a whole prompt, and a batch of one more than
// any other. 0 for what is not valid: it must not go unnoticed.
extern "C" size_t tc_cuda_block_causal_attention_workspace(const tc_attention_args* args) {
  const bool is_valid =
      args->batch > 0 && args->kv_heads > 0 && args->tokens > 0 && args->scale > 0;
  return is_valid ? size_t(12 * args->q_heads * args->cache_rows / args->tokens / args->batch) : 0;
}

extern "C" tc_status tc_cuda_block_causal_attention(const tc_attention_args* args, void* workspace,
                                                    size_t workspace_bytes, void*) {
  const tc_attention_args& a = *args;
  if (!IsSupported(a.dtype)) {
    return TC_UNSUPPORTED;
  }
  const size_t needed = tc_cuda_block_causal_attention_workspace(args);
  if (needed == 0 || workspace_bytes < needed || a.q_heads % a.kv_heads != 0) {
    return TC_INVALID_ARGUMENT;
  }
  std::memset(workspace, 0xff, needed);  // so that a workspace that is too small shows
  WriteCache(a, a.past_key, a.k, a.present_key);
  WriteCache(a, a.past_value, a.v, a.present_value);

  const auto* key = static_cast<const uint16_t*>(a.present_key);
  const auto* value = static_cast<const uint16_t*>(a.present_value);
  for (int64_t b = 0; b < a.batch; ++b) {
    for (int64_t h = 0; h < a.q_heads; ++h) {
      const int64_t kv_head = b * a.kv_heads + h / (a.q_heads / a.kv_heads);
      const int64_t cache = kv_head * a.cache_rows * a.head_dim;
      for (int64_t s = 0; s < a.tokens; ++s) {
        const int64_t row = ((b * a.q_heads + h) * a.tokens + s) * a.head_dim;
        const int64_t end = a.kv_end[b * a.tokens + s];
        const int64_t visible = std::clamp<int64_t>(end, 0, a.cache_rows);
        Attend(a, static_cast<const uint16_t*>(a.q) + row, key + cache, value + cache, visible,
               static_cast<uint16_t*>(a.y) + row);
      }
    }
  }
  return TC_OK;
}

// The cache in int8 as one in the type of q: the loops above then do the rest.
namespace {

// A row's scale and codes.
void Code(tc_dtype dtype, const uint16_t* row, int64_t channels, int8_t* codes, float* scale) {
  float largest = 0;
  for (int64_t d = 0; d < channels; ++d) {
    largest = std::max(largest, std::fabs(Load(dtype, row[d])));
  }
  *scale = largest / 127;
  for (int64_t d = 0; d < channels; ++d) {
    codes[d] = *scale > 0 ? int8_t(std::nearbyint(Load(dtype, row[d]) / *scale)) : 0;
  }
}

struct Int8Part {
  const int8_t* past;
  const float* past_scale;
  const void* fresh;
  int8_t* present;
  float* present_scale;
};

// Writes one part of the cache, and returns what it stands for.
std::vector<uint16_t> Write(const tc_attention_int8_args& a, const Int8Part& part) {
  const int64_t rows = a.batch * a.kv_heads * a.cache_rows;
  if (part.present != part.past) std::copy_n(part.past, rows * a.head_dim, part.present);
  if (part.present_scale != part.past_scale) std::copy_n(part.past_scale, rows, part.present_scale);
  for (int64_t row = 0; row < a.batch * a.kv_heads * a.tokens; ++row) {
    const int64_t head = row / a.tokens;
    const int64_t slot = a.slots[head / a.kv_heads * a.tokens + row % a.tokens];
    if (slot < 0) continue;
    const int64_t place = head * a.cache_rows + slot;
    Code(a.dtype, static_cast<const uint16_t*>(part.fresh) + row * a.head_dim, a.head_dim,
         part.present + place * a.head_dim, part.present_scale + place);
  }
  std::vector<uint16_t> plain(rows * a.head_dim);
  for (int64_t i = 0; i < rows * a.head_dim; ++i) {
    plain[i] = Store(a.dtype, part.present[i] * part.present_scale[i / a.head_dim]);
  }
  return plain;
}

tc_attention_args Plain(const tc_attention_int8_args& a) {
  return {a.dtype, a.batch, a.q_heads, a.kv_heads, a.tokens, a.cache_rows, a.head_dim, a.scale,
          a.q,     a.k,     a.v,       a.kv_end,   a.slots,  nullptr,      nullptr,    a.y,
          nullptr, nullptr};
}

}  // namespace

extern "C" size_t tc_cuda_block_causal_attention_int8_workspace(
    const tc_attention_int8_args* args) {
  const tc_attention_args plain = Plain(*args);
  return tc_cuda_block_causal_attention_workspace(&plain);
}

extern "C" tc_status tc_cuda_block_causal_attention_int8(const tc_attention_int8_args* args,
                                                         void* workspace, size_t workspace_bytes,
                                                         void* stream) {
  const tc_attention_int8_args& a = *args;
  if (!IsSupported(a.dtype)) {
    return TC_UNSUPPORTED;
  }
  std::vector<uint16_t> key =
      Write(a, {a.past_key, a.past_key_scale, a.k, a.present_key, a.present_key_scale});
  std::vector<uint16_t> value =
      Write(a, {a.past_value, a.past_value_scale, a.v, a.present_value, a.present_value_scale});
  tc_attention_args plain = Plain(a);
  const std::vector<int64_t> written(a.batch * a.tokens, -1);
  plain.slots = written.data();
  plain.past_key = plain.present_key = key.data();
  plain.past_value = plain.present_value = value.data();
  return tc_cuda_block_causal_attention(&plain, workspace, workspace_bytes, stream);
}

extern "C" tc_status tc_cuda_dual_rope(const tc_dual_rope_args* args, void*) {
  const tc_dual_rope_args& a = *args;
  if (!IsSupported(a.dtype)) {
    return TC_UNSUPPORTED;
  }
  const auto* x = static_cast<const uint16_t*>(a.x);
  auto* y = static_cast<uint16_t*>(a.y);
  std::copy(x, x + a.batch * a.heads * a.tokens * a.head_dim, y);
  for (int64_t row = 0; row < a.batch * a.heads * a.tokens; ++row) {
    const int64_t token = row / (a.heads * a.tokens) * a.tokens + row % a.tokens;
    const double position = a.position_ids[token] + double(a.gamma) * a.temporal_ids[token];
    for (int64_t k = 0; k < a.rotary_half; ++k) {
      const double cosine = std::cos(position * a.inv_freq[k]) * a.attention_factor;
      const double sine = std::sin(position * a.inv_freq[k]) * a.attention_factor;
      const int64_t first = row * a.head_dim + k;
      const int64_t second = first + a.rotary_half;
      const double u = Load(a.dtype, x[first]);
      const double w = Load(a.dtype, x[second]);
      y[first] = Store(a.dtype, float(u * cosine - w * sine));
      y[second] = Store(a.dtype, float(w * cosine + u * sine));
    }
  }
  return TC_OK;
}
