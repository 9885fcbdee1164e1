// SPDX-License-Identifier: Apache-2.0
//
// Prints the launch of each attention kernel as JSON, for scripts/kernel_report.py: shared memory
// is asked for at launch, so the compiled code does not say how much. A host program, compiled
// against the emulator's device.cuh. Arguments: query heads, key/value heads and cache rows of a
// decode step, to say how many parts it is cut into.

#include <cstdio>
#include <cstdlib>

#include "attention_dispatch.cuh"
#include "decode.cuh"
#include "prefill.cuh"

namespace {

const char* separator = "";
int splits = 1;

struct Shape {
  int head_dim, threads, shared_bytes, rows, keys;
};

void print(const char* kernel, bool in_int8, const Shape& shape) {
  std::printf(
      "%s\n  {\"kernel\": \"%s\", \"in_int8\": %s, \"size\": %d, \"threads\": %d, "
      "\"shared_bytes\": %d, \"rows\": %d, \"keys\": %d, \"splits\": %d}",
      separator, kernel, in_int8 ? "true" : "false", shape.head_dim, shape.threads,
      shape.shared_bytes, shape.rows, shape.keys, splits);
  separator = ",";
}

template <class Stored, int D>
void print_attention() {
  using Prefill = tc::PrefillShape<D>;
  using Decode = tc::DecodeShape<D>;
  constexpr bool kInInt8 = std::is_same_v<Stored, std::int8_t>;
  constexpr int kPrefillBytes = tc::kPrefillSharedBytes<tc::Half, Stored, D>;
  constexpr int kDecodeBytes = tc::kDecodeSharedBytes<tc::Half, Stored, D>;
  print("prefill_attention", kInInt8,
        {D, Prefill::kThreads, kPrefillBytes, Prefill::kRows, Prefill::kKeys});
  print("decode_attention", kInInt8,
        {D, Decode::kThreads, kDecodeBytes, tc::kDecodeRows, Decode::kKeys});
}

template <int D>
void print_shapes() {
  print_attention<tc::Half, D>();
  print_attention<std::int8_t, D>();
  print("merge_splits", false, {D, tc::kMergeThreads, 0, 1, 0});
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return 2;
  tc_attention_args step{};
  step.batch = step.tokens = 1;
  step.q_heads = std::atoi(arguments[1]);
  step.kv_heads = std::atoi(arguments[2]);
  step.cache_rows = std::atoi(arguments[3]);
  splits = tc::decode_splits(step);
  std::printf("[");
  print_shapes<64>();
  print_shapes<80>();
  print_shapes<96>();
  print_shapes<128>();
  print_shapes<256>();
  std::printf("\n]\n");
}
