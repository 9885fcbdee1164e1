// SPDX-License-Identifier: Apache-2.0
//
// The emulator's mma and ldmatrix against an independent source: the layouts that CuTe, of
// NVIDIA's CUTLASS, gives for the same instructions.

#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>

// CUDA's headers define what the emulator spells in its own way.
#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__

#include "check.h"
#include "device.cuh"

namespace {

using tc::BFloat16;
using MmaTraits = cute::MMA_Traits<cute::SM80_16x8x16_F32BF16BF16F32_TN>;

constexpr int kM = 16, kN = 8, kK = 16;

struct Nothing {};

// Column-major, as CuTe counts: element (m, k) of a at m + M k.
float a[kM * kK], b[kN * kK], c[kM * kN];
std::uint16_t rows[32][8];
std::uint32_t loaded[2][32][4];

void multiply_by_layout(Nothing) {
  const int lane = threadIdx.x;
  const MmaTraits::ALayout layout_a;
  const MmaTraits::BLayout layout_b;
  const MmaTraits::CLayout layout_c;
  std::uint32_t fragment_a[4], fragment_b[2];
  for (int i = 0; i < 4; ++i) {
    fragment_a[i] = tc::pack<BFloat16>(a[layout_a(lane, 2 * i)], a[layout_a(lane, 2 * i + 1)]);
  }
  for (int i = 0; i < 2; ++i) {
    fragment_b[i] = tc::pack<BFloat16>(b[layout_b(lane, 2 * i)], b[layout_b(lane, 2 * i + 1)]);
  }
  float fragment_c[4] = {};
  tc::mma<BFloat16>(fragment_c, fragment_a, fragment_b[0], fragment_b[1]);
  for (int i = 0; i < 4; ++i) c[layout_c(lane, i)] = fragment_c[i];
}

void load_all(Nothing) {
  const int lane = threadIdx.x;
  auto* shared = reinterpret_cast<tc::Vector<std::uint16_t, 8>*>(tc::dynamic_shared_memory());
  tc::Vector<std::uint16_t, 8> row;
  for (int i = 0; i < 8; ++i) row.values[i] = rows[lane][i];
  tc::store_shared(shared + lane, row);
  __syncthreads();
  tc::load_matrix_x4(loaded[0][lane], shared + lane);
  tc::load_matrix_x4_transposed(loaded[1][lane], shared + lane);
}

void check_mma() {
  std::mt19937 random(1);
  for (float& value : a) value = static_cast<float>(int(random() % 15) - 7);
  for (float& value : b) value = static_cast<float>(int(random() % 15) - 7);
  went_well(tc::launch(&multiply_by_layout, 1, 32, 16, nullptr, Nothing{}), "mma");
  for (int m = 0; m < kM; ++m) {
    for (int n = 0; n < kN; ++n) {
      float expected = 0.0f;
      for (int k = 0; k < kK; ++k) expected += a[m + kM * k] * b[n + kN * k];
      if (c[m + kM * n] != expected) {
        fail("mma: c[%d, %d] is %g, not %g", m, n, c[m + kM * n], expected);
      }
    }
  }
}

// CuTe's layouts of a copy map (thread, bit) to a common numbering of all bits.
template <class Traits>
void check_load(const char* name, const std::uint32_t (&registers)[32][4]) {
  const typename Traits::SrcLayout source;
  const typename Traits::DstLayout destination;
  int bit_of[32 * 128];
  for (int lane = 0; lane < 32; ++lane) {
    for (int bit = 0; bit < 128; ++bit) {
      bit_of[source(lane, bit)] = rows[lane][bit / 16] >> bit % 16 & 1;
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int bit = 0; bit < 128; ++bit) {
      const int got = registers[lane][bit / 32] >> bit % 32 & 1;
      if (got != bit_of[destination(lane, bit)]) fail("%s: lane %d, bit %d", name, lane, bit);
    }
  }
}

}  // namespace

int main() {
  check_mma();
  std::mt19937 random(2);
  for (auto& row : rows) {
    for (auto& value : row) value = static_cast<std::uint16_t>(random());
  }
  went_well(tc::launch(&load_all, 1, 32, 512, nullptr, Nothing{}), "ldmatrix");
  check_load<cute::Copy_Traits<cute::SM75_U32x4_LDSM_N>>("ldmatrix", loaded[0]);
  check_load<cute::Copy_Traits<cute::SM75_U16x8_LDSM_T>>("ldmatrix.trans", loaded[1]);
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
