// SPDX-License-Identifier: Apache-2.0
//
// TcBlockCausalAttentionInt8 on the emulator: codes and scales bit for bit those of the definition,
// and attention over them against float64 loops, with all memory guarded. Rows that no token was
// written to have the code -128, which no number has, and scales that are NaN. An argument runs
// only those cases whose names contain it.

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "attention_cases.h"

namespace {

// The nearest number of a 16-bit type, ties to even.
double rounded(tc_dtype dtype, double x) {
  if (x == 0.0 || !std::isfinite(x)) return x;
  const int digits = dtype == TC_FLOAT16 ? 11 : 8, least = dtype == TC_FLOAT16 ? -24 : -133;
  int exponent;
  std::frexp(x, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent - digits, least));
  return std::nearbyint(x / unit) * unit;
}

// Keys or values: codes, and a scale for each row.
struct Part {
  tc_dtype dtype;
  int head_dim;
  std::vector<int8_t> codes;
  std::vector<float> scales;

  Part(const Case& c, std::size_t rows)
      : dtype(c.dtype),
        head_dim(c.head_dim),
        codes(rows * c.head_dim, -128),
        scales(rows, std::numeric_limits<float>::quiet_NaN()) {}

  // What a code stands for, in the type of q.
  double get(std::size_t i) const {
    return rounded(dtype, static_cast<float>(codes[i]) * scales[i / head_dim]);
  }

  // Quotients of float32 numbers, rounded to float64 and then to float32, are those of float32.
  void write_row(std::size_t place, const Tensor& from, std::size_t row) {
    double largest = 0.0;
    for (int d = 0; d < head_dim; ++d) {
      const double size = std::abs(from.get(row * head_dim + d));
      if (!(size <= largest)) largest = size;
      if (std::isnan(largest)) break;
    }
    const auto scale = static_cast<float>(largest / 127.0);
    scales[place] = scale;
    const double divisor = scale > 0.0f ? scale : 1.0;
    for (int d = 0; d < head_dim; ++d) {
      const auto quotient = static_cast<float>(from.get(row * head_dim + d) / divisor);
      const double code = std::nearbyint(std::max(-127.0f, std::min(quotient, 127.0f)));
      codes[place * head_dim + d] = std::isnan(quotient) ? 0 : static_cast<int8_t>(code);
    }
  }

  bool same_bits(const Part& other) const {
    for (std::size_t row = 0; row < scales.size(); ++row) {
      const bool both_nan = std::isnan(scales[row]) && std::isnan(other.scales[row]);
      if (!both_nan && std::memcmp(&scales[row], &other.scales[row], sizeof(float)) != 0) {
        return false;
      }
    }
    return codes == other.codes;
  }

  void declare_writable() const {
    tc_emulator_declare_memory(codes.data(), codes.size(), 1);
    tc_emulator_declare_memory(scales.data(), scales.size() * sizeof(float), 1);
  }
};

class Cache {
 public:
  Cache(const Case& c, std::size_t batch)
      : key_(c, batch * c.kv_heads * c.cache_rows), value_(key_) {}

  const Part& keys() const { return key_; }
  const Part& values() const { return value_; }
  Part& keys() { return key_; }
  Part& values() { return value_; }

  void write(const Case& c, const Call& call) {
    for_written_rows(c, call, [&](std::size_t row, std::size_t place) {
      key_.write_row(place, call.k, row);
      value_.write_row(place, call.v, row);
    });
  }
  void spoil() {
    for (Part* part : {&key_, &value_}) {
      std::fill(part->codes.begin(), part->codes.end(), 0x5A);
      std::fill(part->scales.begin(), part->scales.end(), 1e30f);
    }
  }
  bool same_bits(const Cache& other) const {
    return key_.same_bits(other.key_) && value_.same_bits(other.value_);
  }

 private:
  Part key_, value_;
};

// One call into `after` (which may be `before`).
tc_status launch(const Case& c, const Call& call, const Cache& before, Cache& after, Tensor& y) {
  auto args = arguments_of<tc_attention_int8_args>(c, call, y);
  args.past_key = before.keys().codes.data();
  args.past_value = before.values().codes.data();
  args.past_key_scale = before.keys().scales.data();
  args.past_value_scale = before.values().scales.data();
  args.present_key = after.keys().codes.data();
  args.present_value = after.values().codes.data();
  args.present_key_scale = after.keys().scales.data();
  args.present_value_scale = after.values().scales.data();
  const std::size_t workspace_bytes = tc_cuda_block_causal_attention_int8_workspace(&args);
  Tensor workspace(TC_FLOAT32, workspace_bytes / 4 + 1);
  declare(call, y, workspace, workspace_bytes);
  after.keys().declare_writable();
  after.values().declare_writable();
  const tc_status status =
      tc_cuda_block_causal_attention_int8(&args, workspace.data(), workspace_bytes, nullptr);
  tc_emulator_forget_memory();
  return status;
}

std::string suffix_of(tc_dtype dtype, int head_dim) {
  return std::string(dtype == TC_FLOAT16 ? ", float16" : ", bfloat16") +
         " D=" + std::to_string(head_dim);
}

// Prompts, and decode steps after them, that end before, at and after the edges of tiles: of 32,
// 64 and 128 keys. Rows are of very different sizes.
std::vector<Case> edge_cases(tc_dtype dtype, int head_dim) {
  const std::string suffix = suffix_of(dtype, head_dim);
  const std::vector<int> ends{0, 1, 31, 32, 33, 63, 64, 65, 127, 128, 129};
  const auto text = prefix_lengths({{0, 129}});
  std::vector<Span> before, last;
  for (const int end : ends) {
    before.push_back({0, std::max(end - 1, 0)});
    last.push_back({std::max(end - 1, 0), end});
  }
  const std::vector<std::vector<int>> texts(ends.size(), text);
  std::vector<std::vector<int>> frames;
  std::vector<Span> whole;
  for (const int end : {1, 63, 64, 65, 127, 128, 129}) {
    frames.push_back(prefix_lengths({{1, end}}));
    whole.push_back({0, end});
  }
  return {
      {"decode at the edges of tiles" + suffix, dtype, 4, 2, head_dim, 140, texts, {before, last},
       false, true, 0.125f, true},
      {"split decode at the edges of tiles" + suffix, dtype, 3, 1, head_dim, 1100, texts,
       {before, last}, true, true, 0.125f, true},
      {"frames that end at the edges of tiles" + suffix, dtype, 3, 1, head_dim, 129, frames,
       {whole}, false, false, 0.125f, true},
  };
}

// Rows as they may be, each of which `fill` gives its numbers.
using Fill = std::function<float(int d)>;

std::vector<Fill> rows_of_every_kind(tc_dtype dtype) {
  const bool half = dtype == TC_FLOAT16;
  const float largest = half ? 65504.0f : std::ldexp(255.0f, 120);
  const float least = std::ldexp(1.0f, half ? -24 : -133);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const auto sign = [](int d) { return d % 2 == 0 ? 1.0f : -1.0f; };
  return {
      [](int) { return 0.0f; },
      [](int) { return -0.0f; },
      [](int d) { return d == 0 ? 127.0f : static_cast<float>(d % 64 - 32) + 0.5f; },  // ties
      [](int d) { return d == 5 ? -127.0f : static_cast<float>(d % 8) * 0.25f; },
      [=](int d) { return sign(d) * largest; },
      [=](int d) { return d == 7 ? -largest : sign(d); },
      [=](int d) { return sign(d) * least; },
      [=](int d) { return least * static_cast<float>(d % 5 - 2); },
      [=](int d) { return d == 3 ? nan : sign(d) * (100.0f + static_cast<float>(d)); },
      [=](int d) { return d == 3 ? -infinity : sign(d) * static_cast<float>(d); },
      [=](int d) { return d == 3 ? infinity : d == 4 ? -infinity : 0.0f; },
  };
}

// What each kind of row becomes; nobody sees them.
void run_rows_of_every_kind(tc_dtype dtype, int head_dim, const std::string& only) {
  const auto kinds = rows_of_every_kind(dtype);
  const int tokens = static_cast<int>(kinds.size()), rows = tokens + 2;
  Case c{"rows of every kind" + suffix_of(dtype, head_dim), dtype, 3, 3, head_dim, rows,
         {std::vector<int>(kinds.size(), 0)}, {{{0, tokens}}}};
  if (c.name.find(only) == std::string::npos) return;
  std::mt19937 random(5);
  Call call = make_call(c, c.calls[0], random);
  for (int s = 0; s < tokens; ++s) {
    call.slots[s] = (s * 5 + 3) % rows;
    for (int d = 0; d < head_dim; ++d) {  // heads 0 and 1 in opposite orders; head 2 stays normal
      call.k.set(s * head_dim + d, kinds[s](d));
      call.k.set((2 * tokens - 1 - s) * head_dim + d, kinds[s](d));
      call.v.set((tokens + s) * head_dim + d, kinds[s](d));
    }
  }
  for (const Schedule& schedule : kSchedules) {
    tc_emulator_set_schedule(schedule.order, schedule.seed);
    Cache cache(c, 1);
    Cache wanted = cache;
    wanted.write(c, call);
    Tensor y(c.dtype, call.q.size());
    if (!went_well(launch(c, call, cache, cache, y), c.name.c_str())) return;
    if (!cache.same_bits(wanted)) fail("%s: the cache is not as expected", c.name.c_str());
    compare(c, 0, y, attend(c, call, cache));
  }
}

// What the contract defines beyond sound calls: slots and kv_end out of range.
void run_out_of_range(const std::string& only) {
  Case c{"out of range, float16 D=64", TC_FLOAT16, 2, 1, 64, 9, {{1, 2, 3, 4, 9}}, {{{0, 5}}}};
  if (c.name.find(only) == std::string::npos) return;
  std::mt19937 random(3);
  Call call = make_call(c, c.calls[0], random);
  Cache cache(c, 1);
  call.slots = {0, 1, 2, 3, 5};
  cache.write(c, call);
  call.slots = {6, 7, 8, 4, 6};
  cache.write(c, call);
  call.slots = {0, -1, 9, -7, 4};
  call.kv_end = {1, -5, 1, std::numeric_limits<int32_t>::max(), 0};
  Cache wanted = cache;
  wanted.write(c, call);
  Tensor y(c.dtype, call.q.size());
  if (!went_well(launch(c, call, cache, cache, y), c.name.c_str())) return;
  if (!cache.same_bits(wanted)) fail("%s: a slot that is none was written", c.name.c_str());
  compare(c, 0, y, attend(c, call, cache));
}

using Args = tc_attention_int8_args;

void expect_status(const char* what, tc_status expected, const std::function<void(Args&)>& spoil) {
  alignas(16) static unsigned char memory[4096];
  static const std::vector<std::uint16_t> ones(2048, 0x3c00);  // rows of k and v
  auto* const codes = reinterpret_cast<int8_t*>(memory);
  auto* const scales = reinterpret_cast<float*>(memory);
  Args args{TC_FLOAT16, 1, 2, 1, 1, 4, 64, 1.0f, memory, ones.data(), ones.data(),
            reinterpret_cast<int32_t*>(memory), reinterpret_cast<int64_t*>(memory),
            codes, codes, scales, scales, memory, codes, codes, scales, scales};
  spoil(args);
  const tc_status status = tc_cuda_block_causal_attention_int8(&args, nullptr, 0, nullptr);
  if (status != expected) fail("%s: status %d, expected %d", what, status, expected);
  if (std::any_of(memory, std::end(memory), [](unsigned char byte) { return byte != 0; })) {
    fail("%s: refused, and yet something was written", what);
  }
}

void run_bad_arguments() {
  expect_status("null q", TC_INVALID_ARGUMENT, [](Args& a) { a.q = nullptr; });
  expect_status("null slots", TC_INVALID_ARGUMENT, [](Args& a) { a.slots = nullptr; });
  expect_status("no past scale", TC_INVALID_ARGUMENT, [](Args& a) { a.past_key_scale = nullptr; });
  expect_status("no present scale", TC_INVALID_ARGUMENT,
                [](Args& a) { a.present_value_scale = nullptr; });
  expect_status("negative batch", TC_INVALID_ARGUMENT, [](Args& a) { a.batch = -1; });
  expect_status("heads that do not divide", TC_INVALID_ARGUMENT, [](Args& a) { a.kv_heads = 3; });
  expect_status("scale NaN", TC_INVALID_ARGUMENT, [](Args& a) { a.scale = std::nanf(""); });
  expect_status("head size 72", TC_UNSUPPORTED, [](Args& a) { a.head_dim = 72; });
  expect_status("float32", TC_UNSUPPORTED, [](Args& a) { a.dtype = TC_FLOAT32; });
  expect_status("misaligned codes", TC_INVALID_ARGUMENT, [](Args& a) { a.present_key += 8; });
  expect_status("no workspace", TC_INVALID_ARGUMENT, [](Args& a) { a.cache_rows = 4096; });
  if (tc_cuda_block_causal_attention_int8(nullptr, nullptr, 0, nullptr) != TC_INVALID_ARGUMENT) {
    fail("no arguments at all");
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::string only = count > 1 ? arguments[1] : "";
  std::vector<Case> cases = special_cases();
  const auto add = [&](const std::vector<Case>& more) {
    cases.insert(cases.end(), more.begin(), more.end());
  };
  for (const tc_dtype dtype : {TC_FLOAT16, TC_BFLOAT16}) {
    for (const int head_dim : {64, 80, 96, 128, 256}) {
      add(cases_for(dtype, head_dim));
      // A head size of each tile length, and a type each.
      if (head_dim == (dtype == TC_FLOAT16 ? 64 : 128)) add(edge_cases(dtype, head_dim));
      run_rows_of_every_kind(dtype, head_dim, only);
    }
  }
  for (const Case& c : cases) {
    if (c.name.find(only) != std::string::npos) run<Cache>(c);
  }
  run_out_of_range(only);
  run_bad_arguments();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
