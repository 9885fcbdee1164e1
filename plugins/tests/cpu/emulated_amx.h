// SPDX-License-Identifier: Apache-2.0
//
// The intrinsics of Intel's matrix unit (AMX) that the CPU kernels use, in plain C++, so that their
// code runs on every processor. Written from the instructions' description in Intel's Software
// Developer's Manual, volume 2. What the processor would refuse ends the program.

#ifndef TC_EMULATED_AMX_H
#define TC_EMULATED_AMX_H

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated_amx {

constexpr int kTiles = 8, kMostRows = 16, kMostBytes = 64;

struct Tile {
  int rows = 0, row_bytes = 0;
  unsigned char data[kMostRows][kMostBytes];
};

struct Unit {
  bool configured = false;
  Tile tiles[kTiles];

  Tile& operator[](int tile) {
    require(configured, "a tile is used before LDTILECFG");
    require(tile >= 0 && tile < kTiles, "there is no such tile");
    require(tiles[tile].rows > 0, "a tile is used that the configuration left out");
    return tiles[tile];
  }

  static void require(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "emulated AMX: %s\n", what);
    std::abort();
  }

  // A thread that ends with its tiles in use makes every later switch to it dearer.
  ~Unit() { require(!configured, "a thread ended without TILERELEASE"); }
};

inline thread_local Unit unit;

// Bytes 0: palette, 1: first row, 16 on: bytes in a row, two each, 48 on: rows, one each.
inline void configure(const void* from) {
  const unsigned char* bytes = static_cast<const unsigned char*>(from);
  Unit::require(bytes[0] == 1 && bytes[1] == 0, "LDTILECFG of another palette or first row");
  for (int i = 2; i < 16; ++i) Unit::require(bytes[i] == 0, "LDTILECFG: a reserved byte is set");
  for (int tile = 0; tile < 16; ++tile) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * tile, 2);
    const int rows = bytes[48 + tile];
    Unit::require(tile < kTiles || (rows == 0 && row_bytes == 0), "LDTILECFG of a ninth tile");
    Unit::require(rows <= kMostRows && row_bytes <= kMostBytes && (rows == 0) == (row_bytes == 0),
                  "LDTILECFG of an impossible size");
    if (tile < kTiles) unit.tiles[tile] = Tile{rows, row_bytes, {}};
  }
  unit.configured = true;
}

inline void release() { unit = Unit{}; }

inline void zero(int tile) { std::memset(unit[tile].data, 0, sizeof unit[tile].data); }

inline void load(int tile, const void* from, int64_t stride) {
  Tile& to = unit[tile];
  for (int row = 0; row < to.rows; ++row) {
    std::memcpy(to.data[row], static_cast<const char*>(from) + row * stride, to.row_bytes);
  }
}

inline void save(int tile, void* to, int64_t stride) {
  const Tile& from = unit[tile];
  for (int row = 0; row < from.rows; ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, from.data[row], from.row_bytes);
  }
}

inline float number(const unsigned char* row, int index) {  // of bfloat16
  uint16_t bits;
  std::memcpy(&bits, row + 2 * index, 2);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float result;
  std::memcpy(&result, &wide, 4);
  return result;
}

// To the nearest, ties to even; numbers below the normal ones become zero.
inline uint16_t to_bf16(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  if ((bits & 0x7f800000) == 0) return static_cast<uint16_t>(bits >> 16 & 0x8000);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// TDPBF16PS: C[m][n] += A[m][2k] B[k][2n] + A[m][2k + 1] B[k][2n + 1] for each k.
inline void multiply(int sum, int left, int right) {
  Tile &c = unit[sum], &a = unit[left], &b = unit[right];
  Unit::require(sum != left && sum != right && left != right, "TDPBF16PS of one tile twice");
  Unit::require(c.rows == a.rows && c.row_bytes == b.row_bytes && a.row_bytes == 4 * b.rows,
                "TDPBF16PS of tiles that do not fit");
  for (int m = 0; m < c.rows; ++m) {
    for (int n = 0; n < c.row_bytes / 4; ++n) {
      float total;
      std::memcpy(&total, c.data[m] + 4 * n, 4);
      for (int k = 0; k < b.rows; ++k) {
        total += number(a.data[m], 2 * k) * number(b.data[k], 2 * n);
        total += number(a.data[m], 2 * k + 1) * number(b.data[k], 2 * n + 1);
      }
      std::memcpy(c.data[m] + 4 * n, &total, 4);
    }
  }
}

}  // namespace emulated_amx

#define _tile_loadconfig(from) emulated_amx::configure(from)
#define _tile_release() emulated_amx::release()
#define _tile_zero(tile) emulated_amx::zero(tile)
#define _tile_loadd(tile, from, stride) emulated_amx::load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_amx::save(tile, to, stride)
#define _tile_dpbf16ps(sum, left, right) emulated_amx::multiply(sum, left, right)

// What processors with the matrix unit have too: VDPBF16PS, VCVTNE2PS2BF16, VPERMW and VPERMT2D.
typedef float __m512 __attribute__((vector_size(64)));
typedef uint32_t __m512bh __attribute__((vector_size(64)));
typedef uint32_t __m512i __attribute__((vector_size(64)));

inline __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  for (int lane = 0; lane < 16; ++lane) {
    unsigned char left[4], right[4];
    const uint32_t left_bits = a[lane], right_bits = b[lane];
    std::memcpy(left, &left_bits, 4);
    std::memcpy(right, &right_bits, 4);
    for (int i = 0; i < 2; ++i) {
      sum[lane] += emulated_amx::number(left, i) * emulated_amx::number(right, i);
    }
  }
  return sum;
}

inline __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
  uint16_t numbers[32];
  for (int i = 0; i < 32; ++i) numbers[i] = emulated_amx::to_bf16(i < 16 ? low[i] : high[i - 16]);
  __m512bh result;
  std::memcpy(&result, numbers, sizeof result);
  return result;
}

inline __m512i _mm512_permutexvar_epi16(__m512i lanes, __m512i a) {
  uint16_t from[32], numbers[32], chosen[32];
  std::memcpy(from, &lanes, sizeof from);
  std::memcpy(numbers, &a, sizeof numbers);
  for (int i = 0; i < 32; ++i) chosen[i] = numbers[from[i] & 31];
  __m512i result;
  std::memcpy(&result, chosen, sizeof result);
  return result;
}

inline __m512i _mm512_permutex2var_epi32(__m512i a, __m512i lanes, __m512i b) {
  __m512i result;
  for (int lane = 0; lane < 16; ++lane) {
    const uint32_t from = lanes[lane];
    result[lane] = from & 16 ? b[from & 15] : a[from & 15];
  }
  return result;
}

#endif  // TC_EMULATED_AMX_H
