// SPDX-License-Identifier: Apache-2.0
//
// Between the entry points (tc_cpu.cpp) and the code compiled for each instruction set (isa_*.cpp):
// what is shared out among the threads, and the table of functions that an instruction set gives.

#ifndef TC_CPU_ISA_KERNELS_H
#define TC_CPU_ISA_KERNELS_H

#include "tc_kernels.h"

namespace tc_cpu {

// Attention is cut into tasks, one a (batch, K/V head, tile of query rows, part of the keys). The
// query heads that share a K/V head are rows of one tile, so that they share its stream of keys and
// values: row = token * group + head in group. The cut depends on shapes and kv_end only, never on
// the number of threads, so the result does not either.
struct AttentionPlan {
  tc_attention_args args;
  // Of a cache in int8, the scales of its rows [B, K, C]; null of one in the type of q.
  const float* key_scales;
  const float* value_scales;
  int64_t group;         // query heads that share a K/V head
  int64_t rows;          // tokens * group
  int64_t tile_rows;     // rows of a tile, a multiple of kRowStep
  int64_t tiles;
  int64_t splits;        // parts of the keys; above one, each leaves a partial result
  int64_t keys_a_split;  // a multiple of kKeyBlock
  float* partials;       // [batch * kv_heads * tiles * splits][partial_floats()]

  // Of a tile: sums weighted by exp2(score - maximum) [rows, D], maxima and weights [rows].
  int64_t partial_rows() const { return rows < tile_rows ? rows : tile_rows; }
  int64_t partial_floats() const { return partial_rows() * (args.head_dim + 2); }

  static constexpr int64_t kMostTileRows = 256;
  static constexpr int64_t kRowStep = 32;
  static constexpr int64_t kKeyBlock = 96;
};

struct RopePlan {
  tc_dual_rope_args args;
  int64_t tokens_a_task;
  int64_t tasks_a_batch;
};

struct IsaKernels {
  // Each returns false when memory ran out.
  bool (*attend)(const AttentionPlan& plan, int64_t task);
  bool (*combine)(const AttentionPlan& plan, int64_t tile);  // of all tiles of all heads
  bool (*rotate)(const RopePlan& plan, int64_t task);
  // One row of D numbers in int8, with its scale.
  void (*quantize)(tc_dtype dtype, const void* row_D, int64_t D, int8_t* codes_D, float* scale);
};

extern const IsaKernels kPortable;
#if defined(__x86_64__)
extern const IsaKernels kAvx2;
extern const IsaKernels kAvx512;
extern const IsaKernels kAvx512Bf16;
extern const IsaKernels kAmx;
#endif

}  // namespace tc_cpu

#endif  // TC_CPU_ISA_KERNELS_H
