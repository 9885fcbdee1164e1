// SPDX-License-Identifier: Apache-2.0
#include "recorded_kernels.h"

namespace tc_test {

Recorded recorded;

namespace {

tc_status note(const char* function) {
  recorded.called += function;
  recorded.during();
  return recorded.answer;
}

void hand_out_tasks(tc_parallel_for parallel_for, void* context) {
  parallel_for(
      context, kTasks, [](void* data, size_t) { ++*static_cast<size_t*>(data); },
      &recorded.tasks_run);
}

}  // namespace
}  // namespace tc_test

using tc_test::recorded;

extern "C" {

tc_status tc_cpu_block_causal_attention(const tc_attention_args* args, tc_parallel_for parallel_for,
                                        void* context) {
  recorded.attention = *args;
  tc_test::hand_out_tasks(parallel_for, context);
  return tc_test::note("tc_cpu_block_causal_attention");
}

tc_status tc_cpu_block_causal_attention_int8(const tc_attention_int8_args* args,
                                             tc_parallel_for parallel_for, void* context) {
  recorded.attention_int8 = *args;
  tc_test::hand_out_tasks(parallel_for, context);
  return tc_test::note("tc_cpu_block_causal_attention_int8");
}

tc_status tc_cpu_dual_rope(const tc_dual_rope_args* args, tc_parallel_for parallel_for,
                           void* context) {
  recorded.rope = *args;
  tc_test::hand_out_tasks(parallel_for, context);
  return tc_test::note("tc_cpu_dual_rope");
}

size_t tc_cuda_block_causal_attention_workspace(const tc_attention_args*) {
  return recorded.workspace_wanted;
}

tc_status tc_cuda_block_causal_attention(const tc_attention_args* args, void* workspace,
                                         size_t workspace_bytes, void* stream) {
  recorded.attention = *args;
  recorded.workspace = workspace;
  recorded.workspace_bytes = workspace_bytes;
  recorded.stream = stream;
  return tc_test::note("tc_cuda_block_causal_attention");
}

size_t tc_cuda_block_causal_attention_int8_workspace(const tc_attention_int8_args*) {
  return recorded.workspace_wanted;
}

tc_status tc_cuda_block_causal_attention_int8(const tc_attention_int8_args* args, void* workspace,
                                              size_t workspace_bytes, void* stream) {
  recorded.attention_int8 = *args;
  recorded.workspace = workspace;
  recorded.workspace_bytes = workspace_bytes;
  recorded.stream = stream;
  return tc_test::note("tc_cuda_block_causal_attention_int8");
}

tc_status tc_cuda_dual_rope(const tc_dual_rope_args* args, void* stream) {
  recorded.rope = *args;
  recorded.stream = stream;
  return tc_test::note("tc_cuda_dual_rope");
}
}
