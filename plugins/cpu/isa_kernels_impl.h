// SPDX-License-Identifier: Apache-2.0
//
// The table of functions of one instruction set. An isa_*.cpp defines TC_ISA, TC_VECTOR_BYTES and
// TC_ISA_TABLE (the table's name), TC_BF16_DOT where there is a dot product of bfloat16, and TC_AMX
// where there is a matrix unit for it.

#include "attention_decode.h"
#include "attention_prefill.h"
#if defined(TC_AMX)
#include "attention_amx.h"
#endif
#include "isa_kernels.h"
#include "rotate.h"

namespace TC_ISA {

// Few query rows, of channels that fill the vectors.
inline bool is_decode(const tc_cpu::AttentionPlan& plan) {
  return plan.rows <= kMostDecodeRows && plan.args.head_dim % kLanes == 0;
}

template <class T>
bool attend_stored(const tc_cpu::AttentionPlan& plan, int64_t task) {
  if (is_decode(plan)) return attend_decode<T>(plan, task);
  return attend_prefill<T, float>(plan, task);
}

#if defined(TC_BF16_DOT)
template <>
bool attend_stored<Bf16>(const tc_cpu::AttentionPlan& plan, int64_t task) {
  if (is_decode(plan)) return attend_decode<Bf16>(plan, task);
#if defined(TC_AMX)
  if (plan.args.head_dim % kTileStep == 0) {
    const Tiles tiles;
    return attend_prefill<Bf16, TilePair>(plan, task);
  }
#endif
  if (plan.args.head_dim % 2 == 0) return attend_prefill<Bf16, Pair>(plan, task);
  return attend_prefill<Bf16, float>(plan, task);
}
#endif

// Over a cache in int8, all is computed in float32.
template <class T>
bool attend_int8(const tc_cpu::AttentionPlan& plan, int64_t task) {
  if (is_decode(plan)) return attend_decode<T, Int8Rows>(plan, task);
  return attend_prefill<T, float, Int8Rows>(plan, task);
}

static bool attend(const tc_cpu::AttentionPlan& plan, int64_t task) {
  const bool is_int8 = plan.key_scales != nullptr;
  switch (plan.args.dtype) {
    case TC_FLOAT16:
      return is_int8 ? attend_int8<Half>(plan, task) : attend_stored<Half>(plan, task);
    case TC_BFLOAT16:
      return is_int8 ? attend_int8<Bf16>(plan, task) : attend_stored<Bf16>(plan, task);
    default:
      return is_int8 ? attend_int8<float>(plan, task) : attend_stored<float>(plan, task);
  }
}

// Joins the partial results of one tile: each part's sums are rescaled to the largest maximum.
template <class T>
bool combine_stored(const tc_cpu::AttentionPlan& plan, int64_t tile) {
  Task<T> task(plan, tile, typename Task<T>::AllParts{});
  const int64_t D = plan.args.head_dim;
  const float* parts = task.partial;
  const float* maxima = parts + plan.partial_rows() * D;
  const float* weights = maxima + plan.partial_rows();
  const int64_t stride = plan.partial_floats();
  Scratch scratch(padded(D));
  if (!scratch) return false;
  float* sum_D = scratch.take(padded(D));
  task.partial = nullptr;  // what finishes now is the whole
  for (int64_t row = 0; row < task.rows; ++row) {
    float largest = kLowest;
    for (int64_t s = 0; s < plan.splits; ++s) {
      const float maximum = maxima[s * stride + row];
      largest = maximum > largest ? maximum : largest;
    }
    float weight = 0.0f;
    __builtin_memset(sum_D, 0, D * sizeof(float));
    for (int64_t s = 0; s < plan.splits; ++s) {
      const float factor = exp2(splat(maxima[s * stride + row] - largest))[0];
      const float* part_D = parts + s * stride + row * D;
      weight += weights[s * stride + row] * factor;
      for (int64_t d = 0; d < D; ++d) sum_D[d] += part_D[d] * factor;
    }
    task.finish(row, sum_D, largest, weight);
  }
  return true;
}

static bool combine(const tc_cpu::AttentionPlan& plan, int64_t tile) {
  switch (plan.args.dtype) {
    case TC_FLOAT16:
      return combine_stored<Half>(plan, tile);
    case TC_BFLOAT16:
      return combine_stored<Bf16>(plan, tile);
    default:
      return combine_stored<float>(plan, tile);
  }
}

static bool rotate_any(const tc_cpu::RopePlan& plan, int64_t task) {
  switch (plan.args.dtype) {
    case TC_FLOAT16:
      return rotate<Half>(plan, task);
    case TC_BFLOAT16:
      return rotate<Bf16>(plan, task);
    default:
      return rotate<float>(plan, task);
  }
}

static void quantize_any(tc_dtype dtype, const void* row_D, int64_t D, int8_t* codes_D,
                         float* scale) {
  switch (dtype) {
    case TC_FLOAT16:
      return quantize_row(static_cast<const Half*>(row_D), D, codes_D, scale);
    case TC_BFLOAT16:
      return quantize_row(static_cast<const Bf16*>(row_D), D, codes_D, scale);
    default:
      return quantize_row(static_cast<const float*>(row_D), D, codes_D, scale);
  }
}

}  // namespace TC_ISA

const tc_cpu::IsaKernels tc_cpu::TC_ISA_TABLE = {TC_ISA::attend, TC_ISA::combine,
                                                 TC_ISA::rotate_any, TC_ISA::quantize_any};
