// SPDX-License-Identifier: Apache-2.0
//
// Attention of many query rows (prefill): flash attention with the query rows along the lanes.
//
// A panel is two vectors of query rows; the last one may have rows in the first of them only. A
// block of keys gives its scores as S[key][row], a maximum and a sum of weights are then plain
// vector operations, and O[d][row] += V[key][d] P[key][row]. Keys and values are read as they lie
// in the cache, one number broadcast to all lanes, so nothing is transposed but q and y, and the
// head size need not be a multiple of anything.
//
// Blocks past the largest kv_end are never visited; only blocks past the smallest are masked.

#ifndef TC_CPU_ATTENTION_PREFILL_H
#define TC_CPU_ATTENTION_PREFILL_H

#include "attention_task.h"
#include "tile_math.h"

namespace TC_ISA {

constexpr int kPanelVectors = 2;
constexpr int kPanel = kPanelVectors * kLanes;
static_assert(tc_cpu::AttentionPlan::kRowStep % kPanel == 0, "a tile is whole panels");
static_assert(kKeyBlock % 2 == 0, "pairs of keys stay in one block");

// --- Operands as floats ------------------------------------------------------------------------

constexpr int64_t depth(const float*) { return 1; }  // numbers in an Element

inline const float* prepare_keys(const float* key, int64_t, int64_t, float*) { return key; }
inline const float* prepare_values(const float* value, int64_t, int64_t, float*) { return value; }

template <class T>
inline const float* prepare_keys(const T* key, int64_t keys, int64_t D, float* scratch) {
  convert(scratch, key, keys * D);
  return scratch;
}
template <class T>
inline const float* prepare_values(const T* value, int64_t keys, int64_t D, float* scratch) {
  return prepare_keys(value, keys, D, scratch);
}

inline const float* prepare_keys(const Int8Rows& key, int64_t keys, int64_t D, float* scratch) {
  for (int64_t i = 0; i < keys; ++i) {
    const int8_t* codes = key.codes + i * D;
    float* to = scratch + i * D;
    int64_t d = 0;
    for (; d + kLanes <= D; d += kLanes) store(to + d, load(codes + d) * key.scales[i]);
    for (; d < D; ++d) to[d] = codes[d] * key.scales[i];
  }
  return scratch;
}
inline const float* prepare_values(const Int8Rows& value, int64_t keys, int64_t D,
                                   float* scratch) {
  return prepare_keys(value, keys, D, scratch);
}

template <class T>
inline void pack_query(float* to, const T* query, int64_t D) {
  for (int64_t d = 0; d < D; ++d) to[d * kPanel] = load_one(query + d);
}

inline void store_weights(float* weights, Vec first, Vec second) {
  store(weights, first);
  store(weights + kPanel, second);
}

// --- Operands as pairs of bfloat16 -------------------------------------------------------------

#if defined(TC_BF16_DOT)
constexpr int64_t depth(const Pair*) { return 2; }

inline const Pair* prepare_keys(const Bf16* key, int64_t, int64_t, Pair*) {
  return reinterpret_cast<const Pair*>(key);
}

// Pairs of one channel from two keys. After an odd number of keys comes a row of zeros.
inline const Pair* prepare_values(const Bf16* value, int64_t keys, int64_t D, Pair* scratch) {
  for (int64_t i = 0; i < keys; i += 2) {
    const Bf16* low = value + i * D;
    const Bf16* high = low + D;
    Pair* to = scratch + i / 2 * D;
    int64_t d = 0;
    if (i + 1 == keys) {
      for (; d < D; ++d) to[d] = low[d].bits;
    }
    for (; d + kLanes <= D; d += kLanes) {
      store_bits(to + d, load_shorts(low + d) | load_shorts(high + d) << 16);
    }
    for (; d < D; ++d) to[d] = low[d].bits | static_cast<uint32_t>(high[d].bits) << 16;
  }
  return scratch;
}

inline void pack_query(Pair* to, const Bf16* query, int64_t D) {
  for (int64_t d = 0; d < D; d += 2) {
    to[d / 2 * kPanel] = query[d].bits | static_cast<uint32_t>(query[d + 1].bits) << 16;
  }
}

inline void store_weights(Pair* weights, Vec first, Vec second) {
  store_bits(weights, narrow_to_pairs(first, second));
}
#endif

// --- One panel against one block of keys: V of its vectors hold rows ----------------------------

// S[key][row] = scale * K[key] . Q[row], in units where weights are powers of two.
template <int V, class E>
__attribute__((noinline)) void score_block(Count<V>, float* scores, const E* keys,
                                           const E* queries, int64_t n, int64_t steps, float scale,
                                           const Prefetch& prefetch) {
  for (int64_t first = 0; first < n; first += kBlockRows) {
    prefetch.part(first / kBlockRows, ceil_divide(n, kBlockRows)).fetch();
    with_count<kBlockRows>(smaller(kBlockRows, n - first), [&](auto rows) {
      Vec sums[rows.value][V];
      float* to = scores + first * kPanel;
      for_each(sums, [](Vec& sum, int, int) { sum = Vec{}; });
      accumulate(sums, keys + first * steps, steps, 1, queries, kPanel, steps);
      for_each(sums, [=](Vec& sum, int r, int j) {
        store(to + r * kPanel + j * kLanes, sum * scale);
      });
    });
  }
}

// O[d][row] = O[d][row] * correction[row] + sum over keys of V[key][d] P[key][row].
template <int V, class E>
__attribute__((noinline)) void value_block(float* out, const Vec (&correction)[V],
                                           const E* values, const E* weights, int64_t steps,
                                           int64_t D, const Prefetch& prefetch) {
  for (int64_t first = 0; first < D; first += kBlockRows) {
    prefetch.part(first / kBlockRows, ceil_divide(D, kBlockRows)).fetch();
    with_count<kBlockRows>(smaller(kBlockRows, D - first), [&](auto rows) {
      Vec sums[rows.value][V];
      float* to = out + first * kPanel;
      for_each(sums, [&](Vec& sum, int r, int j) {
        sum = load(to + r * kPanel + j * kLanes) * correction[j];
      });
      accumulate(sums, values + first, 1, D, weights, kPanel, steps);
      for_each(sums, [=](Vec& sum, int r, int j) { store(to + r * kPanel + j * kLanes, sum); });
    });
  }
}

// The running softmax of a panel.
struct PanelState {
  Vec maximum[kPanelVectors];
  Vec weight[kPanelVectors];
  IntVec ends[kPanelVectors];  // kv_end of each row
  int64_t longest, shortest;   // of its real rows
  int64_t vectors;             // that hold real rows
};

// Scores become weights exp2(score - maximum), in the form that value_block reads, in place.
// Masked: the block has keys, counted from first_key, that not every row sees.
template <bool Masked, class E, int V>
inline void softmax_block(PanelState& state, Vec (&correction)[V], float* scores, int64_t n,
                          int64_t first_key) {
  for (int j = 0; j < V; ++j) {
    const IntVec visible = state.ends[j] - static_cast<int32_t>(first_key);
    float* column = scores + j * kLanes;
    Vec maximum_now = state.maximum[j];
    for (int64_t i = 0; i < n; ++i) {
      Vec score = load(column + i * kPanel);
      if (Masked) score = static_cast<int32_t>(i) < visible ? score : splat(kLowest);
      maximum_now = maximum(maximum_now, score);
    }
    correction[j] = exp2(state.maximum[j] - maximum_now);
    state.maximum[j] = maximum_now;
    const auto weight_of = [&](int64_t i) {
      const Vec weight = exp2(load(column + i * kPanel) - maximum_now);
      return Masked ? (static_cast<int32_t>(i) < visible ? weight : Vec{}) : weight;
    };
    Vec total = Vec{};
    E* weights = reinterpret_cast<E*>(column);
    int64_t i = 0;
    for (; i + 2 <= n; i += 2, weights += 2 / depth(weights) * kPanel) {
      const Vec first = weight_of(i), second = weight_of(i + 1);
      total += first + second;
      store_weights(weights, first, second);
    }
    if (i < n) {  // the buffer has an even number of rows
      const Vec last = weight_of(i);
      total += last;
      store_weights(weights, last, Vec{});
    }
    state.weight[j] = state.weight[j] * correction[j] + total;
  }
}

template <class T, class Rows>
inline PanelState start_panel(const Task<T, Rows>& task, int64_t first) {
  PanelState state;
  const int64_t rows = smaller(kPanel, task.rows - first);
  state.vectors = ceil_divide(rows, kLanes);
  int32_t ends[kPanel];
  state.longest = state.shortest = task.ends[first];
  for (int64_t row = 0; row < rows; ++row) {
    ends[row] = task.ends[first + row];
    state.longest = larger(state.longest, ends[row]);
    state.shortest = smaller(state.shortest, ends[row]);
  }
  // Lanes without a row follow the panel: they never ask for a mask.
  for (int64_t row = rows; row < kPanel; ++row) ends[row] = static_cast<int32_t>(state.longest);
  for (int j = 0; j < kPanelVectors; ++j) {
    state.maximum[j] = splat(kLowest);
    state.weight[j] = Vec{};
    state.ends[j] = load_bits<IntVec>(ends + j * kLanes);
  }
  return state;
}

// Rows come out of the panels one at a time: transposed, divided by their weight, rounded.
template <class T, class Rows>
inline void finish_panels(const Task<T, Rows>& task, const PanelState* states, const float* out,
                          float* row_D) {
  const int64_t D = task.plan.args.head_dim;
  for (int64_t row = 0; row < task.rows; ++row) {
    const PanelState& state = states[row / kPanel];
    const int64_t lane = row % kPanel;
    const float* column = out + row / kPanel * D * kPanel + lane;
    for (int64_t d = 0; d < D; ++d) row_D[d] = column[d * kPanel];
    task.finish(row, row_D, state.maximum[lane / kLanes][lane % kLanes],
                state.weight[lane / kLanes][lane % kLanes]);
  }
}

// E: the Element in which the products are taken; D is a multiple of its depth.
template <class T, class E, class Rows = const T*>
bool attend_prefill(const tc_cpu::AttentionPlan& plan, int64_t task_index) {
  const Task<T, Rows> task(plan, task_index);
  const int64_t D = plan.args.head_dim;
  const int64_t steps = D / depth(static_cast<E*>(nullptr));
  const int64_t panels = ceil_divide(task.rows, kPanel);
  const int64_t block_floats = padded(kKeyBlock * D);  // operands that need another form
  Scratch scratch(panels * D * kPanel * 2 + kKeyBlock * kPanel + 2 * block_floats + padded(D));
  if (!scratch) return false;
  E* queries = reinterpret_cast<E*>(scratch.take(panels * D * kPanel));
  float* out = scratch.take(panels * D * kPanel);
  float* scores = scratch.take(kKeyBlock * kPanel);
  E* key_scratch = reinterpret_cast<E*>(scratch.take(block_floats));
  E* value_scratch = reinterpret_cast<E*>(scratch.take(block_floats));
  float* row_D = scratch.take(padded(D));

  __builtin_memset(queries, 0, panels * D * kPanel * sizeof(E));
  __builtin_memset(out, 0, panels * D * kPanel * sizeof(float));
  PanelState states[kMostTileRows / kPanel];
  for (int64_t p = 0; p < panels; ++p) states[p] = start_panel(task, p * kPanel);
  for (int64_t row = 0; row < task.rows; ++row) {
    pack_query(queries + row / kPanel * steps * kPanel + row % kPanel, task.query(row), D);
  }

  for (int64_t first = task.key_begin; first < task.key_end; first += kKeyBlock) {
    const int64_t block = smaller(kKeyBlock, task.key_end - first);
    const E* keys = prepare_keys(rows_from(task.key, first, D), block, D, key_scratch);
    const E* values = prepare_values(rows_from(task.value, first, D), block, D, value_scratch);
    // While the panels go over this block, a little at a time is asked for of the next one.
    const int64_t next = first + block, after = smaller(next + kKeyBlock, task.key_end);
    const Prefetch next_keys(stored(task.key) + next * D, stored(task.key) + after * D);
    const Prefetch next_values(stored(task.value) + next * D, stored(task.value) + after * D);
    for (int64_t p = 0; p < panels; ++p) {
      PanelState& state = states[p];
      const int64_t n = smaller(block, state.longest - first);
      if (n <= 0) continue;
      with_count<kPanelVectors>(state.vectors, [&](auto vectors) {
        Vec correction[vectors.value];
        score_block(vectors, scores, keys, queries + p * steps * kPanel, n, steps,
                    plan.args.scale * kLog2E, next_keys.part(p, panels));
        if (first + n > state.shortest) {
          softmax_block<true, E>(state, correction, scores, n, first);
        } else {
          softmax_block<false, E>(state, correction, scores, n, first);
        }
        value_block(out + p * D * kPanel, correction, values, reinterpret_cast<E*>(scores),
                    ceil_divide(n, depth(values)), D, next_values.part(p, panels));
      });
    }
  }
  finish_panels(task, states, out, row_D);
  return true;
}

}  // namespace TC_ISA

#endif  // TC_CPU_ATTENTION_PREFILL_H
