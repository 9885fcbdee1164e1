// SPDX-License-Identifier: Apache-2.0
//
// The dual rotation: sine and cosine of (n + gamma T) inv_freq once for each token, for all heads.

#ifndef TC_CPU_ROTATE_H
#define TC_CPU_ROTATE_H

#include "isa_kernels.h"
#include "simd.h"
#include "tile_math.h"

namespace TC_ISA {

// Sines and cosines of R angles to about 1e-7, up to angles of 2^30 or so. The angle is reduced in
// double, since a position of 10^5 leaves no digits of pi / 2 for float. The loop is written for
// the compiler to vectorise: no branches.
inline void sines_and_cosines(const float* angles_R, float* sines_R, float* cosines_R, int64_t R) {
  for (int64_t i = 0; i < R; ++i) {
    const double angle = angles_R[i];
    const double shifted = angle * 0.63661977236758134 + 0x1.8p52;  // 2 / pi, rounded to integer
    const int64_t quadrant = bit_cast<int64_t>(shifted);
    const double turns = shifted - 0x1.8p52;
    const float x = static_cast<float>(angle - turns * 1.5707963267948966);
    const float x2 = x * x;
    // Taylor's series on [-pi/4, pi/4].
    float sine = -1.9841270e-4f + x2 * 2.7557319e-6f;
    sine = x + x * x2 * (-1.6666667e-1f + x2 * (8.3333333e-3f + x2 * sine));
    float cosine = 2.4801587e-5f - x2 * 2.7557319e-7f;
    cosine = 4.1666667e-2f + x2 * (-1.3888889e-3f + x2 * cosine);
    cosine = 1.0f + x2 * (-0.5f + x2 * cosine);
    const bool swapped = quadrant & 1;
    const float first = swapped ? cosine : sine;
    const float second = swapped ? sine : cosine;
    sines_R[i] = quadrant & 2 ? -first : first;
    cosines_R[i] = (quadrant + 1) & 2 ? -second : second;
  }
}

template <class T>
inline void rotate_head(T* y_D, const T* x_D, const float* sines_R, const float* cosines_R,
                        int64_t R, int64_t D) {
  int64_t i = 0;
  for (; i + kLanes <= R; i += kLanes) {
    const Vec first = load(x_D + i), second = load(x_D + R + i);
    const Vec sine = load(sines_R + i), cosine = load(cosines_R + i);
    store(y_D + i, first * cosine - second * sine);
    store(y_D + R + i, second * cosine + first * sine);
  }
  for (; i < R; ++i) {
    const float first = load_one(x_D + i), second = load_one(x_D + R + i);
    store_one(y_D + i, first * cosines_R[i] - second * sines_R[i]);
    store_one(y_D + R + i, second * cosines_R[i] + first * sines_R[i]);
  }
  if (y_D != x_D) __builtin_memcpy(y_D + 2 * R, x_D + 2 * R, (D - 2 * R) * sizeof(T));
}

// One task: some tokens of one batch row, all heads.
template <class T>
bool rotate(const tc_cpu::RopePlan& plan, int64_t task) {
  const tc_dual_rope_args& a = plan.args;
  const int64_t R = a.rotary_half, D = a.head_dim;
  Scratch scratch(3 * padded(R));
  if (!scratch) return false;
  float* angles = scratch.take(padded(R));
  float* sines = scratch.take(padded(R));
  float* cosines = scratch.take(padded(R));
  const int64_t batch = task / plan.tasks_a_batch;
  const int64_t first = task % plan.tasks_a_batch * plan.tokens_a_task;
  const int64_t end = smaller(a.tokens, first + plan.tokens_a_task);
  for (int64_t token = first; token < end; ++token) {
    const int64_t at = batch * a.tokens + token;
    // Product and sum are each rounded to float, as in PyTorch. A fused multiply-add would turn far
    // positions by another angle; volatile keeps the compiler from making one.
    const volatile float temporal = a.gamma * static_cast<float>(a.temporal_ids[at]);
    const float position = static_cast<float>(a.position_ids[at]) + temporal;
    for (int64_t i = 0; i < R; ++i) angles[i] = position * a.inv_freq[i];
    sines_and_cosines(angles, sines, cosines, R);
    for (int64_t i = 0; i < R; ++i) {
      sines[i] *= a.attention_factor;
      cosines[i] *= a.attention_factor;
    }
    for (int64_t head = 0; head < a.heads; ++head) {
      const int64_t offset = ((batch * a.heads + head) * a.tokens + token) * D;
      rotate_head(static_cast<T*>(a.y) + offset, static_cast<const T*>(a.x) + offset, sines,
                  cosines, R, D);
    }
  }
  return true;
}

}  // namespace TC_ISA

#endif  // TC_CPU_ROTATE_H
