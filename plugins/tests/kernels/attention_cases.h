// SPDX-License-Identifier: Apache-2.0
//
// What the tests of attention share, whatever the cache holds: sequences that are cut into calls,
// attention in float64 loops, and a run of a case under every schedule.
//
// `run` and `attend` take the kind of cache as a template argument. It has keys() and values(),
// whose get(i) is a number of it; write(c, call), which writes the rows of a call by the
// definition; spoil() and same_bits(other). launch(c, call, before, after, y) calls the kernels.

#ifndef TC_TESTS_ATTENTION_CASES_H
#define TC_TESTS_ATTENTION_CASES_H

#include <algorithm>
#include <string>

#include "check.h"

// A run of text (frames 0) or a clip, as in the method's definition.
struct Segment {
  int frames;
  int tokens;  // of the text, or of each frame
};

// How many tokens each token sees: counted pair by pair from the definition of the mask
// frame_block_causal (or full_visual), and only then seen to be a prefix.
inline std::vector<int> prefix_lengths(const std::vector<Segment>& segments,
                                       bool full_visual = false) {
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
  bool uneven = false;  // rows of k and v of very different sizes, some of them zeros
};

// Everything that one call reads and writes. Axes as in the contract.
struct Call {
  int tokens;
  std::vector<int32_t> kv_end;
  std::vector<int64_t> slots;
  Tensor q, k, v;
};

// Each row times a power of two from 2^-7 to 2^3, and every seventh times 0.
inline void make_uneven(Tensor& rows, int head_dim, int first) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const int row = static_cast<int>(i / head_dim) + first;
    const double size = row % 7 == 3 ? 0.0 : std::ldexp(1.0, row * 5 % 11 - 7);
    rows.set(i, static_cast<float>(rows.get(i) * size));
  }
}

inline Call make_call(const Case& c, const std::vector<Span>& spans, std::mt19937& random) {
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
  if (c.uneven) {
    make_uneven(call.k, c.head_dim, 0);
    make_uneven(call.v, c.head_dim, 1);
  }
  return call;
}

// Calls `write(row, place)` for each row of k or v of a call and its place in the cache; both count
// rows of all heads and batches. A slot that is none has no place.
template <class Write>
void for_written_rows(const Case& c, const Call& call, Write write) {
  const std::size_t batch = call.slots.size() / call.tokens;
  for (std::size_t head = 0; head < batch * c.kv_heads; ++head) {
    for (int s = 0; s < call.tokens; ++s) {
      const int64_t slot = call.slots[head / c.kv_heads * call.tokens + s];
      if (slot >= 0 && slot < c.cache_rows) {
        write(head * call.tokens + s, head * c.cache_rows + slot);
      }
    }
  }
}

// All but the cache.
template <class Args>
Args arguments_of(const Case& c, const Call& call, Tensor& y) {
  Args args{};
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
  args.y = y.data();
  return args;
}

// In place of what was declared before.
inline void declare(const Call& call, const Tensor& y, const Tensor& workspace,
                    std::size_t workspace_bytes) {
  tc_emulator_forget_memory();
  for (const Tensor* input : {&call.q, &call.k, &call.v}) input->declare(false);
  declare(call.kv_end);
  declare(call.slots);
  y.declare(true);
  tc_emulator_declare_memory(workspace.data(), workspace_bytes, 1);
}

// The value of y and the largest error that the kernel's roundings can make: one of each softmax
// weight and one of the result to the type, and float32 in between. (Weights below the smallest
// normal float16 keep an absolute, not a relative, accuracy.)
struct Expected {
  double y, tolerance;
};

template <class Rows>
std::vector<Expected> attend_row(const Case& c, const Tensor& q, std::size_t q_row,
                                 const Rows& keys, const Rows& values, std::size_t first_key,
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

template <class Cache>
std::vector<Expected> attend(const Case& c, const Call& call, const Cache& cache) {
  std::vector<Expected> y;
  const int group = c.q_heads / c.kv_heads;
  for (std::size_t row = 0; row < call.q.size() / c.head_dim; ++row) {
    const std::size_t head = row / call.tokens;  // over batch and heads
    const std::size_t batch = head / c.q_heads;
    const int end = std::min(call.kv_end[batch * call.tokens + row % call.tokens], c.cache_rows);
    const std::size_t kv_head = batch * c.kv_heads + head % c.q_heads / group;
    const auto expected =
        attend_row(c, call.q, row, cache.keys(), cache.values(), kv_head * c.cache_rows, end);
    y.insert(y.end(), expected.begin(), expected.end());
  }
  return y;
}

inline void compare(const Case& c, std::size_t call, const Tensor& y,
                    const std::vector<Expected>& expected) {
  double worst = 0.0;
  std::size_t where = 0;
  for (std::size_t i = 0; i < y.size() && !std::isnan(worst); ++i) {
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

template <class Cache>
void run(const Case& c) {
  std::mt19937 random(7);
  // What no token was written to stays NaN: a kernel that lets it in shows.
  Cache cache(c, c.sequences.size());
  for (std::size_t i = 0; i < c.calls.size(); ++i) {
    const Call call = make_call(c, c.calls[i], random);
    Cache wanted = cache;
    wanted.write(c, call);
    Tensor first_y(c.dtype, call.q.size());
    for (const Schedule& schedule : kSchedules) {
      tc_emulator_set_schedule(schedule.order, schedule.seed);
      Cache before = cache, after = cache;
      if (!c.in_place) after.spoil();
      Tensor y(c.dtype, call.q.size());
      const tc_status status = launch(c, call, c.in_place ? after : before, after, y);
      if (!went_well(status, (c.name + ", " + schedule.name).c_str())) return;
      if (!after.same_bits(wanted)) {
        fail("%s: call %zu, %s: the cache is not as expected", c.name.c_str(), i, schedule.name);
      }
      if (schedule.order == TC_SCHEDULE_FORWARD) first_y = y;
      if (!y.same_bits(first_y)) {
        fail("%s: call %zu, %s: y depends on the schedule", c.name.c_str(), i, schedule.name);
      }
    }
    cache = wanted;
    compare(c, i, first_y, attend(c, call, cache));
  }
}

inline std::vector<Case> cases_for(tc_dtype dtype, int head_dim) {
  const std::string suffix = std::string(dtype == TC_FLOAT16 ? " float16" : " bfloat16") +
                             " D=" + std::to_string(head_dim);
  const auto clip = prefix_lengths({{0, 5}, {4, 9}, {0, 3}});
  const auto two_clips = prefix_lengths({{3, 11}, {0, 2}, {1, 13}, {0, 4}});
  const auto tiny_frames = prefix_lengths({{6, 1}, {0, 1}});
  const auto longer = prefix_lengths({{0, 7}, {3, 33}, {0, 20}});
  const int n = static_cast<int>(clip.size()), two = static_cast<int>(two_clips.size());
  const int tiny = static_cast<int>(tiny_frames.size()), most = static_cast<int>(longer.size());
  return {
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
}

inline std::vector<Case> special_cases() {
  const auto longest = prefix_lengths({{0, 20}, {3, 170}, {0, 110}});
  const auto longer = prefix_lengths({{0, 20}, {3, 45}, {0, 40}});
  const auto shorter = prefix_lengths({{0, 9}, {2, 25}, {0, 1}});
  const int all = static_cast<int>(longest.size()), most = static_cast<int>(longer.size());
  const int some = static_cast<int>(shorter.size());
  return {
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
}

#endif  // TC_TESTS_ATTENTION_CASES_H
