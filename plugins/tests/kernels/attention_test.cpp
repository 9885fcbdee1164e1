// SPDX-License-Identifier: Apache-2.0
//
// TcBlockCausalAttention on the emulator against float64 loops: prefill, chunked prefill and
// decode, under several schedules, with all memory guarded. An argument runs only those long cases
// whose names contain it.

#include <functional>
#include <string>

#include "attention_cases.h"

namespace {

class Cache {
 public:
  Cache(const Case& c, std::size_t batch)
      : key_(c.dtype, batch * c.kv_heads * c.cache_rows * c.head_dim), value_(key_) {}

  const Tensor& keys() const { return key_; }
  const Tensor& values() const { return value_; }
  Tensor& keys() { return key_; }
  Tensor& values() { return value_; }

  // Rows `slots` become rows of k and v, bit for bit; every other row stays.
  void write(const Case& c, const Call& call) {
    const std::size_t row_bytes = c.head_dim * bytes_of(c.dtype);
    for_written_rows(c, call, [&](std::size_t row, std::size_t place) {
      const auto copy = [&](Tensor& to, const Tensor& from) {
        std::memcpy(static_cast<char*>(to.data()) + place * row_bytes,
                    static_cast<const char*>(from.data()) + row * row_bytes, row_bytes);
      };
      copy(key_, call.k);
      copy(value_, call.v);
    });
  }
  void spoil() { std::memset(key_.data(), 0x5A, key_.bytes()); }
  bool same_bits(const Cache& other) const {
    return key_.same_bits(other.key_) && value_.same_bits(other.value_);
  }

 private:
  Tensor key_, value_;
};

// One call into `after` (which may be `before`).
tc_status launch(const Case& c, const Call& call, const Cache& before, Cache& after, Tensor& y) {
  auto args = arguments_of<tc_attention_args>(c, call, y);
  args.past_key = before.keys().data();
  args.past_value = before.values().data();
  args.present_key = after.keys().data();
  args.present_value = after.values().data();
  const std::size_t workspace_bytes = tc_cuda_block_causal_attention_workspace(&args);
  Tensor workspace(TC_FLOAT32, workspace_bytes / 4 + 1);
  declare(call, y, workspace, workspace_bytes);
  after.keys().declare(true);
  after.values().declare(true);
  const tc_status status =
      tc_cuda_block_causal_attention(&args, workspace.data(), workspace_bytes, nullptr);
  tc_emulator_forget_memory();
  return status;
}

// What the contract defines beyond sound calls: slots and kv_end out of range.
void run_out_of_range() {
  Case c{"out of range", TC_FLOAT16, 2, 1, 64, 9, {{1, 2, 3, 4, 9}}, {{{0, 5}}}};
  std::mt19937 random(3);
  Call call = make_call(c, c.calls[0], random);
  call.slots = {0, -1, 9, -7, 4};
  call.kv_end = {1, -5, 1, std::numeric_limits<int32_t>::max(), 0};
  Cache cache(c, 1);
  cache.keys().randomise(random);
  cache.values().randomise(random);
  Cache wanted = cache;
  wanted.write(c, call);
  Tensor y(c.dtype, call.q.size());
  if (!went_well(launch(c, call, cache, cache, y), c.name.c_str())) return;
  if (!cache.same_bits(wanted)) fail("out of range: a slot that is none was written");
  compare(c, 0, y, attend(c, call, cache));
}

void expect_status(const char* what, tc_status expected,
                   const std::function<void(tc_attention_args&)>& spoil) {
  alignas(16) static unsigned char memory[4096];
  static const std::vector<std::uint16_t> ones(2048, 0x3c00);  // rows of k and v
  tc_attention_args args{TC_FLOAT16, 1, 2, 1, 1, 4, 64, 1.0f, memory, ones.data(), ones.data(),
                         reinterpret_cast<int32_t*>(memory), reinterpret_cast<int64_t*>(memory),
                         memory, memory, memory, memory, memory};
  spoil(args);
  const tc_status status = tc_cuda_block_causal_attention(&args, nullptr, 0, nullptr);
  if (status != expected) fail("%s: status %d, expected %d", what, status, expected);
  if (std::any_of(memory, std::end(memory), [](unsigned char byte) { return byte != 0; })) {
    fail("%s: refused, and yet something was written", what);
  }
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
    if (c.name.find(only) != std::string::npos) run<Cache>(c);
  }
  run_out_of_range();
  run_bad_arguments();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
