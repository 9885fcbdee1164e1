// SPDX-License-Identifier: Apache-2.0
//
// Attention of many query rows in bfloat16 on Intel's matrix unit (AMX).
//
// The unit has eight tiles of 16 rows of 64 bytes. TDPBF16PS adds to a tile of floats C[16][16] the
// product of A[16][32] and B[32][16] in bfloat16, where B lies in pairs of rows. The panels of
// attention_prefill.h fit it as they are: queries and weights lie in such pairs, keys are A, and
// only the values have to be turned round. So this file is a form of operands, no other algorithm.
//
// A product here is of 32 x 32 x 32: four tiles of C, two of A, two of B. Weights and values that a
// block of keys lacks of a multiple of 32 are zeros.

#ifndef TC_CPU_ATTENTION_AMX_H
#define TC_CPU_ATTENTION_AMX_H

#include "attention_prefill.h"

namespace TC_ISA {

constexpr int64_t kTile = 16;      // rows of a tile, and elements in a row
constexpr int64_t kTileStep = 32;  // rows, columns and depth of one product
static_assert(kPanel == kTileStep, "a panel is the columns of a product");
static_assert(kKeyBlock % kTileStep == 0, "a full block of keys needs no zeros");

// An Element: a pair of bfloat16 numbers, multiplied by the matrix unit.
struct TilePair {
  uint32_t bits;
};

constexpr int64_t depth(const TilePair*) { return 2; }

inline int64_t whole_steps(int64_t n) { return ceil_divide(n, kTileStep) * kTileStep; }

// What the processor reads to set up its tiles: here all eight, of 16 rows of 64 bytes.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {kTile, kTile, kTile, kTile, kTile, kTile, kTile, kTile};
};
static_assert(sizeof(TileConfiguration) == 64, "as the processor has it");
constexpr TileConfiguration kAllTiles{};

// This thread's tiles, for as long as this lives.
class Tiles {
 public:
  Tiles() { _tile_loadconfig(&kAllTiles); }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// The compiler does not know that the unit reads and writes memory.
inline void memory_is_touched() { __asm__ volatile("" ::: "memory"); }

// C = A B, or with Add C += A B: C[32][kPanel], A[32][pairs], whose rows are a_row pairs apart, and
// B[pairs][kPanel].
template <bool Add>
__attribute__((noinline)) void multiply_tiles(float* c, const TilePair* a, int64_t a_row,
                                              const TilePair* b, int64_t pairs) {
  constexpr int64_t kRowBytes = kPanel * 4;
  float* c_low = c + kTile * kPanel;
  memory_is_touched();
  if (Add) {
    _tile_loadd(0, c, kRowBytes);
    _tile_loadd(1, c + kTile, kRowBytes);
    _tile_loadd(2, c_low, kRowBytes);
    _tile_loadd(3, c_low + kTile, kRowBytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t pair = 0; pair < pairs; pair += kTile) {
    _tile_loadd(4, a + pair, a_row * 4);
    _tile_loadd(5, a + kTile * a_row + pair, a_row * 4);
    _tile_loadd(6, b + pair * kPanel, kRowBytes);
    _tile_loadd(7, b + pair * kPanel + kTile, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, kRowBytes);
  _tile_stored(1, c + kTile, kRowBytes);
  _tile_stored(2, c_low, kRowBytes);
  _tile_stored(3, c_low + kTile, kRowBytes);
  memory_is_touched();
}

// --- Operands ----------------------------------------------------------------------------------

// Keys as they lie in the cache. A block that is no multiple of the step is copied, so that nothing
// past the cache is read; what follows it gives scores that nobody reads.
inline const TilePair* prepare_keys(const Bf16* key, int64_t keys, int64_t D, TilePair* scratch) {
  if (keys % kTileStep == 0) return reinterpret_cast<const TilePair*>(key);
  __builtin_memcpy(scratch, key, keys * D * sizeof(Bf16));
  return scratch;
}

// Which lanes of two rows, one after the other, come into each of them when blocks of Size lanes
// beside the diagonal change places.
template <int Size>
struct Exchange {
  uint32_t upper[kLanes] = {}, lower[kLanes] = {};
  constexpr Exchange() {
    for (int lane = 0; lane < kLanes; ++lane) {
      upper[lane] = lane & Size ? kLanes + lane - Size : lane;
      lower[lane] = lane & Size ? kLanes + lane : lane + Size;
    }
  }
};

inline BitVec lanes_of(const BitVec& first, const BitVec& second, const uint32_t* lanes) {
  return bit_cast<BitVec>(_mm512_permutex2var_epi32(
      bit_cast<__m512i>(first), load_bits<__m512i>(lanes), bit_cast<__m512i>(second)));
}

// Turns a square round: at each step, its blocks beside the diagonal change places.
template <int Size>
inline __attribute__((always_inline)) void transpose(BitVec (&rows)[kLanes]) {
  static constexpr Exchange<Size> kExchange{};
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) {
    if (r & Size) continue;
    const BitVec upper = rows[r], lower = rows[r + Size];
    rows[r] = lanes_of(upper, lower, kExchange.upper);
    rows[r + Size] = lanes_of(upper, lower, kExchange.lower);
  }
  if constexpr (Size > 1) transpose<Size / 2>(rows);
}

// Values as A: [channel][pair of keys].
inline const TilePair* prepare_values(const Bf16* value, int64_t keys, int64_t D,
                                      TilePair* scratch) {
  for (int64_t first = 0; first < whole_steps(keys); first += kTileStep) {
    for (int64_t d = 0; d < D; d += kLanes) {
      BitVec pairs[kLanes];
      for (int64_t p = 0; p < kLanes; ++p) {
        const int64_t key = first + 2 * p;
        const BitVec zeros = {};
        const BitVec low = key < keys ? load_shorts(value + key * D + d) : zeros;
        const BitVec high = key + 1 < keys ? load_shorts(value + (key + 1) * D + d) : zeros;
        pairs[p] = low | high << 16;
      }
      transpose<kLanes / 2>(pairs);
      TilePair* to = scratch + d * kKeyBlock / 2 + first / 2;
      for (int64_t i = 0; i < kLanes; ++i) store_bits(to + i * kKeyBlock / 2, pairs[i]);
    }
  }
  return scratch;
}

inline void pack_query(TilePair* to, const Bf16* query, int64_t D) {
  pack_query(reinterpret_cast<Pair*>(to), query, D);
}

inline void store_weights(TilePair* weights, Vec first, Vec second) {
  store_weights(reinterpret_cast<Pair*>(weights), first, second);
}

// --- One panel against one block of keys -------------------------------------------------------
//
// The unit takes whole panels. What it makes of a vector without rows, nobody reads.

// S[key][row] = scale * K[key] . Q[row], in units where weights are powers of two.
template <int V>
inline void score_block(Count<V>, float* scores, const TilePair* keys, const TilePair* queries,
                        int64_t n, int64_t steps, float scale, const Prefetch& prefetch) {
  for (int64_t first = 0; first < n; first += kTileStep) {
    prefetch.part(first / kTileStep, ceil_divide(n, kTileStep)).fetch();
    multiply_tiles<false>(scores + first * kPanel, keys + first * steps, steps, queries, steps);
  }
  for (int64_t i = 0; i < n * kPanel; i += kLanes) store(scores + i, load(scores + i) * scale);
}

// O[d][row] = O[d][row] * correction[row] + sum over keys of V[key][d] P[key][row].
template <int V>
inline void value_block(float* out, const Vec (&correction)[V], const TilePair* values,
                        TilePair* weights, int64_t steps, int64_t D, const Prefetch& prefetch) {
  const int64_t pairs = whole_steps(2 * steps) / 2;
  __builtin_memset(weights + steps * kPanel, 0, (pairs - steps) * kPanel * sizeof(TilePair));
  for (int64_t d = 0; d < D; ++d) {
    for (int j = 0; j < V; ++j) {
      float* to = out + d * kPanel + j * kLanes;
      store(to, load(to) * correction[j]);
    }
  }
  for (int64_t d = 0; d < D; d += kTileStep) {
    prefetch.part(d / kTileStep, D / kTileStep).fetch();
    multiply_tiles<true>(out + d * kPanel, values + d * kKeyBlock / 2, kKeyBlock / 2, weights,
                         pairs);
  }
}

}  // namespace TC_ISA

#endif  // TC_CPU_ATTENTION_AMX_H
