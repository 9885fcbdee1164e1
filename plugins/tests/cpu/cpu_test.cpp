// SPDX-License-Identifier: Apache-2.0
//
// The CPU kernels against loops in double, on every instruction set that this processor has.
//
// Buffers are of the exact size, on the heap: with AddressSanitizer a step past any of them ends
// the test. Cache rows that no query sees hold NaN.
//
// Axes: B batch, H query heads, K key/value heads, S tokens, C cache rows, D head size.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tc_cpu.h"

namespace {

int failures = 0;

#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
      ++failures;                                                 \
    }                                                             \
  } while (false)

// --- Numbers as they are stored ----------------------------------------------------------------

int64_t size_of(tc_dtype dtype) { return dtype == TC_FLOAT32 ? 4 : 2; }

// One unit in the last place, relative.
double epsilon(tc_dtype dtype) {
  return dtype == TC_FLOAT32 ? 0x1p-23 : dtype == TC_FLOAT16 ? 0x1p-10 : 0x1p-7;
}

double read(tc_dtype dtype, const std::vector<char>& data, int64_t i) {
  if (dtype == TC_FLOAT32) {
    float x;
    std::memcpy(&x, &data[i * 4], 4);
    return x;
  }
  uint16_t bits;
  std::memcpy(&bits, &data[i * 2], 2);
  if (dtype == TC_BFLOAT16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, 4);
    return x;
  }
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction ? std::nan("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

// Only numbers that the type holds exactly are written.
void write(tc_dtype dtype, std::vector<char>& data, int64_t i, double x) {
  if (dtype == TC_FLOAT32) {
    const float narrow = static_cast<float>(x);
    std::memcpy(&data[i * 4], &narrow, 4);
    return;
  }
  uint16_t bits = 0;
  if (std::isnan(x)) {
    bits = 0x7fff;  // not a number in both
  } else if (dtype == TC_BFLOAT16) {
    const float narrow = static_cast<float>(x);
    uint32_t wide;
    std::memcpy(&wide, &narrow, 4);
    bits = static_cast<uint16_t>(wide >> 16);
  } else if (x != 0) {
    int exponent;
    const double fraction = std::frexp(std::fabs(x), &exponent);  // in [1/2, 1)
    bits = static_cast<uint16_t>((x < 0 ? 0x8000 : 0) | (exponent + 14) << 10 |
                                 (static_cast<int>(fraction * 2048) & 1023));
  }
  std::memcpy(&data[i * 2], &bits, 2);
}

// Multiples of 1/64 within [-2, 2): seven bits, exact in every type.
std::vector<char> random_tensor(tc_dtype dtype, int64_t count, std::mt19937& random) {
  std::vector<char> data(count * size_of(dtype));
  std::uniform_int_distribution<int> sixty_fourths(-64, 63);
  for (int64_t i = 0; i < count; ++i) write(dtype, data, i, sixty_fourths(random) / 32.0);
  return data;
}

// --- Attention ---------------------------------------------------------------------------------

struct Case {
  const char* name;
  int64_t B, H, K, S, C, D, past;
  int64_t frame;  // tokens that see each other; 1 is causal
};

struct Attention {
  Case shape;
  tc_dtype dtype;
  std::vector<char> q, k, v, past_key, past_value, y, present_key, present_value;
  std::vector<int32_t> kv_end;
  std::vector<int64_t> slots;

  Attention(const Case& c, tc_dtype type, uint32_t seed) : shape(c), dtype(type) {
    std::mt19937 random(seed);
    const int64_t news = c.B * c.K * c.S * c.D, cache = c.B * c.K * c.C * c.D;
    q = random_tensor(type, c.B * c.H * c.S * c.D, random);
    k = random_tensor(type, news, random);
    v = random_tensor(type, news, random);
    past_key = random_tensor(type, cache, random);
    past_value = random_tensor(type, cache, random);
    y.assign(q.size(), 0x55);
    present_key.assign(past_key.size(), 0x55);
    present_value.assign(past_value.size(), 0x55);
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t s = 0; s < c.S; ++s) {
        const bool padding = b == 1 && s < c.S / 2;
        const int64_t end = (c.past + s) / c.frame * c.frame + c.frame;
        slots.push_back(padding ? -1 : c.past + s);
        kv_end.push_back(static_cast<int32_t>(padding ? 0 : std::min(end, c.past + c.S)));
      }
      for (int64_t i = 0; i < c.K * (c.C - c.past - c.S) * c.D; ++i) {
        const int64_t head = i / ((c.C - c.past - c.S) * c.D);
        const int64_t at = ((b * c.K + head) * c.C + c.past + c.S) * c.D;
        write(type, past_key, at + i % ((c.C - c.past - c.S) * c.D), NAN);
        write(type, past_value, at + i % ((c.C - c.past - c.S) * c.D), NAN);
      }
    }
  }

  tc_attention_args args(bool in_place = false) {
    const Case& c = shape;
    return {dtype,          c.B,
            c.H,            c.K,
            c.S,            c.C,
            c.D,            1.0f / std::sqrt(static_cast<float>(c.D)),
            q.data(),       k.data(),
            v.data(),       kv_end.data(),
            slots.data(),   past_key.data(),
            past_value.data(), y.data(),
            in_place ? past_key.data() : present_key.data(),
            in_place ? past_value.data() : present_value.data()};
  }

  // The cache as it must be after the call.
  std::vector<char> written(const std::vector<char>& past, const std::vector<char>& news) const {
    const Case& c = shape;
    std::vector<char> cache = past;
    const int64_t row = c.D * size_of(dtype);
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t head = 0; head < c.K; ++head) {
        for (int64_t s = 0; s < c.S; ++s) {
          const int64_t slot = slots[b * c.S + s], bk = b * c.K + head;
          if (slot < 0) continue;
          std::memcpy(&cache[(bk * c.C + slot) * row], &news[(bk * c.S + s) * row], row);
        }
      }
    }
    return cache;
  }

  // Row (b, h, s) of y in double.
  std::vector<double> expected(const std::vector<char>& key, const std::vector<char>& value,
                               int64_t b, int64_t h, int64_t s) const {
    const Case& c = shape;
    const int64_t bk = b * c.K + h / (c.H / c.K);
    const int64_t end = std::max<int64_t>(0, std::min<int64_t>(kv_end[b * c.S + s], c.C));
    std::vector<double> scores(end), y_D(c.D, 0.0);
    double largest = -INFINITY, sum = 0;
    for (int64_t j = 0; j < end; ++j) {
      for (int64_t d = 0; d < c.D; ++d) {
        scores[j] += read(dtype, q, ((b * c.H + h) * c.S + s) * c.D + d) *
                     read(dtype, key, (bk * c.C + j) * c.D + d) / std::sqrt(c.D);
      }
      largest = std::max(largest, scores[j]);
    }
    for (double& score : scores) sum += score = std::exp(score - largest);
    for (int64_t j = 0; j < end; ++j) {
      for (int64_t d = 0; d < c.D; ++d) {
        y_D[d] += scores[j] / sum * read(dtype, value, (bk * c.C + j) * c.D + d);
      }
    }
    return y_D;
  }
};

// Largest difference between y and the reference, in units of the type's epsilon. Values are
// below 2, so an exact result that is rounded once differs by at most one.
double worst_error(const Attention& t) {
  const auto key = t.written(t.past_key, t.k), value = t.written(t.past_value, t.v);
  const Case& c = t.shape;
  double worst = 0;
  for (int64_t row = 0; row < c.B * c.H * c.S; ++row) {
    const auto expected = t.expected(key, value, row / c.S / c.H, row / c.S % c.H, row % c.S);
    for (int64_t d = 0; d < c.D; ++d) {
      const double error = std::fabs(read(t.dtype, t.y, row * c.D + d) - expected[d]);
      worst = std::isnan(error) ? INFINITY : std::max(worst, error / epsilon(t.dtype));
    }
  }
  return worst;
}

const Case kCases[] = {
    {"prefill", 1, 2, 2, 150, 150, 64, 0, 12},
    {"prefill, grouped heads, two tiles", 1, 6, 2, 70, 101, 48, 0, 7},
    {"many heads, a full tile for each", 2, 16, 16, 256, 260, 8, 0, 9},
    {"many heads, two large tiles for each", 1, 48, 16, 101, 101, 16, 0, 10},
    {"chunk of a long cache", 1, 2, 1, 24, 400, 32, 340, 8},
    {"batch with padding", 2, 2, 1, 37, 45, 16, 0, 5},
    {"one token, one frame", 1, 1, 1, 1, 1, 64, 0, 1},
    {"decode", 1, 2, 2, 1, 203, 128, 200, 1},
    {"decode, grouped heads", 2, 6, 2, 1, 131, 80, 130, 1},
    {"decode, split over keys", 1, 3, 1, 2, 1200, 64, 1190, 1},
    {"few rows, split, odd size", 1, 4, 1, 5, 1100, 10, 1090, 5},
    {"odd head size", 1, 2, 2, 50, 60, 7, 0, 9},
    {"odd number of keys", 1, 1, 1, 97, 97, 20, 0, 97},
    {"odd number of keys, head size of 32s", 2, 2, 1, 53, 131, 96, 44, 53},
    {"largest head", 1, 3, 1, 41, 190, 256, 130, 11},
};

void test_attention(tc_cpu_isa isa, tc_dtype dtype) {
  for (const Case& c : kCases) {
    Attention t(c, dtype, 7);
    int32_t threads = 2;
    tc_attention_args args = t.args();
    tc_status status =
        tc_cpu_block_causal_attention_on(isa, &args, tc_cpu_run_on_threads, &threads);
    CHECK(status == TC_OK, "%s, type %d: %s", c.name, dtype, tc_status_message(status));
    // bfloat16 weights of the dot product are rounded to 8 bits each: two units more.
    const double bound = dtype == TC_FLOAT32 ? 8 : 3;
    const double error = worst_error(t);
    CHECK(error <= bound, "%s, %s, type %d: %.1f units off", c.name, tc_cpu_isa_name(isa), dtype,
          error);
    CHECK(t.present_key == t.written(t.past_key, t.k), "%s, type %d", c.name, dtype);
    CHECK(t.present_value == t.written(t.past_value, t.v), "%s, type %d", c.name, dtype);

    // In place, and on another number of threads: the same bits.
    const auto y = t.y, present_key = t.present_key, present_value = t.present_value;
    threads = 3;
    args = t.args(/*in_place=*/true);
    status = tc_cpu_block_causal_attention_on(isa, &args, tc_cpu_run_on_threads, &threads);
    CHECK(status == TC_OK && t.y == y, "%s, type %d", c.name, dtype);
    CHECK(t.past_key == present_key && t.past_value == present_value, "%s", c.name);
  }
}

// kv_end below zero and past the cache: an error in debug, the nearest sound value in release.
void test_ends(tc_cpu_isa isa) {
  Attention t({"ends", 1, 1, 1, 40, 64, 32, 0, 1}, TC_FLOAT32, 3);
  t.past_key.assign(t.past_key.size(), 0);
  t.past_value.assign(t.past_value.size(), 0);
  t.kv_end[0] = std::numeric_limits<int32_t>::min();
  t.kv_end[1] = 0;
  t.kv_end[2] = std::numeric_limits<int32_t>::max();
  t.kv_end[3] = 64;
  int32_t threads = 1;
  const tc_attention_args args = t.args();
  const tc_status status =
      tc_cpu_block_causal_attention_on(isa, &args, tc_cpu_run_on_threads, &threads);
#ifndef NDEBUG
  CHECK(status == TC_KV_END_OUT_OF_RANGE, "ends: %s", tc_status_message(status));
  return;
#endif
  CHECK(status == TC_OK, "ends: %s", tc_status_message(status));
  CHECK(worst_error(t) <= 8, "%s: %.1f units off", tc_cpu_isa_name(isa), worst_error(t));
  for (int64_t i = 0; i < 2 * t.shape.D; ++i) CHECK(read(TC_FLOAT32, t.y, i) == 0, "padding row");
}

// --- Dual rotation -----------------------------------------------------------------------------

void test_rope(tc_cpu_isa isa, tc_dtype dtype) {
  const int64_t B = 2, H = 3, S = 67;
  for (const int64_t D : {2, 10, 64, 80}) {
    for (const int64_t R : {D / 2, (D + 3) / 4}) {
      std::mt19937 random(11);
      const float gamma = 0.37f, factor = 1.25f;
      std::vector<char> x = random_tensor(dtype, B * H * S * D, random), y(x.size());
      std::vector<int64_t> n, T;
      std::vector<float> inv_freq;
      for (int64_t i = 0; i < B * S; ++i) {
        n.push_back(static_cast<int64_t>(random() % 40000) - 1);
        T.push_back(static_cast<int64_t>(random() % 20000) - 1);
      }
      for (int64_t i = 0; i < R; ++i) {
        inv_freq.push_back(static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / R)));
      }
      const tc_dual_rope_args args = {dtype,    B,        H,        S,        D,
                                      R,        gamma,    factor,   x.data(), n.data(),
                                      T.data(), inv_freq.data(), y.data()};
      int32_t threads = 2;
      const tc_status status = tc_cpu_dual_rope_on(isa, &args, tc_cpu_run_on_threads, &threads);
      CHECK(status == TC_OK, "%s", tc_status_message(status));
      double worst = 0;
      for (int64_t i = 0; i < B * H * S * D; ++i) {
        const int64_t d = i % D, token = i / D / S / H * S + i / D % S;
        double expected = read(dtype, x, i);
        if (d < 2 * R) {
          // Position and angle are rounded to float, as the contract says; what follows is exact.
          const volatile float temporal = gamma * static_cast<float>(T[token]);
          const float position = static_cast<float>(n[token]) + temporal;
          const double angle = position * inv_freq[d % R];
          const double other = read(dtype, x, d < R ? i + R : i - R);
          const double sine = (d < R ? -1 : 1) * std::sin(angle);
          expected = factor * (expected * std::cos(angle) + other * sine);
        }
        worst = std::max(worst, std::fabs(read(dtype, y, i) - expected) / epsilon(dtype));
      }
      CHECK(worst <= 4, "D %d, R %d, type %d: %.1f units off", static_cast<int>(D),
            static_cast<int>(R), dtype, worst);
    }
  }
}

// --- Arguments that are refused ----------------------------------------------------------------

template <class Change>
void expect_status(tc_status expected, const char* what, const Change& change) {
  Attention t({"bad", 1, 4, 2, 3, 8, 16, 0, 1}, TC_FLOAT32, 5);
  tc_attention_args args = t.args();
  change(args, t);
  const auto y = t.y, present = t.present_key;
  int32_t threads = 1;
  const tc_status status = tc_cpu_block_causal_attention(&args, tc_cpu_run_on_threads, &threads);
  CHECK(status == expected, "%s gave %d", what, status);
  CHECK(t.y == y && t.present_key == present, "%s wrote something", what);
}

void test_refusals() {
  using Args = tc_attention_args;
  expect_status(TC_INVALID_ARGUMENT, "a null q", [](Args& a, Attention&) { a.q = nullptr; });
  expect_status(TC_INVALID_ARGUMENT, "a null y", [](Args& a, Attention&) { a.y = nullptr; });
  expect_status(TC_INVALID_ARGUMENT, "no slots", [](Args& a, Attention&) { a.slots = nullptr; });
  expect_status(TC_INVALID_ARGUMENT, "no batch", [](Args& a, Attention&) { a.batch = 0; });
  expect_status(TC_INVALID_ARGUMENT, "no tokens", [](Args& a, Attention&) { a.tokens = -1; });
  expect_status(TC_INVALID_ARGUMENT, "three heads of two",
                [](Args& a, Attention&) { a.q_heads = 3; });
  expect_status(TC_INVALID_ARGUMENT, "a size that overflows",
                [](Args& a, Attention&) { a.batch = INT64_C(1) << 60; });
  expect_status(TC_INVALID_ARGUMENT, "an infinite scale",
                [](Args& a, Attention&) { a.scale = INFINITY; });
  expect_status(TC_UNSUPPORTED, "an unknown type",
                [](Args& a, Attention&) { a.dtype = static_cast<tc_dtype>(9); });
  expect_status(TC_CACHE_OVERFLOW, "a slot past the cache",
                [](Args&, Attention& t) { t.slots[2] = 8; });
  expect_status(TC_CACHE_OVERFLOW, "a slot below -1",
                [](Args&, Attention& t) { t.slots[0] = -2; });
  int32_t threads = 1;
  CHECK(tc_cpu_block_causal_attention(nullptr, tc_cpu_run_on_threads, &threads) ==
            TC_INVALID_ARGUMENT,
        "null arguments");
  CHECK(tc_cpu_dual_rope(nullptr, tc_cpu_run_on_threads, &threads) == TC_INVALID_ARGUMENT,
        "null arguments");
  CHECK(tc_cpu_isa_name(static_cast<tc_cpu_isa>(99)) == nullptr, "an unknown instruction set");
}

}  // namespace

int main() {
  for (int i = TC_ISA_PORTABLE; i <= TC_ISA_AMX; ++i) {
    const tc_cpu_isa isa = static_cast<tc_cpu_isa>(i);
    if (tc_cpu_isa_name(isa) == nullptr) {
      std::printf("instruction set %d is not on this processor: not tested\n", i);
      continue;
    }
    for (const tc_dtype dtype : {TC_FLOAT32, TC_FLOAT16, TC_BFLOAT16}) {
      test_attention(isa, dtype);
      test_rope(isa, dtype);
    }
    test_ends(isa);
    std::printf("%s: tested\n", tc_cpu_isa_name(isa));
  }
  test_refusals();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
