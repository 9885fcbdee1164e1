// SPDX-License-Identifier: Apache-2.0
//
// What a task of attention works on, and where its result goes.

#ifndef TC_CPU_ATTENTION_TASK_H
#define TC_CPU_ATTENTION_TASK_H

#include "cache_rows.h"
#include "isa_kernels.h"
#include "simd.h"

namespace TC_ISA {

constexpr int64_t kKeyBlock = tc_cpu::AttentionPlan::kKeyBlock;
constexpr int64_t kMostTileRows = tc_cpu::AttentionPlan::kMostTileRows;
constexpr float kLog2E = 1.44269504f;

// The cache of one head.
template <class T>
inline void open_cache(const tc_cpu::AttentionPlan& p, int64_t head, const T*& key,
                       const T*& value) {
  const int64_t offset = head * p.args.cache_rows * p.args.head_dim;
  key = static_cast<const T*>(p.args.present_key) + offset;
  value = static_cast<const T*>(p.args.present_value) + offset;
}
inline void open_cache(const tc_cpu::AttentionPlan& p, int64_t head, Int8Rows& key,
                       Int8Rows& value) {
  const int64_t rows = head * p.args.cache_rows;
  open_cache(p, head, key.codes, value.codes);
  key.scales = p.key_scales + rows;
  value.scales = p.value_scales + rows;
}

// One tile of query rows of one K/V head against one part of the keys. T is the type of q and y,
// Rows that of the cache (cache_rows.h).
template <class T, class Rows = const T*>
struct Task {
  const tc_cpu::AttentionPlan& plan;
  int64_t tile;  // of all tiles of all heads
  int64_t batch, kv_head, first_row, rows;
  int64_t key_begin, key_end;   // key_end: also at most the largest kv_end of the rows
  Rows key;                     // [C, D]
  Rows value;                   // [C, D]
  float* partial;               // null when this task has all the keys of its rows
  int32_t ends[kMostTileRows];  // kv_end of each row, within [0, C]

  // Tasks with the most keys come first, so that the last ones to finish are short.
  Task(const tc_cpu::AttentionPlan& p, int64_t task) : plan(p) {
    const int64_t split = task % p.splits;
    const int64_t heads = p.args.batch * p.args.kv_heads;
    const int64_t head = task / p.splits % heads;
    locate(head * p.tiles + (p.tiles - 1 - task / p.splits / heads));
    open_cache(p, head, key, value);
    int64_t longest = 0;
    for (int64_t row = 0; row < rows; ++row) {
      ends[row] = row_end(row);
      longest = larger(longest, ends[row]);
    }
    key_begin = split * p.keys_a_split;
    key_end = smaller(longest, key_begin + p.keys_a_split);
    partial = p.splits > 1 ? p.partials + (tile * p.splits + split) * p.partial_floats() : nullptr;
  }

  // The rows of a tile, for the pass that combines its parts.
  struct AllParts {};
  Task(const tc_cpu::AttentionPlan& p, int64_t tile_index, AllParts) : plan(p) {
    locate(tile_index);
    partial = p.partials + tile * p.splits * p.partial_floats();
  }

  void locate(int64_t tile_index) {
    tile = tile_index;
    const int64_t head = tile / plan.tiles;
    batch = head / plan.args.kv_heads;
    kv_head = head % plan.args.kv_heads;
    first_row = tile % plan.tiles * plan.tile_rows;
    rows = smaller(plan.tile_rows, plan.rows - first_row);
  }

  int32_t row_end(int64_t row) const {
    const int64_t token = (first_row + row) / plan.group;
    const int64_t end = plan.args.kv_end[batch * plan.args.tokens + token];
    return static_cast<int32_t>(larger(0, smaller(end, plan.args.cache_rows)));
  }

  // Where row `row` of the tile starts in q and y.
  int64_t offset(int64_t row) const {
    const tc_attention_args& a = plan.args;
    const int64_t token = (first_row + row) / plan.group;
    const int64_t head = kv_head * plan.group + (first_row + row) % plan.group;
    return ((batch * a.q_heads + head) * a.tokens + token) * a.head_dim;
  }
  const T* query(int64_t row) const { return static_cast<const T*>(plan.args.q) + offset(row); }
  T* output(int64_t row) const { return static_cast<T*>(plan.args.y) + offset(row); }

  // Hands over the weighted sum of values of one row, with its largest score and its weight.
  void finish(int64_t row, float* values_D, float maximum, float weight) const {
    const int64_t D = plan.args.head_dim;
    if (partial != nullptr) {
      convert(partial + row * D, values_D, D);
      float* maxima = partial + plan.partial_rows() * D;
      maxima[row] = maximum;
      maxima[plan.partial_rows() + row] = weight;
      return;
    }
    const float inverse = weight > 0.0f ? 1.0f / weight : 0.0f;
    for (int64_t d = 0; d < D; ++d) values_D[d] *= inverse;
    convert(output(row), values_D, D);
  }
};

}  // namespace TC_ISA

#endif  // TC_CPU_ATTENTION_TASK_H
