// SPDX-License-Identifier: Apache-2.0
//
// How the cache comes to the warps: as tiles of `Keys` rows that keys and values pass through in
// turn, K0 V0 K1 V1 ... While one is worked on, those after it are on their way. There is a ring
// for a cache in the type of q, and one for a cache in int8; the tiles of both are in that type.
//
// A ring begins at row `first_row` of the cache, counted over all heads and batches, and ends
// before key `end` from there; `count` tiles come in all, keys and values.

#ifndef TC_TILE_RING_CUH
#define TC_TILE_RING_CUH

#include "attention_tile.cuh"

namespace tc {

// The ring for a cache in the type of q: `Stages` tiles, which are copied as they are.
template <class T, class Stored, int D, int Keys, int Threads, int Stages>
struct TileRing {
  static_assert(std::is_same_v<T, Stored>, "a cache of another type has a ring of its own");
  static constexpr int kTileSize = Keys * D;
  static constexpr int kBytes = Stages * kTileSize * static_cast<int>(sizeof(T));

  T* tiles;
  const T* keys;
  const T* values;
  int end;
  int count;
  int tile = 0;  // index of the next one

  __device__ __forceinline__ TileRing(T* memory, const AttentionParams<T, T>& p, int64_t first_row,
                                      int end, int count)
      : tiles(memory),
        keys(p.keys + first_row * D),
        values(p.values + first_row * D),
        end(end),
        count(count) {}

  __device__ __forceinline__ void start_load(int index) {
    if (index < count) {
      const T* source = index % 2 == 0 ? keys : values;
      const int first = index / 2 * Keys;
      load_rows<D, Keys, Threads>(tiles + index % Stages * kTileSize, end - first, [&](int row) {
        return source + int64_t{first + row} * D;
      });
    }
    commit_copies();  // an empty group, too: waiting counts groups
  }

  // The first `Stages` - 1 loads; what was copied before them lands with the first.
  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < Stages - 1; ++i) start_load(i);
  }

  // Wait for the next tile. The barrier says two things: all threads' copies of it have landed,
  // and no thread still reads the tile whose place the load that starts here takes.
  __device__ __forceinline__ const T* next() {
    wait_copies<Stages - 2>();
    __syncthreads();
    start_load(tile + Stages - 1);
    return tiles + tile++ % Stages * kTileSize;
  }
};

// The code in byte `i` of a word, as a float. 2^23 + 128 + code has code + 128 for its last byte:
// so it is made by its bits, which is exact, and spares the slow unit that converts integers.
__device__ __forceinline__ float code_at(std::uint32_t word, int i) {
  const std::uint32_t shifted = ((word ^ 0x80808080u) >> (8 * i)) & 0xffu;
  return bits_float(0x4b000000u | shifted) - 8388736.0f;
}

// The ring for a cache in int8: one tile of numbers, `Stages` tiles of codes, and their scales.
// When a tile is due, the threads make numbers of its codes: code times scale, rounded to T once.
template <class T, int D, int Keys, int Threads, int Stages>
struct TileRing<T, int8_t, D, Keys, Threads, Stages> {
  using Words = Vector<std::uint32_t, 4>;  // 16 codes, or 8 numbers
  static constexpr int kChunks = D / 16;   // of a row, 16 codes each
  static constexpr int kTileChunks = Keys * kChunks;
  static constexpr int kBytes = Keys * D * static_cast<int>(sizeof(T)) + Stages * Keys * (D + 4);
  static_assert(Keys <= Threads, "a thread copies one scale at most");

  T* numbers;  // [Keys, D]; after them codes [Stages, Keys, D] and scales [Stages, Keys]
  const int8_t* keys;
  const int8_t* values;
  const float* key_scales;
  const float* value_scales;
  int end;
  int count;
  int tile = 0;

  __device__ __forceinline__ TileRing(T* memory, const AttentionParams<T, int8_t>& p,
                                      int64_t first_row, int end, int count)
      : numbers(memory),
        keys(p.keys + first_row * D),
        values(p.values + first_row * D),
        key_scales(p.key_scales + first_row),
        value_scales(p.value_scales + first_row),
        end(end),
        count(count) {}

  __device__ __forceinline__ Words* codes(int index) const {
    return reinterpret_cast<Words*>(numbers + Keys * D) + index % Stages * kTileChunks;
  }
  __device__ __forceinline__ float* scales(int index) const {
    Words* all_codes = reinterpret_cast<Words*>(numbers + Keys * D);
    return reinterpret_cast<float*>(all_codes + Stages * kTileChunks) + index % Stages * Keys;
  }

  __device__ __forceinline__ void start_load(int index) {
    if (index < count) {
      const int first = index / 2 * Keys, thread = threadIdx.x;
      const int8_t* source = (index % 2 == 0 ? keys : values) + int64_t{first} * D;
      const float* source_scales = (index % 2 == 0 ? key_scales : value_scales) + first;
#pragma unroll
      for (int chunk = thread; chunk < kTileChunks; chunk += Threads) {
        const bool valid = chunk / kChunks < end - first;
        copy_async_16(codes(index) + chunk, source + (valid ? chunk * 16 : 0), valid);
      }
      if (thread < Keys) {
        const bool valid = thread < end - first;
        copy_async_4(scales(index) + thread, source_scales + (valid ? thread : 0), valid);
      }
    }
    commit_copies();
  }

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < Stages; ++i) start_load(i);
  }

  // Not unrolled: several chunks at once would take registers that the sums of attention need.
  __device__ __forceinline__ void make_numbers() const {
#pragma unroll 1
    for (int chunk = threadIdx.x; chunk < kTileChunks; chunk += Threads) {
      const Words from = load_shared(codes(tile) + chunk);
      const int row = chunk / kChunks;
      const float scale = load_shared(scales(tile) + row);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Words to;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const std::uint32_t word = from.values[half * 2 + i / 2];
          const int byte = i % 2 * 2;
          to.values[i] = pack<T>(code_at(word, byte) * scale, code_at(word, byte + 1) * scale);
        }
        T* place = chunk_at<D>(numbers, row, chunk % kChunks * 2 + half);
        store_shared(reinterpret_cast<Words*>(place), to);
      }
    }
  }

  // Wait for the next tile. The load that starts here takes the place of its codes.
  __device__ __forceinline__ const T* next() {
    wait_copies<Stages - 1>();
    __syncthreads();  // all copies have landed; no thread still reads the numbers before these
    make_numbers();
    __syncthreads();  // all threads have made theirs
    start_load(tile++ + Stages);
    return numbers;
  }
};

}  // namespace tc

#endif  // TC_TILE_RING_CUH
