// SPDX-License-Identifier: Apache-2.0
//
// A plugin's launches on host memory, with answers that are known by hand: which pointer, size and
// attribute goes where. The kernels have their own tests. Usage: plugin_enqueue LIBRARY
#include <algorithm>
#include <cmath>

#include "half.h"
#include "host_api.h"
#include "ops_under_test.h"

namespace tc_test {

namespace {

tc_dtype DtypeOf(DataType type) { return type == DataType::kBF16 ? TC_BFLOAT16 : TC_FLOAT16; }

// A tensor of a 16-bit type, in the order of its shape.
class Values {
 public:
  Values(DataType type, const Shape& shape) : dtype_(DtypeOf(type)), shape_(shape) {
    int64_t count = 1;
    for (int64_t size : shape) {
      count *= size;
    }
    bits_.assign(count, Store(dtype_, 0.0f));
  }

  float Get(int64_t i, int64_t j, int64_t k, int64_t l) const {
    return Load(dtype_, bits_[Index(i, j, k, l)]);
  }
  void Set(int64_t i, int64_t j, int64_t k, int64_t l, float value) {
    bits_[Index(i, j, k, l)] = Store(dtype_, value);
  }
  template <typename Function>
  void Fill(Function value_at) {
    for (int64_t i = 0; i < shape_[0]; ++i)
      for (int64_t j = 0; j < shape_[1]; ++j)
        for (int64_t k = 0; k < shape_[2]; ++k)
          for (int64_t l = 0; l < shape_[3]; ++l) Set(i, j, k, l, value_at(i, j, k, l));
  }
  uint16_t* data() { return bits_.data(); }

 private:
  size_t Index(int64_t i, int64_t j, int64_t k, int64_t l) const {
    return ((i * shape_[1] + j) * shape_[2] + k) * shape_[3] + l;
  }
  tc_dtype dtype_;
  Shape shape_;
  std::vector<uint16_t> bits_;
};

// One rounding to the type, and a little for the sums before it.
bool Near(float found, double expected, DataType type) {
  const double unit = type == DataType::kBF16 ? std::ldexp(1, -8) : std::ldexp(1, -11);
  const bool near = std::fabs(found - expected) <= 2 * unit * std::max(1.0, std::fabs(expected));
  if (!near) {
    std::fprintf(stderr, "found %g, expected %g\n", found, expected);
  }
  return near;
}

// x is (h + 1) in the first channel of each pair and 0 in the second, so that y is its angle's
// cosine and sine. All numbers differ between batches, tokens, positions and frequencies.
void TestDualRope(const Library& library, DataType type) {
  const OpUnderTest op = DualRopeUnderTest(type);
  const float gamma = 0.75f, factor = 1.5f;
  LivePlugin plugin(
      library.TryCreate(op.name, {Float("gamma", gamma), Float("attention_factor", factor)}));
  const std::vector<int64_t> position_ids = {0, 1, 7, -1, 5, 11};  // [B, S]
  const std::vector<int64_t> temporal_ids = {0, 1, 3, -1, 2, 9};   // [B, S]
  std::vector<float> inv_freq(kR);
  for (int64_t k = 0; k < kR; ++k) {
    inv_freq[k] = 1.0f / (1 + k);
  }
  Values x(type, op.inputs[0].shape), y(type, op.outputs[0].shape);
  x.Fill([](int64_t, int64_t h, int64_t, int64_t d) {
    return d < kR ? 1.0f + h : d < 2 * kR ? 0.0f : 3.0f;
  });

  const void* inputs[] = {x.data(), position_ids.data(), temporal_ids.data(), inv_freq.data()};
  void* outputs[] = {y.data()};
  CHECK(plugin.runtime().enqueue(Descs(op.inputs).data(), Descs(op.outputs).data(), inputs, outputs,
                                 nullptr, nullptr) == 0);
  for (int64_t b = 0; b < kB; ++b) {
    for (int64_t h = 0; h < kH; ++h) {
      for (int64_t s = 0; s < kS; ++s) {
        const double position = position_ids[b * kS + s] + 0.75 * temporal_ids[b * kS + s];
        for (int64_t k = 0; k < kR; ++k) {
          const double angle = position * inv_freq[k];
          CHECK(Near(y.Get(b, h, s, k), 1.5 * (h + 1) * std::cos(angle), type));
          CHECK(Near(y.Get(b, h, s, k + kR), 1.5 * (h + 1) * std::sin(angle), type));
        }
        CHECK(y.Get(b, h, s, kD - 1) == 3.0f);  // not rotated
      }
    }
  }
}

// Three tokens go into a cache that already holds rows; the last of batch 1 is padding.
struct AttentionCase {
  AttentionCase(const OpUnderTest& op, DataType type)
      : q(type, op.inputs[0].shape),
        k(type, op.inputs[1].shape),
        v(type, op.inputs[2].shape),
        past_key(type, op.inputs[5].shape),
        past_value(type, op.inputs[6].shape),
        y(type, op.outputs[0].shape),
        present_key(type, op.outputs[1].shape),
        present_value(type, op.outputs[2].shape) {}

  int32_t Enqueue(const LivePlugin& plugin, const OpUnderTest& op, bool in_place) {
    // The workspace is exactly what the plugin asks for, for the largest call of the profile, with
    // a mark behind it.
    const auto dynamic = DynamicDescs(AttentionUnderTest(op.inputs[0].type));
    const size_t bytes = plugin.build().getWorkspaceSize(
        dynamic.data(), static_cast<int32_t>(op.inputs.size()), &dynamic[op.inputs.size()],
        static_cast<int32_t>(op.outputs.size()));
    std::vector<uint8_t> workspace(bytes + 1, 0x5a);

    const void* inputs[] = {q.data(),     k.data(),        v.data(),         kv_end.data(),
                            slots.data(), past_key.data(), past_value.data()};
    void* outputs[] = {y.data(), in_place ? past_key.data() : present_key.data(),
                       in_place ? past_value.data() : present_value.data()};
    const int32_t status =
        plugin.runtime().enqueue(Descs(op.inputs).data(), Descs(op.outputs).data(), inputs, outputs,
                                 workspace.data(), nullptr);
    CHECK(workspace.back() == 0x5a);
    return status;
  }

  Values q, k, v, past_key, past_value, y, present_key, present_value;
  std::vector<int32_t> kv_end = {3, 5, 5, 2, 3, 0};  // [B, S]
  std::vector<int64_t> slots = {2, 3, 4, 1, 2, -1};  // [B, S]
};

// What lies in row `c` of the value cache after the call: old rows 10 c, new ones their token + 1,
// each with its batch and head added.
float ValueRow(const AttentionCase& call, int64_t b, int64_t head, int64_t c) {
  const auto begin = call.slots.begin() + b * kS;
  const auto at = std::find(begin, begin + kS, c);
  const float row = at != begin + kS ? float(at - begin + 1) : 10.0f * c;
  return row + 0.5f * b + 100.0f * head;
}

// With q = 0 every visible row weighs the same: y is their mean.
void TestAttentionMean(const Library& library, DataType type, bool in_place) {
  const OpUnderTest op = AttentionUnderTest(type);
  LivePlugin plugin(library.TryCreate(op.name, GoodFields(op.name)));
  AttentionCase call(op, type);
  call.past_value.Fill([](int64_t b, int64_t h, int64_t c, int64_t) {
    return 10.0f * c + 0.5f * b + 100.0f * h;
  });
  call.v.Fill([](int64_t b, int64_t h, int64_t s, int64_t) {
    return s + 1 + 0.5f * b + 100.0f * h;
  });
  call.past_key.Fill([](int64_t, int64_t, int64_t c, int64_t) { return 7.0f + c; });
  call.k.Fill([](int64_t, int64_t h, int64_t s, int64_t) { return -1.0f - s - 4 * h; });

  CHECK(call.Enqueue(plugin, op, in_place) == 0);
  const Values& key = in_place ? call.past_key : call.present_key;
  const Values& value = in_place ? call.past_value : call.present_value;
  for (int64_t b = 0; b < kB; ++b) {
    for (int64_t h = 0; h < kH; ++h) {
      for (int64_t s = 0; s < kS; ++s) {
        const int32_t end = call.kv_end[b * kS + s];
        double sum = 0;
        for (int32_t c = 0; c < end; ++c) {
          sum += Load(DtypeOf(type),
                      Store(DtypeOf(type), ValueRow(call, b, h / (kH / kK), c)));
        }
        CHECK(Near(call.y.Get(b, h, s, kD - 1), end > 0 ? sum / end : 0, type));
      }
    }
    for (int64_t h = 0; h < kK; ++h) {
      CHECK(value.Get(b, h, 0, 0) == Load(DtypeOf(type), Store(DtypeOf(type), 0.5f * b + 100 * h)));
      CHECK(key.Get(b, h, 0, 3) == 7.0f);                 // an old row
      CHECK(key.Get(b, h, call.slots[b * kS], 3) == -1.0f - 4 * h);  // a new one
    }
  }
}

// One token on one old row, with logits 0 and scale * 3 * 2: y is the logistic of their difference.
void TestAttentionScale(const Library& library, DataType type) {
  const OpUnderTest op = AttentionUnderTest(type, /*batch=*/1, /*tokens=*/1);
  const float scale = 0.25f;
  LivePlugin plugin(library.TryCreate(op.name, {Float("scale", scale)}));
  AttentionCase call(op, type);
  call.q.Fill([](int64_t, int64_t, int64_t, int64_t d) { return d == 5 ? 3.0f : 0.0f; });
  call.k.Fill([](int64_t, int64_t, int64_t, int64_t d) { return d == 5 ? 2.0f : 9.0f; });
  call.v.Fill([](int64_t, int64_t, int64_t, int64_t) { return 1.0f; });
  call.kv_end = {2};
  call.slots = {1};
  CHECK(call.Enqueue(plugin, op, /*in_place=*/true) == 0);
  for (int64_t h = 0; h < kH; ++h) {
    CHECK(Near(call.y.Get(0, h, 0, 0), 1 / (1 + std::exp(-0.25 * 6)), type));
  }
}

// The same over a cache in int8, whose old rows are 127 times their scale, 10 c + 1, in every
// channel of the values, and 5 times 2 in the keys.
struct AttentionInt8Case {
  explicit AttentionInt8Case(DataType type, int64_t batch = kB, int64_t tokens = kS)
      : plain(AttentionUnderTest(type, batch, tokens), type) {
    for (size_t row = 0; row < kRows; ++row) past_value_scale[row] = (10.0f * (row % kC) + 1) / 127;
  }

  int32_t Enqueue(const LivePlugin& plugin, const OpUnderTest& op, bool in_place) {
    const auto dynamic = DynamicDescs(AttentionInt8UnderTest(op.inputs[0].type));
    const size_t bytes = plugin.build().getWorkspaceSize(
        dynamic.data(), static_cast<int32_t>(op.inputs.size()), &dynamic[op.inputs.size()],
        static_cast<int32_t>(op.outputs.size()));
    std::vector<uint8_t> workspace(bytes + 1, 0x5a);
    const void* inputs[] = {plain.q.data(),      plain.k.data(),         plain.v.data(),
                            plain.kv_end.data(), plain.slots.data(),     past_key.data(),
                            past_value.data(),   past_key_scale.data(),  past_value_scale.data()};
    void* apart[] = {plain.y.data(), key.data(), value.data(), key_scale.data(),
                     value_scale.data()};
    void* inside[] = {plain.y.data(), past_key.data(), past_value.data(), past_key_scale.data(),
                      past_value_scale.data()};
    const int32_t status =
        plugin.runtime().enqueue(Descs(op.inputs).data(), Descs(op.outputs).data(), inputs,
                                 in_place ? inside : apart, workspace.data(), nullptr);
    CHECK(workspace.back() == 0x5a);
    return status;
  }

  static constexpr size_t kRows = kB * kK * kC;
  AttentionCase plain;  // all but the cache
  std::vector<int8_t> past_key = std::vector<int8_t>(kRows * kD, 5);
  std::vector<int8_t> past_value = std::vector<int8_t>(kRows * kD, 127);
  std::vector<float> past_key_scale = std::vector<float>(kRows, 2.0f);
  std::vector<float> past_value_scale = std::vector<float>(kRows);
  std::vector<int8_t> key = past_value, value = past_value;
  std::vector<float> key_scale = past_value_scale, value_scale = past_value_scale;
};

// The mean again; new rows are their token + 1 in every channel.
void TestAttentionInt8Mean(const Library& library, DataType type, bool in_place) {
  const OpUnderTest op = AttentionInt8UnderTest(type);
  LivePlugin plugin(library.TryCreate(op.name, GoodFields(op.name)));
  AttentionInt8Case call(type);
  call.plain.v.Fill([](int64_t, int64_t, int64_t s, int64_t) { return s + 1.0f; });
  call.plain.k.Fill([](int64_t, int64_t, int64_t s, int64_t) { return -127.0f * (s + 1); });
  CHECK(call.Enqueue(plugin, op, in_place) == 0);
  const auto& key = in_place ? call.past_key : call.key;
  const auto& value = in_place ? call.past_value : call.value;
  const auto& key_scale = in_place ? call.past_key_scale : call.key_scale;
  const auto& value_scale = in_place ? call.past_value_scale : call.value_scale;
  for (int64_t b = 0; b < kB; ++b) {
    const auto slots = call.plain.slots.begin() + b * kS;
    for (int64_t s = 0; s < kS; ++s) {
      const int32_t end = call.plain.kv_end[b * kS + s];
      double sum = 0;
      for (int32_t c = 0; c < end; ++c) {
        const auto at = std::find(slots, slots + kS, c);
        sum += at != slots + kS ? at - slots + 1 : 10 * c + 1;
      }
      for (int64_t h = 0; h < kH; ++h) {
        CHECK(Near(call.plain.y.Get(b, h, s, kD - 1), end > 0 ? sum / end : 0, type));
      }
    }
    for (int64_t h = 0; h < kK; ++h) {
      const int64_t first = (b * kK + h) * kC, fresh = first + slots[0];
      CHECK(key[first * kD] == 5 && key_scale[first] == 2.0f);  // an old row
      CHECK(value[first * kD] == 127 && value_scale[first] == 1.0f / 127);
      CHECK(key[fresh * kD] == -127 && key_scale[fresh] == 1.0f);  // a new one
      CHECK(value[fresh * kD] == 127 && value_scale[fresh] == 1.0f / 127);
    }
  }
}

// One token on one old row, with logits scale * 3 * 5 * 2 / 8 and scale * 3 * 2: y is the weight
// of the old row, whose value is 1.
void TestAttentionInt8Scale(const Library& library, DataType type) {
  const OpUnderTest op = AttentionInt8UnderTest(type, /*batch=*/1, /*tokens=*/1);
  const float scale = 0.25f;
  LivePlugin plugin(library.TryCreate(op.name, {Float("scale", scale)}));
  AttentionInt8Case call(type, /*batch=*/1, /*tokens=*/1);
  call.plain.q.Fill([](int64_t, int64_t, int64_t, int64_t d) { return d == 5 ? 3.0f : 0.0f; });
  call.plain.k.Fill([](int64_t, int64_t, int64_t, int64_t d) { return d == 5 ? 2.0f : 0.0f; });
  call.plain.kv_end = {2};
  call.plain.slots = {1};
  for (float& each : call.past_key_scale) each /= 8;
  CHECK(call.Enqueue(plugin, op, /*in_place=*/true) == 0);
  for (int64_t h = 0; h < kH; ++h) {
    CHECK(Near(call.plain.y.Get(0, h, 0, 0), 1 / (1 + std::exp(0.25 * (6 - 3.75))), type));
  }
}

// What a launcher refuses comes back as an error with its sentence.
void TestRefusal(const Library& library) {
  const OpUnderTest op = AttentionUnderTest(DataType::kHALF);
  LivePlugin plugin(library.TryCreate(op.name, GoodFields(op.name)));
  OpUnderTest empty = op;
  for (Tensor& tensor : empty.inputs) {
    tensor.shape[0] = 0;  // no batch
  }
  AttentionCase call(op, DataType::kHALF);
  CHECK(call.Enqueue(plugin, empty, true) != 0);
  CHECK(library.logger.Said({"TcBlockCausalAttention: invalid argument"}));
}

}  // namespace

}  // namespace tc_test

int main(int argc, char** argv) {
  using namespace tc_test;
  if (argc != 2) {
    std::fprintf(stderr, "usage: plugin_enqueue LIBRARY\n");
    return 2;
  }
  const Library library(argv[1]);
  for (DataType type : {DataType::kHALF, DataType::kBF16}) {
    TestDualRope(library, type);
    TestAttentionMean(library, type, /*in_place=*/false);
    TestAttentionMean(library, type, /*in_place=*/true);
    TestAttentionScale(library, type);
    TestAttentionInt8Mean(library, type, /*in_place=*/false);
    TestAttentionInt8Mean(library, type, /*in_place=*/true);
    TestAttentionInt8Scale(library, type);
  }
  CHECK(library.logger.Silent());
  TestRefusal(library);
  std::printf("plugin_enqueue: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
