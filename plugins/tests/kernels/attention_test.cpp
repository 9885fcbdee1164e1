// SPDX-License-Identifier: Apache-2.0
//
// TcBlockCausalAttention on the emulator against float64 loops: prefill, chunked prefill and
// decode, under several schedules, with all memory guarded. An argument runs only those long cases
// whose names contain it.

#include <algorithm>
#include <functional>
#include <string>

#include "check.h"

namespace {

// A run of text (frames 0) or a clip, as in the method's definition.
struct Segment {
  int frames;
  int tokens;  // of the text, or of each frame
};

// How many tokens each token sees: counted pair by pair from the definition of the mask
// frame_block_causal (or full_visual), and only then seen to be a prefix.
std::vector<int> prefix_lengths(const std::vector<Segment>& segments, bool full_visual = false) {
  struct Token {
    int clip, frame;
  };
  std::vector<Token> tokens;
  for (int clip = 0; clip < static_cast<int>(segments.size()); ++clip) {
    const Segment& segment = segments[clip];
    for (int i = 0; i < std::max(segment.frames, 1) * segment.tokens; ++i) {
      tokens.push_back(segment.frames > 0 ? Token{clip, i / segment.tokens} : Token{-1, -1});
    }
  }
  std::vector<int> lengths;
  for (int i = 0; i < static_cast<int>(tokens.size()); ++i) {
    int seen = 0;
    for (int j = 0; j < static_cast<int>(tokens.size()); ++j) {
      const bool same_clip = tokens[i].clip >= 0 && tokens[i].clip == tokens[j].clip;
      const bool visible =
          j <= i || (same_clip && (full_visual || tokens[j].frame <= tokens[i].frame));
      if (visible && j != seen) std::abort();  // not a prefix
      seen += visible;
    }
    lengths.push_back(seen);
  }
  return lengths;
}

struct Span {
  int start, stop;
};

struct Case {
  std::string name;
  tc_dtype dtype;
  int q_heads, kv_heads, head_dim, cache_rows;
  std::vector<std::vector<int>> sequences;  // of each batch: prefix length of each token
  std::vector<std::vector<Span>> calls;     // of each call, of each batch: which tokens come
  bool pad_left = false;
  bool in_place = true;
  float scale = 0.125f;
};

// Everything that one call reads and writes. Axes as in the contract.
struct Call {
  int tokens;
  std::vector<int32_t> kv_end;
  std::vector<int64_t> slots;
  Tensor q, k, v;
};

Call make_call(const Case& c, const std::vector<Span>& spans, std::mt19937& random) {
  int tokens = 0;
  for (const Span& span : spans) tokens = std::max(tokens, span.stop - span.start);
  const std::size_t batch = spans.size(), rows = batch * tokens * c.head_dim;
  Call call{tokens, std::vector<int32_t>(batch * tokens, 0),
            std::vector<int64_t>(batch * tokens, -1), Tensor(c.dtype, rows * c.q_heads),
            Tensor(c.dtype, rows * c.kv_heads), Tensor(c.dtype, rows * c.kv_heads)};
  for (std::size_t b = 0; b < batch; ++b) {
    const int length = spans[b].stop - spans[b].start;
    const int first = c.pad_left ? tokens - length : 0;
    for (int i = 0; i < length; ++i) {
      call.kv_end[b * tokens + first + i] = c.sequences[b][spans[b].start + i];
      call.slots[b * tokens + first + i] = spans[b].start + i;
    }
  }
  call.q.randomise(random);
  call.k.randomise(random);
  call.v.randomise(random);
  return call;
}

// Rows `slots` of the cache become rows of k or v, bit for bit; every other row stays.
void write_cache(const Case& c, const Call& call, const Tensor& from, Tensor& cache) {
  const std::size_t row_bytes = c.head_dim * bytes_of(c.dtype);
  const std::size_t batch = call.slots.size() / call.tokens;
  for (std::size_t head = 0; head < batch * c.kv_heads; ++head) {
    for (int s = 0; s < call.tokens; ++s) {
      const int64_t slot = call.slots[head / c.kv_heads * call.tokens + s];
      if (slot < 0 || slot >= c.cache_rows) continue;
      std::memcpy(static_cast<char*>(cache.data()) + (head * c.cache_rows + slot) * row_bytes,
                  static_cast<const char*>(from.data()) + (head * call.tokens + s) * row_bytes,
                  row_bytes);
    }
  }
}

// The value of y and the largest error that the kernel's roundings can make: one of each softmax
// weight and one of the result to the type, and float32 in between. (Weights below the smallest
// normal float16 keep an absolute, not a relative, accuracy.)
struct Expected {
  double y, tolerance;
};

std::vector<Expected> attend_row(const Case& c, const Tensor& q, std::size_t q_row,
                                 const Tensor& keys, const Tensor& values, std::size_t first_key,
                                 int end) {
  std::vector<Expected> row(c.head_dim, {0.0, 0.0});
  if (end <= 0) return row;
  std::vector<double> weights(end);
  double maximum = -std::numeric_limits<double>::infinity(), sum = 0.0;
  for (int j = 0; j < end; ++j) {
    double dot = 0.0;
    for (int d = 0; d < c.head_dim; ++d) {
      dot += q.get(q_row * c.head_dim + d) * keys.get((first_key + j) * c.head_dim + d);
    }
    weights[j] = dot * c.scale;
    maximum = std::max(maximum, weights[j]);
  }
  for (double& weight : weights) sum += weight = std::exp(weight - maximum);
  for (int d = 0; d < c.head_dim; ++d) {
    double y = 0.0, magnitude = 0.0, total = 0.0;
    for (int j = 0; j < end; ++j) {
      const double value = values.get((first_key + j) * c.head_dim + d);
      y += weights[j] / sum * value;
      magnitude += weights[j] / sum * std::abs(value);
      total += std::abs(value);
    }
    const double underflow = c.dtype == TC_FLOAT16 ? std::ldexp(total, -25) : 0.0;
    row[d] = {y, 1.05 * unit_roundoff(c.dtype) * (std::abs(y) + magnitude) + 3e-5 * magnitude +
                     underflow + std::ldexp(1.0, -25)};
  }
  return row;
}

std::vector<Expected> attend(const Case& c, const Call& call, const Tensor& keys,
                             const Tensor& values) {
  std::vector<Expected> y;
  const int group = c.q_heads / c.kv_heads;
  for (std::size_t row = 0; row < call.q.size() / c.head_dim; ++row) {
    const std::size_t head = row / call.tokens;  // over batch and heads
    const std::size_t batch = head / c.q_heads;
    const int end = std::min(call.kv_end[batch * call.tokens + row % call.tokens], c.cache_rows);
    const std::size_t kv_head = batch * c.kv_heads + head % c.q_heads / group;
    const auto expected =
        attend_row(c, call.q, row, keys, values, kv_head * c.cache_rows, end);
    y.insert(y.end(), expected.begin(), expected.end());
  }
  return y;
}

struct Caches {
  Tensor key, value;
};

// One call into `after` (which may be `before`); false when it did not go well.
bool launch(const Case& c, const Call& call, const Caches& before, Caches& after, Tensor& y,
            const char* schedule) {
  tc_attention_args args{};
  args.dtype = c.dtype;
  args.batch = call.kv_end.size() / call.tokens;
  args.q_heads = c.q_heads;
  args.kv_heads = c.kv_heads;
  args.tokens = call.tokens;
  args.cache_rows = c.cache_rows;
  args.head_dim = c.head_dim;
  args.scale = c.scale;
  args.q = call.q.data();
  args.k = call.k.data();
  args.v = call.v.data();
  args.kv_end = call.kv_end.data();
  args.slots = call.slots.data();
  args.past_key = before.key.data();
  args.past_value = before.value.data();
  args.y = y.data();
  args.present_key = after.key.data();
  args.present_value = after.value.data();
  const std::size_t workspace_bytes = tc_cuda_block_causal_attention_workspace(&args);
  Tensor workspace(TC_FLOAT32, workspace_bytes / 4 + 1);

  tc_emulator_forget_memory();
  for (const Tensor* input : {&call.q, &call.k, &call.v}) input->declare(false);
  for (const Tensor* output : {&after.key, &after.value, &y}) output->declare(true);
  tc_emulator_declare_memory(workspace.data(), workspace_bytes, 1);
  declare(call.kv_end);
  declare(call.slots);
  const tc_status status =
      tc_cuda_block_causal_attention(&args, workspace.data(), workspace_bytes, nullptr);
  tc_emulator_forget_memory();
  return went_well(status, (c.name + ", " + schedule).c_str());
}

void compare(const Case& c, std::size_t call, const Tensor& y,
             const std::vector<Expected>& expected) {
  double worst = 0.0;
  std::size_t where = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double share = std::abs(y.get(i) - expected[i].y) / expected[i].tolerance;
    const bool exact = y.get(i) == expected[i].y;
    if (!exact && !(share <= worst)) worst = share, where = i;
  }
  std::printf("%-64s call %zu: error %.2f of the tolerance\n", c.name.c_str(), call, worst);
  if (!(worst <= 1.0)) {
    fail("%s: call %zu, element %zu: %g, expected %g within %g", c.name.c_str(), call, where,
         y.get(where), expected[where].y, expected[where].tolerance);
  }
}

void run(const Case& c) {
  std::mt19937 random(7);
  const std::size_t elements = c.sequences.size() * c.kv_heads * c.cache_rows * c.head_dim;
  // What no token was written to stays NaN: a kernel that lets it in shows.
  Caches cache{Tensor(c.dtype, elements), Tensor(c.dtype, elements)};
  for (std::size_t i = 0; i < c.calls.size(); ++i) {
    const Call call = make_call(c, c.calls[i], random);
    Caches wanted = cache;
    write_cache(c, call, call.k, wanted.key);
    write_cache(c, call, call.v, wanted.value);
    Tensor first_y(c.dtype, call.q.size());
    for (const Schedule& schedule : kSchedules) {
      tc_emulator_set_schedule(schedule.order, schedule.seed);
      Caches before = cache, after = cache;
      if (!c.in_place) std::memset(after.key.data(), 0x5A, after.key.bytes());
      Tensor y(c.dtype, call.q.size());
      if (!launch(c, call, c.in_place ? after : before, after, y, schedule.name)) return;
      if (!after.key.same_bits(wanted.key) || !after.value.same_bits(wanted.value)) {
        fail("%s: call %zu, %s: the cache is not as expected", c.name.c_str(), i, schedule.name);
      }
      if (schedule.order == TC_SCHEDULE_FORWARD) first_y = y;
      if (!y.same_bits(first_y)) {
        fail("%s: call %zu, %s: y depends on the schedule", c.name.c_str(), i, schedule.name);
      }
    }
    cache = wanted;
    compare(c, i, first_y, attend(c, call, cache.key, cache.value));
  }
}

std::vector<Case> cases_for(tc_dtype dtype, int head_dim) {
  const std::string suffix = std::string(dtype == TC_FLOAT16 ? " float16" : " bfloat16") +
                             " D=" + std::to_string(head_dim);
  const auto clip = prefix_lengths({{0, 5}, {4, 9}, {0, 3}});
  const auto two_clips = prefix_lengths({{3, 11}, {0, 2}, {1, 13}, {0, 4}});
  const auto tiny_frames = prefix_lengths({{6, 1}, {0, 1}});
  const auto longer = prefix_lengths({{0, 7}, {3, 33}, {0, 20}});
  const int n = static_cast<int>(clip.size()), two = static_cast<int>(two_clips.size());
  const int tiny = static_cast<int>(tiny_frames.size()), most = static_cast<int>(longer.size());
  std::vector<Case> cases{
      {"one clip" + suffix, dtype, 2, 1, head_dim, 64, {clip}, {{{0, n}}}},
      {"two clips, padded left, cache copied" + suffix, dtype, 6, 2, head_dim, 64,
       {two_clips, clip}, {{{0, two}, {0, n}}}, true, false},
      {"no text before, padded right" + suffix, dtype, 5, 1, head_dim, 53, {two_clips, tiny_frames},
       {{{0, two}, {0, tiny}}}},
      {"in chunks, then decode" + suffix, dtype, 3, 3, head_dim, 130, {longer},
       {{{0, 40}}, {{40, 106}}, {{106, most - 2}}, {{most - 2, most - 1}}, {{most - 1, most}}}},
      {"one key head for all" + suffix, dtype, 71, 1, head_dim, 8, {tiny_frames},
       {{{0, tiny - 1}}, {{tiny - 1, tiny}}}},
  };
  return cases;
}

std::vector<Case> special_cases() {
  const auto longest = prefix_lengths({{0, 20}, {3, 170}, {0, 110}});
  const auto longer = prefix_lengths({{0, 20}, {3, 45}, {0, 40}});
  const auto shorter = prefix_lengths({{0, 9}, {2, 25}, {0, 1}});
  const int all = static_cast<int>(longest.size()), most = static_cast<int>(longer.size());
  const int some = static_cast<int>(shorter.size());
  std::vector<Case> cases{
      {"full visual, float16 D=64", TC_FLOAT16, 2, 2, 64, 200,
       {prefix_lengths({{0, 30}, {5, 24}, {0, 10}}, true)}, {{{0, 160}}}},
      {"split decode of different lengths, float16 D=64", TC_FLOAT16, 8, 2, 64, 1024,
       {longer, shorter},
       {{{0, most - 2}, {0, some - 1}}, {{most - 2, most}, {some - 1, some}}}},
      {"split decode, bfloat16 D=128", TC_BFLOAT16, 2, 1, 128, 700, {longest},
       {{{0, all - 3}}, {{all - 3, all}}}},
      {"decode beside a finished sequence, float16 D=80", TC_FLOAT16, 2, 1, 80, 600,
       {shorter, shorter}, {{{0, some - 1}, {0, some}}, {{some - 1, some}, {some, some}}}},
      {"a large scale, float16 D=64", TC_FLOAT16, 1, 1, 64, 128, {shorter}, {{{0, some}}}, false,
       true, 2.0f},
  };
  return cases;
}

// What the contract defines beyond sound calls: slots and kv_end out of range.
void run_out_of_range() {
  Case c{"out of range", TC_FLOAT16, 2, 1, 64, 9, {{1, 2, 3, 4, 9}}, {{{0, 5}}}};
  std::mt19937 random(3);
  Call call = make_call(c, c.calls[0], random);
  call.slots = {0, -1, 9, -7, 4};
  call.kv_end = {1, -5, 1, std::numeric_limits<int32_t>::max(), 0};
  const std::size_t elements = c.cache_rows * c.head_dim;
  Caches cache{Tensor(c.dtype, elements), Tensor(c.dtype, elements)};
  cache.key.randomise(random);
  cache.value.randomise(random);
  Caches wanted = cache;
  write_cache(c, call, call.k, wanted.key);
  write_cache(c, call, call.v, wanted.value);
  Tensor y(c.dtype, call.q.size());
  if (!launch(c, call, cache, cache, y, "forward")) return;
  if (!cache.key.same_bits(wanted.key) || !cache.value.same_bits(wanted.value)) {
    fail("out of range: a slot that is none was written");
  }
  compare(c, 0, y, attend(c, call, cache.key, cache.value));
}

void expect_status(const char* what, tc_status expected,
                   const std::function<void(tc_attention_args&)>& spoil) {
  alignas(16) static unsigned char memory[4096];
  tc_attention_args args{TC_FLOAT16, 1, 2, 1, 1, 4, 64, 1.0f, memory, memory, memory,
                         reinterpret_cast<int32_t*>(memory), reinterpret_cast<int64_t*>(memory),
                         memory, memory, memory, memory, memory};
  spoil(args);
  const tc_status status = tc_cuda_block_causal_attention(&args, nullptr, 0, nullptr);
  if (status != expected) fail("%s: status %d, expected %d", what, status, expected);
}

void run_bad_arguments() {
  using Args = tc_attention_args;
  expect_status("null q", TC_INVALID_ARGUMENT, [](Args& a) { a.q = nullptr; });
  expect_status("null slots", TC_INVALID_ARGUMENT, [](Args& a) { a.slots = nullptr; });
  expect_status("null y", TC_INVALID_ARGUMENT, [](Args& a) { a.y = nullptr; });
  expect_status("no tokens", TC_INVALID_ARGUMENT, [](Args& a) { a.tokens = 0; });
  expect_status("negative batch", TC_INVALID_ARGUMENT, [](Args& a) { a.batch = -1; });
  expect_status("heads that do not divide", TC_INVALID_ARGUMENT, [](Args& a) { a.kv_heads = 3; });
  expect_status("too many tokens", TC_INVALID_ARGUMENT, [](Args& a) { a.tokens = 1ll << 40; });
  expect_status("too many rows", TC_UNSUPPORTED,
                [](Args& a) { a.tokens = 1ll << 30, a.batch = 9; });
  expect_status("scale 0", TC_INVALID_ARGUMENT, [](Args& a) { a.scale = 0.0f; });
  expect_status("scale NaN", TC_INVALID_ARGUMENT, [](Args& a) { a.scale = std::nanf(""); });
  expect_status("head size 72", TC_UNSUPPORTED, [](Args& a) { a.head_dim = 72; });
  expect_status("float32", TC_UNSUPPORTED, [](Args& a) { a.dtype = TC_FLOAT32; });
  expect_status("misaligned y", TC_INVALID_ARGUMENT,
                [](Args& a) { a.y = static_cast<char*>(a.y) + 2; });
  expect_status("no workspace", TC_INVALID_ARGUMENT, [](Args& a) { a.cache_rows = 4096; });
  if (tc_cuda_block_causal_attention(nullptr, nullptr, 0, nullptr) != TC_INVALID_ARGUMENT) {
    fail("no arguments at all");
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::string only = count > 1 ? arguments[1] : "";
  std::vector<Case> cases = special_cases();
  for (const tc_dtype dtype : {TC_FLOAT16, TC_BFLOAT16}) {
    for (const int head_dim : {64, 80, 96, 128, 256}) {
      const auto more = cases_for(dtype, head_dim);
      cases.insert(cases.end(), more.begin(), more.end());
    }
  }
  for (const Case& c : cases) {
    if (c.name.find(only) != std::string::npos) run(c);
  }
  run_out_of_range();
  run_bad_arguments();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
