// SPDX-License-Identifier: Apache-2.0
//
// A parallel_for for callers that cannot lend their own threads.

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "tc_cpu.h"

extern "C" void tc_cpu_run_on_threads(void* context, size_t n, void (*task)(void* data, size_t i),
                                      void* data) {
  const size_t threads = *static_cast<const int32_t*>(context);
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < n; i = next++) task(data, i);
  };
  std::vector<std::thread> helpers;
  try {
    while (helpers.size() + 1 < threads && helpers.size() + 1 < n) helpers.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads to be had: those that there are do the work.
  }
  work();
  for (std::thread& helper : helpers) helper.join();
}
