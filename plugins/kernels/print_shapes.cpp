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

void print(const char* kernel, int head_dim, int threads, int shared_bytes, int rows, int keys) {
  std::printf(
      "%s\n  {\"kernel\": \"%s\", \"size\": %d, \"threads\": %d, \"shared_bytes\": %d, "
      "\"rows\": %d, \"keys\": %d, \"splits\": %d}",
      separator, kernel, head_dim, threads, shared_bytes, rows, keys, splits);
  separator = ",";
}

template <int D>
void print_shapes() {
  using Prefill = tc::PrefillShape<D>;
  using Decode = tc::DecodeShape<D>;
  print("prefill_attention", D, Prefill::kThreads, Prefill::kSharedBytes, Prefill::kRows,
        Prefill::kKeys);
  print("decode_attention", D, Decode::kThreads, Decode::kSharedBytes, tc::kDecodeRows,
        Decode::kKeys);
  print("merge_splits", D, tc::kMergeThreads, 0, 1, 0);
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
