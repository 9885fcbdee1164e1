// SPDX-License-Identifier: Apache-2.0
//
// TcDualRope and its form fused with the cache write, on the emulator, against float64 loops.

#include <algorithm>
#include <string>

#include "check.h"
#include "tc_kernels_fused.h"

namespace {

struct Case {
  std::string name;
  tc_dtype dtype;
  int batch, q_heads, kv_heads, tokens, cache_rows, head_dim, half;
  float gamma, attention_factor;
  int64_t first_position;
};

struct Input {
  std::vector<int64_t> position_ids, temporal_ids, slots;
  std::vector<float> inv_freq;
  Tensor q, k, v;
};

Input make_input(const Case& c, std::mt19937& random) {
  const std::size_t rows = std::size_t(c.batch) * c.tokens;
  Input in{std::vector<int64_t>(rows), std::vector<int64_t>(rows), std::vector<int64_t>(rows),
           std::vector<float>(c.half), Tensor(c.dtype, rows * c.q_heads * c.head_dim),
           Tensor(c.dtype, rows * c.kv_heads * c.head_dim),
           Tensor(c.dtype, rows * c.kv_heads * c.head_dim)};
  for (std::size_t i = 0; i < rows; ++i) {
    const int s = static_cast<int>(i) % c.tokens;
    const bool padding = s == 0 && i > 0;
    in.position_ids[i] = padding ? -1 : c.first_position + s;
    in.temporal_ids[i] = padding ? -1 : c.first_position / 3 + s / 4;
    in.slots[i] = padding ? -1 : c.cache_rows - c.tokens + s;
  }
  for (int i = 0; i < c.half; ++i) {
    in.inv_freq[i] = static_cast<float>(std::pow(10000.0, -double(i) / c.half));
  }
  for (Tensor* tensor : {&in.q, &in.k, &in.v}) tensor->randomise(random);
  return in;
}

// One rotated row in float64, from angles that are float32 after each operation.
std::vector<double> rotate(const Case& c, const Input& in, const Tensor& x, std::size_t row,
                           std::size_t token) {
  std::vector<double> y(c.head_dim);
  for (int d = 0; d < c.head_dim; ++d) y[d] = x.get(row * c.head_dim + d);
  const volatile float turned = c.gamma * static_cast<float>(in.temporal_ids[token]);
  const volatile float position = static_cast<float>(in.position_ids[token]) + turned;
  for (int i = 0; i < c.half; ++i) {
    const volatile float angle = position * in.inv_freq[i];
    const double cosine = std::cos(double(angle)) * c.attention_factor;
    const double sine = std::sin(double(angle)) * c.attention_factor;
    const double a = y[i], b = y[i + c.half];
    y[i] = a * cosine - b * sine;
    y[i + c.half] = b * cosine + a * sine;
  }
  return y;
}

// Heads are compared row by row; `row_of(head, s)` says where a head's token stands in `got`, -1
// where it is nowhere.
template <class RowOf>
void compare(const Case& c, const char* what, const Input& in, const Tensor& x, int heads,
             const Tensor& got, RowOf row_of) {
  double worst = 0.0;
  for (int head = 0; head < c.batch * heads; ++head) {
    for (int s = 0; s < c.tokens; ++s) {
      const int64_t row = row_of(head, s);
      if (row < 0) continue;
      const std::size_t token = std::size_t(head / heads) * c.tokens + s;
      const auto expected = rotate(c, in, x, std::size_t(head) * c.tokens + s, token);
      for (int d = 0; d < c.head_dim; ++d) {
        // One rounding to the type; sines and products in float32, of channels up to 6.
        const double tolerance = 1.01 * unit_roundoff(c.dtype) * std::abs(expected[d]) + 4e-6;
        const double error = std::abs(got.get(row * c.head_dim + d) - expected[d]);
        worst = error / tolerance <= worst ? worst : error / tolerance;
      }
    }
  }
  std::printf("%-48s %-6s error %.2f of the tolerance\n", c.name.c_str(), what, worst);
  if (!(worst <= 1.0)) fail("%s, %s: off by %g tolerances", c.name.c_str(), what, worst);
}

void run_plain(const Case& c, const Input& in, bool in_place) {
  for (const Schedule& schedule : kSchedules) {
    tc_emulator_set_schedule(schedule.order, schedule.seed);
    Tensor x = in.q, y(c.dtype, in.q.size());
    tc_dual_rope_args args{c.dtype, c.batch, c.q_heads, c.tokens, c.head_dim, c.half, c.gamma,
                           c.attention_factor, x.data(), in.position_ids.data(),
                           in.temporal_ids.data(), in.inv_freq.data(),
                           in_place ? x.data() : y.data()};
    tc_emulator_forget_memory();
    x.declare(in_place);
    y.declare(!in_place);
    declare(in.position_ids);
    declare(in.temporal_ids);
    declare(in.inv_freq);
    const tc_status status = tc_cuda_dual_rope(&args, nullptr);
    tc_emulator_forget_memory();
    if (!went_well(status, c.name.c_str())) return;
    compare(c, "plain", in, in.q, c.q_heads, in_place ? x : y,
            [&](int head, int s) { return int64_t{head} * c.tokens + s; });
  }
}

void run_fused(const Case& c, const Input& in) {
  const std::size_t elements = std::size_t(c.batch) * c.kv_heads * c.cache_rows * c.head_dim;
  Tensor q_rotated(c.dtype, in.q.size()), keys(c.dtype, elements), values(c.dtype, elements);
  tc_rope_and_store_args args{c.dtype, c.batch, c.q_heads, c.kv_heads, c.tokens, c.cache_rows,
                              c.head_dim, c.half, c.gamma, c.attention_factor, in.q.data(),
                              in.k.data(), in.v.data(), in.position_ids.data(),
                              in.temporal_ids.data(), in.slots.data(), in.inv_freq.data(),
                              q_rotated.data(), keys.data(), values.data()};
  tc_emulator_forget_memory();
  for (const Tensor* tensor : {&in.q, &in.k, &in.v}) tensor->declare(false);
  for (const Tensor* tensor : {&q_rotated, &keys, &values}) tensor->declare(true);
  for (const auto* ids : {&in.position_ids, &in.temporal_ids, &in.slots}) declare(*ids);
  declare(in.inv_freq);
  const tc_status status = tc_cuda_rope_and_store(&args, nullptr);
  tc_emulator_forget_memory();
  if (!went_well(status, c.name.c_str())) return;

  auto cache_row = [&](int head, int s) {
    const int64_t slot = in.slots[std::size_t(head / c.kv_heads) * c.tokens + s];
    return slot < 0 ? int64_t{-1} : int64_t{head} * c.cache_rows + slot;
  };
  compare(c, "q", in, in.q, c.q_heads, q_rotated,
          [&](int head, int s) { return int64_t{head} * c.tokens + s; });
  compare(c, "keys", in, in.k, c.kv_heads, keys, cache_row);
  Case still = c;
  still.half = 0;
  compare(still, "values", in, in.v, c.kv_heads, values, cache_row);
  // Rows of no slot keep what was there.
  const auto& slots = in.slots;
  for (std::size_t row = 0; row < elements / c.head_dim; ++row) {
    const auto first = slots.begin() + row / (c.kv_heads * c.cache_rows) * c.tokens;
    const auto slot = static_cast<int64_t>(row % c.cache_rows);
    if (std::find(first, first + c.tokens, slot) != first + c.tokens) continue;
    if (!std::isnan(keys.get(row * c.head_dim)) || !std::isnan(values.get(row * c.head_dim))) {
      fail("%s: cache row %zu was written", c.name.c_str(), row);
    }
  }
}

void run_bad_arguments() {
  alignas(16) static unsigned char memory[256];
  const tc_dual_rope_args good{TC_FLOAT16, 1, 1, 1, 8, 4, 1.0f, 1.0f, memory,
                               reinterpret_cast<int64_t*>(memory),
                               reinterpret_cast<int64_t*>(memory),
                               reinterpret_cast<float*>(memory), memory};
  auto expect = [](const char* what, tc_dual_rope_args args, tc_status expected) {
    const tc_status status = tc_cuda_dual_rope(&args, nullptr);
    if (status != expected) fail("%s: status %d, expected %d", what, status, expected);
  };
  auto bad = good;
  expect("sound", bad, TC_OK);
  bad = good, bad.rotary_half = 5;
  expect("more channels than there are", bad, TC_INVALID_ARGUMENT);
  bad = good, bad.rotary_half = 0;
  expect("nothing to rotate", bad, TC_INVALID_ARGUMENT);
  bad = good, bad.inv_freq = nullptr;
  expect("null inv_freq", bad, TC_INVALID_ARGUMENT);
  bad = good, bad.heads = -2;
  expect("negative heads", bad, TC_INVALID_ARGUMENT);
  bad = good, bad.batch = bad.heads = 1 << 20;
  expect("more rows than are counted", bad, TC_UNSUPPORTED);
  bad = good, bad.dtype = static_cast<tc_dtype>(9);
  expect("no such type", bad, TC_UNSUPPORTED);
}

}  // namespace

int main() {
  const Case cases[] = {
      {"float32, whole vectors", TC_FLOAT32, 2, 5, 1, 7, 20, 16, 8, 1.0f, 1.0f, 0},
      {"float16, whole vectors", TC_FLOAT16, 1, 8, 2, 13, 13, 64, 32, 0.37f, 1.0f, 5},
      {"bfloat16, one head", TC_BFLOAT16, 3, 1, 1, 3, 9, 128, 64, 2.5f, 1.25f, 1},
      {"float16, channels that pass through", TC_FLOAT16, 2, 6, 3, 5, 8, 80, 16, 1.0f, 1.0f, 0},
      {"bfloat16, no whole vectors", TC_BFLOAT16, 1, 3, 3, 6, 11, 18, 5, 1.0f, 0.5f, 2},
      {"float32, odd half", TC_FLOAT32, 2, 2, 1, 4, 6, 10, 3, 0.0f, 1.0f, 0},
      {"float32, positions to 200000", TC_FLOAT32, 1, 2, 1, 9, 9, 128, 64, 1.7f, 1.0f, 200000},
      {"float16, gamma 0", TC_FLOAT16, 1, 2, 2, 4, 5, 256, 128, 0.0f, 1.0f, 100},
  };
  std::mt19937 random(11);
  for (const Case& c : cases) {
    const Input in = make_input(c, random);
    run_plain(c, in, false);
    run_plain(c, in, true);
    run_fused(c, in);
  }
  run_bad_arguments();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
