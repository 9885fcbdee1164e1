// SPDX-License-Identifier: Apache-2.0
//
// Kernels that compute nothing: they note how they were called, and answer what a test wants.
#ifndef TC_TESTS_RECORDED_KERNELS_H
#define TC_TESTS_RECORDED_KERNELS_H

#include <functional>
#include <string>

#include "tc_kernels.h"

namespace tc_test {

constexpr size_t kTasks = 5;  // that a kernel on the CPU gives to the caller's threads

struct Recorded {
  // What the kernels shall do.
  size_t workspace_wanted = 0;
  tc_status answer = TC_OK;
  std::function<void()> during = [] {};
  // What was seen.
  std::string called;
  tc_attention_args attention{};
  tc_attention_int8_args attention_int8{};
  tc_dual_rope_args rope{};
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
  void* stream = nullptr;
  size_t tasks_run = 0;
};
extern Recorded recorded;

}  // namespace tc_test

#endif  // TC_TESTS_RECORDED_KERNELS_H
